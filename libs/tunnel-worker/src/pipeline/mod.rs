//! The worker's pipeline: a function of the frame, the time and the worker's tables.
//!
//! For: encrypting, decrypting, reassembling and delivering packets. Never: a socket, thread, lock,
//! clock, allocation or log. A [`PacketSink`] takes frames and events, so that tests and fuzzers
//! call the same code as a worker does.
//!
//! ```text
//!   to seal:  [slot, hash | segment header | packet] ─▶ network ─▶ peer ─▶ seal, whole or in fragments
//!             ─▶ outer headers ─▶ the uplink
//!   to open:  [outer headers | datagram] ─▶ index ─▶ peer ─▶ open ─▶ reassemble ─▶ network of that peer?
//!             ─▶ source there? destination here? ─▶ host ─▶ Ethernet header ─▶ the tenant's port
//! ```
//!
//! The rules for an opened packet are those of `appliance-ebpf/src/stage/uplink.rs`;
//! `tests/tests/packets/workers.rs` compares the two.

mod control_budget;
mod counters;
mod delivery;
mod inner;
mod interface;
mod lanes;
mod outage_buffer;
mod outer_header;
mod tables;

use std::{num::NonZeroU64, sync::Arc};

use ahash::{AHashMap, RandomState};
use appliance_common::{
    addr::Prefix, counters::Counter, limits::MAX_PEERS, wire::WORKER_HEADER_LEN,
};
use tunnel::{
    Framing, Instant, OpenError, Payload, PayloadKind, PeerPath, ReassemblyLimits, Receiver,
    RxActivity, RxStats, SealError, Sender,
    segment::{ControlMessage, Header},
};
pub use xsk::Sent;

use control_budget::ControlBudget;
pub use counters::WorkerCounters;
use delivery::deliver;
pub use interface::{Command, Event, PacketSink};
pub use lanes::{LANES, LaneAssignment};
use outage_buffer::OutageBuffer;
pub use outer_header::{OuterHeader, circuit_id, parse_datagram};
pub use tables::PeerRoute;
use tables::Tables;

/// Session indices a worker knows at most: five sessions of every lane of every peer.
const SESSIONS: usize = MAX_PEERS as usize * 5 * LANES as usize;

/// A peer, with the lanes of it that one worker has.
#[derive(Debug)]
pub struct PeerLanes {
    sender: Sender,
    /// The receiver of every lane that the worker opens, by [`LaneAssignment::receiver_index`].
    receivers: Box<[Receiver]>,
    framing: Framing,
    outer: Option<OuterHeader>,
    /// For a WireGuard peer: its network, and its allowed addresses there.
    member: Option<(u32, Box<[Prefix]>)>,
    control_budget: ControlBudget,
    /// Changed since the last report.
    dirty: bool,
    reassembled: u64,
    /// Nothing is received from the peer: segments are sent, and kept as well.
    silent: bool,
    /// The outage buffer has segments of the peer.
    keeps: bool,
}

impl PeerLanes {
    /// Another appliance.
    #[must_use]
    pub fn appliance(assignment: LaneAssignment) -> Self {
        Self::new(assignment.lanes().count(), Framing::Segments, None)
    }

    /// A WireGuard peer in network `vni` with the addresses it may have there. It has one lane,
    /// which is the first worker's.
    #[must_use]
    pub fn wireguard(assignment: LaneAssignment, vni: u32, allowed: Box<[Prefix]>) -> Self {
        let receivers = assignment.lanes().filter(|lane| *lane == 0).count();
        Self::new(receivers, Framing::WireGuard, Some((vni, allowed)))
    }

    fn new(receivers: usize, framing: Framing, member: Option<(u32, Box<[Prefix]>)>) -> Self {
        Self {
            sender: Sender::new(framing),
            receivers: (0..receivers)
                .map(|_| Receiver::new(framing, ReassemblyLimits::default()))
                .collect(),
            framing,
            outer: None,
            member,
            control_budget: ControlBudget::default(),
            dirty: false,
            reassembled: 0,
            silent: false,
            keeps: false,
        }
    }
}

