//! Encrypted tunnels recover automatically from a killed daemon, a rebooted appliance, a changed
//! address and an unplugged WAN. TCP connections survive all of it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use causeway_tests::{
    packet::ip,
    series::{distribution, is_long, length},
    site::{ENCRYPTED, Site, Transfer},
};
use lab::Probe;

const A: &str = "10.1.0.10";
const B: &str = "10.1.0.11";
const BOTH: [&str; 2] = ["tenant-appliance", "provider-appliance"];
/// Longest time until traffic flows again after a kill.
const MAX_RECOVERY: Duration = Duration::from_secs(2);

/// A TCP connection that sends all the time until it is stopped.
struct Talk {
    stop: Arc<AtomicBool>,
    /// Bytes that arrived.
    received: Arc<AtomicU64>,
    threads: [JoinHandle<std::io::Result<u64>>; 2],
}

impl Talk {
    fn start(site: &Site, from: &str, to: &str, address: &str) -> Self {
        let at = SocketAddr::new(ip(address), 0);
        let listener = site
            .inside(to, || TcpListener::bind(at))
            .unwrap_or_else(|e| panic!("{to}: {e}"));
        let at = listener.local_addr().expect("a bound socket");
        let (stop, received) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let counted = Arc::clone(&received);
        let receiver = thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            let mut buffer = vec![0; 1 << 16];
            let mut got = 0_u64;
            loop {
                let n = stream.read(&mut buffer)?;
                if n == 0 {
                    return Ok(got);
                }
                for byte in &buffer[..n] {
                    if *byte != (got / 100) as u8 {
                        return Err(std::io::Error::other(format!("byte {got} is wrong")));
                    }
                    got += 1;
                }
                counted.store(got, Ordering::Relaxed);
            }
        });
        let mut stream = site
            .inside(from, || {
                TcpStream::connect_timeout(&at, Duration::from_secs(10))
            })
            .unwrap_or_else(|e| panic!("{from}: {e}"));
        let stopping = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let mut sent = 0_u64;
            while !stopping.load(Ordering::Relaxed) {
                stream.write_all(&[(sent / 100) as u8; 100])?;
                sent += 100;
                thread::sleep(Duration::from_millis(2));
            }
            Ok(sent)
        });
        Self {
            stop,
            received,
            threads: [sender, receiver],
        }
    }

    /// How long it takes until something more arrives.
    fn resumes(&self, timeout: Duration) -> Duration {
        let (before, began) = (self.received.load(Ordering::Relaxed), Instant::now());
        while self.received.load(Ordering::Relaxed) == before {
            assert!(began.elapsed() < timeout, "TCP does not go on");
            thread::sleep(Duration::from_millis(1));
        }
        began.elapsed()
    }

    /// Ends it and expects every byte to have arrived.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let [sent, received] = self.threads.map(|t| {
            t.join()
                .expect("no panic")
                .unwrap_or_else(|e| panic!("TCP: {e}"))
        });
        assert_eq!(sent, received);
    }
}

