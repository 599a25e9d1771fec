//! Which network a frame belongs to: interface and VLAN tags.

use std::net::IpAddr;

use appliance_common::counters::Counter;
use causeway_tests::{
    harness::{Action, Harness, Program, SharedHarness},
    nat::{Message, end, packet},
    packet::{
        Mac, arp, echo, eth, frame, ip, multicast_mac, na, ns, solicited_node, tcp_flags::SYN,
    },
    table::{Case, Out, run, tunnelled},
    world::*,
};

/// Priority tags: priority 5, and of a provider's bridge.
const PRIORITY: [&[(u16, u16)]; 3] = [
    &[(0x8100, 0xa000)],
    &[(0x88a8, 0x2000)],
    &[(0x8100, 0xe000), (0x8100, 0)],
];

/// The frame with `tags` behind its addresses.
fn with_tags(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut tagged = frame.to_vec();
    let bytes = tags
        .iter()
        .flat_map(|(kind, tci)| [kind.to_be_bytes(), tci.to_be_bytes()].concat());
    tagged.splice(12..12, bytes);
    tagged
}

/// Runs frames without a tag, and with each kind of priority tag: verdict and output must be the
/// same.
fn same_with_priority_tags(
    h: &mut SharedHarness,
    program: Program,
    frames: &[(&str, Vec<u8>, Action)],
) {
    for (what, plain, action) in frames {
        let (seen, out) = h.run(program, UPLINK, plain).expect("it runs");
        let out = out.to_vec();
        assert_eq!(seen, *action, "{what}, untagged");
        for tags in PRIORITY {
            let tagged = with_tags(plain, tags);
            let (seen, got) = h.run(program, UPLINK, &tagged).expect("it runs");
            assert_eq!((seen, got), (*action, &out[..]), "{what}, behind {tags:x?}");
        }
    }
}

fn v4(text: &str) -> std::net::Ipv4Addr {
    match ip(text) {
        IpAddr::V4(a) => a,
        IpAddr::V6(_) => panic!("{text} is not IPv4"),
    }
}

fn v6(text: &str) -> std::net::Ipv6Addr {
    match ip(text) {
        IpAddr::V6(a) => a,
        IpAddr::V4(_) => panic!("{text} is not IPv6"),
    }
}

/// A broadcast request for `target`, and a multicast solicitation.
fn questions(asker: Mac, [from, target]: [&str; 2], [from6, target6]: [&str; 2]) -> [Vec<u8>; 2] {
    let group = solicited_node(v6(target6));
    let question = ns(v6(from6), group, v6(target6), Some(asker));
    let request = arp(1, asker, v4(from), [0; 6], v4(target));
    [
        eth([0xff; 6], asker, &[], 0x0806, &request),
        frame(multicast_mac(group), asker, &[], &question),
    ]
}

#[test]
fn a_priority_tag_on_the_tunnels_port_counts_as_untagged() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let inner = |net| {
        echo(
            ip(&format!("10.{net}.0.11")),
            ip(&format!("10.{net}.0.10")),
            56,
        )
    };
    let to_appliance = echo(ip(TENANT), ip(PROVIDER), 56);
    same_with_priority_tags(
        &mut h,
        Program::Uplink,
        &[
            (
                "a tunnel datagram",
                causeway_tests::world::tunnelled(TENANT, PROVIDER, NET1, &inner(1)),
                Action::Redirect,
            ),
            (
                "a tunnel datagram over IPv6",
                causeway_tests::world::tunnelled(TENANT6, PROVIDER6, NET3, &inner(3)),
                Action::Redirect,
            ),
            (
                "a ping of the appliance",
                frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &to_appliance),
                Action::Pass,
            ),
        ],
    );
    h.fill(World::provider().encrypted()).expect("filled");
    h.bind_sockets().expect("sockets");
    same_with_priority_tags(
        &mut h,
        Program::Uplink,
        &[
            (
                "an encrypted datagram",
                datagram(TENANT, PROVIDER, &message(4)),
                Action::Redirect,
            ),
            (
                "a handshake",
                datagram(TENANT6, PROVIDER6, &message(1)),
                Action::Pass,
            ),
        ],
    );
    h.fill(World::tenant()).expect("filled");
    let [request, solicitation] = questions(
        B_MAC,
        ["10.1.0.11", "10.1.0.10"],
        ["2001:db8:1::11", "2001:db8:1::10"],
    );
    same_with_priority_tags(
        &mut h,
        Program::Combined,
        &[
            (
                "a tunnel datagram at a port that is both",
                causeway_tests::world::tunnelled(
                    PROVIDER,
                    TENANT,
                    NET1,
                    &echo(ip("10.1.0.10"), ip("10.1.0.11"), 56),
                ),
                Action::Tx,
            ),
            ("an ARP request at a port that is both", request, Action::Tx),
            (
                "a solicitation at a port that is both",
                solicitation,
                Action::Tx,
            ),
        ],
    );
    let ping = echo(ip("10.1.0.11"), ip("10.1.0.10"), 56);
    let sent = Case::new(
        "a packet for an endpoint at a port that is both",
        Program::Combined,
        UPLINK,
        with_tags(&production(&ping), PRIORITY[0]),
    )
    .gives(Action::Tx, tunnelled(TENANT, PROVIDER, NET1, ping))
    .counts(Counter::Encapsulated);
    run(&mut h, vec![sent]);
}

