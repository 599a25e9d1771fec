//! Whole sites in network namespaces, a module for each capability.
//!
//! Four of these tests may run at the same time. Tests in a module `timed` assert times or rates
//! and run alone. `cargo xtask test` runs each test in a separate process.

mod agents;
mod benchmarks;
mod clients;
mod conditions;
mod desired;
mod follow;
mod full;
mod gateway;
mod gateway_names;
mod gateways;
mod guests;
mod mtu;
mod partial;
mod restart;
mod routers;
mod secure;
mod support_bundle;
mod tenants;
mod timed;
mod wireguard;
