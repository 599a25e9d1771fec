//! A port accepts only source addresses of its own network.

use appliance_common::counters::Counter;
use causeway_tests::{
    harness::{Harness, Program},
    packet::*,
    table::{Case, run},
    world::*,
};

#[test]
fn a_replica_sends_from_its_own_address_only() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let case = |what: &str, src: &str, dst: &str| {
        Case::new(
            what,
            Program::Access,
            TRUNK,
            replica(&udp(ip(src), ip(dst), 1, 2, b"x")),
        )
        .dropped(Counter::DropSourceGuard)
    };
    let big = |what: &str, src: &str, dst: &str| {
        Case::new(
            what,
            Program::Access,
            TRUNK,
            replica(&udp(ip(src), ip(dst), 1, 2, &[0; 1460])),
        )
        .dropped(Counter::DropSourceGuard)
    };
    run(
        &mut h,
        vec![
            case("a production machine's", "10.1.0.11", "10.1.0.20"),
            case("the router's", "10.1.0.1", "10.1.0.11"),
            case("another network's replica's", "10.3.0.10", "10.1.0.11"),
            case("from outside", "192.0.2.1", "10.1.0.11"),
            case("the appliance's own", PROVIDER, "10.1.0.11"),
            case("loopback", "127.0.0.1", "10.1.0.11"),
            case("broadcast", "255.255.255.255", "10.1.0.11"),
            case("multicast", "224.0.0.5", "10.1.0.11"),
            case("unspecified", "0.0.0.0", "10.1.0.11"),
            case(
                "a production machine's, IPv6",
                "2001:db8:1::11",
                "2001:db8:1::20",
            ),
            case("from outside, IPv6", "2001:db8:77::1", "2001:db8:1::11"),
            case("unspecified, IPv6", "::", "2001:db8:1::11"),
            case("multicast, IPv6", "ff02::1", "2001:db8:1::11"),
            big(
                "too big: no ICMP to a forged source",
                "192.0.2.1",
                "10.1.0.11",
            ),
            big(
                "too big: no ICMPv6 to a forged source",
                "2001:db8:77::1",
                "2001:db8:1::11",
            ),
        ],
    );
}

#[test]
fn the_production_side_cannot_send_from_an_endpoint() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    let case = |what: &str, src: &str, dst: &str| {
        Case::new(
            what,
            Program::Combined,
            UPLINK,
            production(&udp(ip(src), ip(dst), 1, 2, b"x")),
        )
        .dropped(Counter::DropSourceGuard)
    };
    run(
        &mut h,
        vec![
            case("another endpoint's", "10.1.0.12", "10.1.0.10"),
            case("its own", "10.1.0.10", "10.1.0.10"),
            case("loopback", "127.0.0.1", "10.1.0.10"),
            case(
                "another endpoint's, IPv6",
                "2001:db8:1::12",
                "2001:db8:1::10",
            ),
        ],
    );
    let mut world = World::tenant();
    world.networks[0].gateway_v4 = [0; 16];
    h.fill(world).expect("filled");
    run(
        &mut h,
        vec![case(
            "beyond the prefixes, in a network without a router",
            "10.9.0.2",
            "10.1.0.10",
        )],
    );
}

#[test]
fn link_local_addresses_are_not_carried() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let case = |what: &str, src: &str, dst: &str| {
        Case::new(
            what,
            Program::Access,
            TRUNK,
            replica(&udp(ip(src), ip(dst), 1, 2, b"x")),
        )
        .dropped(Counter::DropLinkLocal)
    };
    run(
        &mut h,
        vec![
            case("source", "fe80::a", "2001:db8:1::11"),
            case("destination", "2001:db8:1::10", "fe80::1"),
            case("IPv4 source", "169.254.1.1", "10.1.0.11"),
            case("IPv4 destination", "10.1.0.10", "169.254.1.1"),
        ],
    );
}

#[test]
fn only_unicast_to_us_is_carried() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let ping = echo(ip("10.1.0.10"), ip("10.1.0.11"), 8);
    let ping6 = echo(ip("2001:db8:1::10"), ip("2001:db8:1::11"), 8);
    let to = |mac: Mac, l3: &[u8]| frame(mac, A_MAC, &[tag(101)], l3);
    let case = |what: &str, packet: Vec<u8>, reason: Counter| {
        Case::new(what, Program::Access, TRUNK, packet).dropped(reason)
    };
    run(
        &mut h,
        vec![
            case("another MAC", to(B_MAC, &ping), Counter::DropForeignMac),
            case(
                "another MAC, IPv6",
                to(B_MAC, &ping6),
                Counter::DropForeignMac,
            ),
            case(
                "broadcast MAC",
                to([0xff; 6], &ping),
                Counter::DropNotCarried,
            ),
            case(
                "multicast MAC",
                to([1, 0, 0x5e, 0, 0, 1], &ping),
                Counter::DropNotCarried,
            ),
            case(
                "multicast address",
                to(TRUNK_MAC, &echo(ip("10.1.0.10"), ip("224.0.0.251"), 8)),
                Counter::DropNotCarried,
            ),
            case(
                "limited broadcast",
                to(TRUNK_MAC, &echo(ip("10.1.0.10"), ip("255.255.255.255"), 8)),
                Counter::DropNotCarried,
            ),
            case(
                "loopback",
                to(TRUNK_MAC, &echo(ip("10.1.0.10"), ip("127.0.0.1"), 8)),
                Counter::DropNotCarried,
            ),
            case(
                "IPv6 multicast",
                to(TRUNK_MAC, &echo(ip("2001:db8:1::10"), ip("ff0e::1"), 8)),
                Counter::DropNotCarried,
            ),
            case(
                "directed broadcast",
                to(TRUNK_MAC, &echo(ip("10.1.0.10"), ip("10.1.0.255"), 8)),
                Counter::DropNotCarried,
            ),
        ],
    );
}
