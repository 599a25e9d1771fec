//! The switch of modes is one store for any number of networks. During repeated switches, each
//! packet is processed in exactly one mode.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use appliance_common::maps::{Mode, Tenant};
use aya::maps::{Array, MapData};
use causeway_tests::{
    harness::{Action, Harness, Program},
    nat::hop,
    packet::{frame, udp},
    world::*,
};

/// Every VLAN of a trunk.
const NETWORKS: u32 = 4094;
const ROUNDS: u32 = 400;

#[test]
fn a_mode_switch_never_mixes_modes_within_a_packet() {
    let Some(mut h) = Harness::new(World::many(NETWORKS)) else {
        return;
    };
    let mut tenants: Array<MapData, Tenant> = h.open_map("TENANTS").expect("TENANTS");
    let modes = [Mode::Partial, Mode::Full];
    let set = |tenants: &mut Array<MapData, Tenant>, mode: Mode, epoch| {
        let tenant = Tenant {
            mode: mode as u32,
            epoch,
        };
        tenants.set(0, tenant, 0).expect("one store");
    };
    set(&mut tenants, Mode::Partial, 1);
    // The output of each mode for a packet of each network, byte for byte.
    let packets: Vec<Vec<u8>> = (1..=NETWORKS)
        .map(|n| {
            let l3 = udp(
                many_host(n),
                many_host(many_next(n, NETWORKS)),
                1,
                2,
                b"which way?",
            );
            frame(TRUNK_MAC, A_MAC, &[tag(n as u16)], &l3)
        })
        .collect();
    let mut wanted = Vec::new();
    for (n, packet) in (1..=NETWORKS).zip(&packets) {
        let (action, out) = h.run(Program::Access, TRUNK, packet).expect("it runs");
        assert_eq!(action, Action::Redirect, "network {n} in partial failover");
        let l3 = udp(
            many_host(n),
            many_host(many_next(n, NETWORKS)),
            1,
            2,
            b"which way?",
        );
        assert_eq!(out[64..], l3, "as it was, in the tunnel");
        let routed = frame(
            A_MAC,
            TRUNK_MAC,
            &[tag(many_next(n, NETWORKS) as u16)],
            &hop(&l3),
        );
        wanted.push((out.to_vec(), routed));
    }

    let stop = Arc::new(AtomicBool::new(false));
    // The epoch that is being stored, and the stored one.
    let epochs = Arc::new([AtomicU32::new(1), AtomicU32::new(1)]);
    let switcher = {
        let (stop, epochs) = (stop.clone(), epochs.clone());
        thread::spawn(move || {
            let mut stores = Vec::new();
            for round in 2..2 + ROUNDS {
                epochs[0].store(round, Ordering::SeqCst);
                let at = Instant::now();
                set(&mut tenants, modes[(round as usize + 1) % 2], round);
                stores.push(at.elapsed());
                epochs[1].store(round, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(5));
            }
            stop.store(true, Ordering::SeqCst);
            stores.sort();
            stores[stores.len() / 2]
        })
    };
    let (mut partial, mut full, mut between, mut complete, mut sent) =
        (0u64, 0u64, 0u64, 0u64, 0u64);
    'all: loop {
        for (n, packet) in packets.iter().enumerate() {
            if stop.load(Ordering::SeqCst) {
                break 'all;
            }
            let epoch_before = epochs[1].load(Ordering::SeqCst);
            let (action, out) = h.run(Program::Access, TRUNK, packet).expect("it runs");
            let out = (action, out.to_vec());
            // No store was under way from before the packet until after it.
            let still = epochs[0].load(Ordering::SeqCst) == epoch_before;
            sent += 1;
            let mode = match &out {
                (Action::Redirect, out) if *out == wanted[n].0 => Mode::Partial,
                (Action::Tx, out) if *out == wanted[n].1 => Mode::Full,
                // From the one program to the next the mode changed: lost, and treated by neither.
                (Action::Drop, _) => {
                    between += 1;
                    continue;
                }
                _ => panic!("network {}: half by one mode: {out:?}", n + 1),
            };
            match mode {
                Mode::Partial => partial += 1,
                _ => full += 1,
            }
            if still {
                complete += 1;
                assert_eq!(
                    mode,
                    modes[(epoch_before as usize + 1) % 2],
                    "in epoch {epoch_before}"
                );
            }
        }
    }
    let store = switcher.join().expect("the switcher ends");
    println!(
        "{sent} packets of {NETWORKS} networks over {ROUNDS} switches: {partial} partial, {full} \
         full, {between} lost between, {complete} with no store under way; a switch is {store:?}"
    );
    assert!(
        partial > sent / 10 && full > sent / 10,
        "{partial} and {full} of {sent}"
    );
    assert!(complete > sent / 2);
    assert_eq!(between, 0, "lost in a switch");
}
