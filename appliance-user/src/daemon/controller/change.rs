//! The one way in which configuration and state in force change: as a whole, or not at all.
//!
//! ```text
//!   Proposal ─▶ check: tables ─▶ Checked ─▶ prepare: bind, write state.json.new ─▶ Prepared
//!                 │ refused                   │ refused (on another thread)         │
//!                 ▼                           ▼                                     │
//!            nothing was touched        nothing was touched                         │
//!                                                                                   ▼
//!            all are put back ◀─ fails ─ put_in_force: NICs, maps ─▶ rename ─▶ peers, announce
//! ```
//!
//! Each part of a change takes what the part before it returned, so that none can be left out. The
//! loop runs between them, while the disk is waited for; nothing else changes what is in force
//! meanwhile, but links and routes may change.
//!
//! A refused request changes nothing: neither files nor maps, and nothing is announced to hosts.
//! What cannot be put back comes after all that can fail: a peer that is removed loses its session,
//! a listener its address.

use std::{collections::BTreeSet, time::Instant};

use anyhow::Context as _;
use appliance_common::maps::{HostKey, Mode};
use tunnel_worker::{ListenerSetup, NewListener};

use super::{Controller, InForce, Proposal, assign_slots};
use crate::{
    config::Role,
    control::RequestRefusal,
    daemon::{Daemon, engines::Engines},
    datapath::reconcile::MapContents,
    state::{CommittedState, PreparedState, Store},
};

/// A proposal for which the maps have room, with the setup of its listener.
struct Checked {
    proposal: Proposal,
    setup: Option<ListenerSetup>,
    store: Store,
}

/// A proposal whose addresses are bound and whose state is beside the old one: one that fails
/// needs no disk to be undone.
struct Prepared {
    proposal: Proposal,
    listener: Option<NewListener>,
    state: PreparedState,
}

impl Daemon {
    /// Puts a proposal in force, whole or not at all: see the [module](self). The loop goes on
    /// while the disk is waited for.
    ///
    /// # Errors
    /// The refusal. Everything is then as it was before.
    pub(in crate::daemon) async fn change(
        &mut self,
        proposal: Proposal,
    ) -> Result<(), RequestRefusal> {
        let checked = self.controller.check(proposal)?;
        let prepared = self.on_disk(move || checked.prepare()).await;
        let prepared = prepared.map_err(internal)??;
        let committed = self.controller.put_in_force(prepared, &mut self.engines)?;
        // The request is answered when the new name of the file is on the disk, too.
        if let Err(error) = self.on_disk(move || committed.sync()).await {
            tracing::warn!(error = format!("{error:#}"), "cannot synchronize the state");
        }
        Ok(())
    }
}

impl Checked {
    /// Binds the addresses, and writes the state beside the old one. Waits for the disk.
    ///
    /// # Errors
    /// The refusal; nothing was changed.
    fn prepare(self) -> Result<Prepared, RequestRefusal> {
        let listener = self.setup.map(ListenerSetup::prepare).transpose();
        let listener = listener.map_err(|error| {
            let message = format!("tls.listen: {error}; nothing was changed");
            RequestRefusal::new("invalid", message)
        })?;
        let state = self
            .store
            .prepare(&self.proposal.state)
            .context("the state could not be saved; nothing was changed")
            .map_err(internal)?;
        Ok(Prepared {
            proposal: self.proposal,
            listener,
            state,
        })
    }
}

impl Controller {
    /// Gives the parts of a proposal their slots, and checks that the maps have room for it.
    /// Touches neither a file, a map nor the wire.
    ///
    /// # Errors
    /// The refusal.
    fn check(&self, mut proposal: Proposal) -> Result<Checked, RequestRefusal> {
        let config = match &proposal.file {
            Some(file) => &file.0,
            None => &self.in_force.config,
        };
        assign_slots(config, &mut proposal.state);
        self.checked_tables(&proposal)?;
        let config = proposal.file.as_ref().map(|file| &file.0);
        Ok(Checked {
            setup: config.and_then(|config| self.tunnels.listener_setup(config)),
            store: self.files.store.clone(),
            proposal,
        })
    }

