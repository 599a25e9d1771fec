//! The engines together: what a served address, a claim, an endpoint and a replica lead to.

use super::*;
use crate::frame::testing::UNTAGGED;
use appliance_common::addr::from_ip;

const VNI: u32 = 1001;
const PORT: Port = Port {
    mac: [2, 0, 0, 0, 0, 1],
    ..UNTAGGED
};
const REPLICA_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn engines(now: Instant) -> Engines {
    let mut engines = Engines::new(1);
    engines.set_ports(now, BTreeMap::from([(VNI, PORT)]));
    let senders = Senders {
        v4: [Some([10, 1, 0, 1]), None],
        v6: None,
    };
    engines.set_senders(now, &BTreeMap::from([(VNI, senders)]));
    engines
}

fn key() -> HostKey {
    HostKey {
        vni: VNI,
        address: from_ip([10, 1, 0, 10].into()),
    }
}

fn frames(engines: &mut Engines, now: Instant) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(output) = engines.poll(now) {
        if let Output::Send { ifindex, frame } = output {
            assert_eq!(ifindex, PORT.ifindex);
            frames.push(frame);
        }
    }
    frames
}

/// The sender's MAC and IPv4 address of an ARP frame without a tag.
fn sender(frame: &[u8]) -> ([u8; 6], [u8; 4]) {
    (
        frame[22..28].try_into().expect("six bytes"),
        frame[28..32].try_into().expect("four bytes"),
    )
}

#[test]
fn tenant_side_announces_its_own_mac_for_a_failed_over_address() {
    let now = Instant::now();
    let mut engines = engines(now);
    engines.endpoint_added(now, Role::Tenant, key());
    engines.set_served_addresses(now, address_on(PORT));
    let sent = frames(&mut engines, now);
    assert!(!sent.is_empty());
    for frame in sent {
        assert_eq!(sender(&frame), (PORT.mac, [10, 1, 0, 10]));
    }
}

fn address_on(port: Port) -> ServedAddresses {
    ServedAddresses::from([((port, key().address), false)])
}

#[test]
fn claims_are_announced_anew_after_a_link_came_up_or_a_mac_address_changed() {
    let now = Instant::now();
    let later = |seconds| now + Duration::from_secs(seconds);
    let mut engines = engines(now);
    engines.set_served_addresses(now, address_on(PORT));
    // The rounds are over, and the first repetition may be.
    for second in 0..=10 {
        frames(&mut engines, later(second));
    }
    engines.set_served_addresses(later(10), address_on(PORT));
    assert!(frames(&mut engines, later(10)).is_empty(), "nothing is new");
    // The link is down, and up again.
    engines.set_served_addresses(later(11), ServedAddresses::new());
    for second in 11..100 {
        assert!(frames(&mut engines, later(second)).is_empty(), "{second}");
    }
    engines.set_served_addresses(later(100), address_on(PORT));
    assert_eq!(frames(&mut engines, later(100)).len(), 2);
    // Another MAC address.
    let changed = Port {
        mac: [2, 0, 0, 0, 0, 2],
        ..PORT
    };
    engines.set_ports(later(101), BTreeMap::from([(VNI, changed)]));
    engines.set_served_addresses(later(101), address_on(changed));
    let mut sent = frames(&mut engines, later(101));
    // Beside the announcements, another owner of the address is asked for.
    sent.retain(|frame| sender(frame).1 == [10, 1, 0, 10]);
    assert_eq!(sent.len(), 2);
    for frame in sent {
        assert_eq!(sender(&frame), (changed.mac, [10, 1, 0, 10]));
    }
}

fn claim_event(mac: [u8; 6]) -> NeighbourEvent {
    NeighbourEvent {
        vni: VNI,
        ifindex: PORT.ifindex,
        address: key().address,
        mac,
        outer: 0,
        inner: 0,
        kind: NeighbourEventKind::Claim as u16,
        flags: 0,
    }
}

fn conflicts_begun(engines: &mut Engines, now: Instant) -> usize {
    let outputs = std::iter::from_fn(|| engines.poll(now));
    outputs
        .filter(|output| matches!(output, Output::ConflictBegun(_)))
        .count()
}

#[test]
fn another_machine_with_a_claimed_address_is_a_conflict_until_the_claim_ends() {
    let now = Instant::now();
    let mut engines = engines(now);
    engines.receive(now, &claim_event(REPLICA_MAC));
    assert_eq!(conflicts_begun(&mut engines, now), 0, "not ours");
    engines.set_served_addresses(now, address_on(PORT));
    frames(&mut engines, now);
    engines.receive(now, &claim_event(PORT.mac));
    assert_eq!(conflicts_begun(&mut engines, now), 0, "our own frame");
    engines.receive(now, &claim_event(REPLICA_MAC));
    assert_eq!(conflicts_begun(&mut engines, now), 1);
    assert_eq!(engines.conflicts().next().map(|c| c.mac), Some(REPLICA_MAC));
    engines.set_served_addresses(now, ServedAddresses::new());
    assert_eq!(engines.conflicts().count(), 0);
}

