//! Admission to user space by the gateway's XDP program: limited for every sender but ends that
//! are bound, whatever the sender knows.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use causeway_tests::{
    gateway::*,
    harness::Action,
    packet::{V4, frame, udp_segment, v6},
};
use gateway_client::wire::Side;
use gateway_common::maps::{
    BOUND_RATE, CIRCUIT_RATE, Outcome, PAIR_RATE, source_rate, unbound_rate,
};

const LONG: Duration = Duration::from_secs(3600);

fn v4() -> [SideAddress; 2] {
    [
        SideAddress::new("192.0.2.10:1001", "192.0.2.1"),
        SideAddress::new("192.0.2.11:1002", "192.0.2.1"),
    ]
}

fn v6_side() -> SideAddress {
    SideAddress::new("[2001:db8:1::10]:1001", "2001:db8:1::1")
}

/// A message with the ID of circuit `n`, without a valid tag.
fn message(n: u64) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[8..12].copy_from_slice(&[1, 1, 0, 0]);
    bytes[12..20].copy_from_slice(&id(n).to_bytes());
    bytes
}

/// Listens as the gateway does by default.
fn listen(harness: &GatewayHarness) {
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    harness.fast.admit_at(&[v4, v6]).expect("ADMISSION");
}

/// The frame of a payload from any address, as a router delivers it.
fn from(remote: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let local = v4()[0].local;
    let unbound = SideAddress { remote, local };
    let mac = neighbour_mac(v4()[0].remote.ip());
    frame(gateway_mac(IN), mac, &[], &unbound.packet(payload))
}

/// Whether the frame reaches user space.
fn passes(runner: &mut Runner, frame: &[u8]) -> bool {
    runner.run(IN, frame).0 == Action::Pass
}

/// Frames that the kernel delivers to a UDP socket though their headers are not plain, each with
/// its name: of a payload from `remote`.
fn unusual(payload: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let (four, six) = (v4()[0], v6_side());
    let mac = neighbour_mac(four.remote.ip());
    let wrap = |l3: &[u8]| frame(gateway_mac(IN), mac, &[], l3);
    let ips = |address: &SideAddress| (address.remote.ip(), address.local.ip());
    let (IpAddr::V4(from4), IpAddr::V4(to4)) = ips(&four) else {
        unreachable!("IPv4");
    };
    let (IpAddr::V6(from6), IpAddr::V6(to6)) = ips(&six) else {
        unreachable!("IPv6");
    };
    let segment = |address: &SideAddress| {
        let (from, to) = (address.remote, address.local);
        udp_segment(from.ip(), to.ip(), from.port(), to.port(), payload)
    };
    let header = |frag: u16, options: Vec<u8>, bytes: &[u8]| {
        let mut header = V4::new(from4, to4, 17);
        (header.frag, header.options) = (frag, options);
        wrap(&header.build(bytes))
    };
    let six_with = |next: u8, extension: &[u8], bytes: &[u8]| {
        wrap(&v6(from6, to6, next, 64, &[extension, bytes].concat()))
    };
    let whole = segment(&four);
    let longer = [&whole[..], &[0]].concat();
    let whole6 = segment(&six);
    let longer6 = [&whole6[..], &[0]].concat();
    let behind = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = vec![17, 0, 0, 1, 0, 0, 0, 7];
    let mut padded = four.frame(payload);
    padded.extend([0; 60]);
    let mut broadcast = four.frame(payload);
    broadcast[..6].fill(0xff);
    let many: Vec<u8> = (0..9).flat_map(|_| behind(60)).collect();
    let mut all = vec![
        (
            "a byte behind the datagram",
            header(0x4000, vec![], &longer),
        ),
        ("a byte behind, IPv6", six_with(17, &[], &longer6)),
        ("padding of 60 bytes", padded),
        ("options", header(0x4000, vec![1; 4], &whole)),
        ("options of 40 bytes", header(0x4000, vec![1; 40], &whole)),
        ("a first fragment", header(0x2000, vec![], &whole)),
        (
            "a first fragment with options",
            header(0x2000, vec![1; 8], &whole),
        ),
        ("the reserved bit", header(0x8000, vec![], &whole)),
        ("hop-by-hop options", six_with(0, &behind(17), &whole6)),
        ("destination options", six_with(60, &behind(17), &whole6)),
        (
            "a routing header",
            six_with(43, &[17, 0, 0, 0, 0, 0, 0, 0], &whole6),
        ),
        ("a first fragment, IPv6", six_with(44, &fragment, &whole6)),
        (
            "an atomic fragment",
            six_with(44, &[17, 0, 0, 0, 0, 0, 0, 7], &whole6),
        ),
        (
            "options before a fragment",
            six_with(60, &[&behind(44)[..], &fragment].concat(), &whole6),
        ),
        ("nine headers", six_with(60, &many, &whole6)),
        ("to the broadcast MAC address", broadcast),
        ("a priority tag", four.tagged(&[(0x8100, 0x6000)], payload)),
        (
            "two tags",
            four.tagged(&[(0x8100, 0), (0x8100, 0)], payload),
        ),
        ("a provider's tag", four.tagged(&[(0x88a8, 0)], payload)),
    ];
    // A checksum that the kernel does not need to see: none is invalid over IPv4, and its frame is
    // plain. Below the least length of a datagram of circuits:
    for short in [0, 1, 8] {
        all.push(("a short datagram", four.frame(&payload[..short])));
        all.push(("a short datagram, IPv6", six.frame(&payload[..short])));
    }
    all
}

