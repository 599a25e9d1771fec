//! Outputs of the control half, which its owner carries out.

use std::collections::{HashMap, VecDeque};

use super::config::PeerId;
use crate::path::PeerPath;
use crate::random::Random;
use crate::segment::ControlMessage;
use crate::session::{MAX_LANES, RxSession, TxSession};
use crate::wire::INITIATION_BYTES;

/// A handshake message to send, at most 148 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    bytes: [u8; INITIATION_BYTES],
    len: usize,
}

impl Datagram {
    pub(super) fn new(message: &[u8]) -> Self {
        let mut bytes = [0; INITIATION_BYTES];
        bytes[..message.len()].copy_from_slice(message);
        Self {
            bytes,
            len: message.len(),
        }
    }

    /// The message: a type 1, 2 or 3 of [`crate::wire`].
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl std::fmt::Debug for Datagram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Datagram(type {}, {} bytes)", self.bytes[0], self.len)
    }
}

/// An action for the caller. Actions must be carried out in the order in which
/// [`super::TunnelControl::poll_output`] yields them.
#[expect(
    clippy::large_enum_variant,
    reason = "a session is handed over by value once a handshake; a box would cost an allocation"
)]
#[derive(Debug)]
pub enum Output {
    /// Send a handshake message.
    Transmit {
        /// Where to.
        to: PeerPath,
        /// The message.
        datagram: Datagram,
    },
    /// Hand the receiving half of a lane to its [`crate::Receiver`].
    Receive {
        peer: PeerId,
        /// The lane, from zero.
        lane: u32,
        /// The receiving half.
        session: Box<RxSession>,
    },
    /// Hand the sending half of a lane to its [`crate::Sender`].
    Send {
        peer: PeerId,
        /// The lane, from zero.
        lane: u32,
        /// The sending half.
        session: TxSession,
    },
    /// Take a session out of every lane's sender and receiver. The index may be of an initiation
    /// that never became a session.
    Retire {
        peer: PeerId,
        /// Index of the session's lane zero, which names the session.
        index: u32,
    },
    /// Send data over this path from now on, and tell every lane's receiver
    /// ([`crate::Receiver::set_path`]).
    Path { peer: PeerId, path: PeerPath },
    /// Datagrams may be this long from now on.
    MaxDatagram {
        peer: PeerId,
        /// Bytes of UDP payload.
        bytes: usize,
    },
    /// Seal a keep-alive on lane zero and send it.
    Keepalive { peer: PeerId },
    /// Seal a control message on lane zero and send it; with "don't fragment" if it is padded.
    ControlMessage {
        peer: PeerId,
        message: ControlMessage,
        /// Bytes of UDP payload to which the datagram is padded; zero for no padding.
        pad_to: usize,
    },
    /// Log this.
    Event { peer: PeerId, event: Event },
}

/// A change of a peer's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session is established; there was none before.
    Up,
    /// A session has replaced the one in use.
    Rekeyed,
    /// The last session has expired.
    Down,
    /// Nothing came back within `TimerConfig::silence`. This end initiates, unless that is left to
    /// the peer.
    Silent,
    /// Data goes to another path.
    Moved(PeerPath),
    /// This end initiates no more until there is something to send.
    GaveUp,
}

/// The peer of the lane-zero index of every session and pending initiation.
#[derive(Debug, Default)]
pub(super) struct IndexTable(HashMap<u32, PeerId>);

impl IndexTable {
    /// The peer to which an index belongs.
    pub(super) fn peer(&self, index: u32) -> Option<PeerId> {
        self.0.get(&index).copied()
    }

    /// Forgets every index of a peer.
    pub(super) fn remove_peer(&mut self, peer: PeerId) {
        self.0.retain(|_, owner| *owner != peer);
    }

    /// An index that is not in use, the first of a block of [`MAX_LANES`].
    pub(super) fn draw(&self, random: &mut dyn Random) -> u32 {
        loop {
            let index = random.u32() & !(MAX_LANES - 1);
            if !self.0.contains_key(&index) {
                return index;
            }
        }
    }
}

/// The queue into which the machines of one peer put their outputs.
pub(super) struct Effects<'a> {
    pub(super) peer: PeerId,
    pub(super) outputs: &'a mut VecDeque<Output>,
    pub(super) indices: &'a mut IndexTable,
}

impl Effects<'_> {
    pub(super) fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(super) fn event(&mut self, event: Event) {
        let peer = self.peer;
        self.push(Output::Event { peer, event });
    }

    pub(super) fn transmit(&mut self, to: PeerPath, message: &[u8]) {
        let datagram = Datagram::new(message);
        self.push(Output::Transmit { to, datagram });
    }

    pub(super) fn keepalive(&mut self) {
        self.push(Output::Keepalive { peer: self.peer });
    }

    pub(super) fn control_message(&mut self, message: ControlMessage, pad_to: usize) {
        self.push(Output::ControlMessage {
            peer: self.peer,
            message,
            pad_to,
        });
    }

    pub(super) fn path(&mut self, path: PeerPath) {
        let peer = self.peer;
        self.push(Output::Path { peer, path });
    }

    pub(super) fn max_datagram(&mut self, bytes: usize) {
        let peer = self.peer;
        self.push(Output::MaxDatagram { peer, bytes });
    }

    /// Hands out the receiving halves of a session, by lane.
    pub(super) fn receive(&mut self, halves: impl IntoIterator<Item = Box<RxSession>>) {
        let peer = self.peer;
        for (lane, session) in (0..).zip(halves) {
            self.push(Output::Receive {
                peer,
                lane,
                session,
            });
        }
    }

    /// Hands out the sending halves of a session, by lane.
    pub(super) fn send(&mut self, halves: Vec<TxSession>) {
        let peer = self.peer;
        for (lane, session) in (0..).zip(halves) {
            self.push(Output::Send {
                peer,
                lane,
                session,
            });
        }
    }

    /// An index is in use by this peer from now on.
    pub(super) fn assign(&mut self, index: u32) {
        self.indices.0.insert(index, self.peer);
    }

    /// An index is free again; nothing was handed out by it.
    pub(super) fn release(&mut self, index: u32) {
        self.indices.0.remove(&index);
    }

    /// A session is over.
    pub(super) fn retire(&mut self, index: u32) {
        self.release(index);
        let peer = self.peer;
        self.push(Output::Retire { peer, index });
    }
}
