//! Connects to a backend: to the first of its addresses that works, without waiting long for one
//! that does not.
//!
//! ```text
//!   addresses, names ─▶ in order of preference; those that failed lately are last
//!     1st ──────────────────────────────────── connected ─▶ done; the other attempts are dropped
//!      └ after 250 ms, at once if it fails ─▶ 2nd ─ ...
//!     all failed ─▶ names are looked up again ─▶ addresses that are new
//! ```
//!
//! An address that failed is tried again after a pause that grows, by one connection: so all return
//! to the preferred address when it works again. What was learned belongs to the relay and not to a
//! plan: a reload keeps it.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use gateway_client::dial::Endpoint;
use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::Backend;

/// Time after which the next address is tried as well (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Pause before an address that failed is preferred again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(32);
/// Age at which the addresses of a name are looked up again, while they are used.
const STALE: Duration = Duration::from_secs(30);
/// Least time between two lookups of a name.
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);
/// Addresses of a name at most.
const MAX_ADDRESSES: usize = 16;

/// The failures of an address since it last worked.
#[derive(Clone, Copy, Debug)]
struct Failures {
    row: u32,
    /// When it is preferred again.
    until: Instant,
}

/// The addresses of a name.
#[derive(Clone, Debug)]
struct Lookup {
    addresses: Vec<SocketAddr>,
    at: Instant,
    running: bool,
}

