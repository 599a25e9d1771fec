//! Clamps the MSS that a TCP SYN announces to what the tunnel carries.
//!
//! SYNs are rare, so this reads and writes through helpers, at any offset, rather than widen the
//! windows of the packet path.

use appliance_common::{
    checksum,
    counters::Counter,
    limits::{MAX_EXTENSION_HEADERS, MAX_TCP_OPTIONS},
};
use aya_ebpf::{
    helpers::generated::{bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    programs::XdpContext,
};

use crate::count::count;

/// The SYN bit in byte 13 of a TCP header.
pub const SYN: u8 = 0x02;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// `N` bytes of the packet at `offset`, if they are there.
#[inline(always)]
pub fn load<const N: usize>(ctx: &XdpContext, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0u8; N];
    // SAFETY: `bytes` has room for `N`.
    let failed = unsafe { bpf_xdp_load_bytes(ctx.ctx, offset, (&raw mut bytes).cast(), N as u32) };
    (failed == 0).then_some(bytes)
}

/// One byte of the packet at `offset`.
#[inline(always)]
pub fn byte(ctx: &XdpContext, offset: u32) -> Option<u8> {
    load::<1>(ctx, offset).map(|[b]| b)
}

#[inline(always)]
fn store<const N: usize>(ctx: &XdpContext, offset: u32, mut bytes: [u8; N]) -> bool {
    // SAFETY: `bytes` holds `N`.
    unsafe { bpf_xdp_store_bytes(ctx.ctx, offset, (&raw mut bytes).cast(), N as u32) == 0 }
}

/// Whether an IPv6 next-header value is an extension header that TCP may follow.
#[inline(always)]
pub const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS)
}

/// What at most [`MAX_EXTENSION_HEADERS`] extension headers, the first at `offset` with type `next`,
/// lead to in a packet that ends at `end`: the protocol in the upper and its offset in the lower 32
/// bits. 0 (hop-by-hop, which nothing may follow with) where the packet ends or the walk does.
#[inline(never)]
pub fn behind_extensions(ctx: &XdpContext, offset: u32, next: u8, end: u32) -> u64 {
    let mut offset = offset;
    let mut next = next;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        if offset + 8 > end {
            return 0;
        }
        let Some([following, words]) = load::<2>(ctx, offset) else {
            return 0;
        };
        next = following;
        offset += (u32::from(words) + 1) * 8;
    }
    if is_extension(next) || offset >= end {
        return 0;
    }
    u64::from(next) << 32 | u64::from(offset)
}

/// Lowers the MSS option of the SYN whose TCP header is at `offset`, in a packet that ends at `end`, to
/// `limit` bytes, if it is higher, and mends the checksum (RFC 1624). Without the option the peer assumes 536 (RFC 9293 section
/// 3.7.1), which always fits. Malformed options are left as they are: the receiver refuses them.
#[inline(never)]
pub fn clamp(ctx: &XdpContext, offset: u32, end: u32, limit: u16) {
    if offset + 20 > end {
        return;
    }
    let Some([length, flags]) = load::<2>(ctx, offset + 12) else {
        return;
    };
    if flags & SYN == 0 {
        return;
    }
    let options_end = offset + u32::from(length >> 4) * 4;
    if options_end > end {
        return;
    }
    let mut at = offset + 20;
    for _ in 0..MAX_TCP_OPTIONS {
        if at >= options_end {
            return;
        }
        match byte(ctx, at) {
            None | Some(0) => return,
            Some(1) => {
                at += 1;
                continue;
            }
            Some(2) => {
                let Some([_, 4, high, low]) = load::<4>(ctx, at) else {
                    return;
                };
                if at + 4 > options_end {
                    return;
                }
                lower(ctx, offset, at + 2, u16::from_be_bytes([high, low]), limit);
                return;
            }
            Some(_) => {
                let Some([_, size]) = load::<2>(ctx, at) else {
                    return;
                };
                if size < 2 {
                    return;
                }
                at += u32::from(size);
            }
        }
    }
}

/// Writes `limit` over `mss` at `at`, when it is lower.
#[inline(always)]
fn lower(ctx: &XdpContext, tcp: u32, at: u32, mss: u16, limit: u16) {
    if mss <= limit {
        return;
    }
    let Some(check) = load::<2>(ctx, tcp + 16) else {
        return;
    };
    // Words of the checksum begin at even offsets of the TCP header; an option at an odd one
    // changes the low half of one word and the high half of the next, which is the same sum with
    // the bytes exchanged.
    let (old, new) = if (at - tcp) & 1 == 0 {
        (mss.to_be(), limit.to_be())
    } else {
        (mss.to_be().swap_bytes(), limit.to_be().swap_bytes())
    };
    let check = checksum::update(u16::from_ne_bytes(check), old, new);
    if store(ctx, at, limit.to_be_bytes()) && store(ctx, tcp + 16, check.to_ne_bytes()) {
        count(Counter::MssClamped);
    }
}
