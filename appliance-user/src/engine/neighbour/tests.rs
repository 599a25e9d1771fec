//! The state machine of the neighbour table, with a simulated clock.

use appliance_common::addr::{UNSPECIFIED, v4_mapped};

use super::*;
use crate::frame::testing::TAGGED as PORT;

const VNI: u32 = 1001;
const OTHER_VNI: u32 = 2002;
const MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
const BROADCAST: [u8; 6] = [0xff; 6];
/// The gateway, and an address beside it for questions about the gateway.
const SENDERS: Senders = Senders {
    v4: [Some([10, 1, 0, 1]), Some([10, 1, 0, 254])],
    v6: Some([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 9]),
};

/// A table with two networks, on ports with different interfaces.
fn table(settings: Settings) -> NeighbourTable {
    let mut table = NeighbourTable::new(settings, 7);
    table.set_network(VNI, PORT);
    table.set_network(OTHER_VNI, Port { ifindex: 4, ..PORT });
    let now = Instant::now();
    for vni in [VNI, OTHER_VNI] {
        table.set_senders(now, vni, SENDERS);
    }
    table
}

fn host(last: u8) -> HostKey {
    HostKey {
        vni: VNI,
        address: v4_mapped([10, 1, 0, last]),
    }
}

fn event(key: HostKey, mac: [u8; 6], kind: NeighbourEventKind) -> NeighbourEvent {
    NeighbourEvent {
        vni: key.vni,
        ifindex: if key.vni == VNI { 3 } else { 4 },
        address: key.address,
        mac,
        outer: PORT.outer,
        inner: PORT.inner,
        kind: kind as u16,
        flags: 0,
    }
}

fn reply(key: HostKey, mac: [u8; 6]) -> NeighbourEvent {
    event(key, mac, NeighbourEventKind::Reply)
}

/// The actions that are due at `now`.
fn due(table: &mut NeighbourTable, now: Instant) -> Vec<Action> {
    std::iter::from_fn(|| table.poll(now)).collect()
}

/// Polls at every deadline up to `end`; returns the actions with their times in milliseconds.
fn run(table: &mut NeighbourTable, start: Instant, end: Duration) -> Vec<(u128, Action)> {
    let mut now = start;
    let mut out = Vec::new();
    loop {
        let actions = due(table, now);
        out.extend(
            actions
                .into_iter()
                .map(|action| (now.duration_since(start).as_millis(), action)),
        );
        match table.next_deadline() {
            Some(next) if next <= start + end => {
                assert!(next > now, "poll did nothing at its deadline");
                now = next;
            }
            _ => return out,
        }
    }
}

/// Times and destination MAC addresses of the probes.
fn probes(actions: &[(u128, Action)]) -> Vec<(u128, [u8; 6])> {
    let probe = |(at, action): &(u128, Action)| match action {
        Action::Send { frame, .. } => {
            Some((*at, *frame.first_chunk().expect("an Ethernet header")))
        }
        _ => None,
    };
    actions.iter().filter_map(probe).collect()
}

/// Actions other than probes, with their times.
fn results(actions: &[(u128, Action)]) -> Vec<(u128, Action)> {
    let mut results = actions.to_vec();
    results.retain(|(_, action)| !matches!(action, Action::Send { .. }));
    results
}

fn state(table: &NeighbourTable, key: HostKey, now: Instant) -> Option<State> {
    let entry = table.entries(now).find(|entry| entry.key == key)?;
    Some(entry.state)
}

