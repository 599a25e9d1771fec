//! The reference: given what the maps hold and a packet in, may this packet come out?
//!
//! Written from the RFCs and the semantics in ARCHITECTURE.md, sharing no code with the programs but
//! the layouts of the maps. It never says which packets must be answered or carried (the fixtures
//! do); it says that what leaves is well-formed, goes where it may go, and carries exactly the bytes
//! that came.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use appliance_common::{
    addr::{UNSPECIFIED, from_ip, to_ip},
    events::{NeighbourEventKind, SlowReason},
    maps::{Attachment, Mode, Neighbour, Network, Peer, TunnelKey, network_flags},
};

use crate::{
    harness::{Action, Record},
    packet::{self, L2, Mac, be16, be32, l2, mac_at, transport_checksum},
    world::{PORT, World},
};

/// Bytes of the offending packet that an ICMP error quotes, at most.
pub const QUOTE: usize = 512;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// To the kernel.
    Passed,
    /// Dropped.
    Dropped,
    /// An ARP reply.
    ArpReply,
    /// A neighbour advertisement.
    Advertisement,
    /// ICMP "fragmentation needed".
    FragNeeded,
    /// ICMPv6 "packet too big".
    PacketTooBig,
    /// Into a tunnel.
    Encapsulated,
    /// Out of a tunnel.
    Decapsulated,
    /// To a host of the same network.
    Hairpinned,
    /// To a worker, to be sealed.
    ToSeal,
    /// To a worker, to be opened.
    ToOpen,
    /// A handshake message, to the kernel.
    Handshake,
    /// Full failover: to a host of one of the tenant's networks.
    Routed,
    /// Full failover: an answer to a ping.
    EchoReply,
    /// Full failover: "time exceeded".
    TimeExceeded,
    /// Full failover: "unreachable".
    Unreachable,
}

impl Kind {
    /// All, in order.
    pub const ALL: [Self; 16] = [
        Self::Passed,
        Self::Dropped,
        Self::ArpReply,
        Self::Advertisement,
        Self::FragNeeded,
        Self::PacketTooBig,
        Self::Encapsulated,
        Self::Decapsulated,
        Self::Hairpinned,
        Self::ToSeal,
        Self::ToOpen,
        Self::Handshake,
        Self::Routed,
        Self::EchoReply,
        Self::TimeExceeded,
        Self::Unreachable,
    ];
}

/// An IP header as far as it can be trusted.
#[derive(Clone, Copy, Debug)]
struct Ip {
    src: IpAddr,
    dst: IpAddr,
    header: usize,
    proto: u8,
    /// Whole packet, header included.
    len: usize,
    /// Flags and fragment offset of IPv4; 0 for IPv6.
    frag: u16,
}

impl Ip {
    /// Reads and checks lengths: a packet whose lengths contradict the frame is `None`.
    fn parse(ethertype: u16, l3: &[u8]) -> Option<Self> {
        match ethertype {
            0x0800 => {
                let first = *l3.first()?;
                let header = usize::from(first & 0xf) * 4;
                if first >> 4 != 4 || header < 20 || l3.len() < header {
                    return None;
                }
                let len = usize::from(be16(l3, 2)?);
                if len < header || len > l3.len() {
                    return None;
                }
                Some(Self {
                    src: Ipv4Addr::new(l3[12], l3[13], l3[14], l3[15]).into(),
                    dst: Ipv4Addr::new(l3[16], l3[17], l3[18], l3[19]).into(),
                    header,
                    proto: l3[9],
                    len,
                    frag: be16(l3, 6)?,
                })
            }
            0x86dd => {
                if l3.len() < 40 || l3[0] >> 4 != 6 {
                    return None;
                }
                let len = 40 + usize::from(be16(l3, 4)?);
                if len > l3.len() {
                    return None;
                }
                let mut src = [0; 16];
                src.copy_from_slice(&l3[8..24]);
                let mut dst = [0; 16];
                dst.copy_from_slice(&l3[24..40]);
                Some(Self {
                    src: Ipv6Addr::from(src).into(),
                    dst: Ipv6Addr::from(dst).into(),
                    header: 40,
                    proto: l3[6],
                    len,
                    frag: 0,
                })
            }
            _ => None,
        }
    }
}

macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}

mod full;

/// Judges one run: `Err` says what must not be.
///
/// # Errors
///
/// The rule that was broken.
pub fn check(
    world: &World,
    ifindex: u32,
    input: &[u8],
    action: Action,
    output: &[u8],
) -> Result<Kind, String> {
    match action {
        Action::Drop => Ok(Kind::Dropped),
        Action::Pass => {
            ensure!(input == output, "passed, but changed");
            passed(world, input)
        }
        Action::Tx | Action::Redirect => match worker(world, ifindex, input, action, output)? {
            Some(kind) => Ok(kind),
            None => sent(world, ifindex, input, action, output),
        },
        Action::Aborted | Action::Unknown(_) => Err(format!("action {action:?}")),
    }
}

