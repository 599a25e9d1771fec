//! The desired state of an appliance: tenants, peers, networks and gateways by ID. What belongs to
//! the machine (uplink, interfaces, keys, workers, NAT tables) is [`Local`] and stays in the file.
//!
//! ```text
//!   file ─┬─ machine ─▶ Local ───────────────┐
//!         └─ objects, if it has any ─┐       ├─▶ check: one for files and for updates ─▶ Config
//!   snapshot, delta ─▶ Desired::prepare ─────┘
//! ```
//!
//! An object has the keys of its section in the file; its ID is the `name`. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use service::{
    config::{Checker, Problem},
    desired::{Position, Source, UpdateRefusal, unique},
};

use super::{Config, KeyText, check, file};

/// The objects, by ID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objects {
    #[serde(default, deserialize_with = "unique")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<String, file::Tenant>,
    #[serde(default, deserialize_with = "unique")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub gateways: BTreeMap<String, file::Gateway>,
    #[serde(default, deserialize_with = "unique")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<String, file::Peer>,
    #[serde(default, deserialize_with = "unique")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, file::Network>,
}

/// IDs of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tenants: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gateways: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub peers: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub networks: BTreeSet<String>,
}

/// A whole state.
pub type Snapshot = service::desired::Snapshot<Objects>;
/// A difference between two states.
pub type Delta = service::desired::Delta<Objects, Ids>;
/// Either of both, as it is sent.
pub type Update = service::desired::Update<Objects, Ids>;

/// Numbers of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub tenants: usize,
    pub gateways: usize,
    pub peers: usize,
    pub networks: usize,
}

/// The effect of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Revision in force.
    pub revision: u64,
    /// Objects that were added or replaced by others; equal ones are not counted.
    pub put: Counts,
    pub removed: Counts,
}

/// The state that was put in force last: as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    pub source: Source,
    /// 0: from a file.
    pub revision: u64,
    pub objects: Objects,
}

/// The part of a file that belongs to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local(Arc<file::File>);

/// The kind of an object, with its section in the file.
trait Object: Clone + PartialEq {
    /// Name of the section.
    const KIND: &'static str;
    fn name(&mut self) -> &mut String;
}

macro_rules! objects {
    ($($kind:literal $type:ident;)*) => {
        $(impl Object for file::$type {
            const KIND: &'static str = $kind;
            fn name(&mut self) -> &mut String {
                &mut self.name
            }
        })*
    };
}

objects! {
    "tenant" Tenant;
    "gateway" Gateway;
    "peer" Peer;
    "network" Network;
}

/// Objects of a section as objects by ID. A file with an ID twice is refused by its check.
fn by_id<T: Object>(all: &[T]) -> BTreeMap<String, T> {
    let object = |object: &T| {
        let mut object = object.clone();
        (std::mem::take(object.name()), object)
    };
    all.iter().map(object).collect()
}

/// Objects by ID as a section.
fn section<T: Object>(all: &BTreeMap<String, T>) -> Vec<T> {
    let object = |(id, object): (&String, &T)| {
        let mut object = object.clone();
        object.name().clone_from(id);
        object
    };
    all.iter().map(object).collect()
}

/// Puts and removes objects of a kind.
fn change<T: Object>(
    c: &mut Checker,
    all: &mut BTreeMap<String, T>,
    put: &BTreeMap<String, T>,
    remove: &BTreeSet<String>,
) {
    for id in remove {
        let at = || format!("{} {id:?}", T::KIND);
        if put.contains_key(id) {
            c.problem(
                at(),
                "is put and removed by the same delta; write one of both",
            );
        }
        if all.remove(id).is_none() {
            c.problem(at(), "is to be removed and does not exist");
        }
    }
    let put = put.iter().map(|(id, object)| (id.clone(), object.clone()));
    all.extend(put);
}

