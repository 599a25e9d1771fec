//! The thread that carries packets: AF_XDP sockets on one side, a [`Pipeline`] on the other.
//!
//! ```text
//!            orders (unbounded, rare)            events, packets (bounded rings)
//!   daemon ─────────────────────────▶ worker ─────────────────────────────────▶ daemon
//!            wake: eventfd                       notify: eventfd
//!
//!   worker ─── frames of its lanes (bounded ring, wake) ───▶ worker
//!
//!   loop:  orders ─ a batch of every socket ─ a batch of every worker ─ flush what is to be sent ─ report ─ wait
//! ```
//!
//! One thread has the sockets of its queues on every interface. What it receives for a lane of another worker
//! ([`LaneAssignment`]) goes over by a ring between the two, one for each pair and direction, sealed as it is.
//! A circuit's stream (`crate::tls`) is two more rings.
//! WaitMode is by poll(2), or not at all (`WaitMode::Busy`). Nothing here allocates once the sockets are there; what the daemon hands over and the
//! worker lets go of (a session, every two minutes) is freed.

use std::{
    io,
    mem::MaybeUninit,
    num::NonZeroU64,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst, fence},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use appliance_common::{events::SlowHeader, limits::SLOW_PACKET_BYTES};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_setaffinity},
    sys::eventfd::{EfdFlags, EventFd},
    unistd::Pid,
};
use tunnel::Instant;

use crate::{
    clock,
    pipeline::{Command, Event, LaneAssignment, PacketSink, Pipeline, Sent, WorkerCounters},
    tls::{DATAGRAM_BYTES, FromStream, Place, ToStream, Wake},
};

/// Frames taken from a socket before the others get their turn.
const BATCH: usize = 64;
/// Orders followed before packets get their turn.
const ORDERS: usize = 1024;
/// Between two reports while packets come.
const REPORT_EVERY: Duration = Duration::from_millis(10);
/// Longest sleep, so that a worker that hangs can be told from one that idles.
const BEAT_EVERY: Duration = Duration::from_millis(500);
/// Events that wait for the daemon at most.
const EVENTS: usize = 8192;
/// Of those, kept free of what is only nice to know.
const RESERVED: usize = EVENTS / 2;
/// Packets that wait for the daemon at most; a power of two.
const SLOW: usize = 128;

/// Frames that wait from one worker to another at most.
const HANDED: usize = 512;
/// The longest frame of a socket: 4096 bytes less XDP's headroom.
const FRAME_BYTES: usize = 4096 - 256;

/// How a worker waits for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitMode {
    /// Sleeps until the kernel wakes it.
    Wake,
    /// Looks all the time: less delay for a CPU that does nothing else.
    Busy,
}

/// What a worker is started with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Which lanes are its.
    pub assignment: LaneAssignment,
    /// The CPU it stays on; `None`: the kernel's choice.
    pub cpu: Option<usize>,
    /// How it waits.
    pub waiting: WaitMode,
    /// Keys its hash tables.
    pub seed: u64,
}

/// What the daemon orders.
pub(crate) enum Order {
    Command(Command),
    /// A socket more.
    Port(Box<(xsk::Rx, xsk::Tx)>),
    /// Close the sockets of an interface.
    Unport(u32),
    /// The stream of a circuit, instead of the one that it had.
    Stream(NonZeroU64, Place),
    /// The stream of a circuit is closed.
    Unstream(NonZeroU64),
    Stop,
}

/// A packet whose host is not resolved.
#[derive(Clone)]
pub struct UnresolvedPacket {
    /// What it waits for.
    pub header: SlowHeader,
    data: [u8; SLOW_PACKET_BYTES],
}

impl UnresolvedPacket {
    /// The packet.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        &self.data[..(self.header.len as usize).min(SLOW_PACKET_BYTES)]
    }
}

