//! Two workers' pipelines with a session, and arbitrary frames from the programs and the wire.
//!
//! For: finding inputs that make a worker panic, deliver a forbidden packet, deliver twice, or
//! miscount. Never: randomness, a clock or a file; an input always has the same effect.
//!
//! Three hostile peers also send to the provider's worker, with arbitrary plaintexts sealed with
//! their keys. One has the tenant's stolen key, one is another tenant with the same subnet, one is
//! a WireGuard client of the first tenant.
//!
//! ```text
//!   tenant's worker ──┐ VNI 1001            VLAN 101
//!   hand 0, its keys ─┼──────▶ provider's ──────────▶ 10.1.0.10, 2001:db8:1::10 of net 1001
//!   hand 2, WireGuard ┘         worker
//!   hand 1 ────── VNI 2001 ─────▶    ──────────▶ 10.1.0.10 of net 2001
//!                                       VLAN 201
//! ```
//!
//! The input is a program: a byte selects an act, then follow its arguments. Past the end of the
//! input, acts read zeros. The number of acts is bounded.

use appliance_common::{
    counters::Counter,
    maps::{HostKey, Mode, Neighbour, Network, Tenant, network_flags},
};
use fuzzing::{Input, Target};
use tunnel::{
    Framing, PayloadKind,
    segment::{ControlMessage, Header},
};
use tunnel_worker::{
    pipeline::{Command, LaneAssignment, PeerLanes, PeerRoute},
    testing::{self as pair, ACCESS, TestAppliance, TestPeer, UPLINK, VNI, address, prefix},
};

/// The target.
pub const TARGET: Target = Target {
    name: "pipeline",
    run: pipeline,
};
/// Acts of one input.
const ACTS: usize = 24;

/// Bytes whose length the input selects.
fn bytes(input: &mut Input<'_>) -> Vec<u8> {
    let length = usize::from(input.u8());
    input.bytes(length).to_vec()
}

/// The other tenant's network.
const OTHER: u32 = 2001;
/// The WireGuard client's address.
const CLIENT: [u8; 4] = [10, 1, 0, 77];

/// Makes the three hostile peers.
fn test_peers(provider: &mut TestAppliance) -> [TestPeer; 3] {
    let to = "203.0.113.5:6180";
    let now = pair::at(4);
    let (stolen, _, rx) = TestPeer::new(Framing::Segments, 10, ["198.51.100.5:6180", to]);
    provider.command(now, Command::Receive(0, rx));
    let (other, tx, rx) = TestPeer::new(Framing::Segments, 11, ["192.0.2.1:6180", to]);
    for command in other.commands(1, PeerLanes::appliance(LaneAssignment::WHOLE), (tx, rx)) {
        provider.command(now, command);
    }
    let client_prefix = prefix("10.1.0.77");
    let lane = PeerLanes::wireguard(LaneAssignment::WHOLE, VNI, Box::new([client_prefix]));
    let (client, tx, rx) = TestPeer::new(Framing::WireGuard, 12, ["192.0.2.2:51820", to]);
    for command in client.commands(2, lane, (tx, rx)) {
        provider.command(now, command);
    }
    let member = PeerRoute {
        prefix: client_prefix,
        peer: 2,
    };
    provider.command(now, Command::PeerRoutes(VNI, Box::new([member])));
    let mut network = Network {
        vni: OTHER,
        tenant: 1,
        peer: 1,
        flags: network_flags::ACTIVE | network_flags::SECURE | network_flags::PROVIDER,
        mtu: 1432,
        prefix_count: 1,
        ..Network::default()
    };
    network.prefixes[0] = prefix("10.1.0.0/24");
    let key = HostKey {
        vni: OTHER,
        address: address("10.1.0.10"),
    };
    let partial = Tenant {
        mode: Mode::Partial as u32,
        epoch: 1,
    };
    let neighbour = Neighbour::new(ACCESS, [2, 0, 0, 0, 0, 9], [4; 6], 201, 0, 0x8100);
    for command in [
        Command::Network(9, Some(Box::new(network))),
        Command::Tenant(1, partial),
        Command::Endpoint(key, true),
        Command::Neighbour(key, Some(Box::new(neighbour))),
    ] {
        provider.command(now, command);
    }
    [stolen, other, client]
}

/// Checks a frame that a hostile peer caused: only to hosts of the peer's network, and for a client
/// only from its address.
fn allowed(test_peer: usize, frame: &[u8]) {
    let vlan = u16::from_be_bytes([frame[14], frame[15]]);
    assert_eq!(
        vlan,
        [101, 201, 101][test_peer],
        "test_peer {test_peer} in another's network"
    );
    if test_peer == 2 {
        assert_eq!(frame[18] >> 4, 4);
        assert_eq!(frame[30..34], CLIENT, "the client speaks for another");
    }
}