/// What the kernel gets: of what it would give to the daemon's socket, only handshake messages.
fn passed(world: &World, input: &[u8]) -> Result<Kind, String> {
    let Some(li) = l2(input) else {
        return Ok(Kind::Passed);
    };
    let Some(udp) = secure_datagram(world, input, &li) else {
        return Ok(Kind::Passed);
    };
    let message = behind_id(udp.get(8..).unwrap_or(&[]));
    let expected = match message.first() {
        // A gateway's message begins with eight zero bytes.
        Some(0) if message.get(..8) == Some(&[0; 8]) => 64,
        Some(1) => 148,
        Some(2) => 92,
        Some(3) => 64,
        kind => return Err(format!("a datagram of type {kind:?} reaches the daemon")),
    };
    ensure!(
        message.len() == expected && be16(udp, 4) == Some(udp.len() as u16),
        "a handshake or gateway's message of {} bytes reaches the daemon",
        message.len()
    );
    ensure!(
        message[1..4] == [0; 3],
        "a handshake message with reserved bytes reaches the daemon"
    );
    ensure!(
        input.get(li.l3) == Some(&0x45) || input.get(li.l3 + 6) == Some(&17),
        "a handshake message behind options or extension headers reaches the daemon"
    );
    Ok(Kind::Handshake)
}

/// The UDP datagram, header included, if the kernel's stack would give it to the daemon's socket, now or
/// with the fragments that follow it. UDP's checksum is not looked at.
fn secure_datagram<'p>(world: &World, input: &'p [u8], li: &L2) -> Option<&'p [u8]> {
    let config = &world.config;
    let i = Ip::parse(li.ethertype, &input[li.l3..])?;
    let local = if i.dst.is_ipv4() {
        config.local_v4
    } else {
        config.local_v6
    };
    if li.tags != 0 || config.secure_port == 0 || local == UNSPECIFIED || from_ip(i.dst) != local {
        return None;
    }
    if i.dst.is_ipv4() && i.frag & 0x1fff != 0 {
        return None;
    }
    let body = &input[li.l3..li.l3 + i.len];
    let (mut at, mut next) = (i.header, i.proto);
    while i.dst.is_ipv6() && next != 17 {
        match next {
            0 | 43 | 60 => {
                next = *body.get(at)?;
                at += 8 + 8 * usize::from(*body.get(at + 1)?);
            }
            44 => {
                if be16(body, at + 2)? & 0xfff8 != 0 {
                    return None;
                }
                next = *body.get(at)?;
                at += 8;
            }
            _ => return None,
        }
    }
    let udp = body.get(at..).filter(|udp| udp.len() >= 8)?;
    (next == 17 && be16(udp, 2)? == config.secure_port).then_some(udp)
}

/// Judges what goes to a worker; `None` is something else.
fn worker(
    world: &World,
    ifindex: u32,
    input: &[u8],
    action: Action,
    output: &[u8],
) -> Result<Option<Kind>, String> {
    let Some(li) = l2(input) else {
        return Ok(None);
    };
    let arrival = arrival(world, ifindex, &li);
    let i = Ip::parse(li.ethertype, &input[li.l3..]);
    // A host may send to our tunnels' ports through its tunnel, so the frame out says what it was taken for.
    let sealed = arrival.is_some_and(|(_, network)| {
        be32(output, 8) == Some(1 << 24 | network.vni)
            && i.is_some_and(|i| output.len() == 16 + i.len)
    });
    if !sealed {
        if let Some(udp) = secure_datagram(world, input, &li) {
            return to_open(world, input, &li, udp, action, output).map(Some);
        }
        if is_tunnel_datagram(world, input, &li) {
            return Ok(None);
        }
    }
    let (Some((attachment, network)), Some(i)) = (arrival, i) else {
        return Ok(None);
    };
    // What stays on this side, and what is answered, is as in any other network.
    if !secure(network) || action != Action::Redirect || here(world, network, i.dst) {
        return Ok(None);
    }
    ensure!(
        attachment.xsk != 0,
        "redirected, and the port has no socket"
    );
    ensure!(partial(world, network), "to be sealed while idle");
    ensure!(
        mac_at(input, 0) == attachment.mac,
        "to be sealed, and was not for us"
    );
    guard(world, network, i.src, i.dst, true)?;
    ensure!(
        i.len <= usize::from(network.mtu) || (i.dst.is_ipv4() && i.frag & 0x4000 == 0),
        "{} bytes to be sealed, over the MTU {}, which its source must be told",
        i.len,
        network.mtu
    );
    ensure!(
        output.len() == 16 + i.len,
        "{} bytes to be sealed, not {}",
        output.len(),
        16 + i.len
    );
    ensure!(
        output[..4] == attachment.network.to_ne_bytes(),
        "to be sealed for slot {:02x?}",
        &output[..4]
    );
    ensure!(
        be32(output, 8) == Some(1 << 24 | network.vni) && output[12..16] == [0; 4],
        "segment header {:02x?}",
        &output[8..16]
    );
    carried(&input[li.l3..li.l3 + i.len], &output[16..], network)?;
    Ok(Some(Kind::ToSeal))
}

