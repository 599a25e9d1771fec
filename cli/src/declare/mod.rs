//! Objects declared in files: what differs from the director's, and the changes that make it equal.
//!
//! ```text
//!   files ─▶ plan: what differs ─▶ order: each change tried on a copy ─▶ apply: requests
//!                │                     │ refused: nothing is changed       │ refused: what is made
//!                └▶ diff               └ a change on the way, if needed    └ and what is not
//! ```
//!
//! A plan is made of what the director has at that time. Each change names the revision that the
//! plan has seen, so that a change by others in between is refused and not overwritten.

mod apply;
mod export;
mod order;

pub use apply::apply;
pub use export::{export, export_one};

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use control::{KINDS, KindInfo, Scope, audit::hex, spec_differences};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service::{errln, outln};
use sha2::{Digest as _, Sha256};

use crate::{
    Session,
    client::{Client, encoded},
    failure::{Exit, Failure},
    file::read,
    output,
    tenant::Choice,
};
use order::{Permission, order};

#[derive(Args)]
pub struct Source {
    /// File of objects, in JSON or (*.toml) TOML; `-` reads JSON from standard input.
    #[arg(long = "file", short, required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Delete objects of the files' owners that are not in the files. Networks and appliances,
    /// which their subscription removes, lose their settings.
    #[arg(long)]
    prune: bool,
    /// Take objects over from other owners. A file without an owner changes them, and they keep
    /// their owners.
    #[arg(long)]
    take_over: bool,
}