/// Refuses objects that have a name besides their ID.
fn check_names<T: Object>(c: &mut Checker, all: &BTreeMap<String, T>) {
    for (id, object) in all {
        if !object.clone().name().is_empty() {
            let at = format!("{} {id:?}: name", T::KIND);
            c.problem(at, "the ID is the name: leave the key out");
        }
    }
}

/// Numbers of objects that `new` adds or replaces, and removes.
fn difference<T: Object>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> (usize, usize) {
    let put = new
        .iter()
        .filter(|(id, object)| old.get(*id) != Some(*object));
    let removed = old.keys().filter(|id| !new.contains_key(*id));
    (put.count(), removed.count())
}

impl Objects {
    /// The objects of a file.
    pub(super) fn of(file: &file::File) -> Self {
        Self {
            tenants: by_id(&file.tenant),
            gateways: by_id(&file.gateway),
            peers: by_id(&file.peer),
            networks: by_id(&file.network),
        }
    }

    /// Numbers of objects.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            tenants: self.tenants.len(),
            gateways: self.gateways.len(),
            peers: self.peers.len(),
            networks: self.networks.len(),
        }
    }

    fn with(&self, c: &mut Checker, put: &Self, remove: &Ids) -> Self {
        let mut new = self.clone();
        change(c, &mut new.tenants, &put.tenants, &remove.tenants);
        change(c, &mut new.gateways, &put.gateways, &remove.gateways);
        change(c, &mut new.peers, &put.peers, &remove.peers);
        change(c, &mut new.networks, &put.networks, &remove.networks);
        new
    }

    fn check_names(&self, c: &mut Checker) {
        check_names(c, &self.tenants);
        check_names(c, &self.gateways);
        check_names(c, &self.peers);
        check_names(c, &self.networks);
    }

    /// The effect of replacing these objects by `new`.
    #[must_use]
    pub fn replaced_by(&self, new: &Self) -> (Counts, Counts) {
        let tenants = difference(&self.tenants, &new.tenants);
        let gateways = difference(&self.gateways, &new.gateways);
        let peers = difference(&self.peers, &new.peers);
        let networks = difference(&self.networks, &new.networks);
        let counts = |of: fn((usize, usize)) -> usize| Counts {
            tenants: of(tenants),
            gateways: of(gateways),
            peers: of(peers),
            networks: of(networks),
        };
        (counts(|(put, _)| put), counts(|(_, removed)| removed))
    }

    /// Hides the keys that updates brought.
    pub fn hide_keys(&mut self) {
        for peer in self.peers.values_mut() {
            let circuit = peer.circuit.as_mut().and_then(|c| c.key.as_mut());
            let keys = [peer.preshared_key.as_mut(), circuit];
            keys.into_iter().flatten().for_each(KeyText::hide);
        }
    }

    /// Whether the objects are as after the delta, as far as that tells.
    fn is_applied(&self, delta: &Delta) -> bool {
        let mut c = Checker::new();
        let same = self.with(&mut c, &delta.put, &Ids::default()) == *self;
        let remove = &delta.remove;
        same && !remove
            .tenants
            .iter()
            .any(|id| self.tenants.contains_key(id))
            && !remove
                .gateways
                .iter()
                .any(|id| self.gateways.contains_key(id))
            && !remove.peers.iter().any(|id| self.peers.contains_key(id))
            && !remove
                .networks
                .iter()
                .any(|id| self.networks.contains_key(id))
    }
}

