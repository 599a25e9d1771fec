//! The tunnel in one TLS connection, for sites where UDP is blocked: datagrams as frames, between a tenant's appliance and its
//! provider's, through a gateway that relays the connection by its server name.
//!
//! For: carrying what UDP would have carried, datagram for datagram, with UDP's manners: what finds no room is dropped and counted,
//! nothing waits without bound. Never: tokio, a decision when to use it (the owner's: `Dialer` makes one attempt and tells what came of
//! it), what is in a datagram. The tunnel inside authenticates and encrypts by itself; TLS is there to pass, and the pinned
//! certificate, the hello and its answer so that nobody else takes the connection's place. Wire format: `docs/gateway.md`.
//!
//! ```text
//!  owner (the daemon)          Dialer, Listener: a thread each         Carrier: a thread for each connection
//!    │ start(.., landing, reports) ──▶ connect | accept, TLS, hello ────────▶ the same thread goes on
//!    │ ◀── reports: Established{circuit, id, peer, carrier, places} ◀──────────── │
//!    │ ◀── reports: Failed{circuit, why} (Dialer only)                            │
//!    │ ◀── reports: Silent, Heard{circuit, id} (Dialer's only) ◀───────────────── │ by questions that the other end answers
//!    │ ◀── reports: Closed{circuit, id, why} ◀──────────────────────── its last word
//!    │       each followed by reports.wake (eventfd)                              │
//!    │                                                                            │
//!    │ places[n].to ──────▶ worker n: push(datagram), then wake() ───ring──▶ frames ─▶ TLS record ─▶ TCP
//!    │ places[n].from ────▶ worker n: take(most, |datagram| ..) ◀───ring──── steer(datagram) == n ◀─ TCP
//!    │                         ▲ landing.places[n]: its eventfd, and whether it sleeps
//!    │
//!    └ drop(carrier), or carrier.close(): a goodbye is tried, the thread ends, Closed comes
//! ```
//!
//! To hook it up:
//!
//! 1. **Landing.** One [`Wake`] for each place that datagrams come to: say place 0 for the daemon (handshakes; `Wake::new` of its eventfd,
//!    without a flag) and place 1 + *n* for worker *n* (`Wake::of_sleeper` of the eventfd that `Worker` has and the `sleeps` flag that
//!    `mesh` in `secure/worker.rs` makes: the worker stores true before it sleeps, fences (SeqCst), looks at the rings once more, sleeps).
//!    [`by_lane`] is the `steer` for just that order of places. A place that does not exist: the datagram is dropped, counted `nowhere`.
//! 2. **Start** a [`Dialer`] (tenant) or a [`Listener`] (provider) with it and with [`Reports`]: the sending half of an mpsc channel and
//!    an eventfd that is written after each report. Poll that eventfd, then `try_recv` until empty.
//! 3. On **Established** hand `places[1 + n]` to worker *n* as an order; keep `carrier`. [`ToStream`] and [`FromStream`] are `Send`,
//!    single-threaded, and allocate nothing. The worker's loop: `from.take(BATCH, ..)` beside its sockets (the slice is mutable: open it in
//!    place), `to.push(..)` instead of the uplink's TX ring, `to.wake()` once at the end of a turn, `from.is_empty()` in the look before it
//!    sleeps. A datagram has at most [`DATAGRAM_BYTES`]: set the peer's longest datagram to no more while it is in use. The rings
//!    are not the path's MTU: there is none to look for.
//! 4. On **Closed** take the halves from the workers again, if `id` is the one they have: when a circuit's connection is replaced,
//!    the new one's Established may come before the old one's Closed. Halves of a closed connection do no harm: `push` says false and
//!    counts, `take` finds nothing.
//! 5. **Stop**: drop the `Carrier`s, the `Dialer`, the `Listener`. A dialer that is cancelled in the moment it succeeds may still report
//!    Established: drop what comes with it.
//!
//! A connection whose other end does not answer any more is reported ([`Event::Silent`]) within 0.3 s or so by the end that dialled, and
//! again when it is heard ([`Event::Heard`]); TCP itself ends it within half a minute. Nothing here closes for that, or retries.

