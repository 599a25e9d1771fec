//! The configuration file.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use gateway_client::dial::{ServiceAddress, dns_name};
use identity::{Machine, Name};
use serde::Deserialize;
use service::config::{self, Checker, Range};

use crate::{agents, tls::Files};

pub use service::config::Error;

/// Default address of the API.
const LISTEN: &str = "127.0.0.1:6185";
/// Example of an address of the metrics.
const METRICS: &str = "127.0.0.1:9186";
/// Default path of the control socket.
const SOCKET: &str = "/run/causeway-director/director.sock";
/// Default path of the store.
const STORE: &str = "/var/lib/causeway-director/store";

/// Default path of the key that signs checkpoints of the audit.
const AUDIT_KEY: &str = "/var/lib/causeway-director/audit-key";
/// Default address of agents.
const AGENTS: &str = "[::]:6186";
/// Default path of the key that encrypts the authority's.
const SEALING_KEY: &str = "/var/lib/causeway-director/sealing-key";
/// Most addresses of the director itself in an enrolment token.
const MAX_SERVICE_ADDRESSES: usize = 8;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address of the API; a loopback address unless there is a certificate.
    pub listen: SocketAddr,
    /// Certificate of the API; without it, the API speaks plain HTTP.
    pub tls: Option<Files>,
    /// File of the store.
    pub store: PathBuf,
    /// Age of changes that a watch may still ask for.
    pub keep_changes: Duration,
    /// File with the key that signs checkpoints of the audit.
    pub audit_key: PathBuf,
    /// Time between checkpoints of the audit.
    pub checkpoint: Duration,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// Address of the metrics, a loopback address; `None`: no metrics.
    pub metrics: Option<SocketAddr>,
    /// The listener of agents; without it, machines cannot enrol.
    pub agents: Option<agents::Settings>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    director: Keys,
    agents: Option<AgentKeys>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentKeys {
    listen: Option<String>,
    provider: String,
    server_name: String,
    #[serde(default)]
    service_addresses: Vec<String>,
    sealing_key: Option<PathBuf>,
    renewable: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    listen: Option<String>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    audit_key: Option<PathBuf>,
    checkpoint: Option<f64>,
    store: Option<PathBuf>,
    keep_changes: Option<f64>,
    control_socket: Option<PathBuf>,
    metrics: Option<String>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error`], with every wrong value.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::parse(&config::read(path)?, path)
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error`], with every wrong value.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        config::parse(text, path, |file: File| {
            let mut checker = Checker::new();
            let keys = file.director;
            let listen = keys.listen.as_deref().unwrap_or(LISTEN);
            let tls = files(&mut checker, keys.certificate, keys.key);
            let listen = match tls.is_some() {
                true => address(&mut checker, "director.listen", listen),
                false => loopback(
                    &mut checker,
                    "director.listen",
                    listen,
                    (LISTEN, "other addresses need a certificate and key"),
                ),
            };
            let audit_key = checker.absolute("director.audit_key", keys.audit_key, AUDIT_KEY);
            let often = Range {
                least: 1.0,
                most: 86_400.0,
                default: 3600.0,
            };
            let checkpoint = checker.seconds("director.checkpoint", keys.checkpoint, often);
            let metrics = keys.metrics.as_deref();
            let metrics = metrics.map(|text| {
                let why = "metrics name tenants and need no token";
                loopback(&mut checker, "director.metrics", text, (METRICS, why))
            });
            let hour = Range {
                least: 60.0,
                most: 30.0 * 86_400.0,
                default: 3600.0,
            };
            let keep_changes = checker.seconds("director.keep_changes", keys.keep_changes, hour);
            let store = checker.absolute("director.store", keys.store, STORE);
            let control_socket =
                checker.control_socket("director.control_socket", keys.control_socket, SOCKET);
            let agents = file.agents.and_then(|keys| agents(&mut checker, keys));
            checker.finish(Self {
                agents,
                listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
                tls,
                store,
                keep_changes,
                audit_key,
                checkpoint,
                control_socket,
                metrics: metrics.flatten(),
            })
        })
    }
}

