//! Puts a configuration in force: at the start, and later whole or not at all.
//!
//! ```text
//!   file ──▶ Local ─────────────────────────▶ sockets, metrics, XDP: prepared ─┐
//!     └────▶ desired state, if it has one ─┐                                   ├─▶ in force
//!   apply ─▶ snapshot or delta ────────────┴▶ Model: prepared ─▶ differences ──┘
//!                                                                    └─▶ store
//! ```

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use gateway_client::backoff::Backoff;
use prometheus_client::registry::Registry;
use service::{Context, Health, http, run::ProcessMetrics, xdp::Setting};

use gateway_model::{Applied, Changes, Model, Snapshot, Source, Update};
use service::config::Checker;

use super::{
    Error,
    files::{self, Shares},
    store::{Done, Job, Store, Stored},
};
use crate::{
    circuit::{
        counters::Collected,
        fast::{self, Fast},
        socket::{Circuits, Setup},
    },
    config::{Config, Local},
    relay::{Backend, Desired, Relay, route::Table},
};

/// The XDP program where none is configured.
const BPF_OBJECT: &str = "/usr/lib/causeway/gateway.bpf.o";

/// Pause before an interface that refused the XDP program, or a disk that refused the state, is
/// tried again: the least, and the most.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];

/// When something that failed is tried again.
#[derive(Debug)]
struct Retry {
    at: Instant,
    backoff: Backoff,
}

impl Retry {
    fn new(now: Instant) -> Self {
        let [first, longest] = RETRY_PAUSES;
        Self {
            at: now + first,
            backoff: Backoff::new(first, longest),
        }
    }

    /// Tried without success: the next pause is twice as long.
    fn failed(&mut self, now: Instant) {
        self.at = now + self.backoff.pause(Duration::ZERO, Backoff::WHOLE);
    }
}

/// The parts of a gateway that a configuration applies to, and the configuration in force.
pub(super) struct Controller {
    pub config: Local,
    /// The desired state in force.
    pub model: Model,
    /// Whether the file gives the desired state: it cannot be changed otherwise.
    from_file: bool,
    /// Where the state in force is stored; `None`: nowhere.
    pub store: Option<Store>,
    desired: Desired,
    pub relay: Relay,
    pub circuits: Circuits,
    /// Circuits in XDP.
    pub fast: Option<Arc<Fast>>,
    /// Why circuits are not in XDP, though they were to be.
    pub refused: Option<String>,
    /// Pause before the XDP program is attached again.
    retry: Retry,
    /// Pause before the state is stored again.
    store_retry: Retry,
    pub http: Option<http::Server>,
    pub limits: Shares,
    files: files::Limits,
    registry: Arc<Registry>,
    health: Health,
    metrics: ProcessMetrics,
}

impl Controller {
    pub async fn start(
        config: Config,
        (store, stored): (Option<Store>, Stored),
        files: files::Limits,
        context: &Context,
    ) -> Result<Self, Error> {
        let Config {
            local: config,
            desired: objects,
        } = config;
        let from_file = objects.is_some();
        let (draining, stored) = (stored.draining, stored.model);
        let mut model = Model::default();
        if let Some(objects) = objects {
            let mut c = Checker::new();
            let prepared = model.prepare_file(&mut c, &objects, &config.bounds());
            drop(model.commit(c.finish(prepared).map_err(Error::Desired)?));
        } else if let Some(stored) = stored {
            let problems = stored.check(&config.bounds());
            if !problems.is_empty() {
                return Err(Error::Desired(problems));
            }
            model = stored;
            tracing::info!(
                revision = model.revision(),
                "using the stored desired state"
            );
        } else {
            tracing::warn!(
                "there is no desired state: the gateway refuses everything until `apply`"
            );
        }
        let limits = files.shares(&config)?;
        let mut desired = Desired::default();
        let first = model.contents();
        update(&mut desired, &model, &first);
        let relay = config.relay_config(limits.connections, limits.pipes, desired.clone());
        let relay = if draining {
            Relay::start_drained(relay)?
        } else {
            Relay::start(relay)?
        };
        let mut registry = Registry::default();
        relay.counters().register(&mut registry);
        let metrics = context.metrics.clone();
        metrics.register(&mut registry, "causeway_gateway");
        metrics.set_name(&config.name);
        let (fast, refused) = load(&config)?;
        let setup = Setup {
            lifetime: config.circuits.lifetime,
            threads: config.circuit_threads(),
            capacity: config.circuits.capacity,
            fast: fast.clone(),
            draining,
        };
        let circuits = Circuits::start(setup, &config.listen, &first)?;
        if let Some(fast) = &fast {
            attach(fast, &config, model.counts().circuits > 0)?;
        }
        registry.register_collector(Box::new(Collected(circuits.observer())));
        let mut controller = Self {
            http: None,
            model,
            from_file,
            store,
            desired,
            relay,
            circuits,
            fast,
            refused,
            retry: Retry::new(Instant::now()),
            store_retry: Retry::new(Instant::now()),
            limits,
            files,
            registry: Arc::new(registry),
            health: context.health.clone(),
            metrics,
            config,
        };
        controller.http = controller.serve(&controller.config).await?;
        if controller.from_file {
            controller.store_all();
        }
        tracing::info!(
            name = controller.config.name,
            connections = limits.connections,
            draining,
            "configuration in force"
        );
        Ok(controller)
    }

