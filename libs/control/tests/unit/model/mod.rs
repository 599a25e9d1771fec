//! Random sequences of operations against a reference model, with crashes between any two steps.
//!
//! The model knows sets of VLANs and addresses and nothing else of the implementation. It foretells
//! for each operation whether it is accepted, and which VLANs and addresses it gives out.

mod reference;

use std::collections::{BTreeMap, BTreeSet};

use control::{
    Accepted, Address, AddressPool, HardwarePlan, Host, Kind, Mapping, Network, Options, Origin,
    Platform, Reason, Refusal, State, Subscription, Switch, Tenant, VlanPool, VlanRange, create,
    differences, remove, replace,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::store::Store;
use reference::{Domain, Model};

/// Sequences of one run.
const SEQUENCES: u32 = 1000;

/// An operation; numbers stand for names.
#[derive(Clone, Debug)]
enum Operation {
    Host {
        host: u8,
        trunks: [Option<u8>; 2],
    },
    RemoveHost {
        host: u8,
    },
    Pool {
        pool: u8,
        host: u8,
        switch: u8,
        with: Option<(u16, u16)>,
        without: Option<(u16, u16)>,
    },
    /// Moves a pool with its VLANs to another switch.
    MovePool {
        pool: u8,
        host: u8,
        switch: u8,
    },
    RemovePool {
        pool: u8,
    },
    Plan {
        plan: u8,
        pool: u8,
        with: u16,
        without: u16,
    },
    RemovePlan {
        plan: u8,
    },
    Tenant {
        tenant: u8,
    },
    RemoveTenant {
        tenant: u8,
        force: bool,
    },
    Subscribe {
        tenant: u8,
        plan: u8,
    },
    Unsubscribe {
        tenant: u8,
        plan: u8,
    },
    /// Gives the tenant's network at this place a prefix, or takes it away.
    Settings {
        tenant: u8,
        place: u8,
        prefix: bool,
    },
    Map {
        tenant: u8,
        place: u8,
    },
    Unmap {
        tenant: u8,
        place: u8,
    },
    AddressPool {
        pool: u8,
        first: u8,
        last: u8,
    },
    RemoveAddressPool {
        pool: u8,
    },
    Assign {
        tenant: u8,
        name: u8,
        pool: u8,
        address: Option<u8>,
    },
    Release {
        tenant: u8,
        name: u8,
    },
}

/// The fate of the process at an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    /// None: the commit is applied to the state in memory.
    No,
    /// Before the commit: nothing of the operation is stored.
    Before,
    /// After the commit: the state is loaded from the store.
    After,
    /// Another director computes the same operation from the state before the last commit.
    Behind,
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation as O;
    let vlans = || {
        let range = (1u16..=16, 0u16..=7).prop_map(|(first, more)| (first, first + more));
        prop::option::weighted(0.7, range)
    };
    let trunk = || prop::option::weighted(0.4, 0u8..2);
    prop_oneof![
        3 => (0u8..2, trunk(), trunk()).prop_map(|(host, a, b)| O::Host { host, trunks: [a, b] }),
        1 => (0u8..2).prop_map(|host| O::RemoveHost { host }),
        6 => (0u8..3, 0u8..2, 0u8..2, vlans(), vlans()).prop_map(
            |(pool, host, switch, with, without)| O::Pool { pool, host, switch, with, without }
        ),
        2 => (0u8..3, 0u8..2, 0u8..2).prop_map(
            |(pool, host, switch)| O::MovePool { pool, host, switch }
        ),
        1 => (0u8..3).prop_map(|pool| O::RemovePool { pool }),
        6 => (0u8..3, 0u8..3, 0u16..4, 0u16..3).prop_map(
            |(plan, pool, with, without)| O::Plan { plan, pool, with, without }
        ),
        1 => (0u8..3).prop_map(|plan| O::RemovePlan { plan }),
        3 => (0u8..3).prop_map(|tenant| O::Tenant { tenant }),
        1 => (0u8..3, any::<bool>()).prop_map(|(tenant, force)| O::RemoveTenant { tenant, force }),
        8 => (0u8..3, 0u8..3).prop_map(|(tenant, plan)| O::Subscribe { tenant, plan }),
        3 => (0u8..3, 0u8..3).prop_map(|(tenant, plan)| O::Unsubscribe { tenant, plan }),
        3 => (0u8..3, any::<u8>(), any::<bool>()).prop_map(
            |(tenant, place, prefix)| O::Settings { tenant, place, prefix }
        ),
        2 => (0u8..3, any::<u8>()).prop_map(|(tenant, place)| O::Map { tenant, place }),
        1 => (0u8..3, any::<u8>()).prop_map(|(tenant, place)| O::Unmap { tenant, place }),
        3 => (0u8..2, 0u8..12, 0u8..6).prop_map(
            |(pool, first, more)| O::AddressPool { pool, first, last: first + more }
        ),
        1 => (0u8..2).prop_map(|pool| O::RemoveAddressPool { pool }),
        5 => (0u8..3, 0u8..4, 0u8..2, prop::option::of(0u8..16)).prop_map(
            |(tenant, name, pool, address)| O::Assign { tenant, name, pool, address }
        ),
        2 => (0u8..3, 0u8..4).prop_map(|(tenant, name)| O::Release { tenant, name }),
    ]
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        7 => Just(Crash::No),
        1 => Just(Crash::Before),
        1 => Just(Crash::After),
        1 => Just(Crash::Behind),
    ]
}

