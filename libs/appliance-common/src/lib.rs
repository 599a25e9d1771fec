//! Types, constants and limits that the XDP programs and user space share.
//!
//! For: map keys and values, wire constants, counters, limits, and small pure functions that both
//! sides need (address mapping, the outer header of a tunnel). Rules about packets are in
//! `packet-rules`. Never: a socket, a clock, an allocation, or anything that needs the standard
//! library unless the feature `user` is on.
//!
//! ```text
//!   appliance-user ──writes──▶ ┌ maps: keys and values of this crate ┐ ◀──reads── appliance-ebpf
//!                  ◀──events── └ ring buffers: records of this crate ┘ ──writes─▶
//! ```
//!
//! Every type that crosses a map is `repr(C)`, has no padding, and asserts its size at compile
//! time. Addresses and ports are in network byte order; lengths, identifiers and indices are in
//! host byte order. Anything else says so.
#![cfg_attr(not(any(feature = "user", test)), no_std)]

pub mod addr;
mod budget;
pub mod counters;
pub mod entry_hash;
pub mod events;
pub mod limits;
pub mod maps;
pub mod nat;
pub mod wire;

pub use packet_rules::checksum;
