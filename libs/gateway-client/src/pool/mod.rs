//! The choice of a gateway: the least loaded working gateway that the tenant may use.
//!
//! ```text
//!   gateways, pools, a tenant's access ─▶ List ──bootstrap──▶ Chooser ─▶ use this one | no service, and why
//!                                                                ▲  └──▶ try these now
//!                                answers, failures, "I drain" ───┘
//! ```
//!
//! [`List`] is made where the tenants are known; [`Chooser`] runs in each appliance and redirector
//! of a tenant. Neither uses a clock or the network: `now` is a time of any monotonic clock; the
//! seed makes different ends choose differently, and a test repeatable.

mod choice;
mod list;

pub use choice::{Choice, Chooser, Down, Failure, NoService, Report, Settings};
pub use list::{Access, Candidate, Gateway, List, ListError};
