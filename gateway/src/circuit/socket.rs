//! The way through userspace: threads that do nothing else, each with the circuits of its share.
//!
//! ```text
//!   UDP 6180 ─▶ by circuit id, in the kernel ─┬▶ thread: recvmmsg, GRO ─▶ table ─▶ sendmmsg, GSO
//!                                             └▶ thread: ...             no lock, no allocation, no copy
//!   daemon ──▶ a word to each thread: a plan, a question, drain
//! ```
//!
//! A thread has a socket for each address, and a table of its own with its share of the circuits. What the kernel joins goes to one
//! thread, so an end has a source port for each circuit. What comes goes out of the buffer that it came into; an answer is
//! written over what it answers.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use gateway_client::wire::{CircuitId, ID_BYTES, KEY_BYTES, Key, MESSAGE_BYTES};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    clock,
    fast::{Fast, Publisher},
    sys::{BATCH, Batch, Outbox, Poll, Sent, Socket},
    table::{Action, CircuitState, Drops, Path, Plan, Reason, Table, Traffic},
};

/// How often ends are swept: milliseconds.
const TICK: u16 = 250;
/// Batches of one socket before the others have their turn.
const TURN: usize = 4;
/// Datagrams that are collected before they are sent.
const COLLECTED: usize = BATCH * 64;
/// How long a thread may take to answer the daemon.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why circuits do not run, or a new plan is not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be had.
    #[error(
        "cannot listen on {address} (UDP): {source}; is another gateway running, and is the address this machine's?"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("{operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What a thread counted of datagrams whatever they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// That came.
    pub received: u64,
    /// That were sent, answers too.
    pub sent: u64,
    /// Not sent, as there was no room in the kernel.
    pub full: u64,
    /// Not sent, as the kernel refused them.
    pub refused: u64,
    /// Messages of the kernel that could not be read.
    pub unreadable: u64,
    /// That came when the sockets of now had no room for them.
    pub overflowed: u64,
}

/// How circuits are.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// In the order of the plan.
    pub circuits: Vec<CircuitState>,
    /// Datagrams that were no circuit's.
    pub drops: Drops,
    /// All datagrams.
    pub totals: Totals,
    /// Sides that are bound.
    pub bound: usize,
    /// Circuits that the program has counters of, and where.
    stats: Vec<(CircuitId, u32)>,
}

/// A word to a thread.
enum Word {
    Plan(Arc<Plan>, Vec<Socket>, Vec<Option<u16>>),
    State(SyncSender<State>),
    Drain,
    Stop,
}

struct Worker {
    words: Sender<Word>,
    waker: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn say(&self, word: Word) {
        // A thread ends when it is told to, and is not spoken to then.
        let _ = self.words.send(word);
        let _ = self.waker.write(1);
    }
}

/// Circuits that run. Dropped, they stop.
pub struct Circuits {
    workers: Vec<Worker>,
    plan: Arc<Plan>,
    /// What is listened on: as wanted, and with the port that the kernel chose.
    listening: Vec<(SocketAddr, SocketAddr)>,
    /// The way through the driver.
    fast: Option<Arc<Fast>>,
}

/// A new plan with all that it needs; in force once it is taken.
pub struct Prepared {
    plan: Arc<Plan>,
    listening: Vec<(SocketAddr, SocketAddr)>,
    /// For each worker, its new sockets.
    sockets: Vec<Vec<Socket>>,
    /// For each old socket its new place.
    places: Vec<Option<u16>>,
}

impl Circuits {
    /// Starts so many threads, without a way through the driver.
    ///
    /// # Errors
    /// As [`Circuits::start_with`].
    pub fn start(plan: Plan, listen: &[SocketAddr], threads: usize) -> Result<Self, Error> {
        Self::start_with(plan, listen, threads, None)
    }

    /// Starts so many threads, which tell the program of `fast` what it may carry.
    ///
    /// # Errors
    /// When an address cannot be had, or a thread.
    pub fn start_with(
        plan: Plan,
        listen: &[SocketAddr],
        threads: usize,
        fast: Option<Arc<Fast>>,
    ) -> Result<Self, Error> {
        let system = |operation| move |source| Error::System { operation, source };
        let mut circuits = Self {
            workers: Vec::new(),
            plan: Arc::new(Plan {
                lifetime: plan.lifetime,
                tenants: Vec::new(),
                circuits: Vec::new(),
            }),
            listening: Vec::new(),
            fast,
        };
        for n in 0..threads.max(1) {
            let mut secret = [0; KEY_BYTES];
            getrandom::fill(&mut secret)
                .map_err(io::Error::from)
                .map_err(system("draw a secret for circuits"))?;
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let waker = EventFd::from_value_and_flags(0, flags)
                .map_err(io::Error::from)
                .map_err(system("make an eventfd for circuits"))?;
            let waker = Arc::new(waker);
            let (words, heard) = channel();
            let table = Table::new(Key::new(secret));
            let share = Share {
                thread: n as u32,
                threads: threads.max(1) as u32,
            };
            let woken = Arc::clone(&waker);
            let publisher = circuits.fast.as_ref().map(Arc::clone).map(Publisher::new);
            let thread = std::thread::Builder::new()
                .name(format!("circuits-{n}"))
                .spawn(move || work(table, publisher, share, &heard, &woken))
                .map_err(system("start a thread for circuits"))?;
            circuits.workers.push(Worker {
                words,
                waker,
                thread: Some(thread),
            });
        }
        let prepared = circuits.prepare(plan, listen)?;
        circuits.take(prepared);
        Ok(circuits)
    }

