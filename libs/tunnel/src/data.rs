//! The data path: what a packet worker owns. No allocation, no lock, no clock.
//!
//! ```text
//!   packet ─▶ Sender::seal_packet / fragments ─▶ datagram          one Sender per peer and lane
//!   datagram ─▶ Receiver::open ─▶ packet | fragment kept | word     one Receiver per peer and lane
//!                   │
//!                   └ first_of_session: tell TunnelControl::confirm_session
//! ```
//!
//! The control half hands sessions over by value ([`Sender::install`], [`Receiver::install`]) and
//! learns what happened from plain snapshots ([`Sender::activity`], [`Receiver::activity`]), so the
//! two may live in different threads with any channel in between.

use crate::error::{InvalidContent, OpenError, SealError};
use crate::path::PeerPath;
use crate::replay::ReplayError;
use crate::segment::{
    self, ControlMessage, FragmentLayout, HEADER_BYTES, Header, MAX_FRAGMENTS, MAX_NETWORK,
    PayloadKind, Reassembler, ReassemblyLimits, ReassemblyStats,
};
use crate::session::{RxSession, TxSession};
use crate::time::Instant;
use crate::wire::{DATA_HEADER_BYTES, DATA_OVERHEAD, Data, TAG_BYTES};

/// What a peer puts inside data messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Segments (another appliance).
    Segments,
    /// Bare IP packets, padded with zeros to a multiple of 16 bytes, but not past the longest
    /// datagram (any WireGuard).
    WireGuard,
}

/// Smallest datagram (UDP payload) every path is taken to carry: 1280 bytes of IPv6 (RFC 8200
/// section 5) less its 40-byte header and UDP's 8.
pub const MIN_DATAGRAM: usize = 1232;

/// What a sender did, for the control half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxActivity {
    /// Name of the session in use.
    pub session: Option<u32>,
    /// Packets sealed since the sender was made, every kind.
    pub packets: u64,
    /// Bytes of datagrams sealed.
    pub bytes: u64,
    /// When anything but a probe of the path's MTU was last sealed.
    pub last_sent: Option<Instant>,
    /// When something that wants an answer (all but keep-alives, replies and probes) was last sealed.
    pub last_reply_expected: Option<Instant>,
    /// When a packet last found no session to go by.
    pub last_no_session: Option<Instant>,
    /// The session's counter passed the point where a new handshake is due.
    pub rekey_due: bool,
}

impl TxActivity {
    /// Two lanes' sending as one.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            session: self.session.or(other.session),
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            last_sent: self.last_sent.max(other.last_sent),
            last_reply_expected: self.last_reply_expected.max(other.last_reply_expected),
            last_no_session: self.last_no_session.max(other.last_no_session),
            rekey_due: self.rekey_due || other.rekey_due,
        }
    }
}

/// What a receiver did, for the control half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxActivity {
    /// When an authentic message last came.
    pub last_received: Option<Instant>,
    /// When an authentic message with content (not a keep-alive or a control word) last came.
    pub last_content: Option<Instant>,
    /// Where the newest authentic message came from.
    pub path: Option<PeerPath>,
}

impl RxActivity {
    /// Two lanes' receiving as one. The address is of the one that heard last, of `other` if both did.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let newest = if other.last_received >= self.last_received {
            other
        } else {
            self
        };
        Self {
            last_received: newest.last_received,
            last_content: self.last_content.max(other.last_content),
            path: newest.path,
        }
    }
}

/// Counters of a receiver. Every refused datagram is in exactly one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxStats {
    /// Authentic messages, keep-alives included.
    pub opened: u64,
    /// Bytes of their datagrams.
    pub bytes: u64,
    /// Seen before.
    pub duplicates: u64,
    /// Behind the replay window.
    pub too_old: u64,
    /// Not authentic.
    pub forged: u64,
    /// Of no session, or of one that is over.
    pub no_session: u64,
    /// Not a data message, or with a cipher the session does not take.
    pub malformed: u64,
    /// Authentic, but with content that makes no sense.
    pub bad_content: u64,
    /// Rejoining.
    pub reassembly: ReassemblyStats,
}

