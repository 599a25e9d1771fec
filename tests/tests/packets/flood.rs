//! A flood of first packets: connections that are established go on, and nothing is let out
//! untranslated.
//!
//! The flood is a million packets; ten million with `CAUSEWAY_LONG=1`; or `CAUSEWAY_FLOOD`.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use appliance_common::{
    counters::Counter,
    maps::{Bucket, Budget},
    nat::{Flow, FlowKey, TenantQuota},
};
use aya::maps::Array;
use causeway_tests::{
    harness::{Harness, Program},
    nat::{HostPort, Message, Verdict, end, ends, hop, inside, outside, packet},
    packet::frame,
    series,
    world::*,
};

const A: &str = "10.1.0.10";
const PA: HostPort = HostPort::trunk(101, A_MAC);
const PG: HostPort = HostPort::trunk(201, G_MAC);
const SYN: Message = Message::Tcp(0x02);
const SYN_ACK: Message = Message::Tcp(0x12);
const ACK: Message = Message::Tcp(0x10);
/// Connections established before the flood.
const ESTABLISHED: u16 = 500;
/// Packets of the flood between two looks at those.
const FLOOD_BATCH: u32 = 100_000;

/// Opens a connection by the rule for port 443, from `port`.
fn open(h: &mut Harness, port: u16) {
    let (client, outer, inner) = (end(REMOTE, port), end(PUBLIC4, 443), end(A, 8443));
    for (fate, what) in [
        (outside(h, &packet(SYN, client, outer)), "SYN"),
        (
            inside(h, PA, &packet(SYN_ACK, inner, client)),
            "SYN and ACK",
        ),
        (outside(h, &packet(ACK, client, outer)), "ACK"),
    ] {
        assert!(
            matches!(fate, Verdict::Host(_) | Verdict::Outside(_)),
            "{what}: {fate:?}"
        );
    }
}

/// Both directions of all of them, byte for byte.
fn all_go_on(h: &mut Harness, when: &str) {
    for port in 10_000..10_000 + ESTABLISHED {
        let (client, outer, inner) = (end(REMOTE, port), end(PUBLIC4, 443), end(A, 8443));
        assert_eq!(
            outside(h, &packet(ACK, client, outer)),
            Verdict::Host(PA.receives(&hop(&packet(ACK, client, inner)))),
            "{when}: {client:?}"
        );
        assert_eq!(
            inside(h, PA, &packet(ACK, inner, client)),
            Verdict::Outside(hop(&packet(ACK, outer, client))),
            "{when}: to {client:?}"
        );
    }
}

/// The packet `n` of a flood from outside: a SYN to the rule's port, each from another address and
/// port.
fn flood(template: &mut [u8], n: u32) {
    // 16.0.0.0 on, and ports from 1024 on; with both checksums as they must be.
    let source = (0x1000_0000 + n).to_be_bytes();
    let port = (1024 + (n % 60_000) as u16).to_be_bytes();
    template[14 + 12..14 + 16].copy_from_slice(&source);
    template[34..36].copy_from_slice(&port);
    template[24..26].fill(0);
    let sum = causeway_tests::packet::checksum(&template[14..34]);
    template[24..26].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn a_flood_of_syns_leaves_established_connections_alone() {
    let packets = series::length("CAUSEWAY_FLOOD", 1_000_000, 10_000_000) as u32;
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    for port in 10_000..10_000 + ESTABLISHED {
        open(&mut h, port);
    }
    // Outbound connections as well.
    let (from, far) = (end(A, 20_000), end(REMOTE, 53));
    inside(&mut h, PA, &packet(Message::Udp, from, far));
    let goes_on = |h: &mut Harness| {
        assert_eq!(
            outside(h, &packet(Message::Udp, far, end(NAT4, 20_000))),
            Verdict::Host(PA.receives(&hop(&packet(Message::Udp, far, from))))
        );
    };
    goes_on(&mut h);
    all_go_on(&mut h, "before");
    let places = || 2 * (usize::from(ESTABLISHED) + 1);
    let settled = |h: &mut Harness| h.entries::<FlowKey, Flow>("FLOWS").expect("FLOWS").len();
    assert_eq!(settled(&mut h), places());

    let l3 = packet(SYN, end("16.0.0.0", 1024), end(PUBLIC4, 443));
    let mut template = frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &l3);
    let (began, mut spent) = (Instant::now(), Duration::ZERO);
    let mut n = 0;
    while n < packets {
        let at = Instant::now();
        for _ in 0..FLOOD_BATCH.min(packets - n) {
            flood(&mut template, n);
            let (action, out) = h.run(Program::Uplink, UPLINK, &template).expect("it runs");
            assert!(action.sends(), "SYN {n}: {action:?}");
            // To the machine 10.1.0.10.
            assert_eq!(out[18 + 16..18 + 20], [10, 1, 0, 10], "SYN {n}");
            n += 1;
        }
        spent += at.elapsed();
        all_go_on(&mut h, "in the flood");
        // A query to port 53 is forgotten after 30 seconds, and the whole flood takes minutes.
        goes_on(&mut h);
        // A new one is opened in spite of it.
        open(&mut h, 40_000 + (n / FLOOD_BATCH % 1000) as u16);
    }
    println!(
        "{n} SYNs in {:.1} s, {:.0} ns each with the test's own work",
        began.elapsed().as_secs_f64(),
        spent.as_nanos() as f64 / f64::from(n)
    );
    let opened = (n.div_ceil(FLOOD_BATCH)).min(1000) as usize;
    assert_eq!(settled(&mut h), places() + 2 * opened);
    let counters = h.counters();
    assert!(counters[&(Counter::FlowOpened as u32)] >= u64::from(n));
    assert_eq!(counters.get(&(Counter::DropFlowsFull as u32)), None);
}

