//! Reload: the configuration file read again, checked whole, and put in force whole or not at all.

use service::{
    desired::{Source, UpdateRefusal},
    http,
};

use crate::{
    config::{Config, desired::Desired},
    control::RequestRefusal,
    daemon::{
        Daemon,
        controller::{Controller, InForce, Proposal},
        keys::Keys,
        metrics,
    },
    datapath::{nat, reconcile},
    state::FailoverState,
};

impl Daemon {
    /// Reads the file again and puts it in force.
    ///
    /// # Errors
    /// The refusal; the running configuration stays in force.
    pub(in crate::daemon) async fn reload_file(&mut self) -> Result<(), RequestRefusal> {
        let proposal = read_file(&self.controller)?;
        let address = proposal.file.as_ref().and_then(|file| file.0.metrics);
        // Also if it is open already: it may have been moved away.
        let target = proposal
            .file
            .as_ref()
            .and_then(|file| file.0.nat.log.as_ref());
        let log = target.map(nat::log::Output::open).transpose();
        let log = log.map_err(|error| RequestRefusal::new("invalid", error.to_string()))?;
        let same = self.reports.http.as_ref().map(http::Server::configured) == address;
        // The new address is bound before anything changes, and the old one is given up after it.
        let http = if same {
            None
        } else {
            metrics::serve(&self.reports.metrics, address, &self.reports.loop_health)
                .await
                .map_err(|error| RequestRefusal::new("invalid", error.to_string()))?
        };
        self.change(proposal).await?;
        self.nat_log.set_output(log);
        self.name_tenants_in_log();
        if !same {
            self.reports.http = http;
            self.sample_metrics();
        }
        Ok(())
    }
}

/// The file as a proposal. Where it has no objects, those in force stay.
fn read_file(controller: &Controller) -> Result<Proposal, RequestRefusal> {
    let invalid = |message: String| RequestRefusal::new("invalid", message);
    let config = Config::load(&controller.files().config).map_err(|e| invalid(e.to_string()))?;
    if config.source == Source::File {
        let desired = Box::new(Desired::of_file(&config));
        return proposal(controller, config, desired);
    }
    let desired = desired(controller);
    let config = config.with_objects(&desired.objects).map_err(|problems| {
        let problems = UpdateRefusal::Invalid(problems);
        invalid(format!(
            "the objects in force do not fit the new file: {problems}"
        ))
    })?;
    proposal(controller, config, Box::new(desired))
}

/// The objects in force, with their revision.
pub(super) fn desired(controller: &Controller) -> Desired {
    let InForce { config, state, .. } = controller.in_force();
    match (config.source, &state.desired) {
        (Source::File, _) => Desired::of_file(config),
        (_, Some(desired)) => (**desired).clone(),
        (_, None) => Desired::default(),
    }
}

/// A checked change to another configuration. `desired` is the origin of its objects.
///
/// # Errors
/// The refusal.
pub(super) fn proposal(
    controller: &Controller,
    config: Config,
    desired: Box<Desired>,
) -> Result<Proposal, RequestRefusal> {
    let invalid = |message: String| RequestRefusal::new("invalid", message);
    let keys = Keys::load(&config).map_err(|e| invalid(e.to_string()))?;
    config.check_ports().map_err(|e| invalid(e.to_string()))?;
    let running = controller.config();
    if config.tunnel != running.tunnel || !keys.same_identity(&controller.in_force().keys) {
        return Err(invalid(
            "[tunnel] and our private key take effect at a restart (`systemctl restart \
             causeway-appliance`; encrypted traffic pauses for a second); the running \
             configuration stays in force"
                .to_owned(),
        ));
    }
    if let Some(key) = fixed_key(running, &config) {
        return Err(invalid(format!(
            "{key} takes effect at a restart (`systemctl restart \
             causeway-appliance`; traffic continues); the running configuration stays in force"
        )));
    }
    let problems = controller.misplaced_endpoints(&config);
    if !problems.is_empty() {
        return Err(invalid(format!(
            "failed-over addresses would lose their network; remove them first: {}",
            problems.join("; ")
        )));
    }
    let state = controller.state();
    let problems = reconcile::new_problems(running, &config, state, controller.snapshot());
    if !problems.is_empty() {
        return Err(invalid(format!(
            "parts of failovers would lose their effect, and the running configuration stays \
             in force; correct the file, or undo the failover first (`mode idle`): {}",
            problems.join("; ")
        )));
    }
    let mut state = state.clone();
    // A failover of a tenant that is gone stays until it is undone, or the tenant is back.
    state.modes.retain(|tenant, mode| {
        mode.failover != FailoverState::Idle || config.tenant(tenant).is_some()
    });
    state.desired = Some(desired);
    Ok(Proposal {
        file: Some(Box::new((config, keys))),
        state,
    })
}

/// The first key that differs and takes effect at a restart only.
fn fixed_key(running: &Config, new: &Config) -> Option<&'static str> {
    let differs = [
        ("appliance.name", new.name != running.name),
        ("appliance.role", new.role != running.role),
        ("appliance.state_dir", new.state_dir != running.state_dir),
        ("appliance.pin_dir", new.pin_dir != running.pin_dir),
        (
            "appliance.control_socket",
            new.control_socket != running.control_socket,
        ),
        ("agent", new.agent != running.agent),
        ("appliance.bpf_object", new.bpf_object != running.bpf_object),
        (
            "nat.connections",
            new.nat.connections != running.nat.connections,
        ),
        ("nat.mappings", new.nat.mappings != running.nat.mappings),
    ];
    let first = differs.into_iter().find(|(_, differs)| *differs);
    first.map(|(key, _)| key)
}