impl RxStats {
    /// Two lanes' counters as one.
    #[must_use]
    pub const fn merge(self, other: Self) -> Self {
        Self {
            opened: self.opened + other.opened,
            bytes: self.bytes + other.bytes,
            duplicates: self.duplicates + other.duplicates,
            too_old: self.too_old + other.too_old,
            forged: self.forged + other.forged,
            no_session: self.no_session + other.no_session,
            malformed: self.malformed + other.malformed,
            bad_content: self.bad_content + other.bad_content,
            reassembly: ReassemblyStats {
                completed: self.reassembly.completed + other.reassembly.completed,
                timed_out: self.reassembly.timed_out + other.reassembly.timed_out,
                evicted: self.reassembly.evicted + other.reassembly.evicted,
                refused: self.reassembly.refused + other.reassembly.refused,
            },
        }
    }
}

/// The sending half of a peer's lane.
#[derive(Debug)]
pub struct Sender {
    session: Option<TxSession>,
    framing: Framing,
    max_datagram: usize,
    activity: TxActivity,
}

impl Sender {
    /// A sender that has no session yet and takes the path to carry [`MIN_DATAGRAM`].
    #[must_use]
    pub const fn new(framing: Framing) -> Self {
        Self {
            session: None,
            framing,
            max_datagram: MIN_DATAGRAM,
            activity: TxActivity {
                session: None,
                packets: 0,
                bytes: 0,
                last_sent: None,
                last_reply_expected: None,
                last_no_session: None,
                rekey_due: false,
            },
        }
    }

    /// Sends by this session from now on. The one before is wiped.
    pub fn install(&mut self, session: TxSession) {
        self.activity.session = Some(session.index);
        self.activity.rekey_due = false;
        self.session = Some(session);
    }

