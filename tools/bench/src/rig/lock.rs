//! One run of a benchmark at a time on the machine.

use std::fs::File;

use anyhow::Context as _;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// Held while a benchmark runs, since its namespaces have fixed names.
pub struct BenchLock(#[expect(dead_code, reason = "locked until it is dropped")] Flock<File>);

impl BenchLock {
    /// Waits until no other process runs this benchmark.
    pub fn acquire(bench: &str) -> anyhow::Result<Self> {
        let path = format!("/run/causeway-bench.{bench}");
        let file = File::create(&path).with_context(|| format!("create {path}"))?;
        let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).or_else(|(file, error)| {
            if error != Errno::EWOULDBLOCK {
                return Err(error);
            }
            eprintln!("another process runs the benchmark {bench}; waiting for its end");
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)
        });
        locked.map(Self).with_context(|| format!("lock {path}"))
    }
}
