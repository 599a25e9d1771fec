//! Identities of machines: their names, enrolment tokens, certificates of the provider's authority,
//! and TLS by them.
//!
//! For: the director, which is the authority, and its agents in appliances and gateways. Never: a
//! store, sockets, a clock; callers pass `now` and randomness, except for new key pairs and
//! signatures, whose randomness is the cryptographic library's.
//!
//! ```text
//!   token: gateways, hash of the CA, secret ─▶ pinned TLS ─▶ enrol: secret, request
//!                                                               │
//!   director: Authority ── issue ◀──────────────────────────────┘
//!       │  certificate of 24 h, spiffe://PROVIDER/tenant/acme/appliance/edge-1
//!       ▼
//!   TLS by certificates of both ends ─▶ renewal at half life, in the open stream, with a new key
//! ```

#![warn(missing_docs)]

mod authority;
mod certificate;
mod name;
mod seal;
pub mod tls;
mod token;

pub use authority::{Authority, Error, Issued, LIFETIME, MachineKey, Request, Serial, Subject};
pub use certificate::{BadCertificate, Certificate, Fingerprint, Validity};
pub use name::{InvalidName, Machine, Name};
pub use seal::{Sealed, SealingKey, Unsealable};
pub use token::{BadToken, EnrolmentToken, Secret};
