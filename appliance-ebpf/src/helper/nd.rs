//! Neighbour discovery (RFC 4861), answered in place for the addresses that the tenant's mode makes
//! ours. The table of them is that of ARP (`arp`).

use appliance_common::{
    counters::Counter,
    events::{NeighbourEventKind, SlowReason, neighbour_event_flags},
    wire::{ETH_LEN, IPPROTO_ICMPV6, IPV6_LEN},
};
use aya_ebpf::{bindings::xdp_action, helpers::bpf_xdp_adjust_tail, programs::XdpContext};

use packet_rules::{
    checksum::fold64,
    icmp::{
        NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, OPTION_SOURCE_LINK, OPTION_TARGET_LINK,
        ROUTER_SOLICITATION,
    },
};

use crate::helper::{
    addr::{NONE, Words, v6_is_host, v6_is_link_local},
    count::count,
    frame::{Frame, Port, pass_or_drop},
    lookup::{gateway, is_endpoint, is_here, is_host_of, is_provider, prefix_of},
    packet::{Mac, Outcome, Window, frame_len, reverse},
    report::{Seen, claimant, report},
    slow_path,
};

/// A neighbour message without options, bytes.
const MESSAGE_LEN: usize = 24;
/// A neighbour advertisement with the target's link-layer address, bytes.
const ANSWER_LEN: usize = 32;

/// Options come in units of 8 bytes (RFC 4861 section 4.6).
const UNIT: usize = 8;
/// Units of options that an accepted message may have.
const MAX_OPTIONS: usize = 8;
/// Units of options in which the link-layer address is looked for.
const MAX_SCANNED: usize = 4;

const ROUTER: u32 = 0x8000_0000;
const SOLICITED: u32 = 0x4000_0000;
const OVERRIDE: u32 = 0x2000_0000;

/// A discovery message of type `kind` on a tenant port; the IPv6 header is at `L3` and counts
/// `total` bytes with its own.
#[inline(always)]
pub fn process<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    kind: u8,
    total: usize,
) -> Outcome {
    let network = frame.network;
    if kind == ROUTER_SOLICITATION && frame.full() && gateway(network, true).is_some() {
        return router_solicitation::<L3>(ctx, frame, total);
    }
    if kind != NEIGHBOUR_SOLICITATION && kind != NEIGHBOUR_ADVERTISEMENT {
        return pass_or_drop(frame.port, Counter::DropNotCarried);
    }
    let (Some(ip), Some(w)) = (
        Window::<IPV6_LEN>::at(ctx, L3),
        Window::<MESSAGE_LEN>::at(ctx, L3 + IPV6_LEN),
    ) else {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    };
    // RFC 4861 section 7.1: hop limit 255, code 0, at least 24 bytes, a unicast target.
    let target = w.get::<Words, 8>();
    let multicast = target[0].to_ne_bytes()[0] == 0xff;
    if ip.get::<u8, 7>() != 255
        || w.get::<u8, 1>() != 0
        || total < IPV6_LEN + MESSAGE_LEN
        || multicast
    {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    }
    let source = ip.get::<Words, 8>();
    if !has_valid_checksum::<L3>(ctx, ip, total) {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    }

    if kind == NEIGHBOUR_ADVERTISEMENT {
        let flags = u32::from_be(w.get::<u32, 4>());
        let mac =
            link_layer_option::<L3>(ctx, total, OPTION_TARGET_LINK).unwrap_or(frame.l2.source);
        let kind = if flags & SOLICITED != 0 {
            NeighbourEventKind::Reply
        } else {
            NeighbourEventKind::Announcement
        };
        let seen = Seen {
            vni: network.vni,
            address: target,
            mac,
            kind,
            flags: if flags & OVERRIDE == 0 {
                neighbour_event_flags::NO_OVERRIDE
            } else {
                0
            },
        };
        report_host(ctx, frame, &seen);
        return pass_or_drop(frame.port, Counter::ControlIgnored);
    }

    // RFC 4861 section 7.2.3: the sender's MAC address is in its option. The frame may have
    // another source, as from a team of NICs.
    let asker = link_layer_option::<L3>(ctx, total, OPTION_SOURCE_LINK).unwrap_or(frame.l2.source);
    let probe = source == NONE;
    let answer = (frame.partial() || frame.full()) && is_ours(frame, target);
    if !probe {
        let kind = if answer {
            NeighbourEventKind::RequestToUs
        } else {
            NeighbourEventKind::RequestToOther
        };
        let seen = Seen {
            vni: network.vni,
            address: source,
            mac: asker,
            kind,
            flags: 0,
        };
        report_host(ctx, frame, &seen);
    }
    if !answer {
        return pass_or_drop(frame.port, Counter::ControlIgnored);
    }
    let own = is_own_link_local(frame, target);
    let is_gateway = gateway(network, true) == Some(target) || (frame.full() && own);
    if probe && is_provider(network) && !is_gateway && !own {
        // As for ARP probes: only the prefix indicates that the address is at the other site.
        count(Counter::ProbeIgnored);
        return pass_or_drop(frame.port, Counter::ControlIgnored);
    }

    advertise::<L3>(ctx, asker, frame.mac, source, target, is_gateway)
}

