//! Output in a form that can be compared: external ports by the name that the sequence has for
//! them, fragments put together, the router's own errors cut to the compared fields.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Node, Out};

use crate::packet::{checksum, ip};
use crate::world::{NAT4, NAT6};

/// The first name of a port that is another endpoint's, too: the second endpoint's name. Sequences
/// use it to answer that.
pub const SECOND: u16 = 61_000;

/// Protocol, address, port.
type Endpoint = (u8, IpAddr, u16);

/// The names that a sequence has for external ports: the endpoint's own port, if no other has that
/// name yet.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    of: BTreeMap<Endpoint, u16>,
    used: BTreeSet<(u8, bool, u16)>,
}

impl Symbols {
    pub(super) fn of(&mut self, packet: &[u8]) -> Option<u16> {
        let view = View::of(packet)?;
        let (address, at) = view.source?;
        let inner = (view.protocol, address, be16(packet, at));
        if let Some(symbol) = self.of.get(&inner) {
            return Some(*symbol);
        }
        let mut symbol = inner.2;
        let mut next = SECOND;
        while !self.used.insert((view.protocol, address.is_ipv6(), symbol)) {
            symbol = next;
            next += 1;
        }
        self.of.insert(inner, symbol);
        Some(symbol)
    }
}

/// The external ports that one side has given to names.
#[derive(Debug, Default)]
pub(super) struct Names {
    actual: BTreeMap<Endpoint, u16>,
    symbol: BTreeMap<Endpoint, u16>,
}

impl Names {
    /// The output for `sent`, with the sequence's names and in order; `symbol` is the name of the
    /// sender's endpoint.
    pub(super) fn canonical(
        &mut self,
        sent: &[Vec<u8>],
        out: Vec<(Node, Vec<u8>)>,
        symbol: Option<u16>,
    ) -> Vec<Out> {
        let mut all = Vec::new();
        let about_error = View::of(&sent[0]).is_some_and(|v| v.quoted.is_some());
        for (who, packet) in reassembled(out) {
            if let Some(view) = View::of(&packet)
                && let (Some((address, at)), Some(symbol)) = (view.source, symbol)
                && [ip(NAT4), ip(NAT6)].contains(&address)
            {
                let port = be16(&packet, at);
                let new = self.symbol.insert((view.protocol, address, port), symbol);
                if new.is_some_and(|old| old != symbol) {
                    all.push(Out::Clash("two endpoints are seen as one"));
                }
                let new = self.actual.insert((view.protocol, address, symbol), port);
                if new.is_some_and(|old| old != port) {
                    all.push(Out::Clash("an endpoint is seen as two"));
                }
            }
            let packet = renamed(&packet, &self.symbol);
            match own_error(&packet).filter(|_| !about_error) {
                Some(error) => all.push(Out::OwnError(who, error)),
                None => all.push(Out::Packet(who, packet)),
            }
        }
        all.sort();
        all
    }

    /// A packet as it is to be sent for a sequence's.
    pub(super) fn actual(&self, packet: &[u8]) -> Vec<u8> {
        renamed(packet, &self.actual)
    }
}

/// The compared fields of an ICMP error; `None` for another packet.
pub(super) fn own_error(l3: &[u8]) -> Option<Vec<u8>> {
    let view = View::of(l3)?;
    let quoted = view.quoted?;
    let header = if l3[0] >> 4 == 4 {
        usize::from(l3[quoted] & 15) * 4
    } else {
        40
    };
    let mut out = if l3[0] >> 4 == 4 {
        l3[12..20].to_vec()
    } else {
        l3[8..40].to_vec()
    };
    out.extend_from_slice(&l3[view.l4..view.l4 + 2]);
    out.extend_from_slice(&l3[view.l4 + 4..view.l4 + 8]);
    out.extend_from_slice(l3.get(quoted..quoted + header + 8)?);
    Some(out)
}

/// Offsets in an IP packet, whole or first fragment.
#[derive(Debug)]
pub(super) struct View {
    protocol: u8,
    l4: usize,
    /// The source's address and where its port is.
    source: Option<(IpAddr, usize)>,
    /// The destination's.
    destination: Option<(IpAddr, usize)>,
    /// Offset of the checksum.
    check: usize,
    /// Offset of the IP packet that an error quotes.
    quoted: Option<usize>,
}

impl View {
    pub(super) fn of(l3: &[u8]) -> Option<Self> {
        let (source, destination) = addresses(l3)?;
        let (protocol, l4) = if l3[0] >> 4 == 4 {
            if be16(l3, 6) & 0x1fff != 0 {
                return None;
            }
            (l3[9], usize::from(l3[0] & 15) * 4)
        } else if l3[6] == 44 {
            if be16(l3, 42) & 0xfff8 != 0 {
                return None;
            }
            (l3[40], 48)
        } else {
            (l3[6], 40)
        };
        if l3.len() < l4 + 8 {
            return None;
        }
        let mut view = Self {
            protocol,
            l4,
            source: None,
            destination: None,
            check: l4 + 2,
            quoted: None,
        };
        match (protocol, l3[l4]) {
            (6 | 17, _) => {
                view.source = Some((source, l4));
                view.destination = Some((destination, l4 + 2));
                view.check = l4 + if protocol == 6 { 16 } else { 6 };
            }
            (1, 8 | 13) | (58, 128) => view.source = Some((source, l4 + 4)),
            (1, 0 | 14) | (58, 129) => view.destination = Some((destination, l4 + 4)),
            (1, 3 | 4 | 5 | 11 | 12) | (58, 1..=4) => view.quoted = Some(l4 + 8),
            _ => {}
        }
        Some(view)
    }
}

