//! Neighbour solicitations are answered for exactly the addresses of the mode (RFC 4861).

use std::net::{IpAddr, Ipv6Addr};

use appliance_common::{counters::Counter, events::NeighbourEventKind};
use causeway_tests::{
    harness::{Action, Harness, Program, Record},
    packet::{Mac, frame, ip, multicast_mac, na, ns, solicited_node},
    table::{Case, Out, run},
    world::*,
};

fn v6(text: &str) -> Ipv6Addr {
    match ip(text) {
        IpAddr::V6(a) => a,
        IpAddr::V4(_) => panic!("{text} is not IPv6"),
    }
}

/// A multicast solicitation.
fn solicit(tags: &[(u16, u16)], mac: Mac, src: &str, target: &str) -> Vec<u8> {
    let group = solicited_node(v6(target));
    let source_ll = (src != "::").then_some(mac);
    frame(
        multicast_mac(group),
        mac,
        tags,
        &ns(v6(src), group, v6(target), source_ll),
    )
}

/// The link-local address of a MAC address (RFC 4291 appendix A).
fn link_local(mac: Mac) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac;
    [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ]
}

fn advertised(
    tags: &[(u16, u16)],
    ours: Mac,
    asker: Mac,
    src: &str,
    target: &str,
    flags: u8,
) -> Out<'static> {
    let (dst, mac) = if src == "::" {
        (v6("ff02::1"), [0x33, 0x33, 0, 0, 0, 1])
    } else {
        (v6(src), asker)
    };
    Out::Is(frame(
        mac,
        ours,
        tags,
        &na(v6(target), dst, v6(target), flags, Some(ours)),
    ))
}

