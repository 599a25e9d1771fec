//! Short connections of two tenants at a steady rate, with the daemon's sweeper on the same maps:
//! none is refused while the tables have room by Little's law (docs/nat.md), and established
//! connections continue.
//!
//! 20 seconds with 16 384 places; with `CAUSEWAY_LONG=1` ten minutes, with 65 536 and with a
//! million places; or `CAUSEWAY_NAT_LOAD` seconds.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    time::{Duration, Instant},
};

use appliance_common::{
    counters::Counter,
    nat::{ALL_TENANTS, MappingKey, TenantQuota, TenantUsage},
};
use appliance_user::{
    config::LogTarget,
    datapath::nat::{
        ConnectionSweeper,
        log::{NatLog, Output},
        over_quota_limit,
    },
};
use aya::maps::Array;
use causeway_tests::{
    harness::{Harness, Program, counter_name, describe, missing},
    nat::{End, HostPort, Message, end, ends, packet},
    packet::{
        frame,
        tcp_flags::{ACK, FIN, SYN},
    },
    series, skip,
    world::*,
};

/// New connections a second of both tenants together.
const RATE: u64 = 2000;
/// How long a connection is open.
const OPEN: Duration = Duration::from_secs(1);
/// The flag of a segment with data.
const PSH: u8 = 8;
/// Connections of each tenant that stay established.
const ESTABLISHED: u16 = 200;
/// Host inside, the same address with both tenants.
const A: &str = "10.1.0.10";

/// A tenant's host and the ports that it uses for short connections.
struct Tenant {
    place: HostPort,
    established: Vec<(End, End)>,
    next: u16,
}

/// A connection: which tenant's, the end inside, and its end outside.
type Open = (usize, End, End);

struct Load {
    h: Harness,
    tenants: [Tenant; 2],
    refused: u64,
}

impl Load {
    fn new(h: Harness) -> Self {
        let tenant = |place| Tenant {
            place,
            established: Vec::new(),
            next: 0,
        };
        let tenants = [
            tenant(HostPort::trunk(101, A_MAC)),
            tenant(HostPort::trunk(201, G_MAC)),
        ];
        Self {
            h,
            tenants,
            refused: 0,
        }
    }

    /// Whether a packet from inside leaves, and the source that it leaves with.
    fn sends(&mut self, tenant: usize, flags: u8, from: End) -> Option<End> {
        let place = self.tenants[tenant].place;
        let l3 = packet(Message::Tcp(flags), from, end(REMOTE, 80));
        let sent = place.sends(&l3);
        let (action, out) = self
            .h
            .run(Program::Access, place.ifindex, &sent)
            .expect("it runs");
        action.sends().then(|| ends(&out[14..]).0)
    }

    /// Whether a packet from outside reaches its host.
    fn receives(&mut self, flags: u8, outer: End) -> bool {
        let l3 = packet(Message::Tcp(flags), end(REMOTE, 80), outer);
        let sent = frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &l3);
        let (action, _) = self.h.run(Program::Uplink, UPLINK, &sent).expect("it runs");
        action.sends()
    }

    /// Opens a connection and sends on it both ways.
    fn open(&mut self, tenant: usize, from: End) -> Option<Open> {
        let outer = self.sends(tenant, SYN, from);
        let opened = outer.filter(|outer| {
            self.receives(SYN | ACK, *outer)
                && self.sends(tenant, ACK, from) == Some(*outer)
                && self.sends(tenant, ACK | PSH, from) == Some(*outer)
                && self.receives(ACK | PSH, *outer)
        });
        self.refused += u64::from(opened.is_none());
        opened.map(|outer| (tenant, from, outer))
    }

    /// Closes it from both ends.
    fn close(&mut self, (tenant, from, outer): Open) {
        let closed = self.sends(tenant, FIN | ACK, from) == Some(outer)
            && self.receives(FIN | ACK, outer)
            && self.sends(tenant, ACK, from) == Some(outer);
        assert!(closed, "an open connection ended: {from:?} as {outer:?}");
    }

    fn establish(&mut self) {
        for tenant in 0..2 {
            for port in 0..ESTABLISHED {
                let from = end(A, 64_000 + port);
                let (_, from, outer) = self.open(tenant, from).expect("there is room");
                self.tenants[tenant].established.push((from, outer));
            }
        }
    }

    fn all_go_on(&mut self) {
        for tenant in 0..2 {
            for at in 0..usize::from(ESTABLISHED) {
                let (from, outer) = self.tenants[tenant].established[at];
                assert_eq!(self.sends(tenant, ACK, from), Some(outer), "{from:?}");
                assert!(self.receives(ACK, outer), "to {outer:?}");
            }
        }
    }

    /// A short connection of the next port of the tenant, which it uses again after a minute.
    fn short(&mut self, tenant: usize) -> Option<Open> {
        let next = &mut self.tenants[tenant].next;
        *next = (*next + 1) % 60_000;
        let port = 2000 + *next;
        self.open(tenant, end(A, port))
    }

    fn usage(&self) -> TenantUsage {
        let usages: Array<_, TenantUsage> = self.h.open_map("USAGE").expect("a map");
        usages.get(&ALL_TENANTS, 0).expect("an entry")
    }
}

