//! NAT, against nftables with the same rules in the kernel.
//!
//! ```text
//!   cwn-in           cwn-gw             cwn-out
//!   ┌──────┐       ┌────────┐          ┌──────┐
//!   │   g0 ├───────┤a0    a1├──────────┤s0    │
//!   └──────┘       └────────┘          └──────┘
//!  10.50.0.10     10.50.0.1 192.0.2.1   192.0.2.2, default route
//! ```
//!
//! Contenders differ only in `cwn-gw`. Packets are UDP of 64 bytes, each of another flow. The same
//! generator makes them, and they are counted on arrival. Except where new connections are
//! measured, both ends of every connection have sent before the measurement.

use std::fs::File;

use anyhow::{Context as _, ensure};
use appliance_common::{
    addr::{Prefix, from_ip},
    maps::{
        Attachment, AttachmentKey, HostKey, Mode, Neighbour, Network, RouteKey, Tenant,
        attachment_flags, network_flags,
    },
    nat::{Nat, NatAddress, Timeouts},
};
use causeway_tests::{
    harness::{Harness, Program},
    packet::{Mac, frame, ip, udp},
    world::{ACCESS, UPLINK, World, words},
};
use nix::sched::{CloneFlags, setns};

use crate::{
    report::{Aim, Report},
    rig::{
        appliance::{self, counters},
        command::sh,
        extent::{Amount, Extent},
        netns::{Namespaces, drop_arrivals, load_ruleset, mac, received, within},
        programs::{BenchPrograms, Flows},
    },
};

const NAMESPACES: [&str; 3] = ["cwn-in", "cwn-gw", "cwn-out"];
const G0: Mac = [2, 0, 0, 0, 0x60, 0x10];
const A0: Mac = [2, 0, 0, 0, 0x60, 0xa0];
const A1: Mac = [2, 0, 0, 0, 0x60, 0xa1];
const S0: Mac = [2, 0, 0, 0, 0x60, 0x20];
const HOST: &str = "10.50.0.10";
const PUBLIC: &str = "203.0.113.20";
/// The first address that the host sends to.
const FAR: &str = "100.64.0.1";
const VNI: u32 = 5002;
const IN_INDEX: u32 = 20;
const OUT_INDEX: u32 = 21;

/// Packets for one figure.
const PACKETS: Amount<u32> = Amount {
    full: 2_000_000,
    smoke: 20_000,
};
/// Number of source ports that the host uses with each address.
const PORTS: u32 = 20_000;
/// The first source port, and the first public port.
const FIRST_PORT: u16 = 20_000;
/// Capacity of every contender's connection table. The kernel's is one for all namespaces, so that
/// it always has that of a full run.
const TABLE: Amount<u32> = Amount {
    full: 1 << 21,
    smoke: 1 << 16,
};

#[derive(Clone, Copy, PartialEq)]
enum Contender {
    Causeway,
    Nftables,
}

impl Contender {
    const BOTH: [Self; 2] = [Self::Causeway, Self::Nftables];

    const fn name(self) -> &'static str {
        match self {
            Self::Causeway => "causeway",
            Self::Nftables => "nftables",
        }
    }
}

/// A measured case.
#[derive(Clone, Copy)]
enum Case {
    /// Outbound packets of this number of established connections.
    Flows(u32),
    /// New connections from outside, with this number of rules.
    New(u32),
}

/// Cases of each extent, with their names.
const CASES: Amount<&[(Case, &str)]> = Amount {
    full: &[
        (Case::Flows(1), "packets, 1 flow"),
        (Case::Flows(10_000), "packets, 10 000 flows"),
        (Case::Flows(1_000_000), "packets, 1 000 000 flows"),
        (Case::New(1), "new connections, 1 rule"),
        (Case::New(10_000), "new connections, 10 000 rules"),
    ],
    smoke: &[
        (Case::Flows(100), "packets, 100 flows"),
        (Case::New(100), "new connections, 100 rules"),
    ],
};

