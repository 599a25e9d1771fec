//! Opening datagrams.

use super::{Framing, RxActivity, RxStats};
use crate::error::{InvalidContent, OpenError};
use crate::path::PeerPath;
use crate::replay::ReplayError;
use crate::segment::{ControlMessage, Header, PayloadKind, Reassembler, ReassemblyLimits};
use crate::session::RxSession;
use crate::time::Instant;
use crate::wire::{DATA_HEADER_BYTES, Data, TAG_BYTES};

/// Content of an authentic message.
#[derive(Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Nothing: a keep-alive.
    Keepalive,
    /// A packet or frame of a network, whole or reassembled.
    Packet {
        /// [`PayloadKind::Ip`] or [`PayloadKind::Frame`].
        kind: PayloadKind,
        /// Network id (VNI), 24 bits. Check that the peer is of this network.
        network: u32,
        /// The packet or frame.
        bytes: &'a [u8],
    },
    /// An IP packet of a WireGuard peer. Check that the peer may send from its source address.
    Ip(&'a [u8]),
    /// A fragment of a packet that is not complete yet.
    Fragment,
    /// For [`crate::TunnelControl::handle_control_message`].
    Control(ControlMessage),
    /// The content is invalid. Drop it.
    Invalid(InvalidContent),
}

/// An authentic message.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Its content.
    pub payload: Payload<'a>,
    /// Name of the session, if this is its first message: call
    /// [`crate::TunnelControl::confirm_session`] with it.
    pub first_of_session: Option<u32>,
    /// The path, if the message came over another path than the one in use:
    /// [`crate::TunnelControl::follow_peer`] takes it.
    pub moved_to: Option<PeerPath>,
}

/// Sessions of a receiver: the one in use, the next, and three that are receive-only.
const MAX_SESSIONS: usize = 5;

/// Receives from one peer on one lane.
#[derive(Debug)]
pub struct Receiver {
    /// Newest first.
    sessions: [Option<Box<RxSession>>; MAX_SESSIONS],
    framing: Framing,
    reassembler: Reassembler,
    activity: RxActivity,
    /// Session and counter of the newest message. Only a newer message moves the peer, so that a
    /// delayed one does not.
    newest: Option<(u32, u64)>,
    /// The path in use, as the control half has it.
    peer_at: Option<PeerPath>,
    stats: RxStats,
}

impl Receiver {
    /// A receiver without a session. Allocates all memory that `limits` allow, once.
    #[must_use]
    pub fn new(framing: Framing, limits: ReassemblyLimits) -> Self {
        Self {
            sessions: [const { None }; MAX_SESSIONS],
            framing,
            reassembler: Reassembler::new(limits),
            activity: RxActivity::default(),
            newest: None,
            peer_at: None,
            stats: RxStats::default(),
        }
    }

    /// Opens messages of this session too from now on. If there are too many, the oldest is wiped.
    pub fn install(&mut self, session: Box<RxSession>) {
        self.sessions.rotate_right(1);
        self.sessions[0] = Some(session);
    }

    /// Wipes the session of this name.
    pub fn retire(&mut self, index: u32) {
        for slot in &mut self.sessions {
            if slot.as_ref().is_some_and(|session| session.index == index) {
                *slot = None;
            }
        }
        // Free slots go to the end, so that `install` drops them first.
        let mut at = 0;
        for from in 0..MAX_SESSIONS {
            if self.sessions[from].is_some() {
                self.sessions.swap(at, from);
                at += 1;
            }
        }
    }

    /// Wipes every session.
    pub fn retire_all(&mut self) {
        self.sessions = [const { None }; MAX_SESSIONS];
    }

    /// Sets the path in use, as [`crate::Output::Path`] says. Every lane needs it, because another
    /// lane may have moved the peer.
    pub const fn set_path(&mut self, path: PeerPath) {
        self.peer_at = Some(path);
    }

    /// Snapshot for [`crate::TunnelControl::report_received`].
    #[must_use]
    pub const fn activity(&self) -> RxActivity {
        self.activity
    }

    /// Counters since this receiver was made.
    #[must_use]
    pub fn stats(&self) -> RxStats {
        RxStats {
            reassembly: self.reassembler.stats(),
            ..self.stats
        }
    }

    /// Drops incomplete packets whose time is over. Call it now and then; the time does not matter.
    pub fn expire(&mut self, now: Instant) {
        self.reassembler.expire(now);
    }

    /// Opens a data message in place, in this order: session, replay window, authenticity, mark. A
    /// forged message changes nothing but a counter.
    ///
    /// # Errors
    /// [`OpenError`]. Drop the datagram; its bytes are undefined.
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
        // From here on, the message is authentic and marked.
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
            // The first message of a session is newer than those of sessions before it.
            _ => first_of_session.is_some() || self.newest.is_none(),
        };
        if first_of_session.is_some() {
            self.activity.session = first_of_session;
            self.activity.session_seen = Some(now);
        }
        let mut moved_to = None;
        if newer {
            self.newest = Some((session.index, head.counter));
            self.activity.path = Some(from);
            self.activity.path_seen = Some(now);
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
            Framing::Segments => match Header::parse(plaintext) {
                Err(invalid) => Payload::Invalid(invalid.into()),
                Ok((
                    Header {
                        kind: PayloadKind::Control,
                        ..
                    },
                    body,
                )) => match ControlMessage::parse(body) {
                    Ok(message) => Payload::Control(message),
                    Err(invalid) => Payload::Invalid(invalid.into()),
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
                    match self
                        .reassembler
                        .offer(now, name, head.counter, header, body)
                    {
                        Ok(Some(bytes)) => Payload::Packet {
                            kind: header.kind,
                            network: header.network,
                            bytes,
                        },
                        Ok(None) => Payload::Fragment,
                        Err(invalid) => Payload::Invalid(invalid.into()),
                    }
                }
            },
        };
        if matches!(payload, Payload::Invalid(_)) {
            self.stats.invalid_content += 1;
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

/// The IP packet at the start of a padded plaintext, by its own length field.
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
