//! Through the gateway, beside other relays: datagrams of circuits and connections by the server that they name.
//!
//! For: the same client, backend, links and loads for every contender, in turn within each run. Never: traffic outside
//! the namespaces `cwrel-*`, or a contender that is left out in silence.
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
    encrypted::{
        Figures, Median,
        contender::{Role, Running},
        measure::{self, QUIET_ENOUGH},
        sites::Sending,
    },
    report::{Aim, Report},
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

/// What a contender is asked to carry.
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

/// Measures everything `runs` times, in turn; only contenders whose name has one of the words of `only` in it, which stand
/// between commas; and of a word that names a load, only that.
pub fn run(runs: usize, only: Option<&str>) -> anyhow::Result<Report> {
    lab::interrupt::install()?;
    let mut report = Report::new("relay");
    let words = || only.unwrap_or_default().split(',').map(str::trim);
    let is_load = |word: &str| Load::ALL.iter().any(|load| load.name() == word);
    // Where none is named, all are.
    let named = |name: &str| {
        let mut names = words().filter(|word| !is_load(word)).peekable();
        names.peek().is_none() || names.any(|word| name.contains(word))
    };
    let loaded = |load: Load| {
        let mut loads = words().filter(|word| is_load(word)).peekable();
        loads.peek().is_none() || loads.any(|word| word == load.name())
    };
    let mut taking_part: Vec<(Contender, Load)> = Vec::new();
    for contender in Contender::ALL {
        if !named(contender.name()) {
            continue;
        }
        if let Some(why) = contender.missing() {
            report.skip(contender.name(), why);
            continue;
        }
        if contender.has_udp() && loaded(Load::Datagrams) {
            taking_part.push((contender, Load::Datagrams));
        }
        if contender.has_tcp() && loaded(Load::Connections) {
            taking_part.push((contender, Load::Connections));
        }
    }
    // A load's contenders one after the other.
    taking_part.sort_by_key(|(_, load)| *load != Load::Datagrams);
    let mut figures = Figures::default();
    for turn in 0..runs {
        for sending in Sending::ALL {
            taking_part.retain(|(contender, load)| {
                if lab::interrupt::check().is_err() {
                    return true;
                }
                let (name, mode) = (contender.name(), sending.name());
                eprintln!("run {} of {runs}, {mode}: {name}, {load:?}", turn + 1);
                match one(*contender, *load, sending, &mut figures) {
                    Ok(()) => true,
                    Err(_) if lab::interrupt::check().is_err() => true,
                    Err(error) => {
                        let why = format!("{load:?}, {mode}, run {}: {error:#}", turn + 1);
                        eprintln!("  no further runs of {name}: {why}");
                        report.skip(name, why);
                        false
                    }
                }
            });
            lab::interrupt::check()?;
        }
    }
    let medians = figures.report(&mut report);
    ratios(&medians, &mut report);
    Ok(report)
}

/// All figures of one contender under one load.
fn one(
    contender: Contender,
    load: Load,
    sending: Sending,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let sites = Sites::raise(sending)?;
    let arrivals = match load {
        Load::Datagrams => Some(Arrivals::prepare(contender)?),
        Load::Connections => None,
    };
    let measured = |running: &Running, figures: &mut Figures| match arrivals {
        Some(arrivals) => datagrams(contender, &sites, running, arrivals, figures),
        None => connections(contender, &sites, running, figures),
    };
    let running = contender.up().context("it does not come up")?;
    measured(&running, figures)
        .map_err(|error| error.context(format!("its logs: {}", running.logs())))
}

fn datagrams(
    contender: Contender,
    sites: &Sites,
    running: &Running,
    arrivals: Arrivals,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mode = sites.sending().name();
    let all = datagrams::best(contender, running, arrivals, FRAMES)?;
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
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mode = sites.sending().name();
    let mut add = |case: &str, unit, value| {
        let case = format!("{case}, {mode}");
        figures.add(case, contender.name(), contender.role(), unit, value);
    };
    let hello = streams::hello()?;
    let backend = Backend::start(hello.len())?;
    contender.await_tcp()?;
    let others = measure::others()?;
    add("busy before", "CPUs", others);
    if others >= QUIET_ENOUGH {
        eprintln!("  others use {others:.1} CPUs: CPU seconds are not counted, and rates suffer");
    }
    let [median, late] = streams::round_trip(contender, &hello)?;
    add(ROUND_TRIP, "us", median);
    add(ROUND_TRIP_99, "us", late);
    for count in STREAMS {
        let case = tcp_case(count);
        let found = streams::streams(contender, &hello, count, &backend, running, others)?;
        add(&case, "Gbit/s", found.gigabits);
        if others < QUIET_ENOUGH {
            add(&format!("{case}, CPU"), "s/GB", found.cpu);
        }
        if running.has_processes() {
            add(&format!("{case}, CPU of its own"), "s/GB", found.own_cpu);
        }
        lab::interrupt::check()?;
    }
    let made = streams::connections(contender, &hello)?;
    add(CONNECTIONS, "1/s", made.rate);
    add(CROWDED, "us", made.crowded);
    add(ALONE, "us", made.alone);
    Ok(())
}

/// The ratios whose rows exist.
fn ratios(medians: &[Median], report: &mut Report) {
    let of = |case: &str, contender: Contender| {
        medians
            .iter()
            .find(|m| m.case == case && m.contender == contender.name())
            .map(|m| m.value)
    };
    for sending in Sending::ALL {
        let mode = sending.name();
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
    fn ours_is_beside_the_best_relay_of_datagrams_and_beside_haproxy() {
        let mut figures = Figures::default();
        let wire = Sending::WireLike.name();
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