/// A worker's state.
pub struct Pipeline {
    assignment: LaneAssignment,
    tables: Tables,
    /// By slot.
    peers: Box<[Option<Box<PeerLanes>>]>,
    /// Peer slot and session name by the index on the wire.
    sessions: AHashMap<u32, (u32, u32)>,
    counters: Arc<WorkerCounters>,
    outage_buffer: OutageBuffer,
    /// The newest restore before which all sessions were wiped.
    wiped: u64,
    /// The newest restore that the control half has followed. While it is older than `wiped`,
    /// sessions are refused.
    retired: u64,
    /// Slots of the peers with `dirty` set, each once; never more than there are slots.
    dirty: Vec<u32>,
}

impl Pipeline {
    /// Allocates all its memory now. `lanes` are the worker's lanes; `seed` keys its hash tables;
    /// only this pipeline writes `counters`.
    #[must_use]
    pub fn new(assignment: LaneAssignment, seed: u64, counters: Arc<WorkerCounters>) -> Self {
        Self {
            assignment,
            tables: Tables::new(seed),
            peers: (0..MAX_PEERS).map(|_| None).collect(),
            sessions: AHashMap::with_capacity_and_hasher(
                SESSIONS,
                RandomState::with_seeds(seed, 1, 2, 3),
            ),
            counters,
            outage_buffer: OutageBuffer::new(),
            wiped: 0,
            retired: 0,
            dirty: Vec::with_capacity(MAX_PEERS as usize),
        }
    }

    /// Whether there is something for [`Pipeline::report`].
    #[must_use]
    pub const fn dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// A frame of the programs: a packet to seal or a datagram to open. A datagram's Ethernet type
    /// is never zero, and in a packet to seal those two bytes are the segment's stride, which is.
    #[inline]
    pub fn frame(&mut self, now: Instant, frame: &mut [u8], wire: &mut impl PacketSink) {
        let done = match frame.get(12..14) {
            Some([0, 0]) => self.seal(now, frame, wire),
            Some(_) => self.open(now, frame, wire),
            None => Err(Counter::DropMalformed),
        };
        if let Err(reason) = done {
            self.counters.count(reason, 1);
        }
    }

    fn seal(
        &mut self,
        now: Instant,
        frame: &[u8],
        wire: &mut impl PacketSink,
    ) -> Result<(), Counter> {
        let mut to = None;
        let sealed = self.seal_for(now, frame, &mut to, wire);
        let Some(peer) = to else { return sealed };
        let silent = peer_lanes(&mut self.peers, peer).is_some_and(|lanes| lanes.silent);
        match sealed {
            Ok(()) if silent => drop(self.buffer(now, peer, frame)),
            Err(Counter::DropNoSession | Counter::DropNoPeer) if self.buffer(now, peer, frame) => {
                self.counters.count(Counter::OutageBuffered, 1);
                return Ok(());
            }
            _ => {}
        }
        sealed
    }

    #[cold]
    fn buffer(&mut self, now: Instant, peer: u32, frame: &[u8]) -> bool {
        let hash = frame.get(4..8).and_then(<[u8]>::first_chunk);
        let hash = u32::from_ne_bytes(hash.copied().unwrap_or_default());
        let kept = self
            .outage_buffer
            .keep(now, peer, hash, frame, WORKER_HEADER_LEN);
        if kept && let Some(lanes) = peer_lanes(&mut self.peers, peer) {
            lanes.keeps = true;
        }
        kept
    }

    /// Sends the segments that the outage buffer kept for a peer whose tunnel works again.
    #[cold]
    fn release(&mut self, now: Instant, peer: u32, wire: &mut impl PacketSink) {
        let Some(lanes) = peer_lanes(&mut self.peers, peer) else {
            return;
        };
        if !lanes.keeps || lanes.silent || lanes.outer.is_none() || lanes.sender.session().is_none()
        {
            return;
        }
        lanes.keeps = false;
        let mut buffer = [0; outage_buffer::BYTES];
        let mut from = 0;
        while let Some((at, frame)) = self.outage_buffer.take(now, peer, from) {
            from = at + 1;
            let Some(frame) = frame else { continue };
            let len = frame.len();
            buffer[..len].copy_from_slice(frame);
            match self.seal_for(now, &buffer[..len], &mut None, wire) {
                Ok(()) => self.counters.count(Counter::OutageFlushed, 1),
                Err(reason) => self.counters.count(reason, 1),
            }
        }
    }

