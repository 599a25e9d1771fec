//! Claims that contradict the objects, as in a store that was damaged.

use control::{Claim, ClaimError, State, Transaction};

use super::refusals::World;

/// A state with VLANs and an address, and its keys and values.
fn stored() -> Vec<(String, String)> {
    let world = World::with_networks();
    let keys = world.store.keys().map(ToOwned::to_owned);
    keys.map(|key| {
        let value = world.store.value(&key).expect("a value");
        (key, value)
    })
    .collect()
}

fn state(values: &[(String, String)]) -> State {
    let values = values.iter().map(|(key, value)| (&**key, &**value, 1));
    State::load(values, 1).expect("readable values")
}

/// The state after the repair has the claims of the undamaged one.
#[track_caller]
fn repaired(mut state: State) {
    let transaction: Transaction = state.repaired_claims().expect("a repair");
    assert_eq!(transaction.preconditions.len(), 0);
    state.apply(&transaction, 2).expect("readable values");
    assert_eq!(state.claim_errors(), []);
    let expected = self::state(&stored());
    let (found, expected): (Vec<_>, Vec<_>) =
        (state.claims().collect(), expected.claims().collect());
    assert_eq!(found, expected);
}

#[test]
fn claims_of_a_whole_state_are_those_of_its_objects() {
    let state = state(&stored());
    assert_eq!(state.claims().count(), 6);
    assert_eq!(state.claim_errors(), []);
    let nothing = state.repaired_claims().expect("nothing to repair");
    assert!(nothing.is_empty());
}

#[test]
fn each_missing_claim_is_found_and_made_again() {
    let all = stored();
    let claims: Vec<_> = all
        .iter()
        .filter(|(k, _)| k.starts_with("claim/"))
        .collect();
    assert_eq!(claims.len(), 6);
    for (gone, _) in claims {
        let left: Vec<_> = all.iter().filter(|(key, _)| key != gone).cloned().collect();
        let state = state(&left);
        let errors = state.claim_errors();
        let [ClaimError::Missing { key, .. }] = &errors[..] else {
            panic!("{gone}: {errors:?}");
        };
        assert_eq!(key, gone);
        repaired(state);
    }
    let none: Vec<_> = all
        .into_iter()
        .filter(|(k, _)| !k.starts_with("claim/"))
        .collect();
    let state = state(&none);
    assert_eq!(state.claim_errors().len(), 6);
    repaired(state);
}

#[test]
fn claims_of_no_object_or_of_another_one_are_found_and_made_again() {
    let other = Claim {
        pool: "pool".to_owned(),
        tenant: "globex".to_owned(),
        owner: "web-1".to_owned(),
    };
    let text = serde_json::to_string(&other).expect("JSON");
    let mut values = stored();
    values.push(("claim/address/203.0.113.18".to_owned(), text.clone()));
    let state_of = state(&values);
    let [ClaimError::Unowned { key, .. }] = &state_of.claim_errors()[..] else {
        panic!("{:?}", state_of.claim_errors());
    };
    assert_eq!(key, "claim/address/203.0.113.18");
    repaired(state_of);

    let mut values = stored();
    let (key, value) = values
        .iter_mut()
        .find(|(key, _)| key.ends_with("/101"))
        .expect("the claim of web-1");
    assert!(value.contains("acme"));
    *value = text;
    let key = key.clone();
    let state = state(&values);
    let errors = state.claim_errors();
    let [
        ClaimError::Other {
            key: found,
            claim,
            owner,
        },
    ] = &errors[..]
    else {
        panic!("{errors:?}");
    };
    assert_eq!(
        (found, claim, owner.tenant.as_str()),
        (&key, &other, "acme")
    );
    assert!(
        errors[0]
            .to_string()
            .contains("\"web-1\" of tenant \"globex\"")
    );
    repaired(state);
}

#[test]
fn objects_that_contradict_each_other_are_not_repaired() {
    let change = |name: &str, from: &str, to: &str| {
        let mut values = stored();
        let (_, value) = values
            .iter_mut()
            .find(|(key, _)| key == &format!("network/acme/{name}"))
            .expect("a network");
        assert!(value.contains(from), "{value}");
        *value = value.replace(from, to);
        state(&values)
    };
    let twice = change("web-1", "\"vlan\":101", "\"vlan\":102");
    let errors = twice.claim_errors();
    assert!(matches!(errors[0], ClaimError::Twice { .. }), "{errors:?}");
    assert!(errors[0].is_of_objects());
    twice.repaired_claims().expect_err("no repair");
    let moved = change(
        "web-1",
        "\"switch\":\"vSwitch0\"",
        "\"switch\":\"vSwitch9\"",
    );
    let errors = moved.claim_errors();
    assert!(
        matches!(errors[0], ClaimError::NoSwitch { .. }),
        "{errors:?}"
    );
    moved.repaired_claims().expect_err("no repair");
}