impl Desired {
    /// The state after an update; the objects are not checked yet against the machine and each
    /// other: see [`Config::with_objects`].
    ///
    /// # Errors
    /// The refusal.
    pub fn prepare(&self, update: &Update) -> Result<Self, UpdateRefusal> {
        update.check_revision()?;
        let position = Position {
            source: self.source,
            revision: self.revision,
        };
        let mut c = Checker::new();
        let (objects, withdrawal) = match update {
            Update::Snapshot(snapshot) => {
                position.check_snapshot(snapshot.revision)?;
                let objects = &snapshot.objects;
                if position.is_in_force(snapshot.revision) && *objects != self.objects {
                    let revision = snapshot.revision;
                    return Err(UpdateRefusal::Differs { revision });
                }
                (objects.clone(), snapshot.withdrawal)
            }
            Update::Delta(delta) => {
                let revision = delta.revision;
                if !position.check_delta(delta.base, revision)? {
                    return match self.objects.is_applied(delta) {
                        true => Ok(self.clone()),
                        false => Err(UpdateRefusal::Differs { revision }),
                    };
                }
                let objects = self.objects.with(&mut c, &delta.put, &delta.remove);
                (objects, delta.withdrawal)
            }
        };
        objects.check_names(&mut c);
        let objects = c.finish(objects).map_err(UpdateRefusal::Invalid)?;
        let (_, removed) = self.objects.replaced_by(&objects);
        let present = self.objects.counts();
        let kinds = [
            ("tenants", removed.tenants, present.tenants),
            ("gateways", removed.gateways, present.gateways),
            ("peers", removed.peers, present.peers),
            ("networks", removed.networks, present.networks),
        ];
        position.check_withdrawal(withdrawal, kinds)?;
        Ok(Self {
            source: Source::Applied,
            revision: update.revision(),
            objects,
        })
    }
}

impl Local {
    /// Takes the machine's part out of a file.
    pub(super) fn of(mut file: file::File) -> Self {
        file.tenant.clear();
        file.gateway.clear();
        file.peer.clear();
        file.network.clear();
        Self(Arc::new(file))
    }
}

impl Desired {
    /// The objects of a configuration file.
    #[must_use]
    pub fn of_file(config: &Config) -> Self {
        Self {
            source: Source::File,
            revision: 0,
            objects: (*config.objects).clone(),
        }
    }
}

impl Config {
    /// The same machine with other objects.
    ///
    /// # Errors
    /// Every problem of the objects, with the machine and with each other.
    pub fn with_objects(&self, objects: &Objects) -> Result<Self, Vec<Problem>> {
        let mut file = (*self.local.0).clone();
        file.tenant = section(&objects.tenants);
        file.gateway = section(&objects.gateways);
        file.peer = section(&objects.peers);
        file.network = section(&objects.networks);
        check::check_as(file, Source::Applied)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use appliance_common::limits::{MAX_NETWORKS, MAX_PEERS, MAX_TENANTS};

    use super::*;

    const LOCAL: &str = r#"
[appliance]
name = "edge"
role = "tenant"
[uplink]
interface = "eth0"
[tunnel]
private_key_file = "/etc/causeway/tunnel.key"
[[interface]]
name = "eth1"
xdp = "generic"
"#;
    const OBJECTS: &str = r#"
[[tenant]]
name = "acme"
[[peer]]
name = "provider"
public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
address = "203.0.113.5:6180"
[[network]]
name = "net1"
tenant = "acme"
peer = "provider"
vni = 1001
interface = "eth1"
prefixes = ["10.1.0.0/24"]
"#;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("t.toml")).unwrap_or_else(|e| panic!("{e}"))
    }

