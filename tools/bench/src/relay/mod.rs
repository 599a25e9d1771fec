//! Datagrams of circuits, and connections by server name, through the gateway, against other
//! relays.
//!
//! For: the same client, backend, links and loads for every contender, in turn within each run.
//! Never: traffic outside the namespaces `cwrel-*`, or a contender that is left out without a
//! message.
//!
//! ```text
//!   run ─▶ wire-like | offloads on ─▶ each contender:
//!            datagrams: Sites::raise ─▶ up ─▶ bound ─▶ 64 B, 1400 B
//!            streams:   Sites::raise ─▶ up ─▶ connections ─▶ round trip ─▶ 1, 8 streams
//! ```

mod contender;
mod datagrams;
mod sites;
mod streams;
mod turn;

use anyhow::Context as _;

use crate::{
    report::{
        Aim, Report,
        figures::{Figures, Median, Role},
    },
    rig::{
        cpu::{self, QUIET_ENOUGH},
        extent::Extent,
        offloads::Offloads,
        process::Running,
    },
};

use self::{contender::Contender, datagrams::Arrivals, sites::Sites, streams::Backend};

/// Bytes of the frames, from the Ethernet header on.
const FRAMES: [usize; 2] = [64, 1400];
/// TCP streams.
const STREAMS: [usize; 2] = [1, 8];

const CONNECTIONS: &str = "connections made";
const CROWDED: &str = "connection, p99, 16 at once";
const ALONE: &str = "connection, p99, one at a time";
const ROUND_TRIP: &str = "round trip, 1 B";
const ROUND_TRIP_99: &str = "round trip, 1 B, p99";

fn udp_case(bytes: usize) -> String {
    format!("UDP, {bytes} B")
}

fn tcp_case(streams: usize) -> String {
    format!("TCP, {streams} streams").replace("1 streams", "1 stream")
}

/// The load on a contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Datagrams,
    Connections,
}

impl Load {
    const ALL: [Self; 2] = [Self::Datagrams, Self::Connections];

    const fn name(self) -> &'static str {
        match self {
            Self::Datagrams => "datagrams",
            Self::Connections => "connections",
        }
    }
}

/// Measures every case `runs` times, the contenders in turn. `only` is a comma-separated list: a
/// word that names a load restricts it to that load, any other to contenders whose name contains
/// it.
pub fn run(runs: usize, only: Option<&str>, extent: Extent) -> anyhow::Result<Report> {
    lab::interrupt::install()?;
    let mut report = Report::new("relay");
    let words = || only.unwrap_or_default().split(',').map(str::trim);
    let is_load = |word: &str| Load::ALL.iter().any(|load| load.name() == word);
    // All, if none is named.
    let named = |name: &str| {
        let mut names = words().filter(|word| !is_load(word)).peekable();
        names.peek().is_none() || names.any(|word| name.contains(word))
    };
    let selected = |load: Load| {
        let mut loads = words().filter(|word| is_load(word)).peekable();
        loads.peek().is_none() || loads.any(|word| word == load.name())
    };
    let mut turns: Vec<(Contender, Load)> = Vec::new();
    for contender in Contender::ALL {
        if !named(contender.name()) {
            continue;
        }
        if let Some(why) = contender.missing() {
            report.skip(contender.name(), contender.role(), why);
            continue;
        }
        if contender.has_udp() && selected(Load::Datagrams) {
            turns.push((contender, Load::Datagrams));
        }
        if contender.has_tcp() && selected(Load::Connections) {
            turns.push((contender, Load::Connections));
        }
    }
    // All contenders of one load, then those of the other.
    turns.sort_by_key(|(_, load)| *load != Load::Datagrams);
    let mut figures = Figures::default();
    for run in 0..runs {
        for offloads in Offloads::ALL {
            turns.retain(|(contender, load)| {
                let is_measured = offloads.includes(contender.role(), extent);
                if !is_measured || lab::interrupt::check().is_err() {
                    return true;
                }
                let (name, mode) = (contender.name(), offloads.name());
                eprintln!("run {} of {runs}, {mode}: {name}, {load:?}", run + 1);
                let result = one(*contender, *load, offloads, extent, &mut figures);
                report.retain(name, &format!("{load:?}, {mode}, run {}", run + 1), result)
            });
            lab::interrupt::check()?;
        }
    }
    let medians = figures.report(&mut report);
    ratios(&medians, &mut report);
    Ok(report)
}

/// Measures all figures of one contender under one load.
fn one(
    contender: Contender,
    load: Load,
    offloads: Offloads,
    extent: Extent,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let sites = Sites::raise(offloads)?;
    let arrivals = match load {
        Load::Datagrams => Some(Arrivals::prepare(contender)?),
        Load::Connections => None,
    };
    let measured = |running: &Running, figures: &mut Figures| match arrivals {
        Some(arrivals) => datagrams(contender, &sites, running, arrivals, extent, figures),
        None => connections(contender, &sites, running, extent, figures),
    };
    let running = contender.up().context("it does not start")?;
    measured(&running, figures)
        .map_err(|error| error.context(format!("its logs: {}", running.logs())))
}

