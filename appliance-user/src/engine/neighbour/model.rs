//! The neighbour table against a model, over random sequences of events and times.
//!
//! The model knows which map entries the actions left, which hosts a packet waits for, and which
//! hosts are kept. It does not know how the table decides.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const VNIS: [u32; 2] = [1001, 2002];
/// Hosts of a network, numbered; the last two are IPv6.
const HOSTS: u8 = 6;
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Longest wait of a packet: the probes of an absent host with doubled pauses (2.1 s), or the time
/// after which a kept host is reported (3 s, and up to 1.25 s to its next probe), each after
/// waiting for a slot in the budget of its network, and for its tenant's turn in the total budget.
const LONGEST_WAIT: Duration = Duration::from_secs(8);

#[derive(Clone, Debug)]
enum Event {
    Resolve(HostKey),
    Keep(HostKey),
    Release(HostKey),
    Received(HostKey, u8, u16, u32),
    Flags(HostKey, u32),
    Port(u32, u16),
    Remove(u32),
    Senders(u32, bool),
    Wait(u64),
}

fn key(network: usize, host: u8) -> HostKey {
    let address = if host < HOSTS - 2 {
        appliance_common::addr::v4_mapped([10, 1, 0, host + 1])
    } else {
        let mut address = [0; 16];
        address[..2].copy_from_slice(&[0x20, 0x01]);
        address[15] = host;
        address
    };
    HostKey {
        vni: VNIS[network % 2],
        address,
    }
}

fn keys() -> impl Strategy<Value = HostKey> {
    (0..2usize, 0..HOSTS).prop_map(|(network, host)| key(network, host))
}

fn vnis() -> impl Strategy<Value = u32> {
    (0..2usize).prop_map(|network| VNIS[network])
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => keys().prop_map(Event::Resolve),
        2 => keys().prop_map(Event::Keep),
        2 => keys().prop_map(Event::Release),
        5 => (keys(), 0..4u8, 1..6u16, 0..2u32)
            .prop_map(|(key, mac, kind, flags)| Event::Received(key, mac, kind, flags)),
        2 => (keys(), 0..4u32).prop_map(|(key, flags)| Event::Flags(key, flags)),
        1 => (vnis(), 0..3u16).prop_map(|(vni, outer)| Event::Port(vni, outer)),
        1 => vnis().prop_map(Event::Remove),
        1 => (vnis(), any::<bool>()).prop_map(|(vni, some)| Event::Senders(vni, some)),
        6 => prop_oneof![0..50u64, 500..5_000u64, 20_000..700_000u64].prop_map(Event::Wait),
    ]
}

fn port(vni: u32, outer: u16) -> Port {
    Port {
        ifindex: vni,
        outer,
        inner: 0,
        outer_ethertype: 0x8100,
        mac: OWN_MAC,
    }
}

/// The addresses with which the appliance asks: two that no host of the model has.
fn senders(some: bool) -> Senders {
    let mut v6 = [0; 16];
    v6[..2].copy_from_slice(&[0xfe, 0x80]);
    v6[15] = 9;
    if some {
        Senders {
            v4: [Some([10, 1, 0, 253]), Some([10, 1, 0, 254])],
            v6: Some(v6),
        }
    } else {
        Senders::default()
    }
}

struct Model {
    table: NeighbourTable,
    now: Instant,
    /// Ports and whether there are senders, by VNI.
    networks: BTreeMap<u32, (Port, bool)>,
    /// The contents of the map `NEIGHBOURS`.
    map: BTreeMap<HostKey, Neighbour>,
    waiting: BTreeMap<HostKey, Instant>,
    kept: BTreeSet<HostKey>,
}

impl Model {
    fn new(settings: Settings) -> Self {
        let mut model = Self {
            table: NeighbourTable::new(settings, 7),
            now: Instant::now(),
            networks: BTreeMap::new(),
            map: BTreeMap::new(),
            waiting: BTreeMap::new(),
            kept: BTreeSet::new(),
        };
        for vni in VNIS {
            model.apply(&Event::Port(vni, 0));
            model.apply(&Event::Senders(vni, true));
        }
        model
    }

