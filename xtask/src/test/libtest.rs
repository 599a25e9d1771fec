//! Output of a test program with `--format json`: one object per line, `{ "type": …`.

use serde_json::Value;

/// One line of a test program.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A test starts.
    Started(String),
    /// A test ended.
    Ended(Outcome),
    /// The program counted its tests and is about to end.
    Counted,
    /// Another event.
    Other,
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Path of the test in its program.
    pub name: String,
    /// Passed, failed or skipped.
    pub status: Status,
    /// How long it took.
    pub seconds: f64,
    /// Its output, if libtest captured it.
    pub output: String,
    /// Whether the program died, or was killed, while it ran.
    pub died: bool,
}

/// The three outcomes that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It passed.
    Passed,
    /// It failed, died, or took too long.
    Failed,
    /// It could not run here, or is marked `ignore`.
    Skipped,
}

impl Status {
    /// As shown in front of a test.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

/// Splits a line into what a test printed before and libtest's event; `None`: no event in it.
pub fn parse(line: &str) -> Option<(&str, Event)> {
    let at = line.find("{ \"type\": \"")?;
    let (before, json) = line.split_at(at);
    let value: Value = serde_json::from_str(json).ok()?;
    let field = |key: &str| value[key].as_str().unwrap_or_default();
    let ended = |status| {
        Event::Ended(Outcome {
            name: field("name").to_owned(),
            status,
            seconds: value["exec_time"].as_f64().unwrap_or(0.0),
            output: field("stdout").to_owned() + field("message"),
            died: false,
        })
    };
    let event = match (field("type"), field("event")) {
        ("test", "started") => Event::Started(field("name").to_owned()),
        ("test", "ok") => ended(Status::Passed),
        ("test", "failed") => ended(Status::Failed),
        ("test", "ignored") => ended(Status::Skipped),
        ("suite", "ok" | "failed") => Event::Counted,
        _ => Event::Other,
    };
    Some((before, event))
}

/// The name of a test that printed that it could not run: `SKIPPED: <name>: <why>`.
pub fn skipped(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("SKIPPED: ")?;
    Some(rest.split_once(": ").map_or(rest, |(name, _)| name))
}

/// Names in the output of `--list --format terse`.
pub fn listed(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.strip_suffix(": test").map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_behind_what_a_test_printed() {
        let (before, event) =
            parse(r#"half a line{ "type": "test", "event": "started", "name": "a::b" }"#).unwrap();
        assert_eq!(
            (before, event),
            ("half a line", Event::Started("a::b".to_owned()))
        );
        let line = concat!(
            r#"{ "type": "test", "name": "a", "event": "failed", "#,
            r#""exec_time": 1.5, "stdout": "x\n" }"#
        );
        let Some(("", Event::Ended(outcome))) = parse(line) else {
            panic!("an end")
        };
        assert_eq!((outcome.status, outcome.seconds), (Status::Failed, 1.5));
        assert_eq!(
            (outcome.name.as_str(), outcome.output.as_str()),
            ("a", "x\n")
        );
        let line = r#"{ "type": "suite", "event": "ok", "passed": 3, "failed": 0, "ignored": 0 }"#;
        assert_eq!(parse(line), Some(("", Event::Counted)));
        assert_eq!(parse("running 3 tests"), None);
    }

    #[test]
    fn a_test_that_cannot_run_is_named() {
        assert_eq!(skipped("SKIPPED: a::b: needs root"), Some("a::b"));
        assert_eq!(skipped("ok"), None);
    }

    #[test]
    fn tests_are_listed_and_benchmarks_are_not() {
        assert_eq!(listed("a::b: test\nc: benchmark\n\n"), ["a::b"]);
    }
}
