//! Rings of datagrams between a connection's thread and the data plane.

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

use super::carrier::Counts;

/// The longest datagram that a ring takes, bytes: a record is 2 KiB.
pub const DATAGRAM_BYTES: usize = 2046;

/// How a thread is told that there are datagrams for it.
#[derive(Clone, Debug)]
pub struct Wake {
    event: Arc<EventFd>,
    sleeps: Option<Arc<AtomicBool>>,
}

impl Wake {
    /// By this eventfd, always.
    #[must_use]
    pub const fn new(event: Arc<EventFd>) -> Self {
        Self {
            event,
            sleeps: None,
        }
    }

    /// By this eventfd when it sleeps. Before it does it stores true, fences (SeqCst) and looks at its rings; awake it stores false.
    #[must_use]
    pub const fn of_sleeper(event: Arc<EventFd>, sleeps: Arc<AtomicBool>) -> Self {
        Self {
            event,
            sleeps: Some(sleeps),
        }
    }

    /// Tells of what was put into a ring before.
    fn tell(&self) {
        // The datagrams, then the look at `sleeps`; the other: `sleeps`, then the look at the ring. So one of the two sees
        // the other's.
        fence(SeqCst);
        if self
            .sleeps
            .as_ref()
            .is_none_or(|sleeps| sleeps.load(Relaxed))
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
    fn datagram(&mut self) -> &mut [u8] {
        let len = usize::from(self.len).min(DATAGRAM_BYTES);
        // SAFETY: `Inlet::push`, which makes every record, wrote `len` bytes, and that many are in `data`.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast(), len) }
    }
}

/// Where datagrams are put in.
pub(super) struct Inlet {
    records: rtrb::Producer<Record>,
    wake: Wake,
    /// Datagrams went in since it was last woken.
    told: bool,
}

/// Where they are taken out.
pub(super) struct Outlet {
    records: rtrb::Consumer<Record>,
}

/// A ring of so many datagrams; `wake` is of who takes them out.
pub(super) fn ring(datagrams: usize, wake: Wake) -> (Inlet, Outlet) {
    let (producer, consumer) = rtrb::RingBuffer::new(datagrams);
    let inlet = Inlet {
        records: producer,
        wake,
        told: false,
    };
    (inlet, Outlet { records: consumer })
}

impl Inlet {
    /// Copies a datagram in; whether there was room for one of its length.
    pub fn push(&mut self, datagram: &[u8]) -> bool {
        let fits = (MIN_DATAGRAM..=DATAGRAM_BYTES).contains(&datagram.len());
        // Nobody would take it out.
        if !fits || self.records.is_abandoned() {
            return false;
        }
        let Ok(mut chunk) = self.records.write_chunk_uninit(1) else {
            return false;
        };
        let (first, _) = chunk.as_mut_slices();
        let Some(place) = first.first_mut() else {
            return false;
        };
        let place = place.as_mut_ptr();
        // SAFETY: `place` is one record of the ring that is ours to write, and the datagram fits, which is shorter than 65536.
        // What is behind it stays uninitialized, as the type has it.
        unsafe {
            (&raw mut (*place).len).write(datagram.len() as u16);
            let data = (&raw mut (*place).data).cast::<u8>();
            data.copy_from_nonoverlapping(datagram.as_ptr(), datagram.len());
            chunk.commit_all();
        }
        self.told = true;
        true
    }

    /// Wakes who takes them out, if something was put in since.
    pub fn wake(&mut self) {
        if std::mem::take(&mut self.told) {
            self.wake.tell();
        }
    }
}

impl Outlet {
    /// Gives at most so many datagrams to `take`, until it says that it did not take one: that one stays. Returns how many it took.
    pub fn take(&mut self, most: usize, mut take: impl FnMut(&mut [u8]) -> bool) -> usize {
        let batch = self.records.slots().min(most);
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

/// The data plane's half of a ring to a connection.
pub struct ToStream {
    pub(super) inlet: Inlet,
    pub(super) counts: Arc<Counts>,
}

impl ToStream {
    /// Copies a datagram into the ring. False, counted: there was no room, it is longer than [`DATAGRAM_BYTES`] or shorter than
    /// [`MIN_DATAGRAM`], or the connection is closed.
    pub fn push(&mut self, datagram: &[u8]) -> bool {
        let pushed = self.inlet.push(datagram);
        if !pushed {
            self.counts.full_out.fetch_add(1, Relaxed);
        }
        pushed
    }

    /// Makes the connection look, if it sleeps and there is something new. To be called at the end of a turn.
    pub fn wake(&mut self) {
        self.inlet.wake();
    }
}

impl fmt::Debug for ToStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ToStream")
    }
}

/// The data plane's half of a ring from a connection.
pub struct FromStream {
    pub(super) outlet: Outlet,
}

impl FromStream {
    /// Gives at most so many datagrams to `take`, oldest first; returns how many.
    pub fn take(&mut self, most: usize, mut take: impl FnMut(&mut [u8])) -> usize {
        self.outlet.take(most, |datagram| {
            take(datagram);
            true
        })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outlet.is_empty()
    }
}

impl fmt::Debug for FromStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FromStream")
    }
}
