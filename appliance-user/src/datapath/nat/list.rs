//! The list of connections for operators: filter, order and text form.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use appliance_common::{
    addr::to_ip,
    nat::{Direction, Flow, FlowKey, OUTSIDE, TcpState, UPLINK, Words},
    wire::{
        IPPROTO_ESP, IPPROTO_GRE, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP,
        IPPROTO_UDP,
    },
};
use serde::{Deserialize, Serialize};

/// Names of the slots of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct SlotNames {
    /// Tenants by slot.
    pub tenants: BTreeMap<u32, String>,
    /// Networks by slot.
    pub networks: BTreeMap<u32, String>,
    /// Rules by slot.
    pub rules: BTreeMap<u32, String>,
}

/// Selects connections; a field that is `None` matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Name of the tenant.
    pub tenant: Option<String>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// An address of the connection, before or after translation.
    pub address: Option<IpAddr>,
    /// A port of the connection, before or after translation.
    pub port: Option<u16>,
}

/// A connection, as the control socket reports it. The JSON keys are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRow {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `gre`, `esp`, `sctp`.
    pub protocol: String,
    /// The tenant that opened it, or whose machine is its destination.
    pub tenant: String,
    /// The network of that tenant's end.
    pub network: String,
    /// `out`, `in` or `hairpin`.
    pub direction: String,
    /// TCP: `opening`, `established`, `closing`, `closed`. Other protocols: `unanswered`,
    /// `answered`.
    pub state: String,
    /// Source as sent by the initiator.
    pub from: SocketAddr,
    /// Destination as sent by the initiator.
    pub to: SocketAddr,
    /// Source after translation.
    pub seen_as: SocketAddr,
    /// Destination after translation.
    pub leads_to: SocketAddr,
    /// The public IP rule that allowed it.
    pub rule: Option<String>,
    /// Seconds since the last packet in either direction.
    pub idle_seconds: u64,
    /// Packets from the initiator.
    pub packets: u64,
    /// Bytes of IP packets from the initiator.
    pub bytes: u64,
    /// Packets to the initiator.
    pub packets_back: u64,
    /// Bytes of IP packets to the initiator.
    pub bytes_back: u64,
}

/// An endpoint; `port` in network byte order.
pub fn socket(address: &Words, port: u16) -> SocketAddr {
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(address) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    SocketAddr::new(to_ip(&bytes), u16::from_be(port))
}

impl Filter {
    /// Whether a connection matches, given its entry from the initiator.
    fn matches(&self, key: &FlowKey, flow: &Flow, names: &SlotNames) -> bool {
        let ends = [
            socket(&key.source, key.source_port),
            socket(&key.destination, key.destination_port),
            socket(&flow.source, flow.source_port),
            socket(&flow.destination, flow.destination_port),
        ];
        self.protocol.is_none_or(|p| p == key.protocol)
            && self
                .address
                .is_none_or(|address| ends.iter().any(|end| end.ip() == address))
            && self
                .port
                .is_none_or(|port| ends.iter().any(|end| end.port() == port))
            && self.tenant.as_ref().is_none_or(|tenant| {
                [key.zone, flow.to_zone].into_iter().any(|zone| {
                    zone != OUTSIDE && name(&names.tenants, u32::from(zone) - 1) == *tenant
                })
            })
    }
}

/// The name of an IP protocol, or its number.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        IPPROTO_TCP => "tcp".to_owned(),
        IPPROTO_UDP => "udp".to_owned(),
        IPPROTO_ICMP => "icmp".to_owned(),
        IPPROTO_ICMPV6 => "icmpv6".to_owned(),
        IPPROTO_GRE => "gre".to_owned(),
        IPPROTO_ESP => "esp".to_owned(),
        IPPROTO_SCTP => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// Name of a slot, or its number if it no longer has a name.
fn name(names: &BTreeMap<u32, String>, slot: u32) -> String {
    names
        .get(&slot)
        .cloned()
        .unwrap_or_else(|| format!("#{slot}"))
}

/// Collects the connections with most bytes, and counts all.
#[derive(Debug)]
pub struct TopConnections {
    limit: usize,
    heap: BinaryHeap<Reverse<(u64, FlowKey)>>,
    /// Number of matching connections.
    pub total: usize,
}

