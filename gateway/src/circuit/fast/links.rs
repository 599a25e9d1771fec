//! Attaches the program to interfaces, and writes the map of ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    time::Duration,
};

use aya::programs::{ProgramError, XdpMode, xdp::XdpLink};
use gateway_common::maps::Port;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use service::{
    forwarding,
    xdp::{self, AttachMode, Setting},
};

use super::{Error, Fast, lock};

/// Time that the kernel needs to detach the program of a killed process.
const DETACH_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

const fn flag(mode: AttachMode) -> XdpMode {
    match mode {
        AttachMode::Native => XdpMode::Driver,
        AttachMode::Generic => XdpMode::Skb,
    }
}

/// The program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// The mode, or why the program is not attached.
    pub mode: Result<AttachMode, String>,
    /// Whether frames of other interfaces can be redirected to this one.
    pub target: bool,
}

/// The attachment of the program to an interface.
#[derive(Debug)]
pub(super) struct Attached {
    name: String,
    ifindex: u32,
    mode: Result<AttachMode, String>,
    /// Whether the driver accepts XDP redirects.
    target: bool,
    /// Its drop detaches the program.
    link: Option<XdpLink>,
}

/// The interfaces as they were when the program was attached the last time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LinkSnapshot {
    wanted: Vec<String>,
    devices: BTreeMap<String, Device>,
    vlans: BTreeMap<String, (String, u16)>,
}

impl LinkSnapshot {
    /// The wanted interfaces and their VLANs, without addresses.
    fn now(wanted: &[String]) -> Result<Self, Error> {
        let mut vlans = vlans();
        vlans.retain(|_, (below, _)| wanted.contains(below));
        let mut devices = devices()?;
        devices.retain(|name, _| wanted.contains(name) || vlans.contains_key(name));
        for device in devices.values_mut() {
            device.addresses.clear();
        }
        Ok(Self {
            wanted: wanted.to_vec(),
            devices,
            vlans,
        })
    }
}

/// An interface of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Device {
    ifindex: u32,
    mac: Option<[u8; 6]>,
    addresses: Vec<IpAddr>,
    is_loopback: bool,
}

fn devices() -> Result<BTreeMap<String, Device>, Error> {
    let list = getifaddrs().map_err(|errno| Error::System {
        operation: "list the interfaces",
        source: errno.into(),
    })?;
    let mut devices: BTreeMap<String, Device> = BTreeMap::new();
    for entry in list {
        let device = devices.entry(entry.interface_name).or_default();
        device.is_loopback |= entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let Some(address) = entry.address else {
            continue;
        };
        if let Some(link) = address.as_link_addr() {
            device.ifindex = u32::try_from(link.ifindex()).unwrap_or(0);
            device.mac = link.addr();
        } else if let Some(v4) = address.as_sockaddr_in() {
            device.addresses.push(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            device.addresses.push(v6.ip().into());
        }
    }
    Ok(devices)
}

/// VLANs by name: parent interface and identifier, 802.1Q and 802.1ad.
fn vlans() -> BTreeMap<String, (String, u16)> {
    // The file is missing where no VLAN was ever created.
    let text = fs::read_to_string("/proc/net/vlan/config").unwrap_or_default();
    parse_vlans(&text)
}

fn parse_vlans(text: &str) -> BTreeMap<String, (String, u16)> {
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.split('|').map(str::trim);
        let (name, vlan, device) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name.to_owned(), (device.to_owned(), vlan.parse().ok()?)))
    });
    lines.collect()
}

/// The interfaces of the default routes.
fn default_routes() -> BTreeSet<String> {
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    parse_routes(&v4, &v6)
}

fn parse_routes(v4: &str, v6: &str) -> BTreeSet<String> {
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Interface, destination, gateway, flags, ..., mask.
        let is_default = fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000");
        is_default.then(|| fields[0].to_owned())
    });
    let v6 = v6.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Destination, its length, ..., the interface last.
        let is_default = fields.first()?.bytes().all(|b| b == b'0') && fields.get(1) == Some(&"00");
        is_default.then(|| fields.last().copied().unwrap_or_default().to_owned())
    });
    v4.chain(v6).collect()
}

