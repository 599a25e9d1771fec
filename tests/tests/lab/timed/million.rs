//! A million connections in the NAT tables: how long a pass of the sweeper takes, and
//! whether packets and the daemon's loop wait for it.

use std::{
    net::{IpAddr, Ipv4Addr},
    thread,
    time::{Duration, Instant},
};

use appliance_common::{
    addr::from_ip,
    maps::{Mode, Tenant},
    nat::{
        ALL_TENANTS, Flow, FlowKey, Mapping, MappingKey, OUTSIDE, TenantUsage, UPLINK, Words,
        flow_flags,
    },
};
use appliance_user::datapath::nat::{PinnedMap, ticks_now};
use causeway_tests::{
    packet::ip,
    series,
    site::{PLAIN, Site},
};
use lab::Probe;

const PROVIDER: &str = "provider-appliance";
const SERVER: &str = "198.51.100.80";
const UDP: u8 = 17;
/// Connections of one address outside; each has a port of its own.
const PORTS: u64 = 60_000;
/// How long a pass is waited for: the sweeper begins one each ten seconds, or later where its
/// passes take more than a second.
const PASS_INTERVAL: Duration = Duration::from_secs(10);
/// How long a million connections are observed: a pass at least, as a pause is ten times as long.
const MILLION_TIME: Duration = Duration::from_secs(35);
/// Longest delay of a packet, and of a control reply, that a pass may cause. Both are far above
/// what a busy machine adds by itself, and far below the pass and the watchdog.
const MAX_DELAY: Duration = Duration::from_millis(500);

fn words(address: Ipv4Addr) -> Words {
    let bytes = from_ip(IpAddr::V4(address));
    let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| bytes[4 * at + i]));
    [0, 1, 2, 3].map(word)
}

/// Both directions of a connection, or both halves of its mapping.
type Both<K, V> = [(K, V); 2];

/// An answered UDP connection of its own endpoint to the internet: both directions, and both halves
/// of its mapping.
fn connection(
    number: u64,
    (zone, epoch): (u16, u32),
) -> (Both<FlowKey, Flow>, Both<MappingKey, Mapping>) {
    let (host, port) = ((number / PORTS) as u8, (number % PORTS) as u16 + 2000);
    let (inside, outside) = (
        words(Ipv4Addr::new(10, 1, 0, 100 + host)),
        words(Ipv4Addr::new(198, 18, 0, host)),
    );
    let key = FlowKey {
        source: inside,
        destination: words(Ipv4Addr::new(198, 51, 100, 99)),
        source_port: port.to_be(),
        destination_port: 4000_u16.to_be(),
        zone,
        protocol: UDP,
        reserved: 0,
    };
    let flow = Flow {
        source: outside,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        to_zone: OUTSIDE,
        state: 3,
        flags: flow_flags::MAPPED | flow_flags::INTERNET,
        to: UPLINK,
        from_epoch: epoch,
        last_seen: ticks_now(),
        entry_hash: key.entry_hash(),
        ..Flow::default()
    };
    let (mut back_key, mut back) = (FlowKey::default(), Flow::default());
    flow.inverse(&key, &mut back_key, &mut back);
    let half = |address, zone| MappingKey {
        address,
        port: key.source_port,
        zone,
        protocol: UDP,
        reserved: [0; 3],
    };
    let (in_half, out_half) = (half(inside, zone), half(outside, OUTSIDE));
    let to = |key: &MappingKey| Mapping {
        address: key.address,
        port: key.port,
        zone: key.zone,
        epoch,
        last_used: ticks_now(),
    };
    (
        [(key, flow), (back_key, back)],
        [(in_half, to(&out_half)), (out_half, to(&in_half))],
    )
}

/// Delays of packets and control replies, and passes, over a while.
struct Seen {
    /// Round trips of pings through translation: in the middle, and the longest.
    median: Duration,
    slowest: Duration,
    lost: usize,
    /// The longest control reply, with the start of the command.
    reply: Duration,
    /// The longest pass, and how many there were.
    pass: f64,
    passes: u64,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} passes, the longest {:.3} s; round trips: median {:?}, longest {:?}, {} lost; \
             longest control reply {:?}",
            self.passes, self.pass, self.median, self.slowest, self.lost, self.reply
        )
    }
}

/// A metric of the provider's appliance.
fn metric(site: &Site, name: &str) -> f64 {
    let text = site.ok(PROVIDER, &["curl", "-s", "http://127.0.0.1:9100/metrics"]);
    let name = format!("causeway_appliance_{name} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    let value = value.and_then(|value| value.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{name}in {text}"))
}

