//! An established connection and the thread that carries its datagrams.
//!
//! ```text
//!   loop:  an order? ─ what came, frame by frame, to its place, which is woken ─ what waits, joined into records, to the socket ─ wait
//!                            └ a question: answered, in front of what waits
//!          of a dialer: is the other end silent, or to be asked? (`gateway_client::pulse`)
//! ```
//!
//! While the socket has no room nothing is taken from the rings: they fill, and who pushes learns of it. What is in hand
//! is bounded: a few records to send, and what one read from the socket gave.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence},
    },
    time::{Duration, Instant},
};

use gateway_client::{
    pulse::{self, Due, Pulse},
    stream::{Encoder, Frame, LENGTH_BYTES, Malformed, Word},
    wire::CircuitId,
};
use nix::poll::PollFlags;

use super::{
    ConnectionId, DATAGRAM_BYTES, Established, Event, FromStream, Landing, Place, Reports, Steer,
    ToStream, Wake,
    link::{Control, Filled, Link, Order},
    ring::{Inlet, Outlet, ring},
};

/// Bytes of frames that go into one TLS record: the most that one can have (RFC 8446 section 5.1).
const RECORD: usize = 16 << 10;
/// Records that are made before they are written.
const RECORDS: usize = 4;
/// Steps of receiving before sending gets its turn, and turns of sending before receiving does.
const STEPS: usize = 64;
const TURNS: usize = 8;

/// Answers that are owed at most: nobody who keeps to the protocol waits for more.
const OWED: usize = pulse::MOST;

const _: () = assert!(LENGTH_BYTES + DATAGRAM_BYTES <= RECORD);

/// Why a connection carries no more.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// Its owner wanted it so.
    #[error("closed by this end")]
    Ordered,
    /// The circuit has a newer connection.
    #[error("the circuit has a newer connection")]
    Replaced,
    /// The circuit is not configured any more, or has another key.
    #[error("the circuit is gone from the configuration, or has another key")]
    Removed,
    /// The other end said goodbye.
    #[error("closed by the other end")]
    ByPeer,
    /// It ended without a goodbye.
    #[error(
        "the connection ended without a goodbye: the other end or a gateway on the way was stopped"
    )]
    Cut,
    /// TCP lost it.
    #[error("the connection was lost: {0}")]
    Lost(#[source] io::Error),
    /// TLS found that something is wrong with it.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// What came is no frame.
    #[error("the other end does not speak the tunnel's protocol: {0}")]
    Malformed(#[from] Malformed),
}

/// What a connection carried, as its threads count it.
#[derive(Debug, Default)]
pub(super) struct Counts {
    datagrams_in: AtomicU64,
    bytes_in: AtomicU64,
    datagrams_out: AtomicU64,
    bytes_out: AtomicU64,
    full_in: AtomicU64,
    too_long_in: AtomicU64,
    nowhere_in: AtomicU64,
    pub full_out: AtomicU64,
}

/// What a connection carried. Bytes are those of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Came, and were put into a ring.
    pub datagrams_in: u64,
    /// Bytes of those.
    pub bytes_in: u64,
    /// Were taken from rings and given to TLS.
    pub datagrams_out: u64,
    /// Bytes of those.
    pub bytes_out: u64,
    /// Came and were dropped: their place had no room.
    pub full_in: u64,
    /// Came and were dropped: longer than [`DATAGRAM_BYTES`].
    pub too_long_in: u64,
    /// Came and were dropped: steered to a place that there is not.
    pub nowhere_in: u64,
    /// Were not taken: the ring had no room, the connection was closed, or they were too long.
    pub full_out: u64,
}

/// An established connection, as its owner has it. Dropping it closes the connection.
#[derive(Debug)]
pub struct Carrier {
    control: Arc<Control>,
    counts: Arc<Counts>,
}

impl Carrier {
    /// Tells the thread to say goodbye and end; [`Closed`](super::Event::Closed) follows.
    pub fn close(&self) {
        self.control.order(Order::Close);
    }

    /// Whether the thread was told to end: another connection has taken its place.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.control.ordered().is_some()
    }

    /// What it carried until now, or in all once it is closed.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let counts = &self.counts;
        Counted {
            datagrams_in: counts.datagrams_in.load(Relaxed),
            bytes_in: counts.bytes_in.load(Relaxed),
            datagrams_out: counts.datagrams_out.load(Relaxed),
            bytes_out: counts.bytes_out.load(Relaxed),
            full_in: counts.full_in.load(Relaxed),
            too_long_in: counts.too_long_in.load(Relaxed),
            nowhere_in: counts.nowhere_in.load(Relaxed),
            full_out: counts.full_out.load(Relaxed),
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.close();
    }
}