/// Whatever the headers, user space gets nothing past the budgets.
#[test]
fn no_header_leads_past_the_budgets() {
    let Some(mut harness) = GatewayHarness::new(2, LONG, None, None) else {
        return;
    };
    harness.join(1, &v4());
    let payloads = [message(77), message(1), payload(77, 40), payload(1, 40)];
    for payload in &payloads {
        for (name, sent) in unusual(payload) {
            let (action, out, _) = harness.run(IN, &sent);
            assert_eq!(action, Action::Pass, "{name}: not asked to bound anything");
            assert!(out == sent, "{name}: changed");
        }
    }
    listen(&harness);
    for payload in &payloads {
        for (name, sent) in unusual(payload) {
            let (action, _, outcome) = harness.run(IN, &sent);
            assert_eq!(
                (action, outcome),
                (Action::Drop, Outcome::BadDatagram),
                "{name}: {sent:02x?}"
            );
        }
    }
    // A later fragment delivers nothing by itself, and ports cannot be read.
    let (four, six) = (v4()[0], v6_side());
    let (IpAddr::V4(from4), IpAddr::V4(to4)) = (four.remote.ip(), four.local.ip()) else {
        unreachable!("IPv4");
    };
    let mut later = V4::new(from4, to4, 17);
    later.frag = 0x0001;
    let mac = neighbour_mac(four.remote.ip());
    let sent = frame(gateway_mac(IN), mac, &[], &later.build(&[0; 40]));
    assert_eq!(harness.run(IN, &sent).2, Outcome::Fragment);
    // Datagrams to other ports are passed.
    for mut address in [four, six] {
        address.local.set_port(PORT + 1);
        let mut sent = address.frame(&message(1));
        sent.extend([0; 60]);
        let (action, _, outcome) = harness.run(IN, &sent);
        assert_eq!((action, outcome), (Action::Pass, Outcome::Malformed));
    }
    let tcp = V4::new(from4, to4, 6).build(&[0x18, 0x24, 0x18, 0x24, 0, 0, 0, 0]);
    let sent = frame(gateway_mac(IN), mac, &[], &tcp);
    assert_eq!(harness.run(IN, &sent).2, Outcome::Other);
}

