//! One machine fails over and back.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lab::{Lab, Pinger, Probe, Switchover};

use super::{HTTP_BYTES, Outcome, SEND_INTERVAL, family, key};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 10));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10));
const HTTP_PORT: u16 = 8080;
const IPERF_PORT: u16 = 5201;
const IPERF_SECONDS: u32 = 2;
/// Pings per short check.
const PINGS: u32 = 20;
/// Bound on the gap when the gateway in use is killed.
const MOVED: Duration = Duration::from_millis(500);

/// Before, during and after a failover of `prod-a`, and back.
pub(super) fn scenes(lab: &Lab, outcome: &mut Outcome) -> anyhow::Result<()> {
    service::outln!("\nbefore: prod-a runs at the tenant site");
    look(lab, outcome, "before", "prod-a")?;
    let neighbours = unaffected_neighbours(lab);

    service::outln!("\nfailover: prod-a to replica-a, while prod-b pings it every 10 ms");
    let over = outcome.step("fail over under ping", |measured| {
        across(lab, "failover", measured, || lab.fail_over("prod-a"))
    })?;
    if over.is_none() {
        return Ok(());
    }

    service::outln!(
        "\nafter: prod-a runs as replica-a at the provider, with the same addresses and gateway"
    );
    look(lab, outcome, "after", "replica-a")?;
    outcome.step("unaffected machines keep neighbour entries", |_| {
        let before = neighbours?;
        let now = unaffected_neighbours(lab)?;
        anyhow::ensure!(before == now, "before: {before:?}, now: {now:?}");
        Ok(((), "same MAC addresses as before".to_owned()))
    })?;

    if lab.topology().options.encrypted {
        outcome.step("after: the WAN carries no plain text", |_| secrecy(lab))?;
    }

    if !lab.topology().cloud.gateways.is_empty() {
        outcome.step("gateway: the tunnel passes through one", |_| {
            through_gateway(lab)
        })?;
        outcome.step("gateway: kill the one in use under ping", |measured| {
            kill_gateway(lab, measured)
        })?;
    }

    service::outln!("\nfailback: replica-a to prod-a, while prod-b pings");
    let back = outcome.step("fail back under ping", |measured| {
        across(lab, "failback", measured, || lab.fail_back("prod-a"))
    })?;
    if back.is_some() {
        for (from, to) in [
            ("prod-b", V4),
            ("prod-b", V6),
            ("remote", V4),
            ("remote", V6),
        ] {
            ping(lab, outcome, "back", from, to)?;
        }
    }
    Ok(())
}

/// Ping, download and iperf3 with prod-a or its replica.
fn look(lab: &Lab, outcome: &mut Outcome, when: &str, server: &str) -> anyhow::Result<()> {
    for (from, to) in [
        ("prod-b", V4),
        ("prod-b", V6),
        ("remote", V4),
        ("remote", V6),
    ] {
        ping(lab, outcome, when, from, to)?;
    }
    for (from, to) in [("prod-b", V4), ("prod-b", V6), ("remote", V4)] {
        let name = format!("{when}: HTTP download {} by {from}", family(to));
        outcome.step(&name, |measured| {
            let _server = lab.http_server(server, HTTP_PORT, 7)?;
            let within = Duration::from_secs(15);
            let got = lab.download(from, to, HTTP_PORT, 7, HTTP_BYTES, within)?;
            let rate = got.bytes as f64 / got.took.as_secs_f64() / 1e6;
            measured.insert(format!("{when}_http_{from}_{}_mb_per_s", key(to)), rate);
            let detail = format!(
                "{} MB, all bytes correct, {rate:.0} MB/s",
                got.bytes / 1_000_000
            );
            Ok(((), detail))
        })?;
    }
    for to in [V4, V6] {
        let name = format!("{when}: iperf3 {} from prod-b", family(to));
        outcome.step(&name, |measured| {
            let iperf = lab.iperf_server(server, IPERF_PORT)?;
            let result = lab.iperf("prod-b", to, IPERF_PORT, IPERF_SECONDS, &[]);
            iperf.stop()?;
            let got = result?;
            let rate = got.bits_per_second / 1e9;
            anyhow::ensure!(got.bytes > 0, "no data arrived");
            measured.insert(format!("{when}_iperf3_{}_gbit_per_s", key(to)), rate);
            let detail = format!("{rate:.2} Gbit/s, {} retransmits", got.retransmits);
            Ok(((), detail))
        })?;
    }
    Ok(())
}

