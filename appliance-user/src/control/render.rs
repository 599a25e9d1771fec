//! Replies as text.

use service::{line, render::table};

use super::{
    CounterStatus, Endpoints, GatewayNameStatus, GatewayStatus, ModeStatus, RuleStatus, Status,
    TunnelStatus,
};

/// Neighbours that are listed; the others are counted.
const MAX_NEIGHBOURS: usize = 50;

/// The status as text for people, a subject a line.
#[must_use]
pub fn status(s: &Status) -> String {
    let mut out = String::new();
    let ready = if s.ready { "ready" } else { "NOT READY" };
    line!(
        &mut out,
        "{} ({} side, {}): {ready}, up {} s{}",
        s.name,
        s.role,
        s.version,
        s.uptime_seconds,
        if s.adopted {
            ", adopted the running data path"
        } else {
            ""
        }
    );
    for reason in &s.not_ready {
        line!(&mut out, "  ! {reason}");
    }
    for c in &s.conflicts {
        let place = match c.network.as_str() {
            "" => c.interface.clone(),
            network => format!("{network} ({}, {})", c.interface, c.vlan),
        };
        line!(
            &mut out,
            "  ! address conflict: {} on {place} is used by {}, and the appliance ({}) answers for \
             it; last seen {} s ago, defended {} times",
            c.address,
            c.mac,
            c.own_mac,
            c.seen_seconds,
            c.defences
        );
    }
    for warning in &s.warnings {
        line!(&mut out, "  ! {warning}");
    }
    if let Some(agent) = &s.agent {
        line!(&mut out, "  director: {}", agent.line());
    }
    if s.maintenance {
        line!(&mut out, "  in maintenance: new failovers are refused");
    }
    let local: Vec<String> = s.local.iter().map(ToString::to_string).collect();
    for (port, what) in [(s.secure_port, "encrypted"), (s.tunnel_port, "plain")] {
        if port != 0 {
            line!(
                &mut out,
                "{what} tunnels: UDP {port} on {}",
                local.join(", ")
            );
        }
    }
    if let Some(tls) = &s.tls {
        let listen: Vec<String> = tls.listen.iter().map(ToString::to_string).collect();
        line!(
            &mut out,
            "tunnels over TLS: TCP {}, fingerprint {}",
            listen.join(", "),
            tls.fingerprint
        );
        for (reason, count) in &tls.refused {
            line!(&mut out, "  refused, {reason}: {count}");
        }
    }
    if let Some(key) = &s.public_key {
        line!(&mut out, "public key: {key}");
    }
    line!(&mut out, "pins: {}", s.pins);
    if !s.not_carried.mode.is_empty() {
        line!(
            &mut out,
            "{} mode: {} between the sites are refused (drop_not_carried: {})",
            s.not_carried.mode,
            s.not_carried.refused.join(" and "),
            s.not_carried.dropped
        );
    }

    out.push_str("\ninterfaces\n");
    let rows: Vec<Vec<String>> = s
        .interfaces
        .iter()
        .map(|i| {
            let xdp = match &i.xdp {
                Some(got) if *got == i.xdp_configured => got.clone(),
                Some(got) => format!("{got} ({} configured)", i.xdp_configured),
                None => format!("none ({} configured)", i.xdp_configured),
            };
            vec![
                i.name.clone(),
                if i.up { "up" } else { "down" }.to_owned(),
                i.program.clone().unwrap_or_else(|| "-".to_owned()),
                xdp,
                i.driver.clone(),
                i.mac.clone(),
                i.mtu.to_string(),
            ]
        })
        .collect();
    table(
        &mut out,
        &["name", "link", "program", "xdp", "driver", "mac", "mtu"],
        &rows,
    );

    out.push_str("\ntenants\n");
    let rows: Vec<Vec<String>> = s
        .tenants
        .iter()
        .map(|t| {
            vec![
                t.name.clone(),
                t.mode.clone(),
                t.epoch.to_string(),
                t.plan.clone().unwrap_or_else(|| "-".to_owned()),
                t.rules.to_string(),
            ]
        })
        .collect();
    table(&mut out, &["name", "mode", "epoch", "plan", "rules"], &rows);

    out.push_str("\npeers\n");
    let rows: Vec<Vec<String>> = s
        .peers
        .iter()
        .map(|p| {
            vec![
                p.name.clone(),
                p.kind.clone(),
                p.address.map_or_else(|| "-".to_owned(), |a| a.to_string()),
                p.detail.clone(),
            ]
        })
        .collect();
    table(&mut out, &["name", "kind", "address", "state"], &rows);
    tunnels(&mut out, s);

    out.push_str("\nnetworks\n");
    let rows: Vec<Vec<String>> = s
        .networks
        .iter()
        .map(|n| {
            vec![
                n.name.clone(),
                n.tenant.clone(),
                n.vni.to_string(),
                format!("{} {}", n.interface, n.vlan),
                n.peer.clone(),
                n.mtu.to_string(),
                n.endpoints.len().to_string(),
                format!("{} / {}", n.tx_packets, n.rx_packets),
                format!("{} / {}", n.tx_bytes, n.rx_bytes),
            ]
        })
        .collect();
    table(
        &mut out,
        &[
            "name",
            "tenant",
            "vni",
            "port",
            "peer",
            "mtu",
            "failed over",
            "packets in / out of tunnel",
            "bytes",
        ],
        &rows,
    );

    line!(&mut out, "\nneighbours ({})", s.neighbours.len());
    let rows: Vec<Vec<String>> = s
        .neighbours
        .iter()
        .take(MAX_NEIGHBOURS)
        .map(|n| {
            vec![
                n.network.clone(),
                n.address.to_string(),
                n.mac.clone().unwrap_or_else(|| "-".to_owned()),
                n.state.clone(),
                format!("{} s", n.age_seconds),
            ]
        })
        .collect();
    table(
        &mut out,
        &["network", "address", "mac", "state", "for"],
        &rows,
    );
    if s.neighbours.len() > MAX_NEIGHBOURS {
        line!(
            &mut out,
            "  and {} more (--json lists all)",
            s.neighbours.len() - MAX_NEIGHBOURS
        );
    }
    out
}

