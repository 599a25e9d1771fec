//! Checks a file as a whole and collects every problem.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use gateway_model::{Model, address, covers};
use service::{
    config::{Checker, Range},
    xdp::Setting,
};

use super::{Circuits, Config, Local, Problem, file};
use crate::relay::{Prefix, Times};

/// Default folder of the identity at the director.
const AGENT_FOLDER: &str = "/var/lib/causeway-gateway/agent";
/// The default port.
const PORT: u16 = 6180;
/// Connections at most: two open files each.
const MAX_CONNECTIONS: usize = 1 << 20;
/// Threads for circuits at most.
const MAX_THREADS: usize = 64;
/// Circuits at most: each has its place in tables and maps, used or not.
const MAX_CIRCUITS: usize = 1 << 20;
/// Circuits, if the file has no number.
const DEFAULT_CIRCUITS: i64 = 4096;
/// Tenants at most.
const MAX_TENANTS: usize = 1 << 17;
/// Tenants, if the file has no number.
const DEFAULT_TENANTS: i64 = 4096;
/// Interfaces with the XDP program at most: `MAX_PORTS`, with some VLANs on each.
const MAX_INTERFACES: usize = 32;

/// A number of seconds, with the least, the most and the default.
fn seconds(
    c: &mut Checker,
    at: &str,
    value: Option<f64>,
    (least, most, default): (f64, f64, f64),
) -> Duration {
    let range = Range {
        least,
        most,
        default,
    };
    c.seconds(at, value, range)
}

/// The configuration of a file, or every problem of it.
pub(super) fn check(mut file: file::File) -> Result<Config, Vec<Problem>> {
    let mut c = Checker::new();
    let desired = file.take_desired(&mut c);
    let gateway = file.gateway;
    c.name("gateway.name", &gateway.name);
    let default_listen = gateway.listen.is_none();
    let listen = listen(&mut c, gateway.listen);
    let control_socket = c.control_socket(
        "gateway.control_socket",
        gateway.control_socket,
        "/run/causeway-gateway/gateway.sock",
    );
    let state_dir = gateway
        .state_dir
        .map(|path| c.absolute("gateway.state_dir", Some(path), ""));
    let metrics = metrics(&mut c, gateway.metrics.as_deref(), &listen);
    let drain = seconds(
        &mut c,
        "gateway.drain",
        gateway.drain,
        (0.0, 86_400.0, 30.0),
    );
    let relay = file.relay;
    let times = Times {
        hello: seconds(
            &mut c,
            "relay.hello_timeout",
            relay.hello_timeout,
            (0.1, 60.0, 5.0),
        ),
        dial: seconds(
            &mut c,
            "relay.dial_timeout",
            relay.dial_timeout,
            (0.1, 60.0, 3.0),
        ),
        idle: seconds(
            &mut c,
            "relay.idle_timeout",
            relay.idle_timeout,
            (1.0, 604_800.0, 600.0),
        ),
        trial: seconds(
            &mut c,
            "relay.trial_time",
            relay.trial_time,
            (0.1, 600.0, 10.0),
        ),
    };
    let proxy_from = proxy_from(&mut c, relay.proxy_from);
    let access_log = relay
        .access_log
        .map(|path| c.absolute("relay.access_log", Some(path), ""));
    let transfers = [("splice", true), ("copy", false)];
    let spliced = c.choice("relay.transfer", relay.transfer.as_deref(), &transfers);
    c.renamed("relay.way", relay.way.is_some(), "relay.transfer");
    let limits = file.limits;
    let connections = limits
        .connections
        .map(|value| c.count("limits.connections", value, MAX_CONNECTIONS));
    let per_source = limits.per_source.unwrap_or(256);
    let per_source = c.count("limits.per_source", per_source, MAX_CONNECTIONS) as u32;
    let tenants = limits.tenants.unwrap_or(DEFAULT_TENANTS);
    let tenants = c.count("limits.tenants", tenants, MAX_TENANTS);
    let circuits = circuits(&mut c, file.circuits);
    let agent = file
        .agent
        .map(|section| section.check(&mut c, AGENT_FOLDER));
    let local = Local {
        name: gateway.name,
        listen,
        default_listen,
        control_socket,
        state_dir,
        metrics,
        drain,
        times,
        proxy_from,
        access_log,
        spliced,
        connections,
        per_source,
        tenants,
        agent,
        circuits,
    };
    if let Some(objects) = &desired {
        // The state in force is compared when this one is put in force.
        drop(Model::default().prepare_file(&mut c, objects, &local.bounds()));
    }
    c.finish(Config { local, desired })
}