impl TopConnections {
    /// Collects at most `limit` connections.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            heap: BinaryHeap::new(),
            total: 0,
        }
    }

    /// Adds an entry of `FLOWS` or `OPENING`; `other` looks up the entry of the other direction.
    pub fn add(
        &mut self,
        key: &FlowKey,
        flow: &Flow,
        filter: &Filter,
        names: &SlotNames,
        other: impl FnOnce(&FlowKey) -> Option<Flow>,
    ) {
        if flow.direction() != Direction::Original || !filter.matches(key, flow, names) {
            return;
        }
        self.total += 1;
        let (mut back_key, mut back) = (FlowKey::default(), Flow::default());
        flow.inverse(key, &mut back_key, &mut back);
        let bytes = flow.bytes + other(&back_key).map_or(0, |back| back.bytes);
        if self.heap.len() == self.limit {
            if self
                .heap
                .peek()
                .is_none_or(|Reverse((least, _))| *least >= bytes)
            {
                return;
            }
            self.heap.pop();
        }
        self.heap.push(Reverse((bytes, *key)));
    }

    /// The keys, most bytes first.
    #[must_use]
    pub fn keys(self) -> Vec<FlowKey> {
        let mut all = self.heap.into_vec();
        all.sort();
        all.into_iter().map(|Reverse((_, key))| key).collect()
    }
}

impl ConnectionRow {
    /// The row of a connection, from the entries of its two directions, at `now` in ticks.
    #[must_use]
    pub fn new(
        key: &FlowKey,
        flow: &Flow,
        back: Option<&Flow>,
        names: &SlotNames,
        now: u32,
    ) -> Self {
        let direction = match (key.zone, flow.to_zone) {
            (OUTSIDE, _) => "in",
            (_, OUTSIDE) => "out",
            _ => "hairpin",
        };
        let (zone, slot) = if key.zone == OUTSIDE {
            (flow.to_zone, flow.to)
        } else {
            (key.zone, flow.from)
        };
        let age = |flow: &Flow| now.saturating_sub(flow.last_seen);
        let idle = back.map_or(age(flow), |back| age(flow).min(age(back)));
        Self {
            protocol: protocol_name(key.protocol),
            tenant: if zone == OUTSIDE {
                String::new()
            } else {
                name(&names.tenants, u32::from(zone) - 1)
            },
            network: if slot == UPLINK {
                String::new()
            } else {
                name(&names.networks, slot)
            },
            direction: direction.to_owned(),
            state: state(key.protocol, flow.state).to_owned(),
            from: socket(&key.source, key.source_port),
            to: socket(&key.destination, key.destination_port),
            seen_as: socket(&flow.source, flow.source_port),
            leads_to: socket(&flow.destination, flow.destination_port),
            rule: flow
                .rule
                .checked_sub(1)
                .map(|slot| name(&names.rules, slot)),
            // A tick is 2^30 ns.
            idle_seconds: (u64::from(idle) << 30) / 1_000_000_000,
            packets: flow.packets,
            bytes: flow.bytes,
            packets_back: back.map_or(0, |back| back.packets),
            bytes_back: back.map_or(0, |back| back.bytes),
        }
    }
}

const fn state(protocol: u8, bits: u8) -> &'static str {
    if protocol != IPPROTO_TCP {
        return if Flow::is_assured(protocol, bits) {
            "answered"
        } else {
            "unanswered"
        };
    }
    let state = TcpState::from_bits(bits);
    if state.is_established() {
        "established"
    } else if state.is_closed() {
        "closed"
    } else if state.is_opening() {
        "opening"
    } else {
        "closing"
    }
}