#[test]
fn machines_with_a_claimed_address_are_asked_for_with_another_address() {
    let now = Instant::now();
    let mut engines = engines(now);
    engines.set_served_addresses(now, address_on(PORT));
    let mut asked = Vec::new();
    for second in 0..65 {
        let sent = frames(&mut engines, now + Duration::from_secs(second));
        // The announcement has the address as sender.
        asked.extend(sent.into_iter().filter(|f| sender(f).1 != [10, 1, 0, 10]));
    }
    assert!((2..=4).contains(&asked.len()), "{}", asked.len());
    for frame in asked {
        assert_eq!(sender(&frame), (PORT.mac, [10, 1, 0, 1]));
        assert_eq!(frame[38..42], [10, 1, 0, 10]);
    }
}

#[test]
fn new_claims_are_asked_for_first_and_silent_conflicts_of_many_claims_last() {
    let now = Instant::now();
    let mut engines = engines(now);
    let many = |count: u16| -> ServedAddresses {
        let address = |n: u16| {
            let [high, low] = n.to_be_bytes();
            appliance_common::addr::v4_mapped([10, 9, high, low])
        };
        (0..count).map(|n| ((PORT, address(n)), false)).collect()
    };
    engines.set_served_addresses(now, many(10_000));
    let mut later = now;
    while later < now + Duration::from_secs(300) {
        later += Duration::from_millis(20);
        while engines.poll(later).is_some() {}
    }
    let mut addresses = many(10_000);
    addresses.insert((PORT, key().address), false);
    engines.set_served_addresses(later, addresses.clone());
    let asks = |frame: &Vec<u8>| frame[38..42] == [10, 1, 0, 10] && sender(frame).1[3] == 1;
    later += Duration::from_millis(50);
    assert!(frames(&mut engines, later).iter().any(asks), "at once");
    // A round takes 200 seconds; a machine that only answers is one conflict all the time.
    engines.receive(later, &claim_event(REPLICA_MAC));
    assert_eq!(conflicts_begun(&mut engines, later), 1);
    later += Duration::from_secs(201);
    while let Some(output) = engines.poll(later) {
        assert!(!matches!(output, Output::ConflictEnded(_)));
    }
    engines.receive(later, &claim_event(REPLICA_MAC));
    assert_eq!(conflicts_begun(&mut engines, later), 0);
}

#[test]
fn a_machine_back_in_production_is_announced_for_ten_minutes_where_it_is() {
    let now = Instant::now();
    let later = |seconds| now + Duration::from_secs(seconds);
    let mut engines = engines(now);
    engines.endpoint_removed(now, Role::Tenant, key(), false);
    frames(&mut engines, now);
    let speaks = |mac| NeighbourEvent {
        kind: NeighbourEventKind::Announcement as u16,
        ..claim_event(mac)
    };
    engines.receive(now, &speaks(REPLICA_MAC));
    // By minute, the MAC addresses that are announced.
    let mut announced = vec![BTreeSet::new(); 12];
    for second in 0..720 {
        if second == 310 {
            // The cluster's address moves to another machine.
            engines.receive(later(second), &speaks([2, 0, 0, 0, 0, 8]));
        }
        engines.expire_corrections(later(second));
        for frame in frames(&mut engines, later(second)) {
            if sender(&frame).1 == [10, 1, 0, 10] {
                announced[second as usize / 60].insert(sender(&frame).0);
            }
        }
    }
    for (minute, macs) in announced.iter().enumerate() {
        let want: &[[u8; 6]] = match minute {
            0..5 => &[REPLICA_MAC],
            // The first seconds of the sixth, at most.
            5 => &[[2, 0, 0, 0, 0, 8], REPLICA_MAC],
            6.. => &[[2, 0, 0, 0, 0, 8]],
        };
        assert!(!macs.is_empty(), "minute {minute}");
        assert!(
            macs.iter().all(|mac| want.contains(mac)),
            "{minute}: {macs:?}"
        );
    }
    // The second machine's ten minutes end.
    engines.expire_corrections(later(911));
    assert_eq!(engines.announcer.pending(), 0);
}

#[test]
fn served_address_that_outlives_a_mode_is_announced_in_the_new_one() {
    let now = Instant::now();
    let mut engines = engines(now);
    engines.set_served_addresses(now, address_on(PORT));
    frames(&mut engines, now);
    engines.cancel_announcements(VNI);
    engines.set_served_addresses(now, address_on(PORT));
    assert_eq!(frames(&mut engines, now).len(), 2);
}

