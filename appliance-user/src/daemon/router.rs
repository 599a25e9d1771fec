//! What we are on the wire in full failover: the gateways of the plans' networks, and the public addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use appliance_common::{
    addr::{Address, as_v4, from_ip, multicast_mac_v6, solicited_node},
    nat::public_flags,
};

use super::Daemon;
use crate::{
    advertise::Router, announce::Announcement, config::Config, frames, neighbour::Port, nic,
    underlay::OUTSIDE,
};

/// All routers, to whom solicitations go (RFC 4291 section 2.7.1).
const ALL_ROUTERS: [u8; 6] = [0x33, 0x33, 0, 0, 0, 2];

/// What is ours: where, and whether as a router.
pub(super) type Claims = BTreeMap<(Port, Address), bool>;

/// Ethernet groups that an interface listens to for us, by its name.
pub(super) type Groups = BTreeSet<(String, [u8; 6])>;

impl Daemon {
    /// Has the wire know what is ours: announces what has come, is silent about what has gone, listens for who asks,
    /// and advertises.
    pub(super) fn claim(&mut self, now: Instant) {
        let claims = self.claims();
        for (port, address) in self.claims.keys() {
            if !claims.contains_key(&(*port, *address)) {
                self.announcer.cancel(port, address);
            }
        }
        for ((port, address), router) in &claims {
            if self.claims.get(&(*port, *address)) != Some(router) {
                let announcement = Announcement {
                    address: *address,
                    mac: port.mac,
                    port: *port,
                    router: *router,
                };
                self.announcer.announce(now, announcement);
            }
        }
        self.claims = claims;
        self.listen();
        let routers = self.routers();
        self.advertiser.set(now, routers);
        self.watch();
    }

    fn claims(&self) -> Claims {
        let mut claims = Claims::new();
        for (network, plan) in self.networks_in_full() {
            let Some(port) = self.port_up(network) else {
                continue;
            };
            for gateway in plan.gateways() {
                claims.insert((port, from_ip(gateway)), true);
            }
        }
        let uplink = self.snapshot.links.get(&self.config.uplink.interface);
        if let Some(link) = uplink.filter(|link| link.up) {
            let port = Port {
                ifindex: link.ifindex,
                outer: 0,
                inner: 0,
                outer_ethertype: 0,
                mac: link.mac,
            };
            let public = self.tables.public.iter();
            for (address, _) in public.filter(|(_, p)| p.flags & public_flags::OWN == 0) {
                claims.insert((port, *address), false);
            }
        }
        claims
    }

    /// The networks of plans in force, as configured and as the plan has them.
    fn networks_in_full(
        &self,
    ) -> impl Iterator<Item = (&crate::config::Network, &failover::PlanNetwork)> {
        self.config.networks.iter().filter_map(|network| {
            let mode = self.state.modes.get(&network.tenant)?;
            Some((network, mode.doing.plan()?.network(&network.name)?))
        })
    }

    fn port_up(&self, network: &crate::config::Network) -> Option<Port> {
        let link = self.snapshot.links.get(&network.interface)?;
        self.ports.get(&network.vni).copied().filter(|_| link.up)
    }

    fn routers(&self) -> BTreeMap<u32, Router> {
        self.networks_in_full()
            .filter(|(_, plan)| plan.router_advertisements())
            .filter_map(|(network, plan)| {
                let gateway = plan.gateway_v6()?;
                let port = self.port_up(network)?;
                let source = if gateway.is_unicast_link_local() {
                    gateway.octets()
                } else {
                    frames::link_local(&port.mac)
                };
                let v6 = network.prefixes.iter().filter(|p| p.address().is_ipv6());
                let router = Router {
                    port,
                    source,
                    prefixes: v6.map(|p| (from_ip(p.address()), p.length())).collect(),
                };
                Some((network.vni, router))
            })
            .collect()
    }

    /// Has the NICs take what goes to the groups in which hosts ask for our IPv6 addresses.
    fn listen(&mut self) {
        let name = |ifindex: u32| {
            let mut links = self.snapshot.links.values();
            links.find(|l| l.ifindex == ifindex).map(|l| l.name.clone())
        };
        let mut groups = Groups::new();
        for ((port, address), router) in &self.claims {
            let Some(name) = name(port.ifindex).filter(|_| as_v4(address).is_none()) else {
                continue;
            };
            let group = multicast_mac_v6(&solicited_node(address));
            if *router {
                groups.insert((name.clone(), ALL_ROUTERS));
            }
            groups.insert((name, group));
        }
        for (name, group) in self.groups.difference(&groups) {
            if let Err(error) = nic::group(name, *group, false) {
                tracing::debug!(interface = name, %error, "a group could not be left");
            }
        }
        let mut joined: Groups = self.groups.intersection(&groups).cloned().collect();
        for (name, group) in groups.difference(&self.groups) {
            match nic::group(name, *group, true) {
                Ok(()) => drop(joined.insert((name.clone(), *group))),
                Err(error) => {
                    tracing::warn!(interface = name, %error, "a group could not be joined: who asks for an IPv6 address of ours there may not be heard");
                }
            }
        }
        self.groups = joined;
    }

    /// What is watched of the way to the outside.
    pub(super) fn watched_outside(&self) -> impl Iterator<Item = IpAddr> + use<> {
        watched_outside(&self.config, self.any_full())
    }
}

/// In full failover the ways of both families, so that their routers stay resolved; before it those of families of
/// which tenants have public addresses, so that it is known which of them are a router's.
pub(super) fn watched_outside(config: &Config, full: bool) -> impl Iterator<Item = IpAddr> + use<> {
    let public = config.tenants.iter().flat_map(|t| &t.public);
    let families: Vec<bool> = public.map(|net| net.address().is_ipv4()).collect();
    OUTSIDE
        .into_iter()
        .filter(move |a| full || families.contains(&a.is_ipv4()))
}