/// The namespaces of a run.
struct Sites(#[expect(dead_code, reason = "removes the namespaces when dropped")] Namespaces);

impl Sites {
    fn raise() -> anyhow::Result<Self> {
        let this = Self(Namespaces::make(&NAMESPACES)?);
        for (name, index, m, peer_ns, peer, peer_index, pm) in [
            ("a0", ACCESS, A0, "cwn-in", "g0", IN_INDEX, G0),
            ("a1", UPLINK, A1, "cwn-out", "s0", OUT_INDEX, S0),
        ] {
            sh(&format!(
                "ip -n cwn-gw link add {name} index {index} address {} type veth \
                 peer name {peer} index {peer_index} address {} netns {peer_ns}",
                mac(m),
                mac(pm)
            ))?;
        }
        for (ns, name, address) in [
            ("cwn-in", "g0", "10.50.0.10/24"),
            ("cwn-gw", "a0", "10.50.0.1/24"),
            ("cwn-gw", "a1", "192.0.2.1/24"),
            ("cwn-out", "s0", "192.0.2.2/24"),
        ] {
            sh(&format!(
                "ip netns exec {ns} sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1"
            ))?;
            sh(&format!("ip -n {ns} link set {name} up"))?;
            sh(&format!("ip -n {ns} address add {address} dev {name}"))?;
        }
        for (address, name, m) in [(HOST, "a0", G0), ("192.0.2.2", "a1", S0)] {
            sh(&format!(
                "ip -n cwn-gw neigh add {address} dev {name} lladdr {} nud permanent",
                mac(m)
            ))?;
        }
        sh("ip -n cwn-gw route add default via 192.0.2.2")?;
        Ok(this)
    }
}

/// The appliance's maps: one network with internet access, and `rules` public IP rules.
fn world(rules: u32) -> anyhow::Result<World> {
    let mut w = World::bare("192.0.2.1", "");
    w.tenants = vec![Tenant {
        mode: Mode::Full as u32,
        epoch: 1,
    }];
    let prefix = Prefix::new(&from_ip(ip("10.50.0.0")), 96 + 24).context("length")?;
    let mut network = Network {
        vni: VNI,
        flags: network_flags::ACTIVE | network_flags::PROVIDER | network_flags::INTERNET,
        mtu: 1450,
        lan_mtu: 1500,
        prefix_count: 1,
        gateway_v4: from_ip(ip("10.50.0.1")),
        ..Network::default()
    };
    network.prefixes[0] = prefix;
    w.networks = vec![network];
    w.attachments = vec![(
        AttachmentKey {
            ifindex: ACCESS,
            outer: 0,
            inner: 0,
        },
        Attachment {
            network: 0,
            flags: attachment_flags::ACTIVE,
            mac: A0,
            xsk: appliance_common::maps::NO_XSK,
            entry_hash: 0,
        },
    )];
    let key = HostKey {
        vni: VNI,
        address: from_ip(ip(HOST)),
    };
    w.neighbours = vec![(key, Neighbour::new(ACCESS, G0, A0, 0, 0, 0x8100))];
    let route = RouteKey {
        tenant: 0,
        address: prefix.address(),
    };
    w.routes = vec![(prefix.length(), route, 0)];
    w.nat = Nat {
        uplink: UPLINK,
        seed: 1,
        timeouts: Timeouts::default(),
        mac: A1,
        mtu: 1500,
        ..Nat::default()
    };
    w.nat_addresses = vec![NatAddress {
        address: words(PUBLIC),
        first: 1024,
        last: 65_535,
    }];
    w.public(PUBLIC, 0);
    for i in 0..rules {
        let port = FIRST_PORT + u16::try_from(i).context("the rules fit the port range")?;
        w.rule(0, VNI, PUBLIC, HOST, (port, port, port), &[17]);
    }
    Ok(w)
}

/// The same NAT in nftables. The rules are one map, as its manual recommends for many rules.
fn nftables(rules: u32) -> anyhow::Result<()> {
    use std::fmt::Write as _;
    for setting in [
        "net.ipv4.ip_forward=1".to_owned(),
        "net.ipv4.conf.all.rp_filter=0".to_owned(),
        "net.netfilter.nf_conntrack_udp_timeout=300".to_owned(),
    ] {
        sh(&format!("ip netns exec cwn-gw sysctl -qw {setting}"))?;
    }
    let mut text = format!(
        "table ip nat {{\n chain post {{ type nat hook postrouting priority srcnat; \
         oifname a1 snat to {PUBLIC}; }}\n"
    );
    if rules > 0 {
        text.push_str(" map ports { type inet_service : ipv4_addr . inet_service; elements = {\n");
        for i in 0..rules {
            let port = u32::from(FIRST_PORT) + i;
            let _ = writeln!(text, "  {port} : {HOST} . {port},");
        }
        let _ = writeln!(
            text,
            " }} }}\n chain pre {{ type nat hook prerouting priority dstnat; \
             ip daddr {PUBLIC} dnat to udp dport map @ports; }}"
        );
    }
    text.push_str("}\n");
    load_ruleset("cwn-gw", &text)
}

/// Gives the kernel's connection table our capacity for the length of a run.
struct Conntrack {
    files: Vec<(&'static str, String)>,
    /// The namespace in which they can be written.
    home: File,
}

impl Conntrack {
    const FILES: [&str; 2] = [
        "/sys/module/nf_conntrack/parameters/hashsize",
        "/proc/sys/net/netfilter/nf_conntrack_max",
    ];

    fn enlarge() -> anyhow::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net").context("our namespace")?;
        let mut files = Vec::new();
        for path in Self::FILES {
            let old = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
            files.push((path, old.trim().to_owned()));
        }
        let this = Self { files, home };
        for path in Self::FILES {
            std::fs::write(path, TABLE.full.to_string()).with_context(|| path.to_owned())?;
        }
        Ok(this)
    }
}

impl Drop for Conntrack {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.home, CloneFlags::CLONE_NEWNET) {
            eprintln!("cannot return to the initial namespace: {error}");
        }
        for (path, old) in &self.files {
            if let Err(error) = std::fs::write(path, old) {
                eprintln!("cannot set {path} back to {old}: {error}");
            }
        }
    }
}

