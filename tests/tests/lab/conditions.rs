//! Conditions of real sites: long, lossy and narrow WANs, routers with long caches, checksums
//! left to an offload, marked packets, flows older than the failover.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::{
    packet::{ip, l2},
    rng::seed_from_env,
    site::{PLAIN, Site, frames},
};
use lab::{Impairment, Probe};

const A: &str = "10.1.0.10";
const B: &str = "10.1.0.11";
const ROUTER: &str = "10.1.0.1";
const TENANT: &str = "tenant-appliance";
const PROVIDER: &str = "provider-appliance";
const MS: Duration = Duration::from_millis(1);

/// Impairs both directions of the lab's WAN while `work` runs; what was done to the packets.
fn impaired(site: &Site, impairment: Impairment, work: impl FnOnce()) -> [lab::Impaired; 2] {
    let links = ["tenant", "provider"].map(|link| {
        site.impair("wan", link, impairment)
            .unwrap_or_else(|e| panic!("wan, {link}: {e}"))
    });
    work();
    links.map(|link| {
        let counts = link.stop().unwrap_or_else(|e| panic!("wan: {e}"));
        println!("{counts:?}");
        counts
    })
}

/// How often each appliance has established a session with its peer.
fn handshakes(site: &Site) -> [serde_json::Value; 2] {
    [TENANT, PROVIDER].map(|host| site.status(host)["peers"][0]["tunnel"]["handshakes"].clone())
}

#[test]
fn a_tunnel_carries_everything_over_a_long_wan_that_loses_and_reorders() {
    let Some(site) = Site::encrypted() else {
        return;
    };
    let seed = seed_from_env();
    println!("seed {seed}");
    let impairment = Impairment {
        delay: 30 * MS,
        jitter: 10 * MS,
        loss_ppm: 5_000,
        seed,
        ..Impairment::default()
    };
    let counts = impaired(&site, impairment, || {
        site.over("prod-a");
        site.tcp("prod-b", "replica-a", A, 2 << 20);
        site.tcp("replica-a", "prod-b", B, 2 << 20);
        let report = site
            .ping_count("prod-b", ip(A), Probe::Echo, 10 * MS, 300)
            .unwrap_or_else(|e| panic!("prod-b: {e}"));
        println!("{}", report.summary());
        // Two directions of 0.5 % each: 3 of 300 on average; 15 or more in one of 10 million runs.
        assert!(report.lost().len() < 15, "{}", report.summary());
        let median = report.median_rtt().expect("replies");
        assert!((60 * MS..100 * MS).contains(&median), "{median:?}");
        for host in [TENANT, PROVIDER] {
            site.await_path_mtu(host, 1500);
        }
        site.back("prod-a");
    });
    for c in counts {
        assert!(c.lost > 0 && c.reordered > 0, "{c:?}");
    }
    for host in [TENANT, PROVIDER] {
        for name in ["drop_forged", "drop_replayed", "drop_unknown_session"] {
            assert_eq!(site.counter(host, name), 0, "{host}: {name}");
        }
    }
}

#[test]
fn a_narrow_wan_that_is_full_keeps_its_tunnel() {
    let Some(site) = Site::encrypted() else {
        return;
    };
    site.over("prod-a");
    site.reach("prod-b", A);
    let before = handshakes(&site);
    let impairment = Impairment {
        delay: 10 * MS,
        rate: 8_000_000,
        queue: 100_000,
        seed: 1,
        ..Impairment::default()
    };
    let counts = impaired(&site, impairment, || {
        // 1.5 MB at 1 MB/s each way, one after the other; then three times the rate in datagrams.
        site.tcp("prod-b", "replica-a", A, 1_500_000);
        site.tcp("replica-a", "prod-b", B, 1_500_000);
        let from = site.udp("prod-b", B, 6000);
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            for _ in 0..3 {
                from.send_to(&[0x5a; 1000], SocketAddr::new(ip(A), 6001))
                    .unwrap_or_else(|e| panic!("prod-b: {e}"));
            }
            thread::sleep(MS);
        }
    });
    assert!(counts[0].overflowed > 1000, "{counts:?}");
    assert_eq!(handshakes(&site), before, "the tunnel was established anew");
    site.reach("prod-b", A);
}