/// The interfaces that need the program: the configured ones; or else those with a listen address
/// and, for a wildcard address, those of the default routes. The parent in place of a VLAN. The
/// loopback only if it is configured.
///
/// # Errors
/// When a configured interface does not exist, or the interfaces cannot be listed.
pub fn wanted(named: Option<&[String]>, listen: &[SocketAddr]) -> Result<Vec<String>, Error> {
    let devices = devices()?;
    let mut names: BTreeSet<String> = BTreeSet::new();
    if let Some(named) = named {
        for name in named {
            if !devices.contains_key(name) {
                return Err(Error::NotThere {
                    interface: name.clone(),
                });
            }
            names.insert(name.clone());
        }
    } else {
        if listen.iter().any(|at| at.ip().is_unspecified()) {
            names.extend(default_routes());
        }
        for (name, device) in &devices {
            if listen.iter().any(|at| device.addresses.contains(&at.ip())) {
                names.insert(name.clone());
            }
        }
        names.retain(|name| devices.get(name).is_some_and(|device| !device.is_loopback));
    }
    let vlans = vlans();
    let below = names.into_iter().map(|name| match vlans.get(&name) {
        Some((device, _)) => device.clone(),
        None => name,
    });
    let below: BTreeSet<String> = below.collect();
    Ok(below.into_iter().collect())
}

impl Fast {
    /// Attaches the program to exactly these interfaces; existing attachments stay. With
    /// [`Setting::Auto`] an interface whose driver refuses is left to user space, with a warning.
    ///
    /// # Errors
    /// When an interface refuses the configured mode.
    pub fn attach(&self, interfaces: &[String], asked: Setting) -> Result<(), Error> {
        // `auto` falls back to user space, not to generic XDP.
        let mode = match asked {
            Setting::Auto => AttachMode::Native,
            Setting::Only(mode) => mode,
        };
        let seen = LinkSnapshot::now(interfaces)?;
        let (devices, vlans) = (seen.devices.clone(), seen.vlans.clone());
        *lock(&self.seen) = seen;
        let mut links = lock(&self.links);
        let mut new = Vec::new();
        for name in interfaces {
            let Some(device) = devices.get(name) else {
                return Err(Error::NotThere {
                    interface: name.clone(),
                });
            };
            let is_there = |link: &Attached| {
                link.name == *name && link.ifindex == device.ifindex && link.mode.is_ok()
            };
            if links.iter().any(is_there) {
                continue;
            }
            let link = match self.attach_one(name, device.ifindex, mode) {
                Ok(link) => {
                    tracing::info!(
                        interface = name,
                        mode = mode.name(),
                        "XDP attached; circuits use it"
                    );
                    Attached {
                        name: name.clone(),
                        ifindex: device.ifindex,
                        mode: Ok(mode),
                        target: false,
                        link: Some(link),
                    }
                }
                Err(error) if asked == Setting::Auto => {
                    tracing::warn!(interface = name, %error, "XDP refused; circuits use user space \
                        on this interface, as circuits.xdp = \"auto\" allows");
                    Attached {
                        name: name.clone(),
                        ifindex: device.ifindex,
                        mode: Err(error.to_string()),
                        target: false,
                        link: None,
                    }
                }
                Err(error) => return Err(error),
            };
            new.push(link);
        }
        // Up to here attachments were only added.
        links.retain(|link| {
            interfaces.contains(&link.name) && new.iter().all(|new| new.name != link.name)
        });
        links.append(&mut new);
        links.sort_by(|a, b| a.name.cmp(&b.name));
        for link in links.iter_mut().filter(|link| link.link.is_some()) {
            // The generic hook can send on every driver. Before Linux 6.3 the kernel reports no
            // features; most drivers accept redirects.
            link.target = link.mode == Ok(AttachMode::Generic)
                || xdp::accepts_redirects(link.ifindex).unwrap_or(true);
            if !link.target && interfaces.len() > 1 {
                tracing::warn!(
                    interface = link.name,
                    "driver cannot accept XDP redirects; only same-interface circuits use the fast \
                     path"
                );
            }
        }
        self.write_ports(&links, &devices, &vlans)
    }

    /// Whether the interfaces of this machine differ from those at the last [`Fast::attach`], or
    /// others are wanted now.
    ///
    /// # Errors
    /// When the interfaces cannot be listed.
    pub fn differs(&self, interfaces: &[String]) -> Result<bool, Error> {
        Ok(LinkSnapshot::now(interfaces)? != *lock(&self.seen))
    }

