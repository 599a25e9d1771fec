//! No packet crosses from one tenant to another or leaves untranslated. Random packets of two
//! tenants with equal addresses and of outside hosts pass routes, mappings, rules, 1:1 rules,
//! hairpins, errors and fragments, while modes, rules and epochs change.
//!
//! 200 000 packets; a million with `CAUSEWAY_LONG=1`; or `CAUSEWAY_RANDOM_PACKETS`, at most a
//! million. `CAUSEWAY_SEED` replays a run.

use std::{collections::BTreeMap, net::IpAddr};

use appliance_common::{counters::Counter, maps::Mode};
use causeway_tests::{
    harness::{Action, Harness, Program},
    nat::{End, HostPort, Message, Verdict, end, ends, fragments, inside, outside, packet},
    packet::{frame, icmp, ip, l2, mac_at, tcp_flags::SYN},
    rng::{Seeded, seed_from_env},
    series,
    world::*,
};

/// Packets of the bounded series and of the full one.
const BOUNDED: u64 = 200_000;
const FULL: u64 = 1_000_000;
/// Changes of modes, rules and epochs in a series.
const CHANGES: u64 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Party {
    Acme,
    Globex,
    Outside,
}

const ACME: [&str; 6] = [NAT4, NAT6, PUBLIC4, PUBLIC6, ONE_TO_ONE4, ONE_TO_ONE6];
const GLOBEX: [&str; 3] = [PUBLIC2, PROVIDER, PROVIDER6];
const REMOTES: [&str; 4] = [REMOTE, LISTED, REMOTE6, LISTED6];
const HOSTS: [&str; 8] = [
    "10.1.0.10",
    "10.1.0.11",
    "10.3.0.10",
    "10.4.0.10",
    "2001:db8:1::10",
    "2001:db8:1::11",
    "2001:db8:3::10",
    "2001:db8:4::10",
];
/// Few, so that connections meet.
const PORTS: [u16; 10] = [22, 53, 443, 2222, 5000, 5001, 8080, 8443, 20_000, 20_001];

fn owner(address: IpAddr) -> Option<Party> {
    let is = |list: &[&str]| list.iter().any(|text| ip(text) == address);
    if is(&ACME) {
        Some(Party::Acme)
    } else if is(&GLOBEX) {
        Some(Party::Globex)
    } else {
        None
    }
}

/// Whether the address is in a party's networks.
fn is_inside(party: Party, address: IpAddr) -> bool {
    let number = match address {
        IpAddr::V4(a) if a.octets()[0] == 10 => u16::from(a.octets()[1]),
        IpAddr::V6(a) if a.segments()[..2] == [0x2001, 0xdb8] => a.segments()[2],
        _ => return false,
    };
    match party {
        Party::Acme | Party::Outside => [1, 3, 4].contains(&number),
        Party::Globex => number == 1,
    }
}

/// The receiver of a frame, by its tags and MAC address.
fn receiver(out: &[u8]) -> Option<Party> {
    let head = l2(out)?;
    let ours = mac_at(out, 6);
    match (head.tags, head.vids, ours) {
        (1, [101, 0], TRUNK_MAC) | (2, [200, 102], TRUNK_MAC) | (0, _, ACCESS_MAC) => {
            Some(Party::Acme)
        }
        (1, [201, 0], TRUNK_MAC) => Some(Party::Globex),
        (0, _, UPLINK_MAC) => Some(Party::Outside),
        _ => None,
    }
}

fn addresses(l3: &[u8]) -> (IpAddr, IpAddr) {
    if l3[0] >> 4 == 4 {
        let a: [u8; 4] = l3[12..16].try_into().expect("4 bytes");
        let b: [u8; 4] = l3[16..20].try_into().expect("4 bytes");
        (a.into(), b.into())
    } else {
        let a: [u8; 16] = l3[8..24].try_into().expect("16 bytes");
        let b: [u8; 16] = l3[24..40].try_into().expect("16 bytes");
        (a.into(), b.into())
    }
}

/// The IP packet that an ICMP error quotes.
fn quoted(l3: &[u8]) -> Option<&[u8]> {
    let (protocol, l4) = if l3[0] >> 4 == 4 {
        (l3[9], usize::from(l3[0] & 15) * 4)
    } else {
        (l3[6], 40)
    };
    let kind = *l3.get(l4)?;
    let is_error = match protocol {
        1 => [3, 11, 12].contains(&kind),
        58 => kind < 128,
        _ => false,
    };
    let inner = l3.get(l4 + 8..).filter(|_| is_error)?;
    let least = if l3[0] >> 4 == 4 { 28 } else { 48 };
    (inner.len() >= least).then_some(inner)
}

