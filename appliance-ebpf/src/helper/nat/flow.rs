//! The connection tables: finds, updates, opens and establishes connections.
//!
//! ```text
//!   first packet ─ within the tenant's budget ─▶ OPENING (LRU) ──────┬─ both ends have sent ─▶ FLOWS
//!                  └─ beyond it ───────────────▶ OPENING_EXCESS (LRU) ┘            (never evicts)
//! ```

use appliance_common::{
    counters::Counter,
    maps::{Mode, network_flags},
    nat::{Direction, FRAGMENT_TICKS, Flow, FlowKey, Nat, OUTSIDE, SYN, UPLINK, rule_flags},
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP},
};
use aya_ebpf::{bindings::BPF_NOEXIST, maps::LruHashMap};

use super::{
    quota,
    tables::{EEXIST, is_internet, tenant},
};
use crate::{
    helper::{count::count, lookup::network, words::copy},
    maps::{FLOWS, FRAGMENTS, OPENING, OPENING_EXCESS, RULES, Scratch, Side},
};

/// The entry of a connection that is being opened.
#[inline(always)]
fn opening(key: &FlowKey) -> Option<*mut Flow> {
    match OPENING.get_ptr_mut(key) {
        Some(entry) => Some(entry),
        None => OPENING_EXCESS.get_ptr_mut(key),
    }
}

/// Removes the entry of a connection that is being opened, from the table that has it. Returns
/// whether that is `OPENING`, for which a token was taken.
#[inline(never)]
fn remove_opening(key: &FlowKey) -> bool {
    let is_within_budget = OPENING.remove(key).is_ok();
    if !is_within_budget {
        let _ = OPENING_EXCESS.remove(key);
    }
    is_within_budget
}

