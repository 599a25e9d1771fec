//! Full failover between real hosts, looked at closely: fragments out of order, and packets
//! followed by `trace`.

use std::{
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use causeway_tests::{
    nat::{Message, fragments, packet},
    packet::{Mac, frame, ip},
    site::{Conversation, Site},
};

const PROVIDER: &str = "provider-appliance";
const PUBLIC: [&str; 2] = ["203.0.113.23", "2001:db8:f::23"];
const REPLICA: [&str; 2] = ["10.1.0.10", "2001:db8:1::10"];
const CLIENT: [&str; 2] = ["198.51.100.10", "2001:db8:99::10"];
const SERVER: [&str; 2] = ["198.51.100.80", "2001:db8:99::80"];
const GATEWAY: [&str; 2] = ["10.1.0.1", "2001:db8:1::1"];

fn ask(site: &Site, words: &[&str]) -> String {
    let appliance = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    appliance.must(words).unwrap_or_else(|e| panic!("{e}"))
}

fn mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|b| u8::from_str_radix(b, 16).unwrap_or_else(|e| panic!("{text}: {e}")))
        .collect();
    bytes
        .try_into()
        .unwrap_or_else(|_| panic!("{text} is no MAC address"))
}

/// The MAC address that `host` resolves for a neighbour.
fn next_hop(site: &Site, host: &str, address: &str) -> Mac {
    site.reach(host, address);
    let neighbours = site.neighbours(host);
    let text = neighbours.get(&ip(address));
    mac(text.unwrap_or_else(|| panic!("{host} does not know {address}: {neighbours:?}")))
}

#[test]
fn a_fragment_before_its_first_is_not_lost() {
    let Some(site) = Site::full() else { return };
    for (i, edge) in ["198.51.100.1", "2001:db8:99::1"].into_iter().enumerate() {
        let line = if i == 0 {
            format!("{}:7000/udp -> {}:7000", PUBLIC[i], REPLICA[i])
        } else {
            format!("[{}]:7000/udp -> [{}]:7000", PUBLIC[i], REPLICA[i])
        };
        ask(
            &site,
            &[
                "rule",
                "add",
                "--tenant",
                "acme",
                &format!("datagrams-{i}"),
                &line,
            ],
        );
        // In: the second piece first, then the first.
        let replica = site.udp("replica-a", REPLICA[i], 7000);
        replica
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("a timeout");
        let (hop, own) = (
            next_hop(&site, "client", edge),
            mac(&site.mac("client", "eth0")),
        );
        let whole = packet(Message::Udp, (ip(CLIENT[i]), 5000), (ip(PUBLIC[i]), 7000));
        let [first, second] = fragments(&whole, 16, 77);
        site.inject("client", "eth0", &[frame(hop, own, &[], &second)])
            .unwrap_or_else(|e| panic!("{e}"));
        thread::sleep(Duration::from_millis(50));
        site.inject("client", "eth0", &[frame(hop, own, &[], &first)])
            .unwrap_or_else(|e| panic!("{e}"));
        let mut buffer = [0; 200];
        let (length, from) = replica
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("{}: the datagram is lost: {e}", PUBLIC[i]));
        assert_eq!(&buffer[..length], &whole[whole.len() - length..]);
        assert_eq!(from.ip(), ip(CLIENT[i]));

        // From inside to the internet.
        let server = site.udp("server", SERVER[i], 7001);
        server
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("a timeout");
        let (hop, own) = (
            next_hop(&site, "replica-a", GATEWAY[i]),
            mac(&site.mac("replica-a", "eth0")),
        );
        let whole = packet(Message::Udp, (ip(REPLICA[i]), 5001), (ip(SERVER[i]), 7001));
        let [first, second] = fragments(&whole, 16, 78);
        for piece in [second, first] {
            site.inject("replica-a", "eth0", &[frame(hop, own, &[], &piece)])
                .unwrap_or_else(|e| panic!("{e}"));
        }
        let (length, from) = server
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("{}: the datagram is lost: {e}", SERVER[i]));
        assert_eq!(&buffer[..length], &whole[whole.len() - length..]);
        assert!(from.ip() != ip(REPLICA[i]), "untranslated");
    }
    // Two families, two directions: each had one piece that waited, and was translated when it was
    // run again.
    assert_eq!(site.counter(PROVIDER, "slow_fragment"), 4);
    assert_eq!(site.counter(PROVIDER, "fragment_translated"), 4);
}

/// The lines of a trace, as JSON.
fn steps(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect()
}