/// Checks that a hostile peer can decrypt only packets of its network, and a client only packets to
/// its address.
fn received(test_peers: &mut [TestPeer; 3], now: tunnel::Now, frame: &[u8]) {
    for (at, test_peer) in test_peers.iter_mut().enumerate() {
        match (at, test_peer.receive(now, frame)) {
            (_, None) => {}
            (1, Some(received)) => assert!(
                received.is_empty() || received.starts_with(&OTHER.to_be_bytes()),
                "another tenant's packet"
            ),
            (2, Some(received)) => assert!(
                received.is_empty() || received[16..20] == CLIENT,
                "another client's packet"
            ),
            // No end sends in the session of the stolen keys.
            _ => panic!("peer {at} received a packet of another network or host"),
        }
    }
}

/// Checks the frames that a worker gave to its sockets.
fn judge(
    side: &mut TestAppliance,
    provider: bool,
    delivered: &mut Vec<Vec<u8>>,
) -> Vec<(u32, Vec<u8>)> {
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

fn outcomes(side: &TestAppliance) -> u64 {
    // Counted besides an outcome, not as one.
    const BESIDES: [Counter; 5] = [
        Counter::TunnelFragmented,
        Counter::TunnelReassembled,
        Counter::MssClamped,
        Counter::OutageFlushed,
        Counter::SlowUnresolved,
    ];
    Counter::ALL
        .iter()
        .filter(|c| !BESIDES.contains(c))
        .map(|c| side.count(*c))
        .sum()
}

/// A plaintext: as the input has it, or an IP packet with its lengths put right, behind a segment
/// header or not; the packet's bytes are the input's.
fn content(input: &mut Input<'_>) -> Vec<u8> {
    let form = input.u8();
    let body = bytes(input);
    if form < 0x80 {
        return body;
    }
    let v6 = form & 1 == 1;
    let mut packet = if v6 { vec![0; 40] } else { vec![0; 20] };
    if v6 {
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
        packet[6] = [6, 17, 58, 0, 60, 43, 44, 59][usize::from(form >> 1) % 8];
        packet[8..24].copy_from_slice(&address("2001:db8:1::11"));
        packet[24..40].copy_from_slice(&address("2001:db8:1::10"));
    } else {
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(20 + body.len() as u16).to_be_bytes());
        packet[9] = [6, 17, 1, 0][usize::from(form >> 1) % 4];
        let source = if form & 8 == 0 {
            [10, 1, 0, 11]
        } else {
            CLIENT
        };
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&[10, 1, 0, 10]);
    }
    packet.extend_from_slice(&body);
    // One of the headers' bytes is the input's too.
    let (at, value) = (usize::from(input.u8()), input.u8());
    if let Some(byte) = packet.get_mut(at) {
        *byte = value;
    }
    match form >> 4 & 3 {
        0 => packet,
        1 => [
            &Header::whole(PayloadKind::Ip, OTHER).to_bytes()[..],
            &packet,
        ]
        .concat(),
        _ => [&Header::whole(PayloadKind::Ip, VNI).to_bytes()[..], &packet].concat(),
    }
}

/// Commands of the control half.
fn order(
    which: u8,
    input: &mut Input<'_>,
    now: tunnel::Now,
    tenant: &mut TestAppliance,
    provider: &mut TestAppliance,
) {
    let value = u32::from(input.u8());
    let slot = value & 3;
    match which % 12 {
        0 => tenant.command(
            now,
            Command::Tenant(
                0,
                Tenant {
                    mode: 1,
                    epoch: value,
                },
            ),
        ),
        1 => tenant.command(now, Command::PeerSilent(0)),
        2 => tenant.command(now, Command::MaxDatagram(0, 1232 + value.min(240) as usize)),
        3 => tenant.command(now, Command::Keepalive(0)),
        4 => provider.command(now, Command::PeerSilent(slot)),
        5 => {
            let mode = value >> 2 & 1;
            provider.command(now, Command::Tenant(slot, Tenant { mode, epoch: 1 }));
        }
        6 => provider.command(now, Command::OuterHeader(slot, None)),
        7 => provider.command(now, Command::PeerRoutes(VNI, Box::default())),
        8 => provider.command(now, Command::Network(if slot < 2 { 4 } else { 9 }, None)),
        9 => provider.command(now, Command::Peer(slot, None)),
        10 => {
            let vni = if slot < 2 { VNI } else { OTHER };
            let address = address("10.1.0.10");
            provider.command(now, Command::Neighbour(HostKey { vni, address }, None));
        }
        _ => {
            let message = ControlMessage::Echo {
                token: u64::from(value),
                size: 0,
            };
            tenant.command(
                now,
                Command::ControlMessage(0, message, (value as usize * 6).min(1472)),
            );
        }
    }
}

