//! Two whole sites fail over and back: gateways, internet access, public addresses.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lab::{Error, Greeter, Lab, Probe, Server};

use super::{HTTP_BYTES, Outcome, SEND_INTERVAL, family, key};

/// The provider's appliance.
const PROVIDER: &str = "provider-appliance";
/// The internal port of the rules' HTTP servers; below, the seed of each server's content.
const HTTP_PORT: u16 = 8080;
const REPLICA_A: u64 = 7;
const REPLICA_B: u64 = 8;
const REPLICA_C: u64 = 9;
const GLOBEX: u64 = 17;
const SERVER: u64 = 80;
/// The public port of the rules' HTTP servers.
const PUBLIC_PORT: u16 = 80;
const SSH: &str = "SSH-2.0-causeway_replica-a";
const IPERF_PORT: u16 = 5201;
const IPERF_SECONDS: u32 = 2;
/// Pings per short check.
const PINGS: u32 = 20;
/// How long to wait for an answer where none is expected.
const NO_ANSWER_WAIT: Duration = Duration::from_millis(1500);
const SHORT_TIMEOUT: Duration = Duration::from_secs(5);
const LONG_TIMEOUT: Duration = Duration::from_secs(15);

const WEB: [&str; 2] = ["203.0.113.20", "2001:db8:f::20"];
const SIBLING: [&str; 2] = ["203.0.113.21", "2001:db8:f::21"];
const GLOBEX_WEB: &str = "203.0.113.36";
const NAT: [&str; 2] = ["203.0.113.16", "2001:db8:f::16"];
const INTERNET: [&str; 2] = ["198.51.100.80", "2001:db8:99::80"];
const GATEWAY: [&str; 2] = ["10.1.0.1", "2001:db8:1::1"];
const DB: [&str; 2] = ["10.2.0.10", "2001:db8:2::10"];
const OPS: &str = "10.3.0.10";

/// Servers on replicas and on the internet.
struct Services {
    _http: Vec<Server>,
    /// The web server on the internet.
    server: Server,
    _ssh: Greeter,
}

/// Before, during and after a full failover of both tenants, and back.
pub(super) fn scenes(lab: &Lab, outcome: &mut Outcome) -> anyhow::Result<()> {
    let services = outcome.step("start servers on replicas and internet", |_| {
        let http = |host, seed| lab.http_server(host, HTTP_PORT, seed);
        let services = Services {
            _http: vec![
                http("replica-a", REPLICA_A)?,
                http("replica-b", REPLICA_B)?,
                http("replica-c", REPLICA_C)?,
                http("globex-replica-a", GLOBEX)?,
            ],
            server: lab.http_server("server", PUBLIC_PORT, SERVER)?,
            _ssh: lab.greeter("replica-a", 22, SSH)?,
        };
        Ok((services, "HTTP, and an SSH greeting".to_owned()))
    })?;
    let Some(services) = services else {
        return Ok(());
    };

    service::outln!("\noutage: both production sites are cut off");
    outcome.step("cut off the production sites", |_| {
        for failover in &lab.topology().failovers {
            lab.cut(&failover.wan)?;
        }
        for end in ["192.0.2.2", "192.0.2.6"] {
            silent(lab, "edge", end)?;
        }
        Ok(((), "edge cannot reach either".to_owned()))
    })?;
    let booted = outcome.step("replicas boot, same addresses and gateways", |_| {
        for failover in &lab.topology().failovers {
            lab.boot_replicas(&failover.tenant)?;
        }
        Ok(((), format!("{}", lab.topology().machines.len())))
    })?;
    outcome.step("before: public addresses do not answer", |_| {
        for public in WEB {
            refused(lab, "client", public, PUBLIC_PORT, NO_ANSWER_WAIT)?;
        }
        Ok(((), "IPv4 and IPv6".to_owned()))
    })?;
    if booted.is_none() {
        return Ok(());
    }

    service::outln!(
        "\nfull failover of both tenants, while replica-a pings its gateway every 10 ms"
    );
    let over = outcome.step("acme: mode full", |measured| switch(lab, measured))?;
    outcome.step("globex: mode full, same addresses", |measured| {
        let began = Instant::now();
        lab.mode_full("globex")?;
        let took = millis(began.elapsed());
        measured.insert("switch_globex_ms".to_owned(), took);
        Ok(((), format!("switched in {took:.0} ms")))
    })?;
    if over.is_none() {
        return Ok(());
    }

    service::outln!(
        "\nafter: the appliance is the gateway of the replicas, and public addresses lead to them"
    );
    gateways(lab, outcome)?;
    public(lab, outcome)?;
    management(lab, outcome)?;
    internet(lab, outcome, &services)?;
    policies(lab, outcome)?;
    hairpin(lab, outcome)?;
    apart(lab, outcome)?;
    throughput(lab, outcome)?;

    service::outln!("\nfailback of both tenants");
    outcome.step("failback: mode idle", |measured| {
        let began = Instant::now();
        lab.mode_idle("acme")?;
        let took = millis(began.elapsed());
        measured.insert("undo_ms".to_owned(), took);
        lab.mode_idle("globex")?;
        Ok(((), format!("acme in {took:.0} ms")))
    })?;
    outcome.step("failback: public addresses and gateways gone", |_| {
        for public in WEB.iter().chain(&[GLOBEX_WEB]) {
            refused(lab, "client", public, PUBLIC_PORT, NO_ANSWER_WAIT)?;
        }
        for gateway in GATEWAY {
            silent(lab, "replica-a", gateway)?;
        }
        Ok(((), "no answer".to_owned()))
    })?;
    outcome.step("failback: production sites are reachable", |_| {
        for failover in &lab.topology().failovers {
            lab.undo_site(&failover.tenant)?;
        }
        // Acme's end through the site's router, globex's end at its appliance.
        whole(lab, "edge", "10.1.0.5")?;
        whole(lab, "edge", "192.0.2.6")?;
        Ok(((), "edge reaches both".to_owned()))
    })?;
    Ok(())
}

