//! NIC settings that XDP needs: sets them, reads them back, and reports what the driver did not
//! change.
//!
//! By the ioctl of ethtool(8) (`SIOCETHTOOL`, `<linux/ethtool.h>`).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// A NIC's driver, and the settings that prevent forwarding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// Name of the driver, such as `veth` or `vmxnet3`; empty if unknown.
    pub driver: String,
    /// Settings that prevent forwarding, each with its remedy; empty if the NIC is ready.
    pub problems: Vec<String>,
}

/// The requirements of a port on its NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirements {
    /// Frames have VLAN tags, which XDP must see in the packet.
    pub tags: bool,
    /// The NIC's MTU, bytes.
    pub mtu: u32,
}

/// Largest MTU in bytes at which native XDP attaches, by driver: a page without headroom and tail,
/// unless the driver has its own limit (vmxnet3_xdp.c, netvsc_bpf.c, veth.c).
#[must_use]
pub fn max_mtu(driver: &str) -> u32 {
    match driver {
        "veth" => 3520,
        "hv_netvsc" => 3506,
        "vmxnet3" => 3490,
        _ => 3498,
    }
}

const GDRVINFO: u32 = 0x3;
const GCHANNELS: u32 = 0x3c;
const GFLAGS: u32 = 0x25;
const SFLAGS: u32 = 0x26;
const FLAG_TXVLAN: u32 = 1 << 7;
const FLAG_RXVLAN: u32 = 1 << 8;
const FLAG_LRO: u32 = 1 << 15;

/// Switches off the offloads that XDP cannot work with, and reports those that stay on.
///
/// # Errors
/// When the ioctl socket cannot be opened or the features cannot be read.
pub fn prepare(interface: &str, required: Requirements) -> io::Result<Nic> {
    let socket = Ethtool::open(interface)?;
    let mut nic = Nic {
        driver: socket.driver().unwrap_or_default(),
        problems: Vec::new(),
    };
    let mut off = FLAG_LRO;
    if required.tags {
        off |= FLAG_RXVLAN | FLAG_TXVLAN;
        if nic.driver == "hv_netvsc" {
            nic.problems.push(
                "Hyper-V passes VLAN tags outside the packet, so XDP cannot distinguish the \
                 networks of a trunk: give each VLAN its own vNIC and leave out vlan"
                    .to_owned(),
            );
        }
    }
    let before = socket.flags()?;
    if before & off != 0 {
        // Setting a fixed feature may fail; the flags that are read back decide.
        if let Err(error) = socket.set_flags(before & !off) {
            tracing::debug!(interface, %error, "ethtool could not change all features");
        }
    }
    let after = socket.flags()?;
    for (flag, name, command) in [
        (FLAG_LRO, "large receive offload", "lro"),
        (FLAG_RXVLAN, "VLAN stripping on receive", "rxvlan"),
        (FLAG_TXVLAN, "VLAN insertion on transmit", "txvlan"),
    ] {
        if after & off & flag != 0 {
            nic.problems.push(format!(
                "{name} cannot be switched off (`ethtool -K {interface} {command} off`): the \
                 driver {} does not allow it",
                nic.driver
            ));
        }
    }
    let max = max_mtu(&nic.driver);
    if required.mtu > max {
        nic.problems.push(format!(
            "MTU {} exceeds the maximum of {max} for native XDP on {}: \
             `ip link set {interface} mtu {max}`",
            required.mtu, nic.driver
        ));
    }
    Ok(nic)
}

/// Number of receive and transmit queues of an interface; 1 and 1 if the driver does not report
/// them.
#[must_use]
pub fn queues(interface: &str) -> (u32, u32) {
    let channels = Ethtool::open(interface).and_then(|socket| socket.channels());
    channels.map_or((1, 1), |c| {
        ((c.rx + c.combined).max(1), (c.tx + c.combined).max(1))
    })
}

/// Makes an interface accept frames to an Ethernet group address, or stop accepting them. The
/// setting outlives this process.
///
/// # Errors
/// When the kernel refuses, for example because the interface is gone. No error if the setting is
/// already as requested.
pub fn set_multicast_group(interface: &str, group: [u8; 6], join: bool) -> io::Result<()> {
    let socket = Ethtool::open(interface)?;
    // SAFETY: all-zero is a valid ifreq: integers, arrays and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = socket.name;
    // The family stays AF_UNSPEC (dev_ifsioc, net/core/dev_ioctl.c).
    // SAFETY: a sockaddr of zeroes is one.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    for (to, from) in address.sa_data.iter_mut().zip(group) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    let operation = if join {
        libc::SIOCADDMULTI
    } else {
        libc::SIOCDELMULTI
    };
    // SAFETY: `request` is a live ifreq, which is what both operations read.
    let result =
        unsafe { libc::ioctl(socket.socket.as_raw_fd(), operation as _, &raw mut request) };
    if result < 0 {
        let error = io::Error::last_os_error();
        let already_set = if join { libc::EEXIST } else { libc::ENOENT };
        if error.raw_os_error() != Some(already_set) {
            return Err(error);
        }
    }
    Ok(())
}

/// An ioctl socket for one interface.
struct Ethtool {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    maximum: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

impl Ethtool {
    fn open(interface: &str) -> io::Result<Self> {
        let mut name = [0; libc::IFNAMSIZ];
        if interface.len() >= name.len() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the descriptor was just returned by socket(2) and has no other owner.
            socket: unsafe { OwnedFd::from_raw_fd(fd) },
            name,
        })
    }

    /// One ethtool request; `data` is the structure that its command requires.
    fn call<T>(&self, data: &mut T) -> io::Result<()> {
        // SAFETY: all-zero is a valid ifreq: integers, arrays and a null pointer.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request.ifr_ifru.ifru_data = (&raw mut *data).cast();
        // SAFETY: `data` outlives the call, and all callers pass the structure that the kernel
        // reads and writes for the command in its first field.
        let result = unsafe {
            libc::ioctl(
                self.socket.as_raw_fd(),
                libc::SIOCETHTOOL as _,
                &raw mut request,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn driver(&self) -> io::Result<String> {
        let mut info = DriverInfo {
            command: GDRVINFO,
            driver: [0; 32],
            rest: [0; 160],
        };
        self.call(&mut info)?;
        let end = info.driver.iter().position(|b| *b == 0).unwrap_or(32);
        // The kernel also fills `rest`, which is not used.
        let _ = info.rest;
        Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
    }

    fn channels(&self) -> io::Result<Channels> {
        let mut channels = Channels {
            command: GCHANNELS,
            ..Channels::default()
        };
        self.call(&mut channels)?;
        // The kernel also fills these fields, which are not used.
        let _ = (channels.maximum, channels.tx, channels.other);
        Ok(channels)
    }

    fn flags(&self) -> io::Result<u32> {
        let mut value = Value {
            command: GFLAGS,
            data: 0,
        };
        self.call(&mut value)?;
        Ok(value.data)
    }

    fn set_flags(&self, flags: u32) -> io::Result<()> {
        let mut value = Value {
            command: SFLAGS,
            data: flags,
        };
        self.call(&mut value)
    }
}