/// The rows as text.
#[must_use]
pub fn render(rows: &[ConnectionRow], total: usize) -> String {
    let mut out = String::new();
    for row in rows {
        let mut line = format!(
            "{:<6} {:<11} {} -> {}",
            row.protocol, row.state, row.from, row.to
        );
        if row.seen_as != row.from {
            let _ = write!(line, ", seen as {}", row.seen_as);
        }
        if row.leads_to != row.to {
            let _ = write!(line, ", leads to {}", row.leads_to);
        }
        if let Some(rule) = &row.rule {
            let _ = write!(line, ", rule {rule}");
        }
        let _ = writeln!(
            out,
            "{line}; {} {}: {} B sent, {} B received, idle for {} s",
            row.tenant, row.network, row.bytes, row.bytes_back, row.idle_seconds
        );
    }
    let more = total.saturating_sub(rows.len());
    let _ = match (rows.len(), more) {
        (0, _) => writeln!(out, "no connections"),
        (_, 0) => writeln!(out, "{total} connections"),
        _ => writeln!(
            out,
            "{total} connections; {more} with fewer bytes are not shown (see --top)"
        ),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_common::addr::{Address, from_ip};

    fn words(text: &str) -> Words {
        let address: Address = from_ip(text.parse().expect("an address"));
        std::array::from_fn(|i| u32::from_ne_bytes(std::array::from_fn(|j| address[4 * i + j])))
    }

    fn names() -> SlotNames {
        SlotNames {
            tenants: BTreeMap::from([(0, "acme".to_owned()), (1, "globex".to_owned())]),
            networks: BTreeMap::from([(4, "web".to_owned())]),
            rules: BTreeMap::from([(2, "https".to_owned())]),
        }
    }

    /// An inbound connection by rule `https`, from port `port`.
    fn inbound(port: u16, bytes: u64) -> (FlowKey, Flow) {
        let key = FlowKey {
            source: words("198.51.100.7"),
            destination: words("203.0.113.20"),
            source_port: port.to_be(),
            destination_port: 443u16.to_be(),
            zone: OUTSIDE,
            protocol: IPPROTO_TCP,
            reserved: 0,
        };
        let flow = Flow {
            source: key.source,
            destination: words("10.1.0.10"),
            source_port: key.source_port,
            destination_port: 8443u16.to_be(),
            to_zone: 1,
            to: 4,
            from: UPLINK,
            rule: 3,
            last_seen: 90,
            state: 7,
            packets: 3,
            bytes,
            entry_hash: key.entry_hash(),
            ..Flow::default()
        };
        (key, flow)
    }

    #[test]
    fn a_row_has_both_ends_and_the_rule() {
        let (key, flow) = inbound(5000, 300);
        let back = Flow {
            last_seen: 95,
            packets: 2,
            bytes: 1000,
            ..Flow::default()
        };
        let row = ConnectionRow::new(&key, &flow, Some(&back), &names(), 100);
        assert_eq!(
            render(std::slice::from_ref(&row), 1),
            "tcp    established 198.51.100.7:5000 -> 203.0.113.20:443, leads to 10.1.0.10:8443, \
             rule https; acme web: 300 B sent, 1000 B received, idle for 5 s\n1 connections\n"
        );
        assert_eq!((row.packets, row.packets_back), (3, 2));
        assert_eq!(row.direction, "in");
        let json = serde_json::to_value(&row).expect("it can be written");
        assert_eq!(json["leads_to"], "10.1.0.10:8443");
        assert_eq!(json["rule"], "https");
        assert_eq!(json["direction"], "in");
        assert_eq!(
            serde_json::from_value::<ConnectionRow>(json).ok(),
            Some(row)
        );
    }

    #[test]
    fn a_filter_matches_before_and_after_translation() {
        let (key, flow) = inbound(5000, 1);
        let ip = |text: &str| Some(text.parse().expect("an address"));
        let any = Filter::default;
        for (filter, wants) in [
            (any(), true),
            (
                Filter {
                    tenant: Some("acme".to_owned()),
                    ..any()
                },
                true,
            ),
            (
                Filter {
                    tenant: Some("globex".to_owned()),
                    ..any()
                },
                false,
            ),
            (
                Filter {
                    protocol: Some(6),
                    ..any()
                },
                true,
            ),
            (
                Filter {
                    protocol: Some(17),
                    ..any()
                },
                false,
            ),
            (
                Filter {
                    address: ip("203.0.113.20"),
                    ..any()
                },
                true,
            ),
            (
                Filter {
                    address: ip("10.1.0.10"),
                    ..any()
                },
                true,
            ),
            (
                Filter {
                    address: ip("10.1.0.11"),
                    ..any()
                },
                false,
            ),
            (
                Filter {
                    port: Some(8443),
                    ..any()
                },
                true,
            ),
            (
                Filter {
                    port: Some(443),
                    ..any()
                },
                true,
            ),
            (
                Filter {
                    port: Some(80),
                    ..any()
                },
                false,
            ),
        ] {
            assert_eq!(filter.matches(&key, &flow, &names()), wants, "{filter:?}");
        }
    }

    #[test]
    fn connections_with_most_bytes_come_first_and_all_are_counted() {
        let mut top = TopConnections::new(3);
        for (port, bytes) in [(1, 10), (2, 500), (3, 20), (4, 30), (5, 1)] {
            let (key, flow) = inbound(port, bytes);
            // The reply direction of one connection has many bytes.
            let back = Flow {
                bytes: if port == 3 { 1000 } else { 0 },
                ..Flow::default()
            };
            top.add(&key, &flow, &Filter::default(), &names(), |_| Some(back));
        }
        assert_eq!(top.total, 5);
        let ports: Vec<u16> = top
            .keys()
            .iter()
            .map(|key| u16::from_be(key.source_port))
            .collect();
        assert_eq!(ports, [3, 2, 4]);
        assert!(render(&[], 0).contains("no connections"));
    }

    #[test]
    fn the_reply_direction_is_not_listed_separately() {
        let (key, flow) = inbound(1, 10);
        let (mut back_key, mut back) = (FlowKey::default(), Flow::default());
        flow.inverse(&key, &mut back_key, &mut back);
        let mut top = TopConnections::new(3);
        top.add(&back_key, &back, &Filter::default(), &names(), |_| None);
        assert_eq!(top.total, 0);
    }
}
