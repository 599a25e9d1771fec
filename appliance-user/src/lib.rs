//! The user-space half of the appliance.
//!
//! For: turning the configuration and the operator's requests into map entries, resolving hosts,
//! carrying the few packets that XDP cannot, and reporting status and counters. Never: a packet
//! that XDP can carry; forwarding continues while this process is stopped.
//!
//! ```text
//!   config ───────────┐                      ┌─▶ datapath (programs, links, maps; pinned)
//!   state ────────────┼─▶ datapath::reconcile ┘
//!   kernel::underlay ─┘      ▲                rings ─▶ engine ─▶ kernel::raw_socket
//!   control ─────────────────┘
//!                    encrypted packets ◀─AF_XDP─▶ crate `tunnel-worker`, by `daemon/controller/tunnels.rs`
//! ```
//!
//! `engine`, `frame`, `config` and `datapath::reconcile` touch no socket, map or clock; `daemon`
//! does their input and output.

pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod engine;
pub mod frame;
pub mod kernel;
pub mod state;
pub mod trace;
