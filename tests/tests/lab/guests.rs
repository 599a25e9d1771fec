//! Hosts that detect address conflicts (RFC 5227), as Windows, systemd-networkd and dhcpcd do, keep
//! their address; and a second machine with a failed-over address is seen.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::{
    packet::{Mac, arp, eth, ip},
    series,
    site::{Site, frames},
};

const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const TENANT: &str = "tenant-appliance";
const PROVIDER: &str = "provider-appliance";
/// Time between probes: a tenth of `PROBE_MAX` of RFC 5227 section 1.1, to keep the test short.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);

fn mac_of(site: &Site, host: &str) -> Mac {
    parse(&site.mac(host, "eth0"))
}

fn parse(text: &str) -> Mac {
    let mut mac = [0; 6];
    for (byte, part) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(part, 16).expect("a MAC address");
    }
    mac
}

fn ask(site: &Site, host: &str, words: &[&str]) {
    let appliance = site.appliance(host).unwrap_or_else(|e| panic!("{e}"));
    appliance.must(words).unwrap_or_else(|e| panic!("{e}"));
}

/// Operation, sender's MAC and address, and target's address of an untagged ARP frame.
fn fields(frame: &[u8]) -> Option<(u8, Mac, Ipv4Addr, Ipv4Addr)> {
    let body = frame.get(14..42).filter(|_| frame[12..14] == [8, 6])?;
    let address = |at: usize| Some(Ipv4Addr::from(*body[at..].first_chunk::<4>()?));
    Some((
        body[7],
        *body[8..].first_chunk()?,
        address(14)?,
        address(24)?,
    ))
}

/// Whether a frame tells a host with `own` MAC address that `address` is another's: RFC 5227
/// section 2.1.1 while it probes, section 2.4 afterwards.
fn is_conflict(frame: &[u8], own: Mac, address: Ipv4Addr, probing: bool) -> bool {
    let Some((operation, mac, sender, target)) = fields(frame) else {
        return false;
    };
    let probe = operation == 1 && sender.is_unspecified() && target == address;
    mac != own && (sender == address || (probing && probe))
}

/// Boots a powered-off host as RFC 5227 asks: three probes, then its address. Returns the capture
/// of all that it heard since, and fails if it had to give up the address while probing.
fn boot(site: &Site, host: &str, address: Ipv4Addr) -> lab::Capture {
    let own = mac_of(site, host);
    site.ok(host, &["ip", "link", "set", "eth0", "up"]);
    // The switch's port forwards a moment later.
    thread::sleep(PROBE_INTERVAL);
    let capture = site.sniff(host, "eth0");
    let probe = eth(
        [0xff; 6],
        own,
        &[],
        0x0806,
        &arp(1, own, Ipv4Addr::UNSPECIFIED, [0; 6], address),
    );
    for _ in 0..3 {
        site.inject(host, "eth0", std::slice::from_ref(&probe))
            .unwrap_or_else(|e| panic!("{host}: {e}"));
        thread::sleep(PROBE_INTERVAL);
    }
    thread::sleep(2 * PROBE_INTERVAL);
    let heard = frames(capture);
    let conflict = heard.iter().find(|f| is_conflict(f, own, address, true));
    assert_eq!(conflict, None, "{host} must not take {address}");
    let capture = site.sniff(host, "eth0");
    site.power(host, true)
        .unwrap_or_else(|e| panic!("{host}: {e}"));
    capture
}

/// Fails if the host heard that its address is another's.
fn kept(site: &Site, host: &str, address: Ipv4Addr, capture: lab::Capture) {
    let own = mac_of(site, host);
    let heard = frames(capture);
    let conflict = heard.iter().find(|f| is_conflict(f, own, address, false));
    assert_eq!(conflict, None, "{host} must give up {address}");
}

fn shut(site: &Site, host: &str) {
    site.power(host, false)
        .unwrap_or_else(|e| panic!("{host}: {e}"));
}

