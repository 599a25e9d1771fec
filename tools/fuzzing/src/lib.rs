//! Shared by the fuzz targets (`*/fuzz-targets`) and the tests: inputs, corpora, seeded random
//! numbers.
//!
//! For: reading values from an input, running fuzz targets as an ordinary test, and random numbers
//! that a seed repeats. Never: a target itself, or libFuzzer, which `cargo xtask fuzz` runs.
//!
//! ```text
//!   */fuzz-targets    a function for each target ──── Input, mutate
//!        │     └─▶ */fuzz, libFuzzer
//!        └─▶ */tests/corpus.rs ─▶ Corpus: seeds, regressions, mutations of them
//! ```

mod corpus;
mod input;
mod seeded;

pub use corpus::{Corpus, Seed};
pub use input::{Input, mutate};
pub use seeded::Seeded;

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
