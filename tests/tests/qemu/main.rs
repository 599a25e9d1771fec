//! The appliance on the NICs of hypervisors, in a virtual machine under QEMU.
//!
//! ```text
//!   this test                                      guest (Debian's kernel, TCG)
//!   wire wan  peer 198.51.100.1 ────────────────── wan  uplink, virtio-net
//!   wire lan  hosts 10.1.0.11, 10.1.1.11 ───────── lan  untagged: net1; VLAN 101: net2
//! ```
//!
//! Frames cross the wires as the hypervisor's switch would carry them, so the NICs' filters,
//! offloads and drivers are those of a guest. The appliance is on the tenant's side.

mod initramfs;
mod vm;
mod wire;

use std::{
    thread,
    time::{Duration, Instant},
};

use causeway_tests::packet::{
    Mac, arp, be16, eth, frame, ip, l2, mac_at, multicast_mac, ns, solicited_node, udp,
    udp_no_checksum, vxlan,
};

use vm::{Nic, Vm};
use wire::{Host, v4};

const PEER: Host = Host {
    address: std::net::Ipv4Addr::new(198, 51, 100, 1),
    mac: [2, 0, 0, 0, 0, 0xaa],
};
const VLAN: u16 = 101;
const BROADCAST: Mac = [0xff; 6];

/// A network on a NIC.
#[derive(Clone)]
struct Net {
    nic: &'static str,
    /// Distinguishes its addresses: 10.NUMBER.0.0/24, 2001:db8:NUMBER::/64.
    number: u8,
    tagged: bool,
}

impl Net {
    fn vni(&self) -> u32 {
        1000 + u32::from(self.number)
    }

    /// The host that stayed.
    fn host(&self) -> Host {
        Host {
            address: v4(&format!("10.{}.0.11", self.number)),
            mac: [2, 0, 0, 0, self.number, 0x11],
        }
    }

    fn moved(&self) -> String {
        format!("10.{}.0.10", self.number)
    }

    fn moved_v6(&self) -> String {
        format!("2001:db8:{}::10", self.number)
    }

    fn tags(&self) -> Vec<(u16, u16)> {
        if self.tagged {
            vec![(0x8100, VLAN)]
        } else {
            vec![]
        }
    }

    fn text(&self) -> String {
        let Self { nic, number: n, .. } = self;
        let vlan = if self.tagged {
            format!("vlan = \"{VLAN}\"\n")
        } else {
            String::new()
        };
        format!(
            "[[network]]\nname = \"net{n}\"\ntenant = \"acme\"\npeer = \"provider\"\nvni = {}\n\
             interface = \"{nic}\"\n{vlan}prefixes = [\"10.{n}.0.0/24\", \"2001:db8:{n}::/64\"]\n\
             gateway = [\"10.{n}.0.1\", \"2001:db8:{n}::1\"]\n",
            self.vni()
        )
    }
}

/// Both networks of a NIC: untagged, and behind a tag.
fn both(nic: &'static str, number: u8) -> [Net; 2] {
    [false, true].map(|tagged| Net {
        nic,
        number: number + u8::from(tagged),
        tagged,
    })
}

fn hosts(nets: &[Net], nic: &str) -> Option<Vec<Host>> {
    Some(
        nets.iter()
            .filter(|n| n.nic == nic)
            .map(Net::host)
            .collect(),
    )
}

/// The configuration with all interfaces in the modes given.
fn config(nets: &[Net], modes: &[(&str, &str)]) -> String {
    let mode = |name: &str| modes.iter().find(|m| m.0 == name).map_or("native", |m| m.1);
    let mut text = format!(
        "[appliance]\nname = \"tenant\"\nrole = \"tenant\"\nbpf_object = \"/appliance.bpf.o\"\n\
         [uplink]\ninterface = \"wan\"\nxdp = \"{}\"\n[nat]\nconnections = 1024\n",
        mode("wan")
    );
    let mut nics: Vec<&str> = nets.iter().map(|n| n.nic).collect();
    nics.dedup();
    for nic in nics {
        text += &format!("[[interface]]\nname = \"{nic}\"\nxdp = \"{}\"\n", mode(nic));
    }
    text += "[[tenant]]\nname = \"acme\"\n[[peer]]\nname = \"provider\"\nkind = \"vxlan\"\n";
    text += &format!("address = \"{}\"\n", PEER.address);
    for net in nets {
        text += &net.text();
    }
    text
}

