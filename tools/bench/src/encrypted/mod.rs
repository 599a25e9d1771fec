//! Two hosts, connected by two machines with an encrypted tunnel, against other encrypted tunnels.
//!
//! For: the same hosts, links and loads for every contender, in turn within each run. Never:
//! traffic outside the namespaces `cwe-*`, or a contender that is left out without a message.
//!
//! ```text
//!   run ─▶ wire-like | offloads on ─▶ each contender:
//!            Sites::raise ─▶ Contender::up ─▶ hosts reach each other
//!              ─▶ ping ─▶ TCP 1, 8 ─▶ UDP 18 B, 1300 B ─▶ one_core ─▶ Contender::down
//! ```

mod aead;
mod bridge;
pub mod causeway;
mod contender;
mod datagrams;
mod measure;
mod nebula;
mod openvpn;
mod sites;
mod softether;
mod tinc;
mod wireguard;

use anyhow::Context as _;
use tunnel::Cipher;

use crate::{
    report::{
        Aim, Report,
        figures::{Figures, Median, Role},
    },
    rig::{
        command::find,
        cpu::{self, QUIET_ENOUGH},
        extent::Extent,
        iperf,
        offloads::Offloads,
        process::Running,
    },
};

use self::{contender::Contender, sites::Sites};

/// Name of the topology's floor in the report.
const BRIDGE: &str = "kernel bridge";
/// Name of a worker's floor in the report.
const FORWARD: &str = "AF_XDP forward, no crypto";
/// Name of the encryption floor in the report.
const BARE: &str = "bare AEAD, one core";

/// UDP payload in bytes, and packets sent per second: more than any contender carries.
const LOADS: [(usize, f64); 2] = [(18, 1e6), (1300, 500e3)];
/// TCP streams.
const STREAMS: [u32; 2] = [1, 8];
/// Bytes of the encrypted packets: a large one, and a frame with 18 bytes of UDP payload.
const SEALED: [usize; 2] = [1420, 66];

/// The contenders, in the order of their turns.
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

/// Measures every case `runs` times, the contenders in turn. `only` restricts it to contenders
/// whose name contains one of its comma-separated words.
pub fn run(runs: usize, only: Option<&str>, extent: Extent) -> anyhow::Result<Report> {
    lab::interrupt::install()?;
    let mut report = Report::new("encrypted");
    let iperf = find("iperf3").is_some();
    if !iperf {
        report.omit(
            "TCP, every contender",
            "iperf3 is not installed; `cargo xtask setup` installs it",
        );
    }
    let mut contenders = contenders();
    let named =
        |name: &str| only.is_none_or(|only| only.split(',').any(|word| name.contains(word)));
    contenders.retain(|c| named(c.name()));
    contenders.retain(|contender| {
        let missing = contender.missing();
        if let Some(why) = &missing {
            report.skip(contender.name(), contender.role(), why);
        }
        missing.is_none()
    });
    let mut figures = Figures::default();
    for run in 0..runs {
        floors(extent, &mut figures)?;
        for offloads in Offloads::ALL {
            contenders.retain(|contender| {
                let is_measured = offloads.includes(contender.role(), extent);
                if !is_measured || lab::interrupt::check().is_err() {
                    return true;
                }
                let (name, mode) = (contender.name(), offloads.name());
                eprintln!("run {} of {runs}, {mode}: {name}", run + 1);
                let result = one(contender.as_ref(), offloads, iperf, extent, &mut figures);
                report.retain(name, &format!("{mode}, run {}", run + 1), result)
            });
            lab::interrupt::check()?;
        }
    }
    let medians = figures.report(&mut report);
    ratios(&medians, &mut report);
    Ok(report)
}

/// Measures all figures of one contender in one mode.
fn one(
    contender: &dyn Contender,
    offloads: Offloads,
    iperf: bool,
    extent: Extent,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let sites = Sites::raise(contender.layer(), offloads, contender.needs_checksums())?;
    let others = cpu::others(extent)?;
    let running = contender.up(&sites).context("it does not start")?;
    let result = measured(
        contender,
        &sites,
        &running,
        iperf.then_some(others),
        extent,
        figures,
    )
    .map_err(|error| error.context(format!("its logs: {}", running.logs())));
    let down = contender.down(&sites, running).context("it does not stop");
    result.and(down)
}

fn measured(
    contender: &dyn Contender,
    sites: &Sites,
    running: &Running,
    others: Option<f64>,
    extent: Extent,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mode = sites.offloads().name();
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
    add(
        ROUND_TRIP.to_owned(),
        "ms",
        measure::round_trip(sites, extent)?,
    );
    if let Some(others) = others {
        add("busy before".to_owned(), "CPUs", others);
        cpu::warn_if_busy(others);
        let log = running.directory().join("iperf3.log");
        let _server = iperf::Server::start(sites::RIGHT, log)?;
        for streams in STREAMS {
            let case = tcp_case(streams);
            let tcp = measure::tcp(sites, running, streams, others, extent)?;
            add(case.clone(), "Gbit/s", tcp.gigabits);
            if others < QUIET_ENOUGH {
                add(format!("{case}, CPU"), "s/GB", tcp.cpu);
            }
            if running.has_processes() {
                add(format!("{case}, CPU of its own"), "s/GB", tcp.own_cpu);
            }
        }
    }
    for (bytes, rate) in LOADS {
        let rates = datagrams::flood(sites, bytes, rate, extent)?;
        anyhow::ensure!(rates.received > 0.0, "UDP of {bytes} B: nothing arrived");
        add(udp_case(bytes), "kpps", rates.received / 1e3);
        add(
            format!("{}, sent", udp_case(bytes)),
            "kpps",
            rates.sent / 1e3,
        );
        lab::interrupt::check()?;
    }
    if sites.offloads() == Offloads::Off
        && let Some(core) = contender.one_core(running, extent)?
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

/// Measures the floors that need no sites.
fn floors(extent: Extent, figures: &mut Figures) -> anyhow::Result<()> {
    for cipher in Cipher::ALL {
        for bytes in SEALED {
            let nanoseconds = aead::seal(cipher, bytes, extent)?;
            let case = seal_case(cipher, bytes);
            figures.add(case.clone(), BARE, Role::Floor, "ns", nanoseconds);
            let gigabits = 8.0 * bytes as f64 / nanoseconds;
            figures.add(case, BARE, Role::Floor, "Gbit/s", gigabits);
        }
    }
    Ok(())
}

/// Adds the ratios whose rows exist.
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
    for offloads in Offloads::ALL {
        let mode = offloads.name();
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

/// Thousands of packets per second of a worker that spends its time on forwarding and encryption
/// only: from the same figure of forwarding alone, and the nanoseconds to encrypt one packet.
fn worker_floor(forward: f64, seal: f64) -> f64 {
    1e6 / (1e6 / forward + seal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_cannot_be_faster_than_forwarding_plus_encryption() {
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
    fn causeway_is_compared_to_the_best_peer_and_absent_rows_have_no_ratio() {
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
