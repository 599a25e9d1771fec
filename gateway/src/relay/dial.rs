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
//!
//! The model refuses backends at an address of the gateway itself. A name shows its addresses only
//! here: those where the relay listens are left out, as each connection would come back as another.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub use gateway_client::dial::ServiceAddress;
use gateway_client::{
    dial::{DialSettings, Dialler, NameSettings, Race, RaceSettings},
    pool::Report,
};
use gateway_model::covers;
use nix::ifaddrs::getifaddrs;
use service::names::Resolver;
use tokio::net::TcpStream;

use super::Backend;

/// Least time between two lookups of a name whose addresses do not answer.
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);

/// The backends that were dialled, and the addresses of their names.
#[derive(Debug)]
pub(super) struct Backends {
    dialled: Mutex<HashMap<Arc<str>, Dialled>>,
    /// Where the relay listens, with the ports in use.
    listen: Mutex<Vec<SocketAddr>>,
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
    /// Addresses of the gateway itself, which are not dialled.
    own: Vec<SocketAddr>,
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
            listen: Mutex::default(),
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

    /// Sets the addresses where the relay listens. Those of backends are looked at anew.
    pub fn set_listen(&self, listen: Vec<SocketAddr>) {
        *self.listen.lock().unwrap_or_else(PoisonError::into_inner) = listen;
        for dialled in self.dialled().values_mut() {
            dialled.service_addresses.clear();
        }
    }

    /// The addresses of a backend, as far as they are known: those to connect to, and those of the
    /// gateway itself.
    fn addresses(&self, name: &str, backend: &Backend) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let target = self.resolver.target(name, &backend.service_addresses);
        let listen = self.listen.lock().unwrap_or_else(PoisonError::into_inner);
        let all = target.addresses.into_iter();
        all.partition(|address| !is_own(*address, &listen))
    }

    fn dialled(&self) -> MutexGuard<'_, HashMap<Arc<str>, Dialled>> {
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A race over the addresses of a backend; calls `failed` for each one that is an address of
    /// the gateway, once when it becomes known.
    fn race(
        &self,
        (name, backend): (&Arc<str>, &Backend),
        settings: RaceSettings,
        failed: impl Fn(),
    ) -> Race {
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
            own: Vec::new(),
            dialler: Dialler::in_order(DialSettings::server(), &[], self.seed, now),
        });
        if dialled.service_addresses != *service_addresses || dialled.changes != changes {
            let (addresses, own) = self.addresses(name, backend);
            if !own.is_empty() && own != dialled.own {
                tracing::warn!(
                    backend = &**name, addresses = ?own,
                    "a backend has addresses of this gateway, where connections would loop; they \
                     are not used"
                );
                own.iter().for_each(|_| failed());
            }
            dialled.own = own;
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

/// Whether a connection to the address would come to one of the listeners.
fn is_own(address: SocketAddr, listen: &[SocketAddr]) -> bool {
    let mut covering = listen.iter().filter(|listen| covers(**listen, address));
    covering.any(|listen| {
        *listen == address || address.ip().is_loopback() || is_of_this_machine(address.ip())
    })
}

/// Whether an interface has the address; also false where the interfaces cannot be listed.
fn is_of_this_machine(ip: IpAddr) -> bool {
    let Ok(mut interfaces) = getifaddrs() else {
        return false;
    };
    interfaces.any(|interface| {
        interface.address.is_some_and(|address| match ip {
            IpAddr::V4(ip) => address.as_sockaddr_in().is_some_and(|v4| v4.ip() == ip),
            IpAddr::V6(ip) => address.as_sockaddr_in6().is_some_and(|v6| v6.ip() == ip),
        })
    })
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
    let race = backends.race((name, backend), settings, &failed);
    let error = match service::dial::dial(race, &mut tried, &report).await {
        Ok(connected) => return Ok(connected),
        Err(error) => error,
    };
    if is_named(backend) {
        backends
            .resolver
            .look_up_again(&backend.service_addresses, timeout)
            .await;
        let (mut new, _) = backends.addresses(name, backend);
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
        let backend = (&"b".into(), &named["b"]);
        let race = backends.race(backend, RaceSettings::default(), || {});
        match { race }.poll(Duration::ZERO)? {
            RaceAction::Connect { address, .. } => Some(address),
            other => panic!("{other:?}"),
        }
    }

    async fn listener() -> (tokio::net::TcpListener, u16) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        (listener, port)
    }

    /// A relay's backends: `b`, by a name, at this port.
    fn at_localhost(port: u16) -> (Backends, HashMap<Arc<str>, Backend>) {
        let backends = Backends::start(None, 1).expect("a thread");
        let named = backend_at(&[&format!("localhost:{port}")]);
        backends.set(&named);
        (backends, named)
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
    async fn a_name_is_not_dialled_at_an_address_of_the_gateway() {
        let (_listener, port) = listener().await;
        let (backends, named) = at_localhost(port);
        let both = ["0.0.0.0", "::"].map(|ip| SocketAddr::new(ip.parse().expect("good"), port));
        backends.set_listen(both.to_vec());
        let name = "b".into();
        let timeout = Duration::from_secs(5);
        let resolved = || backends.resolver.target("b", &named["b"].service_addresses);
        let failures = std::cell::Cell::new(0);
        for _ in 0..3 {
            let count = || failures.set(failures.get() + 1);
            let dialled = dial((&name, &named["b"]), &backends, timeout, count).await;
            let error = dialled.expect_err("it would loop").kind();
            assert_eq!(error, io::ErrorKind::AddrNotAvailable);
        }
        let known = resolved().addresses.len();
        assert_eq!((known > 0, failures.get()), (true, known), "once for each");
        // Another gateway's address is a backend as any other.
        backends.set_listen(vec![([192, 0, 2, 1], port).into()]);
        let dialled = dial((&name, &named["b"]), &backends, timeout, || {}).await;
        assert_eq!(dialled.expect("connected").1.port(), port);
    }

    #[test]
    fn own_addresses_are_those_that_reach_a_listener() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for (address, listen, own) in [
            ("192.0.2.1:443", "192.0.2.1:443", true),
            ("192.0.2.1:444", "192.0.2.1:443", false),
            ("127.0.0.1:443", "0.0.0.0:443", true),
            ("127.0.0.2:443", "0.0.0.0:443", true),
            ("127.0.0.1:443", "127.0.0.1:443", true),
            ("127.0.0.1:443", "192.0.2.1:443", false),
            // Not an address of this machine.
            ("192.0.2.1:443", "0.0.0.0:443", false),
            ("[::1]:443", "[::]:443", true),
            ("[::1]:443", "0.0.0.0:443", false),
        ] {
            let found = is_own(at(address), &[at(listen)]);
            assert_eq!(found, own, "{address} at {listen}");
        }
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert!(is_of_this_machine(loopback), "an interface has it");
    }

    #[tokio::test]
    async fn a_name_is_dialled_at_the_addresses_that_it_has() {
        let (_listener, port) = listener().await;
        let (backends, named) = at_localhost(port);
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