    /// Puts another configuration file in force. All that can fail comes first.
    pub async fn change(&mut self, config: Config) -> Result<(), Error> {
        let Config {
            local: config,
            desired: objects,
        } = config;
        unchanged(&self.config, &config)?;
        let limits = self.files.shares(&config)?;
        let keeps_http = self.http.as_ref().map(http::Server::configured) == config.metrics;
        let http = if keeps_http {
            None
        } else {
            Some(self.serve(&config).await?)
        };
        // Without a desired state in the file, the one in force stays.
        let from_file = objects.is_some();
        let mut prepared = None;
        let mut has_circuits = self.model.counts().circuits > 0;
        if let Some(objects) = objects {
            let mut c = Checker::new();
            let new = self.model.prepare_file(&mut c, &objects, &config.bounds());
            let new = c.finish(new).map_err(Error::Desired)?;
            has_circuits = new.counts().circuits > 0;
            prepared = Some(new);
        } else {
            let problems = self.model.check(&config.bounds());
            if !problems.is_empty() {
                return Err(Error::Desired(problems));
            }
        }
        // The relay first: its addresses can be shared with no other process, those of circuits
        // can, and would take its datagrams.
        let relay = config.relay_config(limits.connections, limits.pipes, self.desired.clone());
        let relay = self.relay.prepare(relay)?;
        let circuits = self.circuits.prepare(&config.listen)?;
        self.attach_as(&config, has_circuits)?;
        // Nothing below can fail.
        self.relay.take(relay);
        self.circuits.take(circuits, config.circuits.lifetime);
        if let Some(http) = http {
            self.http = http;
        }
        self.limits = limits;
        self.config = config;
        self.from_file = from_file;
        if let Some(prepared) = prepared {
            let (_, changes) = self.model.commit(prepared);
            self.enact(&changes);
            self.store_all();
        }
        self.metrics.set_name(&self.config.name);
        Ok(())
    }

    /// Puts an update in force, whole or not at all.
    ///
    /// # Errors
    /// [`Error::FromFile`], [`Error::Update`], or an interface refuses XDP.
    pub fn apply(&mut self, update: &Update) -> Result<Applied, Error> {
        if self.from_file {
            return Err(Error::FromFile);
        }
        update.check_revision()?;
        let prepared = self.model.prepare(update, &self.config.bounds())?;
        let had_circuits = self.model.counts().circuits > 0;
        let has_circuits = prepared.counts().circuits > 0;
        if had_circuits != has_circuits {
            self.attach_as(&self.config, has_circuits)?;
        }
        // Nothing below can fail.
        let (applied, changes) = self.model.commit(prepared);
        self.enact(&changes);
        self.metrics.applied();
        tracing::info!(
            revision = applied.revision,
            put = ?applied.put,
            removed = ?applied.removed,
            "update applied"
        );
        Ok(applied)
    }

    /// How to store the state after this update; `None`: it is stored already.
    pub fn job(&self, update: Update, is_repeated: bool) -> Option<Job> {
        let store = self.store.as_ref()?;
        if is_repeated && !store.is_behind() {
            return None;
        }
        Some(match update {
            Update::Delta(delta) if !store.is_behind() => Job::Delta(Box::new(delta)),
            Update::Delta(_) => Job::State(Box::new(self.model.snapshot())),
            Update::Snapshot(snapshot) => Job::State(Box::new(snapshot)),
        })
    }

