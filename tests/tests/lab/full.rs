//! Full failover between real hosts: gateways, the internet, public addresses, and what must not be
//! reached.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::{
    packet::ip,
    site::{Conversation, Site, frames},
};
use lab::Error;

const PROVIDER: &str = "provider-appliance";
const HTTP: u16 = 8080;
const GREETING: &str = "SSH-2.0-causeway_replica-a";
const WEB: [&str; 2] = ["203.0.113.20", "2001:db8:f::20"];
const SIBLING: [&str; 2] = ["203.0.113.21", "2001:db8:f::21"];
const DB_PUBLIC: &str = "203.0.113.22";
const SPARE: &str = "203.0.113.23";
const GLOBEX: &str = "203.0.113.36";
const NAT: [&str; 2] = ["203.0.113.16", "2001:db8:f::16"];
const SERVER: [&str; 2] = ["198.51.100.80", "2001:db8:99::80"];
const DB: [&str; 2] = ["10.2.0.10", "2001:db8:2::10"];
const OPS: &str = "10.3.0.10";

/// How long an answer is waited for where none is expected.
const NO_ANSWER_WAIT: Duration = Duration::from_millis(1500);

/// Downloads from `to`, byte for byte what the server of that seed has.
fn get(site: &Site, from: &str, to: &str, port: u16, seed: u64, bytes: u64) {
    site.download(from, ip(to), port, seed, bytes, Duration::from_secs(15))
        .unwrap_or_else(|e| panic!("{from}: {to} port {port}: {e}"));
}

/// Expects that a connection fails. Returns the error.
fn refused(site: &Site, from: &str, to: &str, port: u16) -> ErrorKind {
    match site.connect(from, SocketAddr::new(ip(to), port), NO_ANSWER_WAIT) {
        Ok(_) => panic!("{from} reaches {to} port {port}"),
        Err(Error::Io { source, .. }) => source.kind(),
        Err(e) => panic!("{from}: {to} port {port}: {e}"),
    }
}

fn server(site: &Site, host: &str, port: u16, seed: u64) -> lab::Server {
    site.http_server(host, port, seed)
        .unwrap_or_else(|e| panic!("{host}: {e}"))
}

fn greeter(site: &Site, host: &str, port: u16) -> lab::Greeter {
    site.greeter(host, port, GREETING)
        .unwrap_or_else(|e| panic!("{host}: {e}"))
}

fn greeting(site: &Site, from: &str, to: &str, port: u16) -> String {
    site.greeting(from, SocketAddr::new(ip(to), port), Duration::from_secs(5))
        .unwrap_or_else(|e| panic!("{from}: {to} port {port}: {e}"))
}

