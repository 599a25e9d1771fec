//! The underlay watcher, the packet socket and the built frames, against a real kernel.
//!
//! ```text
//!   namespace A (the test's thread)            namespace B (kept alive by a second thread)
//!   va 10.9.9.1/24, fd00:9::1/64 ── veth ── vb 10.9.9.2/24, 10.9.9.3/24, fd00:9::2/64
//! ```
//!
//! Both namespaces are private to the test and end with its threads.

mod namespaces;

use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use appliance_common::addr::from_ip;
use appliance_user::frame::{self, Port};
use appliance_user::kernel::raw_socket::{self, PacketSocket};
use appliance_user::kernel::underlay::{PathError, Snapshot, UnderlayPath, Watcher};
use namespaces::{Pair, run};
use nix::unistd::gettid;
use tokio::sync::watch;

const MAC_A: [u8; 6] = [2, 0, 0, 0, 9, 1];
const MAC_B: [u8; 6] = [2, 0, 0, 0, 9, 2];

fn ip(arguments: &str) -> String {
    run(&format!("ip {arguments}"))
}

fn sysctl(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{path}"), value).expect(path);
}

/// Runs a test with a pair that is up and has addresses.
fn isolated(body: impl FnOnce(Pair) + Send + 'static) {
    namespaces::isolated(|pair| {
        ip("link set va address 02:00:00:00:09:01");
        ip("addr add 10.9.9.1/24 dev va");
        ip("addr add fd00:9::1/64 dev va nodad");
        pair.in_b(|| {
            ip("link set vb address 02:00:00:00:09:02");
            ip("addr add 10.9.9.2/24 dev vb");
            ip("addr add 10.9.9.3/24 dev vb");
            ip("addr add fd00:9::2/64 dev vb nodad");
        });
        pair.up();
        body(pair);
    });
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// Waits for a snapshot; returns it and how long it took.
async fn until(
    snapshots: &mut watch::Receiver<Snapshot>,
    what: &str,
    holds: impl FnMut(&Snapshot) -> bool,
) -> (Snapshot, Duration) {
    let began = Instant::now();
    let found = tokio::time::timeout(Duration::from_secs(15), snapshots.wait_for(holds))
        .await
        .map(|found| found.expect("watcher lives").clone());
    let took = began.elapsed();
    match found {
        Ok(snapshot) => {
            println!("{what}: {} ms", took.as_millis());
            (snapshot, took)
        }
        Err(_) => panic!("{what}: not within 15 s; have {:#?}", snapshots.borrow()),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
}

#[test]
fn paths_and_links_follow_the_kernel() {
    isolated(|pair| {
        runtime().block_on(async {
            ip("route add 203.0.113.0/24 via 10.9.9.2");
            ip("route add unreachable 203.0.114.0/24");
            let far = address("203.0.113.5");
            let near_v6 = address("fd00:9::2");
            let (watcher, mut snapshots) = Watcher::spawn(
                vec![
                    far,
                    near_v6,
                    address("192.0.2.1"),
                    address("203.0.114.1"),
                    address("10.9.9.1"),
                    address("10.9.9.77"),
                ],
                vec!["va".into(), "absent".into()],
            )
            .expect("watcher");

            let resolved = |s: &Snapshot, peer, mac: [u8; 6]| {
                matches!(
                    s.paths.get(&peer),
                    Some(UnderlayPath::Resolved { next_hop_mac, .. }) if *next_hop_mac == mac
                )
            };
            let (s, _) = until(&mut snapshots, "both peers resolve", |s| {
                resolved(s, far, MAC_B) && resolved(s, near_v6, MAC_B)
            })
            .await;
            assert_eq!(
                s.paths[&far],
                UnderlayPath::Resolved {
                    ifindex: pair.va,
                    local: address("10.9.9.1"),
                    source_mac: MAC_A,
                    next_hop_mac: MAC_B,
                    mtu: 1500
                }
            );
            assert_eq!(
                s.paths[&near_v6],
                UnderlayPath::Resolved {
                    ifindex: pair.va,
                    local: address("fd00:9::1"),
                    source_mac: MAC_A,
                    next_hop_mac: MAC_B,
                    mtu: 1500
                }
            );
            let (gateway, v6) = (address("10.9.9.2"), address("fd00:9::2"));
            assert_eq!((s.next_hops[&far], s.next_hops[&near_v6]), (gateway, v6));
            assert!(!s.next_hops.contains_key(&address("192.0.2.1")));
            let reason = |s: &Snapshot, peer: &str| match &s.paths[&address(peer)] {
                UnderlayPath::Unresolved { reason } => reason.clone(),
                other => panic!("{peer}: {other:?}"),
            };
            assert_eq!(reason(&s, "192.0.2.1"), PathError::NoRoute);
            assert_eq!(reason(&s, "203.0.114.1"), PathError::RouteRefuses);
            assert_eq!(reason(&s, "10.9.9.1"), PathError::OwnAddress);
            assert!(matches!(
                reason(&s, "10.9.9.77"),
                PathError::NextHopUnresolved { .. }
            ));
            let link = &s.links["va"];
            assert!(link.up);
            assert_eq!((link.ifindex, link.mac, link.mtu), (pair.va, MAC_A, 1500));
            assert!(link.addresses.contains(&(address("10.9.9.1"), 24)));
            assert!(!s.links.contains_key("absent"));

            // The MAC address of the next hop changes in the kernel's table.
            ip("neigh replace 10.9.9.2 lladdr 02:00:00:00:09:aa dev va nud reachable");
            let (_, took) = until(&mut snapshots, "new next-hop MAC", |s| {
                resolved(s, far, [2, 0, 0, 0, 9, 0xaa])
            })
            .await;
            assert!(took < Duration::from_millis(500), "{took:?}");

            // Another next hop, with an MTU.
            ip("route replace 203.0.113.0/24 via 10.9.9.3 mtu 1400");
            let (_, took) = until(&mut snapshots, "new route", |s| {
                matches!(
                    s.paths[&far],
                    UnderlayPath::Resolved {
                        mtu: 1400,
                        next_hop_mac: MAC_B,
                        ..
                    }
                )
            })
            .await;
            assert!(took < Duration::from_millis(500), "{took:?}");

            // The link goes down and up again; the next hop stays known meanwhile.
            ip("link set va down");
            let (s, _) = until(&mut snapshots, "link down", |s| {
                !s.links["va"].up && matches!(s.paths[&far], UnderlayPath::Unresolved { .. })
            })
            .await;
            assert_eq!(s.next_hops[&far], address("10.9.9.3"));
            ip("link set va up");
            ip("addr replace fd00:9::1/64 dev va nodad");
            ip("route replace 203.0.113.0/24 via 10.9.9.2");
            until(&mut snapshots, "link up", |s| {
                s.links["va"].up && resolved(s, far, MAC_B) && resolved(s, near_v6, MAC_B)
            })
            .await;

            // Other peers and interfaces are watched.
            watcher.update(vec![address("10.9.9.3")], vec!["lo".into()]);
            let (s, _) = until(&mut snapshots, "other peers", |s| {
                resolved(s, address("10.9.9.3"), MAC_B)
            })
            .await;
            assert_eq!(s.paths.len(), 1);
            assert_eq!(s.links.keys().collect::<Vec<_>>(), ["lo"]);
        });
    });
}

#[test]
fn next_hop_is_confirmed_without_traffic_of_the_kernel() {
    isolated(|pair| {
        for family in ["ipv4", "ipv6"] {
            sysctl(&format!("{family}/neigh/va/base_reachable_time_ms"), "500");
            sysctl(&format!("{family}/neigh/va/retrans_time_ms"), "50");
            sysctl(&format!("{family}/neigh/va/delay_first_probe_time"), "1");
        }
        runtime().block_on(async {
            let peers = vec![address("10.9.9.2"), address("fd00:9::2")];
            let (_watcher, mut snapshots) = Watcher::spawn(peers.clone(), vec![]).expect("watcher");
            let all_at = |s: &Snapshot, mac: [u8; 6]| {
                peers.iter().all(|peer| {
                    matches!(
                        s.paths.get(peer),
                        Some(UnderlayPath::Resolved { next_hop_mac, .. }) if *next_hop_mac == mac
                    )
                })
            };
            until(&mut snapshots, "resolved", |s| all_at(s, MAC_B)).await;
            // The machine behind the address is replaced without an announcement.
            pair.in_b(|| {
                ip("link set vb down");
                ip("link set vb address 02:00:00:00:09:bb");
                ip("link set vb up");
                ip("addr replace fd00:9::2/64 dev vb nodad");
            });
            until(&mut snapshots, "replaced next hop found", |s| {
                all_at(s, [2, 0, 0, 0, 9, 0xbb])
            })
            .await;
        });
    });
}

/// The kernel by itself asks again up to 45 s after the last answer.
#[test]
fn a_replaced_next_hop_is_noticed_in_ten_seconds_with_the_kernel_s_timers() {
    isolated(|pair| {
        runtime().block_on(async {
            ip("route add 203.0.113.0/24 via 10.9.9.2");
            let peers = [address("203.0.113.5"), address("fd00:9::2")];
            let (_watcher, mut snapshots) =
                Watcher::spawn(peers.to_vec(), vec![]).expect("watcher");
            let all_at = |s: &Snapshot, mac: [u8; 6]| {
                let at = |peer| {
                    matches!(
                        s.paths.get(peer),
                        Some(UnderlayPath::Resolved { next_hop_mac, .. }) if *next_hop_mac == mac
                    )
                };
                peers.iter().all(at)
            };
            until(&mut snapshots, "resolved", |s| all_at(s, MAC_B)).await;
            pair.in_b(|| {
                sysctl("ipv4/conf/vb/arp_notify", "0");
                ip("link set vb down");
                ip("link set vb address 02:00:00:00:09:bb");
                ip("link set vb up");
                ip("addr replace fd00:9::2/64 dev vb nodad");
            });
            // At most 5 s until it is asked, and 3 s for the three unicast questions.
            let (_, took) = until(&mut snapshots, "replaced next hop found", |s| {
                all_at(s, [2, 0, 0, 0, 9, 0xbb])
            })
            .await;
            assert!(took < Duration::from_secs(10), "{took:?}");
        });
    });
}

#[test]
fn stale_neighbours_of_the_uplink_are_confirmed_or_given_up_without_traffic() {
    isolated(|_pair| {
        runtime().block_on(async {
            let (watcher, _snapshots) =
                Watcher::spawn(Vec::new(), vec!["va".into()]).expect("watcher");
            watcher.confirm_neighbours(Some("va".into()));
            // A true entry, one whose host has another MAC address by now, a fixed one.
            ip("neigh replace 10.9.9.2 lladdr 02:00:00:00:09:02 dev va nud stale");
            ip("neigh replace 10.9.9.3 lladdr 02:00:00:00:00:99 dev va nud stale");
            ip("neigh replace 10.9.9.9 lladdr 02:00:00:00:00:09 dev va nud permanent");
            let line = |host: &str| {
                let table = ip("neigh show dev va");
                let mut lines = table.lines().map(ToOwned::to_owned);
                let start = format!("{host} ");
                lines.find(|l| l.starts_with(&start)).unwrap_or_default()
            };
            let wrong = |l: &str| l.contains("00:99") && !l.contains("FAILED");
            let until = Instant::now() + Duration::from_secs(8);
            while !line("10.9.9.2").contains("REACHABLE") || wrong(&line("10.9.9.3")) {
                assert!(Instant::now() < until, "{}", ip("neigh show dev va"));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(line("10.9.9.9").contains("PERMANENT"));
        });
    });
}

#[test]
fn lost_events_do_not_leave_a_stale_snapshot() {
    isolated(|_pair| {
        runtime().block_on(async {
            let peer = address("10.9.9.2");
            let (_watcher, mut snapshots) =
                Watcher::spawn(vec![peer], vec!["va".into()]).expect("watcher");
            until(&mut snapshots, "resolved", |s| {
                matches!(s.paths.get(&peer), Some(UnderlayPath::Resolved { .. }))
            })
            .await;
            // The runtime's only thread is this one, so no task reads events meanwhile.
            let mut batch = String::new();
            for n in 0..20_000u32 {
                let [_, _, high, low] = n.to_be_bytes();
                batch.push_str(&format!("route add 100.64.{high}.{low}/32 via 10.9.9.2\n"));
            }
            let file = std::env::temp_dir().join(format!("causeway-underlay-{}", gettid()));
            std::fs::write(&file, batch).expect("batch");
            ip(&format!("-batch {}", file.display()));
            std::fs::remove_file(&file).expect("batch");
            ip("link set va mtu 1300");
            until(&mut snapshots, "converged after the flood", |s| {
                s.links["va"].mtu == 1300
                    && matches!(s.paths[&peer], UnderlayPath::Resolved { mtu: 1300, .. })
            })
            .await;
        });
    });
}

/// A socket that receives all frames of an interface of the current namespace, with a receive
/// timeout of half a second.
fn tap(ifindex: u32) -> OwnedFd {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: socket(2) takes no pointers; the result is checked and owned once.
    let fd = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(all));
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all-zero is a valid `sockaddr_ll`, and the pointers are to live values of the sizes
    // given.
    unsafe {
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = all;
        to.sll_ifindex = ifindex as i32;
        let bound = libc::bind(
            fd.as_raw_fd(),
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        );
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        let wait = libc::timeval {
            tv_sec: 0,
            tv_usec: 500_000,
        };
        let set = libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const wait).cast(),
            size_of::<libc::timeval>() as u32,
        );
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
    fd
}

/// The first frame that `matches`, within two seconds.
fn receive(tap: &OwnedFd, mut matches: impl FnMut(&[u8]) -> bool) -> Option<Vec<u8>> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let mut frame = vec![0u8; 4096];
        // SAFETY: pointer and length are those of a live buffer.
        let n = unsafe { libc::recv(tap.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        if n > 0 {
            frame.truncate(n as usize);
            if matches(&frame) {
                return Some(frame);
            }
        }
    }
    None
}

#[test]
fn a_real_stack_answers_requests_and_accepts_announcements() {
    isolated(|pair| {
        let port = Port {
            ifindex: pair.va,
            outer: 0,
            inner: 0,
            outer_ethertype: 0x8100,
            mac: MAC_A,
        };
        let socket = PacketSocket::open(pair.va).expect("raw socket");
        let tap = tap(pair.va);
        for destination in [None, Some(MAC_B)] {
            socket
                .send(&frame::arp_request(
                    &port,
                    [10, 9, 9, 1],
                    [10, 9, 9, 3],
                    destination,
                ))
                .expect("send");
            let reply = receive(&tap, |f| {
                f[..14] == [&MAC_A[..], &MAC_B, &[8, 6]].concat() && f[21] == 2
            });
            let reply = reply.expect("ARP reply");
            assert_eq!(&reply[22..32], [&MAC_B[..], &[10, 9, 9, 3]].concat());

            let target = from_ip(address("fd00:9::2"));
            socket
                .send(&frame::neighbour_solicitation(
                    &port,
                    &frame::link_local(&MAC_A),
                    &target,
                    destination,
                ))
                .expect("send");
            let advertisement = receive(&tap, |f| {
                f[..6] == MAC_A && f[12..14] == [0x86, 0xdd] && f[54] == 136
            });
            assert_eq!(advertisement.expect("advertisement")[62..78], target);
        }

        pair.in_b(|| {
            ip("neigh add 10.9.9.50 lladdr 02:00:00:00:00:01 dev vb nud stale");
            ip("neigh add 10.9.9.51 lladdr 02:00:00:00:00:01 dev vb nud stale");
            ip("neigh add fd00:9::50 lladdr 02:00:00:00:00:01 dev vb nud stale");
        });
        // Linux accepts an announcement only if the entry is older than its lock time.
        std::thread::sleep(Duration::from_millis(1100));
        let moved = [2, 0, 0, 0, 0, 0x77];
        for frame in [
            frame::arp_announcement(&port, [10, 9, 9, 50], moved, false),
            frame::arp_announcement(&port, [10, 9, 9, 51], moved, true),
            frame::unsolicited_advertisement(&port, &from_ip(address("fd00:9::50")), moved, true),
        ] {
            socket.send(&frame).expect("send");
        }
        std::thread::sleep(Duration::from_millis(100));
        let (table, other_namespace) =
            pair.in_b(|| (ip("neigh show dev vb"), PacketSocket::open(pair.vb)));
        for host in ["10.9.9.50", "10.9.9.51", "fd00:9::50"] {
            let line = table.lines().find(|l| l.starts_with(&format!("{host} ")));
            assert!(
                line.is_some_and(|l| l.contains("02:00:00:00:00:77")),
                "{host} not moved:\n{table}"
            );
        }
        assert!(
            table
                .lines()
                .any(|l| l.starts_with("fd00:9::50") && l.contains("router"))
        );
        other_namespace.expect("vb is in B");
        assert!(matches!(
            PacketSocket::open(99_999),
            Err(raw_socket::Error::NoInterface { .. })
        ));
        let oversized = socket.send(&[0u8; 9000]).expect_err("over the MTU");
        assert_eq!(oversized.raw_os_error(), Some(libc::EMSGSIZE));
    });
}
