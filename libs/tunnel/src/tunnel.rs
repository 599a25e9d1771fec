//! Control half and data path in one thread, for tests and tools.
//!
//! It also shows how the two are connected. It allocates per call where that is simpler; a packet
//! worker owns its [`Sender`]s and [`Receiver`]s itself.

use std::collections::HashMap;

use crate::control::{Event, Output, PeerConfig, PeerId, PeerStatus, TunnelControl};
use crate::data::{Framing, Payload, Receiver, RxStats, Sender, TxActivity};
use crate::error::{OpenError, Rejected, SealError};
use crate::keys::SecretKey;
use crate::load::LoadLimits;
use crate::path::PeerPath;
use crate::random::Random;
use crate::segment::{ControlMessage, PayloadKind, ReassemblyLimits};
use crate::time::{Instant, Now};
use crate::wire::{Message, TYPE_DATA};

/// A datagram was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// By the control half.
    #[error(transparent)]
    Handshake(#[from] Rejected),
    /// By the receiver of its session.
    #[error(transparent)]
    Data(#[from] OpenError),
}

/// A tunnel end with control half and data path.
#[derive(Debug)]
pub struct Tunnel {
    control: TunnelControl,
    reassembly: ReassemblyLimits,
    peers: HashMap<PeerId, Lanes>,
    /// Peer and lane of every index on the wire.
    table: HashMap<u32, (PeerId, usize)>,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Lanes {
    path: Option<PeerPath>,
    lanes: Vec<(Sender, Receiver)>,
}

impl Tunnel {
    /// An end without peers.
    #[must_use]
    pub fn new(secret: SecretKey, load: LoadLimits, reassembly: ReassemblyLimits) -> Self {
        Self {
            control: TunnelControl::new(secret, load),
            reassembly,
            peers: HashMap::new(),
            table: HashMap::new(),
            scratch: vec![0; crate::wire::MAX_DATAGRAM],
        }
    }

    /// The control half.
    #[must_use]
    pub const fn control(&self) -> &TunnelControl {
        &self.control
    }

    /// Adds a peer; call [`Tunnel::poll`] afterwards.
    pub fn add_peer(&mut self, now: Instant, config: PeerConfig) -> PeerId {
        let framing = config.framing;
        let lanes = if framing == Framing::Segments {
            config.lanes.clamp(1, crate::session::MAX_LANES)
        } else {
            1
        };
        let id = self.control.add_peer(now, config);
        let lanes = (0..lanes)
            .map(|_| {
                (
                    Sender::new(framing),
                    Receiver::new(framing, self.reassembly),
                )
            })
            .collect();
        self.peers.insert(id, Lanes { path: None, lanes });
        id
    }

    /// As [`TunnelControl::retire_all`]. The senders and receivers lose their sessions before this
    /// returns.
    pub fn retire_all(&mut self, now: Instant) {
        self.control.retire_all(now);
        self.drain(now, &mut |_, _| {}, &mut |_, _| {});
    }

    /// As [`TunnelControl::set_max_payload`].
    pub fn set_max_payload(&mut self, now: Instant, peer: PeerId, bytes: usize) {
        self.control.set_max_payload(now, peer, bytes);
    }

    /// State of a peer.
    #[must_use]
    pub fn status(&self, now: Instant, peer: PeerId) -> Option<PeerStatus> {
        self.control.status(now, peer)
    }

    /// Counters of a peer's receivers, by lane.
    pub fn received(&self, peer: PeerId) -> impl Iterator<Item = RxStats> + '_ {
        self.peers
            .get(&peer)
            .into_iter()
            .flat_map(|peer| peer.lanes.iter().map(|(_, receiver)| receiver.stats()))
    }

    /// Snapshots of a peer's senders, by lane.
    pub fn sent(&self, peer: PeerId) -> impl Iterator<Item = TxActivity> + '_ {
        self.peers
            .get(&peer)
            .into_iter()
            .flat_map(|peer| peer.lanes.iter().map(|(sender, _)| sender.activity()))
    }

    /// Sends a packet on `lane`, in fragments if it is too long for the path. Datagrams go to
    /// `transmit`.
    ///
    /// # Errors
    /// [`SealError`]; the packet is lost unless the caller keeps it. Without a session, a handshake
    /// starts if [`crate::InitiationPolicy`] allows it. Call [`Tunnel::poll`] afterwards in any
    /// case.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a different thing, and a struct for one call names none better"
    )]
    pub fn send(
        &mut self,
        now: Instant,
        id: PeerId,
        lane: usize,
        kind: PayloadKind,
        network: u32,
        packet: &[u8],
        transmit: &mut dyn FnMut(PeerPath, &[u8]),
    ) -> Result<(), SealError> {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Err(SealError::NoSession);
        };
        let Some((sender, _)) = peer.lanes.get_mut(lane) else {
            return Err(SealError::NoSession);
        };
        let sent = match (sender.fragments(now, kind, network, packet), peer.path) {
            (Ok(mut fragments), Some(path)) => loop {
                match fragments.next_into(&mut self.scratch) {
                    None => break Ok(()),
                    Some(Ok(bytes)) => transmit(path, &self.scratch[..bytes]),
                    Some(Err(error)) => break Err(error),
                }
            },
            (Ok(_), None) => Err(SealError::NoSession),
            (Err(error), _) => Err(error),
        };
        let activity = sender.activity();
        self.control.report_sent(now, id, activity);
        sent
    }

    /// Sends a control message on lane 0, padded to `pad_to` bytes of UDP payload. Without a
    /// session nothing is sent.
    pub fn send_control(
        &mut self,
        now: Instant,
        id: PeerId,
        message: ControlMessage,
        pad_to: usize,
        transmit: &mut dyn FnMut(PeerPath, &[u8]),
    ) {
        self.seal(now, id, transmit, |sender, out| {
            sender.seal_control(now, message, pad_to, out)
        });
    }

    /// Takes a datagram. Its content goes to `deliver`. Call [`Tunnel::poll`] afterwards.
    ///
    /// # Errors
    /// [`ReceiveError`]. Drop the datagram.
    pub fn receive(
        &mut self,
        now: Now,
        from: PeerPath,
        datagram: &mut [u8],
        random: &mut dyn Random,
        deliver: &mut dyn FnMut(PeerId, Payload<'_>),
    ) -> Result<PeerId, ReceiveError> {
        if datagram.first() != Some(&TYPE_DATA) {
            return Ok(self.control.handle_datagram(now, from, datagram, random)?);
        }
        let index = match Message::parse(datagram) {
            Ok(Message::Data(data)) => data.receiver,
            Ok(_) => return Err(OpenError::Cipher.into()),
            Err(malformed) => return Err(OpenError::Malformed(malformed).into()),
        };
        let unknown = OpenError::UnknownSession { index };
        let &(id, lane) = self.table.get(&index).ok_or(unknown)?;
        let peer = self.peers.get_mut(&id).ok_or(unknown)?;
        let (_, receiver) = peer.lanes.get_mut(lane).ok_or(unknown)?;
        let opened = receiver.open(now.mono, from, datagram)?;
        let (first, moved) = (opened.first_of_session, opened.moved_to);
        if let Some(index) = first {
            self.control.confirm_session(now.mono, id, index);
        }
        if let Some(address) = moved {
            self.control.follow_peer(now.mono, id, address, now.mono);
        }
        match opened.payload {
            Payload::Control(message) => {
                self.control.handle_control_message(now.mono, id, message);
            }
            payload => deliver(id, payload),
        }
        let activity = receiver.activity();
        self.control.report_received(now.mono, id, activity);
        Ok(id)
    }

    /// When to call [`Tunnel::poll`] next, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.control.next_deadline()
    }

    /// Handles expired timers. Datagrams go to `transmit`, events to `event`.
    pub fn poll(
        &mut self,
        now: Now,
        random: &mut dyn Random,
        transmit: &mut dyn FnMut(PeerPath, &[u8]),
        event: &mut dyn FnMut(PeerId, Event),
    ) {
        self.drain(now.mono, transmit, event);
        // Handling may set further timers to now (an echo is the packet after which keys are
        // renewed), but not without end.
        for _ in 0..4 {
            if self.control.next_deadline().is_none_or(|at| at > now.mono) {
                break;
            }
            self.control.handle_timeout(now, random);
            self.drain(now.mono, transmit, event);
        }
    }

    fn drain(
        &mut self,
        now: Instant,
        transmit: &mut dyn FnMut(PeerPath, &[u8]),
        event: &mut dyn FnMut(PeerId, Event),
    ) {
        while let Some(output) = self.control.poll_output() {
            match output {
                Output::Transmit { to, datagram } => transmit(to, datagram.as_bytes()),
                Output::Receive {
                    peer,
                    lane,
                    session,
                } => {
                    let Some(half) = self.lane(peer, lane) else {
                        continue;
                    };
                    let index = session.wire_index();
                    half.1.install(session);
                    self.table.insert(index, (peer, lane as usize));
                }
                Output::Send {
                    peer,
                    lane,
                    session,
                } => {
                    if let Some((sender, _)) = self.lane(peer, lane) {
                        sender.install(session);
                    }
                }
                Output::Retire { peer, index } => {
                    let Some(lanes) = self.peers.get_mut(&peer) else {
                        continue;
                    };
                    for (sender, receiver) in &mut lanes.lanes {
                        sender.retire(index);
                        receiver.retire(index);
                    }
                    for lane in 0..lanes.lanes.len() {
                        self.table.remove(&index.wrapping_add(lane as u32));
                    }
                }
                Output::Path { peer, path } => {
                    if let Some(lanes) = self.peers.get_mut(&peer) {
                        lanes.path = Some(path);
                        for (_, receiver) in &mut lanes.lanes {
                            receiver.set_path(path);
                        }
                    }
                }
                Output::MaxDatagram { peer, bytes } => {
                    if let Some(lanes) = self.peers.get_mut(&peer) {
                        for (sender, _) in &mut lanes.lanes {
                            sender.set_max_datagram(bytes);
                        }
                    }
                }
                Output::Keepalive { peer } => {
                    self.seal(now, peer, transmit, |sender, out| {
                        sender.seal_keepalive(now, out)
                    });
                }
                Output::ControlMessage {
                    peer,
                    message,
                    pad_to,
                } => {
                    self.seal(now, peer, transmit, |sender, out| {
                        sender.seal_control(now, message, pad_to, out)
                    });
                }
                Output::Event { peer, event: what } => event(peer, what),
            }
        }
    }

    fn lane(&mut self, peer: PeerId, lane: u32) -> Option<&mut (Sender, Receiver)> {
        self.peers.get_mut(&peer)?.lanes.get_mut(lane as usize)
    }

    fn seal(
        &mut self,
        now: Instant,
        id: PeerId,
        transmit: &mut dyn FnMut(PeerPath, &[u8]),
        seal: impl FnOnce(&mut Sender, &mut [u8]) -> Result<usize, SealError>,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let (Some((sender, _)), Some(path)) = (peer.lanes.first_mut(), peer.path) else {
            return;
        };
        // Without a session there is nothing to send with; the control half knows that.
        if let Ok(bytes) = seal(sender, &mut self.scratch) {
            transmit(path, &self.scratch[..bytes]);
            let activity = sender.activity();
            self.control.report_sent(now, id, activity);
        }
    }
}
