//! The status of the gateway, as the control socket gives it.

use gateway_client::wire::{CircuitId, Load};
use prometheus_client::metrics::{counter::Counter, family::Family};
use service::socket::Page;

use super::controller::Controller;
use crate::{
    circuit::{
        fast,
        socket::{Query, Summary},
        table::{CircuitState, Drops, Reason as DropReason, TenantCounts},
    },
    control::{
        Brief, CircuitStatus, CircuitsStatus, DesiredStatus, InterfaceStatus, PAGE_SIZE, Status,
        TenantStatus, XdpStatus,
    },
    relay::{
        ConnectionRefusal,
        carry::End,
        counters::{Reason, Tenant},
    },
};

fn named(drops: &Drops) -> std::collections::BTreeMap<String, u64> {
    let counts = DropReason::ALL.into_iter().zip(drops);
    counts
        .map(|(reason, count)| (reason.name().to_owned(), *count))
        .collect()
}

fn circuit_status(circuit: &CircuitState) -> CircuitStatus {
    CircuitStatus {
        id: circuit.id.to_string(),
        tenant: circuit.tenant.to_string(),
        bound: circuit.bound,
        datagrams: circuit.counts.from.map(|traffic| traffic.datagrams),
        bytes: circuit.counts.from.map(|traffic| traffic.bytes),
        fast: circuit.fast.map(|traffic| traffic.datagrams),
        events: circuit
            .counts
            .events
            .named()
            .map(|(name, count)| (name.to_owned(), count))
            .into(),
        dropped: named(&circuit.counts.drops),
    }
}

impl Controller {
    fn circuits_status(&self, summary: &Summary) -> CircuitsStatus {
        let mut all = summary.drops;
        let of_tenants = summary.tenants.values().map(|of| of.counts.drops);
        for (sum, count) in of_tenants.flat_map(|drops| std::iter::zip(0.., drops)) {
            let sum: usize = sum;
            all[sum] += count;
        }
        CircuitsStatus {
            listen: self.circuits.addresses(),
            threads: self.config.circuit_threads(),
            configured: summary.circuits,
            bound: summary.bound,
            received: summary.totals.received,
            overflowed: summary.totals.overflowed,
            sent: summary.totals.sent,
            dropped: {
                let mut dropped = named(&all);
                dropped.insert("unbound-rate".to_owned(), summary.totals.unbound_rate);
                dropped
            },
            xdp: self.xdp_status(),
            list: Vec::new(),
        }
    }

    /// A page of circuits. `None`: `after` is no ID.
    pub(super) fn circuits_page(
        &self,
        after: Option<&str>,
        tenant: Option<&str>,
    ) -> Option<Page<CircuitStatus>> {
        let after = match after {
            Some(text) => Some(CircuitId::new(u64::from_str_radix(text, 16).ok()?)?),
            None => None,
        };
        let query = Query {
            after,
            tenant: tenant.map(Into::into),
            limit: PAGE_SIZE + 1,
        };
        let circuits = self.circuits.observer().page(&query);
        let items = circuits.iter().map(circuit_status);
        Some(Page::of(items, |item| item.id.clone(), None, PAGE_SIZE))
    }

    /// A page of tenants, the one without a name first.
    pub(super) fn tenants_page(&self, after: Option<&str>) -> Page<TenantStatus> {
        let summary = self.circuits.summary();
        let named = self.model.tenants();
        let named = named.map(|(name, tenant)| (&**name, Some(tenant.connections)));
        let named = std::iter::once(("", None)).chain(named);
        let none = TenantCounts::default();
        let tenants = named.map(|(name, limit)| {
            let counts = summary.tenants.get(name).unwrap_or(&none);
            self.tenant_status(name, limit, counts)
        });
        Page::of(tenants, |tenant| tenant.name.clone(), after, PAGE_SIZE)
    }

