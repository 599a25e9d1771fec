//! The tunnels' port: opens datagrams of tunnels, and finds packets to public addresses.
//!
//! For: tunnel datagrams to us (docs/architecture/data-path.md, rules 5 to 7), and in full failover
//! packets, ARP and discovery for public addresses. Never: anything that is not provably ours,
//! which the kernel gets.
//!
//! ```text
//!   frame ─▶ to our address, a tunnel's port?
//!              ├─ plain: VNI, peer ─▶ source there? destination here? ─▶ MSS ─▶ host
//!              ├─ encrypted: index, type ─▶ worker, or daemon within its budget
//!              └─ no ─▶ public address? ─ ARP, discovery ─▶ answered; packet ─▶ tail call: nat_in
//! ```

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    maps::{Config, Jump, Network, TunnelKey},
    wire::{
        ETH_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPPROTO_TCP,
        IPPROTO_UDP, IPV4_LEN, IPV6_LEN, OUTER_V4_LEN, OUTER_V6_LEN, UDP_LEN, VXLAN_FLAG_VNI,
        VXLAN_LEN, mss_for,
    },
};
use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};

use packet_rules::{
    icmp::is_discovery,
    ipv4,
    ipv6::{is_extension, total_len},
};

use crate::{
    helper::{
        addr::{
            NONE, Words, v4_is_host, v4_is_link_local, v4_mapped, v6_is_host, v6_is_link_local,
            words,
        },
        bytes,
        count::received,
        encap::deliver,
        frame::is_network_or_broadcast,
        logging,
        lookup::{
            config, gateway, is_here, is_partial, is_provider, is_secure, neighbour, network,
            prefix_of, tunnel,
        },
        mss,
        nat::{self, proxy},
        nd,
        packet::{Mac, Outcome, Window, frame_len, remove_priority_tags, trim},
        partial_checksum, slow_path, worker,
    },
    maps::TUNNELS,
};

/// Everything in front of the inner packet over IPv4, from the outer to the inner Ethernet header.
const FROM_V4: usize = OUTER_V4_LEN + ETH_LEN;
/// The same over IPv6.
const FROM_V6: usize = OUTER_V6_LEN + ETH_LEN;
const UDP_VXLAN: usize = UDP_LEN + VXLAN_LEN;

/// A frame on a port that only tunnels and public addresses use.
#[inline(always)]
pub fn process(ctx: &XdpContext) -> Outcome {
    if !remove_priority_tags(ctx) {
        return Outcome::Drop(Counter::DropAdjust);
    }
    match tunnel_datagram(ctx) {
        Some(outcome) => outcome,
        None => public(ctx),
    }
}

/// A frame of no tunnel: answers ARP and discovery for public addresses, continues with packets to
/// them in the stage `nat_in`, and passes everything else to the kernel.
#[inline(always)]
fn public(ctx: &XdpContext) -> Outcome {
    const PASS: Outcome = Outcome::Pass(Counter::Passed);
    let (Some(nat), Some(eth)) = (nat::settings(), Window::<ETH_LEN>::at(ctx, 0)) else {
        return PASS;
    };
    let destination = match u16::from_be(eth.get::<u16, 12>()) {
        ETHERTYPE_IPV4 => match Window::<IPV4_LEN>::at(ctx, ETH_LEN) {
            Some(ip) => v4_mapped(ip.get::<u32, 16>()),
            None => return PASS,
        },
        ETHERTYPE_IPV6 => match Window::<IPV6_LEN>::at(ctx, ETH_LEN) {
            // To a group only discovery matters here. A router that confirms its cache entry
            // solicits by unicast (RFC 4861 section 7.3.3).
            Some(ip) if ip.get::<u8, 24>() == 0xff || nd::is_solicitation(ctx, ip) => {
                return proxy::discovery(ctx, nat);
            }
            Some(ip) => ip.get::<Words, 24>(),
            None => return PASS,
        },
        ETHERTYPE_ARP => return proxy::arp(ctx, nat),
        _ => return PASS,
    };
    match nat::public(&destination) {
        Some(_) => {
            if Mac(eth.get::<u32, 0>(), eth.get::<u16, 4>()) == Mac::new(nat.mac) {
                partial_checksum::count_partial_checksum::<ETH_LEN, true>(
                    ctx,
                    u16::from_be(eth.get::<u16, 12>()),
                );
            }
            Outcome::TailCall(Jump::NatIn)
        }
        None => PASS,
    }
}