/// A datagram without the circuit's id that may be in front: a type's third and fourth byte are zero, an id's are not.
fn behind_id(datagram: &[u8]) -> &[u8] {
    match datagram {
        [_, _, 0, 0, ..] => datagram,
        _ => datagram.get(8..).unwrap_or(&[]),
    }
}

/// A datagram to the encrypted tunnels' port, sent somewhere: to a worker, if it is a data message of a
/// session that it knows.
fn to_open(
    world: &World,
    input: &[u8],
    li: &L2,
    udp: &[u8],
    action: Action,
    output: &[u8],
) -> Result<Kind, String> {
    ensure!(action == Action::Redirect, "to be opened by {action:?}");
    ensure!(
        world.config.uplink_xsk != 0,
        "to be opened, and the uplink has no socket"
    );
    ensure!(input == output, "to be opened, but changed");
    // Else a worker could not tell it from a packet to be sealed.
    ensure!(
        matches!(li.ethertype, 0x0800 | 0x86dd) && li.l3 == 14,
        "to be opened, of type {:04x}",
        li.ethertype
    );
    let at = if li.ethertype == 0x0800 {
        ensure!(input[14] == 0x45, "to be opened, with IP options");
        ensure!(
            be16(input, 20).unwrap_or(0) & 0x3fff == 0,
            "a fragment to be opened"
        );
        34
    } else {
        ensure!(input[20] == 17, "to be opened, with extension headers");
        54
    };
    ensure!(input[at..].starts_with(udp), "another datagram");
    ensure!(
        be16(udp, 4) == Some(udp.len() as u16),
        "to be opened, with a UDP length that lies"
    );
    let message = behind_id(&udp[8..]);
    ensure!(message.len() >= 32, "{} bytes to be opened", message.len());
    ensure!(
        message[0] == 4 && message[1] < 2 && message[2..4] == [0, 0],
        "to be opened: {:02x?}",
        &message[..4]
    );
    let index = be32(message, 4).unwrap_or(0).swap_bytes();
    ensure!(
        world.sessions.contains(&index),
        "to be opened, of session {index:#x}"
    );
    Ok(Kind::ToOpen)
}

