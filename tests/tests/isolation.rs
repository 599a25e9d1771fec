//! Two tenants with equal subnets, on VLAN 101 and VLAN 201 of one trunk: nothing crosses.
//!
//! Judged without the reference: by where a frame came in, and where it leaves.

use causeway_tests::{
    dump,
    harness::{Action, Harness, Program, Record, describe},
    packet::*,
    rng::{Rng, seed_from_env},
    world::*,
};

/// Random traffic of one subnet: most of it would be carried, some of it forged.
fn traffic(rng: &mut Rng) -> Vec<u8> {
    let part = |rng: &mut Rng| *rng.pick(&[1u8, 5, 10, 10, 10, 11, 11, 12, 200]);
    let (s, d) = (part(rng), part(rng));
    let (src, dst) = match rng.below(4) {
        0 => (ip(&format!("10.1.0.{s}")), ip(&format!("10.1.0.{d}"))),
        1 => (
            ip(&format!("2001:db8:1::{s}")),
            ip(&format!("2001:db8:1::{d}")),
        ),
        2 => (ip(&format!("10.1.0.{s}")), ip("192.0.2.9")),
        _ => (ip("2001:db8:9::2"), ip(&format!("2001:db8:1::{d}"))),
    };
    let len = *rng.pick(&[0usize, 8, 100, 1300, 1440]);
    match rng.below(3) {
        0 => echo(src, dst, len),
        1 => udp(src, dst, rng.next_u64() as u16, 53, &vec![7; len]),
        _ => tcp(
            src,
            dst,
            rng.next_u64() as u16,
            443,
            tcp_flags::SYN,
            &syn_options(1460),
            &[],
        ),
    }
}

#[test]
fn tenants_with_equal_subnets_never_meet() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let seed = seed_from_env();
    println!("CAUSEWAY_SEED={seed}");
    let mut rng = Rng::new(seed);
    // VLAN, VNI, peer, replica's MAC.
    let tenants = [(101u16, NET1, TENANT, A_MAC), (201, NET2, TENANT2, G_MAC)];
    let (mut up, mut down, mut records) = ([0u64; 2], [0u64; 2], [0u64; 2]);
    for _ in 0..200_000 {
        let mine = rng.below(2);
        let (vid, vni, peer, mac) = tenants[mine];
        let l3 = traffic(&mut rng);
        if rng.below(2) == 0 {
            let packet = frame(TRUNK_MAC, mac, &[tag(vid)], &l3);
            let (action, out) = go(&mut h, Program::Access, TRUNK, &packet);
            if action == Action::Redirect {
                let to = ip(peer);
                let std::net::IpAddr::V4(to) = to else {
                    unreachable!("IPv4 peers")
                };
                assert!(
                    out[30..34] == to.octets() && be32(&out, 46) == Some(vni << 8),
                    "VLAN {vid} went to another tenant's tunnel\nin:\n{}out:\n{}",
                    dump::hex(&packet),
                    dump::hex(&out)
                );
                up[mine] += 1;
            } else if action == Action::Tx {
                assert_eq!(
                    l2(&out).map(|l| l.vids),
                    Some([vid, 0]),
                    "an answer on another VLAN"
                );
            }
        } else {
            let claimed = if rng.below(4) == 0 {
                tenants[1 - mine].1
            } else {
                vni
            };
            let packet = tunnelled(peer, PROVIDER, claimed, &l3);
            let (action, out) = go(&mut h, Program::Uplink, UPLINK, &packet);
            if action.sends() {
                assert!(
                    claimed == vni
                        && l2(&out).map(|l| l.vids) == Some([vid, 0])
                        && mac_at(&out, 0) == mac,
                    "the tunnel of VLAN {vid} reached another tenant\nin:\n{}out:\n{}",
                    dump::hex(&packet),
                    dump::hex(&out)
                );
                down[mine] += 1;
            }
        }
        for record in h.records() {
            let of = match &record {
                Record::Neighbour(event) => event.vni,
                Record::Slow(header, _) => header.vni,
                Record::Garbage(ring, bytes) => panic!("{} bytes in {ring}", bytes.len()),
            };
            assert_eq!(of, vni, "a record in another tenant's name: {record:x?}");
            records[mine] += 1;
        }
    }
    println!("into tunnels {up:?}, out of tunnels {down:?}, records {records:?}");
    assert!(
        up.iter().chain(&down).chain(&records).all(|n| *n > 1000),
        "the traffic did not exercise both tenants both ways"
    );
}

fn go(h: &mut Harness, program: Program, ifindex: u32, packet: &[u8]) -> (Action, Vec<u8>) {
    match h.run(program, ifindex, packet) {
        Ok((action, out)) => (action, out.to_vec()),
        Err(e) => panic!("{}", describe(&e)),
    }
}
