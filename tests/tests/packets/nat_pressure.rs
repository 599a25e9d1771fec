//! The sweeper on live maps that fill: what is evicted, in which order, and what stays
//! (docs/nat.md, "Which entries are evicted").

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use appliance_common::{counters::Counter, nat::TenantQuota};
use appliance_user::datapath::nat::{ConnectionSweeper, over_quota_limit};
use causeway_tests::{
    harness::{Harness, Pins, describe, missing},
    nat::{End, HostPort, Message, Verdict, end, ends, inside, outside, packet},
    packet::tcp_flags::{ACK, FIN, SYN},
    skip,
    world::*,
};

const A: &str = "10.1.0.10";
/// Capacity of both tables.
const CAPACITY: u32 = 1024;
/// Each tenant's part.
const QUOTA: u32 = CAPACITY / 2;
/// Longer than the time for which an entry must be idle to be evicted, and two passes.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(15);

/// A tenant with a rule for port 443.
#[derive(Clone, Copy)]
struct Tenant {
    place: HostPort,
    public: &'static str,
    machine: u16,
}

const ACME: Tenant = Tenant {
    place: HostPort::trunk(101, A_MAC),
    public: PUBLIC4,
    machine: 8443,
};
const GLOBEX: Tenant = Tenant {
    place: HostPort::trunk(201, G_MAC),
    public: PUBLIC2,
    machine: 443,
};

/// The programs, and the sweeper on their maps.
struct Appliance {
    h: Harness,
    sweeper: ConnectionSweeper,
    _pins: Pins,
}

impl Appliance {
    fn start() -> Option<Self> {
        let mut world = World::nat();
        world.quotas = vec![
            TenantQuota {
                connections: QUOTA,
                mappings: QUOTA,
            };
            2
        ];
        Self::with(world)
    }

    /// With the quotas of a world.
    fn with(mut world: World) -> Option<Self> {
        if let Some(why) = missing() {
            skip(&why);
            return None;
        }
        world.nat.over_quota_connections = over_quota_limit(CAPACITY);
        world.nat.over_quota_mappings = over_quota_limit(CAPACITY);
        let h = Harness::load_sized(world, CAPACITY).unwrap_or_else(|e| panic!("{}", describe(&e)));
        let pins = h.pin().unwrap_or_else(|e| panic!("{}", describe(&e)));
        let sweeper = ConnectionSweeper::spawn(pins.root(), None).expect("the maps are pinned");
        Some(Self {
            h,
            sweeper,
            _pins: pins,
        })
    }

    fn ends(tenant: Tenant, port: u16) -> (End, End, End) {
        let (public, machine) = (end(tenant.public, 443), end(A, tenant.machine));
        (end(REMOTE, port), public, machine)
    }

    /// Opens a connection by the tenant's rule. Returns whether the programs admit it.
    fn open(&mut self, tenant: Tenant, port: u16) -> bool {
        let (client, public, machine) = Self::ends(tenant, port);
        outside(&mut self.h, &packet(Message::Tcp(SYN), client, public));
        let answer = packet(Message::Tcp(SYN | ACK), machine, client);
        inside(&mut self.h, tenant.place, &answer);
        match outside(&mut self.h, &packet(Message::Tcp(ACK), client, public)) {
            Verdict::Host(_) => true,
            fate => {
                assert_eq!(fate, Verdict::Dropped(Counter::DropQuota));
                false
            }
        }
    }

    /// Whether the client's next segment reaches the machine, and the machine's the client.
    fn goes_on(&mut self, tenant: Tenant, port: u16) -> bool {
        let (client, public, machine) = Self::ends(tenant, port);
        let there = outside(&mut self.h, &packet(Message::Tcp(ACK), client, public));
        let back = packet(Message::Tcp(ACK), machine, client);
        matches!(there, Verdict::Host(_))
            && matches!(
                inside(&mut self.h, tenant.place, &back),
                Verdict::Outside(_)
            )
    }

