//! Two tunnels, seen from outside: with each other over a path with faults, and with an independent
//! WireGuard.

mod cookies;
mod interop;
mod model;
mod sessions;
