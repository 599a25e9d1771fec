//! Tests that assert times or rates: nothing else of the lab runs at the same time
//! (`causeway_tests::lab_lock`).

mod attackers;
mod benchmarks;
mod gateway_tunnels;
mod handshake_flood;
mod million;
mod recovery;
mod restart_under_load;
mod switchover;
mod tunnel_attackers;
mod workers;
