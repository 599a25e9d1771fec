//! Fuzz targets for every parser of bytes from the wire, for libFuzzer and for `tests/corpus.rs`.
//!
//! For: finding inputs that make the tunnel panic, accept forged messages, deliver twice,
//! reassemble fragments of different packets, or loop. Never: randomness, a clock or a file; the
//! same input always has the same effect.
//!
//! ```text
//!   seeds/  regressions/                    corpus/ (grown, not committed)   of the fuzz crate
//!       │        │                             │
//!       ▼        ▼                             ▼
//!   tests/corpus.rs                   fuzz_targets/*.rs (cargo xtask fuzz)
//!       └───────────────┬──────────────────────┘
//!                       ▼
//!        message  keys  segment  receiver  handshake  control
//! ```
//!
//! The last four interpret their input as a program: a byte that names an act, then the arguments
//! of the act. Past the end of the input they read zeros. Each target has an upper bound on acts.

mod common;
mod control;
mod handshake;
mod keys;
mod message;
mod receiver;
pub mod seeds;
mod segment;

pub use control::control;
pub use handshake::handshake;
pub use keys::keys;
pub use message::message;
pub use receiver::receiver;
pub use segment::segment;

use fuzzing::Target;

/// Every target.
pub const TARGETS: [Target; 6] = [
    Target {
        name: "message",
        run: message,
    },
    Target {
        name: "keys",
        run: keys,
    },
    Target {
        name: "segment",
        run: segment,
    },
    Target {
        name: "receiver",
        run: receiver,
    },
    Target {
        name: "handshake",
        run: handshake,
    },
    Target {
        name: "control",
        run: control,
    },
];