/// Asks the provider's appliance for what it must do.
fn ask(site: &Site, words: &[&str]) -> String {
    let appliance = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    appliance.must(words).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs a command that the provider's appliance must refuse. Returns its error message.
fn refusal(site: &Site, words: &[&str]) -> String {
    let appliance = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    let output = appliance.cli(words).unwrap_or_else(|e| panic!("{e}"));
    assert!(
        !output.ok(),
        "{}: was done: {}",
        words.join(" "),
        output.stdout
    );
    let why = output.stderr.trim().to_owned();
    println!("{}: {why}", words.join(" "));
    assert!(
        !why.is_empty(),
        "{}: refused without a message",
        words.join(" ")
    );
    why
}

/// The mode of a tenant, by the appliance's status.
fn mode(site: &Site, tenant: &str) -> String {
    let status = site.status(PROVIDER);
    let mut tenants = status["tenants"].as_array().into_iter().flatten();
    let tenant = tenants.find(|t| t["name"] == tenant);
    tenant.unwrap_or_else(|| panic!("{status}"))["mode"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Whether the source of an untagged frame's IP packet is in a tenant's network.
fn is_from_inside(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(26) == Some(&10),
        Some([0x86, 0xdd]) => [1, 2].iter().any(|network| {
            frame.get(22..30) == Some(&[0x20, 1, 0x0d, 0xb8, 0, *network, 0, 0][..])
        }),
        _ => false,
    }
}

#[test]
fn replicas_reach_their_gateway_and_the_internet_as_planned() {
    let Some(site) = Site::full() else { return };
    for tenant in ["acme", "globex"] {
        assert_eq!(mode(&site, tenant), "full", "{tenant}");
    }
    for (from, to) in [
        ("replica-a", "10.1.0.1"),
        ("replica-a", "2001:db8:1::1"),
        ("replica-b", "10.1.0.1"),
        ("replica-b", "2001:db8:1::1"),
        ("replica-c", "10.2.0.1"),
        ("replica-c", "2001:db8:2::1"),
        ("replica-d", "10.3.0.1"),
        ("globex-replica-a", "10.1.0.1"),
        ("globex-replica-a", "2001:db8:1::1"),
    ] {
        site.reach(from, to);
    }
    // The gateway answers as a router does: pings in fragments, and no open ports.
    for gateway in ["10.1.0.1", "2001:db8:1::1"] {
        let ping = ["ping", "-n", "-c", "2", "-W", "2", "-s", "6000", gateway];
        let answer = site.ok("replica-a", &ping);
        assert!(answer.contains(" 0% packet loss"), "{answer}");
        let refusal = refused(&site, "replica-a", gateway, 80);
        assert_eq!(refusal, ErrorKind::ConnectionRefused, "{gateway}");
    }
    let uplink = site.sniff("edge", "uplink");
    let internet = server(&site, "server", 80, 80);
    for (to, nat) in SERVER.into_iter().zip(NAT) {
        for from in ["replica-a", "replica-b"] {
            get(&site, from, to, 80, 80, 200_000);
        }
        let seen = internet.clients();
        let seen = &seen[seen.len() - 2..];
        assert_eq!(seen, [ip(nat), ip(nat)], "sources seen at {to}");
        site.reach("replica-a", to);
    }
    // Globex configures no NAT address: its public address or the appliance's is used.
    get(&site, "globex-replica-a", SERVER[0], 80, 80, 200_000);
    let seen = internet.clients().last().copied();
    let own = "203.0.113.32/28".parse::<lab::Cidr>().expect("a prefix");
    let is_right = |a| own.contains(a) || a == ip("203.0.113.5");
    assert!(seen.is_some_and(is_right), "globex is seen as {seen:?}");
    // Networks without.
    let before = internet.clients().len();
    for to in SERVER {
        refused(&site, "replica-c", to, 80);
    }
    refused(&site, "replica-d", SERVER[0], 80);
    site.unreachable("replica-c", SERVER[0]);
    assert_eq!(internet.clients().len(), before, "db or ops got out");
    let frames = frames(uplink);
    assert!(frames.len() > 100, "{} frames on the uplink", frames.len());
    let leaked: Vec<_> = frames.iter().filter(|f| is_from_inside(f)).collect();
    assert!(leaked.is_empty(), "left untranslated: {leaked:02x?}");
}

#[test]
fn public_rules_lead_to_their_replicas_for_listed_sources_only() {
    let Some(site) = Site::full() else { return };
    let _servers = [
        server(&site, "replica-a", HTTP, 7),
        server(&site, "replica-b", HTTP, 8),
        server(&site, "replica-c", HTTP, 9),
    ];
    let ssh = greeter(&site, "replica-a", 22);
    for (public, seed) in WEB
        .into_iter()
        .map(|a| (a, 7))
        .chain(SIBLING.map(|a| (a, 8)))
    {
        get(&site, "client", public, 80, seed, 8 << 20);
        get(&site, "stranger", public, 80, seed, 100_000);
    }
    // Also in a network without internet access.
    get(&site, "client", DB_PUBLIC, 8080, 9, 1 << 20);
    // The source is not translated on the way in.
    assert_eq!(greeting(&site, "client", WEB[0], 2222), GREETING);
    assert_eq!(ssh.clients(), [ip("198.51.100.10")]);
    // A source that is not listed, a port and an address that no rule has.
    let before = site.counter(PROVIDER, "drop_not_listed");
    refused(&site, "stranger", WEB[0], 2222);
    assert!(site.counter(PROVIDER, "drop_not_listed") > before);
    for (public, port) in [(WEB[0], 8080), (WEB[1], 2222), (SPARE, 80)] {
        refused(&site, "client", public, port);
    }
    assert_eq!(ssh.clients().len(), 1);
    let rules = ask(&site, &["rule", "list", "--json"]);
    for name in ["web-v6", "sibling", "ssh", "iperf3"] {
        assert!(rules.contains(&format!("\"{name}\"")), "{name}: {rules}");
    }
}

#[test]
fn port_22_is_public_by_no_rule() {
    let Some(site) = Site::full() else { return };
    let _web = server(&site, "replica-b", HTTP, 8);
    let a = greeter(&site, "replica-a", 22);
    let b = greeter(&site, "replica-b", 22);
    for line in [
        "203.0.113.20:22/tcp -> 10.1.0.10:22",
        "203.0.113.20:22/udp -> 10.1.0.10:2222",
        "203.0.113.20:22/both -> 10.1.0.10:22",
        "203.0.113.20:20-25/tcp -> 10.1.0.10:20",
        "[2001:db8:f::20]:22/tcp -> [2001:db8:1::10]:22",
    ] {
        let why = refusal(&site, &["rule", "add", "--tenant", "acme", "shell", line]);
        assert!(
            why.contains("22") && why.contains("reserved for managing the appliance"),
            "{line}: {why}"
        );
    }
    // A 1:1 rule has everything but.
    let one = format!("{SPARE} -> 10.1.0.11");
    ask(&site, &["rule", "add", "--tenant", "acme", "one", &one]);
    get(&site, "client", SPARE, HTTP, 8, 100_000);
    let before = site.counter(PROVIDER, "drop_management_port");
    for public in [WEB[0], WEB[1], SPARE, NAT[0]] {
        let kind = refused(&site, "client", public, 22);
        assert_eq!(kind, ErrorKind::TimedOut, "{public} port 22 answers");
    }
    assert!(site.counter(PROVIDER, "drop_management_port") >= before + 4);
    assert_eq!(greeting(&site, "client", WEB[0], 2222), GREETING);
    assert_eq!((a.clients().len(), b.clients().len()), (1, 0));
}

#[test]
fn networks_are_routed_only_where_and_as_the_plan_allows() {
    let Some(site) = Site::full() else { return };
    let _db = server(&site, "replica-c", HTTP, 9);
    let _web = server(&site, "replica-a", HTTP, 7);
    for to in DB {
        site.reach("replica-a", to);
        site.reach("replica-b", to);
        get(&site, "replica-a", to, HTTP, 9, 4 << 20);
    }
    for to in ["10.1.0.10", "2001:db8:1::10"] {
        site.reach("replica-c", to);
        get(&site, "replica-c", to, HTTP, 7, 4 << 20);
    }
    let before = site.counter(PROVIDER, "drop_policy");
    for (from, to) in [
        ("replica-a", OPS),
        ("replica-c", OPS),
        ("replica-d", "10.2.0.10"),
    ] {
        site.unreachable(from, to);
        refused(&site, from, to, HTTP);
    }
    assert!(site.counter(PROVIDER, "drop_policy") > before);
    // Ops may send to web, but web may not reply.
    let web = site.udp("replica-a", "10.1.0.10", 7000);
    let ops = site.udp("replica-d", OPS, 7000);
    ops.send_to(b"one way", ("10.1.0.10", 7000))
        .expect("a datagram is sent");
    web.set_read_timeout(Some(Duration::from_secs(3)))
        .expect("a timeout of a socket");
    let mut buffer = [0; 64];
    let (length, from) = web.recv_from(&mut buffer).expect("ops may send to web");
    assert_eq!((&buffer[..length], from.ip()), (&b"one way"[..], ip(OPS)));
    web.send_to(b"back", from).expect("a datagram is sent");
    ops.set_read_timeout(Some(NO_ANSWER_WAIT))
        .expect("a timeout of a socket");
    assert!(
        ops.recv_from(&mut buffer).is_err(),
        "web may not send to ops"
    );
}

#[test]
fn a_sibling_is_reached_by_its_public_address() {
    let Some(site) = Site::full() else { return };
    let b = server(&site, "replica-b", HTTP, 8);
    let _c = server(&site, "replica-c", HTTP, 9);
    for (public, nat) in SIBLING.into_iter().zip(NAT) {
        get(&site, "replica-a", public, 80, 8, 4 << 20);
        // Its replies must pass the appliance, so it must not see its neighbour's address.
        let seen = b.clients();
        let inside = ["10.1.0.10", "2001:db8:1::10"].map(ip);
        assert!(
            seen.last().is_some_and(|a| !inside.contains(a)),
            "{public}: replica-b saw {seen:?}, not {nat}"
        );
        // Its own, too.
        get(&site, "replica-b", public, 80, 8, 100_000);
    }
    // In another network, where a route is allowed as well.
    get(&site, "replica-a", DB_PUBLIC, 8080, 9, 1 << 20);
}

#[test]
fn equal_networks_of_two_tenants_never_meet() {
    let Some(site) = Site::full() else { return };
    let _servers = [
        server(&site, "replica-a", HTTP, 7),
        server(&site, "replica-b", HTTP, 8),
        server(&site, "globex-replica-a", HTTP, 17),
    ];
    get(&site, "client", WEB[0], 80, 7, 1 << 20);
    get(&site, "client", GLOBEX, 80, 17, 1 << 20);
    get(&site, "client", WEB[0], 80, 7, 1 << 20);
    // Globex's machine reaches no machine of acme.
    let globex = site.mac("globex-replica-a", "eth0");
    for to in ["10.1.0.11", "2001:db8:1::11", DB[0], DB[1], OPS] {
        site.unreachable("globex-replica-a", to);
    }
    refused(&site, "globex-replica-a", "10.1.0.11", HTTP);
    for host in ["replica-a", "replica-b"] {
        let known = site.neighbours(host);
        assert!(
            !known.values().any(|mac| *mac == globex),
            "{host} knows globex's machine: {known:?}"
        );
    }
    // Acme may not have a rule on an address of globex.
    let line = format!("{GLOBEX}:81/tcp -> 10.1.0.10:8080");
    refusal(&site, &["rule", "add", "--tenant", "acme", "stolen", &line]);
    get(&site, "client", GLOBEX, 80, 17, 100_000);
}

#[test]
fn a_connection_outlives_other_rules_and_the_daemon() {
    let Some(site) = Site::full() else { return };
    let _ssh = greeter(&site, "replica-a", 22);
    let _web = server(&site, "replica-b", HTTP, 8);
    let _internet = greeter(&site, "server", 7);
    let inward = Conversation::start(&site, "client", WEB[0], 2222);
    let outward = Conversation::start(&site, "replica-b", SERVER[0], 7);
    let both_go_on = |when: &str| {
        thread::sleep(Duration::from_millis(300));
        assert!(inward.is_open() && outward.is_open(), "{when}");
    };
    both_go_on("before anything");
    let line = format!("{SPARE}:8080/tcp -> 10.1.0.11:8080");
    for round in 1..=3 {
        ask(&site, &["rule", "add", "--tenant", "acme", "more", &line]);
        get(&site, "client", SPARE, 8080, 8, 100_000);
        both_go_on("with a rule more");
        ask(&site, &["rule", "remove", "--tenant", "acme", "more"]);
        refused(&site, "client", SPARE, 8080);
        both_go_on("with a rule less");
        println!("round {round}: rules added and removed");
    }
    ask(
        &site,
        &[
            "rule",
            "add",
            "--tenant",
            "acme",
            "more",
            &line,
            "--allow",
            "198.51.100.10/32",
        ],
    );
    let flows = ask(&site, &["flows", "--json"]);
    assert!(flows.contains(WEB[0]) && flows.contains("2222"), "{flows}");

    let handle = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    // Another size of the tables: not at a reload, but at the next start.
    let config = std::fs::read_to_string(handle.config_path()).expect("the lab's own file");
    let config = format!("{config}\n[nat]\nconnections = 2048\nmappings = 4096\n");
    std::fs::write(handle.config_path(), config).expect("the lab's own file");
    let refused_reload = refusal(&site, &["reload"]);
    let named = "nat.connections takes effect at a restart";
    assert!(refused_reload.contains(named), "{refused_reload}");
    handle.kill().unwrap_or_else(|e| panic!("{e}"));
    thread::sleep(Duration::from_secs(2));
    both_go_on("without a daemon");
    // Existing connections and rules stay in force.
    get(&site, "client", SPARE, 8080, 8, 100_000);
    // `start` would wait for the tunnels, which are cut.
    handle.launch().unwrap_or_else(|e| panic!("{e}"));
    let until = Instant::now() + Duration::from_secs(15);
    while !handle
        .cli(&["status", "--json"])
        .is_ok_and(|output| output.ok())
    {
        assert!(Instant::now() < until, "{}", handle.log_tail(20));
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_secs(1));
    both_go_on("with the daemon back");
    for (map, entries) in [("FLOWS", 4096), ("MAPPINGS", 8192)] {
        let pins = site.pin_dir(PROVIDER);
        let version = std::fs::read_dir(&pins).expect("pins").flatten().next();
        let maps = version.expect("a version").path().join("maps");
        let info = aya::maps::MapInfo::from_pin(maps.join(map));
        assert_eq!(
            info.expect("the map is pinned").max_entries(),
            entries,
            "{map}"
        );
        assert!(!maps.join(format!("{map}-old")).exists(), "{map}");
    }
    assert_eq!(mode(&site, "acme"), "full");
    let rules = ask(&site, &["rule", "list", "--json"]);
    assert!(rules.contains("\"more\""), "the rule is kept: {rules}");
    get(&site, "client", SPARE, 8080, 8, 100_000);
    refused(&site, "stranger", SPARE, 8080);
    site.reach("replica-a", "10.1.0.1");
    for conversation in [inward, outward] {
        let (replies, longest) = conversation
            .finish()
            .unwrap_or_else(|e| panic!("the connection ended: {e}"));
        assert!(replies > 100, "{replies} replies");
        assert!(longest < Duration::from_secs(3), "silent for {longest:?}");
    }
}

#[test]
fn connections_that_new_maps_do_not_know_are_reset_at_once() {
    let Some(site) = Site::full() else { return };
    let _internet = greeter(&site, "server", 7);
    let _ssh = greeter(&site, "replica-a", 22);
    let outward = Conversation::start(&site, "replica-b", SERVER[0], 7);
    thread::sleep(Duration::from_millis(300));
    assert!(outward.is_open());
    let handle = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    handle.kill().unwrap_or_else(|e| panic!("{e}"));
    // As if an older version had left the data path: its maps are not ours to read.
    let pins = site.pin_dir(PROVIDER);
    let versions = std::fs::read_dir(&pins).expect("a directory of pins");
    let mut versions = versions.flatten().map(|entry| entry.path());
    let version = versions.find(|path| path.join("maps").exists());
    let version = version.expect("a version's pins");
    std::fs::rename(&version, pins.join("v999")).expect("a rename in bpffs");
    assert!(outward.is_open(), "the data path goes on");
    handle.launch().unwrap_or_else(|e| panic!("{e}"));
    let until = Instant::now() + Duration::from_secs(15);
    while outward.is_open() {
        assert!(Instant::now() < until, "silent: {}", handle.log_tail(20));
        thread::sleep(Duration::from_millis(20));
    }
    let error = outward.finish().expect_err("the connection was lost");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert!(site.counter(PROVIDER, "reset_sent") >= 1);
    assert_eq!(site.counter(PROVIDER, "not_configured"), 0);
    // New connections work, in both directions.
    let outward = Conversation::start(&site, "replica-b", SERVER[0], 7);
    let inward = Conversation::start(&site, "client", WEB[0], 2222);
    thread::sleep(Duration::from_millis(300));
    for conversation in [outward, inward] {
        conversation.finish().expect("it goes on");
    }
}

#[test]
fn full_excludes_partial_and_undo_leaves_nothing() {
    let Some(site) = Site::full() else { return };
    let _ssh = greeter(&site, "replica-a", 22);
    let why = refusal(&site, &["mode", "--tenant", "acme", "partial"]);
    assert!(why.contains("full failover"), "{why}");
    let conversation = Conversation::start(&site, "client", WEB[0], 2222);
    thread::sleep(Duration::from_millis(300));
    site.undo_site("acme")
        .unwrap_or_else(|e| panic!("undoing: {e}"));
    assert_eq!(mode(&site, "acme"), "idle");
    assert_eq!(mode(&site, "globex"), "full", "the other tenant goes on");
    for public in WEB {
        refused(&site, "client", public, 80);
        refused(&site, "client", public, 2222);
    }
    site.unreachable("client", NAT[0]);
    site.reach("globex-replica-a", "10.1.0.1");
    // The machine is off and cannot answer; the flows show the translation.
    let flows = ask(&site, &["flows", "--json"]);
    assert!(!flows.contains(WEB[0]), "{flows}");
    assert!(
        conversation.finish().is_err(),
        "it went on without a machine"
    );

    // The tunnel was there all the time: a partial failover is a step away.
    site.reach("edge", "10.1.0.5");
    site.over("prod-a");
    site.reach("prod-b", "10.1.0.10");
    site.back("prod-a");
    // A second full failover.
    for host in [PROVIDER, "tenant-appliance"] {
        site.appliance(host)
            .and_then(|a| a.must(&["mode", "--tenant", "acme", "idle"]))
            .unwrap_or_else(|e| panic!("{host}: {e}"));
    }
    site.fail_over_site("acme")
        .unwrap_or_else(|e| panic!("failing over again: {e}"));
    site.reach("replica-a", "10.1.0.1");
    assert_eq!(greeting(&site, "client", WEB[0], 2222), GREETING);
}

#[test]
fn mappings_are_logged_as_configured() {
    let Some(site) = Site::full() else { return };
    let _internet = server(&site, "server", 80, 80);
    let handle = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    let config = std::fs::read_to_string(handle.config_path()).expect("the lab's own file");
    let path = handle.config_path().with_file_name("nat.jsonl");
    let with = |log: &str| {
        let text = format!("{config}\n[nat]\nlog = \"{log}\"\nclosed_seconds = 4\n");
        std::fs::write(handle.config_path(), text).expect("the lab's own file");
    };
    with("/nonexistent/nat.jsonl");
    let why = refusal(&site, &["reload"]);
    assert!(
        why.contains("nat.log: cannot open /nonexistent/nat.jsonl"),
        "{why}"
    );
    with(&path.display().to_string());
    ask(&site, &["reload"]);
    get(&site, "replica-a", SERVER[0], 80, 80, 100_000);
    // 4 s after its end, at most 10 s until the next pass, and the same for its mapping.
    let until = Instant::now() + Duration::from_secs(40);
    let mut events = Vec::new();
    while events != ["opened", "closed"] {
        assert!(
            Instant::now() < until,
            "{events:?}\n{}",
            handle.log_tail(20)
        );
        thread::sleep(Duration::from_millis(500));
        let text = std::fs::read_to_string(&path).expect("the log");
        let lines = text.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            assert_eq!(
                (&line["tenant"], &line["protocol"]),
                (&"acme".into(), &"tcp".into())
            );
            let has = |key: &str, address: &str| {
                let end = line[key].as_str().unwrap_or_default();
                assert!(end.starts_with(&format!("{address}:")), "{line}");
            };
            has("inside", "10.1.0.10");
            has("outside", NAT[0]);
            line["event"].as_str().unwrap_or_default().to_owned()
        });
        events = lines.collect();
    }
}

