//! Nanoseconds per packet of each program, against a program that swaps MAC addresses.
//!
//! A program that edits its packet cannot be repeated on it. So each figure is the time of
//! `restore` and the program, minus `restore` and an empty program, plus the empty program alone,
//! all in the same run with the same packets. That equals a plain BPF_PROG_TEST_RUN, which measures
//! the floor. 256 packets are used in turn, so that look-ups hit different entries as with real
//! traffic.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, ensure};
use appliance_common::{
    addr::{Prefix, UNSPECIFIED, from_ip},
    maps::{
        Attachment, AttachmentKey, HostKey, Mode, Neighbour, Network, Peer, Tenant, Tunnel,
        TunnelKey, attachment_flags, network_flags,
    },
};
use aya::programs::{ProgramFd, Xdp};
use causeway_tests::{
    harness::Harness,
    packet::{arp, eth, frame, ip, ns, udp, udp_no_checksum, vxlan},
    world::{
        A_MAC, NEXT_HOP_MAC, PORT, PROVIDER, TENANT, TRUNK, TRUNK_MAC, UPLINK, UPLINK_MAC, World,
        tag,
    },
};

use crate::{
    report::{Aim, Report},
    rig::{
        extent::{Amount, Extent},
        programs::{BenchPrograms, TEMPLATES},
    },
};

/// Packets per run.
const REPEAT: Amount<u32> = Amount {
    full: 200_000,
    smoke: 2_000,
};
const FIRST_VNI: u32 = 10_000;
/// Largest IP packet that the tunnel carries, bytes.
const LARGEST: usize = 1450;

/// Size of the tables.
#[derive(Clone, Copy, PartialEq)]
struct Size {
    networks: u32,
    /// Endpoints of each network.
    endpoints: u32,
}

const SIZES: [Size; 4] = [
    Size {
        networks: 1,
        endpoints: 1,
    },
    Size {
        networks: 1,
        endpoints: 1_000,
    },
    Size {
        networks: 1,
        endpoints: 100_000,
    },
    Size {
        networks: 4_094,
        endpoints: 1,
    },
];

/// A measured operation. Lengths are of the IP packet, bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Case {
    ArpAnswer,
    NdAnswer,
    Encapsulate(usize),
    Decapsulate(usize),
    Pass,
}

impl Case {
    fn name(self) -> String {
        match self {
            Self::ArpAnswer => "ARP answer".to_owned(),
            Self::NdAnswer => "ND answer".to_owned(),
            Self::Encapsulate(ip) => format!("encapsulate {} B", ip + 18),
            Self::Decapsulate(ip) => format!("decapsulate {} B", ip + 18),
            Self::Pass => "pass (not ours)".to_owned(),
        }
    }

    fn program(self) -> (&'static str, u32) {
        match self {
            Self::ArpAnswer | Self::NdAnswer | Self::Encapsulate(_) => ("access", TRUNK),
            Self::Decapsulate(_) | Self::Pass => ("uplink", UPLINK),
        }
    }

    /// The XDP action that shows that the packet took the measured path.
    const fn action(self) -> u32 {
        match self {
            Self::ArpAnswer | Self::NdAnswer => 3,
            Self::Encapsulate(_) | Self::Decapsulate(_) => 4,
            Self::Pass => 2,
        }
    }
}

/// The address of the endpoint `i`.
fn endpoint(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a10_0000 + 1 + i + i / 126)
}

