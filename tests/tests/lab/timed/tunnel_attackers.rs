//! Attackers at an appliance's encrypted tunnels: a tenant that holds the keys of its own tunnel,
//! and misuses them. Each kind runs beside the tunnel of an honest tenant.
//!
//! `CAUSEWAY_ATTACK_SECONDS` is the time of each kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use causeway_tests::{
    packet::{be16, ip, l2, udp},
    series::length,
    site::{ENCRYPTED, Site, text},
    tunnel_end::{TunnelEnd, TunnelEndConfig},
};
use lab::Probe;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use test_support::StopOnDrop;
use tunnel::segment::ControlMessage;

const PROVIDER: &str = "provider-appliance";
const TENANT: &str = "globex-appliance";
/// Where the attacker is, with its two addresses.
const HOST: &str = "globex-prod-b";
const ADDRESSES: [&str; 2] = ["10.1.0.11", "10.1.0.7"];
const GLOBEX_VNI: u32 = 2001;
const PORT: u16 = 6180;
/// Datagrams a second.
const RATE: f64 = 100_000.0;
/// From now to about the year 2099.
const TO_2099: Duration = Duration::from_secs(73 * 365 * 86_400);
/// Longest time for an answer of the appliance's control socket beside an attack.
const MAX_CONTROL_DELAY: Duration = Duration::from_secs(1);

/// A tenant that misuses the keys of its tunnel.
struct Attacker<'a> {
    site: &'a Site,
    stop: &'a AtomicBool,
    sent: &'a AtomicU64,
    config: TunnelEndConfig,
}

