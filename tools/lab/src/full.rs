//! Full site failover of a lab's sites: the production site cut off, its replicas running, the plan
//! in force.

use std::{fs, path::PathBuf, time::Instant};

use crate::{
    error::{During as _, Result},
    site::Lab,
    topology::{Attach, Failover, Machine},
};

/// When the steps of a full site failover were done.
#[derive(Clone, Copy, Debug)]
pub struct SiteSwitch {
    /// Before the first step.
    pub began: Instant,
    /// When the production site was cut off and the replicas had booted, before the request.
    pub booted: Instant,
    /// The appliance has switched.
    pub switched: Instant,
}

impl Lab {
    /// The full site failover of a tenant.
    ///
    /// # Errors
    /// [`Error::Unknown`](crate::Error::Unknown).
    pub fn failover(&self, tenant: &str) -> Result<&Failover> {
        let all = &self.topology().failovers;
        all.iter()
            .find(|f| f.tenant == tenant)
            .ok_or_else(|| self.unknown("failover", tenant, all.iter().map(|f| &f.tenant)))
    }

    #[must_use]
    pub fn plan_path(&self, tenant: &str) -> PathBuf {
        let file = format!("{tenant}-plan.toml");
        self.run_dir().join("etc").join(file)
    }

    /// Writes a tenant's plan, unless it is there: a test, or a person, may have changed it.
    ///
    /// # Errors
    /// If there is no such failover, or it cannot be written.
    pub fn write_plan(&self, tenant: &str) -> Result<PathBuf> {
        let text = &self.failover(tenant)?.plan;
        let path = self.plan_path(tenant);
        if !path.exists() {
            fs::write(&path, text).during(|| format!("writing {}", path.display()))?;
        }
        Ok(path)
    }

    /// Fails a tenant's site over whole: the production site cut off, the replicas powered on and
    /// usable, the appliance in mode full.
    ///
    /// # Errors
    /// If there is no such failover, or a step fails.
    pub fn fail_over_site(&self, tenant: &str) -> Result<SiteSwitch> {
        let began = Instant::now();
        self.cut(&self.failover(tenant)?.wan)?;
        self.boot_replicas(tenant)?;
        let booted = Instant::now();
        self.mode_full(tenant)?;
        let switched = Instant::now();
        Ok(SiteSwitch {
            began,
            booted,
            switched,
        })
    }

    /// The way back: the appliance in mode idle, the replicas off, the production site reachable
    /// again.
    ///
    /// # Errors
    /// If there is no such failover, or a step fails.
    pub fn undo_site(&self, tenant: &str) -> Result<()> {
        self.mode_idle(tenant)?;
        for machine in self.machines_of(tenant) {
            self.power(&machine.replica, false)?;
        }
        self.restore_link(&self.failover(tenant)?.wan)
    }

    /// Powers a tenant's replicas on, and waits until their addresses are usable.
    ///
    /// # Errors
    /// As [`Lab::power`] and [`Lab::wait_for_dad`].
    pub fn boot_replicas(&self, tenant: &str) -> Result<()> {
        for machine in self.machines_of(tenant) {
            self.power(&machine.replica, true)?;
        }
        self.machines_of(tenant)
            .try_for_each(|m| self.wait_for_dad(&m.replica))
    }

    /// Switches the tenant to full failover with its plan; returns the command's output.
    ///
    /// # Errors
    /// If there is no such failover, or the appliance refuses.
    pub fn mode_full(&self, tenant: &str) -> Result<String> {
        let plan = self.write_plan(tenant)?;
        let appliance = self.appliance(&self.failover(tenant)?.appliance)?;
        let plan = plan.to_string_lossy();
        let said = appliance.must(&["mode", "--tenant", tenant, "full", "--plan", &plan])?;
        self.note_site(tenant, true)?;
        Ok(said)
    }

    /// Switches the tenant back to idle; returns the command's output.
    ///
    /// # Errors
    /// If there is no such failover, or the appliance refuses.
    pub fn mode_idle(&self, tenant: &str) -> Result<String> {
        let appliance = self.appliance(&self.failover(tenant)?.appliance)?;
        let said = appliance.must(&["mode", "--tenant", tenant, "idle"])?;
        self.note_site(tenant, false)?;
        Ok(said)
    }

    fn note_site(&self, tenant: &str, over: bool) -> Result<()> {
        self.machines_of(tenant)
            .try_for_each(|m| self.note_failed_over(&m.production, over))
    }

    fn machines_of(&self, tenant: &str) -> impl Iterator<Item = &Machine> {
        let all = self.topology().machines.iter();
        all.filter(move |m| m.tenant == tenant)
    }

    /// Cuts a WAN link: both its ends go down.
    ///
    /// # Errors
    /// If there is no such link.
    pub fn cut(&self, wan: &str) -> Result<()> {
        for (host, link) in self.ends_of(wan)? {
            self.link(&host, &[format!("link set {link} down")])?;
        }
        Ok(())
    }

    /// Restores a WAN link that was cut, with addresses and routes.
    ///
    /// # Errors
    /// If there is no such link.
    pub fn restore_link(&self, wan: &str) -> Result<()> {
        let ends = self.ends_of(wan)?;
        for (host, link) in &ends {
            self.link(host, &[format!("link set {link} up")])?;
        }
        for (host, _) in &ends {
            self.restore(host)?;
        }
        ends.iter()
            .try_for_each(|(host, _)| self.wait_for_dad(host))
    }

    /// Host and link of each end of a WAN link.
    fn ends_of(&self, wan: &str) -> Result<Vec<(String, String)>> {
        let wans = &self.topology().wans;
        if !wans.iter().any(|w| w.name == wan) {
            return Err(self.unknown("WAN link", wan, wans.iter().map(|w| &w.name)));
        }
        let ends = self.topology().links().filter(|(_, link)| match &link.to {
            Attach::Wan { wan: name } => name == wan,
            Attach::Access { .. } | Attach::Trunk { .. } => false,
        });
        Ok(ends
            .map(|(host, link)| (host.name.clone(), link.name.clone()))
            .collect())
    }
}