/// A frame on the tunnels' port; `None` if it is not a tunnel datagram to us.
#[inline(always)]
pub fn tunnel_datagram(ctx: &XdpContext) -> Option<Outcome> {
    let config = config()?;
    let eth = Window::<ETH_LEN>::at(ctx, 0)?;
    match u16::from_be(eth.get::<u16, 12>()) {
        ETHERTYPE_IPV4 => outer_ipv4(ctx, config),
        ETHERTYPE_IPV6 => outer_ipv6(ctx, config),
        _ => None,
    }
}

#[inline(always)]
fn outer_ipv4(ctx: &XdpContext, config: &Config) -> Option<Outcome> {
    let ip = Window::<IPV4_LEN>::at(ctx, ETH_LEN)?;
    let destination = v4_mapped(ip.get::<u32, 16>());
    let first = ip.get::<u8, 0>();
    if destination != words(config.local_v4)
        || ip.get::<u8, 9>() != IPPROTO_UDP
        || first >> 4 != 4
        || first < 0x45
    {
        return None;
    }
    let fragment = u16::from_be(ip.get::<u16, 6>());
    if ipv4::is_later_fragment(fragment) {
        // A later fragment has no ports, so it is not provably ours.
        return None;
    }
    if first != 0x45 {
        let udp = ETH_LEN as u32 + u32::from(first & 0x0f) * 4;
        return (config.secure_port != 0 && worker::is_udp_to(ctx, udp, config.secure_port.into()))
            .then_some(Outcome::Drop(Counter::DropBadDatagram));
    }
    let udp = Window::<UDP_VXLAN>::at(ctx, ETH_LEN + IPV4_LEN);
    let port = Window::<UDP_LEN>::at(ctx, ETH_LEN + IPV4_LEN)?;
    let kind = kind(config, u16::from_be(port.get::<u16, 2>()))?;
    if fragment & ipv4::MORE_FRAGMENTS != 0 {
        return Some(Outcome::Drop(Counter::DropOuterFragment));
    }
    let total = u16::from_be(ip.get::<u16, 2>()) as usize;
    let source = v4_mapped(ip.get::<u32, 12>());
    if kind == Kind::Secure {
        const AT: usize = ETH_LEN + IPV4_LEN + UDP_LEN;
        if ETH_LEN + total > frame_len(ctx)
            || total < IPV4_LEN + UDP_LEN
            || u16::from_be(port.get::<u16, 4>()) as usize != total - IPV4_LEN
        {
            return Some(Outcome::Drop(Counter::DropMalformed));
        }
        return Some(worker::steer::<AT>(
            ctx,
            config.uplink_xsk,
            total - IPV4_LEN - UDP_LEN,
            &source,
        ));
    }
    let Some(udp) = udp else {
        return Some(Outcome::Drop(Counter::DropMalformed));
    };
    if total < FROM_V4 - ETH_LEN
        || ETH_LEN + total > frame_len(ctx)
        || u16::from_be(udp.get::<u16, 4>()) as usize != total - IPV4_LEN
    {
        return Some(Outcome::Drop(Counter::DropMalformed));
    }
    Some(open::<FROM_V4>(
        ctx,
        udp,
        source,
        destination,
        ETH_LEN + total,
    ))
}

#[inline(always)]
fn outer_ipv6(ctx: &XdpContext, config: &Config) -> Option<Outcome> {
    let ip = Window::<IPV6_LEN>::at(ctx, ETH_LEN)?;
    let destination = ip.get::<Words, 24>();
    if destination != words(config.local_v6) || destination == NONE || ip.get::<u8, 0>() >> 4 != 6 {
        return None;
    }
    let next = ip.get::<u8, 6>();
    if next != IPPROTO_UDP {
        const AT: u32 = (ETH_LEN + IPV6_LEN) as u32;
        let end = AT + u32::from(u16::from_be(ip.get::<u16, 4>()));
        return (config.secure_port != 0
            && worker::may_reach_udp_port::<AT>(ctx, next.into(), config.secure_port.into(), end))
        .then_some(Outcome::Drop(Counter::DropBadDatagram));
    }
    let port = Window::<UDP_LEN>::at(ctx, ETH_LEN + IPV6_LEN)?;
    let kind = kind(config, u16::from_be(port.get::<u16, 2>()))?;
    let payload = u16::from_be(ip.get::<u16, 4>()) as usize;
    let source = ip.get::<Words, 8>();
    if kind == Kind::Secure {
        const AT: usize = ETH_LEN + IPV6_LEN + UDP_LEN;
        if ETH_LEN + IPV6_LEN + payload > frame_len(ctx)
            || payload < UDP_LEN
            || u16::from_be(port.get::<u16, 4>()) as usize != payload
        {
            return Some(Outcome::Drop(Counter::DropMalformed));
        }
        return Some(worker::steer::<AT>(
            ctx,
            config.uplink_xsk,
            payload - UDP_LEN,
            &source,
        ));
    }
    let Some(udp) = Window::<UDP_VXLAN>::at(ctx, ETH_LEN + IPV6_LEN) else {
        return Some(Outcome::Drop(Counter::DropMalformed));
    };
    if payload < FROM_V6 - ETH_LEN - IPV6_LEN
        || ETH_LEN + IPV6_LEN + payload > frame_len(ctx)
        || u16::from_be(udp.get::<u16, 4>()) as usize != payload
    {
        return Some(Outcome::Drop(Counter::DropMalformed));
    }
    Some(open::<FROM_V6>(
        ctx,
        udp,
        source,
        destination,
        ETH_LEN + IPV6_LEN + payload,
    ))
}

