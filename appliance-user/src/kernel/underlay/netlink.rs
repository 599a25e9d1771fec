//! The rtnetlink requests and the interpretation of their replies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::stream::{StreamExt, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::types::{LinkState, PathError, UnderlayPath};

/// Sends rtnetlink requests.
pub(super) struct Netlink {
    handle: Handle,
}

/// The path to a peer, and its next hop if there is a route.
pub(super) struct Lookup {
    pub(super) path: UnderlayPath,
    pub(super) hop: Option<NextHopState>,
}

/// A next hop in the kernel's neighbour table.
pub(super) struct NextHopState {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
    /// The kernel has confirmed it recently or is about to.
    pub(super) fresh: bool,
    /// It has a MAC address, which is not being confirmed at the moment.
    pub(super) known: bool,
    /// A permanent entry of an administrator. `NTF_USE` must not be sent for it: that would make it
    /// an ordinary entry (`__neigh_update`, `NEIGH_UPDATE_F_USE`).
    pub(super) permanent: bool,
}

/// The result of a route lookup.
struct Route {
    ifindex: u32,
    next_hop: IpAddr,
    local: IpAddr,
    mtu: Option<u32>,
}

impl Netlink {
    pub(super) const fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// All links by index, with their addresses.
    pub(super) async fn links(&self) -> Result<BTreeMap<u32, LinkState>, rtnetlink::Error> {
        let mut links = BTreeMap::new();
        let mut answers = self.handle.link().get().execute();
        while let Some(message) = answers.try_next().await? {
            let link = link_state(&message);
            links.insert(link.ifindex, link);
        }
        let mut answers = self.handle.address().get().execute();
        while let Some(message) = answers.try_next().await? {
            if let (Some(address), Some(link)) = (
                usable_address(&message),
                links.get_mut(&message.header.index),
            ) {
                link.addresses.push(address);
            }
        }
        for link in links.values_mut() {
            link.addresses.sort_unstable();
            link.addresses.dedup();
        }
        Ok(links)
    }

    /// The path to a peer.
    pub(super) async fn path(&self, peer: IpAddr, links: &BTreeMap<u32, LinkState>) -> Lookup {
        let unresolved = |reason, hop| Lookup {
            path: UnderlayPath::Unresolved { reason },
            hop,
        };
        let route = match self.route(peer).await {
            Ok(route) => route,
            Err(reason) => return unresolved(reason, None),
        };
        let Some(link) = links.get(&route.ifindex) else {
            let interface = format!("index {}", route.ifindex);
            return unresolved(PathError::LinkDown { interface }, None);
        };
        let interface = || link.name.clone();
        if !link.up {
            return unresolved(
                PathError::LinkDown {
                    interface: interface(),
                },
                None,
            );
        }
        if link.mac == [0; 6] {
            return unresolved(
                PathError::NotEthernet {
                    interface: interface(),
                },
                None,
            );
        }
        let neighbour = match self.neighbour(route.ifindex, route.next_hop).await {
            Ok(neighbour) => neighbour,
            Err(error) => return unresolved(PathError::Netlink(error.to_string()), None),
        };
        let state = neighbour.as_ref().map(|n| n.header.state);
        let hop = Some(NextHopState {
            ifindex: route.ifindex,
            address: route.next_hop,
            fresh: matches!(
                state,
                Some(
                    NeighbourState::Reachable
                        | NeighbourState::Delay
                        | NeighbourState::Probe
                        | NeighbourState::Permanent
                        | NeighbourState::Noarp
                )
            ),
            known: matches!(
                state,
                Some(NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay)
            ),
            permanent: matches!(state, Some(NeighbourState::Permanent)),
        });
        match neighbour.as_ref().and_then(usable_mac) {
            Some(next_hop_mac) => Lookup {
                path: UnderlayPath::Resolved {
                    ifindex: route.ifindex,
                    local: route.local,
                    source_mac: link.mac,
                    next_hop_mac,
                    mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
                },
                hop,
            },
            None => unresolved(
                PathError::NextHopUnresolved {
                    interface: interface(),
                    next_hop: route.next_hop,
                },
                hop,
            ),
        }
    }

