use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    check,
    objects::{BackendSpec, CircuitSpec, Ids, RouteSpec, TenantSpec},
};

fn bounds() -> Bounds {
    Bounds {
        circuits: 100,
        tenants: 10,
        listen: vec![([192, 0, 2, 1], 6180).into()],
    }
}

fn circuit_name(n: u64) -> String {
    format!("{:016x}", (n + 4) << 32)
}

fn key(n: u8) -> String {
    Key::new([n; 32]).to_base64()
}

fn circuit(tenant: &str, keys: [u8; 2]) -> CircuitSpec {
    CircuitSpec {
        tenant: tenant.to_owned(),
        keys: keys.map(|n| key(n).into()).to_vec(),
    }
}

fn route(name: &str, tenant: Option<&str>, backend: &str) -> RouteSpec {
    RouteSpec {
        name: Some(name.to_owned()),
        tenant: tenant.map(str::to_owned),
        backend: backend.to_owned(),
        ..RouteSpec::default()
    }
}

/// One tenant, one backend, one route and two circuits.
fn objects() -> Objects {
    let mut objects = Objects::default();
    objects
        .tenants
        .insert("acme".to_owned(), TenantSpec::default());
    let backend = BackendSpec {
        addresses: vec!["192.0.2.7:443".to_owned(), "b.example:443".to_owned()],
        proxy: true,
    };
    objects.backends.insert("b".to_owned(), backend);
    let one = route("d.example", Some("acme"), "b");
    objects.routes.insert("r".to_owned(), one);
    for n in [1, 2] {
        let keys = [n * 2, n * 2 + 1];
        let id = circuit_name(n.into());
        objects.circuits.insert(id, circuit("acme", keys));
    }
    objects
}

fn snapshot(revision: u64, objects: Objects) -> Update {
    Update::Snapshot(Snapshot {
        revision,
        objects,
        ..Snapshot::default()
    })
}

/// A model of these objects, at revision 5.
fn applied(objects: Objects) -> Model {
    let mut model = Model::default();
    let prepared = model.prepare(&snapshot(5, objects), &bounds());
    drop(model.commit(prepared.expect("good")));
    model
}

fn refusal(model: &Model, update: &Update) -> String {
    let refused = model.prepare(update, &bounds()).expect_err("refused");
    refused.to_string()
}

fn delta(base: u64, put: Objects, remove: Ids) -> Update {
    Update::Delta(Delta {
        base,
        revision: base + 1,
        put,
        remove,
        ..Delta::default()
    })
}

#[test]
fn a_snapshot_is_read_back_as_it_was_applied() {
    let model = applied(objects());
    assert_eq!((model.revision(), model.source()), (5, Source::Applied));
    let again = model.snapshot();
    let text = serde_json::to_string(&Update::Snapshot(again.clone())).expect("JSON");
    let read: Update = serde_json::from_str(&text).expect("a snapshot");
    assert_eq!(read, Update::Snapshot(again));
    let prepared = model.prepare(&read, &bounds()).expect("the same again");
    assert!(prepared.changes().is_empty());
    assert_eq!(applied(model.snapshot().objects), model);
}

fn is_wiped_by_its_drop<T: zeroize::ZeroizeOnDrop>(_: &T) {}

#[test]
fn keys_are_wiped_and_shown_in_no_message() {
    let model = applied(objects());
    let page = model.page(None, 100, true).expect("a page");
    let spec = &page.objects.circuits[&circuit_name(1)];
    for key in &spec.keys {
        is_wiped_by_its_drop(key);
    }
    assert_eq!(spec.keys[0].expose(), key(2));
    let shown = format!("{model:?}{:?}{:?}", page.objects, model.contents());
    for n in 2..6 {
        assert!(!shown.contains(&key(n)), "{shown}");
    }
    // In JSON they are as they were written.
    let json = serde_json::to_value(spec).expect("JSON");
    assert_eq!(json["keys"], serde_json::json!([key(2), key(3)]));
    let read: CircuitSpec = serde_json::from_value(json).expect("a circuit");
    assert_eq!(&read, spec);
    let mut other = read;
    other.keys[1] = key(4).into();
    assert_ne!(&other, spec);
}

