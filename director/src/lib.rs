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
//!
//! Modules depend on those in the lines below their own, and on those to their right:
//!
//! ```text
//!   daemon, config, self_test         the process
//!   api                               requests of people and programs
//!   agents                            connections of machines
//!   change, metrics                   the director: the order of changes, and their commits
//!   authentication     offline        log-ins in memory; stores that no director has open
//!   live, problem                     the state in memory; why a request is refused
//!   audit, machines, people           records of the store
//!   audit_key, key_file, roles, tls, source, environment
//! ```

pub mod agents;
pub mod api;
pub mod audit;
pub mod audit_key;
mod authentication;
mod change;
pub mod config;
pub mod daemon;
mod environment;
mod key_file;
mod live;
mod machines;
mod metrics;
pub mod offline;
pub mod people;
mod problem;
pub mod roles;
mod self_test;
mod source;
pub mod tls;

pub use change::{Director, MAX_UNSIGNED_ENTRIES};
pub use environment::{Environment, Kernel};
pub use live::LoadError;
pub use offline::init::{Error as InitError, init};
pub use problem::Problem;
