//! Connects to a backend, as a [`Dialler`] decides: to the first of its addresses that works,
//! without waiting long for one that does not.
//!
//! ```text
//!   service addresses ─ Resolver ─▶ Dialler of the backend ─▶ Race ─▶ service::dial
//!                  ▲                  ▲──────── reports ──────────┘
//!                  └──── all failed: names are looked up again, and addresses that are new tried
//! ```
//!
//! Learned states of backends belong to the relay and not to a configuration: a reload keeps them.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub use gateway_client::dial::ServiceAddress;
use gateway_client::{
    dial::{DialSettings, Dialler, NameSettings, Race, RaceSettings},
    pool::Report,
};
use service::names::Resolver;
use tokio::net::TcpStream;

use super::Backend;

/// Least time between two lookups of a name whose addresses do not answer.
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);

/// The backends that were dialled, and the addresses of their names.
#[derive(Debug)]
pub(super) struct Backends {
    dialled: Mutex<HashMap<Arc<str>, Dialled>>,
    resolver: Resolver,
    /// Times count from here.
    begun: Instant,
    seed: u64,
}

/// A backend that was dialled.
#[derive(Debug)]
struct Dialled {
    service_addresses: Vec<ServiceAddress>,
    /// The resolver's changes that the dialler knows of.
    changes: u64,
    dialler: Dialler,
}

impl Backends {
    /// None yet; `file` keeps the addresses of names over a restart.
    ///
    /// # Errors
    /// When the resolver's thread cannot be started.
    pub fn start(file: Option<PathBuf>, seed: u64) -> io::Result<Self> {
        let settings = NameSettings {
            min_interval: LOOKUP_PAUSE,
            // A backend may run on the gateway's machine.
            loopback: true,
            ..NameSettings::default()
        };
        Ok(Self {
            dialled: Mutex::default(),
            resolver: Resolver::start(settings, seed, file)?,
            begun: Instant::now(),
            seed,
        })
    }

    /// Sets the backends of the configuration: their names are looked up, and others are forgotten.
    pub fn set(&self, backends: &HashMap<Arc<str>, Backend>) {
        self.dialled().retain(|name, _| backends.contains_key(name));
        let service_addresses = backends
            .values()
            .flat_map(|backend| &backend.service_addresses);
        let names: BTreeSet<_> = service_addresses
            .filter_map(|e| e.name().cloned())
            .collect();
        self.resolver.set(names);
    }

    fn dialled(&self) -> MutexGuard<'_, HashMap<Arc<str>, Dialled>> {
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn race(&self, name: &Arc<str>, backend: &Backend, settings: RaceSettings) -> Race {
        let service_addresses = &backend.service_addresses;
        let changes = if is_named(backend) {
            self.resolver.progress().borrow().changes
        } else {
            0
        };
        let now = self.begun.elapsed();
        let mut all = self.dialled();
        let dialled = all.entry(Arc::clone(name)).or_insert_with(|| Dialled {
            service_addresses: Vec::new(),
            changes,
            dialler: Dialler::in_order(DialSettings::server(), &[], self.seed, now),
        });
        if dialled.service_addresses != *service_addresses || dialled.changes != changes {
            let addresses = self.resolver.target(name, service_addresses).addresses;
            dialled.dialler.update_in_order(&addresses, now);
            dialled.service_addresses.clone_from(service_addresses);
            dialled.changes = changes;
        }
        dialled.dialler.race(None, settings, now)
    }

    fn report(&self, name: &Arc<str>, address: SocketAddr, report: Report) {
        let now = self.begun.elapsed();
        if let Some(dialled) = self.dialled().get_mut(name) {
            dialled.dialler.report(address, report, now);
        }
    }
}

fn is_named(backend: &Backend) -> bool {
    let mut service_addresses = backend.service_addresses.iter();
    service_addresses.any(|address| address.name().is_some())
}

/// Connects to a backend; calls `failed` for each address that does not answer within `timeout`,
/// or later than another one.
///
/// # Errors
/// The last error, when no address answers.
pub(super) async fn dial(
    (name, backend): (&Arc<str>, &Backend),
    backends: &Backends,
    timeout: Duration,
    failed: impl Fn(),
) -> io::Result<(TcpStream, SocketAddr)> {
    let settings = RaceSettings {
        attempt_timeout: timeout,
        ..RaceSettings::default()
    };
    let report = |address, report| {
        backends.report(name, address, report);
        if matches!(report, Report::Failed(_)) {
            failed();
        }
    };
    let mut tried = Vec::new();
    let race = backends.race(name, backend, settings);
    let error = match service::dial::dial(race, &mut tried, &report).await {
        Ok(connected) => return Ok(connected),
        Err(error) => error,
    };
    if is_named(backend) {
        let service_addresses = &backend.service_addresses;
        backends
            .resolver
            .look_up_again(service_addresses, timeout)
            .await;
        let mut new = backends.resolver.target(name, service_addresses).addresses;
        new.retain(|address| !tried.contains(address));
        if !new.is_empty() {
            let race = Race::new(new, settings);
            return service::dial::dial(race, &mut tried, &report).await;
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use gateway_client::{dial::RaceAction, pool::Failure};

    use super::*;

    fn backend_at(service_addresses: &[&str]) -> HashMap<Arc<str>, Backend> {
        let service_addresses = service_addresses
            .iter()
            .map(|text| text.parse().expect("good"));
        let backend = Backend {
            service_addresses: service_addresses.collect(),
            proxy: false,
        };
        HashMap::from([("b".into(), backend)])
    }

    fn first(backends: &Backends, named: &HashMap<Arc<str>, Backend>) -> Option<SocketAddr> {
        let race = backends.race(&"b".into(), &named["b"], RaceSettings::default());
        match { race }.poll(Duration::ZERO)? {
            RaceAction::Connect { address, .. } => Some(address),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn health_belongs_to_the_relay_and_outlives_a_configuration() {
        let backends = Backends::start(None, 1).expect("a thread");
        let two = backend_at(&["192.0.2.1:443", "192.0.2.2:443"]);
        let [a, b]: [SocketAddr; 2] = [1, 2].map(|n| ([192, 0, 2, n], 443).into());
        backends.set(&two);
        assert_eq!(first(&backends, &two), Some(a));
        backends.report(&"b".into(), a, Report::Failed(Failure::Silent));
        assert_eq!(first(&backends, &two), Some(b));
        let three = backend_at(&["192.0.2.1:443", "192.0.2.3:443", "192.0.2.2:443"]);
        backends.set(&three);
        assert_ne!(first(&backends, &three), Some(a));
        backends.set(&HashMap::new());
        assert_eq!(
            first(&backends, &two),
            Some(a),
            "forgotten with the backend"
        );
    }

    #[tokio::test]
    async fn a_name_is_dialled_at_the_addresses_that_it_has() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let backends = Backends::start(None, 1).expect("a thread");
        let named = backend_at(&[&format!("localhost:{port}")]);
        backends.set(&named);
        let name = "b".into();
        let timeout = Duration::from_secs(5);
        let dialled = dial((&name, &named["b"]), &backends, timeout, || {}).await;
        let (_stream, address) = dialled.expect("connected");
        assert_eq!((address.ip().is_loopback(), address.port()), (true, port));
        let unknown = backend_at(&["no-such-name.invalid:5"]);
        backends.set(&unknown);
        let failed = dial((&name, &unknown["b"]), &backends, timeout, || {}).await;
        let error = failed.expect_err("no address").kind();
        assert_eq!(error, io::ErrorKind::AddrNotAvailable);
    }
}