/// Starts the appliance.
fn start(vm: &mut Vm, nets: &[Net], modes: &[(&str, &str)]) {
    vm.ok("mkdir -p /run/causeway /var/lib/causeway");
    vm.ok("ip link set wan mtu 1600 && ip addr add 198.51.100.2/24 dev wan");
    vm.write("/etc/appliance.toml", &config(nets, modes));
    let begun = Instant::now();
    vm.ok("causeway-appliance run --config /etc/appliance.toml >/run/log 2>&1 &");
    while vm.run("causeway-appliance status >/dev/null").0 != 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{}",
            vm.run("cat /run/log").1
        );
        thread::sleep(Duration::from_millis(100));
    }
    println!(
        "the daemon runs after {:.1} s",
        begun.elapsed().as_secs_f64()
    );
}

/// Fails the machines of all networks over.
fn fail_over(vm: &mut Vm, nets: &[Net]) {
    vm.ok("causeway-appliance mode partial");
    for net in nets {
        vm.ok(&format!(
            "causeway-appliance endpoint add --network net{} {} {}",
            net.number,
            net.moved(),
            net.moved_v6()
        ));
    }
}

fn reload(vm: &mut Vm, nets: &[Net], modes: &[(&str, &str)]) {
    vm.write("/etc/appliance.toml", &config(nets, modes));
    vm.ok("causeway-appliance reload");
}

/// The status, once what is true of it.
fn status(
    vm: &mut Vm,
    what: &str,
    holds: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let text = vm.ok("causeway-appliance status --json");
        let status = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        if holds(&status) {
            return status;
        }
        assert!(
            Instant::now() < until,
            "{what}: {status:#}\n{}",
            vm.run("tail -n 40 /run/log").1
        );
        thread::sleep(Duration::from_millis(200));
    }
}

/// The reasons why it is not ready, joined.
fn reasons(status: &serde_json::Value) -> String {
    status["not_ready"].to_string()
}

fn interface<'a>(status: &'a serde_json::Value, nic: &str) -> &'a serde_json::Value {
    let interfaces = status["interfaces"].as_array().expect("interfaces");
    let interface = interfaces.iter().find(|i| i["name"] == nic);
    interface.unwrap_or_else(|| panic!("{nic}: {status}"))
}

fn mode_of<'a>(status: &'a serde_json::Value, nic: &str) -> &'a serde_json::Value {
    &interface(status, nic)["xdp"]
}

