//! Addresses that an object cannot have, whichever object takes them first.

use control::{
    Address, AddressPool, Appliance, Gateway, Network, Plan, Precondition, Rule, Transaction,
};
use serde_json::{Value, json};

use super::refusals::{CONFLICT, INVALID, World, refused};

fn network(prefix: &str, gateway: &str) -> Value {
    json!({"prefixes": [prefix], "gateways": [gateway]})
}

fn uplink(address: &str, length: u8, router: &str) -> Value {
    json!({"uplink": {"method": "static", "address": address, "prefix_length": length,
                      "router": router}})
}

#[test]
fn prefixes_of_networks_have_host_addresses_only() {
    let mut world = World::with_networks();
    for prefix in [
        "0.0.0.0/0",
        "0.0.0.0/8",
        "127.0.0.0/8",
        "127.1.0.0/16",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "239.1.0.0/24",
        "240.0.0.0/4",
        "255.255.255.255",
        "126.0.0.0/7",
        "::ffff:10.1.0.0/120",
        "::/64",
        "64:ff9b::/96",
        "fe80::/64",
        "ff00::/8",
    ] {
        let result = world.replace::<Network>("acme", "web-2", json!({"prefixes": [prefix]}));
        let conflict = format!("network web-2 prefixes {prefix}");
        refused(
            result,
            INVALID,
            &conflict,
            "write the prefix of the network",
        );
    }
    for prefix in [
        "10.9.0.0/24",
        "2001:db8::/64",
        "fd00:1::/48",
        "198.51.100.0/31",
    ] {
        world.set::<Network>("acme", "web-2", json!({"prefixes": [prefix]}));
    }
}

#[test]
fn a_default_gateway_is_no_public_address_of_the_tenant() {
    let mut world = World::with_networks();
    let result =
        world.replace::<Network>("acme", "web-2", network("203.0.113.0/24", "203.0.113.16"));
    refused(
        result,
        CONFLICT,
        "address one address 203.0.113.16",
        "the network's router",
    );
    world.set::<Network>("acme", "web-2", network("203.0.113.0/24", "203.0.113.17"));
    let picked = json!({"pool": "public", "address": "203.0.113.17"});
    let result = world.create::<Address>("acme", "two", picked);
    refused(
        result,
        CONFLICT,
        "network web-2 gateways 203.0.113.17",
        "the default gateway of network",
    );
    // The next free address is another one.
    world.ok::<Address>("acme", "two", json!({"pool": "public"}));
    let two = world
        .state
        .get::<Address>(Some("acme"), "two")
        .expect("an address");
    assert_eq!(two.status.address, Some([203, 0, 113, 18].into()));
}

#[test]
fn no_tenant_gets_a_network_or_broadcast_address() {
    let mut world = World::with_networks();
    let pool = |range: &str| json!({"ranges": [range]});
    let result = world.create::<AddressPool>("", "p", pool("198.51.100.0/24"));
    refused(
        result,
        INVALID,
        "address-pool p ranges 198.51.100.0/24",
        "write 198.51.100.1-198.51.100.254",
    );
    // Each of them is routed to the appliances: that is said by both ends.
    world.ok::<AddressPool>("", "routed", pool("198.51.100.0-198.51.100.255"));
    world.gone::<AddressPool>("", "routed");
    for address in ["127.0.0.1", "224.0.0.1", "::ffff:203.0.113.17"] {
        let picked = json!({"pool": "public", "address": address});
        let result = world.create::<Address>("acme", "a", picked);
        let conflict = format!("address a address {address}");
        refused(result, INVALID, &conflict, "is not a host address");
    }
    // Another pool of the same link has its network address.
    let link = json!({"ranges": ["198.51.100.9"], "prefix": "198.51.100.0/25"});
    world.ok::<AddressPool>("", "link", link);
    let result = world.create::<AddressPool>("", "p", pool("198.51.100.120-198.51.100.127"));
    refused(
        result,
        CONFLICT,
        "address-pool link prefix 198.51.100.127",
        "is in prefix of pool",
    );
    let result = world.create::<AddressPool>(
        "",
        "p",
        json!({"ranges": ["198.51.100.20"], "prefix": "198.51.100.8/29"}),
    );
    refused(
        result,
        INVALID,
        "address-pool p ranges 198.51.100.20",
        "not in",
    );
    let router =
        json!({"ranges": ["192.0.2.9"], "prefix": "192.0.2.0/24", "router": "192.0.2.255"});
    let result = world.create::<AddressPool>("", "p", router);
    refused(
        result,
        INVALID,
        "address-pool p router 192.0.2.255",
        "network or broadcast",
    );
    let router = json!({"ranges": ["192.0.2.9"], "router": "127.0.0.1"});
    let result = world.create::<AddressPool>("", "p", router);
    refused(
        result,
        INVALID,
        "address-pool p router 127.0.0.1",
        "is not a host address",
    );
}

