//! Sites with a second router: hosts behind it, redirects, asymmetric paths, and gateways and next
//! hops that move from one router to the other.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::{
    packet::{Mac, arp, eth, frame, ip, l2, mac_at, multicast_mac, na},
    site::{Conversation, ENCRYPTED, PLAIN, Site, frames},
};
use lab::{Options, Probe};

const TENANT: &str = "tenant-appliance";
const PROVIDER: &str = "provider-appliance";
/// The failed-over machine, and its neighbour that stays.
const A: [&str; 2] = ["10.1.0.10", "2001:db8:1::10"];
const B: [&str; 2] = ["10.1.0.11", "2001:db8:1::11"];
/// The host behind the second router of acme's network web.
const BRANCH: [&str; 2] = ["10.8.0.2", "2001:db8:8::2"];
const GATEWAY: [&str; 2] = ["10.1.0.1", "2001:db8:1::1"];
/// The first and the second router of the provider's uplink.
const EDGE: [&str; 2] = ["203.0.113.1", "2001:db8:e::1"];
const EDGE2: [&str; 2] = ["203.0.113.2", "2001:db8:e::2"];
const SERVER: [&str; 2] = ["198.51.100.80", "2001:db8:99::80"];
const WEB: &str = "203.0.113.20";
const MS: Duration = Duration::from_millis(1);
/// Longest silence while a router takes over that announces itself, and while one does that does
/// not: 5 to 7.5 s until it is asked for, 3 s for unicast questions, and a busy machine.
const ANNOUNCED: Duration = Duration::from_secs(1);
const UNANNOUNCED: Duration = Duration::from_secs(15);

fn raise(options: Options) -> Option<Site> {
    Site::raise(lab::sites::two_routers, options)
}

/// Reverse path filtering as RFC 3704 section 2.2 has it, on every link of a host.
fn filter_strictly(site: &Site, host: &str) {
    for name in ["all", "default"] {
        let setting = format!("net.ipv4.conf.{name}.rp_filter=1");
        site.ok(host, &["sysctl", "-q", "-w", &setting]);
    }
}

fn mac(site: &Site, host: &str, link: &str) -> Mac {
    let text = site.mac(host, link);
    let bytes = text
        .split(':')
        .map(|b| u8::from_str_radix(b, 16).unwrap_or_else(|e| panic!("{text}: {e}")));
    let bytes: Vec<u8> = bytes.collect();
    bytes.try_into().unwrap_or_else(|_| panic!("{text}"))
}

/// Announces that `address` is at `link` of a host: gratuitous ARP (RFC 5227 section 3), or an
/// unsolicited advertisement of a router (RFC 4861 section 7.2.6).
fn announce(site: &Site, host: &str, link: &str, address: &str) {
    let own = mac(site, host, link);
    let whole = match ip(address) {
        IpAddr::V4(v4) => eth([0xff; 6], own, &[], 0x0806, &arp(1, own, v4, [0; 6], v4)),
        IpAddr::V6(v6) => {
            let all = std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            let packet = na(v6, all, v6, 0xa0, Some(own));
            frame(multicast_mac(all), own, &[], &packet)
        }
    };
    site.inject(host, link, &[whole])
        .unwrap_or_else(|e| panic!("{host}: {e}"));
}

/// An address with its prefix length, as `ip` wants it.
fn with_length(address: &str) -> String {
    let length = if address.contains(':') { 64 } else { 24 };
    format!("{address}/{length}")
}

/// Moves a router's address to another router, which announces it, as VRRP does.
fn move_address(site: &Site, address: &str, from: (&str, &str), to: (&str, &str)) {
    let address_on = |verb: &str, (host, link): (&str, &str)| {
        let with = with_length(address);
        let mut words = vec!["ip", "address", verb, &with, "dev", link];
        if verb == "add" && address.contains(':') {
            words.push("nodad");
        }
        site.ok(host, &words);
    };
    // The other addresses of the subnet stay (ip-sysctl.txt).
    let keep = format!("net.ipv4.conf.{}.promote_secondaries=1", from.1);
    site.ok(from.0, &["sysctl", "-q", "-w", &keep]);
    address_on("del", from);
    address_on("add", to);
    announce(site, to.0, to.1, address);
}

