//! Idle, partial, not configured.

use appliance_common::{
    counters::Counter,
    maps::{Config, Mode},
};
use causeway_tests::{
    harness::{Action, Harness, Program},
    packet::*,
    table::{Case, Out, run},
    world::*,
};

fn arp_for(ours: &str, mine: &str, tags: &[(u16, u16)]) -> Vec<u8> {
    let v4 = |t: &str| match ip(t) {
        std::net::IpAddr::V4(a) => a,
        std::net::IpAddr::V6(_) => unreachable!("an IPv4 fixture"),
    };
    eth(
        [0xff; 6],
        B_MAC,
        tags,
        0x0806,
        &arp(1, B_MAC, v4(mine), [0; 6], v4(ours)),
    )
}

#[test]
fn unconfigured_programs_pass_everything_unchanged() {
    let mut world = World::provider();
    world.config = Config::default();
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let mut cases = Vec::new();
    for program in Program::ALL {
        for (what, ifindex, packet) in [
            (
                "a replica's packet",
                TRUNK,
                replica(&echo(ip("10.1.0.10"), ip("10.1.0.11"), 8)),
            ),
            ("ARP", TRUNK, arp_for("10.1.0.11", "10.1.0.10", &[tag(101)])),
            (
                "a tunnel datagram",
                UPLINK,
                tunnelled(
                    TENANT,
                    PROVIDER,
                    NET1,
                    &echo(ip("10.1.0.11"), ip("10.1.0.10"), 8),
                ),
            ),
            ("14 bytes", TRUNK, vec![0; 14]),
            (
                "an unknown VLAN",
                TRUNK,
                frame(TRUNK_MAC, A_MAC, &[tag(9)], &[0; 40]),
            ),
        ] {
            cases.push(
                Case::new(
                    format!("{}, {what}", program.name()),
                    program,
                    ifindex,
                    packet,
                )
                .gives(Action::Pass, Out::Same)
                .counts(Counter::NotConfigured),
            );
        }
    }
    run(&mut h, cases);

    let mut world = World::provider();
    world.config.version += 1;
    h.fill(world).expect("filled");
    run(
        &mut h,
        vec![
            Case::new(
                "maps of another schema",
                Program::Access,
                TRUNK,
                replica(&echo(ip("10.1.0.10"), ip("10.1.0.11"), 8)),
            )
            .gives(Action::Pass, Out::Same)
            .counts(Counter::NotConfigured),
        ],
    );
}

#[test]
fn idle_answers_and_carries_nothing() {
    let Some(mut h) = Harness::new(World::provider().idle()) else {
        return;
    };
    let (a, b) = (ip("10.1.0.10"), ip("10.1.0.11"));
    run(
        &mut h,
        vec![
            Case::new(
                "provider, a replica's packet",
                Program::Access,
                TRUNK,
                replica(&echo(a, b, 8)),
            )
            .dropped(Counter::DropIdle),
            Case::new(
                "provider, IPv6",
                Program::Access,
                TRUNK,
                replica(&echo(ip("2001:db8:1::10"), ip("2001:db8:1::11"), 8)),
            )
            .dropped(Counter::DropIdle),
            Case::new(
                "provider, ARP",
                Program::Access,
                TRUNK,
                arp_for("10.1.0.11", "10.1.0.10", &[tag(101)]),
            )
            .dropped(Counter::ControlIgnored),
            Case::new(
                "provider, a tunnel datagram",
                Program::Uplink,
                UPLINK,
                tunnelled(TENANT, PROVIDER, NET1, &echo(b, a, 8)),
            )
            .dropped(Counter::DropIdle),
        ],
    );
    h.fill(World::tenant().idle()).expect("filled");
    run(
        &mut h,
        vec![
            Case::new(
                "tenant, shared port",
                Program::Combined,
                UPLINK,
                production(&echo(b, a, 8)),
            )
            .passed(),
            Case::new(
                "tenant, ARP on the shared port",
                Program::Combined,
                UPLINK,
                arp_for("10.1.0.10", "10.1.0.11", &[]),
            )
            .passed(),
            Case::new(
                "tenant, tenant-only port",
                Program::Access,
                ACCESS,
                frame(
                    ACCESS_MAC,
                    B_MAC,
                    &[],
                    &echo(ip("10.2.0.11"), ip("10.2.0.10"), 8),
                ),
            )
            .dropped(Counter::DropIdle),
            Case::new(
                "tenant, a tunnel datagram",
                Program::Combined,
                UPLINK,
                tunnelled(PROVIDER, TENANT, NET1, &echo(a, b, 8)),
            )
            .dropped(Counter::DropIdle),
        ],
    );
}

#[test]
fn switching_one_tenant_leaves_the_other_alone() {
    let mut world = World::provider();
    world.tenants[1].mode = Mode::Idle as u32;
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let l3 = echo(ip("10.1.0.10"), ip("10.1.0.11"), 8);
    let tables = |h: &mut Harness, first: bool| {
        let on = |vid: u16, peer: &'static str, vni: u32, partial: bool| {
            let case = Case::new(
                format!("VLAN {vid}, partial {partial}"),
                Program::Access,
                TRUNK,
                frame(TRUNK_MAC, A_MAC, &[tag(vid)], &l3),
            );
            if partial {
                case.gives(
                    Action::Redirect,
                    causeway_tests::table::tunnelled(PROVIDER, peer, vni, l3.clone()),
                )
                .counts(Counter::Encapsulated)
            } else {
                case.dropped(Counter::DropIdle)
            }
        };
        run(
            h,
            vec![on(101, TENANT, NET1, first), on(201, TENANT2, NET2, !first)],
        );
    };
    tables(&mut h, true);
    let mut world = World::provider();
    world.tenants[0].mode = Mode::Idle as u32;
    h.fill(world).expect("filled");
    tables(&mut h, false);
}

#[test]
fn an_unknown_mode_means_idle() {
    let mut world = World::provider();
    world.tenants[0].mode = 7;
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    run(
        &mut h,
        vec![
            Case::new(
                "mode 7",
                Program::Access,
                TRUNK,
                replica(&echo(ip("10.1.0.10"), ip("10.1.0.11"), 8)),
            )
            .dropped(Counter::DropIdle),
        ],
    );
}
