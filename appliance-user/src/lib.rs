//! The user-space half of the appliance.
//!
//! For: turning a configuration and an operator's words into map entries, resolving hosts, carrying
//! the few packets that XDP cannot, and saying what the appliance does. Never: a packet that XDP can
//! carry; forwarding goes on while this process is away.
//!
//! ```text
//!   config ─┐                     ┌─▶ datapath (programs, links, maps; pinned)
//!   state ──┼─▶ reconcile ─diff──▶┘
//!   underlay┘      ▲                 rings ─▶ neighbour, slowpath ─▶ rawsock
//!   control ───────┘                          announce ────────────▶ rawsock
//!                                     encrypted packets ◀─AF_XDP─▶ crate `tunnel-worker`, by `daemon/tunnels.rs`
//! ```
//!
//! `neighbour`, `announce`, `advertise`, `slowpath`, `reconcile`, `config` and `frames` touch no socket, map or clock;
//! `daemon` is where they meet the world.

pub mod advertise;
pub mod announce;
pub mod config;
pub mod connections;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod fib;
pub mod frames;
pub mod held;
pub mod neighbour;
pub mod nic;
pub mod rawsock;
pub mod reconcile;
pub mod slowpath;
pub mod state;
pub mod trace;
pub mod underlay;
