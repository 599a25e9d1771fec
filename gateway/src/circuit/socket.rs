//! Circuits in user space: threads that each serve a share of the circuits.
//!
//! ```text
//!   UDP 6180 ─▶ by circuit id, in the kernel ─┬▶ thread: recvmmsg, GRO ─▶ table ─▶ sendmmsg, GSO
//!                                             └▶ thread: ...             no lock, no allocation, no copy
//!   daemon ──▶ a command to the thread concerned: circuits that change
//!   daemon ──▶ a command to each thread: sockets, state, drain, stop
//! ```
//!
//! A thread has a socket for each address, and a table with its share of the circuits. The kernel
//! gives joined datagrams to one thread, so an end uses a source port for each circuit. Datagrams
//! are sent from the buffer that they were received in; an answer overwrites its message.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use gateway_client::wire::{KEY_BYTES, Key, Load, MESSAGE_BYTES};
use gateway_model::Changes;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    clock,
    command::Command,
    fast::{Fast, Publisher},
    observe::{Asked, Reported},
    rate::Bucket,
    report::{PagePart, SummaryPart},
    steering::{is_mixed, thread_of},
    sys::{BATCH, Batch, Outbox, Poll, Sent, Socket},
    table::{Action, Change, CircuitPlan, Path, Table},
    tenants::Tenants,
};
pub use super::{
    observe::Observer,
    report::{Query, State, Summary, Totals},
};

/// Interval of sweeps, milliseconds.
const SWEEP_INTERVAL_MS: u16 = 250;
/// Batches of one socket before the next socket.
const BATCHES_PER_SOCKET: usize = 4;
/// Datagrams that an outbox collects before it sends.
const OUTBOX_CAPACITY: usize = BATCH * 64;
/// Circuits of a command: a thread serves its sockets between two commands.
const CIRCUITS_PER_COMMAND: usize = 256;

/// Why circuits do not start, or keep the old addresses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be bound.
    #[error(
        "cannot listen on {address} (UDP): {source}; check that no other gateway runs and that the \
         address belongs to this machine"
    )]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    /// Another system call failed.
    #[error("{operation}: {source}")]
    System {
        operation: &'static str,
        source: io::Error,
    },
}

struct Worker {
    commands: Sender<Command>,
    waker: Arc<EventFd>,
    /// For all observers.
    reported: Arc<Reported>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn send(&self, command: Command) {
        // It fails only after the thread has ended.
        let _ = self.commands.send(command);
        let _ = self.waker.write(1);
    }
}

/// Settings of circuits.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Time that a side stays bound after its last bind.
    pub lifetime: Duration,
    /// Threads, at least one.
    pub threads: usize,
    /// Circuits that memory is reserved for.
    pub capacity: usize,
    /// The XDP program that bound circuits are published to.
    pub fast: Option<Arc<Fast>>,
    /// Whether bindings are refused from the first, until [`Circuits::undrain`].
    pub draining: bool,
}

impl Setup {
    /// Without XDP.
    #[must_use]
    pub const fn new(lifetime: Duration, threads: usize) -> Self {
        Self {
            lifetime,
            threads,
            capacity: 0,
            fast: None,
            draining: false,
        }
    }
}

/// Running circuits. Their drop stops the threads.
pub struct Circuits {
    workers: Vec<Worker>,
    tenants: Tenants,
    /// Listen addresses: as configured, and with the port in use.
    listening: Vec<(SocketAddr, SocketAddr)>,
    /// The XDP program, if it is loaded.
    fast: Option<Arc<Fast>>,
}

/// New sockets. Dropped, they change nothing.
pub struct Prepared {
    listening: Vec<(SocketAddr, SocketAddr)>,
    /// The new sockets of each worker.
    sockets: Vec<Vec<Socket>>,
    /// The new index of each old socket.
    indices: Vec<Option<u16>>,
}

