//! Reports to switches that snoop multicast (RFC 4541): the groups in which we answer neighbour
//! solicitations.
//!
//! For: reporting the groups of each port when they change and at intervals. Never: input, output
//! or a clock; [`GroupReporter::poll`] returns frames. Queries are not read: on tenant-only ports
//! the programs drop them, so reports are repeated often enough for every querier.
//!
//! ```text
//!   set ─▶ now ─▶ 1 s ─▶ every 10 s ─ removed ─▶ silence: the switch forgets the groups
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use appliance_common::addr::Address;

use crate::frame::{self, Port};

/// Time between the first two reports (RFC 3810 section 9.11, Unsolicited Report Interval).
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
/// Time between later reports. A querier forgets a group after at least twice its query interval
/// (RFC 3810 section 9.4), so this suits query intervals from 5 s on; the default is 125 s.
const INTERVAL: Duration = Duration::from_secs(10);
/// Advertised interval of multicast router advertisements, seconds (RFC 4286 section 5.1.1: 4 to
/// 180; 20 is the default).
const ADVERTISED_INTERVAL: u8 = 20;

/// The multicast groups that a port listens to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// Groups, IPv6.
    pub addresses: BTreeSet<Address>,
    /// Whether it listens to all groups, because it answers for whole prefixes.
    pub all: bool,
}

#[derive(Debug)]
struct Schedule {
    groups: Groups,
    /// Whether the first report was sent.
    reported: bool,
    next: Instant,
}

/// Reports groups. See the [module](self).
#[derive(Debug, Default)]
pub struct GroupReporter {
    ports: BTreeMap<Port, Schedule>,
    ready: VecDeque<(u32, Vec<u8>)>,
}

impl GroupReporter {
    /// Sets the groups of each port. Ports that are new or changed report at once.
    pub fn set(&mut self, now: Instant, ports: &BTreeMap<Port, Groups>) {
        self.ports.retain(|port, _| ports.contains_key(port));
        for (port, groups) in ports {
            if self.ports.get(port).is_some_and(|s| s.groups == *groups) {
                continue;
            }
            let schedule = Schedule {
                groups: groups.clone(),
                reported: false,
                next: now,
            };
            self.ports.insert(*port, schedule);
        }
    }

    /// The next frame to send and the interface to send it on, or `None` until
    /// [`next_deadline`](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<(u32, Vec<u8>)> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            let (port, schedule) = self.ports.iter_mut().find(|(_, s)| s.next <= now)?;
            let interval = if schedule.reported {
                INTERVAL
            } else {
                FIRST_INTERVAL
            };
            schedule.reported = true;
            schedule.next = now + interval;
            let addresses: Vec<Address> = schedule.groups.addresses.iter().copied().collect();
            for groups in addresses.chunks(frame::MAX_GROUPS) {
                let report = frame::listener_report(port, groups);
                self.ready.push_back((port.ifindex, report));
            }
            if schedule.groups.all {
                let advertisement =
                    frame::multicast_router_advertisement(port, ADVERTISED_INTERVAL);
                self.ready.push_back((port.ifindex, advertisement));
            }
        }
    }

    /// When [`poll`](Self::poll), having returned `None`, next has a frame.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.ports.values().map(|s| s.next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::testing::TAGGED as PORT;

    fn groups(count: u8, all: bool) -> BTreeMap<Port, Groups> {
        let group = |last| {
            let mut group = [0; 16];
            (group[0], group[1], group[15]) = (0xff, 2, last);
            group
        };
        let addresses = (0..count).map(group).collect();
        BTreeMap::from([(PORT, Groups { addresses, all })])
    }

    /// Seconds from `from` on at which frames leave within a minute, with the number of frames.
    fn schedule(reporter: &mut GroupReporter, from: Instant) -> Vec<(u64, usize)> {
        let mut sent = Vec::new();
        let mut now = from;
        while now < from + Duration::from_secs(60) {
            let frames = std::iter::from_fn(|| reporter.poll(now)).count();
            if frames > 0 {
                sent.push(((now - from).as_secs(), frames));
            }
            let Some(next) = reporter.next_deadline() else {
                break;
            };
            assert!(next > now, "a deadline that has passed");
            now = next;
        }
        sent
    }

    #[test]
    fn groups_are_reported_at_once_and_again_at_intervals() {
        let start = Instant::now();
        let mut reporter = GroupReporter::default();
        reporter.set(start, &groups(2, false));
        let times: Vec<u64> = schedule(&mut reporter, start)
            .into_iter()
            .map(|(at, frames)| {
                assert_eq!(frames, 1);
                at
            })
            .collect();
        assert_eq!(times, [0, 1, 11, 21, 31, 41, 51]);
        // The same groups again change nothing.
        let later = start + Duration::from_secs(60);
        reporter.set(later, &groups(2, false));
        assert!(reporter.poll(start + Duration::from_secs(60)).is_none());
        reporter.set(later, &groups(3, false));
        assert!(
            reporter.poll(later).is_some(),
            "a change is reported at once"
        );
    }

    #[test]
    fn many_groups_take_several_reports_and_none_take_none() {
        let now = Instant::now();
        let mut reporter = GroupReporter::default();
        reporter.set(now, &groups(130, false));
        assert_eq!(schedule(&mut reporter, now)[0], (0, 3));
        reporter.set(now, &groups(0, true));
        assert_eq!(schedule(&mut reporter, now)[0], (0, 1), "the advertisement");
        reporter.set(now, &groups(0, false));
        assert_eq!(schedule(&mut reporter, now), []);
        reporter.set(now, &BTreeMap::new());
        assert_eq!(reporter.next_deadline(), None);
    }
}
