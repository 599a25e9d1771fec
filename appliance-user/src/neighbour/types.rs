//! What goes into the engine and what comes out.

use std::time::Duration;

use appliance_common::maps::{HostKey, Neighbour};

/// The appliance's port on a tenant network: how its frames leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// Interface index.
    pub ifindex: u32,
    /// Outer VLAN identifier, 1 to 4094; 0 for untagged.
    pub outer: u16,
    /// Inner VLAN identifier (QinQ), likewise; 0 for at most one tag.
    pub inner: u16,
    /// Ethertype of the outer tag: 0x8100 or 0x88a8, host byte order. Without meaning when untagged.
    pub outer_ethertype: u16,
    /// Our MAC address on the port.
    pub mac: [u8; 6],
}

/// What the engine asks of its caller. Actions come in the order in which they must be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a frame: an ARP request or a neighbour solicitation.
    Send {
        /// Interface to send it on.
        ifindex: u32,
        /// The frame, from the Ethernet header on, without FCS.
        frame: Vec<u8>,
    },
    /// Write an entry of the map `NEIGHBOURS`, new or changed.
    Install {
        /// The host.
        key: HostKey,
        /// How to reach it.
        neighbour: Neighbour,
    },
    /// Delete an entry of the map `NEIGHBOURS`.
    Remove {
        /// The host.
        key: HostKey,
    },
    /// A host that was [wanted](super::Engine::want) has a MAC address: release what waits for it.
    Resolved {
        /// The host.
        key: HostKey,
        /// How to reach it.
        neighbour: Neighbour,
    },
    /// A host did not answer: refuse what waits for it.
    Failed {
        /// The host.
        key: HostKey,
    },
}

/// State of an entry; the [module](super) draws how they follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// No MAC address yet; being asked for.
    Incomplete,
    /// Heard of lately.
    Reachable,
    /// Not heard of lately; used as it is until a packet goes there.
    Stale,
    /// In use while stale: something may still be heard before it is asked.
    Delay,
    /// Being asked, and used meanwhile.
    Probe,
    /// Did not answer.
    Failed,
}

impl State {
    /// As printed.
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

/// One entry, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryStatus {
    /// The host.
    pub key: HostKey,
    /// Its state.
    pub state: State,
    /// Its MAC address, while one is known.
    pub mac: Option<[u8; 6]>,
    /// Whether it is kept resolved whatever the traffic.
    pub keep: bool,
    /// Time since it entered the state.
    pub age: Duration,
    /// Time since it was last heard of; `None` when never.
    pub heard: Option<Duration>,
}

/// What the engine counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// ARP requests and neighbour solicitations sent.
    pub probes_sent: u64,
    /// Entries that failed: no answer to the last probe.
    pub failed: u64,
    /// MAC addresses that changed and were taken over.
    pub mac_changed: u64,
    /// Changes that came within [`Settings::conflict_window`] of a sign of life of the old MAC: two
    /// machines may hold one address.
    pub conflicts: u64,
    /// Changes not taken over because the address changed too often.
    pub flaps_damped: u64,
    /// Entries evicted to make room.
    pub evicted: u64,
    /// Entries not made because a table was full of entries that are kept.
    pub refused_full: u64,
    /// Hosts not asked for because their network's probes are backed up.
    pub throttled: u64,
    /// Events that no host can have sent: a multicast or zero MAC address, an address no host has.
    pub ignored_invalid: u64,
    /// Events with our own MAC address.
    pub ignored_own: u64,
    /// Events from another port than the network's, or of an unknown network.
    pub ignored_port: u64,
}

/// How the engine behaves. All times are positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most entries of one network.
    pub max_per_network: usize,
    /// Most entries in all; the map `NEIGHBOURS` holds
    /// [`MAX_NEIGHBOURS`](appliance_common::limits::MAX_NEIGHBOURS).
    pub max_total: usize,
    /// Mean time an entry stays reachable without a sign of life; each entry draws between half and one
    /// and a half of it (RFC 4861 section 6.3.2).
    pub reachable: Duration,
    /// Time from use of a stale entry to the first probe (RFC 4861 `DELAY_FIRST_PROBE_TIME`).
    pub delay: Duration,
    /// Time between probes of an entry that has a MAC address (RFC 4861 `RETRANS_TIMER`).
    pub retransmit: Duration,
    /// Probes to the known MAC address before asking everybody (RFC 4861 `MAX_UNICAST_SOLICIT`).
    pub unicast_probes: u32,
    /// Probes to everybody after those, before the entry fails (Linux `mcast_resolicit`).
    pub multicast_probes: u32,
    /// Probes for a host that a packet waits for.
    pub wait_probes: u32,
    /// Time after the first of them; it doubles with each.
    pub wait_interval: Duration,
    /// How long a failure is remembered, so that packets to it are refused at once.
    pub negative: Duration,
    /// Time without a packet to it after which an entry is dropped.
    pub idle: Duration,
    /// Fast probes for a kept host that has no MAC address.
    pub keep_fast_probes: u32,
    /// Time between those.
    pub keep_fast_interval: Duration,
    /// Time after the first slow probe for a kept host; it doubles up to `keep_cap`.
    pub keep_slow_interval: Duration,
    /// Longest time between probes for a kept host.
    pub keep_cap: Duration,
    /// Time without an answer after which a kept host counts as failed. It goes on being asked for.
    pub keep_failed_after: Duration,
    /// Most probes per second in one network. Kept hosts and others have a budget of this size each.
    pub probes_per_network: u32,
    /// Most probes per second in all; likewise.
    pub probes_total: u32,
    /// Probes that may go out at once, in a network and in all, before those rates bind.
    pub probe_burst: u32,
    /// Longest wait for a turn to probe; a host that would wait longer is refused.
    pub probe_backlog: Duration,
    /// See [`Counters::conflicts`].
    pub conflict_window: Duration,
    /// Changes of MAC address within `flap_window` that are taken over.
    pub flap_changes: u32,
    /// Window in which changes are counted, and for which an address that flaps keeps the MAC it has.
    pub flap_window: Duration,
    /// Entries adopted at a start are confirmed within this time.
    pub adopt_spread: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_per_network: 65_536,
            max_total: appliance_common::limits::MAX_NEIGHBOURS as usize - 1024,
            reachable: Duration::from_secs(30),
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
