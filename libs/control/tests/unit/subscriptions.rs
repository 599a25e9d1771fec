//! Settings of subscriptions: the appliance's, the number of public addresses, and the networks of
//! another director.

use control::{Address, Appliance, Network, Reason, State, Subscription, Tenant, tenant_usage};
use serde_json::{Value, json};

use super::refusals::{CONFLICT, INVALID, World, refused};

fn uplink(last: u8) -> Value {
    json!({"method": "static", "address": format!("198.51.100.{last}"), "prefix_length": 24,
           "router": "198.51.100.1"})
}

fn declared(plan: &str, last: u8) -> Value {
    json!({"hardware_plan": plan, "appliance": {"uplink": uplink(last)}})
}

fn found(world: &World, name: &str) -> Value {
    let appliance = world.state.get::<Appliance>(Some("acme"), name);
    serde_json::to_value(&appliance.expect("an appliance").spec).expect("JSON")
}

#[test]
fn a_subscription_makes_and_changes_the_settings_of_the_appliance_on_its_host() {
    let mut world = World::with_tenant();
    world.ok::<Tenant>("", "globex", json!({}));
    world.gone::<Subscription>("acme", "db");
    world.gone::<Subscription>("acme", "web");
    world.ok::<Subscription>("acme", "web", declared("small", 5));
    assert_eq!(found(&world, "h1")["uplink"], uplink(5));
    world.set::<Subscription>("acme", "web", declared("small", 6));
    assert_eq!(found(&world, "h1")["uplink"], uplink(6));
    // One place says it.
    let direct = world.replace::<Appliance>("acme", "h1", json!({"uplink": uplink(7)}));
    refused(
        direct,
        CONFLICT,
        "subscription web appliance.uplink static 198.51.100.6/24, router 198.51.100.1",
        "change it there",
    );
    let described = json!({"uplink": uplink(6), "description": "rack 4"});
    world.set::<Appliance>("acme", "h1", described);
    let other = world.create::<Subscription>("acme", "db", declared("large", 7));
    refused(
        other,
        CONFLICT,
        "subscription web appliance.uplink static 198.51.100.6/24, router 198.51.100.1",
        "write the same in both",
    );
    world.ok::<Subscription>("acme", "db", declared("large", 6));
    world.gone::<Subscription>("acme", "db");
    let taken = world.create::<Subscription>("globex", "web", declared("small", 6));
    refused(
        taken,
        CONFLICT,
        "appliance h1 uplink.address 198.51.100.6",
        "is taken by appliance",
    );
    // Without the declaration the appliance keeps its settings, which are its own again.
    world.set::<Subscription>("acme", "web", json!({"hardware_plan": "small"}));
    assert_eq!(found(&world, "h1")["uplink"], uplink(6));
    world.set::<Appliance>("acme", "h1", json!({"uplink": {"method": "dhcp"}}));
    let mut wrong = declared("small", 5);
    wrong["appliance"]["uplink"]["prefix_length"] = 33.into();
    refused(
        world.replace::<Subscription>("acme", "web", wrong),
        INVALID,
        "subscription web appliance.uplink.prefix_length 33",
        "at most 32",
    );
}

#[test]
fn subscriptions_limit_public_addresses_together() {
    let mut world = World::with_tenant();
    let limit = |world: &World| {
        let usage = tenant_usage(&world.state, "acme").expect("a tenant");
        usage.public_addresses.limit
    };
    assert_eq!(limit(&world), None);
    let with = |plan, count: u32| json!({"hardware_plan": plan, "public_addresses": count});
    world.set::<Subscription>("acme", "web", with("small", 1));
    world.ok::<Address>("acme", "one", json!({"pool": "public"}));
    let second =
        |world: &mut World| world.create::<Address>("acme", "two", json!({"pool": "public"}));
    refused(
        second(&mut world),
        Reason::Exhausted,
        "subscription web public_addresses 1",
        "raise public_addresses of a subscription",
    );
    world.set::<Subscription>("acme", "db", with("large", 1));
    assert_eq!(limit(&world), Some(2));
    world.ok::<Address>("acme", "two", json!({"pool": "public"}));
    // The tenant's own limit holds in their place.
    world.set::<Tenant>("", "acme", json!({"limits": {"public_addresses": 3}}));
    assert_eq!(limit(&world), Some(3));
    world.ok::<Address>("acme", "three", json!({"pool": "public"}));
    // A lower number takes nothing away.
    world.set::<Tenant>("", "acme", json!({}));
    world.set::<Subscription>("acme", "db", with("large", 0));
    assert_eq!(world.state.all::<Address>().len(), 3);
}

