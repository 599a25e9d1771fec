//! Deadlines of peers or circuits, the earliest first: of hundreds that are idle only those that
//! are due are handled.

use std::collections::{BTreeMap, BTreeSet};

use crate::time::Instant;

/// Slots, each with its deadline, if it has one. Every operation is logarithmic in their number.
#[derive(Debug, Default)]
pub struct DeadlineQueue {
    due: BTreeSet<(Instant, u32)>,
    at: BTreeMap<u32, Instant>,
}

impl DeadlineQueue {
    /// Replaces a slot's deadline; `None`: it has none.
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

    /// Makes a slot due at once.
    pub fn set_due_now(&mut self, slot: u32) {
        self.set(slot, Some(Instant::from_nanos(0)));
    }

    /// Takes the slots that are due, the earliest first. They have no deadline until they get
    /// another.
    #[must_use]
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

    /// The earliest deadline.
    #[must_use]
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
    fn due_slots_are_taken_once_the_earliest_first() {
        let mut queue = DeadlineQueue::default();
        for (slot, ms) in [(1, 30), (2, 10), (3, 20), (4, 40)] {
            queue.set(slot, Some(at(ms)));
        }
        assert_eq!(queue.next_deadline(), Some(at(10)));
        assert!(queue.take(at(9)).is_empty());
        assert_eq!(queue.take(at(30)), [2, 3, 1]);
        assert!(queue.take(at(30)).is_empty());
        assert_eq!(queue.next_deadline(), Some(at(40)));
    }

    #[test]
    fn a_slot_has_one_deadline_the_last_one_set() {
        let mut queue = DeadlineQueue::default();
        queue.set(1, Some(at(10)));
        queue.set(1, Some(at(50)));
        queue.set(2, Some(at(20)));
        assert_eq!(queue.take(at(30)), [2]);
        queue.set_due_now(1);
        queue.set_due_now(1);
        assert_eq!(queue.take(at(0)), [1]);
        queue.set(1, Some(at(60)));
        queue.set(1, None);
        assert_eq!(queue.next_deadline(), None);
        assert!(queue.take(at(100)).is_empty());
    }
}
