//! The oracle decides whether a packet sent is permitted, given the maps and the packet received.
//!
//! Written from the RFCs and the rules in docs/architecture/data-path.md, sharing no code with the
//! programs but the layouts of the maps. It does not decide which packets must be answered or
//! carried (the fixtures do that). It checks that a sent packet is well-formed, has a permitted
//! destination, and carries exactly the bytes received.

use appliance_common::addr::from_ip;

use self::icmp::{frag_needed, too_big};
use self::ip::Ip;
use self::neighbour::{advertisement, arp_reply};
use self::site::{attachment_of, check_addresses, in_partial};
use self::tunnel::{
    check_decapsulated, check_delivered, check_encapsulated, is_tunnel_datagram, peer_of,
};
use self::worker::{check_passed, check_worker};

use crate::harness::Action;
use crate::packet::{l2, mac_at};
use crate::world::World;

macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}

mod full;
mod icmp;
mod ip;
mod neighbour;
mod prefix;
mod record;
mod site;
mod tunnel;
mod worker;

pub use icmp::QUOTE;
pub use ip::mss_of;
pub use record::check_record;

/// Outcome of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// To the kernel.
    Passed,
    Dropped,
    ArpReply,
    /// A neighbour advertisement.
    Advertisement,
    /// ICMP "fragmentation needed".
    FragNeeded,
    /// ICMPv6 "packet too big".
    PacketTooBig,
    /// Into a tunnel.
    Encapsulated,
    /// Out of a tunnel.
    Decapsulated,
    /// To a host of the same network.
    Hairpinned,
    /// To a worker, to be sealed.
    ToSeal,
    /// To a worker, to be opened.
    ToOpen,
    /// A handshake message, to the kernel.
    Handshake,
    /// Full failover: to a host of one of the tenant's networks.
    Routed,
    /// Full failover: an answer to a ping.
    EchoReply,
    /// Full failover: "time exceeded".
    TimeExceeded,
    /// Full failover: "unreachable".
    Unreachable,
    /// Full failover: a TCP reset.
    Reset,
}

impl Kind {
    /// All, in order.
    pub const ALL: [Self; 17] = [
        Self::Passed,
        Self::Dropped,
        Self::ArpReply,
        Self::Advertisement,
        Self::FragNeeded,
        Self::PacketTooBig,
        Self::Encapsulated,
        Self::Decapsulated,
        Self::Hairpinned,
        Self::ToSeal,
        Self::ToOpen,
        Self::Handshake,
        Self::Routed,
        Self::EchoReply,
        Self::TimeExceeded,
        Self::Unreachable,
        Self::Reset,
    ];
}

/// Judges one run of a program.
///
/// # Errors
///
/// The rule that was broken.
pub fn check(
    world: &World,
    ifindex: u32,
    input: &[u8],
    action: Action,
    output: &[u8],
) -> Result<Kind, String> {
    let verdict = check_frame(world, ifindex, input, action, output);
    match without_priority_tags(input) {
        // The same is permitted of a frame with priority tags as of one without.
        Some(untagged) if verdict.is_err() => {
            check_frame(world, ifindex, &untagged, action, output)
        }
        _ => verdict,
    }
}

/// A frame without the priority tags at its front, of which the appliance removes two (IEEE
/// 802.1Q section 6.9); `None` if it has none.
fn without_priority_tags(input: &[u8]) -> Option<Vec<u8>> {
    let mut frame = input.to_vec();
    for _ in 0..2 {
        let tagged = matches!(frame.get(12..14), Some([0x81, 0] | [0x88, 0xa8]));
        if tagged && frame.len() >= 18 && frame[14] & 0x0f == 0 && frame[15] == 0 {
            frame.drain(12..16);
        }
    }
    (frame.len() < input.len()).then_some(frame)
}

