//! The director's agent in a gateway or an appliance: it enrols by a token, keeps the machine's
//! identity, and holds a stream to the director, through which the machine is known.
//!
//! For: enrolment, renewal of the certificate, the stream, and return to it. Never: the work of the
//! machine, which goes on without the director, or the form of certificates.
//!
//! ```text
//!   token file ─▶ enrol ─▶ folder: key, certificate, authorities, service addresses
//!                               │                     ▲ renewed at half of its life
//!                               ▼                     │
//!   service addresses ─▶ Connector: TCP, TLS, HTTP/2 ─┴▶ stream: hello, reports ─▶ director
//!                               ▲──── pauses ◀─────────── ended
//!                               ▲──── at once ◀────────── the machine was restored from a snapshot
//! ```

mod connector;
mod daemon;
mod folder;
mod pauses;
mod run;

pub use daemon::{Config, Handle, Section, Status};
pub use folder::{Folder, Kept, Unusable};
pub use run::{Error, Phase, Report, Settings, State, run};
