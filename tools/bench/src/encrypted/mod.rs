//! Between two hosts through a pair of machines that encrypt, beside other encrypted tunnels.
//!
//! For: the same hosts, links and loads for every contender, in turn within each run. Never: traffic
//! outside the namespaces `cwe-*`, or a contender that is left out in silence.
//!
//! ```text
//!   run ─▶ wire-like | offloads on ─▶ each contender:
//!            Sites::raise ─▶ Contender::up ─▶ hosts reach each other
//!              ─▶ ping ─▶ TCP 1, 8 ─▶ UDP 18 B, 1300 B ─▶ one_core ─▶ Contender::down
//! ```

mod aead;
mod bridge;
pub mod causeway;
pub mod contender;
mod datagrams;
pub mod measure;
mod nebula;
mod openvpn;
pub mod sites;
mod softether;
mod tinc;
mod wireguard;

use anyhow::Context as _;
use tunnel::Cipher;

use crate::report::{Aim, Report};

use self::{
    contender::{Contender, Role, Running, find},
    sites::{Sending, Sites},
};

/// The floor of the topology, by its name in the report.
const BRIDGE: &str = "kernel bridge";
/// The floor of a worker, by its name in the report: what its contender is to be called.
const FORWARD: &str = "AF_XDP forward, no crypto";
/// The floor of encryption, by its name in the report.
const BARE: &str = "bare AEAD, one core";

/// Payload of UDP packets, and how many are sent a second: more than any contender carries.
const LOADS: [(usize, f64); 2] = [(18, 1e6), (1300, 500e3)];
/// TCP streams.
const STREAMS: [u32; 2] = [1, 8];
/// Bytes of the packets that are sealed: large, and with 18 bytes of UDP payload in a frame.
const SEALED: [usize; 2] = [1420, 66];

/// Who takes part, in this order.
fn contenders() -> Vec<Box<dyn Contender>> {
    vec![
        Box::new(bridge::KernelBridge),
        Box::new(causeway::Forward),
        Box::new(causeway::WAKE),
        Box::new(causeway::BUSY),
        Box::new(openvpn::OpenVpn),
        Box::new(tinc::Tinc),
        Box::new(softether::SoftEther),
        Box::new(wireguard::GO),
        Box::new(wireguard::BORINGTUN),
        Box::new(nebula::Nebula),
    ]
}

