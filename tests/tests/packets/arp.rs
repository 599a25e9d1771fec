//! ARP requests are answered for exactly the addresses of the mode, and the asking host is
//! reported.

use std::net::{IpAddr, Ipv4Addr};

use appliance_common::{counters::Counter, events::NeighbourEventKind};
use causeway_tests::{
    harness::{Action, Harness, Program, Record},
    packet::{Mac, arp, eth, ip},
    table::{Case, Out, run},
    world::*,
};

const ANY: Mac = [0xff; 6];
const NONE: Mac = [0; 6];
/// As of a cluster that balances load by multicast.
const GROUP: Mac = [0x03, 0xbf, 10, 1, 0, 97];

fn v4(text: &str) -> Ipv4Addr {
    match ip(text) {
        IpAddr::V4(a) => a,
        IpAddr::V6(_) => panic!("{text} is not IPv4"),
    }
}

fn request(tags: &[(u16, u16)], sha: Mac, spa: &str, tpa: &str) -> Vec<u8> {
    eth(ANY, sha, tags, 0x0806, &arp(1, sha, v4(spa), NONE, v4(tpa)))
}

fn reply(tags: &[(u16, u16)], ours: Mac, asker: Mac, tpa: &str, spa: &str) -> Out<'static> {
    Out::Is(eth(
        asker,
        ours,
        tags,
        0x0806,
        &arp(2, ours, v4(tpa), asker, v4(spa)),
    ))
}

/// Expects exactly one neighbour event of this kind, or none.
fn neighbour_event(
    kind: Option<NeighbourEventKind>,
    address: &'static str,
    mac: Mac,
) -> impl Fn(&[Record]) -> Result<(), String> {
    move |records| match (kind, records) {
        (None, []) => Ok(()),
        (Some(kind), [Record::Neighbour(e)])
            if e.kind == kind as u16 && e.mac == mac && e.address == address_of(address) =>
        {
            Ok(())
        }
        _ => Err(format!("expected {kind:?} of {address}")),
    }
}

fn address_of(text: &str) -> [u8; 16] {
    causeway_tests::world::address(text)
}

