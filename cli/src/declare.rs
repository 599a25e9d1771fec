//! Objects declared in files: what differs from the director's, and the changes that make it equal.
//!
//! A plan is made of what the director has at that time. Each change names the revision that the
//! plan has seen, so that a change by others in between is refused and not overwritten.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use control::{KINDS, KindInfo, Scope, audit::hex, kind, spec_differences};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service::{errln, outln};
use sha2::{Digest as _, Sha256};

use crate::{
    Session,
    client::{Call, Client, encoded},
    failure::{Exit, Failure},
    objects::read,
    output,
};

#[derive(Args)]
pub struct Source {
    /// File of objects, in JSON or (*.toml) TOML; `-` reads JSON from standard input.
    #[arg(long = "file", short, required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Delete objects of the files' owner that are not in the files. Networks and appliances, which
    /// their subscription removes, lose their settings.
    #[arg(long)]
    prune: bool,
    /// Take objects from other owners; a file without an owner changes them.
    #[arg(long)]
    take_over: bool,
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
    /// Begin only if the changes are those that `diff` has shown with this digest.
    #[arg(long, value_name = "DIGEST")]
    expect: Option<String>,
    /// Do what would be refused for the sake of others; needs `--reason`.
    #[arg(long)]
    force: bool,
    /// The reason, for the audit.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Args)]
pub struct Export {
    /// Only objects of these kinds.
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Only this tenant and its objects.
    #[arg(long, short)]
    tenant: Option<String>,
    /// Only objects of this owner.
    #[arg(long)]
    owner: Option<String>,
    #[arg(long, value_enum, default_value_t = Format::Toml)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
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

