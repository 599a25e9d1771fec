//! Allocation of map entries: a freed entry is reused only after a delay.

use std::collections::VecDeque;

/// The entries of a map. Times are nanoseconds of one clock.
#[derive(Debug)]
pub struct Slots {
    /// Entries from here on were never used.
    fresh: u32,
    count: u32,
    /// Delay before an entry is reused.
    rest: u64,
    /// Freed entries, and the time from which they can be reused.
    resting: VecDeque<(u64, u32)>,
}

impl Slots {
    /// `count` free entries; a freed entry is reused after `rest` nanoseconds.
    #[must_use]
    pub const fn new(count: u32, rest: u64) -> Self {
        Self {
            fresh: 0,
            count,
            rest,
            resting: VecDeque::new(),
        }
    }

    /// Takes a free entry that no program still uses.
    pub fn allocate(&mut self, now: u64) -> Option<u32> {
        if let Some(&(rested, index)) = self.resting.front()
            && rested <= now
        {
            self.resting.pop_front();
            return Some(index);
        }
        if self.fresh == self.count {
            return None;
        }
        self.fresh += 1;
        Some(self.fresh - 1)
    }

    /// Frees an entry.
    pub fn free(&mut self, now: u64, index: u32) {
        self.resting.push_back((now + self.rest, index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_entry_is_reused_after_the_delay() {
        const REST: u64 = 1000;
        let mut slots = Slots::new(2, REST);
        assert_eq!((slots.allocate(0), slots.allocate(0)), (Some(0), Some(1)));
        slots.free(5, 1);
        assert_eq!(slots.allocate(4 + REST), None);
        assert_eq!(slots.allocate(5 + REST), Some(1));
        slots.free(6, 0);
        slots.free(7, 1);
        assert_eq!(slots.allocate(REST + 100), Some(0));
    }
}
