//! The data of the neighbour table: networks, entries and their order of eviction.

use std::collections::BTreeSet;
use std::time::Instant;

use appliance_common::addr::{Address, UNSPECIFIED, as_v4};
use appliance_common::maps::{HostKey, Neighbour};
use packet_rules::addr::v4_is_host;

use super::super::pacing::RateLimiter;
use super::{Senders, State};
use crate::frame::{self, Port};

/// A tenant's network and its probe budgets.
#[derive(Debug)]
pub(super) struct Net {
    /// Number of the tenant, whose networks have one share of the total budgets.
    pub(super) tenant: u32,
    pub(super) port: Port,
    pub(super) senders: Senders,
    pub(super) entries: usize,
    /// Entries that are not kept, in the order of eviction.
    pub(super) evictable: BTreeSet<Rank>,
    pub(super) kept_budget: RateLimiter,
    pub(super) other_budget: RateLimiter,
}

/// Order of eviction: failed and incomplete entries first, then by last use or sign of life.
pub(super) type Rank = (u8, Instant, HostKey);

/// How far an entry's next probe is on its way through the budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reserved {
    None,
    /// It has a slot in the budget of its network.
    Network,
    /// It also has the place of this number in the queue for the total budget.
    Queued(u64),
    /// It has a slot in both: its turn has come.
    Turn,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) state: State,
    /// When it entered the state.
    pub(super) since: Instant,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) keep: bool,
    /// A packet waits for the host; the caller is owed `Resolved` or `Failed`.
    pub(super) awaited: bool,
    /// Probes sent since it entered the state.
    pub(super) probes: u32,
    /// When the first of those probes was sent.
    pub(super) probing_since: Instant,
    /// When the host last sent a message that confirms it.
    pub(super) confirmed_at: Option<Instant>,
    /// Last time a packet was sent to the host, or the entry was requested.
    pub(super) active: Instant,
    pub(super) reserved: Reserved,
    pub(super) deadline: Option<Instant>,
    /// Key of its place in `Net::evictable`.
    pub(super) rank: Option<(u8, Instant)>,
    /// Start of the current flap window, and MAC address changes accepted in it.
    pub(super) flaps: Option<(Instant, u32)>,
}

/// The map entry for the host `key` with MAC address `mac` on `port`.
pub(super) fn map_entry(key: &HostKey, port: &Port, mac: [u8; 6]) -> Neighbour {
    Neighbour::new(
        port.ifindex,
        mac,
        port.mac,
        port.outer,
        port.inner,
        port.outer_ethertype,
    )
    .hashed(key)
}

/// The frame that asks for `target` from `sender`, both of one family.
pub(crate) fn question(
    port: &Port,
    sender: &Address,
    target: &Address,
    destination: Option<[u8; 6]>,
) -> Vec<u8> {
    match (as_v4(sender), as_v4(target)) {
        (Some(sender), Some(target)) => frame::arp_request(port, sender, target, destination),
        _ => frame::neighbour_solicitation(port, sender, target, destination),
    }
}

/// The range of all keys of a network.
pub(super) fn keys_of(vni: u32) -> std::ops::RangeInclusive<HostKey> {
    HostKey {
        vni,
        address: UNSPECIFIED,
    }..=HostKey {
        vni,
        address: [0xff; 16],
    }
}

/// Whether a host can have this address. Unspecified, loopback and multicast addresses are
/// excluded, and of IPv4 also "this network", limited broadcast and class E (RFC 1122 section
/// 3.2.1.3, RFC 4291 section 2.4).
pub(super) fn is_host(address: &Address) -> bool {
    match as_v4(address) {
        Some(v4) => v4_is_host(u32::from_ne_bytes(v4)),
        None => address[0] != 0xff && address[..15] != [0; 15],
    }
}
