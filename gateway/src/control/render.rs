//! The status as text for a person.

use gateway_model::Source;
use service::line;

use super::{CircuitsStatus, Status};

/// One page of text.
#[must_use]
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    let state = if status.draining {
        "draining"
    } else {
        "running"
    };
    line!(
        &mut out,
        "{}: {state}, version {}",
        status.name,
        status.version
    );
    for address in &status.listen {
        line!(&mut out, "listens on {address}");
    }
    if let Some(address) = status.metrics {
        line!(&mut out, "metrics at http://{address}/metrics");
    }
    line!(
        &mut out,
        "{} of at most {} connections; {} accepted since the start",
        status.connections,
        status.limit,
        status.accepted
    );
    desired(&mut out, status);
    if let Some(agent) = &status.agent {
        line!(&mut out, "director: {}", agent.line());
    }
    let circuits = &status.circuits;
    line!(
        &mut out,
        "{} circuits, {} ends bound; {} datagrams received, {} sent",
        circuits.configured,
        circuits.bound,
        circuits.received,
        circuits.sent
    );
    xdp(&mut out, circuits);
    tenants(&mut out, status);
    list(&mut out, circuits);
    for (reason, count) in circuits.dropped.iter().filter(|(_, count)| **count > 0) {
        line!(&mut out, "dropped {reason}: {count}");
    }
    for (title, counts) in [("refused", &status.refused), ("ended", &status.ended)] {
        for (reason, count) in counts.iter().filter(|(_, count)| **count > 0) {
            line!(&mut out, "{title} {reason}: {count}");
        }
    }
    out
}

fn desired(out: &mut String, status: &Status) {
    let desired = &status.desired;
    let source = match desired.source {
        Source::None => {
            line!(
                out,
                "no desired state: everything is refused until `causeway-gateway apply FILE`"
            );
            return;
        }
        Source::File => "desired state of the configuration file".to_owned(),
        Source::Applied => format!("desired state of revision {}", desired.revision),
    };
    let stored = match desired.stored {
        Some(true) => "stored",
        Some(false) => "not stored: see the log",
        None => "not stored: there is no gateway.state_dir",
    };
    let counts = desired.counts;
    line!(
        out,
        "{source}: {} tenants, {} backends, {} routes, {} circuits; {stored}; load {} of 1000",
        counts.tenants,
        counts.backends,
        counts.routes,
        counts.circuits,
        status.load
    );
}

fn xdp(out: &mut String, circuits: &CircuitsStatus) {
    let xdp = &circuits.xdp;
    if let Some(refused) = &xdp.refused {
        line!(out, "circuits use user space: {refused}");
    }
    if xdp.waiting_tenants > 0 {
        line!(
            out,
            "{} tenants use user space: XDP has no room for their rate limits yet",
            xdp.waiting_tenants
        );
    }
    for interface in &xdp.interfaces {
        let mode = match &interface.refused {
            Some(refused) => format!("none, circuits use user space: {refused}"),
            None if !interface.target && xdp.interfaces.len() > 1 => format!(
                "{}, but the driver cannot accept XDP redirects: only same-interface circuits use \
                 it",
                interface.mode
            ),
            None => interface.mode.clone(),
        };
        line!(out, "XDP on {}: {mode}", interface.name);
    }
}

fn tenants(out: &mut String, status: &Status) {
    line!(out);
    line!(
        out,
        "{:<32} {:>9} {:>9} {:>12} {:>15} {:>15}",
        "TENANT",
        "OPEN",
        "LIMIT",
        "RELAYED",
        "BYTES UP",
        "BYTES DOWN"
    );
    for tenant in &status.tenants {
        let name = match tenant.name.as_str() {
            "" => "(none)",
            name => name,
        };
        let limit = tenant
            .limit
            .map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        line!(
            out,
            "{name:<32} {:>9} {limit:>9} {:>12} {:>15} {:>15}",
            tenant.connections,
            tenant.relayed,
            tenant.bytes_up,
            tenant.bytes_down
        );
    }
}

fn list(out: &mut String, circuits: &CircuitsStatus) {
    if circuits.list.is_empty() {
        return;
    }
    line!(
        out,
        "\n{:<16} {:<32} {:<28} {:<28} {:>12} {:>12} {:>12} {:>9}",
        "CIRCUIT",
        "TENANT",
        "SIDE A",
        "SIDE B",
        "FROM A",
        "FROM B",
        "BY XDP",
        "DROPPED"
    );
    for circuit in &circuits.list {
        let [a, b] = circuit
            .bound
            .map(|at| at.map_or_else(|| "-".to_owned(), |at| at.to_string()));
        let [from_a, from_b] = circuit.datagrams;
        let dropped: u64 = circuit.dropped.values().sum();
        let fast: u64 = circuit.fast.iter().sum();
        line!(
            out,
            "{} {:<32} {a:<28} {b:<28} {from_a:>12} {from_b:>12} {fast:>12} {dropped:>9}",
            circuit.id,
            circuit.tenant
        );
    }
}