    /// Stores the state that a file gives; a failure is logged.
    fn store_all(&self) {
        if let Some(store) = &self.store {
            let snapshot: Snapshot = self.model.snapshot();
            store.put(Job::State(Box::new(snapshot)), Box::new(drop));
        }
    }

    /// Stores what could not be stored, after a pause that grows. `draining`: as it is to be
    /// stored; `None`: not now. To be called every few seconds.
    pub fn store_again(&mut self, draining: Option<bool>, now: Instant) {
        let Some(store) = &self.store else {
            return;
        };
        // Without a state that was put in force, there is nothing to be stored.
        let state = store.is_behind() && self.model.source() != Source::None;
        let draining = draining.filter(|_| store.is_draining_behind());
        if !state && draining.is_none() {
            self.store_retry = Retry::new(now);
            return;
        }
        if now < self.store_retry.at {
            return;
        }
        self.store_retry.failed(now);
        let stored_again = |what: &'static str| -> Done {
            Box::new(move |result| {
                if result.is_ok() {
                    tracing::info!("{what} is stored now");
                }
            })
        };
        if state {
            let snapshot: Snapshot = self.model.snapshot();
            let job = Job::State(Box::new(snapshot));
            store.put(job, stored_again("the state in force"));
        }
        if let Some(draining) = draining {
            store.put(Job::Draining(draining), stored_again("the drain"));
        }
    }

    /// Puts differences in force.
    fn enact(&mut self, changes: &Changes) {
        self.circuits.change(changes);
        if update(&mut self.desired, &self.model, changes) {
            self.relay.set_desired(self.desired.clone());
        }
    }

    /// Attaches the XDP program as a configuration wants it; or leaves all as it is.
    fn attach_as(&self, config: &Local, has_circuits: bool) -> Result<(), Error> {
        let Some(fast) = &self.fast else {
            return Ok(());
        };
        let Err(error) = attach(fast, config, has_circuits) else {
            return Ok(());
        };
        // Interfaces may be changed half way. What the running configuration wants was possible
        // before.
        if let Err(error) = attach(fast, &self.config, self.model.counts().circuits > 0) {
            tracing::error!(%error, "cannot restore the previous XDP attachment; circuits may use \
                user space until the next attempt");
        }
        Err(error.into())
    }

    /// Attaches the XDP program to interfaces that were not there, were replaced or have another
    /// address since it was attached, and again to those that refused it. To be called every few
    /// seconds.
    pub fn follow_interfaces(&mut self, now: Instant) {
        let (Some(fast), true) = (&self.fast, self.model.counts().circuits > 0) else {
            return;
        };
        let circuits = &self.config.circuits;
        let wanted = fast::wanted(circuits.interfaces.as_deref(), &self.config.listen);
        let state = wanted.and_then(|wanted| {
            let differs = fast.differs(&wanted)?;
            Ok((differs, fast.is_attached(&wanted)))
        });
        let attached = match state {
            Ok((false, true)) => {
                self.retry = Retry::new(now);
                return;
            }
            Ok((false, false)) | Err(_) if now < self.retry.at => return,
            Ok(_) => attach(fast, &self.config, true),
            Err(error) => Err(error),
        };
        self.retry.failed(now);
        if let Err(error) = attached {
            tracing::warn!(
                %error,
                "cannot attach the XDP program to all interfaces; circuits use user space there, \
                 and sources that are not bound have no limit"
            );
        }
    }

    async fn serve(&self, config: &Local) -> Result<Option<http::Server>, Error> {
        let Some(address) = config.metrics else {
            return Ok(None);
        };
        let registry = Arc::clone(&self.registry);
        let server =
            http::Server::bind(address, "gateway.metrics", registry, self.health.clone()).await?;
        Ok(Some(server))
    }
}

/// Makes the relay's part of the state anew where it differs; returns whether it does.
fn update(desired: &mut Desired, model: &Model, changes: &Changes) -> bool {
    if !changes.tenants.is_empty() {
        let tenants = model.tenants();
        let tenants = tenants.map(|(name, tenant)| (Arc::clone(name), tenant.connections));
        desired.tenants = Arc::new(tenants.collect());
    }
    if !changes.backends.is_empty() {
        let backends = model.backends().map(|(name, backend)| {
            let backend = Backend {
                service_addresses: backend.addresses.clone(),
                proxy: backend.proxy,
            };
            (Arc::clone(name), backend)
        });
        desired.backends = Arc::new(backends.collect());
    }
    if !changes.routes.is_empty() {
        let routes = model.routes().map(|(_, route)| Arc::clone(route));
        match Table::new(routes) {
            Ok(table) => desired.table = Arc::new(table),
            // The model refuses conflicts.
            Err(conflicts) => {
                tracing::error!(?conflicts, "routes conflict; keeping the old routes")
            }
        }
    }
    !changes.tenants.is_empty() || !changes.backends.is_empty() || !changes.routes.is_empty()
}

