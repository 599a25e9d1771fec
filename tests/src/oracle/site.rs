//! Rules of a site: the network of a frame, the side of an address, the permitted sources.

use std::net::IpAddr;

use appliance_common::maps::{Attachment, Mode, Network, network_flags};

use super::prefix;

use crate::packet::L2;
use crate::world::World;

/// The attachment and network of a frame.
pub(super) fn attachment_of<'w>(
    world: &'w World,
    ifindex: u32,
    l2: &L2,
) -> Option<(&'w Attachment, &'w Network)> {
    if l2.tags > 2 {
        return None;
    }
    let (outer, inner) = match l2.vids {
        [0, inner] => (inner, 0),
        [outer, inner] => (outer, inner),
    };
    let attachment = world.attachment(ifindex, outer, inner)?;
    Some((attachment, world.networks.get(attachment.network as usize)?))
}

pub(super) fn is_provider(network: &Network) -> bool {
    network.flags & network_flags::PROVIDER != 0
}

pub(super) fn is_encrypted(network: &Network) -> bool {
    network.flags & network_flags::SECURE != 0
}

pub(super) fn in_partial(world: &World, network: &Network) -> bool {
    world
        .tenants
        .get(network.tenant as usize)
        .is_some_and(|t| t.mode == Mode::Partial as u32)
}

pub(super) fn is_on_this_side(world: &World, network: &Network, address: IpAddr) -> bool {
    world.is_endpoint(network.vni, address) == is_provider(network)
}

pub(super) fn in_prefixes(network: &Network, address: IpAddr) -> bool {
    network.prefixes[..usize::from(network.prefix_count)]
        .iter()
        .any(|prefix| prefix::contains(prefix, address))
}

/// Addresses that no packet carried through a tunnel may have at either end.
pub(super) fn is_unroutable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            a.octets()[0] == 0 || a.octets()[0] >= 224 || a.is_loopback() || a.is_link_local()
        }
        IpAddr::V6(a) => {
            a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.segments()[0] & 0xffc0 == 0xfe80
                || a.to_ipv4_mapped().is_some()
        }
    }
}

/// Source here, destination on the given side; both routable.
pub(super) fn check_addresses(
    world: &World,
    network: &Network,
    src: IpAddr,
    dst: IpAddr,
    dst_there: bool,
) -> Result<(), String> {
    ensure!(!is_unroutable(src), "carried a packet from {src}");
    ensure!(!is_unroutable(dst), "carried a packet to {dst}");
    ensure!(
        is_on_this_side(world, network, src),
        "carried a packet from {src}, which is not an address of this side"
    );
    ensure!(
        is_on_this_side(world, network, dst) != dst_there,
        "{dst} is on the other side than the packet went"
    );
    Ok(())
}
