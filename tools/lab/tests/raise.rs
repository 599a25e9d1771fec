//! A raised lab: VLANs are isolated, the trunk carries tags, nothing remains after the end.
//!
//! Needs root and the switch's BPF object. Without them, tests print that they are skipped.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lab::{
    Entry, Lab, Options, Paths, Probe, Record, Scoped, Topology, Vlan, fixed_mac,
    sites::{access, full, host, link, partial},
    topology::{Attach, Kind},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// The files to use, or `None` after saying why these tests cannot run here.
fn able() -> Option<Paths> {
    let paths = Paths::find();
    let why = if !nix::unistd::geteuid().is_root() {
        "not root".to_owned()
    } else if !paths.lab_bpf_object.exists() {
        format!(
            "{} is missing: run `cargo xtask build-ebpf`",
            paths.lab_bpf_object.display()
        )
    } else {
        return Some(paths);
    };
    test_support::skip(&why);
    None
}

/// Two VLANs with the same addresses, a QinQ VLAN, and a plain host on the trunk.
fn same_addresses() -> Topology {
    let on = |vlan| access("switch", Some(vlan));
    let machine = |name: &str, vlan, last: u8| {
        let v4 = format!("10.0.0.{last}/24");
        let v6 = format!("2001:db8::{last}/64");
        host(
            name,
            Kind::Machine,
            vec![link("eth0", on(vlan), &[&v4, &v6])],
            &[],
        )
    };
    let (a, b, q) = (Vlan::single(101), Vlan::single(201), Vlan::qinq(300, 7));
    Topology::new("same", Options::default())
        .switch("switch")
        .host(machine("a1", a, 1))
        .host(machine("a2", a, 2))
        .host(machine("b1", b, 1))
        .host(machine("b3", b, 3))
        .host(machine("q1", q, 1))
        .host(host(
            "tap",
            Kind::Appliance,
            vec![link(
                "eth0",
                Attach::Trunk {
                    switch: "switch".to_owned(),
                },
                &[],
            )],
            &[],
        ))
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn v6(last: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()
}

const TAG_A: [u8; 4] = [0x81, 0x00, 0, 101];
const TAG_B: [u8; 4] = [0x81, 0x00, 0, 201];
const TAG_Q: [u8; 8] = [0x88, 0xa8, 1, 0x2c, 0x81, 0x00, 0, 7];

/// A broadcast ARP request for 10.0.0.1 from 10.0.0.99.
fn who_has(tags: &[u8], from: [u8; 6]) -> Vec<u8> {
    let mut frame = [[0xff; 6], from].concat();
    frame.extend(tags);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(from);
    frame.extend([10, 0, 0, 99]);
    frame.extend([0; 6]);
    frame.extend([10, 0, 0, 1]);
    frame
}

/// Whether at most one ping of a series had no reply. A busy machine sends fewer pings than
/// requested.
fn reaches(report: &lab::Report) -> bool {
    report.answered() >= 5 && report.lost().len() <= 1
}

#[test]
fn vlans_with_the_same_addresses_never_meet() {
    let Some(paths) = able() else {
        return;
    };
    let lab = Scoped::new(Lab::up(same_addresses(), "t-same", paths).unwrap());
    let trunk = lab.capture("tap", "eth0", None).unwrap();

    for to in [v4(2), v6(2)] {
        let report = lab.ping_count("a1", to, Probe::Echo, 10 * MS, 20).unwrap();
        assert!(reaches(&report), "{}", report.summary());
    }
    for (from, to) in [
        ("a1", v4(3)),
        ("a1", v6(3)),
        ("b1", v4(2)),
        ("b1", v6(2)),
        ("q1", v4(2)),
    ] {
        let report = lab.ping_count(from, to, Probe::Echo, 10 * MS, 20).unwrap();
        assert_eq!(report.answered(), 0, "{from} reached {to} of another VLAN");
    }

    let frames = trunk.stop().unwrap();
    let tagged = |host: &str, tags: &[u8]| {
        let mac = fixed_mac(host, "eth0");
        let all: Vec<_> = frames.iter().filter(|f| f.bytes[6..12] == mac).collect();
        assert!(!all.is_empty(), "nothing of {host} was on the trunk");
        for frame in all {
            assert!(
                frame.bytes[12..].starts_with(tags),
                "{host} spoke with tag {:02x?}",
                &frame.bytes[12..20]
            );
        }
    };
    tagged("a1", &TAG_A);
    tagged("b1", &TAG_B);
    tagged("q1", &TAG_Q);
}

#[test]
fn frames_from_the_trunk_reach_their_vlan_and_no_other() {
    let Some(paths) = able() else {
        return;
    };
    let lab = Scoped::new(Lab::up(same_addresses(), "t-trunk", paths).unwrap());
    let cases: [(&[u8], Option<&str>); 7] = [
        (&TAG_A, Some("a1")),
        (&TAG_B, Some("b1")),
        (&TAG_Q, Some("q1")),
        // A VLAN that the switch does not have, an outer tag alone, a wrong inner tag, no tag.
        (&[0x81, 0, 0, 102], None),
        (&[0x81, 0, 1, 0x2c], None),
        (&[0x88, 0xa8, 1, 0x2c, 0x81, 0, 0, 8], None),
        (&[], None),
    ];
    for (number, (tags, expected)) in cases.into_iter().enumerate() {
        let from = [2, 0, 0, 0, 9, number as u8];
        let capture = lab
            .capture(
                "tap",
                "eth0",
                Some(Box::new(move |frame| frame.starts_with(&from))),
            )
            .unwrap();
        lab.inject("tap", "eth0", &[who_has(tags, from)]).unwrap();
        thread::sleep(100 * MS);
        let answers = capture.stop().unwrap();
        let Some(expected) = expected else {
            assert!(answers.is_empty(), "tag {tags:02x?} was answered");
            continue;
        };
        assert_eq!(answers.len(), 1, "tag {tags:02x?}");
        let answer = &answers[0].bytes;
        assert_eq!(
            answer[6..12],
            fixed_mac(expected, "eth0"),
            "tag {tags:02x?}"
        );
        assert!(answer[12..].starts_with(tags));
    }
}

#[test]
fn a_replica_is_silent_until_powered_and_then_announces_itself() {
    let Some(paths) = able() else {
        return;
    };
    let lab = Scoped::new(Lab::up(partial(Options::default()), "t-power", paths).unwrap());
    let mac = fixed_mac("replica-a", "eth0");
    let ours = move |frame: &[u8]| frame.get(6..12) == Some(&mac[..]);
    let capture = |l: &Lab| {
        l.capture("provider-appliance", "eth1", Some(Box::new(ours)))
            .unwrap()
    };
    let before = capture(&lab);
    thread::sleep(200 * MS);
    assert!(before.stop().unwrap().is_empty());

    let during = capture(&lab);
    lab.power("replica-a", true).unwrap();
    lab.wait_for_dad("replica-a").unwrap();
    thread::sleep(100 * MS);
    let frames = during.stop().unwrap();
    let is = |f: &lab::Frame, at: usize, bytes: &[u8]| f.bytes[at..].starts_with(bytes);
    assert!(
        frames.iter().any(|f| is(f, 12, &TAG_A)
            && is(f, 16, &[8, 6])
            && is(f, 32, &[10, 1, 0, 10])
            && is(f, 42, &[10, 1, 0, 10])),
        "no gratuitous ARP among {} frames",
        frames.len()
    );
    assert!(
        frames
            .iter()
            .any(|f| is(f, 16, &[0x86, 0xdd]) && is(f, 24, &[58]) && is(f, 58, &[136])),
        "no unsolicited neighbour advertisement among {} frames",
        frames.len()
    );
    lab.power("replica-a", false).unwrap();
    let after = capture(&lab);
    thread::sleep(100 * MS);
    assert!(after.stop().unwrap().is_empty());
}

#[test]
fn hosts_reach_each_other_through_switch_and_router() {
    let Some(paths) = able() else {
        return;
    };
    let lab = Scoped::new(Lab::up(partial(Options::default()), "t-reach", paths).unwrap());
    let a: [IpAddr; 2] = [
        "10.1.0.10".parse().unwrap(),
        "2001:db8:1::10".parse().unwrap(),
    ];
    let _echo = lab.udp_echo("prod-a", 7007).unwrap();
    let _server = lab.http_server("prod-a", 8080, 3).unwrap();
    for (from, to) in [
        ("prod-b", a[0]),
        ("prod-b", a[1]),
        ("remote", a[0]),
        ("remote", a[1]),
    ] {
        for probe in [Probe::Echo, Probe::Udp(7007)] {
            let report = lab.ping_count(from, to, probe, 10 * MS, 20).unwrap();
            assert!(
                report.lost().len() <= 1,
                "{from} {to}: {}",
                report.summary()
            );
        }
        lab.download(from, to, 8080, 3, 300_000, 10 * SECOND)
            .unwrap();
    }
    let server = lab.iperf_server("prod-a", 5201).unwrap();
    let got = lab.iperf("prod-b", a[0], 5201, 1, &[]).unwrap();
    assert!(got.bits_per_second > 1e6, "{got:?}");
    server.stop().unwrap();
    // The tunnel's ends reach each other across the WAN; the machines' networks do not.
    let to = "203.0.113.5".parse().unwrap();
    let report = lab
        .ping_count("tenant-appliance", to, Probe::Echo, 10 * MS, 20)
        .unwrap();
    assert!(report.lost().len() <= 1, "{}", report.summary());
    let report = lab
        .ping_count("provider-appliance", a[0], Probe::Echo, 10 * MS, 10)
        .unwrap();
    assert_eq!(report.answered(), 0);
}

#[test]
fn public_addresses_are_resolved_on_the_providers_uplink() {
    let Some(paths) = able() else {
        return;
    };
    let lab = Scoped::new(Lab::up(full(Options::default()), "t-full", paths).unwrap());
    let answers = |from: &str, to: &str| {
        let to = to.parse().unwrap();
        let report = lab.ping_count(from, to, Probe::Echo, 20 * MS, 10);
        report.is_ok_and(|r| reaches(&r))
    };
    for (from, to) in [
        ("client", "198.51.100.80"),
        ("client", "2001:db8:99::80"),
        ("client", "203.0.113.5"),
        ("stranger", "2001:db8:e::5"),
        ("provider-appliance", "10.1.0.5"),
        ("provider-appliance", "192.0.2.6"),
        ("prod-b", "10.2.0.10"),
        ("prod-b", "2001:db8:2::10"),
        ("prod-c", "10.3.0.10"),
    ] {
        assert!(answers(from, to), "{from} does not reach {to}");
    }

    // No machine has the public addresses yet: ARP requests for them reach the appliance.
    let uplink = lab.capture("provider-appliance", "eth0", None).unwrap();
    for to in ["203.0.113.20", "203.0.113.36", "2001:db8:f::20"] {
        assert!(!answers("client", to), "{to} is answered");
    }
    thread::sleep(100 * MS);
    let frames = uplink.stop().unwrap();
    let seen = |at: usize, bytes: &[u8]| {
        let mut frames = frames.iter();
        frames.any(|f| f.bytes.get(at..).is_some_and(|b| b.starts_with(bytes)))
    };
    for last in [20, 36] {
        assert!(
            seen(38, &[203, 0, 113, last]),
            "no ARP for 203.0.113.{last}"
        );
    }
    let target = "2001:db8:f::20".parse::<Ipv6Addr>().unwrap().octets();
    let solicits =
        |f: &lab::Frame| f.bytes.get(54) == Some(&135) && f.bytes[62..].starts_with(&target);
    assert!(
        frames.iter().any(solicits),
        "no solicitation for 2001:db8:f::20"
    );

    // Cut, and mended with its addresses and routes.
    lab.cut("acme-wan").unwrap();
    assert!(!answers("edge", "10.1.0.5"));
    assert!(answers("edge", "192.0.2.6"), "the other site is cut, too");
    lab.restore_link("acme-wan").unwrap();
    assert!(answers("edge", "10.1.0.5"));
    assert!(answers("tenant-appliance", "203.0.113.5"));
    let error = lab.cut("nowhere").unwrap_err().to_string();
    assert!(error.contains("acme-wan"), "{error}");
}

/// Asserts that nothing of lab `name` is there: namespaces, run directory, pins, processes.
fn assert_nothing_left(name: &str, processes: &[(i32, u64)]) {
    let prefix = lab::namespace_name(name, "");
    let namespaces: Vec<_> = lab::list_namespaces()
        .unwrap()
        .into_iter()
        .filter(|n| n.starts_with(&prefix))
        .collect();
    assert!(namespaces.is_empty(), "{namespaces:?}");
    assert!(!Path::new(lab::RUN_ROOT).join(name).exists());
    assert!(!Path::new(lab::PIN_ROOT).join(name).exists());
    for (pid, start) in processes {
        let process = lab::Process {
            pid: *pid,
            start: *start,
        };
        assert!(!process.is_alive(), "process {pid} is left");
    }
}

fn recorded_processes(name: &str) -> Vec<(i32, u64)> {
    Record::read(&Path::new(lab::RUN_ROOT).join(name))
        .unwrap()
        .into_iter()
        .filter_map(|e| match e {
            Entry::Process { pid, start, .. } => Some((pid, start)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_crash_at_any_moment_leaves_nothing_after_down() {
    let Some(paths) = able() else {
        return;
    };
    let name = "t-crash";
    for after in [5, 30, 60, 100, 150, 250, 400] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_causeway-lab"))
            .args(["up", "partial", "--no-appliances", "--name", name])
            .arg("--lab-bpf-object")
            .arg(&paths.lab_bpf_object)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(after * MS);
        child.kill().unwrap();
        child.wait().unwrap();
        // The tools that it had running die with it, but not before their system call is done.
        thread::sleep(50 * MS);
        Lab::down(name).unwrap();
        assert_nothing_left(name, &[]);
    }

    // A lab whose owner is gone with processes running and a namespace that no record knows.
    let lab = Lab::up(same_addresses(), name, paths.clone()).unwrap();
    let sleeper = lab.spawn("a1", "sleeper", &["sleep", "600"]).unwrap();
    drop(lab);
    let stray = lab::namespace_name(name, "stray");
    assert!(
        Command::new("ip")
            .args(["netns", "add", &stray])
            .status()
            .unwrap()
            .success()
    );
    let processes = recorded_processes(name);
    assert!(processes.contains(&(sleeper.pid, sleeper.start)));
    Lab::down(name).unwrap();
    assert_nothing_left(name, &processes);
    // Once more is no error.
    Lab::down(name).unwrap();
}

#[test]
fn up_replaces_a_stale_lab_of_the_same_name() {
    let Some(paths) = able() else {
        return;
    };
    let name = "t-stale";
    let old = Lab::up(same_addresses(), name, paths.clone()).unwrap();
    let sleeper = old.spawn("a1", "sleeper", &["sleep", "600"]).unwrap();
    drop(old);
    let new = Scoped::new(Lab::up(same_addresses(), name, paths).unwrap());
    assert!(!sleeper.is_alive());
    let report = new
        .ping_count("a1", v4(2), Probe::Echo, 10 * MS, 10)
        .unwrap();
    assert!(reaches(&report), "{}", report.summary());
}

#[test]
fn a_lab_that_is_in_use_is_not_taken_away() {
    let Some(paths) = able() else {
        return;
    };
    let name = "t-owned";
    let ours = Scoped::new(Lab::up(same_addresses(), name, paths.clone()).unwrap());
    let error = Lab::up(same_addresses(), name, paths).unwrap_err();
    assert!(matches!(error, lab::Error::InUse { .. }), "{error}");
    let report = ours
        .ping_count("a1", v4(2), Probe::Echo, 10 * MS, 10)
        .unwrap();
    assert!(reaches(&report), "{}", report.summary());
}

#[test]
fn sigterm_while_raising_leaves_nothing() {
    let Some(paths) = able() else {
        return;
    };
    let name = "t-term";
    for after in [50, 300] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_causeway-lab"))
            .args(["up", "partial", "--no-appliances", "--name", name])
            .arg("--lab-bpf-object")
            .arg(&paths.lab_bpf_object)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(after * MS);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let until = Instant::now() + 15 * SECOND;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "it goes on after SIGTERM");
            thread::sleep(10 * MS);
        };
        assert!(!status.success());
        assert_nothing_left(name, &[]);
    }
}

#[test]
fn exec_passes_output_and_status_and_dies_with_its_time() {
    let Some(paths) = able() else {
        return;
    };
    let lab = Scoped::new(Lab::up(same_addresses(), "t-exec", paths).unwrap());
    let out = lab
        .exec(
            "a1",
            &["sh", "-c", "ip -o -4 addr show eth0; exit 7"],
            SECOND,
        )
        .unwrap();
    assert_eq!(out.status, 7);
    assert!(out.stdout.contains("10.0.0.1/24"), "{}", out.stdout);
    assert!(lab.exec("a1", &["sleep", "60"], 100 * MS).is_err());
    let status = Command::new(env!("CARGO_BIN_EXE_causeway-lab"))
        .args(["exec", "b3", "--lab", "t-exec", "--", "sh", "-c", "exit 42"])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(42));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let unread = Command::new(env!("CARGO_BIN_EXE_causeway-lab"))
        .arg("list")
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&unread.stderr), "");
    assert_eq!(unread.status.code(), Some(0));
    let error = lab.exec("unknown", &["true"], SECOND).unwrap_err();
    assert!(error.to_string().contains("a1, a2"), "{error}");
}
