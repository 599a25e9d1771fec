//! Messages to the gateway and to ends, with any fields and under any key, the valid keys included.

use fuzzing::Input;

use super::world::{Act, World};

/// Events of one input at most.
const MAX_EVENTS: usize = 64;

/// The events of an input; seeds refer to them by index.
pub(crate) const KINDS: [Act; 12] = [
    Act::Forge,
    Act::ForgeAnswer,
    Act::Bind,
    Act::Unbind,
    Act::Hear,
    Act::Replay,
    Act::Change,
    Act::Roam,
    Act::Wait,
    Act::Tunnel,
    Act::Admin,
    Act::Clock,
];

/// Runs one input.
pub fn bind(data: &[u8]) {
    World::new(data, true).run(&mut Input::new(data), &KINDS, MAX_EVENTS);
}
