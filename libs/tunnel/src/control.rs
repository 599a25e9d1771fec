//! The control half: handshakes, timers, roaming and probing for every peer of one end.
//!
//! Sans-IO: datagrams, time and randomness come in as arguments; what is to be done comes out of
//! [`TunnelControl::poll_output`]. It seals and opens no data itself.
//!
//! ```text
//!                       dial, last_no_session, silence, rekey due
//!            ┌──────┐ ───────────────────────────────────▶ ┌─────────┐ ◀─┐ pause over:
//!            │ Idle │                                       │ Dialing │   │ next attempt,
//!            └──────┘ ◀─────── give_up passed ───────────── └─────────┘ ──┘ next path
//!                ▲                                               │ response
//!                │ every session over                            ▼
//!                │                                         ┌─────────────┐
//!                └───────────────────────────────────────  │ Established │ ──▶ Dialing again while
//!                                                          └─────────────┘     established: rekey
//!
//!  sessions of a peer           next ──first message──▶ current ──▶ fading (3) ──▶ wiped
//!    as responder: made as next; its sending half is withheld until the initiator proved, by a
//!                  first message, that it holds the key
//!    as initiator: made as current, at once
//! ```

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::cipher::Cipher;
use crate::data::{Framing, MIN_DATAGRAM, RxActivity, TxActivity};
use crate::error::Rejected;
use crate::handshake::{Initiator, Responder};
use crate::keys::{PresharedKey, PublicKey, SecretKey, Secrets};
use crate::load::{Load, LoadLimits};
use crate::mac::{Checker, Proof, Stamper};
use crate::path::PeerPath;
use crate::pmtu::{PathMtu, PmtuConfig};
use crate::random::Random;
use crate::segment::ControlMessage;
use crate::session::{self, MAX_LANES, RxSession, SessionParams, TxSession};
use crate::time::{Instant, Now, Tai64n};
use crate::timers::TimerConfig;
use crate::wire::{CookieReply, DATA_OVERHEAD, Initiation, Message, Response};

/// Initiations under way to one peer at a time. More than one, so that an answer slower than the
/// pause between attempts still counts.
const PENDING: usize = 8;
/// How long an initiation may wait for its answer.
const PENDING_LIFETIME: Duration = Duration::from_secs(5);
/// Sessions a peer keeps for what is still on its way by them, besides the one in use and the next.
const FADING: usize = 3;
/// What WireGuard's tools set as the MTU inside: 1500 less the headers of IPv6, UDP and a data message.
const WIREGUARD_MTU: usize = 1420;
/// Echoes that count for the loss shown.
const LOSS_WINDOW: u32 = 32;
/// Path-MTU probes whose answers count, newest: as many as one size gets, and one that was slow.
const PROBES: usize = 4;

/// Names a peer of one [`TunnelControl`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// Who starts handshakes with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InitiationPolicy {
    /// This end, always, and again until it succeeds: a tenant's end.
    Always,
    /// This end, when there is something to send: WireGuard's way.
    OnDemand,
    /// The peer: a provider's end. Only a session that runs out of counters is renewed from here.
    Never,
}

/// What is configured for a peer.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Its identity.
    pub public_key: PublicKey,
    /// A secret shared beside the keys; all zero is none.
    pub preshared_key: PresharedKey,
    /// What goes inside: segments to an appliance, bare IP packets to any WireGuard.
    pub framing: Framing,
    /// Cipher for sending to it; a WireGuard peer always gets ChaCha20-Poly1305. See
    /// [`crate::CipherChoice`].
    pub cipher: Cipher,
    /// Lanes, 1 to [`MAX_LANES`]: workers that send to it side by side. The same at both ends. A
    /// WireGuard peer has one.
    pub lanes: u32,
    /// Addresses to dial, in order; a peer that dials us needs none.
    pub paths: Vec<PeerPath>,
    /// Who starts handshakes.
    pub initiation: InitiationPolicy,
    /// Whether it is taken to be where its answer to a handshake came from. Otherwise it moves by [`TunnelControl::move_peer`] alone: where the
    /// caller chooses the way, a late answer by the last one says nothing.
    pub roams: bool,
    /// Durations.
    pub timers: TimerConfig,
    /// Path-MTU probing; only appliances answer it.
    pub pmtu: Option<PmtuConfig>,
    /// Longest datagram where the path is not probed, bytes of UDP payload; at least
    /// [`MIN_DATAGRAM`].
    pub max_datagram: usize,
    /// Timestamps of initiations sent before, from storage: [`TunnelControl::timestamp`]. Matters
    /// only where the wall clock may come up behind what it was.
    pub timestamp: Tai64n,
}

impl PeerConfig {
    /// An appliance, with the defaults.
    #[must_use]
    pub fn causeway(public_key: PublicKey, initiation: InitiationPolicy) -> Self {
        Self {
            public_key,
            preshared_key: PresharedKey::none(),
            framing: Framing::Segments,
            cipher: Cipher::ChaCha20Poly1305,
            lanes: 1,
            paths: Vec::new(),
            initiation,
            roams: true,
            timers: TimerConfig::causeway(),
            pmtu: Some(PmtuConfig::default()),
            max_datagram: MIN_DATAGRAM,
            timestamp: Tai64n::default(),
        }
    }

    /// Any WireGuard, with the defaults: 1420 bytes inside, which fits 1500 over IPv6 too.
    #[must_use]
    pub fn wireguard(public_key: PublicKey) -> Self {
        Self {
            framing: Framing::WireGuard,
            initiation: InitiationPolicy::OnDemand,
            timers: TimerConfig::wireguard(),
            pmtu: None,
            max_datagram: WIREGUARD_MTU + DATA_OVERHEAD,
            ..Self::causeway(public_key, InitiationPolicy::OnDemand)
        }
    }
}

/// A handshake message to send, at most 148 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    bytes: [u8; 148],
    len: usize,
}

