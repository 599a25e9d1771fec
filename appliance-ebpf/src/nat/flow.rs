//! Connections: found, kept, and given their place.

use appliance_common::{
    counters::Counter,
    maps::{Mode, network_flags},
    nat::{Direction, FRAGMENT_TICKS, Flow, FlowKey, Nat, OUTSIDE, SYN, UPLINK, rule_flags},
    wire::{IPPROTO_TCP, IPPROTO_UDP},
};
use aya_ebpf::bindings::BPF_NOEXIST;

use super::{Scratch, Side, is_internet, share, tenant};
use crate::{
    count::count,
    maps::{FLOWS, FRAGMENTS, OPENING, RULES},
    tables::network,
};

/// Whether what a connection was made under still stands: its tenants' failovers, its rule, its network's
/// internet.
#[inline(always)]
fn stands(flow: &Flow, side: &Side) -> bool {
    if side.zone != 0 && flow.from_epoch != side.epoch {
        return false;
    }
    if flow.to_zone != 0 {
        let full = tenant(flow.to_zone.into())
            .is_some_and(|t| t.mode == Mode::Full as u32 && t.epoch == flow.to_epoch);
        if !full {
            return false;
        }
    }
    if flow.rule != 0 {
        let same = RULES
            .get(flow.rule - 1)
            .is_some_and(|r| r.flags & rule_flags::ACTIVE != 0 && r.epoch == flow.rule_epoch);
        if !same {
            return false;
        }
    }
    if is_internet(flow) {
        if side.zone != 0 {
            return side.internet != 0;
        }
        return network(flow.to).is_some_and(|n| n.flags & network_flags::INTERNET != 0);
    }
    true
}

/// Whether an entry found by `key` is one of now: made under what still stands.
#[inline(always)]
fn is_of_now(key: &FlowKey, flow: &Flow, now: u32) -> bool {
    let zone = u32::from(key.zone);
    let epoch = if zone == 0 {
        0
    } else {
        match tenant(zone) {
            Some(tenant) => tenant.epoch,
            None => return false,
        }
    };
    let side = Side {
        slot: flow.from,
        zone,
        epoch,
        internet: network_flags::INTERNET,
        now,
    };
    stands(flow, &side)
}

/// Whether neither direction was heard for too long. `s.back_key` is the other one's.
#[inline(always)]
fn is_silent(flow: &Flow, s: &Scratch, nat: &Nat) -> bool {
    let (protocol, now) = (s.key.protocol, s.side.now);
    if !flow.is_expired(protocol, now, &nat.timeouts) {
        return false;
    }
    let other = match FLOWS.get_ptr(&s.back_key) {
        Some(other) => Some(other),
        None => OPENING.get_ptr(&s.back_key),
    };
    match other {
        // SAFETY: the map returned a value; what is read of one that is being given away is a time.
        Some(other) => unsafe { (*other).is_expired(protocol, now, &nat.timeouts) },
        None => true,
    }
}

