//! The threads that carry packets: AF_XDP sockets on one side, a [`Pipeline`] on the other.
//!
//! ```text
//!            requests (unbounded, rare)          events, packets (bounded rings)
//!   manager ───────────────────────────▶ worker ─────────────────────────────────▶ manager
//!            wake: eventfd                        notify: eventfd
//!
//!   worker ─── frames of its lanes (bounded ring, wake) ───▶ worker       handover
//!   worker ◀── datagrams (two bounded rings, wake) ──▶ TLS connection     crate::tls
//! ```
//!
//! For: moving frames between sockets, rings and the pipeline. Never: a lock, or an allocation for
//! a packet. What the manager hands over and the worker drops (a session, every two minutes) is
//! freed by the worker.
//!
//! - `thread`: the loop.
//! - `outputs`: where the pipeline sends frames, events and packets.
//! - `handover`: frames for another worker's lanes.

mod handover;
mod outputs;
mod thread;

use std::{
    io,
    num::NonZeroU64,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use appliance_common::{events::SlowHeader, limits::SLOW_PACKET_BYTES};
use nix::sys::eventfd::{EfdFlags, EventFd};
use service::restore::Restores;

use crate::{
    pipeline::{Command, Event, LaneAssignment, Pipeline, WorkerCounters},
    tls::{RingPair, ThreadWaker},
};
use handover::HandoverRings;
use outputs::Outputs;
use thread::WorkerThread;

/// Events that wait for the manager at most.
const EVENTS: usize = 8192;
/// Packets that wait for the manager at most; a power of two.
const UNRESOLVED_PACKETS: usize = 128;

/// How a worker waits for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitMode {
    /// Sleeps until the kernel wakes it, by epoll(7).
    Wake,
    /// Polls all the time: lower latency for a CPU that does nothing else.
    Busy,
}

/// How a worker is started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerSettings {
    /// The lanes that it has.
    pub assignment: LaneAssignment,
    /// The CPU it is pinned to; `None`: the kernel's choice.
    pub cpu: Option<usize>,
    pub wait_mode: WaitMode,
    /// Keys its hash tables.
    pub seed: u64,
}

/// A request of the manager to a worker's thread.
pub(crate) enum Request {
    Command(Command),
    /// Use one more socket.
    OpenPort(Box<(xsk::Rx, xsk::Tx)>),
    /// Close the sockets of an interface.
    ClosePort(u32),
    /// Use the rings of a circuit's TLS connection, instead of those that it had.
    OpenRing(NonZeroU64, RingPair),
    /// Drop the rings of a circuit.
    CloseRing(NonZeroU64),
    Stop,
}

/// A packet whose host is not resolved.
#[derive(Clone)]
pub struct UnresolvedPacket {
    /// Its network, next hop and length.
    pub header: SlowHeader,
    data: [u8; SLOW_PACKET_BYTES],
}

impl UnresolvedPacket {
    /// The IP packet.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        &self.data[..(self.header.len as usize).min(SLOW_PACKET_BYTES)]
    }
}

/// A worker, as the manager has it. Dropping it ends the thread.
pub(crate) struct WorkerHandle {
    requests: mpsc::Sender<Request>,
    wake: Arc<EventFd>,
    pub events: rtrb::Consumer<Event>,
    pub unresolved: rtrb::Consumer<UnresolvedPacket>,
    pub counters: Arc<WorkerCounters>,
    pub settings: WorkerSettings,
    /// The waker that signals datagrams of TLS connections.
    pub ring_waker: ThreadWaker,
    thread: Option<JoinHandle<()>>,
    /// It was woken since the last request.
    woken: bool,
}

impl WorkerHandle {
    /// Starts workers without sockets. They write `notify` when they have something to report.
    ///
    /// # Errors
    /// Number of the worker, and what failed: there are no threads or descriptors left.
    pub fn start_all(
        settings: &[WorkerSettings],
        notify: &Arc<EventFd>,
        restores: &Restores,
    ) -> Result<Vec<Self>, (u32, io::Error)> {
        let wakes = settings
            .iter()
            .map(|settings| {
                EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
                    .map(Arc::new)
                    .map_err(|source| (settings.assignment.index(), source.into()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let rings = handover::mesh(&wakes);
        settings
            .iter()
            .zip(wakes)
            .zip(rings)
            .map(|((settings, wake), rings)| {
                Self::start(*settings, Arc::clone(notify), wake, rings, restores.clone())
                    .map_err(|source| (settings.assignment.index(), source))
            })
            .collect()
    }

    fn start(
        settings: WorkerSettings,
        notify: Arc<EventFd>,
        wake: Arc<EventFd>,
        rings: HandoverRings,
        restores: Restores,
    ) -> io::Result<Self> {
        let (requests, receiver) = mpsc::channel();
        let (events_in, events) = rtrb::RingBuffer::new(EVENTS);
        let (unresolved_in, unresolved) = rtrb::RingBuffer::new(UNRESOLVED_PACKETS);
        let counters = Arc::new(WorkerCounters::default());
        let pipeline = Pipeline::new(settings.assignment, settings.seed, Arc::clone(&counters));
        let ring_waker = ThreadWaker::of_sleeper(Arc::clone(&wake), Arc::clone(&rings.is_sleeping));
        let mut body = WorkerThread::new(
            settings,
            receiver,
            (Arc::clone(&wake), notify),
            (pipeline, Arc::clone(&counters)),
            Outputs::new(events_in, unresolved_in, rings.to),
            (rings.from, rings.is_sleeping),
            restores,
        )?;
        let thread = std::thread::Builder::new()
            .name(format!("worker-{}", settings.assignment.index()))
            .spawn(move || body.run())?;
        Ok(Self {
            requests,
            wake,
            events,
            unresolved,
            counters,
            settings,
            ring_waker,
            thread: Some(thread),
            woken: true,
        })
    }

    /// Sends a request. [`WorkerHandle::wake`] makes the worker look at it.
    pub fn request(&mut self, request: Request) {
        // A worker ends by a panic only, which aborts the process.
        let _ = self.requests.send(request);
        self.woken = false;
    }

    /// As [`WorkerHandle::request`].
    pub fn command(&mut self, command: Command) {
        self.request(Request::Command(command));
    }

    /// Makes the worker look at its requests, if there are new ones.
    pub fn wake(&mut self) {
        if !std::mem::replace(&mut self.woken, true) {
            // EAGAIN: it has not looked yet since 2^64 - 2 wakes.
            let _ = self.wake.write(1);
        }
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.request(Request::Stop);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Another descriptor of an eventfd, for an `AsyncFd`.
pub(crate) fn duplicate(event: &EventFd) -> io::Result<OwnedFd> {
    event.as_fd().try_clone_to_owned()
}
