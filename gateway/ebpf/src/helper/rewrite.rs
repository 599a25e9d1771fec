//! Writes the gateway's own headers over those of a datagram. The payload stays.

use aya_ebpf::programs::XdpContext;
use gateway_common::maps::{End, Outcome};
use packet_rules::checksum::{apply_udp, delta32, fold64};
use xdp_frame::Window;

use crate::helper::datagram::{Datagram, IPV4_LEN, IPV6_LEN, UDP_LEN};

/// Hop limit of forwarded datagrams, as of the gateway's sockets (defaults of
/// `net.ipv4.ip_default_ttl` and `net.ipv6.conf.*.hop_limit`).
const HOPS: u8 = 64;

/// The UDP checksum for the new addresses and ports.
#[inline(always)]
fn udp_check(d: &Datagram, to: &End) -> u16 {
    let mut delta = delta32(d.source_port.into(), to.local_port.into())
        + delta32(d.destination_port.into(), to.remote_port.into());
    for n in 0..4 {
        delta += delta32(d.source[n], to.local[n]) + delta32(d.destination[n], to.remote[n]);
    }
    apply_udp(d.check, delta)
}

/// Writes an IPv4 header as the gateway's socket does: no fragment, DSCP 0.
///
/// # Errors
/// When the frame does not reach so far.
#[inline(always)]
pub fn ipv4<const L3: usize>(ctx: &XdpContext, d: &Datagram, to: &End) -> Result<(), Outcome> {
    let w = Window::<{ IPV4_LEN + UDP_LEN }>::at(ctx, L3).ok_or(Outcome::Other)?;
    let words = [
        (0x4500_0000 | d.total).to_be(),
        0x0000_4000u32.to_be(),
        (u32::from(HOPS) << 24 | 17 << 16).to_be(),
        to.local[3],
        to.remote[3],
    ];
    let mut sum = 0;
    for word in words {
        sum += u64::from(word);
    }
    w.set::<u32, 0>(words[0]);
    w.set::<u32, 4>(words[1]);
    w.set::<u32, 8>(words[2]);
    w.set::<u16, 10>(!fold64(sum));
    w.set::<u32, 12>(words[3]);
    w.set::<u32, 16>(words[4]);
    w.set::<u16, 20>(to.local_port);
    w.set::<u16, 22>(to.remote_port);
    w.set::<u16, 26>(udp_check(d, to));
    Ok(())
}

/// Writes an IPv6 header. The flow label is taken from the circuit's random ID (RFC 6437).
///
/// # Errors
/// When the frame does not reach so far.
#[inline(always)]
pub fn ipv6<const L3: usize>(ctx: &XdpContext, d: &Datagram, to: &End) -> Result<(), Outcome> {
    let w = Window::<{ IPV6_LEN + UDP_LEN }>::at(ctx, L3).ok_or(Outcome::Other)?;
    let label = u64::from_be(d.id) as u32 & 0xf_ffff;
    w.set::<u32, 0>((0x6000_0000 | label).to_be());
    w.set::<u8, 7>(HOPS);
    w.set::<[u32; 4], 8>(to.local);
    w.set::<[u32; 4], 24>(to.remote);
    w.set::<u16, 40>(to.local_port);
    w.set::<u16, 42>(to.remote_port);
    w.set::<u16, 46>(udp_check(d, to));
    Ok(())
}
