//! The manager's side of the worker threads: requests to them, their reports and counters.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use appliance_common::{counters::Counter, maps::NetworkStats};
use nix::sys::eventfd::{EfdFlags, EventFd};
use service::restore::Restores;
use tokio::io::unix::AsyncFd;

use super::{Error, status::WorkerStatus};
use crate::{
    clock,
    keys::OsRandom,
    pipeline::{Command, Event, LANES, LaneAssignment},
    tls::ThreadWaker,
    worker::{Request, UnresolvedPacket, WaitMode, WorkerHandle, WorkerSettings, duplicate},
};

/// A worker hangs if it has not polled its sockets for this long.
const HANGS_AFTER: Duration = Duration::from_secs(5);

/// All workers. Dropping it ends their threads.
pub(super) struct WorkerPool {
    workers: Vec<WorkerHandle>,
    /// Written by workers and TLS connections that have something to report.
    event: Arc<EventFd>,
    /// The same eventfd, in the runtime.
    notify: AsyncFd<OwnedFd>,
}

impl WorkerPool {
    /// Starts so many workers, 1 to [`LANES`], pinned to `cpus` in turn if there are any.
    ///
    /// # Errors
    /// If the kernel gives no thread or descriptor.
    pub fn start(
        workers: u32,
        cpus: &[usize],
        wait_mode: WaitMode,
        restores: &Restores,
    ) -> Result<Self, Error> {
        let failed = |index| move |source| Error::Worker { index, source };
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|source| failed(0)(source.into()))?;
        let event = Arc::new(event);
        let notify = duplicate(&event)
            // SAFETY: the descriptor is owned, always the same one, and dropped with the AsyncFd.
            .and_then(|fd| unsafe { AsyncFd::register(fd) }.map_err(io::Error::from))
            .map_err(failed(0))?;
        let workers = workers.clamp(1, LANES);
        let settings: Vec<WorkerSettings> = (0..workers)
            .filter_map(|index| LaneAssignment::new(index, workers))
            .map(|assignment| WorkerSettings {
                assignment,
                cpu: cpus
                    .get(assignment.index() as usize % cpus.len().max(1))
                    .copied(),
                wait_mode,
                seed: tunnel::Random::u64(&mut OsRandom),
            })
            .collect();
        let workers = WorkerHandle::start_all(&settings, &event, restores)
            .map_err(|(index, source)| Error::Worker { index, source })?;
        Ok(Self {
            workers,
            event,
            notify,
        })
    }

    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// The event that reports set.
    pub const fn event(&self) -> &Arc<EventFd> {
        &self.event
    }

    /// The wakers by which TLS connections signal datagrams to each worker.
    pub fn wakers(&self) -> Vec<ThreadWaker> {
        let workers = self.workers.iter();
        workers.map(|worker| worker.ring_waker.clone()).collect()
    }

    /// Which lanes each worker has.
    pub fn assignments(&self) -> impl Iterator<Item = LaneAssignment> {
        self.workers.iter().map(|worker| worker.settings.assignment)
    }

    /// The worker that opens the peer's datagrams of a lane.
    pub fn opener(&self, lane: u32) -> usize {
        let first = self.assignments().next();
        first.map_or(0, |assignment| assignment.opener(lane) as usize)
    }

    /// Commands one worker. A command for a worker that does not exist is ignored.
    pub fn command(&mut self, worker: usize, command: Command) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.command(command);
        }
    }

    /// Commands every worker.
    pub fn command_all(&mut self, mut command: impl FnMut() -> Command) {
        for worker in &mut self.workers {
            worker.command(command());
        }
    }

    /// Asks one worker, as [`WorkerPool::command`].
    pub fn request(&mut self, worker: usize, request: Request) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.request(request);
        }
    }

    /// Asks every worker.
    pub fn request_all(&mut self, mut request: impl FnMut() -> Request) {
        for worker in &mut self.workers {
            worker.request(request());
        }
    }

    /// Makes one worker read its requests now.
    pub fn wake(&mut self, worker: usize) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.wake();
        }
    }

    /// Makes every worker read its requests, if there are new ones.
    pub fn wake_all(&mut self) {
        for worker in &mut self.workers {
            worker.wake();
        }
    }

    /// Waits until there are reports.
    pub async fn readable(&self) {
        if let Ok(mut ready) = self.notify.readable().await {
            let _ = self.event.read();
            ready.clear_ready();
        }
    }

    /// The oldest report of a worker.
    pub fn next_event(&mut self, worker: usize) -> Option<Event> {
        self.workers.get_mut(worker)?.events.pop().ok()
    }

    /// Takes a worker's packets whose host is not resolved.
    pub fn take_unresolved(&mut self, worker: usize, into: &mut Vec<UnresolvedPacket>) {
        if let Some(worker) = self.workers.get_mut(worker) {
            while let Ok(packet) = worker.unresolved.pop() {
                into.push(packet);
            }
        }
    }

    /// Workers that hang, as messages for the operator.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let now = clock::nanos();
        let workers = self.workers.iter().enumerate();
        workers.filter_map(move |(index, worker)| {
            let beat = worker.counters.sockets().beat.load(Relaxed);
            let silent = Duration::from_nanos(now.saturating_sub(beat));
            (beat != 0 && silent > HANGS_AFTER).then(|| {
                format!(
                    "worker {index} has not polled its sockets for {} s",
                    silent.as_secs()
                )
            })
        })
    }

    /// Counters of each worker.
    pub fn status(&self) -> Vec<WorkerStatus> {
        self.workers
            .iter()
            .map(|worker| {
                let counter = |counter| worker.counters.counter(counter);
                let drops = Counter::ALL.iter().filter(|counter| counter.is_drop());
                WorkerStatus {
                    index: worker.settings.assignment.index(),
                    cpu: worker.settings.cpu,
                    sealed: counter(Counter::Encapsulated),
                    delivered: counter(Counter::Decapsulated),
                    handed_over: counter(Counter::HandedOver),
                    dropped: drops.map(|drop| counter(*drop)).sum(),
                }
            })
            .collect()
    }

    /// Packets that all workers counted.
    pub fn counter(&self, counter: Counter) -> u64 {
        let workers = self.workers.iter();
        workers.map(|worker| worker.counters.counter(counter)).sum()
    }

    /// Frames for which the sockets of the workers had no room.
    pub fn rx_dropped(&self) -> u64 {
        let workers = self.workers.iter();
        workers
            .map(|worker| worker.counters.sockets().rx_dropped.load(Relaxed))
            .sum()
    }

    /// Traffic of a network's slot that the workers carried.
    pub fn network(&self, slot: u32) -> NetworkStats {
        self.workers
            .iter()
            .map(|worker| worker.counters.network(slot))
            .fold(NetworkStats::default(), |a, b| NetworkStats {
                tx_packets: a.tx_packets + b.tx_packets,
                tx_bytes: a.tx_bytes + b.tx_bytes,
                rx_packets: a.rx_packets + b.rx_packets,
                rx_bytes: a.rx_bytes + b.rx_bytes,
            })
    }
}