#[test]
fn the_tenant_side_answers_for_endpoints_only() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    let c = Program::Combined;
    let a = Program::Access;
    run(
        &mut h,
        vec![
            Case::new(
                "an endpoint on the shared port",
                c,
                UPLINK,
                request(&[], B_MAC, "10.1.0.11", "10.1.0.10"),
            )
            .gives(
                Action::Tx,
                reply(&[], UPLINK_MAC, B_MAC, "10.1.0.10", "10.1.0.11"),
            )
            .counts(Counter::ArpAnswered)
            .records(neighbour_event(None, "10.1.0.11", B_MAC)),
            Case::new(
                "an endpoint on a tenant-only port",
                a,
                ACCESS,
                request(&[], B_MAC, "10.2.0.11", "10.2.0.10"),
            )
            .gives(
                Action::Tx,
                reply(&[], ACCESS_MAC, B_MAC, "10.2.0.10", "10.2.0.11"),
            )
            .counts(Counter::ArpAnswered),
            Case::new(
                "an unknown requester is reported",
                c,
                UPLINK,
                request(&[], [2, 9, 9, 9, 9, 9], "10.1.0.99", "10.1.0.10"),
            )
            .gives(
                Action::Tx,
                reply(
                    &[],
                    UPLINK_MAC,
                    [2, 9, 9, 9, 9, 9],
                    "10.1.0.10",
                    "10.1.0.99",
                ),
            )
            .counts(Counter::ArpAnswered)
            .counts(Counter::NeighbourSeen)
            .records(neighbour_event(
                Some(NeighbourEventKind::RequestToUs),
                "10.1.0.99",
                [2, 9, 9, 9, 9, 9],
            )),
            Case::new(
                "a probe for an endpoint: the address is in use",
                c,
                UPLINK,
                request(&[], B_MAC, "0.0.0.0", "10.1.0.10"),
            )
            .gives(
                Action::Tx,
                reply(&[], UPLINK_MAC, B_MAC, "10.1.0.10", "0.0.0.0"),
            )
            .counts(Counter::ArpAnswered)
            .records(neighbour_event(None, "0.0.0.0", B_MAC)),
            Case::new(
                "another machine's address on the shared port",
                c,
                UPLINK,
                request(&[], B_MAC, "10.1.0.11", "10.1.0.1"),
            )
            .passed(),
            Case::new(
                "another machine's address on a tenant-only port",
                a,
                ACCESS,
                request(&[], B_MAC, "10.2.0.11", "10.2.0.1"),
            )
            .dropped(Counter::ControlIgnored),
            Case::new(
                "an endpoint of the other network",
                a,
                ACCESS,
                request(&[], B_MAC, "10.2.0.11", "10.1.0.10"),
            )
            .dropped(Counter::ControlIgnored),
            Case::new(
                "a reply to us",
                c,
                UPLINK,
                eth(
                    UPLINK_MAC,
                    [2, 9, 9, 9, 9, 8],
                    &[],
                    0x0806,
                    &arp(
                        2,
                        [2, 9, 9, 9, 9, 8],
                        v4("10.1.0.98"),
                        UPLINK_MAC,
                        v4("10.1.0.5"),
                    ),
                ),
            )
            .passed()
            .counts(Counter::NeighbourSeen)
            .records(neighbour_event(
                Some(NeighbourEventKind::Reply),
                "10.1.0.98",
                [2, 9, 9, 9, 9, 8],
            )),
            Case::new(
                "a gratuitous request moves a known machine",
                c,
                UPLINK,
                request(&[], [2, 9, 9, 9, 9, 7], "10.1.0.11", "10.1.0.11"),
            )
            .passed()
            .counts(Counter::NeighbourSeen)
            .records(neighbour_event(
                Some(NeighbourEventKind::Announcement),
                "10.1.0.11",
                [2, 9, 9, 9, 9, 7],
            )),
            Case::new(
                "a request for another host makes no entry",
                c,
                UPLINK,
                request(&[], [2, 9, 9, 9, 9, 6], "10.1.0.96", "10.1.0.1"),
            )
            .passed()
            .records(neighbour_event(None, "10.1.0.96", B_MAC)),
            Case::new(
                "an endpoint's old machine is a second claimant",
                c,
                UPLINK,
                request(&[], A_MAC, "10.1.0.10", "10.1.0.1"),
            )
            .passed()
            .counts(Counter::NeighbourSeen)
            .records(neighbour_event(
                Some(NeighbourEventKind::Claim),
                "10.1.0.10",
                A_MAC,
            )),
            Case::new(
                "its answer to us as well",
                c,
                UPLINK,
                eth(
                    UPLINK_MAC,
                    A_MAC,
                    &[],
                    0x0806,
                    &arp(2, A_MAC, v4("10.1.0.10"), UPLINK_MAC, v4("10.1.0.5")),
                ),
            )
            .passed()
            .counts(Counter::NeighbourSeen)
            .records(neighbour_event(
                Some(NeighbourEventKind::Claim),
                "10.1.0.10",
                A_MAC,
            )),
            Case::new(
                "a correction that names our own MAC is none",
                c,
                UPLINK,
                eth(
                    ANY,
                    A_MAC,
                    &[],
                    0x0806,
                    &arp(1, UPLINK_MAC, v4("10.1.0.10"), NONE, v4("10.1.0.1")),
                ),
            )
            .passed()
            .records(neighbour_event(None, "10.1.0.10", A_MAC)),
            Case::new(
                "a cluster at a group MAC is reported by name",
                c,
                UPLINK,
                eth(
                    UPLINK_MAC,
                    B_MAC,
                    &[],
                    0x0806,
                    &arp(2, GROUP, v4("10.1.0.97"), UPLINK_MAC, v4("10.1.0.5")),
                ),
            )
            .passed()
            .counts(Counter::NeighbourSeen)
            .records(neighbour_event(
                Some(NeighbourEventKind::Reply),
                "10.1.0.97",
                GROUP,
            )),
        ],
    );
}