    /// Stops sending by the session of this name, if it is the one in use, and wipes it.
    pub fn retire(&mut self, index: u32) {
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.index == index)
        {
            self.session = None;
            self.activity.session = None;
        }
    }

    /// Sets how long a datagram (UDP payload) may be; at least [`MIN_DATAGRAM`].
    pub fn set_max_datagram(&mut self, bytes: usize) {
        self.max_datagram = bytes.max(MIN_DATAGRAM);
    }

    /// How long a datagram may be, bytes of UDP payload.
    #[must_use]
    pub const fn max_datagram(&self) -> usize {
        self.max_datagram
    }

    /// Longest packet that goes whole, bytes.
    #[must_use]
    pub const fn max_packet(&self) -> usize {
        match self.framing {
            Framing::Segments => self.max_datagram - DATA_OVERHEAD - HEADER_BYTES,
            Framing::WireGuard => self.max_datagram - DATA_OVERHEAD,
        }
    }

    /// Name of the session in use.
    #[must_use]
    pub fn session(&self) -> Option<u32> {
        self.activity.session
    }

    /// What this sender did so far.
    #[must_use]
    pub const fn activity(&self) -> TxActivity {
        self.activity
    }

    /// Seals the concatenation of `parts` as one message into `out`: the message's plaintext is
    /// exactly these bytes. Returns the bytes of the datagram. The lowest level; packets go by
    /// [`Sender::seal_packet`] or [`Sender::fragments`].
    ///
    /// # Errors
    /// [`SealError`]; a counter may be skipped, none is used twice.
    #[inline]
    pub fn seal_into(
        &mut self,
        now: Instant,
        parts: &[&[u8]],
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        self.seal(now, parts, out, true)
    }

    /// Seals an empty message: shows the peer that this end lives.
    ///
    /// # Errors
    /// As [`Sender::seal_into`].
    pub fn seal_keepalive(&mut self, now: Instant, out: &mut [u8]) -> Result<usize, SealError> {
        self.seal(now, &[], out, false)
    }

    /// Seals a control word, padded so that the datagram has `pad_to` bytes if that is more.
    ///
    /// # Errors
    /// As [`Sender::seal_into`]; [`SealError::WrongKind`] for a WireGuard peer.
    pub fn seal_control(
        &mut self,
        now: Instant,
        word: ControlMessage,
        pad_to: usize,
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        if self.framing != Framing::Segments {
            return Err(SealError::WrongKind);
        }
        let header = Header::whole(PayloadKind::Control, 0).to_bytes();
        let word_bytes = word.to_bytes();
        let bare = DATA_OVERHEAD + HEADER_BYTES + word_bytes.len();
        let mut padding = pad_to.saturating_sub(bare);
        let have = out.len();
        if have < bare + padding {
            return Err(SealError::Short {
                need: bare + padding,
                have,
            });
        }
        // Zeros from a static block, as often as needed: no allocation, whatever the size.
        const ZEROS: [u8; 2048] = [0; 2048];
        let mut parts: [&[u8]; 34] = [&[]; 34];
        parts[0] = &header;
        parts[1] = &word_bytes;
        for part in &mut parts[2..] {
            let take = padding.min(ZEROS.len());
            *part = &ZEROS[..take];
            padding -= take;
        }
        let last_sent = self.activity.last_sent;
        let sealed = self.seal(
            now,
            &parts,
            out,
            matches!(word, ControlMessage::Echo { size: 0, .. }),
        )?;
        // A probe may be too long for the path: its loss is no silence, and it shows nobody that this end lives.
        if matches!(word, ControlMessage::Echo { size: 1.., .. }) {
            self.activity.last_sent = last_sent;
        }
        Ok(sealed)
    }

    /// Seals one packet as one message. To a WireGuard peer the packet must be an IP packet, and
    /// `network` is not carried.
    ///
    /// # Errors
    /// [`SealError::TooLong`] if it exceeds [`Sender::max_packet`]; otherwise as [`Sender::seal_into`].
    #[inline]
    pub fn seal_packet(
        &mut self,
        now: Instant,
        kind: PayloadKind,
        network: u32,
        packet: &[u8],
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        let limit = self.max_packet();
        if packet.len() > limit {
            return Err(SealError::TooLong {
                len: packet.len(),
                limit,
            });
        }
        self.check_kind(kind, network, packet)?;
        match self.framing {
            Framing::Segments => {
                let header = Header::whole(kind, network).to_bytes();
                self.seal(now, &[&header, packet], out, true)
            }
            Framing::WireGuard => self.seal_padded(now, packet, out),
        }
    }

    /// Cuts a packet to fit the path. Seal every fragment: their counters are set aside here.
    ///
    /// # Errors
    /// [`SealError::TooLong`] if more than [`MAX_FRAGMENTS`] would be needed, or a WireGuard peer would
    /// need more than one; otherwise as [`Sender::seal_into`].
    pub fn fragments<'a>(
        &'a mut self,
        now: Instant,
        kind: PayloadKind,
        network: u32,
        packet: &'a [u8],
    ) -> Result<Fragments<'a>, SealError> {
        self.check_kind(kind, network, packet)?;
        let room = self.max_packet();
        let most = if self.framing == Framing::Segments {
            MAX_FRAGMENTS
        } else {
            1
        };
        let plan = FragmentLayout::new(packet.len(), room).filter(|plan| plan.fragments() <= most);
        let Some(plan) = plan else {
            return Err(SealError::TooLong {
                len: packet.len(),
                limit: room * most,
            });
        };
        // ReplayError here rather than halfway, and the fragments' counters must be consecutive.
        self.ready(now, plan.fragments() as u64)?;
        Ok(Fragments {
            sender: self,
            now,
            kind,
            network,
            packet,
            plan,
            index: 0,
        })
    }

    fn check_kind(&self, kind: PayloadKind, network: u32, packet: &[u8]) -> Result<(), SealError> {
        let right = match self.framing {
            Framing::Segments => kind != PayloadKind::Control && network <= MAX_NETWORK,
            Framing::WireGuard => kind == PayloadKind::Ip,
        };
        if right && !packet.is_empty() {
            Ok(())
        } else {
            Err(SealError::WrongKind)
        }
    }

    fn seal_padded(
        &mut self,
        now: Instant,
        packet: &[u8],
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        let padding = padded(packet.len(), self.max_packet()).saturating_sub(packet.len());
        if padding == 0 {
            self.seal(now, &[packet], out, true)
        } else {
            self.seal(now, &[packet, &[0; 16][..padding]], out, true)
        }
    }

    /// The session, if it may seal `messages` more.
    #[inline]
    fn ready(&mut self, now: Instant, messages: u64) -> Result<&mut TxSession, SealError> {
        let refused = match &self.session {
            None => SealError::NoSession,
            Some(session) if now >= session.ends => SealError::Expired,
            Some(session)
                if session.reject_after_messages.saturating_sub(session.next) < messages =>
            {
                SealError::Exhausted
            }
            Some(_) => return self.session.as_mut().ok_or(SealError::NoSession),
        };
        self.activity.last_no_session = Some(now);
        Err(refused)
    }

    #[inline]
    fn seal(
        &mut self,
        now: Instant,
        parts: &[&[u8]],
        out: &mut [u8],
        wanting: bool,
    ) -> Result<usize, SealError> {
        let have = out.len();
        let session = self.ready(now, 1)?;
        let need = DATA_OVERHEAD + parts.iter().map(|part| part.len()).sum::<usize>();
        if have < need {
            return Err(SealError::Short { need, have });
        }
        let Some((head, sealed)) = out.split_first_chunk_mut::<DATA_HEADER_BYTES>() else {
            return Err(SealError::Short { need, have });
        };
        // Counted before it is used: whatever happens below, this counter does not come again.
        let counter = session.next;
        session.next += 1;
        let rekey_due = session.next >= session.rekey_after_messages;
        Data::write_header(
            head,
            session.key.cipher().wire_id(),
            session.receiver,
            counter,
        );
        let written = session
            .key
            .seal_into(counter, parts, sealed)
            .map_err(|_| SealError::Short { need, have })?;
        let bytes = DATA_HEADER_BYTES + written;
        self.activity.packets += 1;
        self.activity.bytes += bytes as u64;
        self.activity.rekey_due |= rekey_due;
        self.activity.last_sent = Some(now);
        if wanting {
            self.activity.last_reply_expected = Some(now);
        }
        Ok(bytes)
    }
}

