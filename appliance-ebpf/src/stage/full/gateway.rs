//! Packets to the gateway's own address: echo requests are answered; UDP and TCP get the errors of
//! a router without open ports (RFC 1812 section 4.3.3.1, RFC 9293 section 3.10.7.1).

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::programs::XdpContext;

use packet_rules::{ipv4::is_fragment, ipv6::FRAGMENT};

use crate::helper::{
    bytes::byte,
    echo,
    frame::Frame,
    icmp::{self, Undeliverable},
    packet::Outcome,
    reset, slow_path,
};

/// A packet to the gateway's IPv4 address, with the lengths `header` and `total`, the flags and
/// fragment field `fragment` in host byte order, and this protocol.
#[inline(always)]
pub fn ipv4<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    (header, total): (usize, usize),
    (fragment, protocol): (u16, u8),
    error: &Undeliverable,
) -> Outcome {
    let answer = echo::ipv4::<L3>(ctx, [frame.l2.source, frame.mac], header, total);
    if let Some(answered) = answer {
        return answered;
    }
    if is_fragment(fragment) {
        return self::fragment::<L3>(ctx, frame, protocol == IPPROTO_ICMP, error);
    }
    if header != IPV4_LEN {
        return Outcome::Drop(Counter::DropToGateway);
    }
    refuse::<L3>(ctx, frame, protocol, error)
}

/// A packet to the gateway's IPv6 address, of `total` bytes and with the next header `next`.
#[inline(always)]
pub fn ipv6<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    next: u8,
    total: usize,
    error: &Undeliverable,
) -> Outcome {
    let answer = echo::ipv6::<L3>(ctx, [frame.l2.source, frame.mac], next, total);
    if let Some(answered) = answer {
        return answered;
    }
    if next == FRAGMENT {
        let echo = byte(ctx, (L3 + IPV6_LEN) as u32) == Some(IPPROTO_ICMPV6);
        return fragment::<L3>(ctx, frame, echo, error);
    }
    refuse::<L3>(ctx, frame, next, error)
}

/// A fragment: of an echo request perhaps, which user space reassembles and answers.
#[inline(always)]
fn fragment<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    echo: bool,
    error: &Undeliverable,
) -> Outcome {
    if !echo {
        return Outcome::Drop(Counter::DropToGateway);
    }
    let (network, source) = (frame.network, &error.source);
    slow_path::send(ctx, network, L3 as u16, SlowReason::GatewayEcho, source)
}

/// A whole packet that is no echo request.
#[inline(always)]
fn refuse<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    protocol: u8,
    error: &Undeliverable,
) -> Outcome {
    match protocol {
        IPPROTO_UDP => icmp::unreachable::<L3>(ctx, frame, error, Counter::DropToGateway),
        IPPROTO_TCP if !error.silent => {
            reset::send(ctx, frame, L3 as u32, error.ipv6, Counter::DropToGateway)
        }
        _ => Outcome::Drop(Counter::DropToGateway),
    }
}
