//! Running a sequence through the programs and through the router, step by step.

use std::io;
use std::time::Duration;

use appliance_common::counters::Counter;
use appliance_common::nat::{Flow, FlowKey, ticks};

use super::canonical::{Names, Symbols, be16};
use super::router::{Port, Router};
use super::{Difference, EXPIRED, Node, Sequence, Step};

use crate::dump;
use crate::harness::{Harness, SharedHarness};
use crate::nat::{HostPort, Verdict, inside, outside};
use crate::packet::{frame, l2};
use crate::world::{NET1, TRUNK, TRUNK_MAC, UPLINK_MAC, World};

/// The programs and the router, with the same rules and hosts.
#[derive(Debug)]
pub struct Comparison {
    ours: SharedHarness,
    kernel: Router,
    timeout: Wait,
}

/// How long the router is waited for. Mostly it is done before the packet counts as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// To find candidates: a machine that was held up looks like a difference.
    Short,
    /// To confirm a difference.
    Long,
}

impl Comparison {
    /// Both with the hosts of [`Node`]. The calling thread moves to the harness's namespace. `None`
    /// after saying why, where that is impossible.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[must_use]
    pub fn new() -> Option<Self> {
        if !Router::is_possible() {
            crate::skip("nft is missing; run `cargo xtask setup`");
            return None;
        }
        let mut world = World::nat();
        for who in [Node::C, Node::D] {
            for address in who.addresses() {
                world.neighbour(NET1, address, TRUNK, who.mac(), TRUNK_MAC, 101, 0);
            }
        }
        let ours = Harness::new(world)?;
        let hosts: Vec<_> = Node::HOSTS
            .iter()
            .flat_map(|who| who.addresses().map(|a| (a, who.mac())))
            .collect();
        let kernel = Router::new(&hosts).unwrap_or_else(|e| panic!("the router: {e}"));
        Some(Self {
            ours,
            kernel,
            timeout: Wait::Long,
        })
    }

