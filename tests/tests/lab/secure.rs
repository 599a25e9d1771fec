//! Encrypted tunnels: nothing readable on the WAN, nothing forged or replayed accepted, full-size
//! LANs, a WireGuard client, a flood of handshakes.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::{
    packet::{be16, ip, l2},
    site::{ENCRYPTED, Site, frames, holds},
};
use lab::Options;

const A: &str = "10.1.0.10";
const A6: &str = "2001:db8:1::10";
const B: &str = "10.1.0.11";
const B6: &str = "2001:db8:1::11";
const BOTH: [&str; 2] = ["tenant-appliance", "provider-appliance"];
const PORT: u16 = 6180;

/// A mark that is in no other bytes.
const MARK: &[u8] = b"<<plaintext between two machines: 7d1c>>";

/// UDP payload of an encrypted tunnel's frame.
fn datagram(frame: &[u8]) -> Option<&[u8]> {
    let l2 = l2(frame)?;
    let l3 = &frame[l2.l3..];
    let udp = (l2.ethertype == 0x0800 && l3.get(9) == Some(&17)).then(|| &l3[20..])?;
    (be16(udp, 0) == Some(PORT) && be16(udp, 2) == Some(PORT)).then(|| &udp[8..])
}

/// Sends `count` marked datagrams and expects each at its end.
fn say(site: &Site, from: (&str, &str), to: (&str, &str), count: usize) {
    let here = site.udp(from.0, from.1, 6000);
    let there = site.udp(to.0, to.1, 6000);
    let target = SocketAddr::new(ip(to.1), 6000);
    for round in 0..count {
        here.send_to(MARK, target)
            .unwrap_or_else(|e| panic!("{}: {e}", from.0));
        let mut buffer = [0; 200];
        let (n, _) = there
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("{} → {}, round {round}: {e}", from.0, to.0));
        assert_eq!(&buffer[..n], MARK);
    }
}

#[test]
fn the_wan_carries_nothing_readable() {
    let Some(site) = Site::encrypted() else {
        return;
    };
    site.over("prod-a");
    for to in [A, A6] {
        site.reach("prod-b", to);
        site.reach("remote", to);
    }
    let wan = site.sniff("wan", "provider");
    let lan = site.sniff("replica-a", "eth0");
    say(&site, ("prod-b", B), ("replica-a", A), 50);
    say(&site, ("replica-a", A), ("prod-b", B), 50);
    say(&site, ("prod-b", B6), ("replica-a", A6), 50);
    site.tcp("prod-b", "replica-a", A, 1 << 20);
    let (wan, lan) = (frames(wan), frames(lan));
    // The capture can see what is there to be seen.
    let readable = lan.iter().filter(|f| holds(f, MARK)).count();
    assert!(readable >= 150, "{readable} marks on the replica's LAN");
    let sealed = wan.iter().filter_map(|f| datagram(f)).count();
    assert!(sealed > 850, "{sealed} datagrams on the WAN");
    for frame in &wan {
        assert!(!holds(frame, MARK), "the mark is readable on the WAN");
        // Addresses inside are not either.
        let inner = [[10, 1, 0, 11, 10, 1, 0, 10], [10, 1, 0, 10, 10, 1, 0, 11]];
        assert!(!inner.iter().any(|pair| holds(frame, pair)));
        if let Some(message) = datagram(frame) {
            assert!((1..=4).contains(&message[0]), "message type {}", message[0]);
        }
    }
    for host in BOTH {
        let tunnel = site.await_path_mtu(host, 1500);
        assert_eq!(tunnel["up"], true, "{host}: {tunnel}");
        assert!(tunnel["round_trip_micros"].as_u64().is_some_and(|t| t > 0));
        for name in ["drop_forged", "drop_replayed", "drop_unknown_session"] {
            assert_eq!(site.counter(host, name), 0, "{host}: {name}");
        }
    }
}

