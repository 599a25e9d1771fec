//! A Linux router with nftables rules equal to those of [`World::nat`](crate::world::World::nat)
//! for the first tenant's net1: to compare with.
//!
//! ```text
//!   hosts ═══ inside │ router │ outside ═══ remotes      one network namespace, two veth pairs;
//!     ▲                                        ▲         hosts and remotes have AF_PACKET sockets, no addresses
//! ```

use std::{
    fmt::Write as _,
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
};

use crate::{
    iproute::{batch, pipe, sysctl},
    packet::{Mac, mac_text},
    world::{
        LISTED, LISTED6, NAT4, NAT6, NEXT_HOP_MAC, ONE_TO_ONE4, ONE_TO_ONE6, PROVIDER, PROVIDER6,
        PUBLIC4, PUBLIC6, TRUNK_MAC, UPLINK_MAC,
    },
};

/// The side of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// The tenant's network.
    Inside,
    /// The uplink.
    Outside,
}

/// The router, as long as this lives.
#[derive(Debug)]
pub struct Router {
    namespace: File,
    inside: OwnedFd,
    outside: OwnedFd,
    conntrack: OwnedFd,
}

impl Router {
    /// Whether nft is installed.
    #[must_use]
    pub fn is_possible() -> bool {
        Command::new("nft")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// A router in a new namespace, with these inside hosts.
    ///
    /// # Errors
    ///
    /// When the kernel or a program refuses a step.
    ///
    /// # Panics
    ///
    /// Never: the thread returns its errors.
    pub fn new(hosts: &[(&str, Mac)]) -> io::Result<Self> {
        std::thread::scope(|scope| scope.spawn(|| Self::build(hosts)).join())
            .unwrap_or_else(|_| Err(io::Error::other("the router's thread panicked")))
    }

    fn build(hosts: &[(&str, Mac)]) -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        for (name, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // A packet sent back through its input interface is a hairpin, so no redirect is due.
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
            // Longer than the test: the kernel reports an incomplete datagram to its source after
            // it.
            ("ipv4/ipfrag_time", "3600"),
            ("netfilter/nf_conntrack_frag6_timeout", "3600"),
            // As the programs: a segment of an unknown connection does not open one.
            ("netfilter/nf_conntrack_tcp_loose", "0"),
        ] {
            sysctl(name, value)?;
        }
        batch(&interfaces())?;
        for name in ["hosts", "remotes"] {
            sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        }
        batch(&addresses(hosts))?;
        pipe("nft", &["-f", "-"], &ruleset())?;
        Ok(Self {
            namespace,
            inside: packet_socket("hosts")?,
            outside: packet_socket("remotes")?,
            conntrack: conntrack()?,
        })
    }

    /// Sets a variable of `/proc/sys/net` of the router.
    ///
    /// # Errors
    ///
    /// When there is no such variable.
    pub fn set(&self, name: &str, value: &str) -> io::Result<()> {
        let within = || {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
            sysctl(name, value)
        };
        std::thread::scope(|scope| scope.spawn(within).join())
            .unwrap_or_else(|_| Err(io::Error::other("the router's thread panicked")))
    }

    /// A variable of `/proc/sys/net` of the router.
    ///
    /// # Errors
    ///
    /// When there is no such variable.
    pub fn get(&self, name: &str) -> io::Result<String> {
        let within = || {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
            std::fs::read_to_string(format!("/proc/sys/net/{name}"))
        };
        std::thread::scope(|scope| scope.spawn(within).join())
            .unwrap_or_else(|_| Err(io::Error::other("the router's thread panicked")))
    }

