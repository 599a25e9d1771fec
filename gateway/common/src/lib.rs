//! What the gateway's XDP program and its user space agree on.
//!
//! For: the records of established circuits, the token buckets that both draw from, the counters and the limits. Never: a socket, a clock, an allocation, or anything that needs the standard library unless the feature `user` is on.
//!
//! ```text
//!   threads of circuits ──write──▶ IDS, CIRCUITS, PORTS ──▶ the program
//!          └──────────── draw ───▶ BUCKETS ◀─── draw ──────────┤
//!   status, metrics ◀──read─────── STATS, COUNTERS ◀── count ──┘
//! ```
//!
//! Every type that crosses a map is `repr(C)`, has no padding, and asserts its size at compile time. Addresses, ports and ids are in
//! network byte order, as they lie in a packet; times are nanoseconds of the kernel's monotonic clock; all else is in host byte order.
#![cfg_attr(not(any(feature = "user", test)), no_std)]

pub mod maps;
