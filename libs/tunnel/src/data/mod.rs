//! The data path, which packet workers own. No allocation, no lock, no clock.
//!
//! ```text
//!   packet ──▶ Sender::seal_packet, fragments ──▶ datagram          one Sender per peer and lane
//!   datagram ─▶ Receiver::open ─▶ packet, control message, or       one Receiver per peer and lane
//!                   │             nothing: a fragment is kept
//!                   └ first_of_session: call TunnelControl::confirm_session
//! ```
//!
//! The control half hands sessions over by value ([`Sender::install`], [`Receiver::install`]) and
//! reads plain snapshots ([`Sender::activity`], [`Receiver::activity`]), so that the two may run in
//! different threads with any channel in between.

mod receiver;
mod sender;

pub use receiver::{Opened, Payload, Receiver};
pub use sender::{Fragments, Sender};

use crate::path::PeerPath;
use crate::segment::ReassemblyStats;
use crate::time::Instant;

/// The content of data messages to and from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Segments ([`crate::segment`]): the peer is an appliance.
    Segments,
    /// Bare IP packets, padded with zeros to a multiple of 16 bytes, but not beyond the longest
    /// datagram (white paper, section 5.4.6): the peer is any WireGuard.
    WireGuard,
}

/// Datagram (UDP payload) that every path is assumed to carry, bytes: 1280 bytes of IPv6 (RFC 8200
/// section 5) less the headers of IPv6 (40) and UDP (8).
pub const MIN_DATAGRAM: usize = 1232;

/// Snapshot of a sender, for the control half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxActivity {
    /// Name of the session in use.
    pub session: Option<u32>,
    /// Messages of any kind sealed since the sender was made.
    pub packets: u64,
    /// Bytes of their datagrams.
    pub bytes: u64,
    /// When anything but a path-MTU probe was last sealed.
    pub last_sent: Option<Instant>,
    /// When a message that expects a reply was last sealed: anything but keep-alives, echo replies
    /// and path-MTU probes.
    pub last_reply_expected: Option<Instant>,
    /// When a packet last found no usable session.
    pub last_no_session: Option<Instant>,
    /// Whether the session's counter has passed the point at which a handshake must start.
    pub rekey_due: bool,
}

impl TxActivity {
    /// The snapshots of two lanes as one.
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

/// Snapshot of a receiver, for the control half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxActivity {
    /// When an authentic message last came.
    pub last_received: Option<Instant>,
    /// When an authentic packet last came: not a keep-alive or a control message.
    pub last_content: Option<Instant>,
    /// Where the message with the newest counter came from.
    pub path: Option<PeerPath>,
    /// When that message came.
    pub path_seen: Option<Instant>,
    /// Name of the newest session by which a message came.
    pub session: Option<u32>,
    /// When the first message of that session came.
    pub session_seen: Option<Instant>,
}

impl RxActivity {
    /// The snapshots of two lanes as one: each value of the lane where it is newer; of `other` if
    /// it is equally old.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let path = if other.path_seen >= self.path_seen {
            other
        } else {
            self
        };
        let session = if other.session_seen >= self.session_seen {
            other
        } else {
            self
        };
        Self {
            last_received: self.last_received.max(other.last_received),
            last_content: self.last_content.max(other.last_content),
            path: path.path,
            path_seen: path.path_seen,
            session: session.session,
            session_seen: session.session_seen,
        }
    }
}

/// Counters of a receiver. Every datagram is in exactly one of `opened`, `duplicates`, `too_old`,
/// `forged`, `no_session` and `malformed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxStats {
    /// Authentic messages, including keep-alives.
    pub opened: u64,
    /// Bytes of their datagrams.
    pub bytes: u64,
    /// The counter was seen before.
    pub duplicates: u64,
    /// The counter is behind the replay window.
    pub too_old: u64,
    /// The tag is wrong.
    pub forged: u64,
    /// There is no such session, or it has expired.
    pub no_session: u64,
    /// Not a data message, or the session does not accept its cipher.
    pub malformed: u64,
    /// Authentic, but the content is invalid ([`crate::InvalidContent`]).
    pub invalid_content: u64,
    /// Reassembly of fragments.
    pub reassembly: ReassemblyStats,
}

impl RxStats {
    /// The counters of two lanes as one.
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
            invalid_content: self.invalid_content + other.invalid_content,
            reassembly: ReassemblyStats {
                completed: self.reassembly.completed + other.reassembly.completed,
                timed_out: self.reassembly.timed_out + other.reassembly.timed_out,
                evicted: self.reassembly.evicted + other.reassembly.evicted,
                refused: self.reassembly.refused + other.reassembly.refused,
            },
        }
    }
}