fn world(size: Size) -> anyhow::Result<World> {
    let mut w = World::bare(PROVIDER, "");
    let (local, remote) = (from_ip(ip(PROVIDER)), from_ip(ip(TENANT)));
    w.peers = vec![
        Peer::new(UPLINK, NEXT_HOP_MAC, UPLINK_MAC, &local, &remote, PORT).context("one family")?,
    ];
    w.tenants = vec![Tenant {
        mode: Mode::Partial as u32,
        epoch: 1,
    }];
    for n in 0..size.networks {
        let vni = FIRST_VNI + n;
        let mut prefixes = [Prefix::default(); 8];
        prefixes[0] = Prefix::new(&from_ip(ip("10.0.0.0")), 96 + 8).context("length")?;
        prefixes[1] = Prefix::new(&from_ip(ip("2001:db8:1::")), 64).context("length")?;
        w.networks.push(Network {
            vni,
            tenant: 0,
            peer: 0,
            flags: network_flags::ACTIVE | network_flags::PROVIDER,
            mtu: LARGEST as u16,
            lan_mtu: LARGEST as u16,
            prefix_count: 2,
            prefixes,
            ..Network::default()
        });
        let tunnel = Tunnel {
            network: n,
            flags: 1,
        };
        for peer in [remote, UNSPECIFIED] {
            w.tunnels.push((TunnelKey { vni, peer }, tunnel));
        }
        let outer = (n + 1) as u16;
        w.attachments.push((
            AttachmentKey {
                ifindex: TRUNK,
                outer,
                inner: 0,
            },
            Attachment {
                network: n,
                flags: attachment_flags::ACTIVE,
                mac: TRUNK_MAC,
                xsk: appliance_common::maps::NO_XSK,
                entry_hash: 0,
            },
        ));
        for e in 0..size.endpoints {
            let key = HostKey {
                vni,
                address: from_ip(IpAddr::V4(endpoint(e))),
            };
            w.endpoints.push(key);
            w.neighbours.push((
                key,
                Neighbour::new(TRUNK, A_MAC, TRUNK_MAC, outer, 0, 0x8100),
            ));
        }
    }
    Ok(w)
}

/// The packets of a case, spread over networks and endpoints.
fn packets(case: Case, size: Size) -> Vec<Vec<u8>> {
    let other = ip("10.200.0.11");
    (0..TEMPLATES as u32)
        .map(|i| {
            // Steps that are coprime to the sizes spread the packets over all entries.
            let network = (i * 577) % size.networks;
            let host = (i * 7_919) % size.endpoints;
            let replica = IpAddr::V4(endpoint(host));
            let tags = [tag((network + 1) as u16)];
            let replica_says = |l3: &[u8]| frame(TRUNK_MAC, A_MAC, &tags, l3);
            let data = |len: usize| vec![0x5a; len - 28];
            match case {
                Case::ArpAnswer => {
                    let ask = arp(
                        1,
                        A_MAC,
                        endpoint(host),
                        [0; 6],
                        Ipv4Addr::new(10, 200, 0, 11),
                    );
                    eth([0xff; 6], A_MAC, &tags, 0x0806, &ask)
                }
                Case::NdAnswer => {
                    let v6 = |text: &str| match ip(text) {
                        IpAddr::V6(v6) => v6,
                        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    };
                    let target = v6("2001:db8:1::11");
                    let ask = ns(v6("2001:db8:1::10"), target, target, Some(A_MAC));
                    replica_says(&ask)
                }
                Case::Encapsulate(len) => {
                    replica_says(&udp(replica, other, 1000 + i as u16, 9, &data(len)))
                }
                Case::Decapsulate(len) => {
                    let inner = udp(other, replica, 1000 + i as u16, 9, &data(len));
                    let inner = frame(A_MAC, A_MAC, &[], &inner);
                    let datagram = vxlan(8, FIRST_VNI + network, &inner);
                    let outer = udp_no_checksum(ip(TENANT), ip(PROVIDER), 50_000, PORT, &datagram);
                    frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &outer)
                }
                Case::Pass => {
                    let other = udp(ip(TENANT), ip(PROVIDER), 1000 + i as u16, 53, &data(46));
                    frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &other)
                }
            }
        })
        .collect()
}

fn descriptor(harness: &mut Harness, name: &str) -> anyhow::Result<ProgramFd> {
    let program: &mut Xdp = harness
        .ebpf()
        .program_mut(name)
        .context("program")?
        .try_into()?;
    Ok(program.fd()?.try_clone()?)
}

/// The figures of one case over the runs.
struct Figures {
    size: Size,
    case: Case,
    nanoseconds: Vec<f64>,
}