    /// Runs a sequence through both, from nothing.
    ///
    /// # Errors
    ///
    /// How they differ first.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn run(&mut self, sequence: &Sequence, timeout: Wait) -> Result<(), Box<Difference>> {
        self.timeout = timeout;
        // Late frames of the previous sequence.
        let zero = Duration::ZERO;
        let _ = self.kernel.receive(0, zero, zero).expect("the router");
        self.ours.clear_connections().expect("maps");
        self.kernel.forget().expect("conntrack");
        let shortened = sequence.timeouts.iter().map(|name| {
            let path = format!("netfilter/nf_conntrack_{name}");
            let was = self.kernel.get(&path).unwrap_or_else(|e| panic!("{e}"));
            self.kernel
                .set(&path, "1")
                .unwrap_or_else(|e| panic!("{e}"));
            (path, was)
        });
        let shortened: Vec<_> = shortened.collect();
        let result = self.steps(sequence);
        for (path, was) in shortened {
            self.kernel
                .set(&path, was.trim())
                .unwrap_or_else(|e| panic!("{e}"));
        }
        result
    }

    fn steps(&mut self, sequence: &Sequence) -> Result<(), Box<Difference>> {
        let mut symbols = Symbols::default();
        let (mut names, mut kernel_names) = (Names::default(), Names::default());
        for (number, step) in sequence.steps.iter().enumerate() {
            let (who, packets) = match step {
                Step::Silence { seconds, expires } => {
                    self.age(*seconds);
                    if *expires {
                        std::thread::sleep(EXPIRED);
                    }
                    continue;
                }
                Step::Send(who, packets) => (*who, packets),
            };
            let symbol = (who != Node::Remote)
                .then(|| symbols.of(&packets[0]))
                .flatten();
            let (raw, dropped) = self.through_ours(who, packets, &names);
            let expected = raw.len().min(1);
            let ours = names.canonical(packets, raw, symbol);
            let raw = self
                .through_kernel(who, packets, &kernel_names, expected)
                .expect("the router");
            let kernel = kernel_names.canonical(packets, raw, symbol);
            if ours != kernel {
                return Err(Box::new(Difference {
                    step: number,
                    ours,
                    dropped,
                    kernel,
                }));
            }
        }
        Ok(())
    }

    /// Makes every connection older.
    fn age(&mut self, seconds: u32) {
        let by = ticks(u64::from(seconds) * 1_000_000_000);
        for map in ["FLOWS", "OPENING", "OPENING_EXCESS", "FRAGMENTS"] {
            for (key, mut flow) in self.ours.entries::<FlowKey, Flow>(map).expect("map") {
                flow.last_seen = flow.last_seen.wrapping_sub(by);
                self.ours.put(map, key, flow).expect("map");
            }
        }
    }

    /// Resets that the programs have sent about lost connections.
    fn resets(&self) -> u64 {
        let counters = self.ours.counters();
        let resets = counters.get(&(Counter::ResetSent as u32));
        resets.copied().unwrap_or(0)
    }

    fn through_ours(
        &mut self,
        who: Node,
        packets: &[Vec<u8>],
        names: &Names,
    ) -> (Vec<(Node, Vec<u8>)>, Vec<Counter>) {
        let (mut out, mut dropped) = (Vec::new(), Vec::new());
        for packet in packets {
            let packet = names.actual(packet);
            let resets = self.resets();
            let fate = if who == Node::Remote {
                outside(&mut self.ours, &packet)
            } else {
                inside(&mut self.ours, HostPort::trunk(101, who.mac()), &packet)
            };
            match fate {
                // Nothing went on. The kernel is silent there; `nat.rs` has the reset's bytes.
                Verdict::Host(_) if self.resets() != resets => dropped.push(Counter::DropNoFlow),
                Verdict::Outside(l3) => out.push((Node::Remote, trimmed(&l3))),
                Verdict::Host(frame) => {
                    let head = l2(&frame).expect("a frame");
                    out.push((receiver(&frame), trimmed(&frame[head.l3..])));
                }
                Verdict::Dropped(reason) => dropped.push(reason),
                Verdict::Passed => panic!("passed to the kernel, but is not for it"),
            }
        }
        (out, dropped)
    }

    fn through_kernel(
        &self,
        who: Node,
        packets: &[Vec<u8>],
        names: &Names,
        expected: usize,
    ) -> io::Result<Vec<(Node, Vec<u8>)>> {
        for packet in packets {
            let packet = names.actual(packet);
            if who == Node::Remote {
                self.kernel
                    .send(Port::Outside, &frame(UPLINK_MAC, who.mac(), &[], &packet))?;
            } else {
                self.kernel
                    .send(Port::Inside, &frame(TRUNK_MAC, who.mac(), &[], &packet))?;
            }
        }
        let (timeout, quiet) = match self.timeout {
            Wait::Short => (20, 1),
            Wait::Long => (1000, 20),
        };
        let [timeout, quiet] = [timeout, quiet].map(Duration::from_millis);
        let frames = self.kernel.receive(expected, timeout, quiet)?;
        Ok(frames
            .into_iter()
            .map(|(_, frame)| (receiver(&frame), trimmed(&frame[14..])))
            .collect())
    }
}

/// An IP packet without Ethernet padding, which the kernel cuts off.
fn trimmed(l3: &[u8]) -> Vec<u8> {
    let total = if l3[0] >> 4 == 4 {
        usize::from(be16(l3, 2))
    } else {
        40 + usize::from(be16(l3, 4))
    };
    l3[..total.min(l3.len())].to_vec()
}

/// The receiver of a frame, by MAC address.
fn receiver(frame: &[u8]) -> Node {
    Node::HOSTS
        .into_iter()
        .chain([Node::Remote])
        .find(|who| frame[..6] == who.mac())
        .unwrap_or_else(|| {
            panic!(
                "no host has the destination MAC address:\n{}",
                dump::hex(frame)
            )
        })
}
