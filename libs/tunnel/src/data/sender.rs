//! Sealing packets, fragments, keep-alives and control messages.

use super::{Framing, MIN_DATAGRAM, TxActivity};
use crate::error::SealError;
use crate::segment::{
    ControlMessage, FragmentLayout, HEADER_BYTES, Header, MAX_FRAGMENTS, MAX_NETWORK, PayloadKind,
};
use crate::session::TxSession;
use crate::time::Instant;
use crate::wire::{DATA_HEADER_BYTES, DATA_OVERHEAD, Data};

/// Sends to one peer on one lane.
#[derive(Debug)]
pub struct Sender {
    session: Option<TxSession>,
    framing: Framing,
    max_datagram: usize,
    activity: TxActivity,
}

impl Sender {
    /// A sender without a session, for a path that carries [`MIN_DATAGRAM`].
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

    /// Uses this session from now on. The one before is wiped.
    pub fn install(&mut self, session: TxSession) {
        self.activity.session = Some(session.index);
        self.activity.rekey_due = false;
        self.session = Some(session);
    }

    /// Wipes the session of this name, if it is the one in use.
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

    /// Wipes the session in use, whichever it is.
    pub fn retire_all(&mut self) {
        self.session = None;
        self.activity.session = None;
    }

    /// Sets the longest datagram, bytes of UDP payload; at least [`MIN_DATAGRAM`].
    pub fn set_max_datagram(&mut self, bytes: usize) {
        self.max_datagram = bytes.max(MIN_DATAGRAM);
    }

    /// Longest datagram, bytes of UDP payload.
    #[must_use]
    pub const fn max_datagram(&self) -> usize {
        self.max_datagram
    }

    /// Longest packet that is sent whole, bytes.
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

    /// Snapshot for [`crate::TunnelControl::report_sent`].
    #[must_use]
    pub const fn activity(&self) -> TxActivity {
        self.activity
    }

    /// Seals the concatenation of `parts`, which is the whole plaintext, as one message into `out`.
    /// Returns the bytes of the datagram. This is the lowest level: packets are sealed by
    /// [`Sender::seal_packet`] or [`Sender::fragments`].
    ///
    /// # Errors
    /// [`SealError`]. A counter may be skipped; none is used twice.
    #[inline]
    pub fn seal_into(
        &mut self,
        now: Instant,
        parts: &[&[u8]],
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        self.seal(now, parts, out, true)
    }

    /// Seals an empty message, which shows the peer that this end is alive.
    ///
    /// # Errors
    /// As [`Sender::seal_into`].
    pub fn seal_keepalive(&mut self, now: Instant, out: &mut [u8]) -> Result<usize, SealError> {
        self.seal(now, &[], out, false)
    }

    /// Seals a control message, padded so that the datagram has at least `pad_to` bytes of UDP
    /// payload.
    ///
    /// # Errors
    /// As [`Sender::seal_into`]; [`SealError::WrongKind`] for a WireGuard peer.
    pub fn seal_control(
        &mut self,
        now: Instant,
        message: ControlMessage,
        pad_to: usize,
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        if self.framing != Framing::Segments {
            return Err(SealError::WrongKind);
        }
        let header = Header::whole(PayloadKind::Control, 0).to_bytes();
        let body = message.to_bytes();
        let bare = DATA_OVERHEAD + HEADER_BYTES + body.len();
        let mut padding = pad_to.saturating_sub(bare);
        let have = out.len();
        if have < bare + padding {
            return Err(SealError::Short {
                need: bare + padding,
                have,
            });
        }
        // Zeros from a static block, repeated: no allocation for any size.
        const ZEROS: [u8; 2048] = [0; 2048];
        let mut parts: [&[u8]; 34] = [&[]; 34];
        parts[0] = &header;
        parts[1] = &body;
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
            matches!(message, ControlMessage::Echo { size: 0, .. }),
        )?;
        // A probe may be too long for the path: it must not start the clock of silence, and does
        // not replace a keep-alive.
        if matches!(message, ControlMessage::Echo { size: 1.., .. }) {
            self.activity.last_sent = last_sent;
        }
        Ok(sealed)
    }

    /// Seals one packet as one message. To a WireGuard peer the packet must be an IP packet, and
    /// `network` is not carried.
    ///
    /// # Errors
    /// [`SealError::TooLong`] if it exceeds [`Sender::max_packet`]; otherwise as
    /// [`Sender::seal_into`].
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

    /// Cuts a packet into fragments that fit the path, one if it is short. Seal all of them.
    ///
    /// # Errors
    /// [`SealError::TooLong`] if that takes more than [`MAX_FRAGMENTS`], or for a WireGuard peer
    /// more than one; otherwise as [`Sender::seal_into`].
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

    /// The session, if it may seal so many more messages.
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
        expects_reply: bool,
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
        // Counted before it is used, so that a failure below does not use the counter twice.
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
        if expects_reply {
            self.activity.last_reply_expected = Some(now);
        }
        Ok(bytes)
    }
}

/// Length of a WireGuard peer's packet with its padding: a multiple of 16 bytes (white paper,
/// section 5.4.6), but at most `room`, so that padding never makes a datagram too long for the
/// path. Linux does the same (drivers/net/wireguard/send.c, `calculate_skb_padding`, 6.12).
const fn padded(len: usize, room: usize) -> usize {
    let whole = len.next_multiple_of(16);
    if whole < room { whole } else { room }
}

/// The fragments of a packet. It borrows the sender, so that their counters are consecutive.
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
    /// Number of fragments not yet sealed.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.plan.fragments() - usize::from(self.index)
    }

    /// Bytes of the longest datagram of the packet.
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

    /// Seals the next fragment into `out`; `None` after the last. A fragment that fails is skipped,
    /// and the packet is lost.
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
