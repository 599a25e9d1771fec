//! Packets the programs can't finish: too large for the tunnel, or for a host or a next hop not resolved yet.
//!
//! For: splitting IPv4 packets into pieces that fit the tunnel, and holding packets until the
//! neighbour engine has an answer. Never: input, output, a clock or a map of its own; records go in,
//! [`Output`]s come out. What goes in is a tenant's traffic, so every length is checked and every
//! queue has a bound.
//!
//! ```text
//!   SLOW_PACKETS ─▶ packet ─┬─ Split ──────▶ pieces, each encapsulated ───────────▶ Send
//!                           ├─ Outside ────▶ translated: the kernel knows the way ▶ Outside
//!                           └─ Unresolved ─▶ queue per host ─┬─ resolved ─────────▶ Send, in order
//!                                 │                          ├─ failed, 3 s over ─▶ dropped, counted
//!                                 └─ first of its host ─────▶ Resolve
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use appliance_common::events::{SlowHeader, SlowReason};
use appliance_common::maps::{HostKey, Neighbour, Network, Peer, network_flags, peer_flags};
use appliance_common::wire::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_LEN, OUTER_V6_LEN, source_port,
};

use crate::frame::{self, SplitError, ipv4_header_len, split_v4};

/// Bounds on what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Packets that wait for one host; the oldest makes room for the newest (RFC 4861 section 7.2.2).
    pub packets_per_host: usize,
    /// Hosts that packets wait for.
    pub hosts: usize,
    /// Bytes that wait in one network, so that one tenant can't take all.
    pub bytes_per_network: usize,
    /// Bytes that wait in all.
    pub bytes_total: usize,
    /// How long a packet waits.
    pub wait: Duration,
    /// Outputs made and not yet taken by [`SlowPath::poll`].
    pub outputs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packets_per_host: 32,
            hosts: 16_384,
            bytes_per_network: 1 << 20,
            bytes_total: 8 << 20,
            wait: Duration::from_secs(3),
            outputs: 65_536,
        }
    }
}

/// What the slow path must know of the maps.
pub trait Lookup {
    /// The network of a VNI.
    fn network(&self, vni: u32) -> Option<Network>;
    /// The peer in a slot of `PEERS`.
    fn peer(&self, slot: u32) -> Option<Peer>;
}

/// What the slow path asks of its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a frame.
    Send {
        /// Interface to send it on.
        ifindex: u32,
        /// The frame, from the Ethernet header on, without FCS.
        frame: Vec<u8>,
    },
    /// Have the kernel send an IP packet out of the uplink; it resolves the next hop.
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

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal;)+) => {
        /// Why a packet was dropped on the slow path.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Every refusal.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable name, as printed and exported.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

refusals! {
    /// The record's reason is not one this version knows.
    UnknownReason = "slow_drop_unknown_reason";
    /// The record or the IP header contradicts itself.
    Malformed = "slow_drop_malformed";
    /// The IPv4 header checksum is wrong.
    Checksum = "slow_drop_checksum";
    /// The network is not (any longer) there.
    UnknownNetwork = "slow_drop_unknown_network";
    /// The network's peer is missing or has no resolved next hop.
    NoPeer = "slow_drop_no_peer";
    /// To be split, but not IPv4 or marked DF.
    NotSplittable = "slow_drop_not_splittable";
    /// A fragment that would end beyond 65 535 bytes.
    TooLong = "slow_drop_too_long";
    /// The next hop is no address.
    NoNextHop = "slow_drop_no_next_hop";
    /// Made room for a newer packet to the same host.
    HostQueueFull = "slow_drop_host_queue_full";
    /// Too many hosts or bytes wait.
    QueueFull = "slow_drop_queue_full";
    /// Too many outputs wait to be sent.
    OutputFull = "slow_drop_output_full";
    /// The host did not answer.
    HostFailed = "slow_drop_host_failed";
    /// The host was not resolved in time.
    Expired = "slow_drop_expired";
}

/// What was done, beside the refusals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Done {
    split: u64,
    pieces: u64,
    waited: u64,
    released: u64,
    outside: u64,
}

