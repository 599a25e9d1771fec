//! Updates of the appliance's desired state in any order, compared with a model that keeps the
//! objects as JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::OnceLock,
};

use appliance_user::config::{
    Config,
    desired::{Desired, Update},
};
use fuzzing::Input;
use serde_json::{Value, json};
use service::desired::{MAX_REVISION, Source};

/// Updates of one input at most.
const MAX_UPDATES: usize = 16;
/// Objects of one update at most.
const MAX_OBJECTS: usize = 16;
/// Objects of a kind; more than half of them go only on purpose.
const IDS: usize = 12;

const KINDS: [&str; 4] = ["tenants", "gateways", "peers", "networks"];

/// The machine's own part of the configuration.
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

/// Runs one input: updates as JSON, a line each, or choices of updates.
pub fn objects(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::default();
    if input.flag() {
        let lines = input.rest().split(|byte| *byte == b'\n');
        for line in lines.take(MAX_UPDATES) {
            if let Ok(update) = serde_json::from_slice::<Update>(line) {
                world.send(&update);
            }
        }
        return;
    }
    for _ in 0..MAX_UPDATES {
        if input.is_empty() {
            return;
        }
        world.step(&mut input);
    }
}

fn local() -> &'static Config {
    static LOCAL_CONFIG: OnceLock<Config> = OnceLock::new();
    LOCAL_CONFIG.get_or_init(|| Config::parse(LOCAL, Path::new("local.toml")).expect("good"))
}

/// Objects by kind and ID.
type Objects = BTreeMap<(usize, String), Value>;

/// An update as it is written.
#[derive(Clone, Debug)]
struct Written {
    /// `None`: a snapshot.
    base: Option<u64>,
    revision: u64,
    is_intended: bool,
    put: Objects,
    remove: BTreeSet<(usize, String)>,
}

impl Written {
    fn json(&self) -> Value {
        let mut put = json!({});
        for ((kind, id), object) in &self.put {
            put[KINDS[*kind]][id] = object.clone();
        }
        let mut remove = json!({});
        for (kind, id) in &self.remove {
            let ids = remove[KINDS[*kind]].take();
            let mut ids = ids.as_array().cloned().unwrap_or_default();
            ids.push(id.as_str().into());
            remove[KINDS[*kind]] = ids.into();
        }
        let withdrawal = match self.is_intended {
            true => "intended",
            false => "unintended",
        };
        let revision = self.revision;
        match self.base {
            None => json!({ "snapshot":
                { "revision": revision, "withdrawal": withdrawal, "objects": put } }),
            Some(base) => json!({ "delta": { "base": base, "revision": revision,
                "withdrawal": withdrawal, "put": put, "remove": remove } }),
        }
    }
}

/// A public key in base64.
fn key(n: u8) -> String {
    let [a, b] = [n % 26, n / 26].map(|digit| char::from(b'A' + digit));
    format!("{a}{b}EBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")
}

fn object(kind: usize, a: u8, b: u8) -> Value {
    match kind {
        0 if a % 4 == 3 => json!({ "public": [format!("203.0.113.{b}/32")] }),
        0 => json!({}),
        1 => json!({ "addresses": [format!("192.0.2.{}:6180", b), "gw.example.net:6180"] }),
        2 => json!({
            "public_key": key(b),
            "address": format!("203.0.113.{}:6180", b),
        }),
        _ => json!({
            "tenant": format!("o{}", usize::from(a) % IDS),
            "peer": format!("o{}", usize::from(b) % IDS),
            "vni": u32::from(a) + 1,
            "interface": "eth1",
            "vlan": format!("{}", u32::from(a) + 1),
            "prefixes": [format!("10.{a}.{b}.0/24")],
        }),
    }
}

/// The desired state, the same as JSON, and the updates so far.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub desired: Desired,
    objects: Objects,
    sent: Vec<Written>,
}

