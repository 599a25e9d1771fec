//! Which gateway a tenant uses (SPEC section 6): of those it may, the least loaded that works.
//!
//! ```text
//!   gateways, pools, a tenant's access ─▶ List ──bootstrap──▶ Chooser ─▶ use this one | no service, and why
//!                                                                ▲  └──▶ try these now
//!                                answers, failures, "I drain" ───┘
//! ```
//!
//! [`List`] is made where the tenants are known; [`Chooser`] runs at each tenant's end, appliance
//! and redirector alike. Neither asks a clock or the network: `now` is a time on any monotonic
//! clock, and the seed makes two ends differ and one end replay.

mod choice;
mod list;
pub(crate) mod random;

pub use choice::{Choice, Chooser, Down, Failure, NoService, Report, Settings};
pub use list::{Access, Candidate, Gateway, List, ListError};
