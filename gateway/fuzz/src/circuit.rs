//! Whatever comes to the gateway from anywhere at any time, while ends bind, roam and leave. The enemy has no key.

use fuzzing::Input;

use super::world::{Act, World};

/// Acts of one input.
const ACTS: usize = 64;

/// What an input may do; seeds name these by their places.
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
    World::new(data, false).run(&mut Input::new(data), &KINDS, ACTS);
}
