//! The order of changes. Each is tried on a copy of the objects, so that a set of changes is made
//! in an order that the director accepts, or not begun at all.

use std::collections::{BTreeMap, BTreeSet};

use control::{KINDS, KindInfo, Options, Refusal, Rehearsal, RehearsedChange};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Action, Key, Plan, Step, changeable, is_as_declared, made, owner_of, shown};
use crate::failure::{Exit, Failure};

mod intermediate;

/// Margin within which a lease counts as ended: the clock of the director may differ.
const LEASE_MARGIN: SignedDuration = SignedDuration::from_hours(1);
/// Objects of a refusal that are named.
const MAX_NAMED: usize = 10;

/// Rights of changes beyond their own objects.
#[derive(Clone, Copy)]
pub(super) struct Permission {
    pub force: bool,
    pub take_over: bool,
}

/// A request that makes a change, or a part of it.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub step: Step,
    pub key: Key,
    /// The spec to write; `null` for a deletion.
    pub spec: Value,
    pub owner: Option<String>,
    pub before: Before,
}

/// The object before a request.
#[derive(Clone, Debug)]
pub(super) enum Before {
    /// There is none.
    Absent,
    /// It is at this revision.
    At(u64),
    /// An earlier request changes or makes it: it has this spec then.
    Made(Value),
}

impl Request {
    pub fn info(&self) -> &'static KindInfo {
        &KINDS[self.key.0]
    }

    /// For people: `create host h1`.
    pub fn shown(&self) -> String {
        let verb = match self.step {
            Step::Create => "create",
            Step::Replace => "change",
            Step::Delete => "delete",
        };
        format!("{verb} {}", shown(&self.key))
    }
}

/// A change that is still to be made.
struct Pending {
    key: Key,
    /// The spec; `None` for a deletion.
    spec: Option<Value>,
    owner: Option<String>,
    /// Whether it takes from a tenant the right to get something new: it is the last of the
    /// tenant's changes but for deletions.
    is_last: bool,
    refusal: Option<Refusal>,
}

/// The requests of a plan, in an order that the director accepts.
///
/// # Errors
/// The refusals of the changes for which there is no such order.
pub(super) fn order(plan: &Plan, permission: Permission) -> Result<Vec<Request>, Failure> {
    let now = Timestamp::now();
    let mut copy = Rehearsal::new(now);
    for (key, object) in &plan.there {
        copy.add(&KINDS[key.0], object).map_err(|error| {
            let text = format!("{}: {error}", shown(key));
            Failure::new(Exit::Refused, text)
        })?;
    }
    copy.ready();
    let mut work = Work {
        copy,
        permission,
        requests: Vec::new(),
        touched: BTreeSet::new(),
    };
    let mut pending = pending(plan, now);
    let mut tried = BTreeSet::new();
    while !pending.is_empty() {
        let before = (pending.len(), work.requests.len());
        work.sweep(&mut pending);
        let is_stuck = (pending.len(), work.requests.len()) == before;
        if is_stuck && !intermediate::any(&mut work, &pending, &mut tried) {
            return Err(refused(&pending));
        }
    }
    Ok(work.requests)
}

/// The changes of a plan. That of a tenant which may get nothing new afterwards is made in two
/// steps, around those of what it gets.
fn pending(plan: &Plan, now: Timestamp) -> Vec<Pending> {
    let mut created: BTreeMap<&str, Vec<&Action>> = BTreeMap::new();
    for action in plan.actions.iter().filter(|a| a.step == Step::Create) {
        created.entry(&action.key.1).or_default().push(action);
    }
    let (mut first, mut last, mut deletions) = (Vec::new(), Vec::new(), Vec::new());
    for action in &plan.actions {
        let entry = |spec: Option<Value>, is_last| Pending {
            key: action.key.clone(),
            spec,
            owner: action.owner.clone(),
            is_last,
            refusal: None,
        };
        if action.step == Step::Delete {
            deletions.push(entry(None, false));
            continue;
        }
        let new = created
            .get(action.key.2.as_str())
            .map_or(&[][..], Vec::as_slice);
        match (action.info().kind, open_tenant(plan, action, new, now)) {
            ("tenant", Some(open)) => {
                first.push(entry(Some(open), false));
                last.push(entry(Some(action.after.clone()), true));
            }
            _ => first.push(entry(Some(action.after.clone()), false)),
        }
    }
    first.append(&mut last);
    first.append(&mut deletions);
    first
}

/// The declared spec of a tenant, enabled and with limits that admit what is to be created; `None`
/// if the declared one admits it.
fn open_tenant(plan: &Plan, tenant: &Action, new: &[&Action], now: Timestamp) -> Option<Value> {
    if tenant.info().kind != "tenant" || new.is_empty() {
        return None;
    }
    let name = &tenant.key.2;
    let mut open = tenant.after.clone();
    open["enabled"] = true.into();
    let lease = open["lease_ends"]
        .as_str()
        .and_then(|text| text.parse().ok());
    if lease.is_some_and(|end: Timestamp| end <= now + LEASE_MARGIN)
        && let Some(fields) = open.as_object_mut()
    {
        fields.remove("lease_ends");
    }
    let count = |kinds: &[&str]| {
        let is_of = |key: &Key| key.1 == *name && kinds.contains(&KINDS[key.0].kind);
        let there = plan.there.keys().filter(|key| is_of(key)).count();
        (there + new.iter().filter(|action| is_of(&action.key)).count()) as u64
    };
    let limits = &tenant.after["limits"];
    let addresses = count(&["address"]);
    let subscriptions = new
        .iter()
        .filter(|action| action.info().kind == "subscription");
    let given = subscriptions.filter_map(|action| action.after["public_addresses"].as_u64());
    let limit = limits["public_addresses"].as_u64();
    let given = limit.or_else(|| given.reduce(u64::saturating_add));
    if given.is_some_and(|given| given < addresses) {
        open["limits"]["public_addresses"] = addresses.into();
    }
    let objects = count(&["mapping", "policy", "rule", "plan"]);
    if limits["objects"].as_u64().unwrap_or(1000) < objects {
        open["limits"]["objects"] = objects.into();
    }
    (open != tenant.after).then_some(open)
}

