//! The control half: handshakes, session lifetimes, roaming and probing for every peer of one end.
//!
//! Sans-IO: datagrams, time and randomness come in as arguments; actions come out of
//! [`TunnelControl::poll_output`]. It never seals or opens data, and has no socket, thread or
//! clock.
//!
//! ```text
//!   handshake datagram   report_sent, report_received,   handle_timeout
//!          │             control message, confirm_session      │
//!          ▼                          │                        ▼
//!     Admission                       │               TimerTable of each peer
//!   mac1, cookies, load               │                        │
//!          ▼                          ▼                        ▼
//!   ┌ Peer ─────────────────────────────────────────────────────────────┐
//!   │ Handshakes            Sessions            Liveness     Path       │
//!   │ attempts, back-off,   next → current →    silence,     roaming,   │
//!   │ replay of initiations fading → wiped      keep-alive   MTU, echo  │
//!   └───────────────────────────────────────────────────────────────────┘
//!          │ Output                              next_deadline: earliest entry of the tables
//!          ▼
//! ```
//!
//! A file for each machine: [`handshake`], [`sessions`], [`liveness`], [`path`]. Each keeps its
//! timers in the peer's [`timer_table`] up to date as its state changes; no deadline is computed
//! anywhere else.

mod admission;
mod config;
mod handshake;
mod liveness;
mod output;
mod path;
mod peer;
mod sessions;
mod status;
#[cfg(test)]
mod tests;
mod timer_table;

pub use config::{InitiationPolicy, PeerConfig, PeerId};
pub use output::{Datagram, Event, Output};
pub use status::{ControlStats, DownReason, PeerStatus};

use std::collections::{HashMap, VecDeque};

use crate::data::{RxActivity, TxActivity};
use crate::error::Rejected;
use crate::handshake::Responder;
use crate::keys::{PublicKey, SecretKey};
use crate::load::LoadLimits;
use crate::path::PeerPath;
use crate::random::Random;
use crate::segment::ControlMessage;
use crate::time::{Instant, Now, Tai64n};
use crate::wire::{CookieReply, Initiation, Message, Response};
use admission::{Admission, Verdict};
use output::{Effects, IndexTable};
use peer::Peer;

/// One end, and its peers.
pub struct TunnelControl {
    secret: SecretKey,
    public: PublicKey,
    admission: Admission,
    /// By [`PeerId`].
    peers: Vec<Option<Peer>>,
    by_key: HashMap<PublicKey, PeerId>,
    indices: IndexTable,
    outputs: VecDeque<Output>,
    stats: ControlStats,
}

