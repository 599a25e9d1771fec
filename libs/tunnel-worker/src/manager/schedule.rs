//! When circuits have something to do, the earliest first: of hundreds that are idle only those are looked at that are due.

use std::collections::{BTreeMap, BTreeSet};

use tunnel::Instant;

/// Slots, each with the time at which it is due, if it is at all.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    due: BTreeSet<(Instant, u32)>,
    at: BTreeMap<u32, Instant>,
}

impl Schedule {
    /// A slot is due at this time instead of the one it had; `None`: never.
    pub fn set(&mut self, slot: u32, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.at.insert(slot, at),
            None => self.at.remove(&slot),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.due.remove(&(before, slot));
        }
        if let Some(at) = at {
            self.due.insert((at, slot));
        }
    }

    /// Something happened to a slot: it is due at once.
    pub fn stir(&mut self, slot: u32) {
        self.set(slot, Some(Instant::from_nanos(0)));
    }

    /// Takes those that are due by now. They are not due any more until they are set again.
    pub fn take(&mut self, now: Instant) -> Vec<u32> {
        let mut taken = Vec::new();
        while let Some(&(at, slot)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            self.at.remove(&slot);
            taken.push(slot);
        }
        taken
    }

    /// When the next one is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn what_is_due_is_taken_once_the_earliest_first() {
        let mut schedule = Schedule::default();
        for (slot, ms) in [(1, 30), (2, 10), (3, 20), (4, 40)] {
            schedule.set(slot, Some(at(ms)));
        }
        assert_eq!(schedule.next_deadline(), Some(at(10)));
        assert!(schedule.take(at(9)).is_empty());
        assert_eq!(schedule.take(at(30)), [2, 3, 1]);
        assert!(schedule.take(at(30)).is_empty());
        assert_eq!(schedule.next_deadline(), Some(at(40)));
    }

    #[test]
    fn a_slot_has_one_time_the_last_one_said() {
        let mut schedule = Schedule::default();
        schedule.set(1, Some(at(10)));
        schedule.set(1, Some(at(50)));
        schedule.set(2, Some(at(20)));
        assert_eq!(schedule.take(at(30)), [2]);
        schedule.stir(1);
        schedule.stir(1);
        assert_eq!(schedule.take(at(0)), [1]);
        schedule.set(1, Some(at(60)));
        schedule.set(1, None);
        assert_eq!(schedule.next_deadline(), None);
        assert!(schedule.take(at(100)).is_empty());
    }
}