/// Sends a packet in each direction of every connection, so that it is established.
fn establish(harness: &mut Harness, flows: u32) -> anyhow::Result<()> {
    let far = u32::from_be_bytes(match ip(FAR) {
        std::net::IpAddr::V4(a) => a.octets(),
        std::net::IpAddr::V6(_) => anyhow::bail!("an IPv4 address"),
    });
    for i in 0..flows {
        let to = std::net::IpAddr::from(std::net::Ipv4Addr::from(far + i / PORTS));
        let port = FIRST_PORT + (i % PORTS) as u16;
        let there = udp(ip(HOST), to, port, FIRST_PORT, &[0; 22]);
        let there = frame(A0, G0, &[], &there);
        let (action, out) = harness.run(Program::Access, ACCESS, &there)?;
        ensure!(action.sends(), "packet of flow {i} is not sent: {action:?}");
        let outer = u16::from_be_bytes([out[34], out[35]]);
        let back = udp(to, ip(PUBLIC), FIRST_PORT, outer, &[0; 22]);
        let back = frame(A1, S0, &[], &back);
        let (action, _) = harness.run(Program::Uplink, UPLINK, &back)?;
        ensure!(action.sends(), "answer of flow {i} is not sent: {action:?}");
    }
    Ok(())
}

/// Packets, or new connections, per second.
fn rate(contender: Contender, case: Case, extent: Extent) -> anyhow::Result<f64> {
    let _sites = Sites::raise()?;
    let mut programs = BenchPrograms::load()?;
    let rules = match case {
        Case::Flows(_) => 1,
        Case::New(rules) => rules,
    };
    // Established flows: from the host to many addresses. New ones: from many to the public
    // address.
    let (from_ns, from, to, interface, index, packet, flows) = match case {
        Case::Flows(count) => (
            "cwn-in",
            "a0",
            "cwn-out",
            "s0",
            IN_INDEX,
            frame(
                A0,
                G0,
                &[],
                &udp(ip(HOST), ip(FAR), FIRST_PORT, FIRST_PORT, &[0; 22]),
            ),
            Flows {
                count,
                ports: 1,
                per_address: PORTS.min(count),
                which: 0,
            },
        ),
        Case::New(rules) => (
            "cwn-out",
            "a1",
            "cwn-in",
            "g0",
            OUT_INDEX,
            frame(
                A1,
                S0,
                &[],
                &udp(ip("16.0.0.1"), ip(PUBLIC), 1024, FIRST_PORT, &[0; 22]),
            ),
            Flows {
                count: u32::MAX,
                ports: rules,
                per_address: 1,
                which: 1,
            },
        ),
    };
    let ours = if contender == Contender::Causeway {
        let mut harness = Harness::load_sized(world(rules)?, TABLE.of(extent))?;
        if let Case::Flows(count) = case {
            establish(&mut harness, count)?;
        }
        within("cwn-gw", || {
            // As the daemon does: the program looks up the FIB as if from the loopback device.
            Ok(std::fs::write(
                "/proc/sys/net/ipv4/conf/lo/forwarding",
                "1",
            )?)
        })?;
        appliance::attach(&mut harness, "cwn-gw", "a0", "a1")?;
        programs.attach("sink", to, interface)?;
        Some(harness)
    } else {
        nftables(rules)?;
        drop_arrivals(to, interface, "")?;
        // The program makes the generator's frames wake the receiver; the kernel's stack does the
        // rest.
        programs.attach("pass", "cwn-gw", from)?;
        None
    };
    let name = if from_ns == "cwn-in" { "g0" } else { "s0" };
    programs.attach("pass", from_ns, name)?;
    let arrived = |programs: &BenchPrograms| -> anyhow::Result<u64> {
        if ours.is_some() {
            programs.sunk()
        } else {
            received(to, interface)
        }
    };
    let run = |programs: &mut BenchPrograms, packets| {
        programs.rate(arrived, |programs| {
            within(from_ns, || programs.flows(&packet, flows, index, packets))
        })
    };
    if let Case::Flows(count) = case {
        // One packet of every connection, so that the kernel has all of them, too.
        run(&mut programs, count.max(PACKETS.of(extent) / 20))?;
    }
    let rate = run(&mut programs, PACKETS.of(extent))?;
    let counted = ours.as_ref().map(counters);
    ensure!(
        rate > 1.0,
        "{}: nothing arrived; the appliance counted {counted:?}",
        contender.name()
    );
    Ok(rate)
}