#[test]
fn the_tenant_side_answers_for_endpoints_only() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    let c = Program::Combined;
    let (b, e, r) = ("2001:db8:1::11", "2001:db8:1::10", "2001:db8:1::1");
    run(
        &mut h,
        vec![
            Case::new("an endpoint", c, UPLINK, solicit(&[], B_MAC, b, e))
                .gives(Action::Tx, advertised(&[], UPLINK_MAC, B_MAC, b, e, 0x60))
                .counts(Counter::NdAnswered),
            Case::new(
                "an endpoint, asked by unicast",
                c,
                UPLINK,
                frame(
                    UPLINK_MAC,
                    B_MAC,
                    &[],
                    &ns(v6(b), v6(e), v6(e), Some(B_MAC)),
                ),
            )
            .gives(Action::Tx, advertised(&[], UPLINK_MAC, B_MAC, b, e, 0x60))
            .counts(Counter::NdAnswered),
            Case::new(
                "an endpoint, asked without the asker's MAC in an option",
                c,
                UPLINK,
                frame(UPLINK_MAC, B_MAC, &[], &ns(v6(b), v6(e), v6(e), None)),
            )
            .gives(Action::Tx, advertised(&[], UPLINK_MAC, B_MAC, b, e, 0x60))
            .counts(Counter::NdAnswered),
            Case::new(
                "an endpoint, asked from a link-local address",
                c,
                UPLINK,
                solicit(&[], B_MAC, "fe80::b", e),
            )
            .gives(
                Action::Tx,
                advertised(&[], UPLINK_MAC, B_MAC, "fe80::b", e, 0x60),
            )
            .counts(Counter::NdAnswered),
            Case::new(
                "duplicate address detection of an endpoint: it is in use",
                c,
                UPLINK,
                solicit(&[], B_MAC, "::", e),
            )
            .gives(
                Action::Tx,
                advertised(&[], UPLINK_MAC, B_MAC, "::", e, 0x20),
            )
            .counts(Counter::NdAnswered),
            Case::new(
                "the router on the shared port",
                c,
                UPLINK,
                solicit(&[], B_MAC, b, r),
            )
            .passed(),
            Case::new(
                "the router on a tenant-only port",
                Program::Access,
                ACCESS,
                solicit(&[], B_MAC, "2001:db8:2::11", "2001:db8:2::1"),
            )
            .dropped(Counter::ControlIgnored),
            Case::new(
                "an advertisement to us is reported, and the kernel's",
                c,
                UPLINK,
                frame(
                    UPLINK_MAC,
                    [2, 9, 9, 9, 9, 1],
                    &[],
                    &na(
                        v6("2001:db8:1::99"),
                        v6(b),
                        v6("2001:db8:1::99"),
                        0x60,
                        Some([2, 9, 9, 9, 9, 1]),
                    ),
                ),
            )
            .passed()
            .counts(Counter::NeighbourSeen)
            .records(|records| match records {
                [Record::Neighbour(event)]
                    if event.kind == NeighbourEventKind::Reply as u16
                        && event.address == address("2001:db8:1::99") =>
                {
                    Ok(())
                }
                _ => Err("expected one event".to_owned()),
            }),
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
    let qinq = [service_tag(200), tag(102)];
    let (me, gw) = ("2001:db8:1::10", "2001:db8:1::1");
    let own = Ipv6Addr::from(link_local(TRUNK_MAC));
    let ignored = |what: &str, src: &str, target: &str| {
        Case::new(what, a, TRUNK, solicit(&vlan, A_MAC, src, target))
            .dropped(Counter::ControlIgnored)
    };
    run(
        &mut h,
        vec![
            Case::new(
                "a production machine",
                a,
                TRUNK,
                solicit(&vlan, A_MAC, me, "2001:db8:1::11"),
            )
            .gives(
                Action::Tx,
                advertised(&vlan, TRUNK_MAC, A_MAC, me, "2001:db8:1::11", 0x60),
            )
            .counts(Counter::NdAnswered),
            Case::new(
                "the router sends its router flag",
                a,
                TRUNK,
                solicit(&vlan, A_MAC, me, gw),
            )
            .gives(
                Action::Tx,
                advertised(&vlan, TRUNK_MAC, A_MAC, me, gw, 0xe0),
            )
            .counts(Counter::NdAnswered),
            Case::new(
                "a link-local router, through two tags",
                a,
                TRUNK,
                solicit(&qinq, A_MAC, "fe80::a", "fe80::1"),
            )
            .gives(
                Action::Tx,
                advertised(&qinq, TRUNK_MAC, A_MAC, "fe80::a", "fe80::1", 0xe0),
            )
            .counts(Counter::NdAnswered),
            Case::new(
                "the link-local address with which the daemon asks",
                a,
                TRUNK,
                solicit(&vlan, A_MAC, "fe80::a", &own.to_string()),
            )
            .gives(
                Action::Tx,
                advertised(&vlan, TRUNK_MAC, A_MAC, "fe80::a", &own.to_string(), 0x60),
            )
            .counts(Counter::NdAnswered),
            ignored("another replica", me, "2001:db8:1::12"),
            ignored("outside the prefixes", me, "2001:db8:9::2"),
            ignored(
                "a link-local address that is not the router",
                me,
                "fe80::77",
            ),
            Case::new(
                "duplicate address detection",
                a,
                TRUNK,
                solicit(&vlan, A_MAC, "::", "2001:db8:1::50"),
            )
            .dropped(Counter::ControlIgnored)
            .counts(Counter::ProbeIgnored),
            Case::new(
                "a router solicitation",
                a,
                TRUNK,
                frame(
                    [0x33, 0x33, 0, 0, 0, 2],
                    A_MAC,
                    &vlan,
                    &causeway_tests::packet::icmp(ip("fe80::a"), ip("ff02::2"), 133, 0, &[0; 4]),
                ),
            )
            .dropped(Counter::DropNotCarried),
        ],
    );
}

#[test]
fn solicitations_that_rfc_4861_calls_invalid_are_not_answered() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let a = Program::Access;
    let (me, target) = ("2001:db8:1::10", "2001:db8:1::11");
    let vlan = [tag(101)];
    let good = ns(v6(me), solicited_node(v6(target)), v6(target), Some(A_MAC));
    let case = |what: &str, l3: Vec<u8>| {
        Case::new(
            what,
            a,
            TRUNK,
            frame(multicast_mac(solicited_node(v6(target))), A_MAC, &vlan, &l3),
        )
        .dropped(Counter::DropMalformed)
    };
    let with = |at: usize, value: u8| {
        let mut l3 = good.clone();
        l3[at] = value;
        // Keep the checksum right, so that only the field under test is wrong.
        l3[42..44].fill(0);
        let check = causeway_tests::packet::transport_checksum(
            ip(me),
            solicited_node(v6(target)).into(),
            58,
            &l3[40..],
        );
        l3[42..44].copy_from_slice(&check.to_be_bytes());
        l3
    };
    let mut wrong_sum = good.clone();
    wrong_sum[42] ^= 0x55;
    run(
        &mut h,
        vec![
            case("hop limit 254", with(7, 254)),
            case("code 1", with(41, 1)),
            case("a multicast target", with(48, 0xff)),
            case("payload length 16", with(5, 16)),
            case("payload length beyond the frame", with(5, 200)),
            case("cut", good[..60].to_vec()),
            case("a wrong checksum", wrong_sum),
        ],
    );
}

