//! The lab's virtual switch: what a hypervisor's trunk port group does, as TC classifiers.
//!
//! For: popping the tag (or two, QinQ) of a frame that enters at the trunk and handing it to that
//! VLAN's bridge, and pushing the tag onto what that bridge sends. Never: learning, flooding,
//! policy; the bridges do the first two, one kernel bridge per VLAN keeps VLANs apart.
//!
//! ```text
//!   appliance ── trunk ──▶ trunk_in: pop ──▶ t101 ⇄ b101 ── bridge of VLAN 101 ── access ports
//!                  ▲                          │
//!                  └───── vlan_out: push ◀────┘
//! ```
//!
//! A frame whose tag no VLAN of the switch has is dropped, and so is a tagged frame from an
//! access port, as port groups do.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_SHOT, xdp_action},
    helpers::{bpf_redirect, bpf_skb_vlan_pop, bpf_skb_vlan_push},
    macros::{classifier, map, xdp},
    maps::HashMap,
    programs::{TcContext, XdpContext},
};

/// VLANs on the trunks of one switch, at most.
const MAX_VLANS: u32 = 8192;

/// Bits of a tag that are the VLAN id.
const VID_MASK: u32 = 0x0fff;

/// 802.1Q, the tag type of an inner tag.
const DOT1Q: u32 = 0x8100;

/// `[trunk ifindex, outer VLAN, inner VLAN or 0]` to the ifindex of that VLAN's port.
/// `[trunk ifindex, 0, 0]` is the native VLAN. Host byte order. Written by `lab` when the switch is
/// raised.
#[map]
static TRUNK_IN: HashMap<[u32; 3], u32> = HashMap::with_max_entries(MAX_VLANS, 0);

/// Ifindex of a VLAN's port to `[trunk ifindex, outer VLAN, inner VLAN or 0, outer ethertype]`.
/// Host byte order. Written by `lab` when the switch is raised.
#[map]
static VLAN_OUT: HashMap<u32, [u32; 4]> = HashMap::with_max_entries(MAX_VLANS, 0);

/// Frames that enter the switch at a trunk.
#[classifier]
pub fn trunk_in(ctx: TcContext) -> i32 {
    from_trunk(&ctx).unwrap_or(TC_ACT_SHOT)
}

/// Frames that a VLAN's bridge sends towards the trunk.
#[classifier]
pub fn vlan_out(ctx: TcContext) -> i32 {
    to_trunk(&ctx).unwrap_or(TC_ACT_SHOT)
}

/// Passes every frame. It is attached to the far end of an appliance's NIC, because
/// veth wakes the receiver of frames that XDP sends back (`XDP_TX`) only if that end has a program
/// (`veth_xdp_flush` looks at `xdp_prog`); with GRO alone they stay in the ring until another event
/// wakes it.
#[xdp]
pub fn far_end(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

fn from_trunk(ctx: &TcContext) -> Option<i32> {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the verifier checks that `skb` is the program's context and the field is readable.
    let trunk = unsafe { (*skb).ifindex };
    let outer = pop(skb)?;
    let single = &[trunk, outer.unwrap_or(0), 0];
    // SAFETY: entries are written before the program is attached, and never change.
    if let Some(port) = unsafe { TRUNK_IN.get(single) } {
        return Some(redirect(*port));
    }
    let double = &[trunk, outer?, pop(skb)??];
    // SAFETY: as above.
    let port = unsafe { TRUNK_IN.get(double) }?;
    Some(redirect(*port))
}

fn to_trunk(ctx: &TcContext) -> Option<i32> {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the verifier checks that `skb` is the program's context and the fields are readable.
    let (port, tagged) = &unsafe { ((*skb).ifindex, (*skb).vlan_present != 0) };
    if *tagged {
        return None;
    }
    // SAFETY: entries are written before the program is attached, and never change.
    let [trunk, outer, inner, ethertype] = *unsafe { VLAN_OUT.get(port) }?;
    if inner != 0 {
        push(skb, DOT1Q, inner)?;
    }
    if outer != 0 {
        push(skb, ethertype, outer)?;
    }
    Some(redirect(trunk))
}

/// Takes the outermost tag off: its VLAN id, or `Some(None)` if there is no tag. `None`: the kernel
/// could not.
#[inline(always)]
fn pop(skb: *mut __sk_buff) -> Option<Option<u32>> {
    // SAFETY: the verifier checks that `skb` is the program's context and the fields are readable.
    let (tagged, tci) = unsafe { ((*skb).vlan_present != 0, (*skb).vlan_tci) };
    if !tagged {
        return Some(None);
    }
    // SAFETY: `skb` is the program's context; no packet pointer is held across the call.
    if unsafe { bpf_skb_vlan_pop(skb) } != 0 {
        return None;
    }
    Some(Some(tci & VID_MASK))
}

#[inline(always)]
fn push(skb: *mut __sk_buff, ethertype: u32, vlan: u32) -> Option<()> {
    // SAFETY: `skb` is the program's context; no packet pointer is held across the call.
    let failed = unsafe { bpf_skb_vlan_push(skb, (ethertype as u16).to_be(), vlan as u16) };
    (failed == 0).then_some(())
}

#[inline(always)]
fn redirect(port: u32) -> i32 {
    // SAFETY: any ifindex may be passed; the kernel drops the frame if there is no such device.
    unsafe { bpf_redirect(port, 0) as i32 }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this could be reached.
    loop {}
}

/// On the host these programs are only linted; they run where `cargo xtask build-ebpf` puts them.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
