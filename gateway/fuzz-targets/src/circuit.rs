//! Any datagrams to the gateway from any address at any time, while ends bind, roam and leave. The
//! attacker has no key.

use fuzzing::Input;

use super::world::{Act, World};

/// Events of one input at most.
const MAX_EVENTS: usize = 64;

/// The events of an input; seeds refer to them by index.
pub(crate) const KINDS: [Act; 12] = [
    Act::Raw,
    Act::Tunnel,
    Act::Nearly,
    Act::Bind,
    Act::Unbind,
    Act::Roam,
    Act::Wait,
    Act::Replay,
    Act::Change,
    Act::Admin,
    Act::Clock,
    Act::Hear,
];

/// Runs one input.
pub fn circuit(data: &[u8]) {
    World::new(data, false).run(&mut Input::new(data), &KINDS, MAX_EVENTS);
}