#[test]
fn routers_of_uplinks_are_no_other_object() {
    let mut world = World::with_networks();
    world.ok::<Gateway>("", "edge", json!({"addresses": ["192.0.2.1"]}));
    let result = world.replace::<Appliance>("acme", "h1", uplink("192.0.2.5", 24, "192.0.2.1"));
    refused(
        result,
        CONFLICT,
        "gateway edge addresses 192.0.2.1",
        "the uplink's own router",
    );
    let result =
        world.replace::<Appliance>("acme", "h1", uplink("203.0.113.5", 24, "203.0.113.17"));
    let range = "address-pool public ranges 203.0.113.16-203.0.113.19";
    refused(
        result,
        CONFLICT,
        range,
        "the address of the router 203.0.113.17",
    );
    let result =
        world.replace::<Appliance>("acme", "h1", uplink("203.0.113.14", 28, "203.0.113.1"));
    // 203.0.113.15 is its broadcast address, and in no pool.
    assert!(result.is_ok(), "{result:?}");
    let result =
        world.replace::<Appliance>("acme", "h1", uplink("203.0.113.21", 30, "203.0.113.23"));
    refused(
        result,
        INVALID,
        "appliance h1 uplink.router 203.0.113.23",
        "broadcast address",
    );
    // A pool's router is that of appliances, too.
    world.set::<Appliance>("acme", "h1", uplink("203.0.113.5", 24, "203.0.113.1"));
    world.set::<Appliance>("acme", "h1", uplink("192.0.2.5", 24, "192.0.2.254"));
    let result = world.create::<Gateway>("", "gw", json!({"addresses": ["192.0.2.254"]}));
    refused(
        result,
        CONFLICT,
        "appliance h1 uplink.router 192.0.2.254",
        "another address",
    );
    for (ranges, conflict, text) in [
        (
            "192.0.2.200-192.0.2.254",
            "uplink.router 192.0.2.254",
            "the router of",
        ),
        (
            "192.0.2.255",
            "uplink.prefix_length 192.0.2.255",
            "broadcast address of",
        ),
    ] {
        let result = world.create::<AddressPool>("", "p", json!({"ranges": [ranges]}));
        refused(result, CONFLICT, &format!("appliance h1 {conflict}"), text);
    }
}

#[test]
fn an_address_is_that_of_one_machine_in_all_plans() {
    let mut world = World::with_networks();
    let plan = |vm: &str, address: &str| {
        let vms = json!([{"name": vm, "addresses": [address]}]);
        json!({"networks": [{"name": "web-1"}], "vms": vms})
    };
    world.ok::<Plan>("acme", "all", plan("a", "10.1.0.9"));
    let result = world.create::<Plan>("acme", "other", plan("b", "10.1.0.9"));
    refused(
        result,
        CONFLICT,
        "plan all vms 10.1.0.9",
        "an address is that of one machine",
    );
    for address in ["10.1.0.0", "10.1.0.255"] {
        let result = world.create::<Plan>("acme", "other", plan("b", address));
        refused(
            result,
            CONFLICT,
            "plan other networks web-1",
            "network or broadcast address",
        );
    }
    world.ok::<Plan>("acme", "other", plan("b", "10.1.0.10"));
    let result = world.replace::<Plan>("acme", "other", plan("b", "10.1.0.9"));
    refused(
        result,
        CONFLICT,
        "plan all vms 10.1.0.9",
        "machine \"a\" in plan \"all\"",
    );
}

