//! Agents that are connected, by the key of their machine's object.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use tokio::sync::watch;

/// Why the director closes a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// The identity was revoked or replaced, or its machine removed.
    Revoked,
    /// The machine has opened another stream.
    Replaced,
}

/// How a machine says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub ready: bool,
    pub reasons: Vec<String>,
}

/// A connected agent.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub since: Timestamp,
    /// Version of the daemon.
    pub version: String,
    pub report: Option<Report>,
    /// Where the connection comes from: the agent, or a gateway that relays it.
    pub address: SocketAddr,
    /// Id of the enrolment token of the identity.
    pub enrolment: String,
    number: u64,
    close: watch::Sender<Option<Closing>>,
}

/// All connected agents. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presence(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    open: Mutex<HashMap<String, Open>>,
    numbers: AtomicU64,
}

/// The place of an open stream, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream {
    presence: Presence,
    key: String,
    number: u64,
    closing: watch::Receiver<Option<Closing>>,
}

impl Presence {
    /// Enters a stream of a machine. An earlier one is closed.
    pub fn enter(
        &self,
        key: &str,
        version: String,
        enrolment: String,
        address: SocketAddr,
        now: Timestamp,
    ) -> OpenStream {
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let (close, closing) = watch::channel(None);
        let open = Open {
            since: now,
            version,
            report: None,
            address,
            enrolment,
            number,
            close,
        };
        if let Some(before) = self.lock().insert(key.to_owned(), open) {
            before.close.send_replace(Some(Closing::Replaced));
        }
        OpenStream {
            presence: self.clone(),
            key: key.to_owned(),
            number,
            closing,
        }
    }

    /// The stream of a machine.
    pub fn of(&self, key: &str) -> Option<Open> {
        self.lock().get(key).cloned()
    }

    /// Keys of the machines that have open streams.
    pub fn keys(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Number of open streams.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Closes the stream of a machine unless it belongs to this enrolment, by its id.
    pub fn keep_only(&self, key: &str, enrolment: Option<&str>) {
        let mut all = self.lock();
        if let Some(open) = all.get(key)
            && enrolment != Some(&open.enrolment)
        {
            open.close.send_replace(Some(Closing::Revoked));
            all.remove(key);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Open>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenStream {
    /// Notes a report.
    pub fn report(&self, report: Report) {
        let mut all = self.presence.lock();
        if let Some(open) = all.get_mut(&self.key)
            && open.number == self.number
        {
            open.report = Some(report);
        }
    }

    /// Waits until the director closes the stream.
    pub async fn closing(&mut self) -> Closing {
        let found = self.closing.wait_for(Option::is_some).await;
        let found = found.ok().and_then(|reason| *reason);
        // Without a sender the place was taken.
        found.unwrap_or(Closing::Replaced)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut all = self.presence.lock();
        if all
            .get(&self.key)
            .is_some_and(|open| open.number == self.number)
        {
            all.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(presence: &Presence, enrolment: &str) -> OpenStream {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let now = Timestamp::UNIX_EPOCH;
        presence.enter("gateway/gw1", "1".into(), enrolment.into(), address, now)
    }

    #[tokio::test]
    async fn a_second_stream_of_a_machine_closes_the_first() {
        let presence = Presence::default();
        let mut first = enter(&presence, "01");
        let second = enter(&presence, "02");
        assert_eq!(first.closing().await, Closing::Replaced);
        first.report(Report {
            ready: true,
            reasons: Vec::new(),
        });
        drop(first);
        let open = presence.of("gateway/gw1").expect("the second");
        assert_eq!((open.enrolment.as_str(), open.report), ("02", None));
        drop(second);
        assert_eq!(presence.count(), 0);
    }

    #[tokio::test]
    async fn only_a_stream_of_another_enrolment_is_closed() {
        let presence = Presence::default();
        let mut place = enter(&presence, "01");
        presence.keep_only("gateway/gw1", Some("01"));
        presence.keep_only("gateway/gw2", None);
        assert_eq!(presence.count(), 1);
        presence.keep_only("gateway/gw1", Some("02"));
        assert_eq!(presence.count(), 0);
        assert_eq!(place.closing().await, Closing::Revoked);
    }
}