#[test]
fn a_guest_that_probes_keeps_its_address_in_failover_and_failback() {
    let Some(site) = Site::partial() else { return };
    for host in [PROVIDER, TENANT] {
        ask(&site, host, &["mode", "partial"]);
    }
    let change = |host, verb| {
        let words = ["endpoint", verb, "--network", "net1", "10.1.0.10"];
        ask(&site, host, &words);
    };
    let rounds = series::length("CAUSEWAY_GUEST_ROUNDS", 1, 50);
    for round in 0..rounds {
        // In every second round the replica boots before the appliance knows of it.
        let production = site.sniff("prod-a", "eth0");
        site.reach("prod-b", "10.1.0.10");
        kept(&site, "prod-a", A, production);
        shut(&site, "prod-a");
        let early = round % 2 == 0;
        if early {
            change(PROVIDER, "add");
        }
        let replica = boot(&site, "replica-a", A);
        if !early {
            change(PROVIDER, "add");
        }
        change(TENANT, "add");
        site.reach("prod-b", "10.1.0.10");
        // The address returns before the replica is off, as after a test.
        change(TENANT, "remove");
        change(PROVIDER, "remove");
        kept(&site, "replica-a", A, replica);
        shut(&site, "replica-a");
        let production = boot(&site, "prod-a", A);
        site.reach("prod-b", "10.1.0.10");
        kept(&site, "prod-a", A, production);
    }
}

#[test]
fn a_guest_that_probes_keeps_its_address_in_full_failover() {
    let Some(site) = Site::raise(lab::sites::full, causeway_tests::site::PLAIN) else {
        return;
    };
    let address = Ipv4Addr::new(10, 1, 0, 10);
    let rounds = series::length("CAUSEWAY_GUEST_ROUNDS", 1, 50);
    for _ in 0..rounds {
        // A test of the plan: the replica boots while the tenant is idle, and hears the switch.
        let replica = boot(&site, "replica-a", address);
        site.mode_full("acme").unwrap_or_else(|e| panic!("{e}"));
        site.reach("replica-a", "10.1.0.1");
        kept(&site, "replica-a", address, replica);
        shut(&site, "replica-a");
        // Again, in a mode that is in force.
        let replica = boot(&site, "replica-a", address);
        site.reach("replica-a", "10.1.0.1");
        kept(&site, "replica-a", address, replica);
        site.mode_idle("acme").unwrap_or_else(|e| panic!("{e}"));
        shut(&site, "replica-a");
    }
}