/// The duties of the appliance on a network that it does not fulfil.
fn failures(vm: &Vm, net: &Net) -> Vec<String> {
    let (lan, up) = (vm.wire(net.nic), vm.wire("wan"));
    let (host, tags) = (net.host(), net.tags());
    let (here, there) = (ip(&host.address.to_string()), ip(&net.moved()));
    let mut failures = Vec::new();
    let of_net = |frame: &[u8]| {
        let at = l2(frame)?;
        let vid = if net.tagged { VLAN } else { 0 };
        (at.tags == tags.len() && at.vids[0] == vid).then_some(at)
    };

    // Answered: ARP, and a solicitation to the group of the address.
    let request = arp(1, host.mac, host.address, [0; 6], v4(&net.moved()));
    let asked = lan.ask(
        &eth(BROADCAST, host.mac, &tags, 0x0806, &request),
        lan,
        |frame| {
            let at = of_net(frame).filter(|at| at.ethertype == 0x0806)?;
            let reply = be16(frame, at.l3 + 6)? == 2 && mac_at(frame, 0) == host.mac;
            reply.then(|| mac_at(frame, 6))
        },
    );
    let Some(mac) = asked else {
        failures.push("ARP is not answered".to_owned());
        return failures;
    };
    let v6 = |text: &str| match ip(text) {
        std::net::IpAddr::V6(address) => address,
        std::net::IpAddr::V4(_) => unreachable!("an IPv6 address"),
    };
    let target = v6(&net.moved_v6());
    let group = solicited_node(target);
    let source = v6(&format!("2001:db8:{}::11", net.number));
    let solicitation = ns(source, group, target, Some(host.mac));
    let solicitation = frame(multicast_mac(group), host.mac, &tags, &solicitation);
    let advertised = lan.ask(&solicitation, lan, |frame| {
        let at = of_net(frame).filter(|at| at.ethertype == 0x86dd)?;
        (frame.get(at.l3 + 40) == Some(&136) && mac_at(frame, 0) == host.mac).then_some(())
    });
    if advertised.is_none() {
        failures.push("a neighbour solicitation is not answered".to_owned());
    }

    // Carried, small and of full size: into the tunnel and out of it.
    for size in [100, 1500] {
        let packet = udp(here, there, 4000, 5000, &vec![7; size - 28]);
        let sent = frame(mac, host.mac, &tags, &packet);
        let tunnelled = lan.ask(&sent, up, |frame| {
            let at = l2(frame).filter(|at| at.ethertype == 0x0800)?;
            let inner = frame.get(at.l3 + 20 + 8 + 8 + 14..)?;
            (inner == packet).then_some(())
        });
        if tunnelled.is_none() {
            failures.push(format!("a packet of {size} bytes is not encapsulated"));
        }
        let back = udp(there, here, 5000, 4000, &vec![8; size - 28]);
        let inner = frame([2; 6], [2; 6], &[], &back);
        let datagram = vxlan(8, net.vni(), &inner);
        let outer = udp_no_checksum(
            PEER.address.into(),
            ip("198.51.100.2"),
            50_000,
            4789,
            &datagram,
        );
        // The uplink's address is the first NIC's.
        let outer = frame([0x52, 0x54, 0, 0, 0, 1], PEER.mac, &[], &outer);
        let delivered = up.ask(&outer, lan, |frame| {
            let at = of_net(frame)?;
            (frame.get(at.l3..)? == back && mac_at(frame, 0) == host.mac).then_some(())
        });
        if delivered.is_none() {
            failures.push(format!("a packet of {size} bytes is not delivered"));
        }
    }
    failures
}

/// Asserts that every network does all that it should.
fn all_work(vm: &mut Vm, what: &str, nets: &[Net]) {
    let begun = Instant::now();
    let mut lines = Vec::new();
    for net in nets {
        let tagged = if net.tagged { "tagged" } else { "untagged" };
        for failure in failures(vm, net) {
            lines.push(format!("{}, {tagged}: {failure}", net.nic));
        }
    }
    println!("{what}: checked in {:.1} s", begun.elapsed().as_secs_f64());
    if !lines.is_empty() {
        let status = vm
            .run("causeway-appliance status; causeway-appliance counters")
            .1;
        panic!("{what}: {lines:#?}\n{status}\n{}", vm.run("cat /run/log").1);
    }
}

