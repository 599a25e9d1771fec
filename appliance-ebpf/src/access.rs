//! The tenant's port: what to do with a frame that a host sent.

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    maps::{AttachmentKey, Jump, Mode, Network, attachment_flags},
    wire::{
        ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP,
        IPV4_LEN, IPV6_LEN, mss_for,
    },
};
use aya_ebpf::programs::XdpContext;

use crate::{
    addr::{
        Words, bytes, is_link_local, v4, v4_is_host, v4_is_link_local, v4_may_be_edge, v6_is_host,
    },
    arp,
    encap::{self, Inner},
    full, icmp,
    maps::{ATTACHMENTS, PASSED},
    mss, nd,
    packet::{L2, L2Error, Mac, Outcome, Window, frame_len, ingress},
    slow,
    tables::{
        gateway, is_endpoint, is_here, is_provider, is_secure, mode, neighbour, network, prefix_of,
    },
};

/// Who else is on the port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Only a tenant: what is not carried is dropped.
    TenantOnly,
    /// The appliance's own stack too: what is not for the data path is passed.
    Shared,
}

/// What is not for the data path: to the kernel where it shares the port, else dropped for `reason`.
#[inline(always)]
pub fn leave(port: Port, reason: Counter) -> Outcome {
    match port {
        Port::Shared => Outcome::Pass(Counter::Passed),
        Port::TenantOnly => Outcome::Drop(reason),
    }
}

/// A frame, classified.
pub struct Arrival {
    /// Its Ethernet header.
    pub l2: L2,
    /// Its network.
    pub network: &'static Network,
    /// The network's slot.
    pub slot: u32,
    /// Our MAC on the port.
    pub mac: Mac,
    /// Where the interface's sockets are.
    pub xsk: u16,
    /// Who else is on the port.
    pub port: Port,
    /// The tenant's [`Mode`]. A byte: another one would cost the longest chain of calls its last 32 of stack.
    mode: u8,
}

/// What one program tells the next of an [`Arrival`], on the same CPU and about the same packet: what was looked
/// up, and the mode that was read once.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Passed {
    slot: u32,
    mac: Mac,
    xsk: u16,
    shared: bool,
    mode: u8,
}

/// Tells the next program.
#[inline(always)]
fn pass_on(arrival: &Arrival) {
    let Some(passed) = PASSED.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's entry; an XDP program is not interrupted by another on its CPU. Field by field, as a whole
    // one would be made on the stack first.
    unsafe {
        (*passed).slot = arrival.slot;
        (*passed).mac = arrival.mac;
        (*passed).xsk = arrival.xsk;
        (*passed).shared = arrival.port == Port::Shared;
        (*passed).mode = arrival.mode;
    }
}

/// The frame as the program before this one classified it.
#[inline(always)]
pub fn resume(ctx: &XdpContext) -> Result<Arrival, Outcome> {
    let (Some(passed), Ok(l2)) = (PASSED.get(0), L2::parse(ctx)) else {
        return Err(Outcome::Drop(Counter::DropInconsistent));
    };
    let Some(network) = network(passed.slot) else {
        return Err(Outcome::Drop(Counter::DropInconsistent));
    };
    Ok(Arrival {
        l2,
        network,
        slot: passed.slot,
        mac: passed.mac,
        xsk: passed.xsk,
        port: if passed.shared {
            Port::Shared
        } else {
            Port::TenantOnly
        },
        mode: passed.mode,
    })
}

impl Arrival {
    /// A frame on the uplink for the network `to`, for the errors about it.
    #[inline(always)]
    pub fn outside(l2: L2, to: &'static Network, slot: u32) -> Self {
        let mac = l2.destination;
        Self {
            l2,
            network: to,
            slot,
            mac,
            xsk: 0,
            port: Port::Shared,
            mode: Mode::Full as u8,
        }
    }

    /// Whether the tenant is in partial failover.
    #[inline(always)]
    pub const fn partial(&self) -> bool {
        self.mode == Mode::Partial as u8
    }

    /// Whether the tenant is in full failover.
    #[inline(always)]
    pub const fn full(&self) -> bool {
        self.mode == Mode::Full as u8
    }
}

