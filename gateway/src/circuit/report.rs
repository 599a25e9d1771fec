//! Reports of the threads of circuits: counters, and pages of circuits.

use std::{collections::BTreeMap, sync::Arc};

use gateway_client::wire::CircuitId;

use super::table::{CircuitState, Drops, TenantCounts};

/// Counters of all datagrams of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub received: u64,
    /// Sent, answers included.
    pub sent: u64,
    /// Not sent: the send buffer was full.
    pub full: u64,
    /// Not sent: the kernel refused.
    pub refused: u64,
    /// Messages that were truncated or of another address family.
    pub unreadable: u64,
    /// Dropped by the kernel: the receive buffer of a present socket was full.
    pub overflowed: u64,
    /// Dropped by XDP: sources that are not bound sent too much.
    pub unbound_rate: u64,
}

/// Counters of all circuits together and of each tenant's.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The tenants with circuits.
    pub tenants: BTreeMap<Arc<str>, TenantCounts>,
    /// Dropped datagrams without a circuit.
    pub drops: Drops,
    /// Counters of all datagrams.
    pub totals: Totals,
    /// Number of bound sides.
    pub bound: usize,
    /// Number of circuits.
    pub circuits: usize,
    /// Threads that did not answer in time; theirs are the values that they reported last.
    pub late: usize,
}

/// Counters of all circuits together, and each circuit.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// In the order of IDs.
    pub circuits: Vec<CircuitState>,
    /// Dropped datagrams without a circuit.
    pub drops: Drops,
    /// Counters of all datagrams.
    pub totals: Totals,
    /// Number of bound sides.
    pub bound: usize,
}

/// A page of circuits.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The ID before the first one.
    pub after: Option<CircuitId>,
    /// Of this tenant only.
    pub tenant: Option<Arc<str>>,
    /// Circuits at most.
    pub limit: usize,
}

/// The answer of a thread: its part of a summary, and the tenants and indices of its XDP counters.
pub(super) type SummaryPart = (Summary, Vec<(Arc<str>, u32)>);

/// The answer of a thread: its circuits of a page, and the indices of their XDP counters.
pub(super) type PagePart = Vec<(CircuitState, Option<u32>)>;