    fn apply(&mut self, event: &Event) {
        let now = self.now;
        match event {
            Event::Resolve(key) => {
                self.waiting.entry(*key).or_insert(now);
                self.table.resolve(now, *key);
            }
            Event::Keep(key) => {
                if self.networks.contains_key(&key.vni) {
                    self.kept.insert(*key);
                }
                self.restart_waits(|waiting| waiting == key);
                self.table.retain_resolved(now, *key);
            }
            Event::Release(key) => {
                self.kept.remove(key);
                self.restart_waits(|waiting| waiting == key);
                self.table.stop_keeping(now, *key);
            }
            Event::Received(key, mac, kind, flags) => {
                let outer = self
                    .networks
                    .get(&key.vni)
                    .map_or(0, |(port, _)| port.outer);
                let mac = match mac {
                    0 => OWN_MAC,
                    1 => [0x03, 0xbf, 0, 0, 0, 1],
                    n => [2, 0, 0, 0, 1, *n],
                };
                self.table.receive(
                    now,
                    &NeighbourEvent {
                        vni: key.vni,
                        ifindex: key.vni,
                        address: key.address,
                        mac,
                        outer,
                        inner: 0,
                        kind: *kind,
                        flags: *flags,
                    },
                );
            }
            Event::Flags(key, flags) => self.table.observe_flags(now, *key, *flags),
            Event::Port(vni, outer) => {
                let port = port(*vni, *outer);
                self.networks
                    .entry(*vni)
                    .and_modify(|network| network.0 = port)
                    .or_insert((port, false));
                self.table.set_network(*vni, port);
                self.table.set_tenants([(*vni, u32::from(*outer % 2))]);
            }
            Event::Remove(vni) => {
                self.networks.remove(vni);
                self.kept.retain(|key| key.vni != *vni);
                self.table.remove_network(now, *vni);
            }
            Event::Senders(vni, some) => {
                if let Some(network) = self.networks.get_mut(vni) {
                    network.1 = *some;
                }
                self.restart_waits(|waiting| waiting.vni == *vni);
                self.table.set_senders(now, *vni, senders(*some));
            }
            Event::Wait(milliseconds) => {
                let end = now + Duration::from_millis(*milliseconds);
                while let Some(next) = self.table.next_deadline().filter(|next| *next <= end) {
                    assert!(next > self.now, "poll did nothing at its deadline");
                    self.now = next;
                    self.poll();
                }
                self.now = end;
            }
        }
        self.poll();
    }

    /// Probing begins anew for some hosts, and so do the waits for them.
    fn restart_waits(&mut self, of: impl Fn(&HostKey) -> bool) {
        for (_, since) in self.waiting.iter_mut().filter(|(key, _)| of(key)) {
            *since = self.now;
        }
    }

    fn poll(&mut self) {
        while let Some(action) = self.table.poll(self.now) {
            match action {
                Action::Send { ifindex, frame } => self.check_question(ifindex, &frame),
                Action::Install { key, neighbour } => drop(self.map.insert(key, neighbour)),
                Action::InstallAbsent { key } => {
                    let absent = Neighbour::absent().hashed(&key);
                    self.map.insert(key, absent);
                }
                Action::Remove { key } => drop(self.map.remove(&key)),
                Action::Resolved { key, neighbour } => {
                    assert_eq!(self.map.get(&key), Some(&neighbour), "{key:?}");
                    self.waiting.remove(&key);
                }
                Action::Failed { key } => drop(self.waiting.remove(&key)),
            }
        }
    }

    /// A question is asked on a network's port, with an address of ours as sender.
    fn check_question(&self, ifindex: u32, frame: &[u8]) {
        let (port, asks) = self.networks.get(&ifindex).expect("a network's port");
        assert!(*asks, "asked without an address of ours");
        let senders = senders(true);
        assert_eq!(frame[6..12], port.mac, "the frame's source");
        let l3 = if port.outer == 0 { 14 } else { 18 };
        let body = &frame[l3..];
        if frame[l3 - 2..l3] == [8, 6] {
            let sender: [u8; 4] = *body[14..].first_chunk().expect("a sender");
            assert!(senders.v4.contains(&Some(sender)), "{sender:?}");
            assert_eq!(body[8..14], port.mac, "the sender's MAC address");
            assert_ne!(body[14..18], body[24..28], "an announcement");
        } else {
            assert_eq!(Some(&body[8..24]), senders.v6.as_ref().map(|v6| &v6[..]));
            assert_eq!(body[66..72], port.mac, "the source link-layer option");
        }
    }