/// The first conflict in an appliance's status, once there is one.
fn conflict(site: &Site, host: &str) -> serde_json::Value {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let status = site.status(host);
        if let Some(conflict) = status["conflicts"].get(0) {
            return conflict.clone();
        }
        assert!(Instant::now() < until, "no conflict in {status}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_production_machine_that_comes_back_is_named_and_the_address_is_defended() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("prod-b", "10.1.0.10");
    let ours = site.mac(TENANT, "eth0");
    let theirs = site.mac("prod-a", "eth0");
    assert_eq!(site.neighbours("prod-b").get(&ip("10.1.0.10")), Some(&ours));
    // It is switched on by mistake. It asks for prod-b, which may believe it.
    site.power("prod-a", true).unwrap_or_else(|e| panic!("{e}"));
    let _ = site.sh("prod-a", &["ping", "-c", "1", "-W", "1", "10.1.0.11"]);
    let conflict = conflict(&site, TENANT);
    assert_eq!(conflict["address"], "10.1.0.10");
    assert_eq!(conflict["network"], "net1");
    assert_eq!(conflict["interface"], "eth0");
    assert_eq!(conflict["mac"], theirs.as_str());
    assert_eq!(conflict["own_mac"], ours.as_str());
    assert!(conflict["defences"].as_u64() > Some(0), "{conflict}");
    let appliance = site.appliance(TENANT).unwrap_or_else(|e| panic!("{e}"));
    let log = appliance.log_tail(200);
    assert!(
        log.contains("another machine uses an address") && log.contains(&theirs),
        "{log}"
    );
    // The next defence is at most ten seconds away.
    let until = Instant::now() + Duration::from_secs(12);
    while site.neighbours("prod-b").get(&ip("10.1.0.10")) != Some(&ours) {
        assert!(Instant::now() < until, "prod-b stays with {theirs}");
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn failover_works_where_the_switch_inspects_arp() {
    let Some(site) = Site::partial() else { return };
    // As `ip arp inspection validate src-mac ip` of a switch: on the appliance's port, the sender
    // in the body must be the frame's source, and not 0.0.0.0.
    let (switch, port) = site
        .topology()
        .port_of(TENANT, "eth0")
        .expect("a port of a switch");
    let mac = site.mac(TENANT, "eth0");
    let rules = format!(
        "table netdev inspection {{\nchain port {{\n\
         type filter hook ingress device {port} priority 0;\n\
         arp saddr ether != {mac} counter drop\n\
         arp saddr ip 0.0.0.0 counter drop\n\
         }}\n}}\n"
    );
    site.ok(&switch, &["nft", &rules]);
    site.reach("prod-b", "10.1.0.10");
    site.over("prod-a");
    for (from, to) in [("prod-b", "10.1.0.10"), ("replica-a", "10.1.0.11")] {
        site.reach(from, to);
    }
    let zero_or_foreign = |site: &Site| {
        let text = site.ok(&switch, &["nft", "list", "table", "netdev", "inspection"]);
        text.matches("counter packets 0 bytes 0").count()
    };
    assert_eq!(zero_or_foreign(&site), 2, "nothing was inspected away");
    site.back("prod-a");
    site.reach("prod-b", "10.1.0.10");
}

#[test]
fn a_cluster_at_a_group_mac_address_is_named() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    // As Windows NLB in multicast mode: a host answers for the cluster's address with a group MAC.
    let group = [0x03, 0xbf, 10, 1, 0, 20];
    let answer = eth(
        mac_of(&site, TENANT),
        mac_of(&site, "prod-b"),
        &[],
        0x0806,
        &arp(
            2,
            group,
            Ipv4Addr::new(10, 1, 0, 20),
            mac_of(&site, TENANT),
            Ipv4Addr::new(10, 1, 0, 5),
        ),
    );
    site.inject("prod-b", "eth0", &[answer])
        .unwrap_or_else(|e| panic!("prod-b: {e}"));
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let warnings = site.status(TENANT)["warnings"].to_string();
        if warnings.contains("10.1.0.20") && warnings.contains("03:bf:0a:01:00:14") {
            break;
        }
        assert!(Instant::now() < until, "{warnings}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn owners_of_addresses_are_found_and_wrong_neighbours_of_the_uplink_are_replaced() {
    let Some(site) = Site::raise(lab::sites::full, causeway_tests::site::PLAIN) else {
        return;
    };
    site.boot_replicas("acme").unwrap_or_else(|e| panic!("{e}"));
    // A host on the uplink has one of the public addresses, another one the gateway's.
    let edge = site.mac("edge", "uplink");
    let public = ["address", "203.0.113.20/24", "dev", "uplink"];
    let gateway = ["address", "10.1.0.1/24", "dev", "eth0"];
    let ip_on = |host: &str, verb: &str, [object, rest @ ..]: [&str; 4]| {
        site.ok(host, &[&["ip", object, verb][..], &rest[..]].concat());
    };
    for (host, address, mac, what) in [
        ("edge", public, edge.clone(), "203.0.113.20"),
        (
            "replica-b",
            gateway,
            site.mac("replica-b", "eth0"),
            "10.1.0.1",
        ),
    ] {
        ip_on(host, "add", address);
        let refusal = site.mode_full("acme").expect_err("an owner").to_string();
        println!("{refusal}");
        for part in [what, mac.as_str(), "--take-over"] {
            assert!(refusal.contains(part), "{part} is not in: {refusal}");
        }
        ip_on(host, "del", address);
    }
    let forwards = || {
        let setting = ["cat", "/proc/sys/net/ipv4/conf/lo/forwarding"];
        site.ok(PROVIDER, &setting).trim().to_owned()
    };
    assert_eq!(forwards(), "0", "a refused switch leaves it");
    site.mode_full("acme").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(forwards(), "1");

    // A rule on a public address that the plan does not use.
    let spare = ["address", "203.0.113.25/24", "dev", "uplink"];
    ip_on("edge", "add", spare);
    let handle = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    let line = "203.0.113.25:8080/tcp -> 10.1.0.10:8080";
    let add = ["rule", "add", "--tenant", "acme", "spare", line];
    let refused = handle.cli(&add).unwrap_or_else(|e| panic!("{e}"));
    for part in ["203.0.113.25", edge.as_str(), "--take-over"] {
        assert!(
            !refused.ok() && refused.stderr.contains(part),
            "{refused:?}"
        );
    }
    let rules = handle
        .must(&["rule", "list"])
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(!rules.contains("spare"), "{rules}");
    let forced = [&add[..], &["--take-over"]].concat();
    handle.must(&forced).unwrap_or_else(|e| panic!("{e}"));
    let rules = handle
        .must(&["rule", "list"])
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(rules.contains("spare"), "{rules}");
    // Their owner, and one of a gateway's address, only answer, and are named all the same.
    ip_on("replica-b", "add", gateway);
    let until = Instant::now() + Duration::from_secs(40);
    for (address, mac) in [
        ("203.0.113.25", &edge),
        ("10.1.0.1", &site.mac("replica-b", "eth0")),
    ] {
        let named = |conflicts: &serde_json::Value| {
            let mut all = conflicts.as_array().into_iter().flatten();
            all.any(|c| c["address"] == address && c["mac"] == mac.as_str())
        };
        loop {
            let conflicts = site.status(PROVIDER)["conflicts"].clone();
            if named(&conflicts) {
                break;
            }
            assert!(Instant::now() < until, "{address} at {mac}: {conflicts}");
            thread::sleep(Duration::from_millis(200));
        }
    }
    ip_on("replica-b", "del", gateway);
    ip_on("edge", "del", spare);

    // Another neighbour of the uplink than the default router, whose MAC address changes.
    ip_on(
        "edge",
        "add",
        ["address", "203.0.113.77/24", "dev", "uplink"],
    );
    let _web = site
        .http_server("replica-a", 8080, 7)
        .unwrap_or_else(|e| panic!("replica-a: {e}"));
    let get = || {
        let url = "http://203.0.113.20/index.txt";
        let source = ["curl", "--interface", "203.0.113.77", "-s", "-m", "2"];
        let output = ["-o", "/dev/null", "-w", "%{http_code}", url];
        site.sh("edge", &[&source[..], &output[..]].concat())
    };
    let reached = || get().stdout.trim() != "000";
    let until = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < until, "{:?}", get());
    }
    let wrong = "02:00:00:00:00:99";
    let entry = ["neigh", "replace", "203.0.113.77", "dev", "eth0"];
    let state = ["lladdr", wrong, "nud", "stale"];
    site.ok(PROVIDER, &[&["ip"][..], &entry[..], &state[..]].concat());
    let until = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < until, "203.0.113.77 stays at {wrong}");
    }
    let now = site.neighbours(PROVIDER).get(&ip("203.0.113.77")).cloned();
    assert_eq!(now.as_deref(), Some(edge.as_str()));
}