pub(super) fn addresses(l3: &[u8]) -> Option<(IpAddr, IpAddr)> {
    if *l3.first()? >> 4 == 4 {
        let a: [u8; 4] = l3.get(12..16)?.try_into().ok()?;
        let b: [u8; 4] = l3.get(16..20)?.try_into().ok()?;
        Some((a.into(), b.into()))
    } else {
        let a: [u8; 16] = l3.get(8..24)?.try_into().ok()?;
        let b: [u8; 16] = l3.get(24..40)?.try_into().ok()?;
        Some((a.into(), b.into()))
    }
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The packet with other ports at the endpoints of `names`, in what it quotes, too. Checksums take
/// the change in (RFC 1624 equation 3), so that a wrong one stays wrong.
pub(super) fn renamed(l3: &[u8], names: &BTreeMap<Endpoint, u16>) -> Vec<u8> {
    let mut out = l3.to_vec();
    rename(&mut out, names);
    out
}

/// Returns the 16-bit words that changed, old and new.
pub(super) fn rename(l3: &mut [u8], names: &BTreeMap<Endpoint, u16>) -> Vec<(u16, u16)> {
    let Some(view) = View::of(l3) else {
        return Vec::new();
    };
    let mut changed = Vec::new();
    for (address, at) in view.source.into_iter().chain(view.destination) {
        let old = be16(l3, at);
        if let Some(new) = names.get(&(view.protocol, address, old))
            && *new != old
        {
            l3[at..at + 2].copy_from_slice(&new.to_be_bytes());
            changed.push((old, *new));
        }
    }
    if let Some(quoted) = view.quoted {
        changed.extend(rename(&mut l3[quoted..], names));
    }
    let has_check =
        l3.len() >= view.check + 2 && (view.protocol != 17 || be16(l3, view.check) != 0);
    if !changed.is_empty() && has_check {
        let old = be16(l3, view.check);
        let mut sum = u32::from(!old);
        for (from, to) in &changed {
            sum += u32::from(!from) + u32::from(*to);
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let new = !(sum as u16);
        l3[view.check..view.check + 2].copy_from_slice(&new.to_be_bytes());
        changed.push((old, new));
    }
    changed
}

/// One receiver's fragments of one datagram: offset, whether more follow, packet.
type Pieces = Vec<(usize, bool, Vec<u8>)>;

/// The packets with those fragments put together that make a whole.
pub(super) fn reassembled(packets: Vec<(Node, Vec<u8>)>) -> Vec<(Node, Vec<u8>)> {
    let mut out = Vec::new();
    let mut pieces: BTreeMap<(Node, Vec<u8>), Pieces> = BTreeMap::new();
    for (who, l3) in packets {
        let (key, offset, more) = if l3[0] >> 4 == 4 && be16(&l3, 6) & 0x3fff != 0 {
            let key = [&l3[4..6], &l3[9..10], &l3[12..20]].concat();
            let field = be16(&l3, 6);
            (key, usize::from(field & 0x1fff) * 8, field & 0x2000 != 0)
        } else if l3[0] >> 4 == 6 && l3[6] == 44 {
            let key = [&l3[8..40], &l3[44..48]].concat();
            let field = be16(&l3, 42);
            (key, usize::from(field & 0xfff8), field & 1 != 0)
        } else {
            out.push((who, l3));
            continue;
        };
        pieces
            .entry((who, key))
            .or_default()
            .push((offset, more, l3));
    }
    for ((who, _), mut pieces) in pieces {
        pieces.sort();
        match joined(&pieces) {
            Some(whole) => out.push((who, whole)),
            None => out.extend(pieces.into_iter().map(|(_, _, l3)| (who, l3))),
        }
    }
    out
}

pub(super) fn joined(pieces: &[(usize, bool, Vec<u8>)]) -> Option<Vec<u8>> {
    let (_, _, first) = pieces.first()?;
    let v4 = first[0] >> 4 == 4;
    let header = if v4 {
        usize::from(first[0] & 15) * 4
    } else {
        48
    };
    let mut body = Vec::new();
    for (i, (offset, more, l3)) in pieces.iter().enumerate() {
        if *offset != body.len() || *more == (i + 1 == pieces.len()) {
            return None;
        }
        let header = if v4 { usize::from(l3[0] & 15) * 4 } else { 48 };
        body.extend_from_slice(&l3[header..]);
    }
    if v4 {
        let mut whole = first[..header].to_vec();
        whole[2..4].copy_from_slice(&((header + body.len()) as u16).to_be_bytes());
        whole[6..8].fill(0);
        whole[10..12].fill(0);
        let check = checksum(&whole);
        whole[10..12].copy_from_slice(&check.to_be_bytes());
        whole.extend_from_slice(&body);
        return Some(whole);
    }
    let mut whole = first[..40].to_vec();
    whole[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
    whole[6] = first[40];
    whole.extend_from_slice(&body);
    Some(whole)
}
