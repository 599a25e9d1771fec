//! Encrypted tunnels: steers packets and datagrams to workers, and bounds the handshakes that reach
//! the daemon.
//!
//! ```text
//!   access:  IP packet ─▶ [slot, hash | segment header | IP packet] ─▶ XSKS ─▶ worker seals
//!   uplink:  type 4, index in SESSIONS ................................ XSKS ─▶ worker opens
//!            types 1 to 3, within the source's budget ................. PASS ─▶ the daemon's socket
//!            a gateway's message, within the source's budget .......... PASS ─▶ the daemon's socket
//!            else ..................................................... DROP, counted
//! ```
//!
//! A message may follow a circuit ID: eight bytes of which the third and fourth are not both zero,
//! as they are in a message type (`docs/gateway.md`). The ID is not checked here: the message
//! behind it is authenticated in any case.
//!
//! A datagram behind IP options, extension headers or a fragment header is dropped: the kernel's
//! stack would deliver it to the daemon, past the budgets.
//!
//! A datagram that is dropped here costs no curve arithmetic and no authentication.

use appliance_common::{
    counters::Counter,
    limits::{
        HANDSHAKES_FROM_PEERS, HANDSHAKES_FROM_UNKNOWN, HANDSHAKES_PER_SOURCE, MAX_QUEUES,
        MAX_STACK_HEADERS,
    },
    maps::{Bucket, NO_XSK},
    wire::{CIRCUIT_MESSAGE_BYTES, IPPROTO_UDP, SECURE_DATA_MIN, SEGMENT_IP, WORKER_HEADER_LEN},
};
use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_ktime_get_ns, bpf_xdp_adjust_head},
    programs::XdpContext,
};

use packet_rules::ipv6::{FRAGMENT, is_extension};

use crate::{
    helper::{
        addr::{Words, bytes},
        bytes::load,
        encap::Inner,
        packet::{Outcome, Window, trim},
    },
    maps::{HANDSHAKE_BUDGET, HANDSHAKE_SOURCES, PEER_ADDRESSES, SESSIONS, XSKS},
};

/// Gives the packet whose IP header is at `L3` to the worker of its queue, which seals it.
#[inline(always)]
pub fn to_seal<const L3: usize>(ctx: &XdpContext, vni: u32, inner: &Inner) -> Outcome {
    if !trim(ctx, L3 + inner.len) {
        return Outcome::Drop(Counter::DropAdjust);
    }
    // SAFETY: no pointer into the packet outlives the call; the verifier checks it.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, L3 as i32 - WORKER_HEADER_LEN as i32) } != 0 {
        return Outcome::Drop(Counter::DropAdjust);
    }
    let Some(w) = Window::<WORKER_HEADER_LEN>::at(ctx, 0) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    w.set::<u32, 0>(inner.slot);
    w.set::<u32, 4>(inner.hash);
    w.set::<u32, 8>((((SEGMENT_IP as u32) << 24) | vni).to_be());
    w.set::<u32, 12>(0);
    redirect(ctx, inner.xsk, Counter::ToSeal)
}

/// Redirects to the socket of the queue that the frame came in on. XDP cannot redirect to the
/// socket of another queue.
#[inline(always)]
fn redirect(ctx: &XdpContext, xsk: u16, counter: Counter) -> Outcome {
    // SAFETY: the context is valid while the program runs.
    let queue = unsafe { (*ctx.ctx).rx_queue_index };
    if xsk == NO_XSK || queue >= MAX_QUEUES {
        return Outcome::Drop(Counter::DropNoWorker);
    }
    match XSKS.redirect(xsk as u32 + queue, xdp_action::XDP_DROP as u64) {
        Ok(action) => Outcome::Send(counter, action),
        Err(_) => Outcome::Drop(Counter::DropNoWorker),
    }
}

/// Bytes of a message of type 1, 2 or 3; zero for any other.
#[inline(always)]
const fn handshake_len(kind: u8) -> usize {
    match kind {
        1 => 148,
        2 => 92,
        3 => 64,
        _ => 0,
    }
}

/// Steers a datagram of `len` bytes at `AT` to the encrypted tunnels' port, from `source`. Layouts:
/// `tunnel::wire`.
#[inline(never)]
pub fn steer<const AT: usize>(ctx: &XdpContext, xsk: u16, len: usize, source: &Words) -> Outcome {
    let Some(w) = Window::<8>::at(ctx, AT) else {
        return Outcome::Drop(Counter::DropBadDatagram);
    };
    let [_, _, r1, r2] = w.get::<u32, 0>().to_ne_bytes();
    let (first, second, len) = if r1 | r2 == 0 {
        (w.get::<u32, 0>(), w.get::<u32, 4>(), len)
    } else {
        // A circuit ID comes first.
        let Some(message) = after_circuit_id::<AT>(ctx) else {
            return Outcome::Drop(Counter::DropBadDatagram);
        };
        (
            message as u32,
            (message >> 32) as u32,
            len.saturating_sub(8),
        )
    };
    let [kind, cipher, r1, r2] = first.to_ne_bytes();
    if kind == 4 {
        if len < SECURE_DATA_MIN || cipher > 1 || r1 != 0 || r2 != 0 {
            return Outcome::Drop(Counter::DropBadDatagram);
        }
        if SESSIONS.get_ptr(u32::from_le(second)).is_none() {
            return Outcome::Drop(Counter::DropUnknownSession);
        }
        return redirect(ctx, xsk, Counter::ToOpen);
    }
    let expected = handshake_len(kind);
    let is_handshake = expected != 0 && len == expected && cipher == 0 && r1 == 0 && r2 == 0;
    // A gateway's message to the end of a circuit begins with eight zero bytes.
    let is_message = first | second == 0 && len == CIRCUIT_MESSAGE_BYTES;
    if !is_handshake && !is_message {
        return Outcome::Drop(Counter::DropBadDatagram);
    }
    if within_budget(source) {
        Outcome::Pass(Counter::HandshakePassed)
    } else {
        Outcome::Drop(Counter::DropHandshakeRate)
    }
}

