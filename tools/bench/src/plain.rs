//! Through a pair of appliances, unencrypted, beside what the kernel has.
//!
//! ```text
//!   cwb-gen         cwb-ten             cwb-prov          cwb-sink
//!   ┌──────┐       ┌────────┐          ┌────────┐        ┌──────┐
//!   │   g0 ├───────┤a0    a1├──────────┤b1    b0├────────┤s0    │
//!   └──────┘       └────────┘          └────────┘        └──────┘
//!  10.50.0.10      192.0.2.1            192.0.2.2        10.50.0.20
//! ```
//!
//! Contenders change only what is in `cwb-ten` and `cwb-prov`: the XDP programs, a bridge with kernel
//! VXLAN, or (TCP only) a bridge alone. Packets are made by the same generator and counted where they
//! arrive.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use appliance_common::{
    addr::{Prefix, UNSPECIFIED, from_ip},
    maps::{
        Attachment, AttachmentKey, HostKey, Mode, Neighbour, Network, Peer, Tenant, Tunnel,
        TunnelKey, attachment_flags, network_flags,
    },
};
use aya::programs::{Xdp, XdpMode, xdp::XdpLinkId};
use causeway_tests::{
    harness::{Harness, counter_name},
    packet::{Mac, frame, ip, udp},
    world::{ACCESS, PORT, UPLINK, World},
};
use nix::sched::{CloneFlags, setns};

use crate::{
    around::Around,
    report::{Aim, Report},
};

const NAMESPACES: [&str; 4] = ["cwb-gen", "cwb-ten", "cwb-prov", "cwb-sink"];
const G0: Mac = [2, 0, 0, 0, 0x50, 0x10];
const A0: Mac = [2, 0, 0, 0, 0x50, 0xa0];
const A1: Mac = [2, 0, 0, 0, 0x50, 0xa1];
const B1: Mac = [2, 0, 0, 0, 0x50, 0xb1];
const B0: Mac = [2, 0, 0, 0, 0x50, 0xb0];
const S0: Mac = [2, 0, 0, 0, 0x50, 0x20];
const VNI: u32 = 5001;
const GEN: &str = "10.50.0.10";
const SINK: &str = "10.50.0.20";
const TENANT: &str = "192.0.2.1";
const PROVIDER: &str = "192.0.2.2";

/// How long the generator runs for one figure, packets.
const PACKETS: u32 = 2_000_000;
/// How long a TCP stream runs, seconds.
const TCP_SECONDS: u32 = 3;

#[derive(Clone, Copy, PartialEq)]
enum Contender {
    Causeway,
    KernelVxlan,
    KernelBridge,
}

impl Contender {
    const fn name(self) -> &'static str {
        match self {
            Self::Causeway => "causeway",
            Self::KernelVxlan => "kernel VXLAN + bridge",
            Self::KernelBridge => "kernel bridge",
        }
    }
}

/// The namespaces, taken down when dropped and before they are made.
struct Sites;