#[test]
fn a_router_with_a_long_cache_that_missed_the_announcements_is_corrected() {
    let Some(site) = Site::partial() else { return };
    // As a router with an ARP cache of four hours.
    for setting in ["base_reachable_time_ms=14400000", "gc_stale_time=14400"] {
        let setting = format!("net.ipv4.neigh.net1.{setting}");
        site.ok("router", &["sysctl", "-q", "-w", &setting]);
    }
    site.reach("remote", A);
    // The switchover's announcements are lost on the way to it.
    let deaf = "table netdev deaf {\nchain net1 {\n\
                type filter hook ingress device net1 priority 0;\n\
                ether type arp drop\n}\n}\n";
    site.ok("router", &["nft", deaf]);
    site.over("prod-a");
    thread::sleep(Duration::from_secs(4));
    site.ok("router", &["nft", "delete", "table", "netdev", "deaf"]);
    let stale = site.mac("prod-a", "eth0");
    assert_eq!(site.neighbours("router").get(&ip(A)), Some(&stale));
    let began = Instant::now();
    while !site
        .sh("remote", &["ping", "-n", "-c", "1", "-W", "1", A])
        .ok()
    {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "the router stays with {stale}"
        );
    }
    println!("corrected after {} ms", began.elapsed().as_millis());
}

#[test]
fn a_dhcp_lease_is_renewed_by_unicast_through_the_tunnel() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("replica-a", ROUTER);
    // Ports and direction of a renewal at T1 (RFC 2131 §4.4.5); the bytes do not matter.
    let server = site.udp("router", ROUTER, 67);
    let client = site.udp("replica-a", A, 68);
    client
        .send_to(b"DHCPREQUEST", SocketAddr::new(ip(ROUTER), 67))
        .unwrap_or_else(|e| panic!("replica-a: {e}"));
    let mut buffer = [0; 600];
    let (n, from) = server.recv_from(&mut buffer).expect("a request");
    assert_eq!(
        (&buffer[..n], from),
        (&b"DHCPREQUEST"[..], SocketAddr::new(ip(A), 68))
    );
    server
        .send_to(b"DHCPACK", from)
        .unwrap_or_else(|e| panic!("router: {e}"));
    let (n, _) = client.recv_from(&mut buffer).expect("an answer");
    assert_eq!(&buffer[..n], b"DHCPACK");
}

/// The second byte of the IPv4 headers of `frames` that `keep` accepts.
fn type_of_service(frames: &[Vec<u8>], keep: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let headers = frames.iter().filter_map(|f| {
        let l2 = l2(f)?;
        (l2.ethertype == 0x0800).then(|| &f[l2.l3..])
    });
    headers.filter(|h| keep(h)).map(|h| h[1]).collect()
}

/// RFC 6040 §4.1, compatibility mode: the tunnel's header is Not-ECT, the inner one unchanged.
#[test]
fn a_mark_of_the_inner_packet_is_kept_and_not_copied_to_the_tunnel() {
    for encrypted in [false, true] {
        let options = lab::Options { encrypted, ..PLAIN };
        let Some(site) = Site::raise(lab::sites::partial, options) else {
            return;
        };
        site.over("prod-a");
        site.reach("prod-b", A);
        let (wan, lan) = (
            site.sniff("wan", "provider"),
            site.sniff("replica-a", "eth0"),
        );
        // Expedited forwarding (RFC 3246), ECT(0).
        let ping = ["ping", "-n", "-c", "5", "-i", "0.05", "-Q", "0xba", A];
        assert!(site.sh("prod-b", &ping).ok());
        let outer = type_of_service(&frames(wan), |ip| ip[9] == 17);
        assert!(outer.len() >= 10, "{} datagrams", outer.len());
        assert!(outer.iter().all(|tos| *tos == 0), "{outer:x?}");
        let inner = type_of_service(&frames(lan), |ip| {
            ip[9] == 1 && ip[16..20] == [10, 1, 0, 10]
        });
        assert_eq!(inner, [0xba; 5]);
    }
}

#[test]
fn tcp_whose_checksums_are_left_to_an_offload_is_carried() {
    for encrypted in [false, true] {
        let options = lab::Options { encrypted, ..PLAIN };
        let Some(site) = Site::raise(lab::sites::partial, options) else {
            return;
        };
        for host in ["prod-b", "replica-a"] {
            site.ok(host, &["ethtool", "-K", "eth0", "tx", "on"]);
        }
        site.over("prod-a");
        site.tcp("prod-b", "replica-a", A, 2 << 20);
        site.tcp("replica-a", "prod-b", B, 2 << 20);
    }
}

