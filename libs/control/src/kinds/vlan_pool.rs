//! VLANs of a virtual switch that tenants' networks may have.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{HardwarePlan, Host, Network, kind};
use crate::{
    Claim, Conflict, Nothing, Object, Reason, Refusal, State, VlanRange,
    draft::{Draft, shown},
    name::{
        DESCRIPTION_RULE, FOREIGN_RULE, LIST, LIST_RULE, NAME_RULE, is_description,
        is_foreign_name, is_name,
    },
    object::Rules,
    refusal::Problems,
    schema::{ForeignName, Line, ObjectName, VlanRangeText},
    state::{vlan_claim, vlan_domain},
};

/// VLANs of one virtual switch that tenants' networks may have: some for networks with internet
/// access, others for networks without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VlanPool {
    /// Name of the host that has the switch.
    #[schema(value_type = ObjectName)]
    pub host: String,
    /// The virtual switch of the host.
    #[schema(value_type = ForeignName)]
    pub switch: String,
    /// VLANs for networks with internet access.
    #[serde(default)]
    #[schema(value_type = Vec<VlanRangeText>, max_items = 256)]
    pub with_internet: Vec<VlanRange>,
    /// VLANs for networks without internet access.
    #[serde(default)]
    #[schema(value_type = Vec<VlanRangeText>, max_items = 256)]
    pub without_internet: Vec<VlanRange>,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

kind!(
    VlanPool,
    "vlan-pool",
    "vlan-pools",
    Provider,
    vlan_pools,
    Nothing
);

impl VlanPool {
    /// The ranges, each with the name of its field.
    fn ranges(&self) -> impl Iterator<Item = (&'static str, VlanRange)> {
        let of = |field, ranges: &[VlanRange]| {
            let ranges = ranges.to_owned();
            ranges.into_iter().map(move |range| (field, range))
        };
        of("with_internet", &self.with_internet)
            .chain(of("without_internet", &self.without_internet))
    }

    /// The VLANs of networks with or without internet access, in order.
    pub(crate) fn vlans(&self, internet: bool) -> impl Iterator<Item = u16> {
        let ranges = match internet {
            true => &self.with_internet,
            false => &self.without_internet,
        };
        ranges.iter().copied().flat_map(VlanRange::iter)
    }

    fn contains(&self, internet: bool, vlan: u16) -> bool {
        let field = field(internet);
        self.ranges()
            .any(|(of, range)| of == field && range.contains(vlan))
    }
}

const fn field(internet: bool) -> &'static str {
    match internet {
        true => "with_internet",
        false => "without_internet",
    }
}

/// The networks that have a VLAN of the pool.
fn networks<'s>(state: &'s State, pool: &str) -> impl Iterator<Item = &'s Object<Network>> {
    let networks = state.networks.iter();
    networks.filter(move |network| network.status.pool == pool)
}

impl Rules for VlanPool {
    fn check(&self, problems: &mut Problems) {
        let (host, switch) = (&self.host, &self.switch);
        problems.require(is_name(host), "host", host, NAME_RULE);
        problems.require(is_foreign_name(switch), "switch", switch, FOREIGN_RULE);
        for (field, ranges) in [
            ("with_internet", &self.with_internet),
            ("without_internet", &self.without_internet),
        ] {
            problems.require(ranges.len() <= LIST, field, ranges.len(), LIST_RULE);
        }
        let mut seen: Vec<(&str, VlanRange)> = Vec::new();
        for (field, range) in self.ranges().take(2 * LIST) {
            for (other, before) in &seen {
                if let Some(both) = range.intersection(*before) {
                    problems.add(
                        field,
                        both,
                        format_args!(
                            "{range} and {before} of {other} both have VLAN {both}: write each \
                             VLAN once"
                        ),
                    );
                }
            }
            seen.push((field, range));
        }
        problems.require(
            !seen.is_empty(),
            "with_internet",
            "",
            "the pool has no VLANs: write ranges in with_internet, without_internet or both",
        );
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        let domain = switch_domain(state, &object.spec)?;
        refuse_overlap(state, object, &domain)
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        Self::check_against(new, draft.state)?;
        if let Some(old) = old {
            keep_allocations(draft.state, old, new)?;
        }
        Ok(())
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        let plans = draft.state.hardware_plans.iter();
        let mut conflicts: Vec<_> = plans
            .filter(|plan| plan.spec.vlan_pool == old.name())
            .map(|plan| Conflict::new::<HardwarePlan>(plan.name(), "vlan_pool", old.name()))
            .collect();
        conflicts.extend(networks(draft.state, old.name()).map(conflict_with));
        if conflicts.is_empty() {
            return Ok(());
        }
        let users: Vec<_> = conflicts.iter().map(Conflict::to_string).collect();
        Err(Refusal::conflict(
            format!(
                "VLAN pool {:?} is in use by {}: remove these plans and their subscriptions first",
                old.name(),
                shown(&users)
            ),
            conflicts,
        ))
    }
}