    /// Forgets every connection.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn forget(&self) -> io::Result<()> {
        // struct nlmsghdr: length, type (ctnetlink, IPCTNL_MSG_CT_DELETE), NLM_F_REQUEST |
        // NLM_F_ACK, sequence, port; struct nfgenmsg: all families. Without attributes: all
        // connections.
        let mut message = [0u8; 20];
        message[..4].copy_from_slice(&20u32.to_ne_bytes());
        message[4..6].copy_from_slice(&(1u16 << 8 | 2).to_ne_bytes());
        message[6..8].copy_from_slice(&5u16.to_ne_bytes());
        nix::unistd::write(&self.conntrack, &message)?;
        let mut answer = [0u8; 256];
        let len = nix::unistd::read(&self.conntrack, &mut answer)?;
        match answer.get(16..20).filter(|_| len >= 20) {
            Some([0, 0, 0, 0]) => Ok(()),
            other => Err(io::Error::other(format!("conntrack prints {other:?}"))),
        }
    }

    /// Puts a frame on the wire of a side.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn send(&self, port: Port, frame: &[u8]) -> io::Result<()> {
        let sent = nix::unistd::write(self.socket(port), frame)?;
        if sent == frame.len() {
            Ok(())
        } else {
            Err(io::Error::other("a frame was cut"))
        }
    }

    /// The frames sent: waits at most `timeout` for the `expected` number, then `quiet` for
    /// superfluous ones.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn receive(
        &self,
        expected: usize,
        timeout: Duration,
        quiet: Duration,
    ) -> io::Result<Vec<(Port, Vec<u8>)>> {
        let mut out = Vec::new();
        let begun = Instant::now();
        loop {
            for port in [Port::Inside, Port::Outside] {
                while let Some(frame) = self.take(port)? {
                    // To a group: the router's own reports of its memberships.
                    if frame[0] & 1 == 0 {
                        out.push((port, frame));
                    }
                }
            }
            let limit = if out.len() < expected { timeout } else { quiet };
            let Some(left) = limit.checked_sub(begun.elapsed()).filter(|l| !l.is_zero()) else {
                return Ok(out);
            };
            let mut fds = [
                PollFd::new(self.inside.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.outside.as_fd(), PollFlags::POLLIN),
            ];
            let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
            poll(&mut fds, PollTimeout::from(millis))?;
        }
    }

    const fn socket(&self, port: Port) -> &OwnedFd {
        match port {
            Port::Inside => &self.inside,
            Port::Outside => &self.outside,
        }
    }

    fn take(&self, port: Port) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 65_536];
        match nix::unistd::read(self.socket(port), &mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                Ok(Some(buffer))
            }
            Err(nix::errno::Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn interfaces() -> String {
    let mut batch = String::from("link set lo up\n");
    for (name, peer, mac) in [
        ("inside", "hosts", TRUNK_MAC),
        ("outside", "remotes", UPLINK_MAC),
    ] {
        let mac = mac_text(mac);
        let _ = writeln!(
            batch,
            "link add name {name} address {mac} type veth peer name {peer}"
        );
        // No link-local address: with one, the kernel would redirect hairpinned IPv6 packets.
        let _ = writeln!(batch, "link set dev {name} addrgenmode none");
    }
    batch
}

fn addresses(hosts: &[(&str, Mac)]) -> String {
    let mut batch = String::new();
    for (name, mtu) in [
        ("inside", 9000),
        ("hosts", 9000),
        ("outside", 1500),
        ("remotes", 1500),
    ] {
        let _ = writeln!(batch, "link set dev {name} mtu {mtu} up");
    }
    let _ = writeln!(batch, "addr add 10.1.0.1/24 dev inside");
    let _ = writeln!(batch, "addr add 2001:db8:1::1/64 dev inside nodad");
    let _ = writeln!(batch, "addr add {PROVIDER}/24 dev outside");
    let _ = writeln!(batch, "addr add {PROVIDER6}/64 dev outside nodad");
    for (host, mac) in hosts {
        let mac = mac_text(*mac);
        let _ = writeln!(
            batch,
            "neigh add {host} dev inside lladdr {mac} nud permanent"
        );
    }
    let mac = mac_text(NEXT_HOP_MAC);
    for (gateway, all) in [("203.0.113.1", "0.0.0.0/0"), ("2001:db8:f::1", "::/0")] {
        let _ = writeln!(
            batch,
            "neigh add {gateway} dev outside lladdr {mac} nud permanent"
        );
        let _ = writeln!(batch, "route add {all} via {gateway} dev outside");
    }
    batch
}

/// The rules of [`World::nat`](crate::world::World::nat) for the first tenant's net1, for nftables.
#[must_use]
pub fn ruleset() -> String {
    let mut dnat = String::new();
    let mut snat = String::new();
    for (v, a, b, net, seen, public, own, listed, icmp) in [
        (
            "ip",
            "10.1.0.10",
            "10.1.0.11",
            "10.1.0.0/24",
            NAT4,
            PUBLIC4,
            ONE_TO_ONE4,
            format!("{LISTED}/24"),
            "icmp",
        ),
        (
            "ip6",
            "[2001:db8:1::10]",
            "2001:db8:1::11",
            "2001:db8:1::/64",
            NAT6,
            PUBLIC6,
            ONE_TO_ONE6,
            format!("{LISTED6}/64"),
            "ipv6-icmp",
        ),
    ] {
        let mut rule = |from: &str, protocol: &str, port: u16, internal: u16| {
            let _ = writeln!(
                dnat,
                "{from}{v} daddr {public} {protocol} dport {port} dnat {v} to {a}:{internal};"
            );
        };
        rule("", "tcp", 443, 8443);
        rule("", "tcp", 2222, 22);
        for offset in 0..10 {
            rule("", "tcp", 5000 + offset, 6000 + offset);
            rule("", "udp", 5000 + offset, 6000 + offset);
        }
        rule(&format!("{v} saddr {listed} "), "tcp", 8080, 80);
        let _ = writeln!(
            dnat,
            "{v} daddr {own} meta l4proto {{ tcp, udp, {icmp} }} dnat {v} to {b};"
        );
        let range = if v == "ip" {
            format!("{seen}:1024-65535")
        } else {
            format!("[{seen}]:1024-65535")
        };
        let _ = writeln!(snat, "iifname inside {v} saddr {b} snat {v} to {own};");
        let _ = writeln!(
            snat,
            "iifname inside {v} saddr {net} meta l4proto {{ tcp, udp }} snat {v} to {range};"
        );
        let _ = writeln!(snat, "iifname inside {v} saddr {net} snat {v} to {seen};");
    }
    format!(
        "table inet causeway {{
           chain first {{
             type filter hook prerouting priority raw; policy accept;
             ip daddr {{ {NAT4}, {PUBLIC4}, {ONE_TO_ONE4} }} meta l4proto {{ tcp, udp }} \
             th dport 22 drop;
             ip6 daddr {{ {NAT6}, {PUBLIC6}, {ONE_TO_ONE6} }} meta l4proto {{ tcp, udp }} \
             th dport 22 drop;
             iifname outside ip saddr 10.1.0.0/24 drop;
             iifname outside ip6 saddr 2001:db8:1::/64 drop;
           }}
           chain to {{
             type nat hook prerouting priority dstnat; policy accept;
             {dnat}
           }}
           chain forward {{
             type filter hook forward priority filter; policy drop;
             ct state invalid drop;
             ct state established,related accept;
             meta l4proto tcp tcp flags & (fin|syn|rst|ack) != syn drop;
             ip saddr 10.1.0.11 meta l4proto {{ tcp, udp }} th sport 22 drop;
             ip6 saddr 2001:db8:1::11 meta l4proto {{ tcp, udp }} th sport 22 drop;
             ip daddr {{ {NAT4}, {PUBLIC4}, {ONE_TO_ONE4} }} drop;
             ip6 daddr {{ {NAT6}, {PUBLIC6}, {ONE_TO_ONE6} }} drop;
             iifname inside oifname outside accept;
             ct status dnat accept;
           }}
           chain from {{
             type nat hook postrouting priority srcnat; policy accept;
             {snat}
           }}
         }}\n"
    )
}

/// A socket that receives the frames that arrive on `link`, without those it sends there itself.
fn packet_socket(link: &str) -> io::Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(link)?;
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            0,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by socket(2) and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    // SAFETY: the value is a live int whose size is given.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero is a valid `sockaddr_ll`: integers and a byte array.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as i32;
    // SAFETY: `address` is a live `sockaddr_ll` and its size is given.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

fn conntrack() -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    Ok(socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?)
}