#[test]
fn captured_datagrams_cannot_be_replayed() {
    let Some(site) = Site::encrypted() else {
        return;
    };
    site.over("prod-a");
    site.reach("prod-b", A);
    let wan = site.sniff("wan", "provider");
    say(&site, ("prod-b", B), ("replica-a", A), 30);
    let seen: Vec<Vec<u8>> = frames(wan)
        .into_iter()
        .filter(|f| {
            // Towards the provider, and data.
            datagram(f).is_some_and(|m| m[0] == 4 && m.len() > 60) && f[30..34] == [203, 0, 113, 5]
        })
        .collect();
    assert!(seen.len() >= 30, "{} datagrams captured", seen.len());
    let before = site.counter("provider-appliance", "decapsulated");
    let listener = site.udp("replica-a", A, 6000);
    for _ in 0..3 {
        site.inject("wan", "provider", &seen)
            .unwrap_or_else(|e| panic!("{e}"));
    }
    thread::sleep(Duration::from_millis(300));
    let mut buffer = [0; 200];
    assert!(
        listener.recv_from(&mut buffer).is_err(),
        "a replayed datagram was delivered"
    );
    let refused = site.counter("provider-appliance", "drop_replayed");
    assert_eq!(
        refused,
        3 * seen.len() as u64,
        "replays refused and counted"
    );
    assert_eq!(site.counter("provider-appliance", "decapsulated"), before);
    // Touched ones neither.
    let touched: Vec<Vec<u8>> = seen
        .iter()
        .map(|frame| {
            let mut frame = frame.clone();
            // A counter that was not seen yet, and everything else as it was.
            frame[50] ^= 0x40;
            frame
        })
        .collect();
    site.inject("wan", "provider", &touched)
        .unwrap_or_else(|e| panic!("{e}"));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(
        site.counter("provider-appliance", "drop_forged"),
        touched.len() as u64
    );
    let tunnel = site.status("provider-appliance")["peers"][0]["tunnel"].clone();
    assert_eq!(tunnel["replays"], refused, "{tunnel}");
    site.reach("prod-b", A);
}

#[test]
fn a_full_size_lan_fits_over_any_wan_mtu() {
    for wan_mtu in [1500, 1400] {
        let options = Options {
            wan_mtu,
            ..ENCRYPTED
        };
        let Some(site) = Site::raise(lab::sites::partial, options) else {
            return;
        };
        site.over("prod-a");
        for (from, from_address, to, address) in
            [("prod-b", B, "replica-a", A), ("replica-a", A, "prod-b", B)]
        {
            site.reach(from, address);
            site.ok(from, &["sysctl", "-qw", "net.ipv4.ip_no_pmtu_disc=1"]);
            // Without DF the tunnel fragments and reassembles the packet: the first must arrive,
            // as one packet.
            let receiver = site.udp(to, address, 5000);
            let sender = site.udp(from, from_address, 0);
            for len in [1, 1000, 1392, 1393, 1404, 1405, 1472, 8000] {
                let payload: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
                sender
                    .send_to(&payload, SocketAddr::new(ip(address), 5000))
                    .unwrap_or_else(|e| panic!("{from}: {e}"));
                let mut buffer = [0; 9000];
                let (n, _) = receiver
                    .recv_from(&mut buffer)
                    .unwrap_or_else(|e| panic!("{from} → {to}, {len} bytes: {e}"));
                assert_eq!(&buffer[..n], &payload[..], "{from} → {to}: {len} bytes");
            }
            site.ok(from, &["sysctl", "-qw", "net.ipv4.ip_no_pmtu_disc=0"]);
            site.tcp(from, to, address, 4 << 20);
        }
        let net1 = |host: &str| site.status(host)["networks"][0]["mtu"].clone();
        for host in BOTH {
            site.await_path_mtu(host, wan_mtu);
            // 20 bytes of IPv4, 8 of UDP, 32 of the message, 8 of the segment.
            assert_eq!(net1(host), wan_mtu - 68, "{host}");
            assert!(site.counter(host, "tunnel_fragmented") >= 1, "{host}");
            assert!(site.counter(host, "tunnel_reassembled") >= 1, "{host}");
            assert_eq!(site.counter(host, "slow_split"), 0, "{host}");
        }
        let learned = wan_mtu - 68;
        for (from, to) in [("prod-b", A), ("replica-a", B), ("prod-b", A6)] {
            let out = site.sh(
                from,
                &[
                    "ping", "-n", "-M", "do", "-s", "1452", "-c", "2", "-i", "0.2", "-W", "1", to,
                ],
            );
            let output = format!("{}{}", out.stdout, out.stderr);
            assert!(
                output.contains(&format!("mtu={learned}"))
                    || output.contains(&format!("mtu = {learned}"))
                    || output.contains(&format!("mtu: {learned}")),
                "{from} did not learn the MTU towards {to}:\n{output}"
            );
        }
    }
}

