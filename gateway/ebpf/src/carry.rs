//! From one end to the other: whose it is, and how it leaves.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_ktime_get_ns, bpf_redirect},
    programs::XdpContext,
};
use gateway_common::maps::{Circuit, End, Outcome};
use packet_rules::checksum::{apply_udp, delta32, fold64};

use xdp_frame::{
    Window,
    fib::{Answer, Fib, Packet},
};

use crate::{
    maps::{CIRCUITS, IDS, PORTS, STATS},
    parse::{Datagram, IPV4_LEN, IPV6_LEN, UDP, UDP_LEN},
    rate,
};

/// Hops that a datagram of the gateway's own has (`net.ipv4.ip_default_ttl`, `net.ipv6.conf.*.hop_limit` as they are by default).
const HOPS: u8 = 64;

/// Sends it on; the action, or why it is not sent. Changes nothing of the packet unless it is.
#[inline(always)]
pub fn carry<const L3: usize>(
    ctx: &XdpContext,
    d: &Datagram,
    ingress: u32,
) -> Result<u32, Outcome> {
    if u64::from_be(d.id) >> 32 == 0 {
        return Err(Outcome::Message);
    }
    // SAFETY: an entry may become another's while it is read: then the circuit below has another id.
    let place = unsafe { IDS.get(d.id) }.ok_or(Outcome::UnknownCircuit)?;
    let circuit = CIRCUITS.get(*place).ok_or(Outcome::UnknownCircuit)?;
    if circuit.id != d.id || circuit.family != d.family {
        return Err(Outcome::UnknownCircuit);
    }
    let side = if is_from(d, &circuit.ends[0]) {
        0
    } else if is_from(d, &circuit.ends[1]) {
        1
    } else {
        return Err(Outcome::WrongSource);
    };
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    if now >= until(circuit, 0) || now >= until(circuit, 1) {
        return Err(Outcome::Expired);
    }
    let to = if side == 0 {
        &circuit.ends[1]
    } else {
        &circuit.ends[0]
    };
    let mut fib = Fib::new(&Packet {
        ipv6: d.family == 6,
        protocol: UDP,
        total: d.total as u16,
        source: to.local,
        source_port: to.local_port,
        destination: to.remote,
        destination_port: to.remote_port,
    });
    match fib.ask(ctx) {
        Answer::Known => {}
        Answer::TooLong => return Err(Outcome::TooLong),
        Answer::Unresolved | Answer::None => return Err(Outcome::NoNextHop),
    }
    // SAFETY: as in `parse::frame`.
    let out = unsafe { PORTS.get(fib.ifindex) }.ok_or(Outcome::OtherInterface)?;
    if out.vlan != d.vlan || (out.device != ingress && out.target == 0) {
        return Err(Outcome::OtherInterface);
    }
    let device = out.device;
    let stats = STATS
        .get_ptr_mut(circuit.stats)
        .ok_or(Outcome::UnknownCircuit)?;
    // All that could fail is behind us but for the rate: what is drawn is sent.
    let link = Window::<12>::at(ctx, 0).ok_or(Outcome::Other)?;
    for (place, tokens) in [(circuit.buckets[0], 1), (circuit.buckets[1], d.length())] {
        match rate::take(place, now, tokens.into()) {
            rate::TAKEN => {}
            rate::EMPTY => {
                // SAFETY: as in `main::circuits`.
                unsafe { (*stats).rate += 1 };
                return Err(Outcome::OverRate);
            }
            _ => return Err(Outcome::BucketContention),
        }
    }
    if d.family == 4 {
        ipv4::<L3>(ctx, d, to)?;
    } else {
        ipv6::<L3>(ctx, d, to)?;
    }
    let (t, f) = (fib.next_hop_mac, fib.source_mac);
    link.set::<u32, 0>(u32::from_ne_bytes([t[0], t[1], t[2], t[3]]));
    link.set::<u32, 4>(u32::from_ne_bytes([t[4], t[5], f[0], f[1]]));
    link.set::<u32, 8>(u32::from_ne_bytes([f[2], f[3], f[4], f[5]]));
    // SAFETY: as in `main::circuits`.
    unsafe {
        if side == 0 {
            (*stats).datagrams[0] += 1;
            (*stats).bytes[0] += u64::from(d.length());
        } else {
            (*stats).datagrams[1] += 1;
            (*stats).bytes[1] += u64::from(d.length());
        }
    }
    if device == ingress {
        return Ok(xdp_action::XDP_TX);
    }
    // SAFETY: no memory is passed.
    Ok(unsafe { bpf_redirect(device, 0) } as u32)
}

#[inline(always)]
fn is_from(d: &Datagram, end: &End) -> bool {
    let mut differs =
        u32::from(d.source_port ^ end.remote_port) | u32::from(d.destination_port ^ end.local_port);
    for n in 0..4 {
        differs |= d.source[n] ^ end.remote[n];
        differs |= d.destination[n] ^ end.local[n];
    }
    differs == 0
}

#[inline(always)]
fn until(circuit: &Circuit, side: usize) -> u64 {
    // SAFETY: it is part of a map value; user space stores it, eight bytes at once.
    unsafe { core::ptr::read_volatile(&raw const circuit.expires[side]) }
}

/// The UDP checksum for the new addresses and ports; none stays none, and none comes to be (RFC 768).
#[inline(always)]
fn udp_check(d: &Datagram, to: &End) -> u16 {
    let mut delta = delta32(d.source_port.into(), to.local_port.into())
        + delta32(d.destination_port.into(), to.remote_port.into());
    for n in 0..4 {
        delta += delta32(d.source[n], to.local[n]) + delta32(d.destination[n], to.remote[n]);
    }
    apply_udp(d.check, delta)
}

/// A header as the gateway's socket has it: no fragments, no service, its own hops.
#[inline(always)]
fn ipv4<const L3: usize>(ctx: &XdpContext, d: &Datagram, to: &End) -> Result<(), Outcome> {
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

/// The flow label is the circuit's (RFC 6437): some of its id, which was drawn at random.
#[inline(always)]
fn ipv6<const L3: usize>(ctx: &XdpContext, d: &Datagram, to: &End) -> Result<(), Outcome> {
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