#[test]
fn a_gateway_has_as_many_addresses_as_ends_use() {
    let addresses = |count: u8| {
        (1..=count)
            .map(|n| format!("192.0.2.{n}"))
            .collect::<Vec<_>>()
    };
    let mut world = World::with_tenant();
    let most = u8::try_from(gateway_client::dial::MAX_ADDRESSES).expect("small");
    for count in [0, most + 1] {
        let result = world.create::<Gateway>("", "gw1", json!({"addresses": addresses(count)}));
        let conflict = format!("gateway gw1 addresses {count}");
        refused(result, INVALID, &conflict, "write 1 to 8 addresses");
    }
    world.ok::<Gateway>("", "gw1", json!({"addresses": addresses(most)}));

    // One that an earlier version has stored with more is read, and can be changed but for them.
    world.ok::<Gateway>("", "gw2", json!({"addresses": ["198.51.100.7"]}));
    let key = "gateway/gw1";
    let text = world.store.value(key).expect("a gateway");
    let [few, many] = [most, 16].map(|count| json!(addresses(count)).to_string());
    let revision = world
        .state
        .get::<Gateway>(None, "gw1")
        .expect("it")
        .metadata
        .revision;
    let mut transaction = Transaction::default();
    let precondition = Precondition::At(revision);
    transaction
        .preconditions
        .insert(key.to_owned(), precondition);
    transaction
        .put
        .insert(key.to_owned(), text.replace(&few, &many));
    let revision = world.store.commit(&transaction).expect("a fresh state");
    world.state.apply(&transaction, revision).expect("readable");
    let drained = json!({"addresses": addresses(16), "drain": true});
    world.set::<Gateway>("", "gw1", drained.clone());
    let result = world.replace::<Gateway>("", "gw1", json!({"addresses": addresses(15)}));
    refused(
        result,
        INVALID,
        "gateway gw1 addresses 15",
        "write 1 to 8 addresses",
    );
    world.set::<Gateway>("", "gw1", json!({"addresses": addresses(most)}));
    let result = world.replace::<Gateway>("", "gw1", drained);
    refused(
        result,
        INVALID,
        "gateway gw1 addresses 16",
        "write 1 to 8 addresses",
    );
}

#[test]
fn the_appliances_own_addresses_are_no_machines_and_no_gateways() {
    let mut world = World::with_networks();
    // A network that has the provider's uplink and the tenant's public addresses in it.
    let wide = json!({"prefixes": ["203.0.113.0/24"]});
    world.set::<Network>("acme", "web-2", wide);
    world.set::<Appliance>("acme", "h1", uplink("203.0.113.5", 24, "203.0.113.1"));
    let to = |internal: &str| {
        json!({"public_ip": "203.0.113.16", "public_port": 8022, "internal_port": 22,
               "internal_ip": internal})
    };
    for (internal, text) in [
        ("203.0.113.16", "which the appliance itself answers for"),
        ("203.0.113.5", "is the uplink's address of appliance \"h1\""),
        ("203.0.113.1", "is the uplink's router of appliance \"h1\""),
    ] {
        let result = world.create::<Rule>("acme", "r", to(internal));
        let conflict = format!("rule r internal_ip {internal}");
        refused(result, CONFLICT, &conflict, text);
    }
    for (gateway, field) in [("203.0.113.5", "address"), ("203.0.113.1", "router")] {
        let result = world.replace::<Network>("acme", "web-2", network("203.0.113.0/24", gateway));
        let conflict = format!("appliance h1 uplink.{field} {gateway}");
        refused(
            result,
            CONFLICT,
            &conflict,
            "write the address of the network's router",
        );
    }
    // Whichever comes first.
    world.ok::<Rule>("acme", "r", to("203.0.113.17"));
    let public = json!({"pool": "public", "address": "203.0.113.17"});
    let result = world.create::<Address>("acme", "two", public);
    refused(
        result,
        CONFLICT,
        "rule r internal_ip 203.0.113.17",
        "machine's address of rule",
    );
    let next = world.ok::<Address>("acme", "two", json!({"pool": "public"}));
    assert_eq!(next.object.status.address, Some([203, 0, 113, 18].into()));
    let changed = uplink("203.0.113.17", 24, "203.0.113.1");
    let changed = world.replace::<Appliance>("acme", "h1", changed);
    assert!(changed.is_err(), "an address of a pool");
    world.set::<Rule>("acme", "r", to("203.0.113.9"));
    let changed = uplink("203.0.113.9", 24, "203.0.113.1");
    let result = world.replace::<Appliance>("acme", "h1", changed);
    refused(
        result,
        CONFLICT,
        "rule r internal_ip 203.0.113.9",
        "cannot be changed",
    );
}