/// The option of Enhanced Duplicate Address Detection (RFC 7527): a nonce of six bytes.
const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];
/// The frame's source, as of a team of NICs; the option has another MAC.
const TEAM_MAC: Mac = [2, 9, 9, 9, 9, 2];
const OPTION_MAC: Mac = [2, 9, 9, 9, 9, 3];

/// A neighbour message from `source` to `destination` with these options.
fn discovery(kind: u8, source: &str, destination: &str, flags: u8, options: &[&[u8]]) -> Vec<u8> {
    let target: &[u8] = match kind {
        135 => &v6("2001:db8:1::10").octets(),
        _ => &v6(source).octets(),
    };
    let body = [&[flags, 0, 0, 0][..], target, &options.concat()[..]].concat();
    let mut l3 = causeway_tests::packet::icmp(ip(source), ip(destination), kind, 0, &body);
    // The hop limit of discovery.
    l3[7] = 255;
    frame(UPLINK_MAC, TEAM_MAC, &[], &l3)
}

fn link_layer(kind: u8) -> Vec<u8> {
    [&[kind, 1][..], &OPTION_MAC].concat()
}

#[test]
fn a_host_is_where_its_link_layer_option_says_and_not_where_the_frame_came_from() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    let (asker, endpoint) = ("2001:db8:1::98", "2001:db8:1::10");
    let source = link_layer(1);
    let reported_at = |mac: Mac, kind: NeighbourEventKind, flags: u32| {
        move |records: &[Record]| match records {
            [Record::Neighbour(e)]
                if (e.mac, e.kind, e.flags) == (mac, kind as u16, flags)
                    && e.address == address("2001:db8:1::98") =>
            {
                Ok(())
            }
            _ => Err(format!("expected {kind:?} at {mac:02x?}, flags {flags}")),
        }
    };
    let asked = |what: &str, options: &[&[u8]], mac: Mac| {
        let packet = discovery(135, asker, endpoint, 0, options);
        Case::new(what, Program::Combined, UPLINK, packet)
            .gives(
                Action::Tx,
                advertised(&[], UPLINK_MAC, mac, asker, endpoint, 0x60),
            )
            .counts(Counter::NdAnswered)
            .counts(Counter::NeighbourSeen)
            .records(reported_at(mac, NeighbourEventKind::RequestToUs, 0))
    };
    let target = link_layer(2);
    let said = |what: &str, flags: u8, options: &[&[u8]], mac: Mac, event: u32| {
        let packet = discovery(136, asker, "2001:db8:1::5", flags, options);
        Case::new(what, Program::Combined, UPLINK, packet)
            .passed()
            .counts(Counter::NeighbourSeen)
            .records(reported_at(mac, NeighbourEventKind::Reply, event))
    };
    run(
        &mut h,
        vec![
            asked("by the option", &[&source], OPTION_MAC),
            asked(
                "by an option behind a nonce",
                &[&NONCE, &source],
                OPTION_MAC,
            ),
            asked("without an option", &[], TEAM_MAC),
            asked("with another option", &[&NONCE], TEAM_MAC),
            asked("with the option of advertisements", &[&target], TEAM_MAC),
            said("an advertisement", 0x60, &[&target], OPTION_MAC, 0),
            said("behind a nonce", 0x60, &[&NONCE, &target], OPTION_MAC, 0),
            said("an advertisement without an option", 0x60, &[], TEAM_MAC, 0),
            // RFC 4861 section 7.2.5: it does not replace a MAC address that is known.
            said("without Override", 0x40, &[&target], OPTION_MAC, 1),
        ],
    );
}