fn install(key: HostKey, mac: [u8; 6]) -> Action {
    Action::Install {
        key,
        neighbour: map_entry(&key, &PORT, mac),
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn an_absent_host_is_probed_three_times_and_fails() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    table.resolve(start, host(7));
    let actions = run(&mut table, start, Duration::from_millis(2500));
    let expected = [0, 300, 900].map(|at| (at, BROADCAST));
    assert_eq!(probes(&actions), expected);
    let key = host(7);
    let failed = [Action::Failed { key }, Action::InstallAbsent { key }];
    assert_eq!(results(&actions), failed.map(|action| (2100, action)));
    assert_eq!(table.counters().failed, 1);
    // The failure is remembered for a second: packets are dropped at once, without a probe.
    let later = start + Duration::from_millis(2500);
    table.resolve(later, host(7));
    assert_eq!(due(&mut table, later), [Action::Failed { key: host(7) }]);
    let removed = [(600, Action::Remove { key })];
    assert_eq!(run(&mut table, later, seconds(60)), removed);
    assert_eq!(table.entries(later).count(), 0);
    // After that it is probed again.
    let later = start + seconds(10);
    table.resolve(later, host(7));
    assert!(matches!(due(&mut table, later)[..], [Action::Send { .. }]));
}

#[test]
fn a_reply_installs_the_entry_and_releases_the_packets() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    table.resolve(start, host(7));
    assert!(matches!(
        due(&mut table, start)[..],
        [Action::Send { ifindex: 3, .. }]
    ));
    let at = start + Duration::from_millis(5);
    table.receive(at, &reply(host(7), MAC));
    let resolved = Action::Resolved {
        key: host(7),
        neighbour: map_entry(&host(7), &PORT, MAC),
    };
    assert_eq!(
        due(&mut table, at),
        [install(host(7), MAC), resolved.clone()]
    );
    assert_eq!(state(&table, host(7), at), Some(State::Reachable));
    // A known host is resolved at once; the map entry is written again, in case it is missing.
    table.resolve(at, host(7));
    assert_eq!(due(&mut table, at), [install(host(7), MAC), resolved]);
}

#[test]
fn a_router_is_confirmed_every_few_seconds_and_found_again_when_it_moved() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    table.set_routers([host(7)]);
    for key in [host(7), host(8)] {
        table.retain_resolved(start, key);
        run(&mut table, start, Duration::ZERO);
        table.receive(start, &reply(key, MAC));
    }
    // 7.5 s at most until the first question, by unicast; other hosts are asked later.
    let actions = run(&mut table, start, Duration::from_millis(7_500));
    assert_eq!(probes(&actions).first().map(|(_, to)| *to), Some(MAC));
    assert!(state(&table, host(8), start) == Some(State::Reachable));
    // No answer: three questions to the old MAC address, then to all.
    let at = start + Duration::from_millis(7_500);
    let actions = run(&mut table, at, seconds(4));
    assert!(probes(&actions).iter().any(|(_, to)| *to == BROADCAST));
    table.receive(at + seconds(4), &reply(host(7), OTHER_MAC));
    assert!(due(&mut table, at + seconds(4)).contains(&install(host(7), OTHER_MAC)));
}

#[test]
fn an_ipv6_host_is_solicited_at_its_group_and_then_at_its_address() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    let mut address = [0; 16];
    address[..2].copy_from_slice(&[0x20, 0x01]);
    address[15] = 7;
    let key = HostKey { vni: VNI, address };
    table.retain_resolved(start, key);
    let actions = run(&mut table, start, Duration::ZERO);
    assert_eq!(probes(&actions), [(0, [0x33, 0x33, 0xff, 0, 0, 7])]);
    table.receive(start, &reply(key, MAC));
    let actions = run(&mut table, start, seconds(45));
    assert_eq!(probes(&actions)[0].1, MAC);
}

#[test]
fn an_unused_entry_becomes_stale_and_is_removed() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    table.receive(
        start,
        &event(host(7), MAC, NeighbourEventKind::Announcement),
    );
    assert_eq!(due(&mut table, start), [install(host(7), MAC)]);
    // Reachable for 15 to 45 s, and without a probe from then on.
    assert_eq!(run(&mut table, start, seconds(45)), []);
    assert_eq!(
        state(&table, host(7), start + seconds(45)),
        Some(State::Stale)
    );
    let actions = run(&mut table, start + seconds(45), seconds(600));
    assert_eq!(actions, [(555_000, Action::Remove { key: host(7) })]);
    assert_eq!(table.next_deadline(), None);
}

#[test]
fn a_used_stale_entry_is_confirmed_by_unicast_then_broadcast_and_fails_at_last() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    table.receive(start, &reply(host(7), MAC));
    run(&mut table, start, seconds(45));
    let start = start + seconds(45);
    table.observe_flags(start, host(7), neighbour_flags::USED);
    assert_eq!(state(&table, host(7), start), Some(State::Delay));
    let actions = run(&mut table, start, seconds(8));
    let unicast = [2000, 3000, 4000].map(|at| (at, MAC));
    let broadcast = [5000, 6000, 7000].map(|at| (at, BROADCAST));
    assert_eq!(probes(&actions), [unicast, broadcast].concat());
    let failed = Action::Failed { key: host(7) };
    let absent = Action::InstallAbsent { key: host(7) };
    assert_eq!(results(&actions), [(8000, failed), (8000, absent)]);
}