/// A worker, as the daemon has it. Dropping it ends the thread.
pub(crate) struct Worker {
    orders: mpsc::Sender<Order>,
    wake: Arc<EventFd>,
    pub events: rtrb::Consumer<Event>,
    pub waits: rtrb::Consumer<UnresolvedPacket>,
    pub counters: Arc<WorkerCounters>,
    pub settings: Settings,
    /// How it is told that a stream's datagrams came.
    pub stream_wake: Wake,
    thread: Option<JoinHandle<()>>,
    woken: bool,
}

/// A frame on its way from one worker to another.
struct Handed {
    len: u16,
    /// The first `len` bytes are written.
    data: [MaybeUninit<u8>; FRAME_BYTES],
}

impl Handed {
    fn frame(&mut self) -> &mut [u8] {
        let len = usize::from(self.len).min(FRAME_BYTES);
        // SAFETY: `Outbox::hand`, which makes every record, wrote `len` bytes, and that many are in `data`.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast(), len) }
    }
}

/// The way to another worker.
struct Outbox {
    frames: rtrb::Producer<Handed>,
    wake: Arc<EventFd>,
    sleeps: Arc<AtomicBool>,
    /// Frames went in since it was last woken.
    reported: bool,
}

impl Outbox {
    /// Copies a frame into the ring; whether there was room.
    fn hand_over(&mut self, frame: &[u8]) -> bool {
        let (Ok(len), Ok(mut chunk)) = (
            u16::try_from(frame.len()),
            self.frames.write_chunk_uninit(1),
        ) else {
            return false;
        };
        let (first, _) = chunk.as_mut_slices();
        let Some(place) = first.first_mut().filter(|_| frame.len() <= FRAME_BYTES) else {
            return false;
        };
        let place = place.as_mut_ptr();
        // SAFETY: `place` is one record of the ring that is ours to write, and `frame` fits. What is behind it
        // stays uninitialized, as the type has it.
        unsafe {
            (&raw mut (*place).len).write(len);
            let data = (&raw mut (*place).data).cast::<u8>();
            data.copy_from_nonoverlapping(frame.as_ptr(), frame.len());
            chunk.commit_all();
        }
        self.reported = true;
        true
    }

    /// Wakes the other worker if it sleeps and has frames to look at.
    fn wake(&mut self) {
        if std::mem::take(&mut self.reported) {
            // The frames, then the look at `sleeps`; the other: `sleeps`, then the look at the frames. So one of
            // the two sees the other's.
            fence(SeqCst);
            if self.sleeps.load(Relaxed) {
                let _ = self.wake.write(1);
            }
        }
    }
}

/// What a worker has of the others.
#[derive(Default)]
struct Others {
    /// By number; `None` at its own.
    to: Vec<Option<Outbox>>,
    from: Vec<rtrb::Consumer<Handed>>,
    sleeps: Arc<AtomicBool>,
}

/// Rings from every worker to every other.
fn mesh(wakes: &[Arc<EventFd>]) -> Vec<Others> {
    let mut all: Vec<Others> = wakes.iter().map(|_| Others::default()).collect();
    for from in 0..wakes.len() {
        for to in 0..wakes.len() {
            let outbox = (from != to).then(|| {
                let (frames, received) = rtrb::RingBuffer::new(HANDED);
                all[to].from.push(received);
                Outbox {
                    frames,
                    wake: Arc::clone(&wakes[to]),
                    sleeps: Arc::clone(&all[to].sleeps),
                    reported: false,
                }
            });
            all[from].to.push(outbox);
        }
    }
    all
}

