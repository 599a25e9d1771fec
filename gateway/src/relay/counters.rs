//! What the relay counts.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{
    carry::{End, Traffic},
    open::Refused,
};

/// Why, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// One of a fixed set.
    pub reason: &'static str,
}

/// Whose, as a label; empty: nobody's in particular.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Tenant {
    /// Its name.
    pub tenant: String,
}

/// Whose bytes and which way, as labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Way {
    /// The tenant's name.
    pub tenant: String,
    /// `up`, to the backend, or `down`.
    pub direction: &'static str,
}

/// To whom, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Backend {
    /// The backend's name.
    pub backend: String,
}

/// All of it. Clones count together.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Connections that came.
    pub accepted: Counter,
    /// Of them those that were not relayed, by reason; one a connection.
    pub refused: Family<Reason, Counter>,
    /// Of them those that were, by tenant.
    pub relayed: Family<Tenant, Counter>,
    /// Those relayed now, by tenant.
    pub open: Family<Tenant, Gauge>,
    /// Those that ended, by how.
    pub ended: Family<Reason, Counter>,
    /// Bytes, by tenant and direction; the hello counts, the PROXY header does not.
    pub bytes: Family<Way, Counter>,
    /// Attempts to reach a backend's address that failed, by backend.
    pub dial_failures: Family<Backend, Counter>,
    /// Buffers taken for want of a pipe.
    pub short_of_pipes: Counter,
    /// Connections that could not be accepted.
    pub accept_failures: Counter,
}

impl Counters {
    /// At zero. `short_of_pipes` is counted where pipes are lent.
    #[must_use]
    pub fn new(short_of_pipes: Counter) -> Self {
        let counters = Self {
            accepted: Counter::default(),
            refused: Family::default(),
            relayed: Family::default(),
            open: Family::default(),
            ended: Family::default(),
            bytes: Family::default(),
            dial_failures: Family::default(),
            short_of_pipes,
            accept_failures: Counter::default(),
        };
        // What never happened is a zero, not a gap.
        for reason in Refused::REASONS {
            drop(counters.refused.get_or_create(&Reason { reason }));
        }
        for end in End::ALL {
            let reason = end.name();
            drop(counters.ended.get_or_create(&Reason { reason }));
        }
        counters
    }

    /// One more for that reason.
    pub fn refuse(&self, refused: &Refused) {
        let reason = refused.reason();
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// The bytes of a tenant.
    #[must_use]
    pub fn traffic(&self, tenant: &str) -> Traffic {
        let of = |direction| {
            self.bytes.get_or_create_owned(&Way {
                tenant: tenant.to_owned(),
                direction,
            })
        };
        Traffic {
            up: of("up"),
            down: of("down"),
        }
    }

    /// One more relayed connection of a tenant, until it is dropped.
    #[must_use]
    pub fn opened(&self, tenant: &str) -> Open {
        let tenant = Tenant {
            tenant: tenant.to_owned(),
        };
        self.relayed.get_or_create(&tenant).inc();
        let open = self.open.get_or_create_owned(&tenant);
        open.inc();
        Open(open)
    }

    /// Makes them known under their names.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("causeway_gateway");
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        add("connections", "TCP connections that came", &self.accepted);
        add(
            "short_of_pipes",
            "Times that bytes were copied for want of a pipe",
            &self.short_of_pipes,
        );
        add(
            "accept_failures",
            "Connections that could not be accepted",
            &self.accept_failures,
        );
        registry.register(
            "refused",
            "Connections that were not relayed",
            self.refused.clone(),
        );
        registry.register(
            "relayed",
            "Connections that were relayed",
            self.relayed.clone(),
        );
        registry.register(
            "open_connections",
            "Connections that are relayed now",
            self.open.clone(),
        );
        registry.register(
            "ended",
            "Relayed connections that ended",
            self.ended.clone(),
        );
        registry.register_with_unit(
            "relayed",
            "Bytes relayed, up to backends and down to clients",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register(
            "dial_failures",
            "Attempts to reach a backend's address that failed",
            self.dial_failures.clone(),
        );
    }
}

/// A relayed connection in the count of those open.
#[derive(Debug)]
pub struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A tenant's name as a label.
#[must_use]
pub fn label(tenant: Option<&Arc<str>>) -> &str {
    tenant.map_or("", |name| name)
}
