//! Looks DNS names up as [`Names`] decides, each lookup in a thread of its own, and keeps the
//! addresses in a file: when DNS is down at the start, the last addresses are used.
//!
//! ```text
//!   file ─▶ Names ─ due ─▶ thread: getaddrinfo ─ answer ─▶ Names ─▶ addresses; their change
//!             ▲                                              └────▶ file, replaced as a whole
//!             └─ expedite: something does not answer
//! ```
//!
//! The system's resolver is asked, by the standard library: it reads `/etc/hosts` and
//! `/etc/resolv.conf` as all programs of the machine do, sorts addresses by RFC 6724, and is no
//! further dependency. It may block for many seconds, so it has threads of its own, a few at a
//! time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    net::{IpAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gateway_client::dial::{NameSettings, NameState, Names, ServiceAddress, Target};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Version of the file.
const VERSION: u32 = 1;
/// Largest file that is read, bytes: 8 addresses of 16 384 names.
const MAX_FILE: u64 = 8 << 20;
/// Names that are stored; further ones are looked up again after a start.
const MAX_NAMES: usize = 16_384;
/// Least time between two writes of the file.
const WRITE_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a write that failed.
const WRITE_RETRY_PAUSE: Duration = Duration::from_secs(60);

/// Looks a name up.
pub type Lookup = fn(&str) -> io::Result<Vec<IpAddr>>;

/// The contents of the file: the addresses of names, as JSON. Not the names of this run: those that
/// an earlier one had, and any that a damaged file has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredNames {
    version: u32,
    names: BTreeMap<String, Vec<IpAddr>>,
}

impl StoredNames {
    /// The first 16 384 names that have addresses.
    #[must_use]
    pub fn of(names: &Names) -> Self {
        let known = names.known().take(MAX_NAMES);
        let known = known.map(|(name, addresses)| (name.to_string(), addresses.to_vec()));
        Self {
            version: VERSION,
            names: known.collect(),
        }
    }

    /// Reads the contents of a file.
    ///
    /// # Errors
    /// When it is no such JSON, or of another version.
    pub fn read(text: &[u8]) -> io::Result<Self> {
        let stored: Self = serde_json::from_slice(text)?;
        if stored.version != VERSION {
            return Err(io::Error::other(format!("version {}", stored.version)));
        }
        Ok(stored)
    }

    /// As [`StoredNames::read`] reads it.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn write(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    /// The first 16 384 names with their addresses, for [`Names::restore`].
    pub fn into_known(self) -> impl Iterator<Item = (Arc<str>, Vec<IpAddr>)> {
        let names = self.names.into_iter().take(MAX_NAMES);
        names.map(|(name, addresses)| (name.into(), addresses))
    }
}

/// Progress of lookups, for those who wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Results of lookups.
    pub results: u64,
    /// Changes of known addresses.
    pub changes: u64,
}

/// The names of a daemon, and their addresses. Dropped, it looks no name up any more.
#[derive(Debug)]
pub struct Resolver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the driver.
    woken: Condvar,
    progress: watch::Sender<Progress>,
    lookup: Lookup,
    /// Times count from here.
    begun: Instant,
}

#[derive(Debug)]
struct State {
    names: Names,
    file: Option<PathBuf>,
    /// Earliest write of the file, if it is not what is known.
    write: Option<Duration>,
    stopped: bool,
}