/// A datagram that begins with four zero bytes and is no message uses up no budget, nor reaches
/// user space.
#[test]
fn malformed_messages_are_dropped_without_a_cost_to_others() {
    let Some(harness) = GatewayHarness::new(2, LONG, None, None) else {
        return;
    };
    listen(&harness);
    let mut runner = harness.runner();
    let mut shapes = vec![vec![0; 9], vec![0; 63], vec![0; 65]];
    let mut almost = message(1);
    almost[7] = 1;
    shapes.push(almost);
    for n in 0..20_000u32 {
        let source = SocketAddr::from(((0x0b00_0000 + n % 5000).to_be_bytes(), 5000));
        let frame = from(source, &shapes[n as usize % shapes.len()]);
        assert!(!passes(&mut runner, &frame), "{n}");
    }
    for n in 0..4u32 {
        let source = SocketAddr::from(((0x0b00_0000 + n).to_be_bytes(), 5000));
        assert!(passes(&mut runner, &from(source, &message(2))), "{n}");
    }
}

/// The flood of one circuit leaves the first binds of others alone, and bound ends, whichever
/// buckets the sources have.
#[test]
fn a_flood_of_one_circuit_costs_no_other_circuit_a_message() {
    const CIRCUITS: u64 = 500;
    let Some(mut harness) = GatewayHarness::new(CIRCUITS + 1, LONG, None, None) else {
        return;
    };
    listen(&harness);
    let end = |n: u64, side: usize| {
        let port = 1000 + n as u16 * 2 + side as u16;
        SideAddress::new(&format!("192.0.2.1{side}:{port}"), "192.0.2.1")
    };
    for n in 2..=CIRCUITS / 2 {
        harness.join(n, &[end(n, 0), end(n, 1)]);
    }
    let mut runner = harness.runner();
    let begun = Instant::now();
    let mut passed = [0u64; 2];
    for source in 0..256u32 {
        let source = SocketAddr::from(((0x0b00_0000 + source * 77).to_be_bytes(), 5000));
        for (n, payload) in [message(1), payload(1, 20)].iter().enumerate() {
            let frame = from(source, payload);
            let count = (0..600).filter(|_| passes(&mut runner, &frame)).count();
            passed[n] += count as u64;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{passed:?} of 153 600 each passed in {seconds:.2} s");
    assert!(passed[0] as f64 <= CIRCUIT_RATE as f64 * (1.0 + seconds) + 2.0);
    assert!(passed[1] <= passed[0] && passed[1] > 0);
    for n in 2..=CIRCUITS {
        for side in 0..2 {
            let sent = from(end(n, side).remote, &message(n));
            assert!(passes(&mut runner, &sent), "circuit {n}, side {side}");
        }
    }
}

/// A flood of messages of one circuit from one source, whatever its ports, leaves ends of the
/// circuit room to bind from new addresses, but for those that share its bucket: one of eight.
#[test]
fn a_flood_of_one_source_leaves_its_circuit_room_for_an_end() {
    let Some(harness) = GatewayHarness::new(1, LONG, None, None) else {
        return;
    };
    listen(&harness);
    let mut runner = harness.runner();
    let begun = Instant::now();
    let mut flood = 0u64;
    for n in 0..20_000u16 {
        let source = SocketAddr::from(([11, 0, 0, 1], 1024 + n));
        flood += u64::from(passes(&mut runner, &from(source, &message(1))));
    }
    let ends = (0..20u16).filter(|n| {
        let source = SocketAddr::from(([11, 0, 1, *n as u8], 5000));
        (0..2).all(|_| passes(&mut runner, &from(source, &message(1))))
    });
    let ends = ends.count();
    let seconds = begun.elapsed().as_secs_f64();
    println!("{flood} of 20 000 and both of {ends} of 20 ends passed in {seconds:.2} s");
    // It has a new bucket every 4.3 s.
    let buckets = 2.0 + seconds / 4.0;
    assert!(flood as f64 <= PAIR_RATE as f64 * (buckets + seconds) + 2.0);
    assert!(ends >= 8, "{ends} of 20 ends");
}

/// An end that moves without pause gets no more to user space than one that stays: neither its own
/// messages, nor those of others on its circuit.
#[test]
fn a_move_refills_no_budget_of_its_circuit() {
    let Some(mut harness) = GatewayHarness::new(1, LONG, None, None) else {
        return;
    };
    let [a, b] = v4();
    harness.join(1, &[a, b]);
    listen(&harness);
    let other = SideAddress::new("192.0.2.10:2001", "192.0.2.1");
    let mut runner = harness.runner();
    let begun = Instant::now();
    let (mut unbound, mut bound) = (0u64, 0u64);
    for n in 0..8u32 {
        harness.bind(1, Side::A, if n % 2 == 0 { &other } else { &a });
        for source in 0..32 {
            let source = SocketAddr::from(((0x0b00_0000 + n * 32 + source).to_be_bytes(), 5000));
            let sent = from(source, &message(1));
            unbound += (0..8).filter(|_| passes(&mut runner, &sent)).count() as u64;
        }
        let sent = b.frame(&message(1));
        bound += (0..300).filter(|_| passes(&mut runner, &sent)).count() as u64;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{unbound} of unbound sources and {bound} of the bound one in {seconds:.2} s");
    // A move loses tokens that are taken between its two calls: none here, in one thread.
    assert!(unbound as f64 <= CIRCUIT_RATE as f64 * (1.0 + seconds) + 2.0);
    assert!(bound as f64 <= BOUND_RATE as f64 * (1.0 + seconds) + 2.0);
}

/// After a restart of the gateway a provider's appliance binds all its circuits from one address.
#[test]
fn all_circuits_of_one_source_bind_within_two_seconds() {
    const CIRCUITS: u64 = 4000;
    let Some(harness) = GatewayHarness::new(CIRCUITS, LONG, None, None) else {
        return;
    };
    listen(&harness);
    let mut runner = harness.runner();
    let source = SocketAddr::from(([198, 51, 100, 7], 5000));
    let begun = Instant::now();
    // Each needs a bind, and another one with the cookie of its challenge.
    let mut open: BTreeSet<(u64, u32)> = (1..=CIRCUITS).flat_map(|n| [(n, 1), (n, 2)]).collect();
    while !open.is_empty() {
        open.retain(|(n, _)| !passes(&mut runner, &from(source, &message(*n))));
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{CIRCUITS} circuits of one source bind in {seconds:.2} s");
    assert!(seconds < 2.0, "{seconds} s");
    assert!(unbound_rate(100_000) * 2 >= 400_000);
}

/// User space gets nothing of unknown circuits, and a bounded number of datagrams
/// of unbound sources, whatever they know; bound ends do not pay for unbound sources.
#[test]
fn unbound_sources_reach_user_space_within_a_budget_and_bound_ends_always() {
    const CIRCUITS: u64 = 500;
    let Some(mut harness) = GatewayHarness::new(CIRCUITS, LONG, None, None) else {
        return;
    };
    let [a, b] = v4();
    let a6 = v6_side();
    harness.join(1, &[a, b]);
    let unknown = [
        a.frame(&payload(7777, 20)),
        a.frame(&message(7777)),
        a6.frame(&message(7777)),
    ];
    for frame in &unknown {
        // Not asked yet: everything is passed.
        assert_eq!(harness.run(IN, frame).0, Action::Pass);
    }
    listen(&harness);
    for frame in &unknown {
        let (action, _, outcome) = harness.run(IN, frame);
        assert_eq!((action, outcome), (Action::Drop, Outcome::NoCircuit));
    }
    // Another port is none of the gateway's.
    let mut other = a;
    other.local.set_port(PORT + 1);
    for (payload, expected) in [
        (message(7777), Outcome::Message),
        (payload(7777, 20), Outcome::UnknownCircuit),
    ] {
        let (action, _, outcome) = harness.run(IN, &other.frame(&payload));
        assert_eq!((action, outcome), (Action::Pass, expected));
    }

    // A flood of binds of known circuits from one address with many ports, and then from many.
    let mut runner = harness.runner();
    let mut flood = |of: &dyn Fn(u32) -> SocketAddr, frames: u32| {
        let begun = Instant::now();
        let sent = (0..frames).map(|n| from(of(n), &message(2 + u64::from(n) % (CIRCUITS - 1))));
        let passed = sent.filter(|frame| passes(&mut runner, frame)).count();
        (passed as u64, begun.elapsed().as_secs_f64())
    };
    let one = |n: u32| SocketAddr::from(([192, 0, 2, 66], 1024 + (n % 60_000) as u16));
    let (got, seconds) = flood(&one, 20_000);
    let rate = source_rate(CIRCUITS as usize);
    let most = rate as f64 * (1.0 + seconds) + 2.0;
    assert!(got >= rate && got as f64 <= most, "{got} in {seconds} s");
    let many = |n: u32| SocketAddr::from(((0x0b00_0000 + n * 77).to_be_bytes(), 5000));
    let (got, seconds) = flood(&many, 60_000);
    let most = unbound_rate(CIRCUITS as usize) as f64 * (1.0 + seconds) + 2.0;
    assert!(got as f64 <= most, "{got} in {seconds} s");
    println!("{got} of 60000 messages of unbound sources passed in {seconds:.2} s");

    // Meanwhile a bound end renews its binding, and its datagrams are forwarded or passed as ever.
    for _ in 0..BOUND_RATE / 4 {
        let (action, _, outcome) = harness.run(IN, &a.frame(&message(1)));
        assert_eq!((action, outcome), (Action::Pass, Outcome::Message));
    }
    let (_, _, outcome) = harness.run(IN, &a.frame(&payload(1, 20)));
    assert_eq!(outcome, Outcome::Forwarded);
    harness.unbind(1, Side::B, &b);
    for _ in 0..5000 {
        let (action, ..) = harness.run(IN, &a.frame(&payload(1, 20)));
        assert_eq!(action, Action::Pass);
    }
    // Even so a bound source is not without limit.
    let mut got = 0;
    for _ in 0..2000 {
        got += u64::from(harness.run(IN, &a.frame(&message(1))).0 == Action::Pass);
    }
    assert!(got <= 2 * BOUND_RATE + 64, "{got}");
    // A removed circuit is unknown.
    harness.change([], [1]);
    let (action, _, outcome) = harness.run(IN, &a.frame(&message(1)));
    assert_eq!((action, outcome), (Action::Drop, Outcome::NoCircuit));
}

/// An interface that comes after the start, or is recreated, gets the program.
#[test]
fn the_program_follows_interfaces() {
    use causeway_tests::iproute;
    use gateway::circuit::fast::{self, Setting};

    const ADD: &str = "link add name late0 type veth peer name late1\nlink set late0 up\n\
                       link set late1 up\naddr add 192.0.9.1/24 dev late0\n";
    let Some(harness) = GatewayHarness::new(1, LONG, None, None) else {
        return;
    };
    let listen = [SocketAddr::from(([192, 0, 9, 1], PORT))];
    let wanted = || fast::wanted(None, &listen).expect("interfaces");
    let fast = &harness.fast;
    fast.attach(&wanted(), Setting::Auto).expect("none");
    assert!(!fast.differs(&wanted()).expect("interfaces"));
    for _ in 0..2 {
        iproute::batch(ADD).expect("a pair");
        assert_eq!(wanted(), ["late0"]);
        assert!(fast.differs(&wanted()).expect("interfaces"));
        assert!(!fast.is_attached(&["other".to_owned()]));
        fast.attach(&wanted(), Setting::Auto).expect("attached");
        let interfaces = fast.interfaces();
        let mode = interfaces[0].mode.as_ref().map(|mode| mode.name());
        assert_eq!(mode, Ok("native"));
        assert!(fast.is_attached(&wanted()) && !fast.differs(&wanted()).expect("interfaces"));
        iproute::batch("link set late0 address 02:00:00:00:aa:01\n").expect("an address");
        assert!(
            fast.differs(&wanted()).expect("interfaces"),
            "another MAC address"
        );
        iproute::batch("link del late0\n").expect("removed");
    }
    assert_eq!(wanted(), [""; 0]);
}
