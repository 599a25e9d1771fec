//! Map elements that are reused for another key while a program reads them: the packet is dropped
//! and counted, never sent to the other key's host, port or tunnel.
//!
//! The run under load is 400 000 packets; six million with `CAUSEWAY_LONG=1`; or
//! `CAUSEWAY_RECYCLED_PACKETS`.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use appliance_common::{
    counters::Counter,
    maps::{Attachment, AttachmentKey, HostKey, Neighbour, Tunnel, TunnelKey},
    nat::{MachineKey, RuleSlot},
};
use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use causeway_tests::{
    harness::{Harness, Program},
    packet::*,
    series,
    world::*,
};
use test_support::StopOnDrop;

/// The value of `key` in a list of entries.
fn value_of<K: PartialEq, V: Copy>(entries: &[(K, V)], key: &K) -> V {
    entries
        .iter()
        .find_map(|(k, v)| (k == key).then_some(*v))
        .expect("an entry of this world")
}

fn port(outer: u16) -> AttachmentKey {
    AttachmentKey {
        ifindex: TRUNK,
        outer,
        inner: 0,
    }
}

/// A packet of a production machine to the replica, out of the tunnel of one of the two tenants.
fn to_replica(tenant: usize) -> Vec<u8> {
    let (from, vni) = [(TENANT, NET1), (TENANT2, NET2)][tenant];
    let l3 = udp(ip("10.1.0.11"), ip("10.1.0.10"), 1, 2, b"to the replica");
    tunnelled(from, PROVIDER, vni, &l3)
}

/// A packet of the replica to the production machine, on the port of one of the two tenants.
fn from_replica(tenant: usize) -> Vec<u8> {
    let (mac, vlan) = [(A_MAC, 101), (G_MAC, 201)][tenant];
    let l3 = udp(ip("10.1.0.10"), ip("10.1.0.11"), 2, 1, b"from the replica");
    frame(TRUNK_MAC, mac, &[tag(vlan)], &l3)
}

/// Runs a packet that must be dropped as recycled.
fn recycled(h: &mut Harness, what: &str, program: Program, ifindex: u32, packet: &[u8]) {
    let count = |h: &Harness| h.counters().get(&(Counter::DropRecycled as u32)).copied();
    let before = count(h).unwrap_or(0);
    let (action, _) = h.run(program, ifindex, packet).expect("it runs");
    assert!(!action.sends(), "{what}: {action:?}");
    assert_eq!(
        count(h),
        Some(before + 1),
        "{what}: not counted as recycled"
    );
}

#[test]
fn a_value_of_another_key_is_refused() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let world = h.world.clone();
    let (acme, globex) = (host(NET1, "10.1.0.10"), host(NET2, "10.1.0.10"));
    let (ours, theirs) = (
        value_of(&world.neighbours, &acme),
        value_of(&world.neighbours, &globex),
    );
    // As the map has it once the element is another host's: whole, and partly written.
    let whole = theirs.hashed(&globex);
    let mut torn = ours.hashed(&acme);
    torn.l2[..6].copy_from_slice(&theirs.l2[..6]);
    let mut elsewhere = ours.hashed(&acme);
    elsewhere.ifindex = theirs.ifindex + 1;
    let values = [
        ("another host", whole),
        ("header", torn),
        ("interface", elsewhere),
    ];
    for (what, value) in values {
        h.put("NEIGHBOURS", acme, value).expect("NEIGHBOURS");
        recycled(&mut h, what, Program::Uplink, UPLINK, &to_replica(0));
    }
    h.put("NEIGHBOURS", acme, ours.hashed(&acme))
        .expect("NEIGHBOURS");
    let (action, _) = h
        .run(Program::Uplink, UPLINK, &to_replica(0))
        .expect("it runs");
    assert!(action.sends(), "the right value: {action:?}");

    let other = value_of(&world.attachments, &port(201)).hashed(&port(201));
    h.put("ATTACHMENTS", port(101), other).expect("ATTACHMENTS");
    recycled(&mut h, "a port", Program::Access, TRUNK, &from_replica(0));

    let tunnel = |vni, peer| TunnelKey {
        vni,
        peer: address(peer),
    };
    let other = value_of(&world.tunnels, &tunnel(NET2, TENANT2));
    h.put("TUNNELS", tunnel(NET1, TENANT), other)
        .expect("TUNNELS");
    recycled(&mut h, "a tunnel", Program::Uplink, UPLINK, &to_replica(0));
}

#[test]
fn the_public_address_of_another_machine_is_not_taken() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    // Globex's replica, with the rule of acme's machine that has an address of its own.
    let rule = h.world.one_to_one[0].1;
    let machine = MachineKey {
        zone: 2,
        address: words("10.1.0.10"),
    };
    h.put("ONE_TO_ONE", machine, RuleSlot { slot: rule })
        .expect("ONE_TO_ONE");
    let l3 = udp(ip("10.1.0.10"), ip(REMOTE), 5000, 53, b"?");
    let packet = frame(TRUNK_MAC, G_MAC, &[tag(201)], &l3);
    recycled(&mut h, "a 1:1 rule", Program::Access, TRUNK, &packet);
}

#[test]
fn a_report_about_a_reused_element_does_not_confirm_the_other_host() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let (acme, globex) = (host(NET1, "10.1.0.10"), host(NET2, "10.1.0.10"));
    let theirs = value_of(&h.world.neighbours, &globex).hashed(&globex);
    h.put("NEIGHBOURS", acme, theirs).expect("NEIGHBOURS");
    let request = arp(
        1,
        G_MAC,
        [10, 1, 0, 10].into(),
        [0; 6],
        [10, 1, 0, 11].into(),
    );
    let frame = eth([0xff; 6], G_MAC, &[tag(101)], 0x0806, &request);
    h.run(Program::Access, TRUNK, &frame).expect("it runs");
    let entries = h
        .entries::<HostKey, Neighbour>("NEIGHBOURS")
        .expect("NEIGHBOURS");
    assert_eq!(value_of(&entries, &acme), theirs, "marked as confirmed");
}

