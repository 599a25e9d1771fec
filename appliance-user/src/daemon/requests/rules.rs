//! Public IP rules of the plan in force: added, removed, listed, checked.

use failover::{Rule, RuleChange, RuleProblem, RuleSet};
use service::socket::Page;

use super::Outcome;
use crate::{
    control::{
        Answer, RULES_PAGE, RequestRefusal, RuleStatus, RulesAdded, RulesChecked, RulesRemoved,
    },
    daemon::{Daemon, controller::Proposal},
    datapath::reconcile::mode_of,
    state::FailoverState,
};

impl Daemon {
    pub(super) async fn rule_add(&mut self, tenant: Option<&str>, rules: Vec<Rule>) -> Outcome {
        let names: Vec<String> = rules.iter().map(|r| r.name().to_owned()).collect();
        let changes = rules.into_iter().map(RuleChange::Add).collect();
        self.change_rules(tenant, changes).await?;
        Ok(Answer::RulesAdded(RulesAdded { added: names }))
    }

    pub(super) async fn rule_remove(
        &mut self,
        tenant: Option<&str>,
        names: Vec<String>,
    ) -> Outcome {
        let changes = names.iter().cloned().map(RuleChange::Remove).collect();
        self.change_rules(tenant, changes).await?;
        Ok(Answer::RulesRemoved(RulesRemoved { removed: names }))
    }

    /// Changes the rules of the plan in force, all or none.
    async fn change_rules(
        &mut self,
        tenant: Option<&str>,
        changes: Vec<RuleChange>,
    ) -> Result<(), RequestRefusal> {
        let tenant = self.one_tenant(tenant)?;
        let count = changes.len();
        let proposal = self.with_rules(&tenant, changes)?;
        self.change(proposal).await?;
        tracing::info!(tenant, count, "public IP rules changed");
        Ok(())
    }

    pub(in crate::daemon) fn with_rules(
        &self,
        tenant: &str,
        changes: Vec<RuleChange>,
    ) -> Result<Proposal, RequestRefusal> {
        let state = &self.in_force.state;
        let Some(plan) = self.plan(tenant) else {
            return Err(RequestRefusal::new(
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
            .map_err(|problems| RequestRefusal::new("invalid", lines(&problems)))?;
        let mut new = state.clone();
        let mode = new.modes.entry(tenant.to_owned()).or_default();
        mode.failover = FailoverState::Full(Box::new(plan));
        Ok(Proposal::state(new))
    }

    pub(super) fn rule_list(&self, tenant: Option<&str>, after: Option<&str>) -> Outcome {
        let mut tenants = match tenant {
            None => self.tenants(),
            Some(_) => vec![self.one_tenant(tenant)?],
        };
        tenants.sort_unstable();
        let rules = tenants.iter().flat_map(|tenant| {
            let rules = self.plan(tenant).into_iter().flat_map(|p| p.rules().iter());
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
    pub(super) fn rule_check(&self, tenant: Option<&str>, rules: Vec<Rule>) -> Outcome {
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
        Ok(Answer::RulesChecked(RulesChecked {
            tenant,
            rules: count,
            refused,
        }))
    }
}

fn lines(problems: &[RuleProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
