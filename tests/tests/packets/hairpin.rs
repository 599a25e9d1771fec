//! Packets to our MAC for a host of the same side, sent by stale neighbour caches.

use appliance_common::{counters::Counter, events::SlowReason};
use causeway_tests::{
    harness::{Action, Harness, Program},
    packet::*,
    table::{Case, Out, run, slow},
    world::*,
};

#[test]
fn after_a_failback_stale_arp_caches_lose_no_packet() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    // From the router to prod-b by us: both are here.
    let v4 = udp(ip("10.9.0.2"), ip("10.1.0.11"), 1, 2, b"stale");
    let v6 = udp(ip("2001:db8:9::2"), ip("2001:db8:1::11"), 1, 2, b"stale");
    let large = udp(ip("10.9.0.2"), ip("10.1.0.11"), 1, 2, &[1; 1472]);
    let syn = tcp(
        ip("10.9.0.2"),
        ip("10.1.0.11"),
        1,
        2,
        tcp_flags::SYN,
        &syn_options(1460),
        &[],
    );
    let to_us = |l3: &[u8]| frame(UPLINK_MAC, ROUTER_MAC, &[], l3);
    let case = |what: &str, l3: &[u8]| {
        Case::new(what, Program::Combined, UPLINK, to_us(l3))
            .gives(Action::Tx, Out::Is(frame(B_MAC, UPLINK_MAC, &[], l3)))
            .counts(Counter::Hairpinned)
    };
    run(
        &mut h,
        vec![
            case("IPv4", &v4),
            case("IPv6", &v6),
            case("a full frame: the tunnel's MTU does not apply", &large),
            case("a SYN keeps its MSS", &syn),
            Case::new(
                "from a failed-over address",
                Program::Combined,
                UPLINK,
                to_us(&udp(ip("10.1.0.10"), ip("10.1.0.11"), 1, 2, b"x")),
            )
            .dropped(Counter::DropSourceGuard),
            Case::new(
                "a host without an entry, on the shared port",
                Program::Combined,
                UPLINK,
                to_us(&udp(ip("10.9.0.2"), ip("10.1.0.77"), 1, 2, b"x")),
            )
            .passed(),
        ],
    );
}

#[test]
fn replicas_of_one_network_reach_each_other_by_a_stale_arp_cache() {
    let mut world = World::provider();
    world.neighbour(
        NET1,
        "10.1.0.12",
        TRUNK,
        [2, 0, 0, 0xaa, 0, 12],
        TRUNK_MAC,
        101,
        0,
    );
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let l3 = udp(ip("10.1.0.10"), ip("10.1.0.12"), 1, 2, b"x");
    let l6 = udp(ip("2001:db8:1::10"), ip("2001:db8:1::12"), 1, 2, b"x");
    run(
        &mut h,
        vec![
            Case::new("resolved", Program::Access, TRUNK, replica(&l3))
                .gives(
                    Action::Tx,
                    Out::Is(frame([2, 0, 0, 0xaa, 0, 12], TRUNK_MAC, &[tag(101)], &l3)),
                )
                .counts(Counter::Hairpinned),
            Case::new("not resolved", Program::Access, TRUNK, replica(&l6))
                .dropped(Counter::SlowUnresolved)
                .records(slow(
                    SlowReason::Unresolved,
                    NET1,
                    "2001:db8:1::12",
                    l6.clone(),
                )),
        ],
    );
}