    /// Seals a packet that the programs handed over; returns its peer, once that is known.
    fn seal_for(
        &mut self,
        now: Instant,
        frame: &[u8],
        to: &mut Option<u32>,
        wire: &mut impl PacketSink,
    ) -> Result<(), Counter> {
        let Some((head, segment)) = frame.split_first_chunk::<8>() else {
            return Err(Counter::DropMalformed);
        };
        let packet = segment
            .get(WORKER_HEADER_LEN - 8..)
            .filter(|packet| !packet.is_empty())
            .ok_or(Counter::DropMalformed)?;
        let slot = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
        let network = self.tables.network(slot).ok_or(Counter::DropInconsistent)?;
        // A slot may have changed hands since the program looked, or the frame was kept: no
        // tenant's packet goes to another's peer.
        if !segment.starts_with(&Header::whole(PayloadKind::Ip, network.vni).to_bytes()) {
            return Err(Counter::DropInconsistent);
        }
        if !self.tables.is_partial(network) {
            return Err(Counter::DropIdle);
        }
        let destination = inner::destination(packet).ok_or(Counter::DropMalformed)?;
        let peer = self.tables.peer_of(network, &destination);
        let lanes = peer_lanes(&mut self.peers, peer).ok_or(Counter::DropInconsistent)?;
        if lanes.framing == Framing::WireGuard && !self.assignment.is_first() {
            return self.hand_over(0, frame, wire);
        }
        *to = Some(peer);
        let outer = lanes.outer.ok_or(Counter::DropNoPeer)?;
        let sender = &mut lanes.sender;
        if let Some((vni, allowed)) = &lanes.member
            && (*vni != network.vni || !allowed.iter().any(|prefix| prefix.contains(&destination)))
        {
            return Err(Counter::DropNotAllowed);
        }
        mark_dirty(&mut self.dirty, peer, &mut lanes.dirty);
        if packet.len() > sender.max_packet() && lanes.framing == Framing::Segments {
            // The segment header that the program wrote says "whole"; each piece gets its own.
            let mut pieces = sender
                .fragments(now, PayloadKind::Ip, network.vni, packet)
                .map_err(|error| sealing(&error))?;
            while pieces.remaining() > 0 {
                seal_and_send(wire, &outer, |out| {
                    pieces.next_into(out).unwrap_or(Err(SealError::NoSession))
                })?;
            }
            self.counters.count(Counter::TunnelFragmented, 1);
        } else if lanes.framing == Framing::Segments {
            seal_and_send(wire, &outer, |out| sender.seal_into(now, &[segment], out))?;
        } else {
            seal_and_send(wire, &outer, |out| {
                sender.seal_packet(now, PayloadKind::Ip, 0, packet, out)
            })?;
        }
        self.counters.sent(slot, packet.len() as u64);
        self.counters.count(Counter::Encapsulated, 1);
        Ok(())
    }

    /// Hands a frame to another worker, which seals or opens it.
    fn hand_over(
        &self,
        worker: u32,
        frame: &[u8],
        wire: &mut impl PacketSink,
    ) -> Result<(), Counter> {
        if !wire.hand_over(worker, frame) {
            return Err(Counter::DropWorkerFull);
        }
        self.counters.count(Counter::HandedOver, 1);
        Ok(())
    }

    fn open(
        &mut self,
        now: Instant,
        frame: &mut [u8],
        wire: &mut impl PacketSink,
    ) -> Result<(), Counter> {
        let (from, at) = parse_datagram(frame).ok_or(Counter::DropBadDatagram)?;
        let index = index_of(&frame[at.clone()])?;
        if let Some(other) = self.assignment.other_worker(index) {
            return self.hand_over(other, frame, wire);
        }
        self.open_datagram(now, from, index, &mut frame[at], wire)
    }

