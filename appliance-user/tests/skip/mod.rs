//! Tests that cannot run, as the test runner counts them.

use std::io::Write as _;

/// Tells the test runner that `test` is skipped, past the capture of its output.
///
/// # Panics
/// If `CAUSEWAY_REQUIRE_PRIVILEGED` is `1`: no test may be skipped then.
pub fn skip(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}\n");
    assert!(
        std::env::var_os("CAUSEWAY_REQUIRE_PRIVILEGED").is_none_or(|v| v != "1"),
        "{line}CAUSEWAY_REQUIRE_PRIVILEGED=1 forbids skipping"
    );
    let _ = std::io::stderr().write_all(line.as_bytes());
}