/// A router dies, and another one gets its address without an announcement.
fn take_over(site: &Site, address: &str, dead: (&str, &str), next: (&str, &str)) {
    site.ok(dead.0, &["ip", "link", "set", dead.1, "down"]);
    let with = with_length(address);
    site.ok(next.0, &["ip", "address", "add", &with, "dev", next.1]);
}

/// Pings each pair while `change` happens and for `after` it. Returns the longest silence of each.
fn silences(
    site: &Site,
    pairs: &[(&str, &str)],
    after: Duration,
    change: impl FnOnce(),
) -> Vec<Duration> {
    let series: Vec<_> = pairs
        .iter()
        .map(|(from, to)| {
            site.ping(from, ip(to), Probe::Echo, 20 * MS)
                .unwrap_or_else(|e| panic!("{from}: {e}"))
        })
        .collect();
    thread::sleep(500 * MS);
    change();
    thread::sleep(after);
    let reports = series.into_iter().zip(pairs).map(|(pinger, (from, to))| {
        let report = pinger.stop().unwrap_or_else(|e| panic!("{from}: {e}"));
        println!("{from} → {to}: {}", report.summary());
        let gap = report.longest_gap().expect("a reply");
        let last = report.received.iter().rev().take(10).flatten().count();
        assert!(
            last >= 5,
            "{from} → {to} stays silent: {}",
            report.summary()
        );
        gap.length()
    });
    reports.collect()
}

/// How many IP frames to a router's link the tunnel or NAT has sent there.
fn sent_to(router: Mac, captured: &[Vec<u8>], source: &str) -> usize {
    let source = ip(source);
    let is_from = |f: &[u8]| {
        let at = l2(f)?.l3;
        Some(match source {
            IpAddr::V4(v4) => f.get(at + 12..at + 16)? == v4.octets(),
            IpAddr::V6(v6) => f.get(at + 8..at + 24)? == v6.octets(),
        })
    };
    let to_router = captured.iter().filter(|f| mac_at(f, 0) == router);
    to_router.filter(|f| is_from(f) == Some(true)).count()
}

#[test]
fn hosts_behind_a_second_router_reach_a_failed_over_machine_and_back() {
    let Some(site) = raise(PLAIN) else { return };
    for router in ["router", "router2"] {
        filter_strictly(&site, router);
    }
    for (family, (a, branch)) in A.into_iter().zip(BRANCH).enumerate() {
        site.reach("branch", a);
        site.reach("prod-a", branch);
        println!("family {family}: reached before");
    }
    site.over("prod-a");
    // In: by the second router, whose cache was corrected. Back: by the gateway, which forwards to
    // the second router on the same network. Each router sees one direction only.
    let ours = site.mac(TENANT, "eth0");
    for (a, branch) in A.into_iter().zip(BRANCH) {
        site.reach("branch", a);
        site.reach("replica-a", branch);
        assert_eq!(site.neighbours("router2").get(&ip(a)), Some(&ours));
        site.tcp("branch", "replica-a", a, 1 << 20);
        site.tcp("replica-a", "branch", branch, 1 << 20);
    }
    // A machine with a route of its own through the second router asks for it at the provider's
    // side, and gets the appliance's MAC address. The tunnel carries packets, not next hops: the
    // gateway forwards them as before.
    let via = ["ip", "route", "add", "10.8.0.0/24", "via", "10.1.0.2"];
    site.ok("replica-a", &via);
    site.reach("replica-a", BRANCH[0]);
    let known = site.neighbours("replica-a");
    let provider = site.mac(PROVIDER, "eth1");
    assert_eq!(known.get(&ip("10.1.0.2")), Some(&provider), "{known:?}");
    // So without a route at the gateway, it does not reach the branch.
    site.ok("router", &["ip", "route", "del", "10.8.0.0/24"]);
    site.unreachable("replica-a", BRANCH[0]);
    site.ok(
        "router",
        &["ip", "route", "add", "10.8.0.0/24", "via", "10.1.0.2"],
    );
    site.reach("replica-a", BRANCH[0]);
    site.back("prod-a");
    for (a, branch) in A.into_iter().zip(BRANCH) {
        site.reach("branch", a);
        site.reach("prod-a", branch);
    }
}

