//! The next hop of a packet and the interface to it, from the kernel's FIB and neighbour table.

use aya_ebpf::{bindings::bpf_fib_lookup, helpers::generated, programs::XdpContext};

/// `struct bpf_fib_lookup` of include/uapi/linux/bpf.h: the parameters of a lookup, and its result.
/// Network byte order, unless stated otherwise.
#[repr(C)]
pub struct Fib {
    family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    /// Length of the packet, bytes, host byte order. After [`Answer::TooLong`], the MTU of the
    /// route.
    pub total: u16,
    /// The input interface; after the lookup, the output interface. Host byte order.
    pub ifindex: u32,
    /// Type of service, or IPv6 flow information.
    flow_info: u32,
    /// An IPv4 address is in the first word.
    source: [u32; 4],
    destination: [u32; 4],
    vlan: u32,
    /// MAC address of the output interface, after [`Answer::Known`].
    pub source_mac: [u8; 6],
    /// MAC address of the next hop, after [`Answer::Known`].
    pub next_hop_mac: [u8; 6],
}

const _: () = assert!(size_of::<Fib>() == 64 && size_of::<Fib>() == size_of::<bpf_fib_lookup>());

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The loopback device (`LOOPBACK_IFINDEX`), the input interface of packets that the kernel sends.
/// A lookup for a real input interface would require forwarding to be enabled there, and then the
/// kernel would also forward packets that are not ours.
const LOOPBACK: u32 = 1;

/// The packet of a lookup. Addresses and ports in network byte order; an IPv4 address is in the
/// last word, as in IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2).
pub struct Packet {
    /// Whether it is IPv6.
    pub ipv6: bool,
    /// IP protocol number.
    pub protocol: u8,
    /// Length from the IP header on, bytes, host byte order.
    pub total: u16,
    /// Source address.
    pub source: [u32; 4],
    /// Source port, or 0.
    pub source_port: u16,
    /// Destination address.
    pub destination: [u32; 4],
    /// Destination port, or 0.
    pub destination_port: u16,
}

/// The result of a lookup (`BPF_FIB_LKUP_RET_*`).
pub enum Answer {
    /// The output interface and both MAC addresses are known.
    Known,
    /// The next hop is known, but its MAC address is not resolved yet.
    Unresolved,
    /// The packet is longer than the MTU of the route, which is in [`Fib::total`].
    TooLong,
    /// There is no route.
    None,
}

impl Fib {
    /// The parameters for `packet`.
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

    /// Asks the kernel, and keeps its result in `self`.
    #[inline(always)]
    pub fn lookup(&mut self, ctx: &XdpContext) -> Answer {
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