#[test]
fn a_sign_of_life_ends_the_confirmation() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    table.receive(start, &reply(host(7), MAC));
    run(&mut table, start, seconds(45));
    let start = start + seconds(45);
    table.observe_flags(start, host(7), neighbour_flags::USED);
    let at = start + seconds(1);
    table.observe_flags(at, host(7), neighbour_flags::CONFIRMED);
    assert_eq!(state(&table, host(7), at), Some(State::Reachable));
    assert_eq!(probes(&run(&mut table, at, seconds(14))), []);
}

#[test]
fn a_kept_host_is_probed_without_end_at_growing_intervals() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    table.retain_resolved(start, host(7));
    let actions = run(&mut table, start, seconds(60));
    let times: Vec<u128> = probes(&actions).into_iter().map(|(at, _)| at).collect();
    assert_eq!(times[..6], [0, 20, 40, 60, 80, 100]);
    let gaps: Vec<u128> = times.windows(2).map(|w| w[1] - w[0]).collect();
    // Slow probes start at 100 ms and end at 1 s, each with a jitter of a quarter.
    assert!((75..=125).contains(&gaps[5]), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= 1250), "{gaps:?}");
    assert!(
        gaps.iter().skip(10).all(|gap| (750..=1250).contains(gap)),
        "{gaps:?}"
    );
    assert!(*times.last().expect("probes") > 58_000);
    // The failure is reported once, at the first probe after 3 s.
    let [
        (_, Action::InstallAbsent { .. }),
        (at, Action::Failed { .. }),
    ] = results(&actions)[..]
    else {
        panic!("{:?}", results(&actions));
    };
    assert!((3000..=4250).contains(&at), "{at}");
    // An answer after a long time is taken.
    let now = start + seconds(60);
    table.receive(now, &reply(host(7), MAC));
    assert_eq!(due(&mut table, now), [install(host(7), MAC)]);
    // A kept host is confirmed without traffic.
    assert_eq!(probes(&run(&mut table, now, seconds(45)))[0].1, MAC);
}

#[test]
fn a_host_that_is_no_longer_kept_is_not_probed() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    table.retain_resolved(start, host(7));
    due(&mut table, start);
    table.stop_keeping(start, host(7));
    assert_eq!(run(&mut table, start, seconds(60)), []);
    assert_eq!(table.entries(start).count(), 0);
}

#[test]
fn a_changed_mac_address_replaces_the_old_one_at_once() {
    let start = Instant::now();
    for (after, conflicts) in [(Duration::from_millis(900), 1), (seconds(2), 0)] {
        let mut table = table(Settings::default());
        table.receive(start, &reply(host(7), MAC));
        due(&mut table, start);
        let at = start + after;
        table.receive(at, &reply(host(7), OTHER_MAC));
        assert_eq!(due(&mut table, at), [install(host(7), OTHER_MAC)]);
        let counters = table.counters();
        assert_eq!((counters.mac_changed, counters.conflicts), (1, conflicts));
    }
}

#[test]
fn an_address_that_changes_too_often_keeps_its_mac_address_for_a_while() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    let mut now = start;
    for n in 0..20 {
        now = start + Duration::from_millis(100 * n);
        let mac = if n % 2 == 0 { MAC } else { OTHER_MAC };
        table.receive(now, &reply(host(7), mac));
    }
    let installed = due(&mut table, now).len();
    assert_eq!(installed, 1 + 5, "the first address and five changes");
    assert_eq!(table.counters().mac_changed, 5);
    assert!(table.counters().flaps_damped > 0);
    // The window began with the first change, after 100 ms.
    let at = start + Duration::from_millis(10_100);
    table.receive(at, &reply(host(7), MAC));
    assert_eq!(due(&mut table, at), [install(host(7), MAC)]);
}

