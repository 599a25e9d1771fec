//! One function per parser of what an operator sends and of what the disk keeps, for libFuzzer and
//! for `appliance-user/tests/corpus.rs`.
//!
//! For: finding inputs that make the appliance panic, or put a part of an update in force. Never:
//! randomness, a clock or a file; the same input always does the same.
//!
//! ```text
//!   updates ─▶ objects ─▶ Desired::prepare, Config::with_objects   against JSON in maps
//!   bytes ───▶ state ───▶ State::from_json                         against its own encoding
//! ```
//!
//! An input is read as a program: a byte selects a step, and its arguments follow. Beyond the end
//! of the input arguments are zero. The number of steps is limited.

mod objects;
pub mod seeds;
mod state;

pub use objects::objects;
pub use state::state;

use fuzzing::Target;

/// Every target.
pub const TARGETS: [Target; 2] = [
    Target {
        name: "objects",
        run: objects,
    },
    Target {
        name: "state",
        run: state,
    },
];
