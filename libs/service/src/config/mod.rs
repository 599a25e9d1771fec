//! Configuration files: read and checked as a whole, with every problem listed.
//!
//! ```text
//!   text ─ TOML, keys, types ─▶ File ─ check ─▶ T
//!              └▶ Syntax: the first         └▶ Invalid: every one ◀─ add: of other files
//! ```

mod checker;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use crate::{redact, render::cut};

pub use checker::{Checker, Range};

/// One problem of a file: the key, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, as `network "net1": vni`.
    pub at: String,
    /// The problem and what to write instead.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// Why a configuration was refused. No part of it is in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        source: io::Error,
    },
    /// The file is not TOML, lacks a key that must be there, or has an unknown key or a value of
    /// the wrong type. It is not read beyond the first of these, and its values are not checked.
    /// The message has the line, without keys.
    #[error("{}: {}", path.display(), redact::text(&error.to_string()))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Not `source`: its text may have keys.
        error: Box<toml::de::Error>,
    },
    /// The values of the file are wrong; every problem is kept, and the message has the first
    /// ones.
    #[error("{}: {}", path.display(), list(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        problems: Vec<Problem>,
    },
}

/// Problems in a message, at most.
pub const MAX_LISTED: usize = 50;
/// Bytes of one problem in a message, at most: a value that it quotes may be long.
const MAX_PROBLEM: usize = 1000;
/// Before each problem of a list.
const MARK: &str = "  - ";

/// The number of problems, and a line for each of the first 50: 52 KB at most, so that a message
/// fits into a log and a reply.
#[must_use]
pub fn list(problems: &[Problem]) -> String {
    let mut lines = vec![format!("{}:", number(problems))];
    let listed = problems.iter().take(MAX_LISTED);
    lines.extend(listed.map(|problem| format!("{MARK}{}", shown(problem))));
    if problems.len() > MAX_LISTED {
        lines.push(format!("  and {} more", problems.len() - MAX_LISTED));
    }
    lines.join("\n")
}

/// A message as a line for the log: of a list of problems ([`list`]) their number and the first
/// one, of other messages of several lines the first two.
#[must_use]
pub fn line(message: &str) -> String {
    let mut lines = message.lines();
    let first = lines.next().unwrap_or_default();
    let Some(second) = lines.next() else {
        return first.to_owned();
    };
    let listed = second.strip_prefix(MARK);
    match (listed, first.strip_suffix(':'), lines.count()) {
        (Some(problem), _, 0) => format!("{first} {problem}"),
        (Some(problem), Some(number), _) => format!("{number}, first: {problem}"),
        (_, _, 0) => format!("{first} {}", second.trim_start()),
        (_, _, more) => format!("{first} {} (and {more} lines)", second.trim_start()),
    }
}

fn number(problems: &[Problem]) -> String {
    let s = if problems.len() == 1 { "" } else { "s" };
    format!("{} problem{s}", problems.len())
}

fn shown(problem: &Problem) -> String {
    cut(problem.to_string(), MAX_PROBLEM)
}

/// Reads a file.
///
/// # Errors
/// [`Error::Read`].
pub fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// Parses the text of a file as TOML and checks it with `check`; `path` is for messages.
///
/// # Errors
/// [`Error::Syntax`], or [`Error::Invalid`] with every problem that `check` finds.
pub fn parse<File: DeserializeOwned, T>(
    text: &str,
    path: &Path,
    check: impl FnOnce(File) -> Result<T, Vec<Problem>>,
) -> Result<T, Error> {
    let file = toml::from_str(text).map_err(|error| Error::Syntax {
        path: path.to_owned(),
        error: Box::new(error),
    })?;
    check(file).map_err(|problems| Error::Invalid {
        path: path.to_owned(),
        problems,
    })
}

/// The result with further problems of the file, such as those of the files that it names.
///
/// # Errors
/// The error of `result`, if that is not [`Error::Invalid`]; or [`Error::Invalid`] with the
/// problems of both.
pub fn add<T>(
    result: Result<T, Error>,
    path: &Path,
    mut further: Vec<Problem>,
) -> Result<T, Error> {
    let mut problems = match result {
        Ok(value) if further.is_empty() => return Ok(value),
        Ok(_) => Vec::new(),
        Err(Error::Invalid { problems, .. }) => problems,
        Err(error) => return Err(error),
    };
    problems.append(&mut further);
    Err(Error::Invalid {
        path: path.to_owned(),
        problems,
    })
}