fn text(range: Option<(u16, u16)>) -> Vec<VlanRange> {
    let range = range.map(|(first, last)| VlanRange::new(first, last).expect("a range"));
    range.into_iter().collect()
}

/// Creates the object or replaces its spec.
fn put<K: Kind>(
    state: &State,
    tenant: Option<&str>,
    name: &str,
    spec: K,
    origin: Origin,
) -> Result<control::Transaction, Refusal> {
    let result = match state.get::<K>(tenant, name) {
        None => create(state, tenant, name, spec, origin, Options::default()),
        Some(_) => replace(state, tenant, name, spec, origin, Options::default()),
    };
    result.map(|accepted| accepted.transaction)
}

/// Name of the tenant's network at a place, as [`Model::network_at`] finds it.
fn network_at(state: &State, tenant: &str, place: u8) -> Option<String> {
    let networks: Vec<_> = state.all::<Network>().of_tenant(tenant).collect();
    let place = usize::from(place).checked_rem(networks.len())?;
    Some(networks[place].name().to_owned())
}

fn ip(last: u8) -> std::net::IpAddr {
    [203, 0, 113, 16 + last].into()
}

/// Computes an operation; `None` if there is nothing that it could be done to.
fn compute(
    state: &State,
    operation: &Operation,
    origin: Origin,
) -> Option<Result<control::Transaction, Refusal>> {
    fn done<K: Kind>(
        state: &State,
        result: Result<Accepted<K>, Refusal>,
    ) -> Result<control::Transaction, Refusal> {
        result.map(|accepted| {
            let expected = differences(state, &accepted.transaction);
            assert_eq!(accepted.differences, expected);
            accepted.transaction
        })
    }
    let usual = Options::default();
    let t = |tenant: u8| format!("t{tenant}");
    Some(match *operation {
        Operation::Host { host, trunks } => {
            let switches = trunks.iter().enumerate().map(|(switch, trunk)| Switch {
                name: format!("v{switch}"),
                trunk: trunk.map(|trunk| format!("trunk {trunk}")),
            });
            let spec = Host {
                platform: Platform::Kvm,
                switches: switches.collect(),
                description: String::new(),
            };
            put(state, None, &format!("h{host}"), spec, origin)
        }
        Operation::RemoveHost { host } => done(
            state,
            remove::<Host>(state, None, &format!("h{host}"), origin, usual),
        ),
        Operation::Pool {
            pool,
            host,
            switch,
            with,
            without,
        } => {
            let spec = VlanPool {
                host: format!("h{host}"),
                switch: format!("v{switch}"),
                with_internet: text(with),
                without_internet: text(without),
                description: String::new(),
            };
            put(state, None, &format!("p{pool}"), spec, origin)
        }
        Operation::MovePool { pool, host, switch } => {
            let name = format!("p{pool}");
            let mut spec = state.get::<VlanPool>(None, &name)?.spec.clone();
            spec.host = format!("h{host}");
            spec.switch = format!("v{switch}");
            put(state, None, &name, spec, origin)
        }
        Operation::RemovePool { pool } => done(
            state,
            remove::<VlanPool>(state, None, &format!("p{pool}"), origin, usual),
        ),
        Operation::Plan {
            plan,
            pool,
            with,
            without,
        } => {
            let spec = HardwarePlan {
                vlan_pool: format!("p{pool}"),
                networks_with_internet: with,
                networks_without_internet: without,
                description: String::new(),
            };
            put(state, None, &format!("plan{plan}"), spec, origin)
        }
        Operation::RemovePlan { plan } => done(
            state,
            remove::<HardwarePlan>(state, None, &format!("plan{plan}"), origin, usual),
        ),
        Operation::Tenant { tenant } => {
            let spec: Tenant = serde_json::from_str("{}").expect("defaults");
            put(state, None, &t(tenant), spec, origin)
        }
        Operation::RemoveTenant { tenant, force } => done(
            state,
            remove::<Tenant>(
                state,
                None,
                &t(tenant),
                origin,
                Options {
                    force,
                    ..Options::default()
                },
            ),
        ),
        Operation::Subscribe { tenant, plan } => {
            let spec = Subscription {
                hardware_plan: format!("plan{plan}"),
                ..Subscription::default()
            };
            let (tenant, name) = (t(tenant), format!("s{plan}"));
            done(
                state,
                create(state, Some(&tenant), &name, spec, origin, usual),
            )
        }
        Operation::Unsubscribe { tenant, plan } => {
            let (tenant, name) = (t(tenant), format!("s{plan}"));
            done(
                state,
                remove::<Subscription>(state, Some(&tenant), &name, origin, usual),
            )
        }
        Operation::Settings {
            tenant,
            place,
            prefix,
        } => {
            let name = network_at(state, &t(tenant), place)?;
            // As "s1-12": two networks of a tenant may not overlap.
            let (plan, number) = name.strip_prefix('s')?.split_once('-')?;
            let number: u8 = number.parse().ok()?;
            let prefix = prefix.then(|| {
                format!("10.{plan}.{number}.0/24")
                    .parse()
                    .expect("a prefix")
            });
            let spec = Network {
                prefixes: prefix.into_iter().collect(),
                ..Network::default()
            };
            put(state, Some(&t(tenant)), &name, spec, origin)
        }
        Operation::Map { tenant, place } => {
            let name = network_at(state, &t(tenant), place)?;
            let spec = Mapping {
                production: format!("VM Network {name}"),
                replica: name.clone(),
            };
            done(
                state,
                create(state, Some(&t(tenant)), &name, spec, origin, usual),
            )
        }
        Operation::Unmap { tenant, place } => {
            let name = network_at(state, &t(tenant), place)?;
            done(
                state,
                remove::<Mapping>(state, Some(&t(tenant)), &name, origin, usual),
            )
        }
        Operation::AddressPool { pool, first, last } => {
            let range = control::AddressRange::new(ip(first), ip(last)).expect("a range");
            let spec = AddressPool {
                ranges: vec![range],
                prefix: None,
                router: None,
                description: String::new(),
            };
            put(state, None, &format!("a{pool}"), spec, origin)
        }
        Operation::RemoveAddressPool { pool } => done(
            state,
            remove::<AddressPool>(state, None, &format!("a{pool}"), origin, usual),
        ),
        Operation::Assign {
            tenant,
            name,
            pool,
            address,
        } => {
            let spec = Address {
                pool: format!("a{pool}"),
                address: address.map(ip),
            };
            let (tenant, name) = (t(tenant), format!("n{name}"));
            done(
                state,
                create(state, Some(&tenant), &name, spec, origin, usual),
            )
        }
        Operation::Release { tenant, name } => {
            let (tenant, name) = (t(tenant), format!("n{name}"));
            done(
                state,
                remove::<Address>(state, Some(&tenant), &name, origin, usual),
            )
        }
    })
}

