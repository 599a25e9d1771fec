//! Reasons, counters and states of circuits, as status and metrics have them.

use std::{net::SocketAddr, sync::Arc};

use gateway_client::wire::CircuitId;

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The datagram is neither a message nor a tunnel datagram.
    Malformed,
    /// No circuit has the ID.
    NoCircuit,
    /// The tag of a message is not valid under the key of its side.
    Forged,
    /// The timestamp of a message is not newer than that of the last accepted one.
    Replayed,
    /// Only gateways send messages of this kind.
    NotForUs,
    /// A side sends too many messages from proven addresses, or too many without a valid cookie
    /// come from sources of one slot.
    BindRate,
    /// The other side of the circuit is bound to the same address.
    SameAddress,
    /// No side is bound to the source of a tunnel datagram, or that of an unbind is not.
    NotBound,
    /// The other side of the circuit is not bound.
    NoPeer,
    /// The tenant exceeds its rate limit.
    Rate,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::NoCircuit,
        Self::Forged,
        Self::Replayed,
        Self::NotForUs,
        Self::BindRate,
        Self::SameAddress,
        Self::NotBound,
        Self::NoPeer,
        Self::Rate,
    ];

    /// Whether the datagram belongs to a known circuit.
    #[must_use]
    pub const fn has_circuit(self) -> bool {
        !matches!(self, Self::Malformed | Self::NoCircuit)
    }

    /// Name in status and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoCircuit => "no-circuit",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::NotForUs => "not-for-us",
            Self::BindRate => "bind-rate",
            Self::SameAddress => "same-address",
            Self::NotBound => "not-bound",
            Self::NoPeer => "no-peer",
            Self::Rate => "rate",
        }
    }
}

/// Dropped datagrams, by [`Reason`].
pub type Drops = [u64; Reason::ALL.len()];

/// Forwarded datagrams and bytes, circuit IDs included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub datagrams: u64,
    pub bytes: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
    }
}

impl Traffic {
    pub(super) fn add(&mut self, length: usize) {
        self.datagrams += 1;
        self.bytes += length as u64;
    }
}

/// Counts of events of the sides of a circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// A side was bound.
    pub bound: u64,
    /// A bound side moved to another address.
    pub moved: u64,
    /// A side was sent a challenge.
    pub challenged: u64,
    /// A side sent no bind for the lifetime.
    pub expired: u64,
    /// A side sent an unbind.
    pub left: u64,
    /// A bind was answered with the order to use another gateway.
    pub sent_away: u64,
}

impl Events {
    /// Counts with their names in status and metrics.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("bound", self.bound),
            ("moved", self.moved),
            ("challenged", self.challenged),
            ("expired", self.expired),
            ("left", self.left),
            ("sent-away", self.sent_away),
        ]
    }
}

/// Counters of a circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CircuitCounts {
    /// Forwarded datagrams, by sending side.
    pub from: [Traffic; 2],
    pub drops: Drops,
    pub events: Events,
}

impl std::ops::AddAssign<&Self> for CircuitCounts {
    fn add_assign(&mut self, other: &Self) {
        for (sum, traffic) in self.from.iter_mut().zip(other.from) {
            *sum += traffic;
        }
        for (sum, count) in self.drops.iter_mut().zip(other.drops) {
            *sum += count;
        }
        let events = &mut self.events;
        events.bound += other.events.bound;
        events.moved += other.events.moved;
        events.challenged += other.events.challenged;
        events.expired += other.events.expired;
        events.left += other.events.left;
        events.sent_away += other.events.sent_away;
    }
}

/// The circuits of a tenant together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantCounts {
    pub circuits: usize,
    /// Their bound sides.
    pub bound: usize,
    /// Counters of user space and XDP together.
    pub counts: CircuitCounts,
    /// The part of `counts.from` that XDP forwarded.
    pub fast: [Traffic; 2],
}

impl std::ops::AddAssign<&Self> for TenantCounts {
    fn add_assign(&mut self, other: &Self) {
        self.circuits += other.circuits;
        self.bound += other.bound;
        self.counts += &other.counts;
        for (sum, traffic) in self.fast.iter_mut().zip(other.fast) {
            *sum += traffic;
        }
    }
}

/// A circuit as `status` reports it: its bound ends, and its datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitState {
    pub id: CircuitId,
    pub tenant: Arc<str>,
    /// Addresses of the bound sides.
    pub bound: [Option<SocketAddr>; 2],
    /// Counters of user space and XDP together.
    pub counts: CircuitCounts,
    /// The part of `counts.from` that XDP forwarded.
    pub fast: [Traffic; 2],
}
