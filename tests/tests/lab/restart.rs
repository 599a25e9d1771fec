//! Plain tunnels: good and bad configurations, generic XDP mode, programs of an earlier process,
//! pins of another version. A daemon that is killed under load: `timed/restart_under_load.rs`.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use causeway_tests::site::{SHORT_TIMEOUT, Site, text};

const A: &str = "10.1.0.10";
const A6: &str = "2001:db8:1::10";
const BOTH: [&str; 2] = ["tenant-appliance", "provider-appliance"];

#[test]
fn a_bad_configuration_leaves_the_running_one_in_force() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("prod-b", A);
    let handle = site
        .appliance("tenant-appliance")
        .unwrap_or_else(|e| panic!("{e}"));
    let good = text(&handle.config_path());
    let networks = site.status("tenant-appliance")["networks"].clone();
    let slim = |networks: &serde_json::Value| {
        networks
            .as_array()
            .into_iter()
            .flatten()
            .map(|n| format!("{} {} {} {}", n["name"], n["vni"], n["mtu"], n["endpoints"]))
            .collect::<Vec<_>>()
    };
    let bad: Vec<(&str, String)> = vec![
        ("no TOML", format!("{good}\n[[")),
        ("an unknown key", format!("{good}\nwhatever = 1\n")),
        ("VNI 0", good.replace("vni = 1001", "vni = 0")),
        (
            "two networks of one VNI",
            good.replace("vni = 1002", "vni = 1001"),
        ),
        (
            "a peer that is not there",
            good.replace("peer = \"provider\"", "peer = \"unknown\""),
        ),
        (
            "a tenant that is not there",
            good.replace("tenant = \"acme\"", "tenant = \"unknown\""),
        ),
        (
            "a prefix with nonsense",
            good.replace("10.1.0.0/24", "10.1.0.0/99"),
        ),
        ("nothing", String::new()),
    ];
    for (what, config) in bad {
        assert_ne!(config, good, "{what} is a change");
        std::fs::write(handle.config_path(), &config).expect("the lab's own file");
        let out = handle.cli(&["reload"]).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            !out.ok(),
            "{what} was accepted: {}{}",
            out.stdout,
            out.stderr
        );
        assert!(
            !out.stderr.trim().is_empty(),
            "{what}: refused without a message"
        );
        println!("{what}: {}", out.stderr.trim());
        let path = handle.config_path();
        let check = handle
            .cli(&["check", path.to_str().expect("a plain path")])
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(!check.ok(), "`check` accepts {what}");
        let process = handle
            .process()
            .unwrap_or_else(|e| panic!("{e}"))
            .unwrap_or_else(|| panic!("{what} ended the daemon"));
        process
            .signal(nix::sys::signal::Signal::SIGHUP)
            .unwrap_or_else(|e| panic!("{e}"));
        thread::sleep(Duration::from_millis(100));
        assert!(process.is_alive(), "SIGHUP with {what} ended the daemon");
        let status = site.status("tenant-appliance");
        assert_eq!(slim(&status["networks"]), slim(&networks), "{what}");
        assert_eq!(status["tenants"][0]["mode"], "partial", "{what}");
    }
    site.reach("prod-b", A);
    site.reach("remote", A6);
    std::fs::write(handle.config_path(), &good).expect("the lab's own file");
    handle.must(&["reload"]).unwrap_or_else(|e| panic!("{e}"));
    site.reach("prod-b", A);
}

