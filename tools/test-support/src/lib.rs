//! Shared by the tests of many crates.
//!
//! For: tests that cannot run on a machine, threads that must end when a test fails, and tests that
//! read the files of the repository; `xtask` follows `mod` lines by it, too. Never: a dependency
//! that every test crate would build; clap comes with the feature `commands` only.
//!
//! ```text
//!   test ─▶ skip("needs root") ─▶ SKIPPED: <test>: needs root ─▶ cargo xtask test counts it
//!                               └▶ panic, if CAUSEWAY_REQUIRE_PRIVILEGED=1
//! ```

#[cfg(feature = "commands")]
pub mod commands;
pub mod modules;
pub mod repository;

use std::{
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
};

/// The name of the running test, as the test runner names its thread.
#[must_use]
pub fn test_name() -> String {
    std::thread::current().name().unwrap_or("test").to_owned()
}

/// Prints that the running test is skipped and the reason, past the capture of its output, so that
/// a passing run shows it too. The caller returns.
///
/// # Panics
/// If `CAUSEWAY_REQUIRE_PRIVILEGED` is `1`: no test may be skipped then. On a thread without a
/// name, which is not the test's own: the line would name no test, and the test would count as
/// passed.
pub fn skip(reason: &str) {
    assert!(
        std::thread::current().name().is_some(),
        "`skip` was called on a helper thread, with the reason {reason:?}: call it on the thread \
         of the test"
    );
    let line = format!("SKIPPED: {}: {reason}\n", test_name());
    assert!(
        std::env::var_os("CAUSEWAY_REQUIRE_PRIVILEGED").is_none_or(|v| v != "1"),
        "{line}CAUSEWAY_REQUIRE_PRIVILEGED=1 forbids skipping"
    );
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Sets the flag when it is dropped, also by a panic: a scope waits for its threads, so a failed
/// assertion would hang the test.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_thread_cannot_skip_the_test() {
        let helper = std::thread::spawn(|| skip("a reason"));
        let panic = helper.join().expect_err("a panic");
        let text = panic.downcast_ref::<String>().expect("a message");
        assert!(text.contains("was called on a helper thread"), "{text}");
    }

    #[test]
    fn a_panic_sets_the_flag() {
        let stop = AtomicBool::new(false);
        let panicked = std::panic::catch_unwind(|| {
            let _stop = StopOnDrop(&stop);
            panic!("a failed assertion");
        });
        assert!(panicked.is_err() && stop.load(Ordering::SeqCst));
    }
}