#[test]
fn messages_that_no_host_can_have_sent_are_ignored() {
    let now = Instant::now();
    let mut table = table(Settings::default());
    let good = reply(host(7), MAC);
    let at = |address| NeighbourEvent { address, ..good };
    let invalid = [
        reply(host(7), BROADCAST),
        reply(host(7), [0; 6]),
        reply(host(7), [1, 0, 0x5e, 0, 0, 1]),
        at(v4_mapped([0, 0, 0, 1])),
        at(v4_mapped([127, 0, 0, 1])),
        at(v4_mapped([224, 0, 0, 1])),
        at(v4_mapped([255, 255, 255, 255])),
        at(UNSPECIFIED),
        at([0xff; 16]),
        NeighbourEvent { kind: 99, ..good },
    ];
    let wrong_port = [
        NeighbourEvent { ifindex: 4, ..good },
        NeighbourEvent { outer: 0, ..good },
        NeighbourEvent { inner: 5, ..good },
        NeighbourEvent { vni: 1, ..good },
    ];
    for event in invalid.iter().chain(&wrong_port) {
        table.receive(now, event);
    }
    table.receive(now, &reply(host(7), PORT.mac));
    // A host that asks for another host gets no entry: a scan must not fill the table.
    table.receive(
        now,
        &event(host(7), MAC, NeighbourEventKind::RequestToOther),
    );
    assert_eq!(due(&mut table, now), []);
    assert_eq!(table.entries(now).count(), 0);
    let counters = table.counters();
    assert_eq!(counters.ignored_invalid, invalid.len() as u64);
    assert_eq!(counters.ignored_port, wrong_port.len() as u64);
    assert_eq!(counters.ignored_own, 1);
}

#[test]
fn a_scan_of_absent_hosts_is_paced_and_delays_no_other_host() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    for n in 0..5000u16 {
        let [high, low] = n.to_be_bytes();
        let address = v4_mapped([10, 1, high + 1, low]);
        table.resolve(start, HostKey { vni: VNI, address });
    }
    let at_once = due(&mut table, start);
    let sent = |actions: &[Action]| {
        let sends = actions.iter().filter(|a| matches!(a, Action::Send { .. }));
        sends.count()
    };
    assert_eq!(sent(&at_once), 100, "the burst");
    // Hosts that would wait longer than the backlog of a second fail at once.
    let failures = at_once.iter();
    let failures = failures.filter(|action| matches!(action, Action::Failed { .. }));
    let failed = failures.count();
    assert!((3800..=3900).contains(&failed), "{failed}");
    assert_eq!(table.counters().throttled, failed as u64);
    // A kept host of the same network has a budget of its own; another network waits no longer than
    // the total rate requires.
    table.retain_resolved(start, host(7));
    let kept = due(&mut table, start);
    assert_eq!(sent(&kept), 1);
    let other = HostKey {
        vni: OTHER_VNI,
        address: v4_mapped([10, 1, 0, 7]),
    };
    table.resolve(start, other);
    let actions = run(&mut table, start, seconds(1));
    let is_other =
        |(_, action): &&(u128, Action)| matches!(action, Action::Send { ifindex: 4, .. });
    let (at, _) = actions.iter().find(is_other).expect("a probe");
    assert!(*at <= 10, "{at} ms");
    // In the long run the network keeps to its rate.
    let scan = actions
        .iter()
        .filter(|(_, action)| matches!(action, Action::Send { ifindex: 3, .. }));
    assert!(scan.count() <= 1000 + 20, "probes in a second");
}

/// Six networks are asked for 2000 absent hosts a second each, of which they may ask for 1000:
/// together more than the total rate of 5000. How long after its packet each tenth turn's host of
/// another network is asked for, in milliseconds; and the number of other questions.
fn beside_scans(tenant_of_other: u32) -> (Vec<Option<u128>>, usize) {
    let start = Instant::now();
    let mut table = NeighbourTable::new(Settings::default(), 7);
    let networks = 3001..=3006;
    for vni in networks.clone().chain([OTHER_VNI]) {
        let port = Port {
            ifindex: vni,
            ..PORT
        };
        table.set_network(vni, port);
        table.set_senders(start, vni, SENDERS);
    }
    table.set_tenants(networks.clone().map(|vni| (vni, 1)));
    table.set_tenants([(OTHER_VNI, tenant_of_other)]);
    let host = |vni, n: u16| {
        let [high, low] = n.to_be_bytes();
        let address = v4_mapped([10, 1, high + 1, low]);
        HostKey { vni, address }
    };
    let mut asked = BTreeMap::new();
    let mut scans = 0;
    let turns = 400u16;
    for n in 0..turns {
        let after = Duration::from_millis(10) * n.into();
        let now = start + after;
        for vni in networks.clone() {
            for scanned in 0..20 {
                table.resolve(now, host(vni, n * 20 + scanned));
            }
        }
        if n % 10 == 9 {
            table.resolve(now, host(OTHER_VNI, n));
        }
        for (at, action) in run(&mut table, now, Duration::from_millis(9)) {
            match action {
                Action::Send { ifindex, frame } if ifindex == OTHER_VNI => {
                    let target = *frame[42..].first_chunk().expect("a target");
                    let at = after.as_millis() + at;
                    asked.entry(v4_mapped(target)).or_insert(at);
                }
                Action::Send { .. } => scans += 1,
                _ => {}
            }
        }
    }
    let delay = |n: u16| {
        let at = asked.get(&host(OTHER_VNI, n).address)?;
        Some(at - 10 * u128::from(n))
    };
    ((9..turns).step_by(10).map(delay).collect(), scans)
}

