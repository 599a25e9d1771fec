//! ARP (RFC 826), answered in place for the addresses that the tenant's mode makes ours.
//!
//! ```text
//!   mode      side       answered for
//!   partial   tenant     endpoints
//!   partial   provider   the network's prefixes and router, but for endpoints
//!   full      provider   the router, which we are
//!   any       uplink     public addresses that are not the appliance's own
//! ```

use appliance_common::{
    counters::Counter,
    events::NeighbourEventKind,
    maps::Network,
    wire::{ARP_LEN, ETH_LEN},
};
use aya_ebpf::{bindings::xdp_action, programs::XdpContext};

use crate::helper::{
    addr::{self, Words, v4_is_host, v4_is_link_local, v4_mapped},
    count::count,
    frame::{Frame, pass_or_drop},
    lookup::{gateway, is_endpoint, is_here, is_host_of, is_provider, prefix_of},
    packet::{Mac, Outcome, Window, reverse},
    report::{Seen, claimant, report},
};

/// The first eight bytes for Ethernet and IPv4: types, address lengths 6 and 4, operation.
const ETHERNET_IPV4: u64 = u64::from_ne_bytes([0, 1, 8, 0, 6, 4, 0, 0]);
/// Those bytes without the operation.
const KIND_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// An ARP packet on a tenant port; `L3` is where it begins.
#[inline(never)]
pub fn process<const L3: usize>(ctx: &XdpContext, frame: &Frame) -> Outcome {
    let &Frame {
        ref l2,
        network,
        mac: our_mac,
        port,
        ..
    } = frame;
    let (partial, full) = (frame.partial(), frame.full());
    let Some(w) = Window::<ARP_LEN>::at(ctx, L3) else {
        return pass_or_drop(port, Counter::DropMalformed);
    };
    let kind = w.get::<u64, 0>();
    if kind & KIND_MASK != ETHERNET_IPV4 {
        return pass_or_drop(port, Counter::DropMalformed);
    }
    let operation = u16::from_be(w.get::<u16, 6>());
    let sender_mac = Mac(w.get::<u32, 8>(), w.get::<u16, 12>());
    let sender_word = w.get::<u32, 14>();
    let target_word = w.get::<u32, 24>();
    let sender = v4_mapped(sender_word);
    let target = v4_mapped(target_word);
    let announcement = sender_word == target_word;
    let probe = sender_word == 0;

    let answer = (partial || full)
        && operation == REQUEST
        && !sender_mac.is_group()
        && !sender_mac.is_zero()
        && is_ours(network, full, target, target_word, announcement);
    let known_sender = v4_is_host(sender_word)
        && if partial {
            is_here(network, sender)
        } else if full {
            is_host_of(network, sender)
        } else {
            // Of an idle tenant's hosts at the provider, only the answers to the daemon's questions
            // matter, before a failover.
            !is_provider(network) || (operation == REPLY && l2.destination == our_mac)
        };
    if known_sender {
        let kind = match operation {
            REQUEST if announcement => NeighbourEventKind::Announcement,
            REQUEST if answer => NeighbourEventKind::RequestToUs,
            REQUEST => NeighbourEventKind::RequestToOther,
            REPLY if announcement || l2.destination.is_group() => NeighbourEventKind::Announcement,
            _ => NeighbourEventKind::Reply,
        };
        let seen = Seen {
            vni: network.vni,
            address: sender,
            mac: sender_mac,
            kind,
            flags: 0,
        };
        report(ctx, l2, network, &seen);
    } else if (partial || full)
        && v4_is_host(sender_word)
        && sender_mac != our_mac
        && is_claimed(network, full, sender)
    {
        claimant(ctx, Some(frame), sender, sender_mac);
    }
    if !answer {
        return pass_or_drop(port, Counter::ControlIgnored);
    }
    if probe && is_provider(network) && !is_gateway(network, target) {
        // Only the prefix indicates that the address is at the other site. A replica that boots
        // before it is made an endpoint must not see a conflict (RFC 5227).
        count(Counter::ProbeIgnored);
        return pass_or_drop(port, Counter::ControlIgnored);
    }

    reply(ctx, w, our_mac)
}

/// Makes a request its reply from `our_mac`. The caller has checked that the sender's MAC address
/// is one host's.
#[inline(always)]
fn reply(ctx: &XdpContext, w: Window<ARP_LEN>, our_mac: Mac) -> Outcome {
    let sender_mac = Mac(w.get::<u32, 8>(), w.get::<u16, 12>());
    let (sender_word, target_word) = (w.get::<u32, 14>(), w.get::<u32, 24>());
    let Some(head) = Window::<12>::at(ctx, 0) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    reverse(head, sender_mac, our_mac);
    w.set::<u16, 6>(REPLY.to_be());
    w.set::<u32, 8>(our_mac.0);
    w.set::<u16, 12>(our_mac.1);
    w.set::<u32, 14>(target_word);
    w.set::<u32, 18>(sender_mac.0);
    w.set::<u16, 22>(sender_mac.1);
    w.set::<u32, 24>(sender_word);
    Outcome::Send(Counter::ArpAnswered, xdp_action::XDP_TX)
}

/// Answers a request on the uplink for an address that `is_ours`; `None` for any other packet. A
/// sender that has such an address is reported.
#[inline(always)]
pub fn on_uplink(
    ctx: &XdpContext,
    our_mac: Mac,
    is_ours: impl Fn(&Words) -> bool,
) -> Option<Outcome> {
    let w = Window::<ARP_LEN>::at(ctx, ETH_LEN)?;
    let sender_mac = Mac(w.get::<u32, 8>(), w.get::<u16, 12>());
    let sender = w.get::<u32, 14>();
    let target = w.get::<u32, 24>();
    if w.get::<u64, 0>() & KIND_MASK == ETHERNET_IPV4
        && sender_mac != our_mac
        && v4_is_host(sender)
        && is_ours(&v4_mapped(sender))
    {
        claimant(ctx, None, v4_mapped(sender), sender_mac);
    }
    let asked = w.get::<u64, 0>() & KIND_MASK == ETHERNET_IPV4
        && w.get::<u16, 6>() == REQUEST.to_be()
        && !sender_mac.is_group()
        && !sender_mac.is_zero()
        && v4_is_host(target)
        && is_ours(&v4_mapped(target));
    asked.then(|| reply(ctx, w, our_mac))
}

/// Whether requests for `target` are ours to answer.
#[inline(always)]
fn is_ours(
    network: &Network,
    full: bool,
    target: Words,
    target_word: u32,
    announcement: bool,
) -> bool {
    if !v4_is_host(target_word) || v4_is_link_local(target_word) {
        return false;
    }
    if full {
        // A host that announces the gateway's address learns that it is in use (RFC 5227 section
        // 2.4).
        return is_gateway(network, target);
    }
    let endpoint = is_endpoint(network, target);
    if !is_provider(network) {
        // A host that announces a failed-over address is answered too: the address is in use.
        return endpoint;
    }
    if endpoint || announcement {
        return false;
    }
    is_gateway(network, target)
        || prefix_of(network, target)
            .is_some_and(|p| !p.is_v4_network_or_broadcast(&addr::bytes(target)))
}

/// Whether a host with the address is a second claimant: we answer for exactly this address, not
/// only for the prefix that it is in.
#[inline(always)]
fn is_claimed(network: &Network, full: bool, sender: Words) -> bool {
    if full || is_provider(network) {
        is_gateway(network, sender)
    } else {
        is_endpoint(network, sender)
    }
}

#[inline(always)]
fn is_gateway(network: &Network, target: Words) -> bool {
    gateway(network, false) == Some(target)
}