/// Length of a WireGuard peer's packet with its padding: to a multiple of 16 bytes (white paper,
/// section 5.4.6) while that fits `room`, so that the padding never makes a datagram that the path
/// does not carry, as Linux does it (drivers/net/wireguard/send.c, `calculate_skb_padding`, 6.12).
const fn padded(len: usize, room: usize) -> usize {
    let whole = len.next_multiple_of(16);
    if whole < room { whole } else { room }
}

/// A packet on its way out, fragment by fragment. Borrowing the sender keeps the counters consecutive.
#[derive(Debug)]
pub struct Fragments<'a> {
    sender: &'a mut Sender,
    now: Instant,
    kind: PayloadKind,
    network: u32,
    packet: &'a [u8],
    plan: FragmentLayout,
    index: u8,
}

impl Fragments<'_> {
    /// Fragments not yet sealed.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.plan.fragments() - usize::from(self.index)
    }

    /// Bytes of the longest datagram to come.
    #[must_use]
    pub fn datagram_bytes(&self) -> usize {
        match self.sender.framing {
            Framing::Segments => {
                DATA_OVERHEAD + HEADER_BYTES + self.plan.fragment(self.packet, 0).len()
            }
            Framing::WireGuard => {
                DATA_OVERHEAD + padded(self.packet.len(), self.sender.max_packet())
            }
        }
    }

    /// Seals the next fragment into `out`; `None` when all are done. A fragment that failed is skipped,
    /// and the packet will not rejoin.
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<Result<usize, SealError>> {
        if self.remaining() == 0 {
            return None;
        }
        let body = self.plan.fragment(self.packet, self.index);
        let header = Header {
            kind: self.kind,
            network: self.network,
            stride: self.plan.stride,
            index: self.index,
            last: self.plan.last,
        };
        self.index += 1;
        Some(match self.sender.framing {
            Framing::Segments => self
                .sender
                .seal(self.now, &[&header.to_bytes(), body], out, true),
            Framing::WireGuard => self.sender.seal_padded(self.now, body, out),
        })
    }
}

/// What an authentic message held.
#[derive(Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Nothing: the peer lives.
    Keepalive,
    /// A packet or frame of a network, whole or rejoined.
    Packet {
        /// Packet or frame.
        kind: PayloadKind,
        /// Its network.
        network: u32,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// An IP packet of a WireGuard peer. Check its source against what the peer may send.
    Ip(&'a [u8]),
    /// A fragment; the rest is still to come.
    Fragment,
    /// A word for [`crate::TunnelControl::handle_control_message`].
    Control(ControlMessage),
    /// Authentic, but senseless.
    Invalid(InvalidContent),
}

/// An authentic message.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// What it held.
    pub payload: Payload<'a>,
    /// Set by the first message of a session: tell [`crate::TunnelControl::confirm_session`] this name.
    pub first_of_session: Option<u32>,
    /// Set if the peer is heard from another address than it was taken to be at.
    pub moved_to: Option<PeerPath>,
}

