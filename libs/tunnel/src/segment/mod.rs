//! Segments: the plaintext of data messages between two appliances. An 8-byte header, then a
//! packet, a frame, a fragment of one, or a control message.
//!
//! ```text
//!  0       1       2       3       4       5       6       7
//! ┌───────┬───────────────────────┬───────────────┬───────┬───────┐
//! │ kind  │ network (24 bits)     │ stride        │ index │ last  │   big-endian
//! └───────┴───────────────────────┴───────────────┴───────┴───────┘
//!  whole:     stride = index = last = 0, body of 1 byte or more
//!  fragment:  index ≤ last, 1 ≤ last ≤ 15; offset = index × stride; the body has `stride` bytes,
//!             that of the last fragment 1 to `stride`. The fragments of a packet are sealed with
//!             consecutive counters of one session, so (session, counter − index) names the
//!             packet: no identifier can wrap.
//! ```
//!
//! The layout allows no overlaps and no gaps: a fragment either has its one place in its packet or
//! is refused. [`ReassemblyLimits`] bounds the memory, which is allocated once.

mod control_message;
mod layout;
mod reassembly;
#[cfg(test)]
mod tests;

pub use control_message::{CONTROL_MESSAGE_BYTES, ControlMessage};
pub use layout::FragmentLayout;
pub use reassembly::{Reassembler, ReassemblyLimits, ReassemblyStats};

use thiserror::Error;

/// Bytes of the segment header.
pub const HEADER_BYTES: usize = 8;
/// Greatest number of fragments of one packet.
pub const MAX_FRAGMENTS: usize = 16;
/// Greatest network id: 24 bits.
pub const MAX_NETWORK: u32 = 0x00ff_ffff;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PayloadKind {
    /// An IP packet, of a network that is stretched host by host (`proxy`).
    Ip,
    /// An Ethernet frame without its checksum, of a network that is stretched whole (`bridge`).
    Frame,
    /// A message between the two ends: a [`ControlMessage`].
    Control,
}

impl PayloadKind {
    const fn wire(self) -> u8 {
        match self {
            Self::Ip => 1,
            Self::Frame => 2,
            Self::Control => 3,
        }
    }

    const fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Ip),
            2 => Some(Self::Frame),
            3 => Some(Self::Control),
            _ => None,
        }
    }
}

/// Why a segment is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidSegment {
    /// Shorter than a header and one byte.
    #[error("segment: shorter than its header and one byte; run the same version at both ends")]
    Short,
    /// The kind is not known.
    #[error("segment: unknown kind {kind}; run the same version at both ends")]
    UnknownKind {
        /// The kind's byte.
        kind: u8,
    },
    /// Fragment fields contradict each other or the body's length.
    #[error("segment: fragment fields do not fit the body; the peer has a defect")]
    FragmentFields,
    /// The packet is longer than [`ReassemblyLimits::max_packet`].
    #[error(
        "segment: the packet is longer than the {limit} bytes that this end reassembles; configure \
         the same MTU at both ends"
    )]
    TooLong {
        /// Longest packet that this end reassembles, bytes.
        limit: usize,
    },
    /// The fragment contradicts others of the same packet.
    #[error("segment: fragments of one packet contradict each other; the peer has a defect")]
    Conflict,
    /// The control message is not known.
    #[error("segment: unknown control message; run the same version at both ends")]
    Control,
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// The kind of the body, or of the payload that the body is a fragment of.
    pub kind: PayloadKind,
    /// Network id (VNI), at most [`MAX_NETWORK`]; zero for control messages.
    pub network: u32,
    /// Bytes of every fragment but the last; zero for a whole packet.
    pub stride: u16,
    /// Number of this fragment, from zero.
    pub index: u8,
    /// Number of the last fragment; zero for a whole packet.
    pub last: u8,
}

impl Header {
    /// The header of a whole packet.
    #[must_use]
    pub const fn whole(kind: PayloadKind, network: u32) -> Self {
        Self {
            kind,
            network: network & MAX_NETWORK,
            stride: 0,
            index: 0,
            last: 0,
        }
    }

    /// Whether the body is a whole packet.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.last == 0
    }

    /// The header as it is on the wire, big-endian.
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let [_, n2, n1, n0] = self.network.to_be_bytes();
        let [s1, s0] = self.stride.to_be_bytes();
        [self.kind.wire(), n2, n1, n0, s1, s0, self.index, self.last]
    }

    /// Whether the fields agree with each other and with the body's length.
    const fn fits(&self, body: &[u8]) -> bool {
        let (stride, len) = (self.stride as usize, body.len());
        if self.is_whole() {
            return self.index == 0 && stride == 0 && len > 0;
        }
        (self.last as usize) < MAX_FRAGMENTS
            && !matches!(self.kind, PayloadKind::Control)
            && if self.index < self.last {
                len == stride && len > 0
            } else {
                self.index == self.last && len > 0 && len <= stride
            }
    }

    /// Parses a plaintext into header and body.
    ///
    /// # Errors
    /// [`InvalidSegment`] if a field is not known, or fields and body do not agree.
    pub fn parse(plaintext: &[u8]) -> Result<(Self, &[u8]), InvalidSegment> {
        let Some((&[kind, n2, n1, n0, s1, s0, index, last], body)) =
            plaintext.split_first_chunk::<HEADER_BYTES>()
        else {
            return Err(InvalidSegment::Short);
        };
        if body.is_empty() {
            return Err(InvalidSegment::Short);
        }
        let Some(kind) = PayloadKind::from_wire(kind) else {
            return Err(InvalidSegment::UnknownKind { kind });
        };
        let header = Self {
            kind,
            network: u32::from_be_bytes([0, n2, n1, n0]),
            stride: u16::from_be_bytes([s1, s0]),
            index,
            last,
        };
        if header.fits(body) {
            Ok((header, body))
        } else {
            Err(InvalidSegment::FragmentFields)
        }
    }
}
