//! Keys and values of the maps; docs/architecture/data-path.md has a table of them.
//!
//! An all-zero value is never a valid entry: an unwritten array slot means "not configured".

pub use crate::budget::{Budget, CLAIMS_PER_NETWORK};

use crate::addr::{Address, Prefix};
use crate::entry_hash;
use crate::limits::MAX_PREFIXES;

/// Version of all layouts in this file. It is part of the pin path, so that a daemon with another
/// layout never adopts maps that it would misread.
pub const SCHEMA_VERSION: u32 = 9;

/// No VLAN tag at this level. On the wire, VLAN identifier 0 means "priority only" (IEEE 802.1Q
/// section 9.6), so it is free for this.
pub const NO_VLAN: u16 = 0;

/// No sockets: slot 0 of `XSKS` is never used.
pub const NO_XSK: u16 = 0;

/// Key of `ATTACHMENTS`: an interface, and the VLAN tags of a frame as XDP sees them.
///
/// Hyper-V strips the tag before XDP runs, so "untagged on this interface" and "VLAN 101 on this
/// interface" are different keys and both are usual.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachmentKey {
    /// Interface index, host byte order.
    pub ifindex: u32,
    /// Outer VLAN identifier, 1 to 4094, host byte order; [`NO_VLAN`] for an untagged frame.
    pub outer: u16,
    /// Inner VLAN identifier (QinQ), likewise; [`NO_VLAN`] for at most one tag.
    pub inner: u16,
}

/// Value of `ATTACHMENTS`: the network of a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Slot in `NETWORKS`, host byte order.
    pub network: u32,
    /// [`attachment_flags`].
    pub flags: u32,
    /// Our MAC address on this port.
    pub mac: [u8; 6],
    /// First slot of the interface's sockets in `XSKS`: queue `q` is at `xsk + q`. Host byte order;
    /// [`NO_XSK`] for none.
    pub xsk: u16,
    /// [`entry_hash::attachment`] of the key and the fields above.
    pub entry_hash: u64,
}

impl Attachment {
    /// The value with the hash that `key` gives it.
    #[must_use]
    pub const fn hashed(mut self, key: &AttachmentKey) -> Self {
        let [a, b, c, d, e, f] = self.mac;
        let [g, h] = self.xsk.to_ne_bytes();
        let port = [
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
        ];
        self.entry_hash = entry_hash::attachment(key, [self.network, self.flags], port);
        self
    }
}

/// Bits of [`Attachment::flags`].
pub mod attachment_flags {
    /// The entry is active. Always set.
    pub const ACTIVE: u32 = 1;
    /// The kernel shares the port: packets that are not for the data path are passed to it. Without
    /// this flag the port is a tenant's only, and such packets are dropped.
    pub const HOST: u32 = 2;
}

/// Value of `NETWORKS`: one stretched network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The network's identifier in every other map and on the wire: 1 to 2^24-1, host byte order.
    pub vni: u32,
    /// Slot in `TENANTS`, host byte order.
    pub tenant: u32,
    /// Slot in `PEERS`, host byte order.
    pub peer: u32,
    /// [`network_flags`].
    pub flags: u32,
    /// Largest IP packet that fits the tunnel, bytes, host byte order.
    pub mtu: u16,
    /// Used entries of `prefixes`.
    pub prefix_count: u16,
    /// Largest IP packet of the network's port, bytes, host byte order.
    pub lan_mtu: u16,
    /// Padding, always zero.
    pub reserved: u16,
    /// The IPv4 router of the network, or [`crate::addr::UNSPECIFIED`]. On the tenant side the next
    /// hop for destinations outside the prefixes; on the provider side an address that is answered
    /// for; in full failover our own.
    pub gateway_v4: Address,
    /// The IPv6 router of the network, as for IPv4; may be link-local.
    pub gateway_v6: Address,
    /// The network's prefixes, IPv4 ones in mapped form.
    pub prefixes: [Prefix; MAX_PREFIXES],
}

/// Bits of [`Network::flags`].
pub mod network_flags {
    /// The entry is active. Always set.
    pub const ACTIVE: u32 = 1;
    /// This appliance is on the side of the replicas: endpoints are on this side, and every other
    /// address is at the production site. Without it, the other way round.
    pub const PROVIDER: u32 = 2;
    /// The network's tunnel is encrypted: its packets go to a worker.
    pub const SECURE: u32 = 4;
    /// In full failover, its hosts have internet access.
    pub const INTERNET: u32 = 8;
}