impl Datagram {
    fn new(message: &[u8]) -> Self {
        let mut bytes = [0; 148];
        bytes[..message.len()].copy_from_slice(message);
        Self {
            bytes,
            len: message.len(),
        }
    }

    /// The message.
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

/// What the caller is to do, in this order.
#[expect(
    clippy::large_enum_variant,
    reason = "a session is handed over by value once a handshake; a box would be an allocation for it"
)]
#[derive(Debug)]
pub enum Output {
    /// Send a handshake message.
    Transmit {
        /// Where to.
        to: PeerPath,
        /// What.
        datagram: Datagram,
    },
    /// Hand the receiving half of a lane to its [`crate::Receiver`].
    Receive {
        /// Whose.
        peer: PeerId,
        /// Which lane.
        lane: u32,
        /// The half.
        session: Box<RxSession>,
    },
    /// Hand the sending half of a lane to its [`crate::Sender`].
    Send {
        /// Whose.
        peer: PeerId,
        /// Which lane.
        lane: u32,
        /// The half.
        session: TxSession,
    },
    /// Take a session of this name out of every lane's sender and receiver.
    Retire {
        /// Whose.
        peer: PeerId,
        /// The session's name.
        index: u32,
    },
    /// Send data to this path from now on, and tell every lane's receiver
    /// ([`crate::Receiver::set_path`]).
    Path {
        /// Whose.
        peer: PeerId,
        /// Where to.
        path: PeerPath,
    },
    /// Datagrams may be this long from now on.
    MaxDatagram {
        /// Whose.
        peer: PeerId,
        /// Bytes of UDP payload.
        bytes: usize,
    },
    /// Seal a keep-alive on lane zero and send it.
    Keepalive {
        /// To whom.
        peer: PeerId,
    },
    /// Seal a control message on lane zero and send it; with "don't fragment" if it is padded.
    ControlMessage {
        /// To whom.
        peer: PeerId,
        /// What.
        message: ControlMessage,
        /// Bytes the datagram is padded to, or zero.
        pad_to: usize,
    },
    /// Something worth a line in the log.
    Event {
        /// Whose.
        peer: PeerId,
        /// What happened.
        event: Event,
    },
}

/// What happened to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session came up where none was.
    Up,
    /// The keys were renewed.
    Rekeyed,
    /// The last session is over.
    Down,
    /// Nothing came back for too long; dialing starts, or is the peer's business.
    Silent,
    /// The peer moved.
    Moved(PeerPath),
    /// Attempts were given up until there is something to send.
    GaveUp,
}

/// Why a peer has no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// Nobody tried: it is for the peer to dial, or there was nothing to send.
    NotInitiating,
    /// There is no path to dial.
    NoAddress,
    /// Attempts go unanswered: path, path, port, or a key the peer does not know.
    NoAnswer {
        /// Attempts so far.
        attempts: u32,
    },
    /// Answers came that are not authentic: keys or shared keys differ.
    InvalidAnswers {
        /// Attempts so far.
        attempts: u32,
    },
}

/// How a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Where data goes.
    pub path: Option<PeerPath>,
    /// When the session in use was made; `None`: there is none.
    pub session_since: Option<Instant>,
    /// Why there is none.
    pub down: Option<DownReason>,
    /// Whether anything authentic came within the silence allowed.
    pub alive: bool,
    /// Cipher for sending.
    pub cipher: Cipher,
    /// Longest datagram, bytes of UDP payload.
    pub max_datagram: usize,
    /// Whether a longer one is being looked for, so that this may soon change.
    pub pmtu_searching: bool,
    /// Round-trip time, smoothed.
    pub round_trip: Option<Duration>,
    /// Of the last 32 echoes, how many were lost, per cent.
    pub loss_percent: u32,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Replayed initiations refused.
    pub replayed: u64,
}

/// Counters of refused handshake messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlStats {
    /// Not a message.
    pub malformed: u64,
    /// mac1 wrong.
    pub invalid_mac1: u64,
    /// Answered by a cookie.
    pub cookies_sent: u64,
    /// Over their share, under load.
    pub rate_limited: u64,
    /// Not authentic, or by a key that is not configured.
    pub authentication_failures: u64,
    /// Replayed, or too soon.
    pub replayed: u64,
    /// For no handshake going on.
    pub unexpected: u64,
    /// Initiations answered.
    pub answered: u64,
    /// Handshakes completed as initiator.
    pub completed: u64,
}

/// One end, and what it knows of its peers.
pub struct TunnelControl {
    secret: SecretKey,
    public: PublicKey,
    checker: Checker,
    load: Load,
    peers: Vec<Option<Peer>>,
    by_key: HashMap<PublicKey, PeerId>,
    /// Lane-zero index of every session and initiation under way.
    indices: HashMap<u32, PeerId>,
    outputs: VecDeque<Output>,
    stats: ControlStats,
}

struct Peer {
    config: PeerConfig,
    plan: SessionParams,
    stamper: Stamper,
    /// Newest timestamp accepted from it.
    newest: Tai64n,
    /// When its last initiation was worked on.
    answered_at: Option<Instant>,
    /// Last timestamp sent.
    sent: Tai64n,
    /// Oldest first.
    pending: VecDeque<Pending>,
    attempt_number: u64,
    completed_attempt: u64,
    /// Sessions that were replaced, newest last. What is on its way by them is still opened.
    fading: VecDeque<Slot>,
    current: Option<Slot>,
    next: Option<Slot>,
    path: Option<PeerPath>,
    dialing: Option<Dialing>,
    /// Which of `config.paths` is dialed.
    candidate: usize,
    /// Since when content waits for any answer of ours.
    owed_since: Option<Instant>,
    /// Since when something of ours waits for any answer of the peer's.
    unanswered_since: Option<Instant>,
    silent: bool,
    /// The sending that last started the clock of silence, so that it does so once.
    judged: Option<Instant>,
    /// The content that last started the clock of a keep-alive, so that it does so once.
    paid: Option<Instant>,
    persistent_at: Option<Instant>,
    tx: TxActivity,
    rx: RxActivity,
    echo_at: Option<Instant>,
    echo: Option<(u64, Instant)>,
    /// One bit per echo, newest lowest; set if it was lost.
    echo_lost: u32,
    echo_count: u32,
    round_trip: Option<Duration>,
    pmtu: Option<PathMtu>,
    /// Tokens of the newest probes on the path there is now.
    probes: VecDeque<u64>,
    handshakes: u64,
    replayed: u64,
    was_up: bool,
}

