//! The fuzz target of `appliance-user/fuzz` as an ordinary test: every seed, every input that once was a
//! finding, and a bounded number of mutations of them. libFuzzer and nightly are not needed.
//!
//! The seed of the mutations is printed; `CAUSEWAY_SEED` sets it, `CAUSEWAY_FUZZ_RUNS` the number.

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz")
        .join(kind)
        .join("pipeline")
}

/// Files of a folder, by name; none if there is no folder.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("a folder that can be read").path())
        .collect();
    all.sort();
    all.iter()
        .map(|path| fs::read(path).expect("a file that can be read"))
        .collect()
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// SplitMix64.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }

    /// A few changes: bytes, bits, cuts, and the tail of another input.
    fn mutate(&mut self, all: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = all[self.below(all.len())].clone();
        for _ in 0..1 + self.below(8) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 | 1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                2 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                3 => {
                    let to = (at + self.below(24)).min(bytes.len());
                    drop(bytes.drain(at..to));
                }
                _ => {
                    let other = &all[self.below(all.len())];
                    let from = self.below(other.len() + 1);
                    let run = &other[from..(from + self.below(48)).min(other.len())];
                    bytes.splice(at..at, run.iter().copied());
                }
            }
        }
        bytes.truncate(fuzz::MAX_LEN);
        bytes
    }
}

#[test]
fn the_pipeline_keeps_its_rules() {
    let mut all = files(&folder("seeds"));
    assert!(!all.is_empty(), "there are seeds");
    all.extend(files(&folder("regressions")));
    for input in &all {
        fuzz::pipeline(input);
    }
    let seed = setting("CAUSEWAY_SEED").unwrap_or(1);
    let runs = setting("CAUSEWAY_FUZZ_RUNS").unwrap_or(60);
    eprintln!(
        "corpus: pipeline, seed {seed}, {} files, {runs} mutations",
        all.len()
    );
    let mut random = Seeded(seed);
    for count in 0..runs {
        let input = random.mutate(&all);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| fuzz::pipeline(&input))) {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("finding-pipeline");
            let _ = fs::write(&kept, &input);
            eprintln!(
                "mutation {count} of seed {seed} fails, kept as {}; mend it and move that to {}",
                kept.display(),
                folder("regressions").display()
            );
            std::panic::resume_unwind(panic);
        }
    }
}
