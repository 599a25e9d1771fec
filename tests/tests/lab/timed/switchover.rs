//! How long a switch-over and a failback are felt.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::{
    packet::ip,
    site::{PLAIN, Site},
};
use lab::{Options, Pinger, Probe};

const SEND_INTERVAL: Duration = Duration::from_millis(10);

/// Pings through a switch, from hosts of both kinds and in both families; from the first answer of
/// the machine that takes over, at most one of each series may be lost.
fn through(site: &Site, what: &str, switch: impl FnOnce() -> lab::Switchover) {
    let mut series: Vec<(&str, IpAddr, Pinger)> = Vec::new();
    for (from, to) in [
        ("prod-b", "10.1.0.10"),
        ("prod-b", "2001:db8:1::10"),
        ("remote", "10.1.0.10"),
        ("remote", "2001:db8:1::10"),
    ] {
        site.reach(from, to);
        let pinger = site
            .ping(from, ip(to), Probe::Echo, SEND_INTERVAL)
            .unwrap_or_else(|e| panic!("{from}: {e}"));
        series.push((from, ip(to), pinger));
    }
    // The pairs that are not concerned lose nothing at all.
    let bystander = site
        .ping("prod-b", ip("10.1.0.1"), Probe::Echo, SEND_INTERVAL)
        .unwrap_or_else(|e| panic!("prod-b: {e}"));
    thread::sleep(Duration::from_millis(500));
    let times = switch();
    thread::sleep(Duration::from_millis(1500));
    let mut wrong = String::new();
    for (from, to, pinger) in series {
        let report = pinger.stop().unwrap_or_else(|e| panic!("{from}: {e}"));
        // The production machine was off by then, so the replica answered all later requests.
        let first = report
            .sent
            .iter()
            .zip(&report.received)
            .filter(|(sent, _)| sent.is_some_and(|sent| sent >= times.off))
            .filter_map(|(_, received)| *received)
            .min();
        let Some(first) = first else {
            wrong.push_str(&format!("{from} → {to}: never answered again\n"));
            continue;
        };
        let since = |moment: Instant| first.saturating_duration_since(moment).as_secs_f64() * 1e3;
        let lost = report.lost_since(first);
        println!(
            "{what}, {from} → {to}: answered {:.1} ms after the machine was off, {:.1} ms after \
             the other was on, {:.1} ms after the appliances knew; lost since: {}; {}",
            since(times.off),
            since(times.on),
            since(times.switched),
            lost.len(),
            report.summary()
        );
        if lost.len() > 1 {
            wrong.push_str(&format!("{from} → {to}: lost {lost:?}\n"));
        }
        if first.saturating_duration_since(times.off) > Duration::from_secs(5) {
            wrong.push_str(&format!(
                "{from} → {to}: silent for {:.0} ms\n",
                since(times.off)
            ));
        }
    }
    let report = bystander.stop().unwrap_or_else(|e| panic!("{e}"));
    assert!(
        report.lost().is_empty(),
        "{what}: prod-b → router: {}",
        report.summary()
    );
    assert!(wrong.is_empty(), "{what}:\n{wrong}");
}

#[test]
fn switch_over_and_failback_lose_at_most_one_ping() {
    // With duplicate address detection, which every new machine waits for.
    let options = Options { dad: true, ..PLAIN };
    let Some(site) = Site::raise(lab::sites::partial, options) else {
        return;
    };
    through(&site, "failover", || site.over("prod-a"));
    through(&site, "failback", || site.back("prod-a"));
    through(&site, "second failover", || site.over("prod-a"));
}
