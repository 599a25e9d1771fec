//! Encrypted tunnels: a flood of 100 000 bogus handshakes a second costs an established tunnel
//! nothing.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

use appliance_user::kernel::raw_socket::PacketSocket;
use causeway_tests::{
    packet::{self, ip},
    rng::Seeded,
    site::Site,
};
use lab::Probe;

const A: &str = "10.1.0.10";
const PORT: u16 = 6180;

/// A datagram that looks like a handshake from `source`.
fn bogus(rng: &mut Seeded, source: Ipv4Addr, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
    let mut message = vec![0; 148];
    for byte in &mut message {
        *byte = rng.next_u64() as u8;
    }
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    let udp = packet::udp(IpAddr::V4(source), ip("203.0.113.5"), PORT, PORT, &message);
    packet::frame(to, from, &[], &udp)
}

fn mac_bytes(text: &str) -> [u8; 6] {
    let mut bytes = [0; 6];
    for (place, part) in bytes.iter_mut().zip(text.split(':')) {
        *place = u8::from_str_radix(part, 16).expect("a MAC");
    }
    bytes
}

#[test]
fn a_flood_of_handshakes_costs_an_established_tunnel_nothing() {
    let Some(site) = Site::encrypted() else {
        return;
    };
    site.over("prod-a");
    site.reach("prod-b", A);
    let mut rng = Seeded::new(7);
    let to = mac_bytes(&site.mac("provider-appliance", "eth0"));
    let from = mac_bytes(&site.mac("wan", "provider"));
    // Half from anywhere, half from one neighbour of the tenant's.
    let flood: Vec<Vec<u8>> = (0..20_000)
        .map(|n: u32| {
            let source = if n.is_multiple_of(2) {
                Ipv4Addr::from(0xc612_0000 | (rng.next_u64() as u32 & 0x1_ffff))
            } else {
                Ipv4Addr::new(198, 51, 100, 77)
            };
            bogus(&mut rng, source, from, to)
        })
        .collect();
    let before = site.counter("provider-appliance", "drop_handshake_rate");
    let series = site
        .ping("prod-b", ip(A), Probe::Echo, Duration::from_millis(5))
        .unwrap_or_else(|e| panic!("{e}"));
    let gun = site
        .inside("wan", || {
            let index = nix::net::if_::if_nametoindex("provider")?;
            PacketSocket::open(index).map_err(std::io::Error::other)
        })
        .unwrap_or_else(|e| panic!("{e}"));
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < Duration::from_secs(5) {
        // 100 000 per second, in bursts that a link's queue of 256 frames holds.
        let due = (began.elapsed().as_secs_f64() * 100_000.0) as usize;
        let at = sent % flood.len();
        let batch = due.saturating_sub(sent).min(128).min(flood.len() - at);
        for frame in &flood[at..at + batch] {
            // A full cable drops what it cannot hold; that was no flood.
            sent += usize::from(gun.send(frame).is_ok());
        }
        thread::sleep(Duration::from_micros(200));
    }
    let report = series.stop().unwrap_or_else(|e| panic!("{e}"));
    let rate = sent as f64 / began.elapsed().as_secs_f64();
    let refused = site.counter("provider-appliance", "drop_handshake_rate") - before;
    println!("{rate:.0} handshakes a second, {refused} refused by the programs");
    println!("{}", report.summary());
    assert!(rate > 80_000.0, "the flood was {rate:.0} a second");
    assert!(
        refused as f64 > sent as f64 * 0.8,
        "{refused} of {sent} refused"
    );
    let lost = report.lost().len() as f64 / report.sent.len() as f64;
    assert!(lost < 0.01, "{:.2} % lost", lost * 100.0);
    // A tunnel can be established during the flood, because its peer's address is known. This holds
    // also if the flood has the peer's source address.
    let peer = site.status("provider-appliance")["peers"][0]["address"].clone();
    let peer: SocketAddr = peer
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("the peer's address is {peer}"));
    let IpAddr::V4(peer) = peer.ip() else {
        panic!("the peer is at {peer}");
    };
    let in_its_name: Vec<Vec<u8>> = (0..20_000)
        .map(|_| bogus(&mut rng, peer, from, to))
        .collect();
    for (what, flood) in [
        ("unknown sources", flood),
        ("the peer's address", in_its_name),
    ] {
        let tenant = site
            .appliance("tenant-appliance")
            .unwrap_or_else(|e| panic!("{e}"));
        tenant.kill().unwrap_or_else(|e| panic!("{e}"));
        let stop = std::sync::atomic::AtomicBool::new(false);
        let sent = std::sync::atomic::AtomicUsize::new(0);
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut at = 0;
                while !stop.load(Relaxed) {
                    for frame in &flood[at..at + 50] {
                        sent.fetch_add(usize::from(gun.send(frame).is_ok()), Relaxed);
                    }
                    at = (at + 50) % flood.len();
                    thread::sleep(Duration::from_micros(500));
                }
            });
            let up = tenant.start();
            stop.store(true, Relaxed);
            up.unwrap_or_else(|e| panic!("under a flood {what}: {e}"));
        });
        let took = began.elapsed().as_secs_f64();
        let rate = sent.into_inner() as f64 / took;
        println!("up after {took:.1} s under a flood {what}, {rate:.0} a second");
        assert!(rate > 20_000.0, "the flood was {rate:.0} a second");
        site.reach("prod-b", A);
    }
}
