//! One end of a single-producer, single-consumer ring shared with the kernel.
//!
//! The other end is the kernel's, or in tests a simulation of it with the same types. Indices wrap
//! at 2³²; a slot is the index masked by the size, a power of two. Indices of the other end are not
//! trusted: slots are masked, and the free room saturates. Layout and barriers:
//! `net/xdp/xsk_queue.h`.

use std::{
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering, fence},
};

/// The parts of one ring.
pub(crate) struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    size: u32,
    owns: PhantomData<T>,
}

// SAFETY: the pointers are to memory that is not bound to a thread (contract of `Ring::new`).
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    /// # Safety
    /// The four parts are aligned, readable and writable, `slots` for `size` of `T`, as long as
    /// this lives; any bit pattern is a `T`; only one producer and one consumer are made of it;
    /// no other code touches it except by the rules of the ring.
    ///
    /// `size` is a power of two.
    pub(crate) unsafe fn new(
        producer: NonNull<AtomicU32>,
        consumer: NonNull<AtomicU32>,
        flags: NonNull<AtomicU32>,
        slots: NonNull<T>,
        size: u32,
    ) -> Self {
        assert!(size.is_power_of_two());
        Self {
            producer,
            consumer,
            flags,
            slots,
            size,
            owns: PhantomData,
        }
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: valid while `self` lives, by the contract of `new`.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: valid while `self` lives, by the contract of `new`.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // The index published before must be visible before the flag is read.
        fence(Ordering::SeqCst);
        // SAFETY: valid while `self` lives, by the contract of `new`.
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn slot(&self, index: u32) -> NonNull<T> {
        // SAFETY: masked below `size`, so within `slots`.
        unsafe { self.slots.add((index & (self.size - 1)) as usize) }
    }
}

/// The writing end.
pub(crate) struct Producer<T> {
    ring: Ring<T>,
    /// Next index to write. Entries from `published` to this are not visible to the other end yet.
    next: u32,
    published: u32,
    /// The other end's index, as it was last read.
    consumed: u32,
}

impl<T: Copy> Producer<T> {
    pub(crate) fn new(ring: Ring<T>) -> Self {
        let next = ring.producer().load(Ordering::Relaxed);
        let consumed = ring.consumer().load(Ordering::Acquire);
        Self {
            ring,
            next,
            published: next,
            consumed,
        }
    }

    /// Whether a slot is free. Reads the other end's index only if there seems to be none.
    #[inline]
    pub(crate) fn has_room(&mut self) -> bool {
        if self.used() < self.ring.size {
            return true;
        }
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.used() < self.ring.size
    }

    /// Writes `value` if a slot is free. Returns whether one was. The entry is visible after
    /// [`Self::publish`].
    #[inline]
    #[must_use]
    pub(crate) fn push(&mut self, value: T) -> bool {
        if !self.has_room() {
            return false;
        }
        // SAFETY: the slot is in the ring, and ours: the consumer is past it and will not read
        // it before `publish`.
        unsafe { self.ring.slot(self.next).write(value) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Makes pushed entries visible to the other end.
    #[inline]
    pub(crate) fn publish(&mut self) {
        if self.published != self.next {
            self.published = self.next;
            self.ring.producer().store(self.next, Ordering::Release);
        }
    }

    /// Number of published entries that the other end has not consumed yet.
    pub(crate) fn pending(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.published.wrapping_sub(self.consumed)
    }

    /// Number of slots.
    pub(crate) fn size(&self) -> u32 {
        self.ring.size
    }

    /// Whether the other end needs a system call to go on.
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }

    fn used(&self) -> u32 {
        self.next.wrapping_sub(self.consumed)
    }
}

/// The reading end.
pub(crate) struct Consumer<T> {
    ring: Ring<T>,
    /// Next index to read.
    next: u32,
    released: u32,
    /// The other end's index, as it was last read.
    produced: u32,
}

impl<T: Copy> Consumer<T> {
    pub(crate) fn new(ring: Ring<T>) -> Self {
        let next = ring.consumer().load(Ordering::Relaxed);
        Self {
            ring,
            next,
            released: next,
            produced: next,
        }
    }