fn observe(site: &Site, time: Duration) -> Seen {
    let handle = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    let pinger = site
        .ping(
            "replica-a",
            ip(SERVER),
            Probe::Echo,
            Duration::from_millis(5),
        )
        .unwrap_or_else(|e| panic!("replica-a: {e}"));
    let (began, before) = (Instant::now(), metric(site, "nat_passes_total"));
    let (mut reply, mut pass) = (Duration::ZERO, 0.0_f64);
    while began.elapsed() < time {
        let asked = Instant::now();
        handle
            .must(&["status", "--json"])
            .unwrap_or_else(|e| panic!("{e}"));
        reply = reply.max(asked.elapsed());
        pass = pass.max(metric(site, "nat_pass_seconds"));
        thread::sleep(Duration::from_millis(20));
    }
    let passes = metric(site, "nat_passes_total") - before;
    let report = pinger.stop().unwrap_or_else(|e| panic!("replica-a: {e}"));
    println!("{}", report.summary());
    let times = report.sent.iter().zip(&report.received);
    let times = times.filter_map(|(sent, received)| Some((*received)? - (*sent)?));
    Seen {
        median: report.median_rtt().expect("replies"),
        slowest: times.max().expect("replies"),
        lost: report.lost().len(),
        reply,
        pass,
        passes: passes as u64,
    }
}

#[test]
fn a_pass_over_a_million_connections_holds_up_neither_packets_nor_replies() {
    let Some(site) = Site::bare(lab::sites::full, PLAIN) else {
        return;
    };
    let count = series::length("CAUSEWAY_NAT_ENTRIES", 100_000, 1_000_000);
    // Below the fill from which entries are evicted.
    let room = count * 3 / 2;
    site.configure(PROVIDER, |text| {
        let metrics = "[appliance]\nmetrics = \"127.0.0.1:9100\"\n";
        let text = text.replacen("[appliance]\n", metrics, 1);
        format!("{text}\n[nat]\nconnections = {room}\nmappings = {room}\n")
    });
    site.start_appliances().unwrap_or_else(|e| panic!("{e}"));
    site.fail_over_site("acme")
        .unwrap_or_else(|e| panic!("{e}"));
    site.reach("replica-a", SERVER);
    let empty = observe(&site, PASS_INTERVAL);
    println!("without connections: {empty}");

    let pins = site.pin_dir(PROVIDER);
    let mut versions = std::fs::read_dir(&pins).expect("pins").flatten();
    let root = versions.next().expect("a version").path();
    let open = "the map is pinned";
    let tenants: PinnedMap<u32, Tenant> = PinnedMap::open(&root, "TENANTS").expect(open);
    let mut full = None;
    tenants
        .for_each(|slot, tenant| {
            if tenant.mode == Mode::Full as u32 {
                full = Some((*slot as u16 + 1, tenant.epoch));
            }
        })
        .expect("it is read");
    let owner = full.expect("a tenant in full failover");
    let flows: PinnedMap<FlowKey, Flow> = PinnedMap::open(&root, "FLOWS").expect(open);
    let mappings: PinnedMap<MappingKey, Mapping> = PinnedMap::open(&root, "MAPPINGS").expect(open);
    let began = Instant::now();
    for number in 0..count {
        let (flow, mapping) = connection(number, owner);
        for (key, value) in flow {
            flows.set(&key, &value).expect("there is room");
        }
        for (key, value) in mapping {
            mappings.set(&key, &value).expect("there is room");
        }
    }
    println!("{count} connections written in {:?}", began.elapsed());
    // A pass may have begun before the last was written.
    thread::sleep(Duration::from_secs(2));
    let time = if series::is_long() {
        MILLION_TIME
    } else {
        PASS_INTERVAL
    };
    let seen = observe(&site, time + Duration::from_secs(2));
    println!("{count} connections: {seen}");

    let usage: PinnedMap<u32, TenantUsage> = PinnedMap::open(&root, "USAGE").expect(open);
    let usage = usage
        .get(&ALL_TENANTS)
        .expect("it is read")
        .expect("an entry");
    let all = count..=count + 10;
    assert!(
        all.contains(&usage.connections) && all.contains(&usage.mappings),
        "every connection is live, and none was removed: {usage:?}"
    );
    assert!(seen.passes >= 1, "{seen}");
    assert!(seen.slowest < MAX_DELAY, "{seen}, without: {empty}");
    assert!(seen.reply < MAX_DELAY, "{seen}, without: {empty}");
    assert_eq!(seen.lost, 0, "{seen}");
    let daemon = site
        .appliance(PROVIDER)
        .and_then(|handle| handle.process())
        .unwrap_or_else(|e| panic!("{e}"))
        .expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid));
    let status = status.unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    println!("daemon: {}", peak.unwrap_or_default());
}