/// The eight bytes behind the circuit ID at `AT`, the first byte lowest.
#[inline(never)]
fn after_circuit_id<const AT: usize>(ctx: &XdpContext) -> Option<u64> {
    let w = Window::<16>::at(ctx, AT)?;
    Some(u64::from(w.get::<u32, 8>()) | u64::from(w.get::<u32, 12>()) << 32)
}

/// Whether the UDP header at `at` is to `port`, host byte order.
///
/// For a header behind IP options: peers send none, but the kernel's stack would deliver such a
/// datagram to the daemon, past the budgets here.
#[inline(never)]
pub fn is_udp_to(ctx: &XdpContext, at: u32, port: u32) -> bool {
    load::<2>(ctx, at + 2).is_some_and(|bytes| u32::from(u16::from_be_bytes(bytes)) == port)
}

/// Whether the headers at `AT`, the first of type `next`, may lead to a datagram to `port`, host
/// byte order, that the kernel's stack would deliver to the daemon, past the budgets here.
///
/// True also for a packet that ends, at `end`, before its headers do, and for one with more than
/// [`MAX_STACK_HEADERS`] headers, which no stack sends. False for a later fragment: without the
/// first, the kernel delivers nothing.
#[inline(never)]
pub fn may_reach_udp_port<const AT: u32>(ctx: &XdpContext, next: u32, port: u32, end: u32) -> bool {
    let mut at = AT;
    let mut next = next as u8;
    for _ in 0..MAX_STACK_HEADERS {
        if next != IPPROTO_UDP && next != FRAGMENT && !is_extension(next) {
            return false;
        }
        // Each of these headers, and that of UDP, has at least eight bytes.
        if at + 8 > end {
            return true;
        }
        if next == IPPROTO_UDP {
            return is_udp_to(ctx, at, port);
        }
        let Some([following, words, high, low]) = load::<4>(ctx, at) else {
            return true;
        };
        if next != FRAGMENT {
            at += (u32::from(words) + 1) * 8;
        } else if u16::from_be_bytes([high, low]) & 0xfff8 == 0 {
            at += 8;
        } else {
            return false;
        }
        next = following;
    }
    true
}

/// Whether a handshake message from `source` is within the budget of its source, and of all unknown
/// sources. For IPv6 a source is a /64: within one, a sender may choose addresses freely. Addresses
/// of peers share one budget: an attacker that forges an address could use up a budget of its own.
#[inline(always)]
fn within_budget(source: &Words) -> bool {
    // SAFETY: the helper takes nothing and only reads a clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let address = bytes(*source);
    if PEER_ADDRESSES.get_ptr(address).is_some() {
        return take(1, now, HANDSHAKES_FROM_PEERS, HANDSHAKES_FROM_PEERS / 10);
    }
    let mapped = source[0] == 0 && source[1] == 0 && source[2] == u32::from_be(0xffff);
    let share = if mapped {
        address
    } else {
        bytes([source[0], source[1], 0, 0])
    };
    match HANDSHAKE_SOURCES.get_ptr_mut(share) {
        Some(bucket) => {
            // SAFETY: the map returned the value; when two CPUs race, one more handshake passes.
            if !unsafe { (*bucket).take(now, HANDSHAKES_PER_SOURCE, HANDSHAKES_PER_SOURCE) } {
                return false;
            }
        }
        None => {
            let mut bucket = Bucket::default();
            bucket.take(now, HANDSHAKES_PER_SOURCE, HANDSHAKES_PER_SOURCE);
            // An LRU map evicts to make room; if it cannot, the budget of unknown sources still
            // holds.
            let _ = HANDSHAKE_SOURCES.insert(share, bucket, 0);
        }
    }
    take(0, now, HANDSHAKES_FROM_UNKNOWN, HANDSHAKES_FROM_UNKNOWN)
}

/// Takes one handshake from a budget of this CPU.
#[inline(always)]
fn take(budget: u32, now: u64, per_second: u64, burst: u64) -> bool {
    match HANDSHAKE_BUDGET.get_ptr_mut(budget) {
        // SAFETY: this CPU's slot.
        Some(bucket) => unsafe { (*bucket).take(now, per_second, burst) },
        None => false,
    }
}
