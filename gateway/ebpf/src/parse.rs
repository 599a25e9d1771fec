//! Is it a datagram, and a plain one?

use aya_ebpf::programs::XdpContext;
use gateway_common::maps::{Address, Outcome};
use packet_rules::checksum::fold64;

use xdp_frame::{Window, frame_len, ingress};

use crate::{carry, maps::PORTS};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_8021Q: u16 = 0x8100;
/// IP protocol (RFC 768).
pub const UDP: u8 = 17;
const IPV6_FRAGMENT: u8 = 44;
/// Bytes of the headers.
pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
pub const UDP_LEN: usize = 8;
/// An id and a byte behind it: what a datagram of a circuit has at least.
const LEAST: usize = 9;
/// Bytes behind the packet at most: what fills a short frame, no more.
const MAX_PADDING: usize = 46;

/// A UDP datagram, all that is asked of it.
pub struct Datagram {
    /// 4 or 6.
    pub family: u32,
    /// Bytes of the IP packet.
    pub total: u32,
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    /// The checksum; zero: there is none.
    pub check: u16,
    /// The VLAN that it came by; 0: untagged.
    pub vlan: u16,
    /// The first eight bytes, as they are.
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

/// The action for a frame that is carried; or why it is not.
#[inline(always)]
pub fn frame(ctx: &XdpContext) -> Result<u32, Outcome> {
    let w = Window::<14>::at(ctx, 0).ok_or(Outcome::Other)?;
    let ingress = ingress(ctx);
    // SAFETY: an entry is replaced whole, and only when the interface has changed.
    let port = unsafe { PORTS.get(ingress) }.ok_or(Outcome::NotForUs)?;
    let m = port.mac;
    let is_ours = w.get::<u32, 0>() == u32::from_ne_bytes([m[0], m[1], m[2], m[3]])
        && w.get::<u16, 4>() == u16::from_ne_bytes([m[4], m[5]]);
    if !is_ours {
        return Err(Outcome::NotForUs);
    }
    match u16::from_be(w.get::<u16, 12>()) {
        ETHERTYPE_IPV4 => ipv4::<14>(ctx, ingress, 0),
        ETHERTYPE_IPV6 => ipv6::<14>(ctx, ingress, 0),
        ETHERTYPE_8021Q => {
            let w = Window::<18>::at(ctx, 0).ok_or(Outcome::Other)?;
            let vlan = u16::from_be(w.get::<u16, 14>()) & 0x0fff;
            // A priority tag is of no VLAN, and would go out again.
            if vlan == 0 {
                return Err(Outcome::Other);
            }
            match u16::from_be(w.get::<u16, 16>()) {
                ETHERTYPE_IPV4 => ipv4::<18>(ctx, ingress, vlan),
                ETHERTYPE_IPV6 => ipv6::<18>(ctx, ingress, vlan),
                _ => Err(Outcome::Other),
            }
        }
        _ => Err(Outcome::Other),
    }
}

/// Whether the lengths agree: of the packet, of the datagram with the header in front of it, and of the frame.
#[inline(always)]
fn fits<const L3: usize>(ctx: &XdpContext, total: usize, datagram: usize, header: usize) -> bool {
    let rest = frame_len(ctx).wrapping_sub(L3);
    total == datagram + header && total <= rest && rest - total <= MAX_PADDING
}

#[inline(always)]
fn ipv4<const L3: usize>(ctx: &XdpContext, ingress: u32, vlan: u16) -> Result<u32, Outcome> {
    let w = Window::<{ IPV4_LEN + UDP_LEN + LEAST }>::at(ctx, L3).ok_or(Outcome::Other)?;
    if w.get::<u8, 9>() != UDP {
        return Err(Outcome::Other);
    }
    if w.get::<u8, 0>() != 0x45 {
        return Err(Outcome::Options);
    }
    // All but "don't fragment".
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
    // The header is made anew, so that what was wrong with it would be made right.
    if datagram < UDP_LEN + LEAST
        || !fits::<L3>(ctx, total, datagram, IPV4_LEN)
        || fold64(sum) != 0xffff
    {
        return Err(Outcome::Malformed);
    }
    let datagram = Datagram {
        family: 4,
        total: total as u32,
        source: [0, 0, 0, source],
        destination: [0, 0, 0, destination],
        source_port: w.get::<u16, 20>(),
        destination_port: w.get::<u16, 22>(),
        check: w.get::<u16, 26>(),
        vlan,
        id: w.get::<u64, 28>(),
    };
    carry::carry::<L3>(ctx, &datagram, ingress)
}

#[inline(always)]
fn ipv6<const L3: usize>(ctx: &XdpContext, ingress: u32, vlan: u16) -> Result<u32, Outcome> {
    let w = Window::<{ IPV6_LEN + UDP_LEN + LEAST }>::at(ctx, L3).ok_or(Outcome::Other)?;
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
        || datagram < UDP_LEN + LEAST
        || !fits::<L3>(ctx, total, datagram, IPV6_LEN)
        // Not without one (RFC 8200 section 8.1).
        || check == 0
    {
        return Err(Outcome::Malformed);
    }
    let datagram = Datagram {
        family: 6,
        total: total as u32,
        source: w.get::<Address, 8>(),
        destination: w.get::<Address, 24>(),
        source_port: w.get::<u16, 40>(),
        destination_port: w.get::<u16, 42>(),
        check,
        vlan,
        id: w.get::<u64, 48>(),
    };
    carry::carry::<L3>(ctx, &datagram, ingress)
}