/// Value of `TENANTS`: the mode of a tenant. Eight bytes, so that a mode switch is one store.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tenant {
    /// A [`Mode`], host byte order.
    pub mode: u32,
    /// Incremented at each switch, host byte order.
    pub epoch: u32,
}

/// The failover mode of a tenant's networks.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is answered or forwarded.
    #[default]
    Idle = 0,
    /// Partial site failover: endpoints are reached through the tunnel.
    Partial = 1,
    /// Full site failover: every address is on this side, and the appliance is the networks'
    /// router.
    Full = 2,
}

impl Mode {
    /// The mode of a map entry; `None` for a number that this version does not know.
    #[must_use]
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::Idle),
            1 => Some(Self::Partial),
            2 => Some(Self::Full),
            _ => None,
        }
    }

    /// The mode's name in commands and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Partial => "partial",
            Self::Full => "full",
        }
    }
}

/// Key of `ENDPOINTS` and `NEIGHBOURS`: an address within a network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostKey {
    /// [`Network::vni`], host byte order.
    pub vni: u32,
    pub address: Address,
}

/// Value of `ENDPOINTS`: an address that is failed over; its machine runs as a replica.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// 1. Reserved for settings of an endpoint.
    pub flags: u32,
}

/// Longest Ethernet header, bytes: addresses, two tags, type.
pub const MAX_L2_LEN: usize = 22;

/// Value of `NEIGHBOURS`: interface and Ethernet header of a host.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Interface to send on, host byte order.
    pub ifindex: u32,
    /// [`neighbour_flags`]. The programs set `CONFIRMED` and `USED`; user space reads and clears
    /// them.
    pub flags: u32,
    /// The Ethernet header: destination, source, tags, and two bytes for the type, which the
    /// program fills from the packet.
    pub l2: [u8; MAX_L2_LEN],
    /// Used bytes of `l2`: 14, 18 or 22; zero for a host that did not answer, packets to which are
    /// dropped.
    pub l2_len: u8,
    /// Padding, always zero.
    pub reserved: u8,
    /// [`entry_hash::host`] of the key plus [`entry_hash::neighbour`] of the fields above but for
    /// `flags`.
    pub entry_hash: u64,
}

/// Bits of [`Neighbour::flags`].
pub mod neighbour_flags {
    /// The entry is active. Always set.
    pub const ACTIVE: u32 = 1;
    /// Set by a program when the host has sent an ARP or neighbour discovery message from the same
    /// MAC address since user space last cleared the flag.
    pub const CONFIRMED: u32 = 2;
    /// Set by a program when a packet was sent to the host since user space last cleared the flag.
    pub const USED: u32 = 4;
}

impl Neighbour {
    /// An entry for a host.
    ///
    /// `tags` are VLAN identifiers from the outside in, at most two; two make the outer one 802.1ad
    /// (0x88a8) unless `outer_type` says otherwise.
    #[must_use]
    pub fn new(
        ifindex: u32,
        destination: [u8; 6],
        source: [u8; 6],
        outer: u16,
        inner: u16,
        outer_type: u16,
    ) -> Self {
        let mut l2 = [0u8; MAX_L2_LEN];
        l2[..6].copy_from_slice(&destination);
        l2[6..12].copy_from_slice(&source);
        let mut len = 12;
        if outer != NO_VLAN {
            l2[len..len + 2].copy_from_slice(&outer_type.to_be_bytes());
            l2[len + 2..len + 4].copy_from_slice(&outer.to_be_bytes());
            len += 4;
        }
        if inner != NO_VLAN {
            l2[len..len + 2].copy_from_slice(&crate::wire::ETHERTYPE_8021Q.to_be_bytes());
            l2[len + 2..len + 4].copy_from_slice(&inner.to_be_bytes());
            len += 4;
        }
        Self {
            ifindex,
            flags: neighbour_flags::ACTIVE,
            l2,
            l2_len: (len + 2) as u8,
            reserved: 0,
            entry_hash: 0,
        }
    }

