//! From one end of a circuit to the other: the checks, the next hop, and the way out.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_ktime_get_ns, bpf_redirect},
    programs::XdpContext,
};
use gateway_common::maps::{Circuit, End, Outcome};
use packet_rules::circuit::MESSAGE_BYTES;
use xdp_frame::{
    Window,
    fib::{Answer, Fib, Packet},
};

use crate::{
    helper::{
        admission,
        datagram::{Datagram, IPV4_LEN, IPV6_LEN, TAGGED, UDP, UDP_LEN, UNTAGGED},
        rate, rewrite,
    },
    maps::{ADMISSION, CIRCUITS, IDS, KNOWN, PORTS, STATS},
};

/// Offset of the circuit ID in a message (docs/gateway.md).
const MESSAGE_ID: usize = 12;

/// Forwards a datagram and returns the XDP action. Writes to the packet only if it is forwarded.
///
/// # Errors
/// Why it is not forwarded.
#[inline(always)]
pub fn forward(ctx: &XdpContext, d: &Datagram, ingress: u32) -> Result<u32, Outcome> {
    if u64::from_be(d.id) >> 32 == 0 {
        return Err(Outcome::Message);
    }
    // SAFETY: an entry may be recycled for another circuit meanwhile: then the circuit below has
    // another ID.
    let slot = unsafe { IDS.get(d.id) }.ok_or(Outcome::UnknownCircuit)?;
    let circuit = CIRCUITS.get(*slot).ok_or(Outcome::UnknownCircuit)?;
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
    if now >= expires(circuit, 0) || now >= expires(circuit, 1) {
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
    match fib.lookup(ctx) {
        Answer::Known => {}
        Answer::TooLong => return Err(Outcome::TooLong),
        Answer::Unresolved | Answer::None => return Err(Outcome::NoNextHop),
    }
    // SAFETY: as in `classify::process`.
    let out = unsafe { PORTS.get(fib.ifindex) }.ok_or(Outcome::OtherInterface)?;
    if out.vlan != d.vlan || (out.device != ingress && out.target == 0) {
        return Err(Outcome::OtherInterface);
    }
    let device = out.device;
    let stats = STATS
        .get_ptr_mut(circuit.stats)
        .ok_or(Outcome::UnknownCircuit)?;
    // Everything that can fail is above, but for the rate: tokens that are taken are used.
    let link = Window::<12>::at(ctx, 0).ok_or(Outcome::Other)?;
    let mut is_second = false;
    for (slot, tokens) in [(circuit.buckets[0], 1), (circuit.buckets[1], d.length())] {
        match rate::take(slot, now, tokens.into()) {
            rate::TAKEN => {}
            rate::EMPTY => {
                // SAFETY: as in `main::circuits`.
                unsafe { (*stats).rate += 1 };
                return Err(Outcome::OverRate);
            }
            _ => {
                // User space pays for the datagram.
                if is_second {
                    rate::refund(circuit.buckets[0], 1);
                }
                return Err(Outcome::BucketContention);
            }
        }
        is_second = true;
    }
    match (d.family, d.vlan) {
        (4, 0) => rewrite::ipv4::<UNTAGGED>(ctx, d, to)?,
        (4, _) => rewrite::ipv4::<TAGGED>(ctx, d, to)?,
        (_, 0) => rewrite::ipv6::<UNTAGGED>(ctx, d, to)?,
        (_, _) => rewrite::ipv6::<TAGGED>(ctx, d, to)?,
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

/// The outcome of a datagram that user space would get for the reason `why`: that, or why it is
/// dropped.
#[inline(always)]
pub fn admit(ctx: &XdpContext, d: &Datagram, why: Outcome) -> Outcome {
    let Some(admission) = ADMISSION.get(0) else {
        return why;
    };
    let port = u32::from(d.destination_port);
    if admission.complete == 0 || !admission::is_listened(admission, d.family, &d.destination, port)
    {
        return why;
    }
    let is_message = matches!(why, Outcome::Message);
    let id = if !is_message {
        d.id
    } else if d.id != 0 || d.length() != MESSAGE_BYTES as u32 {
        return Outcome::BadDatagram;
    } else {
        match (d.family, d.vlan) {
            (4, 0) => message_id::<{ UNTAGGED + IPV4_LEN }>(ctx),
            (4, _) => message_id::<{ TAGGED + IPV4_LEN }>(ctx),
            (_, 0) => message_id::<{ UNTAGGED + IPV6_LEN }>(ctx),
            (_, _) => message_id::<{ TAGGED + IPV6_LEN }>(ctx),
        }
    };
    let Some(known) = KNOWN.get_ptr_mut(id) else {
        return Outcome::NoCircuit;
    };
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    if admission::admit(admission, (id, known), d, is_message, now) {
        why
    } else {
        Outcome::UnboundRate
    }
}

/// The circuit ID of the message whose UDP header is at `L4`; zero if the frame is shorter.
#[inline(always)]
fn message_id<const L4: usize>(ctx: &XdpContext) -> u64 {
    let window = Window::<8>::at(ctx, L4 + UDP_LEN + MESSAGE_ID);
    window.map_or(0, |window| window.get::<u64, 0>())
}

/// Whether the datagram has the addresses and ports of this end.
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

/// When the binding of a side ends.
#[inline(always)]
fn expires(circuit: &Circuit, side: usize) -> u64 {
    // SAFETY: part of a map value, which user space stores eight bytes at a time.
    unsafe { core::ptr::read_volatile(&raw const circuit.expires[side]) }
}