/// Sessions a receiver holds: the one in use, the next, and three that fade.
const SESSIONS: usize = 5;

/// The receiving half of a peer's lane.
#[derive(Debug)]
pub struct Receiver {
    /// Newest first.
    sessions: [Option<Box<RxSession>>; SESSIONS],
    framing: Framing,
    rejoin: Reassembler,
    activity: RxActivity,
    /// Session and counter of the newest message: only a newer one moves the peer's address, so
    /// that one held back on the way does not.
    newest: Option<(u32, u64)>,
    /// Where the control half takes the peer to be.
    peer_at: Option<PeerPath>,
    stats: RxStats,
}

impl Receiver {
    /// A receiver that has no session yet. Takes the memory `limits` allow, here and never again.
    #[must_use]
    pub fn new(framing: Framing, limits: ReassemblyLimits) -> Self {
        Self {
            sessions: [const { None }; SESSIONS],
            framing,
            rejoin: Reassembler::new(limits),
            activity: RxActivity::default(),
            newest: None,
            peer_at: None,
            stats: RxStats::default(),
        }
    }

    /// Opens messages of this session from now on, besides those it opens already. If it holds
    /// too many the oldest is wiped.
    pub fn install(&mut self, session: Box<RxSession>) {
        self.sessions.rotate_right(1);
        self.sessions[0] = Some(session);
    }

    /// Opens no more messages of the session of this name, and wipes it.
    pub fn retire(&mut self, index: u32) {
        for slot in &mut self.sessions {
            if slot.as_ref().is_some_and(|session| session.index == index) {
                *slot = None;
            }
        }
        // Free slots at the end, so that `install` drops those first.
        let mut at = 0;
        for from in 0..SESSIONS {
            if self.sessions[from].is_some() {
                self.sessions.swap(at, from);
                at += 1;
            }
        }
    }

    /// Takes note of where the peer is, as [`crate::Output::Path`] says. A peer has several lanes:
    /// another one may have moved it, and whoever hears it elsewhere must say so again.
    pub const fn set_path(&mut self, path: PeerPath) {
        self.peer_at = Some(path);
    }