struct Pending {
    number: u64,
    index: u32,
    initiator: Initiator,
    sent: Instant,
}

struct Slot {
    index: u32,
    made: Instant,
    initiator: bool,
    /// A message came by it: the peer holds the key as well.
    proven: bool,
    /// Sending halves withheld until the session is confirmed.
    withheld: Vec<TxSession>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// There is no session, or soon will be none.
    Need,
    /// There is one, but nothing comes back.
    Silence,
}

struct Dialing {
    since: Instant,
    at: Instant,
    attempts: u32,
    bad_answers: bool,
    /// An attempt succeeded; what is missing is a first message that proves it to both.
    completed: bool,
    reason: Reason,
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
    /// An end with no peers.
    #[must_use]
    pub fn new(secret: SecretKey, limits: LoadLimits) -> Self {
        let public = secret.public();
        Self {
            secret,
            public,
            checker: Checker::new(&public),
            load: Load::new(limits),
            peers: Vec::new(),
            by_key: HashMap::new(),
            indices: HashMap::new(),
            outputs: VecDeque::new(),
            stats: ControlStats::default(),
        }
    }

    /// This end's identity.
    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Counters so far.
    #[must_use]
    pub const fn stats(&self) -> ControlStats {
        self.stats
    }

    /// Adds a peer; one of the same key is replaced, and its sessions are gone.
    pub fn add_peer(&mut self, now: Instant, config: PeerConfig) -> PeerId {
        if let Some(&old) = self.by_key.get(&config.public_key) {
            self.remove_peer(old);
        }
        let segments = config.framing == Framing::Segments;
        let plan = SessionParams {
            cipher: if segments {
                config.cipher
            } else {
                Cipher::ChaCha20Poly1305
            },
            lanes: if segments {
                config.lanes.clamp(1, MAX_LANES)
            } else {
                1
            },
            take_aes: segments,
            rekey_after_messages: config.timers.rekey_after_messages,
            reject_after_messages: config.timers.reject_after_messages,
            reject_after: config.timers.reject_after,
        };
        let dialing = (config.initiation == InitiationPolicy::Always).then_some(Dialing {
            since: now,
            at: now,
            attempts: 0,
            bad_answers: false,
            completed: false,
            reason: Reason::Need,
        });
        let peer = Peer {
            plan,
            stamper: Stamper::new(&config.public_key),
            newest: Tai64n::default(),
            answered_at: None,
            sent: config.timestamp,
            pending: VecDeque::new(),
            attempt_number: 0,
            completed_attempt: 0,
            fading: VecDeque::new(),
            current: None,
            next: None,
            path: config.paths.first().copied(),
            dialing,
            candidate: 0,
            owed_since: None,
            unanswered_since: None,
            silent: false,
            judged: None,
            paid: None,
            persistent_at: None,
            tx: TxActivity::default(),
            rx: RxActivity::default(),
            echo_at: None,
            echo: None,
            echo_lost: 0,
            echo_count: 0,
            round_trip: None,
            pmtu: config
                .pmtu
                .filter(|_| segments)
                .map(|pmtu| PathMtu::new(pmtu, now)),
            probes: VecDeque::with_capacity(PROBES),
            handshakes: 0,
            replayed: 0,
            was_up: false,
            config,
        };
        let key = peer.config.public_key;
        let id = match self.peers.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.peers.push(None);
                self.peers.len() - 1
            }
        };
        let path = peer.path;
        let unprobed = peer.pmtu.is_none().then_some(peer.config.max_datagram);
        self.peers[id] = Some(peer);
        let id = PeerId(id as u32);
        self.by_key.insert(key, id);
        if let Some(path) = path {
            self.outputs.push_back(Output::Path { peer: id, path });
        }
        if let Some(bytes) = unprobed {
            self.outputs
                .push_back(Output::MaxDatagram { peer: id, bytes });
        }
        id
    }

    /// Forgets a peer; its sessions are retired.
    pub fn remove_peer(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::take) else {
            return;
        };
        self.by_key.remove(&peer.config.public_key);
        self.indices.retain(|_, owner| *owner != id);
        for slot in peer.fading.into_iter().chain(peer.current).chain(peer.next) {
            self.outputs.push_back(Output::Retire {
                peer: id,
                index: slot.index,
            });
        }
    }

    /// The peer of a key.
    #[must_use]
    pub fn peer(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// Timestamp of the newest initiation sent to a peer, to be kept where the wall clock is not to
    /// be relied on over a restart.
    #[must_use]
    pub fn timestamp(&self, id: PeerId) -> Option<Tai64n> {
        self.peer_ref(id).map(|peer| peer.sent)
    }

    /// Replaces the paths to dial (other gateways), and dials there from the next attempt on.
    pub fn set_paths(&mut self, now: Instant, id: PeerId, paths: Vec<PeerPath>) {
        let Some(peer) = self.peer_mut(id) else {
            return;
        };
        peer.config.paths = paths;
        peer.candidate = 0;
        if peer.current.is_none() {
            let before = peer.path;
            peer.path = peer.config.paths.first().copied();
            if let Some(dialing) = &mut peer.dialing {
                dialing.at = now;
                dialing.attempts = 0;
            }
            let path = peer.path;
            let restarted = if path == before {
                None
            } else {
                peer.restart_path(now)
            };
            if let Some(path) = path {
                self.outputs.push_back(Output::Path { peer: id, path });
            }
            if let Some(bytes) = restarted {
                self.outputs
                    .push_back(Output::MaxDatagram { peer: id, bytes });
            }
        }
    }

    /// Starts a handshake now. With [`InitiationPolicy::Never`], only while there is a session to renew.
    pub fn initiate(&mut self, now: Instant, id: PeerId) {
        if let Some(peer) = self.peer_mut(id) {
            peer.dial(now, Reason::Need);
        }
    }

    /// The network says (ICMP) that datagrams to this peer may be `bytes` long.
    pub fn pmtu_hint(&mut self, now: Instant, id: PeerId, bytes: usize) {
        if let Some(pmtu) = self.peer_mut(id).and_then(|peer| peer.pmtu.as_mut()) {
            pmtu.hint(now, bytes);
        }
    }

    /// Takes a handshake message: types 1, 2 and 3.
    ///
    /// # Errors
    /// [`Rejected`], counted; nothing is to be sent but what [`TunnelControl::poll_output`] yields.
    pub fn handle_datagram(
        &mut self,
        now: Now,
        from: impl Into<PeerPath>,
        datagram: &[u8],
        random: &mut dyn Random,
    ) -> Result<PeerId, Rejected> {
        let from = from.into();
        let handled = match Message::parse(datagram) {
            Ok(Message::Initiation(initiation)) => {
                self.initiation(now.mono, from, &initiation, random)
            }
            Ok(Message::Response(response)) => self.response(now.mono, from, &response, random),
            Ok(Message::CookieReply(reply)) => self.cookie_reply(now.mono, &reply),
            Ok(Message::Data(_)) => Err(Rejected::Data),
            Err(malformed) => Err(malformed.into()),
        };
        if let Err(rejected) = &handled {
            match rejected {
                Rejected::Malformed(_) | Rejected::Data => self.stats.malformed += 1,
                Rejected::Stranger => self.stats.invalid_mac1 += 1,
                Rejected::CookieSent => self.stats.cookies_sent += 1,
                Rejected::RateLimited => self.stats.rate_limited += 1,
                Rejected::Handshake(_) | Rejected::UnknownPeer => {
                    self.stats.authentication_failures += 1
                }
                Rejected::Replayed | Rejected::TooSoon { .. } => self.stats.replayed += 1,
                Rejected::NotExpected { .. } => self.stats.unexpected += 1,
            }
        }
        handled
    }

    /// Call when [`crate::Opened::first_of_session`] named a session.
    pub fn confirm_session(&mut self, now: Instant, id: PeerId, index: u32) {
        let Some(Some(peer)) = self.peers.get_mut(id.0 as usize) else {
            return;
        };
        if let Some(current) = peer.current.as_mut().filter(|slot| slot.index == index) {
            current.proven = true;
            peer.dialing.take_if(|dialing| dialing.completed);
            return;
        }
        let current = peer.current.as_ref().map(|slot| slot.made);
        let slot = match peer.next.take_if(|slot| slot.index == index) {
            Some(next) => Some(next),
            // The peer went on with an attempt that a later one had replaced here.
            None => peer
                .fading
                .iter()
                .position(|slot| {
                    slot.index == index && !slot.withheld.is_empty() && Some(slot.made) > current
                })
                .and_then(|at| peer.fading.remove(at)),
        };
        let Some(mut slot) = slot else { return };
        slot.proven = true;
        let withheld = std::mem::take(&mut slot.withheld);
        let replaced = peer.current.replace(slot);
        let retired = peer.fade(replaced);
        peer.handshakes += 1;
        peer.established(now);
        let event = peer.up_event();
        if let Some(retired) = retired {
            self.retire(id, retired);
        }
        self.hand_over(id, withheld);
        self.outputs.push_back(Output::Event { peer: id, event });
    }

    /// Call with [`crate::Opened::moved_to`]: sends data there from now on.
    pub fn move_peer(&mut self, now: Instant, id: PeerId, path: impl Into<PeerPath>) {
        let path = path.into();
        let Some(peer) = self.peer_mut(id) else {
            return;
        };
        if peer.path == Some(path) {
            return;
        }
        peer.path = Some(path);
        let restarted = peer.restart_path(now);
        self.outputs.push_back(Output::Path { peer: id, path });
        self.outputs.push_back(Output::Event {
            peer: id,
            event: Event::Moved(path),
        });
        if let Some(bytes) = restarted {
            self.outputs
                .push_back(Output::MaxDatagram { peer: id, bytes });
        }
    }

    /// Takes the snapshot of a sender, whichever lane's; often, or at least as often as the shortest timer.
    pub fn report_sent(&mut self, now: Instant, id: PeerId, activity: TxActivity) {
        let Some(peer) = self.peer_mut(id) else {
            return;
        };
        let before = peer.tx;
        // Snapshots come from several lanes: what one did does not become undone by another's.
        let activity = TxActivity {
            last_sent: newest(now, before.last_sent, activity.last_sent),
            last_reply_expected: newest(
                now,
                before.last_reply_expected,
                activity.last_reply_expected,
            ),
            last_no_session: newest(now, before.last_no_session, activity.last_no_session),
            ..activity
        };
        peer.tx = activity;
        let timers = peer.config.timers;
        if activity.last_sent > before.last_sent {
            peer.persistent_at = timers.persistent_keepalive.map(|every| now + every);
        }
        peer.arm();
        if activity.last_no_session > before.last_no_session
            && peer.config.initiation != InitiationPolicy::Never
        {
            peer.dial(now, Reason::Need);
        }
        if activity.rekey_due && peer.current.as_ref().map(|slot| slot.index) == activity.session {
            peer.dial(now, Reason::Need);
        }
        if activity.last_reply_expected > before.last_reply_expected
            && peer.rekey_by_age(now, timers.rekey_after)
        {
            peer.dial(now, Reason::Need);
        }
    }

    /// Takes the snapshot of a receiver, whichever lane's; often, or at least as often as the shortest timer.
    pub fn report_received(&mut self, now: Instant, id: PeerId, activity: RxActivity) {
        let Some(peer) = self.peer_mut(id) else {
            return;
        };
        let before = peer.rx;
        let activity = RxActivity {
            last_received: newest(now, before.last_received, activity.last_received),
            last_content: newest(now, before.last_content, activity.last_content),
            ..activity
        };
        peer.rx = activity;
        let timers = peer.config.timers;
        if activity.last_received > before.last_received {
            peer.silent = false;
            peer.persistent_at = timers.persistent_keepalive.map(|every| now + every);
            if peer.heard() {
                peer.dialing
                    .take_if(|dialing| dialing.reason == Reason::Silence);
            }
            // So close to its end that the next moment may be too late for a handshake.
            let last_call = timers.reject_after.saturating_sub(timers.silence);
            if peer.rekey_by_age(now, last_call) {
                peer.dial(now, Reason::Need);
            }
        }
        peer.arm();
    }

    /// Takes a control message a receiver opened.
    pub fn handle_control_message(&mut self, now: Instant, id: PeerId, message: ControlMessage) {
        let Some(peer) = self.peer_mut(id) else {
            return;
        };
        match message {
            ControlMessage::Echo { token, size } => {
                self.outputs.push_back(Output::ControlMessage {
                    peer: id,
                    message: ControlMessage::EchoReply { token, size },
                    pad_to: 0,
                });
            }
            ControlMessage::EchoReply { token, size } => {
                if let Some((sent_token, sent)) = peer.echo
                    && sent_token == token
                {
                    peer.echo = None;
                    let sample = now.since(sent);
                    // RFC 6298 section 2.3, without the variance.
                    peer.round_trip = Some(
                        peer.round_trip
                            .map_or(sample, |smooth| (smooth * 7 + sample) / 8),
                    );
                    peer.count_echo(false);
                }
                // An answer to a probe of the path before says nothing about this one.
                if let Some(pmtu) = &mut peer.pmtu
                    && size > 0
                    && peer.probes.contains(&token)
                    && pmtu.answered(now, usize::from(size))
                {
                    let bytes = pmtu.current();
                    self.outputs
                        .push_back(Output::MaxDatagram { peer: id, bytes });
                }
            }
        }
    }

    /// When [`TunnelControl::handle_timeout`] wants to be called; `None`: not before something else
    /// happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.peers.iter().flatten().filter_map(Peer::deadline).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now, random: &mut dyn Random) {
        for id in 0..self.peers.len() {
            self.peer_timeout(now, PeerId(id as u32), random);
        }
    }

    /// The next thing to do; `None` when there is nothing more.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// How a peer is.
    #[must_use]
    pub fn status(&self, now: Instant, id: PeerId) -> Option<PeerStatus> {
        let peer = self.peer_ref(id)?;
        let down = peer.current.is_none().then(|| match &peer.dialing {
            None => DownReason::NotInitiating,
            Some(_) if peer.path.is_none() && peer.config.paths.is_empty() => DownReason::NoAddress,
            Some(dialing) if dialing.bad_answers => DownReason::InvalidAnswers {
                attempts: dialing.attempts,
            },
            Some(dialing) => DownReason::NoAnswer {
                attempts: dialing.attempts,
            },
        });
        let counted = peer.echo_count.min(LOSS_WINDOW);
        Some(PeerStatus {
            path: peer.path,
            session_since: peer.current.as_ref().map(|slot| slot.made),
            down,
            alive: peer.alive(now),
            cipher: peer.plan.cipher,
            max_datagram: peer
                .pmtu
                .as_ref()
                .map_or(peer.config.max_datagram.max(MIN_DATAGRAM), PathMtu::current),
            pmtu_searching: peer.pmtu.as_ref().is_some_and(PathMtu::searching),
            round_trip: peer.round_trip,
            loss_percent: (peer.echo_lost.count_ones() * 100)
                .checked_div(counted)
                .unwrap_or(0),
            handshakes: peer.handshakes,
            replayed: peer.replayed,
        })
    }

    fn peer_ref(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.0 as usize)?.as_ref()
    }

    fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(id.0 as usize)?.as_mut()
    }

    /// mac1 for everybody; mac2 and a fair share under load. Before any curve arithmetic.
    fn admit(
        &mut self,
        now: Instant,
        from: PeerPath,
        sender: u32,
        message: &[u8],
        random: &mut dyn Random,
    ) -> Result<(), Rejected> {
        let proof = self.checker.check(now, from, message);
        if proof == Proof::None {
            return Err(Rejected::Stranger);
        }
        if !self.load.note_handshake(now) {
            return Ok(());
        }
        if proof == Proof::KnowsUs {
            let reply = self.checker.reply(now, random, from, sender, message);
            self.outputs.push_back(Output::Transmit {
                to: from,
                datagram: Datagram::new(&reply),
            });
            return Err(Rejected::CookieSent);
        }
        if self.load.allow(now, &from) {
            Ok(())
        } else {
            Err(Rejected::RateLimited)
        }
    }

    fn initiation(
        &mut self,
        now: Instant,
        from: PeerPath,
        initiation: &Initiation<'_>,
        random: &mut dyn Random,
    ) -> Result<PeerId, Rejected> {
        self.admit(
            now,
            from,
            initiation.sender(),
            initiation.as_bytes(),
            random,
        )?;
        let responder = Responder::read(&self.secret, initiation, random)?;
        let id = *self
            .by_key
            .get(&responder.peer)
            .ok_or(Rejected::UnknownPeer)?;
        let index = self.draw_index(random);
        let Some(Some(peer)) = self.peers.get_mut(id.0 as usize) else {
            return Err(Rejected::UnknownPeer);
        };
        if responder.timestamp <= peer.newest {
            peer.replayed += 1;
            return Err(Rejected::Replayed);
        }
        let gap = peer.config.timers.initiation_gap;
        if peer.answered_at.is_some_and(|last| now.since(last) < gap) {
            return Err(Rejected::TooSoon {
                gap_ms: u64::try_from(gap.as_millis()).unwrap_or(u64::MAX),
            });
        }
        let (timestamp, theirs) = (responder.timestamp, responder.sender);
        let (mut message, secrets) = responder.answer(&peer.config.preshared_key, index)?;
        peer.newest = timestamp;
        peer.answered_at = Some(now);
        peer.stamper.stamp(now, &mut message);
        let replaced = peer.next.take();
        // Before the new halves go out: a receiver that is full would drop the session in use for them.
        if let Some(index) = peer.fade(replaced) {
            self.indices.remove(&index);
            self.outputs.push_back(Output::Retire { peer: id, index });
        }
        let lanes = session::make(&peer.plan, &secrets, false, index, theirs, now);
        let mut slot = Slot {
            index,
            made: now,
            initiator: false,
            proven: false,
            withheld: Vec::with_capacity(lanes.len()),
        };
        for (lane, (tx, session)) in lanes.into_iter().enumerate() {
            slot.withheld.push(tx);
            self.outputs.push_back(Output::Receive {
                peer: id,
                lane: lane as u32,
                session,
            });
        }
        peer.next = Some(slot);
        self.indices.insert(index, id);
        // Data stays where it goes until the initiator proves, by a first message, that this was no
        // replay from a time before our memory of timestamps.
        self.outputs.push_back(Output::Transmit {
            to: from,
            datagram: Datagram::new(&message),
        });
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
        // Free of charge and rules out strangers' floods: it must answer something of ours.
        let index = response.receiver();
        let unexpected = Rejected::NotExpected { index };
        let id = *self.indices.get(&index).ok_or(unexpected)?;
        if !self
            .peer_ref(id)
            .is_some_and(|peer| peer.pending.iter().any(|pending| pending.index == index))
        {
            return Err(unexpected);
        }
        self.admit(now, from, response.sender(), response.as_bytes(), random)?;
        let Some(Some(peer)) = self.peers.get_mut(id.0 as usize) else {
            return Err(unexpected);
        };
        let at = peer
            .pending
            .iter()
            .position(|pending| pending.index == index)
            .ok_or(unexpected)?;
        let secrets: Secrets = match peer.pending[at].initiator.finish(response) {
            Ok(secrets) => secrets,
            Err(error) => {
                if let Some(dialing) = &mut peer.dialing {
                    dialing.bad_answers = true;
                }
                return Err(error.into());
            }
        };
        let Some(done) = peer.pending.remove(at) else {
            return Err(unexpected);
        };
        if done.number <= peer.completed_attempt {
            // A later attempt was faster; the responder has moved on as well.
            self.indices.remove(&index);
            return Err(unexpected);
        }
        peer.completed_attempt = done.number;
        let lanes = session::make(&peer.plan, &secrets, true, index, response.sender(), now);
        // A session of the peer's making that waits for its first message stays the next one.
        let slot = Slot {
            index,
            made: now,
            initiator: true,
            proven: false,
            withheld: Vec::new(),
        };
        let replaced = peer.current.replace(slot);
        let retired = peer.fade(replaced);
        let roams = peer.config.roams;
        peer.handshakes += 1;
        if peer.config.framing == Framing::Segments {
            // Until a message comes by this session another attempt may have overtaken it at the
            // peer: go on after a pause. An echo goes out now, so the proof is a round trip away.
            if let Some(dialing) = &mut peer.dialing {
                dialing.completed = true;
                dialing.at = now + peer.config.timers.backoff.pause(dialing.attempts, random);
            }
        } else {
            peer.dialing = None;
        }
        peer.established(now);
        let event = peer.up_event();
        if let Some(retired) = retired {
            self.retire(id, retired);
        }
        let mut halves = Vec::with_capacity(lanes.len());
        for (lane, (tx, session)) in lanes.into_iter().enumerate() {
            self.outputs.push_back(Output::Receive {
                peer: id,
                lane: lane as u32,
                session,
            });
            halves.push(tx);
        }
        if roams {
            self.move_peer(now, id, from);
        }
        self.hand_over(id, halves);
        // The responder waits for a first message before it sends.
        self.outputs.push_back(Output::Keepalive { peer: id });
        self.outputs.push_back(Output::Event { peer: id, event });
        self.stats.completed += 1;
        Ok(id)
    }

    fn cookie_reply(&mut self, now: Instant, reply: &CookieReply<'_>) -> Result<PeerId, Rejected> {
        let index = reply.receiver();
        let unexpected = Rejected::NotExpected { index };
        let id = *self.indices.get(&index).ok_or(unexpected)?;
        let peer = self.peer_mut(id).ok_or(unexpected)?;
        if peer.stamper.take_cookie(now, reply) {
            Ok(id)
        } else {
            Err(unexpected)
        }
    }

    fn peer_timeout(&mut self, now: Now, id: PeerId, random: &mut dyn Random) {
        let mono = now.mono;
        let Some(Some(peer)) = self.peers.get_mut(id.0 as usize) else {
            return;
        };
        let timers = peer.config.timers;

        // Sessions that are over.
        let mut gone = Vec::new();
        while peer
            .fading
            .front()
            .is_some_and(|slot| mono.since(slot.made) >= timers.reject_after)
        {
            gone.extend(peer.fading.pop_front().map(|slot| slot.index));
        }
        for slot in [&mut peer.current, &mut peer.next] {
            if let Some(over) = slot.take_if(|slot| mono.since(slot.made) >= timers.reject_after) {
                gone.push(over.index);
            }
        }
        let mut events = Vec::new();
        if peer.current.is_none() && peer.was_up {
            peer.was_up = false;
            events.push(Event::Down);
        }
        // Initiations nobody will answer any more.
        while peer
            .pending
            .front()
            .is_some_and(|pending| mono.since(pending.sent) >= PENDING_LIFETIME)
        {
            if let Some(old) = peer.pending.pop_front() {
                gone.push(old.index);
            }
        }
        if peer.silence_at().is_some_and(|at| mono >= at) {
            peer.unanswered_since = None;
            if !peer.silent {
                peer.silent = true;
                events.push(Event::Silent);
            }
            if peer.config.initiation != InitiationPolicy::Never {
                peer.dial(mono, Reason::Silence);
            }
        }
        if peer.config.initiation == InitiationPolicy::Always
            && (peer.current.is_none() || peer.rekey_by_age(mono, timers.rekey_after))
        {
            peer.dial(mono, Reason::Need);
        }
        if peer.config.initiation == InitiationPolicy::Never && peer.current.is_none() {
            // There is nothing left to renew; the peer dials.
            peer.dialing = None;
        }
        if let (Some(dialing), Some(limit)) = (&peer.dialing, timers.give_up)
            && peer.config.initiation != InitiationPolicy::Always
            && mono.since(dialing.since) >= limit
        {
            peer.dialing = None;
            events.push(Event::GaveUp);
        }
        let mut keepalive = false;
        if peer.keepalive_at().is_some_and(|at| mono >= at) {
            peer.owed_since = None;
            keepalive = true;
        }
        if peer.persistent_at.take_if(|at| mono >= *at).is_some() {
            keepalive = true;
        }
        if keepalive && let Some(every) = timers.persistent_keepalive {
            peer.persistent_at = Some(mono + every);
        }
        let keepalive = keepalive && peer.current.is_some();
        let words = peer.due_words(mono, random);
        let max_datagram = peer.pmtu.as_ref().map(PathMtu::current);
        for index in gone {
            self.retire(id, index);
        }
        self.outputs.extend(
            events
                .into_iter()
                .map(|event| Output::Event { peer: id, event }),
        );
        if keepalive {
            self.outputs.push_back(Output::Keepalive { peer: id });
        }
        for (message, pad_to) in words.0 {
            self.outputs.push_back(Output::ControlMessage {
                peer: id,
                message,
                pad_to,
            });
        }
        if let (true, Some(bytes)) = (words.1, max_datagram) {
            self.outputs
                .push_back(Output::MaxDatagram { peer: id, bytes });
        }
        self.attempt(now, id, random);
    }

    /// Starts the next handshake attempt if its time has come.
    fn attempt(&mut self, now: Now, id: PeerId, random: &mut dyn Random) {
        let mono = now.mono;
        let due = |peer: &Peer| {
            peer.dialing
                .as_ref()
                .is_some_and(|dialing| mono >= dialing.at)
        };
        if !self.peer_ref(id).is_some_and(due) {
            return;
        }
        let index = self.draw_index(random);
        let Some(Some(peer)) = self.peers.get_mut(id.0 as usize) else {
            return;
        };
        let Some(dialing) = peer.dialing.as_mut() else {
            return;
        };
        let attempt = dialing.attempts;
        dialing.attempts += 1;
        dialing.at = mono + peer.config.timers.backoff.pause(attempt, random);
        // Where the peer is or was; and from the second attempt on the others in turn as well, with
        // the same message: a peer reached twice answers once.
        let first = peer.path.or(peer.config.paths.first().copied());
        let others = peer
            .config
            .paths
            .iter()
            .filter(|&&path| Some(path) != first);
        let other = match (others.clone().count(), attempt) {
            (0, _) | (_, 0) => None,
            (many, _) => {
                peer.candidate = (peer.candidate + 1) % many;
                others.clone().nth(peer.candidate).copied()
            }
        };
        if first.is_none() {
            return;
        }
        let timestamp = Tai64n::next(now.unix, peer.sent);
        let started = Initiator::start(
            &self.secret,
            &peer.config.public_key,
            &peer.config.preshared_key,
            index,
            timestamp,
            random,
        );
        let Ok((initiator, mut message)) = started else {
            dialing.bad_answers = true;
            return;
        };
        peer.sent = timestamp;
        peer.stamper.stamp(mono, &mut message);
        peer.attempt_number += 1;
        // Any WireGuard answers each attempt by forgetting the one before.
        let most = if peer.config.framing == Framing::Segments {
            PENDING
        } else {
            1
        };
        let dropped = if peer.pending.len() >= most {
            peer.pending.pop_front()
        } else {
            None
        };
        peer.pending.push_back(Pending {
            number: peer.attempt_number,
            index,
            initiator,
            sent: mono,
        });
        if let Some(dropped) = dropped {
            self.indices.remove(&dropped.index);
        }
        self.indices.insert(index, id);
        for to in first.into_iter().chain(other) {
            self.outputs.push_back(Output::Transmit {
                to,
                datagram: Datagram::new(&message),
            });
        }
    }

    /// An index nobody uses, the first of a block of [`MAX_LANES`].
    fn draw_index(&self, random: &mut dyn Random) -> u32 {
        loop {
            let index = random.u32() & !(MAX_LANES - 1);
            if !self.indices.contains_key(&index) {
                return index;
            }
        }
    }

    fn retire(&mut self, id: PeerId, index: u32) {
        self.indices.remove(&index);
        self.outputs.push_back(Output::Retire { peer: id, index });
    }

    fn hand_over(&mut self, id: PeerId, halves: Vec<TxSession>) {
        for (lane, session) in halves.into_iter().enumerate() {
            self.outputs.push_back(Output::Send {
                peer: id,
                lane: lane as u32,
                session,
            });
        }
    }
}

