//! The next hop, and the interface to it: the kernel's, from its FIB and its neighbours.

use aya_ebpf::{bindings::bpf_fib_lookup, helpers::generated, programs::XdpContext};

/// `struct bpf_fib_lookup` of include/uapi/linux/bpf.h. Numbers in network byte order unless they say otherwise.
#[repr(C)]
pub struct Fib {
    family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    /// Bytes of the packet, host byte order; then the MTU, if they are more.
    pub total: u16,
    /// Whence it comes; then, where it goes out. Host byte order.
    pub ifindex: u32,
    /// Type of service, or flow information.
    flow_info: u32,
    /// IPv4 in the first word.
    source: [u32; 4],
    destination: [u32; 4],
    vlan: u32,
    /// Of the interface where it goes out, once it is known.
    pub source_mac: [u8; 6],
    /// Of the next hop, once it is known.
    pub next_hop_mac: [u8; 6],
}

const _: () = assert!(size_of::<Fib>() == 64 && size_of::<Fib>() == size_of::<bpf_fib_lookup>());

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The loopback device: where the kernel says that what it sends itself comes from (`LOOPBACK_IFINDEX`). A question about a packet of
/// a real interface would want forwarding switched on there, and with it the kernel would forward what is none of ours.
const LOOPBACK: u32 = 1;

/// What is asked about. Addresses and ports in network byte order; IPv4 in the last word, as in IPv4-mapped IPv6 (RFC 4291 section
/// 2.5.5.2).
pub struct Packet {
    /// IPv6, or IPv4.
    pub ipv6: bool,
    /// IP protocol.
    pub protocol: u8,
    /// Bytes, from the IP header on.
    pub total: u16,
    /// Whence.
    pub source: [u32; 4],
    /// Its port, or 0.
    pub source_port: u16,
    /// Where to.
    pub destination: [u32; 4],
    /// Its port, or 0.
    pub destination_port: u16,
}

/// What the kernel answers (`BPF_FIB_LKUP_RET_*`).
pub enum Answer {
    /// The interface and both link-layer addresses are known.
    Known,
    /// There is a next hop on the interface, and its link-layer address is not known yet.
    Unresolved,
    /// The packet is longer than the way's MTU, which is in [`Fib::total`] now.
    TooLong,
    /// There is no way.
    None,
}

impl Fib {
    /// The question.
    #[inline(always)]
    pub fn new(packet: &Packet) -> Self {
        let (source, destination) = if packet.ipv6 {
            (packet.source, packet.destination)
        } else {
            (
                [packet.source[3], 0, 0, 0],
                [packet.destination[3], 0, 0, 0],
            )
        };
        Self {
            family: if packet.ipv6 { AF_INET6 } else { AF_INET },
            protocol: packet.protocol,
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            total: packet.total,
            ifindex: LOOPBACK,
            flow_info: 0,
            source,
            destination,
            vlan: 0,
            source_mac: [0; 6],
            next_hop_mac: [0; 6],
        }
    }

    /// Has it answered.
    #[inline(always)]
    pub fn ask(&mut self, ctx: &XdpContext) -> Answer {
        // SAFETY: this is 64 bytes of the kernel's layout, asserted above.
        let answer = unsafe {
            generated::bpf_fib_lookup(
                ctx.ctx.cast(),
                (&raw mut *self).cast(),
                size_of::<Self>() as i32,
                0,
            )
        };
        match answer {
            0 => Answer::Known,
            7 => Answer::Unresolved,
            8 => Answer::TooLong,
            _ => Answer::None,
        }
    }
}