#[test]
fn a_daemon_restarted_with_a_changed_configuration_converges() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.over("prod-c");
    site.reach("prod-b", A);
    site.reach("prod-d", "10.2.0.10");
    for host in BOTH {
        let handle = site.appliance(host).unwrap_or_else(|e| panic!("{e}"));
        handle.stop().unwrap_or_else(|e| panic!("{host}: {e}"));
        site.configure(host, |good| {
            // Net1 gets another MTU; net2, the last, is removed.
            let changed = good.replace("name = \"net1\"\n", "name = \"net1\"\nmtu = 1300\n");
            assert_ne!(changed, good, "{good}");
            let cut = changed.rfind("[[network]]").expect("two networks");
            let mut changed = changed[..cut].to_owned();
            if host == "tenant-appliance" {
                // Its second interface served net2 only.
                let from = changed.find("[[interface]]").expect("eth1");
                let to = from + 2 + changed[from + 2..].find("[[").expect("more follows");
                changed.replace_range(from..to, "");
            }
            changed
        });
        handle.launch().unwrap_or_else(|e| panic!("{host}: {e}"));
        // Status reports the failover that has no network any more, and it can be undone.
        let problem = "network \"net2\" has 1 failed-over address and is not configured";
        let until = Instant::now() + Duration::from_secs(15);
        loop {
            let out = handle.cli(&["status"]).expect("a command line");
            if out.stdout.contains(problem) {
                break;
            }
            assert!(Instant::now() < until, "{host}: {}", out.stdout);
            thread::sleep(Duration::from_millis(100));
        }
        handle
            .must(&["endpoint", "remove", "--network", "net2", "10.2.0.10"])
            .unwrap_or_else(|e| panic!("{host}: {e}"));
        handle
            .await_ready()
            .unwrap_or_else(|e| panic!("{host}: {e}"));
        let status = site.status(host);
        let networks = status["networks"].as_array().expect("networks");
        assert_eq!(networks.len(), 1, "{host}: {status}");
        assert_eq!(networks[0]["mtu"], 1300, "{host}: {status}");
    }
    site.reach("prod-b", A);
    let out = site.sh(
        "prod-b",
        &[
            "ping", "-n", "-M", "do", "-s", "1400", "-c", "2", "-W", "1", A,
        ],
    );
    assert!(
        format!("{}{}", out.stdout, out.stderr).contains("1300"),
        "{}{}",
        out.stdout,
        out.stderr
    );
    // Net2's endpoint is not answered for any more.
    site.ok("prod-d", &["ip", "neighbour", "flush", "all"]);
    site.unreachable("prod-d", "10.2.0.10");
    // Back to the first configuration by a reload.
    for host in BOTH {
        let handle = site.appliance(host).unwrap_or_else(|e| panic!("{e}"));
        handle
            .write_config()
            .unwrap_or_else(|e| panic!("{host}: {e}"));
        handle
            .must(&["reload"])
            .unwrap_or_else(|e| panic!("{host}: {e}"));
        let status = site.status(host);
        assert_eq!(
            status["networks"].as_array().map(Vec::len),
            Some(2),
            "{host}: {status}"
        );
    }
    site.reach("prod-b", A);
}

#[test]
fn generic_mode_works_if_configured() {
    let options = lab::Options {
        offloads: false,
        ..causeway_tests::site::PLAIN
    };
    let Some(site) = Site::bare(lab::sites::partial, options) else {
        return;
    };
    for host in BOTH {
        site.configure(host, |config| {
            // The trunk stays native: generic XDP leaves out what a TC program redirected, which is
            // how the lab's switch tags (net/core/dev.c, netif_receive_generic_xdp).
            let times = if host == "tenant-appliance" { 2 } else { 1 };
            let generic = config.replacen("xdp = \"native\"", "xdp = \"generic\"", times);
            assert_ne!(generic, config, "{config}");
            generic
        });
    }
    for host in BOTH {
        // As on NICs: GRO joins segments in front of the generic hook, and what it joins is longer
        // than any packet of the hosts.
        site.ok(host, &["ethtool", "-K", "eth0", "gro", "on"]);
    }
    site.start_appliances().unwrap_or_else(|e| panic!("{e}"));
    for host in BOTH {
        let features = site.ok(host, &["ethtool", "-k", "eth0"]);
        assert!(
            features.contains("generic-receive-offload: off"),
            "{host}: {features}"
        );
        let status = site.status(host);
        for interface in status["interfaces"].as_array().expect("interfaces") {
            let trunk = host == "provider-appliance" && interface["name"] == "eth1";
            let expected = if trunk { "native" } else { "generic" };
            assert_eq!(interface["xdp"], expected, "{host}: {interface}");
            assert_eq!(interface["xdp_configured"], expected, "{host}: {interface}");
        }
        let links = site
            .exec(host, &["ip", "-d", "link"], SHORT_TIMEOUT)
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(
            links.stdout.contains("xdpgeneric"),
            "{host}: the kernel has another state:\n{}",
            links.stdout
        );
    }
    site.over("prod-a");
    for (from, to) in [
        ("prod-b", A),
        ("prod-b", A6),
        ("remote", A),
        ("replica-a", "10.1.0.11"),
    ] {
        site.reach(from, to);
    }
    site.tcp("prod-b", "replica-a", A, 8 << 20);
    site.tcp("replica-a", "prod-b", "10.1.0.11", 8 << 20);
    for host in BOTH {
        assert_eq!(site.counter(host, "frag_needed_sent"), 0, "{host}");
    }
    site.back("prod-a");
    site.reach("prod-b", A);
}