fn conflict_with(network: &Object<Network>) -> Conflict {
    Conflict::new::<Network>(network.name(), "vlan", network.status.vlan).of(network.tenant())
}

fn switch_domain(state: &State, pool: &VlanPool) -> Result<String, Refusal> {
    let Some(host) = state.hosts.get("", &pool.host) else {
        let hosts: Vec<_> = state.hosts.iter().map(Object::name).collect();
        return Err(Refusal::conflict(
            format!(
                "host: {:?} does not exist: add the host first, or use one of {}",
                pool.host,
                shown(&hosts)
            ),
            vec![Conflict::new::<Host>(&pool.host, "name", &pool.host)],
        ));
    };
    vlan_domain(state, &pool.host, &pool.switch).ok_or_else(|| {
        let switches: Vec<_> = host.spec.switches.iter().map(|s| &s.name).collect();
        Refusal::conflict(
            format!(
                "switch: host {:?} has no switch {:?}: add it to the host first, or use one of {}",
                pool.host,
                pool.switch,
                shown(&switches)
            ),
            vec![Conflict::new::<Host>(&pool.host, "switches", &pool.switch)],
        )
    })
}

/// Refuses VLANs that another pool of the same switch or trunk has.
fn refuse_overlap(state: &State, new: &Object<VlanPool>, domain: &str) -> Result<(), Refusal> {
    let mut conflicts = Vec::new();
    for other in state
        .vlan_pools
        .iter()
        .filter(|other| other.name() != new.name())
    {
        let (host, switch) = (&other.spec.host, &other.spec.switch);
        if vlan_domain(state, host, switch).as_deref() != Some(domain) {
            continue;
        }
        for (field, theirs) in other.spec.ranges() {
            for (_, ours) in new.spec.ranges() {
                if let Some(both) = ours.intersection(theirs) {
                    conflicts.push(Conflict::new::<VlanPool>(other.name(), field, both));
                }
            }
        }
    }
    Refusal::of_conflicts(conflicts, |first| {
        format!(
            "VLAN pool {:?}: VLAN {} is in pool {:?} ({}) of the same switch or trunk: use other \
             VLANs, or remove them from that pool first",
            new.name(),
            first.value,
            first.name,
            first.field
        )
    })
}

/// Refuses a change that would move a VLAN which a network has.
fn keep_allocations(
    state: &State,
    old: &Object<VlanPool>,
    new: &Object<VlanPool>,
) -> Result<(), Refusal> {
    let is_moved = (&old.spec.host, &old.spec.switch) != (&new.spec.host, &new.spec.switch);
    let is_lost = |network: &&Object<Network>| {
        is_moved
            || !new
                .spec
                .contains(network.status.internet, network.status.vlan)
    };
    let lost: Vec<_> = networks(state, old.name()).filter(is_lost).collect();
    let Some(first) = lost.first() else {
        return Ok(());
    };
    let detail = format!(
        "VLAN pool {:?}: VLAN {} ({}) of switch {:?} is allocated to network {:?} of tenant {:?}: \
         keep it, or end the subscription first",
        old.name(),
        first.status.vlan,
        field(first.status.internet),
        old.spec.switch,
        first.name(),
        first.tenant()
    );
    Err(Refusal::conflict(
        detail,
        lost.into_iter().map(conflict_with).collect(),
    ))
}

