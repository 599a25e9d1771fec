//! One function per parser of bytes from the wire, from an operator or from the disk, for libFuzzer
//! and for `gateway/tests/corpus.rs`.
//!
//! For: finding inputs that make the gateway panic, parse a hello or stream differently in other
//! pieces, send to an address that has not proven that it receives, answer with more bytes than it
//! received, grow, or put a part of a desired state in force. Never: randomness, a clock or a file;
//! the same input always does the same.
//!
//! ```text
//!   seeds/  regressions/                    corpus/ (grown, not committed)   of the fuzz crate
//!       │        │                             │
//!       ▼        ▼                             ▼
//!   tests/corpus.rs                   fuzz_targets/*.rs (cargo xtask fuzz)
//!       └───────────────┬──────────────────────┘
//!                       ▼
//!       hello  stream  proxy  names
//!       circuit  bind ───▶ world: table and ends, against a model of docs/gateway.md
//!       updates  stored ─▶ desired state, against objects in maps
//! ```
//!
//! The last four read their input as a program: a byte selects an event, and its arguments follow.
//! Beyond the end of the input arguments are zero. The number of events is limited.

mod bind;
mod circuit;
mod hello;
mod names;
mod proxy;
pub mod seeds;
mod stored;
mod stream;
mod updates;
mod world;

pub use bind::bind;
pub use circuit::circuit;
pub use hello::hello;
pub use names::names;
pub use proxy::proxy;
pub use stored::stored;
pub use stream::stream;
pub use updates::updates;

use fuzzing::Target;

/// Every target.
pub const TARGETS: [Target; 8] = [
    Target {
        name: "hello",
        run: hello,
    },
    Target {
        name: "stream",
        run: stream,
    },
    Target {
        name: "proxy",
        run: proxy,
    },
    Target {
        name: "circuit",
        run: circuit,
    },
    Target {
        name: "bind",
        run: bind,
    },
    Target {
        name: "updates",
        run: updates,
    },
    Target {
        name: "stored",
        run: stored,
    },
    Target {
        name: "names",
        run: names,
    },
];
