//! The state: what it is loaded from, its pages, and the differences of a change.

use control::{
    ChangeOfObject, Corrupt, HardwarePlan, Host, Network, Rule, State, Subscription, Tenant,
    differences,
};
use serde_json::{Value, json};

use super::refusals::World;

#[test]
fn every_key_of_a_transaction_has_a_known_prefix() {
    let mut world = World::with_networks();
    let rule = json!({"public_ip": "203.0.113.16", "public_port": 443, "internal_ip": "10.1.0.9"});
    let accepted = world.ok::<Rule>("acme", "https", rule);
    let prefixes = State::prefixes();
    let keys: Vec<_> = world.store.keys().collect();
    assert!(keys.len() > 20 && keys.len() > accepted.transaction.put.len());
    for key in keys {
        let known = prefixes
            .iter()
            .filter(|prefix| key.starts_with(prefix.as_str()));
        assert_eq!(known.count(), 1, "{key}");
    }
}

#[test]
fn values_that_cannot_be_read_are_errors() {
    for key in [
        "plant/a",
        "host",
        "host/a/b",
        "network/a",
        "",
        "claim/vlan/x/1",
    ] {
        let error = State::load([(key, "7", 1)], 1).expect_err("no state");
        assert!(
            error.to_string().contains("restore a backup"),
            "{key}: {error}"
        );
        let is_value = matches!(error, Corrupt::Value { .. });
        assert_eq!(is_value, key.starts_with("claim"), "{key}: {error}");
    }
    let mut world = World::with_tenant();
    let tenant = world.store.value("tenant/acme").expect("a tenant");
    State::load([("tenant/acme", tenant.as_str(), 1)], 1).expect("a state");
    let other = State::load([("tenant/globex", tenant.as_str(), 1)], 1);
    other.expect_err("a value at another key");
    let newer = tenant.replacen("\"enabled\"", "\"later\"", 1);
    State::load([("tenant/acme", newer.as_str(), 1)], 1).expect_err("an unknown field");
    world.gone::<Subscription>("acme", "web");
}

#[test]
fn pages_have_every_object_once() {
    let mut world = World::with_tenant();
    for number in 0..7 {
        world.ok::<Tenant>("", &format!("t{number}"), json!({}));
    }
    let tenants = world.state.all::<Tenant>();
    let (mut seen, mut last) = (Vec::new(), None);
    loop {
        let after = last.as_deref().map(|name| ("", name));
        let page: Vec<_> = tenants
            .after(after)
            .take(3)
            .map(|t| t.name().to_owned())
            .collect();
        let Some(name) = page.last() else { break };
        last = Some(name.clone());
        seen.extend(page);
    }
    let all: Vec<_> = tenants.iter().map(|t| t.name().to_owned()).collect();
    assert_eq!((seen.len(), seen), (8, all));
}

#[test]
fn differences_have_every_object_and_field_that_a_change_touches() {
    let mut world = World::with_tenant();
    let plan = json!({"vlan_pool": "pool", "networks_with_internet": 2,
                      "networks_without_internet": 1});
    let accepted = world
        .replace::<HardwarePlan>("", "small", plan)
        .expect("accepted");
    let found = differences(&world.state, &accepted.transaction);
    let shown: Vec<_> = found
        .iter()
        .map(|d| (d.kind.as_str(), d.name.as_str(), d.change))
        .collect();
    let expected = [
        ("hardware-plan", "small", ChangeOfObject::Changed),
        ("network", "web-3", ChangeOfObject::Created),
        ("subscription", "web", ChangeOfObject::Changed),
    ];
    assert_eq!(shown, expected);
    let fields: Vec<_> = found[0]
        .fields
        .iter()
        .map(|f| (f.field.as_str(), &f.before, &f.after))
        .collect();
    assert_eq!(
        fields,
        [("spec.networks_with_internet", &json!(1), &json!(2))]
    );
    let vlan = found[1]
        .fields
        .iter()
        .find(|field| field.field == "status.vlan")
        .expect("a VLAN");
    assert_eq!((&vlan.before, &vlan.after), (&Value::Null, &json!(104)));
    assert_eq!(found[1].tenant.as_deref(), Some("acme"));

    let accepted = world
        .remove::<Subscription>("acme", "web")
        .expect("accepted");
    let found = differences(&world.state, &accepted.transaction);
    let removed = found.iter().filter(|d| d.change == ChangeOfObject::Removed);
    assert_eq!(
        (removed.count(), found.len()),
        (3, 3),
        "two networks and the subscription"
    );
    let same = serde_json::to_value(&world.state.get::<Host>(None, "h1").expect("a host").spec);
    let accepted = world
        .replace::<Host>("", "h1", same.expect("JSON"))
        .expect("accepted");
    assert!(accepted.transaction.is_empty());
    assert_eq!(differences(&world.state, &accepted.transaction), []);
    assert_eq!(world.state.all::<Network>().len(), 5);
}
