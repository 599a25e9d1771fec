//! NAT connections: removal of expired entries, and the list for operators.
//!
//! The XDP programs create and use the entries, and ignore expired ones. This module removes
//! expired entries from the maps, so that their space can be used again. Never: work on the packet
//! path or on the daemon's event loop.
//!
//! ```text
//!   FLOWS ───┬─ every 10 s ─▶ sweep: expired both ways, or of an earlier failover ─▶ deleted
//!   OPENING ─┤                        │ endpoints in use
//!   MAPPINGS ┴─ every 10 s ─▶ sweep: used by no connection in two passes in a row ─▶ deleted
//!   FLOWS, OPENING ── on request ─▶ list: filter, top talkers
//! ```
//!
//! `sweep` and `list` decide, without a map or a clock. `batch` reads whole maps. `sweeper` is the
//! thread that runs a sweep every 10 s, and `query` answers an operator's request.

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