/// Whether the packet belongs to a connection: of ICMP, only echoes do.
fn has_ends(l3: &[u8]) -> bool {
    let (protocol, l4) = if l3[0] >> 4 == 4 {
        (l3[9], usize::from(l3[0] & 15) * 4)
    } else {
        (l3[6], 40)
    };
    match protocol {
        1 => [0, 8].contains(&l3[l4]),
        58 => [128, 129].contains(&l3[l4]),
        _ => true,
    }
}

/// Checks the output for a packet from `party`.
fn judge(party: Party, sent: &[u8], out: &[u8]) -> Result<(), String> {
    let to = receiver(out).ok_or("out of no port that there is")?;
    let l3 = &out[l2(out).ok_or("no frame")?.l3..];
    let (source, destination) = addresses(l3);
    let (_, asked) = addresses(sent);
    let inner = quoted(l3).map(addresses);
    match to {
        Party::Outside => {
            let own = owner(source).ok_or_else(|| format!("from {source}, untranslated"))?;
            // The source of our error about a packet from outside is that packet's destination.
            let allowed = if party == Party::Outside {
                source == asked
            } else {
                own == party
            };
            if !allowed {
                return Err(format!("{party:?} is translated to {source}"));
            }
            if is_inside(party, destination) {
                return Err(format!("to {destination}, which is inside"));
            }
            if let Some((a, b)) = inner
                && (is_inside(party, a) || is_inside(party, b))
            {
                return Err(format!("quotes {a} to {b}"));
            }
            Ok(())
        }
        tenant => {
            if !is_inside(tenant, destination) {
                return Err(format!("to {destination}, which is not inside"));
            }
            // Within a tenant; between tenants only to a public address of the receiver.
            if party != tenant && owner(asked) != Some(tenant) {
                return Err(format!("from {party:?} to {tenant:?}, to {asked}"));
            }
            if party != tenant && is_inside(tenant, source) {
                return Err(format!("from {party:?} to {tenant:?} as {source}"));
            }
            if let Some((a, b)) = inner
                && party != tenant
                && a != destination
            {
                return Err(format!("quotes {a} to {b}, to {destination}"));
            }
            Ok(())
        }
    }
}

/// Generates random packets, also from the packets seen before.
struct Generator {
    rng: Seeded,
    /// The last packets that each was sent.
    received: BTreeMap<Party, Vec<Vec<u8>>>,
    ids: u16,
}

impl Generator {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.below(of.len())]
    }

    fn random_message(&mut self) -> Message {
        match self.rng.below(8) {
            0..=2 => Message::Udp,
            3 => Message::EchoRequest,
            4 => Message::EchoReply,
            _ => Message::Tcp(self.pick(&[0x02, 0x12, 0x10, 0x11, 0x04, 0x14])),
        }
    }

    /// A new packet of `party`.
    fn fresh(&mut self, party: Party) -> Vec<u8> {
        loop {
            let from = match party {
                Party::Outside => self.pick(&REMOTES),
                Party::Acme => self.pick(&HOSTS),
                Party::Globex => self.pick(&["10.1.0.10", "2001:db8:1::10"]),
            };
            let to = match self.rng.below(4) {
                0 if party != Party::Outside => self.pick(&HOSTS),
                1 if party != Party::Outside => self.pick(&REMOTES),
                2 => self.pick(&GLOBEX),
                _ => self.pick(&ACME),
            };
            let (from, to) = (ip(from), ip(to));
            if from.is_ipv4() == to.is_ipv4() {
                let ends: (End, End) = ((from, self.pick(&PORTS)), (to, self.pick(&PORTS)));
                return packet(self.random_message(), ends.0, ends.1);
            }
        }
    }

    /// An answer to, or an error about, a packet that `party` received; else a new packet.
    fn next(&mut self, party: Party) -> Vec<u8> {
        let known = self.received.get(&party).map_or(0, Vec::len);
        if known == 0 || self.rng.below(3) == 0 {
            return self.fresh(party);
        }
        let at = self.rng.below(known);
        let received = &self.received[&party][at].clone();
        let whole = match received[0] >> 4 {
            4 => u16::from_be_bytes([received[6], received[7]]) & 0x3fff == 0,
            _ => received[6] != 44,
        };
        if !whole || !has_ends(received) {
            return self.fresh(party);
        }
        let (from, to) = ends(received);
        if self.rng.below(4) == 0 {
            let mut rest = vec![0; 4];
            let most = if self.rng.below(2) == 0 { 48 } else { 400 };
            rest.extend_from_slice(&received[..received.len().min(most)]);
            let (kind, code) = if from.0.is_ipv4() {
                self.pick(&[(3, 3), (11, 0), (12, 0), (5, 1), (4, 0)])
            } else {
                self.pick(&[(1, 4), (3, 0), (2, 0), (4, 1)])
            };
            return icmp(to.0, from.0, kind, code, &rest);
        }
        let protocol = if received[0] >> 4 == 4 {
            received[9]
        } else {
            received[6]
        };
        let message = match protocol {
            17 => Message::Udp,
            6 => Message::Tcp(self.pick(&[0x12, 0x10, 0x11, 0x14])),
            _ if to.1 == 0 => Message::EchoReply,
            _ => Message::EchoRequest,
        };
        packet(message, to, from)
    }
}