/// A frame on a port; `program` says what a frame without an attachment is.
#[inline(always)]
pub fn process(ctx: &XdpContext, program: Port) -> Outcome {
    let arrival = match arrive(ctx, program) {
        Ok(arrival) => arrival,
        Err(outcome) => return outcome,
    };
    if arrival.full() && full::is_routed(ctx, &arrival) {
        pass_on(&arrival);
        return Outcome::Jump(Jump::Full);
    }
    match arrival.l2.tags {
        0 => by_type::<14>(ctx, &arrival),
        1 => by_type::<18>(ctx, &arrival),
        _ => by_type::<22>(ctx, &arrival),
    }
}

/// Classifies a frame, or says what becomes of it because that cannot be done.
#[inline(always)]
pub fn arrive(ctx: &XdpContext, program: Port) -> Result<Arrival, Outcome> {
    let l2 = match L2::parse(ctx) {
        Ok(l2) => l2,
        Err(L2Error::Truncated) => return Err(leave(program, Counter::DropMalformed)),
        Err(L2Error::TooManyTags) => return Err(leave(program, Counter::DropTooManyTags)),
    };
    // SAFETY: the fields are read at once; preallocated entries are never unmapped.
    let attachment = unsafe {
        ATTACHMENTS.get(AttachmentKey {
            ifindex: ingress(ctx),
            outer: l2.outer,
            inner: l2.inner,
        })
    };
    let Some(attachment) = attachment else {
        return Err(leave(program, Counter::DropUnknownVlan));
    };
    let port = if attachment.flags & attachment_flags::HOST != 0 {
        Port::Shared
    } else {
        Port::TenantOnly
    };
    let mac = Mac::new(attachment.mac);
    if l2.source == mac {
        return Err(Outcome::Drop(Counter::DropLoop));
    }
    let slot = attachment.network;
    let Some(network) = network(slot) else {
        return Err(leave(port, Counter::DropInconsistent));
    };
    Ok(Arrival {
        l2,
        network,
        slot,
        mac,
        xsk: attachment.xsk,
        port,
        mode: mode(network) as u8,
    })
}

/// `L3` is where the payload begins: a constant for the verifier's and the packet's speed's sake.
#[inline(always)]
fn by_type<const L3: usize>(ctx: &XdpContext, arrival: &Arrival) -> Outcome {
    match arrival.l2.ethertype {
        ETHERTYPE_IPV4 => ipv4::<L3>(ctx, arrival),
        ETHERTYPE_IPV6 => ipv6::<L3>(ctx, arrival),
        ETHERTYPE_ARP => arp::process::<L3>(ctx, arrival),
        // A stretched network in proxy mode carries IP.
        _ => leave(arrival.port, Counter::DropNotCarried),
    }
}

/// What is the same for every IP packet before its addresses are looked at.
#[inline(always)]
fn refuse(arrival: &Arrival) -> Option<Outcome> {
    if arrival.l2.destination.is_group() {
        return Some(leave(arrival.port, Counter::DropNotCarried));
    }
    if arrival.l2.destination != arrival.mac {
        return Some(leave(arrival.port, Counter::DropForeignMac));
    }
    if !arrival.partial() {
        return Some(leave(arrival.port, Counter::DropIdle));
    }
    None
}

/// Whether this port may speak for `source`: at the provider a replica, by its address; at the
/// production site anybody of the network, or the router for hosts behind it, but never a machine
/// that is failed over.
#[inline(always)]
fn may_speak(network: &Network, source: Words, ipv6: bool) -> bool {
    let endpoint = is_endpoint(network, source);
    if is_provider(network) {
        return endpoint;
    }
    !endpoint && (prefix_of(network, source).is_some() || gateway(network, ipv6).is_some())
}