#[test]
fn after_a_sigkill_traffic_is_back_within_two_seconds_and_tcp_survives() {
    let Some(site) = Site::encrypted() else {
        return;
    };
    site.over("prod-a");
    site.reach("prod-b", A);
    let talks = [
        Talk::start(&site, "prod-b", "replica-a", A),
        Talk::start(&site, "replica-a", "prod-b", B),
    ];
    let (mut gaps, mut late) = (Vec::new(), 0);
    for (round, host) in [BOTH[0], BOTH[1], BOTH[0], BOTH[1]].into_iter().enumerate() {
        let transfer = Transfer::paced(
            &site,
            "prod-b",
            "replica-a",
            A,
            4 << 20,
            Duration::from_millis(50),
        );
        let series = site
            .ping("prod-b", ip(A), Probe::Echo, Duration::from_millis(5))
            .unwrap_or_else(|e| panic!("{e}"));
        thread::sleep(Duration::from_millis(500));
        let handle = site.appliance(host).unwrap_or_else(|e| panic!("{e}"));
        handle.kill().unwrap_or_else(|e| panic!("{host}: {e}"));
        handle.start().unwrap_or_else(|e| panic!("{host}: {e}"));
        thread::sleep(Duration::from_millis(1500));
        let report = series.stop().unwrap_or_else(|e| panic!("{e}"));
        let gap = report.longest_gap().expect("replies").length();
        println!(
            "round {round}, {host}: {} ms without a reply",
            gap.as_millis()
        );
        late += usize::from(gap >= MAX_RECOVERY);
        gaps.push(gap);
        assert!(gap < 2 * MAX_RECOVERY, "{host}: {}", report.summary());
        // The daemon was really gone: its sessions ended with it.
        assert!(
            gap > Duration::from_millis(20),
            "{host}: {}",
            report.summary()
        );
        transfer.finish();
        // Each end was killed once, and no round was late.
        if gaps.len() == 2 && late == 0 && !is_long() {
            break;
        }
    }
    println!("without a reply: {}", distribution(&gaps));
    // A machine that is held up for a second makes one round of four late; a tunnel that is slow,
    // all of them.
    assert!(late <= 1, "rounds over {MAX_RECOVERY:?}: {gaps:?}");
    for talk in talks {
        talk.finish();
    }
}

#[test]
fn a_rebooted_appliance_recovers_automatically() {
    let Some(site) = Site::encrypted() else {
        return;
    };
    site.over("prod-a");
    site.reach("prod-b", A);
    let talk = Talk::start(&site, "prod-b", "replica-a", A);
    for host in BOTH {
        let handle = site.appliance(host).unwrap_or_else(|e| panic!("{e}"));
        handle.kill().unwrap_or_else(|e| panic!("{host}: {e}"));
        // A reboot leaves neither programs nor maps.
        let config = handle.config_path();
        let config = config.to_str().expect("a plain path");
        handle
            .must(&["detach", "--config", config])
            .unwrap_or_else(|e| panic!("{host}: {e}"));
        thread::sleep(Duration::from_secs(1));
        let booted = Instant::now();
        handle.start().unwrap_or_else(|e| panic!("{host}: {e}"));
        println!("{host}: ready after {} ms", booted.elapsed().as_millis());
        let took = talk.resumes(Duration::from_secs(5));
        println!("{host}: TCP went on {} ms later", took.as_millis());
        site.reach("prod-b", A);
    }
    talk.finish();
}

#[test]
fn a_changed_address_is_followed() {
    let Some(site) = Site::bare(lab::sites::partial, ENCRYPTED) else {
        return;
    };
    // No address in the file: the interface's own counts, as with DHCP.
    site.configure("tenant-appliance", |text| {
        text.replace("local = [\"10.1.0.5\"]\n", "")
    });
    site.start_appliances().unwrap_or_else(|e| panic!("{e}"));
    site.over("prod-a");
    site.reach("prod-b", A);
    let talk = Talk::start(&site, "prod-b", "replica-a", A);
    for (old, new) in [("10.1.0.5", "10.1.0.7"), ("10.1.0.7", "10.1.0.9")] {
        let route = format!("{new}/32");
        site.ok(
            "wan",
            &["ip", "route", "add", &route, "via", "198.51.100.2"],
        );
        let (old, new_cidr) = (format!("{old}/24"), format!("{new}/24"));
        site.ok(
            "tenant-appliance",
            &["ip", "address", "del", &old, "dev", "eth0"],
        );
        site.ok(
            "tenant-appliance",
            &["ip", "address", "add", &new_cidr, "dev", "eth0"],
        );
        site.ok(
            "tenant-appliance",
            &["ip", "route", "replace", "default", "via", "10.1.0.1"],
        );
        let changed = Instant::now();
        let wanted = format!("{new}:6180");
        while site.status("provider-appliance")["peers"][0]["address"] != wanted {
            assert!(
                changed.elapsed() < MAX_RECOVERY,
                "the new address is not followed"
            );
            thread::sleep(Duration::from_millis(5));
        }
        println!("followed after {} ms", changed.elapsed().as_millis());
        talk.resumes(Duration::from_secs(2));
        site.reach("prod-b", A);
        let peer = site.status("provider-appliance")["peers"][0].clone();
        assert_eq!(peer["address"], format!("{new}:6180"), "{peer}");
        assert_eq!(peer["tunnel"]["up"], true, "{peer}");
    }
    talk.finish();
}

