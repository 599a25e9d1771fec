//! Faults of the network: packets dropped silently, UDP blocked, NAT mappings changed.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use crate::{
    error::{During as _, Error, Result},
    netns,
    site::Lab,
    topology::{Attach, Kind},
};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

impl Lab {
    /// Loads nftables rules in a host.
    ///
    /// # Errors
    /// If there is no such host, or nft refuses them.
    pub fn nft(&self, host: &str, rules: &str) -> Result<()> {
        self.must(host, &["nft", rules], COMMAND_TIMEOUT).map(drop)
    }

    /// The router at an end of a WAN link, and its link there.
    fn router_of(&self, wan: &str) -> Result<(String, String)> {
        let mut ends = self.topology().links().filter(|(host, link)| {
            host.kind == Kind::Router
                && matches!(&link.to, Attach::Wan { wan: name } if name == wan)
        });
        let found = ends.next().map(|(h, l)| (h.name.clone(), l.name.clone()));
        found.ok_or_else(|| Error::Unknown {
            kind: "WAN link with a router",
            name: wan.to_owned(),
            lab: self.name().to_owned(),
            known: "those of the topology".to_owned(),
        })
    }

    /// A black hole: a WAN link stays up, and its router drops all packets to and from it.
    ///
    /// # Errors
    /// If there is no such link, or nft fails.
    pub fn blackhole(&self, wan: &str) -> Result<()> {
        let (router, link) = self.router_of(wan)?;
        self.nft(
            &router,
            &format!(
                "table inet blackhole-{wan} {{ chain forward {{ type filter hook forward priority \
                 0; iifname \"{link}\" drop; oifname \"{link}\" drop; }}; }}"
            ),
        )
    }

    /// Ends the black hole of a WAN link.
    ///
    /// # Errors
    /// If there is none.
    pub fn end_blackhole(&self, wan: &str) -> Result<()> {
        let (router, _) = self.router_of(wan)?;
        self.nft(&router, &format!("delete table inet blackhole-{wan}"))
    }

    /// A router forwards no UDP to or from this link of its, as a firewall that knows nothing but
    /// TCP.
    ///
    /// # Errors
    /// If there is no such host, or nft fails.
    pub fn block_udp(&self, router: &str, link: &str) -> Result<()> {
        self.nft(router, &no_udp(link))
    }

    /// A router forwards UDP again.
    ///
    /// # Errors
    /// If it did all the time.
    pub fn unblock_udp(&self, router: &str) -> Result<()> {
        self.nft(router, "delete table inet no-udp")
    }

    /// A NAT router loses every mapping, as in a restart, and assigns source ports from `ports`.
    ///
    /// # Errors
    /// If there is no such host, or the kernel refuses.
    pub fn rebind_nat(&self, router: &str, link: &str, ports: (u16, u16)) -> Result<()> {
        self.nft(
            router,
            &format!("delete table ip translate; {}", masquerade(link, ports)),
        )?;
        netns::within(&self.namespace(router)?, || {
            forget_connections().during(|| format!("clearing connections of {router}"))
        })
    }

    /// The address that a host sends from on a link.
    ///
    /// # Errors
    /// If there is no such host, or no IPv4 address on that link.
    pub fn v4_of(&self, host: &str, link: &str) -> Result<Ipv4Addr> {
        let links = self.topology().links();
        let mut addresses = links
            .filter(|(h, l)| h.name == host && l.name == link)
            .flat_map(|(_, l)| &l.addresses);
        addresses
            .find_map(|c| match c.addr {
                IpAddr::V4(a) => Some(a),
                IpAddr::V6(_) => None,
            })
            .ok_or_else(|| Error::Unknown {
                kind: "link with an IPv4 address",
                name: format!("{host} {link}"),
                lab: self.name().to_owned(),
                known: "those of the topology".to_owned(),
            })
    }
}

/// Rules of a router that translates what it sends on `link`, with source ports of a range.
pub(crate) fn masquerade(link: &str, (first, last): (u16, u16)) -> String {
    format!(
        "table ip translate {{ chain post {{ type nat hook postrouting priority srcnat; \
         oifname \"{link}\" meta l4proto {{ tcp, udp }} masquerade to :{first}-{last}; \
         oifname \"{link}\" masquerade; }}; }}"
    )
}

/// Rules of a router that lets no UDP through to and from `link`.
pub(crate) fn no_udp(link: &str) -> String {
    format!(
        "table inet no-udp {{ chain forward {{ type filter hook forward priority 0; \
         oifname \"{link}\" meta l4proto udp drop; iifname \"{link}\" meta l4proto udp drop; }}; }}"
    )
}

/// Deletes every entry of the connection tracking of the namespace that this thread is in
/// (ctnetlink; `conntrack -F`).
fn forget_connections() -> io::Result<()> {
    const DELETE: u16 = 1 << 8 | 2; // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
    const REQUEST_AND_ACK: u16 = 5;
    const HEADER: usize = 16;
    // SAFETY: no pointer is passed.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_NETFILTER,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut message = Vec::new();
    // nlmsghdr, and nfgenmsg of no family: without a tuple all are meant.
    message.extend(20_u32.to_ne_bytes());
    message.extend(DELETE.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    // SAFETY: the buffer is valid for its length for the duration of the call.
    let sent = unsafe { libc::send(fd.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if usize::try_from(sent) != Ok(message.len()) {
        return Err(io::Error::last_os_error());
    }
    let mut answer = [0_u8; 512];
    // SAFETY: the buffer is valid for its length for the duration of the call.
    let got = unsafe { libc::recv(fd.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let code = answer.get(..got).and_then(|a| a.get(HEADER..HEADER + 4));
    match code.and_then(|c| c.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
