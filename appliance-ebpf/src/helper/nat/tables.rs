//! Lookups of translation, and its per-CPU scratch entry.

use appliance_common::{
    maps::Tenant,
    nat::{Flow, Nat, PublicAddress, flow_flags, ticks},
    wire::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

use crate::{
    helper::addr::{Words, bytes},
    maps::{NAT, PUBLIC, SCRATCH, Scratch, TENANTS},
};

/// The management port of the appliance, network byte order.
pub const MANAGEMENT_PORT: u16 = u16::from_ne_bytes([0, 22]);
/// EEXIST, as the map helpers return it.
pub const EEXIST: i32 = -17;

/// Whether a protocol has ports, one of which may be the management port.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP)
}

/// This CPU's scratch entry.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: this CPU's entry; an XDP program is not interrupted by another on its CPU, and the
    // programs of one packet run one after the other.
    Some(unsafe { &mut *scratch })
}

/// The settings of translation; `None` while no tenant is in full failover.
#[inline(always)]
pub fn settings() -> Option<&'static Nat> {
    NAT.get(0).filter(|nat| nat.uplink != 0)
}

/// The entry of a public address.
#[inline(always)]
pub fn public(address: &Words) -> Option<PublicAddress> {
    // SAFETY: read at once; preallocated entries are never unmapped.
    unsafe { PUBLIC.get(bytes(*address)) }.copied()
}

/// The tenant of a zone.
#[inline(always)]
pub fn tenant(zone: u32) -> Option<Tenant> {
    TENANTS.get(zone.wrapping_sub(1)).copied()
}

/// The time, [`ticks`].
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no arguments.
    ticks(unsafe { bpf_ktime_get_coarse_ns() })
}

/// Whether a tenant's host opened the flow to the outside.
#[inline(always)]
pub const fn is_internet(flow: &Flow) -> bool {
    flow.flags & flow_flags::INTERNET != 0
}
