//! The fuzz targets of `gateway/fuzz` as an ordinary test: every seed, every input that once was a
//! finding, and a bounded number of mutations of them. libFuzzer and nightly are not needed.
//!
//! The seed of the mutations is printed; `CAUSEWAY_SEED` sets it, `CAUSEWAY_FUZZ_RUNS` the number for
//! each target. `CAUSEWAY_WRITE_SEEDS=1` writes `gateway/fuzz/seeds`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzz::{MAX_LEN, TARGETS, Target};

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz")
        .join(kind)
        .join(target)
}

/// Files of a folder, by name; none if there is no folder.
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

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    /// A few changes: bytes, runs of bytes, and the tail of another input.
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

/// Runs one input; a panic is told with where the input is kept.
fn run(target: Target, what: &str, input: &[u8]) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) else {
        return;
    };
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("finding-{}", target.name));
    let _ = fs::write(&kept, input);
    eprintln!(
        "{} fails on {what}, kept as {}; mend it and move that to {}",
        target.name,
        kept.display(),
        folder("regressions", target.name).display()
    );
    std::panic::resume_unwind(panic);
}

fn corpus(name: &str, runs: u64) {
    let target = *TARGETS.iter().find(|target| target.name == name).unwrap();
    let mut all = files(&folder("seeds", name));
    assert!(!all.is_empty(), "no seeds; see CAUSEWAY_WRITE_SEEDS");
    all.extend(files(&folder("regressions", name)));
    for (what, input) in &all {
        run(target, what, input);
    }
    let seed = setting("CAUSEWAY_SEED").unwrap_or(1);
    let runs = setting("CAUSEWAY_FUZZ_RUNS").unwrap_or(runs);
    eprintln!(
        "corpus: {name}, seed {seed}, {} files, {runs} mutations",
        all.len()
    );
    let mut random = Seeded(seed);
    for count in 0..runs {
        let input = random.mutate(&all);
        run(target, &format!("mutation {count} of seed {seed}"), &input);
    }
}

#[test]
fn hellos_read_the_same_in_any_pieces() {
    corpus("hello", 2_000);
}

#[test]
fn streams_give_the_same_frames_in_any_pieces() {
    corpus("stream", 1_000);
}

#[test]
fn circuits_carry_what_is_theirs_and_answer_no_stranger() {
    corpus("circuit", 1_000);
}

#[test]
fn binds_move_who_is_true_and_new() {
    corpus("bind", 1_000);
}

#[test]
fn seeds_are_what_is_generated() {
    let write = setting("CAUSEWAY_WRITE_SEEDS") == Some(1);
    for target in TARGETS {
        let folder = folder("seeds", target.name);
        let mut wanted: Vec<_> = fuzz::seeds::all()
            .into_iter()
            .filter(|(of, ..)| *of == target.name)
            .map(|(_, name, bytes)| (name.to_owned(), bytes))
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
        let found = files(&folder);
        assert!(
            found == wanted,
            "gateway/fuzz/seeds/{} is not what seeds.rs makes: delete it and run this with CAUSEWAY_WRITE_SEEDS=1",
            target.name
        );
    }
}
