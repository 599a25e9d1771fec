//! The control plane of a provider: hosts, pools, hardware plans, tenants and their networks,
//! behind one API.
//!
//! For: who may do what ([`roles`]), what was done ([`audit`]), and the API that people and
//! programs use ([`api`]). Never: the rules between objects, which are the crate `control`'s;
//! keeping them, which is the crate `store`'s; or traffic.
//!
//! ```text
//!   HTTP ─▶ api: operation ─▶ people: token ─▶ actor ─▶ roles: may it? ─▶ director: change
//!                                                                          │ one at a time
//!     live: state in memory ◀── apply ── revision ── store: commit ◀───────┤ control: transaction
//!          │                                                               └ audit: entry, chained
//!          └─▶ reads
//! ```

mod access;
pub mod agents;
pub mod api;
pub mod audit;
pub mod audit_key;
mod change;
pub mod config;
pub mod daemon;
mod ended;
mod environment;
mod idempotency;
mod init;
mod key_file;
mod last_use;
mod live;
mod metrics;
pub mod offline;
pub mod people;
pub mod roles;
mod self_test;
mod source;
mod stalled;
pub mod tls;
mod totp;
pub mod transfer;

pub use change::{Director, MAX_UNSIGNED_ENTRIES};
pub use environment::{Environment, Kernel};
pub use init::{Error as InitError, init};
pub use live::LoadError;