/// Measures every case `runs` times, the contenders in turn. `only` restricts it to cases whose
/// name contains one of its comma-separated words.
pub fn run(runs: usize, only: Option<&str>, extent: Extent) -> anyhow::Result<Report> {
    let mut report = Report::new("nat");
    let _conntrack = Conntrack::enlarge()?;
    let mut medians = Vec::new();
    for &(case, name) in CASES.of(extent) {
        if only.is_some_and(|only| !only.split(',').any(|part| name.contains(part.trim()))) {
            continue;
        }
        let mut rates = [Vec::new(), Vec::new()];
        for turn in 0..runs {
            eprintln!("{name}: run {} of {runs}", turn + 1);
            for (rates, contender) in rates.iter_mut().zip(Contender::BOTH) {
                rates.push(rate(contender, case, extent)? / 1e6);
            }
        }
        let [ours, theirs] = rates;
        let unit = match case {
            Case::Flows(_) => "Mpps",
            Case::New(_) => "M/s",
        };
        let ours = report.row(name, Contender::Causeway.name(), unit, ours);
        let theirs = report.row(name, Contender::Nftables.name(), unit, theirs);
        medians.push((name, ours, theirs));
    }
    for (name, ours, theirs) in &medians {
        let aim = name.starts_with("packets").then_some(Aim::Least(5.0));
        report.ratio(format!("{name}: causeway / nftables"), ours / theirs, aim);
    }
    if let [(_, one, _), _, (_, million, _), ..] = medians.as_slice() {
        report.ratio(
            "causeway: 1 flow / 1 000 000 flows",
            one / million,
            Some(Aim::Most(1.2)),
        );
    }
    Ok(report)
}