fn listen(c: &mut Checker, texts: Option<Vec<String>>) -> Vec<SocketAddr> {
    let at = "gateway.listen";
    let Some(texts) = texts else {
        return vec![
            (Ipv4Addr::UNSPECIFIED, PORT).into(),
            (Ipv6Addr::UNSPECIFIED, PORT).into(),
        ];
    };
    if texts.is_empty() {
        c.problem(
            at,
            format!(
                "an empty list: write an address, or leave the key out for port {PORT} of every \
                 address"
            ),
        );
    }
    let mut out: Vec<SocketAddr> = Vec::new();
    for text in texts {
        let Some(address) = address(c, at, &text) else {
            continue;
        };
        if let Some(other) = out.iter().find(|other| covers(**other, address)) {
            c.problem(
                at,
                format!("{address} and {other} accept the same connections; remove one"),
            );
        }
        out.push(address);
    }
    out
}

fn proxy_from(c: &mut Checker, texts: Option<Vec<String>>) -> Vec<Prefix> {
    let mut out = Vec::new();
    for text in texts.into_iter().flatten() {
        match text.parse() {
            Ok(prefix) => out.push(prefix),
            Err(error) => c.problem("relay.proxy_from", format!("{text:?}: {error}")),
        }
    }
    out
}

fn metrics(c: &mut Checker, text: Option<&str>, listen: &[SocketAddr]) -> Option<SocketAddr> {
    let at = "gateway.metrics";
    let address = address(c, at, text?)?;
    if !address.ip().is_loopback() {
        c.problem(
            at,
            format!(
                "{address} is open to other machines, and metrics name tenants: write a loopback \
                 address"
            ),
        );
    }
    if listen.iter().any(|other| covers(*other, address)) {
        c.problem(
            at,
            format!("{address} is an address of gateway.listen; write another port"),
        );
    }
    Some(address)
}

fn circuits(c: &mut Checker, settings: file::Circuits) -> Circuits {
    let lifetime = seconds(
        c,
        "circuits.lifetime",
        settings.lifetime,
        (0.5, 3600.0, 30.0),
    );
    let threads = settings
        .threads
        .map(|threads| c.count("circuits.threads", threads, MAX_THREADS));
    let capacity = settings.capacity.unwrap_or(DEFAULT_CIRCUITS);
    let capacity = c.count("circuits.capacity", capacity, MAX_CIRCUITS);
    let [native, generic, auto] = Setting::ALL.map(|setting| (setting.name(), Some(setting)));
    let choices = [auto, native, generic, ("off", None)];
    let xdp = c.choice("circuits.xdp", settings.xdp.as_deref(), &choices);
    if let Some(interfaces) = &settings.interfaces {
        self::interfaces(c, interfaces, xdp);
    }
    Circuits {
        lifetime,
        threads,
        capacity,
        report_load: settings.report_load,
        xdp,
        interfaces: settings.interfaces,
        bpf_object: settings.bpf_object,
    }
}

fn interfaces(c: &mut Checker, interfaces: &[String], xdp: Option<Setting>) {
    let at = "circuits.interfaces";
    if xdp.is_none() {
        c.problem(
            at,
            "circuits.xdp is \"off\", so no interface has the program: leave one of the keys out",
        );
    }
    if !(1..=MAX_INTERFACES).contains(&interfaces.len()) {
        c.problem(
            at,
            format!(
                "{} interfaces: write 1 to {MAX_INTERFACES}, or leave the key out",
                interfaces.len()
            ),
        );
    }
    for (n, name) in interfaces.iter().enumerate() {
        c.interface(at, name);
        if interfaces[..n].contains(name) {
            c.problem(at, format!("{name:?} is listed twice"));
        }
    }
}