impl Worker {
    /// Starts workers without sockets. They tell of their events by `notify`.
    ///
    /// # Errors
    /// Number of the worker, and what failed: there are no threads or descriptors left.
    pub fn start(
        settings: &[Settings],
        notify: &Arc<EventFd>,
    ) -> Result<Vec<Self>, (u32, io::Error)> {
        let wakes = settings
            .iter()
            .map(|settings| {
                EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
                    .map(Arc::new)
                    .map_err(|source| (settings.assignment.index(), source.into()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let others = mesh(&wakes);
        settings
            .iter()
            .zip(wakes)
            .zip(others)
            .map(|((settings, wake), others)| {
                Self::start_one(*settings, Arc::clone(notify), wake, others)
                    .map_err(|source| (settings.assignment.index(), source))
            })
            .collect()
    }

    fn start_one(
        settings: Settings,
        notify: Arc<EventFd>,
        wake: Arc<EventFd>,
        others: Others,
    ) -> io::Result<Self> {
        let (orders, receiver) = mpsc::channel();
        let (events_in, events) = rtrb::RingBuffer::new(EVENTS);
        let (waits_in, waits) = rtrb::RingBuffer::new(SLOW);
        let counters = Arc::new(WorkerCounters::default());
        let pipeline = Pipeline::new(settings.assignment, settings.seed, Arc::clone(&counters));
        let stream_wake = Wake::of_sleeper(Arc::clone(&wake), Arc::clone(&others.sleeps));
        let mut body = Body {
            settings,
            orders: receiver,
            wake: Arc::clone(&wake),
            pipeline,
            counters: Arc::clone(&counters),
            receivers: Vec::with_capacity(64),
            ports: Ports {
                senders: Vec::with_capacity(64),
                streams: Vec::with_capacity(64),
                datagram: Box::new([0; DATAGRAM_BYTES]),
                events: events_in,
                waits: waits_in,
                others: others.to,
                reported: false,
                lost: false,
            },
            handed: others.from,
            streams: Vec::with_capacity(64),
            sleeps: others.sleeps,
            notify,
            reported: Instant::ORIGIN,
            beat: Instant::ORIGIN,
        };
        let thread = std::thread::Builder::new()
            .name(format!("worker-{}", settings.assignment.index()))
            .spawn(move || body.run())?;
        Ok(Self {
            orders,
            wake,
            events,
            waits,
            counters,
            settings,
            stream_wake,
            thread: Some(thread),
            woken: true,
        })
    }

    /// Gives an order. [`Worker::wake`] makes the worker look.
    pub fn order(&mut self, order: Order) {
        // A worker ends by a panic only, which aborts the process.
        let _ = self.orders.send(order);
        self.woken = false;
    }

    /// As [`Worker::order`].
    pub fn command(&mut self, command: Command) {
        self.order(Order::Command(command));
    }

    /// Makes the worker look at its orders, if there are new ones.
    pub fn wake(&mut self) {
        if !std::mem::replace(&mut self.woken, true) {
            // EAGAIN: it has not looked yet since 2^64 - 2 wakes.
            let _ = self.wake.write(1);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.order(Order::Stop);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The sending halves, and the way to the daemon.
struct Ports {
    senders: Vec<xsk::Tx>,
    /// By circuit.
    streams: Vec<(NonZeroU64, ToStream)>,
    /// What goes to a stream is sealed here first.
    datagram: Box<[u8; DATAGRAM_BYTES]>,
    events: rtrb::Producer<Event>,
    waits: rtrb::Producer<UnresolvedPacket>,
    /// By number; `None` at its own.
    others: Vec<Option<Outbox>>,
    /// Something is there for the daemon.
    reported: bool,
    /// A report found no room.
    lost: bool,
}

impl PacketSink for Ports {
    #[inline]
    fn transmit(&mut self, ifindex: u32, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Sent {
        match self.senders.iter_mut().find(|tx| tx.ifindex() == ifindex) {
            Some(tx) => tx.transmit(write),
            None => Sent::Full,
        }
    }

    fn transmit_tls(
        &mut self,
        circuit: NonZeroU64,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Sent {
        let stream = self.streams.iter_mut().find(|(of, _)| *of == circuit);
        let Some((_, to)) = stream else {
            return Sent::Full;
        };
        let datagram = &mut self.datagram[..];
        match write(datagram).and_then(|len| datagram.get(..len)) {
            None => Sent::Abandoned,
            Some(datagram) if to.push(datagram) => Sent::Queued,
            Some(_) => Sent::Full,
        }
    }

    fn event(&mut self, event: Event) {
        let free = self.events.slots();
        match event {
            Event::HostUsed { .. } if free < RESERVED => return,
            Event::Activity { .. } if free < RESERVED / 2 => {
                self.lost = true;
                return;
            }
            _ => {}
        }
        if self.events.push(event).is_err() {
            self.lost = true;
        }
        self.reported = true;
    }

    fn unresolved(&mut self, header: &SlowHeader, packet: &[u8]) -> bool {
        let Ok(mut chunk) = self.waits.write_chunk_uninit(1) else {
            return false;
        };
        let (first, _) = chunk.as_mut_slices();
        let Some(place) = first.first_mut() else {
            return false;
        };
        let place = place.as_mut_ptr();
        let len = packet.len().min(SLOW_PACKET_BYTES);
        // SAFETY: `place` is one record of the ring that is ours to write; the header is written whole, and
        // of the data, whose bytes may hold anything, the first `len` and zeros behind them.
        unsafe {
            (&raw mut (*place).header).write(*header);
            let data = (&raw mut (*place).data).cast::<u8>();
            data.copy_from_nonoverlapping(packet.as_ptr(), len);
            data.add(len).write_bytes(0, SLOW_PACKET_BYTES - len);
            chunk.commit_all();
        }
        self.reported = true;
        true
    }

    #[inline]
    fn hand_over(&mut self, worker: u32, frame: &[u8]) -> bool {
        match self.others.get_mut(worker as usize) {
            Some(Some(other)) => other.hand_over(frame),
            Some(None) | None => false,
        }
    }
}

struct Body {
    settings: Settings,
    orders: mpsc::Receiver<Order>,
    wake: Arc<EventFd>,
    pipeline: Pipeline,
    counters: Arc<WorkerCounters>,
    receivers: Vec<xsk::Rx>,
    ports: Ports,
    /// Frames of the other workers.
    handed: Vec<rtrb::Consumer<Handed>>,
    /// Datagrams of streams, by circuit.
    streams: Vec<(NonZeroU64, FromStream)>,
    /// Told to them: a frame needs a wake.
    sleeps: Arc<AtomicBool>,
    notify: Arc<EventFd>,
    reported: Instant,
    beat: Instant,
}

impl Body {
    fn run(&mut self) {
        self.pin();
        loop {
            let now = clock::mono();
            let Some(ordered) = self.orders(now) else {
                return;
            };
            let mut frames = 0;
            for rx in &mut self.receivers {
                let (pipeline, ports) = (&mut self.pipeline, &mut self.ports);
                frames += rx.receive(BATCH, |frame| pipeline.frame(now, frame, ports));
            }
            frames += self.handed(now);
            for (circuit, from) in &mut self.streams {
                let (pipeline, ports) = (&mut self.pipeline, &mut self.ports);
                frames += from.take(BATCH, |datagram| {
                    pipeline.tls_datagram(now, *circuit, datagram, ports);
                });
            }
            for (_, to) in &mut self.ports.streams {
                to.wake();
            }
            for other in self.ports.others.iter_mut().flatten() {
                other.wake();
            }
            let owed = self.flush();
            if self.pipeline.dirty() && now.since(self.reported) >= REPORT_EVERY {
                self.reported = now;
                self.pipeline.report(now, &mut self.ports);
                if std::mem::take(&mut self.ports.lost) {
                    self.pipeline.mark_all_dirty();
                }
            }
            if now.since(self.beat) >= BEAT_EVERY {
                self.beat = now;
                self.tell_sockets(now);
            }
            if std::mem::take(&mut self.ports.reported) {
                // EAGAIN: the daemon has not looked yet, and will.
                let _ = self.notify.write(1);
            }
            if frames == 0 && !ordered && self.settings.waiting == WaitMode::Wake {
                self.wait(now, owed);
            }
        }
    }

    /// Takes what other workers handed over; how many frames.
    fn handed(&mut self, now: Instant) -> usize {
        let mut frames = 0;
        for from in &mut self.handed {
            let batch = from.slots().min(BATCH);
            let Ok(mut chunk) = from.read_chunk(batch) else {
                continue;
            };
            let (first, second) = chunk.as_mut_slices();
            for frame in first.iter_mut().chain(second) {
                self.pipeline.frame(now, frame.frame(), &mut self.ports);
            }
            chunk.commit_all();
            frames += batch;
        }
        frames
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
                "the worker could not be pinned; it runs on any CPU"
            );
        }
    }

    /// Follows orders; whether there were any, or `None` to end.
    fn orders(&mut self, now: Instant) -> Option<bool> {
        let mut any = false;
        for _ in 0..ORDERS {
            match self.orders.try_recv() {
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) | Ok(Order::Stop) => return None,
                Ok(Order::Command(command)) => {
                    self.pipeline.command(now, command, &mut self.ports);
                }
                Ok(Order::Port(halves)) => {
                    let (rx, tx) = *halves;
                    self.receivers.push(rx);
                    self.ports.senders.push(tx);
                }
                Ok(Order::Unport(ifindex)) => {
                    self.receivers.retain(|rx| rx.ifindex() != ifindex);
                    self.ports.senders.retain(|tx| tx.ifindex() != ifindex);
                }
                Ok(Order::Stream(circuit, place)) => {
                    self.unstream(circuit);
                    self.streams.push((circuit, place.from));
                    self.ports.streams.push((circuit, place.to));
                }
                Ok(Order::Unstream(circuit)) => self.unstream(circuit),
            }
            any = true;
        }
        Some(any)
    }

    fn unstream(&mut self, circuit: NonZeroU64) {
        self.streams.retain(|(of, _)| *of != circuit);
        self.ports.streams.retain(|(of, _)| *of != circuit);
    }

    /// Kicks what is to be sent; whether some is still not handed over.
    fn flush(&mut self) -> bool {
        let mut owed = false;
        for tx in &mut self.ports.senders {
            if tx.outstanding() == 0 {
                continue;
            }
            // A link that is down keeps its frames; the programs count what finds no room behind them.
            let _ = tx.flush();
            owed |= tx.outstanding() != 0;
        }
        owed
    }

    fn tell_sockets(&mut self, now: Instant) {
        let dropped = self
            .receivers
            .iter()
            .filter_map(|rx| rx.statistics().ok())
            .map(|s| s.rx_dropped + s.rx_ring_full)
            .sum();
        let sockets = self.counters.sockets();
        sockets.rx_dropped.store(dropped, Relaxed);
        sockets.beat.store(now.as_nanos(), Relaxed);
    }

    /// Sleeps until a frame, an order, or the next thing to do.
    fn wait(&mut self, now: Instant, owed: bool) {
        let until = if owed {
            Duration::from_millis(1)
        } else if self.pipeline.dirty() {
            REPORT_EVERY.saturating_sub(now.since(self.reported))
        } else {
            BEAT_EVERY
        };
        const MOST: usize = 64;
        let mut fds: [PollFd<'_>; MOST + 1] = std::array::from_fn(|place| match place {
            0 => PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            // A descriptor that is there twice costs nothing; `used` leaves it out.
            _ => PollFd::new(
                self.receivers
                    .get(place - 1)
                    .map_or(self.wake.as_fd(), xsk::Rx::fd),
                PollFlags::POLLIN,
            ),
        });
        let used = 1 + self.receivers.len().min(MOST);
        // Rounded up: a sleep of no time would be a spin.
        let timeout = u16::try_from(until.as_millis() + 1).unwrap_or(u16::MAX);
        self.sleeps.store(true, Relaxed);
        fence(SeqCst);
        // What was handed over before is not told by a wake.
        let is_there = self.handed.iter().any(|from| !from.is_empty())
            || self.streams.iter().any(|(_, from)| !from.is_empty());
        let ready = if is_there {
            Ok(0)
        } else {
            poll(&mut fds[..used], PollTimeout::from(timeout))
        };
        self.sleeps.store(false, Relaxed);
        let Ok(ready) = ready else { return };
        if ready > 0 && fds[0].any().unwrap_or(false) {
            let _ = self.wake.read();
        }
    }
}

/// An eventfd that wakes an `AsyncFd`.
pub(crate) fn duplicate(event: &EventFd) -> io::Result<OwnedFd> {
    event.as_fd().try_clone_to_owned()
}