fn sent(
    world: &World,
    ifindex: u32,
    input: &[u8],
    action: Action,
    output: &[u8],
) -> Result<Kind, String> {
    let (Some(li), Some(lo)) = (l2(input), l2(output)) else {
        return Err("sent a frame without a whole Ethernet header".to_owned());
    };
    let arrival = arrival(world, ifindex, &li);
    if lo.ethertype == 0x0806 {
        ensure!(action == Action::Tx, "an ARP reply leaves by {action:?}");
        let (attachment, network) = arrival.ok_or("ARP reply on a port without a network")?;
        return arp_reply(world, input, &li, output, &lo, attachment, network);
    }
    let o = Ip::parse(lo.ethertype, &output[lo.l3..])
        .ok_or("sent something whose lengths contradict each other")?;
    let surplus = output.len() - lo.l3 - o.len;
    if let Some(peer) = peer_of(world, output, &lo, &o) {
        let (attachment, network) = arrival.ok_or("encapsulated from a port without a network")?;
        ensure!(surplus == 0, "encapsulated {surplus} bytes of padding");
        ensure!(
            (action == Action::Tx) == (peer.ifindex == ifindex),
            "towards interface {} by {action:?}",
            peer.ifindex
        );
        return encapsulated(world, input, &li, output, attachment, network, peer);
    }
    if is_tunnel_datagram(world, input, &li) {
        ensure!(surplus == 0, "decapsulated {surplus} bytes of padding");
        return decapsulated(world, ifindex, input, &li, action, output, &lo);
    }
    let (attachment, network) = arrival.ok_or("sent from a port without a network")?;
    let i = Ip::parse(li.ethertype, &input[li.l3..]).ok_or("answered a malformed packet")?;
    let solicited = (i.proto, input.get(li.l3 + 40)) == (58, Some(&135));
    if full::full(world, network) && !solicited {
        return full::Routed {
            world,
            attachment,
            network,
            ifindex,
            input,
            li: &li,
            i: &i,
            action,
            output,
            lo: &lo,
            o: &o,
        }
        .check();
    }
    if let Some(neighbour) = world.neighbour_of(network.vni, &from_ip(i.dst))
        && output.starts_with(&neighbour.l2[..12])
        && o.src == i.src
        && o.dst == i.dst
    {
        guard(world, network, i.src, i.dst, false)?;
        ensure!(partial(world, network), "hairpinned while idle");
        ensure!(
            mac_at(input, 0) == attachment.mac,
            "hairpinned a frame that was not for us"
        );
        // On the same link, so with whatever padding or trailer it had.
        delivered(
            neighbour,
            ifindex,
            action,
            li.ethertype,
            &input[li.l3..],
            output,
            None,
        )?;
        return Ok(Kind::Hairpinned);
    }
    ensure!(surplus == 0, "an answer with {surplus} bytes of padding");
    ensure!(action == Action::Tx, "an answer leaves by {action:?}");
    ensure!(
        partial(world, network) || full::full(world, network),
        "answered while idle"
    );
    ensure!(
        output[6..12] == attachment.mac,
        "an answer is not from our MAC"
    );
    ensure!(
        output[12..lo.l3] == input[12..li.l3],
        "an answer has other tags than the question"
    );
    match (o.proto, output.get(lo.l3 + o.header).copied()) {
        (1, Some(3)) => frag_needed(world, network, &li, input, &i, output, &lo, &o, attachment),
        (58, Some(2)) => too_big(world, network, &li, input, &i, output, &lo, &o, attachment),
        (58, Some(136)) => advertisement(
            world,
            network,
            &li,
            input,
            &i,
            output,
            &lo,
            &o,
            attachment.mac,
        ),
        _ => Err("sent something that is no answer, no tunnel datagram and no delivery".to_owned()),
    }
}

/// The attachment and network of a frame.
fn arrival<'w>(world: &'w World, ifindex: u32, l2: &L2) -> Option<(&'w Attachment, &'w Network)> {
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

fn provider(network: &Network) -> bool {
    network.flags & network_flags::PROVIDER != 0
}

fn secure(network: &Network) -> bool {
    network.flags & network_flags::SECURE != 0
}

fn partial(world: &World, network: &Network) -> bool {
    world
        .tenants
        .get(network.tenant as usize)
        .is_some_and(|t| t.mode == Mode::Partial as u32)
}

fn here(world: &World, network: &Network, address: IpAddr) -> bool {
    world.is_endpoint(network.vni, address) == provider(network)
}

fn in_prefixes(network: &Network, address: IpAddr) -> bool {
    let address = from_ip(address);
    network.prefixes[..usize::from(network.prefix_count)]
        .iter()
        .any(|p| p.contains(&address))
}

/// Addresses that no packet carried through a tunnel may have at either end.
fn unroutable(address: IpAddr) -> bool {
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

/// Source here, and destination on the side asked for; nothing unroutable.
fn guard(
    world: &World,
    network: &Network,
    src: IpAddr,
    dst: IpAddr,
    dst_there: bool,
) -> Result<(), String> {
    ensure!(!unroutable(src), "carried a packet from {src}");
    ensure!(!unroutable(dst), "carried a packet to {dst}");
    ensure!(
        here(world, network, src),
        "carried a packet from {src}, which is not an address of this side"
    );
    ensure!(
        here(world, network, dst) != dst_there,
        "{dst} is on the other side than the packet went"
    );
    Ok(())
}

/// The peer whose tunnel a sent frame belongs to.
fn peer_of<'w>(world: &'w World, output: &[u8], lo: &L2, o: &Ip) -> Option<&'w Peer> {
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

fn encapsulated(
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
        !secure(network),
        "encapsulated in the clear, for an encrypted network"
    );
    ensure!(partial(world, network), "encapsulated while idle");
    ensure!(
        mac_at(input, 0) == attachment.mac,
        "encapsulated a frame that was not for us"
    );
    guard(world, network, i.src, i.dst, true)?;
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
    carried(body, &output[inner + 14..], network)?;
    Ok(Kind::Encapsulated)
}