/// Claims the next free VLAN of a pool for a network.
///
/// # Errors
/// [`Reason::Exhausted`], with the pool, its switch, and the number that is missing.
pub(super) fn claim_vlans(
    draft: &mut Draft<'_>,
    pool: &Object<VlanPool>,
    internet: bool,
    tenant: &str,
    networks: &[String],
) -> Result<Vec<u16>, Refusal> {
    let spec = &pool.spec;
    let domain = match draft.domain(&spec.host, &spec.switch) {
        Some(domain) => domain,
        // Refuses: the host or the switch is not there.
        None => switch_domain(draft.state, spec)?,
    };
    let vlans = draft.take_vlans(&domain, pool, internet, networks.len());
    if vlans.len() < networks.len() {
        return Err(exhausted(pool, internet, networks.len() - vlans.len()));
    }
    for (network, vlan) in networks.iter().zip(&vlans) {
        let claim = Claim {
            pool: pool.name().to_owned(),
            tenant: tenant.to_owned(),
            owner: network.clone(),
        };
        draft.claim(vlan_claim(&domain, *vlan), &claim);
    }
    Ok(vlans)
}

/// Claims this VLAN of a pool for a network.
///
/// # Errors
/// [`Reason::Conflict`]: the pool does not have the VLAN, or a network has it.
pub(super) fn claim_vlan(
    draft: &mut Draft<'_>,
    pool: &Object<VlanPool>,
    internet: bool,
    vlan: u16,
    tenant: &str,
    network: &str,
) -> Result<(), Refusal> {
    let spec = &pool.spec;
    let domain = match draft.domain(&spec.host, &spec.switch) {
        Some(domain) => domain,
        // Refuses: the host or the switch is not there.
        None => switch_domain(draft.state, spec)?,
    };
    let (name, field) = (pool.name(), field(internet));
    if !spec.contains(internet, vlan) {
        return Err(Refusal::conflict(
            format!(
                "allocation: VLAN {vlan} of network {network:?} is not in {field} of pool \
                 {name:?}: add it there, or omit the network"
            ),
            vec![Conflict::new::<VlanPool>(name, field, vlan)],
        ));
    }
    let key = vlan_claim(&domain, vlan);
    if let Some(claim) = draft.state.claims.get(&key) {
        let conflict = Conflict::new::<Network>(&claim.owner, "vlan", vlan).of(&claim.tenant);
        return Err(Refusal::conflict(
            format!(
                "allocation: VLAN {vlan} of network {network:?} is allocated to network {:?} of \
                 tenant {:?}: write another VLAN, or omit the network",
                claim.owner, claim.tenant
            ),
            vec![conflict],
        ));
    }
    let claim = Claim {
        pool: name.to_owned(),
        tenant: tenant.to_owned(),
        owner: network.to_owned(),
    };
    draft.claim(key, &claim);
    Ok(())
}

fn exhausted(pool: &Object<VlanPool>, internet: bool, missing: usize) -> Refusal {
    let (field, name) = (field(internet), pool.name());
    let ranges: Vec<_> = match internet {
        true => &pool.spec.with_internet,
        false => &pool.spec.without_internet,
    }
    .iter()
    .map(ToString::to_string)
    .collect();
    Refusal::new(
        Reason::Exhausted,
        format!(
            "VLAN pool {name:?} of switch {:?} on host {:?} has no free VLAN {} for {missing} more \
             networks: add a range to {field} of the pool",
            pool.spec.switch,
            pool.spec.host,
            field.replace('_', " "),
        ),
        vec![Conflict::new::<VlanPool>(name, field, ranges.join(", "))],
    )
}

/// Gives the VLAN of a network back.
pub(super) fn release_vlan(draft: &mut Draft<'_>, network: &Object<Network>) {
    let status = &network.status;
    if let Some(domain) = draft.domain(&status.host, &status.switch) {
        draft.release(vlan_claim(&domain, status.vlan));
    }
}