/// Failures of addresses, and results of name lookups.
#[derive(Debug, Default)]
pub struct Learned {
    failures: Mutex<HashMap<SocketAddr, Failures>>,
    names: Mutex<HashMap<(Arc<str>, u16), Lookup>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Learned {
    /// Forgets addresses and names that no connection has used for long.
    pub fn prune(&self, now: Instant) {
        let keep = 10 * MAX_PAUSE;
        lock(&self.failures).retain(|_, failures| failures.until + keep > now);
        lock(&self.names).retain(|_, lookup| lookup.at + keep > now);
    }

    /// Puts addresses that failed lately last. One whose pause is over keeps its place, for this
    /// connection only.
    fn order(&self, candidates: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        let mut failures = lock(&self.failures);
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for &address in candidates {
            match failures.get_mut(&address) {
                Some(failed) if failed.until > now => bad.push((failed.until, address)),
                Some(failed) => {
                    failed.until = now + FIRST_PAUSE;
                    good.push(address);
                }
                None => good.push(address),
            }
        }
        bad.sort_unstable();
        good.extend(bad.into_iter().map(|(_, address)| address));
        good
    }

    fn failed(&self, address: SocketAddr, now: Instant) {
        let mut failures = lock(&self.failures);
        let failed = failures
            .entry(address)
            .or_insert(Failures { row: 0, until: now });
        let pause = FIRST_PAUSE * (1 << failed.row.min(8));
        failed.row = failed.row.saturating_add(1);
        failed.until = now + pause.min(MAX_PAUSE);
    }

    fn works(&self, address: SocketAddr) {
        lock(&self.failures).remove(&address);
    }

    /// The addresses of all endpoints, in order of preference. `again`: names are looked up even if
    /// their addresses are known.
    async fn candidates(
        self: &Arc<Self>,
        endpoints: &[Endpoint],
        patience: Duration,
        again: bool,
    ) -> Vec<SocketAddr> {
        let mut all = Vec::new();
        for endpoint in endpoints {
            match endpoint {
                Endpoint::Address(address) => all.push(*address),
                Endpoint::Name(name, port) => {
                    all.extend(self.resolve(name, *port, patience, again).await);
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        all.retain(|address| seen.insert(*address));
        all
    }

    async fn resolve(
        self: &Arc<Self>,
        name: &Arc<str>,
        port: u16,
        patience: Duration,
        again: bool,
    ) -> Vec<SocketAddr> {
        let key = (Arc::clone(name), port);
        if let Some(lookup) = lock(&self.names).get_mut(&key) {
            let age = lookup.at.elapsed();
            if !again || age < LOOKUP_PAUSE {
                if age > STALE && !lookup.running {
                    lookup.running = true;
                    let learned = Arc::clone(self);
                    tokio::spawn(async move { learned.look_up(key, STALE).await });
                }
                return lookup.addresses.clone();
            }
        }
        self.look_up(key, patience).await
    }

    /// Looks a name up. If that fails, the addresses from before stay.
    async fn look_up(&self, key: (Arc<str>, u16), patience: Duration) -> Vec<SocketAddr> {
        let host = Arc::clone(&key.0);
        let found = timeout(patience, lookup_host((&*host, key.1))).await;
        let found: Option<Vec<SocketAddr>> = match found {
            Ok(Ok(found)) => Some(found.take(MAX_ADDRESSES).collect()),
            Ok(Err(error)) => {
                tracing::debug!(name = %key.0, %error, "cannot look up a backend");
                None
            }
            Err(_) => {
                tracing::debug!(name = %key.0, "the lookup of a backend has no answer");
                None
            }
        };
        let mut names = lock(&self.names);
        let lookup = names.entry(key).or_insert_with(|| Lookup {
            addresses: Vec::new(),
            at: Instant::now(),
            running: false,
        });
        if let Some(found) = found {
            lookup.addresses = found;
        }
        lookup.at = Instant::now();
        lookup.running = false;
        lookup.addresses.clone()
    }
}

/// Connects to a backend; calls `failed` for each address that does not answer within `patience`,
/// or later than another one.
///
/// # Errors
/// The last error, when no address answers.
pub async fn dial(
    backend: &Backend,
    learned: &Arc<Learned>,
    patience: Duration,
    failed: impl Fn(),
) -> io::Result<(TcpStream, SocketAddr)> {
    let candidates = learned
        .candidates(&backend.endpoints, patience, false)
        .await;
    let order = learned.order(&candidates, Instant::now());
    let error = match race(order, learned, patience, &failed).await {
        Ok(connected) => return Ok(connected),
        Err(error) => error,
    };
    let is_named = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Name(..));
    if backend.endpoints.iter().any(is_named) {
        let mut new = learned.candidates(&backend.endpoints, patience, true).await;
        new.retain(|address| !candidates.contains(address));
        if !new.is_empty() {
            return race(new, learned, patience, &failed).await;
        }
    }
    Err(error)
}

/// Tries addresses in their order, each some time after the one before it, until one answers.
async fn race(
    order: Vec<SocketAddr>,
    learned: &Learned,
    patience: Duration,
    failed: &impl Fn(),
) -> io::Result<(TcpStream, SocketAddr)> {
    let mut error = io::ErrorKind::AddrNotAvailable.into();
    let mut attempts = JoinSet::new();
    let mut started: Vec<(SocketAddr, Instant)> = Vec::new();
    let mut rest = order.into_iter().peekable();
    let mut due = Instant::now();
    let has_failed = |address| {
        learned.failed(address, Instant::now());
        failed();
    };
    loop {
        if Instant::now() >= due
            && let Some(address) = rest.next()
        {
            started.push((address, Instant::now()));
            attempts.spawn(async move {
                let connected = timeout(patience, TcpStream::connect(address)).await;
                let timed_out = |_| Err(io::ErrorKind::TimedOut.into());
                (address, connected.unwrap_or_else(timed_out))
            });
            due = Instant::now() + STAGGER;
        }
        if attempts.is_empty() && rest.peek().is_none() {
            return Err(error);
        }
        tokio::select! {
            Some(joined) = attempts.join_next() => match joined {
                Ok((address, Ok(stream))) => {
                    learned.works(address);
                    for (slow, since) in started {
                        if slow != address && since.elapsed() >= STAGGER {
                            has_failed(slow);
                        }
                    }
                    // It fails only if the connection is closed already.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    return Ok((stream, address));
                }
                Ok((address, Err(source))) => {
                    tracing::debug!(%address, error = %source, "cannot connect to an address of \
                        the backend");
                    started.retain(|(other, _)| *other != address);
                    has_failed(address);
                    error = source;
                    due = Instant::now();
                }
                Err(joined) => error = io::Error::other(joined),
            },
            () = sleep_until(due), if rest.peek().is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_failed_is_last_and_is_tried_again_by_one_connection() {
        let learned = Learned::default();
        let [a, b, c]: [SocketAddr; 3] = [1, 2, 3].map(|n| ([192, 0, 2, n], 443).into());
        let order = |now| learned.order(&[a, b, c], now);
        let mut now = Instant::now();
        assert_eq!(order(now), [a, b, c]);
        learned.failed(a, now);
        assert_eq!(order(now), [b, c, a]);
        now += FIRST_PAUSE;
        assert_eq!(order(now), [a, b, c], "a trial");
        assert_eq!(order(now), [b, c, a], "others do not wait for it");
        learned.failed(a, now);
        now += FIRST_PAUSE;
        assert_eq!(order(now), [b, c, a], "the pause grows");
        learned.failed(b, now);
        learned.failed(c, now);
        learned.works(a);
        assert_eq!(order(now)[0], a);
        for _ in 0..40 {
            learned.failed(b, now);
        }
        now += MAX_PAUSE;
        assert_eq!(order(now), [a, b, c], "the pause has a limit");
        learned.prune(now + 12 * MAX_PAUSE);
        assert!(lock(&learned.failures).is_empty());
    }

    #[tokio::test]
    async fn a_name_is_looked_up_and_kept_when_the_lookup_fails() {
        let learned = Arc::new(Learned::default());
        let local = [Endpoint::Name("localhost".into(), 5)];
        let patience = Duration::from_secs(5);
        let found = learned.candidates(&local, patience, false).await;
        assert!(found.iter().all(|a| a.ip().is_loopback() && a.port() == 5));
        assert!(!found.is_empty());
        let key: (Arc<str>, u16) = ("no-such-name.invalid".into(), 5);
        assert!(learned.look_up(key.clone(), patience).await.is_empty());
        lock(&learned.names).get_mut(&key).expect("noted").addresses = found.clone();
        assert_eq!(learned.look_up(key, patience).await, found);
    }
}
