//! Whole sites in network namespaces, a module for each capability.
//!
//! Two of these tests may run at the same time, but for those in a module `timed`, which assert
//! times or rates and have the machine for themselves. `cargo xtask test` gives each test a process
//! of its own.

mod follow;
mod full;
mod gateway;
mod gateways;
mod mtu;
mod partial;
mod restart;
mod secure;
mod tenants;
mod timed;
mod wireguard;
