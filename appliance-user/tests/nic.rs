//! NIC settings, facts and filters, against a real kernel.
//!
//! ```text
//!   namespace A (the test's thread)      namespace B (kept alive by a second thread)
//!   va ──────────────── veth ─────────── vb, in one test a port of a snooping bridge
//! ```
//!
//! Both namespaces are private to the test and end with its threads.

mod namespaces;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use appliance_common::addr::{Address, from_ip, multicast_mac_v6, solicited_node};
use appliance_common::nat::TenantQuota;
use appliance_user::config::Kind;
use appliance_user::datapath::Datapath;
use appliance_user::frame::{self, Port};
use appliance_user::kernel::nic::{self, Requirements};
use appliance_user::kernel::raw_socket::PacketSocket;
use appliance_user::kernel::xdp_errors::XdpErrors;
use namespaces::{Pair, run};
use service::xdp::{AttachMode, Setting, accepts_redirects};
use test_support::skip;

/// Runs a test with a pair that is up.
fn isolated(body: impl FnOnce(Pair) + Send + 'static) {
    namespaces::isolated(|pair| {
        pair.up();
        body(pair);
    });
}

/// Sends frames from B.
fn send_from_b(pair: &Pair, frames: &[Vec<u8>]) {
    pair.in_b(|| {
        let socket = PacketSocket::open(pair.vb).expect("a raw socket");
        for frame in frames {
            socket.send(frame).expect("sent");
        }
    });
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(20));
    }
}

/// Instructions of XDP programs, `struct bpf_insn` each.
mod program {
    /// `r0 = 2 (XDP_PASS)`, exit.
    pub fn pass() -> Vec<[u8; 8]> {
        vec![mov(0, 2), EXIT]
    }

    /// `bpf_redirect(ifindex, 0)`, exit.
    pub fn redirect(ifindex: u32) -> Vec<[u8; 8]> {
        const CALL_REDIRECT: [u8; 8] = [0x85, 0, 0, 0, 23, 0, 0, 0];
        vec![mov(1, ifindex), mov(2, 0), CALL_REDIRECT, EXIT]
    }

    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    fn mov(register: u8, value: u32) -> [u8; 8] {
        let [a, b, c, d] = value.to_ne_bytes();
        [0xb7, register, 0, 0, a, b, c, d]
    }
}

fn bpf(command: u32, attributes: &mut [u64; 16]) -> OwnedFd {
    // SAFETY: the attributes have the given size, and what they point to outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(attributes),
        )
    };
    assert!(fd >= 0, "bpf({command}): {}", io::Error::last_os_error());
    // SAFETY: the descriptor was just opened and has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn pair_of(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Attaches a program; it is detached when the descriptors are dropped.
fn attach(ifindex: u32, instructions: &[[u8; 8]], native: bool) -> [OwnedFd; 2] {
    const PROG_LOAD: u32 = 5;
    const LINK_CREATE: u32 = 28;
    const PROG_TYPE_XDP: u32 = 6;
    const ATTACH_XDP: u32 = 37;
    let mut load = [0; 16];
    load[0] = pair_of(PROG_TYPE_XDP, instructions.len() as u32);
    load[1] = instructions.as_ptr() as u64;
    load[2] = c"GPL".as_ptr() as u64;
    let program = bpf(PROG_LOAD, &mut load);
    let mut link = [0; 16];
    link[0] = pair_of(program.as_raw_fd() as u32, ifindex);
    link[1] = pair_of(ATTACH_XDP, if native { 4 } else { 2 });
    [bpf(LINK_CREATE, &mut link), program]
}

fn untagged() -> Requirements {
    Requirements {
        mtu: 1500,
        ..Requirements::default()
    }
}

fn feature(interface: &str, name: &str) -> String {
    let all = run(&format!("ethtool -k {interface}"));
    let line = all.lines().find_map(|l| l.trim().strip_prefix(name));
    line.unwrap_or_default().trim_matches([':', ' ']).to_owned()
}