#[test]
fn a_redirect_to_a_second_router_reaches_the_replica_and_harms_nothing() {
    let Some(site) = raise(PLAIN) else { return };
    site.over("prod-a");
    site.reach("replica-a", BRANCH[0]);
    // RFC 1812 section 5.2.7.2: the gateway tells the host to use the second router.
    for name in ["all", "web"] {
        let setting = format!("net.ipv4.conf.{name}.send_redirects=1");
        site.ok("router", &["sysctl", "-q", "-w", &setting]);
    }
    for name in ["all", "eth0"] {
        let setting = format!("net.ipv4.conf.{name}.accept_redirects=1");
        site.ok("replica-a", &["sysctl", "-q", "-w", &setting]);
    }
    let capture = site.sniff("replica-a", "eth0");
    let redirected = || site.ok("replica-a", &["ip", "route", "get", BRANCH[0]]);
    let until = Instant::now() + Duration::from_secs(10);
    while !redirected().contains("via 10.1.0.2") {
        site.reach("replica-a", BRANCH[0]);
        assert!(Instant::now() < until, "{}", redirected());
    }
    let is_redirect = |f: &Vec<u8>| {
        let Some(at) = l2(f).filter(|at| at.ethertype == 0x0800) else {
            return false;
        };
        f.get(at.l3 + 9) == Some(&1) && f.get(at.l3 + 20) == Some(&5)
    };
    assert!(frames(capture).iter().any(is_redirect));
    // The host sends to the second router's address, which the provider's appliance answers for.
    site.reach("replica-a", BRANCH[0]);
    site.reach("branch", A[0]);
    site.tcp("replica-a", "branch", BRANCH[0], 1 << 20);
}

/// Gateway and next hop of the tunnel at once: the tenant's appliance has one interface.
#[test]
fn traffic_follows_a_gateway_that_moves_to_the_second_router() {
    for encrypted in [false, true] {
        let options = if encrypted { ENCRYPTED } else { PLAIN };
        let Some(site) = raise(options) else { return };
        // As routers with VRRP: each has an address of its own, and the gateway's moves.
        site.ok(
            "router",
            &["ip", "address", "add", "10.1.0.3/24", "dev", "web"],
        );
        let default = ["ip", "route", "replace", "default", "via", "10.1.0.3"];
        site.ok("router2", &default);
        site.over("prod-a");
        let pairs = [("prod-b", A[0]), ("replica-a", BRANCH[0])];
        for (from, to) in pairs {
            site.reach(from, to);
        }
        let (first, second) = (("router", "web"), ("router2", "web"));
        let told = silences(&site, &pairs, Duration::from_secs(3), || {
            move_address(&site, GATEWAY[0], first, second);
        });
        assert!(told.iter().all(|gap| *gap < ANNOUNCED), "{told:?}");
        // And back, unannounced, as the second router dies: found by asking.
        let silent = silences(&site, &pairs[..1], Duration::from_secs(25), || {
            take_over(&site, GATEWAY[0], second, first);
        });
        println!("encrypted {encrypted}: announced {told:?}, not announced {silent:?}");
        assert!(silent.iter().all(|gap| *gap < UNANNOUNCED), "{silent:?}");
    }
}