#[inline(never)]
fn ipv4<const L3: usize>(ctx: &XdpContext, arrival: &Arrival) -> Outcome {
    let Some(w) = Window::<IPV4_LEN>::at(ctx, L3) else {
        return leave(arrival.port, Counter::DropMalformed);
    };
    let first = w.get::<u8, 0>();
    let header = ((first & 0x0f) as usize) * 4;
    let total = u16::from_be(w.get::<u16, 2>()) as usize;
    if first >> 4 != 4 || header < IPV4_LEN || total < header || L3 + total > frame_len(ctx) {
        return leave(arrival.port, Counter::DropMalformed);
    }
    if let Some(outcome) = refuse(arrival) {
        return outcome;
    }
    let fragment = u16::from_be(w.get::<u16, 6>());
    let protocol = w.get::<u8, 9>();
    let source_word = w.get::<u32, 12>();
    let destination_word = w.get::<u32, 16>();
    if v4_is_link_local(source_word) || v4_is_link_local(destination_word) {
        return leave(arrival.port, Counter::DropLinkLocal);
    }
    let (source, destination) = (v4(source_word), v4(destination_word));
    let network = arrival.network;
    if !v4_is_host(destination_word) || is_directed_broadcast(network, destination_word) {
        return leave(arrival.port, Counter::DropNotCarried);
    }
    let speaks = v4_is_host(source_word) && may_speak(network, source, false);
    if is_here(network, destination) {
        return stays::<L3>(ctx, arrival, &destination, ETHERTYPE_IPV4, speaks);
    }
    if !speaks {
        return Outcome::Drop(Counter::DropSourceGuard);
    }

    let unfragmented = fragment & 0x3fff == 0;
    if total > network.mtu as usize {
        const DF: u16 = 0x4000;
        if fragment & DF != 0 {
            if fragment & 0x1fff != 0 || is_icmp_error(ctx, L3 + header, protocol) {
                return Outcome::Drop(Counter::DropNoErrorAboutError);
            }
            return icmp::frag_needed::<L3>(
                ctx,
                arrival,
                source_word,
                destination_word,
                network.mtu,
            );
        }
        if !is_secure(network) {
            return slow::hand_over(ctx, network, L3 as u16, SlowReason::Split, &destination);
        }
        // An encrypted tunnel splits and rejoins by itself.
    }

    let mut hash = source_word ^ destination_word.rotate_left(13) ^ ((protocol as u32) << 16);
    if unfragmented && (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP) {
        if header == IPV4_LEN
            && let Some(w) = Window::<8>::at(ctx, L3 + IPV4_LEN)
        {
            hash ^= w.get::<u32, 0>();
        }
        if protocol == IPPROTO_TCP {
            clamp_tcp::<L3>(ctx, header, total, network.mtu);
        }
    }
    let inner = Inner {
        ethertype: ETHERTYPE_IPV4,
        hash,
        len: total,
        slot: arrival.slot,
        xsk: arrival.xsk,
    };
    encap::into_tunnel::<L3>(ctx, network, &inner)
}

/// Clamps the MSS of a SYN; `header` and `total` are the IPv4 header's and packet's lengths. Without IP options, anything but a
/// SYN costs a load and a compare.
#[inline(always)]
fn clamp_tcp<const L3: usize>(ctx: &XdpContext, header: usize, total: usize, mtu: u16) {
    if header == IPV4_LEN {
        let Some(w) = Window::<20>::at(ctx, L3 + IPV4_LEN) else {
            return;
        };
        if w.get::<u8, 13>() & mss::SYN == 0 {
            return;
        }
    }
    mss::clamp(
        ctx,
        (L3 + header) as u32,
        (L3 + total) as u32,
        mss_for(mtu, false),
    );
}

/// Whether `word` is the network or broadcast address of one of the network's prefixes, so that it
/// isn't one host's.
#[inline(always)]
pub fn is_directed_broadcast(network: &Network, word: u32) -> bool {
    v4_may_be_edge(word)
        && prefix_of(network, v4(word))
            .is_some_and(|p| p.is_v4_network_or_broadcast(&bytes(v4(word))))
}

/// Whether the packet is itself an ICMP error, about which none may be sent (RFC 1122 section
/// 3.2.2): unreachable, source quench, redirect, time exceeded, parameter problem.
#[inline(always)]
fn is_icmp_error(ctx: &XdpContext, l4: usize, protocol: u8) -> bool {
    if protocol != appliance_common::wire::IPPROTO_ICMP {
        return false;
    }
    match mss::byte(ctx, l4 as u32) {
        Some(kind) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        None => true,
    }
}