#[test]
fn provider_side_announces_a_replica_only_once_it_is_resolved() {
    let now = Instant::now();
    let mut engines = engines(now);
    engines.endpoint_added(now, Role::Provider, key());
    let asked = frames(&mut engines, now);
    let announces = |frame: &Vec<u8>| sender(frame).1 == [10, 1, 0, 10];
    assert!(!asked.is_empty() && !asked.iter().any(announces));
    // A packet waits for it.
    engines.neighbours.resolve(now, key());
    let event = NeighbourEvent {
        vni: VNI,
        ifindex: PORT.ifindex,
        address: key().address,
        mac: REPLICA_MAC,
        outer: 0,
        inner: 0,
        kind: NeighbourEventKind::Reply as u16,
        flags: 0,
    };
    engines.receive(now, &event);
    let sent = frames(&mut engines, now);
    let announced: Vec<_> = sent.iter().filter(|f| announces(f)).collect();
    assert!(!announced.is_empty());
    for frame in announced {
        assert_eq!(sender(frame).0, REPLICA_MAC);
    }
}

#[test]
fn provider_side_answers_for_a_returned_address_only_in_partial_failover() {
    for (still_partial, announced) in [(true, true), (false, false)] {
        let now = Instant::now();
        let mut engines = engines(now);
        // Another replica, and the one that is to leave, which has a second address.
        for (address, mac) in [
            ([10, 1, 0, 11], [2; 6]),
            ([10, 1, 0, 10], REPLICA_MAC),
            ([10, 1, 0, 12], REPLICA_MAC),
        ] {
            let event = NeighbourEvent {
                address: appliance_common::addr::v4_mapped(address),
                kind: NeighbourEventKind::Announcement as u16,
                ..claim_event(mac)
            };
            engines.receive(now, &event);
        }
        frames(&mut engines, now);
        engines.endpoint_removed(now, Role::Provider, key(), still_partial);
        let sent = frames(&mut engines, now);
        assert_eq!(!sent.is_empty(), announced);
        for frame in sent {
            assert_eq!(sender(&frame), (PORT.mac, [10, 1, 0, 10]));
            assert_eq!(frame[..6], [2; 6], "not to the replica that had it");
        }
    }
}

#[test]
fn machine_that_does_not_come_back_is_looked_for_ten_minutes() {
    let now = Instant::now();
    let mut engines = engines(now);
    engines.endpoint_removed(now, Role::Tenant, key(), true);
    assert_eq!(
        engines
            .neighbours_after(now, None)
            .filter(|e| e.keep)
            .count(),
        1
    );
    engines.expire_corrections(now + CORRECTION_TIMEOUT - Duration::from_secs(1));
    assert_eq!(
        engines
            .neighbours_after(now, None)
            .filter(|e| e.keep)
            .count(),
        1
    );
    engines.expire_corrections(now + CORRECTION_TIMEOUT);
    assert_eq!(
        engines
            .neighbours_after(now, None)
            .filter(|e| e.keep)
            .count(),
        0
    );
}

#[test]
fn second_owners_of_gateways_and_public_addresses_are_asked_for() {
    let now = Instant::now();
    let mut engines = engines(now);
    let uplink = Port {
        ifindex: PORT.ifindex + 1,
        ..PORT
    };
    let gateway = from_ip([10, 1, 0, 1].into());
    let public = from_ip([203, 0, 113, 20].into());
    let outside = Senders {
        v4: [Some([203, 0, 113, 5]), None],
        v6: None,
    };
    engines.set_outside_senders(Some((uplink.ifindex, outside)));
    let addresses = ServedAddresses::from([((PORT, gateway), true), ((uplink, public), false)]);
    engines.set_served_addresses(now, addresses);
    let mut questions = BTreeMap::new();
    for second in 0..=65 {
        let now = now + Duration::from_secs(second);
        while let Some(output) = engines.poll(now) {
            let Output::Send { ifindex, frame } = output else {
                continue;
            };
            // Not the announcements, whose sender is the address itself.
            if frame[28..32] != frame[38..42] {
                let target = <[u8; 4]>::try_from(&frame[38..42]).expect("four bytes");
                questions.insert((ifindex, target), sender(&frame).1);
            }
        }
    }
    // Nothing but the gateway's address is ours on the tenant's network: a probe (RFC 5227), which
    // only a host that is about to use the gateway's address takes for a conflict.
    let expected = [
        ((PORT.ifindex, [10, 1, 0, 1]), [0; 4]),
        ((uplink.ifindex, [203, 0, 113, 20]), [203, 0, 113, 5]),
    ];
    assert_eq!(questions, BTreeMap::from(expected));
}