#[test]
fn a_priority_tag_on_the_uplink_hides_no_public_address() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    let asker = [2, 0, 0, 0, 0x99, 9];
    let [request, solicitation] =
        questions(asker, ["203.0.113.1", PUBLIC4], ["2001:db8:f::1", PUBLIC6]);
    same_with_priority_tags(
        &mut h,
        Program::Uplink,
        &[
            ("an ARP request for a public address", request, Action::Tx),
            (
                "a solicitation for a public address",
                solicitation,
                Action::Tx,
            ),
        ],
    );
    for (public, remote) in [(PUBLIC4, REMOTE), (PUBLIC6, REMOTE6)] {
        let syn = packet(Message::Tcp(SYN), end(remote, 50_000), end(public, 443));
        same_with_priority_tags(
            &mut h,
            Program::Uplink,
            &[(
                "a SYN to a rule",
                frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &syn),
                Action::Redirect,
            )],
        );
    }
}

#[test]
fn a_priority_tag_on_an_untagged_port_counts_as_untagged() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let [request, solicitation] = questions(
        A_MAC,
        ["10.4.0.10", "10.4.0.1"],
        ["2001:db8:4::10", "2001:db8:4::1"],
    );
    let tags = PRIORITY[0];
    let answer = arp(2, ACCESS_MAC, v4("10.4.0.1"), A_MAC, v4("10.4.0.10"));
    let (host, router) = (v6("2001:db8:4::10"), v6("2001:db8:4::1"));
    let advertisement = na(router, host, router, 0xe0, Some(ACCESS_MAC));
    let cases = vec![
        Case::new(
            "an ARP request",
            Program::Access,
            ACCESS,
            with_tags(&request, tags),
        )
        .gives(
            Action::Tx,
            Out::Is(eth(A_MAC, ACCESS_MAC, tags, 0x0806, &answer)),
        )
        .counts(Counter::ArpAnswered),
        Case::new(
            "a solicitation",
            Program::Access,
            ACCESS,
            with_tags(&solicitation, tags),
        )
        .gives(
            Action::Tx,
            Out::Is(frame(A_MAC, ACCESS_MAC, tags, &advertisement)),
        )
        .counts(Counter::NdAnswered),
    ];
    run(&mut h, cases);
}