/// Every byte of a tunnel datagram's headers.
fn outer_header(output: &[u8], peer: &Peer, vni: u32, inner_len: usize) -> Result<(), String> {
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
fn is_tunnel_datagram(world: &World, input: &[u8], li: &L2) -> bool {
    tunnel_datagram(world, input, li).is_some()
}

/// The outer header and the offset of the UDP header.
fn tunnel_datagram(world: &World, input: &[u8], li: &L2) -> Option<(Ip, usize)> {
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

fn decapsulated(
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
        .ok_or("decapsulated a stranger's datagram")?;
    let network = &world.networks[tunnel.network as usize];
    ensure!(network.vni == vni, "the tunnel leads to another network");
    ensure!(
        !secure(network),
        "decapsulated in the clear, for an encrypted network"
    );
    ensure!(partial(world, network), "decapsulated while idle");
    let inner = &input[udp + 16..udp + udp_len];
    let ethertype = be16(inner, 12).ok_or("truncated inner frame")?;
    let i = Ip::parse(ethertype, &inner[14..]).ok_or("decapsulated a malformed inner packet")?;
    ensure!(!unroutable(i.src), "delivered a packet from {}", i.src);
    ensure!(!unroutable(i.dst), "delivered a packet to {}", i.dst);
    ensure!(
        !here(world, network, i.src),
        "delivered a packet from {}, an address of this side",
        i.src
    );
    ensure!(
        here(world, network, i.dst),
        "delivered a packet to {}, which is not on this side",
        i.dst
    );
    let hop = if provider(network) || in_prefixes(network, i.dst) {
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
    delivered(
        neighbour,
        ifindex,
        action,
        ethertype,
        &inner[14..14 + i.len],
        output,
        Some(network),
    )?;
    Ok(Kind::Decapsulated)
}

/// A frame to a neighbour: its header, then the packet.
fn delivered(
    neighbour: &Neighbour,
    ifindex: u32,
    action: Action,
    ethertype: u16,
    body: &[u8],
    output: &[u8],
    clamp: Option<&Network>,
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
        Some(network) => carried(body, &output[len..], network),
        None => {
            ensure!(body == &output[len..], "a hairpinned packet was changed");
            Ok(())
        }
    }
}

/// Inner bytes: as they came, or with the MSS of a SYN lowered to the network's and the TCP checksum
/// following it.
fn carried(body: &[u8], out: &[u8], network: &Network) -> Result<(), String> {
    if body == out {
        return Ok(());
    }
    ensure!(body.len() == out.len(), "carried another length");
    let (mss, check) = mss_of(body).ok_or("carried bytes were changed, and there is no MSS")?;
    let v6 = body[0] >> 4 == 6;
    let limit = network.mtu - if v6 { 60 } else { 40 };
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
    // Right stays right: the one's complement sum of the packet is what it was (RFC 1624).
    ensure!(
        sum_mod(body) == sum_mod(out),
        "the TCP checksum does not follow the MSS"
    );
    Ok(())
}

fn sum_mod(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|p| u64::from(p[0]) << 8 | u64::from(p.get(1).copied().unwrap_or(0)))
        .sum::<u64>()
        % 0xffff
}

/// Offsets of the MSS value and of the TCP checksum in an IP packet that is a SYN with that option.
#[must_use]
pub fn mss_of(body: &[u8]) -> Option<(usize, usize)> {
    let tcp = match body.first()? >> 4 {
        4 => {
            let header = usize::from(body[0] & 0xf) * 4;
            if *body.get(9)? != 6 || be16(body, 6)? & 0x1fff != 0 {
                return None;
            }
            header
        }
        6 => {
            let mut next = *body.get(6)?;
            let mut at = 40;
            loop {
                match next {
                    6 => break at,
                    0 | 43 | 60 => {
                        next = *body.get(at)?;
                        at += 8 + 8 * usize::from(*body.get(at + 1)?);
                    }
                    44 => {
                        if be16(body, at + 2)? & 0xfff8 != 0 {
                            return None;
                        }
                        next = *body.get(at)?;
                        at += 8;
                    }
                    51 => {
                        next = *body.get(at)?;
                        at += 8 + 4 * usize::from(*body.get(at + 1)?);
                    }
                    _ => return None,
                }
            }
        }
        _ => return None,
    };
    if body.get(tcp + 13)? & 2 == 0 {
        return None;
    }
    let end = tcp + usize::from(body[tcp + 12] >> 4) * 4;
    let mut at = tcp + 20;
    while at < end {
        match *body.get(at)? {
            0 => return None,
            1 => at += 1,
            2 => {
                return (*body.get(at + 1)? == 4 && at + 4 <= end && at + 4 <= body.len())
                    .then_some((at + 2, tcp + 16));
            }
            _ => {
                let len = usize::from(*body.get(at + 1)?);
                if len < 2 {
                    return None;
                }
                at += len;
            }
        }
    }
    None
}

/// Whether an ICMP error about this packet is allowed (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
fn may_answer(i: &Ip, l3: &[u8]) -> Result<(), String> {
    ensure!(!unroutable(i.src), "an ICMP error to {}", i.src);
    ensure!(
        !unroutable(i.dst),
        "an ICMP error about a packet to {}",
        i.dst
    );
    ensure!(
        i.frag & 0x1fff == 0,
        "an ICMP error about a fragment that is not the first"
    );
    let kind = l3.get(i.header).copied().unwrap_or(0);
    let error = match i.proto {
        1 if i.dst.is_ipv4() => matches!(kind, 3 | 4 | 5 | 11 | 12),
        58 if i.dst.is_ipv6() => kind < 128,
        _ => false,
    };
    ensure!(!error, "an ICMP error about an ICMP error");
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "what is known of both packets")]
fn frag_needed(
    world: &World,
    network: &Network,
    li: &L2,
    input: &[u8],
    i: &Ip,
    output: &[u8],
    lo: &L2,
    o: &Ip,
    attachment: &Attachment,
) -> Result<Kind, String> {
    let l3 = &input[li.l3..];
    may_answer(i, l3)?;
    guard(world, network, i.src, i.dst, true)?;
    ensure!(i.dst.is_ipv4(), "ICMP about IPv6");
    ensure!(
        i.len > usize::from(network.mtu),
        "frag needed about {} bytes",
        i.len
    );
    ensure!(i.frag & 0x4000 != 0, "frag needed without DF");
    ensure!(
        mac_at(input, 0) == attachment.mac,
        "about somebody else's frame"
    );
    ensure!(output[..6] == input[6..12], "frag needed to another MAC");
    ensure!(
        o.src == i.dst && o.dst == i.src,
        "frag needed from {} to {}",
        o.src,
        o.dst
    );
    ensure!(o.header == 20 && o.frag & 0x3fff == 0, "odd IPv4 header");
    let ip = &output[lo.l3..];
    ensure!(ip[8] >= 32, "frag needed with TTL {}", ip[8]);
    ensure!(packet::checksum(&ip[..20]) == 0, "IPv4 checksum is wrong");
    let icmp = &ip[20..o.len];
    ensure!(icmp[1] == 4, "code {}", icmp[1]);
    ensure!(packet::checksum(icmp) == 0, "ICMP checksum is wrong");
    ensure!(
        be32(icmp, 4) == Some(u32::from(network.mtu)),
        "next-hop MTU is {:?}",
        be32(icmp, 4)
    );
    quoted(l3, i, &icmp[8..])?;
    Ok(Kind::FragNeeded)
}

