//! A worker's loop.
//!
//! ```text
//!   requests ─ a batch of every socket ─ a batch of every worker ─ a batch of every TLS connection
//!      ▲                                                                        │
//!      └── wait, if there was nothing ◀── report ◀── flush what is to be sent ◀─┘
//! ```
//!
//! The machine may be restored from a snapshot at any moment: before each request and each batch,
//! the worker looks whether it was, and then wipes its sessions.
//!
//! Nothing here allocates once the sockets are open.

use std::{
    io,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst, fence},
        mpsc,
    },
    time::Duration,
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::EventFd,
    },
    unistd::Pid,
};
use service::restore::Restores;
use tunnel::Instant;

use super::{Request, WaitMode, WorkerSettings, handover::HandoverFrame, outputs::Outputs};
use crate::{
    clock,
    pipeline::{Pipeline, WorkerCounters},
    tls::RingReceiver,
};

/// Frames taken from a socket before the others get their turn.
const BATCH: usize = 64;
/// Requests served before packets get their turn.
const REQUESTS: usize = 1024;
/// Interval of reports while packets come.
const REPORT_INTERVAL: Duration = Duration::from_millis(10);
/// Longest sleep: the heartbeat distinguishes a worker that hangs from one that is idle.
const BEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Longest sleep while the kernel has not taken all frames.
const FLUSH_INTERVAL: Duration = Duration::from_millis(1);
/// Events that one wait takes; more stay ready for the next.
const READY: usize = 32;
/// The wake-up in the epoll set; any other number is a socket.
const WAKE_TOKEN: u64 = u64::MAX;

/// Wipes the sessions of a pipeline at each restore of the machine.
struct RestoreFollower {
    restores: Restores,
    /// Restores that the pipeline has followed.
    followed: u64,
}

impl RestoreFollower {
    fn new(restores: Restores) -> Self {
        Self {
            followed: restores.count(),
            restores,
        }
    }

    /// Wipes all sessions if the machine was restored from a snapshot. Otherwise it is one atomic
    /// load.
    #[inline]
    fn follow(&mut self, pipeline: &mut Pipeline) {
        let restores = self.restores.count();
        if restores != self.followed {
            self.followed = restores;
            pipeline.suspend_sessions(restores);
        }
    }

    /// Takes a batch of each source, and follows restores before each; returns the sum.
    #[inline]
    fn batches<S>(
        &mut self,
        pipeline: &mut Pipeline,
        sources: &mut [S],
        mut take: impl FnMut(&mut Pipeline, &mut S) -> usize,
    ) -> usize {
        let mut frames = 0;
        for source in sources {
            self.follow(pipeline);
            frames += take(pipeline, source);
        }
        frames
    }
}

/// State of the thread.
pub(super) struct WorkerThread {
    settings: WorkerSettings,
    requests: mpsc::Receiver<Request>,
    wake: Arc<EventFd>,
    notify: Arc<EventFd>,
    pipeline: Pipeline,
    counters: Arc<WorkerCounters>,
    sockets: Vec<xsk::Rx>,
    /// Frames from the other workers.
    handed_over: Vec<rtrb::Consumer<HandoverFrame>>,
    /// Datagrams of TLS connections, by circuit.
    rings: Vec<(NonZeroU64, RingReceiver)>,
    outputs: Outputs,
    /// Read by the threads that put frames into rings: whether this worker needs a wake.
    is_sleeping: Arc<AtomicBool>,
    /// The wake-up and every socket. A socket leaves it when it is closed.
    epoll: Epoll,
    restores: RestoreFollower,
    reported: Instant,
    beat: Instant,
}

