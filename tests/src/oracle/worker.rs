//! Datagrams of encrypted tunnels: to a worker, to be sealed or opened, or to the daemon.

use appliance_common::addr::{UNSPECIFIED, from_ip};

use super::Kind;
use super::ip::Ip;
use super::site::{attachment_of, check_addresses, in_partial, is_encrypted, is_on_this_side};
use super::tunnel::{check_carried, is_tunnel_datagram};

use crate::harness::Action;
use crate::packet::{L2, be16, be32, l2, mac_at};
use crate::world::World;

/// Checks a packet passed to the kernel: the daemon's socket may get handshake messages only.
pub(super) fn check_passed(world: &World, input: &[u8]) -> Result<Kind, String> {
    let Some(li) = l2(input) else {
        return Ok(Kind::Passed);
    };
    let Some(udp) = secure_datagram(world, input, &li) else {
        return Ok(Kind::Passed);
    };
    let message = after_circuit_id(udp.get(8..).unwrap_or(&[]));
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

/// The UDP datagram, header included, if the kernel's stack would give it to the daemon's socket,
/// now or with the fragments that follow it. UDP's checksum is not looked at.
pub(super) fn secure_datagram<'p>(world: &World, input: &'p [u8], li: &L2) -> Option<&'p [u8]> {
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

/// Checks a packet sent to a worker; `None` means that it was not sent to one.
pub(super) fn check_worker(
    world: &World,
    ifindex: u32,
    input: &[u8],
    action: Action,
    output: &[u8],
) -> Result<Option<Kind>, String> {
    let Some(li) = l2(input) else {
        return Ok(None);
    };
    let arrival = attachment_of(world, ifindex, &li);
    let i = Ip::parse(li.ethertype, &input[li.l3..]);
    // A host may send to our tunnels' ports through its tunnel; the sent frame distinguishes the
    // two.
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
    // Packets that stay on this side, and answers, are as in any other network.
    if !is_encrypted(network)
        || action != Action::Redirect
        || is_on_this_side(world, network, i.dst)
    {
        return Ok(None);
    }
    ensure!(
        attachment.xsk != 0,
        "redirected, and the port has no socket"
    );
    ensure!(in_partial(world, network), "to be sealed while idle");
    ensure!(
        mac_at(input, 0) == attachment.mac,
        "to be sealed, and was not for us"
    );
    check_addresses(world, network, i.src, i.dst, true)?;
    ensure!(
        i.len <= usize::from(network.mtu) || (i.dst.is_ipv4() && i.frag & 0x4000 == 0),
        "{} bytes to be sealed, over the MTU {}, which must be reported to its source",
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
    check_carried(&input[li.l3..li.l3 + i.len], &output[16..], network.mtu)?;
    Ok(Some(Kind::ToSeal))
}

/// A datagram without the circuit's id that may be in front: a type's third and fourth byte are
/// zero, an id's are not.
pub(super) fn after_circuit_id(datagram: &[u8]) -> &[u8] {
    match datagram {
        [_, _, 0, 0, ..] => datagram,
        _ => datagram.get(8..).unwrap_or(&[]),
    }
}

/// A datagram to the encrypted tunnels' port, sent somewhere: to a worker, if it is a data message
/// of a session that it knows.
pub(super) fn to_open(
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
    // A worker must be able to distinguish it from a packet to seal.
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
    let message = after_circuit_id(&udp[8..]);
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