#[expect(clippy::too_many_arguments, reason = "what is known of both packets")]
fn too_big(
    world: &World,
    network: &Network,
    li: &L2,
    input: &[u8],
    i: &Ip,
    output: &[u8],
    lo: &L2,
    o: &Ip,
    attachment: &Attachment,
) -> Result<Kind, String> {
    let l3 = &input[li.l3..];
    may_answer(i, l3)?;
    guard(world, network, i.src, i.dst, true)?;
    ensure!(i.dst.is_ipv6(), "ICMPv6 about IPv4");
    ensure!(
        i.len > usize::from(network.mtu),
        "packet too big about {} bytes",
        i.len
    );
    ensure!(
        mac_at(input, 0) == attachment.mac,
        "about somebody else's frame"
    );
    ensure!(output[..6] == input[6..12], "packet too big to another MAC");
    ensure!(
        o.src == i.dst && o.dst == i.src,
        "packet too big from {} to {}",
        o.src,
        o.dst
    );
    let ip = &output[lo.l3..];
    ensure!(ip[7] >= 32, "packet too big with hop limit {}", ip[7]);
    let icmp = &ip[40..o.len];
    ensure!(icmp[1] == 0, "code {}", icmp[1]);
    ensure!(
        transport_checksum(o.src, o.dst, 58, icmp) == 0,
        "ICMPv6 checksum is wrong"
    );
    ensure!(
        be32(icmp, 4) == Some(u32::from(network.mtu)),
        "MTU is {:?}",
        be32(icmp, 4)
    );
    quoted(l3, i, &icmp[8..])?;
    Ok(Kind::PacketTooBig)
}

fn quoted(l3: &[u8], i: &Ip, quote: &[u8]) -> Result<(), String> {
    ensure!(
        quote.len() == i.len.min(QUOTE),
        "quotes {} bytes of {}",
        quote.len(),
        i.len
    );
    ensure!(l3.starts_with(quote), "quotes other bytes than it was sent");
    Ok(())
}