impl Circuits {
    /// Starts the threads of circuits, and the first circuits.
    ///
    /// # Errors
    /// When an address cannot be bound, or a thread cannot be started.
    pub fn start(setup: Setup, listen: &[SocketAddr], first: &Changes) -> Result<Self, Error> {
        let system = |operation| move |source| Error::System { operation, source };
        let threads = setup.threads.max(1);
        let mut circuits = Self {
            workers: Vec::new(),
            tenants: Tenants::default(),
            listening: Vec::new(),
            fast: setup.fast,
        };
        for n in 0..threads {
            let mut secret = [0; KEY_BYTES];
            getrandom::fill(&mut secret)
                .map_err(io::Error::from)
                .map_err(system("get random bytes for the secret of circuits"))?;
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let waker = EventFd::from_value_and_flags(0, flags)
                .map_err(io::Error::from)
                .map_err(system("create an eventfd for circuits"))?;
            let waker = Arc::new(waker);
            let (commands, received) = channel();
            let mut table = Table::new(Key::new(secret));
            table.set_lifetime(setup.lifetime);
            // IDs are random: the shares of threads differ little.
            table.reserve(setup.capacity.div_ceil(threads) * 5 / 4);
            if setup.draining {
                table.drain();
            }
            let woken = Arc::clone(&waker);
            let publisher = circuits.fast.as_ref().map(Arc::clone).map(Publisher::new);
            let thread = std::thread::Builder::new()
                .name(format!("circuits-{n}"))
                .spawn(move || work(table, threads as u32, publisher, &received, &woken))
                .map_err(system("start a thread for circuits"))?;
            circuits.workers.push(Worker {
                commands,
                waker,
                reported: Arc::default(),
                thread: Some(thread),
            });
        }
        circuits.change(first);
        let prepared = circuits.prepare(listen)?;
        circuits.take(prepared, setup.lifetime);
        Ok(circuits)
    }

    /// Puts changed tenants and circuits in force; returns the number of commands to threads. Only
    /// threads with a changed circuit get one. A changed limit, also from or to none, is changed in
    /// its bucket, which all threads and XDP use.
    pub fn change(&mut self, changes: &Changes) -> usize {
        let mut commands = 0;
        let share = share(self.fast.as_ref());
        for (name, limits) in &changes.tenants {
            if let Some(limits) = limits {
                self.tenants.set_limits(clock(), name, limits, &share);
            }
        }
        let count = self.workers.len();
        let mut of_workers: Vec<Change> = (0..count).map(|_| Change::default()).collect();
        for (id, circuit) in &changes.circuits {
            let n = thread_of(*id, count);
            let change = &mut of_workers[n];
            match circuit {
                None => change.removed.push(*id),
                Some(circuit) => change.put.push(CircuitPlan {
                    id: *id,
                    tenant: self.tenants.get(&circuit.tenant),
                    keys: circuit.keys.clone(),
                }),
            }
            if change.removed.len() + change.put.len() == CIRCUITS_PER_COMMAND {
                self.workers[n].send(Command::Change(std::mem::take(change)));
                commands += 1;
            }
        }
        for (worker, change) in self.workers.iter().zip(of_workers) {
            if !change.removed.is_empty() || !change.put.is_empty() {
                worker.send(Command::Change(change));
                commands += 1;
            }
        }
        for (name, limits) in &changes.tenants {
            if limits.is_none() {
                self.tenants.remove(name);
            }
        }
        commands
    }

    /// Tries again to have XDP share the rate limits of tenants that found no room in its map. To
    /// be called every few seconds.
    pub fn share_buckets(&mut self) {
        self.tenants.share_again(&share(self.fast.as_ref()));
    }

    /// Number of tenants whose circuits use user space, because the map of their rate limits is
    /// full.
    #[must_use]
    pub fn waiting_tenants(&self) -> usize {
        self.tenants.waiting()
    }

