//! Packet fixtures: packets through the XDP programs by `BPF_PROG_TEST_RUN`, one module for each
//! capability. The tests take turns with one loaded set of programs (`src/harness/shared.rs`).

mod arp;
mod classify;
mod decap;
mod encap;
mod flood;
mod full;
mod full_mtu;
mod gateway_admission;
mod gateway_xdp;
mod hairpin;
mod hostile;
mod isolation;
mod mode;
mod mss;
mod nat;
mod nat_beside_nftables;
mod nat_load;
mod nat_pressure;
mod nat_rfc;
mod nd;
mod pmtu;
mod program_log;
mod random;
mod recycle;
mod reset;
mod secure;
mod slow;
mod source_guard;
mod switch;
mod trace;
mod verifier;
mod workers;
