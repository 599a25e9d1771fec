//! The next hop, and the interface to it: the kernel's, from its FIB and its neighbours.

use aya_ebpf::{bindings::bpf_fib_lookup, helpers::generated, programs::XdpContext};
use gateway_common::maps::{Address, End, Outcome};

use crate::parse::Datagram;

/// `struct bpf_fib_lookup` of include/uapi/linux/bpf.h.
#[repr(C)]
pub struct Fib {
    family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    /// Bytes of the packet.
    total: u16,
    /// Whence it comes; then, where it goes out.
    pub ifindex: u32,
    flow_info: u32,
    /// IPv4 in the first word.
    source: Address,
    destination: Address,
    vlan: u32,
    pub source_mac: [u8; 6],
    pub next_hop_mac: [u8; 6],
}

const _: () = assert!(size_of::<Fib>() == 64 && size_of::<Fib>() == size_of::<bpf_fib_lookup>());

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The loopback device: where the kernel says that what it sends itself comes from (`LOOPBACK_IFINDEX`). A question about a packet of
/// a real interface would want forwarding switched on there, and with it the kernel would forward what is none of ours.
const LOOPBACK: u32 = 1;
/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`.
const FRAG_NEEDED: i64 = 8;

impl Fib {
    /// The question.
    #[inline(always)]
    pub fn new(d: &Datagram, to: &End) -> Self {
        let ipv6 = d.family == 6;
        let (source, destination) = if ipv6 {
            (to.local, to.remote)
        } else {
            ([to.local[3], 0, 0, 0], [to.remote[3], 0, 0, 0])
        };
        Self {
            family: if ipv6 { AF_INET6 } else { AF_INET },
            protocol: 17,
            source_port: to.local_port,
            destination_port: to.remote_port,
            total: d.total as u16,
            ifindex: LOOPBACK,
            flow_info: 0,
            source,
            destination,
            vlan: 0,
            source_mac: [0; 6],
            next_hop_mac: [0; 6],
        }
    }
}

/// Has it answered.
#[inline(always)]
pub fn find(ctx: &XdpContext, fib: &mut Fib) -> Result<(), Outcome> {
    // SAFETY: `fib` is 64 bytes of the kernel's layout, asserted above.
    let answer = unsafe {
        generated::bpf_fib_lookup(
            ctx.ctx.cast(),
            (&raw mut *fib).cast(),
            size_of::<Fib>() as i32,
            0,
        )
    };
    match answer {
        0 => Ok(()),
        FRAG_NEEDED => Err(Outcome::TooLong),
        _ => Err(Outcome::NoWay),
    }
}
