//! Sequences of packets through the programs and through a Linux router, side by side.
//!
//! ```text
//!   Sequence ─▶ programs (harness) ─▶ output of each step and its interface ┐
//!            └▶ kernel (a Router)  ─▶ the same                               ┴─▶ equal, or the difference
//! ```
//!
//! The output is compared byte for byte, with these exceptions:
//!
//! - An external port or identifier that was not preserved differs between the sides. Each is
//!   replaced by the sequence's name for the endpoint. If a name has two ports, or a port two
//!   names, the step reports it.
//! - Fragments are reassembled within a step. The kernel reassembles before it translates and sends
//!   the whole if it fits; the receiver sees the same (RFC 791 section 3.2, RFC 8200 section 4.5).
//! - Ethernet padding is ignored.
//! - An ICMP error that the router generates is compared by addresses, type, code, MTU and the
//!   first eight bytes after the quoted header. Length of the quote, TTL, type of service and
//!   identification may differ (RFC 792, RFC 1812 section 4.3.2, RFC 4443 section 2.4).

use std::fmt::Write as _;
use std::time::Duration;

use appliance_common::counters::Counter;

use crate::dump;
use crate::packet::Mac;
use crate::world::{A_MAC, B_MAC, NEXT_HOP_MAC};

mod canonical;
mod compare;
mod router;
pub mod sequences;

pub use canonical::SECOND;
pub use compare::{Comparison, Wait};
pub use router::{Port, Router};

/// A host inside, or the remote hosts outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// Host 10: rules lead to it.
    A,
    /// Host 11: it has a public address to itself.
    B,
    /// Host 30.
    C,
    /// Host 31.
    D,
    /// The outside.
    Remote,
}

impl Node {
    /// Those inside.
    pub const HOSTS: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// Its MAC address.
    #[must_use]
    pub const fn mac(self) -> Mac {
        match self {
            Self::A => A_MAC,
            Self::B => B_MAC,
            Self::C => [0x02, 0, 0, 0xaa, 0, 0x1e],
            Self::D => [0x02, 0, 0, 0xaa, 0, 0x1f],
            Self::Remote => NEXT_HOP_MAC,
        }
    }

    /// Its addresses inside.
    #[must_use]
    pub const fn addresses(self) -> [&'static str; 2] {
        match self {
            Self::A => ["10.1.0.10", "2001:db8:1::10"],
            Self::B => ["10.1.0.11", "2001:db8:1::11"],
            Self::C => ["10.1.0.30", "2001:db8:1::30"],
            Self::D => ["10.1.0.31", "2001:db8:1::31"],
            Self::Remote => [crate::world::REMOTE, crate::world::REMOTE6],
        }
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// IP packets are sent, one right behind the other; one, or the fragments of one.
    Send(Node, Vec<Vec<u8>>),
    /// Nothing happens: for so many seconds of the standards' timeouts. The kernel's are shortened
    /// by [`Sequence::timeouts`], and it waits for [`EXPIRED`] where `expires`.
    Silence {
        /// Seconds, for us.
        seconds: u32,
        /// Whether the kernel's shortened timeouts are to pass.
        expires: bool,
    },
}

/// A bit more than the kernel's shortened timeout of a second.
pub const EXPIRED: Duration = Duration::from_millis(1150);

/// Packets with a name.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// The name: unique.
    pub name: String,
    pub steps: Vec<Step>,
    /// Timeouts of the kernel that are a second for it: names below `netfilter/nf_conntrack_`.
    pub timeouts: &'static [&'static str],
}

/// Output of a step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Out {
    /// An IP packet and its receiver.
    Packet(Node, Vec<u8>),
    /// An ICMP error of the router's own and its receiver, cut to the compared fields.
    OwnError(Node, Vec<u8>),
    /// An external port maps to two endpoints, or an endpoint to two ports.
    Clash(&'static str),
}

impl Out {
    /// In text, for a failure message.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Packet(who, bytes) => {
                format!("to {who:?}, {} bytes\n{}", bytes.len(), dump::hex(bytes))
            }
            Self::OwnError(who, bytes) => {
                format!(
                    "an ICMP error of the router to {who:?}\n{}",
                    dump::hex(bytes)
                )
            }
            Self::Clash(what) => format!("{what}\n"),
        }
    }
}

/// How a sequence differs first.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The step's number.
    pub step: usize,
    /// Output of the programs.
    pub ours: Vec<Out>,
    /// Reasons of the programs' drops.
    pub dropped: Vec<Counter>,
    /// Output of the router.
    pub kernel: Vec<Out>,
}

impl Difference {
    /// In text, for a failure message.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("step {}\n ours, dropped {:?}:\n", self.step, self.dropped);
        for o in &self.ours {
            let _ = write!(out, "  {}", o.text());
        }
        let _ = writeln!(out, " kernel:");
        for o in &self.kernel {
            let _ = write!(out, "  {}", o.text());
        }
        out
    }
}