/// Refuses a change of keys that take effect at a start only.
fn unchanged(running: &Local, new: &Local) -> Result<(), Error> {
    let listed = |value: Option<String>| value.unwrap_or_else(|| "nothing".to_owned());
    let (now, then) = (&running.circuits, &new.circuits);
    for (key, is_same, value) in [
        (
            "gateway.control_socket",
            running.control_socket == new.control_socket,
            running.control_socket.display().to_string(),
        ),
        (
            "gateway.state_dir",
            running.state_dir == new.state_dir,
            listed(running.state_dir.as_ref().map(|path| format!("{path:?}"))),
        ),
        (
            "agent",
            running.agent == new.agent,
            listed(
                running
                    .agent
                    .as_ref()
                    .map(|agent| format!("{:?}", agent.token)),
            ),
        ),
        (
            "limits.tenants",
            running.tenants == new.tenants,
            running.tenants.to_string(),
        ),
        (
            "circuits.threads",
            running.circuit_threads() == new.circuit_threads(),
            running.circuit_threads().to_string(),
        ),
        (
            "circuits.capacity",
            now.capacity == then.capacity,
            now.capacity.to_string(),
        ),
        (
            "circuits.xdp",
            now.xdp == then.xdp,
            format!("{:?}", now.xdp_name()),
        ),
        (
            "circuits.interfaces",
            now.interfaces == then.interfaces,
            listed(now.interfaces.as_ref().map(|names| format!("{names:?}"))),
        ),
        (
            "circuits.bpf_object",
            now.bpf_object == then.bpf_object,
            listed(now.bpf_object.as_ref().map(|path| format!("{path:?}"))),
        ),
    ] {
        if !is_same {
            return Err(Error::Fixed {
                key,
                running: value,
            });
        }
    }
    Ok(())
}

/// Loads the XDP program of circuits; or says why there is none, where `xdp = "auto"` allows that.
fn load(config: &Local) -> Result<(Option<Arc<Fast>>, Option<String>), fast::Error> {
    let circuits = &config.circuits;
    let Some(setting) = circuits.xdp else {
        return Ok((None, None));
    };
    let object = circuits
        .bpf_object
        .clone()
        .or_else(|| std::env::var_os("CAUSEWAY_GATEWAY_BPF_OBJECT").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(BPF_OBJECT));
    let size = fast::Size {
        circuits: circuits.capacity,
        tenants: config.tenants,
    };
    match Fast::load(&object, size) {
        Ok(fast) => Ok((Some(Arc::new(fast)), None)),
        Err(error) if setting == Setting::Auto => {
            tracing::warn!(%error, "circuits use user space, as circuits.xdp = \"auto\" allows");
            Ok((None, Some(error.to_string())))
        }
        Err(error) => Err(error),
    }
}

/// Attaches the program to the interfaces of the configuration; to none, while there is no circuit.
fn attach(fast: &Fast, config: &Local, has_circuits: bool) -> Result<(), fast::Error> {
    let circuits = &config.circuits;
    let Some(setting) = circuits.xdp else {
        return Ok(());
    };
    if !has_circuits {
        return fast.attach(&[], setting);
    }
    let wanted = fast::wanted(circuits.interfaces.as_deref(), &config.listen)?;
    if wanted.is_empty() {
        if setting != Setting::Auto {
            return Err(fast::Error::NoInterface);
        }
        let error = fast::Error::NoInterface;
        tracing::info!(%error, "circuits use user space, as circuits.xdp = \"auto\" allows");
    }
    fast.attach(&wanted, setting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_tried_again_after_pauses_that_grow_to_a_minute() {
        let mut now = Instant::now();
        let mut retry = Retry::new(now);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pauses.push((retry.at - now).as_secs());
            now = retry.at;
            retry.failed(now);
        }
        assert_eq!(pauses, [5, 5, 10, 20, 40, 60]);
    }
}
