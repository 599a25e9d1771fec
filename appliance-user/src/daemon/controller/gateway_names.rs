//! DNS names of gateways, as `service::names` resolves them.
//!
//! ```text
//!   configuration ─▶ Resolver ─ change ─▶ addresses of gateways ─▶ tunnels
//!                        ▲
//!                        └─ a gateway does not answer ─ tunnels
//! ```

use std::{io, path::Path, time::Duration};

use gateway_client::dial::{NameSettings, Target};
use service::names::{Progress, Resolver};
use tokio::sync::watch;

use crate::{
    config::{Config, Gateway},
    control::GatewayNameStatus,
};

/// The names of the configured gateways, and their addresses.
#[derive(Debug)]
pub(in crate::daemon) struct GatewayNames {
    resolver: Resolver,
    progress: watch::Receiver<Progress>,
    /// Changes that the owner knows of.
    changes: u64,
}

impl GatewayNames {
    /// Without names; their addresses are kept in `state_dir`. Daemons with different seeds ask at
    /// different times.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(state_dir: &Path, seed: u64) -> io::Result<Self> {
        let file = state_dir.join("names.json");
        let resolver = Resolver::start(NameSettings::default(), seed, Some(file))?;
        Ok(Self {
            progress: resolver.progress(),
            resolver,
            changes: 0,
        })
    }

    /// Takes the names of a configuration; those that stay keep their addresses.
    pub fn set(&self, config: &Config) {
        let endpoints = config.gateways.all.iter().flat_map(|g| &g.addresses);
        let names = endpoints.filter_map(|e| e.name().cloned());
        self.resolver.set(names.collect());
    }

    /// The addresses of a gateway, as far as they are known.
    pub fn addresses(&self, gateway: &Gateway) -> Target {
        self.resolver.target(&gateway.name, &gateway.addresses)
    }

    /// Waits until addresses of gateways changed.
    pub async fn changed(&mut self) {
        loop {
            let changes = self.progress.borrow_and_update().changes;
            if changes != self.changes {
                self.changes = changes;
                return;
            }
            if self.progress.changed().await.is_err() {
                // Not reached: the resolver is kept here.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A gateway does not answer: names are looked up soon.
    pub fn expedite(&self) {
        self.resolver.expedite();
    }

    /// Whether there are names.
    pub fn is_empty(&self) -> bool {
        self.resolver.is_empty()
    }

    /// The names, for the operator.
    pub fn status(&self) -> Vec<GatewayNameStatus> {
        let states = self.resolver.states().into_iter();
        states
            .map(|state| GatewayNameStatus {
                name: state.name.to_string(),
                addresses: state.addresses,
                age_seconds: state.age.as_ref().map(Duration::as_secs),
                error: state.error,
            })
            .collect()
    }
}