/// The link-local address that a MAC address makes (RFC 4291 appendix A).
fn link_local_of(mac: [u8; 6]) -> IpAddr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
    .into()
}

/// Whether requests for `target` are ours to answer.
fn answers_for(
    world: &World,
    network: &Network,
    target: IpAddr,
    probe: bool,
) -> Result<(), String> {
    let endpoint = world.is_endpoint(network.vni, target);
    if full::full(world, network) {
        let gateway =
            from_ip(target) == network.gateway_v4 || from_ip(target) == network.gateway_v6;
        ensure!(gateway, "answered for {target}, which is not the gateway");
        return Ok(());
    }
    if !provider(network) {
        ensure!(endpoint, "answered for {target}, which is not failed over");
        return Ok(());
    }
    ensure!(!endpoint, "answered for {target}, which is here");
    let gateway = from_ip(target) == network.gateway_v4 || from_ip(target) == network.gateway_v6;
    ensure!(
        gateway || in_prefixes(network, target),
        "answered for {target}, outside the network"
    );
    ensure!(!probe || gateway, "answered a probe for {target}");
    let edge = network.prefixes[..usize::from(network.prefix_count)]
        .iter()
        .any(|p| p.is_v4_network_or_broadcast(&from_ip(target)));
    ensure!(!edge, "answered for {target}, which no host has");
    Ok(())
}

fn arp_reply(
    world: &World,
    input: &[u8],
    li: &L2,
    output: &[u8],
    lo: &L2,
    attachment: &Attachment,
    network: &Network,
) -> Result<Kind, String> {
    ensure!(li.ethertype == 0x0806, "ARP in answer to something else");
    ensure!(
        partial(world, network) || full::full(world, network),
        "answered ARP while idle"
    );
    let (Some(q), Some(r)) = (input.get(li.l3..li.l3 + 28), output.get(lo.l3..lo.l3 + 28)) else {
        return Err("truncated ARP".to_owned());
    };
    ensure!(
        q[..8] == [0, 1, 8, 0, 6, 4, 0, 1],
        "answered what is no ARP request"
    );
    ensure!(r[..8] == [0, 1, 8, 0, 6, 4, 0, 2], "not an ARP reply");
    ensure!(
        input.len() == output.len(),
        "an ARP reply of another length"
    );
    ensure!(
        output[lo.l3 + 28..] == input[li.l3 + 28..],
        "the padding changed"
    );
    ensure!(output[..6] == q[8..14], "ARP reply to another MAC");
    ensure!(
        output[6..12] == attachment.mac,
        "ARP reply from another MAC"
    );
    ensure!(
        output[12..lo.l3] == input[12..li.l3],
        "ARP reply with other tags"
    );
    ensure!(r[8..14] == attachment.mac, "ARP reply names another MAC");
    ensure!(r[14..18] == q[24..28], "ARP reply for another address");
    ensure!(r[18..28] == q[8..18], "ARP reply to another host");
    let target = Ipv4Addr::new(q[24], q[25], q[26], q[27]);
    let sender = Ipv4Addr::new(q[14], q[15], q[16], q[17]);
    let probe = sender.is_unspecified() || sender == target;
    answers_for(world, network, target.into(), probe)?;
    Ok(Kind::ArpReply)
}

