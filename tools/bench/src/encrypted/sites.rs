//! Two hosts and a pair of machines between them, in network namespaces.
//!
//! Everything stays in the four namespaces: none has a link or a route out of them.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// What a contender carries between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Frames: the hosts are in one network.
    Two,
    /// IP packets of hosts in one network: each machine answers for what is at the other's side.
    Proxy,
    /// IP packets: the hosts are in two networks, and each machine is its host's gateway.
    Three,
}

/// What crosses the links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Packets as a wire carries them: TSO, GSO and GRO are off at the hosts and between the machines,
    /// checksum offload at the hosts. The main figure.
    WireLike,
    /// What Linux sends by itself: super-frames of up to 64 KB cross the veths.
    Offloads,
}

impl Sending {
    /// Both, the main one first.
    pub const ALL: [Self; 2] = [Self::WireLike, Self::Offloads];

    /// For the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WireLike => "wire-like",
            Self::Offloads => "host offloads on",
        }
    }
}

/// The namespace of the host that sends.
pub const LEFT: &str = "cwe-left";
/// The namespace of the host that receives.
pub const RIGHT: &str = "cwe-right";
const NAMESPACES: [&str; 4] = [LEFT, "cwe-west", "cwe-east", RIGHT];

/// The hosts' MTU, bytes.
const MTU: u32 = 1500;
/// The MTU between the machines, bytes: room for any contender's headers, so that none fragments.
const WAN_MTU: u32 = 1600;

/// One of the two machines between the hosts, with its links [`LAN`] and [`WAN`].
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Its namespace; also its name in contenders' configurations.
    pub namespace: &'static str,
    /// A name for a link that is unlike the other machine's: some contenders keep sockets by it.
    pub tunnel: &'static str,
    /// Its address on [`WAN`].
    pub address: &'static str,
    /// What its host's network is, where it is a gateway.
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

/// The raised namespaces; removed when dropped, and before they are raised.
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
    layer: Layer,
    sending: Sending,
}

impl Drop for Sites {
    fn drop(&mut self) {
        remove();
    }
}

fn remove() {
    for name in NAMESPACES {
        // One that is not there is as good as deleted. Not by `lab::run`: ctrl-C must not stop it.
        let _ = Command::new("ip")
            .args(["netns", "del", name])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

impl Sites {
    /// Raises them. With `fill_checksums` the hosts never leave a checksum to the device.
    pub fn raise(layer: Layer, sending: Sending, fill_checksums: bool) -> anyhow::Result<Self> {
        remove();
        let this = Self { layer, sending };
        for name in NAMESPACES {
            sh(&format!("ip netns add {name}"))?;
            sh(&format!("ip -n {name} link set lo up"))?;
            exec(
                name,
                "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
            )?;
        }
        for (machine, host) in [(WEST, LEFT), (EAST, RIGHT)] {
            let ns = machine.namespace;
            let last = machine.last();
            sh(&format!(
                "ip -n {ns} link add {LAN} address 02:00:00:00:60:a{last} mtu {MTU} type veth peer name h0 address 02:00:00:00:60:0{last} mtu {MTU} netns {host}"
            ))?;
        }
        sh(&format!(
            "ip -n {} link add {WAN} address 02:00:00:00:60:b1 mtu {WAN_MTU} type veth peer name {WAN} address 02:00:00:00:60:b2 mtu {WAN_MTU} netns {}",
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
            if sending == Sending::WireLike || fill_checksums {
                exec(host, "ethtool -K h0 tx off")?;
            }
            if sending == Sending::WireLike {
                exec(host, "ethtool -K h0 tso off gso off gro off")?;
                exec(ns, &format!("ethtool -K {WAN} tso off gso off gro off"))?;
            }
        }
        Ok(this)
    }

    /// How the hosts send.
    pub const fn sending(&self) -> Sending {
        self.sending
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

    /// Where the left host's frames for the right one are from and to.
    pub const fn macs(&self) -> ([u8; 6], [u8; 6]) {
        let to = match self.layer {
            Layer::Two => [2, 0, 0, 0, 0x60, 0x02],
            Layer::Proxy | Layer::Three => [2, 0, 0, 0, 0x60, 0xa1],
        };
        ([2, 0, 0, 0, 0x60, 0x01], to)
    }

    /// Joins a machine's [`LAN`] and another of its links in a bridge; the link is set up.
    pub fn bridge(&self, machine: Machine, link: &str) -> anyhow::Result<()> {
        let ns = machine.namespace;
        sh(&format!("ip -n {ns} link add br0 type bridge stp_state 0"))?;
        for port in [LAN, link] {
            sh(&format!("ip -n {ns} link set {port} master br0 up"))?;
        }
        sh(&format!("ip -n {ns} link set br0 up"))
    }

    /// Sends what is for the other site's network into a machine's tunnel link, which is set up.
    pub fn route(&self, machine: Machine, other: Machine) -> anyhow::Result<()> {
        let (ns, link) = (machine.namespace, machine.tunnel);
        sh(&format!("ip -n {ns} link set {link} mtu {MTU} up"))?;
        sh(&format!(
            "ip -n {ns} route add {} dev {link}",
            other.network
        ))
    }

    /// Waits until a namespace has a link.
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
    /// 1 or 2: the last number of its address.
    pub fn last(&self) -> u8 {
        if self.namespace == WEST.namespace {
            1
        } else {
            2
        }
    }
}

/// A command inside a namespace, to be started.
pub fn command(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// Runs `words` inside a namespace to the end, and gives what it wrote.
pub fn exec(namespace: &str, words: &str) -> anyhow::Result<String> {
    output(
        Command::new("ip")
            .args(["netns", "exec", namespace])
            .args(words.split_whitespace()),
    )
}

/// Runs `words` to the end.
pub fn sh(words: &str) -> anyhow::Result<()> {
    let mut parts = words.split_whitespace();
    let program = parts.next().context("a command")?;
    output(Command::new(program).args(parts)).map(drop)
}

/// Runs a command to the end, at most 60 s, and gives what it wrote; a status other than 0 is an error.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = lab::run(command, Duration::from_secs(60))?;
    if output.ok() {
        return Ok(output.stdout);
    }
    let said = format!("{}\n{}", output.stdout.trim(), output.stderr.trim());
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|w| w.to_string_lossy())
        .collect();
    bail!(
        "`{}` ended with {}: {}",
        words.join(" "),
        output.status,
        said.trim()
    )
}