impl World {
    /// Sends an update that the input selects.
    pub(crate) fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.below(8);
        let written = match self.sent.len() {
            count @ 1.. if kind == 0 => self.sent[input.below(count)].clone(),
            _ => self.write(input, kind < 4),
        };
        let update: Update = serde_json::from_value(written.json()).expect("an update");
        let wanted = self.after(&written);
        let prepared = self.desired.prepare(&update);
        assert_eq!(prepared.is_ok(), wanted.is_some(), "{written:?}");
        self.sent.push(written);
        if self.send(&update) {
            self.objects = wanted.expect("accepted");
            self.compare();
        }
    }

    /// Sends an update; returns whether it is accepted. It changes nothing a second time.
    fn send(&mut self, update: &Update) -> bool {
        let Ok(new) = self.desired.prepare(update) else {
            return false;
        };
        if new.objects != self.desired.objects && local().with_objects(&new.objects).is_err() {
            return false;
        }
        assert!(self.desired.revision <= new.revision && new.revision <= MAX_REVISION);
        self.desired = new;
        let again = self.desired.prepare(update).expect("the same again");
        assert_eq!(again, self.desired);
        true
    }

    fn write(&self, input: &mut Input<'_>, is_whole: bool) -> Written {
        let present = self.desired.revision;
        let revision = match input.below(16) {
            0 => input.u64(),
            1 => present,
            2 => present.wrapping_sub(u64::from(input.u8())),
            _ => present.saturating_add(1),
        };
        let base = match input.below(16) {
            _ if is_whole => None,
            0 => Some(input.u64()),
            1 => Some(present.wrapping_sub(1)),
            _ => Some(present),
        };
        let is_intended = input.below(4) == 0;
        let mut put = Objects::new();
        if is_whole && input.below(4) > 0 {
            put.clone_from(&self.objects);
        }
        for _ in 0..input.below(MAX_OBJECTS) {
            let (kind, n) = (input.below(4), input.below(IDS));
            let [a, b] = input.array();
            put.insert((kind, format!("o{n}")), object(kind, a, b));
        }
        let mut remove = BTreeSet::new();
        for _ in 0..input.below(MAX_OBJECTS) {
            let gone = (input.below(4), format!("o{}", input.below(IDS)));
            put.remove(&gone);
            if !is_whole {
                remove.insert(gone);
            }
        }
        Written {
            base,
            revision,
            is_intended,
            put,
            remove,
        }
    }

    /// The objects after an update; `None`: it is refused, whatever the objects are.
    fn after(&self, update: &Written) -> Option<Objects> {
        let (applied, revision) = (self.desired.source == Source::Applied, update.revision);
        let is_again = applied && revision == self.desired.revision;
        let is_old = applied && revision < self.desired.revision;
        if is_old || revision > MAX_REVISION {
            return None;
        }
        let mut objects = self.objects.clone();
        match update.base {
            None if revision == 0 => return None,
            None => objects.clone_from(&update.put),
            Some(base) if revision <= base => return None,
            Some(_) if is_again => {
                objects.extend(update.put.clone());
                if update.remove.iter().any(|id| objects.contains_key(id)) {
                    return None;
                }
            }
            Some(base) => {
                if base != self.desired.revision {
                    return None;
                }
                for id in &update.remove {
                    objects.remove(id)?;
                }
                objects.extend(update.put.clone());
            }
        }
        if is_again {
            return (objects == self.objects).then_some(objects);
        }
        let count = |objects: &Objects, kind| objects.keys().filter(|(k, _)| *k == kind).count();
        let is_mistake = |kind| {
            let present = count(&self.objects, kind);
            let gone = self.objects.keys().filter(|id| !objects.contains_key(*id));
            let gone = gone.filter(|(k, _)| *k == kind).count();
            present >= 10 && gone * 2 > present
        };
        let is_refused = !update.is_intended && (0..KINDS.len()).any(is_mistake);
        (!is_refused).then_some(objects)
    }

    /// The state has the objects of the model, and is read again as it is written.
    fn compare(&self) {
        let counts = self.desired.objects.counts();
        let counts = [
            counts.tenants,
            counts.gateways,
            counts.peers,
            counts.networks,
        ];
        for (kind, found) in counts.into_iter().enumerate() {
            let wanted = self.objects.keys().filter(|(k, _)| *k == kind).count();
            assert_eq!(found, wanted, "{}", KINDS[kind]);
        }
        let json = serde_json::to_value(&self.desired).expect("JSON");
        for ((kind, id), object) in &self.objects {
            let found = &json["objects"][KINDS[*kind]][id];
            for (key, value) in object.as_object().expect("an object") {
                assert_eq!(found.get(key), Some(value), "{id}: {key}");
            }
        }
        let again: Desired = serde_json::from_value(json).expect("a state");
        assert_eq!(again, self.desired);
    }
}