#[test]
fn tags_and_interface_select_the_network() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let ping = |net: u8| {
        echo(
            ip(&format!("10.{net}.0.10")),
            ip(&format!("10.{net}.0.11")),
            56,
        )
    };
    let on = |tags: &[(u16, u16)], net: u8| frame(TRUNK_MAC, A_MAC, tags, &ping(net));
    let access = Program::Access;
    run(
        &mut h,
        vec![
            Case::new("802.1Q", access, TRUNK, on(&[tag(101)], 1))
                .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET1, ping(1)))
                .counts(Counter::Encapsulated),
            Case::new(
                "802.1Q with priority and DEI bits",
                access,
                TRUNK,
                on(&[(0x8100, 0xf000 | 101)], 1),
            )
            .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET1, ping(1)))
            .counts(Counter::Encapsulated),
            Case::new("the other tenant's VLAN", access, TRUNK, on(&[tag(201)], 1))
                .gives(
                    Action::Redirect,
                    tunnelled(PROVIDER, TENANT2, NET2, ping(1)),
                )
                .counts(Counter::Encapsulated),
            Case::new(
                "QinQ, 802.1ad outside",
                access,
                TRUNK,
                on(&[service_tag(200), tag(102)], 3),
            )
            .gives(
                Action::Redirect,
                tunnelled(PROVIDER6, TENANT6, NET3, ping(3)),
            )
            .counts(Counter::Encapsulated),
            Case::new(
                "QinQ, 802.1Q outside",
                access,
                TRUNK,
                on(&[tag(200), tag(102)], 3),
            )
            .gives(
                Action::Redirect,
                tunnelled(PROVIDER6, TENANT6, NET3, ping(3)),
            )
            .counts(Counter::Encapsulated),
            Case::new(
                "untagged on an access port",
                access,
                ACCESS,
                frame(ACCESS_MAC, A_MAC, &[], &ping(4)),
            )
            .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET4, ping(4)))
            .counts(Counter::Encapsulated),
            Case::new(
                "a priority tag counts as untagged",
                access,
                ACCESS,
                frame(ACCESS_MAC, A_MAC, &[(0x8100, 0xa000)], &ping(4)),
            )
            .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET4, ping(4)))
            .counts(Counter::Encapsulated),
            Case::new(
                "a priority tag before a VLAN tag is not accepted",
                access,
                TRUNK,
                on(&[tag(0), tag(101)], 1),
            )
            .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET1, ping(1)))
            .counts(Counter::Encapsulated),
            Case::new("untagged on the trunk", access, TRUNK, on(&[], 1))
                .dropped(Counter::DropUnknownVlan),
            Case::new(
                "a VLAN without a network",
                access,
                TRUNK,
                on(&[tag(103)], 1),
            )
            .dropped(Counter::DropUnknownVlan),
            Case::new("the inner VLAN alone", access, TRUNK, on(&[tag(102)], 3))
                .dropped(Counter::DropUnknownVlan),
            Case::new(
                "the outer VLAN alone",
                access,
                TRUNK,
                on(&[service_tag(200)], 3),
            )
            .dropped(Counter::DropUnknownVlan),
            Case::new(
                "inner and outer exchanged",
                access,
                TRUNK,
                on(&[service_tag(102), tag(200)], 3),
            )
            .dropped(Counter::DropUnknownVlan),
            Case::new(
                "a known VLAN on another interface",
                access,
                ACCESS,
                frame(ACCESS_MAC, A_MAC, &[tag(101)], &ping(1)),
            )
            .dropped(Counter::DropUnknownVlan),
            Case::new(
                "an interface that is not attached",
                access,
                STRAY,
                frame(TRUNK_MAC, A_MAC, &[tag(101)], &ping(1)),
            )
            .dropped(Counter::DropUnknownVlan),
            Case::new(
                "three tags",
                access,
                TRUNK,
                on(&[service_tag(200), tag(102), tag(101)], 3),
            )
            .dropped(Counter::DropTooManyTags),
            Case::new(
                "another Ethernet type",
                access,
                TRUNK,
                eth(TRUNK_MAC, A_MAC, &[tag(101)], 0x88cc, &[0; 46]),
            )
            .dropped(Counter::DropNotCarried),
            Case::new(
                "an 802.3 length",
                access,
                TRUNK,
                eth(TRUNK_MAC, A_MAC, &[tag(101)], 46, &[0; 46]),
            )
            .dropped(Counter::DropNotCarried),
        ],
    );
}

#[test]
fn a_shared_port_passes_unknown_frames_to_the_kernel() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    let ping = echo(ip("10.1.0.11"), ip("10.1.0.10"), 56);
    let combined = Program::Combined;
    run(
        &mut h,
        vec![
            Case::new(
                "a VLAN without a network",
                combined,
                UPLINK,
                frame(UPLINK_MAC, B_MAC, &[tag(7)], &ping),
            )
            .passed(),
            Case::new(
                "three tags",
                combined,
                UPLINK,
                frame(UPLINK_MAC, B_MAC, &[tag(7), tag(7), tag(7)], &ping),
            )
            .passed(),
            Case::new(
                "another Ethernet type",
                combined,
                UPLINK,
                eth(UPLINK_MAC, B_MAC, &[], 0x88cc, &[0; 46]),
            )
            .passed(),
            Case::new(
                "a packet for the appliance itself",
                combined,
                UPLINK,
                production(&echo(ip("10.1.0.11"), ip("10.1.0.5"), 56)),
            )
            .passed(),
            Case::new(
                "a packet for an endpoint",
                combined,
                UPLINK,
                production(&ping),
            )
            .gives(Action::Tx, tunnelled(TENANT, PROVIDER, NET1, ping.clone()))
            .counts(Counter::Encapsulated),
        ],
    );
}
