//! Two appliances with a plain tunnel, against kernel VXLAN and a bridge.
//!
//! ```text
//!   cwb-gen         cwb-ten             cwb-prov          cwb-sink
//!   ┌──────┐       ┌────────┐          ┌────────┐        ┌──────┐
//!   │   g0 ├───────┤a0    a1├──────────┤b1    b0├────────┤s0    │
//!   └──────┘       └────────┘          └────────┘        └──────┘
//!  10.50.0.10      192.0.2.1            192.0.2.2        10.50.0.20
//! ```
//!
//! Contenders differ only in `cwb-ten` and `cwb-prov`: the XDP programs, a bridge with kernel
//! VXLAN, or (TCP only) a bridge alone. The same generator makes the packets, and they are counted
//! on arrival.

use crate::{
    report::{Aim, Report},
    rig::{
        appliance::{self, counters},
        command::{find, sh},
        cpu::busy_seconds,
        extent::{Amount, Extent},
        iperf,
        netns::{Namespaces, mac, received, within},
        programs::BenchPrograms,
    },
};
use anyhow::{Context as _, ensure};
use appliance_common::{
    addr::{Prefix, UNSPECIFIED, from_ip},
    maps::{
        Attachment, AttachmentKey, HostKey, Mode, Neighbour, Network, Peer, Tenant, Tunnel,
        TunnelKey, attachment_flags, network_flags,
    },
};
use causeway_tests::{
    harness::Harness,
    packet::{Mac, frame, ip, udp},
    world::{ACCESS, PORT, UPLINK, World},
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

/// Packets generated for one figure.
const PACKETS: Amount<u32> = Amount {
    full: 2_000_000,
    smoke: 20_000,
};
/// Lengths of the packets, bytes.
const LENGTHS: Amount<&[usize]> = Amount {
    full: &[64, 1400],
    smoke: &[64],
};
/// Whether TCP is measured as on a wire, or with the hosts' offloads.
const WIRE_LIKE: Amount<&[bool]> = Amount {
    full: &[true, false],
    smoke: &[true],
};

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

/// The namespaces of a run.
struct Sites(#[expect(dead_code, reason = "removes the namespaces when dropped")] Namespaces);

impl Sites {
    fn raise(contender: Contender, wire_like: bool) -> anyhow::Result<Self> {
        let this = Self(Namespaces::make(&NAMESPACES)?);
        let veth = |ns: &str,
                    name: &str,
                    index: u32,
                    m: Mac,
                    peer_ns: &str,
                    peer: &str,
                    peer_index: u32,
                    pm: Mac| {
            sh(&format!(
                "ip -n {ns} link add {name} index {index} address {} mtu 1600 type veth \
                 peer name {peer} index {peer_index} address {} netns {peer_ns}",
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
                        "ip -n {ns} link add vx0 mtu 1500 type vxlan id {VNI} local {local} \
                         remote {remote} dstport {PORT} dev {uplink}"
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

/// The maps of one appliance.
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
        lan_mtu: 1500,
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
            entry_hash: 0,
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

/// An appliance with its programs attached; they are detached when it is dropped.
fn appliance(provider: bool) -> anyhow::Result<Harness> {
    let mut harness = Harness::load(world(provider)?)?;
    let (ns, port, uplink) = if provider {
        ("cwb-prov", "b0", "b1")
    } else {
        ("cwb-ten", "a0", "a1")
    };
    appliance::attach(&mut harness, ns, port, uplink)?;
    Ok(harness)
}

/// Packets per second that arrive; `len` is their length in bytes from the Ethernet header on.
fn packets_per_second(contender: Contender, len: usize, extent: Extent) -> anyhow::Result<f64> {
    let _sites = Sites::raise(contender, true)?;
    let mut programs = BenchPrograms::load()?;
    let ends = if contender == Contender::Causeway {
        // A veth accepts frames of XDP_TX and redirects only if its peer has a program.
        programs.attach("sink", "cwb-sink", "s0")?;
        Some((appliance(false)?, appliance(true)?))
    } else {
        // The program makes the generator's frames wake the receiver; the kernel's stack does the
        // rest.
        programs.attach("pass", "cwb-ten", "a0")?;
        None
    };
    programs.attach("pass", "cwb-gen", "g0")?;
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
    programs.templates(std::slice::from_ref(&packet))?;
    let arrived = |programs: &BenchPrograms| -> anyhow::Result<u64> {
        if contender == Contender::Causeway {
            programs.sunk()
        } else {
            received("cwb-sink", "s0")
        }
    };
    let run = |programs: &mut BenchPrograms, packets| {
        programs.rate(arrived, |programs| {
            within("cwb-gen", || programs.generate(&packet, 20, packets))
        })
    };
    run(&mut programs, PACKETS.of(extent) / 20)?;
    let rate = run(&mut programs, PACKETS.of(extent))?;
    let counted = ends
        .as_ref()
        .map(|(tenant, provider)| (counters(tenant), counters(provider)));
    ensure!(
        rate > 1.0,
        "{}: nothing arrived; the appliances counted {counted:?}",
        contender.name()
    );
    drop(ends);
    Ok(rate)
}

/// Gbit/s of one TCP stream, and CPU seconds of the machine per gigabyte.
fn tcp(contender: Contender, wire_like: bool, extent: Extent) -> anyhow::Result<(f64, f64)> {
    let _sites = Sites::raise(contender, wire_like)?;
    let mut programs = BenchPrograms::load()?;
    let ends = if contender == Contender::Causeway {
        programs.attach("pass", "cwb-gen", "g0")?;
        programs.attach("pass", "cwb-sink", "s0")?;
        Some((appliance(false)?, appliance(true)?))
    } else {
        None
    };
    let files = tempfile::tempdir()?;
    let _server = iperf::Server::start("cwb-sink", files.path().join("iperf3.log"))?;
    let busy = busy_seconds()?;
    let received =
        iperf::run("cwb-gen", SINK, 1, extent).with_context(|| contender.name().to_owned())?;
    let busy = busy_seconds()? - busy;
    drop(ends);
    Ok((received.gigabits, busy / received.gigabytes))
}

/// Measures every case `runs` times, the contenders in turn.
pub fn run(runs: usize, extent: Extent) -> anyhow::Result<Report> {
    let mut report = Report::new("plain");
    let mut medians = Vec::new();
    let tcp_kinds: &[bool] = if find("iperf3").is_some() {
        WIRE_LIKE.of(extent)
    } else {
        report.omit("TCP, every contender", "iperf3 is not installed");
        &[]
    };
    for &len in LENGTHS.of(extent) {
        let mut rates = [Vec::new(), Vec::new()];
        for run in 0..runs {
            eprintln!("packets of {len} B: run {} of {runs}", run + 1);
            for (rates, contender) in rates
                .iter_mut()
                .zip([Contender::Causeway, Contender::KernelVxlan])
            {
                rates.push(packets_per_second(contender, len, extent)? / 1e6);
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
        for run in 0..runs {
            eprintln!("TCP, {what}: run {} of {runs}", run + 1);
            for ((rates, costs), contender) in figures.iter_mut().zip(all) {
                let (rate, cost) = tcp(contender, wire_like, extent)?;
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
