//! Counters that must not rise: each that does names a cause outside of the appliance.
//!
//! For: the problems and warnings that status shows while such a counter rises. A problem makes the
//! appliance unready for all tenants; what one tenant's host or a sender on the internet can cause
//! is therefore a warning. Never: reading the counters.

use std::time::{Duration, Instant};

/// A counter is a problem, or a warning, after it rose within this many seconds in a row.
const RISING_SECONDS: u32 = 3;
/// A problem is over when its counter did not rise for this long.
const CLEAR_DELAY: Duration = Duration::from_secs(30);

/// Values of the watched counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    /// `drop_adjust`: the kernel could not move a packet's head or tail.
    pub adjust: u64,
    /// `checksum_partial`: SYNs of hosts inside whose checksum the sender left to its NIC.
    pub partial: u64,
    /// `checksum_partial_udp`: UDP datagrams of this kind.
    pub partial_udp: u64,
    /// `checksum_partial_outside`: both kinds from outside.
    pub partial_outside: u64,
    /// `xdp_redirect_failed`: the kernel refused a redirect.
    pub redirects: u64,
    /// `xdp_exception`: the driver could not send what a program answered with.
    pub exceptions: u64,
}

/// Watches the counters. See the [module](self).
#[derive(Debug, Default)]
pub(super) struct PacketHealth {
    adjust: Watched,
    partial: Watched,
    partial_udp: Watched,
    partial_outside: Watched,
    redirects: Watched,
    exceptions: Watched,
}

impl PacketHealth {
    /// Takes the values of this second.
    pub fn sample(&mut self, now: Instant, sample: Sample) {
        self.adjust.sample(now, sample.adjust);
        self.partial.sample(now, sample.partial);
        self.partial_udp.sample(now, sample.partial_udp);
        self.partial_outside.sample(now, sample.partial_outside);
        self.redirects.sample(now, sample.redirects);
        self.exceptions.sample(now, sample.exceptions);
    }

    /// The problems of the appliance; `ports` are interfaces with driver and XDP mode, as text.
    pub fn problems(&self, ports: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.adjust.is_problem {
            problems.push(format!(
                "XDP cannot make room for headers, and packets are dropped (drop_adjust rises): a \
                 driver gives its packets no headroom; set xdp = \"generic\" on it, or use another \
                 NIC type ({ports})"
            ));
        }
        if self.redirects.is_problem {
            problems.push(format!(
                "the kernel drops packets that XDP redirects (xdp_redirect_failed rises): an \
                 interface is down, its MTU is too small, or its driver accepts no redirects \
                 ({ports})"
            ));
        }
        if self.exceptions.is_problem {
            problems.push(format!(
                "a driver does not send what XDP answers with, such as ARP replies (xdp_exception \
                 rises): its queues are full or too few, or, of a veth, the peer has no XDP \
                 program; give the interface more queues, or set xdp = \"generic\" on it ({ports})"
            ));
        }
        problems
    }

    /// Faults that hosts inside or senders on the internet cause, and that only they suffer from;
    /// `ports` as for [`problems`](Self::problems).
    pub fn warnings(&self, ports: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        for (watched, protocol, counter) in [
            (&self.partial, "TCP", "checksum_partial"),
            (&self.partial_udp, "UDP", "checksum_partial_udp"),
        ] {
            if watched.is_problem {
                warnings.push(format!(
                    "hosts send {protocol} whose checksum only their NIC would complete ({counter} \
                     rises), and the receivers drop it: run `ethtool -K IFACE tx off` on these \
                     hosts ({ports})"
                ));
            }
        }
        if self.partial_outside.is_problem {
            warnings.push(format!(
                "packets from the uplink to public addresses have a checksum that only their \
                 sender's NIC would complete (checksum_partial_outside rises), and the receivers \
                 drop them: run `ethtool -K IFACE tx off` on senders behind the uplink's switch; \
                 any sender on the internet can send such packets too, without effect ({ports})"
            ));
        }
        warnings
    }
}