    /// The next entry. Its slot is not free until [`Self::release`].
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.next == self.produced {
            self.produced = self.ring.producer().load(Ordering::Acquire);
            if self.next == self.produced {
                return None;
            }
        }
        // SAFETY: the slot is in the ring, and the producer has published it (acquired above)
        // and won't write it before `release`. Any bit pattern is a `T`.
        let value = unsafe { self.ring.slot(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(value)
    }

    /// Gives the slots of popped entries back to the other end.
    #[inline]
    pub(crate) fn release(&mut self) {
        if self.released != self.next {
            self.released = self.next;
            self.ring.consumer().store(self.next, Ordering::Release);
        }
    }
}

/// Rings in ordinary memory, for tests that simulate the kernel.
#[cfg(test)]
pub(crate) mod memory {
    use super::*;

    /// Both ends of a new ring whose indices begin at `start`, and its flags word. The memory is
    /// leaked, so that it outlives both.
    pub(crate) fn ring<T: Copy>(
        size: u32,
        start: u32,
        zero: T,
    ) -> (Producer<T>, Consumer<T>, &'static AtomicU32) {
        let word = |value| NonNull::from(Box::leak(Box::new(AtomicU32::new(value))));
        let (producer, consumer, flags) = (word(start), word(start), word(0));
        let slots = NonNull::from(Box::leak(vec![zero; size as usize].into_boxed_slice())).cast();
        let end = || {
            // SAFETY: leaked memory of the right size, one producer and one consumer.
            unsafe { Ring::new(producer, consumer, flags, slots, size) }
        };
        // SAFETY: leaked, and only used as an atomic.
        let flags: &'static AtomicU32 = unsafe { flags.as_ref() };
        (Producer::new(end()), Consumer::new(end()), flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_pass_in_order_and_indices_wrap() {
        let (mut producer, mut consumer, _) = memory::ring(4, u32::MAX - 5, 0u64);
        let mut expected = 0;
        for round in 0..10u64 {
            let pushed = (0..6).filter(|i| producer.push(round * 4 + i)).count();
            assert_eq!(pushed, 4);
            assert_eq!(consumer.pop(), None, "seen before it was published");
            producer.publish();
            assert_eq!(producer.pending(), 4);
            while let Some(value) = consumer.pop() {
                assert_eq!(value, expected);
                expected += 1;
            }
            assert!(!producer.has_room(), "slots free before they are released");
            consumer.release();
            assert_eq!(producer.pending(), 0);
        }
        assert_eq!(expected, 40);
    }

    #[test]
    fn two_threads_pass_every_entry_once_and_in_order() {
        const COUNT: u64 = 200_000;
        let (mut producer, mut consumer, _) = memory::ring(64, u32::MAX - 100, 0u64);
        let writer = std::thread::spawn(move || {
            let mut next = 0;
            while next < COUNT {
                if producer.push(next) {
                    next += 1;
                } else {
                    std::thread::yield_now();
                }
                producer.publish();
            }
        });
        let mut expected = 0;
        while expected < COUNT {
            match consumer.pop() {
                Some(value) => {
                    assert_eq!(value, expected);
                    expected += 1;
                }
                None => std::thread::yield_now(),
            }
            consumer.release();
        }
        writer.join().unwrap();
    }

    #[test]
    fn a_consumer_index_out_of_range_makes_no_room() {
        let (mut producer, consumer, _) = memory::ring(4, 0, 0u64);
        consumer.ring.consumer().store(77, Ordering::Release);
        for value in 0..4 {
            let _ = producer.push(value);
        }
        assert!(!producer.has_room());
    }

    #[test]
    fn the_wakeup_flag_is_the_kernels() {
        let (producer, _consumer, flags) = memory::ring(4, 0, 0u64);
        assert!(!producer.needs_wakeup());
        flags.store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
        assert!(producer.needs_wakeup());
    }
}