    /// Has all that a new plan needs, and changes nothing yet.
    ///
    /// # Errors
    /// When a new address cannot be had.
    pub fn prepare(&self, mut plan: Plan, listen: &[SocketAddr]) -> Result<Prepared, Error> {
        // A reload is no way to send more.
        for tenant in &mut plan.tenants {
            let old = self.plan.tenants.iter().find(|old| old.name == tenant.name);
            let Some(old) = old else { continue };
            for (new, old) in [
                (&mut tenant.datagrams, &old.datagrams),
                (&mut tenant.bytes, &old.bytes),
            ] {
                if new.as_ref().map(|b| b.rate()) == old.as_ref().map(|b| b.rate()) {
                    new.clone_from(old);
                }
            }
        }
        if let Some(fast) = &self.fast {
            for tenant in &mut plan.tenants {
                let buckets = [&mut tenant.datagrams, &mut tenant.bytes];
                for bucket in buckets
                    .into_iter()
                    .flatten()
                    .filter(|b| b.place().is_none())
                {
                    match fast.bucket(bucket.rate(), bucket.depth()) {
                        Some(shared) => *bucket = Arc::new(shared),
                        None => tracing::warn!(
                            tenant = %tenant.name,
                            "circuits go through user space: XDP has no room for the limits of so many tenants; restart the gateway"
                        ),
                    }
                }
            }
            if plan.circuits.len() > fast.room() {
                tracing::warn!(
                    circuits = plan.circuits.len(),
                    room = fast.room(),
                    "some circuits go through user space: XDP has no room for them; restart the gateway"
                );
            }
        }
        let mut prepared = Prepared {
            plan: Arc::new(plan),
            listening: Vec::new(),
            sockets: self.workers.iter().map(|_| Vec::new()).collect(),
            places: Vec::new(),
        };
        for known in &self.listening {
            let is_kept = listen.contains(&known.0);
            let place = prepared.listening.len() as u16;
            prepared.places.push(is_kept.then_some(place));
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
            let shared = self.workers.len() > 1;
            let mut address = wanted;
            for (n, sockets) in prepared.sockets.iter_mut().enumerate() {
                let socket = Socket::bind(address, shared).map_err(failed)?;
                // The others have the port that the kernel chose for the first.
                address = socket.address;
                if shared && n == 0 {
                    let members = self.workers.len() as u32;
                    socket.steer(members).map_err(failed)?;
                }
                sockets.push(socket);
            }
            prepared.listening.push((wanted, address));
        }
        Ok(prepared)
    }

    /// Takes a new plan. No circuit that is in both is dropped.
    pub fn take(&mut self, prepared: Prepared) {
        for (worker, sockets) in self.workers.iter().zip(prepared.sockets) {
            let plan = Arc::clone(&prepared.plan);
            worker.say(Word::Plan(plan, sockets, prepared.places.clone()));
        }
        self.plan = prepared.plan;
        self.listening = prepared.listening;
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listening.iter().map(|(_, address)| *address).collect()
    }

    /// Tells each bound end to take another gateway; binds no more.
    pub fn drain(&self) {
        self.workers
            .iter()
            .for_each(|worker| worker.say(Word::Drain));
    }

    /// Who to ask how circuits are.
    #[must_use]
    pub fn observer(&self) -> Observer {
        let workers = self.workers.iter();
        Observer {
            workers: workers
                .map(|w| (w.words.clone(), Arc::clone(&w.waker)))
                .collect(),
            fast: self.fast.clone(),
        }
    }

    /// How circuits are now.
    #[must_use]
    pub fn state(&self) -> State {
        self.observer().state()
    }
}

impl Drop for Circuits {
    fn drop(&mut self) {
        if let Some(fast) = &self.fast {
            fast.detach();
        }
        self.workers
            .iter()
            .for_each(|worker| worker.say(Word::Stop));
        for worker in &mut self.workers {
            if let Some(Err(_)) = worker.thread.take().map(JoinHandle::join) {
                tracing::error!("a thread for circuits ended by a panic");
            }
        }
    }
}