fn ping(
    lab: &Lab,
    outcome: &mut Outcome,
    when: &str,
    from: &str,
    to: IpAddr,
) -> anyhow::Result<()> {
    let name = format!("{when}: ping {} from {from}", family(to));
    outcome.step(&name, |measured| {
        // Two first, which resolve neighbours on the way; none of the series may be lost.
        lab.ping_count(from, to, Probe::Echo, SEND_INTERVAL * 20, 2)?;
        let report = lab.ping_count(from, to, Probe::Echo, SEND_INTERVAL, PINGS)?;
        let lost = report.lost();
        anyhow::ensure!(lost.is_empty(), "{}", report.summary());
        let rtt = report.median_rtt().unwrap_or_default().as_secs_f64() * 1e6;
        measured.insert(format!("{when}_ping_{from}_{}_us", key(to)), rtt);
        Ok(((), format!("{PINGS}/{PINGS}, {rtt:.0} µs")))
    })?;
    Ok(())
}

/// Pings in both families across `switch`. Fails if more than one ping of a series is lost after
/// both appliances have switched and the machine's address is usable.
fn across(
    lab: &Lab,
    what: &str,
    measured: &mut BTreeMap<String, f64>,
    switch: impl FnOnce() -> lab::Result<Switchover>,
) -> anyhow::Result<((), String)> {
    let start = |to| lab.ping("prod-b", to, Probe::Echo, SEND_INTERVAL);
    let (v4, v6): (Pinger, Pinger) = (start(V4)?, start(V6)?);
    std::thread::sleep(Duration::from_millis(500));
    let done = switch()?;
    std::thread::sleep(Duration::from_millis(1000));
    let (v4, v6) = (v4.stop()?, v6.stop()?);
    let here = done.switched.max(done.on);
    let mut parts = vec![format!(
        "switched in {:.0} ms",
        (here - done.began).as_secs_f64() * 1e3
    )];
    let mut bad = Vec::new();
    for (report, to, usable) in [(v4, V4, here), (v6, V6, here.max(done.dad_done))] {
        let gap = report
            .longest_gap()
            .with_context(|| format!("{}: no reply", family(to)))?;
        let lost = report.lost_since(usable);
        let gap = gap.length().as_secs_f64() * 1e3;
        measured.insert(format!("{what}_gap_{}_ms", key(to)), gap);
        measured.insert(
            format!("{what}_lost_{}", key(to)),
            report.lost().len() as f64,
        );
        // Stricter, for information: counted from when the machine is up and has announced itself,
        // although its appliances may not have switched yet.
        measured.insert(
            format!("{what}_lost_{}_since_up", key(to)),
            report.lost_since(done.on).len() as f64,
        );
        measured.insert(
            format!("{what}_lost_{}_once_usable", key(to)),
            lost.len() as f64,
        );
        parts.push(format!(
            "{} gap {gap:.0} ms, {} lost once usable",
            family(to),
            lost.len()
        ));
        if lost.len() > 1 {
            bad.push(format!("{}: {}", family(to), report.summary()));
        }
    }
    let detail = parts.join("; ");
    anyhow::ensure!(bad.is_empty(), "{detail} ({})", bad.join("; "));
    Ok(((), detail))
}

