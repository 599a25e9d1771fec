//! An AF_XDP socket on one queue of an interface, as two independent halves that a packet worker
//! owns.
//!
//! Never: start a thread, take a lock, allocate after [`bind`], read a clock on the packet path,
//! log, or use another mode than the requested one.
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
//! The rings are implemented here with `libc`: the crate `xdp` shares one `&mut` UMEM between
//! receive and transmit, whereas here each half owns its frames, so that both work without a lock.
//!
//! The frame pool of each half tracks which frames the kernel has: a frame is either free or with
//! the kernel, and only a free one is given out as a slice. A descriptor of the kernel that
//! contradicts this is skipped and counted ([`Rx::skipped`], [`Tx::skipped`]).
//!
//! The socket belongs to the network namespace of the thread that calls [`bind`]; afterwards the
//! halves may move to any thread. Frames arrive once an XDP program redirects them and [`Rx::fd`]
//! is in its XSKMAP.
//!
//! The RX ring has as many slots as there are receive frames. A receiver that is too slow is
//! therefore counted as [`Statistics::fill_ring_empty`] and `rx_dropped`, not as `rx_ring_full`.
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