/// The encrypted tunnels with their gateways and workers, if there are any.
fn tunnels(out: &mut String, s: &Status) {
    let rows: Vec<Vec<String>> = s
        .peers
        .iter()
        .filter_map(|p| Some((p, p.tunnel.as_ref()?)))
        .map(|(p, t)| {
            vec![
                p.name.clone(),
                if t.up { "up" } else { "down" }.to_owned(),
                path(t),
                t.cipher.clone(),
                t.handshake_age_seconds
                    .map_or_else(|| "-".to_owned(), |age| format!("{age} s ago")),
                t.path_mtu.to_string(),
                milliseconds(t.round_trip_micros),
                format!("{} %", t.loss_percent),
                format!("{} / {}", t.tx_packets, t.rx_packets),
                format!("{} / {}", t.tx_bytes, t.rx_bytes),
                t.replays.to_string(),
                t.forged.to_string(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    out.push_str("\nencrypted tunnels\n");
    table(
        out,
        &[
            "peer",
            "state",
            "path",
            "cipher",
            "handshake",
            "path mtu",
            "round trip",
            "loss",
            "datagrams out / in",
            "bytes",
            "replays",
            "forged",
        ],
        &rows,
    );

    gateways(out, s);

    out.push_str("\nworkers\n");
    let rows: Vec<Vec<String>> = s
        .workers
        .iter()
        .map(|w| {
            vec![
                w.index.to_string(),
                w.cpu
                    .map_or_else(|| "any".to_owned(), |cpu| cpu.to_string()),
                w.sealed.to_string(),
                w.delivered.to_string(),
                w.handed_over.to_string(),
                w.dropped.to_string(),
            ]
        })
        .collect();
    table(
        out,
        &[
            "worker",
            "cpu",
            "sealed",
            "delivered",
            "handed over",
            "dropped",
        ],
        &rows,
    );
}

/// The path of a tunnel: UDP or TLS, and the gateway or the address.
fn path(t: &TunnelStatus) -> String {
    match (t.transport.as_str(), t.gateway.as_str()) {
        ("", _) => "-".to_owned(),
        ("tls", "") => match &t.stream {
            Some(stream) => format!("tls, from {}", stream.peer),
            None => "tls".to_owned(),
        },
        (transport, "") => transport.to_owned(),
        (transport, gateway) => format!("{transport}, {gateway}"),
    }
}

fn milliseconds(micros: Option<u64>) -> String {
    micros.map_or_else(
        || "-".to_owned(),
        |us| format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
    )
}

const fn gateway_state(gateway: &GatewayStatus) -> &'static str {
    match gateway {
        g if g.used => "in use",
        g if g.down => "down",
        g if g.draining => "draining",
        g if g.bound => "ready",
        _ => "not bound",
    }
}

/// The gateways of the tunnels.
fn gateways(out: &mut String, s: &Status) {
    let mut rows = Vec::new();
    for (peer, tunnel) in s.peers.iter().filter_map(|p| Some((p, p.tunnel.as_ref()?))) {
        for gateway in &tunnel.gateways {
            rows.push(vec![
                peer.name.clone(),
                gateway.name.clone(),
                gateway.address.to_string(),
                gateway_state(gateway).to_owned(),
                milliseconds(gateway.round_trip_micros),
            ]);
        }
    }
    if !rows.is_empty() {
        out.push_str("\ngateways\n");
        let heads = ["peer", "gateway", "address", "state", "round trip"];
        table(out, &heads, &rows);
    }
    let name = |name: &GatewayNameStatus| {
        let addresses: Vec<String> = name.addresses.iter().map(ToString::to_string).collect();
        vec![
            name.name.clone(),
            addresses.join(", "),
            name.age_seconds
                .map_or_else(|| "never".to_owned(), |age| format!("{age} s ago")),
            name.error.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let rows: Vec<_> = s.gateway_names.iter().map(name).collect();
    if !rows.is_empty() {
        out.push_str("\ngateway names\n");
        table(out, &["name", "addresses", "looked up", "error"], &rows);
    }
}

/// Public IP rules.
#[must_use]
pub fn rules(rules: &[RuleStatus]) -> String {
    let rows: Vec<Vec<String>> = rules
        .iter()
        .map(|RuleStatus { tenant, rule }| {
            let allow: Vec<String> = rule.allow().iter().map(ToString::to_string).collect();
            vec![
                tenant.clone(),
                rule.name().to_owned(),
                rule.to_string(),
                if allow.is_empty() {
                    "all".to_owned()
                } else {
                    allow.join(", ")
                },
                rule.description().to_owned(),
            ]
        })
        .collect();
    let mut out = String::new();
    if !rows.is_empty() {
        let heads = ["tenant", "name", "rule", "allowed sources", "description"];
        table(&mut out, &heads, &rows);
    }
    out
}

/// Modes of tenants, with the changes of a plan that was in force.
#[must_use]
pub fn modes(modes: &[ModeStatus]) -> String {
    let mut out = String::new();
    for tenant in modes {
        let plan = tenant.plan.as_ref().map(|plan| format!(" ({plan})"));
        line!(
            &mut out,
            "{}: {}{}",
            tenant.name,
            tenant.mode,
            plan.unwrap_or_default()
        );
        let Some(changes) = &tenant.changes else {
            continue;
        };
        if changes.is_empty() {
            line!(&mut out, "  no changes: the plan is already in force");
        }
        for change in changes {
            line!(&mut out, "  {change}");
        }
    }
    out
}

/// Failed-over addresses, one a line.
#[must_use]
pub fn endpoints(endpoints: &Endpoints) -> String {
    let mut out = String::new();
    for (network, addresses) in endpoints {
        for address in addresses {
            line!(&mut out, "{network}  {address}");
        }
    }
    out
}

/// Counters that are not zero, drops after the rest.
#[must_use]
pub fn counters(counters: &[CounterStatus]) -> String {
    let mut out = String::new();
    let rows: Vec<Vec<String>> = counters
        .iter()
        .filter(|c| c.value != 0)
        .map(|c| vec![c.name.clone(), c.value.to_string(), c.help.clone()])
        .collect();
    if rows.is_empty() {
        return "no packets counted yet\n".to_owned();
    }
    table(&mut out, &["counter", "packets", "meaning"], &rows);
    out
}
