//! Why things are refused. Each message names the operation and what to do about it.

use thiserror::Error;

use crate::segment::InvalidSegment;
use crate::wire::Malformed;

/// A handshake step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// This build's Noise library lacks a primitive.
    #[error(
        "handshake: the Noise library was built without X25519, ChaCha20-Poly1305 or BLAKE2s; build with this crate's features"
    )]
    Unsupported,
    /// The peer's key gives no secret (a point of small order).
    #[error("handshake: the peer's key is degenerate; have the peer make a new one")]
    WeakKey,
    /// The message is not authentic.
    #[error("handshake: the message is not authentic; check both ends' keys and shared key")]
    Forged,
}

/// A datagram for the control half was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Rejected {
    /// Not a message at all.
    #[error("handshake: {0}")]
    Malformed(#[from] Malformed),
    /// Its mac1 is wrong: the sender does not know our public key.
    #[error("handshake: mac1 is wrong; the sender has another public key for us, or is a stranger")]
    Stranger,
    /// We are under load, and a cookie was sent instead.
    #[error("handshake: under load, a cookie was sent; the sender will come again with it")]
    CookieSent,
    /// We are under load, and this source sends more handshakes than its share.
    #[error("handshake: under load and this source is over its share; it will come again")]
    RateLimited,
    /// The cryptography failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// An honest stranger: its key is not configured.
    #[error("handshake: the sender's key is not configured; add it as a peer if it should be")]
    UnknownPeer,
    /// An initiation that is not newer than the last one accepted.
    #[error(
        "handshake: replayed initiation; if the peer's clock was set back, set it right or restart this end"
    )]
    Replayed,
    /// Initiations of this peer come too fast.
    #[error("handshake: a second initiation of this peer within {gap_ms} ms; it will come again")]
    TooSoon {
        /// Smallest distance, milliseconds.
        gap_ms: u64,
    },
    /// A response or cookie for a handshake that is not going on.
    #[error("handshake: no handshake with index {index:#010x} is going on; drop the datagram")]
    NotExpected {
        /// The index in the message.
        index: u32,
    },
    /// A data message, which is for a [`crate::Receiver`].
    #[error("handshake: this is a data message; give it to the session's receiver")]
    Data,
}

/// A packet could not be sealed. No counter was used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    /// No session yet, or none any more.
    #[error("seal: no session with the peer; a handshake is wanted")]
    NoSession,
    /// The session is older than its keys may be.
    #[error("seal: the session's keys are too old; a handshake is wanted")]
    Expired,
    /// The session's counters are used up.
    #[error("seal: the session's counters are used up; a handshake is wanted")]
    Exhausted,
    /// The output is too small.
    #[error("seal: {have} bytes of output where {need} are needed; give a larger buffer")]
    Short {
        /// Bytes needed.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// The packet would not fit the path even in the most fragments there may be.
    #[error(
        "seal: a packet of {len} bytes is longer than the {limit} that can be carried; lower the network's MTU"
    )]
    TooLong {
        /// Bytes of the packet.
        len: usize,
        /// Bytes that can be carried.
        limit: usize,
    },
    /// An empty packet, or a segment to a WireGuard peer or the other way about.
    #[error("seal: this kind of packet does not go to this kind of peer")]
    WrongKind,
}

/// A data message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Not a data message.
    #[error("open: {0}")]
    Malformed(#[from] Malformed),
    /// No such session here.
    #[error("open: no session {index:#010x}; drop the datagram")]
    UnknownSession {
        /// The index in the message.
        index: u32,
    },
    /// The session is older than its keys may be, or the counter is past its limit.
    #[error("open: session {index:#010x} is over; drop the datagram")]
    Expired {
        /// The index in the message.
        index: u32,
    },
    /// A cipher this session does not take.
    #[error("open: the session does not take this cipher; drop the datagram")]
    Cipher,
    /// Seen before.
    #[error("open: counter {counter} was seen before; drop the datagram")]
    Duplicate {
        /// The counter in the message.
        counter: u64,
    },
    /// Too far behind to tell whether it was seen before.
    #[error("open: counter {counter} is behind the replay window; drop the datagram")]
    TooOld {
        /// The counter in the message.
        counter: u64,
    },
    /// Not what the other end sealed.
    #[error("open: the packet is not authentic; drop the datagram")]
    Forged,
}

/// An authentic packet whose content makes no sense. The peer is at fault, not the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidContent {
    /// The segment header or its fragments.
    #[error(transparent)]
    Segment(#[from] InvalidSegment),
    /// Not an IP packet, or one that claims to be longer than it is.
    #[error("open: not a whole IP packet; the peer is misconfigured")]
    NotIp,
}