/// Finds the packet's connection, counts the packet and takes in what it says: in `s.flow`, if there is one.
///
/// # Errors
/// When the connection was to be given its place, and there is none.
#[inline(never)]
pub fn of_packet(nat: &Nat, s: &mut Scratch) -> Result<bool, Counter> {
    let tag = s.key.tag();
    if let Some(entry) = FLOWS.get_ptr_mut(&s.key) {
        // SAFETY: the map returned a value. Another packet of the flow may write it meanwhile; what is lost then
        // is a count. One that was given to another flow is told by its tag.
        unsafe { s.flow = *entry };
        if s.flow.tag == tag {
            let flow = s.flow;
            if stands(&flow, &s.side) && !gone_silent(nat, s) {
                // SAFETY: as above.
                let changed = unsafe { take_in(&mut *entry, s) };
                if changed {
                    turn(s);
                    if let Some(other) = FLOWS.get_ptr_mut(&s.back_key) {
                        // SAFETY: as above.
                        unsafe { (*other).state = s.flow.state };
                    }
                }
                return Ok(true);
            }
            turn(s);
            let _ = FLOWS.remove(&s.back_key);
            let _ = FLOWS.remove(&s.key);
        }
    }
    let Some(entry) = OPENING.get_ptr_mut(&s.key) else {
        return Ok(false);
    };
    // SAFETY: as above.
    unsafe { s.flow = *entry };
    if s.flow.tag != tag {
        return Ok(false);
    }
    let flow = s.flow;
    if !stands(&flow, &s.side) || gone_silent(nat, s) {
        return Ok(false);
    }
    if !has_heard(s) {
        return Err(Counter::DropNoFlow);
    }
    // SAFETY: as above.
    unsafe { take_in(&mut *entry, s) };
    turn(s);
    if s.key.protocol == IPPROTO_TCP
        && s.flow.from != UPLINK
        && s.packet.flags & SYN != 0
        && matches!(s.flow.direction(), Direction::Reply)
    {
        // What only who hears this can acknowledge.
        s.back.egress_macs = expectation(s.packet.sequence.wrapping_add(1));
        if let Some(other) = OPENING.get_ptr_mut(&s.back_key) {
            // SAFETY: as above.
            unsafe { (*other).egress_macs = s.back.egress_macs };
        }
    }
    let lasting = s.key.protocol == IPPROTO_TCP || s.key.protocol == IPPROTO_UDP;
    if lasting && Flow::is_assured(s.key.protocol, s.flow.state) {
        return settle(s).map(|()| true);
    }
    if !s.flow.may_deliver() {
        return Err(Counter::DropNoRule);
    }
    // The other direction may have given way to another connection: the next packet brings it back.
    match OPENING.get_ptr_mut(&s.back_key) {
        // SAFETY: as above.
        Some(other) => unsafe { (*other).state = s.flow.state },
        None => {
            let _ = OPENING.insert(&s.back_key, &s.back, BPF_NOEXIST.into());
        }
    }
    Ok(true)
}

/// Bytes that may have been sent before the first acknowledgment: an initial window (RFC 6928), as with TCP Fast
/// Open (RFC 7413).
const EARLY: u32 = 16_384;

