//! Problems of the failovers in force: what does not fit the configuration or what the kernel says,
//! and whether translated packets can be sent.

use std::collections::BTreeSet;

use super::Daemon;
use crate::{datapath::reconcile, kernel::forwarding};

/// Problems of the failovers in force, as last reported.
#[derive(Default)]
pub(super) struct FailoverHealth {
    sending: forwarding::ForwardingCheck,
    problems: BTreeSet<String>,
}

impl FailoverHealth {
    /// The problems, for status.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.iter()
    }

    /// Logs the problems that are new and those that are resolved.
    fn report(&mut self, mut problems: BTreeSet<String>) {
        problems.extend(self.sending.problem().map(ToOwned::to_owned));
        for problem in problems.difference(&self.problems) {
            tracing::warn!(problem, "part of a failover is not in force");
        }
        for problem in self.problems.difference(&problems) {
            tracing::info!(problem, "failover problem resolved");
        }
        self.problems = problems;
    }
}

impl Daemon {
    /// Checks that translated packets can be sent, and allows it where an operator's tool has
    /// switched off something that they need.
    pub(super) fn check_sending(&mut self) {
        if self.health.sending.update(self.in_force.any_full()) {
            self.report_problems();
        }
    }

    /// Logs which problems the failovers in force have, and which are resolved.
    pub(super) fn report_problems(&mut self) {
        let (config, state) = (&self.in_force.config, &self.in_force.state);
        let misfits = reconcile::failover_problems(config, state, &self.snapshot);
        let problems = self.misplaced_endpoints(config).into_iter().chain(misfits);
        self.health.report(problems.collect());
    }
}
