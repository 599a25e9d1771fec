//! A 1500-byte LAN over a 1500-byte WAN: the tunnel's 50 bytes do not show.

use std::{net::SocketAddr, time::Duration};

use causeway_tests::{
    packet::{be16, ip, l2},
    site::{Site, frames},
};

const A: &str = "10.1.0.10";
const A6: &str = "2001:db8:1::10";
const B: &str = "10.1.0.11";
const B6: &str = "2001:db8:1::11";

/// Frames that are IP fragments, and those over 1500 bytes of IP.
fn offenders(seen: &[Vec<u8>]) -> (usize, usize) {
    let mut fragments = 0;
    let mut long = 0;
    for frame in seen {
        let Some(l2) = l2(frame) else { continue };
        let l3 = &frame[l2.l3..];
        match l2.ethertype {
            0x0800 => fragments += usize::from(be16(l3, 6).unwrap_or(0) & 0x3fff != 0),
            0x86dd => fragments += usize::from(l3.get(6) == Some(&44)),
            _ => {}
        }
        long += usize::from(l3.len() > 1500);
    }
    (fragments, long)
}

#[test]
fn tcp_fills_the_wan_without_a_fragment() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("prod-b", A);
    site.reach("prod-b", A6);
    let wan = site.sniff("wan", "provider");
    for (from, to, address) in [
        ("prod-b", "replica-a", A),
        ("replica-a", "prod-b", B),
        ("prod-b", "replica-a", A6),
        ("replica-a", "prod-b", B6),
        ("remote", "replica-a", A),
    ] {
        let took = site.tcp(from, to, address, 16 << 20);
        println!(
            "16 MiB {from} → {to} at {address}: {} ms, {:.0} Mbit/s",
            took.as_millis(),
            f64::from(16u32 << 23) / took.as_secs_f64() / 1e6
        );
    }
    let seen = frames(wan);
    let full = seen.iter().filter(|f| f.len() == 1514).count();
    let (fragments, long) = offenders(&seen);
    println!("{} frames on the WAN, {full} of full size", seen.len());
    assert_eq!(fragments, 0, "fragments on the WAN");
    assert_eq!(long, 0, "packets over 1500 bytes on the WAN");
    assert!(full > 20_000, "segments did not fill the path: {full}");
    assert!(
        site.counter("tenant-appliance", "mss_clamped") > 0,
        "SYNs were clamped"
    );
}

#[test]
fn a_ping_with_df_learns_the_mtu() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    for (from, to, len, fits) in [
        ("prod-b", A, "1472", "1422"),
        ("replica-a", B, "1472", "1422"),
        ("remote", A, "1472", "1422"),
        ("prod-b", A6, "1452", "1402"),
        ("replica-a", B6, "1452", "1402"),
        ("remote", A6, "1452", "1402"),
    ] {
        site.reach(from, to);
        let out = site.sh(
            from,
            &[
                "ping", "-n", "-M", "do", "-s", len, "-c", "3", "-i", "0.2", "-W", "1", to,
            ],
        );
        let output = format!("{}{}", out.stdout, out.stderr);
        assert!(
            output.contains("mtu=1450")
                || output.contains("mtu = 1450")
                || output.contains("mtu: 1450"),
            "{from} did not learn the MTU towards {to}:\n{output}"
        );
        let route = site.ok(from, &["ip", "route", "get", to]);
        assert!(route.contains("mtu 1450"), "{from}: {route}");
        let out = site.sh(
            from,
            &[
                "ping", "-n", "-M", "do", "-s", fits, "-c", "3", "-i", "0.05", "-W", "1", to,
            ],
        );
        assert!(out.ok(), "{from} → {to}, what fits:\n{}", out.stdout);
    }
}

#[test]
fn datagrams_of_8000_bytes_arrive_whole() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    for (from, from_address, to, address, tries) in [
        // IPv4: split on the way, so the first try must arrive.
        ("prod-b", B, "replica-a", A, 1),
        ("replica-a", A, "prod-b", B, 1),
        ("remote", "10.9.0.2", "replica-a", A, 1),
        // IPv6: the source has to learn first.
        ("prod-b", B6, "replica-a", A6, 5),
        ("replica-a", A6, "prod-b", B6, 5),
        ("remote", "2001:db8:9::2", "replica-a", A6, 5),
    ] {
        site.reach(from, address);
        // Forget the MTU that an earlier row learned.
        site.ok(from, &["ip", "route", "flush", "cache"]);
        let receiver = site.udp(to, address, 5000);
        let sender = site.udp(from, from_address, 0);
        let target = SocketAddr::new(ip(address), 5000);
        let mut arrived = false;
        for attempt in 0..tries {
            let payload: Vec<u8> = (0..8000u32).map(|i| (i * 7 + attempt) as u8).collect();
            // After learning, a datagram may be refused once with EMSGSIZE.
            let _ = sender.send_to(&payload, target);
            receiver
                .set_read_timeout(Some(Duration::from_millis(700)))
                .expect("a timeout");
            let mut buffer = [0; 9000];
            if let Ok((n, who)) = receiver.recv_from(&mut buffer) {
                assert_eq!(&buffer[..n], &payload[..], "{from} → {to}: changed");
                assert_eq!(who.ip(), ip(from_address), "{from} → {to}: source");
                println!("{from} → {to} at {address}: try {}", attempt + 1);
                arrived = true;
                break;
            }
        }
        assert!(
            arrived,
            "{from} → {to} at {address}: 8000 bytes did not arrive"
        );
    }
    let split = site.counter("tenant-appliance", "slow_split")
        + site.counter("provider-appliance", "slow_split");
    assert!(split >= 3 * 5, "packets took the slow path: {split}");
}
