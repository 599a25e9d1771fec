//! The file as TOML. Unknown keys are refused, so that a misspelt key is not ignored silently.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::PathBuf,
};

use gateway_model::{BackendSpec, CircuitSpec, Objects, RouteSpec, TenantSpec};
use serde::{Deserialize, de::IgnoredAny};
use service::{SecretText, config::Checker};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub gateway: Gateway,
    pub agent: Option<agent::Section>,
    #[serde(default)]
    pub relay: Relay,
    #[serde(default)]
    pub circuits: Circuits,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub tenant: Vec<Tenant>,
    #[serde(default)]
    pub backend: Vec<Backend>,
    #[serde(default)]
    pub route: Vec<Route>,
    #[serde(default)]
    pub circuit: Vec<Circuit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateway {
    pub name: String,
    pub listen: Option<Vec<String>>,
    pub control_socket: Option<PathBuf>,
    pub metrics: Option<String>,
    pub drain: Option<f64>,
    pub state_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Relay {
    pub hello_timeout: Option<f64>,
    pub dial_timeout: Option<f64>,
    pub idle_timeout: Option<f64>,
    pub trial_time: Option<f64>,
    pub proxy_from: Option<Vec<String>>,
    pub access_log: Option<PathBuf>,
    pub transfer: Option<String>,
    /// The name of `transfer` in earlier versions; refused.
    pub way: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub connections: Option<i64>,
    pub per_source: Option<i64>,
    pub tenants: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenant {
    pub name: String,
    pub connections: Option<i64>,
    pub datagrams: Option<i64>,
    pub datagram_bytes: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backend {
    pub name: String,
    pub addresses: Vec<String>,
    #[serde(default)]
    pub proxy: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub name: Option<String>,
    pub below: Option<String>,
    #[serde(default)]
    pub protocols: Vec<String>,
    pub tenant: Option<String>,
    pub backend: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Circuits {
    pub lifetime: Option<f64>,
    pub threads: Option<i64>,
    pub capacity: Option<i64>,
    #[serde(default)]
    pub report_load: bool,
    pub xdp: Option<String>,
    pub interfaces: Option<Vec<String>>,
    pub bpf_object: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Circuit {
    pub id: String,
    pub tenant: String,
    #[serde(deserialize_with = "SecretText::list")]
    pub keys: Vec<SecretText>,
}

impl File {
    /// Takes the desired state out of the file; `None`: the file has no part of one.
    pub fn take_desired(&mut self, c: &mut Checker) -> Option<Objects> {
        let tenants = std::mem::take(&mut self.tenant);
        let backends = std::mem::take(&mut self.backend);
        let routes = std::mem::take(&mut self.route);
        let circuits = std::mem::take(&mut self.circuit);
        let mut objects = Objects::default();
        for tenant in tenants {
            let spec = TenantSpec {
                connections: tenant.connections,
                datagrams: tenant.datagrams,
                datagram_bytes: tenant.datagram_bytes,
            };
            put(c, "tenant", &mut objects.tenants, tenant.name, spec);
        }
        for backend in backends {
            let spec = BackendSpec {
                addresses: backend.addresses,
                proxy: backend.proxy,
            };
            put(c, "backend", &mut objects.backends, backend.name, spec);
        }
        for route in routes {
            let mut id = route.id();
            // The check finds that both match the same hellos.
            while objects.routes.contains_key(&id) {
                id += " again";
            }
            let spec = RouteSpec {
                name: route.name,
                below: route.below,
                protocols: route.protocols,
                tenant: route.tenant,
                backend: route.backend,
            };
            objects.routes.insert(id, spec);
        }
        for circuit in circuits {
            let spec = CircuitSpec {
                tenant: circuit.tenant,
                keys: circuit.keys,
            };
            put(c, "circuit", &mut objects.circuits, circuit.id, spec);
        }
        if objects.is_empty() {
            return None;
        }
        if objects.routes.is_empty() && objects.circuits.is_empty() {
            c.problem(
                "route",
                "there is no route and no circuit, so the gateway would refuse everything: write \
                 [[route]] with name or below, and backend; or write [[circuit]]; or leave \
                 [[tenant]] and [[backend]] out, for a state that is applied",
            );
        }
        Some(objects)
    }
}

impl Route {
    /// An ID that is the same for the same hellos: the names, and the protocols in brackets.
    fn id(&self) -> String {
        let mut id = match (&self.name, &self.below) {
            (Some(name), _) => name.to_ascii_lowercase(),
            (None, Some(name)) => format!("*.{}", name.to_ascii_lowercase()),
            (None, None) => "?".to_owned(),
        };
        if !self.protocols.is_empty() {
            id += &format!(" [{}]", self.protocols.join(" "));
        }
        id
    }
}

fn put<T>(c: &mut Checker, kind: &str, all: &mut BTreeMap<String, T>, id: String, spec: T) {
    match all.entry(id) {
        Entry::Vacant(entry) => {
            entry.insert(spec);
        }
        Entry::Occupied(entry) => {
            c.problem(format!("{kind} {:?}", entry.key()), "is defined twice")
        }
    }
}
