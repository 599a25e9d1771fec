//! Asks whether addresses that the appliance is about to take over have an owner.
//!
//! For: gateways and public addresses, before a full failover begins or a rule adds one. Never:
//! input, output or a clock; frames and the owners found come out of [`TakeoverCheck::poll`].
//!
//! ```text
//!   new ─▶ ask for every address ─▶ 100 ms ─▶ again ─▶ 100 ms ─▶ again ─▶ 200 ms ─▶ Done(owners)
//! ```
//!
//! The times are shorter than those of RFC 5227 section 1.1, which allow for slow bridges at boot:
//! ports have carried traffic for long, and operators wait for the switch.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use appliance_common::addr::{Address, as_v4};

use super::neighbour::question;
use super::pacing::RateLimiter;
use crate::frame::{self, Port};

/// Rounds of questions.
const ROUNDS: u32 = 3;
/// Time between rounds.
const INTERVAL: Duration = Duration::from_millis(100);
/// Time for answers after the last question.
const LAST_WAIT: Duration = Duration::from_millis(200);
/// Questions per second, and at once.
const RATE: u32 = 10_000;
const BURST: u32 = 100;

/// An address to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The port on which it will be answered for.
    pub port: Port,
    pub address: Address,
    /// An address of the appliance there, with which it asks. `None`: it asks as a host that probes
    /// its own address (RFC 5227 section 2.1.1, RFC 4862 section 5.4.2).
    pub sender: Option<Address>,
}

/// The owner of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The port on which it answered.
    pub port: Port,
    pub address: Address,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// An action of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a frame.
    Send {
        /// Interface to send it on.
        ifindex: u32,
        /// The frame, from the Ethernet header on, without FCS.
        frame: Vec<u8>,
    },
    /// The check is over; the owners, sorted by port and address.
    Done(Vec<Owner>),
}

/// A check. See the [module](self).
#[derive(Debug)]
pub struct TakeoverCheck {
    targets: BTreeMap<(Port, Address), Target>,
    owners: BTreeMap<(Port, Address), [u8; 6]>,
    limiter: RateLimiter,
    /// Targets to ask for in this round.
    round: VecDeque<Target>,
    rounds_left: u32,
    next_at: Instant,
    done: bool,
}

impl TakeoverCheck {
    /// A check of these addresses, which begins at once.
    #[must_use]
    pub fn new(now: Instant, targets: Vec<Target>) -> Self {
        let targets = targets.into_iter().map(|t| ((t.port, t.address), t));
        Self {
            targets: targets.collect(),
            owners: BTreeMap::new(),
            limiter: RateLimiter::new(RATE, BURST),
            round: VecDeque::new(),
            rounds_left: ROUNDS,
            next_at: now,
            done: false,
        }
    }

    /// The ports of IPv6 addresses.
    pub fn ports_v6(&self) -> impl Iterator<Item = Port> + '_ {
        let v6 = self.targets.keys().filter(|(_, a)| as_v4(a).is_none());
        v6.map(|(port, _)| *port)
    }

    /// A host at `mac` uses `address` on the port with this interface and these tags.
    pub fn seen(&mut self, port: (u32, u16, u16), address: Address, mac: [u8; 6]) {
        let mut targets = self.targets.values();
        let target = targets.find(|target| {
            let p = &target.port;
            target.address == address && (p.ifindex, p.outer, p.inner) == port
        });
        if let Some(target) = target.filter(|target| target.port.mac != mac) {
            self.owners.insert((target.port, address), mac);
        }
    }

    /// The next thing to do, or `None` until [`next_deadline`](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<Output> {
        if self.done || self.next_at > now {
            return None;
        }
        if self.round.is_empty() {
            if self.rounds_left == 0 {
                self.done = true;
                let owners = self.owners.iter();
                let owners = owners.map(|((port, address), mac)| Owner {
                    port: *port,
                    address: *address,
                    mac: *mac,
                });
                return Some(Output::Done(owners.collect()));
            }
            self.rounds_left -= 1;
            let silent = |target: &&Target| {
                let place = (target.port, target.address);
                !self.owners.contains_key(&place)
            };
            self.round = self.targets.values().filter(silent).copied().collect();
        }
        let target = self.round.pop_front();
        self.next_at = match (self.round.is_empty(), self.rounds_left) {
            (true, 0) => now + LAST_WAIT,
            (true, _) => now + INTERVAL,
            (false, _) => {
                self.limiter.reserve(now);
                self.limiter.next_slot(now)
            }
        };
        let Target {
            port,
            address,
            sender,
        } = target?;
        Some(Output::Send {
            ifindex: port.ifindex,
            frame: match sender.filter(|sender| *sender != address) {
                Some(sender) => question(&port, &sender, &address, None),
                None => frame::address_probe(&port, &address),
            },
        })
    }

    /// When [`poll`](Self::poll), having returned `None`, has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        (!self.done).then_some(self.next_at)
    }
}

