//! Packet trace: which packets are traced, and the text of each step.

use std::{fmt::Write as _, net::IpAddr};

use appliance_common::{
    addr::{UNSPECIFIED, from_ip},
    counters::Counter,
    events::{TraceEvent, TraceFilter, TraceProgram, TraceStep},
    wire::{ETHERTYPE_8021AD, ETHERTYPE_8021Q, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};
use serde::{Deserialize, Serialize};

/// Steps in one reply at most.
pub const MAX_STEPS: usize = 2000;

/// The packets that are traced; a field that is left out matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketFilter {
    /// Interface that they arrive on, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Outer VLAN identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// IP protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// Source or destination address, as they arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Source or destination port of TCP or UDP, as they arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl PacketFilter {
    /// The value of the map `TRACE`; `ifindex` is the interface's.
    #[must_use]
    pub fn to_map(&self, ifindex: Option<u32>) -> TraceFilter {
        TraceFilter {
            active: 1,
            ifindex: ifindex.unwrap_or(0),
            vlan: self.vlan.unwrap_or(0),
            port: self.port.unwrap_or(0).to_be(),
            protocol: self.protocol.unwrap_or(0),
            reserved: [0; 3],
            address: self.address.map_or(UNSPECIFIED, from_ip),
        }
    }
}

/// A step. Field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Nanoseconds of the kernel's monotonic clock.
    pub at: u64,
    /// The packet: its CPU, and its number there.
    pub packet: String,
    /// The program that handles it.
    pub program: String,
    /// `enter`, `continue` or `verdict`.
    pub step: String,
    /// The interface that it arrived on, by name where that is known.
    pub interface: String,
    /// The verdict: `pass`, `drop`, `tx`, `redirect`; empty before it.
    pub action: String,
    /// The counters that were raised, in order; the last one is the verdict's.
    pub counted: Vec<String>,
    /// Bytes of the frame.
    pub len: u32,
    /// The headers of the frame at that step, as text.
    pub frame: String,
}

fn counter(number: u16) -> Option<&'static str> {
    Counter::ALL
        .iter()
        .find(|c| **c as u32 + 1 == u32::from(number))
        .map(|c| c.name())
}

impl Step {
    /// From a record of the ring; `interface` is the name of the one it arrived on.
    #[must_use]
    pub fn new(event: &TraceEvent, interface: Option<&str>) -> Self {
        let step = TraceStep::from_u16(event.step);
        let decided = step == Some(TraceStep::Verdict);
        let mut counted: Vec<String> = event
            .counters
            .iter()
            .filter_map(|note| counter(*note))
            .map(ToOwned::to_owned)
            .collect();
        if decided && let Some(name) = counter(event.counter) {
            counted.push(name.to_owned());
        }
        Self {
            at: event.at,
            packet: format!("{}.{}", event.cpu, event.packet),
            program: TraceProgram::name_of(event.program)
                .map_or_else(|| format!("#{}", event.program), ToOwned::to_owned),
            step: match step {
                Some(TraceStep::Enter) => "enter",
                Some(TraceStep::Continue) => "continue",
                Some(TraceStep::Verdict) => "verdict",
                None => "unknown",
            }
            .to_owned(),
            interface: interface.map_or_else(|| format!("#{}", event.ifindex), ToOwned::to_owned),
            action: match (decided, event.action) {
                (false, _) => "",
                (true, 1) => "drop",
                (true, 2) => "pass",
                (true, 3) => "tx",
                (true, 4) => "redirect",
                (true, _) => "aborted",
            }
            .to_owned(),
            counted,
            len: event.len,
            frame: describe(&event.head[..event.head.len().min(event.len as usize)]),
        }
    }

    /// As one line of text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut line = format!("{:<10} ", self.packet);
        let _ = match self.step.as_str() {
            "enter" => write!(line, "{:<9} in on {}", self.program, self.interface),
            "continue" => write!(line, "{:<9} tail call", self.program),
            _ => write!(
                line,
                "{:<9} {} ({})",
                self.program,
                self.action,
                self.counted.join(", ")
            ),
        };
        let _ = write!(line, ": {}, {} B", self.frame, self.len);
        line
    }
}

/// The headers of a frame as text, as far as the bytes go.
#[must_use]
pub fn describe(frame: &[u8]) -> String {
    let mut out = String::new();
    let (Some(destination), Some(source)) = (frame.get(..6), frame.get(6..12)) else {
        return "truncated".to_owned();
    };
    let mac = |m: &[u8]| {
        m.iter()
            .map(|b| format!("{b:02x}"))
            .collect::<Vec<_>>()
            .join(":")
    };
    let _ = write!(out, "{} > {}", mac(source), mac(destination));
    let mut at = 12;
    let word = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]))
    };
    while let (Some(ETHERTYPE_8021Q | ETHERTYPE_8021AD), Some(tag)) = (word(at), word(at + 2)) {
        let _ = write!(out, ", VLAN {}", tag & 0x0fff);
        at += 4;
    }
    let Some(ethertype) = word(at) else {
        return out;
    };
    let l3 = frame.get(at + 2..).unwrap_or_default();
    match ethertype {
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => {
            let _ = write!(out, ", {}", packet(l3));
        }
        ETHERTYPE_ARP => {
            let _ = write!(out, ", {}", arp(l3));
        }
        other => {
            let _ = write!(out, ", type {other:#06x}");
        }
    }
    out
}

