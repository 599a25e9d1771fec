//! The receiving half.

use std::{
    fmt, io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

use crate::{
    pool::Pool,
    ring::{Consumer, Producer},
    sys::{self, Shared},
};

/// The receiving half of a socket.
pub struct Rx {
    receiver: Receiver,
    // Last: the rings and frames above are in its mappings.
    shared: Arc<Shared>,
}

/// The kernel's counters of one socket (`XDP_STATISTICS`), since it was bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames dropped for other reasons than a full RX ring, among them the lack of a free frame.
    pub rx_dropped: u64,
    /// Fill ring entries that the kernel refused.
    pub rx_invalid_descs: u64,
    /// TX ring entries that the kernel refused.
    pub tx_invalid_descs: u64,
    /// Frames dropped because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times that the kernel needed a frame and the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Times that the kernel could send and the TX ring was empty.
    pub tx_ring_empty: u64,
}

impl Rx {
    pub(crate) fn new(receiver: Receiver, shared: Arc<Shared>) -> Self {
        Self { receiver, shared }
    }

    /// The socket, for `poll` and for an XSKMAP.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.fd.as_fd()
    }

    /// The interface it is bound to.
    pub fn ifindex(&self) -> u32 {
        self.shared.ifindex
    }

    /// The queue it is bound to.
    pub fn queue(&self) -> u32 {
        self.shared.queue
    }

    /// Whether the socket is in zero-copy mode, as the kernel reported after binding.
    pub fn zero_copy(&self) -> bool {
        self.shared.zero_copy
    }

    /// Calls `f` with each received frame, at most `max`, in order of arrival and mutable in place;
    /// then gives all of them back to the kernel. Returns their number.
    ///
    /// If `f` panics, its frame counts as received, and goes back at the next call.
    ///
    /// A driver in zero-copy mode that finds no free frame stops receiving on the queue until it is
    /// woken (`XDP_RING_NEED_WAKEUP` of the fill ring). This wakes it whenever it asks for that, so
    /// that a caller that never sleeps in `poll` does not lose the queue.
    pub fn receive(&mut self, max: usize, f: impl FnMut(&mut [u8])) -> usize {
        let shared = &self.shared;
        self.receiver.receive(max, f, || {
            // A failed wake-up (the link is down) is tried again at the next call.
            let _ = sys::kick_rx(&shared.fd);
        })
    }

    /// Whether the kernel needs [`Self::wake`] to receive more frames.
    pub fn needs_wakeup(&self) -> bool {
        self.receiver.fill.needs_wakeup()
    }

    /// Makes the kernel read the fill ring, and poll the queue if busy polling is on.
    ///
    /// # Errors
    /// ENETDOWN if the interface is down, ENXIO if it was removed. EAGAIN, EBUSY and ENOBUFS are no
    /// errors.
    pub fn wake(&self) -> io::Result<()> {
        match sys::kick_rx(&self.shared.fd) {
            Err(e) if !sys::is_later(&e) => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The kernel's counters of this socket, both halves.
    ///
    /// # Errors
    /// The error of `getsockopt`.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let kernel = sys::statistics(&self.shared.fd)?;
        Ok(Statistics {
            rx_dropped: kernel.rx_dropped,
            rx_invalid_descs: kernel.rx_invalid_descs,
            tx_invalid_descs: kernel.tx_invalid_descs,
            rx_ring_full: kernel.rx_ring_full,
            fill_ring_empty: kernel.rx_fill_ring_empty_descs,
            tx_ring_empty: kernel.tx_ring_empty_descs,
        })
    }

    /// Descriptors that were skipped because they were wrong: 0 unless the kernel or a driver has a
    /// defect.
    pub fn skipped(&self) -> u64 {
        self.receiver.skipped
    }
}

impl fmt::Debug for Rx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rx")
            .field("ifindex", &self.ifindex())
            .field("queue", &self.queue())
            .field("zero_copy", &self.zero_copy())
            .finish_non_exhaustive()
    }
}

/// The receiving half without its socket.
pub(crate) struct Receiver {
    pool: Pool,
    rx: Consumer<libc::xdp_desc>,
    fill: Producer<u64>,
    /// Only a driver in zero-copy mode sets `XDP_RING_NEED_WAKEUP` on the fill ring
    /// (`xsk_set_rx_need_wakeup`). Copy mode saves the memory barrier before each look at the flag:
    /// it waits until the copies of a whole batch have reached the cache.
    zero_copy: bool,
    skipped: u64,
}

