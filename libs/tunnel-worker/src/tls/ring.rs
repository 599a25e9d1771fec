//! Rings of datagrams between a connection's thread and its consumers: the workers, and the owner
//! for handshakes.
//!
//! ```text
//!   consumer ─ RingSender::push, wake ──▶ ring ──▶ Outlet::take ─ connection's thread
//!   consumer ◀─ RingReceiver::take ────── ring ◀── Inlet::push, wake
//! ```

use std::{
    fmt,
    mem::MaybeUninit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst, fence},
    },
};

use gateway_client::stream::MIN_DATAGRAM;
use nix::sys::eventfd::EventFd;

use super::stats::SharedStats;

/// The longest datagram that a ring takes, bytes: a record is 2 KiB.
pub const DATAGRAM_BYTES: usize = 2046;

/// Chooses the ring for a datagram that was received.
pub type Steer = Arc<dyn Fn(&[u8]) -> usize + Send + Sync>;

/// The rings that each connection gets.
#[derive(Clone)]
pub struct RingSetup {
    /// The wakers that signal datagrams to each consumer.
    pub consumers: Vec<ThreadWaker>,
    /// Which consumer a received datagram is for.
    pub steer: Steer,
    /// Datagrams that fit a ring, of which each consumer has one for each direction. 2 KiB each, of
    /// which pages never used take no memory.
    pub capacity: usize,
}

/// A consumer's ends of its two rings.
#[derive(Debug)]
pub struct RingPair {
    /// To the other end.
    pub sender: RingSender,
    /// From the other end.
    pub receiver: RingReceiver,
}

/// Steers handshake messages to consumer 0, and data messages to consumer 1 + *n* where worker *n*
/// opens them ([`LaneAssignment`](crate::pipeline::LaneAssignment)). A malformed datagram goes to
/// the first worker, which counts it.
///
/// # Panics
/// Without workers.
#[must_use]
pub fn steer_by_lane(workers: u32) -> Steer {
    assert!(workers > 0, "a tunnel has at least one worker");
    Arc::new(move |datagram: &[u8]| {
        match (
            datagram.first(),
            datagram.get(4..8).and_then(<[u8]>::first_chunk),
        ) {
            (Some(1..=3), _) => 0,
            (_, Some(index)) => {
                let lane = u32::from_le_bytes(*index) % tunnel::MAX_LANES;
                1 + (lane % workers) as usize
            }
            _ => 1,
        }
    })
}

/// Wakes a thread that has datagrams to take.
#[derive(Clone, Debug)]
pub struct ThreadWaker {
    event: Arc<EventFd>,
    is_sleeping: Option<Arc<AtomicBool>>,
}

impl ThreadWaker {
    /// Writes this eventfd at each wake.
    #[must_use]
    pub const fn new(event: Arc<EventFd>) -> Self {
        Self {
            event,
            is_sleeping: None,
        }
    }

    /// Writes this eventfd if the thread sleeps. Before it sleeps the thread stores true, fences
    /// (SeqCst) and looks at its rings; awake it stores false.
    #[must_use]
    pub const fn of_sleeper(event: Arc<EventFd>, is_sleeping: Arc<AtomicBool>) -> Self {
        Self {
            event,
            is_sleeping: Some(is_sleeping),
        }
    }

    /// Wakes the thread for the datagrams that were put into a ring.
    fn wake(&self) {
        // This side writes the datagrams, then reads the flag; the thread writes the flag, then
        // reads the ring. With the fences one of the two sees what the other wrote.
        fence(SeqCst);
        if self
            .is_sleeping
            .as_ref()
            .is_none_or(|is_sleeping| is_sleeping.load(Relaxed))
        {
            // EAGAIN: it is about to wake.
            let _ = self.event.write(1);
        }
    }
}

struct Record {
    /// [`MIN_DATAGRAM`] to [`DATAGRAM_BYTES`].
    len: u16,
    /// The first `len` bytes are written.
    data: [MaybeUninit<u8>; DATAGRAM_BYTES],
}

const _: () = assert!(size_of::<Record>() == 2048);

impl Record {
    #[inline]
    fn datagram(&mut self) -> &mut [u8] {
        let len = usize::from(self.len).min(DATAGRAM_BYTES);
        // SAFETY: `Inlet::push`, which makes every record, wrote `len` bytes, and that many are in
        // `data`.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast(), len) }
    }
}