/// As behind a hypervisor switch that hands packets of one virtual machine to another as they are.
#[test]
fn checksums_that_no_switch_completes_are_named() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("prod-b", A);
    let ready = |site: &Site| site.status(TENANT)["ready"] == true;
    assert!(ready(&site), "{}", site.status(TENANT));
    let (switch, port) = site.topology().port_of(TENANT, "eth0").expect("a port");
    site.ok(&switch, &["ethtool", "-K", &port, "tx", "on"]);
    site.ok("prod-b", &["ethtool", "-K", "eth0", "tx", "on"]);
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let to = SocketAddr::new(ip(A), 80);
        let refused = site.connect("prod-b", to, Duration::from_millis(300));
        assert!(refused.is_err(), "a SYN without a checksum is not received");
        let warnings = site.status(TENANT)["warnings"].to_string();
        if warnings.contains("checksum_partial") && warnings.contains("ethtool -K IFACE tx off") {
            break;
        }
        assert!(Instant::now() < until, "{warnings}");
    }
    assert!(ready(&site), "{}", site.status(TENANT));
    assert!(site.counter(TENANT, "checksum_partial") > 0);
    // The remedy.
    site.ok("prod-b", &["ethtool", "-K", "eth0", "tx", "off"]);
    site.tcp("prod-b", "replica-a", A, 100_000);
}

#[test]
fn flows_older_than_the_switch_are_translated_after_it() {
    let Some(site) = Site::raise(lab::sites::full, PLAIN) else {
        return;
    };
    site.boot_replicas("acme").unwrap_or_else(|e| panic!("{e}"));
    let server = "198.51.100.80";
    let echo = site
        .udp_echo("server", 6000)
        .unwrap_or_else(|e| panic!("server: {e}"));
    // One ICMP identifier and one source port, from before the mode to after it.
    let series: Vec<_> = [Probe::Echo, Probe::Udp(6000)]
        .into_iter()
        .map(|probe| {
            site.ping("replica-a", ip(server), probe, 20 * MS)
                .unwrap_or_else(|e| panic!("replica-a: {e}"))
        })
        .collect();
    thread::sleep(500 * MS);
    let asked = Instant::now();
    site.mode_full("acme").unwrap_or_else(|e| panic!("{e}"));
    let switched = Instant::now();
    thread::sleep(Duration::from_secs(4));
    for pinger in series {
        let report = pinger.stop().unwrap_or_else(|e| panic!("replica-a: {e}"));
        println!("{}", report.summary());
        let first = report.received.iter().flatten().min().expect("a reply");
        assert!(*first > asked, "the mode was in force already");
        // Nothing answered the replica's requests for its gateway; it asks again within a second.
        let lost = report.lost_since(switched + 2000 * MS);
        assert_eq!(lost, Vec::<usize>::new(), "{}", report.summary());
    }
    drop(echo);
}

/// Datagrams without DF through a smaller uplink, from a replica to the internet.
#[test]
fn datagrams_over_the_mtu_of_the_uplink_arrive_in_fragments() {
    const SERVER: &str = "198.51.100.80";
    let Some(site) = Site::full() else { return };
    site.ok(PROVIDER, &["ip", "link", "set", "eth0", "mtu", "1400"]);
    // Sockets that leave DF clear.
    let setting = "net.ipv4.ip_no_pmtu_disc=1";
    site.ok("replica-a", &["sysctl", "-q", "-w", setting]);
    let server = site.udp("server", SERVER, 7001);
    server
        .set_read_timeout(Some(Duration::from_secs(3)))
        .expect("a timeout");
    let capture = site.sniff("server", "eth0");
    let replica = site.udp("replica-a", A, 0);
    let mut buffer = [0; 2000];
    for n in 0..10u8 {
        // With headers 1450 bytes.
        let sent = [n; 1422];
        replica
            .send_to(&sent, (SERVER, 7001))
            .unwrap_or_else(|e| panic!("replica-a: {e}"));
        let (length, from) = server
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("datagram {n} is lost: {e}"));
        assert_eq!(&buffer[..length], &sent[..]);
        assert!(from.ip() != ip(A), "untranslated");
    }
    let is_first = |frame: &&Vec<u8>| {
        l2(frame).is_some_and(|at| {
            let ip = &frame[at.l3..];
            at.ethertype == 0x0800 && ip[9] == 17 && ip[6] & 0x20 != 0 && ip[7] == 0
        })
    };
    let seen = frames(capture);
    assert_eq!(seen.iter().filter(is_first).count(), 10);
}
