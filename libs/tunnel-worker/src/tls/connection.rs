//! The thread of an established connection.
//!
//! ```text
//!   loop:  stop? ─▶ received frames ─▶ rings, whose consumers are woken ─▶ datagrams of rings, joined into records,
//!          ▲                  └ a probe: answered, ahead of datagrams         ─▶ socket
//!          └──────────────────────────────── wait ◀──────────────────────────────┘
//!          of the end that dialed: is the other end silent, or to be probed? (`gateway_client::liveness`)
//! ```
//!
//! While the socket has no room nothing is taken from the rings: they fill, and the consumers'
//! pushes fail. Memory is bounded: a few records to send, and one read from the socket.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{Ordering::Relaxed, Ordering::SeqCst, fence},
    },
    time::{Duration, Instant},
};

use gateway_client::{
    liveness::{self, Due, LivenessProbe},
    stream::{Encoder, Frame, LENGTH_BYTES, LivenessFrame},
    wire::CircuitId,
};
use nix::poll::PollFlags;

use super::{
    close_reason::CloseReason,
    event::{ConnectionEvent, ConnectionId, Established, EventSender},
    handle::ConnectionHandle,
    link::{ReadProgress, TlsLink},
    ring::{
        DATAGRAM_BYTES, Inlet, Outlet, RingPair, RingReceiver, RingSender, RingSetup, Steer,
        ThreadWaker, ring,
    },
    stats::SharedStats,
    thread_control::{StopReason, ThreadControl},
};

/// Bytes of frames in one TLS record: the most that a record can have (RFC 8446 section 5.1).
const RECORD: usize = 16 << 10;
/// Records made before they are written.
const RECORDS: usize = 4;
/// Steps of receiving before sending gets its turn.
const RECEIVE_STEPS: usize = 64;
/// Rounds of sending before receiving gets its turn.
const SEND_ROUNDS: usize = 8;

/// Most pending answers: an end that follows the protocol waits for no more.
const MAX_PENDING_ANSWERS: usize = liveness::MAX_UNANSWERED;

const _: () = assert!(LENGTH_BYTES + DATAGRAM_BYTES <= RECORD);

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It probes the other end, and answers probes.
    Prober,
    /// It answers probes.
    Responder,
}

/// Liveness of the other end, as the prober sees it.
struct Liveness {
    pulse: LivenessProbe,
    begun: Instant,
    /// End of the oldest unanswered probe in the stream of bytes that the socket took, once it is
    /// known.
    probe_end: Option<u64>,
    /// Bytes acknowledged at the last look.
    acknowledged: u64,
}

impl Liveness {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn deadline(&self) -> Instant {
        self.begun + self.pulse.next_deadline()
    }
}

/// State of the thread.
struct ConnectionThread<'r> {
    circuit: CircuitId,
    id: ConnectionId,
    events: &'r EventSender,
    link: TlsLink,
    /// Of the prober.
    liveness: Option<Liveness>,
    /// Probes received that are to be answered.
    pending_answers: usize,
    control: Arc<ThreadControl>,
    stats: Arc<SharedStats>,
    steer: Steer,
    inlets: Vec<Inlet>,
    outlets: Vec<Outlet>,
    encoder: Encoder,
    /// The outlet from which datagrams are taken first, so that none starves.
    first: usize,
}

