//! The decisions of the cloud gateway: which backend a TLS hello is for, and where a datagram of a
//! circuit goes.
//!
//! For: the gateway, its fuzz targets and its models in tests. Never: a socket, a clock, a thread
//! or randomness; time and bytes are parameters, so that each run with the same input is the same.
//!
//! ```text
//!   TCP  bytes of a client ─▶ hello::Reader ─▶ server name, ALPN ─▶ route::Table ─▶ backend
//!   UDP  datagram, source, now ─▶ table::Table ─▶ forward, answer, or drop with a reason
//!                                      └─▶ rate::Bucket: limits of tenants
//! ```

pub mod hello;
pub mod prefix;
pub mod rate;
pub mod route;
pub mod table;