/// The later of two points; the known one does not count if the clock stepped back behind it.
fn newest(now: Instant, known: Option<Instant>, new: Option<Instant>) -> Option<Instant> {
    known.filter(|&at| at <= now).max(new)
}

impl Peer {
    /// Keeps a replaced session for what is on its way; yields the name of one that must go for it.
    fn fade(&mut self, slot: Option<Slot>) -> Option<u32> {
        let slot = slot?;
        // By age, so that the front is the first to end.
        let at = self
            .fading
            .iter()
            .position(|other| other.made > slot.made)
            .unwrap_or(self.fading.len());
        self.fading.insert(at, slot);
        if self.fading.len() <= FADING {
            return None;
        }
        self.fading.pop_front().map(|oldest| oldest.index)
    }

    fn dial(&mut self, now: Instant, reason: Reason) {
        match &mut self.dialing {
            Some(dialing) => {
                if reason == Reason::Need {
                    dialing.reason = Reason::Need;
                }
            }
            None => {
                self.dialing = Some(Dialing {
                    since: now,
                    at: now,
                    attempts: 0,
                    bad_answers: false,
                    completed: false,
                    reason,
                });
            }
        }
    }

    /// Sets the clocks of the two silences by the latest snapshots, in whatever order they came.
    fn arm(&mut self) {
        let (tx, rx) = (self.tx, self.rx);
        let heard = if self.heard() { rx.last_received } else { None };
        if self.unanswered_since.is_some() && heard >= self.unanswered_since {
            self.unanswered_since = None;
        }
        if self.unanswered_since.is_none()
            && tx.last_reply_expected > heard
            && tx.last_reply_expected != self.judged
        {
            self.unanswered_since = tx.last_reply_expected;
            self.judged = tx.last_reply_expected;
        }
        if self.owed_since.is_some() && tx.last_sent >= self.owed_since {
            self.owed_since = None;
        }
        if self.owed_since.is_none()
            && rx.last_content > tx.last_sent
            && rx.last_content != self.paid
        {
            self.owed_since = rx.last_content;
            self.paid = rx.last_content;
        }
    }