fn place(party: Party, l3: &[u8]) -> (Program, u32, Vec<u8>) {
    let (source, _) = addresses(l3);
    let third = match source {
        IpAddr::V4(a) => u16::from(a.octets()[1]),
        IpAddr::V6(a) => a.segments()[2],
    };
    let last = match source {
        IpAddr::V4(a) => u16::from(a.octets()[3]),
        IpAddr::V6(a) => a.segments()[7] - 6,
    };
    match party {
        Party::Outside => (
            Program::Uplink,
            UPLINK,
            frame(UPLINK_MAC, NEXT_HOP_MAC, &[], l3),
        ),
        Party::Globex => (
            Program::Access,
            TRUNK,
            HostPort::trunk(201, G_MAC).sends(l3),
        ),
        Party::Acme => match third {
            3 => (
                Program::Access,
                TRUNK,
                frame(TRUNK_MAC, A_MAC, &[(0x88a8, 200), (0x8100, 102)], l3),
            ),
            4 => (Program::Access, ACCESS, frame(ACCESS_MAC, A_MAC, &[], l3)),
            _ => {
                let mac = if last == 11 { B_MAC } else { A_MAC };
                (Program::Access, TRUNK, HostPort::trunk(101, mac).sends(l3))
            }
        },
    }
}

#[test]
fn no_packet_crosses_tenants_or_leaves_untranslated() {
    let packets = series::length("CAUSEWAY_RANDOM_PACKETS", BOUNDED, FULL).min(FULL);
    let seed = seed_from_env();
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    println!("{packets} packets, seed {seed}");
    let mut mill = Generator {
        rng: Seeded::new(seed),
        received: BTreeMap::new(),
        ids: 0,
    };
    let mut went: BTreeMap<(Party, Party), u64> = BTreeMap::new();
    let mut sent = 0;
    while sent < packets {
        if mill.rng.below((packets / CHANGES).max(1) as usize) == 0 {
            change(&mut h, &mut mill.rng);
        }
        let party = mill.pick(&[
            Party::Acme,
            Party::Acme,
            Party::Globex,
            Party::Outside,
            Party::Outside,
        ]);
        let l3 = mill.next(party);
        let pieces = if mill.rng.below(10) == 0 && l3.len() > 20 + 40 {
            mill.ids = mill.ids.wrapping_add(1) % 64;
            let at = if l3[0] >> 4 == 4 { 24 } else { 32 };
            let mut pieces = fragments(&l3, at.min((l3.len() - 41) / 8 * 8), mill.ids).to_vec();
            if mill.rng.below(4) == 0 {
                pieces.reverse();
            }
            pieces
        } else {
            vec![l3]
        };
        for l3 in pieces {
            sent += 1;
            let (program, ifindex, packet) = place(party, &l3);
            let (action, out) = h.run(program, ifindex, &packet).expect("it runs");
            if action == Action::Pass {
                assert_eq!(out, packet, "passed, and not as it was");
                assert_eq!(program, Program::Uplink, "a tenant's packet passed");
                continue;
            }
            if !action.sends() {
                assert_eq!(action, Action::Drop);
                continue;
            }
            let out = out.to_vec();
            if let Err(why) = judge(party, &l3, &out) {
                panic!("seed {seed}, packet {sent}: {why}\nsent {l3:02x?}\nout {out:02x?}");
            }
            let to = receiver(&out).expect("judged");
            *went.entry((party, to)).or_default() += 1;
            let received = mill.received.entry(to).or_default();
            let l3 = out[l2(&out).expect("judged").l3..].to_vec();
            if received.len() < 64 {
                received.push(l3);
            } else {
                let at = mill.rng.below(64);
                received[at] = l3;
            }
        }
        h.each_record(|_| {});
    }
    println!("{went:?}");
    // The test is worth something only if packets went every way that there is.
    for from in [Party::Acme, Party::Globex, Party::Outside] {
        for to in [Party::Acme, Party::Globex, Party::Outside] {
            if (from, to) == (Party::Outside, Party::Outside) {
                // Only an expired packet is answered.
                continue;
            }
            let n = went.get(&(from, to)).copied().unwrap_or(0);
            assert!(n > packets / 2000, "only {n} of {from:?} to {to:?}");
        }
    }
    let counters = h.counters();
    for counter in [
        Counter::TranslatedIn,
        Counter::TranslatedOut,
        Counter::TranslatedHairpin,
        Counter::FlowEstablished,
        Counter::ErrorTranslated,
        Counter::FragmentTranslated,
        Counter::DropManagementPort,
        Counter::DropNoFlow,
        Counter::SlowFragment,
    ] {
        let n = counters.get(&(counter as u32)).copied().unwrap_or(0);
        assert!(n > packets / 10_000, "only {n} of {}", counter.name());
    }
}

