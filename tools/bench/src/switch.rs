//! A mode switch under traffic: the time of its store, and lost packets.
//!
//! One thread runs packets of every network in turn through the programs, as fast as possible.
//! Another switches the mode a hundred times a second. A packet is lost if the program sends it in
//! neither mode.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use appliance_common::maps::{Mode, Tenant};
use aya::maps::Array;
use causeway_tests::{
    harness::{Harness, Program},
    packet::{frame, udp},
    world::{A_MAC, TRUNK, TRUNK_MAC, World, many_host, many_next, tag},
};

use crate::{
    report::{Aim, Report},
    rig::extent::{Amount, Extent},
};

/// Switches for one figure.
const SWITCHES: Amount<u32> = Amount {
    full: 200,
    smoke: 10,
};

/// Returns the median time of a store in microseconds, lost packets, and sent packets.
fn measure(networks: u32, switches: u32) -> anyhow::Result<(f64, u64, u64)> {
    let mut harness = Harness::load(World::many(networks))?;
    let map = harness.ebpf().take_map("TENANTS").context("TENANTS")?;
    let mut tenants: Array<_, Tenant> = map.try_into()?;
    let packets: Vec<Vec<u8>> = (1..=networks)
        .map(|n| {
            let (from, to) = (many_host(n), many_host(many_next(n, networks)));
            let l3 = udp(from, to, 1, 2, b"which way?");
            frame(TRUNK_MAC, A_MAC, &[tag(n as u16)], &l3)
        })
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let switcher = scope.spawn(|| {
            let mut stores = Vec::new();
            for round in 0..switches {
                let tenant = Tenant {
                    mode: [Mode::Full, Mode::Partial][round as usize % 2] as u32,
                    epoch: round + 2,
                };
                let at = Instant::now();
                let stored = tenants.set(0, tenant, 0);
                stores.push(at.elapsed());
                if let Err(error) = stored {
                    stop.store(true, Ordering::SeqCst);
                    return Err(anyhow::Error::from(error));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            stop.store(true, Ordering::SeqCst);
            stores.sort();
            Ok(stores[stores.len() / 2])
        });
        let (mut sent, mut lost) = (0, 0);
        for packet in packets.iter().cycle() {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let (action, _) = harness.run(Program::Access, TRUNK, packet)?;
            sent += 1;
            lost += u64::from(!action.sends());
        }
        let store = switcher
            .join()
            .map_err(|_| anyhow::anyhow!("the switching thread panicked"))??;
        Ok((store.as_secs_f64() * 1e6, lost, sent))
    })
}

/// Measures every case `runs` times, in turn.
pub fn run(runs: usize, extent: Extent) -> anyhow::Result<Report> {
    let switches = SWITCHES.of(extent);
    let mut report = Report::new("switch");
    let sizes = [2, 4094];
    let mut stores = [Vec::new(), Vec::new()];
    let mut losses = [Vec::new(), Vec::new()];
    for turn in 0..runs {
        eprintln!("run {} of {runs}", turn + 1);
        for (i, networks) in sizes.into_iter().enumerate() {
            let (store, lost, sent) = measure(networks, switches)?;
            eprintln!("{networks} networks: {sent} packets, {lost} lost in {switches} switches");
            stores[i].push(store);
            losses[i].push(lost as f64 / f64::from(switches));
        }
    }
    let mut medians = Vec::new();
    for ((networks, store), lost) in sizes.into_iter().zip(stores).zip(losses) {
        let case = format!("switch, {networks} networks");
        medians.push(report.row(format!("{case}: the store"), "causeway", "us", store));
        report.row(format!("{case}: packets lost"), "causeway", "each", lost);
    }
    report.ratio(
        "the store: 4 094 networks / 2",
        medians[1] / medians[0],
        Some(Aim::Most(1.2)),
    );
    Ok(report)
}