/// Reports an established connection to its owner, and carries datagrams until the connection ends;
/// returns the reason.
pub(super) fn carry(
    (circuit, id, peer): (CircuitId, ConnectionId, SocketAddr),
    link: TlsLink,
    control: &Arc<ThreadControl>,
    setup: &RingSetup,
    events: &EventSender,
    role: Role,
) -> CloseReason {
    let stats = Arc::new(SharedStats::default());
    let own = ThreadWaker::of_sleeper(Arc::clone(&control.event), Arc::clone(&control.is_sleeping));
    let mut thread = ConnectionThread {
        circuit,
        id,
        events,
        link,
        liveness: (role == Role::Prober).then(|| Liveness {
            pulse: LivenessProbe::new(Duration::ZERO),
            begun: Instant::now(),
            probe_end: None,
            acknowledged: 0,
        }),
        pending_answers: 0,
        control: Arc::clone(control),
        stats: Arc::clone(&stats),
        steer: Arc::clone(&setup.steer),
        inlets: Vec::with_capacity(setup.consumers.len()),
        outlets: Vec::with_capacity(setup.consumers.len()),
        encoder: Encoder::new(RECORD),
        first: 0,
    };
    let mut rings = Vec::with_capacity(setup.consumers.len());
    for waker in &setup.consumers {
        let (inlet, from_thread) = ring(setup.capacity, waker.clone());
        let (to_thread, outlet) = ring(setup.capacity, own.clone());
        thread.inlets.push(inlet);
        thread.outlets.push(outlet);
        rings.push(RingPair {
            sender: RingSender {
                inlet: to_thread,
                stats: Arc::clone(&stats),
            },
            receiver: RingReceiver {
                outlet: from_thread,
            },
        });
    }
    events.send(ConnectionEvent::Established(Established {
        circuit,
        id,
        peer,
        handle: ConnectionHandle {
            control: Arc::clone(control),
            stats,
        },
        rings,
    }));
    thread.run()
}

