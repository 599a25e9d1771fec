//! Errors of the tunnel. Each message names the operation, the cause, and the remedy.

use thiserror::Error;

use crate::segment::InvalidSegment;
use crate::wire::Malformed;

/// A handshake step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// The Noise library of this build lacks a primitive.
    #[error(
        "handshake: the Noise library was built without X25519, ChaCha20-Poly1305 or BLAKE2s; \
         build it with the features that this crate asks for"
    )]
    Unsupported,
    /// The peer's public key is a point of small order (RFC 7748 section 6.1): X25519 with it gives
    /// zero.
    #[error("handshake: the peer's public key is weak; generate a new key at the peer")]
    WeakKey,
    /// The message is not authentic.
    #[error(
        "handshake: the message is not authentic; check the public keys and the preshared key at \
         both ends"
    )]
    Forged,
}

/// The control half has refused a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Rejected {
    /// The datagram is not a message.
    #[error("handshake: {0}")]
    Malformed(#[from] Malformed),
    /// mac1 is wrong: the sender does not know our public key.
    #[error("handshake: mac1 is wrong; check which public key the sender has for this end")]
    InvalidMac1,
    /// This end is under load and has answered with a cookie.
    #[error(
        "handshake: this end is under load and has sent a cookie; the sender will retry with it"
    )]
    CookieSent,
    /// This end is under load, and the source has had its share of handshakes.
    #[error(
        "handshake: this end is under load and the source is over its rate; the sender will retry"
    )]
    RateLimited,
    /// The cryptography failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The initiation is authentic, but its key is not configured.
    #[error("handshake: the sender's public key is not configured; add it as a peer")]
    UnknownPeer,
    /// The initiation's timestamp is not newer than that of the last one accepted.
    #[error(
        "handshake: replayed initiation; if the peer's clock was set back, correct it or restart \
         this end"
    )]
    Replayed,
    /// Initiations of the peer come too fast.
    #[error("handshake: initiation within {gap_ms} ms of the peer's last one; the peer will retry")]
    TooSoon {
        /// Shortest distance, milliseconds.
        gap_ms: u64,
    },
    /// A response or a cookie that answers no pending initiation.
    #[error("handshake: no initiation with index {index:#010x} is pending; drop the datagram")]
    NotExpected {
        /// Index in the message.
        index: u32,
    },
    /// A data message, which belongs to a [`crate::Receiver`].
    #[error("handshake: this is a data message; give it to the receiver of its session")]
    Data,
}

/// A packet was not sealed. No counter was used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    /// There is no session.
    #[error("seal: no session with the peer; wait for a handshake")]
    NoSession,
    /// The session is older than `TimerConfig::reject_after`.
    #[error("seal: the session's keys have expired; wait for a handshake")]
    Expired,
    /// The session's counters are used up.
    #[error("seal: the session's counters are used up; wait for a handshake")]
    Exhausted,
    /// The output buffer is too small.
    #[error("seal: the output has {have} bytes and needs {need}; give a larger buffer")]
    Short {
        /// Bytes needed.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// The packet does not fit the path, even in the largest number of fragments.
    #[error(
        "seal: a packet of {len} bytes is longer than the {limit} that can be carried; lower the \
         network's MTU"
    )]
    TooLong {
        /// Bytes of the packet.
        len: usize,
        /// Bytes that can be carried.
        limit: usize,
    },
    /// The packet is empty, or its kind does not match the peer's framing: a frame or a control
    /// message to a WireGuard peer, or a control message as a packet.
    #[error("seal: packets of this kind cannot be sent to this kind of peer")]
    WrongKind,
}

/// A data message was refused. Drop the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Not a data message.
    #[error("open: {0}")]
    Malformed(#[from] Malformed),
    /// This end has no such session.
    #[error("open: no session {index:#010x}; drop the datagram")]
    UnknownSession {
        /// Index in the message.
        index: u32,
    },
    /// The session is older than `TimerConfig::reject_after`, or the counter is past the cipher's
    /// limit.
    #[error("open: session {index:#010x} has expired; drop the datagram")]
    Expired {
        /// Index in the message.
        index: u32,
    },
    /// The session does not accept this cipher.
    #[error("open: the session does not accept this cipher; drop the datagram")]
    Cipher,
    /// The counter was seen before.
    #[error("open: counter {counter} was seen before; drop the datagram")]
    Duplicate {
        /// Counter in the message.
        counter: u64,
    },
    /// The counter is too far behind to know whether it was seen before.
    #[error("open: counter {counter} is behind the replay window; drop the datagram")]
    TooOld {
        /// Counter in the message.
        counter: u64,
    },
    /// The tag is wrong.
    #[error("open: the packet is not authentic; drop the datagram")]
    Forged,
}

/// An authentic packet with invalid content. The cause is the peer, not the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidContent {
    /// The segment header or the fragments are invalid.
    #[error(transparent)]
    Segment(#[from] InvalidSegment),
    /// Not an IP packet, or one whose length field exceeds the message.
    #[error("open: not a whole IP packet; check the peer's configuration")]
    NotIp,
}