    /// Whether the program is attached to all of these interfaces.
    #[must_use]
    pub fn is_attached(&self, interfaces: &[String]) -> bool {
        let links = lock(&self.links);
        let is_attached = |name: &String| {
            let mut links = links.iter();
            links.any(|link| link.name == *name && link.link.is_some())
        };
        interfaces.iter().all(is_attached)
    }

    /// Detaches the program from all interfaces.
    pub fn detach(&self) {
        lock(&self.links).clear();
    }

    /// The state of all interfaces.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Interface> {
        let links = lock(&self.links);
        let interfaces = links.iter().map(|link| Interface {
            name: link.name.clone(),
            mode: link.mode.clone(),
            target: link.target,
        });
        interfaces.collect()
    }

    /// Writes the interfaces with the program, and their VLANs, to the map of ports.
    fn write_ports(
        &self,
        links: &[Attached],
        devices: &BTreeMap<String, Device>,
        vlans: &BTreeMap<String, (String, u16)>,
    ) -> Result<(), Error> {
        let mut ports = BTreeMap::new();
        for (name, device) in devices {
            let (below, vlan) = match vlans.get(name) {
                Some((below, vlan)) => (below, *vlan),
                None => (name, 0),
            };
            let link = links.iter().find(|l| l.name == *below && l.link.is_some());
            if let (Some(link), Some(mac)) = (link, device.mac) {
                let port = Port {
                    device: link.ifindex,
                    vlan,
                    mac,
                    target: link.target.into(),
                };
                ports.insert(device.ifindex, port);
            }
        }
        self.set_ports(&ports)
    }

    fn attach_one(&self, name: &str, ifindex: u32, mode: AttachMode) -> Result<XdpLink, Error> {
        forwarding::allow(std::path::Path::new(forwarding::ROOT), "gateway")?;
        if mode == AttachMode::Generic && joins(name)? {
            return Err(Error::Joins {
                interface: name.to_owned(),
            });
        }
        let mut tries = DETACH_TIMEOUT.as_millis() / RETRY_PAUSE.as_millis();
        loop {
            let attached = self.with_program(|program| {
                let id = program.attach_to_if_index(ifindex, flag(mode))?;
                program.take_link(id)
            })?;
            match attached {
                Ok(link) => return Ok(link),
                // The kernel detaches the program of a killed process with a delay.
                Err(error) if tries > 0 && xdp::os_code(&error) == Some(libc::EBUSY) => {
                    tries -= 1;
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(error) => return Err(refused(name, mode, error)),
            }
        }
    }
}

fn refused(interface: &str, mode: AttachMode, source: ProgramError) -> Error {
    let remedy = xdp::remedy(
        &source,
        "The driver has no native XDP (on Hyper-V: `ethtool -K IFACE lro off`); use another type \
         of NIC, or set circuits.xdp = \"generic\" or \"off\".",
    );
    Error::Attach {
        interface: interface.to_owned(),
        mode: mode.name(),
        source: Box::new(source),
        remedy,
    }
}

/// Whether GRO is on: generic XDP runs after GRO and would take several datagrams for one.
fn joins(interface: &str) -> Result<bool, Error> {
    /// `ETHTOOL_GGRO` of include/uapi/linux/ethtool.h.
    const ETHTOOL_GGRO: u32 = 0x2b;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let failed = |source| Error::System {
        operation: "read the GRO setting of the interface",
        source,
    };
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).map_err(failed)?;
    let mut value = Value {
        command: ETHTOOL_GGRO,
        data: 0,
    };
    // SAFETY: zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and the value it points to live through the call and have the layout of
    // the kernel.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    Ok(value.data != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_are_read_as_the_kernel_writes_them() {
        let text = "VLAN Dev name\t | VLAN ID\nName-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD\n\
                    eth0.5         | 5  | eth0\nlan            | 101  | eth1\n";
        let vlans = parse_vlans(text);
        assert_eq!(vlans.len(), 2);
        assert_eq!(vlans["lan"], ("eth1".to_owned(), 101));
    }

    #[test]
    fn default_routes_are_found_in_both_families() {
        let v4 = "Iface\tDestination\tGateway \
                  \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth1\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 20010db8000f00000000000000000001 00000400 00000001 00000000 \
             00000003     wan\n\
             fe80{} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001    eth1\n",
            "0".repeat(28)
        );
        let routes = parse_routes(v4, &v6);
        assert_eq!(routes, ["eth0", "wan"].map(str::to_owned).into());
        assert_eq!(parse_routes("", ""), BTreeSet::new());
    }
}