#[test]
fn the_provider_side_answers_for_all_others() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let a = Program::Access;
    let vlan = [tag(101)];
    let answered = |what: &str, target: &str| {
        Case::new(what, a, TRUNK, request(&vlan, A_MAC, "10.1.0.10", target))
            .gives(
                Action::Tx,
                reply(&vlan, TRUNK_MAC, A_MAC, target, "10.1.0.10"),
            )
            .counts(Counter::ArpAnswered)
    };
    let ignored = |what: &str, sender: &str, target: &str| {
        Case::new(what, a, TRUNK, request(&vlan, A_MAC, sender, target))
            .dropped(Counter::ControlIgnored)
    };
    run(
        &mut h,
        vec![
            answered("a production machine", "10.1.0.11"),
            answered("the router", "10.1.0.1"),
            answered("an address without a host", "10.1.0.200"),
            ignored("another replica", "10.1.0.10", "10.1.0.12"),
            ignored("outside the prefixes", "10.1.0.10", "10.9.0.2"),
            ignored("the network address", "10.1.0.10", "10.1.0.0"),
            ignored("the broadcast address", "10.1.0.10", "10.1.0.255"),
            ignored("its own announcement", "10.1.0.10", "10.1.0.10"),
            Case::new(
                "a second router",
                a,
                TRUNK,
                request(&vlan, G_MAC, "10.1.0.1", "10.1.0.12"),
            )
            .dropped(Counter::ControlIgnored)
            .counts(Counter::NeighbourSeen)
            .records(neighbour_event(
                Some(NeighbourEventKind::Claim),
                "10.1.0.1",
                G_MAC,
            )),
            Case::new(
                "a probe",
                a,
                TRUNK,
                request(&vlan, A_MAC, "0.0.0.0", "10.1.0.50"),
            )
            .dropped(Counter::ControlIgnored)
            .counts(Counter::ProbeIgnored),
            Case::new(
                "QinQ keeps both tags",
                a,
                TRUNK,
                request(
                    &[service_tag(200), tag(102)],
                    A_MAC,
                    "10.3.0.10",
                    "10.3.0.11",
                ),
            )
            .gives(
                Action::Tx,
                reply(
                    &[service_tag(200), tag(102)],
                    TRUNK_MAC,
                    A_MAC,
                    "10.3.0.11",
                    "10.3.0.10",
                ),
            )
            .counts(Counter::ArpAnswered),
            Case::new(
                "padding to 60 bytes stays",
                a,
                TRUNK,
                [request(&vlan, A_MAC, "10.1.0.10", "10.1.0.11"), vec![0; 14]].concat(),
            )
            .gives(
                Action::Tx,
                Out::Is(
                    [
                        eth(
                            A_MAC,
                            TRUNK_MAC,
                            &vlan,
                            0x0806,
                            &arp(2, TRUNK_MAC, v4("10.1.0.11"), A_MAC, v4("10.1.0.10")),
                        ),
                        vec![0; 14],
                    ]
                    .concat(),
                ),
            )
            .counts(Counter::ArpAnswered),
            Case::new(
                "a replica that is resolved anew is reported",
                a,
                TRUNK,
                request(&vlan, [2, 8, 8, 8, 8, 8], "10.1.0.12", "10.1.0.11"),
            )
            .gives(
                Action::Tx,
                reply(
                    &vlan,
                    TRUNK_MAC,
                    [2, 8, 8, 8, 8, 8],
                    "10.1.0.11",
                    "10.1.0.12",
                ),
            )
            .counts(Counter::ArpAnswered)
            .counts(Counter::NeighbourSeen)
            .records(neighbour_event(
                Some(NeighbourEventKind::RequestToUs),
                "10.1.0.12",
                [2, 8, 8, 8, 8, 8],
            )),
            Case::new(
                "a known address behind another VLAN's MAC",
                a,
                TRUNK,
                request(&[tag(201)], G_MAC, "10.1.0.10", "10.1.0.11"),
            )
            .gives(
                Action::Tx,
                reply(&[tag(201)], TRUNK_MAC, G_MAC, "10.1.0.11", "10.1.0.10"),
            )
            .counts(Counter::ArpAnswered)
            .records(neighbour_event(None, "10.1.0.10", G_MAC)),
        ],
    );
}

