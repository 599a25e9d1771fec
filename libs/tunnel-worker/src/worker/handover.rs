//! Frames for the lanes of another worker: the NIC gives all datagrams of a peer to one queue, and
//! a worker hands on the datagrams that another worker opens.
//!
//! ```text
//!   worker a ─ hand_over ─▶ ring (a, b) ─▶ worker b        one ring for each pair and direction
//!            └ wake, once for each turn, if b sleeps
//! ```

use std::{
    mem::MaybeUninit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst, fence},
    },
};

use nix::sys::eventfd::EventFd;

/// Frames that wait from one worker to another at most.
const FRAMES: usize = 512;
/// The longest frame of a socket: 4096 bytes less XDP's headroom.
const FRAME_BYTES: usize = 4096 - 256;

/// A frame on its way from one worker to another.
pub(super) struct HandoverFrame {
    len: u16,
    /// The first `len` bytes are written.
    data: [MaybeUninit<u8>; FRAME_BYTES],
}

impl HandoverFrame {
    #[inline]
    pub fn frame(&mut self) -> &mut [u8] {
        let len = usize::from(self.len).min(FRAME_BYTES);
        // SAFETY: `HandoverSender::hand_over`, which makes every record, wrote `len` bytes, and
        // that many are in `data`.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast(), len) }
    }
}

/// The sending half of the ring to another worker.
pub(super) struct HandoverSender {
    frames: rtrb::Producer<HandoverFrame>,
    wake: Arc<EventFd>,
    is_sleeping: Arc<AtomicBool>,
    /// Frames were put in since the other worker was last woken.
    needs_wake: bool,
}

impl HandoverSender {
    /// Copies a frame into the ring. Returns whether there was room.
    #[inline]
    pub fn hand_over(&mut self, frame: &[u8]) -> bool {
        let (Ok(len), Ok(mut chunk)) = (
            u16::try_from(frame.len()),
            self.frames.write_chunk_uninit(1),
        ) else {
            return false;
        };
        let (first, _) = chunk.as_mut_slices();
        let Some(record) = first.first_mut().filter(|_| frame.len() <= FRAME_BYTES) else {
            return false;
        };
        let record = record.as_mut_ptr();
        // SAFETY: `record` is one record of the ring that is ours to write, and `frame` fits. What
        // is behind it stays uninitialized, as the type has it.
        unsafe {
            (&raw mut (*record).len).write(len);
            let data = (&raw mut (*record).data).cast::<u8>();
            data.copy_from_nonoverlapping(frame.as_ptr(), frame.len());
            chunk.commit_all();
        }
        self.needs_wake = true;
        true
    }

    /// Wakes the other worker if it sleeps and has new frames.
    pub fn wake(&mut self) {
        if std::mem::take(&mut self.needs_wake) {
            // This side writes the frames, then reads the flag; the other writes the flag, then
            // reads the frames. With the fences one of the two sees what the other wrote.
            fence(SeqCst);
            if self.is_sleeping.load(Relaxed) {
                let _ = self.wake.write(1);
            }
        }
    }
}

/// A worker's ends of the rings to and from the others.
#[derive(Default)]
pub(super) struct HandoverRings {
    /// By number of the worker; `None` at its own.
    pub to: Vec<Option<HandoverSender>>,
    pub from: Vec<rtrb::Consumer<HandoverFrame>>,
    /// Whether this worker sleeps.
    pub is_sleeping: Arc<AtomicBool>,
}

/// Rings from every worker to every other.
pub(super) fn mesh(wakes: &[Arc<EventFd>]) -> Vec<HandoverRings> {
    let mut all: Vec<HandoverRings> = wakes.iter().map(|_| HandoverRings::default()).collect();
    for from in 0..wakes.len() {
        for to in 0..wakes.len() {
            let sender = (from != to).then(|| {
                let (frames, received) = rtrb::RingBuffer::new(FRAMES);
                all[to].from.push(received);
                HandoverSender {
                    frames,
                    wake: Arc::clone(&wakes[to]),
                    is_sleeping: Arc::clone(&all[to].is_sleeping),
                    needs_wake: false,
                }
            });
            all[from].to.push(sender);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::EfdFlags;

    use super::*;

    fn wakes(n: usize) -> Vec<Arc<EventFd>> {
        let flags = EfdFlags::EFD_NONBLOCK;
        (0..n)
            .map(|_| Arc::new(EventFd::from_flags(flags).expect("an eventfd")))
            .collect()
    }

    #[test]
    fn a_frame_arrives_whole_and_only_a_sleeping_worker_is_woken() {
        let wakes = wakes(2);
        let mut rings = mesh(&wakes);
        let (mut b, mut a) = (rings.pop().expect("two"), rings.pop().expect("two"));
        assert!(a.to[0].is_none() && b.to[1].is_none(), "none to itself");
        let to_b = a.to[1].as_mut().expect("a ring");
        assert!(to_b.hand_over(&[7; FRAME_BYTES]));
        assert!(!to_b.hand_over(&[7; FRAME_BYTES + 1]), "too long");
        to_b.wake();
        assert!(wakes[1].read().is_err(), "it does not sleep");
        b.is_sleeping.store(true, Relaxed);
        assert!(to_b.hand_over(b"second"));
        to_b.wake();
        to_b.wake();
        assert_eq!(wakes[1].read(), Ok(1), "woken once");
        let mut received = b.from[0].pop().expect("a frame");
        assert_eq!(received.frame(), [7; FRAME_BYTES]);
        assert_eq!(b.from[0].pop().expect("a frame").frame(), b"second");
    }

    #[test]
    fn a_full_ring_takes_no_more() {
        let mut rings = mesh(&wakes(2));
        let to = rings[0].to[1].as_mut().expect("a ring");
        let taken = (0..FRAMES + 5).filter(|_| to.hand_over(b"x")).count();
        assert_eq!(taken, FRAMES);
    }
}