impl Resolver {
    /// Without names; `file` keeps their addresses. Daemons with different seeds ask at different
    /// times.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(settings: NameSettings, seed: u64, file: Option<PathBuf>) -> io::Result<Self> {
        Self::start_with(settings, seed, file, resolve)
    }

    /// As [`Resolver::start`], with another resolver than the system's.
    ///
    /// # Errors
    /// As [`Resolver::start`].
    pub fn start_with(
        settings: NameSettings,
        seed: u64,
        file: Option<PathBuf>,
        lookup: Lookup,
    ) -> io::Result<Self> {
        let mut names = Names::new(settings, seed);
        let stored = file.as_deref().and_then(load);
        names.restore(stored.into_iter().flat_map(StoredNames::into_known));
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                names,
                file,
                write: None,
                stopped: false,
            }),
            woken: Condvar::new(),
            progress: watch::Sender::default(),
            lookup,
            begun: Instant::now(),
        });
        let driven = Arc::clone(&shared);
        let thread = thread::Builder::new().name("names".to_owned());
        thread.spawn(move || driven.drive())?;
        Ok(Self { shared })
    }

    /// Sets the names; those that stay keep their addresses.
    pub fn set(&self, names: BTreeSet<Arc<str>>) {
        let mut state = self.shared.state();
        state.names.set(names, self.shared.now());
        self.shared.look_up(&mut state);
    }

    /// A service and its addresses, as far as they are known.
    #[must_use]
    pub fn target(&self, name: &str, service_addresses: &[ServiceAddress]) -> Target {
        self.shared.state().names.target(name, service_addresses)
    }

    /// Something does not answer: all names are looked up soon.
    pub fn expedite(&self) {
        let mut state = self.shared.state();
        state.names.expedite(self.shared.now());
        self.shared.look_up(&mut state);
    }

    /// Looks the names of service addresses up again, and waits for the results; not longer than
    /// `timeout`, and not for names that were asked a short time ago.
    pub async fn look_up_again(&self, service_addresses: &[ServiceAddress], timeout: Duration) {
        let mut progress = self.shared.progress.subscribe();
        let mut awaited: Vec<(&str, u64)> = Vec::new();
        {
            let mut state = self.shared.state();
            let now = self.shared.now();
            for name in service_addresses
                .iter()
                .filter_map(|address| address.name())
            {
                if state.names.expedite_one(name, now) {
                    awaited.push((name, state.names.results(name)));
                }
            }
            self.shared.look_up(&mut state);
        }
        let all = async {
            loop {
                progress.mark_unchanged();
                {
                    let state = self.shared.state();
                    awaited.retain(|(name, seen)| state.names.results(name) == *seen);
                }
                if awaited.is_empty() || progress.changed().await.is_err() {
                    return;
                }
            }
        };
        // The addresses that are known by then are used.
        let _ = tokio::time::timeout(timeout, all).await;
    }

    /// Whether there are no names.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.state().names.is_empty()
    }

    /// Follows results and changes.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// The names, for the operator.
    #[must_use]
    pub fn states(&self) -> Vec<NameState> {
        self.shared
            .state()
            .names
            .states(self.shared.now())
            .collect()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.woken.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Starts due lookups, forgets former addresses and writes the file, until it is stopped.
    fn drive(self: Arc<Self>) {
        let mut state = self.state();
        while !state.stopped {
            if state.names.forget_former(self.now()) {
                self.progress.send_modify(|p| p.changes += 1);
            }
            self.look_up(&mut state);
            if state.write.is_some_and(|at| at <= self.now()) {
                state = self.write(state);
                continue;
            }
            let next = state.names.next_deadline().into_iter().chain(state.write);
            let wait = next.min().map(|at| at.saturating_sub(self.now()));
            state = match wait {
                Some(wait) => {
                    let waited = self.woken.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let woken = self.woken.wait(state);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Starts the lookups that are due.
    fn look_up(self: &Arc<Self>, state: &mut State) {
        while let Some(name) = state.names.poll(self.now()) {
            let shared = Arc::clone(self);
            let asked = Arc::clone(&name);
            let thread = thread::Builder::new().name("resolve".to_owned());
            let spawned = thread.spawn(move || {
                let result = (shared.lookup)(&asked).map_err(|error| error.to_string());
                shared.answered(&mut shared.state(), &asked, result);
            });
            if let Err(error) = spawned {
                let error = format!("cannot start a thread for the lookup: {error}");
                self.answered(state, &name, Err(error));
            }
        }
        // Its deadline may be earlier now.
        self.woken.notify_all();
    }

    fn answered(&self, state: &mut State, name: &str, result: Result<Vec<IpAddr>, String>) {
        let error = result.as_ref().err().cloned();
        let changed = state.names.answered(name, result, self.now());
        if changed {
            let addresses = state.names.addresses(name);
            tracing::info!(name, ?addresses, "addresses of a DNS name changed");
            if state.file.is_some() && state.write.is_none() {
                state.write = Some(self.now() + WRITE_PAUSE);
            }
        } else if let Some(error) = error {
            let kept = state.names.addresses(name);
            tracing::debug!(name, error, ?kept, "cannot look up a DNS name");
        }
        self.progress.send_modify(|progress| {
            progress.results += 1;
            progress.changes += u64::from(changed);
        });
        self.woken.notify_all();
    }

    /// Writes the file, without the lock.
    fn write<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.write = None;
        let Some(path) = state.file.clone() else {
            return state;
        };
        let stored = StoredNames::of(&state.names);
        drop(state);
        let saved = save(&path, &stored);
        let mut state = self.state();
        if let Err(error) = saved {
            tracing::warn!(
                path = %path.display(), %error,
                "cannot store the addresses of DNS names; trying again"
            );
            state.write = Some(self.now() + WRITE_RETRY_PAUSE);
        }
        state
    }
}

fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    let found = (name, 0).to_socket_addrs()?;
    Ok(found.map(|address| address.ip()).collect())
}

/// The stored addresses; `None` where there is no file, or none that can be read.
fn load(path: &Path) -> Option<StoredNames> {
    let read = || -> io::Result<StoredNames> {
        let mut text = Vec::new();
        let read = File::open(path)?
            .take(MAX_FILE + 1)
            .read_to_end(&mut text)?;
        if read as u64 > MAX_FILE {
            return Err(io::Error::other("it is larger than 8 MiB"));
        }
        StoredNames::read(&text)
    };
    match read() {
        Ok(stored) => Some(stored),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(
                path = %path.display(), %error,
                "cannot read the stored addresses of DNS names; they are looked up anew"
            );
            None
        }
    }
}

/// Replaces the file: it has the old contents or the new ones, never a part.
fn save(path: &Path, stored: &StoredNames) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    crate::replace::replace(path, 0o644, &stored.write()?)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn works(name: &str) -> io::Result<Vec<IpAddr>> {
        match name {
            "gw1.example.net" => Ok(vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()]),
            _ => Err(io::Error::other("no such name")),
        }
    }

    fn is_down(_: &str) -> io::Result<Vec<IpAddr>> {
        Err(io::Error::other("DNS is down"))
    }

    fn start(file: Option<&Path>, lookup: Lookup) -> Resolver {
        let file = file.map(Path::to_owned);
        Resolver::start_with(NameSettings::default(), 1, file, lookup).expect("a thread")
    }

    fn service_addresses() -> Vec<ServiceAddress> {
        ["gw1.example.net:7", "gw2.example.net:7", "192.0.2.9:8"]
            .map(|text| text.parse().expect("a service address"))
            .to_vec()
    }

    fn set(resolver: &Resolver) {
        let service_addresses = service_addresses();
        let names = service_addresses.iter().filter_map(|e| e.name().cloned());
        resolver.set(names.collect());
    }

    fn until(what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < TIMEOUT, "never {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn addresses(resolver: &Resolver) -> Vec<SocketAddr> {
        resolver.target("a", &service_addresses()).addresses
    }

    fn text(of: &[&str]) -> Vec<SocketAddr> {
        of.iter().map(|text| text.parse().expect("good")).collect()
    }

    #[test]
    fn the_last_addresses_are_used_when_dns_is_down_at_the_start() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("state").join("names.json");
        let all = text(&["192.0.2.1:7", "192.0.2.2:7", "192.0.2.9:8"]);
        let resolver = start(Some(&file), works);
        set(&resolver);
        until("found", || addresses(&resolver) == all);
        until("stored", || file.exists());
        drop(resolver);

        let resolver = start(Some(&file), is_down);
        set(&resolver);
        assert_eq!(addresses(&resolver), all, "before any lookup");
        let failed = |state: &NameState| state.error.as_deref() == Some("DNS is down");
        until("failed", || resolver.states().iter().all(failed));
        assert_eq!(addresses(&resolver), all);
        assert_eq!(resolver.states()[0].age, None);
        drop(resolver);

        // A damaged file, and none.
        for contents in [
            Some("{\"version\":1,\"names\":{\"gw1"),
            Some("{\"version\":9}"),
            None,
        ] {
            match contents {
                Some(text) => fs::write(&file, text).expect("written"),
                None => fs::remove_file(&file).expect("removed"),
            }
            let resolver = start(Some(&file), is_down);
            set(&resolver);
            assert_eq!(addresses(&resolver), all[2..]);
        }
    }

    #[tokio::test]
    async fn a_caller_waits_for_the_result_and_not_for_recent_ones() {
        let resolver = start(None, works);
        set(&resolver);
        resolver.look_up_again(&service_addresses(), TIMEOUT).await;
        let all = text(&["192.0.2.1:7", "192.0.2.2:7", "192.0.2.9:8"]);
        assert_eq!(addresses(&resolver), all);
        let begun = Instant::now();
        resolver.look_up_again(&service_addresses(), TIMEOUT).await;
        resolver
            .look_up_again(&service_addresses()[2..], TIMEOUT)
            .await;
        assert!(begun.elapsed() < TIMEOUT / 2);
        let changed = resolver.progress().borrow().changes;
        assert_eq!(changed, 1);

        let slow = start(None, |_| {
            thread::sleep(Duration::from_secs(2));
            Err(io::Error::other("slow"))
        });
        set(&slow);
        let begun = Instant::now();
        slow.look_up_again(&service_addresses(), Duration::from_millis(50))
            .await;
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn the_system_is_asked() {
        let settings = NameSettings {
            loopback: true,
            ..NameSettings::default()
        };
        let resolver = Resolver::start(settings, 1, None).expect("a thread");
        let local = ["localhost:5"
            .parse::<ServiceAddress>()
            .expect("a service address")];
        resolver.set(local.iter().filter_map(|e| e.name().cloned()).collect());
        resolver.look_up_again(&local, TIMEOUT).await;
        let found = resolver.target("a", &local).addresses;
        assert!(!found.is_empty());
        assert!(found.iter().all(|a| a.ip().is_loopback() && a.port() == 5));
    }
}
