//! The tunnel in one TLS connection, for sites where UDP is blocked: datagrams as frames, between a
//! tenant's appliance and its provider's, through a gateway that relays the connection by its
//! server name.
//!
//! For: carrying datagrams as UDP would. Datagrams without room are dropped and counted; none waits
//! without bound. Never: tokio; a decision when to dial (a [`TlsAttempt`] makes one attempt and
//! reports the outcome); the content of a datagram. The tunnel inside authenticates and encrypts by
//! itself. TLS is needed to pass firewalls; the pinned certificate, the hello and its answer keep
//! third parties from replacing the connection. Wire format: `docs/gateway.md`.
//!
//! ```text
//!  owner                       TlsAttempt, Listener: a thread each       connection: a thread each
//!    │ start(config, rings, events) ─▶ connect | accept, TLS, hello ──▶ the same thread goes on
//!    │ ◀── Established {circuit, id, peer, handle, rings} ◀────────────── │
//!    │ ◀── Failed {circuit, attempt, error}     (dialer only)             │
//!    │ ◀── Stalled, Resumed {circuit, id}       (dialer only) ◀────────── │ probes that the other end answers
//!    │ ◀── Closed {circuit, id, reason} ◀──────────────────────────────── the last event
//!    │       each followed by a write of the eventfd `wake`               │
//!    │                                                                    │
//!    │ rings[n].sender ───▶ consumer n: push(datagram), wake() ──▶ frames ─▶ TLS record ─▶ TCP
//!    │ rings[n].receiver ─▶ consumer n: take(max, |datagram| ..) ◀─ steer(datagram) == n ◀─ TCP
//!    │
//!    └ drop(handle), or handle.close(): close_notify is sent if there is room, the thread ends, Closed comes
//! ```
//!
//! Modules, each depending only on those before it: `close_reason`, `sockets`, `stats`,
//! `thread_control`;
//! `ring`, `identity`, `handle`, `dial_error`; `event`, `link`, `config`, `pending`,
//! `proxy_header`; `connection`; `attempt`, `listener`.
//!
//! How to use it:
//!
//! 1. **Rings.** One [`ThreadWaker`] for each consumer of datagrams: consumer 0 is the owner, for
//!    handshakes; consumer 1 + *n* is worker *n*. [`steer_by_lane`] steers in just that order. A
//!    datagram for a consumer that does not exist is dropped and counted.
//! 2. **Start** a [`TlsAttempt`] (tenant) or a [`Listener`] (provider) with the [`RingSetup`] and
//!    an [`EventSender`]. Poll its eventfd, then `try_recv` until it is empty.
//! 3. On **Established** hand `rings[1 + n]` to worker *n* and keep `handle`. The ends of rings are
//!    `Send`, for one thread, and allocate nothing. A worker calls `receiver.take(..)` in its loop
//!    (the slice is mutable: it is opened in place), `sender.push(..)` instead of sending by UDP,
//!    `sender.wake()` at the end of a turn, and `receiver.is_empty()` before it sleeps. A datagram
//!    has at most [`DATAGRAM_BYTES`]: limit the peer's datagrams to that. There is no path MTU to
//!    discover.
//! 4. On **Closed** take the rings from the workers, if `id` is the connection that they have: when
//!    a connection is replaced, Established of the new one may come before Closed of the old one.
//!    Rings of a closed connection do no harm: `push` returns false and counts, `take` finds
//!    nothing.
//! 5. **Stop**: drop the handles, the attempt, the listener. An attempt that is dropped in the
//!    moment in which it succeeds may still send Established: drop it.
//!
//! The end that dialed reports within about 0.3 s that the other end does not answer
//! ([`ConnectionEvent::Stalled`]), and when it answers again ([`ConnectionEvent::Resumed`]). TCP
//! ends such a connection within half a minute. Nothing here closes a connection for that, or dials
//! again.

mod attempt;
mod close_reason;
mod config;
mod connection;
mod dial_error;
mod event;
mod handle;
mod identity;
mod link;
mod listener;
mod pending;
mod proxy_header;
mod ring;
mod sockets;
mod stats;
mod thread_control;

pub use attempt::{DialConfig, HANDSHAKE_TIMEOUT, TlsAttempt, unix_nanos};
pub use close_reason::CloseReason;
pub use dial_error::{AddressError, DialError, DialStartError, DialStepError};
pub use event::{ConnectionEvent, ConnectionId, Established, EventSender};
pub use handle::ConnectionHandle;
pub use identity::{BadFingerprint, Error as IdentityError, Fingerprint, Identity};
pub use listener::{
    Limits, ListenConfig, ListenError, Listener, ListenerStats, PreparedListener, RefusalReason,
};
pub use ring::{
    DATAGRAM_BYTES, RingPair, RingReceiver, RingSender, RingSetup, Steer, ThreadWaker,
    steer_by_lane,
};
pub use sockets::Sockets;
pub use stats::ConnectionStats;

#[cfg(test)]
mod tests;