/// Whether the conditions under which a connection was opened still hold: the failovers of its
/// tenants, its rule, its network's internet access.
#[inline(always)]
fn still_valid(flow: &Flow, side: &Side) -> bool {
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

/// Whether the entry found by `key` is still valid, seen from where its packets come from.
#[inline(always)]
fn is_current(key: &FlowKey, flow: &Flow, now: u32) -> bool {
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
    still_valid(flow, &side)
}

/// Whether both directions have expired. `s.back_key` is the key of the other one.
#[inline(always)]
fn are_both_expired(flow: &Flow, s: &Scratch, nat: &Nat) -> bool {
    let (protocol, now) = (s.key.protocol, s.side.now);
    if !flow.is_expired(protocol, now, &nat.timeouts) {
        return false;
    }
    let other = match FLOWS.get_ptr(&s.back_key) {
        Some(other) => Some(other),
        None => opening(&s.back_key).map(<*mut Flow>::cast_const),
    };
    match other {
        // SAFETY: the map returned a value. If it is recycled meanwhile, the time read is that of
        // another entry; it can only delay or advance this one's expiry.
        Some(other) => unsafe { (*other).is_expired(protocol, now, &nat.timeouts) },
        None => true,
    }
}

/// Finds the packet's connection in `s.flow`, counts the packet and updates the state. Returns
/// whether there is one.
///
/// # Errors
/// The drop reason, if the packet may not pass or the connection cannot be established.
#[inline(never)]
pub fn find(nat: &Nat, s: &mut Scratch) -> Result<bool, Counter> {
    let hash = s.key.entry_hash();
    if let Some(entry) = FLOWS.get_ptr_mut(&s.key) {
        // SAFETY: the map returned a value. Another CPU may write it meanwhile; at worst a count is
        // lost. If the entry was recycled for another flow, its hash differs.
        unsafe { copy(&mut s.flow, entry) };
        if s.flow.entry_hash == hash {
            if still_valid(&s.flow, &s.side) && !has_expired(nat, s) {
                // SAFETY: as above.
                let changed = unsafe { update(&mut *entry, s) };
                if changed {
                    reverse(s);
                    if let Some(other) = FLOWS.get_ptr_mut(&s.back_key) {
                        // SAFETY: as above.
                        unsafe { (*other).state = s.flow.state };
                    }
                }
                return Ok(true);
            }
            reverse(s);
            let _ = FLOWS.remove(&s.back_key);
            let _ = FLOWS.remove(&s.key);
        }
    }
    let Some(entry) = opening(&s.key) else {
        return Ok(false);
    };
    // SAFETY: as above.
    unsafe { copy(&mut s.flow, entry) };
    if s.flow.entry_hash != hash {
        return Ok(false);
    }
    if !still_valid(&s.flow, &s.side) || has_expired(nat, s) {
        return Ok(false);
    }
    if !acknowledges_reply(s) {
        return Err(Counter::DropNoFlow);
    }
    // SAFETY: as above.
    unsafe { update(&mut *entry, s) };
    reverse(s);
    if s.key.protocol == IPPROTO_TCP
        && s.flow.from != UPLINK
        && s.packet.flags & SYN != 0
        && matches!(s.flow.direction(), Direction::Reply)
    {
        // Only a receiver of this segment can acknowledge this number.
        s.back.egress_macs = expectation(s.packet.sequence.wrapping_add(1));
        if let Some(other) = opening(&s.back_key) {
            // SAFETY: as above.
            unsafe { (*other).egress_macs = s.back.egress_macs };
        }
    }
    let lasting = s.key.protocol != IPPROTO_ICMP && s.key.protocol != IPPROTO_ICMPV6;
    if lasting && Flow::is_assured(s.key.protocol, s.flow.state) {
        return establish(nat, s).map(|()| true);
    }
    if !s.flow.may_deliver() {
        return Err(Counter::DropNoRule);
    }
    // The other direction may have been evicted: this packet inserts it again.
    match opening(&s.back_key) {
        // SAFETY: as above.
        Some(other) => unsafe { (*other).state = s.flow.state },
        None => {
            let _ = OPENING_EXCESS.insert(&s.back_key, &s.back, BPF_NOEXIST.into());
        }
    }
    Ok(true)
}

/// Bytes that may have been sent before the first acknowledgment: an initial window (RFC 6928), as
/// with TCP Fast Open (RFC 7413).
const INITIAL_WINDOW: u32 = 16_384;

/// An acknowledgment number in the field of the egress MAC addresses, which a connection from
/// outside does not use.
#[inline(always)]
const fn expectation(number: u32) -> [u8; 12] {
    let [a, b, c, d] = number.to_ne_bytes();
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// Whether the opener of a TCP connection to a machine has received the machine's reply. A segment
/// that acknowledges another number has a forged source, and would fill the table.
#[inline(always)]
fn acknowledges_reply(s: &Scratch) -> bool {
    if s.key.protocol != IPPROTO_TCP
        || s.flow.to == UPLINK
        || !matches!(s.flow.direction(), Direction::Original)
        || !Flow::is_assured(IPPROTO_TCP, s.flow.next(IPPROTO_TCP, s.packet.flags))
    {
        return true;
    }
    let macs = &s.flow.egress_macs;
    let expected = u32::from_ne_bytes([macs[0], macs[1], macs[2], macs[3]]);
    s.packet.acknowledgment.wrapping_sub(expected) <= INITIAL_WINDOW
}

/// The zone whose quota a connection counts against: that of the tenant that opened it or, if
/// opened from outside, of the machine. `s.flow` is one of its directions.
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

/// Whether the connection was opened from outside. `s.flow` is one of its directions.
#[inline(always)]
fn is_from_outside(s: &Scratch) -> bool {
    match s.flow.direction() {
        Direction::Original => s.key.zone == OUTSIDE,
        Direction::Reply => s.flow.to_zone == OUTSIDE,
    }
}

/// Writes the other direction of `s.flow` into `s.back_key` and `s.back`. In a function of its own:
/// the words of its tag would take stack of each caller.
#[inline(never)]
pub fn reverse(s: &mut Scratch) {
    s.flow.inverse(&s.key, &mut s.back_key, &mut s.back);
}

/// Whether the connection has expired.
#[inline(always)]
fn has_expired(nat: &Nat, s: &mut Scratch) -> bool {
    if !s.flow.is_expired(s.key.protocol, s.side.now, &nat.timeouts) {
        return false;
    }
    reverse(s);
    are_both_expired(&s.flow, s, nat)
}

/// Counts the packet in its entry and updates the state. Returns whether the state changed.
#[inline(always)]
fn update(entry: &mut Flow, s: &mut Scratch) -> bool {
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

/// Moves a connection that both ends agreed to into `FLOWS`: both directions or none.
#[inline(always)]
fn establish(nat: &Nat, s: &mut Scratch) -> Result<(), Counter> {
    let owner = owner(s);
    if !quota::permits_connection(nat, owner) {
        return Err(Counter::DropQuota);
    }
    s.flow.packets += 1;
    s.flow.bytes += u64::from(s.packet.total);
    if let Some(other) = opening(&s.back_key) {
        // SAFETY: the map returned a value; these are counts.
        unsafe {
            s.back.packets = (*other).packets;
            s.back.bytes = (*other).bytes;
        }
    }
    // The reverse direction first: until the forward direction follows, packets still find
    // `OPENING`.
    if let Err(error) = FLOWS.insert(&s.back_key, &s.back, BPF_NOEXIST.into()) {
        return if error == EEXIST && is_same(&s.back_key, &s.back) {
            // Another CPU inserted the same connection at the same time.
            Ok(())
        } else {
            Err(insert_failure(error))
        };
    }
    if let Err(error) = FLOWS.insert(&s.key, &s.flow, BPF_NOEXIST.into()) {
        let _ = FLOWS.remove(&s.back_key);
        return Err(insert_failure(error));
    }
    // Of a connection within the budget, one entry may have been evicted.
    let had_key = remove_opening(&s.key);
    let had_back_key = remove_opening(&s.back_key);
    if had_key || had_back_key {
        quota::give_opening(owner, is_from_outside(s));
    }
    quota::add_connection(owner);
    count(Counter::FlowEstablished);
    Ok(())
}

/// The drop reason for a failed insertion.
#[inline(always)]
const fn insert_failure(error: i32) -> Counter {
    if error == EEXIST {
        Counter::DropFlowTaken
    } else {
        Counter::DropFlowsFull
    }
}

/// Whether the entry of `key` translates as `flow` does.
#[inline(always)]
fn is_same(key: &FlowKey, flow: &Flow) -> bool {
    match FLOWS.get_ptr(key) {
        // SAFETY: the map returned a value.
        Some(entry) => unsafe { (*entry).same_translation(flow) },
        None => false,
    }
}

/// Whether the direction `s.other_key` of a connection in `FLOWS` has expired too.
#[inline(always)]
fn is_other_expired(s: &Scratch, nat: &Nat) -> bool {
    match FLOWS.get_ptr(&s.other_key) {
        // SAFETY: the map returned a value. If it is recycled meanwhile, the time read is that of
        // another entry; it can only delay or advance this one's expiry.
        Some(other) => unsafe { (*other).is_expired(s.key.protocol, s.side.now, &nat.timeouts) },
        None => true,
    }
}

/// Inserts the connection `s.flow` into `OPENING`, or beyond its tenant's budget into
/// `OPENING_EXCESS`: both directions or none. Returns the drop reason, or `None` on success.
#[inline(never)]
pub fn insert_opening(nat: &Nat, s: &mut Scratch) -> Option<Counter> {
    reverse(s);
    if let Some(entry) = FLOWS.get_ptr(&s.back_key) {
        // SAFETY: the map returned a value; one that is recycled meanwhile is not current for long.
        let taken = unsafe {
            (*entry).other_key(s.key.protocol, &mut s.other_key);
            is_current(&s.back_key, &*entry, s.side.now)
                && !((*entry).is_expired(s.key.protocol, s.side.now, &nat.timeouts)
                    && is_other_expired(s, nat))
        };
        if taken {
            return Some(Counter::DropFlowTaken);
        }
        let _ = FLOWS.remove(&s.other_key);
        let _ = FLOWS.remove(&s.back_key);
    }
    if let Some(entry) = opening(&s.back_key) {
        // SAFETY: as above.
        let (same, taken, unanswered) = unsafe {
            (*entry).other_key(s.key.protocol, &mut s.other_key);
            (
                (*entry).same_translation(&s.back),
                is_current(&s.back_key, &*entry, s.side.now)
                    && !(*entry).is_expired(s.key.protocol, s.side.now, &nat.timeouts),
                (*entry).rule == 0 && !Flow::is_assured(s.key.protocol, (*entry).state),
            )
        };
        if !same && taken {
            // A machine that sends first from the port that a rule leads to gets another public
            // port than the rule's. While that is unanswered, it must not block connections by the
            // rule.
            if s.flow.rule == 0 || !unanswered {
                return Some(Counter::DropFlowTaken);
            }
            remove_opening(&s.other_key);
        }
    }
    let is_inserted = if quota::take_opening(owner(s), is_from_outside(s)) {
        insert_both(&OPENING, &OPENING_EXCESS, s)
    } else {
        count(Counter::OpeningExcess);
        insert_both(&OPENING_EXCESS, &OPENING, s)
    };
    if !is_inserted {
        return Some(Counter::DropFlowsFull);
    }
    count(Counter::FlowOpened);
    None
}

/// Inserts both directions of a connection into a table, or none. Returns whether both are there.
/// The other table keeps nothing of either: a stale entry there would hide this one.
#[inline(always)]
fn insert_both(
    table: &LruHashMap<FlowKey, Flow>,
    other: &LruHashMap<FlowKey, Flow>,
    s: &Scratch,
) -> bool {
    let _ = other.remove(&s.back_key);
    let _ = other.remove(&s.key);
    if table.insert(&s.back_key, &s.back, 0).is_err() {
        return false;
    }
    if table.insert(&s.key, &s.flow, 0).is_err() {
        let _ = table.remove(&s.back_key);
        return false;
    }
    true
}

/// Finds the connection that an ICMP error is about in `s.flow`, without updating it.
#[inline(never)]
pub fn find_for_error(nat: &Nat, s: &mut Scratch) -> bool {
    let hash = s.key.entry_hash();
    let entry = match FLOWS.get_ptr(&s.key) {
        Some(entry) => Some(entry),
        None => opening(&s.key).map(<*mut Flow>::cast_const),
    };
    let Some(entry) = entry else {
        return false;
    };
    // SAFETY: the map returned a value; if it was recycled for another flow, its hash differs.
    unsafe { copy(&mut s.flow, entry) };
    if s.flow.entry_hash != hash {
        return false;
    }
    still_valid(&s.flow, &s.side) && !has_expired(nat, s)
}

/// Finds the translation of the datagram's first fragment in `s.flow`.
#[inline(never)]
pub fn find_for_fragment(s: &mut Scratch) -> bool {
    let Some(entry) = FRAGMENTS.get_ptr(&s.key) else {
        return false;
    };
    let hash = s.key.entry_hash();
    // SAFETY: as above.
    unsafe { copy(&mut s.flow, entry) };
    let age = s.side.now.wrapping_sub(s.flow.last_seen) as i32;
    s.flow.entry_hash == hash && age <= FRAGMENT_TICKS as i32 && still_valid(&s.flow, &s.side)
}

/// Stores the translation of a first fragment for those that follow.
#[inline(never)]
pub fn store_fragment(s: &mut Scratch) {
    s.back_key = s.key;
    s.back_key.source_port = s.packet.identification as u16;
    s.back_key.destination_port = (s.packet.identification >> 16) as u16;
    // SAFETY: a value of `SCRATCH`, which only this CPU reads and writes.
    unsafe { copy(&mut s.back, &raw const s.flow) };
    s.back.last_seen = s.side.now;
    s.back.entry_hash = s.back_key.entry_hash();
    let _ = FRAGMENTS.insert(&s.back_key, &s.back, 0);
}

/// Stores the route out of the uplink in the connection's entry.
#[inline(always)]
pub fn store_egress(s: &Scratch) {
    let entry = match FLOWS.get_ptr_mut(&s.key) {
        Some(entry) => Some(entry),
        None => opening(&s.key),
    };
    if let Some(entry) = entry {
        // SAFETY: the map returned a value. If it is recycled for another flow meanwhile, that flow
        // looks up again, or sends one packet to a next hop that was valid just before.
        unsafe {
            if (*entry).entry_hash == s.flow.entry_hash {
                (*entry).egress_macs = s.flow.egress_macs;
                (*entry).egress_max_len = s.flow.egress_max_len;
                (*entry).egress_stamp = s.flow.egress_stamp;
            }
        }
    }
}
