//! DNS names of gateways: the lookups that [`Names`] decides, each in a thread of its own.
//!
//! ```text
//!   configuration ─▶ Names ─ due ─▶ thread: getaddrinfo ─ answer ─▶ Names ─▶ addresses of gateways
//!                      ▲                                                          └─▶ tunnels
//!                      └─ a gateway does not answer ─ tunnels
//! ```
//!
//! The system's resolver is asked, by the standard library: it reads `/etc/hosts` and
//! `/etc/resolv.conf` as all programs of the machine do, sorts addresses by RFC 6724, and is no
//! further dependency. It may block for many seconds; a thread of the runtime that blocks would
//! delay the stop of the daemon, so the threads are the module's own, one for each name at most.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    time::{Duration, Instant},
};

use gateway_client::{
    dial::{Endpoint, NameSettings, Names},
    selector::GatewayAddresses,
};
use tokio::sync::mpsc;

use crate::{
    config::{Config, Gateway},
    control::GatewayNameStatus,
};

/// The result of a lookup.
#[derive(Debug)]
pub(super) struct NameAnswer {
    name: Arc<str>,
    result: Result<Vec<IpAddr>, String>,
}

/// The names of the configured gateways, and their addresses.
#[derive(Debug)]
pub(super) struct GatewayNames {
    names: Names,
    /// The names' times count from here.
    begun: Instant,
    sender: mpsc::UnboundedSender<NameAnswer>,
    answers: mpsc::UnboundedReceiver<NameAnswer>,
}