#[derive(Debug, Default)]
struct Watched {
    /// The last value; `None` before the first sample.
    value: Option<u64>,
    /// Samples in a row in which it rose.
    rises: u32,
    last_rise: Option<Instant>,
    is_problem: bool,
}

impl Watched {
    fn sample(&mut self, now: Instant, value: u64) {
        let rose = self.value.is_some_and(|before| value > before);
        self.value = Some(value);
        if rose {
            self.rises += 1;
            self.last_rise = Some(now);
            self.is_problem |= self.rises >= RISING_SECONDS;
        } else {
            self.rises = 0;
            let over = |at: Instant| now.duration_since(at) >= CLEAR_DELAY;
            if self.last_rise.is_none_or(over) {
                self.is_problem = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether there is a problem after each second's value.
    fn watch(values: impl IntoIterator<Item = u64>) -> Vec<bool> {
        let start = Instant::now();
        let mut watched = Watched::default();
        let sample = |(second, value): (u64, u64)| {
            watched.sample(start + Duration::from_secs(second), value);
            watched.is_problem
        };
        (0..).zip(values).map(sample).collect()
    }

    #[test]
    fn a_counter_that_keeps_rising_is_a_problem_until_it_stops() {
        // An earlier process left 1000.
        assert_eq!(watch([1000, 1000, 1001, 1002]), [false; 4], "two rises");
        assert_eq!(watch([1000, 1001, 1002, 1003]), [false, false, false, true]);
        assert_eq!(watch([0, 1, 1, 2, 2, 3, 3, 4]), [false; 8], "single drops");
        let stopped = watch([0, 1, 2, 3].into_iter().chain([3; 31]));
        assert_eq!(stopped.iter().filter(|problem| **problem).count(), 30);
        assert!(!stopped[33]);
    }

    /// The problems and the warnings while one field of [`Sample`] rises, by its place.
    fn while_rising(field: usize) -> [Vec<String>; 2] {
        let start = Instant::now();
        let mut health = PacketHealth::default();
        for second in 0..4 {
            let value = |at| if at == field { second } else { 7 };
            let sample = Sample {
                adjust: value(0),
                redirects: value(1),
                exceptions: value(2),
                partial: value(3),
                partial_udp: value(4),
                partial_outside: value(5),
            };
            health.sample(start + Duration::from_secs(second), sample);
        }
        let ports = "eth1: gve, native";
        [health.problems(ports), health.warnings(ports)]
    }

    #[test]
    fn each_counter_has_a_problem_with_its_remedy() {
        for (field, text) in ["drop_adjust", "xdp_redirect_failed", "xdp_exception"]
            .into_iter()
            .enumerate()
        {
            let [problems, warnings] = while_rising(field);
            assert_eq!((problems.len(), warnings.len()), (1, 0), "{text}");
            assert!(problems[0].contains(text), "{problems:?}");
            assert!(problems[0].contains("eth1: gve, native"), "{problems:?}");
        }
    }

    #[test]
    fn what_a_tenant_or_a_stranger_sends_is_a_warning_and_no_problem() {
        for (field, text) in [
            (
                3,
                "TCP whose checksum only their NIC would complete (checksum_partial rises",
            ),
            (
                4,
                "UDP whose checksum only their NIC would complete (checksum_partial_udp rises",
            ),
            (5, "(checksum_partial_outside rises"),
        ] {
            let [problems, warnings] = while_rising(field);
            assert_eq!((problems.len(), warnings.len()), (0, 1), "{text}");
            assert!(warnings[0].contains(text), "{warnings:?}");
            assert!(
                warnings[0].contains("ethtool -K IFACE tx off"),
                "{warnings:?}"
            );
            assert!(warnings[0].contains("eth1: gve, native"), "{warnings:?}");
        }
    }
}
