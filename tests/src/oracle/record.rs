//! Ring-buffer records: neighbour events, and packets for the slow path.

use std::net::IpAddr;

use appliance_common::addr::{from_ip, to_ip};
use appliance_common::events::{NeighbourEventKind, SlowReason, neighbour_event_flags};
use appliance_common::nat::public_flags;

use super::full;
use super::ip::Ip;
use super::site::{
    check_addresses, in_partial, is_encrypted, is_on_this_side, is_provider, is_unroutable,
};

use crate::harness::Record;
use crate::packet::be16;
use crate::world::World;

/// Judges a record of the rings.
///
/// # Errors
///
/// The rule that was broken.
pub fn check_record(world: &World, record: &Record) -> Result<(), String> {
    match record {
        Record::Garbage(ring, bytes) => Err(format!("{} bytes in {ring}", bytes.len())),
        Record::Neighbour(event) => {
            let kind = NeighbourEventKind::from_u16(event.kind)
                .ok_or_else(|| format!("kind {}", event.kind))?;
            ensure!(
                event.mac != [0; 6],
                "neighbour event from {:02x?}",
                event.mac
            );
            ensure!(
                event.flags & !neighbour_event_flags::NO_OVERRIDE == 0,
                "flags {}",
                event.flags
            );
            if kind == NeighbourEventKind::Claim && event.vni == 0 {
                let public = world.public.iter().find(|(a, _)| *a == event.address);
                let ours = public.is_some_and(|(_, p)| p.flags & public_flags::OWN == 0);
                ensure!(ours, "a claim to {}", to_ip(&event.address));
                ensure!(
                    event.ifindex == world.nat.uplink && event.mac != world.nat.mac,
                    "our own claim, or not on the uplink"
                );
                return Ok(());
            }
            let attachment = world
                .attachment(event.ifindex, event.outer, event.inner)
                .ok_or("neighbour event on a port without a network")?;
            let network = &world.networks[attachment.network as usize];
            ensure!(
                network.vni == event.vni,
                "neighbour event in another network"
            );
            if kind == NeighbourEventKind::Claim {
                let ours = if is_provider(network) {
                    event.address == network.gateway_v4 || event.address == network.gateway_v6
                } else {
                    world.is_endpoint(network.vni, to_ip(&event.address))
                };
                ensure!(
                    ours && event.mac != attachment.mac,
                    "a claim to {}",
                    to_ip(&event.address)
                );
            }
            let address = to_ip(&event.address);
            let odd = match address {
                IpAddr::V4(a) => a.is_unspecified() || a.octets()[0] >= 224,
                IpAddr::V6(a) => a.is_unspecified() || a.is_multicast(),
            };
            ensure!(!odd, "neighbour event of {address}");
            Ok(())
        }
        Record::Slow(header, frame) => {
            let slot = world
                .slot(header.vni)
                .ok_or("a slow packet of no network")?;
            let network = &world.networks[slot];
            let full = full::in_full(world, network);
            ensure!(
                in_partial(world, network) || full,
                "a slow packet while idle"
            );
            let l3 = usize::from(header.l3);
            let ethertype = if l3 >= 2 { be16(frame, l3 - 2) } else { None };
            let i = ethertype
                .and_then(|t| Ip::parse(t, frame.get(l3..)?))
                .ok_or("a slow packet that is malformed")?;
            match SlowReason::from_u16(header.reason) {
                Some(SlowReason::Split) => {
                    ensure!(
                        !is_encrypted(network) && i.dst.is_ipv4() && i.frag & 0x4000 == 0,
                        "to be split, and must not be"
                    );
                    ensure!(
                        i.len > usize::from(network.mtu),
                        "to be split, of {} bytes",
                        i.len
                    );
                    check_addresses(world, network, i.src, i.dst, true)
                }
                Some(SlowReason::Unresolved) => {
                    ensure!(!is_unroutable(i.src) && !is_unroutable(i.dst), "unroutable");
                    if full {
                        ensure!(
                            header.next_hop == from_ip(i.dst)
                                && full::may_deliver(world, network, i.src, i.dst),
                            "waits for {}, where it may not go",
                            i.dst
                        );
                        return Ok(());
                    }
                    ensure!(
                        is_on_this_side(world, network, i.dst),
                        "waits for {}, which is not on this side",
                        i.dst
                    );
                    let gateway = if i.dst.is_ipv4() {
                        network.gateway_v4
                    } else {
                        network.gateway_v6
                    };
                    ensure!(
                        header.next_hop == from_ip(i.dst)
                            || (!is_provider(network) && header.next_hop == gateway),
                        "waits for {}",
                        to_ip(&header.next_hop)
                    );
                    Ok(())
                }
                Some(SlowReason::RouterSolicitation) => {
                    ensure!(full, "a record needs a router, but the network has none");
                    let kind = frame.get(l3 + 40).copied();
                    ensure!(
                        frame.get(l3 + 7) == Some(&255) && kind == Some(133),
                        "no router solicitation"
                    );
                    Ok(())
                }
                Some(SlowReason::GatewayEcho) => {
                    let gateway = if i.dst.is_ipv4() {
                        network.gateway_v4
                    } else {
                        network.gateway_v6
                    };
                    let protocol = if i.dst.is_ipv4() {
                        Some(i.proto)
                    } else {
                        frame.get(l3 + 40).copied()
                    };
                    ensure!(
                        full && from_ip(i.dst) == gateway && matches!(protocol, Some(1 | 58)),
                        "no fragment of an echo request to a gateway"
                    );
                    Ok(())
                }
                Some(SlowReason::HostSplit) => {
                    ensure!(
                        full && i.dst.is_ipv4() && i.frag & 0x4000 == 0,
                        "to be split, and must not be"
                    );
                    ensure!(
                        i.len > usize::from(network.lan_mtu)
                            && header.next_hop == from_ip(i.dst)
                            && full::may_deliver(world, network, i.src, i.dst),
                        "{} bytes to be split for {}",
                        i.len,
                        i.dst
                    );
                    Ok(())
                }
                Some(
                    SlowReason::UplinkUnresolved | SlowReason::UplinkSplit | SlowReason::Fragment,
                )
                | None => Err(format!("reason {}", header.reason)),
            }
        }
    }
}
