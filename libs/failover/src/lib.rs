//! What a failover asks for, checked whole before any of it is applied.
//!
//! For: failover plans, public IP rules and the order of modes, of the appliance's command line and control socket
//! today and of the director's API later, with one set of refusals and one wording. Never: input or output, a clock, a
//! map.
//!
//! ```text
//!   text of a plan ────────────────────┬─▶ Plan::parse ─▶ a plan, or everything that is wrong in it
//!                                      │                    │ its networks and gateways
//!   allocation, networks of a tenant ──┤                    ▼
//!                                      ├─▶ RuleSet::change ─▶ a new set, or every problem of the change
//!   file, command line, API ─▶ Rule ───┘                      and the old set as it was
//!
//!   mode now, request, circumstances ────▶ mode::decide ─▶ what to do, or why not
//! ```

pub mod mode;
mod net;
mod plan;
mod port;
mod rule;
mod rules;

pub use net::{IpPrefix, IpPrefixError};
pub use plan::{Allow, Plan, PlanErrors, PlanNetwork, PlanProblem};
pub use port::{PortError, PortRange};
pub use rule::{Protocol, Rule, RuleError, RuleTarget};
pub use rules::{NetworkContext, ReservedAddress, RuleChange, RuleProblem, RuleSet, TenantContext};

/// The port over which the appliance is managed: never public (SPEC section 3).
pub const MANAGEMENT_PORT: u16 = 22;