/// The state has exactly the model's networks and addresses, and a claim for each of them.
fn assert_equal(state: &State, model: &Model) {
    let mut claims = BTreeMap::new();
    for (tenant, subscriptions) in &model.tenants {
        for network in subscriptions.values().flat_map(|s| &s.networks) {
            let tenant = format!("t{tenant}");
            let found = state.get::<Network>(Some(&tenant), &network.name);
            let found = found.unwrap_or_else(|| panic!("no network {tenant} {}", network.name));
            let status = &found.status;
            assert_eq!(
                (status.vlan, status.internet, &status.pool),
                (
                    network.vlan,
                    network.internet,
                    &format!("p{}", network.pool)
                ),
                "{tenant} {}",
                network.name
            );
            let pool = &model.pools[&network.pool];
            let domain = match model.domain(pool.host, pool.switch).expect("a switch") {
                Domain::Trunk(trunk) => format!("trunk/trunk {trunk}"),
                Domain::Switch(host, switch) => format!("switch/h{host}/v{switch}"),
            };
            let key = format!("claim/vlan/{domain}/{}", network.vlan);
            let twice = claims.insert(key.clone(), (tenant, network.name.clone()));
            assert_eq!(twice, None, "{key} is given out twice");
        }
    }
    for ((tenant, name), (_, address)) in &model.addresses {
        let (tenant, name) = (format!("t{tenant}"), format!("n{name}"));
        let found = state
            .get::<Address>(Some(&tenant), &name)
            .expect("an address");
        assert_eq!(found.status.address, Some(ip(*address)));
        let twice = claims.insert(format!("claim/address/{}", ip(*address)), (tenant, name));
        assert_eq!(twice, None, "{} is given out twice", ip(*address));
    }
    let found: BTreeMap<_, _> = state
        .claims()
        .map(|(key, claim)| (key.to_owned(), (claim.tenant.clone(), claim.owner.clone())))
        .collect();
    assert_eq!(found, claims);
    assert_eq!(state.all::<Network>().len(), model.networks().count());
    assert_eq!(state.all::<Address>().len(), model.addresses.len());
    let hosts: BTreeSet<_> = model
        .tenants
        .iter()
        .flat_map(|(tenant, of)| of.values().map(move |s| (format!("t{tenant}"), s.host)))
        .map(|(tenant, host)| (tenant, format!("h{host}")))
        .collect();
    let appliances = state.all::<control::Appliance>().iter();
    let appliances: BTreeSet<_> = appliances
        .map(|a| (a.tenant().to_owned(), a.name().to_owned()))
        .collect();
    assert_eq!(
        appliances, hosts,
        "one appliance for each tenant on each of its hosts"
    );
}

