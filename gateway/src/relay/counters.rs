//! Counters of the relay.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{
    carry::{End, Traffic},
    refusal::ConnectionRefusal,
};

/// Label `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    pub reason: &'static str,
}

/// Label `tenant`; empty: no tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Tenant {
    pub tenant: String,
}

/// Labels of a tenant and a direction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TenantDirection {
    pub tenant: String,
    /// `up`: to the backend; `down`: to the client.
    pub direction: &'static str,
}

/// Label `backend`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Backend {
    pub backend: String,
}

/// All counters. Clones share them.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Accepted connections.
    pub accepted: Counter,
    /// Refused connections, by reason.
    pub refused: Family<Reason, Counter>,
    /// Relayed connections, by tenant.
    pub relayed: Family<Tenant, Counter>,
    /// Open connections, by tenant.
    pub open: Family<Tenant, Gauge>,
    /// Ended connections, by kind of end.
    pub ended: Family<Reason, Counter>,
    /// Relayed bytes, by tenant and direction, with the hello and without the PROXY header.
    pub bytes: Family<TenantDirection, Counter>,
    /// Failed connects to addresses of a backend.
    pub dial_failures: Family<Backend, Counter>,
    /// Transfers that copied bytes because the limit of pipes was reached.
    pub short_of_pipes: Counter,
    /// Failed accepts.
    pub accept_failures: Counter,
    /// Access records that were not written.
    pub lost_records: Counter,
}

impl Counters {
    /// Counters at zero. The pool of pipes counts `short_of_pipes`.
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
            lost_records: Counter::default(),
        };
        // Series exist from the start, so that their rates are right.
        for reason in ConnectionRefusal::REASONS {
            drop(counters.refused.get_or_create(&Reason { reason }));
        }
        for end in End::ALL {
            let reason = end.name();
            drop(counters.ended.get_or_create(&Reason { reason }));
        }
        counters
    }

    /// Counts a refused connection.
    pub fn refuse(&self, refused: &ConnectionRefusal) {
        let reason = refused.reason();
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// The byte counters of a tenant.
    #[must_use]
    pub fn traffic(&self, tenant: &str) -> Traffic {
        let of = |direction| {
            self.bytes.get_or_create_owned(&TenantDirection {
                tenant: tenant.to_owned(),
                direction,
            })
        };
        Traffic {
            up: of("up"),
            down: of("down"),
        }
    }

    /// Counts a relayed connection of a tenant, open until the result is dropped.
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

    /// Registers all metrics.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("causeway_gateway");
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        add("connections", "Accepted TCP connections", &self.accepted);
        add(
            "short_of_pipes",
            "Transfers that copied bytes because the limit of pipes was reached",
            &self.short_of_pipes,
        );
        add("accept_failures", "Failed accepts", &self.accept_failures);
        add(
            "access_records_lost",
            "Access records lost because the file could not be written in time",
            &self.lost_records,
        );
        registry.register(
            "refused",
            "Refused connections, by `reason`",
            self.refused.clone(),
        );
        registry.register("relayed", "Relayed connections", self.relayed.clone());
        registry.register(
            "open_connections",
            "Relayed connections that are open",
            self.open.clone(),
        );
        registry.register(
            "ended",
            "Relayed connections that have ended, by `reason`",
            self.ended.clone(),
        );
        registry.register_with_unit(
            "relayed",
            "Relayed bytes: `up` to backends, `down` to clients",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register(
            "dial_failures",
            "Failed connects to addresses of a backend",
            self.dial_failures.clone(),
        );
    }
}

/// An open relayed connection, for the gauge.
#[derive(Debug)]
pub struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The label value of a tenant; empty without one.
#[must_use]
pub fn label(tenant: Option<&Arc<str>>) -> &str {
    tenant.map_or("", |name| name)
}