#[test]
fn a_wireguard_client_is_a_machine_of_the_network() {
    let go = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|d| d.join("wireguard-go").exists()));
    if !go {
        causeway_tests::skip("wireguard-go is missing; `cargo xtask setup` installs it");
        return;
    }
    let Some(site) = Site::bare(lab::sites::partial, ENCRYPTED) else {
        return;
    };
    let provider = site
        .appliance("provider-appliance")
        .unwrap_or_else(|e| panic!("{e}"));
    let dir = site.run_dir().join("etc");
    let key = dir.join("client.key");
    let key = key.to_str().expect("a plain path");
    let public = provider
        .must(&["keygen", "--private-key", key])
        .unwrap_or_else(|e| panic!("{e}"));
    let psk = dir.join("client.psk");
    let psk = psk.to_str().expect("a plain path");
    provider
        .must(&["preshared-key", psk])
        .unwrap_or_else(|e| panic!("{e}"));
    site.configure("provider-appliance", |text| {
        format!(
            "{text}\n[[peer]]\nname = \"laptop\"\nkind = \"wireguard\"\npublic_key = \"{}\"\n\
             preshared_key_file = \"{psk}\"\nnetwork = \"net1\"\n\
             allowed = [\"10.1.0.77\", \"2001:db8:1::77\"]\n",
            public.trim()
        )
    });
    site.start_appliances().unwrap_or_else(|e| panic!("{e}"));
    site.over("prod-a");
    site.reach("prod-b", A);

    // `remote` is somewhere on the internet, behind the router.
    site.ok(
        "wan",
        &["ip", "route", "add", "10.9.0.2/32", "via", "198.51.100.2"],
    );
    site.spawn(
        "remote",
        "wireguard-go",
        &[
            "env",
            "WG_PROCESS_FOREGROUND=1",
            "wireguard-go",
            "-f",
            "wgc0",
        ],
    )
    .unwrap_or_else(|e| panic!("{e}"));
    let until = Instant::now() + Duration::from_secs(5);
    while !site.sh("remote", &["wg", "show", "wgc0"]).ok() {
        assert!(Instant::now() < until, "wireguard-go does not come up");
        thread::sleep(Duration::from_millis(20));
    }
    let theirs = provider.public_key().unwrap_or_else(|e| panic!("{e}"));
    site.ok(
        "remote",
        &[
            "wg",
            "set",
            "wgc0",
            "private-key",
            key,
            "peer",
            &theirs,
            "preshared-key",
            psk,
            "endpoint",
            "203.0.113.5:6180",
            "allowed-ips",
            "10.1.0.0/24,2001:db8:1::/64",
        ],
    );
    for words in [
        &["ip", "address", "add", "10.1.0.77/32", "dev", "wgc0"][..],
        &[
            "ip",
            "address",
            "add",
            "2001:db8:1::77/128",
            "dev",
            "wgc0",
            "nodad",
        ],
        &["ip", "link", "set", "wgc0", "mtu", "1420", "up"],
        &["ip", "route", "add", "10.1.0.10/32", "dev", "wgc0"],
        &["ip", "route", "add", "2001:db8:1::10/128", "dev", "wgc0"],
    ] {
        site.ok("remote", words);
    }
    for to in [A, A6] {
        site.reach("remote", to);
    }
    for to in ["10.1.0.77", "2001:db8:1::77"] {
        site.reach("replica-a", to);
    }
    // The others of the network are where they were.
    site.reach("prod-b", A);
    site.reach("replica-a", B);
    site.tcp("remote", "replica-a", A, 4 << 20);
    site.tcp("replica-a", "remote", "10.1.0.77", 4 << 20);
    let status = site.status("provider-appliance");
    let laptop = status["peers"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == "laptop")
        .unwrap_or_else(|| panic!("{status}"));
    assert_eq!(laptop["kind"], "wireguard");
    assert_eq!(laptop["tunnel"]["cipher"], "chacha20-poly1305");
    assert_eq!(laptop["tunnel"]["up"], true, "{laptop}");
    // It may use its own addresses, and no others.
    site.ok(
        "remote",
        &["ip", "address", "add", "10.1.0.88/32", "dev", "wgc0"],
    );
    let before = site.counter("provider-appliance", "drop_not_allowed");
    let out = site.sh(
        "remote",
        &[
            "ping",
            "-n",
            "-I",
            "10.1.0.88",
            "-c",
            "3",
            "-i",
            "0.1",
            "-W",
            "1",
            A,
        ],
    );
    assert!(out.stdout.contains(" 100% packet loss"), "{}", out.stdout);
    assert_eq!(
        site.counter("provider-appliance", "drop_not_allowed"),
        before + 3
    );
}
