//! Length of a long series of packets, bytes or rounds, and the distribution of rounds.

use std::time::Duration;

/// Length of a series: the environment variable `variable`, else `full` with `CAUSEWAY_LONG=1`,
/// else `bounded`. It is printed, so that the log shows the length.
#[must_use]
pub fn length(variable: &str, bounded: u64, full: u64) -> u64 {
    let (count, reason) = if let Some(count) = given(variable) {
        (count, variable)
    } else if is_long() {
        (full, "CAUSEWAY_LONG=1")
    } else {
        (bounded, "bounded; CAUSEWAY_LONG=1 runs the full series")
    };
    println!("{}: {count} runs ({reason})", crate::test_name());
    count
}

/// Whether long series are to be run in full.
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os("CAUSEWAY_LONG").is_some_and(|v| v == "1")
}

/// The length in an environment variable.
fn given(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    match text.parse() {
        Ok(count @ 1..) => Some(count),
        _ => panic!("{variable} = {text:?} is not a number from 1 on, such as 1000000"),
    }
}

/// Times of repeated rounds, in milliseconds: the fastest, the middle and the slowest, and all in
/// order.
#[must_use]
pub fn distribution(rounds: &[Duration]) -> String {
    let mut sorted: Vec<_> = rounds.iter().map(Duration::as_millis).collect();
    sorted.sort_unstable();
    let all: Vec<_> = rounds.iter().map(|d| d.as_millis().to_string()).collect();
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(first), Some(middle), Some(last)) => format!(
            "{} rounds: min {first} ms, median {middle} ms, max {last} ms ({})",
            rounds.len(),
            all.join(", ")
        ),
        _ => "no rounds".to_owned(),
    }
}
