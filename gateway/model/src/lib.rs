//! The desired state of a gateway: what its configuration file, its operator and its director can
//! change while it runs.
//!
//! For: the gateway, and all that send it a state. Never: a socket, a file, a clock or a thread;
//! what belongs to one machine (addresses, capacity, XDP) is the gateway's own `Local`.
//!
//! ```text
//!   file ───────┐             ┌─ problem, older, other base ─▶ refused, nothing has changed
//!   Snapshot ───┼─▶ prepare ──┤
//!   Delta ──────┘             └─▶ Prepared ─▶ the gateway prepares ─▶ commit ─▶ Model of the next
//!                                  only what differs                            revision
//! ```
//!
//! Each object has a stable ID and never a position. An update costs what it changes, and not what
//! is there: a delta of one circuit checks one circuit.

mod check;
mod checked;
mod model;
mod objects;
pub mod stored;
mod update;

pub use check::{Bounds, address, covers};
pub use checked::{Backend, Circuit, Tenant};
pub use model::{Applied, Changes, Counts, DesiredPage, Model, Prepared};
pub use objects::{BackendSpec, CircuitSpec, Ids, Objects, RouteSpec, TenantSpec};
pub use service::desired::{Source, UpdateRefusal, Withdrawal};
pub use update::{Delta, Snapshot, Update};