#[test]
fn a_tenant_behind_a_nat_dials_and_is_followed_through_a_new_mapping() {
    let Some(site) = Site::bare(lab::sites::partial, ENCRYPTED) else {
        return;
    };
    let nft = |text: &str| drop(site.ok("router", &["nft", text]));
    // In one transaction: a packet between two rules would create another mapping.
    let map = |port: u16| {
        nft(&format!(
            "table ip nat; delete table ip nat; table ip nat {{ chain post {{ type nat hook \
             postrouting priority srcnat; oif \"wan\" udp sport 6180 snat to \
             198.51.100.2:{port}; }}; }}"
        ));
    };
    // The tenant's appliance is unreachable from outside.
    site.ok("wan", &["ip", "route", "del", "10.1.0.5/32"]);
    map(40001);
    // A mapping expires after silence.
    site.ok(
        "router",
        &["sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=2"],
    );
    site.ok(
        "router",
        &[
            "sysctl",
            "-qw",
            "net.netfilter.nf_conntrack_udp_timeout_stream=2",
        ],
    );
    site.start_appliances().unwrap_or_else(|e| panic!("{e}"));
    site.over("prod-a");
    site.reach("prod-b", A);
    let address = |wanted: &str| {
        let peer = site.status("provider-appliance")["peers"][0].clone();
        assert_eq!(peer["address"], wanted, "{peer}");
    };
    address("198.51.100.2:40001");
    let talk = Talk::start(&site, "prod-b", "replica-a", A);
    // The NAT loses its mappings, as in a reboot, and assigns another port.
    nft(
        "table ip raw { chain pre { type filter hook prerouting priority raw; udp sport 6180 \
         drop; }; }",
    );
    thread::sleep(Duration::from_secs(4));
    map(40002);
    nft("delete table ip raw");
    let took = talk.resumes(Duration::from_secs(5));
    println!("TCP went on {} ms after the NAT was back", took.as_millis());
    site.reach("prod-b", A);
    address("198.51.100.2:40002");
    talk.finish();
}

#[test]
fn after_an_unplugged_wan_tcp_resumes_within_a_second() {
    let Some(site) = Site::encrypted() else {
        return;
    };
    site.over("prod-a");
    site.reach("prod-b", A);
    let talks = [
        Talk::start(&site, "prod-b", "replica-a", A),
        Talk::start(&site, "replica-a", "prod-b", B),
    ];
    thread::sleep(Duration::from_secs(1));
    site.ok("wan", &["ip", "link", "set", "provider", "down"]);
    thread::sleep(Duration::from_secs(3));
    for host in BOTH {
        let peer = site.status(host)["peers"][0].clone();
        assert_eq!(peer["tunnel"]["up"], false, "{host}: {peer}");
        let why = peer["detail"].as_str().unwrap_or_default();
        println!("{host} reports: {why}");
        assert!(!why.is_empty() && why != "up", "{host}: {peer}");
    }
    let unplugged = Duration::from_secs(length("CAUSEWAY_UNPLUG_SECONDS", 10, 300));
    thread::sleep(unplugged.saturating_sub(Duration::from_secs(3)));
    site.ok("wan", &["ip", "link", "set", "provider", "up"]);
    for (talk, from) in talks.iter().zip(["prod-b", "replica-a"]) {
        let took = talk.resumes(Duration::from_secs(30));
        println!(
            "TCP from {from} went on {} ms after the link was back",
            took.as_millis()
        );
        assert!(
            took < Duration::from_secs(1),
            "{from}: {} ms",
            took.as_millis()
        );
    }
    for talk in talks {
        talk.finish();
    }
    site.reach("prod-b", A);
}
