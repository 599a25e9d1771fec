//! Settings, states, actions and counters of the neighbour table.

use std::time::Duration;

use appliance_common::addr::{Address, as_v4};
use appliance_common::maps::{HostKey, Neighbour};

/// An action that the caller must carry out. Actions must be done in the order in which they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a frame: an ARP request or a neighbour solicitation.
    Send {
        /// Interface to send it on.
        ifindex: u32,
        /// The frame, from the Ethernet header on, without FCS.
        frame: Vec<u8>,
    },
    /// Write a new or changed entry of the map `NEIGHBOURS`.
    Install {
        /// The host.
        key: HostKey,
        /// Interface and Ethernet header to reach it.
        neighbour: Neighbour,
    },
    /// Write an entry of the map `NEIGHBOURS` that says that the host did not answer: the programs
    /// drop packets to it, which then do not burden the slow path.
    InstallAbsent {
        /// The host.
        key: HostKey,
    },
    /// Delete an entry of the map `NEIGHBOURS`.
    Remove {
        /// The host.
        key: HostKey,
    },
    /// A host [requested for a packet](super::NeighbourTable::resolve) has a MAC address: send the
    /// packets that wait for it.
    Resolved {
        /// The host.
        key: HostKey,
        /// Interface and Ethernet header to reach it.
        neighbour: Neighbour,
    },
    /// A host did not answer: drop the packets that wait for it.
    Failed {
        /// The host.
        key: HostKey,
    },
}

/// The sender addresses of the appliance's probes on a network: its own there, or ones that it
/// answers for. Without one of a family, no host of that family is probed; hosts are then learnt
/// from their own requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Senders {
    /// IPv4, in the order of preference. The second is for questions about the first.
    pub v4: [Option<[u8; 4]>; 2],
    /// IPv6.
    pub v6: Option<Address>,
}

impl Senders {
    /// The sender of a question about `target`, never `target` itself: that would be an
    /// announcement. An IPv4 address is in mapped form.
    #[must_use]
    pub fn for_target(&self, target: &Address) -> Option<Address> {
        match as_v4(target) {
            Some(target) => {
                let mut senders = self.v4.iter().flatten();
                let sender = senders.find(|sender| **sender != target)?;
                Some(appliance_common::addr::v4_mapped(*sender))
            }
            None => self.v6.filter(|sender| sender != target),
        }
    }
}

/// State of an entry. The [module](super) draws the transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// No MAC address known; being probed.
    Incomplete,
    /// Confirmed within the reachable time.
    Reachable,
    /// Not confirmed within the reachable time; used until a packet is sent.
    Stale,
    /// In use while stale; waits for a sign of life before it is probed.
    Delay,
    /// Being probed, and still used.
    Probe,
    /// Did not answer the last probe.
    Failed,
}

impl State {
    /// The name in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Incomplete => "incomplete",
            Self::Reachable => "reachable",
            Self::Stale => "stale",
            Self::Delay => "delay",
            Self::Probe => "probe",
            Self::Failed => "failed",
        }
    }
}

/// One entry, as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryStatus {
    /// The host.
    pub key: HostKey,
    pub state: State,
    /// Its MAC address, while one is known.
    pub mac: Option<[u8; 6]>,
    /// Whether it is kept resolved without traffic.
    pub keep: bool,
    /// Time since it entered the state.
    pub age: Duration,
    /// Time since its last message that confirmed it; `None` if there was none.
    pub confirmed: Option<Duration>,
}

/// Counts since the table was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// ARP requests and neighbour solicitations sent.
    pub probes_sent: u64,
    /// Probes not sent because the appliance has no address to ask with ([`Senders`]).
    pub without_sender: u64,
    /// Entries that failed: no answer to the last probe.
    pub failed: u64,
    /// Changed MAC addresses that replaced the known one.
    pub mac_changed: u64,
    /// Changes within [`Settings::conflict_window`] of a sign of life of the old MAC address: two
    /// machines may use one address.
    pub conflicts: u64,
    /// Changes ignored because the address changed too often.
    pub flaps_damped: u64,
    /// Advertisements of another MAC address that may not replace the known one.
    pub not_overridden: u64,
    /// Entries evicted to make room.
    pub evicted: u64,
    /// Entries not created because the table was full of kept entries.
    pub refused_full: u64,
    /// Probes not sent because the probe budget was exhausted.
    pub throttled: u64,
    /// Messages that no host can have sent: a group or zero MAC address, or an invalid IP address.
    pub ignored_invalid: u64,
    /// Messages with our own MAC address.
    pub ignored_own: u64,
    /// Messages from a port that is not the network's, or of an unknown network.
    pub ignored_port: u64,
}

