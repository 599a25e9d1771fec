//! The slow path: packets that the XDP programs cannot finish.
//!
//! For: splitting IPv4 packets that are too large for the tunnel, the uplink or their host's port,
//! queueing packets until their host is resolved, and passing translated packets to the kernel
//! while their next hop is unresolved. Never: input, output, a clock or a map; records go in,
//! [`Output`]s come out. The records hold tenants' traffic, so every length is checked and every
//! queue is bounded.
//!
//! ```text
//!   SLOW_PACKETS ─▶ packet ─┬─ Split ────────────▶ fragments, each encapsulated ──▶ Send
//!                           ├─ UplinkUnresolved ─▶ translated packet ─────────────▶ Route
//!                           ├─ UplinkSplit ──────▶ its fragments ─────────────────▶ Route
//!                           ├─ HostSplit ────────▶ its fragments, as Unresolved
//!                           └─ Unresolved ───────▶ queue of the host ─┬─ resolved ▶ Send, in order
//!                                  │                                  └─ failed, or after 3 s
//!                                  └─ first packet ─▶ Resolve                     ▶ dropped, counted
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use appliance_common::events::{SlowHeader, SlowReason};
use appliance_common::maps::{HostKey, Neighbour, Network, Peer, network_flags, peer_flags};
use appliance_common::wire::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_LEN, OUTER_V6_LEN, source_port,
};
use packet_rules::{checksum, ipv6};

use crate::frame::{self, SplitError, ipv4_lengths, split_v4};

/// Limits of the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Packets queued for one host. The newest packet replaces the oldest (RFC 4861 section 7.2.2).
    pub packets_per_host: usize,
    /// Hosts with queued packets.
    pub hosts: usize,
    /// Hosts with queued packets in one network, so that one tenant cannot take all places.
    pub hosts_per_network: usize,
    /// Bytes queued in one network, so that one tenant cannot take all memory.
    pub bytes_per_network: usize,
    /// Bytes queued in total.
    pub bytes_total: usize,
    /// Maximum time in a queue.
    pub wait: Duration,
    /// Outputs not yet taken by [`SlowPath::poll`].
    pub outputs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packets_per_host: 32,
            hosts: 16_384,
            hosts_per_network: 1024,
            bytes_per_network: 1 << 20,
            bytes_total: 8 << 20,
            wait: Duration::from_secs(3),
            outputs: 65_536,
        }
    }
}

/// The map contents that the slow path needs.
pub trait Lookup {
    /// The network of a VNI.
    fn network(&self, vni: u32) -> Option<Network>;
    /// The peer in a slot of `PEERS`.
    fn peer(&self, slot: u32) -> Option<Peer>;
    /// The MTU of the uplink, bytes; zero while no tenant is in full failover.
    fn uplink_mtu(&self) -> u16;
}

/// An action that the caller must carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a frame.
    Send {
        /// Interface to send it on.
        ifindex: u32,
        /// The frame, from the Ethernet header on, without FCS.
        frame: Vec<u8>,
    },
    /// Send an IP packet through the kernel's routing, out of the uplink. The kernel resolves the
    /// next hop.
    Route {
        /// The packet, from the IP header on.
        packet: Vec<u8>,
    },
    /// Resolve a host: [`NeighbourTable::resolve`](super::neighbour::NeighbourTable::resolve).
    Resolve {
        /// The host.
        key: HostKey,
    },
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal;)+) => {
        /// Why the slow path dropped a packet.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable name in `status` and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

drop_reasons! {
    /// The record has a reason that this version does not know.
    UnknownReason = "slow_drop_unknown_reason";
    /// The lengths in the record or in the IP header are inconsistent.
    Malformed = "slow_drop_malformed";
    /// The IPv4 header checksum is wrong.
    Checksum = "slow_drop_checksum";
    /// The network does not exist, or no longer exists.
    UnknownNetwork = "slow_drop_unknown_network";
    /// The network's peer is missing or has no resolved next hop.
    NoPeer = "slow_drop_no_peer";
    /// The packet must be split but is not IPv4 or has DF set.
    NotSplittable = "slow_drop_not_splittable";
    /// The fragment would end beyond 65 535 bytes.
    TooLong = "slow_drop_too_long";
    /// The next hop is not a unicast address.
    NoNextHop = "slow_drop_no_next_hop";
    /// A newer packet to the same host replaced this one.
    HostQueueFull = "slow_drop_host_queue_full";
    /// Too many hosts or bytes are queued.
    QueueFull = "slow_drop_queue_full";
    /// Too many outputs are queued.
    OutputFull = "slow_drop_output_full";
    /// The host did not answer.
    HostFailed = "slow_drop_host_failed";
    /// The host was not resolved in time.
    Expired = "slow_drop_expired";
}

/// Counts other than drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    split: u64,
    fragments: u64,
    waited: u64,
    released: u64,
    routed: u64,
}

