//! The frames of one half, and whether the kernel has them.
//!
//! ```text
//!              hand_over (address goes into a ring)
//!      free ────────────────────────────────────────► with the kernel
//!        ▲                                                  │
//!        └──────────────────────────────────────────────────┘
//!              take_back (address came out of a ring)
//! ```

use std::{marker::PhantomData, ptr::NonNull};

/// The frames of one half. Every frame is either free or with the kernel.
pub(crate) struct Pool {
    /// First byte of the frames.
    base: NonNull<u8>,
    /// UMEM address of that byte.
    start: u64,
    /// Bytes of a frame, as a power of two.
    shift: u32,
    /// Number of frames.
    count: u32,
    /// Free frames; the one used last is taken first. Never grows.
    free: Vec<u32>,
    /// One bit per frame: whether the kernel has it.
    with_kernel: Box<[u64]>,
    owns: PhantomData<[u8]>,
}

// SAFETY: `base` is to memory that is not bound to a thread, and which only this pool touches
// while the kernel does not (contract of `Pool::new`).
unsafe impl Send for Pool {}

impl Pool {
    /// A pool of `count` free frames of `size` bytes (a power of two).
    ///
    /// # Safety
    /// From `base` on, `count * size` initialised bytes are readable and writable as long as this
    /// lives. Apart from this pool only the kernel touches them, and only frames handed over.
    pub(crate) unsafe fn new(base: NonNull<u8>, start: u64, count: u32, size: u32) -> Self {
        assert!(size.is_power_of_two());
        Self {
            base,
            start,
            shift: size.trailing_zeros(),
            count,
            free: (0..count).rev().collect(),
            with_kernel: vec![0; count.div_ceil(64) as usize].into_boxed_slice(),
            owns: PhantomData,
        }
    }

    /// Bytes a frame.
    #[inline]
    pub(crate) fn frame_size(&self) -> usize {
        1 << self.shift
    }

    /// Frames that the kernel holds.
    pub(crate) fn outstanding(&self) -> usize {
        self.count as usize - self.free.len()
    }

    /// The frame that [`Self::hand_over`] would take.
    #[inline]
    pub(crate) fn next_free(&self) -> Option<u32> {
        self.free.last().copied()
    }

    /// Takes a free frame for the kernel: its UMEM address, to be put into a ring.
    #[inline]
    pub(crate) fn hand_over(&mut self) -> Option<u64> {
        let frame = self.free.pop()?;
        let (word, bit) = place(frame);
        self.with_kernel[word] |= bit;
        Some(self.start + (u64::from(frame) << self.shift))
    }

    /// Takes the frame that `address` is in back from the kernel, and says which it is and where in
    /// it `address` is. `None` if it is no frame of this half, or not with the kernel.
    #[inline]
    pub(crate) fn take_back(&mut self, address: u64) -> Option<(u32, usize)> {
        let offset = address.checked_sub(self.start)?;
        let frame = u32::try_from(offset >> self.shift).ok()?;
        if frame >= self.count {
            return None;
        }
        let (word, bit) = place(frame);
        if self.with_kernel[word] & bit == 0 {
            return None;
        }
        self.with_kernel[word] &= !bit;
        self.free.push(frame);
        Some((frame, offset as usize & (self.frame_size() - 1)))
    }

    /// `len` bytes of `frame` from `offset` on. `None` if they are not within it, or the kernel
    /// holds it.
    #[inline]
    pub(crate) fn bytes(&mut self, frame: u32, offset: usize, len: usize) -> Option<&mut [u8]> {
        let end = offset.checked_add(len)?;
        if frame >= self.count || end > self.frame_size() {
            return None;
        }
        let (word, bit) = place(frame);
        if self.with_kernel[word] & bit != 0 {
            return None;
        }
        // SAFETY: within the half by the checks above; the kernel does not hold the frame; the
        // slice borrows the pool exclusively.
        Some(unsafe {
            let start = self.base.add(((frame as usize) << self.shift) + offset);
            std::slice::from_raw_parts_mut(start.as_ptr(), len)
        })
    }
}

#[inline]
fn place(frame: u32) -> (usize, u64) {
    (frame as usize / 64, 1 << (frame % 64))
}

/// Pools in ordinary memory, for tests that play the kernel.
#[cfg(test)]
pub(crate) mod memory {
    use super::*;

    /// A pool over leaked memory, and a pointer to its first byte for the kernel's side.
    pub(crate) fn pool(start: u64, count: u32, size: u32) -> (Pool, NonNull<u8>) {
        let bytes = vec![0u8; count as usize * size as usize].into_boxed_slice();
        let base = NonNull::from(Box::leak(bytes)).cast();
        // SAFETY: leaked memory of the right size; tests write only frames handed over.
        (unsafe { Pool::new(base, start, count, size) }, base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_with_the_kernel_is_not_lent() {
        let (mut pool, _) = memory::pool(8192, 2, 2048);
        let frame = pool.next_free().unwrap();
        assert_eq!(pool.bytes(frame, 0, 2048).unwrap().len(), 2048);
        let address = pool.hand_over().unwrap();
        assert_eq!(address, 8192 + u64::from(frame) * 2048);
        assert!(pool.bytes(frame, 0, 1).is_none());
        assert_eq!(pool.outstanding(), 1);
        assert_eq!(pool.take_back(address + 256), Some((frame, 256)));
        assert!(pool.bytes(frame, 256, 1792).is_some());
        assert!(pool.bytes(frame, 256, 1793).is_none());
        assert!(pool.bytes(frame, usize::MAX, 1).is_none());
        assert!(pool.bytes(2, 0, 1).is_none());
    }

    #[test]
    fn addresses_that_are_not_lent_are_refused() {
        let (mut pool, _) = memory::pool(8192, 2, 2048);
        let address = pool.hand_over().unwrap();
        for wrong in [0, 8191, 8192 + 4096, address ^ 2048, u64::MAX, 1 << 63] {
            assert_eq!(pool.take_back(wrong), None, "{wrong:#x}");
        }
        assert!(pool.take_back(address).is_some());
        assert_eq!(pool.take_back(address), None, "taken back twice");
        assert_eq!(pool.outstanding(), 0);
    }
}