/// The end of a ring where datagrams are put in.
pub(super) struct Inlet {
    records: rtrb::Producer<Record>,
    waker: ThreadWaker,
    /// Datagrams were put in since the thread was last woken.
    needs_wake: bool,
}

/// The end of a ring where datagrams are taken out.
pub(super) struct Outlet {
    records: rtrb::Consumer<Record>,
}

/// A ring of so many datagrams; `waker` wakes the thread that takes them out.
pub(super) fn ring(datagrams: usize, waker: ThreadWaker) -> (Inlet, Outlet) {
    let (producer, consumer) = rtrb::RingBuffer::new(datagrams);
    let inlet = Inlet {
        records: producer,
        waker,
        needs_wake: false,
    };
    (inlet, Outlet { records: consumer })
}

impl Inlet {
    /// Copies a datagram into the ring; returns whether there was room for its length.
    pub fn push(&mut self, datagram: &[u8]) -> bool {
        let fits = (MIN_DATAGRAM..=DATAGRAM_BYTES).contains(&datagram.len());
        // An abandoned ring has no thread that takes the datagram out.
        if !fits || self.records.is_abandoned() {
            return false;
        }
        let Ok(mut chunk) = self.records.write_chunk_uninit(1) else {
            return false;
        };
        let (first, _) = chunk.as_mut_slices();
        let Some(record) = first.first_mut() else {
            return false;
        };
        let record = record.as_mut_ptr();
        // SAFETY: `record` is one record of the ring that is ours to write, and the datagram fits,
        // which is shorter than 65536. What is behind it stays uninitialized, as the type has it.
        unsafe {
            (&raw mut (*record).len).write(datagram.len() as u16);
            let data = (&raw mut (*record).data).cast::<u8>();
            data.copy_from_nonoverlapping(datagram.as_ptr(), datagram.len());
            chunk.commit_all();
        }
        self.needs_wake = true;
        true
    }

    /// Wakes the thread that takes datagrams out, if any were put in since.
    pub fn wake(&mut self) {
        if std::mem::take(&mut self.needs_wake) {
            self.waker.wake();
        }
    }
}

impl Outlet {
    /// Passes at most `max` datagrams to `take`, until it returns false: that one stays. Returns
    /// how many it took.
    #[inline]
    pub fn take(&mut self, max: usize, mut take: impl FnMut(&mut [u8]) -> bool) -> usize {
        let batch = self.records.slots().min(max);
        let Ok(mut chunk) = self.records.read_chunk(batch) else {
            return 0;
        };
        let (first, second) = chunk.as_mut_slices();
        let mut taken = 0;
        for record in first.iter_mut().chain(second) {
            if !take(record.datagram()) {
                break;
            }
            taken += 1;
        }
        chunk.commit(taken);
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// A consumer's end of the ring to a connection.
pub struct RingSender {
    pub(super) inlet: Inlet,
    pub(super) stats: Arc<SharedStats>,
}

impl RingSender {
    /// Copies a datagram into the ring. False, and counted: the ring is full, the datagram is
    /// longer than [`DATAGRAM_BYTES`] or shorter than [`MIN_DATAGRAM`], or the connection is
    /// closed.
    pub fn push(&mut self, datagram: &[u8]) -> bool {
        let pushed = self.inlet.push(datagram);
        if !pushed {
            self.stats.full_out.fetch_add(1, Relaxed);
        }
        pushed
    }

    /// Wakes the connection's thread if it sleeps and there is something new. To be called at the
    /// end of a turn.
    pub fn wake(&mut self) {
        self.inlet.wake();
    }
}

impl fmt::Debug for RingSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RingSender")
    }
}

/// A consumer's end of the ring from a connection.
pub struct RingReceiver {
    pub(super) outlet: Outlet,
}

impl RingReceiver {
    /// Passes at most `max` datagrams to `take`, oldest first; returns how many.
    #[inline]
    pub fn take(&mut self, max: usize, mut take: impl FnMut(&mut [u8])) -> usize {
        self.outlet.take(max, |datagram| {
            take(datagram);
            true
        })
    }

    /// Whether the ring has no datagram.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outlet.is_empty()
    }
}

impl fmt::Debug for RingReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RingReceiver")
    }
}