/// Switches acme to mode full under ping; measures the command and the first answer of the gateway.
fn switch(
    lab: &Lab,
    measured: &mut std::collections::BTreeMap<String, f64>,
) -> anyhow::Result<((), String)> {
    let start = |to: &str| -> anyhow::Result<_> {
        Ok(lab.ping("replica-a", to.parse()?, Probe::Echo, SEND_INTERVAL)?)
    };
    let (v4, v6) = (start(GATEWAY[0])?, start(GATEWAY[1])?);
    thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    lab.mode_full("acme")?;
    let took = millis(began.elapsed());
    measured.insert("switch_ms".to_owned(), took);
    let mut parts = vec![format!("switched in {took:.0} ms")];
    // A host repeats an unanswered ARP or ND request once a second.
    thread::sleep(Duration::from_millis(2500));
    for (pinger, to) in [(v4, GATEWAY[0]), (v6, GATEWAY[1])] {
        let to: IpAddr = to.parse()?;
        let report = pinger.stop()?;
        let first = report.received.iter().flatten().min();
        let first =
            first.with_context(|| format!("{}: the gateway does not answer", family(to)))?;
        anyhow::ensure!(*first >= began, "{to} answered before the switch");
        let first = millis(*first - began);
        measured.insert(format!("first_answer_{}_ms", key(to)), first);
        parts.push(format!("{} first answer after {first:.0} ms", family(to)));
    }
    Ok(((), parts.join("; ")))
}

fn gateways(lab: &Lab, outcome: &mut Outcome) -> anyhow::Result<()> {
    for (host, gateway) in [
        ("replica-a", "10.1.0.1"),
        ("replica-a", "2001:db8:1::1"),
        ("replica-b", "10.1.0.1"),
        ("replica-c", "10.2.0.1"),
        ("replica-c", "2001:db8:2::1"),
        ("replica-d", "10.3.0.1"),
        ("globex-replica-a", "10.1.0.1"),
    ] {
        let to: IpAddr = gateway.parse()?;
        let name = format!("gateway: ping {} from {host}", family(to));
        outcome.step(&name, |measured| {
            let rtt = whole(lab, host, gateway)?;
            measured.insert(format!("ping_gateway_{host}_{}_us", key(to)), rtt);
            Ok(((), format!("{PINGS}/{PINGS}, {rtt:.0} µs")))
        })?;
    }
    Ok(())
}

