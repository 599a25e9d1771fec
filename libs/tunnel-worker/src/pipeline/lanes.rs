//! Assignment of the lanes of a peer to workers.
//!
//! A tunnel between appliances has [`LANES`] lanes, independent of the number of workers at either
//! end. Worker *n* sends on lane *n*; at the other end, worker *n* modulo the number of workers
//! opens the lane. So no two workers share a key, a counter or a replay window, and neither end
//! needs to know the number of workers of the other. A NIC chooses the queue by addresses and
//! ports, and a peer is one UDP flow: a worker hands sealed datagrams of another worker's lane over
//! to it.

use tunnel::MAX_LANES;

/// Lanes of a tunnel between appliances; also the most workers.
pub const LANES: u32 = 8;

/// A worker's part of the lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneAssignment {
    index: u32,
    workers: u32,
}

impl LaneAssignment {
    /// The assignment of a single worker.
    pub const WHOLE: Self = Self {
        index: 0,
        workers: 1,
    };

    /// The assignment of worker `index`, from 0, of `workers`. `None` unless
    /// `index < workers <= LANES`.
    #[must_use]
    pub const fn new(index: u32, workers: u32) -> Option<Self> {
        if index < workers && workers <= LANES {
            Some(Self { index, workers })
        } else {
            None
        }
    }

    /// The worker's number.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.index
    }

    /// The lanes that the worker opens, by [`LaneAssignment::receiver_index`].
    pub fn lanes(self) -> impl Iterator<Item = u32> {
        (self.index..LANES).step_by(self.workers as usize)
    }

    /// The worker that opens a lane.
    #[must_use]
    pub const fn opener(self, lane: u32) -> u32 {
        lane % self.workers
    }

    /// Whether it is the worker of lane 0: of control messages, and of WireGuard peers.
    pub(super) const fn is_first(self) -> bool {
        self.index == 0
    }

    /// The other worker that opens messages of this index on the wire; `None`: this worker does.
    #[inline]
    pub(super) const fn other_worker(self, wire_index: u32) -> Option<u32> {
        let opener = self.opener(wire_index % MAX_LANES);
        if opener == self.index {
            None
        } else {
            Some(opener)
        }
    }

    /// The index of the receiver for messages of this index among the worker's own.
    #[inline]
    pub(super) const fn receiver_index(self, wire_index: u32) -> usize {
        (wire_index % MAX_LANES / self.workers) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_one_opener_and_one_place() {
        for workers in 1..=LANES {
            let mut lanes: Vec<u32> = Vec::new();
            for index in 0..workers {
                let assignment =
                    LaneAssignment::new(index, workers).expect("a valid worker number");
                for (place, lane) in assignment.lanes().enumerate() {
                    let wire_index = 64 * 77 + lane;
                    assert_eq!(assignment.other_worker(wire_index), None);
                    assert_eq!(assignment.receiver_index(wire_index), place);
                    for other in (0..workers).filter(|other| *other != index) {
                        let other =
                            LaneAssignment::new(other, workers).expect("a valid worker number");
                        assert_eq!(other.other_worker(wire_index), Some(index));
                    }
                    lanes.push(lane);
                }
            }
            lanes.sort_unstable();
            assert_eq!(lanes, (0..LANES).collect::<Vec<_>>());
        }
        assert_eq!(LaneAssignment::new(0, LANES + 1), None);
        assert_eq!(LaneAssignment::new(2, 2), None);
    }
}
