//! Which network a frame belongs to: interface and VLAN tags.

use appliance_common::counters::Counter;
use causeway_tests::{
    harness::{Action, Harness, Program},
    packet::{echo, eth, frame, ip},
    table::{Case, run, tunnelled},
    world::*,
};

#[test]
fn tags_and_interface_select_the_network() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let ping = |net: u8| {
        echo(
            ip(&format!("10.{net}.0.10")),
            ip(&format!("10.{net}.0.11")),
            56,
        )
    };
    let on = |tags: &[(u16, u16)], net: u8| frame(TRUNK_MAC, A_MAC, tags, &ping(net));
    let access = Program::Access;
    run(
        &mut h,
        vec![
            Case::new("802.1Q", access, TRUNK, on(&[tag(101)], 1))
                .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET1, ping(1)))
                .counts(Counter::Encapsulated),
            Case::new(
                "802.1Q with priority and DEI bits",
                access,
                TRUNK,
                on(&[(0x8100, 0xf000 | 101)], 1),
            )
            .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET1, ping(1)))
            .counts(Counter::Encapsulated),
            Case::new("the other tenant's VLAN", access, TRUNK, on(&[tag(201)], 1))
                .gives(
                    Action::Redirect,
                    tunnelled(PROVIDER, TENANT2, NET2, ping(1)),
                )
                .counts(Counter::Encapsulated),
            Case::new(
                "QinQ, 802.1ad outside",
                access,
                TRUNK,
                on(&[service_tag(200), tag(102)], 3),
            )
            .gives(
                Action::Redirect,
                tunnelled(PROVIDER6, TENANT6, NET3, ping(3)),
            )
            .counts(Counter::Encapsulated),
            Case::new(
                "QinQ, 802.1Q outside",
                access,
                TRUNK,
                on(&[tag(200), tag(102)], 3),
            )
            .gives(
                Action::Redirect,
                tunnelled(PROVIDER6, TENANT6, NET3, ping(3)),
            )
            .counts(Counter::Encapsulated),
            Case::new(
                "untagged on an access port",
                access,
                ACCESS,
                frame(ACCESS_MAC, A_MAC, &[], &ping(4)),
            )
            .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET4, ping(4)))
            .counts(Counter::Encapsulated),
            Case::new(
                "a priority tag counts as untagged",
                access,
                ACCESS,
                frame(ACCESS_MAC, A_MAC, &[(0x8100, 0xa000)], &ping(4)),
            )
            .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET4, ping(4)))
            .counts(Counter::Encapsulated),
            Case::new(
                "a priority tag before a VLAN tag is not accepted",
                access,
                TRUNK,
                on(&[tag(0), tag(101)], 1),
            )
            .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET1, ping(1)))
            .counts(Counter::Encapsulated),
            Case::new("untagged on the trunk", access, TRUNK, on(&[], 1))
                .dropped(Counter::DropUnknownVlan),
            Case::new(
                "a VLAN without a network",
                access,
                TRUNK,
                on(&[tag(103)], 1),
            )
            .dropped(Counter::DropUnknownVlan),
            Case::new("the inner VLAN alone", access, TRUNK, on(&[tag(102)], 3))
                .dropped(Counter::DropUnknownVlan),
            Case::new(
                "the outer VLAN alone",
                access,
                TRUNK,
                on(&[service_tag(200)], 3),
            )
            .dropped(Counter::DropUnknownVlan),
            Case::new(
                "inner and outer exchanged",
                access,
                TRUNK,
                on(&[service_tag(102), tag(200)], 3),
            )
            .dropped(Counter::DropUnknownVlan),
            Case::new(
                "a known VLAN on another interface",
                access,
                ACCESS,
                frame(ACCESS_MAC, A_MAC, &[tag(101)], &ping(1)),
            )
            .dropped(Counter::DropUnknownVlan),
            Case::new(
                "an interface that is not attached",
                access,
                STRAY,
                frame(TRUNK_MAC, A_MAC, &[tag(101)], &ping(1)),
            )
            .dropped(Counter::DropUnknownVlan),
            Case::new(
                "three tags",
                access,
                TRUNK,
                on(&[service_tag(200), tag(102), tag(101)], 3),
            )
            .dropped(Counter::DropTooManyTags),
            Case::new(
                "another Ethernet type",
                access,
                TRUNK,
                eth(TRUNK_MAC, A_MAC, &[tag(101)], 0x88cc, &[0; 46]),
            )
            .dropped(Counter::DropNotCarried),
            Case::new(
                "an 802.3 length",
                access,
                TRUNK,
                eth(TRUNK_MAC, A_MAC, &[tag(101)], 46, &[0; 46]),
            )
            .dropped(Counter::DropNotCarried),
        ],
    );
}

#[test]
fn a_shared_port_passes_unknown_frames_to_the_kernel() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    let ping = echo(ip("10.1.0.11"), ip("10.1.0.10"), 56);
    let combined = Program::Combined;
    run(
        &mut h,
        vec![
            Case::new(
                "a VLAN without a network",
                combined,
                UPLINK,
                frame(UPLINK_MAC, B_MAC, &[tag(7)], &ping),
            )
            .passed(),
            Case::new(
                "three tags",
                combined,
                UPLINK,
                frame(UPLINK_MAC, B_MAC, &[tag(7), tag(7), tag(7)], &ping),
            )
            .passed(),
            Case::new(
                "another Ethernet type",
                combined,
                UPLINK,
                eth(UPLINK_MAC, B_MAC, &[], 0x88cc, &[0; 46]),
            )
            .passed(),
            Case::new(
                "a packet for the appliance itself",
                combined,
                UPLINK,
                production(&echo(ip("10.1.0.11"), ip("10.1.0.5"), 56)),
            )
            .passed(),
            Case::new(
                "a packet for an endpoint",
                combined,
                UPLINK,
                production(&ping),
            )
            .gives(Action::Tx, tunnelled(TENANT, PROVIDER, NET1, ping.clone()))
            .counts(Counter::Encapsulated),
        ],
    );
}
