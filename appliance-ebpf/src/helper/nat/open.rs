//! Opens connections: from a tenant by a mapping, from outside by a public IP rule.

use appliance_common::{
    counters::Counter,
    maps::{Mode, network_flags},
    nat::{
        Flow, MachineKey, MappingKey, Nat, OUTSIDE, RULE_KEY_BITS, Rule, RuleKey, SOURCE_KEY_BITS,
        SourceKey, UPLINK, flow_flags, public_flags, rule_flags, short_lived,
    },
    wire::{IPPROTO_TCP, IPPROTO_UDP},
};
use aya_ebpf::maps::lpm_trie::Key;

use super::{
    flow, mapping, pair,
    tables::{MANAGEMENT_PORT, has_ports, public, tenant},
};
use crate::{
    helper::lookup::{network, route},
    maps::{MAPPINGS, ONE_TO_ONE, RULE_PORTS, RULE_SOURCES, RULES, Scratch},
};

/// Opens the packet's connection, in `s.flow`. Returns the drop reason, or `None` on success.
#[inline(never)]
pub fn open(nat: &Nat, s: &mut Scratch) -> Option<Counter> {
    if s.packet.opens == 0 {
        return Some(Counter::DropNoFlow);
    }
    begin(s);
    let outside = s.side.zone == 0;
    let mut rule = None;
    if outside {
        let Some(found) = match_rule(s) else {
            return Some(Counter::DropNoRule);
        };
        // From outside, a source that is the tenant's own or a public address is forged (RFC 2827).
        let source = s.key.source;
        if route((found.zone - 1).into(), source).is_some() || public(&source).is_some() {
            return Some(Counter::DropSourceGuard);
        }
        rule = Some(found);
    } else {
        let target = s.key.destination;
        match public(&target) {
            Some(public) => {
                if has_ports(s.key.protocol) && s.key.destination_port == MANAGEMENT_PORT {
                    return Some(Counter::DropManagementPort);
                }
                // Tenants do not reach the appliance itself, but machines mapped to its address.
                if public.flags & public_flags::OWN == 0 {
                    rule = match_rule(s);
                }
                if rule.is_none() && !match_mapping(s) {
                    return Some(Counter::DropNoRule);
                }
            }
            None if s.side.internet == 0 => return Some(Counter::DropNoRoute),
            None => s.flow.flags |= flow_flags::INTERNET,
        }
        if let Some(reason) = translate_source(nat, s) {
            return Some(reason);
        }
    }
    if let Some(rule) = rule
        && rule.flags & rule_flags::LISTED != 0
        && !is_listed(s)
    {
        return Some(Counter::DropNotListed);
    }
    let refused = flow::insert_opening(nat, s);
    if refused.is_none() && !s.flow.may_deliver() {
        return Some(Counter::DropNoRule);
    }
    refused
}

/// Writes the connection of the packet into `s.flow`, untranslated and to the uplink. In a function
/// of its own: the words of its tag would take stack of the longest chain of calls.
#[inline(never)]
fn begin(s: &mut Scratch) {
    s.flow = Flow {
        source: s.key.source,
        destination: s.key.destination,
        source_port: s.key.source_port,
        destination_port: s.key.destination_port,
        to_zone: OUTSIDE,
        state: 0,
        flags: short_lived(s.key.protocol, s.key.destination_port),
        to: UPLINK,
        from: s.side.slot,
        to_epoch: 0,
        from_epoch: s.side.epoch,
        rule: 0,
        rule_epoch: 0,
        last_seen: s.side.now,
        entry_hash: s.key.entry_hash(),
        packets: 1,
        bytes: s.packet.total.into(),
        egress_macs: [0; 12],
        egress_stamp: 0,
        egress_max_len: 0,
    };
    s.flow.state = s.flow.next(s.key.protocol, s.packet.flags);
}