#[cfg(test)]
mod tests {
    use appliance_common::addr::v4_mapped;

    use super::*;
    use crate::frame::testing::UNTAGGED as PORT;

    const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];

    fn target(last: u8, sender: Option<Address>) -> Target {
        Target {
            port: PORT,
            address: v4_mapped([10, 1, 0, last]),
            sender,
        }
    }

    /// A frame and the time of its sending in milliseconds.
    type Sent = (u128, Vec<u8>);

    /// Runs to the end; the frames, the owners, and the time of the end in milliseconds.
    fn run(check: &mut TakeoverCheck, start: Instant) -> (Vec<Sent>, Vec<Owner>, u128) {
        let mut now = start;
        let mut frames = Vec::new();
        loop {
            let at = now.duration_since(start).as_millis();
            while let Some(output) = check.poll(now) {
                match output {
                    Output::Send { frame, .. } => frames.push((at, frame)),
                    Output::Done(owners) => return (frames, owners, at),
                }
            }
            let next = check.next_deadline().expect("not done");
            assert!(next >= now);
            now = next;
        }
    }

    #[test]
    fn a_free_address_is_asked_for_three_times_with_an_address_of_ours() {
        let start = Instant::now();
        let sender = Some(v4_mapped([10, 1, 0, 5]));
        let mut check = TakeoverCheck::new(start, vec![target(1, sender)]);
        let (frames, owners, end) = run(&mut check, start);
        let times: Vec<u128> = frames.iter().map(|(at, _)| *at).collect();
        assert_eq!((times, owners, end), (vec![0, 100, 200], Vec::new(), 400));
        for (_, frame) in frames {
            assert_eq!(frame[28..32], [10, 1, 0, 5]);
            assert_eq!(frame[38..42], [10, 1, 0, 1]);
        }
    }

    #[test]
    fn without_an_address_of_ours_the_question_is_a_probe() {
        let start = Instant::now();
        let v6 = Target {
            address: [0x20; 16],
            ..target(1, None)
        };
        let mut check = TakeoverCheck::new(start, vec![target(1, None), v6]);
        let (frames, ..) = run(&mut check, start);
        let (arp, nd): (Vec<_>, Vec<_>) = frames.iter().partition(|(_, f)| f[12..14] == [8, 6]);
        assert_eq!((arp.len(), nd.len()), (3, 3));
        assert!(arp.iter().all(|(_, f)| f[28..32] == [0; 4]));
        assert!(nd.iter().all(|(_, f)| f[22..38] == [0; 16] && f[54] == 135));
    }

    #[test]
    fn an_owner_is_named_and_not_asked_again() {
        let start = Instant::now();
        let targets = vec![target(1, None), target(2, None)];
        let mut check = TakeoverCheck::new(start, targets);
        assert!(check.poll(start).is_some());
        let address = v4_mapped([10, 1, 0, 1]);
        // Not of this port, not an address of the check, our own frame.
        check.seen((4, 0, 0), v4_mapped([10, 1, 0, 2]), OTHER_MAC);
        check.seen((3, 0, 0), v4_mapped([10, 1, 0, 3]), OTHER_MAC);
        check.seen((3, 0, 0), v4_mapped([10, 1, 0, 2]), PORT.mac);
        check.seen((3, 0, 0), address, OTHER_MAC);
        let (frames, owners, _) = run(&mut check, start);
        let asked = frames.iter().filter(|(_, f)| f[38..42] == [10, 1, 0, 1]);
        assert_eq!(asked.count(), 0);
        let owner = Owner {
            port: PORT,
            address,
            mac: OTHER_MAC,
        };
        assert_eq!(owners, [owner]);
    }

    #[test]
    fn many_addresses_are_asked_for_at_a_bounded_rate() {
        let start = Instant::now();
        let many = |n: u16| {
            let [high, low] = n.to_be_bytes();
            Target {
                address: v4_mapped([10, 1, high, low]),
                ..target(0, None)
            }
        };
        let mut check = TakeoverCheck::new(start, (0..5000).map(many).collect());
        let (frames, _, end) = run(&mut check, start);
        assert_eq!(frames.len(), 3 * 5000);
        let first_second = frames.iter().filter(|(at, _)| *at < 1000).count();
        assert!(first_second <= 10_100, "{first_second}");
        assert!((1_400..2_000).contains(&end), "{end} ms");
    }
}