#[test]
fn a_flood_to_one_tenant_leaves_the_opening_connections_of_another() {
    const SYNS: u32 = 200_000;
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    // The other tenant's machine is slow to answer, and so is a server outside.
    let (client, outer, inner) = (end(REMOTE, 50_000), end(PUBLIC2, 443), end(A, 443));
    let fate = outside(&mut h, &packet(SYN, client, outer));
    assert!(matches!(fate, Verdict::Host(_)), "{fate:?}");
    let (host, far) = (end(A, 20_000), end(REMOTE, 5353));
    let Verdict::Outside(query) = inside(&mut h, PG, &packet(Message::Udp, host, far)) else {
        panic!("the query is translated");
    };
    let mapped = ends(&query).0;

    let l3 = packet(SYN, end("16.0.0.0", 1024), end(PUBLIC4, 443));
    let mut template = frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &l3);
    for n in 0..SYNS {
        flood(&mut template, n);
        let (action, _) = h.run(Program::Uplink, UPLINK, &template).expect("it runs");
        assert!(action.sends(), "SYN {n}: {action:?}");
    }

    assert_eq!(
        inside(&mut h, PG, &packet(SYN_ACK, inner, client)),
        Verdict::Outside(hop(&packet(SYN_ACK, outer, client)))
    );
    let fate = outside(&mut h, &packet(ACK, client, outer));
    assert!(matches!(fate, Verdict::Host(_)), "{fate:?}");
    assert_eq!(
        outside(&mut h, &packet(Message::Udp, far, mapped)),
        Verdict::Host(PG.receives(&hop(&packet(Message::Udp, far, host))))
    );
    // Beyond the budget of the first tenant, which still opens connections.
    let excess = h.counters()[&(Counter::OpeningExcess as u32)];
    assert!(excess > u64::from(SYNS) * 3 / 4, "{excess}");
    open(&mut h, 60_000);
}

/// An address of many, beyond those of the world.
fn stranger(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x1000_0000 + n).into()
}

/// A handshake of the other tenant, whose machine answers only after `attack`.
fn another_handshake_outlasts(h: &mut Harness, attack: impl FnOnce(&mut Harness)) {
    let (client, outer, inner) = (end(REMOTE, 50_000), end(PUBLIC2, 443), end(A, 443));
    let fate = outside(h, &packet(SYN, client, outer));
    assert!(matches!(fate, Verdict::Host(_)), "{fate:?}");
    attack(h);
    assert_eq!(
        inside(h, PG, &packet(SYN_ACK, inner, client)),
        Verdict::Outside(hop(&packet(SYN_ACK, outer, client)))
    );
    let fate = outside(h, &packet(ACK, client, outer));
    assert!(matches!(fate, Verdict::Host(_)), "{fate:?}");
}

