//! The transmitting half.

use std::{fmt, io, sync::Arc};

use crate::{
    pool::Pool,
    ring::{Consumer, Producer},
    sys::{self, Shared},
};

/// Frames that the kernel sends per system call in copy mode (`TX_BATCH_SIZE` in `net/xdp/xsk.c`).
const KERNEL_BATCH: usize = 32;

/// The transmitting half of a socket.
pub struct Tx {
    transmitter: Transmitter,
    // Last: the rings and frames above are in its mappings.
    shared: Arc<Shared>,
}

/// Result of [`Tx::transmit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// The frame is queued, and is sent by the next [`Tx::flush`].
    Queued,
    /// The closure returned `None` or an invalid length: nothing is sent.
    Abandoned,
    /// There is no free frame, or the ring is full. The closure was not called.
    Full,
}

impl Tx {
    pub(crate) fn new(transmitter: Transmitter, shared: Arc<Shared>) -> Self {
        Self {
            transmitter,
            shared,
        }
    }

    /// The interface it is bound to.
    pub fn ifindex(&self) -> u32 {
        self.shared.ifindex
    }

    /// The queue it is bound to.
    pub fn queue(&self) -> u32 {
        self.shared.queue
    }

    /// Lets `write` fill a free frame, and queues the number of bytes that `write` returns: 1 to
    /// `frame_size`; `None` or another number abandons the frame. The slice is the whole frame,
    /// with the bytes of an earlier use. Takes sent frames back when there is no free one.
    #[inline]
    pub fn transmit(&mut self, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Sent {
        self.transmitter.transmit(write)
    }

    /// Hands queued frames to the kernel, wakes it as often as that makes progress, and takes sent
    /// frames back. Frames that the kernel did not take stay queued: call this again while
    /// [`Self::outstanding`] is not 0.
    ///
    /// # Errors
    /// ENETDOWN if the interface is down, ENXIO if it was removed; queued frames stay queued.
    /// EAGAIN, EBUSY and ENOBUFS are no errors.
    pub fn flush(&mut self) -> io::Result<()> {
        let shared = &self.shared;
        self.transmitter
            .flush(shared.zero_copy, || sys::kick_tx(&shared.fd))
    }

    /// Frames that are queued or with the kernel, as of the last call of another method.
    pub fn outstanding(&self) -> usize {
        self.transmitter.pool.outstanding()
    }

    /// Completions that were skipped because they were wrong: 0 unless the kernel or a driver has a
    /// defect.
    pub fn skipped(&self) -> u64 {
        self.transmitter.skipped
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("ifindex", &self.ifindex())
            .field("queue", &self.queue())
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}

/// The transmitting half without its socket.
pub(crate) struct Transmitter {
    pool: Pool,
    tx: Producer<libc::xdp_desc>,
    completion: Consumer<u64>,
    /// System calls of one flush at most.
    kicks: usize,
    skipped: u64,
}

impl Transmitter {
    pub(crate) fn new(pool: Pool, tx: Producer<libc::xdp_desc>, completion: Consumer<u64>) -> Self {
        Self {
            // Enough for a full ring, if the kernel takes whole batches.
            kicks: tx.size() as usize / KERNEL_BATCH + 2,
            pool,
            tx,
            completion,
            skipped: 0,
        }
    }

    #[inline]
    fn transmit(&mut self, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Sent {
        if self.pool.next_free().is_none() {
            self.reclaim();
        }
        let Some(frame) = self.pool.next_free() else {
            return Sent::Full;
        };
        // The kernel may complete frames before it publishes its index in the TX ring.
        if !self.tx.has_room() {
            return Sent::Full;
        }
        let size = self.pool.frame_size();
        // The frame stays free until `write` returns, because it may panic.
        let Some(len) = self.pool.bytes(frame, 0, size).and_then(write) else {
            return Sent::Abandoned;
        };
        if !(1..=size).contains(&len) {
            return Sent::Abandoned;
        }
        let Some(addr) = self.pool.hand_over() else {
            return Sent::Full;
        };
        let pushed = self.tx.push(libc::xdp_desc {
            addr,
            len: len as u32,
            options: 0,
        });
        debug_assert!(pushed, "there was room");
        Sent::Queued
    }

    /// Publishes queued frames, and calls `kick` while that is needed and makes progress, at most
    /// `kicks` times.
    fn flush(
        &mut self,
        zero_copy: bool,
        mut kick: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        self.tx.publish();
        self.reclaim();
        for _ in 0..self.kicks {
            let pending = self.tx.pending();
            // With zero-copy a driver may complete frames only in the poll that a kick starts.
            let idle = pending == 0 && !(zero_copy && self.pool.outstanding() > 0);
            if idle || !self.tx.needs_wakeup() {
                break;
            }
            let result = kick();
            self.reclaim();
            match result {
                Ok(()) => (),
                Err(e) if sys::is_later(&e) => (),
                Err(e) => return Err(e),
            }
            if self.tx.pending() == pending {
                break;
            }
        }
        Ok(())
    }

    /// Takes sent frames back.
    fn reclaim(&mut self) {
        while let Some(address) = self.completion.pop() {
            if self.pool.take_back(address).is_none() {
                self.skipped += 1;
            }
        }
        self.completion.release();
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, panic, ptr::NonNull, sync::atomic::AtomicU32};

    use proptest::prelude::*;

    use super::*;
    use crate::{pool, ring};

    const FRAMES: u32 = 128;
    const SIZE: u32 = 2048;
    const START: u64 = 16 * SIZE as u64;
    const EMPTY: libc::xdp_desc = libc::xdp_desc {
        addr: 0,
        len: 0,
        options: 0,
    };

    /// The kernel's side of the transmitting half.
    struct Kernel {
        tx: Consumer<libc::xdp_desc>,
        completion: Producer<u64>,
        flags: &'static AtomicU32,
        base: NonNull<u8>,
        /// Taken from the TX ring, not completed yet.
        in_flight: Vec<u64>,
        /// Queued by the other side, not taken yet: number, length.
        queued: VecDeque<(u64, usize)>,
    }

    fn pair() -> (Transmitter, Kernel) {
        let (pool, base) = pool::memory::pool(START, FRAMES, SIZE);
        let (tx, kernel_tx, flags) = ring::memory::ring(FRAMES, u32::MAX - 3, EMPTY);
        let (kernel_completion, completion, _) = ring::memory::ring(FRAMES, u32::MAX - 9, 0u64);
        flags.store(
            libc::XDP_RING_NEED_WAKEUP,
            std::sync::atomic::Ordering::Relaxed,
        );
        let kernel = Kernel {
            tx: kernel_tx,
            completion: kernel_completion,
            flags,
            base,
            in_flight: Vec::new(),
            queued: VecDeque::new(),
        };
        (Transmitter::new(pool, tx, completion), kernel)
    }

    impl Kernel {
        /// A kick that takes at most `budget` frames and checks their bytes.
        fn kick(&mut self, budget: usize) -> io::Result<()> {
            for _ in 0..budget {
                let Some(descriptor) = self.tx.pop() else {
                    self.tx.release();
                    return Ok(());
                };
                let (number, len) = self.queued.pop_front().unwrap();
                let (addr, end) = (descriptor.addr, START + u64::from(FRAMES * SIZE));
                assert!((START..end).contains(&addr) && addr.is_multiple_of(SIZE.into()));
                assert_eq!(descriptor.len as usize, len);
                assert!(!self.in_flight.contains(&addr), "{addr:#x} doubled");
                // SAFETY: within the frame, which the kernel holds.
                let bytes = unsafe {
                    let from = self.base.as_ptr().add((addr - START) as usize);
                    std::slice::from_raw_parts(from, len)
                };
                assert!(bytes.iter().all(|b| *b == number as u8));
                self.in_flight.push(addr);
            }
            self.tx.release();
            Err(io::Error::from_raw_os_error(libc::EAGAIN))
        }

        /// Completes `count` frames in flight, in no order.
        fn complete(&mut self, count: usize) {
            for i in 0..count.min(self.in_flight.len()) {
                let address = self.in_flight.swap_remove((i * 7) % self.in_flight.len());
                assert!(self.completion.push(address), "more than FRAMES");
            }
            self.completion.publish();
        }
    }

    fn queue(transmitter: &mut Transmitter, kernel: &mut Kernel, number: u64, len: usize) -> Sent {
        let sent = transmitter.transmit(|frame| {
            assert_eq!(frame.len(), SIZE as usize);
            frame[..len].fill(number as u8);
            Some(len)
        });
        if sent == Sent::Queued {
            kernel.queued.push_back((number, len));
        }
        sent
    }

    #[derive(Debug, Clone)]
    enum Step {
        Transmit(usize, usize),
        Abandon(Option<usize>),
        Flush(usize),
        Complete(usize),
        Bogus(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (1usize..=100, 1usize..=2048).prop_map(|(n, len)| Step::Transmit(n, len)),
            1 => prop_oneof![Just(None), Just(Some(0)), Just(Some(2049))].prop_map(Step::Abandon),
            4 => (0usize..40).prop_map(Step::Flush),
            4 => (0usize..80).prop_map(Step::Complete),
            1 => prop_oneof![Just(u64::MAX), 0..START].prop_map(Step::Bogus),
        ]
    }

    proptest! {
        #[test]
        fn no_frame_is_lost_or_doubled(steps in prop::collection::vec(step(), 1..200)) {
            let (mut transmitter, mut kernel) = pair();
            let (mut number, mut bogus) = (0, 0);
            for step in steps {
                match step {
                    Step::Transmit(count, len) => for _ in 0..count {
                        let sent = queue(&mut transmitter, &mut kernel, number, len);
                        let held = kernel.queued.len() + kernel.in_flight.len();
                        let full = held == FRAMES as usize && sent != Sent::Queued;
                        prop_assert_eq!(sent == Sent::Full, full);
                        number += 1;
                    },
                    Step::Abandon(len) => {
                        prop_assert_ne!(transmitter.transmit(|_| len), Sent::Queued);
                    }
                    Step::Flush(budget) => {
                        transmitter.flush(false, || kernel.kick(budget)).unwrap();
                    }
                    Step::Complete(count) => kernel.complete(count),
                    Step::Bogus(address) => {
                        if kernel.completion.push(address) {
                            kernel.completion.publish();
                            bogus += 1;
                        }
                        transmitter.flush(false, || Ok(())).unwrap();
                    }
                }
                let held = kernel.queued.len() + kernel.in_flight.len();
                prop_assert!(transmitter.pool.outstanding() >= held);
            }
            transmitter.flush(false, || kernel.kick(32)).unwrap();
            prop_assert!(kernel.queued.is_empty());
            kernel.complete(usize::MAX);
            transmitter.flush(false, || unreachable!("nothing is pending")).unwrap();
            prop_assert_eq!(transmitter.pool.outstanding(), 0);
            prop_assert_eq!(transmitter.skipped, bogus);
        }
    }

    #[test]
    fn flush_kicks_while_it_makes_progress() {
        let (mut transmitter, mut kernel) = pair();
        for number in 0..FRAMES.into() {
            assert_eq!(
                queue(&mut transmitter, &mut kernel, number, 60),
                Sent::Queued
            );
        }
        assert_eq!(queue(&mut transmitter, &mut kernel, 0, 60), Sent::Full);
        let mut kicks = 0;
        let again = || Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        transmitter
            .flush(false, || {
                kicks += 1;
                again()
            })
            .unwrap();
        assert_eq!(
            (kicks, transmitter.pool.outstanding()),
            (1, 128),
            "no progress"
        );
        transmitter
            .flush(false, || {
                kicks += 1;
                kernel.kick(32)
            })
            .unwrap();
        assert_eq!(kicks, 5, "four batches of 32");
        assert_eq!(transmitter.pool.outstanding(), 128, "in flight");
        kernel.complete(128);
        assert_eq!(queue(&mut transmitter, &mut kernel, 0, 60), Sent::Queued);
        assert_eq!(transmitter.pool.outstanding(), 1);
    }

    #[test]
    fn an_interface_that_is_down_is_an_error_and_keeps_queued_frames() {
        let (mut transmitter, mut kernel) = pair();
        assert_eq!(queue(&mut transmitter, &mut kernel, 1, 60), Sent::Queued);
        let down = transmitter.flush(false, || Err(io::Error::from_raw_os_error(libc::ENETDOWN)));
        assert_eq!(down.unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
        assert_eq!(transmitter.pool.outstanding(), 1);
        transmitter.flush(false, || kernel.kick(32)).unwrap();
        assert_eq!(kernel.in_flight.len(), 1);
    }

    #[test]
    fn a_driver_that_needs_no_wakeup_is_not_kicked() {
        let (mut transmitter, mut kernel) = pair();
        kernel.flags.store(0, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(queue(&mut transmitter, &mut kernel, 1, 60), Sent::Queued);
        transmitter.flush(true, || unreachable!()).unwrap();
        kernel.kick(32).unwrap();
        assert_eq!(kernel.in_flight.len(), 1);
    }

    #[test]
    fn zero_copy_kicks_for_completions_too() {
        let (mut transmitter, mut kernel) = pair();
        assert_eq!(queue(&mut transmitter, &mut kernel, 1, 60), Sent::Queued);
        transmitter.flush(true, || kernel.kick(32)).unwrap();
        let mut kicks = 0;
        transmitter
            .flush(true, || {
                kicks += 1;
                kernel.complete(1);
                Ok(())
            })
            .unwrap();
        assert_eq!((kicks, transmitter.pool.outstanding()), (1, 0));
    }

    #[test]
    fn a_panic_in_the_closure_loses_no_frame() {
        let (mut transmitter, _kernel) = pair();
        let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            let _ = transmitter.transmit(|_| panic!("by the test"));
        }));
        assert!(caught.is_err());
        assert_eq!(transmitter.pool.outstanding(), 0);
    }
}