    /// The entry with the hash that `key` gives it. Without it the programs refuse the entry.
    #[must_use]
    pub fn hashed(mut self, key: &HostKey) -> Self {
        let mut bytes = [0u8; 24];
        bytes[..MAX_L2_LEN].copy_from_slice(&self.l2);
        bytes[MAX_L2_LEN] = self.l2_len;
        bytes[MAX_L2_LEN + 1] = self.reserved;
        let (words, _) = bytes.as_chunks::<8>();
        let words = core::array::from_fn(|i| u64::from_ne_bytes(words[i]));
        let (address, _) = key.address.as_chunks::<4>();
        let address = core::array::from_fn(|i| u32::from_ne_bytes(address[i]));
        let content = entry_hash::neighbour(self.ifindex, words);
        self.entry_hash = entry_hash::host(key.vni, address).wrapping_add(content);
        self
    }

    /// The entry of a host that did not answer.
    #[must_use]
    pub fn absent() -> Self {
        Self {
            flags: neighbour_flags::ACTIVE,
            ..Self::default()
        }
    }

    /// Whether it is the entry of a host that did not answer.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        self.l2_len == 0
    }

    /// The host's MAC address.
    #[inline(always)]
    #[must_use]
    pub const fn mac(&self) -> [u8; 6] {
        [
            self.l2[0], self.l2[1], self.l2[2], self.l2[3], self.l2[4], self.l2[5],
        ]
    }
}

/// Key of `TUNNELS`: a peer whose datagrams are accepted for a network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelKey {
    /// VNI, host byte order.
    pub vni: u32,
    /// The peer's outer address. [`crate::addr::UNSPECIFIED`] in the entry that marks the network
    /// as known, which separates an unknown peer from an unknown network.
    pub peer: Address,
}

/// Value of `TUNNELS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Slot in `NETWORKS`, host byte order.
    pub network: u32,
    /// 1.
    pub flags: u32,
}

/// Value of `PEERS`: the outer header to a peer, complete but for lengths, VNI and source port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Interface to send on, host byte order.
    pub ifindex: u32,
    /// [`peer_flags`].
    pub flags: u32,
    /// Ethernet, IPv4 or IPv6, UDP and VXLAN headers. Length fields, the UDP source port and the
    /// VNI are zero. The IPv4 checksum is that of the header with total length zero.
    pub header: [u8; crate::wire::OUTER_V6_LEN],
    /// Used bytes of `header`: 50 for IPv4, 70 for IPv6.
    pub header_len: u8,
    /// Padding, always zero.
    pub reserved: u8,
}

/// Bits of [`Peer::flags`].
pub mod peer_flags {
    /// The next hop is resolved and the header is complete.
    pub const RESOLVED: u32 = 1;
    /// The outer header is IPv6.
    pub const IPV6: u32 = 2;
}

/// Key of `SESSIONS`: the session index in an encrypted datagram, host byte order (little-endian on
/// the wire). An entry means that a worker has the session.
pub type SessionKey = u32;

/// Value of `SESSIONS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// 1.
    pub flags: u32,
}

/// Value of `HANDSHAKE_SOURCES`, `HANDSHAKE_BUDGET` and `BUDGETS`: a token bucket (the generic
/// cell rate algorithm, ITU-T I.371).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When the bucket is full again, nanoseconds of the kernel's monotonic clock.
    pub full_at: u64,
}

impl Bucket {
    /// Takes one token at `now`, nanoseconds, if there is one: `per_second` are refilled, up to
    /// `burst`. Both at least 1.
    #[inline(always)]
    pub const fn take(&mut self, now: u64, per_second: u64, burst: u64) -> bool {
        let cost = 1_000_000_000 / per_second;
        let from = if self.full_at > now {
            self.full_at
        } else {
            now
        };
        if from - now > cost * (burst - 1) {
            return false;
        }
        self.full_at = from + cost;
        true
    }

    /// Gives one token back; a full bucket stays full. `per_second` as for [`take`](Self::take).
    #[inline(always)]
    pub const fn give(&mut self, per_second: u64) {
        self.full_at = self.full_at.saturating_sub(1_000_000_000 / per_second);
    }
}

/// Value of `PEER_ADDRESSES`: the address of a peer of an encrypted tunnel. Its handshakes do not
/// count against the budget of unknown sources.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerAddress {
    /// 1.
    pub flags: u32,
}

/// Key of `ROUTES`, behind the prefix length of a longest-prefix match: the tenant (always all 32
/// bits) and the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// Slot in `TENANTS`, host byte order: all its bits are compared, so any order is fine.
    pub tenant: u32,
    /// The address, IPv4 in mapped form.
    pub address: Address,
}

