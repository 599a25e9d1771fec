//! Messages to the gateway and to ends, of any fields and under any key, the right ones too.

use fuzzing::Input;

use super::world::{Act, World};

/// Acts of one input.
const ACTS: usize = 64;

/// What an input may do; seeds name these by their places.
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
    World::new(data, true).run(&mut Input::new(data), &KINDS, ACTS);
}