/// Takes the machine that is mapped to the packet's destination into `s.flow`: a hairpin without a
/// rule (RFC 4787 REQ-9, RFC 5382 REQ-8). Returns whether there is one. As from outside, packets
/// are delivered only once that machine has sent to the sender's mapping: until then the
/// flow is [`flow_flags::MUTUAL`].
#[inline(never)]
fn match_mapping(s: &mut Scratch) -> bool {
    let ports = s.key.protocol == IPPROTO_TCP || s.key.protocol == IPPROTO_UDP;
    if !ports || s.side.internet == 0 {
        return false;
    }
    s.outer = MappingKey {
        address: s.key.destination,
        port: s.key.destination_port,
        zone: OUTSIDE,
        protocol: s.key.protocol,
        reserved: [0; 3],
    };
    // SAFETY: read at once; preallocated entries are never unmapped.
    let Some(seen) = unsafe { MAPPINGS.get(&s.outer) }.copied() else {
        return false;
    };
    let full = tenant(seen.zone.into())
        .is_some_and(|t| t.mode == Mode::Full as u32 && t.epoch == seen.epoch);
    let Some(to) = route(u32::from(seen.zone).wrapping_sub(1), seen.address).filter(|_| full)
    else {
        return false;
    };
    if network(to).is_none_or(|n| n.flags & network_flags::INTERNET == 0) {
        return false;
    }
    s.flow.destination = seen.address;
    s.flow.destination_port = seen.port;
    s.flow.to = to;
    s.flow.to_zone = seen.zone;
    s.flow.to_epoch = seen.epoch;
    s.flow.flags |= flow_flags::INTERNET | flow_flags::MUTUAL;
    true
}

/// The rule that matches the packet's destination, which it takes into `s.flow`.
#[inline(always)]
fn match_rule(s: &mut Scratch) -> Option<&'static Rule> {
    let [high, low] = s.key.destination_port.to_ne_bytes();
    let key = Key::new(
        RULE_KEY_BITS + 16,
        RuleKey {
            address: s.key.destination,
            protocol: s.key.protocol,
            reserved: 0,
            port: [high, low],
        },
    );
    let slot = RULE_PORTS.get(&key)?.slot;
    let rule = RULES
        .get(slot)
        .filter(|rule| rule.flags & rule_flags::ACTIVE != 0)?;
    let tenant = tenant(rule.zone.into()).filter(|t| t.mode == Mode::Full as u32)?;
    s.flow.destination = rule.internal;
    if rule.flags & rule_flags::ONE_TO_ONE == 0 {
        let offset = u16::from_be(s.key.destination_port).wrapping_sub(rule.public_first);
        s.flow.destination_port = rule.internal_first.wrapping_add(offset).to_be();
    }
    s.flow.to = rule.network;
    s.flow.to_zone = rule.zone;
    s.flow.to_epoch = tenant.epoch;
    s.flow.rule = slot + 1;
    s.flow.rule_epoch = rule.epoch;
    Some(rule)
}

/// Whether the rule of `s.flow` lists the translated source.
#[inline(always)]
fn is_listed(s: &Scratch) -> bool {
    let key = Key::new(
        SOURCE_KEY_BITS + 128,
        SourceKey {
            slot: s.flow.rule - 1,
            address: s.flow.source,
        },
    );
    RULE_SOURCES.get(&key).is_some()
}

/// Translates a tenant host's source in `s.flow`: to its own public address, or to a port of the
/// tenant's address. Returns the drop reason, or `None` on success.
#[inline(always)]
fn translate_source(nat: &Nat, s: &mut Scratch) -> Option<Counter> {
    s.host = MachineKey {
        zone: s.side.zone,
        address: s.key.source,
    };
    // SAFETY: read at once; preallocated entries are never unmapped.
    if let Some(slot) = unsafe { ONE_TO_ONE.get(&s.host) }.copied()
        && let Some(rule) = RULES
            .get(slot.slot)
            .filter(|rule| rule.flags & rule_flags::ACTIVE != 0)
    {
        if u32::from(rule.zone) != s.side.zone || rule.internal != s.key.source {
            // The element of `ONE_TO_ONE`, or the slot, is another machine's by now.
            return Some(Counter::DropRecycled);
        }
        if has_ports(s.key.protocol) && s.key.source_port == MANAGEMENT_PORT {
            // Replies to the management port are dropped.
            return Some(Counter::DropManagementPort);
        }
        s.flow.source = rule.public;
        if s.flow.rule == 0 {
            s.flow.rule = slot.slot + 1;
            s.flow.rule_epoch = rule.epoch;
        }
        return None;
    }
    if s.packet.one_to_one != 0 {
        return Some(Counter::DropNatProtocol);
    }
    let slot = pair::of_source(nat, s);
    if slot == pair::NONE {
        return Some(Counter::DropNoRoute);
    }
    s.flow.flags |= flow_flags::MAPPED;
    let refused = mapping::of_source(s, nat, slot);
    // From here, where more of the stack is left.
    if s.new_mapping != 0 && nat.log != 0 {
        mapping::log(s);
    }
    refused
}
