//! Path selection: the next hops of the underlay, and the peers whose circuit has something due.
//! Pure.
//!
//! ```text
//!   circuit (gateways by UDP) ─┐
//!   transport (UDP or TLS) ────┴▶ path of the peer ─┐
//!   next hops, our addresses ───────────────────────┴▶ outer headers of its datagrams
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use tunnel::{DeadlineQueue, Instant, PeerPath};

use super::peer_table::Peer;
use crate::{
    host::{NextHop, NextHops},
    pipeline::OuterHeader,
};

/// State of path selection, for all peers.
pub(super) struct PathSelector {
    /// The tunnel's UDP port.
    port: u16,
    locals: Vec<IpAddr>,
    next_hops: NextHops,
    /// Slots whose end of the circuit chooses the gateway: few, and checked each time.
    choosing: BTreeSet<u32>,
    /// Slots whose end follows the other end's choice: as many as there are tenants.
    following: DeadlineQueue,
}

impl PathSelector {
    pub fn new(port: u16) -> Self {
        Self {
            port,
            locals: Vec::new(),
            next_hops: NextHops::new(),
            choosing: BTreeSet::new(),
            following: DeadlineQueue::default(),
        }
    }

    /// Our own addresses.
    pub fn locals(&self) -> &[IpAddr] {
        &self.locals
    }

    /// Sets the state of the underlay; returns whether our own addresses changed.
    pub fn set_underlay(&mut self, next_hops: NextHops, locals: &[IpAddr]) -> bool {
        self.next_hops = next_hops;
        let changed = self.locals != locals;
        if changed {
            self.locals = locals.to_vec();
        }
        changed
    }

    /// The headers for a peer's datagrams; `None` while it has no path, or no next hop on it.
    pub fn outer_header(&self, peer: &Peer, tls_is_open: bool) -> Option<OuterHeader> {
        let path = peer.path?;
        if let (PeerPath::Stream(id), Some(_)) = (path, &peer.circuit) {
            return tls_is_open.then(|| OuterHeader::tls(id));
        }
        let remote = path.address()?;
        let local = self
            .locals
            .iter()
            .find(|local| local.is_ipv4() == remote.is_ipv4())?;
        match self.next_hops.get(&remote.ip()) {
            Some(NextHop::Resolved {
                ifindex,
                source_mac,
                next_hop_mac,
            }) => OuterHeader::new(
                *ifindex,
                *next_hop_mac,
                *source_mac,
                SocketAddr::new(*local, self.port),
                path,
            ),
            // The former headers are right in most cases.
            None
            | Some(NextHop::Unresolved {
                transient: true, ..
            }) => peer.outer.filter(|outer| outer.path == path),
            Some(NextHop::Unresolved { .. }) => None,
        }
    }

    /// The first of these addresses without a next hop, and the reason.
    pub fn unresolved(&self, mut addresses: impl Iterator<Item = IpAddr>) -> Option<String> {
        addresses.find_map(|address| match self.next_hops.get(&address)? {
            NextHop::Unresolved { reason, .. } => Some(format!("{address}: {reason}")),
            NextHop::Resolved { .. } => None,
        })
    }

    /// Adds a peer with a circuit; `follows`: its end follows the other end's choice.
    pub fn add(&mut self, slot: u32, follows: bool) {
        if follows {
            self.following.set_due_now(slot);
        } else {
            self.choosing.insert(slot);
        }
    }

    pub fn remove(&mut self, slot: u32) {
        self.choosing.remove(&slot);
        self.following.set(slot, None);
    }

    /// The circuit of a peer whose end follows has changed: its deadline may be another.
    pub fn set_due_now(&mut self, slot: u32) {
        self.following.set_due_now(slot);
    }

    /// The peers whose circuit is to be driven now.
    pub fn take_due(&mut self, now: Instant) -> Vec<u32> {
        let due = self.following.take(now);
        self.choosing.iter().copied().chain(due).collect()
    }

    /// A peer's circuit was driven and has this deadline next.
    pub fn driven(&mut self, slot: u32, next: Option<Instant>) {
        if !self.choosing.contains(&slot) {
            self.following.set(slot, next);
        }
    }