#[test]
fn a_trace_shows_packets_and_connections_continue() {
    let Some(site) = Site::full() else { return };
    let _ssh = site
        .greeter("replica-a", 22, "SSH-2.0-causeway_replica-a")
        .unwrap_or_else(|e| panic!("{e}"));
    let conversation = Conversation::start(&site, "client", "203.0.113.20", 2222);
    let text = thread::scope(|scope| {
        let trace = scope.spawn(|| {
            let filter = ["--protocol", "icmp", "--address", SERVER[0]];
            let mut words = vec!["trace", "--seconds", "6", "--count", "1", "--json"];
            words.extend(filter);
            ask(&site, &words)
        });
        while !trace.is_finished() {
            site.reach("replica-b", SERVER[0]);
        }
        trace.join().expect("no panic in the trace")
    });
    let steps = steps(&text);
    let path: Vec<(&str, &str)> = steps
        .iter()
        .map(|s| {
            (
                s["program"].as_str().unwrap_or_default(),
                s["step"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    // The first packet: an echo request or its reply.
    let out = [
        ("access", "enter"),
        ("full", "continue"),
        ("nat_out", "continue"),
        ("nat_out", "verdict"),
    ];
    let back = [
        ("uplink", "enter"),
        ("nat_in", "continue"),
        ("nat_in", "verdict"),
    ];
    assert!(path == out || path == back, "{text}");
    let last = steps.last().expect("a step");
    let counted = last["counted"].as_array().expect("counters");
    let name = counted.last().and_then(|c| c.as_str()).unwrap_or_default();
    assert!(name.starts_with("translated_"), "{text}");
    assert!(
        last["frame"].as_str().unwrap_or_default().contains("ICMP "),
        "{text}"
    );

    // One trace at a time; and a killed client leaves nothing behind.
    let appliance = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    let mut looker = Command::new(&site.paths().appliance)
        .arg("--socket")
        .arg(appliance.socket_path())
        .arg("trace")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .expect("the client starts");
    thread::sleep(Duration::from_secs(1));
    let second = appliance
        .cli(&["trace", "--seconds", "1"])
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(
        !second.ok() && second.stderr.contains("another client is tracing"),
        "{}",
        second.stderr
    );
    looker.kill().expect("it was ours");
    looker.wait().expect("it was ours");
    thread::sleep(Duration::from_secs(7));
    let filter = [
        "trace",
        "--seconds",
        "1",
        "--address",
        "192.0.2.99",
        "--json",
    ];
    assert_eq!(ask(&site, &filter), "");
    let unknown = appliance
        .cli(&["trace", "--interface", "nowhere"])
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(
        !unknown.ok() && unknown.stderr.contains("\"nowhere\" has no XDP program"),
        "{}",
        unknown.stderr
    );
    // Programs were replaced six times meanwhile.
    let (replies, longest) = conversation.finish().unwrap_or_else(|e| panic!("{e}"));
    assert!(replies > 100, "{replies} replies");
    assert!(longest < Duration::from_secs(1), "silent for {longest:?}");
}

#[test]
fn a_discovery_client_finds_the_documented_behaviour() {
    // RFC 5780 sections 4.3 and 4.4, by a client in a replica and a server with two addresses and
    // two ports.
    let Some(site) = Site::full() else { return };
    let second = ["198.51.100.81", "2001:db8:99::81"];
    for (address, length) in second.into_iter().zip(["24", "64"]) {
        let with = format!("{address}/{length}");
        let mut words = vec!["ip", "address", "add", with.as_str(), "dev", "eth0"];
        if address.contains(':') {
            words.push("nodad");
        }
        site.ok("server", &words);
    }
    for i in 0..2 {
        let client = site.udp("replica-a", REPLICA[i], 6000);
        let servers = [
            site.udp("server", SERVER[i], 3478),
            site.udp("server", SERVER[i], 3479),
            site.udp("server", second[i], 3478),
            site.udp("server", second[i], 3479),
        ];
        for server in &servers {
            server
                .set_read_timeout(Some(Duration::from_secs(3)))
                .expect("a timeout");
        }
        let mut buffer = [0; 64];
        // Test I. A server that the client never sent to must be filtered: address- and
        // port-dependent filtering.
        client.send_to(b"one", (ip(SERVER[i]), 3478)).expect("sent");
        let (_, seen) = servers[0].recv_from(&mut buffer).expect("the first reply");
        assert!(seen.ip() != ip(REPLICA[i]), "untranslated");
        for (n, server) in servers.iter().enumerate().skip(1) {
            server.send_to(b"unasked", seen).expect("sent");
            let received = client.recv_from(&mut buffer);
            assert!(
                received.is_err(),
                "{seen}: server {n} gets through: {received:?}"
            );
        }
        servers[0].send_to(b"asked", seen).expect("sent");
        let (length, from) = client.recv_from(&mut buffer).expect("the reply");
        assert_eq!(
            (&buffer[..length], from.ip()),
            (&b"asked"[..], ip(SERVER[i]))
        );
        // Tests II and III: endpoint-independent mapping.
        for (server, to) in servers.iter().zip([
            (SERVER[i], 3478),
            (SERVER[i], 3479),
            (second[i], 3478),
            (second[i], 3479),
        ]) {
            client.send_to(b"who am I", (ip(to.0), to.1)).expect("sent");
            let (_, again) = server.recv_from(&mut buffer).expect("the datagram");
            assert_eq!(again, seen, "seen as another by {to:?}");
        }
    }
}