/// Hosts whose NIC completes checksums and cuts segments, as those of a hypervisor do; an uplink
/// whose NIC joins segments. What leaves and enters the uplink is cut to its MTU.
#[test]
fn bulk_tcp_is_carried_both_ways_with_offloads_on() {
    for generic in [false, true] {
        let Some(site) = Site::bare(lab::sites::full, causeway_tests::site::PLAIN) else {
            return;
        };
        if generic {
            site.configure(PROVIDER, |config| {
                // The uplink, which is first; the trunk stays native, as the lab tags by TC.
                let generic = config.replacen("xdp = \"native\"", "xdp = \"generic\"", 1);
                assert_ne!(generic, config, "{config}");
                generic
            });
        }
        for host in ["replica-a", "server", "client"] {
            site.ok(host, &["ethtool", "-K", "eth0", "tx", "on"]);
            let features = site.ok(host, &["ethtool", "-k", "eth0"]);
            assert!(
                features.contains("tcp-segmentation-offload: on"),
                "{features}"
            );
        }
        site.ok(PROVIDER, &["ethtool", "-K", "eth0", "gro", "on"]);
        site.start_appliances().unwrap_or_else(|e| panic!("{e}"));
        site.boot_replicas("acme").unwrap_or_else(|e| panic!("{e}"));
        site.mode_full("acme").unwrap_or_else(|e| panic!("{e}"));
        let _servers = [
            server(&site, "server", HTTP, 5),
            server(&site, "replica-a", HTTP, 7),
        ];
        let status = site.status(PROVIDER);
        let mut interfaces = status["interfaces"].as_array().into_iter().flatten();
        let uplink = interfaces
            .find(|i| i["name"] == "eth0")
            .expect("the uplink");
        let expected = if generic { "generic" } else { "native" };
        assert_eq!(uplink["xdp"], expected, "{uplink}");
        get(&site, "replica-a", "198.51.100.80", HTTP, 5, 16 << 20);
        for public in WEB {
            get(&site, "client", public, 80, 7, 16 << 20);
        }
        for counter in [
            "frag_needed_sent",
            "packet_too_big_sent",
            "checksum_partial",
        ] {
            assert_eq!(site.counter(PROVIDER, counter), 0, "{counter}, {generic}");
        }
    }
}