    /// Slots whose end chooses.
    pub fn choosing(&self) -> impl Iterator<Item = u32> {
        self.choosing.iter().copied()
    }

    /// When the next circuit of an end that follows is due.
    pub fn next_following(&self) -> Option<Instant> {
        self.following.next_deadline()
    }
}

#[cfg(test)]
mod tests {
    use tunnel::{LoadLimits, PeerConfig, SecretKey, TunnelControl};

    use super::*;
    use crate::manager::spec::{PeerProtocol, tests::spec};

    const PEER: SocketAddr =
        SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 6180);

    fn peer(path: Option<PeerPath>) -> Peer {
        let now = Instant::from_nanos(1);
        let spec = spec(0, PeerProtocol::Appliance);
        let secret = SecretKey::from_bytes(&[9; 32]);
        let id = TunnelControl::new(secret, LoadLimits::default())
            .add_peer(now, PeerConfig::causeway(spec.public_key, spec.dial));
        let mut peer = Peer::new(spec, id, None, 1, now);
        peer.path = path;
        peer
    }

    fn unresolved(transient: bool) -> NextHop {
        NextHop::Unresolved {
            reason: "no route".to_owned(),
            transient,
        }
    }

    fn selector(next_hop: Option<NextHop>) -> PathSelector {
        let mut paths = PathSelector::new(6180);
        let next_hops = next_hop.map(|next_hop| (PEER.ip(), next_hop));
        let locals = [IpAddr::from([198, 51, 100, 1])];
        assert!(paths.set_underlay(next_hops.into_iter().collect(), &locals));
        paths
    }

    #[test]
    fn headers_are_kept_while_a_next_hop_is_looked_up_and_not_without_a_route() {
        let resolved = NextHop::Resolved {
            ifindex: 7,
            source_mac: [2; 6],
            next_hop_mac: [4; 6],
        };
        let mut peer = peer(Some(PeerPath::Direct(PEER)));
        let outer = selector(Some(resolved)).outer_header(&peer, false);
        assert_eq!(outer.map(|outer| outer.ifindex), Some(7));
        assert_eq!(
            selector(None).outer_header(&peer, false),
            None,
            "never known"
        );
        peer.outer = outer;
        assert_eq!(selector(None).outer_header(&peer, false), outer);
        let transient = selector(Some(unresolved(true)));
        assert_eq!(transient.outer_header(&peer, false), outer);
        let lost = selector(Some(unresolved(false)));
        assert_eq!(lost.outer_header(&peer, false), None);
        let reason = lost.unresolved(peer.addresses());
        assert_eq!(reason.as_deref(), Some("192.0.2.1: no route"));
        // Headers of another path are of no use.
        peer.path = Some(PeerPath::Direct(SocketAddr::new(PEER.ip(), 1)));
        assert_eq!(transient.outer_header(&peer, false), None);
        peer.path = None;
        assert_eq!(transient.outer_header(&peer, false), None);
    }

    #[test]
    fn without_an_address_of_the_family_there_are_no_headers() {
        let peer = peer(Some(PeerPath::Direct(PEER)));
        let mut paths = selector(None);
        assert!(paths.set_underlay(NextHops::new(), &["2001:db8::1".parse().expect("one")]));
        assert_eq!(paths.outer_header(&peer, false), None);
    }

    #[test]
    fn ends_that_choose_are_always_due_and_others_at_their_deadline() {
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        let mut paths = PathSelector::new(6180);
        paths.add(3, false);
        paths.add(5, true);
        assert_eq!(paths.take_due(at(1)), [3, 5]);
        paths.driven(3, Some(at(50)));
        paths.driven(5, Some(at(50)));
        assert_eq!(paths.next_following(), Some(at(50)));
        assert_eq!(paths.take_due(at(2)), [3]);
        assert_eq!(paths.take_due(at(50)), [3, 5]);
        paths.driven(5, Some(at(90)));
        paths.remove(3);
        paths.remove(5);
        assert!(paths.take_due(at(100)).is_empty());
    }
}