/// Sends pings that contain a text. The text must be seen on the replica's network and not on the
/// WAN.
fn secrecy(lab: &Lab) -> anyhow::Result<((), String)> {
    const TEXT: &[u8] = b"as-plain-as-day!";
    let holds = |frame: &lab::Frame| frame.bytes.windows(TEXT.len()).any(|w| w == TEXT);
    let wan = lab.capture("wan", "provider", None)?;
    let lan = lab.capture("replica-a", "eth0", None)?;
    let pattern: String = TEXT.iter().map(|b| format!("{b:02x}")).collect();
    let to = V4.to_string();
    lab.must(
        "prod-b",
        &[
            "ping", "-c", "20", "-i", "0.02", "-s", "200", "-p", &pattern, &to,
        ],
        Duration::from_secs(10),
    )?;
    std::thread::sleep(Duration::from_millis(200));
    let (wan, lan) = (wan.stop()?, lan.stop()?);
    let seen = lan.iter().filter(|f| holds(f)).count();
    let leaked = wan.iter().filter(|f| holds(f)).count();
    anyhow::ensure!(
        seen >= 40,
        "the text was seen {seen} times on the replica's network; expected 40 or more"
    );
    anyhow::ensure!(wan.len() >= 40, "{} frames on the WAN", wan.len());
    anyhow::ensure!(leaked == 0, "{leaked} frames on the WAN hold the text");
    Ok((
        (),
        format!(
            "text in 20 pings: seen {seen} times on the replica's network, never in {} frames on \
             the WAN",
            wan.len()
        ),
    ))
}

/// The gateway in use, from the status of the tenant's appliance.
fn in_use(lab: &Lab) -> anyhow::Result<String> {
    let (via, _) = lab.appliance("tenant-appliance")?.peer_path("provider")?;
    anyhow::ensure!(
        !via.is_empty(),
        "the tunnel does not pass through a gateway"
    );
    Ok(via)
}

/// Datagrams that a gateway has carried, both ways.
fn carried(lab: &Lab, gateway: &str) -> anyhow::Result<u64> {
    let status = lab.gateway(gateway)?.status()?;
    let ways = status["circuits"]["list"][0]["datagrams"].as_array();
    Ok(ways.into_iter().flatten().filter_map(|n| n.as_u64()).sum())
}

/// Checks that the gateway which the tenant's appliance reports has carried the pings.
fn through_gateway(lab: &Lab) -> anyhow::Result<((), String)> {
    let via = in_use(lab)?;
    let before = carried(lab, &via)?;
    let report = lab.ping_count("prod-b", V4, Probe::Echo, SEND_INTERVAL, PINGS)?;
    anyhow::ensure!(report.lost().is_empty(), "{}", report.summary());
    let carried = carried(lab, &via)? - before;
    anyhow::ensure!(
        carried >= u64::from(2 * PINGS),
        "{via} carried {carried} datagrams"
    );
    Ok(((), format!("{via}: {carried} datagrams for {PINGS} pings")))
}

/// Kills the gateway in use while prod-b pings the replica.
fn kill_gateway(lab: &Lab, measured: &mut BTreeMap<String, f64>) -> anyhow::Result<((), String)> {
    let mut rounds = Vec::new();
    // A stall of this machine makes one round late; a tunnel that is slow to move, both.
    for _ in 0..2 {
        let via = in_use(lab)?;
        let pinger = lab.ping("prod-b", V4, Probe::Echo, SEND_INTERVAL)?;
        thread::sleep(Duration::from_millis(300));
        lab.gateway(&via)?.kill()?;
        let killed = Instant::now();
        thread::sleep(Duration::from_millis(1500));
        let report = pinger.stop()?;
        lab.gateway(&via)?.start()?;
        let gap = report.longest_gap().context("no reply")?;
        anyhow::ensure!(
            report
                .received
                .iter()
                .flatten()
                .any(|at| *at > killed + MOVED * 2),
            "no replies after the gateway was killed: {}",
            report.summary()
        );
        let next = in_use(lab)?;
        anyhow::ensure!(next != via, "{via} was killed but is still in use");
        let ms = gap.length().as_secs_f64() * 1e3;
        rounds.push(format!("{via} killed: {next} took over after {ms:.0} ms"));
        if gap.length() <= MOVED {
            measured.insert("gateway_killed_gap_ms".to_owned(), ms);
            return Ok(((), rounds.join("; ")));
        }
        // The killed gateway is bound again before the other one is killed.
        thread::sleep(Duration::from_secs(3));
    }
    anyhow::bail!("{}", rounds.join("; "))
}