impl Attacker<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// An end with a tunnel, and a socket for each address.
    fn end(&self, from: &[SocketAddr]) -> TunnelEnd {
        let mut end = TunnelEnd::new(self.site, HOST, from, &self.config);
        assert!(end.connects(Duration::from_secs(10)), "{:?}", end.status());
        end
    }

    fn note(&self, end: &TunnelEnd) {
        self.sent.store(end.sent(), Ordering::Relaxed);
    }

    /// Sends at [`RATE`].
    fn flood(&self, end: &mut TunnelEnd, mut send: impl FnMut(&mut TunnelEnd, u64)) {
        let begun = Instant::now();
        let mut number = 0;
        while self.goes_on() {
            let due = (begun.elapsed().as_secs_f64() * RATE) as u64;
            // Bursts that the queue of a link holds.
            for _ in 0..due.saturating_sub(number).min(200) {
                send(end, number);
                number += 1;
            }
            end.pump();
            self.note(end);
            thread::sleep(Duration::from_micros(200));
        }
    }

    fn move_between(&self, addresses: [SocketAddr; 2]) {
        let packet = udp(ip(ADDRESSES[0]), ip("10.1.0.10"), 9, 9, &[0; 32]);
        let mut end = self.end(&addresses);
        self.flood(&mut end, |end, _| {
            end.send_packet(GLOBEX_VNI, &packet);
            end.switch_socket();
        });
    }

    /// Valid datagrams from two ports in turn.
    fn two_ports(&self) {
        self.move_between([40_001, 40_002].map(|port| at(ADDRESSES[0], port)));
    }

    /// Valid datagrams from two addresses in turn.
    fn two_addresses(&self) {
        self.move_between(ADDRESSES.map(|address| at(address, 40_003)));
    }

    /// Echoes, and answers to echoes and probes that were never sent.
    fn control_messages(&self) {
        let mut end = self.end(&[at(ADDRESSES[0], 40_004)]);
        self.flood(&mut end, |end, number| {
            let size = [0, 1400][(number / 2) as usize % 2];
            let message = match number % 2 {
                0 => ControlMessage::Echo {
                    token: number,
                    size,
                },
                _ => ControlMessage::EchoReply {
                    token: number,
                    size,
                },
            };
            end.send_control(message, usize::from(size));
        });
    }

    /// Valid initiations, as many as one thread can make.
    fn handshakes(&self) {
        let mut end = self.end(&[at(ADDRESSES[0], 40_005)]);
        while self.goes_on() {
            end.restart();
            end.pump();
            self.note(&end);
        }
    }

    /// Handshakes by a clock in 2099.
    fn clock_of_2099(&self) {
        let config = TunnelEndConfig {
            ahead: TO_2099,
            ..self.config.clone()
        };
        let mut end = TunnelEnd::new(self.site, HOST, &[at(ADDRESSES[0], 40_006)], &config);
        while self.goes_on() {
            end.restart();
            assert!(end.connects(Duration::from_secs(10)), "{:?}", end.status());
            self.note(&end);
        }
    }

    /// A copy of the tenant's appliance, which runs as well.
    fn clone_of_the_appliance(&self) {
        let packet = udp(ip(ADDRESSES[0]), ip("10.1.0.10"), 9, 9, &[0; 32]);
        let mut end = self.end(&[at(ADDRESSES[0], 40_007)]);
        while self.goes_on() {
            end.send_packet(GLOBEX_VNI, &packet);
            end.pump();
            self.note(&end);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

/// Status of the provider's peer globex.
fn globex(site: &Site) -> serde_json::Value {
    let status = site.status(PROVIDER);
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    let peer = peers.into_iter().find(|peer| peer["name"] == "globex");
    peer.unwrap_or_else(|| panic!("{status}"))
}

/// An attack that runs until it is stopped, with the fewest datagrams that it must send a second.
struct Attack {
    name: &'static str,
    run: fn(&Attacker<'_>),
    least: u64,
}

/// Runs an attack beside the honest tenant; why it did not hold.
fn run(site: &Site, attack: &Attack, config: &TunnelEndConfig, seconds: u64) -> Vec<String> {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let attacker = Attacker {
        site,
        stop: &stop,
        sent: &sent,
        config: config.clone(),
    };
    let (report, slowest) = thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| (attack.run)(&attacker));
        let begun = Instant::now();
        while sent.load(Ordering::Relaxed) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "no attack");
            thread::sleep(Duration::from_millis(10));
        }
        sent.store(0, Ordering::Relaxed);
        let series = site
            .ping("acme-prod-b", ip("10.1.0.10"), Probe::Echo, INTERVAL)
            .unwrap_or_else(|e| panic!("{e}"));
        let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
        while begun.elapsed() < Duration::from_secs(seconds) {
            let asked = Instant::now();
            site.status(PROVIDER);
            slowest = slowest.max(asked.elapsed());
            thread::sleep(Duration::from_millis(200));
        }
        (series.stop().unwrap_or_else(|e| panic!("{e}")), slowest)
    });
    let attacks = sent.load(Ordering::Relaxed);
    println!(
        "{}: {} a second; {}; slowest status {} ms",
        attack.name,
        attacks / seconds,
        report.summary(),
        slowest.as_millis()
    );
    assert!(attacks >= attack.least * seconds, "no attack: {attacks}");
    let mut faults = Vec::new();
    if report.lost().len() * 100 >= report.sent.len() {
        faults.push(format!("{}: {}", attack.name, report.summary()));
    }
    if slowest > MAX_CONTROL_DELAY {
        faults.push(format!("{}: status took {slowest:?}", attack.name));
    }
    faults
}

/// Interval of the honest tenant's packets.
const INTERVAL: Duration = Duration::from_millis(5);

