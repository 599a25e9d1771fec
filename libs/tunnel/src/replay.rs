//! The replay window of a session's lane, after RFC 6479.

/// A counter is accepted if it is less than this far behind the next one.
pub const WINDOW: u64 = 8192;

const WORD_BITS: u64 = 64;
/// Words of the ring. More than the window needs: a power of two makes the index a mask.
const WORDS: usize = 256;

/// A counter was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayError {
    /// The counter was seen before.
    Duplicate,
    /// The counter is more than [`WINDOW`] behind the next one.
    TooOld,
}

/// The last [`WINDOW`] counters that were seen. 2 KiB, no allocation.
///
/// Call [`ReplayWindow::check`] before opening a packet, so that a replay costs no cryptography,
/// and [`ReplayWindow::mark`] after it, so that a forged counter changes nothing.
#[derive(Clone)]
pub struct ReplayWindow {
    /// The greatest counter marked plus one; zero if none was.
    next: u64,
    ring: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            next: 0,
            ring: [0; WORDS],
        }
    }
}

impl std::fmt::Debug for ReplayWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplayWindow")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl ReplayWindow {
    /// An empty window.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The greatest counter marked plus one; zero if none was.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Checks that `counter` was not seen before. Changes nothing.
    ///
    /// # Errors
    /// [`ReplayError`] if it was, or is too far behind to know.
    #[inline]
    pub fn check(&self, counter: u64) -> Result<(), ReplayError> {
        if counter == u64::MAX {
            // It could not be marked: there is no next counter. No session comes near it.
            return Err(ReplayError::TooOld);
        }
        if counter >= self.next {
            return Ok(());
        }
        if self.next - counter > WINDOW {
            return Err(ReplayError::TooOld);
        }
        let (word, bit) = Self::place(counter);
        if self.ring[word] & bit == 0 {
            Ok(())
        } else {
            Err(ReplayError::Duplicate)
        }
    }

    /// Marks `counter` as seen, after the packet proved authentic.
    ///
    /// # Errors
    /// As [`ReplayWindow::check`]; nothing is changed then.
    #[inline]
    pub fn mark(&mut self, counter: u64) -> Result<(), ReplayError> {
        self.check(counter)?;
        if counter >= self.next {
            // Clear the words behind the greatest counter's, up to that of the new one.
            let from = if self.next == 0 {
                0
            } else {
                (self.next - 1) / WORD_BITS + 1
            };
            let to = counter / WORD_BITS;
            let fresh = if from > to {
                0
            } else {
                (to - from + 1).min(WORDS as u64)
            };
            for step in 0..fresh {
                self.ring[((to - step) % WORDS as u64) as usize] = 0;
            }
            self.next = counter + 1;
        }
        let (word, bit) = Self::place(counter);
        self.ring[word] |= bit;
        Ok(())
    }

    fn place(counter: u64) -> (usize, u64) {
        let word = (counter / WORD_BITS) % WORDS as u64;
        (word as usize, 1 << (counter % WORD_BITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A set of counters: the simplest correct window.
    #[derive(Default)]
    struct Naive(BTreeSet<u64>);

    impl Naive {
        fn check(&self, counter: u64) -> Result<(), ReplayError> {
            if self.0.contains(&counter)
                && self
                    .0
                    .last()
                    .is_some_and(|&top| top + 1 - counter <= WINDOW)
            {
                return Err(ReplayError::Duplicate);
            }
            match self.0.last() {
                Some(&top) if counter <= top && top + 1 - counter > WINDOW => {
                    Err(ReplayError::TooOld)
                }
                _ => Ok(()),
            }
        }
    }

    fn compare(counters: impl IntoIterator<Item = u64>) {
        let (mut window, mut naive) = (ReplayWindow::new(), Naive::default());
        for counter in counters {
            assert_eq!(
                window.check(counter),
                naive.check(counter),
                "counter {counter}"
            );
            let marked = window.mark(counter);
            assert_eq!(marked, naive.check(counter), "counter {counter}");
            if marked.is_ok() {
                naive.0.insert(counter);
            }
        }
    }

    proptest! {
        #[test]
        fn window_equals_the_naive_model(
            start in prop_oneof![Just(0_u64), 0..100_000_u64, Just(1 << 40)],
            moves in proptest::collection::vec(
                prop_oneof![
                    8 => -70_i64..70,
                    4 => -9000_i64..3,
                    2 => -8300_i64..-8100,
                    2 => 0_i64..9000,
                    1 => 16_000_i64..17_000,
                    1 => 0_i64..1_000_000,
                ],
                1..600,
            ),
        ) {
            let mut top = start;
            compare(moves.into_iter().map(|step| {
                let counter = top.saturating_add_signed(step);
                top = top.max(counter);
                counter
            }));
        }
    }

    #[test]
    fn edges_of_the_window() {
        let mut window = ReplayWindow::new();
        window.mark(WINDOW).unwrap();
        assert_eq!(window.check(0), Err(ReplayError::TooOld));
        assert_eq!(window.check(1), Ok(()));
        assert_eq!(window.check(WINDOW), Err(ReplayError::Duplicate));
        assert_eq!(window.mark(u64::MAX - 1), Ok(()));
        assert_eq!(window.mark(u64::MAX - 1), Err(ReplayError::Duplicate));
        assert_eq!(window.mark(u64::MAX), Err(ReplayError::TooOld));
    }
}
