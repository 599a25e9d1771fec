//! Tracing packets through the programs: the filter, the decision at each step, and no trace
//! without a filter.

use appliance_common::{
    counters::Counter,
    events::{TraceEvent, TraceFilter, TraceProgram, TraceStep},
    wire::IPPROTO_UDP,
};
use causeway_tests::{
    harness::{Harness, Program},
    nat::{HostPort, Message, Verdict, end, inside, outside, packet},
    packet::{frame, ip, udp},
    world::*,
};

const A: &str = "10.1.0.10";
const PA: HostPort = HostPort::trunk(101, A_MAC);
const ALL: TraceFilter = TraceFilter {
    active: 1,
    ifindex: 0,
    vlan: 0,
    port: 0,
    protocol: 0,
    reserved: [0; 3],
    address: [0; 16],
};

/// Program, step, the counter that decided, and further counters.
type Step = (TraceProgram, TraceStep, Option<Counter>, Vec<Counter>);

fn counter(number: u16) -> Option<Counter> {
    Counter::ALL
        .iter()
        .copied()
        .find(|c| *c as u32 + 1 == u32::from(number))
}

fn step(event: &TraceEvent) -> Step {
    let programs = [
        TraceProgram::Access,
        TraceProgram::Uplink,
        TraceProgram::Combined,
        TraceProgram::Full,
        TraceProgram::NatOut,
        TraceProgram::NatIn,
    ];
    let program = programs
        .into_iter()
        .find(|p| *p as u16 == event.program)
        .expect("a program");
    let step = TraceStep::from_u16(event.step).expect("a step");
    let notes = event.counters.iter().filter_map(|n| counter(*n)).collect();
    (program, step, counter(event.counter), notes)
}

#[test]
fn a_packet_is_traced_from_program_to_program() {
    let Some(mut h) = Harness::tracing(World::nat(), ALL) else {
        return;
    };
    let (from, far) = (end(A, 1234), end(REMOTE, 53));
    let there = packet(Message::Udp, from, far);
    let Verdict::Outside(left) = inside(&mut h, PA, &there) else {
        panic!("it does not leave");
    };
    let events = h.trace_events();
    let steps: Vec<Step> = events.iter().map(step).collect();
    assert_eq!(
        steps,
        [
            (TraceProgram::Access, TraceStep::Enter, None, vec![]),
            (TraceProgram::Full, TraceStep::Continue, None, vec![]),
            (TraceProgram::NatOut, TraceStep::Continue, None, vec![]),
            (
                TraceProgram::NatOut,
                TraceStep::Verdict,
                Some(Counter::TranslatedOut),
                vec![Counter::FlowOpened]
            ),
        ]
    );
    let ingress = PA.sends(&there);
    assert_eq!(events[0].head[..ingress.len()], ingress);
    assert_eq!(events[0].len as usize, ingress.len());
    assert_eq!(events[0].ifindex, TRUNK);
    // As it is at each step: in the end, as it leaves.
    let last = &events[3];
    assert_eq!(last.head[14..14 + left.len()], left);
    assert_eq!(last.len as usize, 14 + left.len());
    assert_eq!(last.action, 4, "redirected");
    assert!(events.iter().all(|e| e.packet == events[0].packet));

    outside(&mut h, &packet(Message::Udp, far, end(NAT4, 1234)));
    let events = h.trace_events();
    let steps: Vec<Step> = events.iter().map(step).collect();
    assert_eq!(
        steps,
        [
            (TraceProgram::Uplink, TraceStep::Enter, None, vec![]),
            (TraceProgram::NatIn, TraceStep::Continue, None, vec![]),
            (
                TraceProgram::NatIn,
                TraceStep::Verdict,
                Some(Counter::TranslatedIn),
                vec![Counter::FlowEstablished]
            ),
        ]
    );
    assert!(events[0].packet != last.packet);
}

#[test]
fn a_trace_names_the_reason_of_an_icmp_error() {
    let Some(mut h) = Harness::tracing(World::full(), ALL) else {
        return;
    };
    let l3 = udp(ip(A), ip("10.3.0.10"), 1, 2, b"not allowed");
    h.run(Program::Access, TRUNK, &PA.sends(&l3))
        .expect("it runs");
    let steps: Vec<Step> = h.trace_events().iter().map(step).collect();
    assert_eq!(
        steps.last(),
        Some(&(
            TraceProgram::Full,
            TraceStep::Verdict,
            Some(Counter::UnreachableSent),
            vec![Counter::DropPolicy]
        ))
    );
}

#[test]
fn only_packets_that_match_the_filter_are_traced() {
    let of = |h: &mut Harness, program, ifindex, packet: &[u8]| {
        h.run(program, ifindex, packet).expect("it runs");
        !h.trace_events().is_empty()
    };
    let l3 = udp(ip(A), ip(REMOTE), 1000, 53, b"x");
    let (tcp, other) = (
        packet(Message::Tcp(2), end(A, 1000), end(REMOTE, 53)),
        udp(ip("10.1.0.11"), ip(LISTED), 1001, 54, b"x"),
    );
    let v6 = udp(ip("2001:db8:1::10"), ip(REMOTE6), 1000, 53, b"x");
    let address = |text: &str| TraceFilter {
        address: address(text),
        ..ALL
    };
    // A filter, and whether it matches: that packet, TCP, another host's, IPv6.
    for (what, filter, wants) in [
        ("everything", ALL, [true; 4]),
        ("nothing", TraceFilter { active: 0, ..ALL }, [false; 4]),
        ("a source", address(A), [true, true, false, false]),
        ("a destination", address(REMOTE), [true, true, false, false]),
        ("one of IPv6", address(REMOTE6), [false, false, false, true]),
        (
            "a protocol",
            TraceFilter {
                protocol: IPPROTO_UDP,
                ..ALL
            },
            [true, false, true, true],
        ),
        (
            "a port",
            TraceFilter {
                port: 53u16.to_be(),
                ..ALL
            },
            [true, true, false, true],
        ),
        (
            "a port of the source",
            TraceFilter {
                port: 1001u16.to_be(),
                ..ALL
            },
            [false, false, true, false],
        ),
        ("a VLAN", TraceFilter { vlan: 101, ..ALL }, [true; 4]),
        ("another VLAN", TraceFilter { vlan: 102, ..ALL }, [false; 4]),
        (
            "an interface",
            TraceFilter {
                ifindex: TRUNK,
                ..ALL
            },
            [true; 4],
        ),
        (
            "another interface",
            TraceFilter {
                ifindex: UPLINK,
                ..ALL
            },
            [false; 4],
        ),
    ] {
        let Some(mut h) = Harness::tracing(World::nat(), filter) else {
            return;
        };
        for (l3, want) in [&l3, &tcp, &other, &v6].into_iter().zip(wants) {
            assert_eq!(
                of(&mut h, Program::Access, TRUNK, &PA.sends(l3)),
                want,
                "{what}: {l3:02x?}"
            );
        }
        // Short and odd frames are no trouble.
        for len in [14, 15, 17, 18, 22, 34, 40] {
            let odd = frame(TRUNK_MAC, A_MAC, &[tag(101)], &l3);
            h.run(Program::Access, TRUNK, &odd[..len]).expect("it runs");
        }
        h.trace_events();
    }
}

#[test]
fn programs_without_tracing_trace_nothing() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    // Even with a filter in the map: these programs have no tracing code.
    h.set_trace_filter(ALL).expect("written");
    inside(&mut h, PA, &packet(Message::Udp, end(A, 1), end(REMOTE, 2)));
    assert_eq!(h.trace_events(), []);
}
