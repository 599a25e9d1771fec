//! Partial failover between real hosts: which hosts reach each other, and what must not change.

use std::time::Duration;

use causeway_tests::{
    packet::ip,
    site::{Site, frames, holds},
};

const A: &str = "10.1.0.10";
const A6: &str = "2001:db8:1::10";
const B: &str = "10.1.0.11";
const B6: &str = "2001:db8:1::11";
const ROUTER: &str = "10.1.0.1";
const ROUTER6: &str = "2001:db8:1::1";
const REMOTE: &str = "10.9.0.2";
const REMOTE6: &str = "2001:db8:9::2";

#[test]
fn machines_keep_addresses_and_unaffected_pairs_keep_their_neighbours() {
    let Some(site) = Site::partial() else { return };
    // Everybody has talked to everybody.
    for (from, to) in [
        ("prod-b", A),
        ("prod-b", A6),
        ("prod-b", ROUTER),
        ("prod-b", ROUTER6),
        ("prod-b", REMOTE),
        ("remote", A),
        ("remote", A6),
        ("remote", B),
        ("remote", B6),
        ("prod-a", B),
    ] {
        site.reach(from, to);
    }
    let shape = |host: &str| {
        let addresses = site.ok(host, &["ip", "-j", "address", "show", "dev", "eth0"]);
        let addresses: serde_json::Value = serde_json::from_str(&addresses).expect("JSON");
        let mut all: Vec<String> = addresses[0]["addr_info"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|a| a["scope"] == "global")
            .map(|a| format!("{}/{}", a["local"], a["prefixlen"]))
            .collect();
        all.sort();
        let gateway = |family: &str| {
            let text = site.ok(host, &["ip", family, "route", "show", "default"]);
            text.split_whitespace()
                .skip_while(|w| *w != "via")
                .nth(1)
                .map(str::to_owned)
        };
        (all, gateway("-4"), gateway("-6"))
    };
    let production = shape("prod-a");
    assert_eq!(production.0.len(), 2, "{production:?}");
    let before = (site.neighbours("prod-b"), site.neighbours("router"));

    site.over("prod-a");
    assert_eq!(shape("replica-a"), production, "addresses, masks, gateways");

    for (from, to) in [
        ("prod-b", A),
        ("prod-b", A6),
        ("remote", A),
        ("remote", A6),
        ("router", A),
        ("replica-a", B),
        ("replica-a", B6),
        ("replica-a", ROUTER),
        ("replica-a", ROUTER6),
        ("replica-a", REMOTE),
        ("replica-a", REMOTE6),
        ("prod-b", ROUTER),
        ("prod-b", REMOTE),
        ("remote", B),
    ] {
        site.reach(from, to);
    }
    for (from, to, address) in [
        ("prod-b", "replica-a", A),
        ("prod-b", "replica-a", A6),
        ("replica-a", "prod-b", B),
        ("replica-a", "prod-b", B6),
        ("remote", "replica-a", A),
        ("remote", "replica-a", A6),
        ("replica-a", "remote", REMOTE),
        ("replica-a", "remote", REMOTE6),
    ] {
        let took = site.tcp(from, to, address, 4 << 20);
        println!("4 MiB {from} → {to} at {address}: {} ms", took.as_millis());
    }

    let after = (site.neighbours("prod-b"), site.neighbours("router"));
    let appliance = site.mac("tenant-appliance", "eth0");
    for (host, before, after) in [
        ("prod-b", &before.0, &after.0),
        ("router", &before.1, &after.1),
    ] {
        for (address, mac) in before {
            let now = after.get(address);
            if *address == ip(A) || *address == ip(A6) {
                assert_eq!(now, Some(&appliance), "{host}: {address} moved to us");
            } else {
                assert_eq!(now, Some(mac), "{host}: {address} was not concerned");
            }
        }
    }

    // Failback: the caches are corrected without a request.
    site.back("prod-a");
    let own = site.mac("prod-a", "eth0");
    std::thread::sleep(Duration::from_millis(500));
    for host in ["prod-b", "router"] {
        let now = site.neighbours(host);
        for address in [ip(A), ip(A6)] {
            assert!(
                now.get(&address).is_none_or(|mac| *mac == own),
                "{host} still sends {address} to {:?}, not to {own}",
                now.get(&address)
            );
        }
    }
    for (from, to) in [("prod-b", A), ("prod-b", A6), ("remote", A), ("remote", A6)] {
        site.reach(from, to);
    }
}

#[test]
fn the_second_network_fails_over_alone() {
    let Some(site) = Site::partial() else { return };
    site.reach("prod-b", A);
    let before = site.mac("prod-a", "eth0");
    site.over("prod-c");
    for (from, to) in [
        ("prod-d", "10.2.0.10"),
        ("replica-c", "10.2.0.11"),
        ("replica-c", "10.2.0.1"),
        ("replica-c", REMOTE),
        ("remote", "10.2.0.10"),
        // Between networks, by the production router.
        ("prod-b", "10.2.0.10"),
        ("prod-b", A),
    ] {
        site.reach(from, to);
    }
    site.tcp("prod-d", "replica-c", "10.2.0.10", 4 << 20);
    assert_eq!(
        site.neighbours("prod-b").get(&ip(A)),
        Some(&before),
        "net1 was not concerned"
    );
    // Both at once, and replica to replica by the production router.
    site.over("prod-a");
    site.reach("prod-b", A);
    site.reach("replica-a", "10.2.0.10");
    site.back("prod-c");
    site.reach("prod-d", "10.2.0.10");
    site.reach("prod-b", A);
}

