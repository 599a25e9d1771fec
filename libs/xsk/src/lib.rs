//! An AF_XDP socket on one (interface, queue), as two independent halves that one packet worker owns.
//!
//! Never: a thread, a lock, an allocation after [`bind`], a clock, a log line per packet, a mode
//! other than the one asked for.
//!
//! ```text
//!             one UMEM, registered once, two disjoint halves
//!            ┌──────────────────────────┬──────────────────────────┐
//!            │ frames 0 .. rx_frames    │ rx_frames .. + tx_frames │
//!            └──────────────────────────┴──────────────────────────┘
//!   wire ──► RX ring ─► Rx::receive(f)     Tx::transmit(f) ─► TX ring ──► wire
//!                          │                    ▲
//!   kernel ◄── fill ring ◄─┘                    └── completion ring ◄── kernel
//!              (Rx::wake)                          (Tx::flush kicks, and takes frames back)
//! ```
//!
//! The rings are written here over `libc`, because the crate `xdp` shares one `&mut` UMEM between
//! receive and transmit, and here each half owns its frames, so that both work without a lock.
//!
//! The frame pool of each half knows which frames the kernel holds: a frame is either free or
//! with the kernel, and only a free one is ever lent as a slice. A descriptor that contradicts
//! this is skipped and counted ([`Rx::skipped`], [`Tx::skipped`]).
//!
//! The socket belongs to the network namespace of the thread that calls [`bind`]; afterwards the
//! halves may move to any thread. Frames arrive only once an XDP program redirects them and
//! [`Rx::fd`] is in its XSKMAP.
//!
//! The RX ring has as many slots as there are receive frames, so a receiver that falls behind shows
//! as [`Statistics::fill_ring_empty`] and `rx_dropped`, not as `rx_ring_full`.
//!
//! Unsafe code is in `ring` (memory shared with the kernel), `pool` (frames) and `sys` (calls).

mod bind;
mod error;
mod pool;
mod ring;
mod rx;
mod sys;
mod tx;

pub use bind::{BusyPoll, Config, Memory, bind, bind_within};
pub use error::Error;
pub use rx::{Rx, Statistics};
pub use tx::{Sent, Tx};
