//! NAT connections: removal of expired entries, the list for operators, and the log of mappings.
//!
//! The XDP programs create and use the entries, and ignore expired ones. This module removes
//! expired entries from the maps, so that their space can be used again. Never: work on the packet
//! path or on the daemon's event loop.
//!
//! ```text
//!   USAGE, QUOTAS ─ every 250 ms ─▶ pressure: is a pass due, and what must tenants give up?
//!   FLOWS ───┬─ pass ─▶ sweep: expired both ways, of an earlier failover, or evicted ─▶ deleted
//!   OPENING ─┤            │ endpoints in use
//!   MAPPINGS ┴─ pass ─▶ sweep: used by no connection, and not used lately ─▶ deleted
//!   FLOWS, OPENING ── on request ─▶ list: filter, top talkers
//! ```
//!
//! `pressure`, `sweep` and `list` decide, without a map or a clock. `batch` reads whole maps.
//! `sweeper` is the thread that runs the passes, every 10 s and when the tables fill;
//! `removal_counters` counts the entries that it removes, `passes` how long it takes. `query`
//! answers an operator's request. `log` writes the NAT log. `clock` tells the programs' time.

mod batch;
mod clock;
mod list;
pub mod log;
mod passes;
mod pressure;
mod query;
mod removal_counters;
mod sweep;
mod sweeper;

pub use batch::PinnedMap;
pub use clock::ticks_now;
pub use list::{ConnectionRow, Filter, SlotNames, TopConnections, render};
pub use passes::Passes;
pub use pressure::over_quota_limit;
pub use query::{MAX_ROWS, list};
pub use removal_counters::Removals;
pub use sweep::Sweep;
pub use sweeper::ConnectionSweeper;
