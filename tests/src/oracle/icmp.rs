//! ICMP errors about packets that are too long for the tunnel.

use appliance_common::maps::{Attachment, Network};

use super::Kind;
use super::ip::Ip;
use super::site::{check_addresses, is_unroutable};

use crate::packet::{self, L2, be32, mac_at, transport_checksum};
use crate::world::World;

/// Bytes of the offending packet that an ICMP error quotes, at most.
pub const QUOTE: usize = 512;

/// Whether an ICMP error about this packet is allowed (RFC 1122 section 3.2.2, RFC 4443 section
/// 2.4).
pub(super) fn may_answer(i: &Ip, l3: &[u8]) -> Result<(), String> {
    ensure!(!is_unroutable(i.src), "an ICMP error to {}", i.src);
    ensure!(
        !is_unroutable(i.dst),
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

#[expect(clippy::too_many_arguments, reason = "both packets, parsed")]
pub(super) fn frag_needed(
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
    check_addresses(world, network, i.src, i.dst, true)?;
    ensure!(i.dst.is_ipv4(), "ICMP about IPv6");
    ensure!(
        i.len > usize::from(network.mtu),
        "frag needed about {} bytes",
        i.len
    );
    ensure!(i.frag & 0x4000 != 0, "frag needed without DF");
    ensure!(
        mac_at(input, 0) == attachment.mac,
        "about a frame for another host"
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
    check_quote(l3, i, &icmp[8..])?;
    Ok(Kind::FragNeeded)
}

#[expect(clippy::too_many_arguments, reason = "both packets, parsed")]
pub(super) fn too_big(
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
    check_addresses(world, network, i.src, i.dst, true)?;
    ensure!(i.dst.is_ipv6(), "ICMPv6 about IPv4");
    ensure!(
        i.len > usize::from(network.mtu),
        "packet too big about {} bytes",
        i.len
    );
    ensure!(
        mac_at(input, 0) == attachment.mac,
        "about a frame for another host"
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
    check_quote(l3, i, &icmp[8..])?;
    Ok(Kind::PacketTooBig)
}

pub(super) fn check_quote(l3: &[u8], i: &Ip, quote: &[u8]) -> Result<(), String> {
    ensure!(
        quote.len() == i.len.min(QUOTE),
        "quotes {} bytes of {}",
        quote.len(),
        i.len
    );
    ensure!(l3.starts_with(quote), "quotes other bytes than it was sent");
    Ok(())
}