/// Bits of [`RouteKey`] in front of the address.
pub const ROUTE_KEY_BITS: u32 = 32;

/// Value of `ROUTES`: the network of a prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Slot in `NETWORKS`, host byte order.
    pub network: u32,
    /// 1.
    pub flags: u32,
}

/// Key of `POLICIES`: two networks by VNI, host byte order. An entry allows packets from one to the
/// other; replies need an entry of their own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// The network that a packet comes from.
    pub from: u32,
    /// The network that it goes to.
    pub to: u32,
}

/// Value of `POLICIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// 1.
    pub flags: u32,
}

/// Slots of `JUMPS`: the targets of tail calls.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jump {
    /// An IP packet on the port of a tenant in full failover.
    Full = 0,
    /// A packet that leaves the networks of such a tenant.
    NatOut = 1,
    /// An IP packet on the uplink to a public address.
    NatIn = 2,
}

impl Jump {
    /// Number of slots.
    pub const COUNT: u32 = 3;

    /// All slots, with the names of their programs.
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::Full, "full"),
        (Self::NatOut, "nat_out"),
        (Self::NatIn, "nat_in"),
    ];
}

/// Value of `CONFIG`, the one entry of an array. All zero: not configured.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`SCHEMA_VERSION`] once configured, host byte order.
    pub version: u32,
    /// UDP port of the plain tunnels, host byte order; zero: none.
    pub tunnel_port: u16,
    /// UDP port of the encrypted tunnels, host byte order; zero: none.
    pub secure_port: u16,
    /// First slot of the uplink's sockets in `XSKS`, as [`Attachment::xsk`].
    pub uplink_xsk: u16,
    /// Padding, always zero.
    pub reserved: u16,
    /// Our IPv4 tunnel address, or unspecified.
    pub local_v4: Address,
    /// Our IPv6 tunnel address, or unspecified.
    pub local_v6: Address,
}

/// Value of `NETWORK_STATS`, per CPU, one per slot of `NETWORKS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkStats {
    /// Packets sent into the tunnel.
    pub tx_packets: u64,
    /// Bytes of IP packets sent into the tunnel.
    pub tx_bytes: u64,
    /// Packets received from the tunnel.
    pub rx_packets: u64,
    /// Bytes of IP packets received from the tunnel.
    pub rx_bytes: u64,
}

impl Default for Neighbour {
    fn default() -> Self {
        Self {
            ifindex: 0,
            flags: 0,
            l2: [0; MAX_L2_LEN],
            l2_len: 0,
            reserved: 0,
            entry_hash: 0,
        }
    }
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            ifindex: 0,
            flags: 0,
            header: [0; crate::wire::OUTER_V6_LEN],
            header_len: 0,
            reserved: 0,
        }
    }
}