fn datagrams(
    contender: Contender,
    sites: &Sites,
    running: &Running,
    arrivals: Arrivals,
    extent: Extent,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mode = sites.offloads().name();
    let all = datagrams::best(contender, running, arrivals, FRAMES, extent)?;
    for (bytes, best) in FRAMES.into_iter().zip(all) {
        let mut add = |case: String, value: f64| {
            let case = format!("{case}, {mode}");
            figures.add(
                case,
                contender.name(),
                contender.role(),
                "kpps",
                value / 1e3,
            );
        };
        add(udp_case(bytes), best.received);
        add(format!("{}, sent", udp_case(bytes)), best.sent);
    }
    Ok(())
}

fn connections(
    contender: Contender,
    sites: &Sites,
    running: &Running,
    extent: Extent,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mode = sites.offloads().name();
    let mut add = |case: &str, unit, value| {
        let case = format!("{case}, {mode}");
        figures.add(case, contender.name(), contender.role(), unit, value);
    };
    let hello = streams::hello()?;
    let backend = Backend::start(hello.len())?;
    contender.await_tcp()?;
    let others = cpu::others(extent)?;
    add("busy before", "CPUs", others);
    cpu::warn_if_busy(others);
    let [median, late] = streams::round_trip(contender, &hello, extent)?;
    add(ROUND_TRIP, "us", median);
    add(ROUND_TRIP_99, "us", late);
    for count in STREAMS {
        let case = tcp_case(count);
        let found = streams::streams(contender, &hello, count, &backend, running, others, extent)?;
        add(&case, "Gbit/s", found.gigabits);
        if others < QUIET_ENOUGH {
            add(&format!("{case}, CPU"), "s/GB", found.cpu);
        }
        if running.has_processes() {
            add(&format!("{case}, CPU of its own"), "s/GB", found.own_cpu);
        }
        lab::interrupt::check()?;
    }
    let made = streams::connections(contender, &hello, extent)?;
    add(CONNECTIONS, "1/s", made.rate);
    add(CROWDED, "us", made.crowded);
    add(ALONE, "us", made.alone);
    Ok(())
}

/// Adds the ratios whose rows exist.
fn ratios(medians: &[Median], report: &mut Report) {
    let of = |case: &str, contender: Contender| {
        medians
            .iter()
            .find(|m| m.case == case && m.contender == contender.name())
            .map(|m| m.value)
    };
    for offloads in Offloads::ALL {
        let mode = offloads.name();
        for bytes in FRAMES {
            let case = format!("{}, {mode}", udp_case(bytes));
            let best = medians
                .iter()
                .filter(|m| m.case == case && m.role == Role::Peer)
                .max_by(|a, b| a.value.total_cmp(&b.value));
            let Some(best) = best else { continue };
            for (ours, aim) in [
                (Contender::GatewayXdp, Some(Aim::Least(10.0))),
                (Contender::Gateway, None),
            ] {
                if let Some(value) = of(&case, ours) {
                    let name = format!("{case}: {} / {}", ours.name(), best.contender);
                    report.ratio(name, value / best.value, aim);
                }
            }
        }
        let more = Some(Aim::Least(1.0));
        let less = Some(Aim::Most(1.0));
        let mut cases: Vec<(String, Option<Aim>)> = vec![
            (CONNECTIONS.to_owned(), more),
            (CROWDED.to_owned(), less),
            (ALONE.to_owned(), less),
            (ROUND_TRIP_99.to_owned(), less),
        ];
        for count in STREAMS {
            let case = tcp_case(count);
            cases.push((format!("{case}, CPU"), less));
            cases.push((case, more));
        }
        for (case, aim) in cases {
            let case = format!("{case}, {mode}");
            let ours = of(&case, Contender::Gateway);
            for (peer, aim) in [(Contender::Haproxy, aim), (Contender::Nginx, None)] {
                if let (Some(ours), Some(theirs)) = (ours, of(&case, peer)) {
                    let name = format!("{case}: causeway / {}", peer.name());
                    report.ratio(name, ours / theirs, aim);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causeway_is_compared_to_the_best_datagram_relay_and_to_haproxy() {
        let mut figures = Figures::default();
        let wire = Offloads::Off.name();
        for (case, contender, value) in [
            (udp_case(64), Contender::Forward, 900.0),
            (udp_case(64), Contender::Socat, 20.0),
            (udp_case(64), Contender::Coturn, 50.0),
            (udp_case(64), Contender::Gateway, 100.0),
            (udp_case(64), Contender::GatewayXdp, 1000.0),
            (tcp_case(1), Contender::Gateway, 3.0),
            (tcp_case(1), Contender::Haproxy, 2.0),
        ] {
            figures.add(
                format!("{case}, {wire}"),
                contender.name(),
                contender.role(),
                "",
                value,
            );
        }
        let mut report = Report::new("relay");
        let medians = figures.report(&mut report);
        ratios(&medians, &mut report);
        let found: Vec<_> = report
            .ratios()
            .iter()
            .map(|(n, v)| format!("{n} = {v:.1}"))
            .collect();
        assert_eq!(
            found,
            [
                "UDP, 64 B, wire-like: causeway, XDP / coturn = 20.0",
                "UDP, 64 B, wire-like: causeway / coturn = 2.0",
                "TCP, 1 stream, wire-like: causeway / haproxy = 1.5",
            ]
        );
    }
}