    /// A datagram of a circuit's stream, which was steered to the worker that opens it.
    pub fn tls_datagram(
        &mut self,
        now: Instant,
        circuit: NonZeroU64,
        datagram: &mut [u8],
        wire: &mut impl PacketSink,
    ) {
        let opened =
            index_of(datagram).and_then(|index| match self.assignment.other_worker(index) {
                Some(_) => Err(Counter::DropUnknownSession),
                None => self.open_datagram(now, PeerPath::Stream(circuit), index, datagram, wire),
            });
        if let Err(reason) = opened {
            self.counters.count(reason, 1);
        }
    }

    fn open_datagram(
        &mut self,
        now: Instant,
        from: PeerPath,
        index: u32,
        datagram: &mut [u8],
        wire: &mut impl PacketSink,
    ) -> Result<(), Counter> {
        let &(peer, _) = self
            .sessions
            .get(&index)
            .ok_or(Counter::DropUnknownSession)?;
        let lanes = peer_lanes(&mut self.peers, peer).ok_or(Counter::DropUnknownSession)?;
        mark_dirty(&mut self.dirty, peer, &mut lanes.dirty);
        let opened = lanes
            .receivers
            .get_mut(self.assignment.receiver_index(index))
            .ok_or(Counter::DropUnknownSession)?
            .open(now, from, datagram)
            .map_err(|error| opening(&error))?;
        if let Some(index) = opened.first_of_session {
            wire.event(Event::SessionConfirmed { peer, index });
        }
        let back = std::mem::take(&mut lanes.silent) || lanes.keeps;
        match opened.payload {
            Payload::Keepalive => self.counters.count(Counter::TunnelControl, 1),
            Payload::Control(message) => {
                if !lanes.control_budget.take(now) {
                    return Err(Counter::DropControlRate);
                }
                self.counters.count(Counter::TunnelControl, 1);
                self.control_message(now, peer, message, wire);
            }
            Payload::Fragment => {}
            Payload::Packet {
                kind: PayloadKind::Ip,
                network,
                bytes,
            } => {
                deliver(
                    now,
                    &mut self.tables,
                    &self.counters,
                    (peer, None),
                    network,
                    bytes,
                    wire,
                )?;
            }
            Payload::Packet { .. } => return Err(Counter::DropNotCarried),
            Payload::Ip(bytes) => {
                let (vni, allowed) = lanes.member.as_ref().ok_or(Counter::DropWrongPeer)?;
                deliver(
                    now,
                    &mut self.tables,
                    &self.counters,
                    (peer, Some(allowed)),
                    *vni,
                    bytes,
                    wire,
                )?;
            }
            Payload::Invalid(_) => return Err(Counter::DropBadSegment),
        }
        if back {
            self.release(now, peer, wire);
        }
        Ok(())
    }

    /// Answers an echo; passes all other messages to the control half, and an echo that cannot be
    /// answered yet: a peer that has just dialed sends one before this end may send.
    fn control_message(
        &mut self,
        now: Instant,
        peer: u32,
        message: ControlMessage,
        wire: &mut impl PacketSink,
    ) {
        let may_send = peer_lanes(&mut self.peers, peer)
            .is_some_and(|lanes| lanes.outer.is_some() && lanes.sender.session().is_some());
        match message {
            ControlMessage::Echo { token, size } if may_send => {
                let reply = ControlMessage::EchoReply { token, size };
                self.send_own(peer, wire, |sender, out| {
                    sender.seal_control(now, reply, 0, out)
                });
            }
            _ => wire.event(Event::ControlMessage { peer, message }),
        }
    }

    /// Wipes every session, and accepts none until the control half has retired all that are older
    /// than this restore: the machine was restored from a snapshot, and the counters of its
    /// sessions are of the past. Does nothing if the command of the control half came first.
    pub fn suspend_sessions(&mut self, restore: u64) {
        if restore <= self.wiped {
            return;
        }
        self.wiped = restore;
        self.sessions.clear();
        for lanes in self.peers.iter_mut().flatten() {
            lanes.sender.retire_all();
            for receiver in &mut lanes.receivers {
                receiver.retire_all();
            }
        }
    }