fn public(lab: &Lab, outcome: &mut Outcome) -> anyhow::Result<()> {
    for public in WEB {
        let to: IpAddr = public.parse()?;
        let name = format!("public: HTTP {} from the internet", family(to));
        outcome.step(&name, |measured| {
            let rate = download(lab, "client", public, PUBLIC_PORT, REPLICA_A, HTTP_BYTES)?;
            measured.insert(format!("http_public_{}_mb_per_s", key(to)), rate);
            let megabytes = HTTP_BYTES / 1_000_000;
            let detail = format!("{public}: {megabytes} MB from replica-a, {rate:.0} MB/s");
            Ok(((), detail))
        })?;
    }
    Ok(())
}

/// Port 22 is refused as a public port; a rule with listed sources serves no other source.
fn management(lab: &Lab, outcome: &mut Outcome) -> anyhow::Result<()> {
    outcome.step("public: a rule for port 22 is refused", |_| {
        let appliance = lab.appliance(PROVIDER)?;
        let line = format!("{}:22/tcp -> 10.1.0.10:22", WEB[0]);
        let reply = appliance.cli(&["rule", "add", "--tenant", "acme", "shell", &line])?;
        anyhow::ensure!(
            !reply.ok(),
            "the rule was accepted: {}",
            reply.stdout.trim()
        );
        let why = reply.stderr.trim();
        anyhow::ensure!(why.contains("22"), "refused for another reason: {why}");
        let rules = appliance.must(&["rule", "list", "--json"])?;
        anyhow::ensure!(!rules.contains("shell"), "it is listed: {rules}");
        Ok(((), why.lines().next().unwrap_or_default().to_owned()))
    })?;
    outcome.step("public: port 22 gets no answer", |_| {
        for public in WEB {
            let kind = refused(lab, "client", public, 22, NO_ANSWER_WAIT)?;
            anyhow::ensure!(kind == ErrorKind::TimedOut, "{public}: {kind}");
        }
        Ok(((), "no connection and no refusal".to_owned()))
    })?;
    outcome.step("public: 2222 leads to internal port 22", |_| {
        let line = lab.greeting("client", at(WEB[0], 2222)?, SHORT_TIMEOUT)?;
        anyhow::ensure!(line == SSH, "wrong greeting {line:?}");
        Ok(((), line))
    })?;
    outcome.step("public: an unlisted source is refused", |_| {
        let kind = refused(lab, "stranger", WEB[0], 2222, NO_ANSWER_WAIT)?;
        // A rule without listed sources serves it: only the list refuses it.
        download(lab, "stranger", WEB[0], PUBLIC_PORT, REPLICA_A, 100_000)?;
        Ok(((), format!("2222: {kind}; 80: served")))
    })?;
    Ok(())
}

/// Internet access, from a network that has it and from one that does not.
fn internet(lab: &Lab, outcome: &mut Outcome, services: &Services) -> anyhow::Result<()> {
    for (server, nat) in INTERNET.into_iter().zip(NAT) {
        let to: IpAddr = server.parse()?;
        let name = format!("internet: HTTP {} from replica-a", family(to));
        outcome.step(&name, |measured| {
            let before = services.server.clients().len();
            let uplink = lab.capture("edge", "uplink", None)?;
            let rate = download(lab, "replica-a", server, PUBLIC_PORT, SERVER, HTTP_BYTES)?;
            let frames = uplink.stop()?;
            let seen = services.server.clients().split_off(before);
            let nat: IpAddr = nat.parse()?;
            anyhow::ensure!(seen == [nat], "the server saw source {seen:?}, not {nat}");
            let leaked = frames.iter().filter(|f| is_inside(&f.bytes)).count();
            anyhow::ensure!(
                leaked == 0,
                "{leaked} frames with an internal source address"
            );
            measured.insert(format!("http_internet_{}_mb_per_s", key(to)), rate);
            let detail = format!("{rate:.0} MB/s, seen as {nat}; no internal address leaked");
            Ok(((), detail))
        })?;
    }
    outcome.step("internet: refused for a network without it", |_| {
        let before = services.server.clients().len();
        for server in INTERNET {
            refused(lab, "replica-c", server, PUBLIC_PORT, NO_ANSWER_WAIT)?;
        }
        let seen = services.server.clients().split_off(before);
        anyhow::ensure!(seen.is_empty(), "the server saw source {seen:?}");
        Ok(((), "replica-c, in db".to_owned()))
    })?;
    Ok(())
}

