//! State of the listener that all its connections share: the authority, and limits of connections
//! and of lines in the log.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    authority::{self, Trusted},
    settings::Settings,
};
use crate::{Director, Environment, machines::AgentListener, tls::Limits};

/// Connections of machines without a certificate at once, and those of one address.
const MAX_FIRST_CONTACTS: usize = 256;
const MAX_FIRST_CONTACTS_OF_ADDRESS: usize = 32;
/// Handshakes at once, and those of one address, which may be a gateway's.
const MAX_HANDSHAKES: usize = 1024;
const MAX_HANDSHAKES_OF_ADDRESS: usize = 256;
/// Connections of one machine at once: the one in use, and the next.
pub(super) const MAX_OF_MACHINE: usize = 4;
/// Time between lines of the log about machines that are not known.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// The agents' side of a director.
#[derive(Debug)]
pub(super) struct Agents {
    pub trusted: Trusted,
    pub settings: Settings,
    pub handshakes: Arc<Limits>,
    pub first_contacts: Arc<Limits>,
    /// Connections by machine.
    machines: Mutex<HashMap<String, usize>>,
    pub strangers: LogLimit,
    pub refusals: LogLimit,
}

/// Lines of the log about machines that are refused: one in a second at most, so that they do not
/// fill the log.
#[derive(Debug)]
pub(super) struct LogLimit {
    environment: Arc<dyn Environment>,
    /// Time of the last line, and the number of those left out since.
    last: Mutex<(Option<Duration>, u64)>,
}

impl LogLimit {
    fn new(director: &Director) -> Self {
        Self {
            environment: Arc::clone(&director.environment),
            last: Mutex::default(),
        }
    }

    /// Logs a refusal.
    pub fn warn(&self, address: IpAddr, text: &str) {
        let now = self.environment.monotonic();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last
            .0
            .is_some_and(|last| now.saturating_sub(last) < LOG_PAUSE)
        {
            last.1 += 1;
            return;
        }
        let left_out = last.1;
        *last = (Some(now), 0);
        drop(last);
        tracing::warn!(%address, left_out, "refused a machine: {text}");
    }
}

impl Agents {
    /// Reads the authority, or makes one.
    ///
    /// # Errors
    /// [`authority::Error`].
    pub async fn load(director: &Director, settings: Settings) -> Result<Self, authority::Error> {
        Ok(Self {
            trusted: Trusted::load(director, &settings).await?,
            settings,
            handshakes: Arc::new(Limits::new(MAX_HANDSHAKES, MAX_HANDSHAKES_OF_ADDRESS)),
            first_contacts: Arc::new(Limits::new(
                MAX_FIRST_CONTACTS,
                MAX_FIRST_CONTACTS_OF_ADDRESS,
            )),
            machines: Mutex::default(),
            strangers: LogLimit::new(director),
            refusals: LogLimit::new(director),
        })
    }

    /// The listener, as enrolment tokens name it.
    pub fn named(&self) -> AgentListener {
        AgentListener {
            authority: self.trusted.fingerprint(),
            server_name: self.settings.server_name.clone(),
            service_addresses: self.settings.service_addresses.clone(),
        }
    }
}

/// A connection that counts for its machine until it is dropped.
pub(super) struct OfMachine<'a> {
    agents: &'a Agents,
    key: String,
}

impl<'a> OfMachine<'a> {
    pub fn enter(agents: &'a Agents, key: &str) -> Option<Self> {
        let mut all = agents
            .machines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(key.to_owned()).or_default();
        if *count >= MAX_OF_MACHINE {
            return None;
        }
        *count += 1;
        let key = key.to_owned();
        Some(Self { agents, key })
    }
}

impl Drop for OfMachine<'_> {
    fn drop(&mut self) {
        let all = self.agents.machines.lock();
        let mut all = all.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.key);
            }
        }
    }
}