/// Limits and timers of the neighbour table. All times are positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Maximum number of entries of one network.
    pub max_per_network: usize,
    /// Maximum number of entries in total; the map `NEIGHBOURS` holds
    /// [`MAX_NEIGHBOURS`](appliance_common::limits::MAX_NEIGHBOURS).
    pub max_total: usize,
    /// Mean time for which an entry stays reachable without a sign of life. Each entry draws a time
    /// between 0.5 and 1.5 of it (RFC 4861 section 6.3.2).
    pub reachable: Duration,
    /// The same for [routers](super::NeighbourTable::set_routers).
    pub router_reachable: Duration,
    /// Time from use of a stale entry to the first probe (RFC 4861 `DELAY_FIRST_PROBE_TIME`).
    pub delay: Duration,
    /// Time between probes of an entry that has a MAC address (RFC 4861 `RETRANS_TIMER`).
    pub retransmit: Duration,
    /// Unicast probes before the first broadcast or multicast probe (RFC 4861
    /// `MAX_UNICAST_SOLICIT`).
    pub unicast_probes: u32,
    /// Broadcast or multicast probes after those, before the entry fails (Linux `mcast_resolicit`).
    pub multicast_probes: u32,
    /// Probes for a host that a packet waits for.
    pub wait_probes: u32,
    /// Time after the first of those probes; it doubles with each.
    pub wait_interval: Duration,
    /// Time for which a failure is remembered, so that packets to the host are dropped at once.
    pub negative: Duration,
    /// Time without a packet to the host after which an entry is removed.
    pub idle: Duration,
    /// Fast probes for a kept host that has no MAC address.
    pub keep_fast_probes: u32,
    /// Time between fast probes.
    pub keep_fast_interval: Duration,
    /// Time after the first slow probe for a kept host; it doubles up to `keep_cap`.
    pub keep_slow_interval: Duration,
    /// Maximum time between probes for a kept host.
    pub keep_cap: Duration,
    /// Time without an answer after which a kept host is reported as failed. Probing continues.
    pub keep_failed_after: Duration,
    /// Maximum probes per second in one network. Kept hosts and other hosts each have such a
    /// budget.
    pub probes_per_network: u32,
    /// Maximum probes per second in total, in which tenants take turns. Kept hosts and other hosts
    /// each have such a budget.
    pub probes_total: u32,
    /// Probes that may be sent at once before those rates apply, in a network and in total.
    pub probe_burst: u32,
    /// Maximum wait for a slot in the budget of a network, and then in total. A host that would
    /// wait longer fails.
    pub probe_backlog: Duration,
    /// See [`Counters::conflicts`].
    pub conflict_window: Duration,
    /// Changes of MAC address that are accepted within `flap_window`.
    pub flap_changes: u32,
    /// Window in which changes are counted. An address that changes more often keeps its MAC
    /// address until the window ends.
    pub flap_window: Duration,
    /// Time within which entries adopted at a start are confirmed.
    pub adopt_spread: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_per_network: 65_536,
            max_total: appliance_common::limits::MAX_NEIGHBOURS as usize - 1024,
            reachable: Duration::from_secs(30),
            router_reachable: Duration::from_secs(5),
            delay: Duration::from_secs(2),
            retransmit: Duration::from_secs(1),
            unicast_probes: 3,
            multicast_probes: 3,
            wait_probes: 3,
            wait_interval: Duration::from_millis(300),
            negative: Duration::from_secs(1),
            idle: Duration::from_secs(600),
            keep_fast_probes: 5,
            keep_fast_interval: Duration::from_millis(20),
            keep_slow_interval: Duration::from_millis(100),
            keep_cap: Duration::from_secs(1),
            keep_failed_after: Duration::from_secs(3),
            probes_per_network: 1_000,
            probes_total: 5_000,
            probe_burst: 100,
            probe_backlog: Duration::from_secs(1),
            conflict_window: Duration::from_secs(1),
            flap_changes: 5,
            flap_window: Duration::from_secs(10),
            adopt_spread: Duration::from_secs(5),
        }
    }
}