/// Asks threads how circuits are.
#[derive(Clone, Debug)]
pub struct Observer {
    workers: Vec<(Sender<Word>, Arc<EventFd>)>,
    fast: Option<Arc<Fast>>,
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Word(..)")
    }
}

impl Observer {
    /// How circuits are now. A thread that has ended is left out.
    #[must_use]
    pub fn state(&self) -> State {
        let asked = self.workers.iter().map(|(words, waker)| {
            let (answer, answered) = sync_channel(1);
            let _ = words.send(Word::State(answer));
            let _ = waker.write(1);
            answered
        });
        let asked: Vec<Receiver<State>> = asked.collect();
        let mut all = State::default();
        for answered in asked {
            let Ok(state) = answered.recv_timeout(PATIENCE) else {
                continue;
            };
            all.circuits.extend(state.circuits);
            for (sum, count) in all.drops.iter_mut().zip(state.drops) {
                *sum += count;
            }
            all.totals.received += state.totals.received;
            all.totals.sent += state.totals.sent;
            all.totals.full += state.totals.full;
            all.totals.refused += state.totals.refused;
            all.totals.unreadable += state.totals.unreadable;
            all.totals.overflowed += state.totals.overflowed;
            all.bound += state.bound;
            all.stats.extend(state.stats);
        }
        all.circuits.sort_by_key(|circuit| circuit.id);
        if let Some(fast) = &self.fast {
            all.add(fast);
        }
        all
    }

    /// The way through the driver.
    #[must_use]
    pub const fn fast(&self) -> Option<&Arc<Fast>> {
        self.fast.as_ref()
    }
}

impl State {
    /// Adds what the program counted, here and not in the threads: they have better to do.
    fn add(&mut self, fast: &Fast) {
        for (id, place) in std::mem::take(&mut self.stats) {
            let Ok(at) = self
                .circuits
                .binary_search_by_key(&id, |circuit| circuit.id)
            else {
                continue;
            };
            let stats = match fast.stats(place) {
                Ok(stats) => stats,
                Err(error) => {
                    tracing::warn!(%error, "what went through XDP is not counted");
                    return;
                }
            };
            let circuit = &mut self.circuits[at];
            for side in 0..2 {
                circuit.fast[side] = Traffic {
                    datagrams: stats.datagrams[side],
                    bytes: stats.bytes[side],
                };
                circuit.counts.from[side].datagrams += stats.datagrams[side];
                circuit.counts.from[side].bytes += stats.bytes[side];
            }
            circuit.counts.drops[Reason::Rate as usize] += stats.rate;
            let carried = stats.datagrams[0] + stats.datagrams[1];
            self.totals.sent += carried;
            self.totals.received += carried + stats.rate;
        }
    }
}

/// Which circuits are a thread's.
#[derive(Clone, Copy, Debug)]
struct Share {
    thread: u32,
    threads: u32,
}

impl Share {
    /// As the kernel steers them.
    const fn has(self, id: CircuitId) -> bool {
        id.get() as u32 % self.threads == self.thread
    }
}

/// What a thread carries datagrams with.
struct Carrier {
    table: Table,
    publisher: Option<Publisher>,
    sockets: Vec<Socket>,
    outboxes: Vec<Outbox>,
    totals: Totals,
}

fn work(
    table: Table,
    publisher: Option<Publisher>,
    share: Share,
    words: &Receiver<Word>,
    waker: &Arc<EventFd>,
) {
    let Ok(woken) = std::os::fd::AsFd::as_fd(&**waker).try_clone_to_owned() else {
        tracing::error!("a thread for circuits has no file left");
        return;
    };
    let woken: OwnedFd = woken;
    let mut state = Carrier {
        table,
        publisher,
        sockets: Vec::new(),
        outboxes: Vec::new(),
        totals: Totals::default(),
    };
    let mut batch = Batch::new();
    let mut poll = Poll::new(&woken, state.sockets.iter());
    let mut swept = clock();
    loop {
        poll.wait(i32::from(TICK));
        if poll.is_woken() {
            // What is heard below was said before or after this; nothing is left unheard.
            let _ = waker.read();
            while let Ok(word) = words.try_recv() {
                let now = clock();
                match word {
                    Word::Plan(plan, sockets, places) => {
                        state.table.rearrange(&places);
                        state.table.replan(&plan, |id| share.has(id));
                        state.rearrange(sockets, &places);
                        state.publish_plan();
                        poll = Poll::new(&woken, state.sockets.iter());
                    }
                    Word::State(answer) => {
                        // Who asked may have lost patience.
                        let _ = answer.try_send(state.observed(now));
                    }
                    Word::Drain => state.drain(now, batch.bytes()),
                    Word::Stop => return,
                }
            }
            // The sockets may be others.
            continue;
        }
        for place in 0..state.sockets.len() {
            if poll.is_ready(place) {
                state.turn(place, &mut batch);
            }
        }
        let now = clock();
        if now.saturating_sub(swept) >= Duration::from_millis(TICK.into()) {
            swept = now;
            state.table.sweep(now);
        }
        state.publish();
    }
}