/// The slow path. See the [module](self).
///
/// Call [`poll`](Self::poll) until it returns `None` after every other call and whenever
/// [`next_deadline`](Self::next_deadline) has come.
#[derive(Debug)]
pub struct SlowPath {
    limits: Limits,
    queues: BTreeMap<HostKey, Queue>,
    /// When each queue's oldest packet expires.
    expiries: BTreeSet<(Instant, HostKey)>,
    /// Bytes that wait, per network and in all.
    bytes: BTreeMap<u32, usize>,
    bytes_total: usize,
    outputs: VecDeque<Output>,
    done: Done,
    refused: [u64; DropReason::ALL.len()],
}

/// What waits for one host; never empty.
#[derive(Debug)]
struct Queue {
    packets: VecDeque<Waiting>,
    expires: Instant,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    ethertype: u16,
    packet: Vec<u8>,
}

impl SlowPath {
    /// A slow path with nothing in it.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            queues: BTreeMap::new(),
            expiries: BTreeSet::new(),
            bytes: BTreeMap::new(),
            bytes_total: 0,
            outputs: VecDeque::new(),
            done: Done::default(),
            refused: [0; DropReason::ALL.len()],
        }
    }

    /// A record of the ring `SLOW_PACKETS`. Whatever is in it, the outcome is an output, a packet that
    /// waits, or a counted [`DropReason`].
    pub fn packet(&mut self, now: Instant, header: &SlowHeader, frame: &[u8], lookup: &dyn Lookup) {
        let outcome = match SlowReason::from_u16(header.reason) {
            Some(SlowReason::Split) => self.split(header, frame, lookup),
            Some(SlowReason::Unresolved) => self.wait(now, header, frame, lookup),
            Some(SlowReason::UplinkUnresolved) => self.outside(header, frame, lookup),
            // The daemon has others of its own for these.
            Some(SlowReason::RouterSolicitation | SlowReason::Fragment) | None => {
                Err(DropReason::UnknownReason)
            }
        };
        if let Err(refusal) = outcome {
            self.refuse(refusal, 1);
        }
    }

    /// A host is resolved: what waits for it is sent, in order.
    pub fn resolved(&mut self, _now: Instant, key: HostKey, neighbour: &Neighbour) {
        let Some(queue) = self.take(key) else {
            return;
        };
        for waiting in queue.packets {
            let mut frame = frame::with_l2(neighbour, waiting.ethertype, waiting.packet.len());
            frame.extend_from_slice(&waiting.packet);
            let sent = self.output(Output::Send {
                ifindex: neighbour.ifindex,
                frame,
            });
            match sent {
                Ok(()) => self.done.released += 1,
                Err(refusal) => self.refuse(refusal, 1),
            }
        }
    }

    /// A host did not answer: what waits for it is dropped.
    pub fn failed(&mut self, _now: Instant, key: HostKey) {
        if let Some(queue) = self.take(key) {
            self.refuse(DropReason::HostFailed, queue.packets.len() as u64);
        }
    }

    /// The next output, or `None` until another call or [`next_deadline`](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<Output> {
        while let Some((at, key)) = self.expiries.first().copied() {
            if at > now {
                break;
            }
            self.expire(now, key);
        }
        self.outputs.pop_front()
    }

    /// When the oldest packet expires.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Everything counted since [`new`](Self::new), by stable name: `slow_split_packets`,
    /// `slow_split_pieces`, `slow_waited`, `slow_released`, `slow_outside`, then one per [`DropReason`].
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let done = [
            ("slow_split_packets", self.done.split),
            ("slow_split_pieces", self.done.pieces),
            ("slow_waited", self.done.waited),
            ("slow_released", self.done.released),
            ("slow_outside", self.done.outside),
        ];
        let refused = DropReason::ALL.iter().map(|r| (r.name(), self.refused(*r)));
        done.into_iter().chain(refused).collect()
    }

    /// Packets dropped for one reason.
    #[must_use]
    pub const fn refused(&self, refusal: DropReason) -> u64 {
        self.refused[refusal as usize]
    }

    /// Splits a packet and sends the pieces into the tunnel.
    fn split(
        &mut self,
        header: &SlowHeader,
        frame: &[u8],
        lookup: &dyn Lookup,
    ) -> Result<(), DropReason> {
        let packet = ip_packet(header, frame)?;
        let network = network(header.vni, lookup)?;
        let peer = lookup
            .peer(network.peer)
            .filter(|peer| peer.flags & peer_flags::RESOLVED != 0)
            .filter(|peer| usize::from(peer.header_len) <= OUTER_V6_LEN)
            .ok_or(DropReason::NoPeer)?;
        if ethertype(packet)? != ETHERTYPE_IPV4 {
            return Err(DropReason::NotSplittable);
        }
        let pieces = split_v4(packet, usize::from(network.mtu)).map_err(|error| match error {
            SplitError::Malformed => DropReason::Malformed,
            SplitError::Checksum => DropReason::Checksum,
            SplitError::DontFragment | SplitError::MtuTooSmall => DropReason::NotSplittable,
            SplitError::TooLong => DropReason::TooLong,
        })?;
        // Half a packet is of no use to anybody: all pieces or none.
        if self.outputs.len() + pieces.len() > self.limits.outputs {
            return Err(DropReason::OutputFull);
        }
        let port = source_port(flow_hash(packet));
        for piece in &pieces {
            let mut out = vec![0u8; usize::from(peer.header_len) + ETH_LEN];
            peer.write_header(&mut out, header.vni, port, ETHERTYPE_IPV4, piece.len())
                .ok_or(DropReason::TooLong)?;
            out.extend_from_slice(piece);
            self.output(Output::Send {
                ifindex: peer.ifindex,
                frame: out,
            })?;
            self.done.pieces += 1;
        }
        self.done.split += 1;
        Ok(())
    }

    /// Gives a translated packet to the kernel.
    fn outside(
        &mut self,
        header: &SlowHeader,
        frame: &[u8],
        lookup: &dyn Lookup,
    ) -> Result<(), DropReason> {
        let packet = ip_packet(header, frame)?;
        network(header.vni, lookup)?;
        self.output(Output::Route {
            packet: packet.to_vec(),
        })?;
        self.done.outside += 1;
        Ok(())
    }

    /// Queues a packet until its next hop is resolved.
    fn wait(
        &mut self,
        now: Instant,
        header: &SlowHeader,
        frame: &[u8],
        lookup: &dyn Lookup,
    ) -> Result<(), DropReason> {
        let packet = ip_packet(header, frame)?;
        let ethertype = ethertype(packet)?;
        network(header.vni, lookup)?;
        let key = HostKey {
            vni: header.vni,
            address: header.next_hop,
        };
        if key.address == appliance_common::addr::UNSPECIFIED || key.address[0] == 0xff {
            return Err(DropReason::NoNextHop);
        }
        if let Some(queue) = self.queues.get_mut(&key) {
            // Checked before the bytes are: the oldest leaves whether or not the newest finds room.
            if queue.packets.len() >= self.limits.packets_per_host.max(1)
                && let Some(oldest) = queue.packets.pop_front()
            {
                self.release(key.vni, oldest.packet.len());
                self.refuse(DropReason::HostQueueFull, 1);
            }
        } else if self.queues.len() >= self.limits.hosts {
            return Err(DropReason::QueueFull);
        }
        let in_network = self.bytes.get(&key.vni).copied().unwrap_or(0);
        if in_network + packet.len() > self.limits.bytes_per_network
            || self.bytes_total + packet.len() > self.limits.bytes_total
        {
            self.rearm(key);
            return Err(DropReason::QueueFull);
        }
        if !self.queues.contains_key(&key) {
            self.output(Output::Resolve { key })?;
        }
        *self.bytes.entry(key.vni).or_insert(0) += packet.len();
        self.bytes_total += packet.len();
        self.done.waited += 1;
        let queue = self.queues.entry(key).or_insert_with(|| Queue {
            packets: VecDeque::new(),
            expires: now + self.limits.wait,
        });
        queue.packets.push_back(Waiting {
            since: now,
            ethertype,
            packet: packet.to_vec(),
        });
        self.rearm(key);
        Ok(())
    }

    /// Sets a queue's expiry to that of its oldest packet; an empty queue goes.
    fn rearm(&mut self, key: HostKey) {
        let Some(queue) = self.queues.get_mut(&key) else {
            return;
        };
        self.expiries.remove(&(queue.expires, key));
        match queue.packets.front() {
            Some(oldest) => {
                queue.expires = oldest.since + self.limits.wait;
                self.expiries.insert((queue.expires, key));
            }
            None => {
                self.queues.remove(&key);
            }
        }
    }

    /// Drops what has waited too long for a host.
    fn expire(&mut self, now: Instant, key: HostKey) {
        let mut bytes = 0;
        let mut dropped = 0;
        if let Some(queue) = self.queues.get_mut(&key) {
            while let Some(oldest) = queue.packets.front()
                && oldest.since + self.limits.wait <= now
            {
                bytes += oldest.packet.len();
                dropped += 1;
                queue.packets.pop_front();
            }
        }
        self.release(key.vni, bytes);
        self.refuse(DropReason::Expired, dropped);
        self.rearm(key);
        if self.queues.contains_key(&key) {
            // The engine has had its time; what still waits came later and asks anew. Where the
            // outputs are full the packets expire in their turn.
            let _ = self.output(Output::Resolve { key });
        }
    }

    /// Takes a whole queue.
    fn take(&mut self, key: HostKey) -> Option<Queue> {
        let queue = self.queues.remove(&key)?;
        self.expiries.remove(&(queue.expires, key));
        self.release(key.vni, queue.packets.iter().map(|w| w.packet.len()).sum());
        Some(queue)
    }

    /// Bytes no longer wait.
    fn release(&mut self, vni: u32, bytes: usize) {
        self.bytes_total -= bytes;
        if let Some(in_network) = self.bytes.get_mut(&vni) {
            *in_network -= bytes;
            if *in_network == 0 {
                self.bytes.remove(&vni);
            }
        }
    }

    fn output(&mut self, output: Output) -> Result<(), DropReason> {
        if self.outputs.len() >= self.limits.outputs {
            return Err(DropReason::OutputFull);
        }
        self.outputs.push_back(output);
        Ok(())
    }

    fn refuse(&mut self, refusal: DropReason, packets: u64) {
        self.refused[refusal as usize] += packets;
    }
}

