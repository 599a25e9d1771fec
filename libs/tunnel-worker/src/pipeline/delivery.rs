//! Delivery of an opened packet: the checks of its addresses, its host, and the frame to it.

use appliance_common::{
    addr::{Address, Prefix},
    counters::Counter,
    events::{SlowHeader, SlowReason},
    limits::SLOW_PACKET_BYTES,
    maps::{HostKey, Network},
    wire::ETHERTYPE_IPV6,
};
use tunnel::Instant;
use xsk::Sent;

use super::{
    counters::WorkerCounters,
    inner::{self, Inner},
    interface::{Event, PacketSink},
    tables::{Tables, gateway, is_provider, prefix_of},
};

/// Interval between two reports that a host is in use.
const REPORT_USE_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// Sends a packet from the tunnel of `peer` to its host. For a WireGuard peer, with its allowed
/// addresses.
pub(super) fn deliver(
    now: Instant,
    tables: &mut Tables,
    counters: &WorkerCounters,
    (peer, allowed): (u32, Option<&[Prefix]>),
    vni: u32,
    packet: &[u8],
    wire: &mut impl PacketSink,
) -> Result<(), Counter> {
    let slot = tables.slot(vni).ok_or(Counter::DropUnknownVni)?;
    let network = *tables.network(slot).ok_or(Counter::DropUnknownVni)?;
    if allowed.is_none() && network.peer != peer {
        return Err(Counter::DropWrongPeer);
    }
    if !tables.is_partial(&network) {
        return Err(Counter::DropIdle);
    }
    let inner = inner::parse(packet)?;
    let prefix = prefix_of(&network, &inner.destination);
    if prefix.is_some_and(|prefix| prefix.is_v4_network_or_broadcast(&inner.destination)) {
        return Err(Counter::DropNotCarried);
    }
    // The source must be an address of this peer: packets to it must go to this peer, too.
    if let Some(allowed) = allowed
        && (!allowed.iter().any(|prefix| prefix.contains(&inner.source))
            || tables.peer_of(&network, &inner.source) != peer)
    {
        return Err(Counter::DropNotAllowed);
    }
    if !inner.from_host || tables.is_here(&network, inner.source) {
        return Err(Counter::DropInnerSource);
    }
    if !tables.is_here(&network, inner.destination) {
        return Err(Counter::DropSplitHorizon);
    }
    if inner.discovery {
        return Err(Counter::DropNotCarried);
    }
    let ipv6 = inner.ethertype == ETHERTYPE_IPV6;
    let mut next_hop = inner.destination;
    if !is_provider(&network) && prefix.is_none() {
        next_hop = gateway(&network, ipv6).ok_or(Counter::DropSplitHorizon)?;
    }
    let packet = &packet[..inner.len];
    let key = HostKey {
        vni,
        address: next_hop,
    };
    if packet.len() > usize::from(network.lan_mtu) {
        return Err(Counter::DropTooLarge);
    }
    let Some(host) = tables.host(&key) else {
        return pass_to_slow_path(&network, next_hop, packet, &inner, wire, counters);
    };
    if host.neighbour.is_absent() {
        return Err(Counter::DropHostAbsent);
    }
    if host
        .reported
        .is_none_or(|reported| now.since(reported) >= REPORT_USE_EVERY)
    {
        host.reported = Some(now);
        wire.event(Event::HostUsed { key });
    }
    let neighbour = &host.neighbour;
    let l2_len = usize::from(neighbour.l2_len);
    // User space writes no other length.
    if !matches!(l2_len, 14 | 18 | 22) {
        return Err(Counter::DropInconsistent);
    }
    let mut clamped = false;
    let sent = wire.transmit(neighbour.ifindex, |frame| {
        let frame = frame.get_mut(..l2_len + packet.len())?;
        let (head, body) = frame.split_at_mut(l2_len);
        head.copy_from_slice(&neighbour.l2[..l2_len]);
        head[l2_len - 2..].copy_from_slice(&inner.ethertype.to_be_bytes());
        body.copy_from_slice(packet);
        if let Some(at) = inner.syn {
            clamped = inner::clamp_mss(body, at, network.mtu, ipv6);
        }
        Some(l2_len + packet.len())
    });
    match sent {
        Sent::Queued => {}
        Sent::Abandoned => return Err(Counter::DropTooLarge),
        Sent::Full => return Err(Counter::DropTxFull),
    }
    counters.received(slot, packet.len() as u64);
    counters.count(Counter::Decapsulated, 1);
    if clamped {
        counters.count(Counter::MssClamped, 1);
    }
    Ok(())
}

/// Hands the packet to user space, where it waits until its host is resolved.
#[cold]
fn pass_to_slow_path(
    network: &Network,
    next_hop: Address,
    packet: &[u8],
    inner: &Inner,
    wire: &mut impl PacketSink,
    counters: &WorkerCounters,
) -> Result<(), Counter> {
    // Clamped here, because no later step does it.
    let mut copy = [0; SLOW_PACKET_BYTES];
    let waiting = copy.get_mut(..packet.len()).ok_or(Counter::DropTooLarge)?;
    waiting.copy_from_slice(packet);
    let clamped = inner.syn.is_some_and(|at| {
        let ipv6 = inner.ethertype == ETHERTYPE_IPV6;
        inner::clamp_mss(waiting, at, network.mtu, ipv6)
    });
    let header = SlowHeader {
        vni: network.vni,
        ifindex: 0,
        len: packet.len() as u32,
        reason: SlowReason::Unresolved as u16,
        l3: 0,
        next_hop,
    };
    if !wire.unresolved(&header, waiting) {
        return Err(Counter::DropSlowRingFull);
    }
    counters.count(Counter::SlowUnresolved, 1);
    if clamped {
        counters.count(Counter::MssClamped, 1);
    }
    Ok(())
}