/// The slow path. See the [module](self).
///
/// Call [`poll`](Self::poll) until it returns `None` after every other call and whenever
/// [`next_deadline`](Self::next_deadline) has come.
#[derive(Debug)]
pub struct SlowPath {
    limits: Limits,
    queues: BTreeMap<HostKey, Queue>,
    /// Expiry of the oldest packet of each queue.
    expiries: BTreeSet<(Instant, HostKey)>,
    /// Hosts and bytes queued by VNI, and bytes in total.
    queued: BTreeMap<u32, Queued>,
    queued_bytes_total: usize,
    outputs: VecDeque<Output>,
    counts: Counts,
    dropped: [u64; DropReason::ALL.len()],
}

/// Hosts and bytes queued in one network; never zero hosts.
#[derive(Clone, Copy, Debug, Default)]
struct Queued {
    hosts: usize,
    bytes: usize,
}

/// Packets queued for one host; never empty.
#[derive(Debug)]
struct Queue {
    packets: VecDeque<QueuedPacket>,
    expires: Instant,
}

#[derive(Debug)]
struct QueuedPacket {
    queued_at: Instant,
    ethertype: u16,
    packet: Vec<u8>,
}

impl SlowPath {
    /// A slow path without packets.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            queues: BTreeMap::new(),
            expiries: BTreeSet::new(),
            queued: BTreeMap::new(),
            queued_bytes_total: 0,
            outputs: VecDeque::new(),
            counts: Counts::default(),
            dropped: [0; DropReason::ALL.len()],
        }
    }

    /// Handles a record of the ring `SLOW_PACKETS`. Any record results in outputs, a queued packet,
    /// or a counted [`DropReason`].
    pub fn packet(&mut self, now: Instant, header: &SlowHeader, frame: &[u8], lookup: &dyn Lookup) {
        let outcome = match SlowReason::from_u16(header.reason) {
            Some(SlowReason::Split) => self.split(header, frame, lookup),
            Some(SlowReason::Unresolved | SlowReason::HostSplit) => {
                self.enqueue(now, header, frame, lookup)
            }
            Some(SlowReason::UplinkUnresolved | SlowReason::UplinkSplit) => {
                self.route(header, frame, lookup)
            }
            // The daemon gives these to other engines.
            Some(
                SlowReason::RouterSolicitation | SlowReason::Fragment | SlowReason::GatewayEcho,
            )
            | None => Err(DropReason::UnknownReason),
        };
        if let Err(reason) = outcome {
            self.count_drop(reason, 1);
        }
    }

    /// Handles a resolved host: its packets are sent in order.
    pub fn resolved(&mut self, _now: Instant, key: HostKey, neighbour: &Neighbour) {
        let Some(queue) = self.take_queue(key) else {
            return;
        };
        for queued in queue.packets {
            let mut frame =
                frame::with_ethernet_header(neighbour, queued.ethertype, queued.packet.len());
            frame.extend_from_slice(&queued.packet);
            let sent = self.push_output(Output::Send {
                ifindex: neighbour.ifindex,
                frame,
            });
            match sent {
                Ok(()) => self.counts.released += 1,
                Err(reason) => self.count_drop(reason, 1),
            }
        }
    }

    /// Handles a host that did not answer: its packets are dropped.
    pub fn failed(&mut self, _now: Instant, key: HostKey) {
        if let Some(queue) = self.take_queue(key) {
            self.count_drop(DropReason::HostFailed, queue.packets.len() as u64);
        }
    }

    /// The next output, or `None` until another event or [`next_deadline`](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<Output> {
        while let Some((at, key)) = self.expiries.first().copied() {
            if at > now {
                break;
            }
            self.expire(now, key);
        }
        self.outputs.pop_front()
    }

    /// When the oldest packet expires and [`poll`](Self::poll) must be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// All counts since [`new`](Self::new), by stable name: `slow_split_packets`,
    /// `slow_split_pieces`, `slow_waited`, `slow_released`, `slow_outside`, then one per
    /// [`DropReason`].
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counts = [
            ("slow_split_packets", self.counts.split),
            ("slow_split_pieces", self.counts.fragments),
            ("slow_waited", self.counts.waited),
            ("slow_released", self.counts.released),
            ("slow_outside", self.counts.routed),
        ];
        let dropped = DropReason::ALL.iter().map(|r| (r.name(), self.dropped(*r)));
        counts.into_iter().chain(dropped).collect()
    }

    /// Packets dropped for one reason.
    #[must_use]
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Splits a packet and sends the fragments into the tunnel.
    fn split(
        &mut self,
        header: &SlowHeader,
        frame: &[u8],
        lookup: &dyn Lookup,
    ) -> Result<(), DropReason> {
        let packet = ip_packet(header, frame)?;
        let network = active_network(header.vni, lookup)?;
        let peer = lookup
            .peer(network.peer)
            .filter(|peer| peer.flags & peer_flags::RESOLVED != 0)
            .filter(|peer| usize::from(peer.header_len) <= OUTER_V6_LEN)
            .ok_or(DropReason::NoPeer)?;
        if ethertype(packet)? != ETHERTYPE_IPV4 {
            return Err(DropReason::NotSplittable);
        }
        let fragments = split_v4(packet, usize::from(network.mtu)).map_err(not_split)?;
        // A part of the fragments is of no use to the receiver: send all or none.
        if self.outputs.len() + fragments.len() > self.limits.outputs {
            return Err(DropReason::OutputFull);
        }
        let port = source_port(flow_hash(packet));
        for fragment in &fragments {
            let mut out = vec![0u8; usize::from(peer.header_len) + ETH_LEN];
            peer.write_header(&mut out, header.vni, port, ETHERTYPE_IPV4, fragment.len())
                .ok_or(DropReason::TooLong)?;
            out.extend_from_slice(fragment);
            self.push_output(Output::Send {
                ifindex: peer.ifindex,
                frame: out,
            })?;
            self.counts.fragments += 1;
        }
        self.counts.split += 1;
        Ok(())
    }

    /// Passes a translated packet to the kernel, in fragments if it is over the uplink's MTU: the
    /// kernel splits no packet of a raw socket that is longer.
    fn route(
        &mut self,
        header: &SlowHeader,
        frame: &[u8],
        lookup: &dyn Lookup,
    ) -> Result<(), DropReason> {
        let packet = ip_packet(header, frame)?;
        active_network(header.vni, lookup)?;
        let packets = self.fitting(packet, lookup.uplink_mtu())?;
        // A part of the fragments is of no use to the receiver: send all or none.
        if self.outputs.len() + packets.len() > self.limits.outputs {
            return Err(DropReason::OutputFull);
        }
        for packet in packets {
            self.push_output(Output::Route { packet })?;
        }
        self.counts.routed += 1;
        Ok(())
    }

    /// An IP packet in as many fragments as `mtu` asks for. IPv6, and any packet with `mtu` zero,
    /// stays whole.
    fn fitting(&mut self, packet: &[u8], mtu: u16) -> Result<Vec<Vec<u8>>, DropReason> {
        let mtu = usize::from(mtu);
        if mtu == 0 || packet.len() <= mtu || ethertype(packet)? != ETHERTYPE_IPV4 {
            return Ok(vec![packet.to_vec()]);
        }
        let mut packet = packet.to_vec();
        identify(&mut packet);
        let fragments = split_v4(&packet, mtu).map_err(not_split)?;
        self.counts.split += 1;
        self.counts.fragments += fragments.len() as u64;
        Ok(fragments)
    }

    /// Queues a packet until its host is resolved; in full failover in fragments, if it is over the
    /// MTU of the host's port.
    fn enqueue(
        &mut self,
        now: Instant,
        header: &SlowHeader,
        frame: &[u8],
        lookup: &dyn Lookup,
    ) -> Result<(), DropReason> {
        let packet = ip_packet(header, frame)?;
        let network = active_network(header.vni, lookup)?;
        let key = HostKey {
            vni: header.vni,
            address: header.next_hop,
        };
        if key.address == appliance_common::addr::UNSPECIFIED || key.address[0] == 0xff {
            return Err(DropReason::NoNextHop);
        }
        if header.reason != SlowReason::HostSplit as u16 {
            return self.enqueue_for(now, key, packet);
        }
        for fragment in self.fitting(packet, network.lan_mtu)? {
            self.enqueue_for(now, key, &fragment)?;
        }
        Ok(())
    }

    /// Queues a packet for a host.
    fn enqueue_for(&mut self, now: Instant, key: HostKey, packet: &[u8]) -> Result<(), DropReason> {
        let ethertype = ethertype(packet)?;
        if let Some(queue) = self.queues.get_mut(&key) {
            // Before the check of bytes: the oldest packet goes even if the newest finds no room.
            if queue.packets.len() >= self.limits.packets_per_host.max(1)
                && let Some(oldest) = queue.packets.pop_front()
            {
                self.free(key.vni, oldest.packet.len(), 0);
                self.count_drop(DropReason::HostQueueFull, 1);
            }
        } else if self.queues.len() >= self.limits.hosts
            || self.queued_in(key.vni).hosts >= self.limits.hosts_per_network
        {
            return Err(DropReason::QueueFull);
        }
        if self.queued_in(key.vni).bytes + packet.len() > self.limits.bytes_per_network
            || self.queued_bytes_total + packet.len() > self.limits.bytes_total
        {
            self.update_expiry(key);
            return Err(DropReason::QueueFull);
        }
        if !self.queues.contains_key(&key) {
            self.push_output(Output::Resolve { key })?;
        }
        let queued = self.queued.entry(key.vni).or_default();
        queued.bytes += packet.len();
        queued.hosts += usize::from(!self.queues.contains_key(&key));
        self.queued_bytes_total += packet.len();
        self.counts.waited += 1;
        let queue = self.queues.entry(key).or_insert_with(|| Queue {
            packets: VecDeque::new(),
            expires: now + self.limits.wait,
        });
        queue.packets.push_back(QueuedPacket {
            queued_at: now,
            ethertype,
            packet: packet.to_vec(),
        });
        self.update_expiry(key);
        Ok(())
    }

    /// Sets the expiry of a queue to that of its oldest packet, and removes an empty queue.
    fn update_expiry(&mut self, key: HostKey) {
        let Some(queue) = self.queues.get_mut(&key) else {
            return;
        };
        self.expiries.remove(&(queue.expires, key));
        match queue.packets.front() {
            Some(oldest) => {
                queue.expires = oldest.queued_at + self.limits.wait;
                self.expiries.insert((queue.expires, key));
            }
            None => {
                self.queues.remove(&key);
                self.free(key.vni, 0, 1);
            }
        }
    }

    /// Drops the packets of a host whose time is over.
    fn expire(&mut self, now: Instant, key: HostKey) {
        let mut bytes = 0;
        let mut dropped = 0;
        if let Some(queue) = self.queues.get_mut(&key) {
            while let Some(oldest) = queue.packets.front()
                && oldest.queued_at + self.limits.wait <= now
            {
                bytes += oldest.packet.len();
                dropped += 1;
                queue.packets.pop_front();
            }
        }
        self.free(key.vni, bytes, 0);
        self.count_drop(DropReason::Expired, dropped);
        self.update_expiry(key);
        if self.queues.contains_key(&key) {
            // The remaining packets came later: request the host again for them. If the outputs are
            // full, the packets expire later.
            let _ = self.push_output(Output::Resolve { key });
        }
    }

    /// Removes the queue of a host and returns it.
    fn take_queue(&mut self, key: HostKey) -> Option<Queue> {
        let queue = self.queues.remove(&key)?;
        self.expiries.remove(&(queue.expires, key));
        let bytes = queue.packets.iter().map(|w| w.packet.len()).sum();
        self.free(key.vni, bytes, 1);
        Some(queue)
    }

    /// Hosts and bytes queued in a network.
    fn queued_in(&self, vni: u32) -> Queued {
        self.queued.get(&vni).copied().unwrap_or_default()
    }

    /// Subtracts bytes and hosts that left the queues of a network.
    fn free(&mut self, vni: u32, bytes: usize, hosts: usize) {
        self.queued_bytes_total -= bytes;
        if let Some(queued) = self.queued.get_mut(&vni) {
            queued.bytes -= bytes;
            queued.hosts -= hosts;
            if queued.hosts == 0 {
                self.queued.remove(&vni);
            }
        }
    }

    fn push_output(&mut self, output: Output) -> Result<(), DropReason> {
        if self.outputs.len() >= self.limits.outputs {
            return Err(DropReason::OutputFull);
        }
        self.outputs.push_back(output);
        Ok(())
    }

    fn count_drop(&mut self, reason: DropReason, packets: u64) {
        self.dropped[reason as usize] += packets;
    }
}