impl GatewayNames {
    /// Without names. Daemons with different seeds ask at different times.
    pub fn new(seed: u64) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        Self {
            names: Names::new(NameSettings::default(), seed),
            begun: Instant::now(),
            sender,
            answers,
        }
    }

    /// Takes the names of a configuration; those that stay keep their addresses.
    pub fn set(&mut self, config: &Config) {
        let endpoints = config.gateways.all.iter().flat_map(|g| &g.addresses);
        let names: BTreeSet<Arc<str>> = endpoints.filter_map(|e| e.name().cloned()).collect();
        let now = self.begun.elapsed();
        self.names.set(names, now);
        self.look_up();
    }

    /// The addresses of a gateway, as far as they are known, in the order of the file.
    pub fn addresses(&self, gateway: &Gateway) -> GatewayAddresses {
        let (mut addresses, mut former) = (Vec::new(), Vec::new());
        for endpoint in &gateway.addresses {
            let at = |ip: IpAddr| SocketAddr::new(ip, endpoint.port());
            match endpoint {
                Endpoint::Address(address) => addresses.push(*address),
                Endpoint::Name(name, _) => {
                    addresses.extend(self.names.addresses(name).iter().copied().map(at));
                    former.extend(self.names.former(name).map(at));
                }
            }
        }
        GatewayAddresses {
            name: gateway.name.clone(),
            addresses,
            former,
        }
    }

    /// Waits for the result of a lookup.
    pub async fn answer(&mut self) -> NameAnswer {
        match self.answers.recv().await {
            Some(answer) => answer,
            // Not reached: a sender is kept here.
            None => std::future::pending().await,
        }
    }

    /// Takes a result. Returns whether addresses of gateways changed.
    pub fn take(&mut self, answer: NameAnswer) -> bool {
        let NameAnswer { name, result } = answer;
        let error = result.as_ref().err().cloned();
        let now = self.begun.elapsed();
        let changed = self.names.answered(&name, result, now);
        if changed {
            let addresses = self.names.addresses(&name);
            tracing::info!(%name, ?addresses, "DNS answer for a gateway changed");
        } else if let Some(error) = error {
            let kept = self.names.addresses(&name);
            tracing::debug!(%name, error, ?kept, "cannot look up a gateway's name");
        }
        changed
    }

    /// Starts due lookups, and forgets former addresses. Returns whether addresses of gateways
    /// changed by that.
    pub fn drive(&mut self) -> bool {
        self.look_up();
        self.names.forget_former(self.begun.elapsed())
    }

    /// A gateway does not answer: names are looked up soon.
    pub fn hurry(&mut self) {
        self.names.hurry(self.begun.elapsed());
    }

    fn look_up(&mut self) {
        while let Some(name) = self.names.poll(self.begun.elapsed()) {
            let sender = self.sender.clone();
            let asked = Arc::clone(&name);
            let thread = std::thread::Builder::new().name("resolve".to_owned());
            let spawned = thread.spawn(move || {
                let result = resolve(&asked).map_err(|error| error.to_string());
                // Without a receiver the daemon is stopping.
                let _ = sender.send(NameAnswer {
                    name: asked,
                    result,
                });
            });
            if let Err(error) = spawned {
                let result = Err(format!("cannot start a thread for the lookup: {error}"));
                let now = self.begun.elapsed();
                self.names.answered(&name, result, now);
            }
        }
    }

    /// Whether there are names.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        Some(self.begun + self.names.next_deadline()?)
    }

    /// The names, for the operator.
    pub fn status(&self) -> Vec<GatewayNameStatus> {
        let states = self.names.states(self.begun.elapsed());
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

fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    let found = (name, 0).to_socket_addrs()?;
    Ok(found.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(addresses: &[&str]) -> Gateway {
        Gateway {
            name: "gw1".to_owned(),
            addresses: addresses
                .iter()
                .map(|text| text.parse().expect("an endpoint"))
                .collect(),
            pool: None,
            load: 0,
        }
    }

    fn answer(name: &str, result: Result<&[&str], &str>) -> NameAnswer {
        let parse = |text: &&str| text.parse().expect("an address");
        NameAnswer {
            name: name.into(),
            result: match result {
                Ok(addresses) => Ok(addresses.iter().map(parse).collect()),
                Err(error) => Err(error.to_owned()),
            },
        }
    }

    #[test]
    fn addresses_are_in_the_order_of_the_file_and_survive_failures() {
        let gateway = gateway(&["gw1.invalid:7000", "192.0.2.9:6180"]);
        let mut names = GatewayNames::new(1);
        names.names.set(["gw1.invalid".into()], Duration::ZERO);
        assert!(names.names.poll(Duration::ZERO).is_some());
        let shown = |names: &GatewayNames| {
            let known = names.addresses(&gateway);
            let text = |all: Vec<SocketAddr>| {
                let all: Vec<String> = all.iter().map(ToString::to_string).collect();
                all.join(" ")
            };
            (text(known.addresses), text(known.former))
        };
        assert_eq!(shown(&names).0, "192.0.2.9:6180");
        assert!(names.take(answer("gw1.invalid", Ok(&["192.0.2.1", "2001:db8::1"]))));
        let all = "192.0.2.1:7000 [2001:db8::1]:7000 192.0.2.9:6180";
        assert_eq!(shown(&names), (all.to_owned(), String::new()));
        names.hurry();
        assert!(names.names.poll(Duration::from_secs(9)).is_some());
        assert!(!names.take(answer("gw1.invalid", Err("no answer"))));
        assert_eq!(shown(&names).0, all);
        let status = names.status();
        assert_eq!(status[0].error.as_deref(), Some("no answer"));
        assert!(status[0].age_seconds.is_some());
        assert!(names.names.poll(Duration::from_secs(60)).is_some());
        assert!(names.take(answer("gw1.invalid", Ok(&["192.0.2.2", "192.0.2.1"]))));
        assert_eq!(shown(&names).1, "[2001:db8::1]:7000");
    }

    #[tokio::test]
    async fn a_lookup_never_waits_on_the_caller() {
        let mut names = GatewayNames::new(1);
        let mut all = ["localhost", "no-such-name.invalid"].map(Arc::from);
        names.names.set(all.clone(), Duration::ZERO);
        names.drive();
        for _ in 0..all.len() {
            let answer = names.answer().await;
            // Loopback addresses are none of a gateway.
            assert!(!names.take(answer));
        }
        all.sort();
        let status = names.status();
        assert!(status.iter().map(|s| &*s.name).eq(all.iter().map(|n| &**n)));
        assert!(
            status
                .iter()
                .all(|s| s.error.is_some() && s.age_seconds.is_none())
        );
    }
}