    /// Whether what comes from the peer shows that it hears us: not what comes by the session
    /// before, while nothing has come by the one we made.
    fn heard(&self) -> bool {
        self.config.framing == Framing::WireGuard
            || self
                .current
                .as_ref()
                .is_none_or(|slot| slot.proven || !slot.initiator)
    }

    fn silence_at(&self) -> Option<Instant> {
        self.unanswered_since
            .map(|since| since + self.config.timers.silence)
    }

    fn keepalive_at(&self) -> Option<Instant> {
        self.owed_since
            .map(|since| since + self.config.timers.keepalive)
    }

    /// Whether this end made the session in use and it has reached `age`.
    fn rekey_by_age(&self, now: Instant, age: Duration) -> bool {
        self.current
            .as_ref()
            .is_some_and(|slot| slot.initiator && now.since(slot.made) >= age)
    }

    fn established(&mut self, now: Instant) {
        self.unanswered_since = None;
        self.silent = false;
        self.echo_at = self.config.timers.echo.map(|_| now);
        self.persistent_at = self
            .config
            .timers
            .persistent_keepalive
            .map(|every| now + every);
    }

    fn up_event(&mut self) -> Event {
        if std::mem::replace(&mut self.was_up, true) {
            Event::Rekeyed
        } else {
            Event::Up
        }
    }