/// Writes and deletes entries of two tenants in turn, so that the kernel reuses the element of one
/// for the other.
struct Recycler {
    neighbours: HashMap<MapData, HostKey, Neighbour>,
    attachments: HashMap<MapData, AttachmentKey, Attachment>,
    tunnels: HashMap<MapData, TunnelKey, Tunnel>,
}

/// Replaces both entries in turn, which swaps their elements; each eighth time, deletes one and
/// inserts the other anew.
fn exchange<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, pair: &[(K, V); 2], turn: u64) {
    let [(a, x), (b, y)] = pair;
    if turn % 8 == 7 {
        map.remove(a).expect("deleted");
        map.insert(b, y, 0).expect("written");
        map.insert(a, x, 0).expect("written");
    } else {
        map.insert(a, x, 0).expect("written");
        map.insert(b, y, 0).expect("written");
    }
}

impl Recycler {
    fn new(h: &Harness) -> Self {
        Self {
            neighbours: h.open_map("NEIGHBOURS").expect("NEIGHBOURS"),
            attachments: h.open_map("ATTACHMENTS").expect("ATTACHMENTS"),
            tunnels: h.open_map("TUNNELS").expect("TUNNELS"),
        }
    }

    fn run(mut self, world: &World, stop: &AtomicBool, changes: &AtomicU64) {
        let hosts = [NET1, NET2].map(|vni| {
            let key = host(vni, "10.1.0.10");
            (key, value_of(&world.neighbours, &key).hashed(&key))
        });
        let ports = [101, 201].map(|vlan| {
            let key = port(vlan);
            (key, value_of(&world.attachments, &key).hashed(&key))
        });
        let tunnels = [(NET1, TENANT), (NET2, TENANT2)].map(|(vni, peer)| {
            let key = TunnelKey {
                vni,
                peer: address(peer),
            };
            (key, value_of(&world.tunnels, &key))
        });
        let mut turn = 0;
        while !stop.load(Ordering::Relaxed) {
            // Mostly hosts: they are read last, at the longest time after the lookup.
            exchange(&mut self.neighbours, &hosts, turn);
            match turn % 4 {
                0 => exchange(&mut self.attachments, &ports, turn / 4),
                1 => exchange(&mut self.tunnels, &tunnels, turn / 4),
                _ => {}
            }
            turn += 1;
            changes.fetch_add(2, Ordering::Relaxed);
        }
    }
}

#[test]
fn no_packet_crosses_tenants_while_elements_are_reused() {
    let packets = series::length("CAUSEWAY_RECYCLED_PACKETS", 400_000, 6_000_000);
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let recycler = Recycler::new(&h);
    let world = h.world.clone();
    let (stop, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let inputs = [0, 1].map(|tenant| (to_replica(tenant), from_replica(tenant)));
    let mut sent = [0u64; 2];
    let began = Instant::now();
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| recycler.run(&world, &stop, &changes));
        for n in 0..packets {
            let tenant = (n / 2 % 2) as usize;
            let (vlan, mac, peer, vni) =
                [(101, A_MAC, TENANT, NET1), (201, G_MAC, TENANT2, NET2)][tenant];
            if n % 2 == 0 {
                let (action, out) = h
                    .run(Program::Uplink, UPLINK, &inputs[tenant].0)
                    .expect("it runs");
                if action.sends() {
                    let head = l2(out).expect("an Ethernet header");
                    assert_eq!(
                        (head.tags, head.vids[0], mac_at(out, 0)),
                        (1, vlan, mac),
                        "packet {n} out of the tunnel of {peer}"
                    );
                    sent[0] += 1;
                }
            } else {
                let (action, out) = h
                    .run(Program::Access, TRUNK, &inputs[tenant].1)
                    .expect("it runs");
                if action.sends() {
                    let to = IPV4_DESTINATION..IPV4_DESTINATION + 4;
                    let peer: std::net::Ipv4Addr = peer.parse().expect("IPv4");
                    assert_eq!(out[to], peer.octets(), "packet {n} of VLAN {vlan}");
                    assert_eq!(be32(out, VNI), Some(vni << 8), "packet {n} of VLAN {vlan}");
                    sent[1] += 1;
                }
            }
            if n % 64 == 0 {
                h.each_record(|_| {});
            }
        }
    });
    let counters = h.counters();
    let count = |counter: Counter| counters.get(&(counter as u32)).copied().unwrap_or(0);
    println!(
        "{packets} packets in {:.1} s, {sent:?} sent, {} changes, {} dropped as recycled",
        began.elapsed().as_secs_f64(),
        changes.load(Ordering::Relaxed),
        count(Counter::DropRecycled),
    );
    assert!(changes.load(Ordering::Relaxed) > packets / 20, "no load");
    let total: u64 = sent.iter().sum();
    assert!(total > packets / 2, "only {total} of {packets} were sent");
    assert!(sent.iter().all(|n| *n > packets / 8), "{sent:?}");
}

/// Offset of the outer destination in an encapsulated packet over IPv4.
const IPV4_DESTINATION: usize = 14 + 16;
/// Offset of the VNI and the byte behind it.
const VNI: usize = 14 + 20 + 8 + 4;