    /// Puts a proposal in force in programs and maps, gives its state file the name of the old
    /// one, and then changes peers and tells the engines what to announce.
    ///
    /// # Errors
    /// The refusal; programs and maps are put back.
    fn put_in_force(
        &mut self,
        prepared: Prepared,
        engines: &mut Engines,
    ) -> Result<CommittedState, RequestRefusal> {
        let Prepared {
            proposal,
            listener,
            state,
        } = prepared;
        // Links and routes may have changed since the check.
        let wanted = self.checked_tables(&proposal)?;
        let before = Announced::of(&self.in_force);
        let reload = proposal.file.is_some();
        let undo = self.in_force.swap(proposal);
        let now = Instant::now();
        let applied = if reload {
            self.apply_configuration(now, engines)
        } else {
            self.write_tables(wanted).map_err(Into::into)
        };
        // A change in force must survive the process.
        let committed = applied.and_then(|()| state.commit().map_err(Into::into));
        let committed = match committed {
            Ok(committed) => committed,
            Err(error) => {
                self.in_force.swap(undo);
                self.roll_back(now, reload, engines);
                return Err(internal(
                    error.context("the change could not be applied and was undone"),
                ));
            }
        };

        // Nothing below can fail. Peers come after the tables: those that are removed lose their
        // sessions.
        if reload {
            self.set_peers();
            self.tunnels.listen(&self.in_force.config, listener);
            self.underlay_changed();
        }

        // Tell the wire.
        self.update_senders(now, engines);
        self.notify_engines(now, &before, engines);
        if reload {
            self.keep_hosts_resolved(now, engines);
        }
        self.update_served_addresses(now, engines);
        self.report_problems();
        Ok(committed)
    }

    /// The tables that a proposal wants.
    ///
    /// # Errors
    /// When a map has no room for them.
    fn checked_tables(&self, proposal: &Proposal) -> Result<MapContents, RequestRefusal> {
        let wanted = self.wanted(proposal.config(&self.in_force.config), &proposal.state);
        wanted
            .check_capacity()
            .map_err(|message| RequestRefusal::new("conflict", message))?;
        Ok(wanted)
    }

    /// Restores programs and maps after a failed change. A failure is tried again each second.
    fn roll_back(&mut self, now: Instant, reload: bool, engines: &mut Engines) {
        let applied = if reload {
            self.apply_configuration(now, engines)
        } else {
            self.reconcile().map_err(Into::into)
        };
        if let Err(error) = applied {
            self.incomplete = true;
            tracing::error!(
                error = format!("{error:#}"),
                "cannot restore the data path after a failed change; retrying every second"
            );
        }
    }

    /// Tells the engines which addresses failed over and which went back, and which hosts are to be
    /// resolved.
    fn notify_engines(&self, now: Instant, before: &Announced, engines: &mut Engines) {
        let after = Announced::of(&self.in_force);
        let role = self.in_force.config.role;
        if role == Role::Provider {
            // The announcements of an earlier mode end: a replica that boots in the new one must
            // not hear that its address is in use.
            for (vni, _) in before.modes.difference(&after.modes) {
                engines.cancel_announcements(*vni);
            }
        }
        let partial = Mode::Partial as u32;
        for key in before.endpoints.difference(&after.endpoints) {
            let still_partial = after.modes.contains(&(key.vni, partial));
            engines.endpoint_removed(now, role, *key, still_partial);
        }
        for key in after.endpoints.difference(&before.endpoints) {
            engines.endpoint_added(now, role, *key);
        }
        let gone = before.rule_targets.difference(&after.rule_targets);
        for key in gone.filter(|key| !after.endpoints.contains(key)) {
            engines.release(now, *key);
        }
        engines.retain_resolved(now, after.rule_targets);
    }
}

/// The state that hosts on the wire know, to announce the difference after a change.
struct Announced {
    modes: BTreeSet<(u32, u32)>,
    endpoints: BTreeSet<HostKey>,
    rule_targets: BTreeSet<HostKey>,
}

impl Announced {
    fn of(in_force: &InForce) -> Self {
        Self {
            modes: in_force.modes(),
            endpoints: in_force.endpoints(),
            rule_targets: in_force.rule_targets(),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn internal(error: anyhow::Error) -> RequestRefusal {
    RequestRefusal::new("internal", format!("{error:#}"))
}
