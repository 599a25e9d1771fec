//! Fuzz targets as an ordinary test: every seed, every former finding, and a bounded number of
//! mutations of them. It needs neither libFuzzer nor nightly.
//!
//! The random seed of the mutations is printed. `CAUSEWAY_SEED` sets it, `CAUSEWAY_FUZZ_RUNS` the
//! number of mutations per target. `CAUSEWAY_WRITE_SEEDS=1` writes the generated seed files.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use crate::{MAX_LEN, Seeded, Target};

/// The input files of a fuzz crate.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The crate's folder, with `seeds` and `regressions`.
    pub folder: PathBuf,
    /// Folder into which a finding is written.
    pub findings: PathBuf,
}

/// A generated input: its target, its file name, its bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// Files of a folder, sorted by name; none if the folder does not exist.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut all: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    all.sort();
    all
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

impl Seeded {
    /// Applies one to eight changes: a byte, a run of bytes, a part of another input.
    fn mutate(&mut self, all: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = all[self.below(all.len())].1.clone();
        for _ in 0..1 + self.below(8) {
            let at = self.below(bytes.len() + 1);
            let to = (at + self.below(24)).min(bytes.len());
            match self.below(6) {
                0 | 1 if at < bytes.len() => bytes[at] = self.byte(),
                2 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                3 => bytes.insert(at, self.byte()),
                4 => drop(bytes.drain(at..to)),
                _ => {
                    let other = &all[self.below(all.len())].1;
                    let from = self.below(other.len() + 1);
                    let run = &other[from..(from + self.below(48)).min(other.len())];
                    bytes.splice(at..at, run.iter().copied());
                }
            }
        }
        bytes.truncate(MAX_LEN);
        bytes
    }
}

impl Corpus {
    fn inputs(&self, kind: &str, target: Target) -> PathBuf {
        self.folder.join(kind).join(target.name)
    }

    /// Runs one input. If the target panics, the input is written to a file, which is named.
    fn run(&self, target: Target, what: &str, input: &[u8]) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) else {
            return;
        };
        let kept = self.findings.join(format!("finding-{}", target.name));
        let _ = fs::write(&kept, input);
        eprintln!(
            "{} fails on {what}; the input is {}: fix the defect and move the file to {}",
            target.name,
            kept.display(),
            self.inputs("regressions", target).display()
        );
        std::panic::resume_unwind(panic);
    }

    /// Runs the seeds and regressions of a target, and `runs` mutations.
    ///
    /// # Panics
    /// If the target panics, or has no seeds.
    pub fn replay(&self, target: Target, runs: u64) {
        let mut all = files(&self.inputs("seeds", target));
        assert!(!all.is_empty(), "no seeds; see CAUSEWAY_WRITE_SEEDS");
        all.extend(files(&self.inputs("regressions", target)));
        for (what, input) in &all {
            self.run(target, what, input);
        }
        let seed = setting("CAUSEWAY_SEED").unwrap_or(1);
        let runs = setting("CAUSEWAY_FUZZ_RUNS").unwrap_or(runs);
        eprintln!(
            "corpus: {}, seed {seed}, {} files, {runs} mutations",
            target.name,
            all.len()
        );
        let mut random = Seeded(seed);
        for count in 0..runs {
            let input = random.mutate(&all);
            self.run(target, &format!("mutation {count} of seed {seed}"), &input);
        }
    }

    /// Checks that the seed files equal the generated seeds. `CAUSEWAY_WRITE_SEEDS=1` writes them
    /// first.
    ///
    /// # Panics
    /// If a file is missing, superfluous or different.
    pub fn check_seeds(&self, targets: &[Target], seeds: &[Seed]) {
        let write = setting("CAUSEWAY_WRITE_SEEDS") == Some(1);
        for target in targets {
            let folder = self.inputs("seeds", *target);
            let mut wanted: Vec<_> = seeds
                .iter()
                .filter(|(of, ..)| *of == target.name)
                .map(|(_, name, bytes)| ((*name).to_owned(), bytes.clone()))
                .collect();
            wanted.sort();
            if write {
                fs::create_dir_all(&folder).unwrap();
                for (name, bytes) in &wanted {
                    fs::write(folder.join(name), bytes).unwrap();
                }
            }
            for (name, bytes) in &wanted {
                assert!(bytes.len() <= MAX_LEN, "{name} is too long");
            }
            assert!(
                files(&folder) == wanted,
                "{} differs from the generated seeds: delete it and run this with \
                 CAUSEWAY_WRITE_SEEDS=1",
                folder.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejects_seven(input: &[u8]) {
        assert!(!input.contains(&7), "a seven");
    }

    const TARGET: Target = Target {
        name: "seven",
        run: rejects_seven,
    };

    fn corpus(seed: &[u8]) -> (tempfile::TempDir, Corpus) {
        let dir = tempfile::tempdir().unwrap();
        let corpus = Corpus {
            folder: dir.path().join("fuzz"),
            findings: dir.path().to_owned(),
        };
        let seeds = corpus.inputs("seeds", TARGET);
        fs::create_dir_all(&seeds).unwrap();
        fs::write(seeds.join("one"), seed).unwrap();
        (dir, corpus)
    }

    #[test]
    fn a_finding_is_written_and_fails_the_test() {
        let (_dir, corpus) = corpus(&[1; 64]);
        // Ten thousand mutations contain every byte value.
        let found = catch_unwind(AssertUnwindSafe(|| corpus.replay(TARGET, 10_000)));
        found.expect_err("a seven is found");
        let kept = fs::read(corpus.findings.join("finding-seven")).unwrap();
        assert!(kept.contains(&7), "{kept:?}");
    }

    #[test]
    fn seed_files_must_equal_the_generated_seeds() {
        let (_dir, corpus) = corpus(&[1, 2]);
        corpus.replay(TARGET, 0);
        corpus.check_seeds(
            &[TARGET],
            &[("seven", "one", vec![1, 2]), ("six", "one", vec![9])],
        );
        for other in [
            vec![],
            vec![("seven", "one", vec![1])],
            vec![("seven", "two", vec![1, 2])],
        ] {
            let checked = catch_unwind(AssertUnwindSafe(|| corpus.check_seeds(&[TARGET], &other)));
            checked.expect_err("other seeds");
        }
    }
}