#[test]
fn scans_of_six_networks_of_a_tenant_delay_no_host_of_another() {
    let (delays, scans) = beside_scans(2);
    let at_once = |delay: &Option<u128>| delay.is_some_and(|ms| ms <= 1);
    assert!(delays.iter().all(at_once), "{delays:?}");
    // The scans have what is left of the total rate.
    assert!(
        (18_000..=20_200).contains(&scans),
        "{scans} in four seconds"
    );
    // A host of the same tenant waits behind them.
    let (delays, _) = beside_scans(1);
    assert!(!delays.iter().all(at_once), "{delays:?}");
}

#[test]
fn a_full_table_evicts_unused_entries_and_never_kept_ones() {
    let now = Instant::now();
    let mut table = table(Settings {
        max_per_network: 3,
        ..Settings::default()
    });
    table.retain_resolved(now, host(1));
    table.resolve(now, host(2));
    table.receive(now, &reply(host(3), MAC));
    due(&mut table, now);
    // The incomplete entry goes first.
    table.receive(now, &reply(host(4), MAC));
    let evicted = Action::Failed { key: host(2) };
    assert_eq!(due(&mut table, now), [evicted, install(host(4), MAC)]);
    table.retain_resolved(now, host(3));
    table.retain_resolved(now, host(4));
    due(&mut table, now);
    table.receive(now, &reply(host(5), MAC));
    table.resolve(now, host(6));
    assert_eq!(due(&mut table, now), [Action::Failed { key: host(6) }]);
    let counters = table.counters();
    assert_eq!((counters.evicted, counters.refused_full), (1, 2));
}

#[test]
fn adopted_entries_are_checked_and_confirmed() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    let active = |key, port: &Port, mac| {
        let mut neighbour = map_entry(&key, port, mac);
        neighbour.flags |= neighbour_flags::ACTIVE;
        neighbour
    };
    table.adopt(start, host(1), active(host(1), &PORT, MAC));
    let moved = Port { ifindex: 9, ..PORT };
    table.adopt(start, host(2), active(host(2), &moved, MAC));
    table.adopt(start, host(3), active(host(3), &PORT, BROADCAST));
    let unknown = HostKey { vni: 1, ..host(4) };
    table.adopt(start, unknown, active(unknown, &PORT, MAC));
    assert_eq!(
        due(&mut table, start),
        [
            Action::Install {
                key: host(2),
                neighbour: active(host(2), &PORT, MAC)
            },
            Action::Remove { key: host(3) },
            Action::Remove { key: unknown },
        ]
    );
    // Both remaining ones are probed within five seconds, at their MAC addresses.
    let mut probed = probes(&run(&mut table, start, seconds(5)));
    probed.retain(|(_, destination)| *destination == MAC);
    assert!(probed.len() >= 2, "{probed:?}");
}

#[test]
fn a_changed_port_rewrites_the_entries_of_the_network() {
    let now = Instant::now();
    let mut table = table(Settings::default());
    table.receive(now, &reply(host(7), MAC));
    due(&mut table, now);
    table.set_network(VNI, PORT);
    assert_eq!(due(&mut table, now), []);
    let port = Port { outer: 7, ..PORT };
    table.set_network(VNI, port);
    let rewritten = Action::Install {
        key: host(7),
        neighbour: map_entry(&host(7), &port, MAC),
    };
    assert_eq!(due(&mut table, now), [rewritten]);
    table.remove_network(now, VNI);
    assert_eq!(due(&mut table, now), [Action::Remove { key: host(7) }]);
    table.resolve(now, host(7));
    assert_eq!(due(&mut table, now), [Action::Failed { key: host(7) }]);
}

