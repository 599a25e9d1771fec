//! A reset leaves nothing: the shared programs have the maps of a fresh load.

use appliance_common::{counters::Counter, maps::Mode};
use causeway_tests::{
    harness::{Action, Harness, Program},
    packet::{arp, echo, eth, ip},
    table::{Case, run},
    world::*,
};

/// An ARP request of a host that the appliance does not know yet.
fn request() -> Vec<u8> {
    let mac = [2, 8, 8, 8, 8, 8];
    let l3 = arp(1, mac, [10, 1, 0, 12].into(), [0; 6], [10, 1, 0, 11].into());
    eth([0xff; 6], mac, &[tag(101)], 0x0806, &l3)
}

/// A packet for a host whose MAC address is unknown.
fn unresolved() -> Vec<u8> {
    let l3 = echo(ip("10.1.0.11"), ip("10.1.0.12"), 56);
    tunnelled(TENANT2, PROVIDER, NET2, &l3)
}

#[test]
fn a_reset_leaves_the_state_of_a_fresh_load() {
    let world = || {
        let mut world = World::nat().encrypted();
        for tenant in &mut world.tenants {
            tenant.mode = Mode::Partial as u32;
        }
        world
    };
    let Some(mut used) = Harness::new(world()) else {
        return;
    };
    // Everything that a test may leave behind: entries in every map, records in the rings, sockets.
    used.bind_sockets().expect("sockets");
    for (program, ifindex, packet) in [
        (Program::Access, TRUNK, request()),
        (Program::Uplink, UPLINK, unresolved()),
    ] {
        used.run(program, ifindex, &packet).expect("it runs");
    }
    for counter in [Counter::NeighbourSeen, Counter::SlowUnresolved] {
        let count = used.counters().get(&(counter as u32)).copied();
        assert_eq!(count, Some(1), "{} leaves a record", counter.name());
    }
    let clean = used.contents().expect("readable maps");
    let mut scribbled = Vec::new();
    for map in used.raw_maps() {
        if map.scribble().expect("a writable map") {
            scribbled.push(map.name().to_owned());
        }
    }
    let dirty = used.contents().expect("readable maps");
    // Left out: rings and socket maps, which user space cannot look up (tested below by what the
    // programs do), and maps that a test cannot write.
    assert!(scribbled.len() >= 30, "only {scribbled:?} can be written");
    for (name, entries) in &dirty {
        let is_changed = *entries != clean[name];
        assert_eq!(is_changed, scribbled.contains(name), "{name}");
    }
    drop(used);

    let fresh = Harness::load(world()).expect("loaded");
    let expected = fresh.contents().expect("readable maps");
    drop(fresh);
    let mut reset = Harness::new(world()).expect("it was there before");
    let got = reset.contents().expect("readable maps");
    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (name, entries) in &expected {
        assert!(
            got[name] == *entries,
            "{name}: {} entries after a load, {} after a reset",
            entries.len(),
            got[name].len()
        );
    }
    assert_eq!(reset.records(), []);
    assert_eq!(reset.counters().len(), 0);
    // No socket is left.
    let l3 = echo(ip("10.1.0.10"), ip("10.1.0.11"), 56);
    reset.fill(World::provider().encrypted()).expect("filled");
    run(
        &mut reset,
        vec![
            Case::new("to seal", Program::Access, TRUNK, replica(&l3))
                .dropped(Counter::DropNoWorker),
        ],
    );
    let (action, _) = reset
        .run(Program::Access, TRUNK, &request())
        .expect("it runs");
    assert_eq!(action, Action::Tx, "the reset programs answer ARP");
}

#[test]
fn the_tests_of_a_process_take_turns_after_a_panic_too() {
    let Some(first) = Harness::new(World::provider()) else {
        return;
    };
    let failing = std::thread::spawn(move || {
        // Fails with the programs in hand, as a failed assertion does.
        let _held = Harness::new(World::tenant()).expect("it was there before");
        std::panic::resume_unwind(Box::new("a failed test"));
    });
    drop(first);
    failing.join().expect_err("the thread panics");
    let mut next = Harness::new(World::provider()).expect("it was there before");
    let l3 = echo(ip("10.1.0.10"), ip("10.1.0.11"), 56);
    let (action, _) = next
        .run(Program::Access, TRUNK, &replica(&l3))
        .expect("it runs");
    assert_eq!(action, Action::Redirect);
}