    /// The path is another one: what is known of the one before does not count. Yields the longest
    /// datagram to begin with.
    fn restart_path(&mut self, now: Instant) -> Option<usize> {
        self.probes.clear();
        let pmtu = self.pmtu.as_mut()?;
        pmtu.restart(now);
        Some(pmtu.current())
    }

    fn alive(&self, now: Instant) -> bool {
        let silence = self.config.timers.silence + self.config.timers.echo.unwrap_or_default();
        self.rx
            .last_received
            .is_some_and(|last| now.since(last) < silence)
    }

    fn count_echo(&mut self, lost: bool) {
        self.echo_lost = (self.echo_lost << 1) | u32::from(lost);
        self.echo_count = self.echo_count.saturating_add(1);
    }

    /// Control words due, with the size each is padded to; and whether the path MTU may have
    /// changed.
    fn due_words(
        &mut self,
        now: Instant,
        random: &mut dyn Random,
    ) -> (Vec<(ControlMessage, usize)>, bool) {
        let mut words = Vec::new();
        if self.current.is_none() {
            return (words, false);
        }
        if let (Some(every), Some(at)) = (self.config.timers.echo, self.echo_at)
            && now >= at
        {
            self.echo_at = Some(now + every);
            if self.echo.take().is_some() {
                self.count_echo(true);
            }
            let token = random.u64();
            self.echo = Some((token, now));
            words.push((ControlMessage::Echo { token, size: 0 }, 0));
        }
        let alive = self.alive(now);
        let mut changed = false;
        if let Some(pmtu) = &mut self.pmtu {
            let before = pmtu.current();
            if let Some(size) = pmtu.poll(now, alive)
                && let Ok(wire) = u16::try_from(size)
            {
                let token = random.u64();
                if self.probes.len() == PROBES {
                    self.probes.pop_front();
                }
                self.probes.push_back(token);
                words.push((ControlMessage::Echo { token, size: wire }, size));
            }
            changed = pmtu.current() != before;
        }
        (words, changed)
    }

