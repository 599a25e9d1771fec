//! The tunnels' port: a datagram of ours is opened, everything else is somebody else's.

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    maps::{Config, Network, TunnelKey},
    wire::{
        ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP,
        IPV4_LEN, IPV6_LEN, OUTER_V4_LEN, OUTER_V6_LEN, UDP_LEN, VXLAN_FLAG_VNI, VXLAN_LEN,
        mss_for,
    },
};
use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};

use crate::{
    access::is_directed_broadcast,
    addr::{NONE, Words, is_link_local, v4, v4_is_host, v4_is_link_local, v6_is_host, words},
    count::received,
    encap::{deliver, trim},
    mss, nd,
    packet::{Outcome, Window, frame_len},
    secure, slow,
    tables::{
        config, gateway, is_here, is_partial, is_provider, is_secure, neighbour, network,
        prefix_of, tunnel,
    },
};

/// Outer and inner Ethernet headers and all between, over IPv4.
const FROM_V4: usize = OUTER_V4_LEN + ETH_LEN;
/// Likewise over IPv6.
const FROM_V6: usize = OUTER_V6_LEN + ETH_LEN;
const UDP_VXLAN: usize = UDP_LEN + VXLAN_LEN;

/// A frame on the tunnels' port; `None` when it is not a datagram of a tunnel to us.
#[inline(always)]
pub fn process(ctx: &XdpContext) -> Option<Outcome> {
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
    let destination = v4(ip.get::<u32, 16>());
    let first = ip.get::<u8, 0>();
    if destination != words(config.local_v4)
        || ip.get::<u8, 9>() != IPPROTO_UDP
        || first >> 4 != 4
        || first < 0x45
    {
        return None;
    }
    let fragment = u16::from_be(ip.get::<u16, 6>());
    if fragment & 0x1fff != 0 {
        // Not the first: it has no ports, so it isn't provably ours.
        return None;
    }
    if first != 0x45 {
        let udp = ETH_LEN as u32 + u32::from(first & 0x0f) * 4;
        return (config.secure_port != 0 && secure::is_to(ctx, udp, config.secure_port.into()))
            .then_some(Outcome::Drop(Counter::DropBadDatagram));
    }
    let udp = Window::<UDP_VXLAN>::at(ctx, ETH_LEN + IPV4_LEN);
    let port = Window::<UDP_LEN>::at(ctx, ETH_LEN + IPV4_LEN)?;
    let kind = kind(config, u16::from_be(port.get::<u16, 2>()))?;
    if fragment & 0x2000 != 0 {
        return Some(Outcome::Drop(Counter::DropOuterFragment));
    }
    let total = u16::from_be(ip.get::<u16, 2>()) as usize;
    let source = v4(ip.get::<u32, 12>());
    if kind == Kind::Secure {
        const AT: usize = ETH_LEN + IPV4_LEN + UDP_LEN;
        if ETH_LEN + total > frame_len(ctx)
            || total < IPV4_LEN + UDP_LEN
            || u16::from_be(port.get::<u16, 4>()) as usize != total - IPV4_LEN
        {
            return Some(Outcome::Drop(Counter::DropMalformed));
        }
        return Some(secure::steer::<AT>(
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
            && secure::leads_to::<AT>(ctx, next.into(), config.secure_port.into(), end))
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
        return Some(secure::steer::<AT>(
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

/// What kind of tunnel a datagram is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Secure,
}

/// By its destination port, host byte order; `None` when it is somebody else's. Zero is no port.
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

/// What goes on from an opened datagram.
struct Opened {
    network: &'static Network,
    slot: u32,
    /// The IP packet's bytes.
    len: usize,
}

/// A datagram that is ours by address and port; `FROM` is where its inner packet begins, `end` where
/// the datagram ends.
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
        return stranger(vni);
    };
    let slot = tunnel.network;
    let Some(network) = network(slot) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    if is_secure(network) {
        // Nothing in the clear: user space is about to take the entry away.
        return Outcome::Drop(Counter::DropInconsistent);
    }
    if !is_partial(network) {
        return Outcome::Drop(Counter::DropIdle);
    }
    let Some(inner) = Window::<2>::at(ctx, FROM - 2) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let opened = Opened {
        network,
        slot,
        len: end - FROM,
    };
    match u16::from_be(inner.get::<u16, 0>()) {
        ETHERTYPE_IPV4 => inner_ipv4::<FROM>(ctx, &opened),
        ETHERTYPE_IPV6 => inner_ipv6::<FROM>(ctx, &opened),
        _ => Outcome::Drop(Counter::DropNotCarried),
    }
}

/// Why the datagram was not accepted.
#[inline(never)]
fn stranger(vni: u32) -> Outcome {
    if crate::maps::TUNNELS
        .get_ptr(TunnelKey { vni, peer: [0; 16] })
        .is_some()
    {
        Outcome::Drop(Counter::DropStranger)
    } else {
        Outcome::Drop(Counter::DropUnknownVni)
    }
}

#[inline(never)]
fn inner_ipv4<const FROM: usize>(ctx: &XdpContext, opened: &Opened) -> Outcome {
    let network = opened.network;
    let Some(w) = Window::<IPV4_LEN>::at(ctx, FROM) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let first = w.get::<u8, 0>();
    let header = ((first & 0x0f) as usize) * 4;
    let total = u16::from_be(w.get::<u16, 2>()) as usize;
    if first >> 4 != 4 || header < IPV4_LEN || total < header || total > opened.len {
        return Outcome::Drop(Counter::DropMalformed);
    }
    let fragment = u16::from_be(w.get::<u16, 6>());
    let protocol = w.get::<u8, 9>();
    let source_word = w.get::<u32, 12>();
    let destination_word = w.get::<u32, 16>();
    if v4_is_link_local(source_word) || v4_is_link_local(destination_word) {
        return Outcome::Drop(Counter::DropLinkLocal);
    }
    if !v4_is_host(destination_word) || is_directed_broadcast(network, destination_word) {
        return Outcome::Drop(Counter::DropNotCarried);
    }
    let (source, destination) = (v4(source_word), v4(destination_word));
    if !v4_is_host(source_word) || is_here(network, source) {
        return Outcome::Drop(Counter::DropInnerSource);
    }
    if !is_here(network, destination) {
        return Outcome::Drop(Counter::DropSplitHorizon);
    }
    if protocol == IPPROTO_TCP && fragment & 0x1fff == 0 {
        let syn = header != IPV4_LEN
            || Window::<20>::at(ctx, FROM + IPV4_LEN)
                .is_some_and(|w| w.get::<u8, 13>() & mss::SYN != 0);
        if syn {
            mss::clamp(
                ctx,
                (FROM + header) as u32,
                (FROM + total) as u32,
                mss_for(network.mtu, false),
            );
        }
    }
    to_host::<FROM>(ctx, opened, &destination, ETHERTYPE_IPV4, total)
}

#[inline(never)]
fn inner_ipv6<const FROM: usize>(ctx: &XdpContext, opened: &Opened) -> Outcome {
    let network = opened.network;
    let Some(w) = Window::<IPV6_LEN>::at(ctx, FROM) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let total = IPV6_LEN + u16::from_be(w.get::<u16, 4>()) as usize;
    if w.get::<u8, 0>() >> 4 != 6 || total > opened.len {
        return Outcome::Drop(Counter::DropMalformed);
    }
    let next = w.get::<u8, 6>();
    let source = w.get::<Words, 8>();
    let destination = w.get::<Words, 24>();
    if is_link_local(source) || is_link_local(destination) {
        return Outcome::Drop(Counter::DropLinkLocal);
    }
    if !v6_is_host(destination) {
        return Outcome::Drop(Counter::DropNotCarried);
    }
    if next == IPPROTO_ICMPV6 {
        let Some(w) = Window::<8>::at(ctx, FROM + IPV6_LEN) else {
            return Outcome::Drop(Counter::DropMalformed);
        };
        // The other side never sends these; with the hop limit kept, one would pass for on-link.
        if nd::is_link_scoped(w.get::<u8, 0>()) {
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
        let syn = Window::<20>::at(ctx, FROM + IPV6_LEN)
            .is_some_and(|w| w.get::<u8, 13>() & mss::SYN != 0);
        if syn {
            tcp = FROM + IPV6_LEN;
        }
    } else if mss::is_extension(next) {
        let found =
            mss::behind_extensions(ctx, (FROM + IPV6_LEN) as u32, next, (FROM + total) as u32);
        let (protocol, at) = ((found >> 32) as u8, found as u32);
        if protocol == IPPROTO_ICMPV6 && mss::byte(ctx, at).is_none_or(nd::is_link_scoped) {
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
    to_host::<FROM>(ctx, opened, &destination, ETHERTYPE_IPV6, total)
}

/// Sends the inner packet, `total` bytes from `FROM`, to its host: at the production site, what is not
/// of the network's prefixes goes to its router.
#[inline(always)]
fn to_host<const FROM: usize>(
    ctx: &XdpContext,
    opened: &Opened,
    destination: &Words,
    ethertype: u16,
    total: usize,
) -> Outcome {
    let network = opened.network;
    let mut next_hop = *destination;
    if !is_provider(network) && prefix_of(network, *destination).is_none() {
        let Some(router) = gateway(network, ethertype == ETHERTYPE_IPV6) else {
            return Outcome::Drop(Counter::DropSplitHorizon);
        };
        next_hop = router;
    }
    if !trim(ctx, FROM + total) {
        return Outcome::Drop(Counter::DropAdjust);
    }
    match neighbour(network, next_hop) {
        Some(neighbour) => {
            received(opened.slot, total as u64);
            deliver::<FROM>(ctx, neighbour, ethertype, Counter::Decapsulated)
        }
        None => {
            // User space gets the inner frame.
            // SAFETY: no pointer into the packet outlives the call; the verifier sees to it.
            if unsafe { bpf_xdp_adjust_head(ctx.ctx, (FROM - ETH_LEN) as i32) } != 0 {
                return Outcome::Drop(Counter::DropAdjust);
            }
            slow::hand_over(
                ctx,
                network,
                ETH_LEN as u16,
                SlowReason::Unresolved,
                &next_hop,
            )
        }
    }
}