#[test]
fn gro_is_switched_off_in_front_of_generic_xdp_only() {
    isolated(|pair| {
        const GRO: &str = "generic-receive-offload";
        run("ethtool -K va gro on");
        let nic = nic::prepare("va", pair.va, untagged()).expect("prepared");
        assert_eq!((nic.driver.as_str(), nic.problems), ("veth", vec![]));
        assert_eq!(feature("va", GRO), "on");
        let generic = Requirements {
            generic: true,
            ..untagged()
        };
        let nic = nic::prepare("va", pair.va, generic).expect("prepared");
        assert_eq!(nic.problems, Vec::<String>::new());
        assert_eq!(feature("va", GRO), "off");
    });
}

#[test]
fn vlan_insertion_is_switched_off_where_there_are_tags() {
    isolated(|pair| {
        const INSERT: &str = "tx-vlan-offload";
        assert_eq!(feature("va", INSERT), "on");
        let tagged = Requirements {
            vlans: vec![(0x8100, 101)],
            ..untagged()
        };
        let nic = nic::prepare("va", pair.va, tagged).expect("prepared");
        assert_eq!(nic.problems, Vec::<String>::new());
        assert_eq!(feature("va", INSERT), "off");
        // A veth has no filter, so no VLAN device registers anything.
        assert!(!run("ip link show").contains("cw"));
    });
}

#[test]
fn another_program_is_found_with_its_mode() {
    isolated(|pair| {
        assert!(nic::xdp_programs(pair.va).expect("a link").is_empty());
        for (native, mode) in [(true, "native"), (false, "generic")] {
            let attached = attach(pair.va, &program::pass(), native);
            let programs = nic::xdp_programs(pair.va).expect("a link");
            assert!(
                matches!(programs[..], [(found, id)] if found == mode && id != 0),
                "{programs:?}"
            );
            drop(attached);
            until("it is detached", || {
                nic::xdp_programs(pair.va).expect("a link").is_empty()
            });
        }
    });
}

/// Capacity of the NAT tables, which is not used here.
const NAT_CAPACITY: TenantQuota = TenantQuota {
    connections: 1024,
    mappings: 1024,
};

#[test]
fn an_interface_with_another_program_is_attached_once_it_is_free() {
    isolated(|pair| {
        let Some(object) = std::env::var_os("CAUSEWAY_BPF_OBJECT") else {
            skip("CAUSEWAY_BPF_OBJECT is not set");
            return;
        };
        let pins = format!("/sys/fs/bpf/causeway-nic-{}", std::process::id());
        let pins = Path::new(&pins);
        let opened = Datapath::open(pins, Path::new(&object), NAT_CAPACITY);
        let (mut datapath, _rings, _nat_ring) = opened.unwrap_or_else(|e| panic!("{e}"));
        let mut try_modes = |native: bool, other: &str, command: &str| {
            let foreign = attach(pair.va, &program::pass(), native);
            for asked in Setting::ALL {
                let begun = Instant::now();
                let refused = datapath.attach("va", pair.va, Kind::Access, asked);
                let error = refused.expect_err("occupied").to_string();
                let named = format!("another XDP program is attached there in {other} mode");
                assert!(error.contains(&named), "{asked:?}: {error}");
                assert!(error.contains(command), "{asked:?}: {error}");
                // The daemon's loop does not wait for it.
                assert!(begun.elapsed() < Duration::from_millis(300), "{asked:?}");
            }
            drop(foreign);
            until("it is detached", || {
                nic::xdp_programs(pair.va).expect("a link").is_empty()
            });
            let attached = datapath.attach(
                "va",
                pair.va,
                Kind::Access,
                Setting::Only(AttachMode::Native),
            );
            attached.unwrap_or_else(|e| panic!("{e}"));
            datapath.detach_others(|_| false).expect("detached");
            until("ours is detached", || {
                nic::xdp_programs(pair.va).expect("a link").is_empty()
            });
        };
        try_modes(true, "native", "`ip link set va xdpdrv off`");
        try_modes(false, "generic", "`ip link set va xdpgeneric off`");
        drop(datapath);
        appliance_user::datapath::detach(pins).expect("removed");
        let _ = std::fs::remove_dir_all(pins);
    });
}

