//! The underlay: which way the tunnels' datagrams go, and the state of the appliance's own links.
//!
//! For: watching links, addresses, routes and neighbours of the current network namespace by rtnetlink, and
//! turning them into one [`Snapshot`]: per peer a [`UnderlayPath`], per named interface a [`LinkState`]. Never:
//! changing any of them, but for one thing: the kernel does not see the tunnel's traffic, which XDP sends, so it is
//! told that the next hops are in use (`NTF_USE`) and keeps their neighbour entries fresh.
//!
//! ```text
//!   events (multicast groups) ──▶ something we look at? ──▶ 10 ms ──▶ look ──▶ Snapshot, if it differs
//!   overrun (ENOBUFS) ──────────▶ always                                │
//!   15 s ────────────────────────────────────────────────▶ look        ├─ links, addresses: dump
//!   update(peers, interfaces) ───────────────────────────▶ look        ├─ peer: RTM_GETROUTE
//!                                                                       └─ next hop: RTM_GETNEIGH, NTF_USE
//! ```
//!
//! Every look is whole, so a lost event costs nothing but its time, and there is no state to drift. Routes
//! are asked for per peer, not dumped: rules, multipath and nexthop objects are the kernel's business.

mod netlink;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::stream::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use netlink::{Kernel, Lookup};
pub use types::{DEFAULT_ROUTE_PROBES, LinkState, PathError, Snapshot, UnderlayPath};

/// From the first event to the look: what comes in bursts is looked at once.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// Between looks without an event, and between words to the kernel that a next hop is in use.
const REFRESH: Duration = Duration::from_secs(15);
/// Shortest time between words to the kernel about a next hop that is stale or does not answer.
const RETRY: Duration = Duration::from_millis(250);
/// From a look that failed to the next.
const AFTER_ERROR: Duration = Duration::from_millis(100);

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

/// What can go wrong when the watcher starts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("{operation}: {source}; is netlink allowed in this namespace?")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not called within a tokio runtime.
    #[error("start the underlay watcher: no tokio runtime; call it within one")]
    NoRuntime,
}

/// The watcher's handle. Dropping it ends the watcher.
#[derive(Debug)]
pub struct Watcher {
    wanted: watch::Sender<Wanted>,
    tasks: Vec<JoinHandle<()>>,
}

/// What is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    peers: BTreeSet<IpAddr>,
    interfaces: BTreeSet<String>,
}

impl Wanted {
    fn new(peers: Vec<IpAddr>, interfaces: Vec<String>) -> Self {
        Self {
            peers: peers.into_iter().collect(),
            interfaces: interfaces.into_iter().collect(),
        }
    }
}