/// The network in force of a VNI.
fn network(vni: u32, lookup: &dyn Lookup) -> Result<Network, DropReason> {
    lookup
        .network(vni)
        .filter(|network| network.flags & network_flags::ACTIVE != 0)
        .ok_or(DropReason::UnknownNetwork)
}

/// The IP packet of a record, without Ethernet padding, its lengths checked.
fn ip_packet<'a>(header: &SlowHeader, frame: &'a [u8]) -> Result<&'a [u8], DropReason> {
    let bytes = frame
        .get(usize::from(header.l3)..)
        .ok_or(DropReason::Malformed)?;
    let len = match bytes.first().map(|first| first >> 4) {
        Some(4) => {
            ipv4_header_len(bytes).ok_or(DropReason::Malformed)?;
            usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))
        }
        Some(6) if bytes.len() >= IPV6_LEN => {
            IPV6_LEN + usize::from(u16::from_be_bytes([bytes[4], bytes[5]]))
        }
        _ => return Err(DropReason::Malformed),
    };
    bytes.get(..len).ok_or(DropReason::Malformed)
}

/// The Ethernet type of an IP packet.
fn ethertype(packet: &[u8]) -> Result<u16, DropReason> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => Ok(ETHERTYPE_IPV4),
        Some(6) => Ok(ETHERTYPE_IPV6),
        _ => Err(DropReason::Malformed),
    }
}

/// A hash over what all fragments of an IPv4 packet share: addresses and identification (FNV-1a).
/// `packet` has at least an IPv4 header.
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
