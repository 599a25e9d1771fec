//! The state as it is written, whole or in pages.

use std::{ops::Bound, sync::Arc};

use gateway_client::wire::CircuitId;
use gateway_core::route::{Names, Route};
use serde::{Deserialize, Serialize};

use service::desired::Source;

use super::Model;
use crate::{
    check,
    checked::{Backend, Circuit, Tenant},
    objects::{BackendSpec, CircuitSpec, Objects, RouteSpec, TenantSpec},
};

/// Some objects of the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredPage {
    /// Revision of the state. Pages of different revisions do not fit together.
    pub revision: u64,
    pub source: Source,
    pub objects: Objects,
    /// The key to ask for the next page with, if more follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Tenant {
    fn spec(self) -> TenantSpec {
        let rate = |rate: Option<u64>| rate.and_then(|rate| i64::try_from(rate).ok());
        TenantSpec {
            connections: Some(self.connections.into()),
            datagrams: rate(self.datagrams),
            datagram_bytes: rate(self.bytes),
        }
    }
}

fn backend(backend: &Backend) -> BackendSpec {
    BackendSpec {
        addresses: backend.addresses.iter().map(ToString::to_string).collect(),
        proxy: backend.proxy,
    }
}

fn route(route: &Route) -> RouteSpec {
    let (name, below) = match &route.names {
        Names::Exact(name) => (Some(name.clone()), None),
        Names::Below(name) => (None, Some(name.clone())),
    };
    let protocols = route.protocols.iter();
    RouteSpec {
        name,
        below,
        protocols: protocols
            .map(|p| String::from_utf8_lossy(p).into_owned())
            .collect(),
        tenant: route.tenant.as_deref().map(str::to_owned),
        backend: (*route.backend).to_owned(),
    }
}

fn circuit(circuit: &Circuit, with_keys: bool) -> CircuitSpec {
    let keys = circuit.keys.iter().filter(|_| with_keys);
    CircuitSpec {
        tenant: (*circuit.tenant).to_owned(),
        keys: keys.map(|key| key.to_base64().into()).collect(),
    }
}

impl Model {
    /// All objects, with their keys.
    pub(super) fn objects(&self) -> Objects {
        self.page(None, usize::MAX, true)
            .map_or_else(Objects::default, |page| page.objects)
    }

    /// At most `limit` objects after those of an earlier page, whose `next` is `after`; circuits
    /// with their keys, or with none. `None`: `after` comes from no page.
    #[must_use]
    pub fn page(&self, after: Option<&str>, limit: usize, with_keys: bool) -> Option<DesiredPage> {
        let (kind, id) = match after {
            None => ("tenant", ""),
            Some(after) => after.split_once(':')?,
        };
        let from: Bound<&str> = match after {
            None => Bound::Unbounded,
            Some(_) => Bound::Excluded(id),
        };
        let stage = ["tenant", "backend", "route", "circuit"]
            .iter()
            .position(|k| *k == kind)?;
        let from = |of: usize| if of == stage { from } else { Bound::Unbounded };
        let mut page = DesiredPage {
            revision: self.revision,
            source: self.source,
            objects: Objects::default(),
            next: None,
        };
        let (objects, next) = (&mut page.objects, &mut page.next);
        let mut left = limit.max(1);
        let mut last = String::new();
        let mut take = |kind: &str, id: &str| {
            if left == 0 {
                *next = Some(std::mem::take(&mut last));
                return false;
            }
            left -= 1;
            last = format!("{kind}:{id}");
            true
        };
        if stage == 0 {
            let all = self.tenants.range::<str, _>((from(0), Bound::Unbounded));
            for (id, entry) in all {
                if !take("tenant", id) {
                    return Some(page);
                }
                objects
                    .tenants
                    .insert((**id).to_owned(), entry.tenant.spec());
            }
        }
        if stage <= 1 {
            let all = self.backends.range::<str, _>((from(1), Bound::Unbounded));
            for (id, entry) in all {
                if !take("backend", id) {
                    return Some(page);
                }
                objects
                    .backends
                    .insert((**id).to_owned(), backend(&entry.backend));
            }
        }
        if stage <= 2 {
            let all = self.routes.range::<str, _>((from(2), Bound::Unbounded));
            for (id, one) in all {
                if !take("route", id) {
                    return Some(page);
                }
                objects
                    .routes
                    .insert(Arc::as_ref(id).to_owned(), route(one));
            }
        }
        let first: Bound<CircuitId> = match from(3) {
            Bound::Excluded(id) => Bound::Excluded(check::circuit_id(id)?),
            Bound::Included(_) | Bound::Unbounded => Bound::Unbounded,
        };
        for (id, one) in self.circuits.range((first, Bound::Unbounded)) {
            let id = id.to_string();
            if !take("circuit", &id) {
                return Some(page);
            }
            objects.circuits.insert(id, circuit(one, with_keys));
        }
        Some(page)
    }
}
