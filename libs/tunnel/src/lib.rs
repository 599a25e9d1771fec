//! The encrypted tunnel between two appliances, or between an appliance and any WireGuard.
//!
//! For: WireGuard's handshake (Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, mac1, mac2, cookies, TAI64N),
//! sessions that renew themselves, a replay window of 8192 packets, roaming, path-MTU probing,
//! splitting and rejoining of packets longer than the path, and data sealed with ChaCha20-Poly1305
//! (WireGuard's messages to the byte) or AES-256-GCM. Never: a socket, a thread, a clock, a random
//! number of its own, a lock, or an allocation on the data path. Layouts are in
//! [`wire`] and [`segment`], the derivation of keys in [`cipher`], timers and bounds where they are set.
//!
//! ```text
//!     datagrams 1–3, time, randomness            packets                    datagrams 4
//!                │                                  │                            │
//!                ▼                                  ▼                            ▼
//!      ┌───────────────────┐   sessions     ┌──────────────┐            ┌────────────────┐
//!      │   TunnelControl   │ ── by value ─▶ │    Sender    │            │    Receiver    │
//!      │ handshake, timers │                │ seal, fragments │            │ window, open,  │
//!      │ roaming, path MTU │ ◀─ snapshots ─ │              │            │ mark, rejoin   │
//!      └───────────────────┘                └──────────────┘            └────────────────┘
//!                │                                  │                            │
//!                ▼ Output                           ▼ datagrams 4                ▼ packets
//! ```
//!
//! The three may live in three threads: a session is handed over by value, and what happened comes
//! back as a plain snapshot. [`Tunnel`] is all three in one. The state machine is drawn in
//! [`control`].
//!
//! What an attacker on the path can do: drop, delay, and see sizes and times. What it cannot: read,
//! alter, replay or inject packets, learn who the ends are, or make an end do curve arithmetic for
//! an address it does not receive at once the end is under load.

pub mod cipher;
pub mod control;
pub mod data;
mod error;
mod handshake;
mod keys;
mod load;
mod mac;
mod path;
pub mod pmtu;
mod random;
pub mod replay;
pub mod segment;
mod session;
#[cfg(test)]
mod testing;
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
