//! The thread that carries packets: AF_XDP sockets on one side, a [`Pipeline`] on the other.
//!
//! ```text
//!            orders (unbounded, rare)            events, packets (bounded rings)
//!   daemon ─────────────────────────▶ worker ─────────────────────────────────▶ daemon
//!            wake: eventfd                       notify: eventfd
//!
//!   loop:  orders ─ receive a batch of every socket ─ flush what is to be sent ─ report ─ wait
//! ```
//!
//! One thread has the sockets of its queues on every interface. Waiting is by poll(2), or not at all
//! (`Poll::Busy`). Nothing here allocates once the sockets are there; what the daemon hands over and the
//! worker lets go of (a session, every two minutes) is freed.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
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

use super::{
    clock,
    pipeline::{Command, Counted, Event, Pipeline, Sent, Wire},
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

/// How a worker waits for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Sleeps until the kernel wakes it.
    Wake,
    /// Looks all the time: less delay for a CPU that does nothing else.
    Busy,
}

/// What a worker is started with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Its number.
    pub index: u32,
    /// The CPU it stays on; `None`: the kernel's choice.
    pub cpu: Option<usize>,
    /// How it waits.
    pub waiting: Waiting,
    /// Keys its hash tables.
    pub seed: u64,
}

/// What the daemon orders.
pub(super) enum Order {
    Command(Command),
    /// A socket more.
    Port(Box<(xsk::Rx, xsk::Tx)>),
    /// Close the sockets of an interface.
    Unport(u32),
    Stop,
}

/// A packet whose host is not resolved.
#[derive(Clone)]
pub struct Waits {
    /// What it waits for.
    pub header: SlowHeader,
    data: [u8; SLOW_PACKET_BYTES],
}

impl Waits {
    /// The packet.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        &self.data[..(self.header.len as usize).min(SLOW_PACKET_BYTES)]
    }
}

/// A worker, as the daemon has it. Dropping it ends the thread.
pub(super) struct Worker {
    orders: mpsc::Sender<Order>,
    wake: Arc<EventFd>,
    pub events: rtrb::Consumer<Event>,
    pub waits: rtrb::Consumer<Waits>,
    pub counted: Arc<Counted>,
    thread: Option<JoinHandle<()>>,
    woken: bool,
}

impl Worker {
    /// Starts a worker without sockets. It tells of its events by `notify`.
    ///
    /// # Errors
    /// When there are no threads or descriptors left.
    pub fn start(settings: Settings, notify: Arc<EventFd>) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
        )?);
        let (orders, receiver) = mpsc::channel();
        let (events_in, events) = rtrb::RingBuffer::new(EVENTS);
        let (waits_in, waits) = rtrb::RingBuffer::new(SLOW);
        let counted = Arc::new(Counted::default());
        let pipeline = Pipeline::new(settings.seed, Arc::clone(&counted));
        let mut body = Body {
            settings,
            orders: receiver,
            wake: Arc::clone(&wake),
            pipeline,
            counted: Arc::clone(&counted),
            receivers: Vec::with_capacity(64),
            ports: Ports {
                senders: Vec::with_capacity(64),
                events: events_in,
                waits: waits_in,
                told: false,
                lost: false,
            },
            notify,
            reported: Instant::ORIGIN,
            beat: Instant::ORIGIN,
        };
        let thread = std::thread::Builder::new()
            .name(format!("worker-{}", settings.index))
            .spawn(move || body.run())?;
        Ok(Self {
            orders,
            wake,
            events,
            waits,
            counted,
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
    events: rtrb::Producer<Event>,
    waits: rtrb::Producer<Waits>,
    /// Something is there for the daemon.
    told: bool,
    /// A report found no room.
    lost: bool,
}

impl Wire for Ports {
    #[inline]
    fn transmit(&mut self, ifindex: u32, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Sent {
        match self.senders.iter_mut().find(|tx| tx.ifindex() == ifindex) {
            Some(tx) => tx.transmit(write),
            None => Sent::Full,
        }
    }

    fn event(&mut self, event: Event) {
        let free = self.events.slots();
        match event {
            Event::Used { .. } if free < RESERVED => return,
            Event::Report { .. } if free < RESERVED / 2 => {
                self.lost = true;
                return;
            }
            _ => {}
        }
        if self.events.push(event).is_err() {
            self.lost = true;
        }
        self.told = true;
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
        self.told = true;
        true
    }
}

struct Body {
    settings: Settings,
    orders: mpsc::Receiver<Order>,
    wake: Arc<EventFd>,
    pipeline: Pipeline,
    counted: Arc<Counted>,
    receivers: Vec<xsk::Rx>,
    ports: Ports,
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
            let owed = self.flush();
            if self.pipeline.dirty() && now.since(self.reported) >= REPORT_EVERY {
                self.reported = now;
                self.pipeline.report(now, &mut self.ports);
                if std::mem::take(&mut self.ports.lost) {
                    self.pipeline.report_again();
                }
            }
            if now.since(self.beat) >= BEAT_EVERY {
                self.beat = now;
                self.tell_sockets(now);
            }
            if std::mem::take(&mut self.ports.told) {
                // EAGAIN: the daemon has not looked yet, and will.
                let _ = self.notify.write(1);
            }
            if frames == 0 && !ordered && self.settings.waiting == Waiting::Wake {
                self.wait(now, owed);
            }
        }
    }

    fn pin(&self) {
        let Some(cpu) = self.settings.cpu else { return };
        let mut set = CpuSet::new();
        let pinned = set
            .set(cpu)
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        if let Err(error) = pinned {
            tracing::warn!(
                worker = self.settings.index,
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
            }
            any = true;
        }
        Some(any)
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
        let sockets = self.counted.sockets();
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
        let Ok(ready) = poll(&mut fds[..used], PollTimeout::from(timeout)) else {
            return;
        };
        if ready > 0 && fds[0].any().unwrap_or(false) {
            let _ = self.wake.read();
        }
    }
}

/// The descriptor of a socket to be put into the programs' map.
pub(super) fn descriptor(rx: &xsk::Rx) -> i32 {
    rx.fd().as_raw_fd()
}

/// An eventfd that wakes an `AsyncFd`.
pub(super) fn duplicate(event: &EventFd) -> io::Result<OwnedFd> {
    event.as_fd().try_clone_to_owned()
}