/// The kind of tunnel of a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Secure,
}

/// The kind by destination port, host byte order; `None` for a port of no tunnel. Zero is no port.
#[inline(always)]
fn kind(config: &Config, port: u16) -> Option<Kind> {
    if port == 0 {
        None
    } else if port == config.tunnel_port {
        Some(Kind::Plain)
    } else if port == config.secure_port {
        Some(Kind::Secure)
    } else {
        None
    }
}

/// A packet from an packet datagram.
struct Decapsulated {
    network: &'static Network,
    slot: u32,
    /// The IP packet's bytes.
    len: usize,
}

/// A datagram that is ours by address and port. `FROM` is the offset of its inner packet, `end`
/// that of its end.
#[inline(always)]
fn open<const FROM: usize>(
    ctx: &XdpContext,
    udp: Window<UDP_VXLAN>,
    source: Words,
    destination: Words,
    end: usize,
) -> Outcome {
    if source == destination {
        return Outcome::Drop(Counter::DropLoop);
    }
    if udp.get::<u8, 8>() & VXLAN_FLAG_VNI == 0 {
        return Outcome::Drop(Counter::DropBadVxlan);
    }
    let vni = u32::from_be(udp.get::<u32, 12>()) >> 8;
    let Some(tunnel) = tunnel(vni, source) else {
        return rejection(vni);
    };
    let slot = tunnel.network;
    let Some(network) = network(slot) else {
        logging::no_network(ctx, slot);
        return Outcome::Drop(Counter::DropInconsistent);
    };
    if network.vni != vni {
        // The element of `TUNNELS` is another network's by now.
        return Outcome::Drop(Counter::DropRecycled);
    }
    if is_secure(network) {
        // An encrypted network accepts nothing in the clear. User space is about to delete the
        // entry.
        return Outcome::Drop(Counter::DropInconsistent);
    }
    if !is_partial(network) {
        return Outcome::Drop(Counter::DropIdle);
    }
    let Some(inner) = Window::<2>::at(ctx, FROM - 2) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let packet = Decapsulated {
        network,
        slot,
        len: end - FROM,
    };
    match u16::from_be(inner.get::<u16, 0>()) {
        ETHERTYPE_IPV4 => inner_ipv4::<FROM>(ctx, &packet),
        ETHERTYPE_IPV6 => inner_ipv6::<FROM>(ctx, &packet),
        _ => Outcome::Drop(Counter::DropNotCarried),
    }
}

/// The reason why a datagram is not accepted: unknown network, or unknown peer.
#[inline(never)]
fn rejection(vni: u32) -> Outcome {
    if TUNNELS.get_ptr(TunnelKey { vni, peer: [0; 16] }).is_some() {
        Outcome::Drop(Counter::DropUnknownPeer)
    } else {
        Outcome::Drop(Counter::DropUnknownVni)
    }
}

#[inline(never)]
fn inner_ipv4<const FROM: usize>(ctx: &XdpContext, packet: &Decapsulated) -> Outcome {
    let network = packet.network;
    let Some(w) = Window::<IPV4_LEN>::at(ctx, FROM) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let total = u16::from_be(w.get::<u16, 2>());
    let Some(ipv4::Lengths { header, total }) =
        ipv4::lengths(w.get::<u8, 0>(), total, 0, packet.len)
    else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let fragment = u16::from_be(w.get::<u16, 6>());
    let protocol = w.get::<u8, 9>();
    let source_word = w.get::<u32, 12>();
    let destination_word = w.get::<u32, 16>();
    if v4_is_link_local(source_word) || v4_is_link_local(destination_word) {
        return Outcome::Drop(Counter::DropLinkLocal);
    }
    if !v4_is_host(destination_word) || is_network_or_broadcast(network, destination_word) {
        return Outcome::Drop(Counter::DropNotCarried);
    }
    let (source, destination) = (v4_mapped(source_word), v4_mapped(destination_word));
    if !v4_is_host(source_word) || is_here(network, source) {
        return Outcome::Drop(Counter::DropInnerSource);
    }
    if !is_here(network, destination) {
        return Outcome::Drop(Counter::DropSplitHorizon);
    }
    if protocol == IPPROTO_TCP && !ipv4::is_later_fragment(fragment) {
        mss::clamp_v4::<FROM>(ctx, header, total, network.mtu);
    }
    to_host::<FROM>(ctx, packet, &destination, ETHERTYPE_IPV4, total)
}