#[test]
fn tunnels_follow_the_kernel_s_route_to_a_second_uplink_router() {
    for encrypted in [false, true] {
        let options = if encrypted { ENCRYPTED } else { PLAIN };
        let Some(site) = raise(options) else { return };
        filter_strictly(&site, PROVIDER);
        site.over("prod-a");
        let pairs = [("prod-b", A[0]), ("replica-a", B[1])];
        for (from, to) in pairs {
            site.reach(from, to);
        }
        let routers = ["edge", "edge2"].map(|edge| mac(&site, edge, "uplink"));
        let mut gaps = Vec::new();
        for (to, router, old) in [
            (EDGE2[0], routers[1], routers[0]),
            (EDGE[0], routers[0], routers[1]),
        ] {
            let default = ["ip", "route", "replace", "default", "via", to];
            gaps.extend(silences(&site, &pairs, Duration::from_secs(2), || {
                site.ok(PROVIDER, &default);
            }));
            let captures = ["edge", "edge2"].map(|edge| site.sniff(edge, "uplink"));
            site.reach("prod-b", A[0]);
            let seen: Vec<_> = captures.into_iter().flat_map(frames).collect();
            let count = |router| sent_to(router, &seen, "203.0.113.5");
            assert!(count(router) >= 10, "{} datagrams", count(router));
            assert_eq!(count(old), 0, "datagrams by the old router");
        }
        println!("encrypted {encrypted}: routes changed, silences {gaps:?}");
        assert!(gaps.iter().all(|gap| *gap < ANNOUNCED), "{gaps:?}");

        // The next hop's address moves to the other router; each has an address of its own.
        let own = ["ip", "address", "add", "203.0.113.3/24", "dev", "uplink"];
        site.ok("edge", &own);
        let (first, second) = (("edge", "uplink"), ("edge2", "uplink"));
        let told = silences(&site, &pairs, Duration::from_secs(3), || {
            move_address(&site, EDGE[0], first, second);
        });
        assert!(told.iter().all(|gap| *gap < ANNOUNCED), "{told:?}");
        let silent = silences(&site, &pairs, Duration::from_secs(25), || {
            take_over(&site, EDGE[0], second, first);
        });
        println!("encrypted {encrypted}: announced {told:?}, not announced {silent:?}");
        assert!(silent.iter().all(|gap| *gap < UNANNOUNCED), "{silent:?}");
    }
}

#[test]
fn translated_connections_follow_the_route_and_may_return_by_the_other_router() {
    let Some(site) = raise(PLAIN) else { return };
    filter_strictly(&site, PROVIDER);
    for tenant in ["acme", "globex"] {
        site.fail_over_site(tenant)
            .unwrap_or_else(|e| panic!("{tenant}: {e}"));
    }
    let _ssh = site
        .greeter("replica-a", 22, "SSH-2.0-causeway")
        .unwrap_or_else(|e| panic!("{e}"));
    let _internet = site
        .greeter("server", 7, "echo")
        .unwrap_or_else(|e| panic!("{e}"));
    let inward = Conversation::start(&site, "client", WEB, 2222);
    let outward = SERVER.map(|to| Conversation::start(&site, "replica-b", to, 7));
    thread::sleep(500 * MS);
    // The client's way in is by the second router, the replies leave by the first.
    let default = ["ip", "route", "replace", "default", "via", "198.51.100.2"];
    site.ok("client", &default);
    thread::sleep(500 * MS);
    // The kernel's routes change: connections leave by the second router.
    for to in EDGE2 {
        let mut words = vec!["ip"];
        words.extend(to.contains(':').then_some("-6"));
        words.extend(["route", "replace", "default", "via", to]);
        site.ok(PROVIDER, &words);
    }
    thread::sleep(Duration::from_secs(2));
    let routers = ["edge", "edge2"].map(|edge| mac(&site, edge, "uplink"));
    let captures = ["edge", "edge2"].map(|edge| site.sniff(edge, "uplink"));
    thread::sleep(500 * MS);
    let seen: Vec<_> = captures.into_iter().flat_map(frames).collect();
    for source in [WEB, "203.0.113.16", "2001:db8:f::16"] {
        let by = routers.map(|router| sent_to(router, &seen, source));
        assert!(by[0] == 0 && by[1] >= 5, "{source} left by {by:?}");
    }
    // The second router's address moves to the first one, which announces it. The second router is
    // no way in any more.
    site.ok(
        "client",
        &["ip", "route", "replace", "default", "via", "198.51.100.1"],
    );
    let second = ("edge2", "uplink");
    for address in EDGE2 {
        move_address(&site, address, second, ("edge", "uplink"));
    }
    thread::sleep(Duration::from_secs(2));
    for conversation in outward.into_iter().chain([inward]) {
        let (replies, longest) = conversation.finish().unwrap_or_else(|e| panic!("{e}"));
        assert!(replies > 50, "{replies} replies");
        assert!(longest < 2 * ANNOUNCED, "silent for {longest:?}");
    }
}