fn check_frame(
    world: &World,
    ifindex: u32,
    input: &[u8],
    action: Action,
    output: &[u8],
) -> Result<Kind, String> {
    match action {
        Action::Drop => Ok(Kind::Dropped),
        Action::Pass => {
            ensure!(input == output, "passed, but changed");
            check_passed(world, input)
        }
        Action::Tx | Action::Redirect => match check_worker(world, ifindex, input, action, output)?
        {
            Some(kind) => Ok(kind),
            None => check_sent(world, ifindex, input, action, output),
        },
        Action::Aborted | Action::Unknown(_) => Err(format!("action {action:?}")),
    }
}

fn check_sent(
    world: &World,
    ifindex: u32,
    input: &[u8],
    action: Action,
    output: &[u8],
) -> Result<Kind, String> {
    let (Some(li), Some(lo)) = (l2(input), l2(output)) else {
        return Err("sent a frame without a whole Ethernet header".to_owned());
    };
    let arrival = attachment_of(world, ifindex, &li);
    if lo.ethertype == 0x0806 {
        ensure!(action == Action::Tx, "an ARP reply leaves by {action:?}");
        let (attachment, network) = arrival.ok_or("ARP reply on a port without a network")?;
        return arp_reply(world, input, &li, output, &lo, attachment, network);
    }
    let o = Ip::parse(lo.ethertype, &output[lo.l3..])
        .ok_or("sent something whose lengths contradict each other")?;
    let surplus = output.len() - lo.l3 - o.len;
    if let Some(peer) = peer_of(world, output, &lo, &o) {
        let (attachment, network) = arrival.ok_or("encapsulated from a port without a network")?;
        ensure!(surplus == 0, "encapsulated {surplus} bytes of padding");
        ensure!(
            (action == Action::Tx) == (peer.ifindex == ifindex),
            "towards interface {} by {action:?}",
            peer.ifindex
        );
        return check_encapsulated(world, input, &li, output, attachment, network, peer);
    }
    if is_tunnel_datagram(world, input, &li) {
        ensure!(surplus == 0, "decapsulated {surplus} bytes of padding");
        return check_decapsulated(world, ifindex, input, &li, action, output, &lo);
    }
    let (attachment, network) = arrival.ok_or("sent from a port without a network")?;
    let i = Ip::parse(li.ethertype, &input[li.l3..]).ok_or("answered a malformed packet")?;
    let solicited = (i.proto, input.get(li.l3 + 40)) == (58, Some(&135));
    if full::in_full(world, network) && !solicited {
        return full::Routed {
            world,
            attachment,
            network,
            ifindex,
            input,
            li: &li,
            i: &i,
            action,
            output,
            lo: &lo,
            o: &o,
        }
        .check();
    }
    if let Some(neighbour) = world.neighbour_of(network.vni, &from_ip(i.dst))
        && output.starts_with(&neighbour.l2[..12])
        && o.src == i.src
        && o.dst == i.dst
    {
        check_addresses(world, network, i.src, i.dst, false)?;
        ensure!(in_partial(world, network), "hairpinned while idle");
        ensure!(
            mac_at(input, 0) == attachment.mac,
            "hairpinned a frame that was not for us"
        );
        // On the same link: padding and trailer are kept.
        check_delivered(
            neighbour,
            ifindex,
            action,
            li.ethertype,
            &input[li.l3..],
            output,
            None,
        )?;
        return Ok(Kind::Hairpinned);
    }
    ensure!(surplus == 0, "an answer with {surplus} bytes of padding");
    ensure!(action == Action::Tx, "an answer leaves by {action:?}");
    ensure!(
        in_partial(world, network) || full::in_full(world, network),
        "answered while idle"
    );
    ensure!(
        output[6..12] == attachment.mac,
        "an answer is not from our MAC"
    );
    ensure!(
        output[12..lo.l3] == input[12..li.l3],
        "an answer has other tags than the question"
    );
    match (o.proto, output.get(lo.l3 + o.header).copied()) {
        (1, Some(3)) => frag_needed(world, network, &li, input, &i, output, &lo, &o, attachment),
        (58, Some(2)) => too_big(world, network, &li, input, &i, output, &lo, &o, attachment),
        (58, Some(136)) => {
            advertisement(world, network, &li, input, &i, output, &lo, &o, attachment)
        }
        _ => Err("sent something that is no answer, no tunnel datagram and no delivery".to_owned()),
    }
}
