//! Packets of the sequences.

use std::net::IpAddr;

use super::super::Step;
use super::tcp::segment;
use super::{FlowPath, Left, Right, Side, Transport};

use crate::nat::End;
use crate::packet::tcp_flags::{ACK, SYN};
use crate::packet::{checksum, icmp, icmp_message, ip_packet, udp};

/// A packet that a side sends.
pub(super) fn packet(carrier: Transport, path: &FlowPath, side: Side, len: usize) -> Vec<u8> {
    let (from, to) = path.sends(side);
    between(carrier, side, from, to, len)
}

/// The same packet as the other side receives it.
pub(super) fn received(carrier: Transport, path: &FlowPath, side: Side) -> Vec<u8> {
    let (from, to) = path.receives(side);
    between(carrier, side.other(), from, to, 40)
}

pub(super) fn between(carrier: Transport, side: Side, from: End, to: End, len: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
    match carrier {
        Transport::Udp => udp(from.0, to.0, from.1, to.1, &data),
        Transport::Tcp => segment(
            from,
            to,
            SYN | if side == Right { ACK } else { 0 },
            1,
            0,
            &[],
            0,
        ),
        Transport::Icmp => {
            let kind = match (side, from.0.is_ipv4()) {
                (Left, true) => 8,
                (Left, false) => 128,
                (Right, true) => 0,
                (Right, false) => 129,
            };
            let id = if side == Left { from.1 } else { to.1 };
            let mut rest = id.to_be_bytes().to_vec();
            rest.extend_from_slice(&[0, 7]);
            rest.extend_from_slice(&data);
            icmp(from.0, to.0, kind, 0, &rest)
        }
    }
}

pub(super) fn send_step(carrier: Transport, path: &FlowPath, side: Side, len: usize) -> Step {
    Step::Send(path.node(side), vec![packet(carrier, path, side, len)])
}

/// An ICMP error of a type and code with this quote. Its MTU field, if any, is 1400.
pub(super) fn error(from: IpAddr, to: IpAddr, (kind, code): (u8, u8), quote: &[u8]) -> Vec<u8> {
    let mut rest = match (from.is_ipv4(), kind, code) {
        (true, 3, 4) | (false, 2, _) => vec![0, 0, 5, 120],
        (true, 5, _) => vec![198, 18, 0, 9],
        (true, 12, _) => vec![8, 0, 0, 0],
        (false, 4, _) => vec![0, 0, 0, 6],
        _ => vec![0; 4],
    };
    rest.extend_from_slice(quote);
    let message = icmp_message(from, to, kind, code, &rest);
    ip_packet(from, to, if from.is_ipv4() { 1 } else { 58 }, &message)
}

/// Fragments of an IP packet with `each` bytes behind their IP headers, a multiple of eight; the
/// last with the rest.
pub(super) fn cut(l3: &[u8], each: usize, id: u16) -> Vec<Vec<u8>> {
    let v4 = l3[0] >> 4 == 4;
    let body = &l3[if v4 { 20 } else { 40 }..];
    let mut out = Vec::new();
    for (i, piece) in body.chunks(each).enumerate() {
        let (at, more) = (i * each, (i + 1) * each < body.len());
        if v4 {
            let mut fragment = l3[..20].to_vec();
            fragment[2..4].copy_from_slice(&((20 + piece.len()) as u16).to_be_bytes());
            fragment[4..6].copy_from_slice(&id.to_be_bytes());
            let field = (at / 8) as u16 | if more { 0x2000 } else { 0 };
            fragment[6..8].copy_from_slice(&field.to_be_bytes());
            fragment.extend_from_slice(piece);
            fix_checksum(&mut fragment);
            out.push(fragment);
        } else {
            let mut fragment = l3[..40].to_vec();
            fragment[4..6].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
            fragment[6] = 44;
            fragment.extend_from_slice(&[l3[6], 0]);
            fragment.extend_from_slice(&(at as u16 | u16::from(more)).to_be_bytes());
            fragment.extend_from_slice(&u32::from(id).to_be_bytes());
            fragment.extend_from_slice(piece);
            out.push(fragment);
        }
    }
    out
}

/// Makes the checksum of an IPv4 header right.
pub(super) fn fix_checksum(l3: &mut [u8]) {
    let header = usize::from(l3[0] & 15) * 4;
    l3[10..12].fill(0);
    let check = checksum(&l3[..header]);
    l3[10..12].copy_from_slice(&check.to_be_bytes());
}

pub(super) fn set_hops(l3: &mut [u8], hops: u8) {
    if l3[0] >> 4 == 4 {
        l3[8] = hops;
        fix_checksum(l3);
    } else {
        l3[7] = hops;
    }
}