#[expect(clippy::too_many_arguments, reason = "what is known of both packets")]
fn advertisement(
    world: &World,
    network: &Network,
    li: &L2,
    input: &[u8],
    i: &Ip,
    output: &[u8],
    lo: &L2,
    o: &Ip,
    mac: Mac,
) -> Result<Kind, String> {
    let q = &input[li.l3..li.l3 + i.len];
    ensure!(
        i.proto == 58 && q[7] == 255 && q.len() >= 64 && q[40] == 135 && q[41] == 0,
        "an advertisement in answer to no solicitation"
    );
    let mut target = [0; 16];
    target.copy_from_slice(&q[48..64]);
    let target: IpAddr = Ipv6Addr::from(target).into();
    let probe = to_ip(&UNSPECIFIED) == i.src;
    let own = full::full(world, network) && target == link_local_of(mac);
    if !own {
        answers_for(world, network, target, probe)?;
    }
    ensure!(
        transport_checksum(i.src, i.dst, 58, &q[40..]) == 0,
        "answered a solicitation with a wrong checksum"
    );
    let r = &output[lo.l3..];
    ensure!(r[7] == 255, "an advertisement with hop limit {}", r[7]);
    ensure!(o.len == 72, "an advertisement of {} bytes", o.len);
    ensure!(
        transport_checksum(o.src, o.dst, 58, &r[40..72]) == 0,
        "the advertisement's checksum is wrong"
    );
    ensure!(o.src == target, "an advertisement from {}", o.src);
    let all_nodes: IpAddr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into();
    if probe {
        ensure!(o.dst == all_nodes, "a probe answered to {}", o.dst);
        ensure!(
            output[..6] == [0x33, 0x33, 0, 0, 0, 1],
            "a probe answered to one MAC"
        );
    } else {
        ensure!(o.dst == i.src, "an advertisement to {}", o.dst);
        ensure!(output[0] & 1 == 0, "an advertisement to a group's MAC");
    }
    ensure!(r[41] == 0, "code {}", r[41]);
    let router = own || provider(network) && from_ip(target) == network.gateway_v6;
    let flags = 0x20 | if probe { 0 } else { 0x40 } | if router { 0x80 } else { 0 };
    ensure!(
        r[44] == flags && r[45..48] == [0, 0, 0],
        "flags {:02x?}, not {flags:02x}",
        &r[44..48]
    );
    ensure!(r[48..64] == q[48..64], "an advertisement of another target");
    ensure!(
        r[64..66] == [2, 1] && r[66..72] == mac,
        "no target link-layer address of ours"
    );
    Ok(Kind::Advertisement)
}

/// Judges a record of the rings.
///
/// # Errors
///
/// The rule that was broken.
pub fn check_record(world: &World, record: &Record) -> Result<(), String> {
    match record {
        Record::Garbage(ring, bytes) => Err(format!("{} bytes in {ring}", bytes.len())),
        Record::Neighbour(event) => {
            let attachment = world
                .attachment(event.ifindex, event.outer, event.inner)
                .ok_or("heard on a port without a network")?;
            let network = &world.networks[attachment.network as usize];
            ensure!(network.vni == event.vni, "heard in another network");
            ensure!(
                NeighbourEventKind::from_u16(event.kind).is_some(),
                "kind {}",
                event.kind
            );
            ensure!(event.reserved == 0, "reserved {}", event.reserved);
            ensure!(
                event.mac[0] & 1 == 0 && event.mac != [0; 6],
                "heard from {:02x?}",
                event.mac
            );
            let address = to_ip(&event.address);
            let odd = match address {
                IpAddr::V4(a) => a.is_unspecified() || a.octets()[0] >= 224,
                IpAddr::V6(a) => a.is_unspecified() || a.is_multicast(),
            };
            ensure!(!odd, "heard {address}");
            Ok(())
        }
        Record::Slow(header, frame) => {
            let slot = world
                .slot(header.vni)
                .ok_or("a slow packet of no network")?;
            let network = &world.networks[slot];
            let full = full::full(world, network);
            ensure!(partial(world, network) || full, "a slow packet while idle");
            let l3 = usize::from(header.l3);
            let ethertype = if l3 >= 2 { be16(frame, l3 - 2) } else { None };
            let i = ethertype
                .and_then(|t| Ip::parse(t, frame.get(l3..)?))
                .ok_or("a slow packet that is malformed")?;
            match SlowReason::from_u16(header.reason) {
                Some(SlowReason::Split) => {
                    ensure!(
                        !secure(network) && i.dst.is_ipv4() && i.frag & 0x4000 == 0,
                        "to be split, and must not be"
                    );
                    ensure!(
                        i.len > usize::from(network.mtu),
                        "to be split, of {} bytes",
                        i.len
                    );
                    guard(world, network, i.src, i.dst, true)
                }
                Some(SlowReason::Unresolved) => {
                    ensure!(!unroutable(i.src) && !unroutable(i.dst), "unroutable");
                    if full {
                        ensure!(
                            header.next_hop == from_ip(i.dst)
                                && full::may_come(world, network, i.src, i.dst),
                            "waits for {}, where it may not go",
                            i.dst
                        );
                        return Ok(());
                    }
                    ensure!(
                        here(world, network, i.dst),
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
                            || (!provider(network) && header.next_hop == gateway),
                        "waits for {}",
                        to_ip(&header.next_hop)
                    );
                    Ok(())
                }
                Some(SlowReason::RouterSolicitation) => {
                    ensure!(full, "a router is wanted, and there is none");
                    let kind = frame.get(l3 + 40).copied();
                    ensure!(
                        frame.get(l3 + 7) == Some(&255) && kind == Some(133),
                        "no router solicitation"
                    );
                    Ok(())
                }
                Some(SlowReason::UplinkUnresolved | SlowReason::Fragment) | None => {
                    Err(format!("reason {}", header.reason))
                }
            }
        }
    }
}
