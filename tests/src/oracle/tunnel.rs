//! VXLAN tunnels: encapsulated and decapsulated packets, and packets delivered to a host.

use appliance_common::addr::{UNSPECIFIED, from_ip};
use appliance_common::maps::{Attachment, Neighbour, Network, Peer, TunnelKey};

use super::Kind;
use super::ip::{Ip, mss_of};
use super::site::{
    check_addresses, in_partial, in_prefixes, is_encrypted, is_on_this_side, is_provider,
    is_unroutable,
};

use crate::harness::Action;
use crate::packet::{self, L2, be16, be32, mac_at};
use crate::world::{PORT, World};

/// The peer whose tunnel a sent frame belongs to.
pub(super) fn peer_of<'w>(world: &'w World, output: &[u8], lo: &L2, o: &Ip) -> Option<&'w Peer> {
    if o.proto != 17 || be16(output, lo.l3 + o.header + 2) != Some(PORT) {
        return None;
    }
    world.peers.iter().find(|peer| {
        let addresses = if peer.header_len == 50 {
            26..34
        } else {
            22..54
        };
        output.len() >= usize::from(peer.header_len)
            && output[..14] == peer.header[..14]
            && output[addresses.clone()] == peer.header[addresses]
    })
}

pub(super) fn check_encapsulated(
    world: &World,
    input: &[u8],
    li: &L2,
    output: &[u8],
    attachment: &Attachment,
    network: &Network,
    peer: &Peer,
) -> Result<Kind, String> {
    let i = Ip::parse(li.ethertype, &input[li.l3..]).ok_or("encapsulated a malformed packet")?;
    let body = &input[li.l3..li.l3 + i.len];
    ensure!(
        !is_encrypted(network),
        "encapsulated in the clear, for an encrypted network"
    );
    ensure!(in_partial(world, network), "encapsulated while idle");
    ensure!(
        mac_at(input, 0) == attachment.mac,
        "encapsulated a frame that was not for us"
    );
    check_addresses(world, network, i.src, i.dst, true)?;
    ensure!(
        i.len <= usize::from(network.mtu),
        "encapsulated {} bytes over the MTU {}",
        i.len,
        network.mtu
    );
    let own_peer = world.peers.get(network.peer as usize);
    ensure!(own_peer == Some(peer), "sent to another network's peer");
    outer_header(output, peer, network.vni, i.len)?;
    let inner = usize::from(peer.header_len);
    ensure!(
        be16(output, inner + 12) == Some(li.ethertype),
        "the inner frame has another type"
    );
    ensure!(
        output[inner] & 1 == 0 && output[inner + 6] & 1 == 0,
        "an inner MAC is a group's"
    );
    check_carried(body, &output[inner + 14..], network.mtu)?;
    Ok(Kind::Encapsulated)
}

/// Every byte of a tunnel datagram's headers.
pub(super) fn outer_header(
    output: &[u8],
    peer: &Peer,
    vni: u32,
    inner_len: usize,
) -> Result<(), String> {
    let udp_len = 8 + 8 + 14 + inner_len;
    let udp = if peer.header_len == 50 {
        ensure!(output[14] == 0x45, "outer IPv4 header has options");
        ensure!(
            be16(output, 16) == Some((20 + udp_len) as u16),
            "outer total length is wrong"
        );
        ensure!(
            packet::checksum(&output[14..34]) == 0,
            "outer IPv4 checksum is wrong"
        );
        ensure!(output[20..22] == [0x40, 0], "outer DF is not set");
        ensure!(output[22] == 64, "outer TTL is {}", output[22]);
        34
    } else {
        ensure!(output[14] == 0x60, "outer IPv6 version or class is wrong");
        ensure!(
            be16(output, 18) == Some(udp_len as u16),
            "outer payload length is wrong"
        );
        ensure!(output[21] == 64, "outer hop limit is {}", output[21]);
        54
    };
    let source = be16(output, udp).unwrap_or(0);
    ensure!(source >= 49152, "outer source port {source}");
    ensure!(
        be16(output, udp + 4) == Some(udp_len as u16),
        "outer UDP length is wrong"
    );
    ensure!(
        output[udp + 6..udp + 8] == [0, 0],
        "outer UDP checksum is not zero"
    );
    ensure!(
        output[udp + 8..udp + 12] == [8, 0, 0, 0],
        "VXLAN flags or reserved bits are wrong"
    );
    ensure!(
        be32(output, udp + 12) == Some(vni << 8),
        "VNI or reserved bits are wrong"
    );
    ensure!(
        output.len() == udp + udp_len,
        "the datagram is followed by other bytes"
    );
    Ok(())
}

/// Whether a frame is a UDP datagram to our tunnel port and address.
pub(super) fn is_tunnel_datagram(world: &World, input: &[u8], li: &L2) -> bool {
    tunnel_datagram(world, input, li).is_some()
}

/// The outer header and the offset of the UDP header.
pub(super) fn tunnel_datagram(world: &World, input: &[u8], li: &L2) -> Option<(Ip, usize)> {
    let i = Ip::parse(li.ethertype, &input[li.l3..])?;
    let local = if i.dst.is_ipv4() {
        world.config.local_v4
    } else {
        world.config.local_v6
    };
    let udp = li.l3 + i.header;
    (li.tags == 0
        && i.proto == 17
        && i.frag & 0x3fff == 0
        && local != UNSPECIFIED
        && from_ip(i.dst) == local
        && be16(input, udp + 2) == Some(PORT))
    .then_some((i, udp))
}