/// Something an operator might do meanwhile.
fn change(h: &mut Harness, rng: &mut Seeded) {
    let mut world = h.world.clone();
    match rng.below(3) {
        0 => {
            let tenant = &mut world.tenants[rng.below(2)];
            tenant.epoch += 1;
            tenant.mode = match rng.below(4) {
                0 => Mode::Idle as u32,
                _ => Mode::Full as u32,
            };
        }
        1 => {
            let rules = world.rules.len();
            world.rules[rng.below(rules)].epoch += 1;
        }
        _ => {
            for tenant in &mut world.tenants {
                tenant.mode = Mode::Full as u32;
            }
        }
    }
    h.refill_rules(&world).expect("refilled");
}

/// A redirect (RFC 792, RFC 4861 section 8) is for its own link. Hosts accept one from their
/// gateway only, whose address no host may send from.
#[test]
fn a_redirect_crosses_no_router() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    let host = HostPort::trunk(101, A_MAC);
    let redirect = |from: &str, to: &str, about: &[u8]| {
        let rest = if ip(from).is_ipv4() {
            [&[10, 1, 0, 99][..], &about[..28]].concat()
        } else {
            [&[0; 4][..], &about[8..40]].concat()
        };
        let kind = if ip(from).is_ipv4() { 5 } else { 137 };
        icmp(ip(from), ip(to), kind, 1, &rest)
    };
    for (a, gateway, public, other, remote) in [
        ("10.1.0.10", "10.1.0.1", PUBLIC4, Some(PUBLIC2), REMOTE),
        ("2001:db8:1::10", "2001:db8:1::1", PUBLIC6, None, REMOTE6),
    ] {
        // About a connection that is open, by both ends' addresses.
        let syn = packet(Message::Tcp(SYN), end(remote, 50_000), end(public, 443));
        assert!(matches!(outside(&mut h, &syn), Verdict::Host(_)));
        let back = packet(Message::Tcp(SYN), end(public, 443), end(remote, 50_000));
        assert_eq!(
            outside(&mut h, &redirect(remote, public, &back)),
            Verdict::Dropped(Counter::DropNatProtocol),
            "from outside"
        );
        let discovery = ip(a).is_ipv6();
        for to in [Some(remote), other].into_iter().flatten() {
            let reason = if discovery {
                Counter::DropNotCarried
            } else {
                Counter::DropNatProtocol
            };
            assert_eq!(
                inside(&mut h, host, &redirect(a, to, &syn)),
                Verdict::Dropped(reason),
                "from {a} to {to}"
            );
        }
        // To another network of the tenant, as from the gateway.
        let neighbour = if discovery {
            "2001:db8:4::10"
        } else {
            "10.4.0.10"
        };
        let reason = if discovery {
            Counter::DropNotCarried
        } else {
            Counter::DropSourceGuard
        };
        assert_eq!(
            inside(&mut h, host, &redirect(gateway, neighbour, &syn)),
            Verdict::Dropped(reason),
            "from {gateway} to {neighbour}"
        );
    }
}