/// Between networks.
fn policies(lab: &Lab, outcome: &mut Outcome) -> anyhow::Result<()> {
    for db in DB {
        let to: IpAddr = db.parse()?;
        let name = format!("between networks: web to db {}", family(to));
        outcome.step(&name, |measured| {
            let rtt = whole(lab, "replica-a", db)?;
            download(lab, "replica-a", db, HTTP_PORT, REPLICA_C, 1_000_000)?;
            measured.insert(format!("ping_between_{}_us", key(to)), rtt);
            Ok(((), format!("{PINGS}/{PINGS}, {rtt:.0} µs; HTTP")))
        })?;
    }
    outcome.step("between networks: other pairs are refused", |_| {
        for (from, to) in [("replica-c", OPS), ("replica-a", OPS), ("replica-d", DB[0])] {
            silent(lab, from, to)?;
        }
        Ok(((), "db to ops, web to ops, ops to db".to_owned()))
    })?;
    outcome.step("between networks: one-way policy", |_| {
        let lan = lab.capture("replica-a", "eth0", None)?;
        // Requests may pass and replies may not, so that no reply arrives.
        silent(lab, "replica-d", "10.1.0.10")?;
        let frames = lan.stop()?;
        let asked = frames.iter().filter(|f| is_echo_from_ops(&f.bytes)).count();
        anyhow::ensure!(asked > 0, "no ping from ops reached web");
        Ok((
            (),
            format!("{asked} pings from ops reached web, no reply returned"),
        ))
    })?;
    Ok(())
}

/// A sibling's public address, from the same network (hairpin).
fn hairpin(lab: &Lab, outcome: &mut Outcome) -> anyhow::Result<()> {
    for public in SIBLING {
        let to: IpAddr = public.parse()?;
        let name = format!("hairpin: a sibling's public address {}", family(to));
        outcome.step(&name, |_| {
            download(lab, "replica-a", public, PUBLIC_PORT, REPLICA_B, 1_000_000)?;
            Ok((
                (),
                format!("replica-a downloaded from replica-b at {public}"),
            ))
        })?;
    }
    Ok(())
}

/// Equal addresses of two tenants stay separate.
fn apart(lab: &Lab, outcome: &mut Outcome) -> anyhow::Result<()> {
    outcome.step("tenants: equal addresses, two machines", |_| {
        download(lab, "client", GLOBEX_WEB, PUBLIC_PORT, GLOBEX, 1_000_000)?;
        download(lab, "client", WEB[0], PUBLIC_PORT, REPLICA_A, 1_000_000)?;
        Ok(((), "both are 10.1.0.10 inside".to_owned()))
    })?;
    outcome.step("tenants: globex cannot reach acme", |_| {
        for to in ["10.1.0.11", "2001:db8:1::11", DB[0], DB[1], OPS] {
            silent(lab, "globex-replica-a", to)?;
        }
        Ok(((), "10.1.0.11, db, ops: no answer".to_owned()))
    })?;
    Ok(())
}

fn throughput(lab: &Lab, outcome: &mut Outcome) -> anyhow::Result<()> {
    let directions = [("in", &[][..]), ("out", &["-R"][..])];
    for public in WEB {
        let to: IpAddr = public.parse()?;
        for (direction, further) in directions {
            let name = format!("iperf3 {} through the rule, {direction}", family(to));
            outcome.step(&name, |measured| {
                let iperf = lab.iperf_server("replica-a", IPERF_PORT)?;
                let result = lab.iperf("client", to, IPERF_PORT, IPERF_SECONDS, further);
                iperf.stop()?;
                let got = result?;
                anyhow::ensure!(got.bytes > 0, "no data arrived");
                let rate = got.bits_per_second / 1e9;
                measured.insert(format!("iperf3_{direction}_{}_gbit_per_s", key(to)), rate);
                let detail = format!("{rate:.2} Gbit/s, {} retransmits", got.retransmits);
                Ok(((), detail))
            })?;
        }
    }
    Ok(())
}

