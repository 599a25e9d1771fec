//! Public IP rules of the plan in force: added, removed, listed, checked.

use failover::{Rule, RuleChange, RuleProblem, RuleSet};
use service::socket::Page;

use super::{
    Outcome,
    modes::{plan, plan_context},
    one_tenant, tenants,
};
use crate::{
    control::{Answer, RULES_PAGE, RequestRefusal, RuleStatus, RulesChecked},
    daemon::controller::{Controller, Proposal},
    datapath::reconcile::mode_of,
    state::FailoverState,
};

/// The plan in force with rules added or removed, all or none, with the tenant that it is of.
///
/// # Errors
/// The refusal.
pub(super) fn change(
    controller: &Controller,
    tenant: Option<&str>,
    changes: Vec<RuleChange>,
) -> Result<(String, Proposal), RequestRefusal> {
    let tenant = one_tenant(controller, tenant)?;
    let proposal = with_rules(controller, &tenant, changes)?;
    Ok((tenant, proposal))
}

pub(super) fn with_rules(
    controller: &Controller,
    tenant: &str,
    changes: Vec<RuleChange>,
) -> Result<Proposal, RequestRefusal> {
    let state = controller.state();
    let Some(in_force) = plan(controller, tenant) else {
        return Err(RequestRefusal::new(
            "conflict",
            format!(
                "tenant {tenant:?} is {}: public IP rules belong to a full failover: \
                 write them into its plan as [[rule]], and begin it (`mode full --plan FILE`)",
                mode_of(state, tenant).name()
            ),
        ));
    };
    let plan = in_force
        .apply(&plan_context(controller, tenant)?, changes)
        .map_err(|problems| RequestRefusal::new("invalid", lines(&problems)))?;
    let mut new = state.clone();
    let mode = new.modes.entry(tenant.to_owned()).or_default();
    mode.failover = FailoverState::Full(Box::new(plan));
    Ok(Proposal::state(new))
}

pub(super) fn list(controller: &Controller, tenant: Option<&str>, after: Option<&str>) -> Outcome {
    let mut tenants = match tenant {
        None => tenants(controller),
        Some(_) => vec![one_tenant(controller, tenant)?],
    };
    tenants.sort_unstable();
    let rules = tenants.iter().flat_map(|tenant| {
        let rules = plan(controller, tenant)
            .into_iter()
            .flat_map(|p| p.rules().iter());
        rules.map(move |rule| (tenant, rule))
    });
    // A space sorts before every character of a name.
    let key = |(tenant, rule): &(&String, &Rule)| format!("{tenant} {}", rule.name());
    let page = Page::of(rules, key, after, RULES_PAGE);
    Ok(Answer::Rules(page.map(|(tenant, rule)| RuleStatus {
        tenant: tenant.clone(),
        rule: rule.clone(),
    })))
}

/// Why adding rules would be refused.
pub(super) fn check(controller: &Controller, tenant: Option<&str>, rules: Vec<Rule>) -> Outcome {
    let tenant = one_tenant(controller, tenant)?;
    let context = plan_context(controller, &tenant)?;
    let count = rules.len();
    let result = match plan(controller, &tenant) {
        Some(plan) => {
            let changes = rules.into_iter().map(RuleChange::Add).collect();
            plan.apply(&context, changes).map(drop)
        }
        None => RuleSet::new(&context, rules).map(drop),
    };
    let problems = result.err().into_iter().flatten();
    let refused: Vec<String> = problems.map(|p| p.to_string()).collect();
    Ok(Answer::RulesChecked(RulesChecked {
        tenant,
        rules: count,
        refused,
    }))
}

fn lines(problems: &[RuleProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