const fn not_split(error: SplitError) -> DropReason {
    match error {
        SplitError::Malformed => DropReason::Malformed,
        SplitError::Checksum => DropReason::Checksum,
        SplitError::DontFragment | SplitError::MtuTooSmall => DropReason::NotSplittable,
        SplitError::TooLong => DropReason::TooLong,
    }
}

/// Gives a whole IPv4 packet whose identification is zero another one. The kernel gives each packet
/// of a raw socket that has none its own, so its fragments would not belong together.
fn identify(packet: &mut [u8]) {
    if packet[4..6] != [0, 0] || packet[6] & 0x3f != 0 || packet[7] != 0 {
        return;
    }
    let id = (flow_hash(packet) as u16 | 1).to_be_bytes();
    let check = u16::from_ne_bytes([packet[10], packet[11]]);
    let check = checksum::update(check, 0, u16::from_ne_bytes(id));
    packet[4..6].copy_from_slice(&id);
    packet[10..12].copy_from_slice(&check.to_ne_bytes());
}

/// The active network of a VNI.
fn active_network(vni: u32, lookup: &dyn Lookup) -> Result<Network, DropReason> {
    lookup
        .network(vni)
        .filter(|network| network.flags & network_flags::ACTIVE != 0)
        .ok_or(DropReason::UnknownNetwork)
}

