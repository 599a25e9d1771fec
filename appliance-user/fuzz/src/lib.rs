//! Two workers' pipelines with a session between them, and whatever comes from the programs and the wire.
//!
//! For: finding inputs that make a worker panic, deliver what its rules forbid, deliver twice, or lose count.
//! Never: randomness, a clock or a file; an input always does the same.
//!
//! The input is a program: a byte that names an act, then what the act needs. Acts past the end of the input
//! read zeros, and there is a bound on acts.

#[path = "../../src/secure/pipeline/pair.rs"]
#[expect(dead_code, reason = "shared with tests that use more of it")]
mod pair;

use appliance_common::{counters::Counter, maps::Tenant};
use appliance_user::secure::pipeline::Command;
use pair::{ACCESS, Side, UPLINK};

/// Longest input worth trying, bytes.
pub const MAX_LEN: usize = 768;
/// Acts of one input.
const ACTS: usize = 24;

struct Input<'d>(&'d [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// Bytes of a length that the input says.
    fn bytes(&mut self) -> Vec<u8> {
        let len = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes.to_vec()
    }
}

/// What a worker handed to its sockets must be fit for them, whatever came in.
fn judge(side: &mut Side, provider: bool, delivered: &mut Vec<Vec<u8>>) -> Vec<(u32, Vec<u8>)> {
    let mut out = Vec::new();
    for (ifindex, frame) in side.take() {
        match ifindex {
            UPLINK => {
                assert_eq!(frame[12..14], [8, 0], "outer Ethernet type");
                let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
                assert_eq!(total, frame.len() - 14, "outer length");
                assert!(total <= 1500, "longer than the path");
                assert_eq!(frame[42], 4, "nothing but sealed messages");
                out.push((ifindex, frame));
            }
            ACCESS => {
                let l3 = if provider { 18 } else { 14 };
                let packet = &frame[l3..];
                match packet[0] >> 4 {
                    4 => {
                        let total = u16::from_be_bytes([packet[2], packet[3]]);
                        assert_eq!(usize::from(total), packet.len());
                        assert_eq!(packet[16..20] == [10, 1, 0, 10], provider);
                        assert_ne!(packet[12..16] == [10, 1, 0, 10], provider);
                    }
                    6 => {
                        let payload = u16::from_be_bytes([packet[4], packet[5]]);
                        assert_eq!(usize::from(payload) + 40, packet.len());
                        assert_eq!(packet[24..40].ends_with(&[0x10]), provider);
                    }
                    other => panic!("delivered a packet of version {other}"),
                }
                delivered.push(frame);
            }
            other => panic!("sent on interface {other}"),
        }
    }
    out
}

fn outcomes(side: &Side) -> u64 {
    // Counted besides an outcome, not as one.
    const BESIDES: [Counter; 5] = [
        Counter::SplitInTunnel,
        Counter::Rejoined,
        Counter::MssClamped,
        Counter::Released,
        Counter::SlowUnresolved,
    ];
    Counter::ALL
        .iter()
        .filter(|c| !BESIDES.contains(c))
        .map(|c| side.count(*c))
        .sum()
}

/// Frames from the programs and the wire, and orders, in any order.
pub fn pipeline(data: &[u8]) {
    let mut input = Input(data);
    let (mut tenant, mut provider) = pair::pair();
    let mut wire: Vec<Vec<u8>> = Vec::new();
    let (mut at_tenant, mut at_provider) = (Vec::new(), Vec::new());
    let mut ms = 10_u64;
    for _ in 0..ACTS {
        if input.0.is_empty() {
            break;
        }
        ms += u64::from(input.byte() & 0x0f);
        let now = pair::at(ms);
        let act = input.byte();
        let (before_t, before_p) = (outcomes(&tenant), outcomes(&provider));
        match act % 9 {
            // Whatever a socket may hold.
            0 => {
                let mut frame = input.bytes();
                provider
                    .pipeline
                    .frame(now.mono, &mut frame, &mut provider.wire);
                assert!(outcomes(&provider) - before_p <= 1, "counted twice");
            }
            1 => {
                let mut frame = input.bytes();
                tenant
                    .pipeline
                    .frame(now.mono, &mut frame, &mut tenant.wire);
            }
            // An authentic message of any content: the peer is hostile.
            2 => {
                let mut frame = 4_u32.to_ne_bytes().to_vec();
                frame.extend_from_slice(&[0; 4]);
                let mut segment = input.bytes();
                segment.resize(segment.len().max(9), 0);
                segment[4..6].copy_from_slice(&[0, 0]);
                frame.extend_from_slice(&segment);
                tenant
                    .pipeline
                    .frame(now.mono, &mut frame, &mut tenant.wire);
            }
            // Packets of hosts, of any length.
            3 => {
                let len = usize::from(input.byte()) * 8;
                let to = ["10.1.0.10", "10.1.0.12", "10.9.9.9"][usize::from(act / 9) % 3];
                tenant.seal(now, &pair::packet("10.1.0.11", to, &vec![act; len]));
            }
            4 => {
                let len = usize::from(input.byte()) * 8;
                let to = ["10.1.0.11", "10.1.0.77", "10.9.9.9"][usize::from(act / 9) % 3];
                provider.seal(now, &pair::packet("10.1.0.10", to, &vec![act; len]));
            }
            // Something on the wire arrives, again, or touched.
            5 | 6 if !wire.is_empty() => {
                let place = usize::from(input.byte()) % wire.len();
                let mut frame = wire[place].clone();
                if act % 9 == 6 {
                    let at = usize::from(input.byte()) + 42;
                    if let Some(byte) = frame.get_mut(at) {
                        *byte ^= input.byte();
                    }
                }
                // To the one whose address it bears.
                let side = if frame[30..34] == [203, 0, 113, 5] {
                    &mut provider
                } else {
                    &mut tenant
                };
                side.pipeline.frame(now.mono, &mut frame, &mut side.wire);
            }
            7 => {
                let epoch = u32::from(input.byte());
                let command = match act / 9 % 4 {
                    0 => Command::Tenant(0, Tenant { mode: 1, epoch }),
                    1 => Command::Silent(0),
                    2 => Command::MaxDatagram(0, 1232 + epoch as usize),
                    _ => Command::Keepalive(0),
                };
                tenant.pipeline.command(now.mono, command, &mut tenant.wire);
            }
            _ => {
                tenant.pipeline.report(now.mono, &mut tenant.wire);
                provider.pipeline.report(now.mono, &mut provider.wire);
            }
        }
        for (_, frame) in judge(&mut tenant, false, &mut at_tenant)
            .into_iter()
            .chain(judge(&mut provider, true, &mut at_provider))
        {
            wire.push(frame);
        }
        assert!(outcomes(&tenant) >= before_t && outcomes(&provider) >= before_p);
    }
    // Nothing comes out twice: each delivery is one message of the wire, accepted once.
    for (side, delivered) in [(&tenant, at_tenant), (&provider, at_provider)] {
        assert_eq!(side.count(Counter::Decapsulated), delivered.len() as u64);
    }
    let sealed = tenant.count(Counter::Encapsulated) + tenant.count(Counter::TunnelControl);
    assert!(
        provider.count(Counter::Decapsulated) <= sealed,
        "delivered twice"
    );
}
