//! The encrypted tunnel between two appliances, or between an appliance and any WireGuard.
//!
//! For: WireGuard's handshake (Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, mac1, mac2, cookies, TAI64N),
//! sessions that renew themselves, a replay window of 8192 packets, roaming, path-MTU search,
//! fragmentation and reassembly of packets longer than the path MTU, and data sealed with
//! ChaCha20-Poly1305 (WireGuard's messages, byte for byte) or AES-256-GCM.
//!
//! Never: open a socket, start a thread, read a clock, draw a random number, take a lock, or
//! allocate on the data path.
//!
//! ```text
//!     datagrams 1–3, time, randomness            packets                    datagrams 4
//!                │                                  │                            │
//!                ▼                                  ▼                            ▼
//!      ┌───────────────────┐   sessions     ┌──────────────┐            ┌────────────────┐
//!      │   TunnelControl   │ ── by value ─▶ │    Sender    │            │    Receiver    │
//!      │ handshake, timers │                │ seal,        │            │ window, open,  │
//!      │ roaming, path MTU │ ◀─ snapshots ─ │ fragment     │            │ reassemble     │
//!      └───────────────────┘                └──────────────┘            └────────────────┘
//!                │                                  │                            │
//!                ▼ Output                           ▼ datagrams 4                ▼ packets
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`control`] | handshakes, session lifetimes, paths, timers |
//! | [`data`] | what packet workers own: [`Sender`] and [`Receiver`] |
//! | [`wire`], [`segment`] | layouts: messages, and the plaintext between appliances |
//! | [`cipher`], [`replay`], [`pmtu`] | sealing, the replay window, the path-MTU search |
//!
//! The three boxes may run in three threads: sessions are handed over by value, and results come
//! back as plain snapshots. [`Tunnel`] is all three in one.
//!
//! An attacker on the path can drop and delay datagrams, and see their sizes and times. It cannot
//! read, alter, replay or inject packets, or learn the ends' identities. It cannot make an end
//! under load do curve arithmetic for an address at which the attacker does not receive. "White
//! paper" in this crate is J. A. Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel".

pub mod cipher;
pub mod control;
pub mod data;
mod deadlines;
mod error;
#[cfg(test)]
mod freed_memory;
mod handshake;
mod hash;
mod keys;
mod load;
mod mac;
mod path;
pub mod pmtu;
mod random;
pub mod replay;
pub mod segment;
mod session;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod time;
mod timers;
mod tunnel;
pub mod wire;

pub use cipher::{AeadError, AeadKey, Cipher, CipherChoice, CipherTimings, bench_cipher};
pub use control::{
    DownReason, Event, InitiationPolicy, Output, PeerConfig, PeerId, PeerStatus, TunnelControl,
};
pub use data::{
    Framing, MIN_DATAGRAM, Opened, Payload, Receiver, RxActivity, RxStats, Sender, TxActivity,
};
pub use deadlines::DeadlineQueue;
pub use error::{HandshakeError, InvalidContent, OpenError, Rejected, SealError};
pub use keys::{InvalidKey, KEY_BYTES, PresharedKey, PublicKey, SecretKey};
pub use load::LoadLimits;
pub use mac::COOKIE_LIFETIME;
pub use path::PeerPath;
pub use pmtu::PmtuConfig;
pub use random::Random;
pub use segment::{PayloadKind, ReassemblyLimits};
pub use session::{MAX_LANES, RxSession, TxSession};
pub use time::{Instant, Now, Tai64n};
pub use timers::{Backoff, TimerConfig};
pub use tunnel::{ReceiveError, Tunnel};