/// Sender's MAC and IPv4 address of an ARP request behind one tag.
fn arp_sender(frame: &[u8]) -> ([u8; 6], [u8; 4]) {
    assert_eq!(frame[16..18], [8, 6], "{frame:02x?}");
    let field = |at: usize| &frame[18 + at..];
    let mac = *field(8).first_chunk().expect("a MAC address");
    (mac, *field(14).first_chunk().expect("an IPv4 address"))
}

#[test]
fn hosts_are_asked_with_an_address_of_ours_and_never_with_their_own_or_none() {
    let now = Instant::now();
    let mut table = table(Settings::default());
    for (host_number, sender) in [(7, 1), (1, 254)] {
        table.resolve(now, host(host_number));
        let [Action::Send { frame, .. }] = &due(&mut table, now)[..] else {
            panic!("one request");
        };
        // ARP inspection compares the frame's source with the sender in the body.
        assert_eq!(frame[6..12], PORT.mac);
        assert_eq!(arp_sender(frame), (PORT.mac, [10, 1, 0, sender]));
    }
}

#[test]
fn without_an_address_to_ask_with_a_host_is_not_asked_but_confirmed() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    table.set_senders(start, VNI, Senders::default());
    table.retain_resolved(start, host(7));
    table.resolve(start, host(8));
    let actions = run(&mut table, start, seconds(10));
    assert_eq!(probes(&actions), []);
    assert!(results(&actions).contains(&(2100, Action::Failed { key: host(8) })));
    assert!(table.counters().without_sender > 3);
    // With an address it is asked at once, without waiting for its next turn.
    let now = start + seconds(10);
    table.set_senders(now, VNI, SENDERS);
    let [Action::Remove { .. }, Action::Send { .. }] = due(&mut table, now)[..] else {
        panic!("not asked at once");
    };
    // An unsolicited request of the host resolves it, too.
    table.set_senders(now, VNI, Senders::default());
    table.receive(
        now,
        &event(host(7), MAC, NeighbourEventKind::RequestToOther),
    );
    assert_eq!(due(&mut table, now), [install(host(7), MAC)]);
}

#[test]
fn an_advertisement_without_override_keeps_the_mac_address_and_has_it_confirmed() {
    let start = Instant::now();
    let without_override = |mac| NeighbourEvent {
        flags: neighbour_event_flags::NO_OVERRIDE,
        ..reply(host(7), mac)
    };
    for keep in [false, true] {
        let mut table = table(Settings::default());
        table.receive(start, &without_override(MAC));
        if keep {
            table.retain_resolved(start, host(7));
        }
        // The first MAC address is taken, and the same one is a sign of life.
        table.receive(start, &without_override(MAC));
        assert_eq!(due(&mut table, start), [install(host(7), MAC)]);
        assert_eq!(state(&table, host(7), start), Some(State::Reachable));
        table.receive(start, &without_override(OTHER_MAC));
        let actions = run(&mut table, start, Duration::ZERO);
        assert_eq!(results(&actions), []);
        assert_eq!(table.counters().not_overridden, 1);
        if keep {
            assert_eq!(probes(&actions), [(0, MAC)]);
        } else {
            assert_eq!(state(&table, host(7), start), Some(State::Stale));
        }
    }
}

#[test]
fn a_host_at_a_group_mac_address_is_remembered_for_status() {
    let now = Instant::now();
    let mut table = table(Settings::default());
    let group = [0x03, 0xbf, 10, 1, 0, 7];
    table.receive(now, &reply(host(7), group));
    table.receive(now, &reply(host(8), BROADCAST));
    assert_eq!(due(&mut table, now), []);
    let named: Vec<_> = table.group_macs(now).collect();
    assert_eq!(named, [(host(7), group)]);
    assert_eq!(table.group_macs(now + seconds(600)).count(), 0);
    for n in 0..200 {
        table.receive(now, &reply(host(n), group));
    }
    assert_eq!(table.group_macs(now).count(), 16);
}

#[test]
fn entries_are_listed_after_any_key() {
    let start = Instant::now();
    let mut table = table(Settings::default());
    for n in 1..=5 {
        table.resolve(start, host(n));
    }
    let after = |key| table.entries_after(start, key).map(|entry| entry.key);
    let all: Vec<HostKey> = after(None).collect();
    assert_eq!(all, [1, 2, 3, 4, 5].map(host));
    assert_eq!(after(Some(host(3))).collect::<Vec<_>>(), all[3..]);
    assert_eq!(after(Some(host(5))).count(), 0);
}