/// Runs the load for `seconds` with this room for connections and for mappings.
fn run(places: u32, seconds: u64) {
    let mut world = World::nat();
    world.quotas = vec![
        TenantQuota {
            connections: places / 2,
            mappings: places / 2,
        };
        2
    ];
    world.nat.log = 1;
    world.nat.over_quota_connections = over_quota_limit(places);
    world.nat.over_quota_mappings = over_quota_limit(places);
    // The second tenant has an address of its own, too.
    for address in world.nat_addresses.iter_mut().filter(|a| a.last != 0) {
        (address.first, address.last) = (1024, 65_535);
    }
    let h = Harness::load_sized(world, places).unwrap_or_else(|e| panic!("{}", describe(&e)));
    let pins = h.pin().unwrap_or_else(|e| panic!("{}", describe(&e)));
    let lines = tempfile::NamedTempFile::new().expect("a file");
    let target = LogTarget::File(lines.path().to_owned());
    let log = NatLog::spawn(h.open_map("NAT_EVENTS").expect("a ring")).expect("a thread");
    log.set_output(Some(Output::open(&target).expect("it opens")));
    log.set_names((0..2).map(|slot| (slot, format!("tenant{slot}"))).collect());
    let sweeper = ConnectionSweeper::spawn(pins.root(), Some(log.removed()));
    let sweeper = sweeper.expect("the maps are pinned");
    let mut load = Load::new(h);
    load.establish();
    let (began, mut looked) = (Instant::now(), Instant::now());
    let mut open: VecDeque<(Instant, Open)> = VecDeque::new();
    let (mut opened, mut most) = (0, TenantUsage::default());
    while began.elapsed() < Duration::from_secs(seconds) {
        let wanted = began.elapsed().as_millis() as u64 * RATE / 1000;
        while opened < wanted {
            if let Some(connection) = load.short((opened % 2) as usize) {
                open.push_back((Instant::now(), connection));
            }
            opened += 1;
        }
        while let Some((_, connection)) = open.pop_front_if(|(since, _)| since.elapsed() >= OPEN) {
            load.close(connection);
        }
        if looked.elapsed() >= Duration::from_secs(1) {
            looked = Instant::now();
            load.all_go_on();
            let usage = load.usage();
            most.connections = most.connections.max(usage.connections);
            most.mappings = most.mappings.max(usage.mappings);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let removed: BTreeMap<_, _> = sweeper.removals().counts().collect();
    let logged = Logged::read(lines.path(), opened + 2 * u64::from(ESTABLISHED));
    let passes = sweeper.passes();
    println!(
        "{places} places: {opened} connections in {:.1} s, {} refused, at most {} connections and \
         {} mappings; removed: {removed:?}; {} passes, the longest {:?}; {logged:?}",
        began.elapsed().as_secs_f64(),
        load.refused,
        most.connections,
        most.mappings,
        passes.count(),
        passes.longest(),
    );
    let drops: Vec<_> = load
        .h
        .counters()
        .into_iter()
        .filter(|(slot, _)| {
            Counter::ALL
                .iter()
                .any(|c| *c as u32 == *slot && c.is_drop())
        })
        .map(|(slot, count)| (counter_name(slot), count))
        .collect();
    assert_eq!((load.refused, drops), (0, Vec::new()));
    assert_eq!(removed["over_quota"], 0, "nothing established is evicted");
    // Little's law: the time in the table is that of the connection, then `closed_seconds`, then at
    // most the ten seconds between two passes and both of these; two seconds are the clock's ticks.
    let time = OPEN + 2 * passes.longest() + Duration::from_secs(10 + 10 + 2);
    let bound = (RATE as f64 * time.as_secs_f64()) as u64;
    assert!(
        most.connections <= bound + 2 * u64::from(ESTABLISHED),
        "{most:?}"
    );
    // Each has a port of its own; its mapping is logged once, with its tenant.
    assert_eq!(log.lost(), 0);
    assert_eq!(logged.opened, [logged.opened[0]; 2], "{logged:?}");
    assert_eq!(logged.opened[0] * 2, opened + 2 * u64::from(ESTABLISHED));
    assert!(logged.closed >= removed["unused_mapping"], "{logged:?}");
    assert_eq!(logged.wrong, None);
    if places < 20_000 {
        assert!(removed["closed"] > 0, "the table never pressed");
    }
}

#[test]
fn a_pass_that_removes_many_mappings_is_logged_whole() {
    /// More than the queue has room for, by far.
    const MAPPINGS: u32 = 300_000;
    if let Some(why) = missing() {
        return skip(&why);
    }
    let h = Harness::load(World::nat()).unwrap_or_else(|e| panic!("{}", describe(&e)));
    let log = NatLog::spawn(h.open_map("NAT_EVENTS").expect("a ring")).expect("a thread");
    let lines = tempfile::NamedTempFile::new().expect("a file");
    let target = LogTarget::File(lines.path().to_owned());
    log.set_output(Some(Output::open(&target).expect("it opens")));
    let removed = log.removed();
    let began = Instant::now();
    for number in 0..MAPPINGS {
        let key = |zone| MappingKey {
            zone,
            port: number as u16,
            ..MappingKey::default()
        };
        removed.add(key(1), key(0));
    }
    println!("{MAPPINGS} removed mappings in {:?}", began.elapsed());
    assert_eq!(log.lost(), 0);
    drop(log);
    let text = std::fs::read_to_string(lines.path()).expect("it is there");
    assert_eq!(text.lines().count(), MAPPINGS as usize);
}

/// Lines of the NAT log.
#[derive(Debug, Default)]
struct Logged {
    opened: [u64; 2],
    closed: u64,
    wrong: Option<String>,
}

impl Logged {
    /// Reads the file once it has all lines about opened mappings, or does not grow any more.
    fn read(path: &Path, wanted: u64) -> Self {
        let mut last = 0;
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let text = std::fs::read_to_string(path).expect("it is there");
            let mut logged = Self::default();
            for line in text.lines() {
                let value: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
                let inside = value["inside"].as_str().unwrap_or_default();
                match (value["event"].as_str(), value["tenant"].as_str()) {
                    _ if !inside.starts_with(A) || value["protocol"] != "tcp" => {
                        logged.wrong = Some(line.to_owned());
                    }
                    (Some("opened"), Some("tenant0")) => logged.opened[0] += 1,
                    (Some("opened"), Some("tenant1")) => logged.opened[1] += 1,
                    (Some("closed"), Some("tenant0" | "tenant1")) => logged.closed += 1,
                    _ => logged.wrong = Some(line.to_owned()),
                }
            }
            if logged.opened.iter().sum::<u64>() >= wanted || text.len() == last {
                return logged;
            }
            last = text.len();
        }
    }
}

#[test]
fn short_connections_at_a_high_rate_are_not_refused_and_displace_none() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let seconds = series::length("CAUSEWAY_NAT_LOAD", 20, 600);
    if !series::is_long() {
        return run(16_384, seconds);
    }
    let threads =
        [65_536, 1_000_000].map(|places| std::thread::spawn(move || run(places, seconds)));
    for thread in threads {
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
