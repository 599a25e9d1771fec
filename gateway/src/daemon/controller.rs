//! Puts a configuration in force: at the start, and later whole or not at all.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use service::{Health, http, xdp::Setting};

use super::{
    Error,
    files::{self, Shares},
};
use crate::{
    circuit::{
        counters::Collected,
        fast::{self, Fast},
        socket::Circuits,
    },
    config::Config,
    relay::Relay,
};

/// The XDP program where none is configured.
const BPF_OBJECT: &str = "/usr/lib/causeway/gateway.bpf.o";

/// Label `result`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Labels of the build.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InfoLabels {
    name: String,
    version: &'static str,
}

/// Metrics of the process and its configuration.
#[derive(Debug, Default)]
struct Own {
    reloads: Family<ResultLabel, Counter>,
    /// Seconds since 1970.
    configured: Gauge,
    info: Family<InfoLabels, Gauge>,
}

impl Own {
    fn register(&self, registry: &mut Registry) {
        for result in ["applied", "refused"] {
            drop(self.reloads.get_or_create(&ResultLabel { result }));
        }
        let registry = registry.sub_registry_with_prefix("causeway_gateway");
        registry.register(
            "reloads",
            "Reloads of the configuration, by `result`",
            self.reloads.clone(),
        );
        registry.register(
            "configured_timestamp_seconds",
            "When the configuration in force was applied, seconds since 1970",
            self.configured.clone(),
        );
        registry.register("info", "Always 1: name and version", self.info.clone());
    }

    /// The configuration of this name is in force from now on.
    fn applied(&self, name: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        self.configured.set(i64::try_from(now).unwrap_or(i64::MAX));
        self.info.clear();
        let labels = InfoLabels {
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
        };
        self.info.get_or_create(&labels).set(1);
    }
}

/// The parts of a gateway that a configuration applies to, and the configuration in force.
pub(super) struct Controller {
    pub config: Config,
    pub relay: Relay,
    pub circuits: Circuits,
    /// Circuits in XDP.
    pub fast: Option<Arc<Fast>>,
    /// Why circuits are not in XDP, though they were to be.
    pub refused: Option<String>,
    pub http: Option<http::Server>,
    pub limits: Shares,
    files: files::Limits,
    registry: Arc<Registry>,
    health: Health,
    own: Own,
}

impl Controller {
    pub async fn start(
        config: Config,
        files: files::Limits,
        health: Health,
    ) -> Result<Self, Error> {
        let limits = files.shares(&config)?;
        let relay = Relay::start(config.plan(limits.connections, limits.pipes))?;
        let mut registry = Registry::default();
        relay.counters().register(&mut registry);
        let own = Own::default();
        own.register(&mut registry);
        own.applied(&config.name);
        let (fast, refused) = load(&config)?;
        let threads = config.circuit_threads();
        let circuits =
            Circuits::start_with(config.circuit_plan(), &config.listen, threads, fast.clone())?;
        if let Some(fast) = &fast {
            attach(fast, &config)?;
        }
        registry.register_collector(Box::new(Collected(circuits.observer())));
        let mut controller = Self {
            http: None,
            relay,
            circuits,
            fast,
            refused,
            limits,
            files,
            registry: Arc::new(registry),
            health,
            own,
            config,
        };
        controller.http = controller.serve(&controller.config).await?;
        tracing::info!(
            name = controller.config.name,
            connections = limits.connections,
            "running"
        );
        Ok(controller)
    }

    /// Puts another configuration in force. All that can fail comes first.
    pub async fn change(&mut self, config: Config) -> Result<(), Error> {
        unchanged(&self.config, &config)?;
        let limits = self.files.shares(&config)?;
        let keeps_http = self.http.as_ref().map(http::Server::configured) == config.metrics;
        let http = if keeps_http {
            None
        } else {
            Some(self.serve(&config).await?)
        };
        let circuits = self
            .circuits
            .prepare(config.circuit_plan(), &config.listen)?;
        let relay = self
            .relay
            .prepare(config.plan(limits.connections, limits.pipes))?;
        if let Some(fast) = &self.fast
            && let Err(error) = attach(fast, &config)
        {
            // Interfaces may be changed half way. What the running configuration wants was possible
            // before.
            if let Err(error) = attach(fast, &self.config) {
                tracing::error!(%error, "cannot attach the XDP program as before the reload");
            }
            return Err(error.into());
        }
        // Nothing below can fail.
        self.relay.take(relay);
        self.circuits.take(circuits);
        if let Some(http) = http {
            self.http = http;
        }
        self.limits = limits;
        self.config = config;
        self.own.applied(&self.config.name);
        Ok(())
    }

    pub fn count_reload(&self, applied: bool) {
        let result = if applied { "applied" } else { "refused" };
        self.own
            .reloads
            .get_or_create(&ResultLabel { result })
            .inc();
    }

    async fn serve(&self, config: &Config) -> Result<Option<http::Server>, Error> {
        let Some(address) = config.metrics else {
            return Ok(None);
        };
        let registry = Arc::clone(&self.registry);
        let server =
            http::Server::bind(address, "gateway.metrics", registry, self.health.clone()).await?;
        Ok(Some(server))
    }
}

/// Refuses a change of keys that take effect at a start only.
fn unchanged(running: &Config, new: &Config) -> Result<(), Error> {
    let listed = |value: Option<String>| value.unwrap_or_else(|| "nothing".to_owned());
    let (now, then) = (&running.circuits, &new.circuits);
    for (key, is_same, value) in [
        (
            "gateway.control_socket",
            running.control_socket == new.control_socket,
            running.control_socket.display().to_string(),
        ),
        (
            "circuits.threads",
            running.circuit_threads() == new.circuit_threads(),
            running.circuit_threads().to_string(),
        ),
        (
            "circuits.capacity",
            now.capacity == then.capacity,
            listed(now.capacity.map(|capacity| capacity.to_string())),
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
fn load(config: &Config) -> Result<(Option<Arc<Fast>>, Option<String>), fast::Error> {
    let circuits = &config.circuits;
    let Some(setting) = circuits.xdp else {
        return Ok((None, None));
    };
    let object = circuits
        .bpf_object
        .clone()
        .or_else(|| std::env::var_os("CAUSEWAY_GATEWAY_BPF_OBJECT").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(BPF_OBJECT));
    let limits = circuits.rates.iter().flat_map(|(a, b)| [a, b]).flatten();
    // `Fast::load` makes room for twice the size. A tenant has two limits and at least a circuit.
    let capacity = circuits.capacity.unwrap_or(0);
    let size = fast::Size {
        circuits: circuits.list.len().max(capacity.div_ceil(2)),
        buckets: limits.count().max(capacity),
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
fn attach(fast: &Fast, config: &Config) -> Result<(), fast::Error> {
    let circuits = &config.circuits;
    let Some(setting) = circuits.xdp else {
        return Ok(());
    };
    if circuits.list.is_empty() {
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