    /// Carries out a command of the manager.
    pub fn command(&mut self, now: Instant, command: Command, wire: &mut impl PacketSink) {
        match command {
            Command::Network(slot, network) => self.tables.set_network(slot, network.as_deref()),
            Command::Tenant(slot, tenant) => self.tables.set_tenant(slot, tenant),
            Command::Endpoint(key, there) => self.tables.set_endpoint(key, there),
            Command::Neighbour(key, neighbour) => {
                self.tables.set_neighbour(key, neighbour.map(|n| *n));
            }
            Command::PeerRoutes(vni, members) => self.tables.set_members(vni, members),
            Command::Peer(slot, lanes) => {
                self.sessions.retain(|_, (peer, _)| *peer != slot);
                self.dirty.retain(|dirty| *dirty != slot);
                self.outage_buffer.forget(slot);
                if let Some(place) = self.peers.get_mut(slot as usize) {
                    *place = lanes;
                }
            }
            Command::Receive(..) | Command::Send(..) if self.retired < self.wiped => {}
            Command::SessionsRetired(restore) => {
                // The worker may not have seen the restore yet: the order of both does not matter.
                self.suspend_sessions(restore);
                self.retired = self.retired.max(restore);
            }
            Command::Receive(slot, session) => {
                let (wire, name) = (session.wire_index(), session.index());
                let place = self.assignment.receiver_index(wire);
                let receiver = peer_lanes(&mut self.peers, slot)
                    .filter(|_| self.assignment.other_worker(wire).is_none())
                    .and_then(|lanes| lanes.receivers.get_mut(place));
                if let Some(receiver) = receiver {
                    receiver.install(session);
                    self.sessions.insert(wire, (slot, name));
                }
            }
            Command::Send(slot, session) => {
                if let Some(lanes) = peer_lanes(&mut self.peers, slot) {
                    lanes.sender.install(*session);
                    // The handshake proved the path.
                    lanes.silent = false;
                }
                self.release(now, slot, wire);
            }
            Command::PeerSilent(slot) => {
                if let Some(lanes) = peer_lanes(&mut self.peers, slot) {
                    lanes.silent = true;
                }
            }
            Command::PeerResponsive(slot) => {
                if let Some(lanes) = peer_lanes(&mut self.peers, slot) {
                    lanes.silent = false;
                }
                self.release(now, slot, wire);
            }
            Command::Retire(slot, index) => {
                self.sessions
                    .retain(|_, (peer, name)| *peer != slot || *name != index);
                if let Some(lanes) = peer_lanes(&mut self.peers, slot) {
                    lanes.sender.retire(index);
                    for receiver in &mut lanes.receivers {
                        receiver.retire(index);
                    }
                }
            }
            Command::PeerPath(slot, path) => {
                if let Some(lanes) = peer_lanes(&mut self.peers, slot) {
                    for receiver in &mut lanes.receivers {
                        receiver.set_path(path);
                    }
                }
            }
            Command::OuterHeader(slot, outer) => {
                if let Some(lanes) = peer_lanes(&mut self.peers, slot) {
                    lanes.outer = outer.map(|outer| *outer);
                }
                self.release(now, slot, wire);
            }
            Command::MaxDatagram(slot, bytes) => {
                if let Some(lanes) = peer_lanes(&mut self.peers, slot) {
                    lanes.sender.set_max_datagram(bytes);
                }
            }
            Command::Keepalive(slot) => {
                self.send_own(slot, wire, |sender, out| sender.seal_keepalive(now, out));
            }
            Command::ControlMessage(slot, message, pad_to) => {
                self.send_own(slot, wire, |sender, out| {
                    sender.seal_control(now, message, pad_to, out)
                });
            }
        }
    }

    /// Sends a message of our own. Without a session or a path it cannot be sent; the control
    /// half knows already.
    fn send_own(
        &mut self,
        slot: u32,
        wire: &mut impl PacketSink,
        seal: impl FnOnce(&mut Sender, &mut [u8]) -> Result<usize, SealError>,
    ) {
        let Some(lanes) = peer_lanes(&mut self.peers, slot) else {
            return;
        };
        let Some(outer) = lanes.outer else { return };
        mark_dirty(&mut self.dirty, slot, &mut lanes.dirty);
        let sender = &mut lanes.sender;
        match seal_and_send(wire, &outer, |out| seal(sender, out)) {
            Ok(()) => self.counters.count(Counter::TunnelControl, 1),
            Err(reason) => self.counters.count(reason, 1),
        }
    }

