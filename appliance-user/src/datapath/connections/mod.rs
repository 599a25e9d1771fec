//! Connections through translation: seen by an operator, and cleared away once they are silent.
//!
//! The programs make and use entries, and look at their age each time; what is silent is as good as gone to
//! them. Here its place is given back.
//!
//! ```text
//!   FLOWS ───┬─ every 10 s ─▶ sweep: silent both ways, of an earlier failover ─▶ deleted
//!   OPENING ─┤                        │ endpoints in use
//!   MAPPINGS ┴─ every 10 s ─▶ sweep: in use by no connection, twice in a row ─▶ deleted
//!   FLOWS, OPENING ── on request ─▶ list: filter, top talkers
//! ```
//!
//! `sweep` and `list` decide, and touch no map or clock; `batch` reads whole maps; `collector` is the thread that
//! brings them together, `query` what an operator asks. Nothing here is on the packet path or on the daemon's loop.

mod batch;
mod list;
mod query;
mod sweep;
mod sweeper;

pub use batch::{PinnedMap, read_array_entry};
pub use list::{ConnectionRow, Filter, SlotNames, TopConnections, render};
pub use query::{MAX_ROWS, list};
pub use sweep::{Sweep, Swept};
pub use sweeper::{ConnectionSweeper, ticks_now};