    /// Binds new listen addresses. The present ones stay in force.
    ///
    /// # Errors
    /// When a new address cannot be bound.
    pub fn prepare(&self, listen: &[SocketAddr]) -> Result<Prepared, Error> {
        let mut prepared = Prepared {
            listening: Vec::new(),
            sockets: self.workers.iter().map(|_| Vec::new()).collect(),
            indices: Vec::new(),
        };
        for known in &self.listening {
            let is_kept = listen.contains(&known.0);
            let place = prepared.listening.len() as u16;
            prepared.indices.push(is_kept.then_some(place));
            if is_kept {
                prepared.listening.push(*known);
            }
        }
        for &wanted in listen {
            if prepared.listening.iter().any(|(known, _)| *known == wanted) {
                continue;
            }
            let failed = |source| Error::Listen {
                address: wanted,
                source,
            };
            let mut address = wanted;
            for (n, sockets) in prepared.sockets.iter_mut().enumerate() {
                let socket = Socket::bind(address).map_err(failed)?;
                // The other sockets get the port that the kernel chose for the first.
                address = socket.address;
                if n == 0 && self.workers.len() > 1 {
                    let members = self.workers.len() as u32;
                    socket.steer(members).map_err(failed)?;
                }
                sockets.push(socket);
            }
            prepared.listening.push((wanted, address));
        }
        Ok(prepared)
    }

    /// Puts prepared addresses and a lifetime in force.
    pub fn take(&mut self, prepared: Prepared, lifetime: Duration) {
        let is_same = prepared.listening == self.listening;
        for (worker, sockets) in self.workers.iter().zip(prepared.sockets) {
            worker.send(Command::Lifetime(lifetime));
            if !is_same {
                worker.send(Command::Sockets(sockets, prepared.indices.clone()));
            }
        }
        self.listening = prepared.listening;
        if let Some(fast) = &self.fast
            && let Err(error) = fast.admit_at(&self.addresses())
        {
            tracing::warn!(%error, "datagrams of unbound sources reach user space \
                without a limit");
        }
    }

    /// Listen addresses with the ports in use.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listening.iter().map(|(_, address)| *address).collect()
    }

    /// Orders each bound end to use another gateway, and accepts no new binding.
    pub fn drain(&self) {
        self.workers
            .iter()
            .for_each(|worker| worker.send(Command::Drain));
    }

    /// Sets the load that answers to ends carry from now on.
    pub fn set_load(&self, load: Load) {
        self.workers
            .iter()
            .for_each(|worker| worker.send(Command::Load(load)));
    }

    /// Accepts bindings again after a drain.
    pub fn undrain(&self) {
        self.workers
            .iter()
            .for_each(|worker| worker.send(Command::Undrain));
    }

    /// A handle to read the state from other threads.
    #[must_use]
    pub fn observer(&self) -> Observer {
        let workers = self.workers.iter();
        Observer {
            workers: workers
                .map(|worker| Asked {
                    commands: worker.commands.clone(),
                    waker: Arc::clone(&worker.waker),
                    reported: Arc::clone(&worker.reported),
                })
                .collect(),
            fast: self.fast.clone(),
        }
    }

    /// The counters.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.observer().summary()
    }

    /// The counters, and all circuits.
    #[must_use]
    pub fn state(&self) -> State {
        let observer = self.observer();
        let Summary {
            drops,
            totals,
            bound,
            ..
        } = observer.summary();
        let all = Query {
            limit: usize::MAX,
            ..Query::default()
        };
        State {
            circuits: observer.page(&all),
            drops,
            totals,
            bound,
        }
    }
}

/// Has XDP share a bucket, where it is used; returns false if its map is full.
fn share(fast: Option<&Arc<Fast>>) -> impl Fn(&Bucket) -> bool {
    move |bucket| fast.is_none_or(|fast| fast.share(bucket))
}

impl Drop for Circuits {
    fn drop(&mut self) {
        if let Some(fast) = &self.fast {
            fast.detach();
        }
        self.workers
            .iter()
            .for_each(|worker| worker.send(Command::Stop));
        for worker in &mut self.workers {
            if let Some(Err(_)) = worker.thread.take().map(JoinHandle::join) {
                tracing::error!("a circuit thread panicked");
            }
        }
    }
}

/// The state of a thread.
struct Carrier {
    table: Table,
    /// The number of threads.
    threads: u32,
    publisher: Option<Publisher>,
    sockets: Vec<Socket>,
    outboxes: Vec<Outbox>,
    totals: Totals,
}