/// Who looks after a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It asks, and answers.
    Asks,
    /// It answers.
    Answers,
}

/// Of an end that asks: whether the other one is there.
struct Heart {
    pulse: Pulse,
    begun: Instant,
    /// Where the question that waits longest ends among the bytes that the socket took, once that is known.
    ends: Option<u64>,
    /// What was acknowledged when it was last looked at.
    acknowledged: u64,
}

impl Heart {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn deadline(&self) -> Instant {
        self.begun + self.pulse.next_deadline()
    }
}

/// The thread's half.
struct Body<'r> {
    circuit: CircuitId,
    id: ConnectionId,
    reports: &'r Reports,
    link: Link,
    heart: Option<Heart>,
    /// Answers to questions that came.
    owed: usize,
    control: Arc<Control>,
    counts: Arc<Counts>,
    steer: Steer,
    to_places: Vec<Inlet>,
    from_places: Vec<Outlet>,
    encoder: Encoder,
    /// The place whose datagrams are taken first, so that none waits for the others for ever.
    first: usize,
}

/// Tells the owner of an established connection and carries until it ends; why it did.
pub(super) fn carry(
    (circuit, id, peer): (CircuitId, ConnectionId, SocketAddr),
    link: Link,
    control: &Arc<Control>,
    landing: &Landing,
    reports: &Reports,
    part: Part,
) -> Closed {
    let counts = Arc::new(Counts::default());
    let own = Wake::of_sleeper(Arc::clone(&control.event), Arc::clone(&control.sleeps));
    let mut body = Body {
        circuit,
        id,
        reports,
        link,
        heart: (part == Part::Asks).then(|| Heart {
            pulse: Pulse::new(Duration::ZERO),
            begun: Instant::now(),
            ends: None,
            acknowledged: 0,
        }),
        owed: 0,
        control: Arc::clone(control),
        counts: Arc::clone(&counts),
        steer: Arc::clone(&landing.steer),
        to_places: Vec::with_capacity(landing.places.len()),
        from_places: Vec::with_capacity(landing.places.len()),
        encoder: Encoder::new(RECORD),
        first: 0,
    };
    let mut places = Vec::with_capacity(landing.places.len());
    for wake in &landing.places {
        let (to_place, from) = ring(landing.datagrams, wake.clone());
        let (to, from_place) = ring(landing.datagrams, own.clone());
        body.to_places.push(to_place);
        body.from_places.push(from_place);
        places.push(Place {
            to: ToStream {
                inlet: to,
                counts: Arc::clone(&counts),
            },
            from: FromStream { outlet: from },
        });
    }
    reports.tell(Event::Established(Established {
        circuit,
        id,
        peer,
        carrier: Carrier {
            control: Arc::clone(control),
            counts,
        },
        places,
    }));
    body.run()
}