impl std::fmt::Debug for TunnelControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelControl")
            .field("public", &self.public)
            .field("peers", &self.by_key.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl TunnelControl {
    /// An end without peers.
    #[must_use]
    pub fn new(secret: SecretKey, limits: LoadLimits) -> Self {
        let public = secret.public();
        Self {
            secret,
            public,
            admission: Admission::new(&public, limits),
            peers: Vec::new(),
            by_key: HashMap::new(),
            indices: IndexTable::default(),
            outputs: VecDeque::new(),
            stats: ControlStats::default(),
        }
    }

    /// This end's identity.
    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Counters of handshake messages since this end was made.
    #[must_use]
    pub const fn stats(&self) -> ControlStats {
        self.stats
    }

    /// Adds a peer. A peer with the same key is removed first, with its sessions.
    pub fn add_peer(&mut self, now: Instant, config: PeerConfig) -> PeerId {
        if let Some(&old) = self.by_key.get(&config.public_key) {
            self.remove_peer(old);
        }
        let place = match self.peers.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.peers.push(None);
                self.peers.len() - 1
            }
        };
        let peer = PeerId(place as u32);
        self.by_key.insert(config.public_key, peer);
        let mut effects = Effects {
            peer,
            outputs: &mut self.outputs,
            indices: &mut self.indices,
        };
        self.peers[place] = Some(Peer::new(now, config, &mut effects));
        peer
    }

    /// Removes a peer and retires its sessions. An id that is not known is ignored.
    pub fn remove_peer(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::take) else {
            return;
        };
        self.by_key.remove(&peer.config().public_key);
        let mut effects = Effects {
            peer: id,
            outputs: &mut self.outputs,
            indices: &mut self.indices,
        };
        peer.retire(&mut effects);
        self.indices.remove_peer(id);
    }

    /// The peer with this key.
    #[must_use]
    pub fn peer(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// Timestamp of the newest initiation sent to a peer. Store it, and give it to
    /// [`PeerConfig::timestamp`] after a restart, where the wall clock may be set back meanwhile.
    #[must_use]
    pub fn timestamp(&self, id: PeerId) -> Option<Tai64n> {
        self.peer_ref(id).map(Peer::timestamp)
    }

    /// Replaces the paths to a peer (other gateways). Without a session, the first one is tried at
    /// once.
    pub fn set_paths(&mut self, now: Instant, id: PeerId, paths: Vec<PeerPath>) {
        if let Some((peer, mut effects)) = self.peer_mut(id) {
            peer.set_paths(now, paths, &mut effects);
        }
    }

    /// Starts a handshake now. With [`InitiationPolicy::Never`] only while there is a session to
    /// renew.
    pub fn initiate(&mut self, now: Instant, id: PeerId) {
        if let Some((peer, _)) = self.peer_mut(id) {
            peer.request_handshake(now);
        }
    }

    /// Takes an ICMP message that datagrams to a peer may be `bytes` of UDP payload long. It only
    /// makes the search check the size in use at once: ICMP is not authentic.
    pub fn pmtu_hint(&mut self, now: Instant, id: PeerId, bytes: usize) {
        if let Some((peer, _)) = self.peer_mut(id) {
            peer.pmtu_hint(now, bytes);
        }
    }

    /// Takes a handshake message: types 1, 2 and 3 of [`crate::wire`]. Yields the peer it is of.
    ///
    /// # Errors
    /// [`Rejected`], which is counted. Nothing is to be sent but what
    /// [`TunnelControl::poll_output`] yields.
    pub fn handle_datagram(
        &mut self,
        now: Now,
        from: impl Into<PeerPath>,
        datagram: &[u8],
        random: &mut dyn Random,
    ) -> Result<PeerId, Rejected> {
        let (from, now) = (from.into(), now.mono);
        let handled = match Message::parse(datagram) {
            Ok(Message::Initiation(initiation)) => self.initiation(now, from, &initiation, random),
            Ok(Message::Response(response)) => self.response(now, from, &response, random),
            Ok(Message::CookieReply(reply)) => self.cookie_reply(now, &reply),
            Ok(Message::Data(_)) => Err(Rejected::Data),
            Err(malformed) => Err(malformed.into()),
        };
        if let Err(rejected) = &handled {
            self.stats.count(rejected);
        }
        handled
    }

    /// The first message of a session was opened: call this with
    /// [`crate::Opened::first_of_session`].
    pub fn confirm_session(&mut self, now: Instant, id: PeerId, index: u32) {
        if let Some((peer, mut effects)) = self.peer_mut(id) {
            peer.confirm_session(now, index, &mut effects);
        }
    }

    /// Sends data over another path from now on: call this with [`crate::Opened::moved_to`].
    pub fn move_peer(&mut self, now: Instant, id: PeerId, path: impl Into<PeerPath>) {
        if let Some((peer, mut effects)) = self.peer_mut(id) {
            peer.move_to(now, path.into(), &mut effects);
        }
    }

    /// Takes the snapshot of a sender, whichever lane's. Call it at least as often as the shortest
    /// of the peer's timers.
    pub fn report_sent(&mut self, now: Instant, id: PeerId, activity: TxActivity) {
        if let Some((peer, _)) = self.peer_mut(id) {
            peer.report_sent(now, activity);
        }
    }

    /// Takes the snapshot of a receiver, whichever lane's. Call it at least as often as the
    /// shortest of the peer's timers.
    pub fn report_received(&mut self, now: Instant, id: PeerId, activity: RxActivity) {
        if let Some((peer, _)) = self.peer_mut(id) {
            peer.report_received(now, activity);
        }
    }

    /// Takes a control message that a receiver opened.
    pub fn handle_control_message(&mut self, now: Instant, id: PeerId, message: ControlMessage) {
        if let Some((peer, mut effects)) = self.peer_mut(id) {
            peer.handle_control_message(now, message, &mut effects);
        }
    }

    /// When to call [`TunnelControl::handle_timeout`] next; `None`: not before something else
    /// happens. It is later than now once `handle_timeout` has returned.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let peers = self.peers.iter().flatten();
        peers.filter_map(Peer::next_deadline).min()
    }

    /// Handles the expired timers of every peer.
    pub fn handle_timeout(&mut self, now: Now, random: &mut dyn Random) {
        for (id, peer) in (0..).zip(&mut self.peers) {
            if let Some(peer) = peer {
                let mut effects = Effects {
                    peer: PeerId(id),
                    outputs: &mut self.outputs,
                    indices: &mut self.indices,
                };
                peer.handle_timeout(now, &self.secret, &mut effects, random);
            }
        }
    }

    /// The next action for the caller; `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// State of a peer.
    #[must_use]
    pub fn status(&self, now: Instant, id: PeerId) -> Option<PeerStatus> {
        self.peer_ref(id).map(|peer| peer.status(now))
    }

    fn peer_ref(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.0 as usize)?.as_ref()
    }

    fn peer_mut(&mut self, id: PeerId) -> Option<(&mut Peer, Effects<'_>)> {
        let peer = self.peers.get_mut(id.0 as usize)?.as_mut()?;
        let effects = Effects {
            peer: id,
            outputs: &mut self.outputs,
            indices: &mut self.indices,
        };
        Some((peer, effects))
    }

    /// Decides whether a handshake message is worked on, before any curve arithmetic.
    fn admit(
        &mut self,
        now: Instant,
        from: PeerPath,
        sender: u32,
        message: &[u8],
        random: &mut dyn Random,
    ) -> Result<(), Rejected> {
        match self.admission.check(now, from, sender, message, random) {
            Verdict::Admitted => Ok(()),
            Verdict::CookieRequired(reply) => {
                self.outputs.push_back(Output::Transmit {
                    to: from,
                    datagram: Datagram::new(&reply),
                });
                Err(Rejected::CookieSent)
            }
            Verdict::Rejected(rejected) => Err(rejected),
        }
    }

    fn initiation(
        &mut self,
        now: Instant,
        from: PeerPath,
        initiation: &Initiation<'_>,
        random: &mut dyn Random,
    ) -> Result<PeerId, Rejected> {
        let (sender, message) = (initiation.sender(), initiation.as_bytes());
        self.admit(now, from, sender, message, random)?;
        let responder = Responder::read(&self.secret, initiation, random)?;
        let id = self.peer(&responder.peer).ok_or(Rejected::UnknownPeer)?;
        let index = self.indices.draw(random);
        let (peer, mut effects) = self.peer_mut(id).ok_or(Rejected::UnknownPeer)?;
        peer.handle_initiation(now, from, responder, index, &mut effects)?;
        self.stats.answered += 1;
        Ok(id)
    }

    fn response(
        &mut self,
        now: Instant,
        from: PeerPath,
        response: &Response<'_>,
        random: &mut dyn Random,
    ) -> Result<PeerId, Rejected> {
        // Costs nothing, and rules out floods: a response must answer an initiation of ours.
        let index = response.receiver();
        let not_expected = Rejected::NotExpected { index };
        let id = self.indices.peer(index).ok_or(not_expected)?;
        let awaited = |peer: &Peer| peer.awaits_response(index);
        if !self.peer_ref(id).is_some_and(awaited) {
            return Err(not_expected);
        }
        let (sender, message) = (response.sender(), response.as_bytes());
        self.admit(now, from, sender, message, random)?;
        let (peer, mut effects) = self.peer_mut(id).ok_or(not_expected)?;
        peer.handle_response(now, from, response, &mut effects, random)?;
        self.stats.completed += 1;
        Ok(id)
    }

    fn cookie_reply(&mut self, now: Instant, reply: &CookieReply<'_>) -> Result<PeerId, Rejected> {
        let index = reply.receiver();
        let not_expected = Rejected::NotExpected { index };
        let id = self.indices.peer(index).ok_or(not_expected)?;
        let (peer, _) = self.peer_mut(id).ok_or(not_expected)?;
        if peer.take_cookie(now, reply) {
            Ok(id)
        } else {
            Err(not_expected)
        }
    }
}