#[test]
fn a_veth_accepts_redirects_by_its_peers_settings() {
    isolated(|pair| {
        // An older kernel reports nothing.
        let Some(before) = accepts_redirects(pair.va) else {
            skip("the kernel does not report XDP features");
            return;
        };
        pair.in_b(|| run("ethtool -K vb gro off"));
        assert_eq!(accepts_redirects(pair.va), Some(false), "before: {before}");
        pair.in_b(|| run("ethtool -K vb gro on"));
        assert_eq!(accepts_redirects(pair.va), Some(true));
    });
}

/// Puts the thread into a mount namespace of its own, in which tracefs is not mounted.
fn without_tracefs() {
    // SAFETY: no pointer is passed. Only this thread changes its namespace.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
    run("mount --make-rprivate /");
    let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mounts");
    while mounts().contains(" - tracefs ") {
        let line = mounts();
        let mut lines = line.lines().filter(|l| l.contains(" - tracefs "));
        let place = lines.next_back().and_then(|l| l.split(' ').nth(4));
        run(&format!("umount -l {}", place.expect("a mount point")));
    }
    assert!(!Path::new("/sys/kernel/tracing/events").exists());
}

/// Takes capabilities of this thread away.
fn drop_capability(number: u32) {
    /// `_LINUX_CAPABILITY_VERSION_3`.
    const VERSION: u32 = 0x2008_0522;
    let mut header = [VERSION, 0];
    // Effective, permitted, inheritable; the lower 32 capabilities, then the others.
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: header and sets have the layout of `struct __user_cap_header_struct` and
    // `struct __user_cap_data_struct` of version 3, and outlive the calls.
    unsafe {
        let got = libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr());
        assert_eq!(got, 0, "{}", io::Error::last_os_error());
        sets[(number / 32) as usize][0] &= !(1 << (number % 32));
        let set = libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr());
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }
}

#[test]
fn kernel_drops_are_not_counted_without_tracefs_or_capability_and_the_remedy_is_named() {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_PERFMON: u32 = 38;
    isolated(|_| {
        without_tracefs();
        // The kernel takes CAP_SYS_ADMIN for CAP_PERFMON, too.
        drop_capability(CAP_SYS_ADMIN);
        let error = XdpErrors::open()
            .expect_err("tracefs is not mounted")
            .to_string();
        for remedy in [
            "tracefs is not mounted",
            "systemctl start sys-kernel-tracing.mount",
            "mount -t tracefs tracefs /sys/kernel/tracing",
        ] {
            assert!(error.contains(remedy), "{error}");
        }
    });
    isolated(|_| {
        without_tracefs();
        run("mount -t tracefs tracefs /sys/kernel/tracing");
        drop_capability(CAP_SYS_ADMIN);
        XdpErrors::open().expect("mounted, and CAP_PERFMON");
        drop_capability(CAP_PERFMON);
        let error = XdpErrors::open().expect_err("no capability").to_string();
        assert!(error.contains("needs CAP_PERFMON"), "{error}");
    });
}

#[test]
fn refused_redirects_are_counted() {
    namespaces::isolated(|pair| {
        // Frames of the kernel's own (MLD, neighbour discovery) would be redirected, too.
        run("ip link set va addrgenmode none");
        pair.in_b(|| run("ip link set vb addrgenmode none"));
        pair.up();
        without_tracefs();
        let mut errors = XdpErrors::open().expect("a tracefs of its own, and perf events");
        // The loopback has no ndo_xdp_xmit.
        let attached = attach(pair.va, &program::redirect(1), true);
        let programs = nic::xdp_programs(pair.va).expect("a link");
        let ids: Vec<u32> = programs.iter().map(|(_, id)| *id).collect();
        errors.watch(&ids, &[pair.va]).expect("a filter");
        let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 7], &[0x88, 0xb5], &[0; 50]].concat();
        send_from_b(&pair, &vec![frame.clone(); 10]);
        until("10 refused redirects", || errors.read().redirects == 10);
        // Those of other programs do not count, and no count is lost when the programs change.
        errors
            .watch(&[u32::MAX], &[pair.va])
            .expect("other programs");
        send_from_b(&pair, &vec![frame.clone(); 10]);
        errors.watch(&ids, &[pair.va]).expect("the former programs");
        send_from_b(&pair, &vec![frame; 10]);
        until("20 refused redirects", || errors.read().redirects == 20);
        assert_eq!(errors.read().exceptions, 0);
        drop(attached);
    });
}

