//! What fuzz targets share.
//!
//! For: reading an input, and running a fuzz crate's targets as an ordinary test. Never: a target; a finding of libFuzzer's own
//! making, which is `cargo xtask fuzz`.
//!
//! ```text
//!   */fuzz/src/*.rs    a function for each target ──── Input, mutate
//!        │     └─▶ fuzz_targets/*.rs, libFuzzer
//!        └─▶ */tests/corpus.rs ─▶ Corpus: seeds, regressions, mutations of them
//! ```

mod corpus;
mod input;

pub use corpus::{Corpus, Seed};
pub use input::{Input, mutate};

/// Longest input worth trying, bytes.
pub const MAX_LEN: usize = 768;

/// A function and its name.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folders.
    pub name: &'static str,
    /// What is run.
    pub run: fn(&[u8]),
}
