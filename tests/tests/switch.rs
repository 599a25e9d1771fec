//! The switch of modes is one store, whatever the number of networks: while it happens, over and over, each packet
//! is treated by the one mode or by the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use appliance_common::{
    addr::{Prefix, from_ip},
    maps::{
        Attachment, AttachmentKey, HostKey, Mode, Neighbour, Network, PolicyKey, RouteKey, Tenant,
        attachment_flags, network_flags,
    },
};
use aya::maps::Array;
use causeway_tests::{
    harness::{Action, Harness, Program},
    nat::hop,
    packet::{frame, udp},
    world::*,
};

/// Every VLAN of a trunk.
const NETWORKS: u32 = 4094;
const FIRST_VNI: u32 = 10_000;
const ROUNDS: u32 = 400;

/// The replica of network `n`, 1 to 4094: each has a /24 of its own.
fn replica_of(n: u32) -> std::net::IpAddr {
    std::net::Ipv4Addr::from(0x0b00_000a + (n << 8)).into()
}

/// All VLANs of the trunk, of one tenant; in partial failover what is to the next network's replica goes into
/// the tunnel, in full failover it is routed there.
fn world() -> World {
    let mut w = World::provider();
    let peer = 0;
    w.networks.clear();
    w.attachments.clear();
    w.tunnels.clear();
    w.endpoints.clear();
    w.neighbours.clear();
    for n in 1..=NETWORKS {
        let (slot, vni) = (n - 1, FIRST_VNI + n);
        let address = from_ip(replica_of(n));
        let prefix = Prefix::new(&address, 96 + 24).expect("a length");
        let mut network = Network {
            vni,
            tenant: 0,
            peer,
            flags: network_flags::ACTIVE | network_flags::PROVIDER,
            mtu: MTU,
            lan_mtu: 1500,
            prefix_count: 1,
            ..Network::default()
        };
        network.prefixes[0] = prefix;
        w.networks.push(network);
        w.attachments.push((
            AttachmentKey {
                ifindex: TRUNK,
                outer: n as u16,
                inner: 0,
            },
            Attachment {
                network: slot,
                flags: attachment_flags::ACTIVE,
                mac: TRUNK_MAC,
                xsk: 0,
            },
        ));
        let key = HostKey { vni, address };
        w.endpoints.push(key);
        w.neighbours.push((
            key,
            Neighbour::new(TRUNK, A_MAC, TRUNK_MAC, n as u16, 0, 0x8100),
        ));
        let route = RouteKey {
            tenant: 0,
            address: prefix.address(),
        };
        w.routes.push((prefix.length(), route, slot));
        w.policies.push(PolicyKey {
            from: vni,
            to: FIRST_VNI + next(n),
        });
    }
    w
}

const fn next(n: u32) -> u32 {
    n % NETWORKS + 1
}

#[test]
fn a_packet_is_treated_by_one_mode_or_by_the_other() {
    let Some(mut h) = Harness::new(world()) else {
        return;
    };
    let map = h.ebpf().take_map("TENANTS").expect("TENANTS");
    let mut tenants: Array<_, Tenant> = map.try_into().expect("an array");
    let modes = [Mode::Partial, Mode::Full];
    let set = |tenants: &mut Array<_, Tenant>, mode: Mode, epoch| {
        let tenant = Tenant {
            mode: mode as u32,
            epoch,
        };
        tenants.set(0, tenant, 0).expect("one store");
    };
    set(&mut tenants, Mode::Partial, 1);
    // What each mode makes of a packet of each network, byte for byte.
    let packets: Vec<Vec<u8>> = (1..=NETWORKS)
        .map(|n| {
            let l3 = udp(replica_of(n), replica_of(next(n)), 1, 2, b"which way?");
            frame(TRUNK_MAC, A_MAC, &[tag(n as u16)], &l3)
        })
        .collect();
    let mut wanted = Vec::new();
    for (n, packet) in (1..=NETWORKS).zip(&packets) {
        let (action, out) = h.run(Program::Access, TRUNK, packet).expect("it runs");
        assert_eq!(action, Action::Redirect, "network {n} in partial failover");
        let l3 = udp(replica_of(n), replica_of(next(n)), 1, 2, b"which way?");
        assert_eq!(out[64..], l3, "as it was, in the tunnel");
        let routed = frame(A_MAC, TRUNK_MAC, &[tag(next(n) as u16)], &hop(&l3));
        wanted.push((out.to_vec(), routed));
    }

    let stop = Arc::new(AtomicBool::new(false));
    // The epoch that is being stored, and the one that is.
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
    let (mut partial, mut full, mut between, mut settled, mut sent) =
        (0u64, 0u64, 0u64, 0u64, 0u64);
    'all: loop {
        for (n, packet) in packets.iter().enumerate() {
            if stop.load(Ordering::SeqCst) {
                break 'all;
            }
            let told = epochs[1].load(Ordering::SeqCst);
            let (action, out) = h.run(Program::Access, TRUNK, packet).expect("it runs");
            let out = (action, out.to_vec());
            // No store was under way from before the packet until after it.
            let still = epochs[0].load(Ordering::SeqCst) == told;
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
                settled += 1;
                assert_eq!(mode, modes[(told as usize + 1) % 2], "in epoch {told}");
            }
        }
    }
    let store = switcher.join().expect("the switcher ends");
    println!(
        "{sent} packets of {NETWORKS} networks over {ROUNDS} switches: {partial} partial, {full} full, {between} lost between, {settled} with no store under way; a \
         switch is {store:?}"
    );
    assert!(
        partial > sent / 10 && full > sent / 10,
        "{partial} and {full} of {sent}"
    );
    assert!(settled > sent / 2);
    assert_eq!(between, 0, "lost in a switch");
}
