//! Places in a map: whose is which, and which still rest.

use std::collections::VecDeque;

/// The places of a map. Times are nanoseconds of one clock.
#[derive(Debug)]
pub struct Places {
    /// From here on none was taken yet.
    fresh: u32,
    count: u32,
    /// How long one rests.
    rest: u64,
    /// Those that were given back, and when they may be taken again.
    resting: VecDeque<(u64, u32)>,
}

impl Places {
    /// So many, and how long one rests that was given back.
    #[must_use]
    pub const fn new(count: u32, rest: u64) -> Self {
        Self {
            fresh: 0,
            count,
            rest,
            resting: VecDeque::new(),
        }
    }

    /// One that nobody has, and that no program still uses.
    pub fn take(&mut self, now: u64) -> Option<u32> {
        if let Some(&(rested, place)) = self.resting.front()
            && rested <= now
        {
            self.resting.pop_front();
            return Some(place);
        }
        if self.fresh == self.count {
            return None;
        }
        self.fresh += 1;
        Some(self.fresh - 1)
    }

    /// Gives one back.
    pub fn give(&mut self, now: u64, place: u32) {
        self.resting.push_back((now + self.rest, place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_rests_before_it_is_anothers() {
        const REST: u64 = 1000;
        let mut places = Places::new(2, REST);
        assert_eq!((places.take(0), places.take(0)), (Some(0), Some(1)));
        places.give(5, 1);
        assert_eq!(places.take(4 + REST), None);
        assert_eq!(places.take(5 + REST), Some(1));
        places.give(6, 0);
        places.give(7, 1);
        assert_eq!(places.take(REST + 100), Some(0));
    }
}
