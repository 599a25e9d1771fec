//! Support for the tests of the data path and of the lab.
//!
//! For: loading the XDP programs unpinned into a network namespace of their own, filling their
//! maps, running packets through them with `BPF_PROG_TEST_RUN`, judging the output by an oracle
//! written independently of the programs, driving labs, and testing our tunnel with another
//! WireGuard. Never: part of the product, pinned maps, or an interface of the host's namespace.
//!
//! ```text
//!   World ──fill──▶ maps ┐
//!   packet::… ──bytes──▶ ├─ Harness::run ──▶ action, packet out ──▶ table::run  (exact fixtures)
//!   Seeded, mutate ──bytes─▶┘        │                              └▶ oracle::check (any packet)
//!                                 └──▶ counters, ring-buffer records
//! ```
//!
//! Tests need root, BPF and the built object. Where one is missing they print
//! `SKIPPED: <test>: <why>` and return; `CAUSEWAY_REQUIRE_PRIVILEGED=1` makes that a failure.

pub mod dump;
pub mod end;
pub mod gateway;
pub mod harness;
pub mod iproute;
pub mod lab_lock;
pub mod nat;
pub mod nftables;
pub mod oracle;
pub mod packet;
pub mod rng;
pub mod series;
pub mod site;
pub mod table;
pub mod tunnel_end;
pub mod wireguard;
pub mod world;

pub use test_support::{skip, test_name};
