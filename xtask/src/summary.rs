//! Reads what test programs print.

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that could not run here.
    pub skipped: u32,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Counts of one line of output: a summary of libtest, or a test that prints that it is skipped
/// (libtest counts it as passed).
pub fn line(text: &str) -> Counts {
    let text = text.trim();
    // After `test name ... ` if output is not captured.
    if text.contains("SKIPPED: ") {
        return Counts {
            skipped: 1,
            ..Counts::default()
        };
    }
    let Some(summary) = text.strip_prefix("test result: ") else {
        return Counts::default();
    };
    let number = |word: &str| {
        summary
            .split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
            .unwrap_or(0)
    };
    Counts {
        passed: number("passed"),
        failed: number("failed"),
        skipped: number("ignored"),
    }
}

/// Sum over lines. Skipped tests are subtracted from the passed ones.
pub fn total<'l>(lines: impl Iterator<Item = &'l str>) -> Counts {
    let mut all = Counts::default();
    let mut said = 0;
    for text in lines {
        let one = line(text);
        if one.skipped == 1 && text.contains("SKIPPED: ") {
            said += 1;
        }
        all += one;
    }
    all.passed = all.passed.saturating_sub(said);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read() {
        let text = "test result: ok. 12 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; \
            finished in 0.01s";
        assert_eq!(
            line(text),
            Counts {
                passed: 12,
                failed: 1,
                skipped: 3
            }
        );
        assert_eq!(line("running 12 tests"), Counts::default());
    }

    #[test]
    fn a_test_that_skips_itself_has_not_passed() {
        let output = "running 2 tests\ntest a ... SKIPPED: a: needs root\nok\ntest b ... ok\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured";
        assert_eq!(
            total(output.lines()),
            Counts {
                passed: 1,
                failed: 0,
                skipped: 1
            }
        );
    }
}
