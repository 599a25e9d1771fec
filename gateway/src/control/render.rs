//! Says a status to a person.

use std::fmt::Write as _;

use super::Status;

/// A page of text.
#[must_use]
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    let state = if status.draining {
        "draining"
    } else {
        "running"
    };
    line(
        &mut out,
        format_args!("{}: {state}, version {}", status.name, status.version),
    );
    for address in &status.listen {
        line(&mut out, format_args!("listens on {address}"));
    }
    if let Some(address) = status.metrics {
        line(
            &mut out,
            format_args!("metrics at http://{address}/metrics"),
        );
    }
    line(
        &mut out,
        format_args!(
            "{} connections of {} at most; {} came",
            status.connections, status.limit, status.accepted
        ),
    );
    line(
        &mut out,
        format_args!(
            "{} circuits, {} ends bound; {} datagrams came, {} were sent",
            status.circuits.list.len(),
            status.circuits.bound,
            status.circuits.received,
            status.circuits.sent
        ),
    );
    let xdp = &status.circuits.xdp;
    if let Some(refused) = &xdp.refused {
        line(
            &mut out,
            format_args!("circuits go through user space: {refused}"),
        );
    }
    for interface in &xdp.interfaces {
        let mode = match &interface.refused {
            Some(refused) => format!("none, circuits go through user space: {refused}"),
            None if !interface.target && xdp.interfaces.len() > 1 => format!(
                "{}, but the driver takes nothing of other interfaces: that goes through user space",
                interface.mode
            ),
            None => interface.mode.clone(),
        };
        line(&mut out, format_args!("XDP on {}: {mode}", interface.name));
    }
    line(&mut out, format_args!(""));
    line(
        &mut out,
        format_args!(
            "{:<32} {:>9} {:>9} {:>12} {:>15} {:>15}",
            "TENANT", "NOW", "AT MOST", "RELAYED", "BYTES UP", "BYTES DOWN"
        ),
    );
    for tenant in &status.tenants {
        let name = if tenant.name.is_empty() {
            "(none)"
        } else {
            &tenant.name
        };
        let limit = tenant
            .limit
            .map_or_else(|| "-".to_owned(), |l| l.to_string());
        line(
            &mut out,
            format_args!(
                "{name:<32} {:>9} {limit:>9} {:>12} {:>15} {:>15}",
                tenant.connections, tenant.relayed, tenant.bytes_up, tenant.bytes_down
            ),
        );
    }
    let circuits = &status.circuits;
    if !circuits.list.is_empty() {
        line(
            &mut out,
            format_args!(
                "\n{:<16} {:<32} {:<28} {:<28} {:>12} {:>12} {:>12} {:>9}",
                "CIRCUIT", "TENANT", "SIDE A", "SIDE B", "FROM A", "FROM B", "BY XDP", "DROPPED"
            ),
        );
    }
    for circuit in &circuits.list {
        let [a, b] = circuit
            .bound
            .map(|at| at.map_or_else(|| "-".to_owned(), |at| at.to_string()));
        let [from_a, from_b] = circuit.datagrams;
        let dropped: u64 = circuit.dropped.values().sum();
        let fast: u64 = circuit.fast.iter().sum();
        line(
            &mut out,
            format_args!(
                "{} {:<32} {a:<28} {b:<28} {from_a:>12} {from_b:>12} {fast:>12} {dropped:>9}",
                circuit.id, circuit.tenant
            ),
        );
    }
    for (reason, count) in circuits.dropped.iter().filter(|(_, count)| **count > 0) {
        line(&mut out, format_args!("dropped {reason}: {count}"));
    }
    for (title, counts) in [("refused", &status.refused), ("ended", &status.ended)] {
        for (reason, count) in counts.iter().filter(|(_, count)| **count > 0) {
            line(&mut out, format_args!("{title} {reason}: {count}"));
        }
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = out.write_fmt(text);
    out.push('\n');
}