fn group(address: &str) -> Address {
    solicited_node(&from_ip(address.parse().expect("an address")))
}

/// A frame to an Ethernet group.
fn to_group(mac: [u8; 6]) -> Vec<u8> {
    [&mac[..], &[2, 0, 0, 0, 0, 7], &[0x88, 0xb5], &[0; 50]].concat()
}

#[test]
fn a_port_that_filters_groups_passes_those_that_were_joined() {
    isolated(|pair| {
        run("ip link add link va name mv type macvlan");
        run("ip link set mv up");
        let received = || {
            let links = run("ip -j -s link show mv");
            let links: serde_json::Value = serde_json::from_str(&links).expect("JSON");
            links[0]["stats64"]["rx"]["packets"]
                .as_u64()
                .expect("a number")
        };
        let address = |n: u8| format!("2001:db8:1::{n:x}");
        let mac = |n: u8| multicast_mac_v6(&group(&address(n)));
        // Whether all of five frames arrive.
        let arrive = |n: u8| {
            let before = received();
            send_from_b(&pair, &vec![to_group(mac(n)); 5]);
            let until = Instant::now() + Duration::from_millis(200);
            while received() < before + 5 && Instant::now() < until {
                sleep(Duration::from_millis(20));
            }
            received() >= before + 5
        };
        // The filter is a hash of 8 bits: other groups of the port may share one.
        let filtered: Vec<u8> = (0x10..0x30).filter(|n| !arrive(*n)).take(2).collect();
        let [joined, other] = filtered[..] else {
            panic!("two filtered groups: {filtered:?}");
        };
        let listed = || run("ip maddr show dev mv").contains(&format!("33:33:ff:00:00:{joined:x}"));
        nic::set_multicast_group("mv", mac(joined), true).expect("joined");
        nic::set_multicast_group("mv", mac(joined), true).expect("joined again");
        until("the joined group passes", || arrive(joined));
        assert!(listed());
        nic::set_multicast_group("mv", mac(joined), false).expect("left");
        nic::set_multicast_group("mv", mac(joined), false).expect("left again");
        // A macvlan goes on passing it.
        assert!(!listed());
        assert!(!arrive(other), "another group is filtered");
        assert!(nic::set_all_multicast("mv", true).expect("set"));
        until("every group passes", || arrive(other));
        assert!(run("ip link show mv").contains("ALLMULTI"));
        assert!(!nic::set_all_multicast("mv", false).expect("cleared"));
        assert!(nic::set_all_multicast("no-such-nic", true).is_err());
    });
}

#[test]
fn a_snooping_switch_learns_the_groups_and_the_router_port() {
    isolated(|pair| {
        pair.in_b(|| {
            run("ip link add br0 type bridge mcast_snooping 1 mcast_querier 1");
            run("ip link set vb master br0");
            run("ip link set br0 up");
        });
        let port = Port {
            ifindex: pair.va,
            outer: 0,
            inner: 0,
            outer_ethertype: 0,
            mac: [2, 0, 0, 0, 0, 9],
        };
        let groups: Vec<Address> = (1..=frame::MAX_GROUPS)
            .map(|n| group(&format!("2001:db8::{n:x}")))
            .collect();
        let socket = PacketSocket::open(pair.va).expect("a raw socket");
        // The port forwards after a moment, so each is sent until it is learnt.
        let learnt = |what: &str, frame: &[u8], holds: &dyn Fn(&str) -> bool| {
            until(what, || {
                socket.send(frame).expect("sent");
                sleep(Duration::from_millis(50));
                holds(&pair.in_b(|| run("bridge -d mdb show")))
            });
        };
        let report = frame::listener_report(&port, &groups);
        assert!(report.len() <= 1280 + 14);
        learnt("every group", &report, &|mdb| {
            let of = |n: usize| format!("grp ff02::1:ff00:{n:x} ");
            (1..=frame::MAX_GROUPS).all(|n| mdb.contains(&of(n)))
        });
        let advertisement = frame::multicast_router_advertisement(&port, 20);
        learnt("the router port", &advertisement, &|mdb| {
            mdb.lines()
                .any(|l| l.contains("router") && l.contains("vb"))
        });
    });
}