impl WorkerThread {
    /// # Errors
    /// When there is no descriptor left.
    pub fn new(
        settings: WorkerSettings,
        requests: mpsc::Receiver<Request>,
        (wake, notify): (Arc<EventFd>, Arc<EventFd>),
        (pipeline, counters): (Pipeline, Arc<WorkerCounters>),
        outputs: Outputs,
        (handed_over, is_sleeping): (Vec<rtrb::Consumer<HandoverFrame>>, Arc<AtomicBool>),
        restores: Restores,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE_TOKEN))?;
        Ok(Self {
            settings,
            requests,
            wake,
            notify,
            pipeline,
            counters,
            sockets: Vec::with_capacity(64),
            handed_over,
            rings: Vec::with_capacity(64),
            outputs,
            is_sleeping,
            epoll,
            restores: RestoreFollower::new(restores),
            reported: Instant::ORIGIN,
            beat: Instant::ORIGIN,
        })
    }

    /// Carries packets until it is stopped.
    pub fn run(&mut self) {
        self.pin();
        loop {
            let now = clock::mono();
            let Some(was_asked) = self.serve_requests(now) else {
                return;
            };
            let frames = self.take_batches(now);
            for (_, ring) in &mut self.outputs.rings {
                ring.wake();
            }
            for other in self.outputs.workers.iter_mut().flatten() {
                other.wake();
            }
            let unsent = self.flush();
            if self.pipeline.dirty() && now.since(self.reported) >= REPORT_INTERVAL {
                self.reported = now;
                self.pipeline.report(now, &mut self.outputs);
                if std::mem::take(&mut self.outputs.event_lost) {
                    self.pipeline.mark_all_dirty();
                }
            }
            if now.since(self.beat) >= BEAT_INTERVAL {
                self.beat = now;
                self.publish_socket_counters(now);
            }
            if std::mem::take(&mut self.outputs.needs_notify) {
                // EAGAIN: the manager has not looked yet, and will.
                let _ = self.notify.write(1);
            }
            if frames == 0 && !was_asked && self.settings.wait_mode == WaitMode::Wake {
                self.wait(now, unsent);
            }
        }
    }

    /// Takes a batch of every socket, of every worker that hands frames over, and of every TLS
    /// connection; returns the number of frames.
    fn take_batches(&mut self, now: Instant) -> usize {
        let (restores, outputs) = (&mut self.restores, &mut self.outputs);
        let pipeline = &mut self.pipeline;
        let received = restores.batches(pipeline, &mut self.sockets, |pipeline, rx| {
            rx.receive(BATCH, |frame| pipeline.frame(now, frame, outputs))
        });
        let handed_over = restores.batches(pipeline, &mut self.handed_over, |pipeline, from| {
            let batch = from.slots().min(BATCH);
            let Ok(mut chunk) = from.read_chunk(batch) else {
                return 0;
            };
            let (first, second) = chunk.as_mut_slices();
            for frame in first.iter_mut().chain(second) {
                pipeline.frame(now, frame.frame(), outputs);
            }
            chunk.commit_all();
            batch
        });
        let from_tls = restores.batches(pipeline, &mut self.rings, |pipeline, (circuit, ring)| {
            ring.take(BATCH, |datagram| {
                pipeline.tls_datagram(now, *circuit, datagram, outputs);
            })
        });
        received + handed_over + from_tls
    }

    fn pin(&self) {
        let Some(cpu) = self.settings.cpu else { return };
        let mut set = CpuSet::new();
        let pinned = set
            .set(cpu)
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        if let Err(error) = pinned {
            tracing::warn!(
                worker = self.settings.assignment.index(),
                cpu,
                %error,
                "cannot pin the worker; it runs on any CPU"
            );
        }
    }

    /// Serves requests. Returns whether there were any, or `None` to end.
    fn serve_requests(&mut self, now: Instant) -> Option<bool> {
        let mut any = false;
        for _ in 0..REQUESTS {
            match self.requests.try_recv() {
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) | Ok(Request::Stop) => return None,
                Ok(Request::Command(command)) => {
                    // A new session sends what its outage buffer holds.
                    self.restores.follow(&mut self.pipeline);
                    self.pipeline.command(now, command, &mut self.outputs);
                }
                Ok(Request::OpenPort(halves)) => {
                    let (rx, tx) = *halves;
                    let interest = EpollEvent::new(EpollFlags::EPOLLIN, 0);
                    if let Err(error) = self.epoll.add(rx.fd(), interest) {
                        // The thread serves it with every poll of the sockets.
                        tracing::error!(%error, "cannot wait for a socket; its packets are late");
                    }
                    self.sockets.push(rx);
                    self.outputs.sockets.push(tx);
                }
                Ok(Request::ClosePort(ifindex)) => {
                    self.sockets.retain(|rx| rx.ifindex() != ifindex);
                    self.outputs.sockets.retain(|tx| tx.ifindex() != ifindex);
                }
                Ok(Request::OpenRing(circuit, ring)) => {
                    self.close_ring(circuit);
                    self.rings.push((circuit, ring.receiver));
                    self.outputs.rings.push((circuit, ring.sender));
                }
                Ok(Request::CloseRing(circuit)) => self.close_ring(circuit),
            }
            any = true;
        }
        Some(any)
    }

    fn close_ring(&mut self, circuit: NonZeroU64) {
        self.rings.retain(|(of, _)| *of != circuit);
        self.outputs.rings.retain(|(of, _)| *of != circuit);
    }

    /// Makes the kernel send. Returns whether it has not taken all frames.
    fn flush(&mut self) -> bool {
        let mut unsent = false;
        for tx in &mut self.outputs.sockets {
            if tx.outstanding() == 0 {
                continue;
            }
            // A link that is down keeps its frames; what finds no room behind them is counted.
            let _ = tx.flush();
            unsent |= tx.outstanding() != 0;
        }
        unsent
    }

    fn publish_socket_counters(&mut self, now: Instant) {
        let dropped = self
            .sockets
            .iter()
            .filter_map(|rx| rx.statistics().ok())
            .map(|s| s.rx_dropped + s.rx_ring_full)
            .sum();
        let sockets = self.counters.sockets();
        sockets.rx_dropped.store(dropped, Relaxed);
        sockets.beat.store(now.as_nanos(), Relaxed);
    }

    /// Sleeps until a frame, a request, or the next report.
    fn wait(&mut self, now: Instant, unsent: bool) {
        let until = if unsent {
            FLUSH_INTERVAL
        } else if self.pipeline.dirty() {
            REPORT_INTERVAL.saturating_sub(now.since(self.reported))
        } else {
            BEAT_INTERVAL
        };
        // Rounded up: a sleep of no time would be a spin.
        let timeout = u16::try_from(until.as_millis() + 1).unwrap_or(u16::MAX);
        self.is_sleeping.store(true, Relaxed);
        fence(SeqCst);
        // Frames that were put into a ring before the flag was set are not told by a wake.
        let is_there = self.handed_over.iter().any(|from| !from.is_empty())
            || self.rings.iter().any(|(_, ring)| !ring.is_empty());
        let mut events = [EpollEvent::empty(); READY];
        let ready = if is_there {
            0
        } else {
            let timeout = EpollTimeout::from(timeout);
            // EINTR: the sockets are looked at, and the next wait is as good.
            self.epoll.wait(&mut events, timeout).unwrap_or_default()
        };
        self.is_sleeping.store(false, Relaxed);
        if events[..ready]
            .iter()
            .any(|event| event.data() == WAKE_TOKEN)
        {
            let _ = self.wake.read();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{VNI, at, packet, pair, to_seal};

    #[test]
    fn a_restore_between_two_batches_of_a_turn_wipes_the_sessions() {
        let (mut side, _) = pair();
        side.take();
        let restores = Restores::default();
        let mut follower = RestoreFollower::new(restores.clone());
        let (pipeline, wire) = (&mut side.pipeline, &mut side.wire);
        let mut sent = Vec::new();
        let frames = follower.batches(pipeline, &mut [1, 2, 3], |pipeline, source| {
            let mut frame = to_seal(4, VNI, &packet("10.1.0.11", "10.1.0.10", b"x"));
            pipeline.frame(at(10).mono, &mut frame, wire);
            sent.push(wire.frames.len());
            if *source == 2 {
                restores.note();
            }
            1
        });
        assert_eq!((frames, sent), (3, vec![1, 2, 2]));
    }
}