#[test]
fn a_second_router_inside_stays_itself_in_full_failover() {
    let Some(site) = raise(PLAIN) else { return };
    for host in ["replica-router", "replica-branch"] {
        site.power(host, true)
            .unwrap_or_else(|e| panic!("{host}: {e}"));
    }
    site.fail_over_site("acme")
        .unwrap_or_else(|e| panic!("{e}"));
    let _internet = site
        .http_server("server", 80, 80)
        .unwrap_or_else(|e| panic!("{e}"));
    // Machines reach the branch by the router that their own routes name.
    for (branch, via) in BRANCH.into_iter().zip(["10.1.0.2", "2001:db8:1::2"]) {
        let prefix = if branch.contains(':') {
            "2001:db8:8::/64"
        } else {
            "10.8.0.0/24"
        };
        site.ok("replica-a", &["ip", "route", "add", prefix, "via", via]);
        site.reach("replica-a", branch);
        let theirs = site.mac("replica-router", "web");
        assert_eq!(site.neighbours("replica-a").get(&ip(via)), Some(&theirs));
    }
    for a in A {
        site.reach("replica-branch", a);
    }
    // A machine without such a route sends to the gateway, which has no route to the branch, and
    // routes between networks of the plan only: the packet leaves to the internet.
    let guarded = site.counter(PROVIDER, "drop_source_guard");
    site.unreachable("replica-b", BRANCH[0]);
    // The branch's addresses are of no network of the plan: the gateway does not translate them.
    site.unreachable("replica-branch", SERVER[0]);
    assert!(site.counter(PROVIDER, "drop_source_guard") > guarded);
    // A second router that translates gets its branch to the internet.
    let masquerade = "table ip nat { chain post { type nat hook postrouting priority srcnat; \
                      oifname \"web\" ip saddr 10.8.0.0/24 masquerade; }; }";
    site.nft("replica-router", masquerade)
        .unwrap_or_else(|e| panic!("{e}"));
    site.reach("replica-branch", SERVER[0]);

    // As a backup router that hears no advertisement of the master, it takes the gateway's
    // address: it is named, and the address defended.
    let ours = site.mac(PROVIDER, "eth1");
    let theirs = site.mac("replica-router", "web");
    let with = ["ip", "address", "add", "10.1.0.1/24", "dev", "web"];
    site.ok("replica-router", &with);
    announce(&site, "replica-router", "web", GATEWAY[0]);
    let until = Instant::now() + Duration::from_secs(12);
    loop {
        let status = site.status(PROVIDER);
        let conflict = &status["conflicts"][0];
        let is_named = conflict["address"] == GATEWAY[0]
            && conflict["mac"] == theirs.as_str()
            && conflict["own_mac"] == ours.as_str();
        let known = site.neighbours("replica-a");
        if is_named && known.get(&ip(GATEWAY[0])) == Some(&ours) {
            break;
        }
        assert!(Instant::now() < until, "{known:?}: {status}");
        thread::sleep(200 * MS);
    }
    site.reach("replica-a", SERVER[0]);
}