impl Receiver {
    /// Gives all frames of `pool` to the kernel.
    pub(crate) fn new(
        pool: Pool,
        rx: Consumer<libc::xdp_desc>,
        fill: Producer<u64>,
        zero_copy: bool,
    ) -> Self {
        let mut receiver = Self {
            pool,
            rx,
            fill,
            zero_copy,
            skipped: 0,
        };
        receiver.refill();
        receiver
    }

    #[inline]
    fn receive(&mut self, max: usize, mut f: impl FnMut(&mut [u8]), wake: impl FnOnce()) -> usize {
        let mut received = 0;
        while received < max
            && let Some(descriptor) = self.rx.pop()
        {
            // From here on, the frame is free: `refill` gives it back, also if `f` panics.
            let Some((frame, offset)) = self.pool.take_back(descriptor.addr) else {
                self.skipped += 1;
                continue;
            };
            let Some(bytes) = self.pool.bytes(frame, offset, descriptor.len as usize) else {
                self.skipped += 1;
                continue;
            };
            received += 1;
            f(bytes);
        }
        self.rx.release();
        self.refill();
        if self.zero_copy && self.fill.needs_wakeup() {
            wake();
        }
        received
    }

    /// Gives free frames to the kernel. Some may have to wait: the kernel publishes its index in
    /// the fill ring only after the received frames (`xsk_flush`), so the ring may look full for a
    /// moment.
    #[inline]
    fn refill(&mut self) {
        while self.fill.has_room()
            && let Some(address) = self.pool.hand_over()
        {
            let pushed = self.fill.push(address);
            debug_assert!(pushed, "there was room");
        }
        self.fill.publish();
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, panic, ptr::NonNull};

    use proptest::prelude::*;

    use super::*;
    use crate::{pool, ring};

    const FRAMES: u32 = 8;
    const SIZE: u32 = 2048;
    const START: u64 = 16 * SIZE as u64;
    const EMPTY: libc::xdp_desc = libc::xdp_desc {
        addr: 0,
        len: 0,
        options: 0,
    };

    /// The kernel's side of the receiving half.
    struct Kernel {
        rx: Producer<libc::xdp_desc>,
        fill: Consumer<u64>,
        base: NonNull<u8>,
        /// Taken from the fill ring, not used yet.
        held: Vec<u64>,
        /// Given by the RX ring, not received yet: number, length.
        arrived: VecDeque<(u64, usize)>,
        number: u64,
    }

    fn pair() -> (Receiver, Kernel) {
        let (pool, base) = pool::memory::pool(START, FRAMES, SIZE);
        // Larger, so that there is room for bogus descriptors.
        let (kernel_rx, rx, _) = ring::memory::ring(2 * FRAMES, u32::MAX - 3, EMPTY);
        let (fill, kernel_fill, _) = ring::memory::ring(FRAMES, u32::MAX - 9, 0u64);
        let kernel = Kernel {
            rx: kernel_rx,
            fill: kernel_fill,
            base,
            held: Vec::new(),
            arrived: VecDeque::new(),
            number: 0,
        };
        (Receiver::new(pool, rx, fill, false), kernel)
    }

    impl Kernel {
        /// Takes frames from the fill ring without showing that yet.
        fn take(&mut self) {
            while let Some(address) = self.fill.pop() {
                assert_eq!(address % u64::from(SIZE), 0);
                assert!((START..START + u64::from(FRAMES * SIZE)).contains(&address));
                assert!(!self.held.contains(&address), "{address:#x} doubled");
                self.held.push(address);
            }
        }

        /// A frame of `len` bytes (at least 8) arrives, if there is room for it.
        fn arrive(&mut self, len: usize) {
            if self.held.is_empty() {
                return;
            }
            let address = self.held.swap_remove(len % self.held.len());
            let at = (address - START) as usize + 256;
            // SAFETY: within the frame, which the kernel holds.
            unsafe {
                let to = self.base.as_ptr().add(at);
                std::ptr::write_bytes(to, self.number as u8, len);
                to.cast::<u64>().write_unaligned(self.number);
            }
            assert!(self.give(address + 256, len as u32), "more than FRAMES");
            self.arrived.push_back((self.number, len));
            self.number += 1;
        }

        fn give(&mut self, addr: u64, len: u32) -> bool {
            let given = self.rx.push(libc::xdp_desc {
                addr,
                len,
                options: 0,
            });
            self.rx.publish();
            given
        }
    }