pub(super) fn check_decapsulated(
    world: &World,
    ifindex: u32,
    input: &[u8],
    li: &L2,
    action: Action,
    output: &[u8],
    lo: &L2,
) -> Result<Kind, String> {
    let (outer, udp) = tunnel_datagram(world, input, li).ok_or("no tunnel datagram")?;
    let udp_len = usize::from(be16(input, udp + 4).ok_or("truncated UDP")?);
    ensure!(
        udp_len >= 8 + 8 + 14 && udp + udp_len <= li.l3 + outer.len,
        "decapsulated a datagram whose UDP length is wrong"
    );
    ensure!(
        input[udp + 8] & 8 != 0,
        "decapsulated a datagram without a valid VNI"
    );
    let vni = be32(input, udp + 12).ok_or("truncated VXLAN")? >> 8;
    let key = TunnelKey {
        vni,
        peer: from_ip(outer.src),
    };
    let tunnel = world
        .tunnels
        .iter()
        .find_map(|(k, v)| (*k == key).then_some(v))
        .ok_or("decapsulated a datagram of an unknown peer")?;
    let network = &world.networks[tunnel.network as usize];
    ensure!(network.vni == vni, "the tunnel leads to another network");
    ensure!(
        !is_encrypted(network),
        "decapsulated in the clear, for an encrypted network"
    );
    ensure!(in_partial(world, network), "decapsulated while idle");
    let inner = &input[udp + 16..udp + udp_len];
    let ethertype = be16(inner, 12).ok_or("truncated inner frame")?;
    let i = Ip::parse(ethertype, &inner[14..]).ok_or("decapsulated a malformed inner packet")?;
    ensure!(!is_unroutable(i.src), "delivered a packet from {}", i.src);
    ensure!(!is_unroutable(i.dst), "delivered a packet to {}", i.dst);
    ensure!(
        !is_on_this_side(world, network, i.src),
        "delivered a packet from {}, an address of this side",
        i.src
    );
    ensure!(
        is_on_this_side(world, network, i.dst),
        "delivered a packet to {}, which is not on this side",
        i.dst
    );
    ensure!(
        i.len <= usize::from(network.lan_mtu),
        "delivered a packet over the MTU {} of its LAN",
        network.lan_mtu
    );
    let hop = if is_provider(network) || in_prefixes(network, i.dst) {
        from_ip(i.dst)
    } else if i.dst.is_ipv4() {
        network.gateway_v4
    } else {
        network.gateway_v6
    };
    let neighbour = world
        .neighbour_of(vni, &hop)
        .ok_or("delivered to a host without a neighbour entry")?;
    let _ = lo;
    check_delivered(
        neighbour,
        ifindex,
        action,
        ethertype,
        &inner[14..14 + i.len],
        output,
        Some(network.mtu),
    )?;
    Ok(Kind::Decapsulated)
}

/// A frame to a neighbour: its header, then the packet.
pub(super) fn check_delivered(
    neighbour: &Neighbour,
    ifindex: u32,
    action: Action,
    ethertype: u16,
    body: &[u8],
    output: &[u8],
    clamp: Option<u16>,
) -> Result<(), String> {
    let len = usize::from(neighbour.l2_len);
    ensure!(
        (action == Action::Tx) == (neighbour.ifindex == ifindex),
        "towards interface {} by {action:?}",
        neighbour.ifindex
    );
    ensure!(output.len() == len + body.len(), "delivered another length");
    ensure!(
        output[..len - 2] == neighbour.l2[..len - 2],
        "the Ethernet header is not the neighbour's"
    );
    ensure!(
        be16(output, len - 2) == Some(ethertype),
        "the Ethernet type is wrong"
    );
    match clamp {
        Some(mtu) => check_carried(body, &output[len..], mtu),
        None => {
            ensure!(body == &output[len..], "a hairpinned packet was changed");
            Ok(())
        }
    }
}

/// Inner bytes: unchanged, or the MSS of a SYN lowered to that of `mtu` with an adjusted TCP
/// checksum.
pub(super) fn check_carried(body: &[u8], out: &[u8], mtu: u16) -> Result<(), String> {
    if body == out {
        return Ok(());
    }
    ensure!(body.len() == out.len(), "carried another length");
    let (mss, check) = mss_of(body).ok_or("carried bytes were changed, and there is no MSS")?;
    let v6 = body[0] >> 4 == 6;
    let limit = mtu - if v6 { 60 } else { 40 };
    let old = be16(body, mss).unwrap_or(0);
    let new = be16(out, mss).unwrap_or(0);
    ensure!(
        new == limit && old > limit,
        "the MSS went from {old} to {new}; the limit is {limit}"
    );
    for (at, (a, b)) in body.iter().zip(out).enumerate() {
        ensure!(
            a == b || (mss..mss + 2).contains(&at) || (check..check + 2).contains(&at),
            "carried byte {at} was changed"
        );
    }
    // A right checksum stays right: the one's complement sum of the packet is unchanged (RFC 1624).
    ensure!(
        sum_mod(body) == sum_mod(out),
        "the TCP checksum does not follow the MSS"
    );
    Ok(())
}

pub(super) fn sum_mod(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|p| u64::from(p[0]) << 8 | u64::from(p.get(1).copied().unwrap_or(0)))
        .sum::<u64>()
        % 0xffff
}