/// Makes a solicitation from `source` the advertisement that `target` is at `mac`, with or without
/// the router flag. It goes to the asker, or to all nodes if the asker has no address yet.
#[inline(always)]
fn advertise<const L3: usize>(
    ctx: &XdpContext,
    asker: Mac,
    mac: Mac,
    source: Words,
    target: Words,
    router: bool,
) -> Outcome {
    let probe = source == NONE;
    if asker.is_group() || asker.is_zero() {
        return Outcome::Drop(Counter::DropMalformed);
    }
    let delta = (L3 + IPV6_LEN + ANSWER_LEN) as i32 - frame_len(ctx) as i32;
    // SAFETY: no pointer into the packet outlives this call; the verifier checks it.
    if delta != 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0 {
        return Outcome::Drop(Counter::DropAdjust);
    }
    let (Some(head), Some(ip), Some(w)) = (
        Window::<12>::at(ctx, 0),
        Window::<IPV6_LEN>::at(ctx, L3),
        Window::<ANSWER_LEN>::at(ctx, L3 + IPV6_LEN),
    ) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    // RFC 4861 section 7.2.4: to the asker; to all nodes where the asker has no address yet.
    let all_nodes: Words = [
        u32::from_ne_bytes([0xff, 2, 0, 0]),
        0,
        0,
        u32::from_ne_bytes([0, 0, 0, 1]),
    ];
    let all_nodes_mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);
    let (to, to_mac, mut flags) = if probe {
        (all_nodes, all_nodes_mac, OVERRIDE)
    } else {
        (source, asker, SOLICITED | OVERRIDE)
    };
    // Override, although section 7.2.8 asks proxies to clear it: the machine is at the other site,
    // and a cache must replace its old MAC address. Router for the router's address, or hosts would
    // remove it from their list of default routers (section 7.2.5).
    if router {
        flags |= ROUTER;
    }
    reverse(head, to_mac, mac);
    ip.set::<u32, 0>(u32::from_be(0x6000_0000));
    ip.set::<u16, 4>((ANSWER_LEN as u16).to_be());
    ip.set::<Words, 8>(target);
    ip.set::<Words, 24>(to);
    let fields = [
        u32::from_ne_bytes([NEIGHBOUR_ADVERTISEMENT, 0, 0, 0]),
        flags.to_be(),
        target[0],
        target[1],
        target[2],
        target[3],
        // Target link-layer address, one unit of 8 bytes.
        u32::from_ne_bytes([2, 1, mac.bytes()[0], mac.bytes()[1]]),
        u32::from_ne_bytes([
            mac.bytes()[2],
            mac.bytes()[3],
            mac.bytes()[4],
            mac.bytes()[5],
        ]),
    ];
    // The pseudo-header (RFC 8200 section 8.1): addresses, length, next header.
    let mut sum = u64::from((ANSWER_LEN as u32).to_be());
    sum += u64::from(u32::from_ne_bytes([0, 0, 0, 58]));
    sum += sum_words(target) + sum_words(to);
    sum += u64::from(fields[0]) + u64::from(fields[1]) + sum_words(target);
    sum += u64::from(fields[6]) + u64::from(fields[7]);
    w.set::<u32, 0>(fields[0]);
    w.set::<u16, 2>(!fold64(sum));
    w.set::<u32, 4>(fields[1]);
    w.set::<Words, 8>(target);
    w.set::<u32, 24>(fields[6]);
    w.set::<u32, 28>(fields[7]);
    Outcome::Send(Counter::NdAnswered, xdp_action::XDP_TX)
}