/// The copy, and the requests that have been accepted on it.
struct Work {
    copy: Rehearsal,
    permission: Permission,
    requests: Vec<Request>,
    /// Objects that the requests change, as themselves or by the way.
    touched: BTreeSet<Key>,
}

impl Work {
    /// Tries all changes once, in their order, and keeps those that are refused.
    fn sweep(&mut self, pending: &mut Vec<Pending>) {
        let mut kept: Vec<Pending> = Vec::new();
        let mut rest = std::mem::take(pending).into_iter();
        while let Some(mut change) = rest.next() {
            let is_of_tenant =
                |other: &Pending| other.key.1 == change.key.2 && other.spec.is_some();
            let waits = change.is_last
                && (kept.iter().any(is_of_tenant) || rest.as_slice().iter().any(is_of_tenant));
            let result = match waits {
                true => Err(None),
                false => self
                    .attempt(&change.key, change.spec.as_ref(), change.owner.as_deref())
                    .map_err(Some),
            };
            if let Err(refusal) = result {
                change.refusal = refusal;
                kept.push(change);
            }
        }
        *pending = kept;
    }

    /// Makes a change on the copy; an object that is as it should be needs none.
    fn attempt(
        &mut self,
        key: &Key,
        spec: Option<&Value>,
        owner: Option<&str>,
    ) -> Result<(), Refusal> {
        let info = &KINDS[key.0];
        let there = self.copy.get(info, &key.1, &key.2);
        let (step, spec) = match (&there, spec) {
            (None, None) => return Ok(()),
            (None, Some(spec)) => (Step::Create, spec.clone()),
            (Some(_), None) => (Step::Delete, Value::Null),
            (Some(there), Some(spec)) => match is_as_declared(info, there, spec) {
                true if owner.is_none() || owner == owner_of(there) => return Ok(()),
                // Only the owner is changed.
                true => (Step::Replace, there["spec"].clone()),
                false => (Step::Replace, changeable(info, spec.clone())),
            },
        };
        let change = match step {
            Step::Create => RehearsedChange::Create(&spec),
            Step::Replace => RehearsedChange::Replace(&spec),
            Step::Delete => RehearsedChange::Remove,
        };
        let owner = owner
            .filter(|_| step != Step::Delete)
            .map(ToOwned::to_owned);
        let options = Options {
            force: self.permission.force && step != Step::Create,
            take_over: self.permission.take_over && step == Step::Replace,
            owner: owner.clone(),
        };
        let differences = self.copy.change(info, &key.1, &key.2, change, options)?;
        let before = match there {
            None => Before::Absent,
            Some(there) if self.touched.contains(key) => Before::Made(there["spec"].clone()),
            Some(there) => Before::At(there["metadata"]["revision"].as_u64().unwrap_or_default()),
        };
        for difference in differences {
            let place = KINDS.iter().position(|info| info.kind == difference.kind);
            let tenant = difference.tenant.unwrap_or_default();
            self.touched
                .extend(place.map(|place| (place, tenant, difference.name)));
        }
        self.requests.push(Request {
            step,
            key: key.clone(),
            spec,
            owner,
            before,
        });
        Ok(())
    }
}

/// Why there is no order.
fn refused(pending: &[Pending]) -> Failure {
    let refusals = pending
        .iter()
        .filter_map(|change| Some((change, change.refusal.as_ref()?)));
    let refusals: Vec<_> = refusals.collect();
    let mut texts: Vec<_> = refusals
        .iter()
        .take(MAX_NAMED)
        .map(|(change, refusal)| format!("{}: {}", shown(&change.key), refusal.detail))
        .collect();
    if let Some(more) = refusals
        .len()
        .checked_sub(MAX_NAMED)
        .filter(|more| *more > 0)
    {
        texts.push(format!("and {more} more"));
    }
    let text = format!(
        "the director would refuse {} of the changes, so that none is made: {}",
        refusals.len(),
        texts.join("; ")
    );
    let conflicts = refusals.iter().flat_map(|(_, refusal)| &refusal.conflicts);
    let problem = json!({
        "type": "urn:causeway:problem:conflict",
        "detail": text,
        "conflicts": conflicts.take(MAX_NAMED).collect::<Vec<_>>(),
        "exit": Exit::Refused as u8,
    });
    Failure {
        problem: Some(problem),
        ..Failure::new(Exit::Refused, text)
    }
}

/// The spec that takes the settings of what a subscription makes away; `None` for other kinds.
fn cleared(info: &KindInfo) -> Option<Value> {
    made(info)
}