    fn collection(&self) -> String {
        self.info().collection(&encoded(&self.key.1))
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), encoded(&self.key.2))
    }

    fn shown(&self) -> String {
        let (_, tenant, name) = &self.key;
        match tenant.is_empty() {
            true => format!("{} {name}", self.info().kind),
            false => format!("{} {tenant}/{name}", self.info().kind),
        }
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
            let owner = file.owner.clone();
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

fn plan(client: &Client, source: &Source) -> Result<Vec<Action>, Failure> {
    let (mut wanted, owners) = declared(source)?;
    let mut collections: BTreeSet<(usize, String)> = wanted
        .keys()
        .map(|(place, tenant, _)| (*place, tenant.clone()))
        .collect();
    if source.prune {
        collections.extend(all_collections(client, None)?);
    }
    let (mut actions, mut deletions) = (Vec::new(), Vec::new());
    let mut subscriptions = Vec::new();
    for (place, tenant) in collections {
        let info = &KINDS[place];
        for object in collection(client, info, &tenant)? {
            let key = (place, tenant.clone(), name_of(&object).to_owned());
            let owner = owner_of(&object).map(ToOwned::to_owned);
            if info.kind == "subscription" {
                let host = object["status"]["host"].as_str().unwrap_or_default();
                let is_kept = wanted.contains_key(&key)
                    || owner.as_ref().is_none_or(|owner| !owners.contains(owner));
                subscriptions.push((key.clone(), host.to_owned(), is_kept));
            }
            let Some(wanted) = wanted.remove(&key) else {
                let is_ours = owner.as_ref().is_some_and(|owner| owners.contains(owner));
                if source.prune && is_ours {
                    deletions.extend(undeclared(info, key, object, owner));
                }
                continue;
            };
            let is_declared = is_as_declared(info, &object, &wanted.spec);
            if is_declared && (wanted.owner.is_none() || wanted.owner == owner) {
                continue;
            }
            // Of an object that has its values, only the owner is changed.
            let after = match is_declared {
                true => object["spec"].clone(),
                false => wanted.spec,
            };
            let action = Action {
                step: Step::Replace,
                key,
                before: object,
                after,
                owner: wanted.owner,
            };
            refuse_other_owner(&action, source)?;
            actions.push(action);
        }
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
    Ok(actions)
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
        action.shown()
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
        _ => object["spec"] == *spec,
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
    let differences: Vec<_> = plan.iter().map(Action::difference).collect();
    let digest = digest(&plan);
    match session.json {
        true => {
            outln!(
                "{}",
                json!({ "differences": differences, "digest": digest })
            );
        }
        false if plan.is_empty() => {
            outln!("no differences");
        }
        false => {
            output::differences(&differences).print();
            outln!("\nmake exactly these changes: causeway apply --expect {digest}");
        }
    }
    Ok(Some(Exit::Different).filter(|_| !plan.is_empty()))
}

pub fn apply(session: &Session, given: &Apply) -> Result<(), Failure> {
    if given.force && given.reason.is_none() {
        return Err(Failure::force_without_reason());
    }
    let client = session.client()?;
    let plan = plan(client, &given.source)?;
    if let Some(expected) = &given.expect {
        let digest = digest(&plan);
        if digest != *expected {
            let text = format!(
                "the changes have the digest {digest} by now, not {expected}: look at `causeway \
                 diff` again"
            );
            return Err(Failure::new(Exit::Moved, text));
        }
    }
    let count = plan.len();
    for (done, mut action) in plan.into_iter().enumerate() {
        let result = match action.step {
            // A subscription or a larger hardware plan has made it by now.
            Step::Create if made(action.info()).is_some() => {
                let is_to_do = adopt(client, given, &mut action);
                is_to_do.and_then(|is_to_do| match is_to_do {
                    true => execute(client, given, &action),
                    false => Ok(Vec::new()),
                })
            }
            _ => execute(client, given, &action),
        };
        let warnings = result.map_err(|mut failure| {
            failure.text = format!(
                "{}: {} ({done} of {count} changes are made; correct the file and apply it again)",
                action.shown(),
                failure.text
            );
            failure
        })?;
        let verb = match action.step {
            Step::Create => "created",
            Step::Replace => "changed",
            Step::Delete => "deleted",
        };
        match session.json {
            true => outln!("{}", action.difference()),
            false => outln!("{verb} {}", action.shown()),
        };
        for warning in warnings {
            errln!("causeway: warning: {warning}");
        }
    }
    if !session.json {
        outln!("{count} changes");
    }
    Ok(())
}

/// Looks whether an object that was to be created is there by now, as part of another one. False if
/// it is as declared.
fn adopt(client: &Client, given: &Apply, action: &mut Action) -> Result<bool, Failure> {
    match client.get(&action.path(), Vec::new()) {
        Ok(object) => {
            let is_done = object["spec"] == action.after
                && (action.owner.is_none() || action.owner.as_deref() == owner_of(&object));
            action.step = Step::Replace;
            action.before = object;
            if !is_done {
                refuse_other_owner(action, &given.source)?;
            }
            Ok(!is_done)
        }
        Err(failure) if failure.exit == Exit::Absent => Ok(true),
        Err(failure) => Err(failure),
    }
}

fn execute(client: &Client, given: &Apply, action: &Action) -> Result<Vec<String>, Failure> {
    let (method, path, mut body) = match action.step {
        Step::Create => {
            let body = json!({ "name": action.key.2, "spec": action.after });
            (Method::POST, action.collection(), Some(body))
        }
        Step::Replace => {
            let body = json!({ "spec": action.after });
            (Method::PUT, action.path(), Some(body))
        }
        Step::Delete => (Method::DELETE, action.path(), None),
    };
    if let (Some(body), Some(owner)) = (&mut body, &action.owner) {
        body["owner"] = owner.as_str().into();
    }
    let mut call = Call {
        method,
        path: &path,
        body: body.as_ref(),
        ..Call::default()
    };
    let is_change = action.step != Step::Create;
    if is_change && given.force {
        call.query.push(("force", "true".to_owned()));
    }
    if action.step == Step::Replace && given.source.take_over {
        call.query.push(("take_over", "true".to_owned()));
    }
    if let Some(revision) = action.revision() {
        call.headers.push(("if-match", format!("\"{revision}\"")));
    }
    if let Some(reason) = &given.reason {
        call.headers.push(("x-reason", reason.clone()));
    }
    Ok(client.send(&call)?.warnings)
}

pub fn export(session: &Session, given: &Export) -> Result<(), Failure> {
    let client = session.client()?;
    for name in &given.kind {
        if kind(name).is_none() {
            let kinds: Vec<_> = KINDS.iter().map(|info| info.kind).collect();
            return Err(Failure::usage(format!(
                "--kind {name}: write one of {}",
                kinds.join(", ")
            )));
        }
    }
    let mut file = File {
        owner: given.owner.clone(),
        ..File::default()
    };
    for (place, tenant) in all_collections(client, given.tenant.as_deref())? {
        let info = &KINDS[place];
        let is_kind = given.kind.is_empty() || given.kind.iter().any(|name| name == info.kind);
        let is_tenants = info.scope == Scope::Tenant || info.kind == "tenant";
        if !is_kind || (given.tenant.is_some() && !is_tenants) {
            continue;
        }
        for object in collection(client, info, &tenant)? {
            let (name, mut spec) = (name_of(&object).to_owned(), object["spec"].clone());
            let owner = owner_of(&object);
            // Another director would pick another one.
            if info.kind == "address" {
                spec["address"] = object["status"]["address"].clone();
            }
            let is_other = given.owner.is_some() && given.owner.as_deref() != owner;
            let is_other = is_other
                || (info.kind == "tenant" && given.tenant.as_ref().is_some_and(|t| *t != name));
            // It comes with its subscription.
            let is_default = made(info).as_ref() == Some(&spec);
            if is_other || is_default {
                continue;
            }
            file.object.push(Declared {
                kind: info.kind.to_owned(),
                tenant: Some(tenant.clone()).filter(|tenant| !tenant.is_empty()),
                name,
                spec,
            });
        }
    }
    let failed = |error: &dyn std::fmt::Display| Failure::local(format!("cannot export: {error}"));
    let text = match given.format {
        Format::Json => serde_json::to_string_pretty(&file).map_err(|error| failed(&error))?,
        Format::Toml => toml::to_string_pretty(&file).map_err(|error| failed(&error))?,
    };
    outln!("{}", text.trim_end());
    Ok(())
}