#[test]
fn an_allocation_gives_numbers_and_vlans_back() {
    let mut world = World::with_tenant();
    world.gone::<Subscription>("acme", "db");
    world.gone::<Subscription>("acme", "web");
    let with = |networks: Value, next: u32| {
        let allocation = json!({"networks": networks, "next": next});
        json!({"hardware_plan": "large", "allocation": allocation})
    };
    let network = |number: u32, internet: bool, vlan: u16| {
        let mut network = json!({"number": number, "vlan": vlan});
        network["internet"] = internet.into();
        network
    };
    let networks = json!([network(7, true, 103), network(2, false, 204)]);
    let done = world.ok::<Subscription>("acme", "db", with(networks, 9));
    // The third network of the plan is the next free one.
    assert_eq!(done.object.status.networks, ["db-7", "db-2", "db-9"]);
    assert_eq!(
        (done.object.status.next, &done.object.spec.allocation),
        (10, &None)
    );
    let vlan = |world: &World, name: &str| {
        let network = world.state.get::<Network>(Some("acme"), name);
        network.expect("a network").status.vlan
    };
    for (name, expected) in [("db-7", 103), ("db-2", 204), ("db-9", 101)] {
        assert_eq!(vlan(&world, name), expected, "{name}");
    }
    refused(
        world.replace::<Subscription>("acme", "db", with(json!([]), 1)),
        CONFLICT,
        "subscription db networks db-7, db-2, db-9",
        "is for a new subscription",
    );
    let other = |networks: Value| {
        let allocation = json!({"networks": networks, "next": 1});
        json!({"hardware_plan": "small", "allocation": allocation})
    };
    for (networks, reason, conflict, text) in [
        (
            json!([network(1, true, 103)]),
            CONFLICT,
            "network db-7 vlan 103",
            "is allocated to network \"db-7\"",
        ),
        (
            json!([network(1, true, 201)]),
            CONFLICT,
            "vlan-pool pool with_internet 201",
            "is not in with_internet",
        ),
        (
            json!([network(1, true, 102), network(2, true, 104)]),
            CONFLICT,
            "hardware-plan small networks_with_internet 1",
            "more networks with internet than the 1",
        ),
        (
            json!([network(1, true, 102), network(1, false, 202)]),
            INVALID,
            "subscription web allocation.networks.number 1",
            "each number once",
        ),
        (
            json!([network(1, true, 0)]),
            INVALID,
            "subscription web allocation.networks.vlan 0",
            "write 1 to 4094",
        ),
        (
            json!([network(1_000_000, true, 102)]),
            INVALID,
            "subscription web allocation.networks.number 1000000",
            "write 1 to 999999",
        ),
    ] {
        let refusal = world.create::<Subscription>("acme", "web", other(networks));
        refused(refusal, reason, conflict, text);
    }
    // A number below those that are there does not come again.
    let networks = json!([network(5, true, 102)]);
    let done = world.ok::<Subscription>("acme", "web", other(networks));
    assert_eq!(
        (
            done.object.status.networks.join(" "),
            done.object.status.next
        ),
        ("web-5 web-6".to_owned(), 7)
    );
}

/// As an earlier version, and as this one, stores a subscription. What an allocation says is in the
/// networks and in `status`.
#[test]
fn stored_subscriptions_of_earlier_versions_are_read_and_the_form_is_fixed() {
    let before = r#"{"metadata":{"name":"web","tenant":"acme",
        "uid":"00000000-0000-0000-0000-000000000001","generation":1,
        "created":"2026-11-30T00:00:00Z","revision":0},"spec":{"hardware_plan":"small"},
        "status":{"networks":["web-1"],"next":2,"host":"h1"}}"#;
    let state = State::load([("subscription/acme/web", before, 1)], 1).expect("readable");
    let found = state.get::<Subscription>(Some("acme"), "web").expect("it");
    assert_eq!(found.spec.appliance, None);
    assert_eq!(
        serde_json::to_string(&found.spec).expect("JSON"),
        r#"{"hardware_plan":"small"}"#
    );
    let mut world = World::with_tenant();
    let mut spec = declared("small", 5);
    spec["public_addresses"] = 2.into();
    world.set::<Subscription>("acme", "web", spec);
    let text = world.store.value("subscription/acme/web").expect("stored");
    let spec = text.split("\"spec\":").nth(1).expect("a spec");
    let expected = concat!(
        r#"{"hardware_plan":"small","appliance":{"uplink":{"method":"static","#,
        r#""address":"198.51.100.5","prefix_length":24,"router":"198.51.100.1"}},"#,
        r#""public_addresses":2}"#
    );
    assert_eq!(spec.split(",\"status\":").next(), Some(expected));
}