fn arp(l3: &[u8]) -> String {
    let v4 = |at: usize| -> Option<std::net::Ipv4Addr> {
        let bytes: [u8; 4] = l3.get(at..at + 4)?.try_into().ok()?;
        Some(bytes.into())
    };
    match (l3.get(7), v4(14), v4(24)) {
        (Some(1), Some(sender), Some(target)) => format!("ARP {sender} asks for {target}"),
        (Some(2), Some(sender), Some(target)) => format!("ARP {sender} answers {target}"),
        _ => "ARP".to_owned(),
    }
}

fn packet(l3: &[u8]) -> String {
    use etherparse::{LaxSlicedPacket, TransportSlice};

    let Ok(sliced) = LaxSlicedPacket::from_ip(l3) else {
        return "IP, malformed".to_owned();
    };
    let (source, destination, hops): (IpAddr, IpAddr, u8) = match &sliced.net {
        Some(etherparse::LaxNetSlice::Ipv4(v4)) => (
            v4.header().source_addr().into(),
            v4.header().destination_addr().into(),
            v4.header().ttl(),
        ),
        Some(etherparse::LaxNetSlice::Ipv6(v6)) => (
            v6.header().source_addr().into(),
            v6.header().destination_addr().into(),
            v6.header().hop_limit(),
        ),
        _ => return "IP".to_owned(),
    };
    let ends = |from: u16, to: u16| {
        format!(
            "{} > {}",
            std::net::SocketAddr::new(source, from),
            std::net::SocketAddr::new(destination, to)
        )
    };
    let transport = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let mut flags = String::new();
            for (is, letter) in [
                (tcp.syn(), 'S'),
                (tcp.fin(), 'F'),
                (tcp.rst(), 'R'),
                (tcp.psh(), 'P'),
                (tcp.ack(), '.'),
            ] {
                if is {
                    flags.push(letter);
                }
            }
            format!(
                "TCP {} [{flags}]",
                ends(tcp.source_port(), tcp.destination_port())
            )
        }
        Some(TransportSlice::Udp(udp)) => {
            format!("UDP {}", ends(udp.source_port(), udp.destination_port()))
        }
        Some(TransportSlice::Icmpv4(icmp)) => format!(
            "ICMP {source} > {destination} type {} code {}",
            icmp.type_u8(),
            icmp.code_u8()
        ),
        Some(TransportSlice::Icmpv6(icmp)) => format!(
            "ICMPv6 {source} > {destination} type {} code {}",
            icmp.type_u8(),
            icmp.code_u8()
        ),
        _ => format!("{source} > {destination}, a fragment or another protocol"),
    };
    format!("{transport}, hops {hops}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_common::events::{TRACE_COUNTERS, TRACE_HEAD};

    /// A SYN with a tag, as bytes.
    fn syn() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 101, 8, 0];
        let builder = etherparse::PacketBuilder::ipv4([10, 1, 0, 10], [198, 51, 100, 80], 64)
            .tcp(1234, 443, 1, 1000)
            .syn();
        builder.write(&mut frame, &[]).expect("it fits");
        frame
    }

    #[test]
    fn headers_are_described_as_text() {
        assert_eq!(
            describe(&syn()),
            "02:00:00:00:00:02 > 02:00:00:00:00:01, VLAN 101, TCP 10.1.0.10:1234 > \
             198.51.100.80:443 [S], hops 64"
        );
        let mut arp = vec![0xff; 6];
        arp.extend_from_slice(&[2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend_from_slice(&[
            2, 0, 0, 0, 0, 2, 10, 1, 0, 10, 0, 0, 0, 0, 0, 0, 10, 1, 0, 1,
        ]);
        assert!(describe(&arp).ends_with("ARP 10.1.0.10 asks for 10.1.0.1"));
    }

    #[test]
    fn truncated_frames_are_described() {
        let frame = syn();
        for len in 0..frame.len() {
            assert!(!describe(&frame[..len]).is_empty());
        }
        assert!(!describe(&[0xff; 128]).is_empty());
    }

    #[test]
    fn step_shows_verdict_and_counters() {
        let mut event = TraceEvent {
            at: 1,
            packet: 7,
            cpu: 1,
            ifindex: 3,
            len: 58,
            program: TraceProgram::NatOut as u16,
            step: TraceStep::Verdict as u16,
            counter: Counter::TranslatedOut as u16 + 1,
            action: 4,
            counters: [0; TRACE_COUNTERS],
            reserved: 0,
            head: [0; TRACE_HEAD],
        };
        event.counters[0] = Counter::FlowOpened as u16 + 1;
        let frame = syn();
        event.head[..frame.len()].copy_from_slice(&frame);
        let line = Step::new(&event, Some("eth1")).render();
        assert!(
            line.starts_with("1.7        nat_out   redirect (flow_opened, translated_out): 02:"),
            "{line}"
        );
        event.step = TraceStep::Enter as u16;
        let step = Step::new(&event, None);
        assert_eq!((step.interface.as_str(), step.action.as_str()), ("#3", ""));
        assert!(step.render().contains("nat_out   in on #3: 02:"));
    }

    #[test]
    fn empty_filter_matches_all_packets() {
        let filter = PacketFilter::default().to_map(None);
        let any = TraceFilter {
            active: 1,
            ..TraceFilter::default()
        };
        assert_eq!(filter, any);
        let wanted = PacketFilter {
            port: Some(443),
            address: Some(IpAddr::from([10, 1, 0, 10])),
            ..PacketFilter::default()
        };
        let filter = wanted.to_map(Some(9));
        assert_eq!((filter.port, filter.ifindex), (443u16.to_be(), 9));
        assert_eq!(filter.address[12..], [10, 1, 0, 10]);
    }
}