    /// Asserts the invariants of the table.
    fn check(&self, settings: &Settings) {
        let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
        let mut installed = BTreeMap::new();
        for entry in self.table.entries(self.now) {
            *sizes.entry(entry.key.vni).or_default() += 1;
            let (port, _) = self.networks.get(&entry.key.vni).expect("a network");
            let has_mac = matches!(
                entry.state,
                State::Reachable | State::Stale | State::Delay | State::Probe
            );
            assert_eq!(entry.mac.is_some(), has_mac, "{entry:?}");
            if let Some(mac) = entry.mac {
                assert!(frame::is_host_mac(&mac) && mac != OWN_MAC, "{entry:?}");
                installed.insert(entry.key, map_entry(&entry.key, port, mac));
            } else if entry.state == State::Failed {
                installed.insert(entry.key, Neighbour::absent().hashed(&entry.key));
            }
        }
        assert_eq!(self.map, installed, "the map and the table");
        assert!(sizes.values().all(|size| *size <= settings.max_per_network));
        for (key, since) in &self.waiting {
            let waited = self.now.saturating_duration_since(*since);
            assert!(waited <= LONGEST_WAIT, "{key:?} waits for {waited:?}");
        }
        if settings.max_per_network > usize::from(HOSTS) {
            for key in &self.kept {
                let mut entries = self.table.entries(self.now);
                assert!(entries.any(|e| e.key == *key && e.keep), "{key:?} is kept");
            }
        }
    }
}

proptest! {
    #[test]
    fn map_waits_and_questions_hold_over_any_events(
        events in prop::collection::vec(events(), 1..120),
        small in any::<bool>(),
        slow in any::<bool>(),
    ) {
        let settings = Settings {
            max_per_network: if small { 3 } else { 100 },
            probes_total: if slow { 20 } else { 5_000 },
            probe_burst: if slow { 2 } else { 100 },
            ..Settings::default()
        };
        let mut model = Model::new(settings);
        for event in &events {
            model.apply(event);
            model.check(&settings);
        }
        // Whatever happened, every wait ends.
        model.apply(&Event::Wait(LONGEST_WAIT.as_millis() as u64));
        prop_assert!(model.waiting.is_empty(), "{:?}", model.waiting);
    }
}

#[test]
fn a_flood_of_hosts_and_questions_keeps_to_memory_and_rates() {
    let settings = Settings {
        max_per_network: 1000,
        ..Settings::default()
    };
    let mut model = Model::new(settings);
    let start = model.now;
    let vni = VNIS[0];
    let mut sent = 0;
    for n in 0..60_000u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let key = HostKey {
            vni,
            address: appliance_common::addr::v4_mapped([10, a + 1, b, c]),
        };
        // A third of the hosts announce themselves, the others are absent and are asked for.
        let event = if n % 3 == 0 {
            Event::Received(key, 2, NeighbourEventKind::Announcement as u16, 0)
        } else {
            Event::Resolve(key)
        };
        model.apply(&event);
        if n % 30 == 0 {
            model.apply(&Event::Wait(1));
        }
        sent = model.table.counters().probes_sent;
        assert!(model.table.entries.len() <= settings.max_per_network);
    }
    let seconds = model.now.duration_since(start).as_secs_f64();
    let allowed =
        f64::from(settings.probes_per_network) * seconds + f64::from(settings.probe_burst);
    assert!(sent as f64 <= allowed + 1.0, "{sent} in {seconds} s");
    // Another network is not concerned: its host is asked for at once.
    let before = model.table.counters().probes_sent;
    model.apply(&Event::Resolve(key(1, 0)));
    model.apply(&Event::Wait(5));
    assert!(model.table.counters().probes_sent > before);
}