/// An acknowledgment number in the place of a way out: a connection from outside has none.
#[inline(always)]
const fn expectation(number: u32) -> [u8; 12] {
    let [a, b, c, d] = number.to_ne_bytes();
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// Whether the one that opens a connection of TCP to a machine has heard its answer: what acknowledges another number
/// is of somebody who speaks in another's name, and would fill the table with connections that nobody has.
#[inline(always)]
fn has_heard(s: &Scratch) -> bool {
    if s.key.protocol != IPPROTO_TCP
        || s.flow.to == UPLINK
        || !matches!(s.flow.direction(), Direction::Original)
        || !Flow::is_assured(IPPROTO_TCP, s.flow.next(IPPROTO_TCP, s.packet.flags))
    {
        return true;
    }
    let way = &s.flow.egress_macs;
    let expected = u32::from_ne_bytes([way[0], way[1], way[2], way[3]]);
    s.packet.acknowledgment.wrapping_sub(expected) <= EARLY
}

/// Whose share a connection is of: the tenant's that opened it, or to whose machine it leads. `s.flow` is one of its
/// directions.
#[inline(always)]
fn owner(s: &Scratch) -> u32 {
    let (from, to) = match s.flow.direction() {
        Direction::Original => (s.key.zone, s.flow.to_zone),
        Direction::Reply => (s.flow.to_zone, s.key.zone),
    };
    if from == OUTSIDE {
        to.into()
    } else {
        from.into()
    }
}

/// The other direction of `s.flow` into `s.back_key` and `s.back`.
#[inline(always)]
pub fn turn(s: &mut Scratch) {
    s.flow.inverse(&s.key, &mut s.back_key, &mut s.back);
}

#[inline(always)]
fn gone_silent(nat: &Nat, s: &mut Scratch) -> bool {
    if !s.flow.is_expired(s.key.protocol, s.side.now, &nat.timeouts) {
        return false;
    }
    turn(s);
    is_silent(&s.flow, s, nat)
}

/// Counts the packet in its entry, and takes in what it says; whether that changed the state.
#[inline(always)]
fn take_in(entry: &mut Flow, s: &mut Scratch) -> bool {
    entry.packets += 1;
    entry.bytes += u64::from(s.packet.total);
    if entry.last_seen != s.side.now {
        entry.last_seen = s.side.now;
        s.flow.last_seen = s.side.now;
    }
    let state = s.flow.next(s.key.protocol, s.packet.flags);
    if state == s.flow.state {
        return false;
    }
    entry.state = state;
    s.flow.state = state;
    true
}

/// Gives a connection that both ends want its place in `FLOWS`: both directions or none.
#[inline(always)]
fn settle(s: &mut Scratch) -> Result<(), Counter> {
    let owner = owner(s);
    if !share::has_connection(owner) {
        return Err(Counter::DropShare);
    }
    s.flow.packets += 1;
    s.flow.bytes += u64::from(s.packet.total);
    if let Some(other) = OPENING.get_ptr(&s.back_key) {
        // SAFETY: the map returned a value; these are counts.
        unsafe {
            s.back.packets = (*other).packets;
            s.back.bytes = (*other).bytes;
        }
    }
    // The way back first: what comes before the way there is in place still finds the entry of the opening.
    if let Err(error) = FLOWS.insert(&s.back_key, &s.back, BPF_NOEXIST.into()) {
        return if error == EXISTS && is_same(&s.back_key, &s.back) {
            // Another packet of it was a moment faster.
            Ok(())
        } else {
            Err(refused(error))
        };
    }
    if let Err(error) = FLOWS.insert(&s.key, &s.flow, BPF_NOEXIST.into()) {
        let _ = FLOWS.remove(&s.back_key);
        return Err(refused(error));
    }
    let _ = OPENING.remove(&s.key);
    let _ = OPENING.remove(&s.back_key);
    share::took_connection(owner);
    count(Counter::FlowEstablished);
    Ok(())
}

/// EEXIST.
const EXISTS: i32 = -17;

#[inline(always)]
const fn refused(error: i32) -> Counter {
    if error == EXISTS {
        Counter::DropFlowTaken
    } else {
        Counter::DropFlowsFull
    }
}

#[inline(always)]
fn is_same(key: &FlowKey, flow: &Flow) -> bool {
    match FLOWS.get_ptr(key) {
        // SAFETY: the map returned a value.
        Some(there) => unsafe { (*there).same_translation(flow) },
        None => false,
    }
}

/// Whether the direction `s.other_key` of a connection in `FLOWS` was not heard for too long either.
#[inline(always)]
fn is_other_silent(s: &Scratch, nat: &Nat) -> bool {
    match FLOWS.get_ptr(&s.other_key) {
        // SAFETY: the map returned a value; what is read of one that is being given away is a time.
        Some(other) => unsafe { (*other).is_expired(s.key.protocol, s.side.now, &nat.timeouts) },
        None => true,
    }
}

/// Puts the connection `s.flow` among those that are being opened: both directions or none.
#[inline(never)]
pub fn begin(nat: &Nat, s: &mut Scratch) -> Option<Counter> {
    turn(s);
    if let Some(there) = FLOWS.get_ptr(&s.back_key) {
        // SAFETY: the map returned a value; one that is being given away is not of now for long.
        let taken = unsafe {
            (*there).other_key(s.key.protocol, &mut s.other_key);
            is_of_now(&s.back_key, &*there, s.side.now)
                && !((*there).is_expired(s.key.protocol, s.side.now, &nat.timeouts)
                    && is_other_silent(s, nat))
        };
        if taken {
            return Some(Counter::DropFlowTaken);
        }
        let _ = FLOWS.remove(&s.other_key);
        let _ = FLOWS.remove(&s.back_key);
    }
    if let Some(there) = OPENING.get_ptr(&s.back_key) {
        // SAFETY: as above.
        let (same, taken, unanswered) = unsafe {
            (*there).other_key(s.key.protocol, &mut s.other_key);
            (
                (*there).same_translation(&s.back),
                is_of_now(&s.back_key, &*there, s.side.now)
                    && !(*there).is_expired(s.key.protocol, s.side.now, &nat.timeouts),
                (*there).rule == 0 && !Flow::is_assured(s.key.protocol, (*there).state),
            )
        };
        if !same && taken {
            // A machine that speaks first from the end that a rule leads to is seen as another end than the rule's.
            // Unanswered, that must not keep those out who come by the rule.
            if s.flow.rule == 0 || !unanswered {
                return Some(Counter::DropFlowTaken);
            }
            let _ = OPENING.remove(&s.other_key);
        }
    }
    if OPENING.insert(&s.back_key, &s.back, 0).is_err() {
        return Some(Counter::DropFlowsFull);
    }
    if OPENING.insert(&s.key, &s.flow, 0).is_err() {
        let _ = OPENING.remove(&s.back_key);
        return Some(Counter::DropFlowsFull);
    }
    count(Counter::FlowOpened);
    None
}

/// Finds the connection that an error is about, in `s.flow`, and changes nothing of it.
#[inline(never)]
pub fn of_error(nat: &Nat, s: &mut Scratch) -> bool {
    let tag = s.key.tag();
    let entry = match FLOWS.get_ptr(&s.key) {
        Some(entry) => Some(entry),
        None => OPENING.get_ptr(&s.key),
    };
    let Some(entry) = entry else {
        return false;
    };
    // SAFETY: the map returned a value; one that was given to another flow is told by its tag.
    unsafe { s.flow = *entry };
    if s.flow.tag != tag {
        return false;
    }
    let flow = s.flow;
    stands(&flow, &s.side) && !gone_silent(nat, s)
}

/// Finds what the first fragment became, in `s.flow`.
#[inline(never)]
pub fn of_fragment(s: &mut Scratch) -> bool {
    let Some(entry) = FRAGMENTS.get_ptr(&s.key) else {
        return false;
    };
    let tag = s.key.tag();
    // SAFETY: as above.
    unsafe { s.flow = *entry };
    let age = s.side.now.wrapping_sub(s.flow.last_seen) as i32;
    let flow = s.flow;
    flow.tag == tag && age <= FRAGMENT_TICKS as i32 && stands(&flow, &s.side)
}

/// Notes what a first fragment becomes.
#[inline(never)]
pub fn remember_fragments(s: &mut Scratch) {
    s.back_key = s.key;
    s.back_key.source_port = s.packet.identification as u16;
    s.back_key.destination_port = (s.packet.identification >> 16) as u16;
    s.back = s.flow;
    s.back.last_seen = s.side.now;
    s.back.tag = s.back_key.tag();
    let _ = FRAGMENTS.insert(&s.back_key, &s.back, 0);
}

/// Keeps in the connection's entry what the kernel said about its way out.
#[inline(always)]
pub fn keep_way(s: &Scratch) {
    let entry = match FLOWS.get_ptr_mut(&s.key) {
        Some(entry) => Some(entry),
        None => OPENING.get_ptr_mut(&s.key),
    };
    if let Some(entry) = entry {
        // SAFETY: the map returned a value. One that is given to another flow meanwhile asks again, or sends one
        // packet to a next hop that was right a moment ago.
        unsafe {
            if (*entry).tag == s.flow.tag {
                (*entry).egress_macs = s.flow.egress_macs;
                (*entry).egress_max_len = s.flow.egress_max_len;
                (*entry).egress_stamp = s.flow.egress_stamp;
            }
        }
    }
}