    /// The kernel's routing decision for a peer (RTM_GETROUTE).
    async fn route(&self, peer: IpAddr) -> Result<Route, PathError> {
        let message = match peer {
            IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        let mut answers = std::pin::pin!(self.handle.route().get(message).execute());
        match answers.next().await {
            Some(Ok(message)) => route(peer, &message),
            Some(Err(error)) => Err(route_error(&error)),
            None => Err(PathError::NoRoute),
        }
    }

    /// One entry of the kernel's neighbour table; `None` if there is none.
    async fn neighbour(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<Option<NeighbourMessage>, rtnetlink::Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = ifindex;
        message
            .attributes
            .push(NeighbourAttribute::Destination(match address {
                IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
                IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
            }));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(message));
        request.header.flags = NLM_F_REQUEST;
        let mut handle = self.handle.clone();
        let mut answers = std::pin::pin!(handle.request(request)?);
        match answers.next().await.map(|answer| answer.payload) {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(n))) => Ok(Some(n)),
            Some(NetlinkPayload::Error(error)) if error.raw_code() != -libc::ENOENT => {
                Err(rtnetlink::Error::NetlinkError(error))
            }
            _ => Ok(None),
        }
    }

    /// The stale neighbours of an interface, of both families.
    pub(super) async fn stale_neighbours(
        &self,
        ifindex: u32,
    ) -> Result<Vec<IpAddr>, rtnetlink::Error> {
        let mut stale = Vec::new();
        let mut answers = self.handle.neighbours().get().execute();
        while let Some(message) = answers.try_next().await? {
            if message.header.ifindex == ifindex && message.header.state == NeighbourState::Stale {
                stale.extend(neighbour_address(&message));
            }
        }
        Ok(stale)
    }

    /// Has the kernel confirm a neighbour at once by unicast (`NUD_PROBE`), without the five
    /// seconds of `NUD_DELAY`. An entry that does not answer becomes invalid after three seconds,
    /// and the next packet has it resolved anew.
    pub(super) async fn probe_neighbour(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<(), rtnetlink::Error> {
        self.handle
            .neighbours()
            .add(ifindex, address)
            .state(NeighbourState::Probe)
            .replace()
            .execute()
            .await
    }

    /// Tells the kernel that a neighbour is in use. The kernel then resolves or confirms it
    /// (`neigh_event_send`), as for a packet of its own.
    pub(super) async fn use_neighbour(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<(), rtnetlink::Error> {
        self.handle
            .neighbours()
            .add(ifindex, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
    }
}

/// The address of a neighbour message.
pub(super) fn neighbour_address(message: &NeighbourMessage) -> Option<IpAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
            _ => None,
        })
}

/// The MAC address of a neighbour if the kernel would send to it (`NUD_VALID`).
fn usable_mac(message: &NeighbourMessage) -> Option<[u8; 6]> {
    let valid = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) if valid => mac.as_slice().try_into().ok(),
            _ => None,
        })
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn link_state(message: &LinkMessage) -> LinkState {
    let flags = message.header.flags;
    let mut link = LinkState {
        name: String::new(),
        ifindex: message.header.index,
        mac: [0; 6],
        mtu: 0,
        up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac)
                if message.header.link_layer_type == LinkLayerType::Ether =>
            {
                link.mac = mac.as_slice().try_into().unwrap_or([0; 6]);
            }
            _ => {}
        }
    }
    link
}

/// An address that may be used as a source: not tentative, failed or deprecated.
fn usable_address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let mut address = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            // On a point-to-point link, IFA_ADDRESS is the address of the other end.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    if flags.intersects(unusable) && !flags.contains(AddressFlags::Optimistic) {
        return None;
    }
    Some((local.or(address)?, message.header.prefix_len))
}

/// Interprets the reply to a route request.
fn route(peer: IpAddr, message: &RouteMessage) -> Result<Route, PathError> {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            return Err(PathError::OwnAddress);
        }
        _ => return Err(PathError::RouteRefuses),
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    let mut ifindex = None;
    let mut next_hop = peer;
    let mut local = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => next_hop = ip(address).unwrap_or(next_hop),
            // An IPv4 route over an IPv6 next hop (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet6(v6)) => next_hop = IpAddr::V6(*v6),
            RouteAttribute::Via(RouteVia::Inet(v4)) => next_hop = IpAddr::V4(*v4),
            RouteAttribute::PrefSource(address) => local = ip(address),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(value) = metric {
                        mtu = Some(*value);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Route {
        ifindex: ifindex.ok_or(PathError::NoRoute)?,
        next_hop,
        local: local.ok_or(PathError::NoSourceAddress)?,
        mtu: mtu.filter(|mtu| *mtu != 0),
    })
}

/// The error behind a failed route request.
fn route_error(error: &rtnetlink::Error) -> PathError {
    match error {
        rtnetlink::Error::NetlinkError(message) => match message.raw_code().abs() {
            libc::ENETUNREACH => PathError::NoRoute,
            // The errors of unreachable, prohibit and blackhole routes (fib_props,
            // ip6_rt_type_to_error).
            libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL => PathError::RouteRefuses,
            _ => PathError::Netlink(message.to_io().to_string()),
        },
        other => PathError::Netlink(other.to_string()),
    }
}