    /// What this receiver did so far.
    #[must_use]
    pub const fn activity(&self) -> RxActivity {
        self.activity
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> RxStats {
        RxStats {
            reassembly: self.rejoin.stats(),
            ..self.stats
        }
    }

    /// Gives up packets that miss fragments for too long. Call it now and then; nothing depends on when.
    pub fn expire(&mut self, now: Instant) {
        self.rejoin.expire(now);
    }

    /// Opens a data message where it lies. The order is: known session, window, authenticity, mark;
    /// a forged message changes nothing but a counter.
    ///
    /// # Errors
    /// [`OpenError`]; the datagram is to be dropped, and its content is undefined.
    #[inline]
    pub fn open<'a>(
        &'a mut self,
        now: Instant,
        from: impl Into<PeerPath>,
        datagram: &'a mut [u8],
    ) -> Result<Opened<'a>, OpenError> {
        let from = from.into();
        let bytes = datagram.len() as u64;
        let (head, slot) = match self.admit(now, datagram) {
            Ok(admitted) => admitted,
            Err(refused) => {
                *match refused {
                    OpenError::Malformed(_) | OpenError::Cipher => &mut self.stats.malformed,
                    OpenError::UnknownSession { .. } | OpenError::Expired { .. } => {
                        &mut self.stats.no_session
                    }
                    OpenError::Duplicate { .. } => &mut self.stats.duplicates,
                    OpenError::TooOld { .. } => &mut self.stats.too_old,
                    OpenError::Forged => &mut self.stats.forged,
                } += 1;
                return Err(refused);
            }
        };
        // From here on the message is authentic and marked.
        let plaintext = &datagram[DATA_HEADER_BYTES..datagram.len() - TAG_BYTES];
        self.stats.opened += 1;
        self.stats.bytes += bytes;
        self.activity.last_received = Some(now);
        let Some(session) = self.sessions[slot].as_mut() else {
            return Err(OpenError::UnknownSession { index: head.index });
        };
        let first_of_session = (!session.used).then_some(session.index);
        session.used = true;
        let newer = match self.newest {
            Some((index, counter)) if index == session.index => head.counter > counter,
            // A session first heard of is newer than those before it.
            _ => first_of_session.is_some() || self.newest.is_none(),
        };
        let mut moved_to = None;
        if newer {
            self.newest = Some((session.index, head.counter));
            self.activity.path = Some(from);
            if self.peer_at.replace(from) != Some(from) {
                moved_to = Some(from);
            }
        }
        let name = session.index;
        let payload = match self.framing {
            _ if plaintext.is_empty() => Payload::Keepalive,
            Framing::WireGuard => match ip_packet(plaintext) {
                Some(packet) => {
                    self.activity.last_content = Some(now);
                    Payload::Ip(packet)
                }
                None => Payload::Invalid(InvalidContent::NotIp),
            },
            Framing::Segments => match segment::Header::parse(plaintext) {
                Err(bad) => Payload::Invalid(bad.into()),
                Ok((
                    Header {
                        kind: PayloadKind::Control,
                        ..
                    },
                    body,
                )) => match ControlMessage::parse(body) {
                    Ok(word) => Payload::Control(word),
                    Err(bad) => Payload::Invalid(bad.into()),
                },
                Ok((header, body)) if header.is_whole() => {
                    self.activity.last_content = Some(now);
                    Payload::Packet {
                        kind: header.kind,
                        network: header.network,
                        bytes: body,
                    }
                }
                Ok((header, body)) => {
                    self.activity.last_content = Some(now);
                    match self.rejoin.offer(now, name, head.counter, header, body) {
                        Ok(Some(bytes)) => Payload::Packet {
                            kind: header.kind,
                            network: header.network,
                            bytes,
                        },
                        Ok(None) => Payload::Fragment,
                        Err(bad) => Payload::Invalid(bad.into()),
                    }
                }
            },
        };
        if matches!(payload, Payload::Invalid(_)) {
            self.stats.bad_content += 1;
        }
        Ok(Opened {
            payload,
            first_of_session,
            moved_to,
        })
    }

    #[inline]
    fn admit(&mut self, now: Instant, datagram: &mut [u8]) -> Result<(Head, usize), OpenError> {
        let data = Data::parse(datagram)?;
        let (index, counter, cipher) = (data.receiver, data.counter, data.cipher);
        let slot = self.sessions.iter().position(|session| {
            session
                .as_ref()
                .is_some_and(|session| session.wire_index == index)
        });
        let Some((slot, session)) =
            slot.and_then(|slot| Some((slot, self.sessions[slot].as_mut()?)))
        else {
            return Err(OpenError::UnknownSession { index });
        };
        let key = match (cipher, &session.aes) {
            (0, _) => &session.chacha,
            (1, Some(aes)) => aes,
            _ => return Err(OpenError::Cipher),
        };
        if now >= session.ends || counter >= key.cipher().reject_after_messages() {
            return Err(OpenError::Expired { index });
        }
        session
            .window
            .check(counter)
            .map_err(|refused| refusal(refused, counter))?;
        key.open_in_place(counter, &mut datagram[DATA_HEADER_BYTES..])
            .map_err(|_| OpenError::Forged)?;
        session
            .window
            .mark(counter)
            .map_err(|refused| refusal(refused, counter))?;
        Ok((Head { index, counter }, slot))
    }
}

struct Head {
    index: u32,
    counter: u64,
}

const fn refusal(refused: ReplayError, counter: u64) -> OpenError {
    match refused {
        ReplayError::Duplicate => OpenError::Duplicate { counter },
        ReplayError::TooOld => OpenError::TooOld { counter },
    }
}

/// The IP packet at the head of a padded plaintext, by its own length field.
fn ip_packet(plaintext: &[u8]) -> Option<&[u8]> {
    let len = match plaintext.first()? >> 4 {
        4 => {
            let len = usize::from(u16::from_be_bytes([*plaintext.get(2)?, *plaintext.get(3)?]));
            (len >= 20).then_some(len)?
        }
        6 => 40 + usize::from(u16::from_be_bytes([*plaintext.get(4)?, *plaintext.get(5)?])),
        _ => return None,
    };
    plaintext.get(..len)
}