/// Runs a frame of an attack, which the programs send on.
fn sent_on(h: &mut Harness, program: Program, ifindex: u32, frame: &[u8]) {
    let (action, _) = h.run(program, ifindex, frame).expect("it runs");
    assert!(action.sends(), "{action:?}");
}

/// Answered connections of an attack, and as many unanswered ones: more than the 32 768 that
/// `OPENING` has room for.
const ROUNDS: u32 = 40_000;

#[test]
fn answered_excess_from_inside_takes_no_place_of_another_tenant() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    let host = end(A, 20_000);
    another_handshake_outlasts(&mut h, |h| {
        let asks = |h: &mut Harness, far| {
            let l3 = packet(Message::Udp, host, far);
            sent_on(h, Program::Access, TRUNK, &PA.sends(&l3));
        };
        for n in 0..4096 {
            asks(h, (stranger(n), 5353));
        }
        for n in 0..ROUNDS {
            let server = (stranger(n), 53);
            asks(h, server);
            let answer = packet(Message::Udp, server, end(NAT4, 20_000));
            let answer = frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &answer);
            sent_on(h, Program::Uplink, UPLINK, &answer);
            asks(h, (stranger(n), 54));
        }
    });
    assert!(h.counters()[&(Counter::FlowEstablished as u32)] > u64::from(ROUNDS));
}

#[test]
fn answered_excess_from_outside_takes_no_place_of_another_tenant() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    another_handshake_outlasts(&mut h, |h| {
        // By the rule for UDP to ports from 5000 on, which lead to 6000 on.
        let asks = |h: &mut Harness, client| {
            let l3 = packet(Message::Udp, client, end(PUBLIC4, 5000));
            let sent = frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &l3);
            sent_on(h, Program::Uplink, UPLINK, &sent);
        };
        for n in 0..4096 {
            asks(h, (stranger(n), 5353));
        }
        for n in 0..ROUNDS {
            let client = (stranger(n), 1024);
            asks(h, client);
            let answer = packet(Message::Udp, end(A, 6000), client);
            sent_on(h, Program::Access, TRUNK, &PA.sends(&answer));
            asks(h, (stranger(n), 1025));
        }
    });
    assert!(h.counters()[&(Counter::FlowEstablished as u32)] > u64::from(ROUNDS));
}

/// Takes all tokens for openings of the first tenant, from both sides.
fn exhaust_budget(h: &mut Harness) {
    let mut budgets: Array<_, Bucket> = h.open_map("BUDGETS").expect("a map");
    for budget in [Budget::Opening, Budget::OutsideOpening] {
        let empty = Bucket {
            full_at: u64::MAX / 2,
        };
        budgets.set(budget.index(1), empty, 0).expect("written");
    }
}

/// Begins the next failover of the first tenant: its connections are of an earlier one.
fn fail_over_again(h: &mut Harness) {
    let mut world = h.world.clone();
    world.tenants[0].epoch += 1;
    h.refill_rules(&world).expect("refilled");
}

#[test]
fn a_stale_opening_does_not_hide_the_same_connection_beyond_the_budget() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    let (client, outer, inner) = (end(REMOTE, 50_000), end(PUBLIC4, 443), end(A, 8443));
    let (host, far) = (end(A, 20_000), end(REMOTE, 5353));
    let begin = |h: &mut Harness| {
        let fate = outside(h, &packet(SYN, client, outer));
        assert!(matches!(fate, Verdict::Host(_)), "{fate:?}");
        match inside(h, PA, &packet(Message::Udp, host, far)) {
            Verdict::Outside(query) => ends(&query).0,
            fate => panic!("{fate:?}"),
        }
    };
    begin(&mut h);
    fail_over_again(&mut h);
    exhaust_budget(&mut h);
    let mapped = begin(&mut h);
    assert_eq!(h.counters()[&(Counter::OpeningExcess as u32)], 2);
    assert_eq!(
        inside(&mut h, PA, &packet(SYN_ACK, inner, client)),
        Verdict::Outside(hop(&packet(SYN_ACK, outer, client)))
    );
    let fate = outside(&mut h, &packet(ACK, client, outer));
    assert!(matches!(fate, Verdict::Host(_)), "{fate:?}");
    assert_eq!(
        outside(&mut h, &packet(Message::Udp, far, mapped)),
        Verdict::Host(PA.receives(&hop(&packet(Message::Udp, far, host))))
    );
}