#[inline(never)]
fn inner_ipv6<const FROM: usize>(ctx: &XdpContext, packet: &Decapsulated) -> Outcome {
    let network = packet.network;
    let Some(w) = Window::<IPV6_LEN>::at(ctx, FROM) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let payload = u16::from_be(w.get::<u16, 4>());
    let Some(total) = total_len(w.get::<u8, 0>(), payload, 0, packet.len) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let next = w.get::<u8, 6>();
    let source = w.get::<Words, 8>();
    let destination = w.get::<Words, 24>();
    if v6_is_link_local(source) || v6_is_link_local(destination) {
        return Outcome::Drop(Counter::DropLinkLocal);
    }
    if !v6_is_host(destination) {
        return Outcome::Drop(Counter::DropNotCarried);
    }
    if next == IPPROTO_ICMPV6 {
        let Some(w) = Window::<8>::at(ctx, FROM + IPV6_LEN) else {
            return Outcome::Drop(Counter::DropMalformed);
        };
        // The other side never sends discovery. As the hop limit is kept, it would look on-link.
        if is_discovery(w.get::<u8, 0>()) {
            return Outcome::Drop(Counter::DropNotCarried);
        }
    }
    if !v6_is_host(source) || is_here(network, source) {
        return Outcome::Drop(Counter::DropInnerSource);
    }
    if !is_here(network, destination) {
        return Outcome::Drop(Counter::DropSplitHorizon);
    }
    let mut tcp = 0;
    if next == IPPROTO_TCP {
        if mss::is_syn(ctx, FROM + IPV6_LEN) {
            tcp = FROM + IPV6_LEN;
        }
    } else if is_extension(next) {
        let found =
            bytes::behind_extensions(ctx, (FROM + IPV6_LEN) as u32, next, (FROM + total) as u32);
        let (protocol, at) = ((found >> 32) as u8, found as u32);
        if protocol == IPPROTO_ICMPV6 && bytes::byte(ctx, at).is_none_or(is_discovery) {
            return Outcome::Drop(Counter::DropNotCarried);
        }
        if protocol == IPPROTO_TCP {
            tcp = at as usize;
        }
    }
    if tcp != 0 {
        mss::clamp(
            ctx,
            tcp as u32,
            (FROM + total) as u32,
            mss_for(network.mtu, true),
        );
    }
    to_host::<FROM>(ctx, packet, &destination, ETHERTYPE_IPV6, total)
}

/// Sends the inner packet, `total` bytes from `FROM`, to its host. At the production site, a
/// destination outside the network's prefixes is sent to its router.
#[inline(always)]
fn to_host<const FROM: usize>(
    ctx: &XdpContext,
    packet: &Decapsulated,
    destination: &Words,
    ethertype: u16,
    total: usize,
) -> Outcome {
    let network = packet.network;
    let mut next_hop = *destination;
    if !is_provider(network) && prefix_of(network, *destination).is_none() {
        let Some(router) = gateway(network, ethertype == ETHERTYPE_IPV6) else {
            return Outcome::Drop(Counter::DropSplitHorizon);
        };
        next_hop = router;
    }
    // The kernel would drop it after the redirect, uncounted.
    if total > network.lan_mtu as usize {
        return Outcome::Drop(Counter::DropTooLarge);
    }
    if !trim(ctx, FROM + total) {
        return Outcome::Drop(Counter::DropAdjust);
    }
    match neighbour(network, next_hop) {
        Some(neighbour) => {
            received(packet.slot, total as u64);
            deliver::<FROM>(ctx, neighbour, ethertype, Counter::Decapsulated)
        }
        None => {
            // User space gets the inner frame.
            // SAFETY: no pointer into the packet outlives the call; the verifier checks it.
            if unsafe { bpf_xdp_adjust_head(ctx.ctx, (FROM - ETH_LEN) as i32) } != 0 {
                return Outcome::Drop(Counter::DropAdjust);
            }
            slow_path::send(
                ctx,
                network,
                ETH_LEN as u16,
                SlowReason::Unresolved,
                &next_hop,
            )
        }
    }
}