/// Downloads and compares every byte; returns MB/s.
fn download(
    lab: &Lab,
    host: &str,
    from: &str,
    port: u16,
    seed: u64,
    bytes: u64,
) -> anyhow::Result<f64> {
    let got = lab.download(host, from.parse()?, port, seed, bytes, LONG_TIMEOUT)?;
    Ok(got.bytes as f64 / got.took.as_secs_f64() / 1e6)
}

/// Pings of which none may be lost; returns the median round trip, µs.
fn whole(lab: &Lab, host: &str, to: &str) -> anyhow::Result<f64> {
    let to = to.parse()?;
    // Two first, which resolve neighbours on the way; none of the series may be lost.
    lab.ping_count(host, to, Probe::Echo, SEND_INTERVAL * 20, 2)?;
    let report = lab.ping_count(host, to, Probe::Echo, SEND_INTERVAL, PINGS)?;
    anyhow::ensure!(report.lost().is_empty(), "{host}: {}", report.summary());
    Ok(report.median_rtt().unwrap_or_default().as_secs_f64() * 1e6)
}

/// Pings that must stay unanswered.
fn silent(lab: &Lab, host: &str, to: &str) -> anyhow::Result<()> {
    let words = ["ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", to];
    let output = lab.exec(host, &words, SHORT_TIMEOUT)?;
    anyhow::ensure!(!output.ok(), "{host} reaches {to}, which it must not");
    Ok(())
}

/// A connection attempt that must fail; returns how it failed.
fn refused(
    lab: &Lab,
    host: &str,
    to: &str,
    port: u16,
    within: Duration,
) -> anyhow::Result<ErrorKind> {
    match lab.connect(host, at(to, port)?, within) {
        Ok(_) => anyhow::bail!("{host} reaches {to} port {port}, which it must not"),
        Err(Error::Io { source, .. }) => Ok(source.kind()),
        Err(other) => Err(other.into()),
    }
}

fn at(address: &str, port: u16) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, port))
}

/// Whether an untagged frame's IP packet has an address of a tenant's network as its source.
fn is_inside(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(26) == Some(&10),
        Some([0x86, 0xdd]) => {
            let prefix = frame.get(22..30);
            [1, 2]
                .iter()
                .any(|net| prefix == Some(&[0x20, 1, 0x0d, 0xb8, 0, *net, 0, 0][..]))
        }
        _ => false,
    }
}

/// Whether an untagged frame is an echo request from replica-d.
fn is_echo_from_ops(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x00])
        && frame.get(23) == Some(&1)
        && frame.get(26..30) == Some(&[10, 3, 0, 10])
        && frame.get(34) == Some(&8)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Prints the figures.
pub(super) fn table(outcome: &Outcome) {
    let get = |name: String| {
        let value = outcome.measured.get(&name);
        value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"))
    };
    service::outln!("\n  {:<34} {:>12} {:>12}  unit", "", "IPv4", "IPv6");
    for (label, before, after, unit) in [
        ("first answer of the gateway", "first_answer_", "_ms", "ms"),
        (
            "ping, replica-a to its gateway",
            "ping_gateway_replica-a_",
            "_us",
            "µs",
        ),
        ("ping, web to db", "ping_between_", "_us", "µs"),
        (
            "HTTP through a public rule",
            "http_public_",
            "_mb_per_s",
            "MB/s",
        ),
        (
            "HTTP to the internet",
            "http_internet_",
            "_mb_per_s",
            "MB/s",
        ),
        (
            "iperf3 in, through a public rule",
            "iperf3_in_",
            "_gbit_per_s",
            "Gbit/s",
        ),
        (
            "iperf3 out, through a public rule",
            "iperf3_out_",
            "_gbit_per_s",
            "Gbit/s",
        ),
    ] {
        let [v4, v6] = ["v4", "v6"].map(|family| get(format!("{before}{family}{after}")));
        service::outln!("  {label:<34} {v4:>12} {v6:>12}  {unit}");
    }
    service::outln!(
        "\n  {:<34} {:>12} {:>12}  unit",
        "",
        "mode full",
        "mode idle"
    );
    let [over, back] = ["switch_ms", "undo_ms"].map(|name| get(name.to_owned()));
    service::outln!(
        "  {:<34} {over:>12} {back:>12}  ms",
        "duration of the command, acme"
    );
}