/// Measures every case `runs` times, in turn.
pub fn run(runs: usize, extent: Extent) -> anyhow::Result<Report> {
    let repeat = REPEAT.of(extent);
    let mut report = Report::new("xdp-cost");
    let mut programs = BenchPrograms::load()?;
    let mut harness = Harness::load(world(SIZES[0])?)?;
    let nothing = programs.fd("nothing")?;
    let mut figures: Vec<Figures> = Vec::new();
    let (mut floors, mut bases) = (Vec::new(), Vec::new());
    for turn in 0..runs {
        eprintln!("run {} of {runs}", turn + 1);
        for size in SIZES {
            harness.fill(world(size)?)?;
            let mut cases = vec![Case::Encapsulate(46), Case::Decapsulate(46)];
            if size == SIZES[0] {
                cases.extend([
                    Case::ArpAnswer,
                    Case::NdAnswer,
                    Case::Encapsulate(494),
                    Case::Encapsulate(LARGEST),
                    Case::Decapsulate(494),
                    Case::Decapsulate(LARGEST),
                    Case::Pass,
                ]);
            }
            for case in cases {
                let packets = packets(case, size);
                programs.templates(&packets)?;
                let (program, ifindex) = case.program();
                let fd = descriptor(&mut harness, program)?;
                let first = packets.first().context("packets")?;
                let mut cost = |next: &ProgramFd| programs.cost(next, first, ifindex, repeat);
                // The first run with new packets warms the caches and is not counted.
                cost(&nothing)?;
                let base = cost(&nothing)?.0;
                let alone = programs.bare("nothing", first, repeat)?;
                let floor = programs.bare("mac_swap", first, repeat)?;
                let mut cost = |next: &ProgramFd| programs.cost(next, first, ifindex, repeat);
                let (all, action) = cost(&fd)?;
                ensure!(
                    action == case.action(),
                    "{}: the program ended with XDP action {action}, not {}",
                    case.name(),
                    case.action()
                );
                // The short runs of a smoke run differ by more than the program's cost.
                let cost = match extent {
                    Extent::Full => all - base + alone,
                    Extent::Smoke => all,
                };
                bases.push(base);
                floors.push(floor);
                match figures
                    .iter_mut()
                    .find(|f| f.size == size && f.case == case)
                {
                    Some(f) => f.nanoseconds.push(cost),
                    None => figures.push(Figures {
                        size,
                        case,
                        nanoseconds: vec![cost],
                    }),
                }
            }
        }
    }
    report.row("restore and tail call (subtracted)", "harness", "ns", bases);
    let floor = report.row("swap MAC addresses", "floor", "ns", floors);
    let mut medians = Vec::new();
    for f in figures {
        let name = format!(
            "{}, {} networks, {} endpoints",
            f.case.name(),
            f.size.networks,
            f.size.endpoints
        );
        let median = report.row(name, "causeway", "ns", f.nanoseconds);
        medians.push((f.case, f.size, median));
    }
    for (case, size, median) in &medians {
        if *size != SIZES[0] {
            continue;
        }
        let aim = match case {
            Case::Encapsulate(_) | Case::Decapsulate(_) => Some(Aim::Most(8.0)),
            _ => None,
        };
        report.ratio(format!("{} / floor", case.name()), median / floor, aim);
    }
    for case in [Case::Encapsulate(46), Case::Decapsulate(46)] {
        let of = |size: Size| {
            medians
                .iter()
                .find(|(c, s, _)| *c == case && *s == size)
                .map_or(f64::NAN, |(_, _, m)| *m)
        };
        let one = of(SIZES[0]);
        for (size, what) in [
            (SIZES[1], "1 000 endpoints / 1"),
            (SIZES[2], "100 000 endpoints / 1"),
            (SIZES[3], "4 094 networks / 1"),
        ] {
            report.ratio(
                format!("{}: {what}", case.name()),
                of(size) / one,
                Some(Aim::Most(1.15)),
            );
        }
    }
    Ok(report)
}
