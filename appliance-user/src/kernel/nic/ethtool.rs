//! The ioctls of ethtool(8) and netdevice(7) for one interface.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::rules::Feature;

/// Commands and sets of `<linux/ethtool.h>`.
const GDRVINFO: u32 = 0x03;
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const SFEATURES: u32 = 0x3b;
const GCHANNELS: u32 = 0x3c;
const SS_FEATURES: u32 = 4;
/// Bytes of a name in a string set (`ETH_GSTRING_LEN`).
const STRING_LEN: usize = 32;
/// Features that are asked for at most; Linux 6.18 has 63.
const MAX_FEATURES: u32 = 256;
/// Words of 32 features.
const MAX_WORDS: usize = MAX_FEATURES as usize / 32;

/// An ioctl socket for one interface.
pub(super) struct Ethtool {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
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

/// `struct ethtool_sset_info` with room for one set.
#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    length: u32,
}

/// `struct ethtool_gstrings`.
#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    length: u32,
    names: [[u8; STRING_LEN]; MAX_FEATURES as usize],
}

/// `struct ethtool_get_features_block`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Block {
    available: u32,
    requested: u32,
    active: u32,
    never_changed: u32,
}

/// `struct ethtool_gfeatures`.
#[repr(C)]
struct GetFeatures {
    command: u32,
    words: u32,
    blocks: [Block; MAX_WORDS],
}

/// `struct ethtool_sfeatures`: for each word which bits are valid, and which of these are on.
#[repr(C)]
struct SetFeatures {
    command: u32,
    words: u32,
    blocks: [[u32; 2]; MAX_WORDS],
}

impl Ethtool {
    /// # Errors
    /// If the name is too long, or that of socket(2).
    pub fn open(interface: &str) -> io::Result<Self> {
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

    /// Name of the driver.
    pub fn driver(&self) -> io::Result<String> {
        let mut info = DriverInfo {
            command: GDRVINFO,
            driver: [0; 32],
            rest: [0; 160],
        };
        self.ethtool(&mut info)?;
        // The kernel also fills `rest`, which is not used.
        let _ = info.rest;
        Ok(text(&info.driver))
    }

    /// Numbers of receive and transmit queues.
    pub fn queues(&self) -> io::Result<(u32, u32)> {
        let mut channels = Channels {
            command: GCHANNELS,
            ..Channels::default()
        };
        self.ethtool(&mut channels)?;
        // The kernel also fills these fields, which are not used.
        let _ = (channels.maximum, channels.other);
        let Channels {
            rx, tx, combined, ..
        } = channels;
        Ok((rx + combined, tx + combined))
    }

    /// The names of the kernel's features, in the order of their bits.
    pub fn feature_names(&self) -> io::Result<Vec<String>> {
        let mut info = SetInfo {
            command: GSSET_INFO,
            reserved: 0,
            mask: 1 << SS_FEATURES,
            length: 0,
        };
        self.ethtool(&mut info)?;
        let _ = info.reserved;
        if info.mask == 0 || info.length > MAX_FEATURES {
            return Err(io::Error::other("unexpected number of ethtool features"));
        }
        let mut strings = Box::new(Strings {
            command: GSTRINGS,
            set: SS_FEATURES,
            length: info.length,
            names: [[0; STRING_LEN]; MAX_FEATURES as usize],
        });
        self.ethtool(&mut *strings)?;
        let _ = strings.set;
        let names = strings.names.iter().take(strings.length as usize);
        Ok(names.map(|name| text(name)).collect())
    }

    /// The state of the features of these names.
    pub fn features(&self, names: &[String]) -> io::Result<BTreeMap<String, Feature>> {
        let mut get = GetFeatures {
            command: GFEATURES,
            words: words(names),
            blocks: [Block::default(); MAX_WORDS],
        };
        self.ethtool(&mut get)?;
        let state = |(at, name): (usize, &String)| {
            let block = get.blocks[at / 32];
            let bit = 1 << (at % 32);
            let feature = Feature {
                on: block.active & bit != 0,
                changeable: block.available & !block.never_changed & bit != 0,
            };
            // The features that the operator requested are not needed.
            let _ = block.requested;
            (name.clone(), feature)
        };
        Ok(names.iter().enumerate().map(state).collect())
    }

    /// Switches features off. One that the driver does not change stays on without an error, so
    /// read them back.
    pub fn switch_off(&self, names: &[String], off: &[&str]) -> io::Result<()> {
        let mut set = SetFeatures {
            command: SFEATURES,
            words: words(names),
            blocks: [[0; 2]; MAX_WORDS],
        };
        for (at, _) in names
            .iter()
            .enumerate()
            .filter(|(_, name)| off.contains(&name.as_str()))
        {
            set.blocks[at / 32][0] |= 1 << (at % 32);
        }
        self.ethtool(&mut set)
    }

    /// Sets or clears a flag of the interface, such as `IFF_ALLMULTI`, and returns whether it is
    /// set afterwards. The setting outlives this process.
    pub fn set_flag(&self, flag: libc::c_int, on: bool) -> io::Result<bool> {
        let flag = flag as libc::c_short;
        let mut request = self.request();
        let flags = |request: &libc::ifreq| {
            // SAFETY: SIOCGIFFLAGS fills this member, and SIOCSIFFLAGS reads it.
            unsafe { request.ifr_ifru.ifru_flags }
        };
        self.call(libc::SIOCGIFFLAGS, &mut request)?;
        let before = flags(&request);
        let wanted = if on { before | flag } else { before & !flag };
        if wanted != before {
            request.ifr_ifru.ifru_flags = wanted;
            self.call(libc::SIOCSIFFLAGS, &mut request)?;
            self.call(libc::SIOCGIFFLAGS, &mut request)?;
        }
        Ok(flags(&request) & flag != 0)
    }

    /// Adds an Ethernet group address to the receive filter, or removes it.
    pub fn set_multicast_group(&self, group: [u8; 6], join: bool) -> io::Result<()> {
        let mut request = self.request();
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
        match self.call(operation, &mut request) {
            Err(error) => {
                let already_set = if join { libc::EEXIST } else { libc::ENOENT };
                if error.raw_os_error() == Some(already_set) {
                    return Ok(());
                }
                Err(error)
            }
            done => done,
        }
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: all-zero is a valid ifreq: integers, arrays and a null pointer.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request
    }

    /// One ethtool request; `data` is the structure that its command requires.
    fn ethtool<T>(&self, data: &mut T) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_data = (&raw mut *data).cast();
        self.call(libc::SIOCETHTOOL, &mut request)
    }

    fn call(&self, operation: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: `request` is a live ifreq. Its pointer, if the operation reads one, is to the
        // structure that the operation reads and writes, and outlives the call.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), operation as _, &raw mut *request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

fn words(names: &[String]) -> u32 {
    names.len().div_ceil(32).min(MAX_WORDS) as u32
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
