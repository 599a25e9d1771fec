//! One function per parser of bytes from the wire, for libFuzzer and for `gateway/tests/corpus.rs`.
//!
//! For: finding inputs that make the gateway panic, parse a hello or stream differently in other
//! pieces, send to an address that has not proven that it receives, answer with more bytes than it
//! received, or grow. Never: randomness, a clock or a file; the same input always does the same.
//!
//! ```text
//!   seeds/  regressions/                    corpus/ (grown, not committed)   of the fuzz crate
//!       │        │                             │
//!       ▼        ▼                             ▼
//!   tests/corpus.rs                   fuzz_targets/*.rs (cargo xtask fuzz)
//!       └───────────────┬──────────────────────┘
//!                       ▼
//!       hello  stream  proxy  circuit  bind ─▶ world: table and ends, against a model of docs/gateway.md
//! ```
//!
//! The last two read their input as a program: a byte selects an event, and its arguments follow.
//! Beyond the end of the input arguments are zero. The number of events is limited.

mod bind;
mod circuit;
mod hello;
mod proxy;
pub mod seeds;
mod stream;
mod world;

pub use bind::bind;
pub use circuit::circuit;
pub use hello::hello;
pub use proxy::proxy;
pub use stream::stream;

use fuzzing::Target;

/// Every target.
pub const TARGETS: [Target; 5] = [
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
];
