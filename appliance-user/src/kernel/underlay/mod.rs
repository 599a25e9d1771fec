//! The underlay: the paths of the tunnels' datagrams, and the state of the appliance's own links.
//!
//! For: watching links, addresses, routes and neighbours of the current network namespace by
//! rtnetlink, and turning them into one [`Snapshot`]: an [`UnderlayPath`] per peer and a
//! [`LinkState`] per named interface. Never: changing any of them, with one exception. XDP sends
//! the tunnels' traffic, so the kernel does not see that a next hop is in use. The watcher marks
//! next hops as used (`NTF_USE`), and has the kernel confirm those that it knows every 5 s, so that
//! a router that was replaced without an announcement is noticed.
//! Translated packets go to any neighbour of the uplink, so there every stale entry is confirmed.
//!
//! ```text
//!   events (multicast groups) ─▶ relevant? ─▶ 10 ms ─▶ refresh ─▶ Snapshot, if it differs
//!   overrun (ENOBUFS) ─────────▶ always                   │
//!   5 s with a next hop, 15 s without ──────▶ refresh    ├─ links, addresses: dump
//!   update(peers, interfaces) ──────────────▶ refresh    ├─ peer: RTM_GETROUTE
//!                                                         └─ next hop: RTM_GETNEIGH, NTF_USE, probe
//! ```
//!
//! Every refresh reads everything, so a lost event costs time but never correctness. Routes are
//! requested per peer and not dumped: the kernel evaluates rules, multipath and nexthop objects.

mod netlink;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::stream::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourMessage, NeighbourState};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use netlink::{Lookup, Netlink};
pub use types::{DEFAULT_ROUTE_PROBES, LinkState, PathError, Snapshot, UnderlayPath};

/// Delay from the first event to the refresh, so that a burst of events causes one refresh.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// Time between refreshes without an event.
const REFRESH_INTERVAL: Duration = Duration::from_secs(15);
/// Time between confirmations of a next hop. The kernel alone would ask up to 45 s after the last
/// answer (RFC 4861 section 6.3.2), and datagrams to a router that was replaced without an
/// announcement would be lost until then.
const NEXT_HOP_CONFIRM: Duration = Duration::from_secs(5);
/// Time between `NTF_USE` requests for a next hop that is stale or does not answer.
const NEXT_HOP_RETRY: Duration = Duration::from_millis(250);
/// Stale neighbours confirmed in one refresh, at most.
const MAX_CONFIRMED: usize = 256;
/// Time between looks for stale neighbours, without an event.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(5);
/// Delay after a failed refresh.
const ERROR_RETRY: Duration = Duration::from_millis(100);

const GROUPS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];

/// Why the watcher could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink socket could not be opened.
    #[error("{operation}: {source}; check that netlink is allowed in this namespace")]
    Socket {
        /// The failed operation.
        operation: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// Not called within a tokio runtime.
    #[error("start the underlay watcher: no tokio runtime; call it within a runtime")]
    NoRuntime,
}

/// Handle of the watcher. Dropping it stops the watcher.
#[derive(Debug)]
pub struct Watcher {
    targets: watch::Sender<Targets>,
    tasks: Vec<JoinHandle<()>>,
}

/// The peers and interfaces to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Targets {
    peers: BTreeSet<IpAddr>,
    interfaces: BTreeSet<String>,
    /// The interface whose stale neighbours are confirmed.
    confirm: Option<String>,
}

impl Targets {
    fn new(peers: Vec<IpAddr>, interfaces: Vec<String>) -> Self {
        Self {
            peers: peers.into_iter().collect(),
            interfaces: interfaces.into_iter().collect(),
            confirm: None,
        }
    }
}