/// vmxnet3 and virtio-net, as in an appliance's image.
#[test]
fn vmxnet3_and_virtio_carry_tagged_and_untagged_networks() {
    let nets = [both("vmx", 10), both("vio", 20)].concat();
    let fixed = both("fixed", 30);
    let nics = vec![
        Nic {
            name: "wan",
            device: "virtio-net-pci",
            hosts: Some(vec![PEER]),
        },
        Nic {
            name: "vmx",
            device: "vmxnet3",
            hosts: hosts(&nets, "vmx"),
        },
        Nic {
            name: "vio",
            device: "virtio-net-pci",
            hosts: hosts(&nets, "vio"),
        },
        // Receive offloads that the guest cannot switch off, as on clouds.
        Nic {
            name: "fixed",
            device: "virtio-net-pci,ctrl_guest_offloads=off",
            hosts: None,
        },
    ];
    let Some(mut vm) = Vm::boot("cloud", nics) else {
        return;
    };
    start(&mut vm, &nets, &[]);
    let ready = status(&mut vm, "ready", |status| status["ready"] == true);
    for nic in ["wan", "vmx", "vio"] {
        assert_eq!(*mode_of(&ready, nic), "native", "{nic}: {ready}");
    }
    fail_over(&mut vm, &nets);
    all_work(&mut vm, "native", &nets);

    // A driver that cannot run XDP natively is refused by name; the others go on.
    let with_fixed = [&nets[..], &fixed].concat();
    reload(&mut vm, &with_fixed, &[]);
    let refused = status(&mut vm, "refused", |s| reasons(s).contains("fixed"));
    assert!(mode_of(&refused, "fixed").is_null(), "{refused}");
    println!("fixed, native: {}", reasons(&refused));
    all_work(&mut vm, "native beside a refused NIC", &nets);
    // So is generic mode, where its offloads join packets before XDP.
    let generic = [
        ("wan", "generic"),
        ("vmx", "generic"),
        ("vio", "generic"),
        ("fixed", "generic"),
    ];
    reload(&mut vm, &with_fixed, &generic);
    let refused = status(&mut vm, "GRO in hardware", |s| {
        reasons(s).contains("ethtool -K fixed rx-gro-hw off")
    });
    println!("fixed, generic: {}", reasons(&refused));

    reload(&mut vm, &nets, &generic);
    let ready = status(&mut vm, "ready in generic mode", |s| s["ready"] == true);
    for nic in ["wan", "vmx", "vio"] {
        assert_eq!(*mode_of(&ready, nic), "generic", "{nic}: {ready}");
        let features = vm.ok(&format!("ethtool -k {nic}"));
        assert!(features.contains("generic-receive-offload: off"), "{nic}");
    }
    all_work(&mut vm, "generic", &nets);
    assert_eq!(vm.run("grep -c ERROR /run/log").1.trim(), "0");

    // A bond is refused by name.
    // The module comes with a bond.
    vm.ok("ip link set vio down && ip link set vio master bond0");
    let bonded = status(&mut vm, "a member of a bond", |s| {
        reasons(s).contains("vio: is a member of the bond bond0")
    });
    println!("vio: {}", reasons(&bonded));
}

/// e1000e has no native XDP, and its driver accepts no redirects.
#[test]
fn e1000e_is_refused_natively_and_works_in_generic_mode() {
    let nets = both("e1000", 10);
    let nics = vec![
        Nic {
            name: "wan",
            device: "virtio-net-pci",
            hosts: Some(vec![PEER]),
        },
        Nic {
            name: "e1000",
            device: "e1000e",
            hosts: hosts(&nets, "e1000"),
        },
    ];
    let Some(mut vm) = Vm::boot("amd64", nics) else {
        return;
    };
    start(&mut vm, &nets, &[]);
    let refused = status(&mut vm, "refused", |s| {
        reasons(s).contains("attach XDP to e1000 in native mode")
    });
    println!("native: {}", reasons(&refused));

    // `auto` makes it generic, and packets out of a native uplink would be lost.
    reload(&mut vm, &nets, &[("e1000", "auto")]);
    let lost = status(&mut vm, "redirects", |s| {
        reasons(s).contains("e1000: driver e1000e accepts no frames")
    });
    assert_eq!(*mode_of(&lost, "e1000"), "generic", "{lost}");
    println!("auto: {}", reasons(&lost));

    reload(&mut vm, &nets, &[("wan", "generic"), ("e1000", "generic")]);
    // The refused attachment has reset the NIC: its link takes seconds to come up.
    let ready = status(&mut vm, "ready in generic mode, its link up", |s| {
        s["ready"] == true && interface(s, "e1000")["up"] == true
    });
    assert!(!ready.to_string().contains("are not counted"), "{ready:#}");
    fail_over(&mut vm, &nets);
    all_work(&mut vm, "generic", &nets);
    assert_eq!(vm.run("grep -c ERROR /run/log").1.trim(), "0");
}
