//! A tenant's port: what to do with a frame that a host sent.
//!
//! For: rules 2 to 10 of docs/architecture/data-path.md, of partial failover on the way into the
//! tunnel, and the hairpin of packets that stale neighbour caches send here. Never: a packet of a
//! tenant in full failover, but for its ARP and neighbour discovery; those continue in the stage
//! `full`.
//!
//! ```text
//!   frame ─▶ network ─▶ full failover, IP? ──────────────────────▶ tail call: full
//!               ├─ ARP, discovery ─▶ answered in place
//!               └─ IP ─▶ to our MAC? may the source send? destination here? ─▶ hairpin
//!                          └─ MTU, MSS ─▶ tunnel
//! ```

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    maps::{Jump, Network},
    wire::{
        ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP,
        IPV4_LEN, IPV6_LEN, mss_for,
    },
};
use aya_ebpf::programs::XdpContext;
use packet_rules::{
    icmp::{is_discovery, is_v6_error},
    ipv4,
    ipv6::{is_extension, total_len},
    source::may_send,
};

use crate::helper::{
    addr::{Words, v4_is_host, v4_is_link_local, v4_mapped, v6_is_host, v6_is_link_local},
    arp, bytes,
    encap::{self, Inner},
    frame::{Frame, Port, is_network_or_broadcast, pass_or_drop},
    icmp,
    lookup::{gateway, is_endpoint, is_here, is_provider, is_secure, neighbour, prefix_of},
    mss, nd,
    packet::{Outcome, Window, frame_len},
    partial_checksum::{count_partial, count_partial_checksum, sum_of},
    slow_path, tunnel,
};

/// A frame on a port; `program` says whether the kernel shares a port without an attachment.
#[inline(always)]
pub fn process(ctx: &XdpContext, program: Port) -> Outcome {
    let frame = match Frame::classify(ctx, program) {
        Ok(frame) => frame,
        Err(outcome) => return outcome,
    };
    if frame.full() && is_routed(ctx, &frame) {
        match frame.l2.tags {
            0 => count_partial_checksum::<14, false>(ctx, frame.l2.ethertype),
            1 => count_partial_checksum::<18, false>(ctx, frame.l2.ethertype),
            _ => count_partial_checksum::<22, false>(ctx, frame.l2.ethertype),
        }
        frame.save();
        return Outcome::TailCall(Jump::Full);
    }
    match frame.l2.tags {
        0 => by_type::<14>(ctx, &frame),
        1 => by_type::<18>(ctx, &frame),
        _ => by_type::<22>(ctx, &frame),
    }
}

/// Whether full failover routes the frame: an IP packet that is no neighbour discovery.
#[inline(always)]
fn is_routed(ctx: &XdpContext, frame: &Frame) -> bool {
    match frame.l2.ethertype {
        ETHERTYPE_IPV4 => true,
        ETHERTYPE_IPV6 => match frame.l2.tags {
            0 => !is_discovery_at::<14>(ctx),
            1 => !is_discovery_at::<18>(ctx),
            _ => !is_discovery_at::<22>(ctx),
        },
        _ => false,
    }
}

#[inline(always)]
fn is_discovery_at<const L3: usize>(ctx: &XdpContext) -> bool {
    Window::<IPV6_LEN>::at(ctx, L3).is_some_and(|ip| ip.get::<u8, 6>() == IPPROTO_ICMPV6)
        && Window::<8>::at(ctx, L3 + IPV6_LEN).is_some_and(|w| is_discovery(w.get::<u8, 0>()))
}

/// `L3` is the offset of the payload: a constant, so that the verifier can follow it and offsets
/// cost nothing.
#[inline(always)]
fn by_type<const L3: usize>(ctx: &XdpContext, frame: &Frame) -> Outcome {
    match frame.l2.ethertype {
        ETHERTYPE_IPV4 => ipv4::<L3>(ctx, frame),
        ETHERTYPE_IPV6 => ipv6::<L3>(ctx, frame),
        ETHERTYPE_ARP => arp::process::<L3>(ctx, frame),
        // A stretched network carries IP only.
        _ => pass_or_drop(frame.port, Counter::DropNotCarried),
    }
}

