//! The status of the gateway, as the control socket gives it.

use prometheus_client::metrics::{counter::Counter, family::Family};

use super::controller::Controller;
use crate::{
    circuit::{
        fast,
        socket::State,
        table::{CircuitCounts, Drops, Reason as DropReason},
    },
    control::{CircuitStatus, CircuitsStatus, InterfaceStatus, Status, TenantStatus, XdpStatus},
    relay::{
        Refused,
        carry::End,
        counters::{Reason, Tenant},
    },
};

impl Controller {
    fn circuits_status(&self, state: &State) -> CircuitsStatus {
        let dropped = |drops: &Drops| {
            let counts = DropReason::ALL.into_iter().zip(drops);
            counts
                .map(|(reason, count)| (reason.name().to_owned(), *count))
                .collect()
        };
        let mut all = state.drops;
        let of_circuits = state.circuits.iter().map(|circuit| circuit.counts.drops);
        for (sum, count) in of_circuits.flat_map(|drops| std::iter::zip(0.., drops)) {
            let sum: usize = sum;
            all[sum] += count;
        }
        let list = state.circuits.iter().map(|circuit| CircuitStatus {
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
            dropped: dropped(&circuit.counts.drops),
        });
        CircuitsStatus {
            listen: self.circuits.addresses(),
            threads: self.config.circuit_threads(),
            bound: state.bound,
            received: state.totals.received,
            overflowed: state.totals.overflowed,
            sent: state.totals.sent,
            dropped: dropped(&all),
            xdp: self.xdp_status(),
            list: list.collect(),
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
        let has_circuits = !self.config.circuits.list.is_empty();
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
            asked: self.config.circuits.xdp.name().to_owned(),
            refused,
            interfaces,
            frames: frames.collect(),
        }
    }

    /// The whole status.
    pub(super) fn status(&self) -> Status {
        let state = self.circuits.state();
        let counters = self.relay.counters();
        let count = |family: &Family<Reason, Counter>, reason| {
            let counter = family.get_or_create_owned(&Reason { reason });
            (reason.to_owned(), counter.get())
        };
        let named = self.config.tenants.iter().map(|(n, l)| (&**n, Some(*l)));
        let tenants = named.chain([("", None)]).map(|(name, limit)| {
            let label = Tenant {
                tenant: name.to_owned(),
            };
            let traffic = counters.traffic(name);
            let open = counters.open.get_or_create_owned(&label).get();
            let circuits = state.circuits.iter().filter(|c| &*c.tenant == name);
            let sum = |of: fn(&CircuitCounts) -> u64| circuits.clone().map(|c| of(&c.counts)).sum();
            TenantStatus {
                name: name.to_owned(),
                connections: u64::try_from(open).unwrap_or(0),
                limit,
                relayed: counters.relayed.get_or_create_owned(&label).get(),
                bytes_up: traffic.up.get(),
                bytes_down: traffic.down.get(),
                datagrams: sum(|counts| counts.from.iter().map(|t| t.datagrams).sum()),
                datagram_bytes: sum(|counts| counts.from.iter().map(|t| t.bytes).sum()),
                datagrams_dropped: sum(|counts| counts.drops.iter().sum()),
            }
        });
        Status {
            name: self.config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.relay.addresses(),
            metrics: self.http.as_ref().map(service::http::Server::address),
            draining: self.relay.is_draining(),
            connections: self.relay.connections(),
            limit: self.limits.connections,
            accepted: counters.accepted.get(),
            refused: Refused::REASONS
                .into_iter()
                .map(|reason| count(&counters.refused, reason))
                .collect(),
            ended: End::ALL
                .into_iter()
                .map(|end| count(&counters.ended, end.name()))
                .collect(),
            circuits: self.circuits_status(&state),
            tenants: tenants.collect(),
        }
    }
}