#[test]
fn an_honest_tunnel_loses_less_than_one_per_cent_beside_each_attacker() {
    let Some(site) = Site::bare(lab::sites::two_tenants, ENCRYPTED) else {
        return;
    };
    let start = |host: &str| {
        let handle = site.appliance(host).unwrap_or_else(|e| panic!("{e}"));
        handle.start().unwrap_or_else(|e| panic!("{host}: {e}"));
    };
    for address in ADDRESSES {
        let route = format!("{address}/32");
        site.ok(
            "wan",
            &["ip", "route", "add", &route, "via", "198.51.100.6"],
        );
    }
    let second = format!("{}/24", ADDRESSES[1]);
    site.ok(HOST, &["ip", "address", "add", &second, "dev", "eth0"]);
    // It is ready once all its tenants are there.
    let provider = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    provider.launch().unwrap_or_else(|e| panic!("{e}"));
    start("acme-appliance");
    site.over("acme-prod-a");
    site.reach("acme-prod-b", "10.1.0.10");

    let config = TunnelEndConfig::of(&site, TENANT, PROVIDER, at("203.0.113.5", PORT));
    let seconds = length("CAUSEWAY_ATTACK_SECONDS", 3, 180);
    let attack = |name, run, least| Attack { name, run, least };
    let mut faults = Vec::new();
    for attack in [
        attack("valid datagrams from two ports", |a| a.two_ports(), 20_000),
        attack("and from two addresses", |a| a.two_addresses(), 20_000),
        attack("control messages", |a| a.control_messages(), 20_000),
        attack("handshakes without end", |a| a.handshakes(), 50),
        attack("a clock of 2099", |a| a.clock_of_2099(), 3),
    ] {
        faults.extend(run(&site, &attack, &config, seconds));
    }
    // Two machines at two ports look the same as one that moves.
    let moving = globex(&site)["detail"].clone();
    println!("globex: {moving}");
    // The attacker has locked its own tenant out: the provider's end remembers 2099 until it is
    // restarted, and refuses what may be a replay.
    let provider = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    provider.stop().unwrap_or_else(|e| panic!("{e}"));
    provider.launch().unwrap_or_else(|e| panic!("{e}"));
    let begun = Instant::now();
    start(TENANT);
    provider.await_ready().unwrap_or_else(|e| panic!("{e}"));
    println!("globex is up after {} ms", begun.elapsed().as_millis());
    assert!(begun.elapsed() < Duration::from_secs(15), "locked out");

    let before = globex(&site)["tunnel"]["handshakes"].as_u64();
    let cloned = attack("a cloned appliance", |a| a.clone_of_the_appliance(), 100);
    faults.extend(run(&site, &cloned, &config, seconds.max(6)));
    let peer = globex(&site);
    let handshakes = peer["tunnel"]["handshakes"].as_u64().zip(before);
    let handshakes = handshakes.map_or(u64::MAX, |(after, before)| after - before);
    println!("{handshakes} handshakes of globex beside its clone: {peer}");
    assert!(handshakes <= 10 * seconds.max(6), "a storm");
    let named = "two addresses in turn";
    let detail = peer["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(named), "{peer}");
    let log = site.appliance(PROVIDER).map(|handle| handle.log_path());
    let log = text(&log.unwrap_or_else(|e| panic!("{e}")));
    let lines = log.lines().filter(|line| line.contains(named)).count();
    println!("{lines} lines of the log name it");
    // Two kinds of moves, and the clone.
    assert!((1..=3 + seconds / 30).contains(&(lines as u64)), "{log}");
    // Moves are logged once in ten seconds for a peer.
    let moves = log
        .lines()
        .filter(|line| line.contains("has moved"))
        .count();
    assert!(
        moves as u64 <= 20 + 7 * seconds / 10 * 2,
        "{moves} lines of moves"
    );
    // The tenant's tunnel is its own again.
    let until = Instant::now() + Duration::from_secs(5);
    while globex(&site)["ready"] != true {
        assert!(Instant::now() < until, "{}", globex(&site));
        thread::sleep(Duration::from_millis(50));
    }
    site.reach("acme-prod-b", "10.1.0.10");
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Sends the kernel's message of a changed VM generation ID to the processes of a host, as
/// drivers/virt/vmgenid.c does after a restore. A process with CAP_SYS_ADMIN may (`uevent_net_rcv`
/// in lib/kobject_uevent.c, Linux 4.18).
fn announce_restore(site: &Site, host: &str) {
    const NLMSG_MIN_TYPE: u16 = 0x10;
    const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
    let event = b"change@/devices/LNXSYSTM:00/QEMUVGID:00\0ACTION=change\0\
        DEVPATH=/devices/LNXSYSTM:00/QEMUVGID:00\0SUBSYSTEM=acpi\0NEW_VMGENID=1\0";
    // struct nlmsghdr of netlink(7): length, type, flags, sequence number, port.
    let mut message = Vec::new();
    message.extend((16 + event.len() as u32).to_ne_bytes());
    message.extend(NLMSG_MIN_TYPE.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(event);
    let sent = site.inside(host, || {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        let kernel = NetlinkAddr::new(0, 0);
        sendto(socket.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
        let mut answer = [0; 256];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        // struct nlmsgerr: the header, then zero or a negative error.
        match answer.get(16..20).filter(|_| length >= 20) {
            Some([0, 0, 0, 0]) => Ok(()),
            error => Err(io::Error::other(format!("the kernel answers {error:?}"))),
        }
    });
    sent.unwrap_or_else(|e| panic!("{host}: {e}"));
}

/// Source address, receiver index, counter and sealed content of a data message.
fn data_message(frame: &[u8]) -> Option<([u8; 4], u32, u64, &[u8])> {
    let l3 = &frame[l2(frame)?.l3..];
    let udp = (l3.get(9) == Some(&17)).then(|| l3.get(20..))??;
    (be16(udp, 2) == Some(PORT)).then_some(())?;
    let message = udp.get(8..)?;
    (message.first() == Some(&4)).then_some(())?;
    let index = u32::from_le_bytes(message.get(4..8)?.try_into().ok()?);
    let counter = u64::from_le_bytes(message.get(8..16)?.try_into().ok()?);
    Some((
        l3.get(12..16)?.try_into().ok()?,
        index,
        counter,
        &message[16..],
    ))
}

fn since_1970() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

#[test]
fn a_restored_appliance_seals_nothing_with_keys_of_before() {
    let Some(site) = Site::encrypted() else {
        return;
    };
    site.over("prod-a");
    site.reach("prod-b", "10.1.0.10");
    let capture = site.sniff("wan", "provider");
    let series = site
        .ping("prod-b", ip("10.1.0.10"), Probe::Echo, INTERVAL)
        .unwrap_or_else(|e| panic!("{e}"));
    let hosts = [
        ("tenant-appliance", [10, 1, 0, 5]),
        (PROVIDER, [203, 0, 113, 5]),
    ];
    let mut restored = Vec::new();
    for (host, address) in hosts {
        thread::sleep(Duration::from_secs(1));
        let handshakes = |host| site.status(host)["peers"][0]["tunnel"]["handshakes"].as_u64();
        let before = handshakes(host);
        announce_restore(&site, host);
        restored.push((address, since_1970()));
        let until = Instant::now() + Duration::from_secs(5);
        while handshakes(host) == before {
            assert!(Instant::now() < until, "{host} retired no session");
            thread::sleep(Duration::from_millis(10));
        }
        site.reach("prod-b", "10.1.0.10");
    }
    thread::sleep(Duration::from_secs(1));
    let report = series.stop().unwrap_or_else(|e| panic!("{e}"));
    println!("{}", report.summary());
    let frames = capture.stop().unwrap_or_else(|e| panic!("{e}"));
    let mut nonces = BTreeMap::new();
    for frame in &frames {
        if let Some((source, index, counter, content)) = data_message(&frame.bytes) {
            let other = nonces.insert((source, index, counter), content);
            assert!(
                other.is_none_or(|other| other == content),
                "{source:?} sealed twice with session {index:#x}, counter {counter}"
            );
        }
    }
    assert!(nonces.len() > 1000, "{} datagrams", nonces.len());
    // The daemon is told by a thread that waits for the kernel's message.
    let told = Duration::from_millis(50);
    for (address, moment) in restored {
        let sessions = |is_meant: &dyn Fn(Duration) -> bool| -> BTreeSet<u32> {
            let meant = frames.iter().filter(|frame| is_meant(frame.time));
            let data = meant.filter_map(|frame| data_message(&frame.bytes));
            let own = data.filter(|(source, ..)| *source == address);
            own.map(|(_, index, ..)| index).collect()
        };
        let before = sessions(&|time| time < moment);
        let after = sessions(&|time| time > moment + told);
        println!("{address:?}: sessions {before:x?} before, {after:x?} after");
        assert!(!before.is_empty() && !after.is_empty());
        assert!(before.is_disjoint(&after), "{before:x?} {after:x?}");
    }
}