    fn tenant_status(&self, name: &str, limit: Option<u32>, of: &TenantCounts) -> TenantStatus {
        let counters = self.relay.counters();
        let label = Tenant {
            tenant: name.to_owned(),
        };
        let traffic = counters.traffic(name);
        let open = counters.open.get_or_create_owned(&label).get();
        TenantStatus {
            name: name.to_owned(),
            connections: u64::try_from(open).unwrap_or(0),
            limit,
            relayed: counters.relayed.get_or_create_owned(&label).get(),
            bytes_up: traffic.up.get(),
            bytes_down: traffic.down.get(),
            datagrams: of.counts.from.iter().map(|t| t.datagrams).sum(),
            datagram_bytes: of.counts.from.iter().map(|t| t.bytes).sum(),
            datagrams_dropped: of.counts.drops.iter().sum(),
            circuits: of.circuits,
            bound: of.bound,
        }
    }

    /// The state in short.
    pub(super) fn brief(&self) -> Brief {
        let bound = self.circuits.observer().bound();
        Brief {
            name: self.config.name.clone(),
            draining: self.relay.is_draining(),
            connections: self.relay.connections(),
            bound,
            revision: self.model.revision(),
            load: self.load(bound),
            stored: None,
        }
    }

    /// Gives circuits the present load for their answers, if the configuration says so and it is
    /// not `reported` already. Returns what they tell.
    pub(super) fn report_load(&self, reported: Load) -> Load {
        let load = if self.config.circuits.report_load {
            Load::from_thousandths(self.load(self.circuits.observer().bound()))
        } else {
            Load::UNKNOWN
        };
        if load != reported {
            self.circuits.set_load(load);
        }
        load
    }

    /// Thousandths of the capacity that are in use, with this number of bound ends.
    fn load(&self, bound: usize) -> u16 {
        let share = |used: usize, most: usize| used.saturating_mul(1000) / most.max(1);
        let connections = share(self.relay.connections(), self.limits.connections);
        let ends = share(bound, self.config.circuits.capacity.saturating_mul(2));
        connections.max(ends).min(1000) as u16
    }

    fn desired_status(&self) -> DesiredStatus {
        DesiredStatus {
            revision: self.model.revision(),
            source: self.model.source(),
            counts: self.model.counts(),
            stored: self.store.as_ref().map(|store| !store.is_behind()),
        }
    }

    fn xdp_status(&self) -> XdpStatus {
        let fast = self.fast.as_ref();
        let interfaces = fast.map(|fast| fast.interfaces()).unwrap_or_default();
        let interfaces = interfaces.into_iter().map(|interface| InterfaceStatus {
            name: interface.name,
            mode: interface
                .mode
                .as_ref()
                .map_or("none", |m| m.name())
                .to_owned(),
            refused: interface.mode.err(),
            target: interface.target,
        });
        let interfaces: Vec<InterfaceStatus> = interfaces.collect();
        let has_circuits = self.model.counts().circuits > 0;
        let refused = match fast {
            None => self.refused.clone(),
            Some(_) if interfaces.is_empty() && has_circuits => {
                Some(fast::Error::NoInterface.to_string())
            }
            Some(_) => None,
        };
        // An unreadable map leaves the counters out.
        let frames = fast
            .and_then(|fast| fast.outcomes().ok())
            .unwrap_or_default();
        let frames = frames
            .into_iter()
            .map(|(outcome, count)| (outcome.name().to_owned(), count));
        XdpStatus {
            configured: self.config.circuits.xdp_name().to_owned(),
            refused,
            interfaces,
            waiting_tenants: self.circuits.waiting_tenants(),
            frames: frames.collect(),
        }
    }

    /// The status, without tenants and circuits.
    pub(super) fn status(&self) -> Status {
        let summary = self.circuits.summary();
        let counters = self.relay.counters();
        let count = |family: &Family<Reason, Counter>, reason| {
            let counter = family.get_or_create_owned(&Reason { reason });
            (reason.to_owned(), counter.get())
        };
        Status {
            name: self.config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.relay.addresses(),
            metrics: self.http.as_ref().map(service::http::Server::address),
            draining: self.relay.is_draining(),
            connections: self.relay.connections(),
            limit: self.limits.connections,
            accepted: counters.accepted.get(),
            refused: ConnectionRefusal::REASONS
                .into_iter()
                .map(|reason| count(&counters.refused, reason))
                .collect(),
            ended: End::ALL
                .into_iter()
                .map(|end| count(&counters.ended, end.name()))
                .collect(),
            load: self.load(summary.bound),
            desired: self.desired_status(),
            agent: None,
            circuits: self.circuits_status(&summary),
            tenants: Vec::new(),
        }
    }
}