/// Gives a router solicitation in full failover (RFC 4861 section 6.1.1) to user space, which
/// advertises.
#[inline(always)]
fn router_solicitation<const L3: usize>(ctx: &XdpContext, frame: &Frame, total: usize) -> Outcome {
    let (Some(ip), Some(w)) = (
        Window::<IPV6_LEN>::at(ctx, L3),
        Window::<8>::at(ctx, L3 + IPV6_LEN),
    ) else {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    };
    if ip.get::<u8, 7>() != 255 || w.get::<u8, 1>() != 0 || total < IPV6_LEN + 8 {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    }
    let source = ip.get::<Words, 8>();
    slow_path::send(
        ctx,
        frame.network,
        L3 as u16,
        SlowReason::RouterSolicitation,
        &source,
    )
}

/// Whether the IPv6 packet behind an untagged Ethernet header is a neighbour solicitation.
#[inline(always)]
pub fn is_solicitation(ctx: &XdpContext, ip: Window<IPV6_LEN>) -> bool {
    ip.get::<u8, 6>() == IPPROTO_ICMPV6
        && ip.get::<u8, 7>() == 255
        && Window::<MESSAGE_LEN>::at(ctx, ETH_LEN + IPV6_LEN)
            .is_some_and(|w| w.get::<u8, 0>() == NEIGHBOUR_SOLICITATION)
}

/// Answers a solicitation on the uplink for an address that `is_ours`, by unicast or to its group;
/// `None` for any other packet. A host that says it has such an address is reported.
#[inline(always)]
pub fn on_uplink(ctx: &XdpContext, mac: Mac, is_ours: impl Fn(&Words) -> bool) -> Option<Outcome> {
    const L3: usize = ETH_LEN;
    let ip = Window::<IPV6_LEN>::at(ctx, L3)?;
    let w = Window::<MESSAGE_LEN>::at(ctx, L3 + IPV6_LEN)?;
    let head = Window::<12>::at(ctx, 0)?;
    let total = IPV6_LEN + u16::from_be(ip.get::<u16, 4>()) as usize;
    let (source, target) = (ip.get::<Words, 8>(), w.get::<Words, 8>());
    let kind = w.get::<u8, 0>();
    let valid = ip.get::<u8, 6>() == IPPROTO_ICMPV6
        && (kind == NEIGHBOUR_SOLICITATION || kind == NEIGHBOUR_ADVERTISEMENT)
        && w.get::<u8, 1>() == 0
        && ip.get::<u8, 7>() == 255
        && total >= IPV6_LEN + MESSAGE_LEN
        && L3 + total <= frame_len(ctx);
    if !valid {
        return None;
    }
    let solicitation = kind == NEIGHBOUR_SOLICITATION;
    let answer = solicitation && v6_is_host(target) && is_ours(&target);
    let claimed = if solicitation { source } else { target };
    let claim = v6_is_host(claimed) && is_ours(&claimed);
    if !(answer || claim) || !has_valid_checksum::<L3>(ctx, ip, total) {
        return None;
    }
    let option = if solicitation {
        OPTION_SOURCE_LINK
    } else {
        OPTION_TARGET_LINK
    };
    let sender = link_layer_option::<L3>(ctx, total, option)
        .unwrap_or(Mac(head.get::<u32, 6>(), head.get::<u16, 10>()));
    if claim && sender != mac {
        claimant(ctx, None, claimed, sender);
    }
    if !answer {
        return None;
    }
    Some(advertise::<L3>(ctx, sender, mac, source, target, false))
}

/// Whether the message's checksum is correct (RFC 4861 section 7.1), for at most [`MAX_OPTIONS`]
/// units of options. Messages with more, which no stack sends, are refused.
#[inline(always)]
fn has_valid_checksum<const L3: usize>(
    ctx: &XdpContext,
    ip: Window<IPV6_LEN>,
    total: usize,
) -> bool {
    let length = total - IPV6_LEN;
    if !length.is_multiple_of(UNIT) || length / UNIT > MESSAGE_LEN / UNIT + MAX_OPTIONS {
        return false;
    }
    let mut sum = u64::from((length as u32).to_be()) + u64::from(u32::from_ne_bytes([0, 0, 0, 58]));
    sum += sum_words(ip.get::<Words, 8>()) + sum_words(ip.get::<Words, 24>());
    for unit in 0..MESSAGE_LEN / UNIT + MAX_OPTIONS {
        if unit >= length / UNIT {
            break;
        }
        let Some(w) = Window::<UNIT>::at(ctx, L3 + IPV6_LEN + unit * UNIT) else {
            return false;
        };
        sum += u64::from(w.get::<u32, 0>()) + u64::from(w.get::<u32, 4>());
    }
    fold64(sum) == 0xffff
}