/// Checks the name of a thing: 1 to 32 of `a-z`, `0-9` and `-`.
///
/// # Errors
/// A message that says what to write instead.
pub fn name(name: &str) -> Result<(), String> {
    let fits = (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a name: use 1 to 32 of a-z, 0-9 and -"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        name: String,
    }

    fn load(text: &str) -> Result<String, Error> {
        parse(text, Path::new("f.toml"), |file: File| {
            let problem = |what| Problem {
                at: "name".to_owned(),
                what,
            };
            name(&file.name).map_err(|what| vec![problem(what)])?;
            Ok(file.name)
        })
    }

    #[test]
    fn a_file_is_accepted_whole_or_refused() {
        assert_eq!(load("name = \"edge-1\"").expect("good"), "edge-1");
        for (text, error) in [
            (
                "name = \"Edge\"",
                "f.toml: 1 problem:\n  - name: \"Edge\" is not a name: use 1 to 32 of a-z, 0-9 and \
                 -",
            ),
            ("name = 1", "f.toml: "),
            ("name = \"a\"\nother = 1", "f.toml: "),
        ] {
            let error_text = load(text).expect_err("bad").to_string();
            assert!(error_text.starts_with(error), "{text}: {error_text}");
        }
        let missing = read(Path::new("/no-such-directory/f.toml")).expect_err("no such file");
        assert!(
            missing
                .to_string()
                .starts_with("cannot read /no-such-directory/f.toml: ")
        );
    }

    #[test]
    fn further_problems_are_listed_with_those_of_the_values() {
        let path = Path::new("f.toml");
        let further = || {
            vec![Problem {
                at: "key_file".to_owned(),
                what: "is missing".to_owned(),
            }]
        };
        assert_eq!(
            add(load("name = \"a\""), path, Vec::new()).expect("good"),
            "a"
        );
        for (text, error) in [
            (
                "name = \"a\"",
                "f.toml: 1 problem:\n  - key_file: is missing",
            ),
            ("name = \"A\"", "f.toml: 2 problems:\n  - name: "),
            ("name = 1", "f.toml: TOML parse error"),
        ] {
            let error_text = add(load(text), path, further())
                .expect_err("bad")
                .to_string();
            assert!(error_text.starts_with(error), "{text}: {error_text}");
        }
    }

    #[test]
    fn a_syntax_error_shows_its_line_without_a_key() {
        let key = "EpWd0K9XY53Z7dezjLgO+nyKnOCMcQXnGRWmf1/Y9vc=";
        let text = format!("circuit = \"{key}\" name");
        let parsed = parse(&text, Path::new("f.toml"), |file: toml::Table| Ok(file));
        let error = parsed.expect_err("no TOML");
        let shown = crate::error_chain(&error);
        assert!(shown.contains("circuit = \"(removed)\" name"), "{shown}");
        assert!(!shown.contains(key), "{shown}");
    }

    #[test]
    fn a_message_has_the_first_problems_and_the_number_of_all() {
        let problems = |count: usize| -> Vec<Problem> {
            let problem = |n| Problem {
                at: format!("key {n}"),
                what: "is wrong".to_owned(),
            };
            (1..=count).map(problem).collect()
        };
        assert_eq!(list(&problems(1)), "1 problem:\n  - key 1: is wrong");
        assert_eq!(line(&list(&problems(1))), "1 problem: key 1: is wrong");
        let fifty = list(&problems(50));
        assert!(fifty.ends_with("\n  - key 50: is wrong"), "{fifty}");
        let many = list(&problems(100_000));
        assert!(many.starts_with("100000 problems:\n  - key 1: is wrong\n"));
        let end = "\n  - key 50: is wrong\n  and 99950 more";
        assert!(many.ends_with(end), "{many}");
        let first = "100000 problems, first: key 1: is wrong";
        assert_eq!(line(&many), first);
        assert_eq!(line(&format!("f.toml: {many}")), format!("f.toml: {first}"));
        // A value that a problem quotes may be long.
        let long = Problem {
            at: "key".to_owned(),
            what: "ä".repeat(1 << 20),
        };
        let text = list(&vec![long; 100]);
        assert!(text.len() < 52_000, "{} bytes", text.len());
    }

    #[test]
    fn names_are_short_and_of_few_characters() {
        for good in ["a", "edge-1", "0", &"x".repeat(32)] {
            assert_eq!(name(good), Ok(()), "{good}");
        }
        for bad in ["", "Edge", "a b", "a_b", "ä", &"x".repeat(33)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
