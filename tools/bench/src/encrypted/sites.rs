//! Two hosts and a pair of machines between them, in network namespaces.
//!
//! Everything stays in the four namespaces: none has a link or a route out of them.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::rig::{
    command::{exec, sh},
    netns::Namespaces,
    offloads::Offloads,
};

/// The layer that a contender carries between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Frames: the hosts are in one network.
    Two,
    /// IP packets of hosts in one network: each machine answers ARP for the other side's hosts.
    Proxy,
    /// IP packets of hosts in two networks: each machine is its host's gateway.
    Three,
}

/// Namespace of the sending host.
pub const LEFT: &str = "cwe-left";
/// Namespace of the receiving host.
pub const RIGHT: &str = "cwe-right";
const NAMESPACES: [&str; 4] = [LEFT, "cwe-west", "cwe-east", RIGHT];

/// The hosts' MTU, bytes.
const MTU: u32 = 1500;
/// MTU between the machines, bytes: enough for any contender's headers, so that none fragments.
const WAN_MTU: u32 = 1600;

/// One of the two machines between the hosts, with its links [`LAN`] and [`WAN`].
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Its namespace, and its name in contenders' configurations.
    pub namespace: &'static str,
    /// Name of its tunnel link. It differs from the other machine's, because some contenders name
    /// sockets by it.
    pub tunnel: &'static str,
    /// Its address on [`WAN`].
    pub address: &'static str,
    /// Its host's network, where it is the gateway.
    pub network: &'static str,
    /// Its own address in that network.
    pub gateway: &'static str,
}

/// A machine's link to its host.
pub const LAN: &str = "lan0";
/// A machine's link to the other machine.
pub const WAN: &str = "wan0";

/// The machine at [`LEFT`].
pub const WEST: Machine = Machine {
    namespace: "cwe-west",
    tunnel: "cwe-t-west",
    address: "192.0.2.1",
    network: "10.60.1.0/24",
    gateway: "10.60.1.1",
};
/// The machine at [`RIGHT`].
pub const EAST: Machine = Machine {
    namespace: "cwe-east",
    tunnel: "cwe-t-east",
    address: "192.0.2.2",
    network: "10.60.2.0/24",
    gateway: "10.60.2.1",
};
/// Each machine with its opposite.
pub const PAIR: [(Machine, Machine); 2] = [(WEST, EAST), (EAST, WEST)];

/// The sites: two hosts and two machines. Removed when dropped, and before they are made.
///
/// ```text
///   cwe-left         cwe-west              cwe-east         cwe-right
///   ┌──────┐       ┌───────────┐         ┌───────────┐       ┌──────┐
///   │   h0 ├───────┤lan0   wan0├─────────┤wan0   lan0├───────┤h0    │
///   └──────┘       └───────────┘         └───────────┘       └──────┘
///   layer 2: 10.60.0.10    192.0.2.1     192.0.2.2    10.60.0.20
///   layer 3: 10.60.1.10  10.60.1.1           10.60.2.1  10.60.2.20
/// ```
pub struct Sites {
    _namespaces: Namespaces,
    layer: Layer,
    offloads: Offloads,
}