fn work(
    table: Table,
    threads: u32,
    publisher: Option<Publisher>,
    commands: &Receiver<Command>,
    waker: &Arc<EventFd>,
) {
    let Ok(woken) = std::os::fd::AsFd::as_fd(&**waker).try_clone_to_owned() else {
        tracing::error!("cannot start a circuit thread: too many open files");
        return;
    };
    let woken: OwnedFd = woken;
    let mut state = Carrier {
        table,
        threads,
        publisher,
        sockets: Vec::new(),
        outboxes: Vec::new(),
        totals: Totals::default(),
    };
    let mut batch = Batch::new();
    let mut poll = Poll::new(&woken, state.sockets.iter());
    let mut swept = clock();
    let mut pending = false;
    loop {
        poll.wait(if pending {
            0
        } else {
            i32::from(SWEEP_INTERVAL_MS)
        });
        if poll.is_woken() || pending {
            // Reset before the commands are read, so that none is missed.
            let _ = waker.read();
            pending = false;
            let mut renewed = false;
            while let Ok(command) = commands.try_recv() {
                let now = clock();
                match command {
                    Command::Sockets(sockets, places) => {
                        state.table.renumber_sockets(&places);
                        state.renumber_sockets(sockets, &places);
                        state.publish();
                        poll = Poll::new(&woken, state.sockets.iter());
                        renewed = true;
                    }
                    Command::Lifetime(lifetime) => state.table.set_lifetime(lifetime),
                    Command::Load(load) => state.table.set_load(load),
                    Command::Change(change) => {
                        state.change(change);
                        // Datagrams come before the next change.
                        pending = true;
                        break;
                    }
                    // An observer may have timed out.
                    Command::Bound(answer) => drop(answer.try_send(state.table.bound(now))),
                    Command::Summary(answer) => drop(answer.try_send(state.summary(now))),
                    Command::Page(query, answer) => {
                        drop(answer.try_send(state.page(now, &query)));
                    }
                    Command::Drain => state.drain(now, batch.bytes()),
                    Command::Undrain => state.table.undrain(),
                    Command::Stop => return,
                }
            }
            if renewed {
                continue;
            }
        }
        for place in 0..state.sockets.len() {
            if poll.is_ready(place) {
                state.serve(place, &mut batch);
            }
        }
        let now = clock();
        if now.saturating_sub(swept) >= Duration::from_millis(SWEEP_INTERVAL_MS.into()) {
            swept = now;
            state.table.sweep(now);
        }
        state.publish();
    }
}

impl Carrier {
    fn renumber_sockets(&mut self, new: Vec<Socket>, places: &[Option<u16>]) {
        let mut kept = places.iter();
        self.sockets
            .retain(|_| kept.next().is_none_or(Option::is_some));
        self.sockets.extend(new);
        self.outboxes
            .resize_with(self.sockets.len(), || Outbox::new(OUTBOX_CAPACITY));
    }

    /// Publishes changed circuits to the XDP program.
    fn publish(&mut self) {
        let Some(publisher) = &mut self.publisher else {
            return;
        };
        let sockets = &self.sockets;
        self.table.report_changes(|bound| {
            publisher.publish(bound, |path| {
                let address = sockets[usize::from(path.socket)].address;
                SocketAddr::new(path.local.unwrap_or(address.ip()), address.port())
            });
        });
    }

    fn change(&mut self, change: Change) {
        if let Some(publisher) = &mut self.publisher {
            change.removed.iter().for_each(|id| publisher.remove(*id));
        }
        self.table.change(change);
        self.publish();
    }