    fn deadline(&self) -> Option<Instant> {
        let timers = &self.config.timers;
        let over = self
            .fading
            .front()
            .into_iter()
            .chain(&self.current)
            .chain(&self.next)
            .map(|slot| slot.made + timers.reject_after)
            .min();
        let rekey = self
            .current
            .as_ref()
            .filter(|slot| {
                self.config.initiation == InitiationPolicy::Always
                    && slot.initiator
                    && self.dialing.is_none()
            })
            .map(|slot| slot.made + timers.rekey_after);
        let up = self.current.is_some();
        let dialing = self.dialing.as_ref().map(|dialing| dialing.at);
        let give_up = self
            .dialing
            .as_ref()
            .filter(|_| self.config.initiation != InitiationPolicy::Always)
            .and_then(|dialing| timers.give_up.map(|limit| dialing.since + limit));
        let pending = self
            .pending
            .front()
            .map(|pending| pending.sent + PENDING_LIFETIME);
        let pmtu = self.pmtu.as_ref().filter(|_| up).map(PathMtu::deadline);
        [
            over,
            rekey,
            dialing,
            give_up,
            pending,
            self.silence_at(),
            self.keepalive_at().filter(|_| up),
            self.persistent_at.filter(|_| up),
            self.echo_at.filter(|_| up),
            pmtu,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