impl Drop for Sites {
    fn drop(&mut self) {
        for name in NAMESPACES {
            // One that is not there is as good as deleted.
            let _ = Command::new("ip")
                .args(["netns", "del", name])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn sh(words: &str) -> anyhow::Result<()> {
    let mut parts = words.split_whitespace();
    let program = parts.next().context("a command")?;
    let output = Command::new(program)
        .args(parts)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start `{words}`"))?;
    ensure!(
        output.status.success(),
        "`{words}`: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn mac(m: Mac) -> String {
    m.map(|b| format!("{b:02x}")).join(":")
}

impl Sites {
    fn raise(contender: Contender, wire_like: bool) -> anyhow::Result<Self> {
        drop(Self);
        let this = Self;
        for name in NAMESPACES {
            sh(&format!("ip netns add {name}"))?;
        }
        let veth = |ns: &str,
                    name: &str,
                    index: u32,
                    m: Mac,
                    peer_ns: &str,
                    peer: &str,
                    peer_index: u32,
                    pm: Mac| {
            sh(&format!(
                "ip -n {ns} link add {name} index {index} address {} mtu 1600 type veth peer name {peer} index {peer_index} address {} netns {peer_ns}",
                mac(m),
                mac(pm)
            ))
        };
        veth("cwb-ten", "a0", ACCESS, A0, "cwb-gen", "g0", 20, G0)?;
        veth("cwb-ten", "a1", UPLINK, A1, "cwb-prov", "b1", UPLINK, B1)?;
        veth("cwb-prov", "b0", ACCESS, B0, "cwb-sink", "s0", 21, S0)?;
        for (ns, name) in [
            ("cwb-gen", "g0"),
            ("cwb-ten", "a0"),
            ("cwb-ten", "a1"),
            ("cwb-prov", "b1"),
            ("cwb-prov", "b0"),
            ("cwb-sink", "s0"),
        ] {
            sh(&format!("ip -n {ns} link set {name} up"))?;
            sh(&format!(
                "ip netns exec {ns} sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1"
            ))?;
        }
        for (ns, name) in [("cwb-ten", "a1"), ("cwb-prov", "b1")] {
            sh(&format!("ip -n {ns} link set {name} mtu 1600"))?;
        }
        for (ns, name, address) in [("cwb-gen", "g0", GEN), ("cwb-sink", "s0", SINK)] {
            sh(&format!("ip -n {ns} link set {name} mtu 1500"))?;
            sh(&format!("ip -n {ns} address add {address}/24 dev {name}"))?;
            sh(&format!("ip netns exec {ns} ethtool -K {name} tx off"))?;
            if wire_like {
                sh(&format!(
                    "ip netns exec {ns} ethtool -K {name} tso off gso off gro off"
                ))?;
            }
        }
        sh(&format!("ip -n cwb-ten address add {TENANT}/24 dev a1"))?;
        sh(&format!("ip -n cwb-prov address add {PROVIDER}/24 dev b1"))?;
        let pair = [
            ("cwb-ten", "a0", "a1", TENANT, PROVIDER),
            ("cwb-prov", "b0", "b1", PROVIDER, TENANT),
        ];
        for (ns, port, uplink, local, remote) in pair {
            if contender == Contender::Causeway {
                continue;
            }
            sh(&format!("ip -n {ns} link add br0 type bridge stp_state 0"))?;
            sh(&format!("ip -n {ns} link set {port} master br0"))?;
            match contender {
                Contender::KernelVxlan => {
                    sh(&format!(
                        "ip -n {ns} link add vx0 mtu 1500 type vxlan id {VNI} local {local} remote {remote} dstport {PORT} dev {uplink}"
                    ))?;
                    sh(&format!("ip -n {ns} link set vx0 master br0 up"))?;
                }
                _ => sh(&format!("ip -n {ns} link set {uplink} master br0"))?,
            }
            sh(&format!("ip -n {ns} link set br0 up"))?;
        }
        Ok(this)
    }
}

/// Runs `f` with this thread in a namespace, and comes back.
fn within<T>(name: &str, f: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let here = File::open("/proc/thread-self/ns/net").context("our namespace")?;
    let there = File::open(format!("/run/netns/{name}")).context("the namespace")?;
    setns(&there, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
    let result = f();
    setns(&here, CloneFlags::CLONE_NEWNET).context("come back")?;
    result
}

/// What an end's maps hold.
fn world(provider: bool) -> anyhow::Result<World> {
    let (local, remote, ours, theirs, port_mac) = if provider {
        (PROVIDER, TENANT, B1, A1, B0)
    } else {
        (TENANT, PROVIDER, A1, B1, A0)
    };
    let mut w = World::bare(local, "");
    let (l, r) = (from_ip(ip(local)), from_ip(ip(remote)));
    w.peers = vec![Peer::new(UPLINK, theirs, ours, &l, &r, PORT).context("one family")?];
    w.tenants = vec![Tenant {
        mode: Mode::Partial as u32,
        epoch: 1,
    }];
    let mut prefixes = [Prefix::default(); 8];
    prefixes[0] = Prefix::new(&from_ip(ip("10.50.0.0")), 96 + 24).context("length")?;
    w.networks = vec![Network {
        vni: VNI,
        flags: network_flags::ACTIVE | if provider { network_flags::PROVIDER } else { 0 },
        mtu: 1500,
        prefix_count: 1,
        prefixes,
        ..Network::default()
    }];
    for peer in [r, UNSPECIFIED] {
        w.tunnels.push((
            TunnelKey { vni: VNI, peer },
            Tunnel {
                network: 0,
                flags: 1,
            },
        ));
    }
    w.attachments = vec![(
        AttachmentKey {
            ifindex: ACCESS,
            outer: 0,
            inner: 0,
        },
        Attachment {
            network: 0,
            flags: attachment_flags::ACTIVE,
            mac: port_mac,
            xsk: appliance_common::maps::NO_XSK,
        },
    )];
    let key = |text: &str| HostKey {
        vni: VNI,
        address: from_ip(ip(text)),
    };
    w.endpoints = vec![key(SINK)];
    let (host, host_mac) = if provider { (SINK, S0) } else { (GEN, G0) };
    w.neighbours = vec![(
        key(host),
        Neighbour::new(ACCESS, host_mac, port_mac, 0, 0, 0x8100),
    )];
    Ok(w)
}

/// An end with its programs attached; detached when dropped.
fn appliance(provider: bool) -> anyhow::Result<Harness> {
    let mut harness = Harness::load(world(provider)?)?;
    let (ns, port, uplink) = if provider {
        ("cwb-prov", "b0", "b1")
    } else {
        ("cwb-ten", "a0", "a1")
    };
    within(ns, || {
        for (program, interface) in [("access", port), ("uplink", uplink)] {
            let program: &mut Xdp = harness
                .ebpf()
                .program_mut(program)
                .context("program")?
                .try_into()?;
            program
                .attach(interface, XdpMode::Driver)
                .with_context(|| format!("attach to {interface}"))?;
        }
        Ok(())
    })?;
    Ok(harness)
}

/// Attaches a program of the benchmark's own.
fn attach(
    around: &mut Around,
    program: &str,
    ns: &str,
    interface: &str,
) -> anyhow::Result<XdpLinkId> {
    within(ns, || {
        Ok(around
            .program(program)?
            .attach(interface, XdpMode::Driver)?)
    })
}

/// Packets a second that arrive, of packets of `len` bytes from the Ethernet header on.
fn packets_per_second(contender: Contender, len: usize) -> anyhow::Result<f64> {
    let _sites = Sites::raise(contender, true)?;
    let mut around = Around::load()?;
    let ends = if contender == Contender::Causeway {
        // The far end of what XDP sends back or redirects to needs a program.
        attach(&mut around, "sink", "cwb-sink", "s0")?;
        Some((appliance(false)?, appliance(true)?))
    } else {
        // So that the generator's frames wake the receiver; the kernel's stack does the rest.
        attach(&mut around, "pass", "cwb-ten", "a0")?;
        None
    };
    attach(&mut around, "pass", "cwb-gen", "g0")?;
    let destination = if contender == Contender::Causeway {
        A0
    } else {
        S0
    };
    let packet = frame(
        destination,
        G0,
        &[],
        &udp(ip(GEN), ip(SINK), 4000, 9, &vec![0x5a; len - 42]),
    );
    around.templates(std::slice::from_ref(&packet))?;
    let arrived = |around: &Around| -> anyhow::Result<u64> {
        if contender == Contender::Causeway {
            around.sunk()
        } else {
            received("cwb-sink", "s0")
        }
    };
    let run = |around: &mut Around, packets| {
        let before = arrived(around)?;
        let begun = Instant::now();
        within("cwb-gen", || around.generate(&packet, 20, packets))?;
        let took = begun.elapsed();
        std::thread::sleep(Duration::from_millis(50));
        Ok::<_, anyhow::Error>((arrived(around)? - before) as f64 / took.as_secs_f64())
    };
    run(&mut around, PACKETS / 20)?;
    let rate = run(&mut around, PACKETS)?;
    let counted = ends
        .as_ref()
        .map(|(tenant, provider)| (named(tenant), named(provider)));
    ensure!(
        rate > 1.0,
        "{}: nothing arrived; the appliances counted {counted:?}",
        contender.name()
    );
    drop(ends);
    Ok(rate)
}

/// What an appliance counted, by name.
fn named(harness: &Harness) -> Vec<(String, u64)> {
    harness
        .counters()
        .into_iter()
        .map(|(number, value)| (counter_name(number), value))
        .collect()
}

/// Packets that an interface received.
fn received(ns: &str, interface: &str) -> anyhow::Result<u64> {
    let output = Command::new("ip")
        .args(["-n", ns, "-j", "-s", "link", "show", interface])
        .output()?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    json[0]["stats64"]["rx"]["packets"]
        .as_u64()
        .context("rx packets")
}

/// A server that is ended when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gbit/s of one TCP stream, and CPU seconds of the machine a gigabyte.
fn tcp(contender: Contender, wire_like: bool) -> anyhow::Result<(f64, f64)> {
    let _sites = Sites::raise(contender, wire_like)?;
    let mut around = Around::load()?;
    let ends = if contender == Contender::Causeway {
        attach(&mut around, "pass", "cwb-gen", "g0")?;
        attach(&mut around, "pass", "cwb-sink", "s0")?;
        Some((appliance(false)?, appliance(true)?))
    } else {
        None
    };
    let _server = Server(
        Command::new("ip")
            .args(["netns", "exec", "cwb-sink", "iperf3", "-s"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .context("start iperf3; `cargo xtask setup` installs it")?,
    );
    std::thread::sleep(Duration::from_millis(300));
    let busy = cpu_seconds()?;
    let output = Command::new("ip")
        .args([
            "netns",
            "exec",
            "cwb-gen",
            "iperf3",
            "-J",
            "-c",
            SINK,
            "-t",
            &TCP_SECONDS.to_string(),
        ])
        .stdin(Stdio::null())
        .output()?;
    let busy = cpu_seconds()? - busy;
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("iperf3's JSON")?;
    let received = &json["end"]["sum_received"];
    let (Some(bits), Some(bytes)) = (
        received["bits_per_second"].as_f64(),
        received["bytes"].as_f64(),
    ) else {
        bail!("{}: iperf3: {}", contender.name(), json["error"]);
    };
    drop(ends);
    Ok((bits / 1e9, busy / (bytes / 1e9)))
}

/// Seconds that all CPUs were busy since boot: user, nice, system, irq, softirq (proc(5)).
fn cpu_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<f64> = text
        .lines()
        .next()
        .context("cpu")?
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    let ticks: f64 = [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum();
    // USER_HZ is 100 on every architecture that we run on (times(2)).
    Ok(ticks / 100.0)
}

/// Measures everything `runs` times, in turn.
pub fn run(runs: usize) -> anyhow::Result<Report> {
    let mut report = Report::new("plain");
    let mut medians = Vec::new();
    let iperf = Command::new("iperf3")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    let tcp_kinds: &[bool] = if iperf.is_ok_and(|s| s.success()) {
        &[true, false]
    } else {
        report.skip("TCP, every contender", "iperf3 is not installed");
        &[]
    };
    for len in [64, 1400] {
        let mut rates = [Vec::new(), Vec::new()];
        for turn in 0..runs {
            eprintln!("packets of {len} B: run {} of {runs}", turn + 1);
            for (rates, contender) in rates
                .iter_mut()
                .zip([Contender::Causeway, Contender::KernelVxlan])
            {
                rates.push(packets_per_second(contender, len)? / 1e6);
            }
        }
        let [ours, theirs] = rates;
        let case = format!("one way, {len} B, received");
        let ours = report.row(case.clone(), Contender::Causeway.name(), "Mpps", ours);
        let theirs = report.row(case, Contender::KernelVxlan.name(), "Mpps", theirs);
        medians.push((
            format!("{len} B packets: causeway / kernel VXLAN"),
            ours / theirs,
        ));
    }
    for (name, value) in medians {
        report.ratio(name, value, Some(Aim::Least(5.0)));
    }
    for &wire_like in tcp_kinds {
        let what = if wire_like {
            "wire-like"
        } else {
            "host offloads on"
        };
        let all = [
            Contender::Causeway,
            Contender::KernelVxlan,
            Contender::KernelBridge,
        ];
        let mut figures = [const { (Vec::new(), Vec::new()) }; 3];
        for turn in 0..runs {
            eprintln!("TCP, {what}: run {} of {runs}", turn + 1);
            for ((rates, costs), contender) in figures.iter_mut().zip(all) {
                let (rate, cost) = tcp(contender, wire_like)?;
                rates.push(rate);
                costs.push(cost);
            }
        }
        let mut rates = Vec::new();
        for ((rate, cost), contender) in figures.into_iter().zip(all) {
            rates.push(report.row(
                format!("TCP, one stream, {what}"),
                contender.name(),
                "Gbit/s",
                rate,
            ));
            report.row(format!("TCP, CPU, {what}"), contender.name(), "s/GB", cost);
        }
        if let [ours, vxlan, bridge] = rates.as_slice() {
            report.ratio(
                format!("TCP {what}: causeway / kernel VXLAN"),
                ours / vxlan,
                None,
            );
            report.ratio(
                format!("TCP {what}: causeway / kernel bridge"),
                ours / bridge,
                None,
            );
        }
    }
    Ok(report)
}
