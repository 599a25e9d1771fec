//! Problems of the failovers in force: what does not fit the configuration or what the kernel says,
//! and whether translated packets can be sent.

use std::{collections::BTreeSet, net::IpAddr};

use super::Controller;
use crate::{
    config::Config,
    datapath::reconcile::{self, check_endpoint},
    kernel::ip_forwarding,
};

/// Problems of the failovers in force, as last reported.
#[derive(Default)]
pub(super) struct FailoverHealth {
    sending: ip_forwarding::ForwardingCheck,
    problems: BTreeSet<String>,
}

impl FailoverHealth {
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

impl Controller {
    /// The problems of the failovers in force, for status.
    pub fn failover_problems(&self) -> impl Iterator<Item = &String> {
        self.health.problems.iter()
    }

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

    /// Failed-over addresses that do not fit `config`.
    pub fn misplaced_endpoints(&self, config: &Config) -> Vec<String> {
        let own = self.own_addresses();
        let mut problems = Vec::new();
        for (name, addresses) in &self.in_force.state.endpoints {
            let Some(network) = config.network(name) else {
                let count = addresses.len();
                let addresses = addresses.iter().take(3).map(ToString::to_string);
                let more = if count > 3 { " ..." } else { "" };
                problems.push(format!(
                    "network {name:?} has {count} failed-over address{} and is not configured: \
                     put it back into the configuration, or remove them (`causeway-appliance \
                     endpoint remove --network {name} {}{more}`)",
                    if count == 1 { "" } else { "es" },
                    addresses.collect::<Vec<_>>().join(" "),
                ));
                continue;
            };
            let misfit = |address: &IpAddr| check_endpoint(network, &own, *address).err();
            problems.extend(addresses.iter().filter_map(misfit));
        }
        problems
    }
}