    fn removed(&self) -> BTreeMap<&'static str, u64> {
        self.sweeper.removals().counts().collect()
    }

    /// Waits until the sweeper has removed `count` entries for the reason.
    fn await_removed(&self, reason: &str, count: u64) {
        let begun = Instant::now();
        while self.removed()[reason] < count {
            let removed = self.removed();
            assert!(
                begun.elapsed() < EVICTION_TIMEOUT,
                "{reason} < {count}: {removed:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn entries_over_quota_are_evicted_for_others_the_longest_idle_first() {
    let Some(mut appliance) = Appliance::start() else {
        return;
    };
    let limit = over_quota_limit(CAPACITY) as u16;
    let ports = |from: u16, count: u16| from..from + count;
    let opened = ports(10_000, limit + 50).filter(|port| appliance.open(ACME, *port));
    assert_eq!(
        opened.count(),
        usize::from(limit),
        "its part, and those over quota"
    );
    // The part itself is used again and again, the entries over quota are idle.
    let busy = ports(10_000 + limit - QUOTA as u16, QUOTA as u16);
    std::thread::sleep(Duration::from_secs(5));
    let mut refused = 0;
    for step in 0..QUOTA as u16 / 64 {
        for port in busy.clone() {
            assert!(appliance.goes_on(ACME, port), "{port} in step {step}");
        }
        for port in ports(20_000 + 64 * step, 64) {
            refused += u16::from(!appliance.open(GLOBEX, port));
        }
        std::thread::sleep(Duration::from_millis(700));
    }
    let removed = appliance.removed();
    println!("refused {refused}, removed {removed:?}");
    assert_eq!(refused, 0, "its own part");
    let taken = u64::from(2 * QUOTA) - u64::from(CAPACITY) + u64::from(limit) - u64::from(QUOTA);
    assert!(removed["over_quota"] >= taken, "{removed:?}");
    for reason in ["closed", "transitory", "expired", "stale"] {
        assert_eq!(removed[reason], 0, "{removed:?}");
    }
    // Each tenant has its part.
    for port in busy {
        assert!(appliance.goes_on(ACME, port), "acme's {port}");
    }
    for port in ports(20_000, QUOTA as u16) {
        assert!(appliance.goes_on(GLOBEX, port), "globex's {port}");
    }
    let left = ports(10_000, limit - QUOTA as u16).filter(|port| appliance.goes_on(ACME, *port));
    assert!(left.count() as u64 <= u64::from(limit) - u64::from(QUOTA) - removed["over_quota"]);
}

#[test]
fn half_closed_connections_give_way_and_established_ones_stay() {
    let Some(mut appliance) = Appliance::start() else {
        return;
    };
    let (established, closing) = (10_000..10_300, 20_000..20_400);
    for port in established.clone().chain(closing.clone()) {
        assert!(appliance.open(ACME, port), "{port}");
    }
    for port in closing {
        let (client, public, _) = Appliance::ends(ACME, port);
        let fin = packet(Message::Tcp(FIN | ACK), client, public);
        assert!(matches!(outside(&mut appliance.h, &fin), Verdict::Host(_)));
    }
    // Below the mark of 12/16 nothing is evicted.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(appliance.removed()["transitory"], 0);
    for port in 30_000..30_100 {
        assert!(appliance.open(ACME, port), "{port}");
    }
    // From 800 down to 11/16 of 1024.
    appliance.await_removed("transitory", 800 - 704);
    std::thread::sleep(Duration::from_secs(1));
    let removed = appliance.removed();
    assert!(
        removed["transitory"] <= 400 && removed["over_quota"] == 0,
        "{removed:?}"
    );
    for port in established.chain(30_000..30_100) {
        assert!(appliance.goes_on(ACME, port), "{port}");
    }
}

#[test]
fn unanswered_connections_give_way_when_mappings_fill() {
    let Some(mut appliance) = Appliance::start() else {
        return;
    };
    let leaves = |appliance: &mut Appliance, port: u16| {
        let l3 = packet(Message::Udp, end(A, port), end(REMOTE, 4000));
        matches!(
            inside(&mut appliance.h, ACME.place, &l3),
            Verdict::Outside(_)
        )
    };
    // Answered ones, which stay.
    for port in 5000..5100 {
        assert!(leaves(&mut appliance, port), "{port}");
        let answer = packet(Message::Udp, end(REMOTE, 4000), end(NAT4, port));
        assert!(matches!(
            outside(&mut appliance.h, &answer),
            Verdict::Host(_)
        ));
    }
    // A scan: more than 12/16 of the mappings, without an answer.
    for port in 11_000..11_750 {
        assert!(leaves(&mut appliance, port), "{port}");
    }
    appliance.await_removed("unanswered", 850 - 704);
    appliance.await_removed("unused_mapping", 850 - 704);
    let removed = appliance.removed();
    assert_eq!(
        (removed["over_quota"], removed["closed"]),
        (0, 0),
        "{removed:?}"
    );
    for port in 5000..5100 {
        let answer = packet(Message::Udp, end(REMOTE, 4000), end(NAT4, port));
        let fate = outside(&mut appliance.h, &answer);
        assert!(matches!(fate, Verdict::Host(_)), "{port}: {fate:?}");
    }
}

#[test]
fn mappings_over_quota_take_no_connections_by_rule_that_are_within_it() {
    let mut world = World::nat();
    // Room for the connections of both tenants in their quotas, for mappings half of the table.
    world.quotas = vec![
        TenantQuota {
            connections: CAPACITY,
            mappings: CAPACITY / 2,
        };
        2
    ];
    let Some(mut appliance) = Appliance::with(world) else {
        return;
    };
    let by_rule = 10_000..10_100;
    for port in by_rule.clone() {
        assert!(appliance.open(ACME, port), "{port}");
    }
    // Answered UDP from a port of its own.
    let answered = |appliance: &mut Appliance, tenant: Tenant, port: u16| {
        let l3 = packet(Message::Udp, end(A, port), end(REMOTE, 4000));
        let Verdict::Outside(out) = inside(&mut appliance.h, tenant.place, &l3) else {
            return false;
        };
        let answer = packet(Message::Udp, end(REMOTE, 4000), ends(&out).0);
        matches!(outside(&mut appliance.h, &answer), Verdict::Host(_))
    };
    for port in 11_000..11_600 {
        assert!(answered(&mut appliance, ACME, port), "{port}");
    }
    std::thread::sleep(Duration::from_secs(5));
    // Globex takes what is within its quota: more than may be over quota is in use.
    for port in 12_000..12_320 {
        assert!(answered(&mut appliance, GLOBEX, port), "{port}");
    }
    appliance.await_removed("over_quota", 24);
    std::thread::sleep(Duration::from_secs(4));
    let removed = appliance.removed();
    println!("removed {removed:?}");
    assert!(
        removed["over_quota"] <= 88,
        "beyond its quota only: {removed:?}"
    );
    for port in by_rule {
        assert!(appliance.goes_on(ACME, port), "{port} held no mapping");
    }
}