/// Refuses an IP packet that is not for us, before its addresses are read.
#[inline(always)]
fn refuse(frame: &Frame) -> Option<Outcome> {
    if frame.l2.destination.is_group() {
        return Some(pass_or_drop(frame.port, Counter::DropNotCarried));
    }
    if frame.l2.destination != frame.mac {
        return Some(pass_or_drop(frame.port, Counter::DropForeignMac));
    }
    if !frame.partial() {
        return Some(pass_or_drop(frame.port, Counter::DropIdle));
    }
    None
}

/// Whether this port may send packets from `source` (the rule: `packet_rules::source`).
#[inline(always)]
fn is_allowed_source(network: &Network, source: Words, ipv6: bool) -> bool {
    let provider = is_provider(network);
    let endpoint = is_endpoint(network, source);
    let is_known = provider
        || endpoint
        || prefix_of(network, source).is_some()
        || gateway(network, ipv6).is_some();
    may_send(provider, endpoint, is_known)
}

#[inline(never)]
fn ipv4<const L3: usize>(ctx: &XdpContext, frame: &Frame) -> Outcome {
    let Some(w) = Window::<IPV4_LEN>::at(ctx, L3) else {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    };
    let total = u16::from_be(w.get::<u16, 2>());
    let Some(ipv4::Lengths { header, total }) =
        ipv4::lengths(w.get::<u8, 0>(), total, L3, frame_len(ctx))
    else {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    };
    if let Some(outcome) = refuse(frame) {
        return outcome;
    }
    let fragment = u16::from_be(w.get::<u16, 6>());
    let protocol = w.get::<u8, 9>();
    let source_word = w.get::<u32, 12>();
    let destination_word = w.get::<u32, 16>();
    if v4_is_link_local(source_word) || v4_is_link_local(destination_word) {
        return pass_or_drop(frame.port, Counter::DropLinkLocal);
    }
    let (source, destination) = (v4_mapped(source_word), v4_mapped(destination_word));
    let network = frame.network;
    if !v4_is_host(destination_word) || is_network_or_broadcast(network, destination_word) {
        return pass_or_drop(frame.port, Counter::DropNotCarried);
    }
    let allowed = v4_is_host(source_word) && is_allowed_source(network, source, false);
    if is_here(network, destination) {
        return hairpin::<L3>(ctx, frame, &destination, ETHERTYPE_IPV4, allowed);
    }
    if !allowed {
        return Outcome::Drop(Counter::DropSourceGuard);
    }

    let unfragmented = !ipv4::is_fragment(fragment);
    if total > network.mtu as usize {
        if !ipv4::may_fragment(fragment) {
            if ipv4::is_later_fragment(fragment) || icmp::is_error(ctx, L3 + header, protocol) {
                return Outcome::Drop(Counter::DropNoErrorAboutError);
            }
            return icmp::frag_needed::<L3>(ctx, frame, source_word, destination_word, network.mtu);
        }
        if !is_secure(network) {
            return slow_path::send(ctx, network, L3 as u16, SlowReason::Split, &destination);
        }
        // An encrypted tunnel splits and reassembles on its own.
    }

    let mut hash = source_word ^ destination_word.rotate_left(13) ^ ((protocol as u32) << 16);
    if unfragmented && (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP) {
        if header == IPV4_LEN
            && let Some(w) = Window::<8>::at(ctx, L3 + IPV4_LEN)
        {
            hash ^= w.get::<u32, 0>();
            let addresses = u64::from(source_word) + u64::from(destination_word);
            count_partial::<false>(ctx, protocol, addresses, L3 + IPV4_LEN, total - IPV4_LEN);
        }
        if protocol == IPPROTO_TCP {
            mss::clamp_v4::<L3>(ctx, header, total, network.mtu);
        }
    }
    let inner = Inner {
        ethertype: ETHERTYPE_IPV4,
        hash,
        len: total,
        slot: frame.slot,
        xsk: frame.xsk,
    };
    tunnel::enter::<L3>(ctx, network, &inner)
}

