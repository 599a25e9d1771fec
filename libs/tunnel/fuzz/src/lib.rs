//! One function per parser of bytes from the wire, for libFuzzer and for `tunnel/tests/corpus.rs`.
//!
//! For: finding inputs that make the tunnel panic, accept what nobody sent, deliver twice, rejoin what
//! was never cut, or spin. Never: randomness, a clock or a file; an input always does the same.
//!
//! ```text
//!   seeds/  regressions/                    corpus/ (grown, not committed)
//!       │        │                             │
//!       ▼        ▼                             ▼
//!   tunnel/tests/corpus.rs            fuzz_targets/*.rs (cargo xtask fuzz)
//!       └───────────────┬──────────────────────┘
//!                       ▼
//!        message  keys  segment  receiver  handshake  control
//! ```
//!
//! The last four read their input as a program: a byte that names an act, then what the act needs.
//! Acts past the end of the input read zeros, and there is a bound on acts for each target.

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