impl Watcher {
    /// Starts the watcher in the network namespace of the calling thread and in the current tokio
    /// runtime. The receiver holds an empty [`Snapshot`] of generation 0 until the first refresh,
    /// some milliseconds later.
    ///
    /// # Errors
    ///
    /// When there is no runtime or a netlink socket cannot be opened.
    pub fn spawn(
        peers: Vec<IpAddr>,
        interfaces: Vec<String>,
    ) -> Result<(Self, watch::Receiver<Snapshot>), Error> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let socket = |operation| move |source| Error::Socket { operation, source };
        // Two sockets: an overrun of the event socket never loses a reply to a request.
        let (events_connection, events_handle, events) =
            rtnetlink::new_multicast_connection(GROUPS)
                .map_err(socket("open netlink for events"))?;
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(socket("open netlink for requests"))?;
        let (targets, targets_rx) = watch::channel(Targets::new(peers, interfaces));
        let (snapshots, snapshots_rx) = watch::channel(Snapshot::default());
        let task = Task {
            netlink: Netlink::new(handle),
            targets: targets_rx,
            snapshots,
            used_at: BTreeMap::new(),
            confirmed: None,
        };
        let tasks = vec![
            runtime.spawn(events_connection),
            runtime.spawn(connection),
            runtime.spawn(async move {
                // The event connection ends when its last handle is dropped.
                let _events_handle = events_handle;
                task.run(events).await;
            }),
        ];
        Ok((Self { targets, tasks }, snapshots_rx))
    }

    /// Changes the peers and interfaces to watch. A refresh follows at once, and the next snapshot
    /// has the new ones.
    pub fn update(&self, peers: Vec<IpAddr>, interfaces: Vec<String>) {
        let mut targets = Targets::new(peers, interfaces);
        self.targets.send_if_modified(|old| {
            targets.confirm.clone_from(&old.confirm);
            let differs = *old != targets;
            *old = targets;
            differs
        });
    }

    /// Sets the interface whose stale neighbours the watcher confirms; `None`: none. To its
    /// neighbours XDP sends by the kernel's table: the kernel does not see that traffic, so it
    /// would neither confirm an entry nor replace a wrong one.
    pub fn confirm_neighbours(&self, interface: Option<String>) {
        self.targets.send_if_modified(|old| {
            let differs = old.confirm != interface;
            old.confirm = interface;
            differs
        });
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A next hop in use: interface index and address.
type NextHop = (u32, IpAddr);

type Events = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

struct Task {
    netlink: Netlink,
    targets: watch::Receiver<Targets>,
    snapshots: watch::Sender<Snapshot>,
    /// Time of the last request about each next hop, to use or to confirm it.
    used_at: BTreeMap<NextHop, Instant>,
    /// Index of the interface whose stale neighbours are confirmed.
    confirmed: Option<u32>,
}

impl Task {
    /// Refreshes on events, on changes of the targets and at intervals, until the handle is
    /// dropped.
    async fn run(mut self, mut events: Events) {
        let mut refresh_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(refresh_at) => {
                    refresh_at = Instant::now() + self.refresh().await;
                }
                changed = self.targets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    refresh_at = Instant::now();
                }
                event = events.next() => match event {
                    Some((message, _)) if self.is_relevant(&message) => {
                        refresh_at = refresh_at.min(Instant::now() + DEBOUNCE);
                    }
                    Some(_) => {}
                    None => {
                        // netlink-proto ends a connection only when its socket has failed. Requests
                        // still work, so poll.
                        warn!("netlink event socket failed; polling the underlay every second");
                        self.poll_forever().await;
                        return;
                    }
                },
            }
        }
    }

    /// Refreshes every second, without events.
    async fn poll_forever(&mut self) {
        loop {
            let _ = self.refresh().await;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                changed = self.targets.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Whether an event may change the snapshot. Of the neighbours, of which a production network
    /// has thousands, only the next hops in use are relevant.
    fn is_relevant(&self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNeighbour(n) | RouteNetlinkMessage::DelNeighbour(n),
            ) => {
                let stale = n.header.state == NeighbourState::Stale;
                let next_hop = next_hop_of(n);
                (stale && self.confirmed == Some(n.header.ifindex))
                    || next_hop.is_some_and(|hop| self.used_at.contains_key(&hop))
            }
            NetlinkPayload::Overrun(_) => {
                warn!("netlink events lost; refreshing the underlay");
                true
            }
            _ => true,
        }
    }

    /// Reads everything and sends the snapshot if it differs. Returns the time until the next
    /// refresh.
    async fn refresh(&mut self) -> Duration {
        let targets = self.targets.borrow_and_update().clone();
        match self.gather(&targets).await {
            Ok((mut snapshot, next)) => {
                self.snapshots.send_if_modified(|old| {
                    snapshot.generation = old.generation;
                    if *old == snapshot && old.generation != 0 {
                        return false;
                    }
                    report(old, &snapshot);
                    snapshot.generation += 1;
                    *old = snapshot;
                    true
                });
                next
            }
            Err(error) => {
                // A change interrupted the dump, or the kernel is short of memory.
                debug!(%error, "underlay refresh failed; retrying");
                ERROR_RETRY
            }
        }
    }

    async fn gather(
        &mut self,
        targets: &Targets,
    ) -> Result<(Snapshot, Duration), rtnetlink::Error> {
        let links = self.netlink.links().await?;
        let mut snapshot = Snapshot::default();
        for link in links.values() {
            if targets.interfaces.contains(&link.name) {
                snapshot.links.insert(link.name.clone(), link.clone());
            }
        }
        let now = Instant::now();
        let mut next = REFRESH_INTERVAL;
        let mut used_at = BTreeMap::new();
        for peer in &targets.peers {
            let Lookup { path, hop } = self.netlink.path(*peer, &links).await;
            snapshot.paths.insert(*peer, path);
            let last_known = || self.snapshots.borrow().next_hops.get(peer).copied();
            if let Some(hop) = hop.as_ref().map(|h| h.address).or_else(last_known) {
                snapshot.next_hops.insert(*peer, hop);
            }
            let Some(hop) = hop else { continue };
            let key = (hop.ifindex, hop.address);
            let last = used_at
                .get(&key)
                .or_else(|| self.used_at.get(&key))
                .copied();
            let interval = if hop.fresh {
                NEXT_HOP_CONFIRM
            } else {
                NEXT_HOP_RETRY
            };
            let due = last.map_or(now, |at: Instant| at + interval);
            let last = if hop.permanent {
                last.unwrap_or(now)
            } else if due <= now {
                let (ifindex, next_hop) = key;
                let asked = if hop.known {
                    self.netlink.probe_neighbour(ifindex, next_hop).await
                } else {
                    self.netlink.use_neighbour(ifindex, next_hop).await
                };
                if let Err(error) = asked {
                    debug!(%error, %next_hop, "cannot request resolution of the next hop");
                }
                next = next.min(interval);
                now
            } else {
                next = next.min(due - now);
                last.unwrap_or(now)
            };
            used_at.insert(key, last);
        }
        self.used_at = used_at;
        self.confirmed = targets
            .confirm
            .as_ref()
            .and_then(|name| links.values().find(|link| link.name == *name && link.up))
            .map(|link| link.ifindex);
        if let Some(ifindex) = self.confirmed {
            next = next.min(CONFIRM_INTERVAL);
            let stale = self.netlink.stale_neighbours(ifindex).await?;
            for address in stale.into_iter().take(MAX_CONFIRMED) {
                if let Err(error) = self.netlink.probe_neighbour(ifindex, address).await {
                    debug!(%error, %address, "cannot probe a stale neighbour");
                }
            }
        }
        Ok((snapshot, next))
    }
}

/// Logs changes of peers' paths and of interfaces.
fn report(old: &Snapshot, new: &Snapshot) {
    for (peer, path) in &new.paths {
        if old.paths.get(peer) == Some(path) {
            continue;
        }
        match path {
            UnderlayPath::Resolved { ifindex, mtu, .. } => {
                info!(%peer, ifindex, mtu, "path to peer resolved");
            }
            UnderlayPath::Unresolved { reason } => info!(%peer, %reason, "path to peer lost"),
        }
    }
    for (name, link) in &new.links {
        if old.links.get(name) != Some(link) {
            info!(interface = %name, up = link.up, mtu = link.mtu, "interface changed");
        }
    }
    for name in old.links.keys() {
        if !new.links.contains_key(name) {
            info!(interface = %name, "interface removed");
        }
    }
}

/// Interface index and address of a neighbour message.
fn next_hop_of(message: &NeighbourMessage) -> Option<NextHop> {
    Some((message.header.ifindex, netlink::neighbour_address(message)?))
}