impl Source {
    /// These options as a shell reads them, each after a space.
    fn command_line(&self) -> String {
        let mut text = String::new();
        for file in &self.files {
            text += " -f ";
            text += &quoted(&file.to_string_lossy());
        }
        for (is_given, option) in [(self.prune, "--prune"), (self.take_over, "--take-over")] {
            if is_given {
                text.push(' ');
                text += option;
            }
        }
        text
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[derive(Args)]
pub struct Diff {
    #[command(flatten)]
    source: Source,
}

#[derive(Args)]
pub struct Apply {
    #[command(flatten)]
    source: Source,
    /// Apply only if the changes have this digest, which `diff` prints.
    #[arg(long, value_name = "DIGEST")]
    expect: Option<String>,
    /// Make changes that are refused because they harm others: take the last gateway from tenants,
    /// or delete a tenant with all its objects. Requires `--reason`.
    #[arg(long)]
    force: bool,
    /// Reason for the changes, which the audit records. Required of the provider for changes of
    /// tenants' networks, mappings, policies, rules and plans.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Args)]
pub struct Export {
    /// Print only objects of this kind; may be repeated.
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    #[command(flatten)]
    tenant: Choice,
    /// Print only objects of this owner.
    #[arg(long)]
    owner: Option<String>,
    /// Format of the file; with `--json`, JSON.
    #[arg(long, value_enum, default_value_t = Format::Toml)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    Json,
    Toml,
}

/// A file of objects.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Name of this set of objects. Other sets do not change its objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(default)]
    object: Vec<Declared>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    name: String,
    /// The set of objects that this one belongs to; that of the file unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(default = "nothing")]
    spec: Value,
}

fn nothing() -> Value {
    json!({})
}

/// Kind by its place in the list of kinds, tenant (empty for objects of the provider), and name.
type Key = (usize, String, String);

struct Wanted {
    spec: Value,
    owner: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Replace,
    Delete,
}

struct Action {
    step: Step,
    key: Key,
    /// The object as the plan has seen it; `null` if there was none.
    before: Value,
    /// The spec after the change; `null` for none.
    after: Value,
    owner: Option<String>,
}

impl Action {
    fn info(&self) -> &'static KindInfo {
        &KINDS[self.key.0]
    }

    fn revision(&self) -> Option<u64> {
        self.before["metadata"]["revision"].as_u64()
    }

    /// As an item of the answer to a dry run.
    fn difference(&self) -> Value {
        let change = match self.step {
            Step::Create => "created",
            Step::Replace => "changed",
            Step::Delete => "removed",
        };
        let mut fields = match self.step {
            Step::Delete => Vec::new(),
            Step::Create | Step::Replace => {
                let fields = spec_differences(&self.before["spec"], &self.after);
                let fields = fields.into_iter().map(|field| {
                    json!({ "field": field.field, "before": field.before, "after": field.after })
                });
                fields.collect()
            }
        };
        let owner = &self.before["metadata"]["owner"];
        let is_taken = self.owner.is_some() && self.owner.as_deref() != owner.as_str();
        if self.step == Step::Replace && is_taken {
            fields.push(json!({ "field": "owner", "before": owner, "after": self.owner }));
        }
        let tenant = Some(&self.key.1).filter(|tenant| !tenant.is_empty());
        json!({ "change": change, "kind": self.info().kind, "tenant": tenant,
            "name": self.key.2, "revision": self.revision(), "fields": fields })
    }
}

/// For people: `network acme/web-1`.
fn shown((place, tenant, name): &Key) -> String {
    let kind = KINDS[*place].kind;
    match tenant.is_empty() {
        true => format!("{kind} {name}"),
        false => format!("{kind} {tenant}/{name}"),
    }
}

/// Stands for a plan: its changes, and the revisions that they are made on.
fn digest(plan: &[Action]) -> String {
    let mut hash = Sha256::new();
    for action in plan {
        hash.update(action.difference().to_string());
        hash.update("\n");
    }
    hex(&hash.finalize()[..8])
}

/// The objects of the files, by key. Specs have the defaults that the director gives them.
fn declared(source: &Source) -> Result<(BTreeMap<Key, Wanted>, BTreeSet<String>), Failure> {
    let mut wanted = BTreeMap::new();
    let mut owners = BTreeSet::new();
    for path in &source.files {
        let shown = path.display();
        let file: File = serde_json::from_value(read(path)?)
            .map_err(|error| Failure::usage(format!("{shown}: {error}")))?;
        owners.extend(file.owner.clone());
        if source.prune && file.owner.is_none() {
            return Err(Failure::usage(format!(
                "{shown}: --prune deletes what its owner no longer declares: write owner = \"NAME\""
            )));
        }
        for object in file.object {
            let (name, of) = (&object.name, &object.kind);
            let wrong = |text: String| Failure::usage(format!("{shown}: {of} {name:?}: {text}"));
            let place = KINDS.iter().position(|info| info.kind == *of);
            let place = place.ok_or_else(|| {
                let kinds: Vec<_> = KINDS.iter().map(|info| info.kind).collect();
                wrong(format!(
                    "there is no such kind: write one of {}",
                    kinds.join(", ")
                ))
            })?;
            let info = &KINDS[place];
            let tenant = match (info.scope, &object.tenant) {
                (Scope::Provider, None) => String::new(),
                (Scope::Tenant, Some(tenant)) => tenant.clone(),
                (Scope::Provider, Some(_)) => {
                    return Err(wrong(
                        "it belongs to the provider: omit the tenant".to_owned(),
                    ));
                }
                (Scope::Tenant, None) => {
                    return Err(wrong("it belongs to a tenant: write tenant".to_owned()));
                }
            };
            let spec = info.normalize(object.spec.clone());
            let spec = spec.map_err(|error| wrong(format!("spec: {error}")))?;
            let key = (place, tenant, object.name.clone());
            let owner = object.owner.or_else(|| file.owner.clone());
            if wanted.insert(key, Wanted { spec, owner }).is_some() {
                return Err(wrong("it is there twice: declare it once".to_owned()));
            }
        }
    }
    Ok((wanted, owners))
}

/// The objects of a collection by name; none where the tenant does not exist.
fn collection(client: &Client, info: &KindInfo, tenant: &str) -> Result<Vec<Value>, Failure> {
    match client.list(&info.collection(&encoded(tenant))) {
        Err(failure) if failure.exit == Exit::Absent => Ok(Vec::new()),
        found => found,
    }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The differences, and all objects that the changes could depend on.
struct Plan {
    /// The changes, each after those of the kinds that it refers to; deletions come last.
    actions: Vec<Action>,
    there: BTreeMap<Key, Value>,
}

/// Kinds whose rules look at objects of their own tenant only.
const OF_TENANT_ALONE: [&str; 5] = ["network", "mapping", "policy", "rule", "plan"];

/// Reads the objects that the changes of these could depend on, as far as the user may.
fn load(
    client: &Client,
    source: &Source,
    wanted: &BTreeMap<Key, Wanted>,
) -> Result<BTreeMap<Key, Value>, Failure> {
    let mut collections: BTreeSet<(usize, String)> = wanted
        .keys()
        .map(|(place, tenant, _)| (*place, tenant.clone()))
        .collect();
    let is_alone = |place: &usize| OF_TENANT_ALONE.contains(&KINDS[*place].kind);
    let tenants: BTreeSet<_> = collections.iter().map(|(_, of)| of.clone()).collect();
    let only = !source.prune && collections.iter().all(|(place, _)| is_alone(place));
    let visible = all_collections(client, None)?;
    collections.extend(
        visible
            .into_iter()
            .filter(|(_, of)| !only || of.is_empty() || tenants.contains(of)),
    );
    let mut there = BTreeMap::new();
    for (place, tenant) in collections {
        for object in collection(client, &KINDS[place], &tenant)? {
            let key = (place, tenant.clone(), name_of(&object).to_owned());
            there.insert(key, object);
        }
    }
    Ok(there)
}

fn plan(client: &Client, source: &Source) -> Result<Plan, Failure> {
    let (mut wanted, owners) = declared(source)?;
    let there = load(client, source, &wanted)?;
    let (mut actions, mut deletions) = (Vec::new(), Vec::new());
    let mut subscriptions = Vec::new();
    for (key, object) in &there {
        let info = &KINDS[key.0];
        let owner = owner_of(object).map(ToOwned::to_owned);
        let is_ours = owner.as_ref().is_some_and(|owner| owners.contains(owner));
        if info.kind == "subscription" {
            let host = object["status"]["host"].as_str().unwrap_or_default();
            let is_kept = wanted.contains_key(key) || !is_ours;
            subscriptions.push((key.clone(), host.to_owned(), is_kept));
        }
        let Some(wanted) = wanted.remove(key) else {
            if source.prune && is_ours {
                deletions.extend(undeclared(info, key.clone(), object.clone(), owner));
            }
            continue;
        };
        let is_declared = is_as_declared(info, object, &wanted.spec);
        if is_declared && (wanted.owner.is_none() || wanted.owner == owner) {
            continue;
        }
        // Of an object that has its values, only the owner is changed.
        let after = match is_declared {
            true => object["spec"].clone(),
            false => changeable(info, wanted.spec),
        };
        let action = Action {
            step: Step::Replace,
            key: key.clone(),
            before: object.clone(),
            after,
            owner: wanted.owner,
        };
        refuse_other_owner(&action, source)?;
        actions.push(action);
    }
    // Networks and appliances are removed with their subscription.
    deletions.retain(|action| {
        let mut of_tenant = subscriptions
            .iter()
            .filter(|((_, tenant, _), ..)| *tenant == action.key.1);
        action.step == Step::Delete
            || match action.info().kind {
                "network" => {
                    let subscription = action.before["status"]["subscription"].as_str();
                    of_tenant
                        .any(|((.., name), _, is_kept)| *is_kept && Some(&**name) == subscription)
                }
                _ => of_tenant.any(|(_, host, is_kept)| *is_kept && *host == action.key.2),
            }
    });
    actions.extend(wanted.into_iter().map(|(key, wanted)| Action {
        step: Step::Create,
        key,
        before: Value::Null,
        after: wanted.spec,
        owner: wanted.owner,
    }));
    // Keys begin with the place of the kind: each comes after those that it refers to.
    actions.sort_by(|a, b| a.key.cmp(&b.key));
    deletions.sort_by(|a, b| b.key.cmp(&a.key));
    actions.append(&mut deletions);
    Ok(Plan { actions, there })
}

/// The part of a declared spec that can be changed: what only a new object takes is left out.
fn changeable(info: &KindInfo, mut spec: Value) -> Value {
    if info.kind == "subscription"
        && let Some(fields) = spec.as_object_mut()
    {
        fields.remove("allocation");
    }
    spec
}

fn owner_of(object: &Value) -> Option<&str> {
    object["metadata"]["owner"].as_str()
}

/// Refuses to change an object of another owner. A file that names no owner has none, so that all
/// owners are others.
fn refuse_other_owner(action: &Action, source: &Source) -> Result<(), Failure> {
    let Some(owner) = owner_of(&action.before) else {
        return Ok(());
    };
    let remedy = match &action.owner {
        _ if source.take_over => return Ok(()),
        Some(ours) if ours == owner => return Ok(()),
        Some(_) => "take it over with --take-over",
        None => "write that owner into the file, or change it all the same with --take-over",
    };
    let text = format!(
        "{} is declared by {owner:?}: change it there, or {remedy}",
        shown(&action.key)
    );
    Err(Failure::new(Exit::Refused, text))
}

/// The spec of an object that a subscription makes, as it makes it; `None` for other kinds.
fn made(info: &KindInfo) -> Option<Value> {
    let spec = match info.kind {
        "network" => json!({}),
        "appliance" => json!({ "uplink": { "method": "dhcp" } }),
        _ => return None,
    };
    info.normalize(spec).ok()
}

/// The change that makes an object as if it was not declared: its deletion, or for what a
/// subscription makes, the removal of its settings.
fn undeclared(info: &KindInfo, key: Key, object: Value, owner: Option<String>) -> Option<Action> {
    let (step, after) = match made(info) {
        Some(made) if object["spec"] == made => return None,
        Some(made) => (Step::Replace, made),
        None => (Step::Delete, Value::Null),
    };
    Some(Action {
        step,
        key,
        before: object,
        after,
        owner,
    })
}

/// Whether an object has the declared spec. An address that is not declared is any of its pool.
fn is_as_declared(info: &KindInfo, object: &Value, spec: &Value) -> bool {
    match info.kind {
        "address" => {
            let address = &spec["address"];
            object["spec"]["pool"] == spec["pool"]
                && (address.is_null() || *address == object["status"]["address"])
        }
        _ => object["spec"] == changeable(info, spec.clone()),
    }
}

/// The collections that the user may list, of one tenant or of all.
fn all_collections(
    client: &Client,
    only: Option<&str>,
) -> Result<BTreeSet<(usize, String)>, Failure> {
    let own = client.get("/v1/self", Vec::new())?["tenant"].clone();
    let tenants = client.list("/v1/tenants")?;
    let tenants = || {
        let names = tenants.iter().map(name_of);
        names.filter(|name| only.is_none_or(|only| only == *name))
    };
    let mut found = BTreeSet::new();
    for (place, info) in KINDS.iter().enumerate() {
        match info.scope {
            Scope::Tenant => found.extend(tenants().map(|name| (place, name.to_owned()))),
            Scope::Provider if own.is_null() || info.kind == "tenant" => {
                found.insert((place, String::new()));
            }
            Scope::Provider => {}
        }
    }
    Ok(found)
}

pub fn diff(session: &Session, given: &Diff) -> Result<Option<Exit>, Failure> {
    let plan = plan(session.client()?, &given.source)?;
    let differences: Vec<_> = plan.actions.iter().map(Action::difference).collect();
    let digest = digest(&plan.actions);
    match session.json {
        true => {
            outln!(
                "{}",
                json!({ "differences": differences, "digest": digest })
            );
        }
        false if differences.is_empty() => {
            outln!("no differences");
        }
        false => {
            output::differences(&differences).print();
            let options = given.source.command_line();
            outln!("\nmake exactly these changes: causeway apply{options} --expect {digest}");
        }
    }
    let permission = Permission {
        force: false,
        take_over: given.source.take_over,
    };
    if let Err(failure) = order(&plan, permission) {
        errln!("causeway: warning: {failure}");
    }
    Ok(Some(Exit::Different).filter(|_| !differences.is_empty()))
}