#[test]
fn a_version_with_other_maps_is_taken_over_and_cleared_away() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("prod-b", A);
    let handle = site
        .appliance("tenant-appliance")
        .unwrap_or_else(|e| panic!("{e}"));
    handle.kill().unwrap_or_else(|e| panic!("{e}"));
    let pins = site.pin_dir("tenant-appliance");
    let now = std::fs::read_dir(&pins)
        .expect("a directory of pins")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.join("maps").exists())
        .expect("a version's pins");
    // As if another version had left them: its links hold the interfaces, its maps are not ours to
    // read.
    std::fs::rename(&now, pins.join("v999")).expect("a rename in bpffs");
    // Packets all the time: none may find the new programs without a configuration.
    let socket = site.udp("prod-b", "10.1.0.11", 40_000);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                sent += u64::from(socket.send_to(b"?", (A, 9)).is_ok());
                thread::sleep(Duration::from_micros(20));
            }
            sent
        });
        let started = handle.start();
        stop.store(true, Ordering::Relaxed);
        let sent = flood.join().expect("no panic");
        started.unwrap_or_else(|e| panic!("{e}"));
        println!("{sent} packets meanwhile");
        assert!(sent > 1000, "{sent} packets");
    });
    assert_eq!(site.counter("tenant-appliance", "not_configured"), 0);
    assert!(now.join("maps/CONFIG").exists());
    assert!(
        !pins.join("v999").exists(),
        "the other version's pins are left"
    );
    let status = site.status("tenant-appliance");
    for interface in status["interfaces"].as_array().into_iter().flatten() {
        assert_eq!(interface["adopted"], true, "{interface}");
    }
    site.reach("prod-b", A);
    site.back("prod-a");
    site.reach("prod-b", A);
}

/// The kernel's id of the program that an interface runs.
fn program_id(site: &Site, host: &str, interface: &str) -> u32 {
    let link = site.ok(host, &["ip", "-d", "link", "show", interface]);
    let words: Vec<&str> = link.split_whitespace().collect();
    let at = words.iter().position(|word| word.starts_with("prog/xdp"));
    let id = at.and_then(|at| words.get(at + 2)).unwrap_or(&"");
    id.parse().unwrap_or_else(|_| panic!("{host}: {link}"))
}

#[test]
fn programs_of_the_same_object_are_used_again_and_others_replaced() {
    const HOST: &str = "tenant-appliance";
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("prod-b", A);
    let handle = site.appliance(HOST).unwrap_or_else(|e| panic!("{e}"));
    let restart = || {
        handle.kill().unwrap_or_else(|e| panic!("{e}"));
        handle.start().unwrap_or_else(|e| panic!("{e}"));
        site.reach("prod-b", A);
    };
    let version = std::fs::read_dir(site.pin_dir(HOST)).expect("a directory of pins");
    let version = version.flatten().next().expect("a version's pins").path();
    let pins = || {
        let programs = std::fs::read_dir(version.join("programs")).expect("pinned programs");
        let mut names: Vec<_> = programs.flatten().map(|pin| pin.file_name()).collect();
        names.sort();
        names
    };
    let (loaded, pinned) = (program_id(&site, HOST, "eth0"), pins());
    restart();
    assert_eq!(program_id(&site, HOST, "eth0"), loaded, "verified again");
    assert_eq!(pins(), pinned);

    // A pin that is missing is no obstacle: all programs are loaded again.
    let lost = version.join("programs").join(&pinned[0]);
    std::fs::remove_file(&lost).expect("a pin");
    restart();
    let again = program_id(&site, HOST, "eth0");
    assert_ne!(again, loaded);
    assert_eq!(pins(), pinned);

    // Another object, as after an upgrade: the ELF format allows bytes behind the last section.
    let mut object = std::fs::read(&site.paths().bpf_object).expect("the BPF object");
    object.push(0);
    let other = handle.config_path().with_file_name("other.bpf.o");
    std::fs::write(&other, object).expect("the lab's own directory");
    site.configure(HOST, |config| {
        let (now, other) = (site.paths().bpf_object.display(), other.display());
        let changed = config.replace(&now.to_string(), &other.to_string());
        assert_ne!(changed, config, "{config}");
        changed
    });
    restart();
    assert_ne!(
        program_id(&site, HOST, "eth0"),
        again,
        "the old program runs"
    );
    let replaced = pins();
    assert_eq!(replaced.len(), pinned.len());
    assert!(replaced.iter().all(|name| !pinned.contains(name)));

    // A map that was replaced: programs that use the old one must not run again.
    let before = program_id(&site, HOST, "eth0");
    handle.kill().unwrap_or_else(|e| panic!("{e}"));
    std::fs::remove_file(version.join("maps/LAST_LOGGED")).expect("a pin");
    handle.start().unwrap_or_else(|e| panic!("{e}"));
    assert_ne!(program_id(&site, HOST, "eth0"), before);
    site.reach("prod-b", A);
}