#[test]
fn a_second_claimant_of_an_ipv6_address_of_ours_is_reported() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    let endpoint = "2001:db8:1::10";
    let claim = |records: &[Record]| match records {
        [Record::Neighbour(e)]
            if e.kind == NeighbourEventKind::Claim as u16
                && e.mac == OPTION_MAC
                && e.address == address("2001:db8:1::10") =>
        {
            Ok(())
        }
        _ => Err("expected one claim".to_owned()),
    };
    let target = link_layer(2);
    let case = |what: &str, packet| {
        Case::new(what, Program::Combined, UPLINK, packet)
            .passed()
            .counts(Counter::NeighbourSeen)
            .records(claim)
    };
    let all_nodes = discovery(136, endpoint, "ff02::1", 0x20, &[&target]);
    let to_us = discovery(136, endpoint, "2001:db8:1::5", 0x60, &[&target]);
    run(
        &mut h,
        vec![
            case("an unsolicited advertisement", all_nodes),
            case("an answer to us", to_us),
        ],
    );
}

/// The daemon asks for an owner of the gateway's address before a full failover, and the plan's
/// gateway may be another one than the configuration's.
#[test]
fn an_owner_of_any_link_local_gateway_is_reported_before_a_failover() {
    let Some(mut h) = Harness::new(World::provider().idle()) else {
        return;
    };
    let owner = "fe80::1";
    let advertisement = |destination: &str, flags| {
        let message = na(v6(owner), v6(destination), v6(owner), flags, Some(B_MAC));
        frame(multicast_mac(v6("ff02::1")), B_MAC, &[tag(101)], &message)
    };
    let reported = |kind: NeighbourEventKind| {
        move |records: &[Record]| match records {
            [Record::Neighbour(e)]
                if (e.kind, e.mac, e.vni) == (kind as u16, B_MAC, NET1)
                    && e.address == address("fe80::1") =>
            {
                Ok(())
            }
            _ => Err(format!("expected {kind:?} of {owner}")),
        }
    };
    let case = |what: &str, packet, kind| {
        Case::new(what, Program::Access, TRUNK, packet)
            .dropped(Counter::ControlIgnored)
            .counts(Counter::NeighbourSeen)
            .records(reported(kind))
    };
    run(
        &mut h,
        vec![
            case(
                "in answer to a probe, to all nodes",
                advertisement("ff02::1", 0x20),
                NeighbourEventKind::Announcement,
            ),
            case(
                "in answer to a question",
                advertisement("fe80::9", 0x60),
                NeighbourEventKind::Reply,
            ),
            // Those of other hosts are of no use.
            Case::new(
                "a question",
                Program::Access,
                TRUNK,
                solicit(&[tag(101)], B_MAC, "fe80::b", "2001:db8:1::11"),
            )
            .dropped(Counter::ControlIgnored),
        ],
    );
    // In partial failover they are not reported: no gateway is to be taken over.
    h.fill(World::provider()).expect("filled");
    run(
        &mut h,
        vec![
            Case::new(
                "in partial failover",
                Program::Access,
                TRUNK,
                advertisement("ff02::1", 0x20),
            )
            .dropped(Counter::ControlIgnored),
        ],
    );
}
