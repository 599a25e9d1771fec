//! Counters that must not rise: each that does names a cause outside of the appliance.
//!
//! For: the problems that status shows while such a counter rises. Never: reading the counters.

use std::time::{Duration, Instant};

/// A counter is a problem after it rose within this many seconds in a row.
const RISING_SECONDS: u32 = 3;
/// A problem is over when its counter did not rise for this long.
const CLEAR_DELAY: Duration = Duration::from_secs(30);

/// Values of the watched counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    /// `drop_adjust`: the kernel could not move a packet's head or tail.
    pub adjust: u64,
    /// `checksum_partial`: SYNs whose checksum the sender left to its NIC.
    pub partial: u64,
    /// `checksum_partial_udp`: UDP datagrams of this kind.
    pub partial_udp: u64,
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
    redirects: Watched,
    exceptions: Watched,
}

impl PacketHealth {
    /// Takes the values of this second.
    pub fn sample(&mut self, now: Instant, sample: Sample) {
        self.adjust.sample(now, sample.adjust);
        self.partial.sample(now, sample.partial);
        self.partial_udp.sample(now, sample.partial_udp);
        self.redirects.sample(now, sample.redirects);
        self.exceptions.sample(now, sample.exceptions);
    }

    /// The problems; `ports` are interfaces with driver and XDP mode, as text.
    pub fn problems(&self, ports: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.adjust.is_problem {
            problems.push(format!(
                "XDP cannot make room for headers, and packets are dropped (drop_adjust rises): a \
                 driver gives its packets no headroom; set xdp = \"generic\" on it, or use another \
                 NIC type ({ports})"
            ));
        }
        for (watched, protocol, counter) in [
            (&self.partial, "TCP", "checksum_partial"),
            (&self.partial_udp, "UDP", "checksum_partial_udp"),
        ] {
            if watched.is_problem {
                problems.push(format!(
                    "hosts send {protocol} whose checksum only their NIC would complete ({counter} \
                     rises), and the receivers drop it: run `ethtool -K IFACE tx off` on these \
                     hosts ({ports})"
                ));
            }
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

    #[test]
    fn each_counter_has_a_problem_with_its_remedy() {
        for (field, text) in [
            (0, "drop_adjust"),
            (1, "checksum_partial"),
            (2, "xdp_redirect_failed"),
            (3, "xdp_exception"),
            (
                4,
                "UDP whose checksum only their NIC would complete (checksum_partial_udp",
            ),
        ] {
            let start = Instant::now();
            let mut health = PacketHealth::default();
            for second in 0..4 {
                let value = |at| if at == field { second } else { 7 };
                let sample = Sample {
                    adjust: value(0),
                    partial: value(1),
                    redirects: value(2),
                    exceptions: value(3),
                    partial_udp: value(4),
                };
                health.sample(start + Duration::from_secs(second), sample);
            }
            let problems = health.problems("eth1: gve, native");
            assert_eq!(problems.len(), 1);
            assert!(problems[0].contains(text), "{problems:?}");
            assert!(problems[0].contains("eth1: gve, native"), "{problems:?}");
        }
    }
}
