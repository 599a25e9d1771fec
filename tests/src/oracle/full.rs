//! Full failover: packets that a router of a tenant's networks may send.

use std::net::IpAddr;

use appliance_common::addr::from_ip;
use appliance_common::maps::{Attachment, Mode, Network, PolicyKey};

use super::icmp::{QUOTE, may_answer};
use super::ip::Ip;
use super::site::{in_prefixes, is_unroutable};
use super::tunnel::check_delivered;
use super::{Kind, prefix};

use crate::harness::Action;
use crate::packet::{self, L2, be32, mac_at, transport_checksum};
use crate::world::World;

/// A frame from a port of a tenant in full failover, and the frame sent in answer.
pub(super) struct Routed<'a> {
    pub world: &'a World,
    pub attachment: &'a Attachment,
    pub network: &'a Network,
    pub ifindex: u32,
    pub input: &'a [u8],
    pub li: &'a L2,
    pub i: &'a Ip,
    pub action: Action,
    pub output: &'a [u8],
    pub lo: &'a L2,
    pub o: &'a Ip,
}

/// Whether the network's tenant is in full failover.
pub(super) fn in_full(world: &World, network: &Network) -> bool {
    world
        .tenants
        .get(network.tenant as usize)
        .is_some_and(|t| t.mode == Mode::Full as u32)
}

fn is_gateway(network: &Network, address: IpAddr) -> bool {
    from_ip(address) == network.gateway_v4 || from_ip(address) == network.gateway_v6
}

/// Whether the address can be a host's of the network.
pub(super) fn is_host(network: &Network, address: IpAddr) -> bool {
    let edge = network.prefixes[..usize::from(network.prefix_count)]
        .iter()
        .any(|prefix| prefix::is_edge(prefix, address));
    !is_unroutable(address)
        && in_prefixes(network, address)
        && !is_gateway(network, address)
        && !edge
}

/// The networks of the tenant that have the address, and that `from` may send to.
fn reached<'w>(world: &'w World, from: &Network, address: IpAddr) -> Option<&'w Network> {
    world.networks.iter().find(|to| {
        let policy = PolicyKey {
            from: from.vni,
            to: to.vni,
        };
        to.tenant == from.tenant
            && is_host(to, address)
            && (to.vni == from.vni || world.policies.contains(&policy))
    })
}

/// Whether a packet of one of the tenant's networks may come to this one.
pub(super) fn may_deliver(world: &World, to: &Network, src: IpAddr, dst: IpAddr) -> bool {
    is_host(to, dst)
        && world.networks.iter().any(|from| {
            is_host(from, src) && reached(world, from, dst).is_some_and(|n| n.vni == to.vni)
        })
}

/// The longest route of the tenant that has the address.
fn routed<'w>(world: &'w World, from: &Network, address: IpAddr) -> Option<&'w Network> {
    let slot = world
        .routes
        .iter()
        .filter(|(length, key, _)| {
            key.tenant == from.tenant && prefix::share(key.address, from_ip(address), *length)
        })
        .max_by_key(|(length, ..)| *length)?
        .2;
    world.networks.get(slot as usize)
}

