//! What a full failover asks for, checked whole before any of it is applied.
//!
//! For: public IP rules, of the appliance's command line and control socket today and of the director's API
//! later, with one set of refusals and one wording. Never: input or output, a clock, a map.
//!
//! ```text
//!   file, command line, API ─▶ Rule ─┐
//!                                    ├─▶ RuleSet::change ─▶ a new set, or every problem of the change
//!   Allocation, networks of a tenant ┘                      and the old set as it was
//! ```

mod net;
mod port;
mod rule;
mod rules;

pub use net::{Net, NetError};
pub use port::{PortError, PortRange};
pub use rule::{Protocol, Rule, RuleError, Target};
pub use rules::{Change, NetworkOf, Problem, RuleSet, TenantOf};

/// The port over which the appliance is managed: never public (SPEC section 3).
pub const MANAGEMENT_PORT: u16 = 22;