/// MAC addresses that prod-b and the router have for each other, and prod-d for prod-c.
fn unaffected_neighbours(lab: &Lab) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for (host, of) in [
        ("prod-b", "10.1.0.1"),
        ("router", "10.1.0.11"),
        ("prod-d", "10.2.0.10"),
    ] {
        lab.ping_count(host, of.parse()?, Probe::Echo, SEND_INTERVAL, 2)?;
        let text = lab.must(
            host,
            &["ip", "-j", "neigh", "show", "to", of],
            Duration::from_secs(5),
        )?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let mac = json[0]["lladdr"].as_str().unwrap_or("unknown");
        all.push(format!("{host}: {of} at {mac}"));
    }
    Ok(all)
}

/// Prints the figures before and after, side by side.
pub(super) fn table(outcome: &Outcome) {
    let get = |name: &str| {
        outcome
            .measured
            .get(name)
            .map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"))
    };
    service::outln!("\n  {:<34} {:>12} {:>12}  unit", "", "before", "after");
    for (label, name, unit) in [
        ("ping, prod-b to prod-a, IPv4", "ping_prod-b_v4_us", "µs"),
        ("ping, prod-b to prod-a, IPv6", "ping_prod-b_v6_us", "µs"),
        ("ping, remote to prod-a, IPv4", "ping_remote_v4_us", "µs"),
        ("ping, remote to prod-a, IPv6", "ping_remote_v6_us", "µs"),
        ("HTTP, prod-b, IPv4", "http_prod-b_v4_mb_per_s", "MB/s"),
        ("HTTP, prod-b, IPv6", "http_prod-b_v6_mb_per_s", "MB/s"),
        ("HTTP, remote, IPv4", "http_remote_v4_mb_per_s", "MB/s"),
        ("iperf3, prod-b, IPv4", "iperf3_v4_gbit_per_s", "Gbit/s"),
        ("iperf3, prod-b, IPv6", "iperf3_v6_gbit_per_s", "Gbit/s"),
    ] {
        let (before, after) = (
            get(&format!("before_{name}")),
            get(&format!("after_{name}")),
        );
        service::outln!("  {label:<34} {before:>12} {after:>12}  {unit}");
    }
    service::outln!("\n  {:<34} {:>12} {:>12}  unit", "", "failover", "failback");
    for (label, name, unit) in [
        ("longest gap, 10 ms series, IPv4", "gap_v4_ms", "ms"),
        ("longest gap, 10 ms series, IPv6", "gap_v6_ms", "ms"),
        ("lost once usable, IPv4", "lost_v4_once_usable", "pings"),
        ("lost once usable, IPv6", "lost_v6_once_usable", "pings"),
    ] {
        let (over, back) = (
            get(&format!("failover_{name}")),
            get(&format!("failback_{name}")),
        );
        service::outln!("  {label:<34} {over:>12} {back:>12}  {unit}");
    }
    if let Some(gap) = outcome.measured.get("gateway_killed_gap_ms") {
        service::outln!(
            "  {:<34} {gap:>12.2} {:>12}  ms",
            "gap, gateway in use killed",
            ""
        );
    }
    service::outln!(
        "  (IPv6 gaps include duplicate address detection, as on any machine that boots.)"
    );
}