/// A refusal names what contradicts, as data and in its text.
fn assert_named(refusal: &Refusal, operation: &Operation) {
    let first = refusal.conflicts.first();
    let first = first.unwrap_or_else(|| panic!("{operation:?}: no conflict: {refusal}"));
    let is_named = |text: &str| !text.is_empty() && refusal.detail.contains(text);
    assert!(
        is_named(&first.name) || is_named(&first.value),
        "{operation:?}: {first:?} is not in {:?}",
        refusal.detail
    );
    assert!(
        !first.kind.is_empty() && !first.field.is_empty(),
        "{first:?}"
    );
}

fn run(steps: &[(Operation, Crash)]) {
    let mut store = Store::default();
    let mut model = Model::default();
    let mut state = store.load();
    let mut behind = state.clone();
    for (number, (operation, crash)) in steps.iter().enumerate() {
        let origin = Origin {
            now: jiff::Timestamp::from_second(1_800_000_000 + number as i64).expect("a time"),
            uid: Uuid::from_u128(number as u128 + 1),
        };
        let from = if *crash == Crash::Behind {
            &behind
        } else {
            &state
        };
        let Some(result) = compute(from, operation, origin) else {
            continue;
        };
        let expected = model.after(operation);
        match result {
            Err(refusal) => {
                assert_named(&refusal, operation);
                let is_expected = expected.is_none() || *crash == Crash::Behind;
                assert!(
                    is_expected,
                    "step {number}: {operation:?} was refused: {refusal}"
                );
                if refusal.reason == Reason::Exhausted {
                    assert!(refusal.detail.contains("no free"), "{refusal}");
                }
                continue;
            }
            // The request has no effect on the state that it was computed from, whatever it is now.
            Ok(transaction) if *crash == Crash::Behind && transaction.is_empty() => continue,
            Ok(_) if *crash == Crash::Before => {
                state = store.load();
                continue;
            }
            Ok(transaction) => {
                let before = state.clone();
                match store.commit(&transaction) {
                    Ok(revision) => {
                        let Some(after) = expected else {
                            panic!("step {number}: {operation:?} was committed");
                        };
                        model = after;
                        state.apply(&transaction, revision).expect("readable");
                    }
                    Err(key) => {
                        assert_eq!(*crash, Crash::Behind, "step {number}: {operation:?}: {key}");
                    }
                }
                behind = before;
            }
        }
        let loaded = store.load();
        if *crash == Crash::After {
            state = loaded;
        } else {
            assert_eq!(state, loaded, "step {number}: {operation:?}");
        }
        assert_equal(&state, &model);
        // A director that starts accepts all that changes make.
        assert_eq!(state.object_errors(), [], "step {number}: {operation:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(SEQUENCES))]

    #[test]
    fn no_vlan_or_address_is_given_out_twice_and_every_refusal_names_its_conflict(
        steps in prop::collection::vec((operation(), crash()), 1..80)
    ) {
        run(&steps);
    }
}