    fn update(text: &str) -> Update {
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The objects of [`OBJECTS`] as revision 7.
    fn seventh() -> Desired {
        let config = parse(&format!("{LOCAL}{OBJECTS}"));
        let snapshot = Update::Snapshot(Snapshot {
            revision: 7,
            objects: (*config.objects).clone(),
            ..Snapshot::default()
        });
        Desired::default().prepare(&snapshot).expect("good")
    }

    #[test]
    fn a_file_and_an_update_with_the_same_objects_are_one_configuration() {
        let whole = parse(&format!("{LOCAL}{OBJECTS}"));
        assert_eq!(whole.source, Source::File);
        let local = parse(LOCAL);
        assert_eq!(local.source, Source::None);
        assert!(local.networks.is_empty());
        let mut applied = local.with_objects(&whole.objects).expect("good");
        assert_eq!(applied.source, Source::Applied);
        assert_eq!(applied.networks, whole.networks);
        applied.source = Source::File;
        assert_eq!(applied, whole);
        // On the wire and in the store, an object has its ID once.
        let json = serde_json::to_value(&*whole.objects).expect("serializable");
        assert_eq!(json["tenants"]["acme"].get("name"), None);
        assert_eq!(json["networks"]["net1"]["vni"], 1001);
        let read: Objects = serde_json::from_value(json).expect("readable");
        assert_eq!(read, *whole.objects);
    }

    #[test]
    fn problems_of_an_update_are_those_of_a_file() {
        let local = parse(LOCAL);
        let mut objects = seventh().objects;
        objects.tenants.clear();
        let problems = local.with_objects(&objects).expect_err("no tenant");
        let text = problems[0].to_string();
        assert_eq!(
            text,
            "network \"net1\": tenant: there is no [[tenant]] named \"acme\""
        );
        let error = Config::parse(
            &format!("{LOCAL}[[tenant]]\nname = \"a\"\n"),
            Path::new("t"),
        );
        let error = error.expect_err("eth1 has no network").to_string();
        assert!(error.contains("no network names it"), "{error}");
    }

    #[test]
    fn a_delta_changes_its_objects_only() {
        let old = seventh();
        let delta = r#"{"delta":{"base":7,"revision":8,
            "put":{"tenants":{"globex":{"public":["203.0.113.16/28"]}}},
            "remove":{"networks":["net1"]}}}"#;
        let new = old.prepare(&update(delta)).expect("good");
        assert_eq!((new.revision, new.source), (8, Source::Applied));
        let (put, removed) = old.objects.replaced_by(&new.objects);
        assert_eq!((put.tenants, put.networks), (1, 0));
        assert_eq!((removed.tenants, removed.networks), (0, 1));
        assert_eq!(new.objects.peers, old.objects.peers);
        // The same delta again changes nothing; another one of its revision is refused.
        assert_eq!(new.prepare(&update(delta)).expect("the same"), new);
        let other = delta.replace("203.0.113.16/28", "203.0.113.32/28");
        let error = new.prepare(&update(&other)).expect_err("differs");
        assert_eq!(error, UpdateRefusal::Differs { revision: 8 });
        let error = new
            .prepare(&update(&delta.replace(":8", ":9")))
            .expect_err("base");
        let base = UpdateRefusal::Base {
            base: 7,
            applied: 8,
        };
        assert_eq!(error, base);
    }

    #[test]
    fn a_snapshot_is_applied_once_and_never_an_older_one() {
        let old = seventh();
        let same = Update::Snapshot(Snapshot {
            revision: 7,
            objects: old.objects.clone(),
            ..Snapshot::default()
        });
        assert_eq!(old.prepare(&same).expect("the same"), old);
        let empty = |revision| update(&format!("{{\"snapshot\":{{\"revision\":{revision}}}}}"));
        assert_eq!(
            old.prepare(&empty(7)).expect_err("differs"),
            UpdateRefusal::Differs { revision: 7 }
        );
        let error = old.prepare(&empty(6)).expect_err("older").to_string();
        let begin = "revision 6 is older than revision 7, which is in force: use a higher";
        assert!(error.starts_with(begin), "{error}");
        let revision = u64::MAX;
        assert_eq!(
            old.prepare(&empty(revision)).expect_err("too high"),
            UpdateRefusal::High { revision }
        );
        let none = old.prepare(&empty(8)).expect("few objects");
        assert_eq!(none.objects, Objects::default());
    }

    #[test]
    fn wrong_updates_are_refused_with_every_problem() {
        let old = seventh();
        let error = old.prepare(&update(
            r#"{"delta":{"base":7,"revision":8,
                "put":{"tenants":{"acme":{"name":"acme"}},"peers":{"provider":{}}},
                "remove":{"networks":["net9"],"peers":["provider"]}}}"#,
        ));
        let error = error.expect_err("wrong").to_string();
        for problem in [
            "3 problems",
            "peer \"provider\": is put and removed by the same delta; write one of both",
            "network \"net9\": is to be removed and does not exist",
            "tenant \"acme\": name: the ID is the name: leave the key out",
        ] {
            assert!(error.contains(problem), "{error}");
        }
        let unknown = r#"{"snapshot":{"revision":8,"objects":{"tenants":{"a":{"publik":[]}}}}}"#;
        let error = serde_json::from_str::<Update>(unknown).expect_err("unknown");
        assert!(
            error.to_string().contains("unknown field `publik`"),
            "{error}"
        );
    }

    /// As many tenants, peers and networks as an appliance has room for.
    #[test]
    fn one_more_network_beside_as_many_as_fit_is_checked_fast() {
        let local = parse(LOCAL);
        let mut objects = Objects::default();
        let network = |n: u32| file::Network {
            name: String::new(),
            tenant: format!("t{}", n % MAX_TENANTS),
            peer: format!("p{}", n % (MAX_PEERS - 1)),
            vni: i64::from(n) + 1,
            interface: "eth1".to_owned(),
            vlan: Some(format!("{}.{}", n / 2000 + 1, n % 2000 + 1)),
            prefixes: vec![format!("10.{}.{}.0/24", n / 256, n % 256)],
            ..seventh().objects.networks["net1"].clone()
        };
        for n in 0..MAX_TENANTS {
            objects
                .tenants
                .insert(format!("t{n}"), file::Tenant::default());
        }
        for n in 0..MAX_PEERS - 1 {
            let mut key = [1; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            let mut peer = seventh().objects.peers["provider"].clone();
            peer.public_key = Some(tunnel::PublicKey::from_bytes(key).to_string());
            peer.address = Some(format!("198.51.{}.{}:6180", n / 250, n % 250 + 1));
            objects.peers.insert(format!("p{n}"), peer);
        }
        for n in 0..MAX_NETWORKS - 1 {
            objects.networks.insert(format!("n{n}"), network(n));
        }
        let begun = std::time::Instant::now();
        let snapshot = Update::Snapshot(Snapshot {
            revision: 1,
            objects,
            ..Snapshot::default()
        });
        let first = Desired::default().prepare(&snapshot).expect("good");
        let config = local.with_objects(&first.objects);
        let config = config.unwrap_or_else(|problems| panic!("{}", problems[0]));
        let whole = begun.elapsed();
        let delta = Update::Delta(Delta {
            base: 1,
            revision: 2,
            put: Objects {
                networks: [("one".to_owned(), network(MAX_NETWORKS - 1))].into(),
                ..Objects::default()
            },
            ..Delta::default()
        });
        let begun = std::time::Instant::now();
        let second = first.prepare(&delta).expect("good");
        let config = config.with_objects(&second.objects).expect("good");
        let one = begun.elapsed();
        println!(
            "{} networks: whole {whole:?}, one more {one:?}",
            config.networks.len()
        );
        assert!(whole < std::time::Duration::from_secs(4), "{whole:?}");
    }

    #[test]
    fn most_gateways_go_only_on_purpose() {
        let mut old = seventh();
        for n in 1..=10 {
            let gateway = file::Gateway {
                name: String::new(),
                addresses: vec![format!("192.0.2.{n}:6180")],
                ..file::Gateway::default()
            };
            old.objects.gateways.insert(format!("gw{n}"), gateway);
        }
        let mut snapshot = Snapshot {
            revision: 8,
            objects: old.objects.clone(),
            ..Snapshot::default()
        };
        snapshot.objects.gateways.retain(|name, _| name == "gw1");
        let error = old.prepare(&Update::Snapshot(snapshot.clone()));
        let error = error.expect_err("a mistake").to_string();
        assert!(error.starts_with("it removes 9 of 10 gateways"), "{error}");
        snapshot.withdrawal = service::desired::Withdrawal::Intended;
        old.prepare(&Update::Snapshot(snapshot)).expect("intended");
    }

    #[test]
    fn keys_of_an_update_are_shown_in_no_message() {
        const KEY: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
        let local = parse(LOCAL);
        let put = |circuit: &str, psk: &str| {
            let text = format!(
                "{{\"delta\":{{\"base\":7,\"revision\":8,\"put\":{{\"peers\":{{\"provider\":{{\
                 \"public_key\":\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\",\
                 \"circuit\":{{\"id\":\"3f9a1c0277d1e05b\",{circuit}}}{psk}}}}},\
                 \"gateways\":{{\"gw1\":{{\"addresses\":[\"192.0.2.1:6180\"]}}}}}}}}}}"
            );
            update(&text)
        };
        let good = put(
            &format!("\"key\":\"{KEY}\""),
            &format!(",\"preshared_key\":\"{KEY}\""),
        );
        assert!(!format!("{good:?}").contains("AQIDBAUG"));
        let new = seventh().prepare(&good).expect("good");
        let config = local.with_objects(&new.objects).expect("good");
        assert!(!format!("{config:?}{new:?}").contains("AQIDBAUG"));
        let stored = serde_json::to_string(&new).expect("JSON");
        assert_eq!(stored.matches(KEY).count(), 2, "the state has them");
        let mut shown = new.clone();
        shown.objects.hide_keys();
        let text = serde_json::to_string(&shown).expect("JSON");
        assert!(!text.contains("AQIDBAUG"), "{text}");
        let refused = |update: &Update| {
            let new = seventh().prepare(update).expect("good so far");
            let problems = local.with_objects(&new.objects).expect_err("refused");
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            lines.join("\n")
        };
        // A shown state cannot be applied by mistake.
        let hidden = local.with_objects(&shown.objects).expect_err("no keys");
        assert!(
            hidden[0].to_string().contains("desired --keys"),
            "{hidden:?}"
        );
        for (update, problem) in [
            (
                put("\"key\":\"AQIDBAUG\"", ""),
                "circuit.key: is not 32 bytes in base64",
            ),
            (put("\"key_file\":\"relative\"", ""), "circuit.key_file"),
            (
                put(&format!("\"key\":\"{KEY}\",\"key_file\":\"/k\""), ""),
                "circuit.key: write it or key_file, not both",
            ),
        ] {
            let error = refused(&update);
            assert!(error.contains(problem), "{error}");
            assert!(!error.contains("AQIDBAUG"), "{error}");
        }
        // The file of the machine names files.
        let file = format!("{LOCAL}{OBJECTS}").replace(
            "address = \"203.0.113.5:6180\"",
            &format!("address = \"203.0.113.5:6180\"\npreshared_key = \"{KEY}\""),
        );
        let error = Config::parse(&file, Path::new("t"))
            .expect_err("a key")
            .to_string();
        assert!(
            error.contains("preshared_key: belongs to updates"),
            "{error}"
        );
        assert!(!error.contains("AQIDBAUG"), "{error}");
    }

    #[test]
    fn most_networks_go_only_on_purpose() {
        let mut old = seventh();
        let network = old.objects.networks["net1"].clone();
        for n in 2..=10 {
            old.objects
                .networks
                .insert(format!("net{n}"), network.clone());
        }
        let ids: Vec<String> = (1..=6).map(|n| format!("\"net{n}\"")).collect();
        let delta = |withdrawal: &str| {
            update(&format!(
                "{{\"delta\":{{\"base\":7,\"revision\":8{withdrawal},\
                 \"remove\":{{\"networks\":[{}]}}}}}}",
                ids.join(",")
            ))
        };
        let error = old.prepare(&delta("")).expect_err("a mistake").to_string();
        assert!(error.starts_with("it removes 6 of 10 networks"), "{error}");
        let new = old
            .prepare(&delta(",\"withdrawal\":\"intended\""))
            .expect("intended");
        assert_eq!(new.objects.networks.len(), 4);
    }
}