/// The listener of agents; `None` after a problem.
fn agents(checker: &mut Checker, keys: AgentKeys) -> Option<agents::Settings> {
    let listen = keys.listen.as_deref().unwrap_or(AGENTS);
    let listen = address(checker, "agents.listen", listen);
    if Name::new(&keys.provider, Machine::Director).is_err() {
        let provider = &keys.provider;
        let rule = "write a name of a to z, 0 to 9, `.`, `-` and `_`, such as provider.example: \
                    it is in the name of every machine";
        checker.problem("agents.provider", format!("{provider:?}: {rule}"));
    }
    let server_name = dns_name(keys.server_name.as_bytes());
    if server_name.is_none() {
        let rule = "write a DNS name such as director.provider.example, by which gateways relay";
        checker.problem(
            "agents.server_name",
            format!("{:?}: {rule}", keys.server_name),
        );
    }
    if keys.service_addresses.len() > MAX_SERVICE_ADDRESSES {
        let text = format!("write at most {MAX_SERVICE_ADDRESSES} addresses");
        checker.problem("agents.service_addresses", text);
    }
    let mut service_addresses = Vec::new();
    for text in &keys.service_addresses {
        match text.parse::<ServiceAddress>() {
            Ok(address) if service_addresses.contains(&address) => {
                checker.problem("agents.service_addresses", format!("{text}: write it once"));
            }
            Ok(address) => service_addresses.push(address),
            Err(error) => checker.problem("agents.service_addresses", error.to_string()),
        }
    }
    let sealing_key = checker.absolute("agents.sealing_key", keys.sealing_key, SEALING_KEY);
    let days = Range {
        least: 0.0,
        most: 366.0 * 86_400.0,
        default: 30.0 * 86_400.0,
    };
    Some(agents::Settings {
        listen: listen?,
        provider: keys.provider,
        server_name: server_name?,
        service_addresses,
        sealing_key,
        grace: checker.seconds("agents.renewable", keys.renewable, days),
    })
}

/// The certificate and its key: both or none.
fn files(
    checker: &mut Checker,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Option<Files> {
    match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(Files {
            certificate: checker.absolute("director.certificate", Some(certificate), ""),
            key: checker.absolute("director.key", Some(key), ""),
        }),
        (Some(_), None) => {
            checker.problem("director.key", "write the file of the certificate's key");
            None
        }
        (None, Some(_)) => {
            checker.problem(
                "director.certificate",
                "write the file of the key's certificate",
            );
            None
        }
    }
}

fn address(checker: &mut Checker, at: &str, text: &str) -> Option<SocketAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        checker.problem(
            at,
            format!("{text:?}: write an address and a port, such as [::]:6185"),
        );
    }
    address
}

/// A loopback address, with an example and the reason for problems.
fn loopback(
    checker: &mut Checker,
    at: &str,
    text: &str,
    (example, why): (&str, &str),
) -> Option<SocketAddr> {
    let address = text
        .parse::<SocketAddr>()
        .ok()
        .filter(|a| a.ip().is_loopback());
    if address.is_none() {
        checker.problem(
            at,
            format!("{text:?}: write a loopback address and a port, such as {example}: {why}"),
        );
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("d.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_has_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.listen.to_string(), LISTEN);
        assert_eq!(config.store, Path::new(STORE));
        assert_eq!(config.metrics, None);
        assert_eq!(config.keep_changes, Duration::from_secs(3600));
    }

    #[test]
    fn every_problem_is_listed() {
        let error = parse(
            "[director]\nlisten = \"0.0.0.0:6185\"\nstore = \"store\"\nmetrics = \"x\"\n\
             keep_changes = 1",
        );
        let error = error.unwrap_err();
        for text in [
            "4 problems",
            "director.listen: \"0.0.0.0:6185\": write a loopback address and a port, such as \
             127.0.0.1:6185: other addresses need a certificate and key",
            "director.metrics: \"x\": write a loopback address and a port, such as \
             127.0.0.1:9186: metrics name tenants and need no token",
            "director.store: ",
            "director.keep_changes: 1 seconds: write 60 to",
        ] {
            assert!(error.contains(text), "{text} is not in {error}");
        }
        let tls = "certificate = \"/c.pem\"\nkey = \"/k.pem\"";
        let open = parse(&format!("[director]\nlisten = \"[::]:443\"\n{tls}")).unwrap();
        assert_eq!(open.listen.port(), 443);
        let half = parse("[director]\ncertificate = \"/c.pem\"").unwrap_err();
        assert!(half.contains("director.key: write the file"), "{half}");
        assert!(
            parse("[director]\nother = 1")
                .unwrap_err()
                .contains("unknown field")
        );
    }
}
