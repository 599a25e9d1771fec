//! Failover plans, public IP rules and the order of modes, checked as a whole before any of it is
//! applied.
//!
//! For: the appliance's command line and control socket, and later the director's API, which share
//! one set of refusals and one wording. Never: input or output, read a clock, or write a map.
//!
//! ```text
//!   text of a plan ─────────────────────────┬─▶ Plan::parse ─▶ a plan, or all its problems
//!                                           │                    │ its networks and gateways
//!   TenantContext: allocation, networks ────┤                    ▼
//!                                           ├─▶ RuleSet::apply ─▶ a new set, or all problems;
//!   file, command line, API ─▶ Rule ────────┘                    the old set stays
//!
//!   mode now, request, circumstances ────────▶ mode::decide ─▶ a step, or a refusal
//! ```

pub mod mode;
mod plan;
mod port;
mod prefix;
mod rule;
mod rules;

pub use plan::{Allow, Plan, PlanErrors, PlanNetwork, PlanProblem};
pub use port::{PortError, PortRange};
pub use prefix::{IpPrefix, IpPrefixError};
pub use rule::{
    DESCRIPTION as MAX_DESCRIPTION, Protocol, Rule, RuleError, RuleTarget, is_description,
};
pub use rules::{NetworkContext, ReservedAddress, RuleChange, RuleProblem, RuleSet, TenantContext};

/// The port over which the appliance is managed. No rule makes it public.
pub const MANAGEMENT_PORT: u16 = 22;
