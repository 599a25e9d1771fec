//! What the fuzz crates (`*/fuzz`) share.
//!
//! For: reading values from an input, and running a fuzz crate's targets as an ordinary test.
//! Never: a target itself, or libFuzzer, which `cargo xtask fuzz` runs.
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

/// Longest input, bytes.
pub const MAX_LEN: usize = 768;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and the name of its folders of seeds and regressions.
    pub name: &'static str,
    /// Runs one input; a panic is a finding.
    pub run: fn(&[u8]),
}