impl Carrier {
    fn rearrange(&mut self, new: Vec<Socket>, places: &[Option<u16>]) {
        let mut kept = places.iter();
        self.sockets
            .retain(|_| kept.next().is_none_or(Option::is_some));
        self.sockets.extend(new);
        self.outboxes
            .resize_with(self.sockets.len(), || Outbox::new(COLLECTED));
    }

    /// Tells the program what has changed.
    fn publish(&mut self) {
        let Some(publisher) = &mut self.publisher else {
            return;
        };
        let sockets = &self.sockets;
        self.table.tell_changes(|bound| {
            publisher.say(bound, |path| {
                let address = sockets[usize::from(path.socket)].address;
                SocketAddr::new(path.local.unwrap_or(address.ip()), address.port())
            });
        });
    }

    /// As [`Carrier::publish`]; and of circuits that are no more.
    fn publish_plan(&mut self) {
        if let Some(publisher) = &mut self.publisher {
            publisher.keep(|id| self.table.has(id));
        }
        self.publish();
    }

    /// Some batches of one socket.
    fn turn(&mut self, place: usize, batch: &mut Batch) {
        for _ in 0..TURN {
            let count = match batch.receive(&self.sockets[place]) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // An error that others' ICMP messages left; the next call has datagrams.
                    tracing::trace!(%error, "receive");
                    return;
                }
            };
            let now = clock();
            for n in 0..count {
                self.message(place, n, batch, now);
            }
            // Before the answers: what an end that is told so sends next may go through the driver.
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
        // Where the socket is of one address, that is what datagrams are from.
        let is_any = self.sockets[place].address.ip().is_unspecified();
        let from = Path {
            socket: place as u16,
            local: received.local.filter(|_| is_any),
            remote: received.from,
        };
        let end = received.offset + received.length;
        let mut offset = received.offset;
        if received.segment < received.length
            && is_mixed(&batch.bytes()[offset..end], received.segment)
            && self.sockets[place].separate()
        {
            tracing::info!(address = %self.sockets[place].address, source = %received.from, "a source has several circuits: what comes here is not joined any more");
        }
        loop {
            let length = (end - offset).min(received.segment.max(1));
            self.totals.received += 1;
            let datagram = &batch.bytes()[offset..offset + length];
            let (to, length) = match self.table.handle(now, datagram, &from) {
                Action::Forward(to) => (to, length),
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
            let offset = n % COLLECTED * MESSAGE_BYTES;
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

    fn observed(&self, now: Duration) -> State {
        let overflowed = self.sockets.iter().map(|s| u64::from(s.overflowed()));
        State {
            circuits: self.table.state(now).collect(),
            drops: *self.table.drops(),
            totals: Totals {
                overflowed: overflowed.sum(),
                ..self.totals
            },
            bound: self.table.bound(now),
            stats: self.publisher.iter().flat_map(Publisher::stats).collect(),
        }
    }
}

/// Whether datagrams that the kernel joined, all but the last of this length, are of several circuits.
fn is_mixed(joined: &[u8], segment: usize) -> bool {
    let first = joined.get(..ID_BYTES);
    joined
        .chunks(segment.max(1))
        .any(|datagram| datagram.get(..ID_BYTES) != first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_datagrams_are_mixed_if_one_is_of_another_circuit() {
        let datagram = |circuit: u8, length: usize| [&[circuit; 8][..], &vec![9; length]].concat();
        let joined = |circuits: &[u8]| -> Vec<u8> {
            circuits
                .iter()
                .flat_map(|circuit| datagram(*circuit, 20))
                .collect()
        };
        assert!(!is_mixed(&joined(&[1]), 28));
        assert!(!is_mixed(&joined(&[1, 1, 1]), 28));
        assert!(is_mixed(&joined(&[1, 1, 2]), 28));
        let last = |circuit| [joined(&[1, 1]), datagram(circuit, 3)].concat();
        assert!(!is_mixed(&last(1), 28), "the last one may be shorter");
        assert!(is_mixed(&last(2), 28));
        assert!(
            is_mixed(&[joined(&[1]), vec![1; 5]].concat(), 28),
            "and no datagram at all"
        );
        let mut socket =
            Socket::bind("127.0.0.1:0".parse().expect("an address"), false).expect("a socket");
        assert!(socket.separate());
        assert!(!socket.separate(), "said once");
    }
}
