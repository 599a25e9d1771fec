//! Answers for addresses: ARP replies and neighbour advertisements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use appliance_common::addr::{UNSPECIFIED, from_ip, to_ip};
use appliance_common::maps::{Attachment, Network, attachment_flags};

use super::ip::Ip;
use super::site::{in_partial, in_prefixes, is_provider};
use super::{Kind, full, prefix};

use crate::packet::{L2, transport_checksum};
use crate::world::World;

/// The link-local address that a MAC address makes (RFC 4291 appendix A).
pub(super) fn link_local_of(mac: [u8; 6]) -> IpAddr {
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
pub(super) fn answers_for(
    world: &World,
    network: &Network,
    target: IpAddr,
    probe: bool,
) -> Result<(), String> {
    let endpoint = world.is_endpoint(network.vni, target);
    if full::in_full(world, network) {
        let gateway =
            from_ip(target) == network.gateway_v4 || from_ip(target) == network.gateway_v6;
        ensure!(gateway, "answered for {target}, which is not the gateway");
        return Ok(());
    }
    if !is_provider(network) {
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
        .any(|prefix| prefix::is_edge(prefix, target));
    ensure!(!edge, "answered for {target}, which no host has");
    Ok(())
}

pub(super) fn arp_reply(
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
        in_partial(world, network) || full::in_full(world, network),
        "answered ARP while idle"
    );
    let (Some(q), Some(r)) = (input.get(li.l3..li.l3 + 28), output.get(lo.l3..lo.l3 + 28)) else {
        return Err("truncated ARP".to_owned());
    };
    ensure!(
        q[..8] == [0, 1, 8, 0, 6, 4, 0, 1],
        "answered a frame that is no ARP request"
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

#[expect(clippy::too_many_arguments, reason = "both packets, parsed")]
pub(super) fn advertisement(
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
    let mac = attachment.mac;
    let q = &input[li.l3..li.l3 + i.len];
    ensure!(
        i.proto == 58 && q[7] == 255 && q.len() >= 64 && q[40] == 135 && q[41] == 0,
        "an advertisement in answer to no solicitation"
    );
    let mut target = [0; 16];
    target.copy_from_slice(&q[48..64]);
    let target: IpAddr = Ipv6Addr::from(target).into();
    let probe = to_ip(&UNSPECIFIED) == i.src;
    let full = full::in_full(world, network);
    let shared = attachment.flags & attachment_flags::HOST != 0;
    let own = (full || !shared) && target == link_local_of(mac);
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
    let router = full && own || is_provider(network) && from_ip(target) == network.gateway_v6;
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