#[test]
fn packets_of_a_replica_with_a_forged_source_are_dropped() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("replica-a", B);
    site.ok(
        "replica-a",
        &["ip", "address", "add", "10.1.0.77/24", "dev", "eth0"],
    );
    let capture = site.sniff("prod-b", "eth0");
    let before = site.counter("provider-appliance", "drop_source_guard");
    let socket = site.udp("replica-a", "10.1.0.77", 0);
    for n in 0..20u8 {
        socket
            .send_to(&[b"I-AM-FORGED-", &[n][..]].concat(), (B, 9))
            .expect("the replica's own stack lets it out");
    }
    std::thread::sleep(Duration::from_millis(500));
    let dropped = site.counter("provider-appliance", "drop_source_guard") - before;
    assert_eq!(dropped, 20, "all were dropped by the source guard");
    let seen = frames(capture);
    assert!(
        !seen.iter().any(|f| holds(f, b"I-AM-FORGED-")),
        "a forged packet reached prod-b"
    );
    site.reach("replica-a", B);
}

#[test]
fn packets_of_unknown_senders_do_not_enter_a_network() {
    use causeway_tests::packet::{echo, frame, udp, udp_no_checksum, vxlan};

    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("prod-b", A);
    let parse = |text: String| {
        let mut mac = [0u8; 6];
        for (byte, part) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(part, 16).expect("a MAC");
        }
        mac
    };
    let ours = parse(site.mac("provider-appliance", "eth0"));
    let theirs = parse(site.mac("wan", "provider"));
    let capture = site.sniff("replica-a", "eth0");
    let marked = udp(ip(B), ip(A), 7, 7, b"LET-ME-IN");
    let datagram = |from: &str, vni: u32, flags: u8| {
        let mac = [2, 0, 0, 0, 0, 1];
        let inner = vxlan(flags, vni, &frame(mac, mac, &[], &marked));
        frame(
            ours,
            theirs,
            &[],
            &udp_no_checksum(ip(from), ip("203.0.113.5"), 50_000, 4789, &inner),
        )
    };
    for (what, packet, counter) in [
        (
            "an unknown host",
            datagram("192.0.2.66", 1001, 8),
            "drop_unknown_peer",
        ),
        (
            "an unknown network",
            datagram("10.1.0.5", 4242, 8),
            "drop_unknown_vni",
        ),
        (
            "no valid VNI",
            datagram("10.1.0.5", 1001, 0),
            "drop_bad_vxlan",
        ),
        (
            "our own address",
            datagram("203.0.113.5", 1001, 8),
            "drop_loop",
        ),
    ] {
        let before = site.counter("provider-appliance", counter);
        site.inject("wan", "provider", &vec![packet; 25])
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        std::thread::sleep(Duration::from_millis(100));
        let dropped = site.counter("provider-appliance", counter) - before;
        assert_eq!(dropped, 25, "{what}: {counter}");
    }
    // The same packet from the peer does arrive, so the capture would have seen it.
    site.inject("wan", "provider", &[datagram("10.1.0.5", 1001, 8)])
        .unwrap_or_else(|e| panic!("{e}"));
    std::thread::sleep(Duration::from_millis(200));
    // The replica's "port unreachable" quotes the mark; it is not a received packet.
    let replica = parse(site.mac("replica-a", "eth0"));
    let seen = frames(capture)
        .iter()
        .filter(|f| holds(f, b"LET-ME-IN") && f[..6] == replica)
        .count();
    assert_eq!(seen, 1, "only the peer's datagram reached the replica");
    // Hosts with a route to the appliance can still ping it.
    let _ = echo(ip(B), ip(A), 8);
    site.reach("wan", "203.0.113.5");
}

#[test]
fn broadcast_and_multicast_are_refused_and_status_says_so() {
    const PROVIDER: &str = "provider-appliance";
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("replica-a", B);
    let capture = site.sniff("prod-b", "eth0");
    let said = || site.status(PROVIDER)["not_carried"].clone();
    let before = said();
    assert_eq!(before["mode"], "proxy");
    assert_eq!(
        before["refused"],
        serde_json::json!(["broadcast", "multicast"])
    );
    let socket = site.udp("replica-a", A, 0);
    socket.set_broadcast(true).expect("a broadcast socket");
    for to in ["10.1.0.255", "255.255.255.255", "224.0.0.251"] {
        for _ in 0..10 {
            socket
                .send_to(b"TO-ALL-OF-YOU", (to, 5353))
                .unwrap_or_else(|e| panic!("{to}: {e}"));
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let count = |status: &serde_json::Value| status["dropped"].as_u64().expect("a number");
    let after = said();
    assert!(count(&after) >= count(&before) + 30, "{before} {after}");
    // Replicas send groups by themselves meanwhile.
    let counted = site.counter(PROVIDER, "drop_not_carried");
    assert!(
        (count(&after)..count(&after) + 20).contains(&counted),
        "{after} {counted}"
    );
    let printed = site.appliance(PROVIDER).and_then(|a| a.must(&["status"]));
    let printed = printed.unwrap_or_else(|e| panic!("{e}"));
    let line = "proxy mode: broadcast and multicast between the sites are refused";
    assert!(printed.contains(line), "{printed}");
    let seen = frames(capture);
    assert!(!seen.iter().any(|f| holds(f, b"TO-ALL-OF-YOU")));
}