/// The IP packet of a record, without Ethernet padding. Its lengths are checked.
fn ip_packet<'a>(header: &SlowHeader, frame: &'a [u8]) -> Result<&'a [u8], DropReason> {
    let bytes = frame
        .get(usize::from(header.l3)..)
        .ok_or(DropReason::Malformed)?;
    let len = match bytes.first().map(|first| first >> 4) {
        Some(4) => ipv4_lengths(bytes).map(|lengths| lengths.total),
        Some(6) if bytes.len() >= IPV6_LEN => {
            let payload = u16::from_be_bytes([bytes[4], bytes[5]]);
            ipv6::total_len(bytes[0], payload, 0, bytes.len())
        }
        _ => None,
    };
    len.and_then(|len| bytes.get(..len))
        .ok_or(DropReason::Malformed)
}

/// The EtherType of an IP packet.
fn ethertype(packet: &[u8]) -> Result<u16, DropReason> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => Ok(ETHERTYPE_IPV4),
        Some(6) => Ok(ETHERTYPE_IPV6),
        _ => Err(DropReason::Malformed),
    }
}

/// A hash (FNV-1a) of the fields that all fragments of an IPv4 packet share: addresses and
/// identification. `packet` has at least an IPv4 header.
fn flow_hash(packet: &[u8]) -> u32 {
    packet[12..20]
        .iter()
        .chain(&packet[4..6])
        .fold(0x811c_9dc5, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        })
}

#[cfg(test)]
mod tests;
