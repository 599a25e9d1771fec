//! Machines as agents: gateways and appliances that enrol by a token, and from then on are known by
//! a certificate of the director's own authority.
//!
//! For: the authority, enrolment tokens, certificates and their renewal, and the agents' streams.
//! Never: the form of tokens and certificates, which is the crate `identity`'s.
//!
//! ```text
//!   API: create a token ─▶ machines: hash ┐
//!                                         ▼
//!   listener: TLS ─▶ service (gRPC) ─▶ enrol: secret, request ─▶ identity record ─▶ certificate
//!                        │                    │ audit                   │
//!                        │                    └ renewal ◀───────────────┤ deleted: revoked
//!                        ▼                                              ▼
//!                   presence: open streams ◀──────────── closes those of another identity
//! ```

mod authority;
mod enrol;
mod listener;
mod service;
mod settings;
mod shared;

pub use authority::Error as AuthorityError;
pub use listener::{Error, start};
pub use settings::Settings;

pub(crate) use enrol::difference;