    /// Serves up to [`BATCHES_PER_SOCKET`] batches of one socket.
    fn serve(&mut self, place: usize, batch: &mut Batch) {
        for _ in 0..BATCHES_PER_SOCKET {
            let count = match batch.receive(&self.sockets[place]) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // An ICMP error of an earlier datagram; the next call returns datagrams.
                    tracing::trace!(%error, "cannot receive a datagram");
                    return;
                }
            };
            let now = clock();
            for n in 0..count {
                self.message(place, n, batch, now);
            }
            // Before the answers, so that XDP knows the circuit when its end sends the next
            // datagram.
            self.publish();
            self.flush(batch.bytes());
            if count < BATCH {
                return;
            }
        }
    }

    fn message(&mut self, place: usize, n: usize, batch: &mut Batch, now: Duration) {
        let Some(received) = batch.received(n) else {
            self.totals.unreadable += 1;
            return;
        };
        // A socket of one address sends from that address anyway.
        let is_any = self.sockets[place].address.ip().is_unspecified();
        let from = Path {
            socket: place as u16,
            local: received.local.filter(|_| is_any),
            remote: received.from,
        };
        let end = received.offset + received.length;
        let mut offset = received.offset;
        let mixed = received.segment < received.length
            && is_mixed(&batch.bytes()[offset..end], received.segment, self.threads);
        loop {
            let length = (end - offset).min(received.segment.max(1));
            self.totals.received += 1;
            let datagram = &batch.bytes()[offset..offset + length];
            let (to, length) = match self.table.handle(now, datagram, &from) {
                Action::Forward(to) => {
                    // Only datagrams that are forwarded switch GRO off, so that unbound
                    // sources cannot.
                    if mixed && self.sockets[place].separate() {
                        tracing::info!(
                            address = %self.sockets[place].address, source = %from.remote,
                            "one source has circuits of several threads; this thread has GRO \
                             switched off on the address"
                        );
                    }
                    (to, length)
                }
                Action::Answer(answer) => {
                    batch.bytes()[offset..offset + MESSAGE_BYTES].copy_from_slice(&answer);
                    (from, MESSAGE_BYTES)
                }
                Action::Done | Action::Drop(_) => {
                    offset += length;
                    if offset >= end {
                        return;
                    }
                    continue;
                }
            };
            let place = usize::from(to.socket);
            if self.outboxes[place].is_full() {
                self.flush(batch.bytes());
            }
            self.outboxes[place].push(&self.sockets[place], &to, offset, length);
            offset += length;
            if offset >= end {
                return;
            }
        }
    }

    fn flush(&mut self, bytes: &[u8]) {
        for (outbox, socket) in self.outboxes.iter_mut().zip(&mut self.sockets) {
            let Sent {
                sent,
                full,
                refused,
            } = outbox.flush(socket, bytes);
            self.totals.sent += sent;
            self.totals.full += full;
            self.totals.refused += refused;
        }
    }

    fn drain(&mut self, now: Duration, bytes: &mut [u8]) {
        self.table.drain();
        for (n, (to, message)) in self.table.moves(now).enumerate() {
            let offset = n % OUTBOX_CAPACITY * MESSAGE_BYTES;
            let place = usize::from(to.socket);
            if offset == 0 && n > 0 {
                for (outbox, socket) in self.outboxes.iter_mut().zip(&mut self.sockets) {
                    self.totals.sent += outbox.flush(socket, bytes).sent;
                }
            }
            bytes[offset..offset + MESSAGE_BYTES].copy_from_slice(&message);
            self.outboxes[place].push(&self.sockets[place], &to, offset, MESSAGE_BYTES);
        }
        self.flush(bytes);
    }

    fn summary(&self, now: Duration) -> SummaryPart {
        let overflowed = self.sockets.iter().map(|s| u64::from(s.overflowed()));
        let tenants: BTreeMap<_, _> = self.table.tenants(now).into_iter().collect();
        let summary = Summary {
            circuits: tenants.values().map(|counts| counts.circuits).sum(),
            bound: tenants.values().map(|counts| counts.bound).sum(),
            late: 0,
            tenants,
            drops: *self.table.drops(),
            totals: Totals {
                overflowed: overflowed.sum(),
                ..self.totals
            },
        };
        let stats = self.publisher.iter().flat_map(Publisher::stats).collect();
        (summary, stats)
    }

    fn page(&self, now: Duration, query: &Query) -> PagePart {
        let page = (query.after, query.limit);
        let circuits = self.table.page(now, page, query.tenant.as_deref());
        let place = |id| self.publisher.as_ref()?.stats_of(id);
        let pairs = circuits.into_iter().map(|circuit| {
            let place = place(circuit.id);
            (circuit, place)
        });
        pairs.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gro_is_switched_off_once() {
        let mut socket =
            Socket::bind("127.0.0.1:0".parse().expect("an address")).expect("a socket");
        assert!(socket.separate());
        assert!(!socket.separate(), "only the first call reports it");
    }
}