impl Body<'_> {
    /// Carries until something ends it.
    fn run(mut self) -> Closed {
        loop {
            match self.turn() {
                Ok(()) => {}
                Err(closed) => {
                    // What came before the end is still for the places.
                    wake(&mut self.to_places);
                    self.link.goodbye();
                    return closed;
                }
            }
        }
    }

    fn turn(&mut self) -> Result<(), Closed> {
        match self.control.ordered() {
            None => {}
            Some(Order::Replaced) => return Err(Closed::Replaced),
            Some(Order::Removed) => return Err(Closed::Removed),
            Some(Order::Close | Order::Crowded | Order::GiveUp) => return Err(Closed::Ordered),
        }
        // What came before this moment is received below.
        let now = self.heart.as_ref().map(Heart::now);
        let received = self.receive()?;
        self.listen(now.filter(|_| received == Filled::Dry))?;
        let sent = self.send()?;
        if received == Filled::Dry && sent != Sent::More {
            self.wait(sent);
        }
        Ok(())
    }

    /// What came goes to its places.
    fn receive(&mut self) -> Result<Filled, Closed> {
        for _ in 0..STEPS {
            while let Some(frame) = self.link.decoder.next_frame()? {
                let datagram = match frame {
                    Frame::Datagram(datagram) => datagram,
                    Frame::Word(Word::Question) => {
                        self.owed = OWED.min(self.owed + 1);
                        continue;
                    }
                    Frame::Word(Word::Answer) => {
                        if let Some(heart) = &mut self.heart {
                            let now = heart.now();
                            heart.pulse.answered(now);
                            // Of the next one it is not known yet.
                            if heart.pulse.waiting() > 0 {
                                heart.ends = None;
                            }
                        }
                        continue;
                    }
                };
                let counts = &self.counts;
                let dropped = match self.to_places.get_mut((self.steer)(datagram)) {
                    None => &counts.nowhere_in,
                    Some(_) if datagram.len() > DATAGRAM_BYTES => &counts.too_long_in,
                    Some(place) => {
                        if place.push(datagram) {
                            counts.datagrams_in.fetch_add(1, Relaxed);
                            let bytes = datagram.len() as u64;
                            counts.bytes_in.fetch_add(bytes, Relaxed);
                            continue;
                        }
                        &counts.full_in
                    }
                };
                dropped.fetch_add(1, Relaxed);
            }
            // At once: a ring that fills while its reader sleeps would cost datagrams.
            wake(&mut self.to_places);
            if self.link.fill()? == Filled::Dry {
                return Ok(Filled::Dry);
            }
        }
        Ok(Filled::More)
    }

    /// Whether the other end is there. `now`: everything that came before it is received; then it is asked as well, if that is due.
    fn listen(&mut self, now: Option<Duration>) -> Result<(), Closed> {
        let Some(heart) = &mut self.heart else {
            return Ok(());
        };
        let (circuit, id) = (self.circuit, self.id);
        if std::mem::take(&mut self.link.came) && heart.pulse.received(heart.now()) {
            self.reports.tell(Event::Heard { circuit, id });
        }
        let Some(now) = now.filter(|now| *now >= heart.pulse.next_deadline()) else {
            return Ok(());
        };
        let acknowledged = self.link.acknowledged();
        let is_here = heart.ends.is_none_or(|ends| acknowledged < ends);
        if is_here && acknowledged > heart.acknowledged {
            heart.pulse.held(now);
        }
        heart.acknowledged = acknowledged;
        while let Some(due) = heart.pulse.step(now) {
            match due {
                Due::Silent => self.reports.tell(Event::Silent { circuit, id }),
                Due::Ask => {
                    let mut writer = self.link.tls.writer();
                    writer
                        .write_all(&Word::Question.frame())
                        .map_err(Closed::Lost)?;
                    if heart.pulse.waiting() == 1 {
                        heart.ends = None;
                    }
                }
            }
        }
        if !self.link.flush()? {
            heart.ends.get_or_insert(self.link.written);
        }
        Ok(())
    }

    /// What waits goes to the socket.
    fn send(&mut self) -> Result<Sent, Closed> {
        for _ in 0..TURNS {
            if self.link.flush()? {
                return Ok(Sent::Blocked);
            }
            let mut records = 0;
            for _ in 0..std::mem::take(&mut self.owed) {
                let mut writer = self.link.tls.writer();
                writer
                    .write_all(&Word::Answer.frame())
                    .map_err(Closed::Lost)?;
                records += 1;
            }
            while records < RECORDS && self.join() {
                let mut writer = self.link.tls.writer();
                writer
                    .write_all(self.encoder.bytes())
                    .map_err(Closed::Lost)?;
                self.encoder.clear();
                records += 1;
            }
            if records == 0 {
                return Ok(Sent::All);
            }
        }
        Ok(Sent::More)
    }

    /// Joins what waits into a record; whether there was something.
    fn join(&mut self) -> bool {
        let places = self.from_places.len();
        let (mut datagrams, mut bytes) = (0, 0);
        for turn in 0..places {
            let place = (self.first + turn) % places;
            let encoder = &mut self.encoder;
            datagrams += self.from_places[place].take(usize::MAX, |datagram| {
                let joined = encoder.push(datagram);
                if joined {
                    bytes += datagram.len() as u64;
                }
                joined
            });
            if !self.from_places[place].is_empty() {
                // It is full; the next record begins with the next place.
                self.first = (place + 1) % places;
                break;
            }
        }
        self.counts
            .datagrams_out
            .fetch_add(datagrams as u64, Relaxed);
        self.counts.bytes_out.fetch_add(bytes, Relaxed);
        datagrams > 0
    }

    /// Sleeps until something comes, or the socket has room.
    fn wait(&self, sent: Sent) {
        let deadline = self.heart.as_ref().map(Heart::deadline);
        if sent == Sent::Blocked {
            // Datagrams can wait in their rings, and need not wake it.
            let events = PollFlags::POLLIN | PollFlags::POLLOUT;
            self.control.wait(&self.link.socket, events, deadline);
            return;
        }
        self.control.sleeps.store(true, Relaxed);
        fence(SeqCst);
        // What was put in before is not told by a wake.
        if self.from_places.iter().all(Outlet::is_empty) {
            self.control
                .wait(&self.link.socket, PollFlags::POLLIN, deadline);
        }
        self.control.sleeps.store(false, Relaxed);
    }
}

fn wake(places: &mut [Inlet]) {
    for place in places {
        place.wake();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// All that there was.
    All,
    /// There may be more at once.
    More,
    /// The socket has no room.
    Blocked,
}