impl Routed<'_> {
    /// Judges it.
    pub fn check(&self) -> Result<Kind, String> {
        ensure!(
            mac_at(self.input, 0) == self.attachment.mac,
            "acted on a frame that was not for us"
        );
        if self.o.src == self.i.src && self.o.dst == self.i.dst {
            return self.forwarded();
        }
        self.answered()
    }

    /// One hop further, to a host of a network that may be sent to.
    fn forwarded(&self) -> Result<Kind, String> {
        let (i, world) = (self.i, self.world);
        ensure!(
            is_host(self.network, i.src),
            "routed from {}, which is no host of the network",
            i.src
        );
        let Some(to) = reached(world, self.network, i.dst) else {
            return Err(format!("routed to {}, which it may not send to", i.dst));
        };
        let neighbour = world
            .neighbour_of(to.vni, &from_ip(i.dst))
            .ok_or("routed to a host that is not resolved")?;
        ensure!(
            i.len <= usize::from(to.lan_mtu),
            "{} bytes to a port of {}",
            i.len,
            to.lan_mtu
        );
        let mut expected = self.input[self.li.l3..].to_vec();
        let hops = if i.dst.is_ipv4() { 8 } else { 7 };
        ensure!(
            expected[hops] > 1,
            "routed with {} hops left",
            expected[hops]
        );
        expected[hops] -= 1;
        if i.dst.is_ipv4() {
            // RFC 1624 equation 3; a wrong checksum stays wrong by the same difference.
            let old = u16::from_be_bytes([expected[8] + 1, expected[9]]);
            let new = u16::from_be_bytes([expected[8], expected[9]]);
            let sum = u16::from_be_bytes([expected[10], expected[11]]);
            let mut total = u32::from(!sum) + u32::from(!old) + u32::from(new);
            total = (total & 0xffff) + (total >> 16);
            total = (total & 0xffff) + (total >> 16);
            expected[10..12].copy_from_slice(&(!(total as u16)).to_be_bytes());
        }
        check_delivered(
            neighbour,
            self.ifindex,
            self.action,
            self.li.ethertype,
            &expected,
            self.output,
            // Both ports must take the segments.
            (self.network.lan_mtu != to.lan_mtu).then(|| self.network.lan_mtu.min(to.lan_mtu)),
        )?;
        Ok(Kind::Routed)
    }

    /// From the gateway to the asker.
    fn answered(&self) -> Result<Kind, String> {
        let (i, o, network) = (self.i, self.o, self.network);
        ensure!(
            self.action == Action::Tx,
            "an answer leaves by {:?}",
            self.action
        );
        ensure!(
            self.output[6..12] == self.attachment.mac,
            "an answer is not from our MAC"
        );
        ensure!(
            self.output[..6] == self.input[6..12],
            "an answer to another MAC"
        );
        ensure!(
            self.output[12..self.lo.l3] == self.input[12..self.li.l3],
            "an answer has other tags than the question"
        );
        ensure!(
            is_gateway(network, o.src) && o.dst == i.src,
            "an answer from {} to {}",
            o.src,
            o.dst
        );
        let ip = &self.output[self.lo.l3..];
        if o.src.is_ipv4() {
            ensure!(ip[8] >= 32, "an answer with TTL {}", ip[8]);
        } else {
            ensure!(ip[7] >= 32, "an answer with hop limit {}", ip[7]);
        }
        let message = &ip[o.header..o.len];
        if o.proto == 6 {
            return self.reset(message);
        }
        match (o.proto, message.first()) {
            (1, Some(0)) | (58, Some(129)) => self.echo(message),
            (1, Some(3 | 11)) | (58, Some(1..=3)) => {
                let surplus = self.output.len() - self.lo.l3 - o.len;
                ensure!(surplus == 0, "an error with {surplus} bytes of padding");
                self.error(message)
            }
            _ => Err("answered with a message that a gateway never sends".to_owned()),
        }
    }

    fn echo(&self, message: &[u8]) -> Result<Kind, String> {
        let i = self.i;
        let asked = &self.input[self.li.l3 + i.header..self.li.l3 + i.len];
        let request = if i.dst.is_ipv4() { 8 } else { 128 };
        ensure!(
            matches!(i.proto, 1 | 58) && asked[..2] == [request, 0] && i.frag & 0x3fff == 0,
            "an echo reply to no echo request"
        );
        ensure!(is_gateway(self.network, i.dst), "an echo for {}", i.dst);
        ensure!(
            message.len() == asked.len() && message[4..] == asked[4..],
            "an echo reply with other data"
        );
        let right = |kind: &[u8], src, dst| match i.dst.is_ipv4() {
            true => packet::checksum(kind) == 0,
            false => transport_checksum(src, dst, 58, kind) == 0,
        };
        // A wrong checksum stays wrong, for the asker to see.
        ensure!(
            right(message, self.o.src, self.o.dst) == right(asked, i.src, i.dst),
            "the echo reply's checksum"
        );
        Ok(Kind::EchoReply)
    }

    /// A reset about a segment to the gateway (RFC 9293 section 3.10.7.1).
    fn reset(&self, message: &[u8]) -> Result<Kind, String> {
        let i = self.i;
        let surplus = self.output.len() - self.lo.l3 - self.o.len;
        ensure!(surplus == 0, "a reset with {surplus} bytes of padding");
        ensure!(is_gateway(self.network, i.dst), "a reset for {}", i.dst);
        ensure!(
            is_host(self.network, i.src),
            "a reset to {}, which is no host of the network",
            i.src
        );
        let asked = &self.input[self.li.l3 + i.header..self.li.l3 + i.len];
        ensure!(
            i.proto == 6 && i.frag & 0x3fff == 0 && asked.len() >= 20 && asked[13] & 4 == 0,
            "a reset to no whole segment, or to a reset"
        );
        ensure!(message.len() == 20, "a reset of {} bytes", message.len());
        ensure!(
            message[..2] == asked[2..4] && message[2..4] == asked[..2],
            "a reset between other ports"
        );
        let (flags, sequence, acknowledgment) = if asked[13] & 0x10 != 0 {
            (4, be32(asked, 8), Some(0))
        } else {
            let taken = asked.len() - usize::from(asked[12] >> 4) * 4
                + usize::from(asked[13] & 1)
                + usize::from(asked[13] >> 1 & 1);
            let next = be32(asked, 4).map(|first| first.wrapping_add(taken as u32));
            (0x14, Some(0), next)
        };
        ensure!(
            message[13] == flags
                && be32(message, 4) == sequence
                && be32(message, 8) == acknowledgment
                && message[12] == 0x50
                && message[14..16] == [0, 0]
                && message[18..] == [0, 0],
            "the reset's fields"
        );
        ensure!(
            transport_checksum(self.o.src, self.o.dst, 6, message) == 0,
            "the reset's checksum"
        );
        if self.o.src.is_ipv4() {
            let ip = &self.output[self.lo.l3..];
            ensure!(packet::checksum(&ip[..20]) == 0, "IPv4 checksum is wrong");
        }
        Ok(Kind::Reset)
    }

    fn error(&self, message: &[u8]) -> Result<Kind, String> {
        let (i, o, world, network) = (self.i, self.o, self.world, self.network);
        let l3 = &self.input[self.li.l3..];
        may_answer(i, l3)?;
        ensure!(
            is_host(network, i.src),
            "an error to {}, which is no host of the network",
            i.src
        );
        if o.src.is_ipv4() {
            let ip = &self.output[self.lo.l3..];
            ensure!(o.header == 20 && o.frag & 0x3fff == 0, "odd IPv4 header");
            ensure!(packet::checksum(&ip[..20]) == 0, "IPv4 checksum is wrong");
            ensure!(packet::checksum(message) == 0, "ICMP checksum is wrong");
        } else {
            ensure!(
                transport_checksum(o.src, o.dst, 58, message) == 0,
                "ICMPv6 checksum is wrong"
            );
        }
        let quote = &message[8..];
        ensure!(
            quote.len() == QUOTE || quote.len() == i.header + 8,
            "quotes {} bytes",
            quote.len()
        );
        let hops = if i.dst.is_ipv4() { 8 } else { 7 };
        let mut quoted = l3.to_vec();
        if matches!((i.dst.is_ipv4(), message[0], message[1]), (true, 3, 1)) {
            // Found out after the packet was made one hop older.
            quoted[10..12].copy_from_slice(&quote[10..12]);
        }
        if matches!(
            (i.dst.is_ipv4(), message[0], message[1]),
            (true, 3, 1) | (false, 1, 3)
        ) {
            quoted[hops] = quoted[hops].wrapping_sub(1);
        }
        ensure!(
            quoted.starts_with(quote),
            "quotes other bytes than it was sent"
        );
        let rest = be32(message, 4);
        let hops = if i.dst.is_ipv4() { l3[8] } else { l3[7] };
        let to = routed(world, network, i.dst);
        let allowed = to.is_some_and(|to| {
            to.vni == network.vni
                || world.policies.contains(&PolicyKey {
                    from: network.vni,
                    to: to.vni,
                })
        });
        let v4 = i.dst.is_ipv4();
        match (v4, message[0], message[1]) {
            (true, 11, 0) | (false, 3, 0) => {
                ensure!(allowed && hops <= 1, "time exceeded with {hops} hops left");
                ensure!(rest == Some(0), "unused field");
                Ok(Kind::TimeExceeded)
            }
            (true, 3, 0) | (false, 1, 0) => {
                ensure!(to.is_none(), "no route to {}, to which there is one", i.dst);
                ensure!(rest == Some(0), "unused field");
                Ok(Kind::Unreachable)
            }
            (true, 3, 13) | (false, 1, 1) => {
                ensure!(
                    to.is_some() && !allowed,
                    "prohibited to send to {}, which is allowed",
                    i.dst
                );
                ensure!(rest == Some(0), "unused field");
                Ok(Kind::Unreachable)
            }
            (true, 3, 1) | (false, 1, 3) => {
                let to = to.filter(|_| allowed && hops > 1);
                let host = to.and_then(|to| world.neighbour_of(to.vni, &from_ip(i.dst)));
                ensure!(
                    host.is_some_and(|host| host.l2_len == 0),
                    "host unreachable about {}, which is there",
                    i.dst
                );
                ensure!(rest == Some(0), "unused field");
                Ok(Kind::Unreachable)
            }
            (true, 3, 3) | (false, 1, 4) => {
                ensure!(
                    is_gateway(network, i.dst) && i.proto == 17,
                    "port unreachable about protocol {} to {}",
                    i.proto,
                    i.dst
                );
                ensure!(rest == Some(0), "unused field");
                Ok(Kind::Unreachable)
            }
            (true, 3, 4) | (false, 2, 0) => {
                let mtu = to.filter(|_| allowed).map(|to| to.lan_mtu);
                ensure!(
                    mtu.is_some_and(|mtu| i.len > usize::from(mtu)) && rest == mtu.map(u32::from),
                    "too big about {} bytes, MTU {rest:?}",
                    i.len
                );
                ensure!(
                    !v4 || i.frag & 0x4000 != 0,
                    "fragmentation needed without DF"
                );
                Ok(if v4 {
                    Kind::FragNeeded
                } else {
                    Kind::PacketTooBig
                })
            }
            (_, kind, code) => Err(format!("an error of type {kind}, code {code}")),
        }
    }
}