mod carrier;
mod client;
mod config;
mod identity;
mod link;
mod proxy;
mod ring;
mod server;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
};

use gateway_client::wire::CircuitId;
use nix::sys::eventfd::EventFd;

pub use carrier::{Carrier, Closed, Counted};
pub use client::{Attempt, DialError, Dialer, Dialing, StartError, Step, Times, unix_nanos};
pub use identity::{BadFingerprint, Error as IdentityError, Fingerprint, Identity};
pub use ring::{DATAGRAM_BYTES, FromStream, ToStream, Wake};
pub use server::{Limits, ListenError, Listener, Listening, Reason, Refusals};

/// A connection, or an attempt at one, among all that this process has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// One that no other has.
    fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Relaxed) + 1)
    }
}

/// Which of its places a datagram is for.
pub type Steer = Arc<dyn Fn(&[u8]) -> usize + Send + Sync>;

/// Where a connection's datagrams come to and from.
#[derive(Clone)]
pub struct Landing {
    /// How each place is told that datagrams came.
    pub places: Vec<Wake>,
    /// Which place a datagram that came is for.
    pub steer: Steer,
    /// Datagrams that wait at most, each way and place; 512 is a good number. 2 KiB each, taken when they are first used.
    pub datagrams: usize,
}

/// A place's halves of its two rings.
#[derive(Debug)]
pub struct Place {
    /// To the other end.
    pub to: ToStream,
    /// From the other end.
    pub from: FromStream,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A connection carries datagrams.
    Established(Established),
    /// A dialer gave up.
    Failed {
        /// The circuit it dialled for.
        circuit: CircuitId,
        /// Which one, [`Dialer::attempt`].
        attempt: ConnectionId,
        /// Why, for each address.
        why: DialError,
    },
    /// Nothing comes by a connection that was dialled, not even what was asked for.
    Silent {
        /// Its circuit.
        circuit: CircuitId,
        /// Which one.
        id: ConnectionId,
    },
    /// Something comes by it again.
    Heard {
        /// Its circuit.
        circuit: CircuitId,
        /// Which one.
        id: ConnectionId,
    },
    /// A connection that was established carries no more.
    Closed {
        /// Its circuit.
        circuit: CircuitId,
        /// Which one.
        id: ConnectionId,
        /// Why.
        why: Closed,
    },
}

/// A connection that carries datagrams.
#[derive(Debug)]
pub struct Established {
    /// Whose datagrams.
    pub circuit: CircuitId,
    /// Its name in [`Event::Closed`].
    pub id: ConnectionId,
    /// Of a dialer, the address that it reached; of a listener, who connected, by the gateway's word if it is configured to say.
    pub peer: SocketAddr,
    /// Dropping it closes the connection.
    pub carrier: Carrier,
    /// As many as the landing has, in that order.
    pub places: Vec<Place>,
}

/// How the owner is told.
#[derive(Clone)]
pub struct Reports {
    /// Takes the events: a few for each connection.
    pub events: mpsc::Sender<Event>,
    /// Written after each.
    pub wake: Arc<EventFd>,
}

impl Reports {
    fn tell(&self, event: Event) {
        // An owner that is gone has dropped what it had; what is in the event is dropped here, and so closed.
        let _ = self.events.send(event);
        // EAGAIN: the owner has not looked yet, and will.
        let _ = self.wake.write(1);
    }
}

/// Steers to place 0 what is a handshake, and to place 1 + *n* what worker *n* of so many opens (`secure/pipeline/share.rs`). A
/// datagram without a form goes to the first worker, which counts it.
///
/// # Panics
/// Without workers.
#[must_use]
pub fn by_lane(workers: u32) -> Steer {
    assert!(workers > 0, "a tunnel has at least one worker");
    Arc::new(move |datagram: &[u8]| {
        match (
            datagram.first(),
            datagram.get(4..8).and_then(<[u8]>::first_chunk),
        ) {
            (Some(1..=3), _) => 0,
            (_, Some(index)) => {
                let lane = u32::from_le_bytes(*index) % tunnel::MAX_LANES;
                1 + (lane % workers) as usize
            }
            _ => 1,
        }
    })
}

#[cfg(test)]
mod tests;