    /// The last report was lost: the next one covers every peer.
    pub fn mark_all_dirty(&mut self) {
        for (slot, lanes) in (0..).zip(&mut self.peers) {
            if let Some(lanes) = lanes {
                mark_dirty(&mut self.dirty, slot, &mut lanes.dirty);
            }
        }
    }

    /// Reports the activity of every lane since the last report.
    pub fn report(&mut self, now: Instant, wire: &mut impl PacketSink) {
        for slot in self.dirty.drain(..) {
            let Some(lanes) = peer_lanes(&mut self.peers, slot) else {
                continue;
            };
            lanes.dirty = false;
            let (mut rx, mut stats) = (RxActivity::default(), RxStats::default());
            for receiver in &mut lanes.receivers {
                receiver.expire(now);
                rx = rx.merge(receiver.activity());
                stats = stats.merge(receiver.stats());
            }
            self.counters.count(
                Counter::TunnelReassembled,
                stats.reassembly.completed - lanes.reassembled,
            );
            lanes.reassembled = stats.reassembly.completed;
            wire.event(Event::Activity {
                peer: slot,
                tx: lanes.sender.activity(),
                rx,
                stats,
            });
        }
    }
}

#[inline]
fn peer_lanes(peers: &mut [Option<Box<PeerLanes>>], slot: u32) -> Option<&mut PeerLanes> {
    peers.get_mut(slot as usize)?.as_deref_mut()
}

/// Puts a peer into the next report.
#[inline]
fn mark_dirty(dirty: &mut Vec<u32>, slot: u32, is_dirty: &mut bool) {
    if !std::mem::replace(is_dirty, true) {
        dirty.push(slot);
    }
}

/// The session's index in a data message.
#[inline]
fn index_of(datagram: &[u8]) -> Result<u32, Counter> {
    let index = datagram.get(4..8).and_then(<[u8]>::first_chunk);
    index
        .map(|index| u32::from_le_bytes(*index))
        .ok_or(Counter::DropBadDatagram)
}

/// Why a packet was not sealed.
fn sealing(error: &SealError) -> Counter {
    match error {
        SealError::NoSession | SealError::Expired | SealError::Exhausted => Counter::DropNoSession,
        SealError::Short { .. } | SealError::TooLong { .. } => Counter::DropTooLong,
        SealError::WrongKind => Counter::DropNotCarried,
    }
}

/// Why a datagram was not opened.
fn opening(error: &OpenError) -> Counter {
    match error {
        OpenError::Malformed(_) | OpenError::Cipher => Counter::DropBadDatagram,
        OpenError::UnknownSession { .. } | OpenError::Expired { .. } => Counter::DropUnknownSession,
        OpenError::Duplicate { .. } | OpenError::TooOld { .. } => Counter::DropReplayed,
        OpenError::Forged => Counter::DropForged,
    }
}

/// Seals into a frame behind room for the outer headers, writes those, and sends it.
#[inline]
fn seal_and_send(
    wire: &mut impl PacketSink,
    outer: &OuterHeader,
    seal: impl FnOnce(&mut [u8]) -> Result<usize, SealError>,
) -> Result<(), Counter> {
    let mut failed = None;
    let write = |frame: &mut [u8]| {
        let sealed = match frame.get_mut(outer.bytes()..) {
            Some(out) => seal(out),
            None => Err(SealError::Short {
                need: outer.bytes(),
                have: 0,
            }),
        };
        match sealed {
            Ok(bytes) => outer.finish(frame, bytes),
            Err(error) => {
                failed = Some(sealing(&error));
                None
            }
        }
    };
    let sent = match outer.path {
        PeerPath::Direct(_) | PeerPath::Circuit { .. } => wire.transmit(outer.ifindex, write),
        PeerPath::Stream(id) => wire.transmit_tls(id, write),
    };
    match sent {
        Sent::Queued => Ok(()),
        Sent::Abandoned => Err(failed.unwrap_or(Counter::DropTooLong)),
        Sent::Full => Err(Counter::DropTxFull),
    }
}

#[cfg(test)]
mod tests;