#[inline(always)]
fn sum_words(words: Words) -> u64 {
    u64::from(words[0]) + u64::from(words[1]) + u64::from(words[2]) + u64::from(words[3])
}

/// Reports a host of this side, or a second claimant of an address that we answer for.
#[inline(always)]
fn report_host(ctx: &XdpContext, frame: &Frame, seen: &Seen) {
    let network = frame.network;
    let address = seen.address;
    let is_gateway = gateway(network, true) == Some(address);
    let (partial, full) = (frame.partial(), frame.full());
    // The router may use a link-local address; those of other hosts are of no use here. Before a
    // failover any may be that of the plan's gateway, for whose owner the daemon asks.
    let asked_for = !partial && !full && is_provider(network) && v6_is_link_local(address);
    let known = v6_is_host(address) || is_gateway || asked_for;
    let here = if partial {
        is_here(network, address)
    } else if full {
        is_host_of(network, address)
    } else {
        // As for ARP: answers to the daemon's questions before a failover, also to all nodes.
        !is_provider(network)
            || matches!(
                seen.kind,
                NeighbourEventKind::Reply | NeighbourEventKind::Announcement
            )
    };
    if known && here {
        report(ctx, &frame.l2, network, seen);
        return;
    }
    let claimed = if full || is_provider(network) {
        is_gateway
    } else {
        is_endpoint(network, address)
    };
    if (partial || full) && claimed && seen.mac != frame.mac {
        claimant(ctx, Some(frame), address, seen.mac);
    }
}

/// The MAC address in the first link-layer address option of type `wanted` (RFC 4861 section 4.6.1)
/// within the first [`MAX_SCANNED`] units of options. The caller has checked that the message is
/// whole.
#[inline(always)]
fn link_layer_option<const L3: usize>(ctx: &XdpContext, total: usize, wanted: u8) -> Option<Mac> {
    let units = (total - IPV6_LEN) / UNIT;
    let mut next = MESSAGE_LEN / UNIT;
    for unit in MESSAGE_LEN / UNIT..MESSAGE_LEN / UNIT + MAX_SCANNED {
        if unit >= units {
            return None;
        }
        let w = Window::<UNIT>::at(ctx, L3 + IPV6_LEN + unit * UNIT)?;
        if unit != next {
            continue;
        }
        let length = w.get::<u8, 1>();
        if w.get::<u8, 0>() == wanted && length == 1 {
            return Some(Mac(w.get::<u32, 2>(), w.get::<u16, 6>()));
        }
        if length == 0 {
            return None;
        }
        next += length as usize;
    }
    None
}

/// The link-local address of a MAC address (RFC 4291 appendix A).
#[inline(always)]
pub const fn link_local_of(mac: Mac) -> Words {
    let [a, b, c, d, e, f] = mac.bytes();
    [
        u32::from_ne_bytes([0xfe, 0x80, 0, 0]),
        0,
        u32::from_ne_bytes([a ^ 2, b, c, 0xff]),
        u32::from_ne_bytes([0xfe, d, e, f]),
    ]
}

/// Whether `target` is the address of the daemon's solicitations, and in full failover of its
/// router advertisements where the gateway's address is not link-local. On a port that the kernel
/// shares, the kernel has a link-local address of its own, with which the daemon asks.
#[inline(always)]
fn is_own_link_local(frame: &Frame, target: Words) -> bool {
    (frame.full() || frame.port == Port::TenantOnly) && target == link_local_of(frame.mac)
}

/// Whether solicitations for `target` are ours to answer.
#[inline(always)]
fn is_ours(frame: &Frame, target: Words) -> bool {
    let network = frame.network;
    if is_own_link_local(frame, target) {
        return true;
    }
    if frame.full() {
        return gateway(network, true) == Some(target);
    }
    let endpoint = is_endpoint(network, target);
    if !is_provider(network) {
        return endpoint;
    }
    if endpoint {
        return false;
    }
    gateway(network, true) == Some(target)
        || (v6_is_host(target) && !v6_is_link_local(target) && prefix_of(network, target).is_some())
}
