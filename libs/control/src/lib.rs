//! The control plane's vocabulary: API objects, their validation, and the rules between them.
//!
//! For: the director, its command line and its agents, which all speak of hosts, VLAN pools,
//! hardware plans, tenants and their networks. Never: input or output, a clock, a random source, or
//! a store. A change is computed over a [`State`] in memory, and the caller commits the
//! [`Transaction`] that results.
//!
//! ```text
//!   stored objects ──▶ State ─┐
//!                             ├─▶ create, replace, remove ─┬─▶ Accepted: Transaction, object,
//!   request: name, spec ──────┤                            │   warnings
//!   Origin: time, uid ────────┘                            └─▶ Refusal: detail, conflicts
//!
//!   Transaction ─▶ the store compares and sets ─┬─▶ revision ─▶ State::apply
//!                                               └─▶ stale: read again, compute again
//! ```
//!
//! Three mechanisms keep changes of several directors consistent, whatever they compute at once:
//!
//! - each object that a change writes must be at the revision that the change has read;
//! - each change writes the *guards* of the parts that it reads: of the provider, of a tenant;
//! - each VLAN and each public address that is in use has a *claim*, a key that must be absent
//!   before, so that even a wrong computation cannot give one out twice.

mod addressing;
pub mod audit;
mod catalogue;
mod change;
mod claims;
mod condition;
mod contradictions;
mod difference;
mod draft;
pub mod json;
mod kinds;
mod name;
mod object;
mod range;
mod refusal;
mod rehearsal;
mod role;
mod schema;
mod state;
mod summary;
mod tenant_view;
mod transaction;
mod usage;

pub use catalogue::{KINDS, KindInfo, ReasonFor, in_words, kind, reason_for, with_article};
pub use change::{Accepted, Options, create, remove, replace};
pub use claims::ClaimError;
pub use condition::{Agent, AgentConnection, Agents, Condition, Holds, NO_AGENT, Observed};
pub use difference::{ChangeOfObject, Difference, FieldDifference, differences, spec_differences};
pub use kinds::{
    Address, AddressPool, AddressStatus, AllocatedNetwork, Allocation, Appliance, ApplianceStatus,
    Gateway, GatewayPool, HardwarePlan, HealthCheck, Hooks, Host, Limits, Mapping, Mode, Network,
    NetworkStatus, Plan, PlanNetwork, PlanVm, Platform, Policy, Rule, SubscribedAppliance,
    Subscription, SubscriptionStatus, Switch, Tenant, TenantStatus, Uplink, VlanPool, gateways_of,
};
pub use name::{NAME_PATTERN, NAME_RULE, is_name};
pub use object::{Kind, Metadata, Nothing, Object, Origin, Scope};
pub use range::{AddressRange, RangeError, VlanRange};
pub use refusal::{Conflict, Reason, Refusal};
pub use rehearsal::{Rehearsal, RehearsedChange};
pub use role::{ROLES, Role};
pub use state::{Claim, Corrupt, State, Step, Table};
pub use summary::{ConditionGroup, EndingLease, Summary, summary};
pub use transaction::{Precondition, Revision, Transaction};
pub use usage::{
    AddressPoolUsage, Allowance, Amount, HardwarePlanTenants, Part, Subscriber, TenantUsage,
    VlanPoolUsage, address_pool_usage, hardware_plan_tenants, tenant_usage, vlan_pool_usage,
};
