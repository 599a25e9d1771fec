//! The programs' log lines: a state that a correct daemon never leaves behind is logged once a
//! second, and nothing about a packet that is handled as configured.

use appliance_common::{
    limits::MAX_NETWORKS,
    maps::{Config, Jump, SCHEMA_VERSION},
};
use aya::maps::{Array, ProgramArray};
use causeway_tests::{
    harness::{Action, Harness, LogLine, Program},
    nat::{HostPort, Message, Verdict, end, inside, packet},
    packet::{ip, udp},
    world::*,
};
use log::Level;

const A: &str = "10.1.0.10";
const PA: HostPort = HostPort::trunk(101, A_MAC);

/// Runs packets `times` times, and returns the lines logged.
fn lines_of(h: &mut Harness, times: u32, mut run: impl FnMut(&mut Harness)) -> Vec<LogLine> {
    for _ in 0..times {
        run(h);
    }
    h.log_lines()
}

#[test]
fn carried_packets_log_nothing() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    let there = packet(Message::Udp, end(A, 1234), end(REMOTE, 53));
    let lines = lines_of(&mut h, 100, |h| {
        assert!(matches!(inside(h, PA, &there), Verdict::Outside(_)));
    });
    assert_eq!(lines, []);
}

#[test]
fn an_unwritten_configuration_logs_nothing_and_another_schema_is_logged() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let written = h.world.config;
    let sent = replica(&udp(ip(A), ip("10.1.0.20"), 1, 2, b"x"));
    let with_version = |h: &mut Harness, version: u32| {
        let mut map: Array<_, Config> = h.open_map("CONFIG").expect("CONFIG");
        map.set(0, Config { version, ..written }, 0).expect("write");
        lines_of(h, 50, |h| {
            let (action, out) = h.run(Program::Access, TRUNK, &sent).expect("run");
            assert_eq!(action, Action::Pass);
            assert_eq!(out, sent);
        })
    };
    assert_eq!(with_version(&mut h, 0), []);
    let lines = with_version(&mut h, SCHEMA_VERSION + 1);
    // One from each CPU that ran packets, in the first second.
    let cpus = aya::util::nr_cpus().expect("CPUs");
    assert!((1..=cpus).contains(&lines.len()), "{lines:?}");
    let (found, known) = (SCHEMA_VERSION + 1, SCHEMA_VERSION);
    for line in lines {
        assert_eq!(line.level, Level::Error);
        assert_eq!(
            line.text,
            format!(
                "map CONFIG has schema {found}, these programs know {known}: frames pass \
                 unclassified; restart the daemon"
            )
        );
    }
}

#[test]
fn a_failed_tail_call_is_dropped_and_logged() {
    // A set of its own, because others share the program array.
    let Some(shared) = Harness::new(World::nat()) else {
        return;
    };
    drop(shared);
    let mut h = Harness::load(World::nat()).expect("load");
    let mut jumps: ProgramArray<_> = h.open_map("JUMPS").expect("JUMPS");
    jumps.clear_index(&(Jump::Full as u32)).expect("clear");
    let there = PA.sends(&packet(Message::Udp, end(A, 1234), end(REMOTE, 53)));
    let lines = lines_of(&mut h, 50, |h| {
        let (action, _) = h.run(Program::Access, TRUNK, &there).expect("run");
        assert_eq!(action, Action::Drop);
    });
    assert!(!lines.is_empty());
    for line in lines {
        assert_eq!(line.level, Level::Error);
        assert_eq!(
            line.text,
            format!(
                "no program in entry {} of map JUMPS: its packets are dropped; restart the daemon",
                Jump::Full as u32
            )
        );
    }
}

#[test]
fn an_attachment_without_a_network_is_logged_with_its_slot() {
    let mut world = World::provider();
    for (_, attachment) in &mut world.attachments {
        attachment.network = MAX_NETWORKS - 1;
    }
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let sent = replica(&udp(ip(A), ip("10.1.0.20"), 1, 2, b"x"));
    let lines = lines_of(&mut h, 50, |h| {
        let (action, _) = h.run(Program::Access, TRUNK, &sent).expect("run");
        assert_eq!(action, Action::Drop);
    });
    assert!(!lines.is_empty());
    for line in lines {
        assert_eq!(line.level, Level::Warn);
        assert!(
            line.text
                .contains(&format!("network slot {}", MAX_NETWORKS - 1)),
            "{}",
            line.text
        );
    }
}
