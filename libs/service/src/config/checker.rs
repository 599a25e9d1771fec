//! Collects the problems of a file, so that an operator sees all of them at once.

use std::{
    collections::BTreeSet,
    fmt::Display,
    path::{Path, PathBuf},
    time::Duration,
};

use super::Problem;

/// Longest path of a Unix socket, bytes (unix(7), `sun_path` less its end).
const MAX_SOCKET_PATH: usize = 107;
/// Longest name of an interface, bytes (`IFNAMSIZ` of include/uapi/linux/if.h, less its end).
const MAX_INTERFACE: usize = 15;

/// Checks values and keeps the problems. A method whose value is wrong returns a default, so that
/// the check goes on.
#[derive(Debug, Default)]
pub struct Checker {
    problems: Vec<Problem>,
}

/// Both bounds of a value, and its default.
#[derive(Clone, Copy, Debug)]
pub struct Range<T> {
    /// Least value that is accepted.
    pub least: T,
    /// Largest value that is accepted.
    pub most: T,
    /// Value of a key that is left out, or wrong.
    pub default: T,
}

impl Checker {
    /// Without problems.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value, if there is no problem.
    ///
    /// # Errors
    /// All problems, in the order in which they were found.
    pub fn finish<T>(self, value: T) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty() {
            Ok(value)
        } else {
            Err(self.problems)
        }
    }

    /// Whether no problem has been found so far.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }

    /// Adds a problem of the key `at`.
    pub fn problem(&mut self, at: impl Into<String>, what: impl Into<String>) {
        self.problems.push(Problem {
            at: at.into(),
            what: what.into(),
        });
    }

    /// Checks the name of a thing, as [`super::name`].
    pub fn name(&mut self, at: &str, name: &str) {
        if let Err(what) = super::name(name) {
            self.problem(at, what);
        }
    }

    /// Checks that each of the `names` of one `kind` of thing is used once.
    pub fn unique<'a>(&mut self, kind: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                self.problem(
                    format!("{kind} {name:?}"),
                    "the name is used twice; give each its own",
                );
            }
        }
    }

    /// Checks the name of a network interface (`dev_valid_name`, net/core/dev.c).
    pub fn interface(&mut self, at: &str, name: &str) {
        let fits = (1..=MAX_INTERFACE).contains(&name.len())
            && name != "."
            && name != ".."
            && !name
                .bytes()
                .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace());
        if !fits {
            self.problem(
                at,
                format!("{name:?} is not an interface name: 1 to 15 characters, no /, : or space"),
            );
        }
    }

    /// Refuses a key that has another name since an earlier version, if the file has it.
    pub fn renamed(&mut self, at: &str, is_present: bool, new: &str) {
        if is_present {
            self.problem(
                at,
                format!("the key is named {new} now; write that instead"),
            );
        }
    }

    /// A number of seconds.
    pub fn seconds(&mut self, at: &str, value: Option<f64>, range: Range<f64>) -> Duration {
        let seconds = value.unwrap_or(range.default);
        let seconds = if (range.least..=range.most).contains(&seconds) {
            seconds
        } else {
            self.problem(
                at,
                format!("{seconds} seconds: write {} to {}", range.least, range.most),
            );
            range.default
        };
        Duration::from_secs_f64(seconds)
    }

    /// A number from 1 to `most`; 1 where it is wrong.
    pub fn count(&mut self, at: &str, value: i64, most: usize) -> usize {
        match usize::try_from(value) {
            Ok(count) if (1..=most).contains(&count) => count,
            _ => {
                self.problem(at, format!("{value}: write 1 to {most}"));
                1
            }
        }
    }

    /// One of a few words; the first where it is wrong or left out.
    ///
    /// # Panics
    /// Without any choice.
    pub fn choice<T: Copy>(&mut self, at: &str, value: Option<&str>, choices: &[(&str, T)]) -> T {
        let default = choices[0].1;
        let Some(value) = value else {
            return default;
        };
        match choices.iter().find(|(word, _)| *word == value) {
            Some((_, choice)) => *choice,
            None => {
                let words: Vec<String> = choices.iter().map(|(w, _)| format!("{w:?}")).collect();
                self.problem(at, format!("{value:?}: write {}", or_list(&words)));
                default
            }
        }
    }

    /// A path that begins with `/`.
    pub fn absolute(&mut self, at: &str, value: Option<PathBuf>, default: &str) -> PathBuf {
        let path = value.unwrap_or_else(|| default.into());
        if !path.is_absolute() {
            self.problem(at, format!("{path:?}: write an absolute path"));
        }
        path
    }

    /// The path of the control socket: absolute, and short enough for the kernel.
    pub fn control_socket(&mut self, at: &str, value: Option<PathBuf>, default: &str) -> PathBuf {
        let path = self.absolute(at, value, default);
        let length = length(&path);
        if length > MAX_SOCKET_PATH {
            self.problem(
                at,
                format!("{length} bytes: the path of a socket has at most {MAX_SOCKET_PATH}"),
            );
        }
        path
    }
}

fn length(path: &Path) -> usize {
    path.as_os_str().len()
}

/// `a, b or c`.
fn or_list(words: &[impl Display]) -> String {
    let mut out = String::new();
    for (n, word) in words.iter().enumerate() {
        let separator = match n {
            0 => "",
            _ if n + 1 == words.len() => " or ",
            _ => ", ",
        };
        out += &format!("{separator}{word}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_listed_in_order() {
        let mut c = Checker::new();
        c.name("name", "A");
        c.unique("tenant", ["a", "b", "a"].into_iter());
        c.interface("interface", "a/b");
        c.renamed("relay.way", true, "relay.transfer");
        c.renamed("relay.other", false, "relay.transfer");
        let range = Range {
            least: 0.5,
            most: 60.0,
            default: 5.0,
        };
        let wrong = c.seconds("timeout", Some(61.0), range);
        assert_eq!(wrong, Duration::from_secs(5));
        assert_eq!(c.seconds("timeout", None, range), Duration::from_secs(5));
        assert_eq!(c.count("count", 0, 7), 1);
        assert_eq!(c.count("count", 7, 7), 7);
        let modes = [("auto", 0), ("native", 1), ("off", 2)];
        assert_eq!(c.choice("xdp", Some("native"), &modes), 1);
        assert_eq!(c.choice("xdp", Some("fast"), &modes), 0);
        c.absolute("dir", Some("relative".into()), "/");
        c.absolute("dir", Some("".into()), "/");
        c.control_socket("socket", Some(format!("/{}", "x".repeat(107)).into()), "/");
        assert!(!c.is_good());
        let problems = c.finish(()).expect_err("problems");
        let problems: Vec<String> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(
            problems,
            [
                "name: \"A\" is not a name: use 1 to 32 of a-z, 0-9 and -",
                "tenant \"a\": the name is used twice; give each its own",
                "interface: \"a/b\" is not an interface name: 1 to 15 characters, no /, : or space",
                "relay.way: the key is named relay.transfer now; write that instead",
                "timeout: 61 seconds: write 0.5 to 60",
                "count: 0: write 1 to 7",
                "xdp: \"fast\": write \"auto\", \"native\" or \"off\"",
                "dir: \"relative\": write an absolute path",
                "dir: \"\": write an absolute path",
                "socket: 108 bytes: the path of a socket has at most 107",
            ]
        );
        assert_eq!(Checker::new().finish(1), Ok(1));
    }
}