/// Frames from the programs and the wire, and orders, in any order.
pub fn pipeline(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut tenant, mut provider) = pair::pair();
    let mut test_peers = test_peers(&mut provider);
    let mut said = 0;
    let mut wire: Vec<Vec<u8>> = Vec::new();
    let (mut at_tenant, mut at_provider) = (Vec::new(), Vec::new());
    let mut ms = 10_u64;
    for _ in 0..ACTS {
        if input.is_empty() {
            break;
        }
        ms += u64::from(input.u8() & 0x0f);
        let now = pair::at(ms);
        let act = input.u8();
        let (before_t, before_p) = (outcomes(&tenant), outcomes(&provider));
        match act % 9 {
            // Arbitrary bytes of a socket.
            0 => {
                let mut frame = bytes(&mut input);
                provider
                    .pipeline
                    .frame(now.mono, &mut frame, &mut provider.wire);
                assert!(outcomes(&provider) - before_p <= 1, "counted twice");
            }
            1 => {
                let mut frame = bytes(&mut input);
                tenant
                    .pipeline
                    .frame(now.mono, &mut frame, &mut tenant.wire);
            }
            // An authentic message of any content: a peer is hostile.
            2 => {
                let test_peer = usize::from(act / 9) % 3;
                let plaintext = content(&mut input);
                said += 1;
                let mut frame = test_peers[test_peer].send(now, &plaintext);
                provider
                    .pipeline
                    .frame(now.mono, &mut frame, &mut provider.wire);
                assert!(outcomes(&provider) - before_p <= 1, "counted twice");
                for (ifindex, frame) in &provider.wire.frames {
                    if *ifindex == ACCESS {
                        allowed(test_peer, frame);
                    }
                }
            }
            // Packets of hosts, of any length.
            3 => {
                let len = usize::from(input.u8()) * 8;
                let to = ["10.1.0.10", "10.1.0.12", "10.9.9.9"][usize::from(act / 9) % 3];
                tenant.seal(now, &pair::packet("10.1.0.11", to, &vec![act; len]));
            }
            4 => {
                let len = usize::from(input.u8()) * 8;
                let to = ["10.1.0.11", "10.1.0.77", "10.9.9.9"][usize::from(act / 9) % 3];
                let packet = pair::packet("10.1.0.10", to, &vec![act; len]);
                // Of either tenant; or a slot that has changed hands since.
                let (slot, vni) =
                    [(4, VNI), (9, OTHER), (4, OTHER), (9, VNI)][usize::from(act / 27) % 4];
                let mut frame = pair::to_seal(slot, vni, &packet);
                provider
                    .pipeline
                    .frame(now.mono, &mut frame, &mut provider.wire);
            }
            // Something on the wire arrives, again, or touched.
            5 | 6 if !wire.is_empty() => {
                let place = usize::from(input.u8()) % wire.len();
                let mut frame = wire[place].clone();
                if act % 9 == 6 {
                    let at = usize::from(input.u8()) + 42;
                    if let Some(byte) = frame.get_mut(at) {
                        *byte ^= input.u8();
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
            7 => order(act / 9, &mut input, now, &mut tenant, &mut provider),
            _ => {
                tenant.pipeline.report(now.mono, &mut tenant.wire);
                provider.pipeline.report(now.mono, &mut provider.wire);
            }
        }
        for (_, frame) in judge(&mut tenant, false, &mut at_tenant)
            .into_iter()
            .chain(judge(&mut provider, true, &mut at_provider))
        {
            received(&mut test_peers, now, &frame);
            wire.push(frame);
        }
        assert!(outcomes(&tenant) >= before_t && outcomes(&provider) >= before_p);
    }
    // Nothing is delivered twice: each delivery is one message of the wire, accepted once.
    for (side, delivered) in [(&tenant, at_tenant), (&provider, at_provider)] {
        assert_eq!(side.count(Counter::Decapsulated), delivered.len() as u64);
    }
    let sealed = tenant.count(Counter::Encapsulated) + tenant.count(Counter::TunnelControl);
    assert!(
        provider.count(Counter::Decapsulated) <= sealed + said,
        "delivered twice"
    );
}