#[test]
fn an_update_is_idempotent_and_older_ones_are_refused() {
    let mut model = applied(objects());
    let put = Objects {
        circuits: [(circuit_name(3), circuit("acme", [8, 9]))].into(),
        ..Objects::default()
    };
    let remove = Ids {
        circuits: [circuit_name(1)].into(),
        ..Ids::default()
    };
    let update = delta(5, put, remove);
    for _ in 0..2 {
        let prepared = model.prepare(&update, &bounds()).expect("good");
        let (applied, changes) = model.commit(prepared);
        assert_eq!(applied.revision, 6);
        let ids: Vec<u64> = model.circuits().map(|(id, _)| id.get() >> 32).collect();
        assert_eq!(ids, [6, 7]);
        if changes.is_empty() {
            assert_eq!(applied.put, Counts::default());
        }
    }
    let older = "revision 5 is older than revision 6, which is in force: use a higher revision; or \
        begin anew: write the state into the configuration file, `reload`, remove it from the \
        file, `reload`, and `apply` a snapshot of any revision";
    for (update, wanted) in [
        (snapshot(5, objects()), older),
        (
            snapshot(6, objects()),
            "revision 6 is in force with other contents: use a higher revision",
        ),
        (
            delta(5, objects(), Ids::default()),
            "revision 6 is in force with other contents: use a higher revision",
        ),
        (
            delta(7, Objects::default(), Ids::default()),
            "the delta changes revision 7, and revision 6 is in force: send a delta of 6, or a \
             snapshot",
        ),
        (
            Update::Delta(Delta {
                base: 8,
                revision: 8,
                ..Delta::default()
            }),
            "revision 8: write a number above 8",
        ),
        (delta(4, Objects::default(), Ids::default()), older),
    ] {
        assert_eq!(refusal(&model, &update), wanted);
    }
    let zero = refusal(&Model::default(), &snapshot(0, objects()));
    assert_eq!(zero, "revision 0: write a number above 0");
}

#[test]
fn a_state_of_the_file_is_replaced_by_a_snapshot_only() {
    let mut model = applied(objects());
    let mut c = Checker::new();
    let prepared = model.prepare_file(&mut c, &objects(), &bounds());
    assert!(c.is_good() && prepared.changes().is_empty());
    drop(model.commit(prepared));
    assert_eq!((model.revision(), model.source()), (0, Source::File));
    let update = delta(0, Objects::default(), Ids::default());
    assert_eq!(
        refusal(&model, &update),
        "the state in force is that of the configuration file: send a snapshot first"
    );
    let prepared = model.prepare(&snapshot(1, objects()), &bounds());
    drop(model.commit(prepared.expect("any revision")));
    assert_eq!((model.revision(), model.source()), (1, Source::Applied));
}

#[test]
fn problems_between_objects_are_named() {
    let model = applied(objects());
    let ids = |id: &str| [id.to_owned()].into();
    for (put, remove, wanted) in [
        (
            Objects::default(),
            Ids {
                tenants: ids("acme"),
                ..Ids::default()
            },
            vec![
                "route \"r\": tenant: there is no tenant \"acme\"",
                "circuit \"0000000500000000\": tenant: there is no tenant \"acme\"",
                "circuit \"0000000600000000\": tenant: there is no tenant \"acme\"",
            ],
        ),
        (
            Objects::default(),
            Ids {
                backends: ids("b"),
                ..Ids::default()
            },
            vec!["route \"r\": backend: there is no backend \"b\""],
        ),
        (
            Objects::default(),
            Ids {
                routes: ids("other"),
                circuits: ids("no id"),
                ..Ids::default()
            },
            vec![
                "route \"other\": cannot be removed: it is not there",
                "circuit \"no id\": cannot be removed: it is not there",
            ],
        ),
        (
            Objects {
                tenants: [("acme".to_owned(), TenantSpec::default())].into(),
                ..Objects::default()
            },
            Ids {
                tenants: ids("acme"),
                ..Ids::default()
            },
            vec!["tenant \"acme\": is in put and in remove"],
        ),
        (
            Objects {
                circuits: [
                    (circuit_name(3), circuit("acme", [2, 9])),
                    (circuit_name(7), circuit("evil", [10, 10])),
                ]
                .into(),
                ..Objects::default()
            },
            Ids::default(),
            vec![
                "circuit \"0000000b00000000\": tenant: there is no tenant \"evil\"",
                "key 1 is used twice, also by circuit \"0000000500000000\"",
                "key 2 is used twice, also by circuit \"0000000b00000000\"",
            ],
        ),
        (
            Objects {
                routes: [("s".to_owned(), route("D.example", None, "b"))].into(),
                ..Objects::default()
            },
            Ids::default(),
            vec!["route \"s\": route \"r\" matches the same hellos"],
        ),
        (
            Objects {
                backends: [(
                    "own".to_owned(),
                    BackendSpec {
                        addresses: vec!["192.0.2.1:6180".to_owned()],
                        proxy: false,
                    },
                )]
                .into(),
                ..Objects::default()
            },
            Ids::default(),
            vec!["192.0.2.1:6180 is an address of this gateway"],
        ),
    ] {
        let text = refusal(&model, &delta(5, put, remove));
        assert_eq!(text.lines().count(), wanted.len() + 1, "{text}");
        for problem in wanted {
            assert!(text.contains(problem), "{problem} is not in {text}");
        }
    }
}