impl ConnectionThread<'_> {
    /// Carries datagrams until something ends the connection.
    fn run(mut self) -> CloseReason {
        loop {
            match self.run_once() {
                Ok(()) => {}
                Err(reason) => {
                    // The consumers get what was received before the end.
                    wake(&mut self.inlets);
                    self.link.send_close_notify();
                    return reason;
                }
            }
        }
    }

    fn run_once(&mut self) -> Result<(), CloseReason> {
        match self.control.stop_reason() {
            None => {}
            Some(StopReason::Replaced) => return Err(CloseReason::Replaced),
            Some(StopReason::Removed) => return Err(CloseReason::Removed),
            Some(
                StopReason::Close
                | StopReason::Crowded
                | StopReason::GreedySource
                | StopReason::GiveUp,
            ) => {
                return Err(CloseReason::Requested);
            }
        }
        // Whatever arrived before this moment is received below.
        let now = self.liveness.as_ref().map(Liveness::now);
        let received = self.receive()?;
        self.check_liveness(now.filter(|_| received == ReadProgress::Blocked))?;
        let sent = self.send()?;
        if received == ReadProgress::Blocked && sent != Sent::More {
            self.wait(sent);
        }
        Ok(())
    }

    /// Puts received datagrams into their rings.
    fn receive(&mut self) -> Result<ReadProgress, CloseReason> {
        for _ in 0..RECEIVE_STEPS {
            while let Some(frame) = self.link.decoder.next_frame()? {
                let datagram = match frame {
                    Frame::Datagram(datagram) => datagram,
                    Frame::Control(LivenessFrame::Question) => {
                        self.pending_answers = MAX_PENDING_ANSWERS.min(self.pending_answers + 1);
                        continue;
                    }
                    Frame::Control(LivenessFrame::Answer) => {
                        if let Some(liveness) = &mut self.liveness {
                            let now = liveness.now();
                            liveness.pulse.answered(now);
                            // The end of the next probe is not known yet.
                            if liveness.pulse.waiting() > 0 {
                                liveness.probe_end = None;
                            }
                        }
                        continue;
                    }
                };
                let stats = &self.stats;
                let dropped = match self.inlets.get_mut((self.steer)(datagram)) {
                    None => &stats.no_ring_in,
                    Some(_) if datagram.len() > DATAGRAM_BYTES => &stats.too_long_in,
                    Some(inlet) => {
                        if inlet.push(datagram) {
                            stats.datagrams_in.fetch_add(1, Relaxed);
                            let bytes = datagram.len() as u64;
                            stats.bytes_in.fetch_add(bytes, Relaxed);
                            continue;
                        }
                        &stats.full_in
                    }
                };
                dropped.fetch_add(1, Relaxed);
            }
            // At once: a ring that fills while its consumer sleeps would cost datagrams.
            wake(&mut self.inlets);
            if self.link.fill()? == ReadProgress::Blocked {
                return Ok(ReadProgress::Blocked);
            }
        }
        Ok(ReadProgress::More)
    }

    /// Reports changes of liveness, and probes the other end if that is due. `now`: all that
    /// arrived before it has been received; `None`: some has not, and no probe is judged.
    fn check_liveness(&mut self, now: Option<Duration>) -> Result<(), CloseReason> {
        let Some(liveness) = &mut self.liveness else {
            return Ok(());
        };
        let (circuit, id) = (self.circuit, self.id);
        if std::mem::take(&mut self.link.received) && liveness.pulse.received(liveness.now()) {
            self.events.send(ConnectionEvent::Resumed { circuit, id });
        }
        let Some(now) = now.filter(|now| *now >= liveness.pulse.next_deadline()) else {
            return Ok(());
        };
        let acknowledged = self.link.acknowledged();
        let probe_is_queued = liveness.probe_end.is_none_or(|end| acknowledged < end);
        if probe_is_queued && acknowledged > liveness.acknowledged {
            liveness.pulse.send_progress(now);
        }
        liveness.acknowledged = acknowledged;
        while let Some(due) = liveness.pulse.step(now) {
            match due {
                Due::Silent => self.events.send(ConnectionEvent::Stalled { circuit, id }),
                Due::Ask => {
                    let mut writer = self.link.tls.writer();
                    writer
                        .write_all(&LivenessFrame::Question.frame())
                        .map_err(CloseReason::Lost)?;
                    if liveness.pulse.waiting() == 1 {
                        liveness.probe_end = None;
                    }
                }
            }
        }
        if !self.link.flush()? {
            liveness.probe_end.get_or_insert(self.link.written);
        }
        Ok(())
    }

    /// Sends answers and datagrams of the rings.
    fn send(&mut self) -> Result<Sent, CloseReason> {
        for _ in 0..SEND_ROUNDS {
            if self.link.flush()? {
                return Ok(Sent::Blocked);
            }
            let mut records = 0;
            for _ in 0..std::mem::take(&mut self.pending_answers) {
                let mut writer = self.link.tls.writer();
                writer
                    .write_all(&LivenessFrame::Answer.frame())
                    .map_err(CloseReason::Lost)?;
                records += 1;
            }
            while records < RECORDS && self.fill_record() {
                let mut writer = self.link.tls.writer();
                writer
                    .write_all(self.encoder.bytes())
                    .map_err(CloseReason::Lost)?;
                self.encoder.clear();
                records += 1;
            }
            if records == 0 {
                return Ok(Sent::All);
            }
        }
        Ok(Sent::More)
    }

    /// Joins datagrams into a record. Returns whether there were any.
    fn fill_record(&mut self) -> bool {
        let outlets = self.outlets.len();
        let (mut datagrams, mut bytes) = (0, 0);
        for turn in 0..outlets {
            let index = (self.first + turn) % outlets;
            let encoder = &mut self.encoder;
            datagrams += self.outlets[index].take(usize::MAX, |datagram| {
                let fits = encoder.push(datagram);
                if fits {
                    bytes += datagram.len() as u64;
                }
                fits
            });
            if !self.outlets[index].is_empty() {
                // The record is full; the next one begins with the next outlet.
                self.first = (index + 1) % outlets;
                break;
            }
        }
        self.stats
            .datagrams_out
            .fetch_add(datagrams as u64, Relaxed);
        self.stats.bytes_out.fetch_add(bytes, Relaxed);
        datagrams > 0
    }

    /// Sleeps until something arrives, or the socket has room.
    fn wait(&self, sent: Sent) {
        let deadline = self.liveness.as_ref().map(Liveness::deadline);
        if sent == Sent::Blocked {
            // Datagrams wait in their rings and need not wake this thread.
            let events = PollFlags::POLLIN | PollFlags::POLLOUT;
            self.control.wait(&self.link.socket, events, deadline);
            return;
        }
        self.control.is_sleeping.store(true, Relaxed);
        fence(SeqCst);
        // No wake announces datagrams that were put in before the flag was set.
        if self.outlets.iter().all(Outlet::is_empty) {
            self.control
                .wait(&self.link.socket, PollFlags::POLLIN, deadline);
        }
        self.control.is_sleeping.store(false, Relaxed);
    }
}

/// Wakes the consumers of rings with new datagrams.
fn wake(inlets: &mut [Inlet]) {
    for inlet in inlets {
        inlet.wake();
    }
}

/// Result of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// All datagrams were sent.
    All,
    /// There may be more at once.
    More,
    /// The socket has no room.
    Blocked,
}
