//! Cutting a packet into fragments that fit the path.

use super::MAX_FRAGMENTS;

/// How a packet is cut into fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentLayout {
    /// Bytes of every fragment but the last; zero if the packet stays whole.
    pub stride: u16,
    /// Number of the last fragment; zero if the packet stays whole.
    pub last: u8,
}

impl FragmentLayout {
    /// Cuts `len` bytes into as few fragments of at most `room` bytes as possible, of nearly equal
    /// length. `None` if that takes more than [`MAX_FRAGMENTS`], or if `len` or `room` is zero.
    #[must_use]
    pub fn new(len: usize, room: usize) -> Option<Self> {
        let room = room.min(usize::from(u16::MAX));
        if len == 0 || room == 0 {
            return None;
        }
        if len <= room {
            return Some(Self { stride: 0, last: 0 });
        }
        let fragments = len.div_ceil(room);
        if fragments > MAX_FRAGMENTS {
            return None;
        }
        // ceil(len / fragments) ≤ room, and no fewer than `fragments` of them are needed: a shorter
        // count would need a stride of len / (fragments − 1) > room.
        let stride = len.div_ceil(fragments);
        let last = len.div_ceil(stride) - 1;
        Some(Self {
            stride: u16::try_from(stride).ok()?,
            last: u8::try_from(last).ok()?,
        })
    }

    /// Number of fragments, at least one.
    #[must_use]
    pub const fn fragments(&self) -> usize {
        self.last as usize + 1
    }

    /// The bytes of `packet` in fragment `index`; empty behind the last one.
    #[must_use]
    pub fn fragment<'a>(&self, packet: &'a [u8], index: u8) -> &'a [u8] {
        if self.last == 0 {
            return if index == 0 { packet } else { &[] };
        }
        let stride = usize::from(self.stride);
        let from = (usize::from(index) * stride).min(packet.len());
        &packet[from..(from + stride).min(packet.len())]
    }
}
