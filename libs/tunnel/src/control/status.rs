//! Status of the control half and of its peers.

use std::time::Duration;

use crate::cipher::Cipher;
use crate::error::Rejected;
use crate::path::PeerPath;
use crate::time::Instant;

/// Why a peer has no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// This end does not initiate: that is left to the peer, or there was nothing to send.
    NotInitiating,
    /// This end would initiate, but the peer has no path.
    NoAddress,
    /// Initiations go unanswered: wrong path, address or port, or a key that the peer does not
    /// know.
    NoAnswer {
        /// Attempts so far.
        attempts: u32,
    },
    /// Responses came that are not authentic: keys or preshared keys differ.
    InvalidAnswers {
        /// Attempts so far.
        attempts: u32,
    },
}

/// State of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Where data goes.
    pub path: Option<PeerPath>,
    /// When the session in use was made; `None`: there is none.
    pub session_since: Option<Instant>,
    /// Why there is no session; `None`: there is one.
    pub down: Option<DownReason>,
    /// Whether anything authentic came within `TimerConfig::silence` plus `TimerConfig::echo`.
    pub alive: bool,
    /// Cipher for sending.
    pub cipher: Cipher,
    /// Longest datagram, bytes of UDP payload.
    pub max_datagram: usize,
    /// Whether the path-MTU search goes on, so that `max_datagram` may soon change.
    pub pmtu_searching: bool,
    /// Round-trip time, smoothed (RFC 6298 section 2.3).
    pub round_trip: Option<Duration>,
    /// Lost echoes of the last 32, per cent.
    pub loss_percent: u32,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Replayed initiations refused.
    pub replayed: u64,
}

/// Counters of handshake messages. Every message is in exactly one of the counters of refusals, or
/// it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlStats {
    /// Refused: not a handshake message.
    pub malformed: u64,
    /// Refused: mac1 is wrong, so the sender does not know our public key.
    pub invalid_mac1: u64,
    /// Refused under load and answered by a cookie.
    pub cookies_sent: u64,
    /// Refused under load: the source has had its share.
    pub rate_limited: u64,
    /// Refused: not authentic, or by a key that is not configured.
    pub authentication_failures: u64,
    /// Refused: replayed, or too soon after the initiation before.
    pub replayed: u64,
    /// Refused: a response or cookie for no pending initiation.
    pub unexpected: u64,
    /// Initiations answered.
    pub answered: u64,
    /// Handshakes completed as initiator.
    pub completed: u64,
}

impl ControlStats {
    /// Counts a refusal.
    pub(super) const fn count(&mut self, rejected: &Rejected) {
        let counter = match rejected {
            Rejected::Malformed(_) | Rejected::Data => &mut self.malformed,
            Rejected::InvalidMac1 => &mut self.invalid_mac1,
            Rejected::CookieSent => &mut self.cookies_sent,
            Rejected::RateLimited => &mut self.rate_limited,
            Rejected::Handshake(_) | Rejected::UnknownPeer => &mut self.authentication_failures,
            Rejected::Replayed | Rejected::TooSoon { .. } => &mut self.replayed,
            Rejected::NotExpected { .. } => &mut self.unexpected,
        };
        *counter += 1;
    }
}