#[inline(never)]
fn ipv6<const L3: usize>(ctx: &XdpContext, arrival: &Arrival) -> Outcome {
    let Some(w) = Window::<IPV6_LEN>::at(ctx, L3) else {
        return leave(arrival.port, Counter::DropMalformed);
    };
    let total = IPV6_LEN + u16::from_be(w.get::<u16, 4>()) as usize;
    if w.get::<u8, 0>() >> 4 != 6 || L3 + total > frame_len(ctx) {
        return leave(arrival.port, Counter::DropMalformed);
    }
    let next = w.get::<u8, 6>();
    let source = w.get::<Words, 8>();
    let destination = w.get::<Words, 24>();
    let mut kind = 0;
    if next == IPPROTO_ICMPV6 {
        let Some(w) = Window::<8>::at(ctx, L3 + IPV6_LEN) else {
            return leave(arrival.port, Counter::DropMalformed);
        };
        kind = w.get::<u8, 0>();
        if nd::is_link_scoped(kind) {
            return nd::process::<L3>(ctx, arrival, kind, total);
        }
    }
    let mut behind = (next, 0usize);
    if mss::is_extension(next) {
        let found = mss::behind_extensions(ctx, (L3 + IPV6_LEN) as u32, next, (L3 + total) as u32);
        behind = ((found >> 32) as u8, found as u32 as usize);
        // Discovery is not answered behind extension headers (no stack sends it so), nor carried.
        if behind.0 == IPPROTO_ICMPV6
            && mss::byte(ctx, behind.1 as u32).is_none_or(nd::is_link_scoped)
        {
            return leave(arrival.port, Counter::DropNotCarried);
        }
    }
    if let Some(outcome) = refuse(arrival) {
        return outcome;
    }
    if is_link_local(source) || is_link_local(destination) {
        return leave(arrival.port, Counter::DropLinkLocal);
    }
    if !v6_is_host(destination) {
        return leave(arrival.port, Counter::DropNotCarried);
    }
    let network = arrival.network;
    let speaks = v6_is_host(source) && may_speak(network, source, true);
    if is_here(network, destination) {
        return stays::<L3>(ctx, arrival, &destination, ETHERTYPE_IPV6, speaks);
    }
    if !speaks {
        return Outcome::Drop(Counter::DropSourceGuard);
    }
    if total > network.mtu as usize {
        // Types below 128 are errors (RFC 4443 section 2.1).
        if next == IPPROTO_ICMPV6 && kind < 128 {
            return Outcome::Drop(Counter::DropNoErrorAboutError);
        }
        return icmp::packet_too_big::<L3>(ctx, arrival, &source, &destination, network.mtu);
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
        }
        if next == IPPROTO_TCP {
            let syn = Window::<20>::at(ctx, L3 + IPV6_LEN)
                .is_some_and(|w| w.get::<u8, 13>() & mss::SYN != 0);
            if syn {
                tcp = L3 + IPV6_LEN;
            }
        }
    } else if mss::is_extension(next) && behind.0 == IPPROTO_TCP {
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
        slot: arrival.slot,
        xsk: arrival.xsk,
    };
    encap::into_tunnel::<L3>(ctx, network, &inner)
}

/// A packet to our MAC for a host on this same side: sent by a neighbour cache that is not corrected
/// yet. It is forwarded, so that a failback loses nothing.
#[inline(always)]
fn stays<const L3: usize>(
    ctx: &XdpContext,
    arrival: &Arrival,
    destination: &Words,
    ethertype: u16,
    speaks: bool,
) -> Outcome {
    let network = arrival.network;
    match neighbour(network, *destination) {
        Some(_) if !speaks => Outcome::Drop(Counter::DropSourceGuard),
        Some(neighbour) => encap::deliver::<L3>(ctx, neighbour, ethertype, Counter::Hairpinned),
        // Our own address is never in the table: this is how the kernel gets its packets.
        None if arrival.port == Port::Shared => Outcome::Pass(Counter::Passed),
        None if !speaks => Outcome::Drop(Counter::DropSourceGuard),
        None if prefix_of(network, *destination).is_none() => {
            Outcome::Drop(Counter::DropSplitHorizon)
        }
        None => slow::hand_over(ctx, network, L3 as u16, SlowReason::Unresolved, destination),
    }
}
