//! Each rule by example: the refusal, the conflict that it names, and how to get past it.

use std::fmt::Debug;

use control::{
    Accepted, Address, AddressPool, Appliance, Conflict, Gateway, GatewayPool, HardwarePlan, Host,
    Kind, Mapping, Network, Options, Origin, Plan, Policy, Reason, Refusal, Rule, State,
    Subscription, Tenant, VlanPool, create, differences, remove, replace,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::store::Store;

/// A store and its state, and a number for each change.
pub struct World {
    pub store: Store,
    pub state: State,
    number: u64,
    options: Options,
}

impl World {
    pub fn new() -> Self {
        Self {
            store: Store::default(),
            state: State::default(),
            number: 0,
            options: Options::default(),
        }
    }

    /// A host, pools, hardware plans of 2 and 3 networks, and a tenant with both.
    pub fn with_tenant() -> Self {
        let mut world = Self::new();
        world.ok::<Host>(
            "",
            "h1",
            json!({"platform": "esxi", "switches": [{"name": "vSwitch0"}]}),
        );
        world.ok::<VlanPool>(
            "",
            "pool",
            json!({"host": "h1", "switch": "vSwitch0", "with_internet": ["101-104"],
                   "without_internet": ["201-204"]}),
        );
        world.ok::<HardwarePlan>(
            "",
            "small",
            json!({"vlan_pool": "pool", "networks_with_internet": 1,
                   "networks_without_internet": 1}),
        );
        world.ok::<HardwarePlan>(
            "",
            "large",
            json!({"vlan_pool": "pool", "networks_with_internet": 2,
                   "networks_without_internet": 1}),
        );
        world.ok::<AddressPool>(
            "",
            "public",
            json!({"ranges": ["203.0.113.16-203.0.113.19"], "prefix": "203.0.113.0/24",
                   "router": "203.0.113.1"}),
        );
        world.ok::<Tenant>("", "acme", json!({}));
        world.ok::<Subscription>("acme", "web", json!({"hardware_plan": "small"}));
        world.ok::<Subscription>("acme", "db", json!({"hardware_plan": "large"}));
        world
    }

    /// The same, with prefixes, gateways and an address.
    pub fn with_networks() -> Self {
        let mut world = Self::with_tenant();
        world.set::<Network>(
            "acme",
            "web-1",
            json!({"prefixes": ["10.1.0.0/24"], "gateways": ["10.1.0.1"]}),
        );
        world.set::<Network>(
            "acme",
            "db-1",
            json!({"prefixes": ["10.2.0.0/24"], "gateways": ["10.2.0.1"]}),
        );
        world.ok::<Address>("acme", "one", json!({"pool": "public"}));
        world
    }

    fn origin(&mut self) -> Origin {
        self.number += 1;
        Origin {
            now: jiff::Timestamp::from_second(1_800_000_000).expect("a time"),
            uid: Uuid::from_u128(u128::from(self.number)),
        }
    }

    fn commit<K: Kind>(&mut self, accepted: Accepted<K>) -> Accepted<K> {
        let transaction = &accepted.transaction;
        assert_eq!(accepted.differences, differences(&self.state, transaction));
        let revision = self.store.commit(transaction).expect("a fresh state");
        self.state.apply(transaction, revision).expect("readable");
        assert_eq!(self.state, self.store.load());
        accepted
    }

    pub fn create<K: Kind>(
        &mut self,
        tenant: &str,
        name: &str,
        spec: Value,
    ) -> Result<Accepted<K>, Refusal> {
        let (tenant, origin) = ((!tenant.is_empty()).then_some(tenant), self.origin());
        let spec = serde_json::from_value(spec).expect("a spec");
        create::<K>(
            &self.state,
            tenant,
            name,
            spec,
            origin,
            self.options.clone(),
        )
    }

    pub fn replace<K: Kind>(
        &mut self,
        tenant: &str,
        name: &str,
        spec: Value,
    ) -> Result<Accepted<K>, Refusal> {
        let (tenant, origin) = ((!tenant.is_empty()).then_some(tenant), self.origin());
        let spec = serde_json::from_value(spec).expect("a spec");
        replace::<K>(
            &self.state,
            tenant,
            name,
            spec,
            origin,
            self.options.clone(),
        )
    }

    pub fn remove<K: Kind>(&mut self, tenant: &str, name: &str) -> Result<Accepted<K>, Refusal> {
        let (tenant, origin) = ((!tenant.is_empty()).then_some(tenant), self.origin());
        remove::<K>(&self.state, tenant, name, origin, self.options.clone())
    }

    pub fn ok<K: Kind>(&mut self, tenant: &str, name: &str, spec: Value) -> Accepted<K> {
        let accepted = self.create::<K>(tenant, name, spec).expect("accepted");
        self.commit(accepted)
    }

    pub fn set<K: Kind>(&mut self, tenant: &str, name: &str, spec: Value) -> Accepted<K> {
        let accepted = self.replace::<K>(tenant, name, spec).expect("accepted");
        self.commit(accepted)
    }

    pub fn gone<K: Kind>(&mut self, tenant: &str, name: &str) -> Accepted<K> {
        let accepted = self.remove::<K>(tenant, name).expect("accepted");
        self.commit(accepted)
    }

    /// Puts a tenant into full failover by a plan, as a run does.
    fn fail_over(&mut self, tenant: &str, plan: &str) {
        let mut object = self
            .state
            .get::<Tenant>(None, tenant)
            .expect("a tenant")
            .clone();
        object.status.mode = control::Mode::Full {
            plan: plan.to_owned(),
        };
        let key = object.key();
        object.metadata.revision = 0;
        let value = serde_json::to_string(&object).expect("JSON");
        let mut transaction = control::Transaction::default();
        transaction.put.insert(key, value);
        let revision = self.store.commit(&transaction).expect("no precondition");
        self.state.apply(&transaction, revision).expect("readable");
    }

    fn vlans(&self, tenant: &str) -> Vec<(String, u16)> {
        let networks = self.state.all::<Network>().of_tenant(tenant);
        networks
            .map(|n| (n.name().to_owned(), n.status.vlan))
            .collect()
    }
}

/// Asserts the kind of a refusal, the first conflict as `kind name field value`, and a part of the
/// text.
#[track_caller]
pub fn refused<T: Debug>(result: Result<T, Refusal>, reason: Reason, conflict: &str, text: &str) {
    let refusal = result.expect_err("a refusal");
    let of = |c: &Conflict| format!("{} {} {} {}", c.kind, c.name, c.field, c.value);
    let conflicts: Vec<_> = refusal.conflicts.iter().map(of).collect();
    assert_eq!(
        (refusal.reason, conflicts.first().map(|c| c.trim_end())),
        (reason, Some(conflict)),
        "{conflicts:?}: {refusal}"
    );
    assert!(
        refusal.detail.contains(text),
        "{text:?} is not in: {refusal}"
    );
}

pub const CONFLICT: Reason = Reason::Conflict;
pub const INVALID: Reason = Reason::Invalid;

#[test]
fn a_tenant_with_plans_of_2_and_3_networks_gets_5() {
    let mut world = World::with_tenant();
    let expected = [
        ("db-1", 102),
        ("db-2", 103),
        ("db-3", 202),
        ("web-1", 101),
        ("web-2", 201),
    ];
    let expected = expected.map(|(name, vlan)| (name.to_owned(), vlan));
    assert_eq!(world.vlans("acme"), expected);
    let appliances = world.state.all::<Appliance>();
    assert_eq!(
        appliances.of_tenant("acme").count(),
        1,
        "one on the host of both plans"
    );
    world.gone::<Subscription>("acme", "web");
    assert_eq!(world.state.all::<Appliance>().len(), 1);
    world.gone::<Subscription>("acme", "db");
    assert!(world.state.all::<Appliance>().is_empty());
    assert_eq!(world.state.claims().count(), 0);
    world.ok::<Subscription>("acme", "again", json!({"hardware_plan": "small"}));
    let expected = [("again-1".to_owned(), 101), ("again-2".to_owned(), 201)];
    assert_eq!(world.vlans("acme"), expected);
}

#[test]
fn hosts_are_kept_while_they_are_used() {
    let mut world = World::with_tenant();
    let other = json!({"platform": "esxi", "switches": []});
    let result = world.replace::<Host>("", "h1", other);
    refused(
        result,
        CONFLICT,
        "vlan-pool pool switch vSwitch0",
        "VLAN pools pool",
    );
    let trunk = json!({"platform": "esxi", "switches": [{"name": "vSwitch0", "trunk": "a"}]});
    let result = world.replace::<Host>("", "h1", trunk);
    refused(
        result,
        CONFLICT,
        "vlan-pool pool switch vSwitch0",
        "change its trunk",
    );
    let result = world.remove::<Host>("", "h1");
    refused(
        result,
        CONFLICT,
        "vlan-pool pool host h1",
        "appliance \"h1\" of tenant \"acme\"",
    );
    let twice = json!({"platform": "kvm", "switches": [{"name": "a"}, {"name": "a"}]});
    let result = world.create::<Host>("", "h2", twice);
    refused(
        result,
        INVALID,
        "host h2 switches.name a",
        "name each switch once",
    );
}

#[test]
fn names_and_scopes_are_checked() {
    let mut world = World::with_tenant();
    let result = world.create::<Tenant>("", "Acme", json!({}));
    refused(
        result,
        INVALID,
        "tenant Acme name Acme",
        "write 1 to 32 characters",
    );
    let result = world.create::<Tenant>("", "acme", json!({}));
    refused(result, CONFLICT, "tenant acme name acme", "exists already");
    let result = world.create::<Tenant>("acme", "b", json!({}));
    refused(result, INVALID, "tenant  tenant acme", "name no tenant");
    let result = world.create::<Subscription>("", "b", json!({"hardware_plan": "small"}));
    refused(result, INVALID, "subscription  tenant", "name the tenant");
    let result = world.create::<Subscription>("globex", "b", json!({"hardware_plan": "small"}));
    refused(
        result,
        Reason::NotFound,
        "tenant globex name globex",
        "does not exist",
    );
    let result = world.remove::<Host>("", "h9");
    refused(
        result,
        Reason::NotFound,
        "host h9 name h9",
        "does not exist",
    );
    let result = world.replace::<Tenant>("", "b", json!({}));
    refused(
        result,
        Reason::NotFound,
        "tenant b name b",
        "does not exist",
    );
}

#[test]
fn vlan_pools_do_not_overlap_on_a_switch_or_trunk() {
    let mut world = World::with_tenant();
    let pool = |host: &str, with: &str| -> Value {
        json!({"host": host, "switch": "vSwitch0", "with_internet": [with]})
    };
    let result = world.create::<VlanPool>("", "p2", pool("h1", "104-110"));
    refused(
        result,
        CONFLICT,
        "vlan-pool pool with_internet 104",
        "VLAN 104 is in pool \"pool\"",
    );
    let result = world.create::<VlanPool>("", "p2", pool("h1", "200-201"));
    refused(
        result,
        CONFLICT,
        "vlan-pool pool without_internet 201",
        "without_internet",
    );
    let result = world.create::<VlanPool>("", "p2", pool("h9", "1"));
    refused(result, CONFLICT, "host h9 name h9", "use one of h1");
    let missing = json!({"host": "h1", "switch": "vSwitch9", "with_internet": ["1"]});
    let result = world.create::<VlanPool>("", "p2", missing);
    refused(
        result,
        CONFLICT,
        "host h1 switches vSwitch9",
        "use one of vSwitch0",
    );
    let inner = json!({"host": "h1", "switch": "vSwitch0", "with_internet": ["5-9"],
                       "without_internet": ["8-20"]});
    let result = world.create::<VlanPool>("", "p2", inner);
    refused(
        result,
        INVALID,
        "vlan-pool p2 without_internet 8-9",
        "write each VLAN once",
    );
    let empty = json!({"host": "h1", "switch": "vSwitch0"});
    let result = world.create::<VlanPool>("", "p2", empty);
    refused(
        result,
        INVALID,
        "vlan-pool p2 with_internet",
        "has no VLANs",
    );

    let trunk = json!({"platform": "kvm", "switches": [{"name": "vSwitch0", "trunk": "core"}]});
    world.ok::<Host>("", "h2", trunk.clone());
    world.ok::<Host>("", "h3", trunk);
    world.ok::<VlanPool>("", "p2", pool("h2", "101-104"));
    let result = world.create::<VlanPool>("", "p3", pool("h3", "104-105"));
    refused(
        result,
        CONFLICT,
        "vlan-pool p2 with_internet 104",
        "of the same switch or trunk",
    );
}

#[test]
fn vlan_pools_keep_what_is_allocated() {
    let mut world = World::with_tenant();
    let pool = |with: &str, without: &str| {
        json!({"host": "h1", "switch": "vSwitch0", "with_internet": [with],
               "without_internet": [without]})
    };
    let result = world.replace::<VlanPool>("", "pool", pool("102-104", "201-204"));
    refused(
        result,
        CONFLICT,
        "network web-1 vlan 101",
        "VLAN 101 (with_internet)",
    );
    let result = world.replace::<VlanPool>("", "pool", pool("201-204", "101-104"));
    refused(
        result,
        CONFLICT,
        "network db-1 vlan 102",
        "of tenant \"acme\"",
    );
    world.set::<VlanPool>("", "pool", pool("101-103", "201-202"));
    let result = world.remove::<VlanPool>("", "pool");
    refused(
        result,
        CONFLICT,
        "hardware-plan large vlan_pool pool",
        "hardware-plan \"small\"",
    );
    assert_eq!(
        world.vlans("acme").len(),
        5,
        "an edit leaves allocations alone"
    );
}

#[test]
fn exhausted_pools_are_named() {
    let mut world = World::with_tenant();
    world.ok::<Tenant>("", "globex", json!({}));
    let result = world.create::<Subscription>("globex", "s", json!({"hardware_plan": "large"}));
    refused(
        result,
        Reason::Exhausted,
        "vlan-pool pool with_internet 101-104",
        "VLAN pool \"pool\" of switch \"vSwitch0\" on host \"h1\" has no free VLAN with internet \
         for 1 more",
    );
    assert!(world.vlans("globex").is_empty());
    world.ok::<Subscription>("globex", "s", json!({"hardware_plan": "small"}));
}

#[test]
fn hardware_plans_grow_in_use_and_shrink_where_unused() {
    let mut world = World::with_tenant();
    let plan = |with: u16, without: u16| {
        json!({"vlan_pool": "pool", "networks_with_internet": with,
               "networks_without_internet": without})
    };
    world.set::<HardwarePlan>("", "small", plan(2, 1));
    assert!(world.vlans("acme").contains(&("web-3".to_owned(), 104)));
    let settings = json!({"prefixes": ["10.1.0.0/24"]});
    world.set::<Network>("acme", "web-3", settings);
    world.set::<HardwarePlan>("", "small", plan(1, 1));
    assert!(
        !world.vlans("acme").iter().any(|(name, _)| name == "web-1"),
        "the unused one goes"
    );
    world.ok::<Mapping>(
        "acme",
        "m",
        json!({"production": "VM Network", "replica": "web-2"}),
    );
    let result = world.replace::<HardwarePlan>("", "small", plan(1, 0));
    refused(
        result,
        CONFLICT,
        "mapping m replica web-2",
        "network \"web-2\" of tenant \"acme\"",
    );
    let result = world.replace::<HardwarePlan>("", "small", plan(0, 1));
    refused(
        result,
        CONFLICT,
        "network web-3 prefixes 10.1.0.0/24",
        "cannot shrink by 1",
    );
    let result = world.replace::<HardwarePlan>("", "small", plan(9, 1));
    refused(
        result,
        Reason::Exhausted,
        "vlan-pool pool with_internet 101-104",
        "for 7 more",
    );
    let result = world.replace::<HardwarePlan>("", "small", plan(40, 11));
    refused(
        result,
        INVALID,
        "hardware-plan small networks_with_internet 40",
        "1 to 50",
    );
    let result = world.remove::<HardwarePlan>("", "small");
    refused(
        result,
        CONFLICT,
        "subscription web hardware_plan small",
        "tenants acme",
    );
    let result = world.remove::<Subscription>("acme", "web");
    refused(
        result,
        CONFLICT,
        "mapping m replica web-2",
        "remove these objects first",
    );
    let result = world.create::<HardwarePlan>(
        "",
        "p",
        json!({"vlan_pool": "x", "networks_with_internet": 1}),
    );
    refused(result, CONFLICT, "vlan-pool x name x", "use one of pool");
    let other = json!({"vlan_pool": "pool", "networks_with_internet": 1,
                       "networks_without_internet": 1});
    world.ok::<Host>(
        "",
        "h2",
        json!({"platform": "kvm", "switches": [{"name": "a"}]}),
    );
    world.ok::<VlanPool>(
        "",
        "p2",
        json!({"host": "h2", "switch": "a", "with_internet": ["1-9"]}),
    );
    let mut moved = other;
    moved["vlan_pool"] = "p2".into();
    let result = world.replace::<HardwarePlan>("", "small", moved);
    refused(
        result,
        CONFLICT,
        "subscription web hardware_plan small",
        "leave vlan_pool",
    );
}

#[test]
fn subscriptions_are_made_once_and_do_not_change() {
    let mut world = World::with_tenant();
    let result = world.create::<Subscription>("acme", "s", json!({"hardware_plan": "small"}));
    refused(
        result,
        CONFLICT,
        "subscription web hardware_plan small",
        "already, by \"web\"",
    );
    let result = world.replace::<Subscription>("acme", "web", json!({"hardware_plan": "large"}));
    refused(
        result,
        CONFLICT,
        "subscription web hardware_plan small",
        "end it and make another",
    );
    let result = world.create::<Subscription>("acme", "s", json!({"hardware_plan": "none"}));
    refused(
        result,
        CONFLICT,
        "hardware-plan none name none",
        "use one of large, small",
    );
    let long = "x".repeat(29);
    let result = world.create::<Subscription>("acme", &long, json!({"hardware_plan": "none"}));
    refused(
        result,
        INVALID,
        &format!("subscription {long} name {long}"),
        "at most 25",
    );
    for result in [
        world.create::<Network>("acme", "n", json!({})).map(|_| ()),
        world.remove::<Network>("acme", "web-1").map(|_| ()),
    ] {
        assert!(
            result
                .expect_err("refused")
                .detail
                .contains("by subscriptions")
        );
    }
}

#[test]
fn disabled_tenants_get_nothing_new() {
    let mut world = World::with_tenant();
    world.set::<Tenant>("", "acme", json!({"enabled": false}));
    let result = world.create::<Address>("acme", "a", json!({"pool": "public"}));
    refused(
        result,
        CONFLICT,
        "tenant acme enabled false",
        "enable it first",
    );
    world.set::<Tenant>("", "acme", json!({"lease_ends": "2026-11-29T00:00:00Z"}));
    let result = world.create::<Address>("acme", "a", json!({"pool": "public"}));
    refused(
        result,
        CONFLICT,
        "tenant acme lease_ends 2026-11-29T00:00:00Z",
        "extend it",
    );
    world.set::<Tenant>("", "acme", json!({"lease_ends": "2030-11-29T00:00:00Z"}));
    world.ok::<Address>("acme", "a", json!({"pool": "public"}));
    let result = world.create::<Tenant>("", "b", json!({"gateway_pools": ["gold"]}));
    refused(
        result,
        CONFLICT,
        "gateway-pool gold name gold",
        "create the pool first",
    );
    let result = world.create::<Tenant>("", "b", json!({"limits": {"bandwidth_mbit": 0}}));
    refused(
        result,
        INVALID,
        "tenant b limits.bandwidth_mbit 0",
        "1 or more",
    );
}

#[test]
fn tenants_are_removed_with_force_and_give_everything_back() {
    let mut world = World::with_networks();
    let rule = json!({"public_ip": "203.0.113.16", "public_port": 443, "internal_ip": "10.1.0.9"});
    world.ok::<Rule>("acme", "https", rule);
    let result = world.remove::<Tenant>("", "acme");
    refused(
        result,
        CONFLICT,
        "subscription db hardware_plan large",
        "address \"one\"",
    );
    world.options.force = true;
    world.gone::<Tenant>("", "acme");
    assert_eq!(world.state.claims().count(), 0);
    assert!(world.state.all::<Network>().is_empty() && world.state.all::<Rule>().is_empty());
    assert!(world.state.all::<Appliance>().is_empty());
    world.ok::<Tenant>("", "acme", json!({}));
}

#[test]
fn nothing_is_taken_from_a_tenant_that_is_failed_over() {
    let mut world = World::with_networks();
    world.ok::<Mapping>(
        "acme",
        "m",
        json!({"production": "Prod", "replica": "web-2"}),
    );
    let plan = json!({"networks": [{"name": "web-1"}], "vms": [{"name": "vm"}]});
    world.ok::<Plan>("acme", "all", plan);
    world.fail_over("acme", "all");
    let mode = "tenant acme mode full failover by plan \"all\"";
    let text = "undo the failover";
    refused(world.remove::<Tenant>("", "acme"), CONFLICT, mode, text);
    refused(
        world.remove::<Subscription>("acme", "db"),
        CONFLICT,
        mode,
        text,
    );
    refused(world.remove::<Plan>("acme", "all"), CONFLICT, mode, text);
    refused(world.remove::<Mapping>("acme", "m"), CONFLICT, mode, text);
    let changed = json!({"production": "Prod", "replica": "db-1"});
    refused(
        world.replace::<Mapping>("acme", "m", changed),
        CONFLICT,
        mode,
        text,
    );
    let cleared = world.replace::<Network>("acme", "web-1", json!({}));
    refused(cleared, CONFLICT, mode, text);
    let shrunk = json!({"vlan_pool": "pool", "networks_with_internet": 1,
                        "networks_without_internet": 1});
    let shrunk = world.replace::<HardwarePlan>("", "large", shrunk);
    refused(shrunk, CONFLICT, mode, text);
    let grown = json!({"vlan_pool": "pool", "networks_with_internet": 3,
                       "networks_without_internet": 1});
    world.set::<HardwarePlan>("", "large", grown);
}

#[test]
fn public_addresses_are_picked_and_given_back() {
    let mut world = World::with_networks();
    let found = world
        .state
        .get::<Address>(Some("acme"), "one")
        .expect("an address");
    assert_eq!(found.status.address, Some([203, 0, 113, 16].into()));
    world.ok::<Tenant>("", "globex", json!({"limits": {"public_addresses": 1}}));
    let picked = |address: &str| json!({"pool": "public", "address": address});
    let result = world.create::<Address>("globex", "a", picked("203.0.113.16"));
    refused(
        result,
        CONFLICT,
        "address one address 203.0.113.16",
        "assigned to tenant \"acme\"",
    );
    let result = world.create::<Address>("globex", "a", picked("203.0.113.20"));
    refused(
        result,
        CONFLICT,
        "address-pool public ranges 203.0.113.16-203.0.113.19",
        "not in",
    );
    world.ok::<Address>("globex", "a", picked("203.0.113.18"));
    let result = world.create::<Address>("globex", "b", json!({"pool": "public"}));
    let limit = "tenant globex limits.public_addresses 1";
    refused(result, Reason::Exhausted, limit, "release one, or raise");
    let result = world.replace::<Address>("globex", "a", picked("203.0.113.19"));
    refused(
        result,
        CONFLICT,
        "address a address 203.0.113.18",
        "release it",
    );
    world.ok::<Address>("acme", "two", json!({"pool": "public"}));
    world.ok::<Address>("acme", "three", json!({"pool": "public"}));
    let result = world.create::<Address>("acme", "four", json!({"pool": "public"}));
    let pool = "address-pool public ranges 203.0.113.16-203.0.113.19";
    refused(result, Reason::Exhausted, pool, "has no free address");
    world.gone::<Address>("globex", "a");
    world.ok::<Address>("acme", "four", picked("203.0.113.18"));
    let rule = json!({"public_ip": "203.0.113.16", "public_port": 443, "internal_ip": "10.1.0.9"});
    world.ok::<Rule>("acme", "https", rule);
    let result = world.remove::<Address>("acme", "one");
    refused(
        result,
        CONFLICT,
        "rule https public_ip 203.0.113.16",
        "used by rules https",
    );
}

#[test]
fn address_pools_have_no_address_that_is_in_use() {
    let mut world = World::with_networks();
    let pool = |range: &str| json!({"ranges": [range]});
    let result = world.create::<AddressPool>("", "p", pool("203.0.113.18-203.0.113.99"));
    refused(
        result,
        CONFLICT,
        "address-pool public ranges 203.0.113.18-203.0.113.19",
        "in ranges",
    );
    let result = world.create::<AddressPool>("", "p", pool("203.0.113.0-203.0.113.15"));
    refused(
        result,
        CONFLICT,
        "address-pool public router 203.0.113.1",
        "in router",
    );
    let result = world.create::<AddressPool>("", "p", pool("127.0.0.1"));
    refused(
        result,
        INVALID,
        "address-pool p ranges 127.0.0.1",
        "not host addresses",
    );
    let result = world.create::<AddressPool>("", "p", json!({"ranges": []}));
    refused(result, INVALID, "address-pool p ranges 0", "write 1 to 256");
    for (spec, conflict, text) in [
        (
            json!({"ranges": ["192.0.2.0-192.0.2.9"], "prefix": "192.0.2.0/24"}),
            "192.0.2.0",
            "network",
        ),
        (
            json!({"ranges": ["192.0.3.9"], "prefix": "192.0.2.0/24"}),
            "192.0.3.9",
            "not in",
        ),
        (
            json!({"ranges": ["192.0.2.1", "192.0.2.0/30"]}),
            "192.0.2.1",
            "in two ranges",
        ),
        (
            json!({"ranges": ["192.0.2.1"], "router": "192.0.2.1"}),
            "192.0.2.1",
            "the router",
        ),
    ] {
        let result = world.create::<AddressPool>("", "p", spec);
        refused(
            result,
            INVALID,
            &format!("address-pool p ranges {conflict}"),
            text,
        );
    }
    let shrunk = json!({"ranges": ["203.0.113.17-203.0.113.19"]});
    let result = world.replace::<AddressPool>("", "public", shrunk);
    refused(
        result,
        CONFLICT,
        "address one address 203.0.113.16",
        "of tenant \"acme\"",
    );
    let result = world.remove::<AddressPool>("", "public");
    refused(
        result,
        CONFLICT,
        "address one address 203.0.113.16",
        "release them first",
    );

    world.ok::<Gateway>("", "gw1", json!({"addresses": ["192.0.2.7"]}));
    let result = world.create::<AddressPool>("", "p", pool("192.0.2.0-192.0.2.7"));
    refused(
        result,
        CONFLICT,
        "gateway gw1 addresses 192.0.2.7",
        "leave it out",
    );
    let uplink = json!({"uplink": {"method": "static", "address": "198.51.100.5",
                                   "prefix_length": 24, "router": "198.51.100.1"}});
    world.set::<Appliance>("acme", "h1", uplink);
    let result = world.create::<AddressPool>("", "p", pool("198.51.100.2-198.51.100.9"));
    refused(
        result,
        CONFLICT,
        "appliance h1 uplink.address 198.51.100.5",
        "leave it out",
    );
    let result = world.create::<Gateway>("", "gw2", json!({"addresses": ["198.51.100.5"]}));
    refused(
        result,
        CONFLICT,
        "appliance h1 uplink.address 198.51.100.5",
        "another address",
    );
    let result = world.create::<Gateway>("", "gw2", json!({"addresses": ["203.0.113.17"]}));
    let range = "address-pool public ranges 203.0.113.16-203.0.113.19";
    refused(result, CONFLICT, range, "another address");
    let wrong = json!({"uplink": {"method": "static", "address": "198.51.100.5",
                                  "prefix_length": 33, "router": "198.51.100.1"}});
    let result = world.replace::<Appliance>("acme", "h1", wrong);
    refused(
        result,
        INVALID,
        "appliance h1 uplink.prefix_length 33",
        "at most 32",
    );
}

#[test]
fn tenants_keep_a_gateway() {
    let mut world = World::new();
    world.ok::<Gateway>(
        "",
        "gw1",
        json!({"addresses": ["192.0.2.1"], "dns_name": "gw1.example.net"}),
    );
    world.ok::<Gateway>("", "gw2", json!({"addresses": ["192.0.2.2"]}));
    world.ok::<GatewayPool>("", "gold", json!({"gateways": ["gw2"]}));
    world.ok::<Tenant>("", "acme", json!({}));
    world.ok::<Tenant>("", "globex", json!({"gateway_pools": ["gold"]}));
    let result = world.remove::<Gateway>("", "gw1");
    refused(
        result,
        CONFLICT,
        "tenant acme gateway_pools",
        "tenants acme would have no gateway",
    );
    let off = json!({"addresses": ["192.0.2.2"], "enabled": false});
    let result = world.replace::<Gateway>("", "gw2", off.clone());
    refused(
        result,
        CONFLICT,
        "tenant globex gateway_pools gold",
        "with force",
    );
    let result = world.create::<GatewayPool>("", "silver", json!({"gateways": ["gw1"]}));
    refused(
        result,
        CONFLICT,
        "tenant acme gateway_pools",
        "tenants acme",
    );
    let result = world.create::<GatewayPool>("", "silver", json!({"gateways": ["gw2"]}));
    refused(
        result,
        CONFLICT,
        "gateway-pool gold gateways gw2",
        "in one pool at most",
    );
    let result = world.create::<GatewayPool>("", "silver", json!({"gateways": ["gw3"]}));
    refused(
        result,
        CONFLICT,
        "gateway gw3 name gw3",
        "create the gateway first",
    );
    let result = world.create::<GatewayPool>("", "silver", json!({"gateways": []}));
    refused(
        result,
        INVALID,
        "gateway-pool silver gateways",
        "the pool is empty",
    );
    let result = world.remove::<Gateway>("", "gw2");
    refused(
        result,
        CONFLICT,
        "gateway-pool gold gateways gw2",
        "take it out of the pool",
    );
    let result = world.remove::<GatewayPool>("", "gold");
    refused(
        result,
        CONFLICT,
        "tenant globex gateway_pools gold",
        "assigned to tenants globex",
    );
    let result = world.create::<Gateway>("", "gw3", json!({"addresses": ["192.0.2.1"]}));
    refused(
        result,
        CONFLICT,
        "gateway gw1 addresses 192.0.2.1",
        "taken by gateway \"gw1\"",
    );
    let wrong = json!({"addresses": ["192.0.2.9"], "port": 0, "dns_name": "-"});
    let result = world.create::<Gateway>("", "gw3", wrong);
    refused(result, INVALID, "gateway gw3 port 0", "dns_name");

    world.set::<Tenant>(
        "",
        "globex",
        json!({"gateway_pools": ["gold"], "gateway_fallback": true}),
    );
    world.set::<Gateway>("", "gw2", off);
    world.options.force = true;
    let accepted = world.gone::<Gateway>("", "gw1");
    assert_eq!(
        accepted.warnings,
        ["tenants acme, globex have no gateway left"]
    );
    world.gone::<GatewayPool>("", "gold");
    let globex = world.state.get::<Tenant>(None, "globex").expect("a tenant");
    assert!(globex.spec.gateway_pools.is_empty());
}

#[test]
fn networks_have_prefixes_of_their_own_and_gateways_within() {
    let mut world = World::with_networks();
    let network =
        |prefix: &str, gateway: &str| json!({"prefixes": [prefix], "gateways": [gateway]});
    for (spec, text) in [
        (
            network("10.9.0.0/24", "10.8.0.1"),
            "in none of the network's prefixes",
        ),
        (
            network("10.9.0.0/24", "10.9.0.255"),
            "network or broadcast address",
        ),
        (network("10.9.0.0/24", "127.0.0.1"), "is not a host address"),
        (
            json!({"prefixes": ["10.9.0.0/24"], "gateways": ["10.9.0.1", "10.9.0.2"]}),
            "of one address family",
        ),
    ] {
        let gateways: Vec<_> = spec["gateways"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|g| g.as_str().expect("text"))
            .collect();
        let conflict = format!("network web-2 gateways {}", gateways.join(", "));
        let result = world.replace::<Network>("acme", "web-2", spec.clone());
        refused(result, CONFLICT, &conflict, text);
    }
    let result = world.replace::<Network>("acme", "web-2", network("10.1.0.128/25", "10.1.0.129"));
    refused(
        result,
        CONFLICT,
        "network web-1 prefixes 10.1.0.0/24",
        "change one of the two",
    );
    let twice = json!({"prefixes": ["10.9.0.0/24", "10.9.0.0/16"]});
    let result = world.replace::<Network>("acme", "web-2", twice);
    refused(
        result,
        INVALID,
        "network web-2 prefixes 10.9.0.0/16",
        "overlap",
    );
    let v6 =
        json!({"prefixes": ["10.9.0.0/24", "2001:db8::/64"], "gateways": ["10.9.0.1", "fe80::1"]});
    world.set::<Network>("acme", "web-2", v6);
}

#[test]
fn mappings_and_policies_name_networks_of_the_tenant() {
    let mut world = World::with_networks();
    let map =
        |production: &str, replica: &str| json!({"production": production, "replica": replica});
    let result = world.create::<Mapping>("acme", "m", map("Prod", "web-9"));
    refused(
        result,
        CONFLICT,
        "network web-9 name web-9",
        "db-1, db-2, db-3, web-1, web-2",
    );
    world.ok::<Mapping>("acme", "m", map("Prod", "web-1"));
    let result = world.create::<Mapping>("acme", "n", map("Other", "web-1"));
    refused(
        result,
        CONFLICT,
        "mapping m replica web-1",
        "map each network once",
    );
    let result = world.create::<Mapping>("acme", "n", map("Prod", "web-2"));
    refused(
        result,
        CONFLICT,
        "mapping m production Prod",
        "in mapping \"m\"",
    );

    let policy = |from: &str, to: &str, both: bool| json!({"from": from, "to": to, "both": both});
    let result = world.create::<Policy>("acme", "p", policy("web-1", "web-9", true));
    refused(result, CONFLICT, "network web-9 name web-9", "to: network");
    let result = world.create::<Policy>("acme", "p", policy("web-1", "web-1", true));
    refused(
        result,
        INVALID,
        "policy p to web-1",
        "write another network",
    );
    world.ok::<Policy>("acme", "p", policy("web-1", "db-1", false));
    world.ok::<Policy>("acme", "back", policy("db-1", "web-1", false));
    let result = world.create::<Policy>("acme", "q", policy("db-1", "web-1", true));
    refused(
        result,
        CONFLICT,
        "policy back from db-1 to web-1",
        "allowed by policy \"back\"",
    );
    let result = world.remove::<Subscription>("acme", "web");
    refused(result, CONFLICT, "mapping m replica web-1", "policy \"p\"");
}

#[test]
fn public_port_22_is_refused_wherever_a_rule_can_enter() {
    let mut world = World::with_networks();
    let rule = |ports: Value| -> Value {
        json!({"public_ip": "203.0.113.16", "public_port": ports, "internal_ip": "10.1.0.9"})
    };
    let result = world.create::<Rule>("acme", "ssh", rule(json!(22)));
    refused(result, INVALID, "rule ssh public_port 22", "22 is refused");
    let result = world.create::<Rule>("acme", "all", rule(json!("1-100")));
    refused(
        result,
        INVALID,
        "rule all public_port 1-100",
        "write two rules, 1-21 and 23-100",
    );
    world.ok::<Rule>(
        "acme",
        "ssh",
        json!({"public_ip": "203.0.113.16", "public_port": 2222,
                                            "internal_ip": "10.1.0.9", "internal_port": 22}),
    );
    for protocol in ["tcp", "udp", "both"] {
        let mut spec = rule(json!(22));
        spec["protocol"] = protocol.into();
        let result = world.replace::<Rule>("acme", "ssh", spec);
        refused(result, INVALID, "rule ssh public_port 22", "22 is refused");
    }
    let whole = json!({"public_ip": "203.0.113.16", "internal_ip": "10.1.0.9", "one_to_one": true});
    let result = world.create::<Rule>("acme", "whole", whole.clone());
    refused(
        result,
        CONFLICT,
        "rule ssh public_port 203.0.113.16 tcp 2222",
        "rule \"ssh\"",
    );
    world.gone::<Rule>("acme", "ssh");
    world.ok::<Rule>("acme", "whole", whole);
}

#[test]
fn rules_use_the_tenants_addresses_and_networks() {
    let mut world = World::with_networks();
    let rule = |public: &str, port: u16, internal: &str| -> Value {
        json!({"public_ip": public, "public_port": port, "internal_ip": internal})
    };
    let result = world.create::<Rule>("acme", "r", rule("203.0.113.17", 443, "10.1.0.9"));
    refused(
        result,
        CONFLICT,
        "rule r public_ip 203.0.113.17",
        "not one of tenant \"acme\"'s",
    );
    let result = world.create::<Rule>("acme", "r", rule("203.0.113.16", 443, "10.7.0.9"));
    refused(
        result,
        CONFLICT,
        "rule r internal_ip 10.7.0.9",
        "in no network",
    );
    let result = world.create::<Rule>("acme", "r", rule("203.0.113.16", 443, "10.1.0.1"));
    refused(
        result,
        CONFLICT,
        "rule r internal_ip 10.1.0.1",
        "is the gateway of network",
    );
    let result = world.create::<Rule>("acme", "r", rule("203.0.113.16", 443, "2001:db8::1"));
    refused(
        result,
        INVALID,
        "rule r public_port 443",
        "different address families",
    );
    let neither = json!({"public_ip": "203.0.113.16", "internal_ip": "10.1.0.9"});
    let result = world.create::<Rule>("acme", "r", neither);
    refused(result, INVALID, "rule r public_port", "write public_port");
    world.ok::<Rule>("acme", "a", rule("203.0.113.16", 443, "10.1.0.9"));
    let result = world.create::<Rule>("acme", "b", rule("203.0.113.16", 443, "10.2.0.9"));
    let overlap = "rule a public_port 203.0.113.16 tcp 443";
    refused(result, CONFLICT, overlap, "already used by rule \"a\"");
    let mut udp = rule("203.0.113.16", 443, "10.2.0.9");
    udp["protocol"] = "udp".into();
    world.ok::<Rule>("acme", "b", udp);
    let cleared = world.replace::<Network>("acme", "web-1", json!({}));
    refused(
        cleared,
        CONFLICT,
        "rule a internal_ip 10.1.0.9",
        "network \"web-1\" cannot be changed",
    );
    let result = world.remove::<Subscription>("acme", "db");
    refused(
        result,
        CONFLICT,
        "rule b internal_ip 10.2.0.9",
        "remove these objects first",
    );
}

#[test]
fn plans_have_networks_with_gateways_machines_and_rules() {
    let mut world = World::with_networks();
    let plan = |networks: Value, vms: Value| json!({"networks": networks, "vms": vms});
    let (web, vm) = (
        json!([{"name": "web-1"}]),
        json!([{"name": "vm-1", "addresses": ["10.1.0.9"]}]),
    );
    for (spec, conflict, text) in [
        (plan(json!([]), vm.clone()), "networks", "the plan has none"),
        (plan(web.clone(), json!([])), "vms 0", "write 1 to 1000"),
        (
            plan(web.clone(), json!([{"name": "a"}, {"name": "a"}])),
            "vms.name a",
            "each machine once",
        ),
        (
            plan(json!([{"name": "web-1"}, {"name": "web-1"}]), vm.clone()),
            "networks.name web-1",
            "each network once",
        ),
        (
            plan(web.clone(), json!([{"name": "a", "delay_seconds": 86_401}])),
            "vms.delay_seconds 86401",
            "86400",
        ),
        (
            json!({"networks": web, "vms": vm, "rules": ["r", "r"]}),
            "rules r",
            "each rule once",
        ),
        (
            json!({"networks": web, "vms": vm, "hooks": {"before": "../x"}}),
            "hooks.before ../x",
            "hook folder",
        ),
        (
            json!({"networks": web, "vms": vm, "hooks": {"after": "https://u:p@a.example/x"}}),
            "hooks.after https://(hidden)@a.example/x",
            "no user and password",
        ),
        (
            json!({"networks": web, "vms": vm, "hooks": {"after": "http://a"}}),
            "hooks.after http://a",
            "https://",
        ),
    ] {
        let result = world.create::<Plan>("acme", "all", spec);
        refused(result, INVALID, &format!("plan all {conflict}"), text);
    }
    let result = world.create::<Plan>("acme", "all", plan(json!([{"name": "x"}]), vm.clone()));
    refused(result, CONFLICT, "network x name x", "networks are db-1");
    let result = world.create::<Plan>("acme", "all", plan(json!([{"name": "web-2"}]), vm.clone()));
    refused(
        result,
        CONFLICT,
        "network web-2 gateways",
        "has no default gateway",
    );
    world.set::<Network>(
        "acme",
        "web-2",
        json!({"prefixes": ["10.3.0.0/24"], "gateways": ["10.3.0.1"]}),
    );
    let internet = json!([{"name": "web-2", "internet": true}]);
    let result = world.create::<Plan>("acme", "all", plan(internet, vm.clone()));
    refused(
        result,
        CONFLICT,
        "network web-2 internet false",
        "without internet access",
    );
    let gateway = json!([{"name": "vm-1", "addresses": ["10.1.0.1"]}]);
    let result = world.create::<Plan>("acme", "all", plan(web.clone(), gateway));
    refused(
        result,
        CONFLICT,
        "plan all networks web-1",
        "has the address of the gateway",
    );
    let result = world.create::<Plan>(
        "acme",
        "all",
        json!({"networks": web, "vms": vm, "rules": ["r"]}),
    );
    refused(result, CONFLICT, "rule r name r", "create the rule first");

    let rule = |internal: &str| -> Value {
        json!({"public_ip": "203.0.113.16", "public_port": 443, "internal_ip": internal})
    };
    world.ok::<Rule>("acme", "r", rule("10.2.0.9"));
    let result = world.create::<Plan>(
        "acme",
        "all",
        json!({"networks": web, "vms": vm, "rules": ["r"]}),
    );
    refused(
        result,
        CONFLICT,
        "plan all networks web-1",
        "which is not in the plan",
    );
    world.set::<Rule>("acme", "r", rule("10.1.0.9"));
    world.ok::<Policy>("acme", "p", json!({"from": "web-1", "to": "db-1"}));
    world.ok::<Plan>(
        "acme",
        "all",
        json!({"networks": web, "vms": vm, "rules": ["r"],
        "hooks": {"before": "power-on.sh", "after": "https://hooks.example.net/done"}}),
    );
    let result = world.replace::<Rule>("acme", "r", rule("10.2.0.9"));
    refused(
        result,
        CONFLICT,
        "plan all networks web-1",
        "rule \"r\" cannot be changed",
    );
    refused(
        world.remove::<Rule>("acme", "r"),
        CONFLICT,
        "plan all rules r",
        "in plans all",
    );
    let result = world.create::<Plan>("acme", "other", plan(json!([{"name": "db-1"}]), vm.clone()));
    refused(result, CONFLICT, "plan all vms vm-1", "in one plan at most");
    let owned = json!({"prefixes": ["10.1.0.0/24"], "gateways": ["10.1.0.9"]});
    let result = world.replace::<Network>("acme", "web-1", owned);
    refused(
        result,
        CONFLICT,
        "plan all vms 10.1.0.9",
        "of machine \"vm-1\"",
    );
    let late = json!([{"name": "vm-2", "delay_seconds": 5}]);
    let accepted = world.ok::<Plan>("acme", "late", plan(json!([{"name": "db-1"}]), late));
    assert_eq!(accepted.warnings.len(), 1, "{:?}", accepted.warnings);
}

#[test]
fn specs_of_the_wrong_form_are_refused() {
    fn wrong<K: Kind>(spec: Value, text: &str) {
        let error = serde_json::from_value::<K>(spec)
            .expect_err("no spec")
            .to_string();
        assert!(error.contains(text), "{text:?} is not in {error:?}");
    }
    wrong::<Host>(json!({}), "missing field `platform`");
    wrong::<Host>(
        json!({"platform": "xen"}),
        "expected one of `esxi`, `hyper-v`, `kvm`",
    );
    wrong::<Host>(
        json!({"platform": "kvm", "port": 1}),
        "unknown field `port`",
    );
    wrong::<VlanPool>(
        json!({"host": "h", "switch": "s", "with_internet": ["0-9"]}),
        "within 1-4094",
    );
    wrong::<VlanPool>(
        json!({"host": "h", "switch": "s", "with_internet": [7]}),
        "expected a string",
    );
    wrong::<AddressPool>(
        json!({"ranges": ["203.0.113.9-203.0.113.8"]}),
        "ends before it begins",
    );
    wrong::<HardwarePlan>(
        json!({"vlan_pool": "p", "networks_with_internet": -1}),
        "invalid value",
    );
    wrong::<Network>(json!({"prefixes": ["10.1.0.1/24"]}), "write 10.1.0.0/24");
    wrong::<Rule>(
        json!({"public_ip": "203.0.113.16", "public_port": 0, "internal_ip": "10.0.0.1"}),
        "from 1 to 65535",
    );
    wrong::<Appliance>(
        json!({"uplink": {"method": "static"}}),
        "missing field `address`",
    );
}

#[test]
fn a_tenant_is_not_moved_to_pools_that_leave_it_without_a_gateway() {
    let mut world = World::new();
    world.ok::<Gateway>("", "gw1", json!({"addresses": ["192.0.2.1"]}));
    let off = json!({"addresses": ["192.0.2.2"], "enabled": false});
    world.ok::<Gateway>("", "gw2", off);
    world.ok::<Gateway>("", "gw3", json!({"addresses": ["192.0.2.3"]}));
    world.ok::<GatewayPool>("", "silver", json!({"gateways": ["gw2"]}));
    world.ok::<GatewayPool>("", "gold", json!({"gateways": ["gw3"]}));
    world.ok::<Tenant>("", "acme", json!({}));
    let result = world.replace::<Tenant>("", "acme", json!({"gateway_pools": ["silver"]}));
    refused(
        result,
        CONFLICT,
        "gateway-pool silver gateways gw2",
        "would have no gateway left",
    );
    let both = json!({"gateway_pools": ["silver"], "gateway_fallback": true});
    world.set::<Tenant>("", "acme", both);
    world.set::<Tenant>("", "acme", json!({"gateway_pools": ["gold"]}));
    world.set::<Tenant>("", "acme", json!({"gateway_pools": ["silver", "gold"]}));
    world.set::<Tenant>("", "acme", json!({}));
}

#[test]
fn addresses_that_no_host_has_are_not_assigned() {
    let mut world = World::with_networks();
    for (range, part) in [
        ("::ffff:192.0.2.10", "::ffff:192.0.2.10"),
        ("126.0.0.0-128.0.0.0", "127.0.0.0-127.255.255.255"),
        ("fe80::1-fe80::9", "fe80::1-fe80::9"),
    ] {
        let result = world.create::<AddressPool>("", "odd", json!({"ranges": [range]}));
        let conflict = format!("address-pool odd ranges {part}");
        refused(result, INVALID, &conflict, "are not host addresses");
    }
    for address in ["::ffff:192.0.2.10", "127.0.0.1", "fe80::1"] {
        let result = world.create::<Gateway>("", "odd", json!({"addresses": [address]}));
        let conflict = format!("gateway odd addresses {address}");
        refused(result, INVALID, &conflict, "not a host address");
    }
    // A router that a gateway is, whichever comes first.
    world.ok::<Gateway>("", "edge", json!({"addresses": ["198.51.100.1"]}));
    let pool = json!({"ranges": ["198.51.100.8"], "prefix": "198.51.100.0/24",
        "router": "198.51.100.1"});
    let result = world.create::<AddressPool>("", "odd", pool);
    refused(
        result,
        CONFLICT,
        "gateway edge addresses 198.51.100.1",
        "the address of gateway",
    );
}

#[test]
fn machines_of_a_plan_have_addresses_of_their_own_in_its_networks() {
    let mut world = World::with_networks();
    let plan = |vms: Value| json!({"networks": [{"name": "web-1"}], "vms": vms});
    let twice = json!([{"name": "a", "addresses": ["10.1.0.9"]},
        {"name": "b", "addresses": ["10.1.0.9"]}]);
    let result = world.create::<Plan>("acme", "all", plan(twice));
    refused(
        result,
        CONFLICT,
        "plan all networks web-1",
        "both have 10.1.0.9",
    );
    let outside = json!([{"name": "a", "addresses": ["172.16.0.9"]}]);
    let result = world.create::<Plan>("acme", "all", plan(outside));
    refused(
        result,
        CONFLICT,
        "plan all networks web-1",
        "in no network of the plan",
    );
    let inside = json!([{"name": "a", "addresses": ["10.1.0.9"]}]);
    world.ok::<Plan>("acme", "all", plan(inside));
    let moved = json!({"prefixes": ["10.7.0.0/24"], "gateways": ["10.7.0.1"]});
    let result = world.replace::<Network>("acme", "web-1", moved);
    refused(
        result,
        CONFLICT,
        "plan all networks web-1",
        "in no network of the plan",
    );
}

#[test]
fn a_plan_grows_for_disabled_tenants_with_a_warning() {
    let mut world = World::with_networks();
    world.set::<Tenant>("", "acme", json!({"enabled": false}));
    let plan = world
        .state
        .all::<HardwarePlan>()
        .iter()
        .next()
        .expect("a plan");
    let (name, mut spec) = (plan.name().to_owned(), plan.spec.clone());
    spec.networks_with_internet += 1;
    let spec = serde_json::to_value(spec).expect("a spec");
    let accepted = world
        .replace::<HardwarePlan>("", &name, spec)
        .expect("growth");
    assert!(
        accepted
            .warnings
            .iter()
            .any(|text| text.contains("tenants acme are disabled")),
        "{:?}",
        accepted.warnings
    );
}
