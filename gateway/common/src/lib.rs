//! Types and limits that the gateway's XDP program and its user space share.
//!
//! For: the records of established circuits, the token buckets that both use, the counters and the
//! limits. Never: a socket, a clock, an allocation, or anything that needs the standard library
//! unless the feature `user` is on.
//!
//! ```text
//!   threads of circuits ──write──▶ IDS, CIRCUITS, PORTS ──▶ the program
//!          └──────────── take ───▶ BUCKETS ◀─── take ──────────┤
//!   status, metrics ◀──read─────── STATS, COUNTERS ◀── count ──┘
//! ```
//!
//! Every type that crosses a map is `repr(C)`, has no padding, and asserts its size at compile
//! time. Addresses, ports and IDs are in network byte order; times are nanoseconds of the kernel's
//! monotonic clock; everything else is in host byte order.
#![cfg_attr(not(any(feature = "user", test)), no_std)]

pub mod maps;