/// The routes of IPv6 name link-local addresses of routers, so their other ones are not known.
#[test]
fn an_address_of_a_router_that_is_known_by_its_link_local_one_is_refused() {
    const ADDRESS: &str = "2001:db8:f::99";
    let Some(site) = Site::full() else { return };
    let edge = site.mac("edge", "uplink");
    let shown = ["ip", "-6", "-o", "address", "show", "dev", "uplink"];
    let shown = site.ok("edge", &[&shown[..], &["scope", "link"]].concat());
    let words = shown.split_whitespace();
    let link_local = words.filter_map(|word| word.strip_suffix("/64")).next();
    let link_local = link_local.unwrap_or_else(|| panic!("{shown}"));
    let default = ["route", "replace", "default", "via", link_local];
    let default = [&["ip", "-6"][..], &default, &["dev", "eth0"]].concat();
    site.ok(PROVIDER, &default);
    let address = format!("{ADDRESS}/64");
    let add = ["address", "add", &address, "dev", "uplink", "nodad"];
    site.ok("edge", &[&["ip", "-6"][..], &add].concat());
    let handle = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    let line = format!("[{ADDRESS}]:8080/tcp -> [2001:db8:1::10]:8080");
    let rule = ["rule", "add", "--tenant", "acme", "router", &line];
    let refused = handle.cli(&rule).unwrap_or_else(|e| panic!("{e}"));
    for part in [ADDRESS, edge.as_str(), "--take-over"] {
        assert!(
            !refused.ok() && refused.stderr.contains(part),
            "{refused:?}"
        );
    }
}
