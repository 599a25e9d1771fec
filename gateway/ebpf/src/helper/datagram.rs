//! Parses UDP datagrams with plain headers.

use aya_ebpf::programs::XdpContext;
use gateway_common::maps::{Address, Outcome};
use packet_rules::checksum::fold64;
pub use packet_rules::{ipv4::HEADER_LEN as IPV4_LEN, ipv6::HEADER_LEN as IPV6_LEN};
use xdp_frame::{Window, frame_len};

/// IP protocol (RFC 768).
pub const UDP: u8 = 17;
const IPV6_FRAGMENT: u8 = 44;
/// Offset of the IP header in an untagged frame.
pub const UNTAGGED: usize = 14;
/// Offset of the IP header behind one VLAN tag.
pub const TAGGED: usize = 18;
/// UDP header, bytes.
pub const UDP_LEN: usize = 8;
/// The least payload of a circuit's datagram, bytes: its ID and one byte.
const MIN_PAYLOAD: usize = 9;
/// The longest padding behind the packet, bytes: that of the shortest Ethernet frame.
const MAX_PADDING: usize = 46;

/// The parts of a UDP datagram that forwarding reads.
pub struct Datagram {
    /// 4 or 6.
    pub family: u32,
    /// Bytes of the IP packet.
    pub total: u32,
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    /// The UDP checksum; zero: none.
    pub check: u16,
    /// The VLAN that it came in on; 0: untagged. So it tells where the IP header is.
    pub vlan: u16,
    /// The first eight bytes of the payload, memory order.
    pub id: u64,
}

impl Datagram {
    /// Bytes behind the UDP header.
    #[inline(always)]
    pub const fn length(&self) -> u32 {
        let headers = if self.family == 4 { IPV4_LEN } else { IPV6_LEN };
        self.total - (headers + UDP_LEN) as u32
    }
}

/// Whether the lengths of the packet, of the datagram with its IP header, and of the frame agree.
#[inline(always)]
fn fits<const L3: usize>(ctx: &XdpContext, total: usize, datagram: usize, header: usize) -> bool {
    let rest = frame_len(ctx).wrapping_sub(L3);
    total == datagram + header && total <= rest && rest - total <= MAX_PADDING
}

/// Parses the IPv4 packet at `L3`.
///
/// # Errors
/// Why it is not forwarded.
#[inline(always)]
pub fn ipv4<const L3: usize>(ctx: &XdpContext, vlan: u16) -> Result<Datagram, Outcome> {
    let w = Window::<{ IPV4_LEN + UDP_LEN + MIN_PAYLOAD }>::at(ctx, L3).ok_or(Outcome::Other)?;
    if w.get::<u8, 9>() != UDP {
        return Err(Outcome::Other);
    }
    if w.get::<u8, 0>() != 0x45 {
        return Err(Outcome::Options);
    }
    // Any bit but "don't fragment".
    if w.get::<u16, 6>() & !0x4000u16.to_be() != 0 {
        return Err(Outcome::Fragment);
    }
    let total = usize::from(u16::from_be(w.get::<u16, 2>()));
    let datagram = usize::from(u16::from_be(w.get::<u16, 24>()));
    let (source, destination) = (w.get::<u32, 12>(), w.get::<u32, 16>());
    let sum = u64::from(w.get::<u32, 0>())
        + u64::from(w.get::<u32, 4>())
        + u64::from(w.get::<u32, 8>())
        + u64::from(source)
        + u64::from(destination);
    // Forwarding writes a new header, which would hide an error in the old one.
    if datagram < UDP_LEN + MIN_PAYLOAD
        || !fits::<L3>(ctx, total, datagram, IPV4_LEN)
        || fold64(sum) != 0xffff
    {
        return Err(Outcome::Malformed);
    }
    Ok(Datagram {
        family: 4,
        total: total as u32,
        source: [0, 0, 0, source],
        destination: [0, 0, 0, destination],
        source_port: w.get::<u16, 20>(),
        destination_port: w.get::<u16, 22>(),
        check: w.get::<u16, 26>(),
        vlan,
        id: w.get::<u64, 28>(),
    })
}

/// Parses the IPv6 packet at `L3`.
///
/// # Errors
/// Why it is not forwarded.
#[inline(always)]
pub fn ipv6<const L3: usize>(ctx: &XdpContext, vlan: u16) -> Result<Datagram, Outcome> {
    let w = Window::<{ IPV6_LEN + UDP_LEN + MIN_PAYLOAD }>::at(ctx, L3).ok_or(Outcome::Other)?;
    match w.get::<u8, 6>() {
        UDP => {}
        IPV6_FRAGMENT => return Err(Outcome::Fragment),
        _ => return Err(Outcome::Other),
    }
    let payload = usize::from(u16::from_be(w.get::<u16, 4>()));
    let datagram = usize::from(u16::from_be(w.get::<u16, 44>()));
    let total = payload + IPV6_LEN;
    let check = w.get::<u16, 46>();
    if w.get::<u8, 0>() >> 4 != 6
        || datagram < UDP_LEN + MIN_PAYLOAD
        || !fits::<L3>(ctx, total, datagram, IPV6_LEN)
        // IPv6 requires one (RFC 8200 section 8.1).
        || check == 0
    {
        return Err(Outcome::Malformed);
    }
    Ok(Datagram {
        family: 6,
        total: total as u32,
        source: w.get::<Address, 8>(),
        destination: w.get::<Address, 24>(),
        source_port: w.get::<u16, 40>(),
        destination_port: w.get::<u16, 42>(),
        check,
        vlan,
        id: w.get::<u64, 48>(),
    })
}