#[inline(never)]
fn ipv6<const L3: usize>(ctx: &XdpContext, frame: &Frame) -> Outcome {
    let Some(w) = Window::<IPV6_LEN>::at(ctx, L3) else {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    };
    let payload = u16::from_be(w.get::<u16, 4>());
    let Some(total) = total_len(w.get::<u8, 0>(), payload, L3, frame_len(ctx)) else {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    };
    let next = w.get::<u8, 6>();
    let source = w.get::<Words, 8>();
    let destination = w.get::<Words, 24>();
    let mut kind = 0;
    if next == IPPROTO_ICMPV6 {
        let Some(w) = Window::<8>::at(ctx, L3 + IPV6_LEN) else {
            return pass_or_drop(frame.port, Counter::DropMalformed);
        };
        kind = w.get::<u8, 0>();
        if is_discovery(kind) {
            return nd::process::<L3>(ctx, frame, kind, total);
        }
    }
    let mut behind = (next, 0usize);
    if is_extension(next) {
        let found =
            bytes::behind_extensions(ctx, (L3 + IPV6_LEN) as u32, next, (L3 + total) as u32);
        behind = ((found >> 32) as u8, found as u32 as usize);
        // Discovery behind extension headers, which no stack sends, is neither answered nor
        // carried.
        if behind.0 == IPPROTO_ICMPV6 && bytes::byte(ctx, behind.1 as u32).is_none_or(is_discovery)
        {
            return pass_or_drop(frame.port, Counter::DropNotCarried);
        }
    }
    if let Some(outcome) = refuse(frame) {
        return outcome;
    }
    if v6_is_link_local(source) || v6_is_link_local(destination) {
        return pass_or_drop(frame.port, Counter::DropLinkLocal);
    }
    if !v6_is_host(destination) {
        return pass_or_drop(frame.port, Counter::DropNotCarried);
    }
    let network = frame.network;
    let allowed = v6_is_host(source) && is_allowed_source(network, source, true);
    if is_here(network, destination) {
        return hairpin::<L3>(ctx, frame, &destination, ETHERTYPE_IPV6, allowed);
    }
    if !allowed {
        return Outcome::Drop(Counter::DropSourceGuard);
    }
    if total > network.mtu as usize {
        if next == IPPROTO_ICMPV6 && is_v6_error(kind) {
            return Outcome::Drop(Counter::DropNoErrorAboutError);
        }
        return icmp::packet_too_big::<L3>(ctx, frame, &source, &destination, network.mtu);
    }

    let mut hash = source[0]
        ^ source[1]
        ^ source[2]
        ^ source[3].rotate_left(5)
        ^ (destination[0] ^ destination[1] ^ destination[2] ^ destination[3]).rotate_left(13)
        ^ ((next as u32) << 16);
    let mut tcp = 0;
    if next == IPPROTO_TCP || next == IPPROTO_UDP {
        if let Some(w) = Window::<8>::at(ctx, L3 + IPV6_LEN) {
            hash ^= w.get::<u32, 0>();
            let addresses = sum_of(&source, &destination);
            count_partial::<false>(ctx, next, addresses, L3 + IPV6_LEN, total - IPV6_LEN);
        }
        if next == IPPROTO_TCP && mss::is_syn(ctx, L3 + IPV6_LEN) {
            tcp = L3 + IPV6_LEN;
        }
    } else if is_extension(next) && behind.0 == IPPROTO_TCP {
        tcp = behind.1;
    }
    if tcp != 0 {
        mss::clamp(
            ctx,
            tcp as u32,
            (L3 + total) as u32,
            mss_for(network.mtu, true),
        );
    }
    let inner = Inner {
        ethertype: ETHERTYPE_IPV6,
        hash,
        len: total,
        slot: frame.slot,
        xsk: frame.xsk,
    };
    tunnel::enter::<L3>(ctx, network, &inner)
}

/// A packet to our MAC address for a host on this same side: its sender's neighbour cache is not
/// corrected yet. It is forwarded, so that a failback loses nothing.
#[inline(always)]
fn hairpin<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    destination: &Words,
    ethertype: u16,
    allowed: bool,
) -> Outcome {
    let network = frame.network;
    match neighbour(network, *destination) {
        Some(_) if !allowed => Outcome::Drop(Counter::DropSourceGuard),
        Some(neighbour) => encap::deliver::<L3>(ctx, neighbour, ethertype, Counter::Hairpinned),
        // Our own addresses are never in the neighbour table: the kernel gets its packets here.
        None if frame.port == Port::Shared => Outcome::Pass(Counter::Passed),
        None if !allowed => Outcome::Drop(Counter::DropSourceGuard),
        None if prefix_of(network, *destination).is_none() => {
            Outcome::Drop(Counter::DropSplitHorizon)
        }
        None => slow_path::send(ctx, network, L3 as u16, SlowReason::Unresolved, destination),
    }
}