/// Measures everything `runs` times, in turn; only contenders whose name has one of the words of
/// `only` in it, which stand between commas.
pub fn run(runs: usize, only: Option<&str>) -> anyhow::Result<Report> {
    lab::interrupt::install()?;
    let mut report = Report::new("encrypted");
    let iperf = find("iperf3").is_some();
    if !iperf {
        report.skip(
            "TCP, every contender",
            "iperf3 is not installed; `cargo xtask setup` installs it",
        );
    }
    let mut taking_part = contenders();
    let named =
        |name: &str| only.is_none_or(|only| only.split(',').any(|word| name.contains(word)));
    taking_part.retain(|c| named(c.name()));
    taking_part.retain(|contender| {
        let missing = contender.missing();
        if let Some(why) = &missing {
            report.skip(contender.name(), why);
        }
        missing.is_none()
    });
    let mut figures = Figures::default();
    for turn in 0..runs {
        floors(&mut figures)?;
        for sending in Sending::ALL {
            taking_part.retain(|contender| {
                if lab::interrupt::check().is_err() {
                    return true;
                }
                let (name, mode) = (contender.name(), sending.name());
                eprintln!("run {} of {runs}, {mode}: {name}", turn + 1);
                match one(contender.as_ref(), sending, iperf, &mut figures) {
                    Ok(()) => true,
                    Err(_) if lab::interrupt::check().is_err() => true,
                    Err(error) => {
                        let why = format!("{mode}, run {}: {error:#}", turn + 1);
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

/// All figures of one contender in one mode.
fn one(
    contender: &dyn Contender,
    sending: Sending,
    iperf: bool,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let sites = Sites::raise(contender.layer(), sending, contender.needs_checksums())?;
    let others = measure::others()?;
    let running = contender.up(&sites).context("it does not come up")?;
    let result = measured(
        contender,
        &sites,
        &running,
        iperf.then_some(others),
        figures,
    )
    .map_err(|error| error.context(format!("its logs: {}", running.logs())));
    let down = contender
        .down(&sites, running)
        .context("it does not go down");
    result.and(down)
}

fn measured(
    contender: &dyn Contender,
    sites: &Sites,
    running: &Running,
    others: Option<f64>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mode = sites.sending().name();
    let mut add = |case: String, unit, value| {
        figures.add(
            format!("{case}, {mode}"),
            contender.name(),
            contender.role(),
            unit,
            value,
        );
    };
    sites.await_path()?;
    add(ROUND_TRIP.to_owned(), "ms", measure::round_trip(sites)?);
    if let Some(others) = others {
        add("busy before".to_owned(), "CPUs", others);
        if others >= measure::QUIET_ENOUGH {
            eprintln!(
                "  others use {others:.1} CPUs: CPU seconds are not counted, and rates suffer"
            );
        }
        let _server = measure::Server::start(running)?;
        for streams in STREAMS {
            let case = tcp_case(streams);
            let tcp = measure::tcp(sites, running, streams, others)?;
            add(case.clone(), "Gbit/s", tcp.gigabits);
            if others < measure::QUIET_ENOUGH {
                add(format!("{case}, CPU"), "s/GB", tcp.cpu);
            }
            if running.has_processes() {
                add(format!("{case}, CPU of its own"), "s/GB", tcp.own_cpu);
            }
        }
    }
    for (bytes, rate) in LOADS {
        let rates = datagrams::flood(sites, bytes, rate)?;
        anyhow::ensure!(rates.received > 0.0, "UDP of {bytes} B: nothing arrived");
        add(udp_case(bytes), "kpps", rates.received / 1e3);
        add(
            format!("{}, sent", udp_case(bytes)),
            "kpps",
            rates.sent / 1e3,
        );
        lab::interrupt::check()?;
    }
    if sites.sending() == Sending::WireLike
        && let Some(core) = contender.one_core(sites, running)?
    {
        figures.add(
            one_core_case(core.bytes),
            contender.name(),
            contender.role(),
            "kpps",
            core.packets_per_second / 1e3,
        );
    }
    Ok(())
}

const ROUND_TRIP: &str = "round trip";

fn tcp_case(streams: u32) -> String {
    format!("TCP, {streams} streams").replace("1 streams", "1 stream")
}

fn udp_case(bytes: usize) -> String {
    format!("UDP, {bytes} B")
}

fn one_core_case(bytes: usize) -> String {
    format!("one core, {bytes} B")
}

fn seal_case(cipher: Cipher, bytes: usize) -> String {
    let name = match cipher {
        Cipher::Aes256Gcm => "AES-256-GCM",
        Cipher::ChaCha20Poly1305 => "ChaCha20-Poly1305",
    };
    format!("seal {bytes} B, {name}")
}

/// What needs no sites.
fn floors(figures: &mut Figures) -> anyhow::Result<()> {
    for cipher in Cipher::ALL {
        for bytes in SEALED {
            let nanoseconds = aead::seal(cipher, bytes)?;
            let case = seal_case(cipher, bytes);
            figures.add(case.clone(), BARE, Role::Floor, "ns", nanoseconds);
            let gigabits = 8.0 * bytes as f64 / nanoseconds;
            figures.add(case, BARE, Role::Floor, "Gbit/s", gigabits);
        }
    }
    Ok(())
}

/// One case of one contender, over the runs.
struct Figure {
    case: String,
    contender: &'static str,
    role: Role,
    unit: &'static str,
    values: Vec<f64>,
}

/// What was measured, over the runs.
#[derive(Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// Adds what a run came to.
    pub fn add(
        &mut self,
        case: String,
        contender: &'static str,
        role: Role,
        unit: &'static str,
        value: f64,
    ) {
        let same = |f: &&mut Figure| f.case == case && f.contender == contender && f.unit == unit;
        match self.0.iter_mut().find(same) {
            Some(figure) => figure.values.push(value),
            None => self.0.push(Figure {
                case,
                contender,
                role,
                unit,
                values: vec![value],
            }),
        }
    }

    /// Adds the rows, a case's contenders below one another, and gives the medians.
    pub fn report(self, report: &mut Report) -> Vec<Median> {
        let mut cases: Vec<(String, &'static str)> = Vec::new();
        for f in &self.0 {
            if !cases
                .iter()
                .any(|(case, unit)| *case == f.case && *unit == f.unit)
            {
                cases.push((f.case.clone(), f.unit));
            }
        }
        let mut medians = Vec::new();
        for (case, unit) in cases {
            for f in self.0.iter().filter(|f| f.case == case && f.unit == unit) {
                medians.push(Median {
                    case: case.clone(),
                    contender: f.contender,
                    role: f.role,
                    unit,
                    value: report.row(case.clone(), f.contender, unit, f.values.clone()),
                });
            }
        }
        medians
    }
}

/// The median of one case of one contender.
pub struct Median {
    /// Of what.
    pub case: String,
    /// Of whom.
    pub contender: &'static str,
    /// What the contender is there for.
    pub role: Role,
    unit: &'static str,
    /// Itself.
    pub value: f64,
}

/// The ratios whose rows exist.
fn ratios(medians: &[Median], report: &mut Report) {
    let of_role = |case: &str, role: Role| {
        let mut found: Vec<_> = medians
            .iter()
            .filter(|m| m.case == case && m.role == role)
            .collect();
        found.sort_by(|a, b| a.value.total_cmp(&b.value));
        found
    };
    let named = |case: &str, name: &str, unit: &str| {
        let mut found = medians.iter();
        let found = found.find(|m| m.case == case && m.contender == name && m.unit == unit);
        found.map(|m| m.value)
    };
    for sending in Sending::ALL {
        let mode = sending.name();
        let rates = STREAMS.map(|n| (tcp_case(n), Some(Aim::Least(5.0))));
        let small =
            LOADS.map(|(bytes, _)| (udp_case(bytes), (bytes == 18).then_some(Aim::Least(5.0))));
        for (case, aim) in rates.into_iter().chain(small) {
            let case = format!("{case}, {mode}");
            let best = of_role(&case, Role::Peer).last().copied();
            for ours in of_role(&case, Role::Causeway) {
                if let Some(best) = best {
                    let name = format!("{case}: {} / {}", ours.contender, best.contender);
                    report.ratio(name, ours.value / best.value, aim);
                }
            }
        }
        let case = format!("{ROUND_TRIP}, {mode}");
        let bridge = named(&case, BRIDGE, "ms");
        let best = of_role(&case, Role::Peer).first().copied();
        if let (Some(bridge), Some(best)) = (bridge, best) {
            for ours in of_role(&case, Role::Causeway) {
                report.ratio(
                    format!("added {case}: {} / {}", ours.contender, best.contender),
                    (ours.value - bridge) / (best.value - bridge),
                    Some(Aim::Most(0.5)),
                );
            }
        }
    }
    let bytes = 1420;
    let case = one_core_case(bytes);
    let forward = named(&case, FORWARD, "kpps");
    let seal = named(&seal_case(Cipher::Aes256Gcm, bytes), BARE, "ns");
    if let (Some(forward), Some(seal)) = (forward, seal) {
        for ours in of_role(&case, Role::Causeway) {
            report.ratio(
                format!("{case}: {} / floor", ours.contender),
                ours.value / worker_floor(forward, seal),
                Some(Aim::Least(0.85)),
            );
        }
    }
}

/// What a worker would carry that takes no longer than forwarding and sealing: thousands of packets a
/// second, from the same of forwarding and the nanoseconds of sealing one.
fn worker_floor(forward: f64, seal: f64) -> f64 {
    1e6 / (1e6 / forward + seal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_and_sealing_take_turns_on_the_one_core() {
        // 1000 ns and 250 ns.
        assert!((worker_floor(1000.0, 250.0) - 800.0).abs() < 1e-9);
    }

    fn medians(rows: &[(&str, &'static str, Role, &'static str, f64)]) -> Vec<Median> {
        let mut figures = Figures::default();
        for (case, contender, role, unit, value) in rows {
            figures.add((*case).to_owned(), contender, *role, unit, *value);
        }
        figures.report(&mut Report::new("encrypted"))
    }

    #[test]
    fn ours_is_beside_the_best_peer_and_what_is_absent_has_no_ratio() {
        let mut rows = vec![
            (
                "TCP, 1 stream, wire-like",
                "kernel bridge",
                Role::Floor,
                "Gbit/s",
                9.0,
            ),
            (
                "TCP, 1 stream, wire-like",
                "slow",
                Role::Peer,
                "Gbit/s",
                0.5,
            ),
            (
                "TCP, 1 stream, wire-like",
                "fast",
                Role::Peer,
                "Gbit/s",
                0.8,
            ),
            (
                "round trip, wire-like",
                "kernel bridge",
                Role::Floor,
                "ms",
                0.1,
            ),
            ("round trip, wire-like", "slow", Role::Peer, "ms", 0.9),
            ("round trip, wire-like", "fast", Role::Peer, "ms", 0.5),
        ];
        let mut report = Report::new("encrypted");
        ratios(&medians(&rows), &mut report);
        assert!(report.ratios().is_empty());

        rows.push((
            "TCP, 1 stream, wire-like",
            "ours",
            Role::Causeway,
            "Gbit/s",
            4.0,
        ));
        rows.push(("round trip, wire-like", "ours", Role::Causeway, "ms", 0.2));
        rows.push(("one core, 1420 B", "ours", Role::Causeway, "kpps", 600.0));
        rows.push(("one core, 1420 B", FORWARD, Role::Floor, "kpps", 1000.0));
        rows.push(("seal 1420 B, AES-256-GCM", BARE, Role::Floor, "ns", 250.0));
        ratios(&medians(&rows), &mut report);
        let found: Vec<_> = report
            .ratios()
            .iter()
            .map(|(n, v)| format!("{n} = {v:.2}"))
            .collect();
        assert_eq!(
            found,
            [
                "TCP, 1 stream, wire-like: ours / fast = 5.00",
                "added round trip, wire-like: ours / fast = 0.25",
                "one core, 1420 B: ours / floor = 0.75",
            ]
        );
    }
}