#[test]
fn objects_may_take_each_others_keys_and_names_in_one_update() {
    let mut model = applied(objects());
    let mut new = objects();
    let (a, b) = (circuit_name(1), circuit_name(2));
    new.circuits.insert(a, circuit("acme", [4, 5]));
    new.circuits.insert(b, circuit("acme", [2, 3]));
    let mut renamed = new.routes.remove("r").expect("a route");
    renamed.backend = "c".to_owned();
    new.routes.insert("s".to_owned(), renamed);
    let backend = new.backends.remove("b").expect("a backend");
    new.backends.insert("c".to_owned(), backend);
    let prepared = model.prepare(&snapshot(6, new.clone()), &bounds());
    drop(model.commit(prepared.expect("good")));
    assert_eq!(model, {
        let mut fresh = applied(new);
        fresh.revision = 6;
        fresh
    });
}

#[test]
fn capacity_is_a_bound() {
    let tight = Bounds {
        circuits: 2,
        tenants: 1,
        ..bounds()
    };
    let model = applied(objects());
    assert_eq!(model.check(&tight), []);
    let mut more = objects();
    more.tenants
        .insert("evil".to_owned(), TenantSpec::default());
    let id = circuit_name(3);
    more.circuits.insert(id, circuit("evil", [8, 9]));
    let error = model.prepare(&snapshot(6, more), &tight);
    let error = error.expect_err("too many").to_string();
    assert_eq!(
        error,
        "2 problems:\n  - circuits.capacity: 2: the state has 3 circuits; raise circuits.capacity \
         in the gateway's file and restart it\n  - limits.tenants: 1: the state has 2 tenants; \
         raise limits.tenants in the gateway's file and restart it"
    );
    let tighter = Bounds {
        circuits: 1,
        listen: vec![([192, 0, 2, 7], 443).into()],
        ..bounds()
    };
    assert_eq!(model.check(&tighter).len(), 2);
}

#[test]
fn most_objects_are_removed_only_if_that_is_intended() {
    let mut many = objects();
    for n in 10..30u8 {
        let keys = [n * 2, n * 2 + 1];
        let id = circuit_name(n.into());
        many.circuits.insert(id, circuit("acme", keys));
    }
    let mut model = applied(many);
    let update = snapshot(6, objects());
    assert_eq!(
        refusal(&model, &update),
        "it removes 20 of 22 circuits: if that is intended, write \"withdrawal\": \"intended\""
    );
    let text = serde_json::to_string(&update).expect("JSON");
    let text = text.replacen(
        "\"revision\":6",
        "\"revision\":6,\"withdrawal\":\"intended\"",
        1,
    );
    let update: Update = serde_json::from_str(&text).expect("a snapshot");
    let prepared = model.prepare(&update, &bounds()).expect("intended");
    drop(model.commit(prepared));
    assert_eq!(model.counts().circuits, 2);
}

#[test]
fn json_with_unknown_or_repeated_keys_is_refused() {
    for (text, wanted) in [
        ("{\"snapshot\":{\"revision\":1}}", ""),
        (
            "{\"snapshot\":{\"revision\":1,\"circuit\":{}}}",
            "unknown field",
        ),
        ("{\"snapshot\":{}}", "missing field `revision`"),
        ("{\"state\":{}}", "unknown variant"),
        (
            "{\"snapshot\":{\"revision\":1,\"objects\":{\"tenants\":{\"a\":{},\"a\":{}}}}}",
            "ID \"a\" is written twice",
        ),
        (
            "{\"snapshot\":{\"revision\":1,\"objects\":{\"tenants\":{\"a\":{\"rate\":1}}}}}",
            "unknown field",
        ),
    ] {
        let read = serde_json::from_str::<Update>(text);
        match wanted {
            "" => drop(read.expect("a snapshot")),
            wanted => {
                let error = read.expect_err(text).to_string();
                assert!(error.contains(wanted), "{error}");
            }
        }
    }
}