#[test]
fn a_host_is_where_its_arp_message_says_and_not_where_the_frame_came_from() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    // As from a team of NICs, of which another one sends.
    let team = [0x02, 0, 0, 0xaa, 0, 0x7e];
    let said = [0x02, 0, 0, 0xaa, 0, 0x98];
    let sent = |to: Mac, operation: u16, target: &str| {
        let body = arp(operation, said, v4("10.1.0.98"), NONE, v4(target));
        eth(to, team, &[], 0x0806, &body)
    };
    let c = Program::Combined;
    run(
        &mut h,
        vec![
            Case::new("a request", c, UPLINK, sent(ANY, 1, "10.1.0.10"))
                .gives(
                    Action::Tx,
                    reply(&[], UPLINK_MAC, said, "10.1.0.10", "10.1.0.98"),
                )
                .counts(Counter::ArpAnswered)
                .counts(Counter::NeighbourSeen)
                .records(neighbour_event(
                    Some(NeighbourEventKind::RequestToUs),
                    "10.1.0.98",
                    said,
                )),
            Case::new("a reply", c, UPLINK, sent(UPLINK_MAC, 2, "10.1.0.5"))
                .passed()
                .counts(Counter::NeighbourSeen)
                .records(neighbour_event(
                    Some(NeighbourEventKind::Reply),
                    "10.1.0.98",
                    said,
                )),
        ],
    );
}

#[test]
fn malformed_or_unusual_arp_gets_no_answer() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let a = Program::Access;
    let good = request(&[tag(101)], A_MAC, "10.1.0.10", "10.1.0.11");
    let with = |at: usize, value: u8| {
        let mut f = good.clone();
        f[18 + at] = value;
        f
    };
    run(
        &mut h,
        vec![
            Case::new("hardware type 6", a, TRUNK, with(1, 6)).dropped(Counter::DropMalformed),
            Case::new("protocol type IPv6", a, TRUNK, with(2, 0x86))
                .dropped(Counter::DropMalformed),
            Case::new("MAC length 8", a, TRUNK, with(4, 8)).dropped(Counter::DropMalformed),
            Case::new("address length 16", a, TRUNK, with(5, 16)).dropped(Counter::DropMalformed),
            Case::new("reverse request", a, TRUNK, with(7, 3)).dropped(Counter::ControlIgnored),
            Case::new("operation 0", a, TRUNK, with(7, 0)).dropped(Counter::ControlIgnored),
            Case::new(
                "a group sender MAC",
                a,
                TRUNK,
                request(&[tag(101)], [3, 0, 0, 0, 0, 1], "10.1.0.10", "10.1.0.11"),
            )
            .dropped(Counter::ControlIgnored),
            Case::new(
                "a zero sender MAC",
                a,
                TRUNK,
                request(&[tag(101)], NONE, "10.1.0.10", "10.1.0.11"),
            )
            .dropped(Counter::ControlIgnored),
            Case::new(
                "our own request come back",
                a,
                TRUNK,
                request(&[tag(101)], TRUNK_MAC, "10.1.0.10", "10.1.0.11"),
            )
            .dropped(Counter::DropLoop),
            Case::new("cut in the middle", a, TRUNK, good[..40].to_vec())
                .dropped(Counter::DropMalformed),
        ],
    );
}
