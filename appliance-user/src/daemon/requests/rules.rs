//! Public IP rules of the plan in force: added, removed, listed, checked.

use failover::{Rule, RuleChange, RuleProblem, RuleSet};
use serde_json::{Value, json};

use super::Answer;
use crate::{
    control::Refusal,
    daemon::{Daemon, controller::Proposal},
    datapath::reconcile::mode_of,
    state::FailoverState,
};

impl Daemon {
    pub(super) fn rule_add(&mut self, tenant: Option<&str>, rules: Vec<Rule>) -> Answer {
        let names: Vec<String> = rules.iter().map(|r| r.name().to_owned()).collect();
        let changes = rules.into_iter().map(RuleChange::Add).collect();
        self.change_rules(tenant, changes)?;
        Ok(json!({ "added": names }))
    }

    pub(super) fn rule_remove(&mut self, tenant: Option<&str>, names: Vec<String>) -> Answer {
        let changes = names.iter().cloned().map(RuleChange::Remove).collect();
        self.change_rules(tenant, changes)?;
        Ok(json!({ "removed": names }))
    }

    /// Changes the rules of the plan in force, all or none.
    fn change_rules(
        &mut self,
        tenant: Option<&str>,
        changes: Vec<RuleChange>,
    ) -> Result<(), Refusal> {
        let tenant = self.one_tenant(tenant)?;
        let count = changes.len();
        let proposal = self.with_rules(&tenant, changes)?;
        self.change(proposal)?;
        tracing::info!(tenant, count, "public IP rules changed");
        Ok(())
    }

    pub(in crate::daemon) fn with_rules(
        &self,
        tenant: &str,
        changes: Vec<RuleChange>,
    ) -> Result<Proposal, Refusal> {
        let state = &self.in_force.state;
        let Some(plan) = self.plan(tenant) else {
            return Err(Refusal::new(
                "conflict",
                format!(
                    "tenant {tenant:?} is {}: public IP rules belong to a full failover: \
                     write them into its plan as [[rule]], and begin it (`mode full --plan FILE`)",
                    mode_of(state, tenant).name()
                ),
            ));
        };
        let plan = plan
            .apply(&self.plan_context(tenant)?, changes)
            .map_err(|problems| Refusal::new("invalid", lines(&problems)))?;
        let mut new = state.clone();
        let mode = new.modes.entry(tenant.to_owned()).or_default();
        mode.failover = FailoverState::Full(Box::new(plan));
        Ok(Proposal::state(new))
    }

    pub(super) fn rule_list(&self, tenant: Option<&str>) -> Answer {
        let tenants = match tenant {
            None => self.tenants(),
            Some(_) => vec![self.one_tenant(tenant)?],
        };
        let rules = tenants.iter().flat_map(|tenant| {
            let rules = self.plan(tenant).into_iter().flat_map(|p| p.rules().iter());
            rules.map(move |rule| json!({ "tenant": tenant, "rule": rule }))
        });
        Ok(rules.collect::<Vec<Value>>().into())
    }

    /// Why adding rules would be refused.
    pub(super) fn rule_check(&self, tenant: Option<&str>, rules: Vec<Rule>) -> Answer {
        let tenant = self.one_tenant(tenant)?;
        let context = self.plan_context(&tenant)?;
        let count = rules.len();
        let result = match self.plan(&tenant) {
            Some(plan) => {
                let changes = rules.into_iter().map(RuleChange::Add).collect();
                plan.apply(&context, changes).map(drop)
            }
            None => RuleSet::new(&context, rules).map(drop),
        };
        let problems = result.err().into_iter().flatten();
        let refused: Vec<String> = problems.map(|p| p.to_string()).collect();
        Ok(json!({ "tenant": tenant, "rules": count, "refused": refused }))
    }
}

fn lines(problems: &[RuleProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
