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
//!   │ replay of initiations replaced → wiped    keep-alive   MTU, echo  │
//!   └───────────────────────────────────────────────────────────────────┘
//!          │ Output                              next_deadline: first of the DeadlineQueue
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
use crate::deadlines::DeadlineQueue;
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
    /// Deadlines by [`PeerId`]. [`TunnelControl::with_peer`] keeps them up to date.
    deadlines: DeadlineQueue,
    /// The longest packet inside some tunnel may be another.
    mtus_changed: bool,
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
            deadlines: DeadlineQueue::default(),
            mtus_changed: false,
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
        let added = Peer::new(now, config, &mut effects);
        self.deadlines.set(peer.0, added.next_deadline());
        self.peers[place] = Some(added);
        self.mtus_changed = true;
        peer
    }

    /// Removes a peer and retires its sessions. An id that is not known is ignored.
    pub fn remove_peer(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::take) else {
            return;
        };
        self.by_key.remove(&peer.config().public_key);
        self.deadlines.set(id.0, None);
        self.mtus_changed = true;
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
        self.with_peer(id, |peer, effects| peer.set_paths(now, paths, effects));
    }

    /// Starts a handshake now. With [`InitiationPolicy::Never`] only while there is a session to
    /// renew.
    pub fn initiate(&mut self, now: Instant, id: PeerId) {
        self.with_peer(id, |peer, _| peer.request_handshake(now));
    }

    /// Takes an ICMP message that datagrams to a peer may be `bytes` of UDP payload long. It only
    /// makes the search check the size in use at once: ICMP is not authentic.
    pub fn pmtu_hint(&mut self, now: Instant, id: PeerId, bytes: usize) {
        self.with_peer(id, |peer, _| peer.pmtu_hint(now, bytes));
    }

    /// The uplink takes datagrams to a peer of `bytes` of UDP payload from now on: longer ones are
    /// not sent any more, and longer ones than before are tried.
    pub fn set_max_payload(&mut self, now: Instant, id: PeerId, bytes: usize) {
        self.with_peer(id, |peer, effects| peer.set_ceiling(now, bytes, effects));
    }

    /// Retires every session of every peer, and forgets every handshake under way; ends that
    /// initiate do so at once.
    ///
    /// For a machine that was restored from a snapshot of its memory, or cloned: the counters of
    /// its sessions are those of the past, and a counter must not be used twice with one key. A
    /// response to an earlier initiation would yield such a session as well. The caller must wipe
    /// the sessions of its senders at once, before it takes the outputs.
    pub fn retire_all(&mut self, now: Instant) {
        for id in 0..self.peers.len() as u32 {
            self.with_peer(PeerId(id), |peer, effects| peer.retire_all(now, effects));
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
        self.with_peer(id, |peer, effects| {
            peer.confirm_session(now, index, effects);
        });
    }

    /// Sends data over another path from now on, by the caller's own decision.
    pub fn move_peer(&mut self, now: Instant, id: PeerId, path: impl Into<PeerPath>) {
        self.with_peer(id, |peer, effects| peer.move_to(now, path.into(), effects));
    }

    /// Takes the path by which the peer's newest authentic message came, and when it came
    /// ([`RxActivity::path`], or [`crate::Opened::moved_to`]): data follows the peer there. A peer
    /// is followed at most once in 250 ms, however often it moves: in between only its newest path
    /// is kept. The call may be repeated: what came before the path in use was taken changes
    /// nothing.
    pub fn follow_peer(
        &mut self,
        now: Instant,
        id: PeerId,
        path: impl Into<PeerPath>,
        seen: Instant,
    ) {
        self.with_peer(id, |peer, effects| {
            peer.follow(now, path.into(), seen, effects);
        });
    }

    /// Takes the snapshot of a sender, whichever lane's. Call it at least as often as the shortest
    /// of the peer's timers.
    pub fn report_sent(&mut self, now: Instant, id: PeerId, activity: TxActivity) {
        self.with_peer(id, |peer, _| peer.report_sent(now, activity));
    }

    /// Takes the snapshot of a receiver, whichever lane's. Call it at least as often as the
    /// shortest of the peer's timers.
    pub fn report_received(&mut self, now: Instant, id: PeerId, activity: RxActivity) {
        self.with_peer(id, |peer, _| peer.report_received(now, activity));
    }

    /// Takes a control message that a receiver opened.
    pub fn handle_control_message(&mut self, now: Instant, id: PeerId, message: ControlMessage) {
        self.with_peer(id, |peer, effects| {
            peer.handle_control_message(now, message, effects);
        });
    }

    /// When to call [`TunnelControl::handle_timeout`] next; `None`: not before something else
    /// happens. It is later than now once `handle_timeout` has returned.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next_deadline()
    }

    /// Handles the expired timers of the peers that have any.
    pub fn handle_timeout(&mut self, now: Now, random: &mut dyn Random) {
        let secret = self.secret.clone();
        for id in self.deadlines.take(now.mono) {
            self.with_peer(PeerId(id), |peer, effects| {
                peer.handle_timeout(now, &secret, effects, random);
            });
        }
    }

    /// Whether the longest packet inside some tunnel may have changed since the last call: a longer
    /// or shorter datagram was found, a search has begun or ended, or a session has.
    #[must_use]
    pub const fn take_mtus_changed(&mut self) -> bool {
        std::mem::replace(&mut self.mtus_changed, false)
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

    /// Changes a peer, in the only way: afterwards its deadline is the right one. `None` if there
    /// is no such peer.
    fn with_peer<R>(
        &mut self,
        id: PeerId,
        change: impl FnOnce(&mut Peer, &mut Effects<'_>) -> R,
    ) -> Option<R> {
        let peer = self.peers.get_mut(id.0 as usize)?.as_mut()?;
        let mut effects = Effects {
            peer: id,
            outputs: &mut self.outputs,
            indices: &mut self.indices,
        };
        let before = peer.mtu_state();
        let result = change(peer, &mut effects);
        self.mtus_changed |= peer.mtu_state() != before;
        self.deadlines.set(id.0, peer.next_deadline());
        Some(result)
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
        self.with_peer(id, |peer, effects| {
            peer.handle_initiation(now, from, responder, index, effects)
        })
        .ok_or(Rejected::UnknownPeer)??;
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
        self.with_peer(id, |peer, effects| {
            peer.handle_response(now, from, response, effects, random)
        })
        .ok_or(not_expected)??;
        self.stats.completed += 1;
        Ok(id)
    }

    fn cookie_reply(&mut self, now: Instant, reply: &CookieReply<'_>) -> Result<PeerId, Rejected> {
        let index = reply.receiver();
        let not_expected = Rejected::NotExpected { index };
        let id = self.indices.peer(index).ok_or(not_expected)?;
        match self.with_peer(id, |peer, _| peer.take_cookie(now, reply)) {
            Some(true) => Ok(id),
            Some(false) | None => Err(not_expected),
        }
    }
}