#[test]
fn a_connection_within_the_budget_replaces_its_stale_opening_beyond_it() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    let entries = |h: &mut Harness| {
        let fate = outside(h, &packet(SYN, end(REMOTE, 50_000), end(PUBLIC4, 443)));
        assert!(matches!(fate, Verdict::Host(_)), "{fate:?}");
        ["OPENING", "OPENING_EXCESS"].map(|map| {
            let entries = h.entries::<FlowKey, Flow>(map);
            entries.expect("a table").len()
        })
    };
    exhaust_budget(&mut h);
    assert_eq!(entries(&mut h), [0, 2]);
    fail_over_again(&mut h);
    h.clear_budgets().expect("refilled");
    assert_eq!(entries(&mut h), [2, 0]);
}

#[test]
fn a_full_table_refuses_new_connections_and_keeps_the_established() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    for port in 10_000..10_000 + ESTABLISHED {
        open(&mut h, port);
    }
    // Filled with entries of no tenant.
    let mut filled = 0u32;
    let flow = Flow {
        last_seen: u32::MAX / 2,
        ..Flow::default()
    };
    loop {
        let key = FlowKey {
            source: [filled, 1, 2, 3],
            zone: 999,
            ..FlowKey::default()
        };
        match h.put("FLOWS", key, flow) {
            Ok(()) => filled += 1,
            Err(error) => {
                println!("{filled} entries, then: {error}");
                break;
            }
        }
    }
    assert!(filled > 100_000);
    all_go_on(&mut h, "the table is full");
    let mut refused = 0;
    for port in 30_000..30_100 {
        let (client, outer, inner) = (end(REMOTE, port), end(PUBLIC4, 443), end(A, 8443));
        outside(&mut h, &packet(SYN, client, outer));
        inside(&mut h, PA, &packet(SYN_ACK, inner, client));
        match outside(&mut h, &packet(ACK, client, outer)) {
            // The kernel keeps a few entries in reserve on each CPU.
            Verdict::Host(_) => {}
            fate => {
                assert_eq!(fate, Verdict::Dropped(Counter::DropFlowsFull));
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    all_go_on(&mut h, "and new ones were refused");
}

#[test]
fn a_blind_acknowledgment_establishes_no_connection() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    // With a forged source: a SYN, later an acknowledgment of a sequence number never received.
    let (client, outer, inner) = (end(REMOTE, 5000), end(PUBLIC4, 443), end(A, 8443));
    let blind = |number: u32| {
        let mut l3 = packet(ACK, client, outer);
        l3[28..32].copy_from_slice(&number.to_be_bytes());
        l3[36..38].fill(0);
        let sum = causeway_tests::packet::transport_checksum(client.0, outer.0, 6, &l3[20..]);
        l3[36..38].copy_from_slice(&sum.to_be_bytes());
        l3
    };
    assert!(matches!(
        outside(&mut h, &packet(SYN, client, outer)),
        Verdict::Host(_)
    ));
    let answer = packet(SYN_ACK, inner, client);
    assert!(matches!(inside(&mut h, PA, &answer), Verdict::Outside(_)));
    // The machine's first number is 0x01020304 (tests/src/packet.rs).
    for number in [0, 1, 0x0102_0304, 0x0102_0305 + 16_385, u32::MAX] {
        assert_eq!(
            outside(&mut h, &blind(number)),
            Verdict::Dropped(Counter::DropNoFlow),
            "{number:#x}"
        );
    }
    let settled = |h: &mut Harness| h.entries::<FlowKey, Flow>("FLOWS").expect("FLOWS").len();
    assert_eq!(settled(&mut h), 0);
    assert!(matches!(
        outside(&mut h, &blind(0x0102_0305)),
        Verdict::Host(_)
    ));
    assert_eq!(settled(&mut h), 2);
}

#[test]
fn each_tenant_has_its_own_share_of_connections() {
    let mut world = World::nat();
    world.quotas = vec![
        TenantQuota {
            connections: 10,
            mappings: 5,
        };
        2
    ];
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let (mut opened, mut refused) = (0, 0);
    for port in 20_000..20_030 {
        let (client, outer, inner) = (end(REMOTE, port), end(PUBLIC4, 443), end(A, 8443));
        outside(&mut h, &packet(SYN, client, outer));
        inside(&mut h, PA, &packet(SYN_ACK, inner, client));
        match outside(&mut h, &packet(ACK, client, outer)) {
            Verdict::Host(_) => opened += 1,
            fate => {
                assert_eq!(fate, Verdict::Dropped(Counter::DropQuota));
                refused += 1;
            }
        }
    }
    assert_eq!((opened, refused), (10, 20));
    // Endpoints are counted by themselves.
    let far = end(REMOTE, 53);
    let leaves =
        |h: &mut Harness, place, port| inside(h, place, &packet(Message::Udp, end(A, port), far));
    for port in 3000..3005 {
        assert!(
            matches!(leaves(&mut h, PA, port), Verdict::Outside(_)),
            "{port}"
        );
    }
    assert_eq!(
        leaves(&mut h, PA, 3005),
        Verdict::Dropped(Counter::DropQuota)
    );
    assert!(
        matches!(leaves(&mut h, PA, 3000), Verdict::Outside(_)),
        "it has it already"
    );
    // The other tenant has a separate quota.
    assert!(matches!(leaves(&mut h, PG, 12_000), Verdict::Outside(_)));
    let (client, outer, inner) = (end(REMOTE, 5), end(PUBLIC2, 443), end(A, 443));
    outside(&mut h, &packet(SYN, client, outer));
    inside(&mut h, PG, &packet(SYN_ACK, inner, client));
    let fate = outside(&mut h, &packet(ACK, client, outer));
    assert!(matches!(fate, Verdict::Host(_)), "{fate:?}");
}

#[test]
fn a_tenant_may_exceed_its_quota_while_others_use_less() {
    const OWN: u32 = 10;
    const LIMIT: u32 = 14;
    let mut world = World::nat();
    world.quotas = vec![
        TenantQuota {
            connections: OWN,
            mappings: OWN,
        };
        2
    ];
    world.nat.over_quota_connections = LIMIT;
    world.nat.over_quota_mappings = LIMIT;
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    // A connection by the rule of each tenant for port 443.
    let open = |h: &mut Harness, place, public, machine, port| {
        let (client, outer, inner) = (end(REMOTE, port), end(public, 443), end(A, machine));
        outside(h, &packet(SYN, client, outer));
        inside(h, place, &packet(SYN_ACK, inner, client));
        match outside(h, &packet(ACK, client, outer)) {
            Verdict::Host(_) => true,
            fate => {
                assert_eq!(fate, Verdict::Dropped(Counter::DropQuota));
                false
            }
        }
    };
    let count = |results: &[bool]| results.iter().filter(|opened| **opened).count() as u32;
    let first: Vec<_> = (20_000..20_020)
        .map(|port| open(&mut h, PA, PUBLIC4, 8443, port))
        .collect();
    assert_eq!(count(&first), LIMIT, "its own, and those over quota");
    // The other tenant gets its own in any case, and nothing beyond them.
    let second: Vec<_> = (20_000..20_020)
        .map(|port| open(&mut h, PG, PUBLIC2, 443, port))
        .collect();
    assert_eq!(count(&second), OWN);
    // Endpoints have a limit of their own.
    let is_mapped = |h: &mut Harness, place, port| {
        let fate = inside(
            h,
            place,
            &packet(Message::Udp, end(A, port), end(REMOTE, 53)),
        );
        matches!(fate, Verdict::Outside(_))
    };
    let first: Vec<_> = (11_000..11_020)
        .map(|port| is_mapped(&mut h, PA, port))
        .collect();
    assert_eq!(count(&first), LIMIT);
    let second: Vec<_> = (11_000..11_020)
        .map(|port| is_mapped(&mut h, PG, port))
        .collect();
    assert_eq!(count(&second), OWN);
}