/// The work of a delta does not grow with the state.
#[test]
fn a_delta_of_one_circuit_checks_one_object() {
    let mut many = objects();
    for n in 10..90u8 {
        let keys = [n * 2, n * 2 + 1];
        let id = circuit_name(n.into());
        many.circuits.insert(id, circuit("acme", keys));
    }
    let model = applied(many);
    let put = Objects {
        circuits: [(circuit_name(200), circuit("acme", [254, 255]))].into(),
        ..Objects::default()
    };
    let update = delta(5, put, Ids::default());
    let prepared = model.prepare(&update, &bounds()).expect("good");
    assert_eq!(prepared.checked(), 1);
    let changes = prepared.changes();
    assert_eq!((changes.circuits.len(), changes.tenants.len()), (1, 0));
}

#[test]
fn pages_have_each_object_once() {
    let model = applied(objects());
    for limit in [1, 2, 3, 100] {
        let (mut all, mut after) = (Objects::default(), None);
        let mut pages = 0;
        loop {
            let page = model.page(after.as_deref(), limit, true).expect("a page");
            let objects = page.objects;
            let count = objects.tenants.len()
                + objects.backends.len()
                + objects.routes.len()
                + objects.circuits.len();
            assert!((1..=limit).contains(&count), "{count}");
            all.tenants.extend(objects.tenants);
            all.backends.extend(objects.backends);
            all.routes.extend(objects.routes);
            all.circuits.extend(objects.circuits);
            pages += 1;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(pages, 5usize.div_ceil(limit));
        assert_eq!(all, model.snapshot().objects);
    }
    assert!(model.page(Some("circuit:x"), 1, true).is_none());
    assert!(model.page(Some("fly:x"), 1, true).is_none());
    let page = model.page(None, 100, false).expect("a page");
    let keys = page.objects.circuits.values().map(|c| c.keys.len());
    assert_eq!(keys.sum::<usize>(), 0);
    assert!(!format!("{model:?}").contains(&key(2)));
}

/// An object of a random update: its kind, number, and three choices.
type Pick = (u8, u8, [u8; 3]);

fn put(objects: &mut Objects, (kind, n, [a, b, c]): Pick) {
    let tenant = format!("t{}", a % 4);
    match kind % 4 {
        0 => {
            let spec = TenantSpec {
                // One in four is wrong.
                connections: Some(i64::from(b % 4)),
                datagrams: (c % 3 > 0).then_some(i64::from(c)),
                ..TenantSpec::default()
            };
            objects.tenants.insert(format!("t{}", n % 4), spec);
        }
        1 => {
            let spec = BackendSpec {
                addresses: vec![format!("192.0.2.{}:6180", 1 + b % 8)],
                proxy: a % 2 == 0,
            };
            objects.backends.insert(format!("b{}", n % 3), spec);
        }
        2 => {
            let protocols = ["x", "y"].iter().take(usize::from(c % 3));
            let spec = RouteSpec {
                protocols: protocols.map(|p| (*p).to_owned()).collect(),
                ..route(
                    &format!("n{}.example", b % 4),
                    (a % 8 < 4).then_some(&*tenant),
                    &format!("b{}", c % 3),
                )
            };
            objects.routes.insert(format!("r{}", n % 5), spec);
        }
        _ => {
            let keys = [b % 24, c % 24];
            let id = circuit_name(u64::from(n % 6));
            objects.circuits.insert(id, circuit(&tenant, keys));
        }
    }
}

fn pick_removed(ids: &mut Ids, (kind, n, _): Pick) {
    match kind % 4 {
        0 => drop(ids.tenants.insert(format!("t{}", n % 4))),
        1 => drop(ids.backends.insert(format!("b{}", n % 3))),
        2 => drop(ids.routes.insert(format!("r{}", n % 5))),
        _ => drop(ids.circuits.insert(circuit_name(u64::from(n % 6)))),
    }
}

/// The objects after a delta; `None`: it removes what is not there, or puts it as well.
fn after(objects: &Objects, delta: &Delta) -> Option<Objects> {
    let mut out = objects.clone();
    let mut is_good = true;
    for id in &delta.remove.tenants {
        is_good &= out.tenants.remove(id).is_some() && !delta.put.tenants.contains_key(id);
    }
    for id in &delta.remove.backends {
        is_good &= out.backends.remove(id).is_some() && !delta.put.backends.contains_key(id);
    }
    for id in &delta.remove.routes {
        is_good &= out.routes.remove(id).is_some() && !delta.put.routes.contains_key(id);
    }
    for id in &delta.remove.circuits {
        is_good &= out.circuits.remove(id).is_some() && !delta.put.circuits.contains_key(id);
    }
    out.tenants.extend(delta.put.tenants.clone());
    out.backends.extend(delta.put.backends.clone());
    out.routes.extend(delta.put.routes.clone());
    out.circuits.extend(delta.put.circuits.clone());
    is_good.then_some(out)
}

/// A model of these objects that was made at once; `None`: they have a problem.
fn at_once(objects: &Objects, revision: u64) -> Option<Model> {
    let mut model = Model::default();
    let mut c = Checker::new();
    let prepared = model.prepare_file(&mut c, objects, &bounds());
    if !c.is_good() {
        return None;
    }
    drop(model.commit(prepared));
    (model.revision, model.source) = (revision, Source::Applied);
    Some(model)
}

fn pick() -> impl Strategy<Value = Pick> {
    (any::<u8>(), any::<u8>(), any::<[u8; 3]>())
}

proptest! {
    /// Updates in any order: the outcome is that of the same objects applied at once, and an update
    /// is refused exactly if those would be.
    #[test]
    fn a_sequence_of_updates_equals_one_state_applied_at_once(
        updates in vec((any::<bool>(), vec(pick(), 0..6), vec(pick(), 0..3)), 1..40),
    ) {
        let mut model = Model::default();
        let mut known = Objects::default();
        for (n, (is_whole, puts, removes)) in (1u64..).zip(updates) {
            let mut objects = if is_whole { known.clone() } else { Objects::default() };
            puts.into_iter().for_each(|one| put(&mut objects, one));
            let (update, wanted) = if is_whole {
                for (kind, n, _) in removes {
                    match kind % 2 {
                        0 => drop(objects.routes.remove(&format!("r{}", n % 5))),
                        _ => drop(objects.circuits.remove(&circuit_name(u64::from(n % 6)))),
                    }
                }
                (snapshot(n, objects.clone()), Some(objects))
            } else {
                let mut remove = Ids::default();
                removes.into_iter().for_each(|one| pick_removed(&mut remove, one));
                let delta = Delta {
                    base: model.revision(),
                    revision: n,
                    put: objects,
                    remove,
                    ..Delta::default()
                };
                let wanted = after(&known, &delta);
                (Update::Delta(delta), wanted)
            };
            let wanted = wanted.and_then(|objects| Some((at_once(&objects, n)?, objects)));
            let before = model.clone();
            match (model.prepare(&update, &bounds()), wanted) {
                (Ok(prepared), Some((fresh, objects))) => {
                    prop_assert_eq!(prepared.counts(), fresh.counts());
                    let (_, changes) = model.commit(prepared);
                    prop_assert_eq!(&model, &fresh);
                    known = objects;
                    // The changes lead from the one to the other.
                    let mut circuits = before.circuits.clone();
                    for (id, circuit) in changes.circuits {
                        prop_assert_ne!(circuits.get(&id), circuit.as_ref());
                        match circuit {
                            Some(circuit) => drop(circuits.insert(id, circuit)),
                            None => drop(circuits.remove(&id)),
                        }
                    }
                    prop_assert_eq!(circuits, model.circuits.clone());
                    // The same again changes nothing.
                    let again = model.prepare(&update, &bounds());
                    prop_assert!(again.expect("repeated").changes().is_empty());
                }
                (Err(_), None) => prop_assert_eq!(&model, &before),
                (found, wanted) => {
                    let wanted = wanted.map(|(_, objects)| objects);
                    prop_assert!(false, "{found:?} for {update:#?}, expected {wanted:#?}");
                }
            }
        }
    }

    #[test]
    fn any_text_as_an_id_is_refused_without_a_panic(text in ".{0,100}") {
        let mut objects = objects();
        objects.tenants.insert(text.clone(), TenantSpec::default());
        objects.routes.insert(text.clone(), route("x.example", None, "b"));
        objects.circuits.insert(text.clone(), circuit("acme", [90, 91]));
        prop_assume!(check::circuit_id(&text).is_none());
        let refused = refusal(&Model::default(), &snapshot(1, objects));
        prop_assert!(refused.contains("write 16 hexadecimal digits"), "{refused}");
    }
}