impl Sites {
    /// Makes the sites. With `fill_checksums` the hosts never leave a checksum to the device.
    pub fn raise(layer: Layer, offloads: Offloads, fill_checksums: bool) -> anyhow::Result<Self> {
        let this = Self {
            _namespaces: Namespaces::make(&NAMESPACES)?,
            layer,
            offloads,
        };
        for name in NAMESPACES {
            exec(
                name,
                "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
            )?;
        }
        for (machine, host) in [(WEST, LEFT), (EAST, RIGHT)] {
            let ns = machine.namespace;
            let last = machine.last();
            sh(&format!(
                "ip -n {ns} link add {LAN} address 02:00:00:00:60:a{last} mtu {MTU} type veth \
                 peer name h0 address 02:00:00:00:60:0{last} mtu {MTU} netns {host}"
            ))?;
        }
        sh(&format!(
            "ip -n {} link add {WAN} address 02:00:00:00:60:b1 mtu {WAN_MTU} type veth \
             peer name {WAN} address 02:00:00:00:60:b2 mtu {WAN_MTU} netns {}",
            WEST.namespace, EAST.namespace
        ))?;
        for (machine, host, address) in [(WEST, LEFT, this.left()), (EAST, RIGHT, this.right())] {
            let ns = machine.namespace;
            for (ns, link) in [(ns, LAN), (ns, WAN), (host, "h0")] {
                sh(&format!("ip -n {ns} link set {link} up"))?;
            }
            sh(&format!(
                "ip -n {ns} address add {}/24 dev {WAN}",
                machine.address
            ))?;
            sh(&format!("ip -n {host} address add {address}/24 dev h0"))?;
            if layer == Layer::Three {
                sh(&format!(
                    "ip -n {ns} address add {}/24 dev {LAN}",
                    machine.gateway
                ))?;
                sh(&format!(
                    "ip -n {host} route add default via {}",
                    machine.gateway
                ))?;
                exec(ns, "sysctl -qw net.ipv4.ip_forward=1")?;
            }
            if offloads == Offloads::Off || fill_checksums {
                exec(host, "ethtool -K h0 tx off")?;
            }
            if offloads == Offloads::Off {
                exec(host, "ethtool -K h0 tso off gso off gro off")?;
                exec(ns, &format!("ethtool -K {WAN} tso off gso off gro off"))?;
            }
        }
        Ok(this)
    }

    /// Offloads of the hosts' NICs.
    pub const fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// The sending host's address.
    pub const fn left(&self) -> &'static str {
        match self.layer {
            Layer::Two | Layer::Proxy => "10.60.0.10",
            Layer::Three => "10.60.1.10",
        }
    }

    /// The receiving host's address.
    pub const fn right(&self) -> &'static str {
        match self.layer {
            Layer::Two | Layer::Proxy => "10.60.0.20",
            Layer::Three => "10.60.2.20",
        }
    }

    /// Source and destination MAC of the left host's frames for the right one.
    pub const fn macs(&self) -> ([u8; 6], [u8; 6]) {
        let to = match self.layer {
            Layer::Two => [2, 0, 0, 0, 0x60, 0x02],
            Layer::Proxy | Layer::Three => [2, 0, 0, 0, 0x60, 0xa1],
        };
        ([2, 0, 0, 0, 0x60, 0x01], to)
    }

    /// Bridges a machine's [`LAN`] and another of its links, and sets the link up.
    pub fn bridge(&self, machine: Machine, link: &str) -> anyhow::Result<()> {
        let ns = machine.namespace;
        sh(&format!("ip -n {ns} link add br0 type bridge stp_state 0"))?;
        for port in [LAN, link] {
            sh(&format!("ip -n {ns} link set {port} master br0 up"))?;
        }
        sh(&format!("ip -n {ns} link set br0 up"))
    }

    /// Routes the other site's network into a machine's tunnel link, and sets the link up.
    pub fn route(&self, machine: Machine, other: Machine) -> anyhow::Result<()> {
        let (ns, link) = (machine.namespace, machine.tunnel);
        sh(&format!("ip -n {ns} link set {link} mtu {MTU} up"))?;
        sh(&format!(
            "ip -n {ns} route add {} dev {link}",
            other.network
        ))
    }

    /// Waits until a link exists.
    pub fn await_link(&self, machine: Machine, link: &str) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        while sh(&format!("ip -n {} link show {link}", machine.namespace)).is_err() {
            lab::interrupt::check()?;
            if Instant::now() > until {
                bail!("{link} did not appear in {} within 10 s", machine.namespace);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until the hosts reach each other.
    pub fn await_path(&self) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(20);
        let ping = format!("ping -q -c 2 -i 0.05 -W 1 {}", self.right());
        while let Err(error) = exec(LEFT, &ping) {
            lab::interrupt::check()?;
            if Instant::now() > until {
                return Err(error.context("the hosts do not reach each other within 20 s"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Machine {
    /// The last number of its address: 1 or 2.
    pub fn last(&self) -> u8 {
        if self.namespace == WEST.namespace {
            1
        } else {
            2
        }
    }
}