impl Watcher {
    /// Starts watching, in the network namespace of the calling thread and within the current tokio
    /// runtime. The receiver holds an empty [`Snapshot`] of generation 0 until the first look, some
    /// milliseconds later.
    ///
    /// # Errors
    ///
    /// When there is no runtime or no netlink socket can be had.
    pub fn spawn(
        peers: Vec<IpAddr>,
        interfaces: Vec<String>,
    ) -> Result<(Self, watch::Receiver<Snapshot>), Error> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let socket = |operation| move |source| Error::Socket { operation, source };
        // Two sockets: events that overrun one never cost an answer on the other.
        let (events_connection, events_handle, events) =
            rtnetlink::new_multicast_connection(GROUPS)
                .map_err(socket("open netlink for events"))?;
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(socket("open netlink for requests"))?;
        let (wanted, wanted_rx) = watch::channel(Wanted::new(peers, interfaces));
        let (snapshots, snapshots_rx) = watch::channel(Snapshot::default());
        let task = Task {
            kernel: Kernel::new(handle),
            wanted: wanted_rx,
            snapshots,
            hops: BTreeMap::new(),
        };
        let tasks = vec![
            runtime.spawn(events_connection),
            runtime.spawn(connection),
            runtime.spawn(async move {
                // The events' connection ends when its last handle goes.
                let _events_handle = events_handle;
                task.run(events).await;
            }),
        ];
        Ok((Self { wanted, tasks }, snapshots_rx))
    }

    /// Changes what is watched. Takes effect at once; the next snapshot has the new peers and interfaces.
    pub fn update(&self, peers: Vec<IpAddr>, interfaces: Vec<String>) {
        let wanted = Wanted::new(peers, interfaces);
        self.wanted.send_if_modified(|old| {
            let differs = *old != wanted;
            *old = wanted;
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

/// A next hop in use: interface and address.
type Hop = (u32, IpAddr);

type Events = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

struct Task {
    kernel: Kernel,
    wanted: watch::Receiver<Wanted>,
    snapshots: watch::Sender<Snapshot>,
    /// When the kernel was last told that a next hop is in use.
    hops: BTreeMap<Hop, Instant>,
}

impl Task {
    /// Looks whenever there is reason to, until the handle goes.
    async fn run(mut self, mut events: Events) {
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(look_at) => {
                    look_at = Instant::now() + self.look().await;
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    look_at = Instant::now();
                }
                event = events.next() => match event {
                    Some((message, _)) if self.concerns(&message) => {
                        look_at = look_at.min(Instant::now() + DEBOUNCE);
                    }
                    Some(_) => {}
                    None => {
                        // netlink-proto ends a connection only when its socket failed. Requests still
                        // work; without events the looks are all there is.
                        warn!("netlink events ended; looking every second from now on");
                        self.poll_forever().await;
                        return;
                    }
                },
            }
        }
    }

    /// The fallback without events.
    async fn poll_forever(&mut self) {
        loop {
            let _ = self.look().await;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                changed = self.wanted.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Whether an event may change the snapshot. Of neighbours, which come and go by the thousand on a
    /// production network, only the next hops in use do.
    fn concerns(&self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNeighbour(n) | RouteNetlinkMessage::DelNeighbour(n),
            ) => hop_of(n).is_some_and(|hop| self.hops.contains_key(&hop)),
            NetlinkPayload::Overrun(_) => {
                warn!("netlink events were lost; looking at everything anew");
                true
            }
            _ => true,
        }
    }

    /// Looks at everything and sends the snapshot if it differs. Returns when to look again at the
    /// latest.
    async fn look(&mut self) -> Duration {
        let wanted = self.wanted.borrow_and_update().clone();
        match self.gather(&wanted).await {
            Ok((mut snapshot, again)) => {
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
                again
            }
            Err(error) => {
                // A dump that was interrupted by a change, or a kernel short of memory.
                debug!(%error, "look at the underlay failed; trying again");
                AFTER_ERROR
            }
        }
    }

    async fn gather(&mut self, wanted: &Wanted) -> Result<(Snapshot, Duration), rtnetlink::Error> {
        let links = self.kernel.links().await?;
        let mut snapshot = Snapshot::default();
        for link in links.values() {
            if wanted.interfaces.contains(&link.name) {
                snapshot.links.insert(link.name.clone(), link.clone());
            }
        }
        let now = Instant::now();
        let mut again = REFRESH;
        let mut hops = BTreeMap::new();
        for peer in &wanted.peers {
            let Lookup { path, hop } = self.kernel.path(*peer, &links).await;
            snapshot.paths.insert(*peer, path);
            let before = || self.snapshots.borrow().next_hops.get(peer).copied();
            if let Some(hop) = hop.as_ref().map(|h| h.address).or_else(before) {
                snapshot.next_hops.insert(*peer, hop);
            }
            let Some(hop) = hop else { continue };
            let key = (hop.ifindex, hop.address);
            let told = hops.get(&key).or_else(|| self.hops.get(&key)).copied();
            let every = if hop.fresh { REFRESH } else { RETRY };
            let due = told.map_or(now, |at: Instant| at + every);
            let told = if hop.permanent {
                told.unwrap_or(now)
            } else if due <= now {
                if let Err(error) = self.kernel.use_neighbour(hop.ifindex, hop.address).await {
                    debug!(%error, next_hop = %hop.address, "could not have the next hop resolved");
                }
                again = again.min(every);
                now
            } else {
                again = again.min(due - now);
                told.unwrap_or(now)
            };
            hops.insert(key, told);
        }
        self.hops = hops;
        Ok((snapshot, again))
    }
}

/// Logs what changed, for the operator.
fn report(old: &Snapshot, new: &Snapshot) {
    for (peer, path) in &new.paths {
        if old.paths.get(peer) == Some(path) {
            continue;
        }
        match path {
            UnderlayPath::Resolved { ifindex, mtu, .. } => {
                info!(%peer, ifindex, mtu, "way to the peer is open");
            }
            UnderlayPath::Unresolved { reason } => info!(%peer, %reason, "no way to the peer"),
        }
    }
    for (name, link) in &new.links {
        if old.links.get(name) != Some(link) {
            info!(interface = %name, up = link.up, mtu = link.mtu, "interface");
        }
    }
    for name in old.links.keys() {
        if !new.links.contains_key(name) {
            info!(interface = %name, "interface is gone");
        }
    }
}

/// Interface and address of a neighbour message.
fn hop_of(message: &NeighbourMessage) -> Option<Hop> {
    Some((message.header.ifindex, netlink::neighbour_address(message)?))
}
