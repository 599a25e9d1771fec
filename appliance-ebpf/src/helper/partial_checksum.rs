//! Transport checksums that their sender left to an offload, and that the packet still lacks
//! (Linux: CHECKSUM_PARTIAL).
//!
//! For: counting them, of UDP by each datagram, of TCP by the SYN of each connection; those from
//! outside, which anyone can send, apart from those of hosts inside. Never: to complete one: in
//! generic mode the kernel completes it behind the program, and would do so twice.

use appliance_common::{
    checksum::{is_partial, pseudo_sum},
    counters::Counter,
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, IPPROTO_UDP, IPV4_LEN, IPV6_LEN, UDP_LEN},
};
use aya_ebpf::programs::XdpContext;
use packet_rules::{ipv4, tcp};

use crate::helper::{addr::Words, bytes::FrameBytes, count::count, packet::Window};

/// Offset of the checksum in the UDP header.
const UDP_CHECKSUM_AT: usize = 6;
/// First byte of an IPv4 header without options.
const VERSION_4_NO_OPTIONS: u8 = 0x45;

/// The words of two addresses, added up.
#[inline(always)]
pub fn sum_of(source: &Words, destination: &Words) -> u64 {
    let words = source.iter().chain(destination);
    words.map(|word| u64::from(*word)).sum()
}

/// Counts the segment or datagram at `start`, of `len` bytes, if it is a SYN or UDP and its
/// checksum is partial; `addresses` is the sum of the words of its addresses, `OUTSIDE` says that
/// it is from outside. Any other segment costs a load and a compare, any other datagram a sum and a
/// compare.
#[inline(always)]
pub fn count_partial<const OUTSIDE: bool>(
    ctx: &XdpContext,
    protocol: u8,
    addresses: u64,
    start: usize,
    len: usize,
) {
    let check = match protocol {
        IPPROTO_TCP => match Window::<{ tcp::HEADER_LEN }>::at(ctx, start) {
            Some(w) if tcp::is_syn(w.get::<u8, { tcp::FLAGS_AT }>()) => {
                w.get::<u16, { tcp::CHECKSUM_AT }>()
            }
            _ => return,
        },
        IPPROTO_UDP => match Window::<UDP_LEN>::at(ctx, start) {
            Some(w) => w.get::<u16, UDP_CHECKSUM_AT>(),
            None => return,
        },
        _ => return,
    };
    let pseudo = pseudo_sum(addresses, protocol, len);
    if check == pseudo {
        count_if_wrong::<OUTSIDE>(ctx, protocol, pseudo, start as u32, (start + len) as u32);
    }
}

/// Counts the packet unless its checksum, which is `pseudo`, is right by chance. Its transport
/// header is at `start`, and it ends at `end`.
#[inline(never)]
fn count_if_wrong<const OUTSIDE: bool>(
    ctx: &XdpContext,
    protocol: u8,
    pseudo: u16,
    start: u32,
    end: u32,
) {
    let (inside, at) = if protocol == IPPROTO_TCP {
        (Counter::ChecksumPartial, tcp::CHECKSUM_AT)
    } else {
        (Counter::ChecksumPartialUdp, UDP_CHECKSUM_AT)
    };
    let counter = if OUTSIDE {
        Counter::ChecksumPartialOutside
    } else {
        inside
    };
    if is_partial(&FrameBytes(ctx), pseudo, start, start + at as u32, end) {
        count(counter);
    }
}

/// Counts the IP packet at `L3` if its checksum is partial, behind a header without options or
/// extensions. `OUTSIDE` says that it is from outside.
#[inline(never)]
pub fn count_partial_checksum<const L3: usize, const OUTSIDE: bool>(
    ctx: &XdpContext,
    ethertype: u16,
) {
    match ethertype {
        ETHERTYPE_IPV4 => {
            let Some(w) = Window::<IPV4_LEN>::at(ctx, L3) else {
                return;
            };
            let total = u16::from_be(w.get::<u16, 2>()) as usize;
            let is_fragment = ipv4::is_fragment(u16::from_be(w.get::<u16, 6>()));
            if w.get::<u8, 0>() != VERSION_4_NO_OPTIONS || total < IPV4_LEN || is_fragment {
                return;
            }
            let addresses = u64::from(w.get::<u32, 12>()) + u64::from(w.get::<u32, 16>());
            let len = total - IPV4_LEN;
            count_partial::<OUTSIDE>(ctx, w.get::<u8, 9>(), addresses, L3 + IPV4_LEN, len);
        }
        ETHERTYPE_IPV6 => {
            let Some(w) = Window::<IPV6_LEN>::at(ctx, L3) else {
                return;
            };
            let addresses = sum_of(&w.get::<Words, 8>(), &w.get::<Words, 24>());
            let len = u16::from_be(w.get::<u16, 4>()) as usize;
            count_partial::<OUTSIDE>(ctx, w.get::<u8, 6>(), addresses, L3 + IPV6_LEN, len);
        }
        _ => {}
    }
}