    fn receive_and_check(receiver: &mut Receiver, kernel: &mut Kernel, max: usize) {
        let expected = kernel.arrived.len().min(max);
        let received = receiver.receive(
            max,
            |bytes| {
                let (number, len) = kernel.arrived.pop_front().unwrap();
                assert_eq!(bytes.len(), len);
                assert_eq!(bytes[..8], number.to_ne_bytes());
                assert!(bytes[8..].iter().all(|b| *b == number as u8));
                bytes.fill(0xee);
            },
            || (),
        );
        assert_eq!(received, expected);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take,
        ShowTaken,
        Arrive(usize),
        Receive(usize),
        Bogus(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Take),
            2 => Just(Step::ShowTaken),
            8 => (8usize..=1792).prop_map(Step::Arrive),
            6 => (0usize..12).prop_map(Step::Receive),
            1 => prop_oneof![Just(0), Just(u64::MAX), 0..2 * START].prop_map(Step::Bogus),
        ]
    }

    proptest! {
        #[test]
        fn no_frame_is_lost_or_doubled(steps in prop::collection::vec(step(), 1..400)) {
            let (mut receiver, mut kernel) = pair();
            let mut bogus = 0;
            for step in steps {
                match step {
                    Step::Take => kernel.take(),
                    Step::ShowTaken => kernel.fill.release(),
                    Step::Arrive(len) => kernel.arrive(len),
                    Step::Receive(max) => {
                        receive_and_check(&mut receiver, &mut kernel, max);
                    }
                    Step::Bogus(address) => {
                        let end = START + u64::from(FRAMES * SIZE);
                        let outstanding = (START..end).contains(&address);
                        if !outstanding && kernel.give(address, 64) {
                            bogus += 1;
                        }
                    }
                }
            }
            receive_and_check(&mut receiver, &mut kernel, usize::MAX);
            prop_assert_eq!(receiver.skipped, bogus);
            kernel.take();
            kernel.fill.release();
            prop_assert_eq!(receiver.receive(1, |_| (), || ()), 0);
            kernel.take();
            prop_assert_eq!(kernel.held.len(), FRAMES as usize);
        }
    }

    #[test]
    fn wrong_descriptors_are_skipped_and_counted() {
        let (mut receiver, mut kernel) = pair();
        kernel.take();
        let frame = kernel.held.pop().unwrap();
        let twice = kernel.held.pop().unwrap();
        for (addr, len) in [
            (frame + 256, SIZE - 255),
            (twice + 256, 60),
            (twice + 256, 60),
            (START - 1, 60),
            (START + u64::from(FRAMES * SIZE), 60),
        ] {
            assert!(kernel.give(addr, len));
        }
        assert_eq!(
            receiver.receive(10, |bytes| assert_eq!(bytes.len(), 60), || ()),
            1
        );
        assert_eq!(receiver.skipped, 4);
        kernel.fill.release();
        assert_eq!(receiver.receive(10, |_| (), || ()), 0);
        kernel.take();
        assert_eq!(kernel.held.len(), FRAMES as usize, "a frame was lost");
    }

    #[test]
    fn the_kernel_is_woken_whenever_it_asks_for_that() {
        let (pool, _) = pool::memory::pool(START, FRAMES, SIZE);
        let (_kernel_rx, rx, _) = ring::memory::ring(2 * FRAMES, 0, EMPTY);
        let (fill, _kernel_fill, flags) = ring::memory::ring(FRAMES, 0, 0u64);
        let mut receiver = Receiver::new(pool, rx, fill, true);
        let mut woken = 0;
        let mut receive = |receiver: &mut Receiver| {
            assert_eq!(receiver.receive(8, |_| (), || woken += 1), 0);
            woken
        };
        assert_eq!(receive(&mut receiver), 0, "it does not ask");
        flags.store(
            libc::XDP_RING_NEED_WAKEUP,
            std::sync::atomic::Ordering::Relaxed,
        );
        // Nothing was received, and no call of poll(2) wakes it: the queue would stand still.
        assert_eq!(receive(&mut receiver), 1);
        assert_eq!(receive(&mut receiver), 2, "until it stops asking");
        flags.store(0, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(receive(&mut receiver), 2);
    }

    #[test]
    fn a_panic_in_the_closure_loses_no_frame() {
        let (mut receiver, mut kernel) = pair();
        kernel.take();
        kernel.fill.release();
        kernel.arrive(60);
        kernel.arrive(61);
        let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            receiver.receive(8, |_| panic!("by the test"), || ());
        }));
        assert!(caught.is_err());
        kernel.arrived.pop_front();
        receive_and_check(&mut receiver, &mut kernel, 8);
        kernel.take();
        assert_eq!(kernel.held.len(), FRAMES as usize);
    }
}