impl Peer {
    /// The outer header for datagrams from `local` to `remote` on `port`.
    ///
    /// The Ethernet addresses are those of the next hop and of the interface. DF is set, hop limit
    /// is 64 (RFC 1700), DSCP 0; the UDP checksum is zero (RFC 7348 section 4.1; for IPv6 RFC
    /// 6935). `None` if the two addresses are of different families.
    #[must_use]
    pub fn new(
        ifindex: u32,
        next_hop: [u8; 6],
        source: [u8; 6],
        local: &Address,
        remote: &Address,
        port: u16,
    ) -> Option<Self> {
        use crate::addr::as_v4;
        use crate::wire::{
            ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_UDP, IPV4_LEN, IPV6_LEN, OUTER_V4_LEN,
            OUTER_V6_LEN, VXLAN_FLAG_VNI,
        };

        let mut header = [0u8; OUTER_V6_LEN];
        header[..6].copy_from_slice(&next_hop);
        header[6..12].copy_from_slice(&source);
        let (len, flags, udp) = match (as_v4(local), as_v4(remote)) {
            (Some(local), Some(remote)) => {
                header[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
                let ip = &mut header[ETH_LEN..ETH_LEN + IPV4_LEN];
                ip[0] = 0x45;
                ip[6] = 0x40; // DF
                ip[8] = 64;
                ip[9] = IPPROTO_UDP;
                ip[12..16].copy_from_slice(&local);
                ip[16..20].copy_from_slice(&remote);
                let check = crate::checksum::checksum(ip);
                ip[10..12].copy_from_slice(&check.to_ne_bytes());
                (OUTER_V4_LEN, peer_flags::RESOLVED, ETH_LEN + IPV4_LEN)
            }
            (None, None) => {
                header[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
                let ip = &mut header[ETH_LEN..ETH_LEN + IPV6_LEN];
                ip[0] = 0x60;
                ip[6] = IPPROTO_UDP;
                ip[7] = 64;
                ip[8..24].copy_from_slice(local);
                ip[24..40].copy_from_slice(remote);
                (
                    OUTER_V6_LEN,
                    peer_flags::RESOLVED | peer_flags::IPV6,
                    ETH_LEN + IPV6_LEN,
                )
            }
            _ => return None,
        };
        header[udp + 2..udp + 4].copy_from_slice(&port.to_be_bytes());
        header[udp + 8] = VXLAN_FLAG_VNI;
        Some(Self {
            ifindex,
            flags,
            header,
            header_len: len as u8,
            reserved: 0,
        })
    }

    /// Writes outer header and inner Ethernet header for an inner packet of `inner_len` bytes (with
    /// its IP header), as the programs do. For the slow path. `out` begins with the outer Ethernet
    /// header. Returns the bytes written; `None` if `out` is too short or the datagram exceeds 65
    /// 535 bytes.
    #[must_use]
    pub fn write_header(
        &self,
        out: &mut [u8],
        vni: u32,
        source_port: u16,
        ethertype: u16,
        inner_len: usize,
    ) -> Option<usize> {
        use crate::wire::{ETH_LEN, IPV4_LEN, IPV6_LEN, UDP_LEN, VXLAN_LEN, inner_mac};
        let outer = usize::from(self.header_len);
        let total = outer + ETH_LEN;
        let udp_len = u16::try_from(UDP_LEN + VXLAN_LEN + ETH_LEN + inner_len).ok()?;
        let out = out.get_mut(..total)?;
        out[..outer].copy_from_slice(&self.header[..outer]);
        let ip = ETH_LEN;
        let udp = if self.flags & peer_flags::IPV6 == 0 {
            let ip_len = udp_len.checked_add(IPV4_LEN as u16)?;
            out[ip + 2..ip + 4].copy_from_slice(&ip_len.to_be_bytes());
            let check = u16::from_ne_bytes([out[ip + 10], out[ip + 11]]);
            let check = crate::checksum::update(check, 0, ip_len.to_be());
            out[ip + 10..ip + 12].copy_from_slice(&check.to_ne_bytes());
            ip + IPV4_LEN
        } else {
            out[ip + 4..ip + 6].copy_from_slice(&udp_len.to_be_bytes());
            ip + IPV6_LEN
        };
        out[udp..udp + 2].copy_from_slice(&source_port.to_be_bytes());
        out[udp + 4..udp + 6].copy_from_slice(&udp_len.to_be_bytes());
        out[udp + 12..udp + 15].copy_from_slice(&vni.to_be_bytes()[1..]);
        out[outer..outer + 6].copy_from_slice(&inner_mac(vni));
        out[outer + 6..outer + 12].copy_from_slice(&inner_mac(vni));
        out[outer + 12..outer + 14].copy_from_slice(&ethertype.to_be_bytes());
        Some(total)
    }
}

const _: () = {
    assert!(size_of::<AttachmentKey>() == 8);
    assert!(size_of::<Attachment>() == 24);
    assert!(size_of::<Network>() == 56 + 32 * MAX_PREFIXES);
    assert!(size_of::<Tenant>() == 8);
    assert!(size_of::<HostKey>() == 20);
    assert!(size_of::<Endpoint>() == 4);
    assert!(size_of::<Neighbour>() == 40);
    assert!(size_of::<TunnelKey>() == 20);
    assert!(size_of::<Tunnel>() == 8);
    assert!(size_of::<Peer>() == 80);
    assert!(size_of::<Config>() == 44);
    assert!(size_of::<Session>() == 4);
    assert!(size_of::<Bucket>() == 8);
    assert!(size_of::<PeerAddress>() == 4);
    assert!(size_of::<NetworkStats>() == 32);
    assert!(size_of::<RouteKey>() == 20);
    assert!(size_of::<Route>() == 8);
    assert!(size_of::<PolicyKey>() == 8);
    assert!(size_of::<Policy>() == 4);
};

#[cfg(feature = "user")]
mod pod {
    //! Plain data, for aya.
    use super::*;

    macro_rules! pod {
        ($($name:ty),+ $(,)?) => {
            $(
                // SAFETY: `repr(C)`, `Copy`, integers and byte arrays only, and the size asserted
                // above is the sum of the fields' sizes, so there is no padding and every bit
                // pattern is valid.
                unsafe impl aya::Pod for $name {}
            )+
        };
    }
    pod!(
        AttachmentKey,
        Attachment,
        Network,
        Tenant,
        HostKey,
        Endpoint,
        Neighbour,
        TunnelKey,
        Tunnel,
        Peer,
        Config,
        Session,
        Bucket,
        PeerAddress,
        NetworkStats,
        RouteKey,
        Route,
        PolicyKey,
        Policy
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::v4_mapped;
    use crate::checksum::checksum;

    #[test]
    fn peer_header_over_ipv4_has_a_right_checksum_once_written() {
        let peer = Peer::new(
            3,
            [2; 6],
            [4; 6],
            &v4_mapped([192, 0, 2, 1]),
            &v4_mapped([198, 51, 100, 9]),
            4789,
        )
        .expect("one family");
        let mut out = [0u8; 128];
        let n = peer
            .write_header(&mut out, 0x0a0b0c, 50_000, 0x0800, 1000)
            .expect("room");
        assert_eq!(n, 64);
        assert_eq!(checksum(&out[14..34]), 0);
        assert_eq!(
            u16::from_be_bytes([out[16], out[17]]),
            20 + 8 + 8 + 14 + 1000
        );
        assert_eq!(u16::from_be_bytes([out[38], out[39]]), 8 + 8 + 14 + 1000);
        assert_eq!(&out[42..50], &[8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0]);
        assert_eq!(&out[62..64], &[8, 0]);
    }

    #[test]
    fn peer_refuses_mixed_families_and_overlong_datagrams() {
        assert!(
            Peer::new(
                3,
                [2; 6],
                [4; 6],
                &v4_mapped([192, 0, 2, 1]),
                &[1; 16],
                4789
            )
            .is_none()
        );
        let peer = Peer::new(3, [2; 6], [4; 6], &[1; 16], &[2; 16], 4789).expect("one family");
        let mut out = [0u8; 128];
        assert!(
            peer.write_header(&mut out, 1, 50_000, 0x86dd, 65_535)
                .is_none()
        );
        assert!(
            peer.write_header(&mut out[..50], 1, 50_000, 0x86dd, 100)
                .is_none()
        );
        assert_eq!(
            peer.write_header(&mut out, 1, 50_000, 0x86dd, 100),
            Some(84)
        );
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::default();
        let start = 5_000_000_000;
        let at_once = (0..100).filter(|_| bucket.take(start, 20, 10)).count();
        assert_eq!(at_once, 10);
        let later = (1..=1000)
            .filter(|ms| bucket.take(start + ms * 1_000_000, 20, 10))
            .count();
        assert_eq!(later, 20);
        assert!(bucket.take(start + 60_000_000_000, 20, 10));
    }

    #[test]
    fn a_token_that_is_given_back_can_be_taken_again_and_none_beyond_the_burst() {
        let now = 5_000_000_000;
        let mut bucket = Bucket::default();
        bucket.give(20);
        let at_once = |bucket: &mut Bucket| (0..100).filter(|_| bucket.take(now, 20, 10)).count();
        assert_eq!(at_once(&mut bucket), 10);
        for _ in 0..3 {
            bucket.give(20);
        }
        assert_eq!(at_once(&mut bucket), 3);
        for _ in 0..100 {
            bucket.give(20);
        }
        assert_eq!(at_once(&mut bucket), 10);
    }

    #[test]
    fn neighbour_header_carries_the_tags_in_order() {
        let n = Neighbour::new(7, [1; 6], [2; 6], 200, 101, 0x88a8);
        assert_eq!(n.l2_len, 22);
        assert_eq!(&n.l2[12..20], &[0x88, 0xa8, 0, 200, 0x81, 0, 0, 101]);
        assert_eq!(Neighbour::new(7, [1; 6], [2; 6], 101, 0, 0x8100).l2_len, 18);
        assert_eq!(Neighbour::new(7, [1; 6], [2; 6], 0, 0, 0x8100).l2_len, 14);
    }
}
