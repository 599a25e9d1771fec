//! Operations on the objects of each kind.

use axum::http::{Method, StatusCode};
use control::{
    Accepted, Condition, Conflict, Kind, Metadata, Object, Observed, Options, ReasonFor, Scope,
    Tenant, create, in_words, remove, replace,
};
use serde::{Deserialize, Serialize};

use crate::{
    api::{
        answer::{Answer, json_text},
        authorize::{absent, authorize, no_tenant},
        dry_run::{DRY_RUN, DryRun, changed, either_of},
        operation::{Answering, Operation, ResponseHeader, Success},
        parameter::{Parameter, Values},
        request::{Call, LARGEST_PAGE},
        schemas::{changed_of, list_of, new_of, object_of, schema},
        served::{self, Served, Visitor},
    },
    audit::hex,
    change::{Planned, Wanted},
    live::{Live, forget_machine, remove_users_of_deleted},
    problem::Problem,
    roles::{AccessScope, ObjectGroup, Verb, access_scope},
};

/// Bytes after which a page ends: a plan may have half a MiB.
const LARGEST_BYTES: usize = 4 << 20;

/// Body of a request that creates an object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
struct New<K: Kind> {
    name: String,
    #[serde(default)]
    owner: Option<String>,
    spec: K,
}

/// Body of a request that replaces an object's spec.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
struct Changed<K: Kind> {
    #[serde(default)]
    owner: Option<String>,
    spec: K,
}

const FORCE: Parameter = Parameter::new(
    "force",
    Values::Flag,
    "Do what would be refused for the sake of others. Needs X-Reason, unless it is a dry run.",
);
const TAKE_OVER: Parameter = Parameter::new(
    "take_over",
    Values::Flag,
    "Take the object from another owner.",
);
const LIMIT: Parameter = Parameter::new(
    "limit",
    Values::Number {
        least: 1,
        most: LARGEST_PAGE,
    },
    "Objects on the page, 1 to 1000; 100 unless given.",
);
const AFTER: Parameter = Parameter::new("page", Values::Page, "The `next` of the page before.");
const IF_MATCH: Parameter = Parameter::new(
    "If-Match",
    Values::Header,
    "The ETag that the object must have, or `*`.",
);
const IF_NONE_MATCH: Parameter = Parameter::new(
    "If-None-Match",
    Values::Any,
    "`*`: an object of this name that exists is answered with 412, and not with 409.",
);
const KEY: Parameter = Parameter::new(
    "Idempotency-Key",
    Values::Header,
    "The same answer is given to the same request with this key for a day.",
);
pub(super) const REASON: Parameter = Parameter::new(
    "X-Reason",
    Values::Text,
    "The reason for the change, for the audit. A change with `force` must have one, and one that a \
     user of the provider makes of a tenant's networks, mappings, policies, rules and plans.",
);

const ETAG: ResponseHeader = ResponseHeader::always("ETag", "The object's revision, for If-Match.");
const WARNING: ResponseHeader = ResponseHeader::sometimes(
    "Causeway-Warning",
    "A consequence to know of; there may be several.",
);
const OF_READ: &[ResponseHeader] = &[ETAG];
const OF_CREATION: &[ResponseHeader] = &[
    ETAG,
    ResponseHeader::always("Location", "The path of the object."),
    WARNING,
];
const OF_CHANGE: &[ResponseHeader] = &[
    ResponseHeader::sometimes(
        "ETag",
        "The object's revision, for If-Match; not after a dry run.",
    ),
    WARNING,
];
const OF_REMOVAL: &[ResponseHeader] = &[WARNING];

/// Adds the operations of all kinds.
pub(super) fn register(all: &mut Vec<Operation>) {
    served::visit(&mut Registration(all));
}

/// The table to which each kind adds its operations.
struct Registration<'a>(&'a mut Vec<Operation>);

impl Visitor for Registration<'_> {
    fn kind<K: Served>(&mut self) {
        register_kind::<K>(self.0);
    }
}

fn register_kind<K: Served>(all: &mut Vec<Operation>) {
    let collection = match K::SCOPE {
        Scope::Provider => format!("/v1/{}", K::PLURAL),
        Scope::Tenant => format!("/v1/tenants/{{tenant}}/{}", K::PLURAL),
    };
    let one = format!("{collection}/{{name}}");
    let object = || object_of::<K>();
    let ok = |status, schema| Success::json(status, Some(schema));
    let dry = || ok(StatusCode::OK, schema::<DryRun>());
    let change = |query: &[Parameter], headers: &[Parameter]| {
        let query = [&[DRY_RUN], query].concat();
        (query, [&[KEY, REASON], headers].concat())
    };
    let operation = |verb: &str, method, path: &str, handler| {
        let id = format!("{}.{verb}", K::KIND);
        let summary = format!("{} {}.", sentence(verb), K::ONE);
        Operation::new(id, method, path, summary, handler)
    };
    all.push(Operation {
        summary: format!("List {}.", in_words(K::PLURAL)),
        query: vec![LIMIT, AFTER],
        success: vec![ok(StatusCode::OK, list_of::<K>())],
        ..operation("list", Method::GET, &collection, |call| {
            Box::pin(list::<K>(call)) as Answering
        })
    });
    let (query, headers) = change(&[FORCE], &[IF_NONE_MATCH]);
    all.push(Operation {
        query,
        headers,
        body: Some(new_of::<K>()),
        success: vec![ok(StatusCode::CREATED, object()).with(OF_CREATION), dry()],
        ..operation("create", Method::POST, &collection, |call| {
            Box::pin(create_one::<K>(call)) as Answering
        })
    });
    all.push(Operation {
        success: vec![ok(StatusCode::OK, object()).with(OF_READ)],
        ..operation("get", Method::GET, &one, |call| {
            Box::pin(get::<K>(call)) as Answering
        })
    });
    let (query, headers) = change(&[FORCE, TAKE_OVER], &[IF_MATCH]);
    all.push(Operation {
        query,
        headers,
        body: Some(changed_of::<K>()),
        success: vec![ok(StatusCode::OK, either_of::<K>()).with(OF_CHANGE)],
        ..operation("replace", Method::PUT, &one, |call| {
            Box::pin(replace_one::<K>(call)) as Answering
        })
    });
    let (query, headers) = change(&[FORCE], &[IF_MATCH]);
    let nothing = Success {
        status: StatusCode::NO_CONTENT,
        schema: None,
        content_type: "",
        headers: OF_REMOVAL,
    };
    all.push(Operation {
        query,
        headers,
        success: vec![nothing, dry()],
        ..operation("remove", Method::DELETE, &one, |call| {
            Box::pin(remove_one::<K>(call)) as Answering
        })
    });
}

fn sentence(verb: &str) -> String {
    let mut letters = verb.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

/// Tenant and name in the path.
pub(super) fn place<K: Kind>(call: &Call) -> (Option<&str>, Option<&str>) {
    let mut values = call.parameters.iter().map(String::as_str);
    match K::SCOPE {
        Scope::Provider => (None, values.next()),
        Scope::Tenant => (values.next(), values.next()),
    }
}

/// The tenant that an access concerns: for tenants themselves, their name.
fn target<'c, K: Served>(tenant: Option<&'c str>, name: Option<&'c str>) -> Option<&'c str> {
    match K::GROUP {
        ObjectGroup::Tenants => name,
        _ => tenant,
    }
}

async fn list<K: Served>(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let (tenant, _) = place::<K>(&call);
    authorize(actor, K::GROUP, Verb::Read, tenant)?;
    let limit = call.query.limit()?;
    let after = call.query.get("page").map(page).transpose()?;
    let live = call.director.live().await?;
    if let Some(tenant) = tenant
        && live.state.get::<Tenant>(None, tenant).is_none()
    {
        return Err(no_tenant(tenant));
    }
    // Of tenants, a tenant sees itself.
    let only = match K::GROUP {
        ObjectGroup::Tenants => actor.tenant.as_deref(),
        _ => None,
    };
    let start = after
        .as_deref()
        .map(|name| (tenant.unwrap_or_default(), name));
    let start = start.or(tenant.map(|tenant| (tenant, "")));
    let mut objects = live
        .state
        .all::<K>()
        .after(start)
        .take_while(|object| tenant.is_none_or(|tenant| object.tenant() == tenant))
        .filter(|object| only.is_none_or(|only| object.name() == only));
    let agents = call.director.agents_of(&live);
    let observed = Observed::new(&live.state, call.director.environment.now());
    let mut observed = observed.with_agents(&agents);
    // Each object is text before the next one: a page has a thousand objects, and ends after some
    // MiB, whatever its client then reads of it.
    let mut items = String::new();
    let (mut count, mut last) = (0, None);
    while count < limit && items.len() < LARGEST_BYTES {
        let Some(object) = objects.next() else {
            break;
        };
        let text = serde_json::to_string(&ObjectView::new(object, &mut observed));
        let text = text.map_err(|error| Problem::internal(&error))?;
        if count > 0 {
            items.push(',');
        }
        items.push_str(&text);
        count += 1;
        last = Some(object.name());
    }
    let next = match (objects.next(), last) {
        (Some(_), Some(last)) => format!("\"{}\"", hex(last.as_bytes())),
        (Some(_) | None, _) => "null".to_owned(),
    };
    let revision = live.state.revision();
    let text = format!(r#"{{"items":[{items}],"next":{next},"revision":{revision}}}"#);
    Ok(Answer::text(StatusCode::OK, text))
}

/// The name in a page token.
fn page(token: &str) -> Result<String, Problem> {
    let digits: Option<Vec<u8>> = (0..token.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(token.get(at..at + 2)?, 16).ok())
        .collect();
    let name = digits.and_then(|bytes| String::from_utf8(bytes).ok());
    name.ok_or_else(|| {
        Problem::bad_request("page: write the `next` of the page before, or omit it")
    })
}

async fn get<K: Served>(call: Call) -> Result<Answer, Problem> {
    let (tenant, name) = place::<K>(&call);
    let name = name.unwrap_or_default();
    let actor = call.actor()?;
    if access_scope(actor.role, K::GROUP, Verb::Read) == AccessScope::Itself
        && actor.role.machine() == Some(K::KIND)
    {
        // Another one is answered as one that does not exist.
        if actor.object.as_deref() != Some(name) {
            return Err(absent::<K>(tenant, name));
        }
    } else {
        let target = target::<K>(tenant, Some(name));
        authorize(actor, K::GROUP, Verb::Read, target)?;
    }
    let live = call.director.live().await?;
    let object = found::<K>(&live, tenant, name)?;
    let agents = call.director.agents_of(&live);
    let observed = Observed::new(&live.state, call.director.environment.now());
    let mut observed = observed.with_agents(&agents);
    let answer = json_text(&ObjectView::new(object, &mut observed))?;
    Ok(answer.tagged(object.metadata.revision))
}

/// An object as it is read: with its conditions, if its kind has any. They are computed, depend on
/// the time and on other objects, and do not change the object's revision.
#[derive(Serialize)]
#[serde(bound = "")]
struct ObjectView<'o, K: Kind> {
    metadata: &'o Metadata,
    spec: &'o K,
    status: &'o K::Status,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<Condition>,
}

impl<'o, K: Kind> ObjectView<'o, K> {
    fn new(object: &'o Object<K>, observed: &mut Observed<'_>) -> Self {
        Self {
            metadata: &object.metadata,
            spec: &object.spec,
            status: &object.status,
            conditions: observed.conditions(object),
        }
    }
}

pub(super) fn found<'l, K: Kind>(
    live: &'l Live,
    tenant: Option<&str>,
    name: &str,
) -> Result<&'l Object<K>, Problem> {
    if let Some(tenant) = tenant
        && live.state.get::<Tenant>(None, tenant).is_none()
    {
        return Err(no_tenant(tenant));
    }
    let object = live.state.get::<K>(tenant, name);
    object.ok_or_else(|| absent::<K>(tenant, name))
}

fn planned<K: Kind>(live: &Live, mut accepted: Accepted<K>) -> Result<Planned, Problem> {
    remove_users_of_deleted(live, &mut accepted.transaction);
    forget_machine(live, &mut accepted.transaction);
    Ok(Planned {
        body: serde_json::to_value(&accepted.object).map_err(|error| Problem::internal(&error))?,
        transaction: accepted.transaction,
        warnings: accepted.warnings,
        differences: accepted.differences,
    })
}

async fn create_one<K: Served>(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let (tenant, _) = place::<K>(&call);
    authorize(actor, K::GROUP, Verb::Write, tenant)?;
    let new: New<K> = call.read()?;
    let force = call.query.flag("force")?;
    let wanted = Wanted {
        actor,
        subject: call.subject(K::KIND, tenant, &new.name)?,
        dry_run: call.query.flag("dry_run")?,
        status: StatusCode::CREATED.as_u16(),
        idempotency: call.idempotency()?,
    };
    require_reason::<K>(force, &wanted)?;
    let dry_run = wanted.dry_run;
    let must_be_new = call.must_be_new()?;
    let applied = call.director.change(wanted, |live, origin| {
        let there = live.state.get::<K>(tenant, &new.name);
        if let Some(there) = there.filter(|_| must_be_new) {
            return Err(exists(there));
        }
        let spec = new.spec.clone();
        let options = Options {
            force,
            owner: new.owner.clone(),
            ..Options::default()
        };
        let accepted = create(&live.state, tenant, &new.name, spec, origin, options)?;
        planned(live, accepted)
    });
    let answer = changed(applied.await?, dry_run)?;
    match dry_run {
        true => Ok(answer),
        false => Ok(answer.located(format!("{}/{}", call.path, new.name))),
    }
}

/// The object that `If-None-Match: *` says must not exist.
fn exists<K: Kind>(there: &Object<K>) -> Problem {
    let conflict = Conflict {
        kind: K::KIND.to_owned(),
        tenant: there.metadata.tenant.clone(),
        name: there.name().to_owned(),
        field: "name".to_owned(),
        value: there.name().to_owned(),
    };
    let text = format!(
        "If-None-Match is *, and {} {:?} exists: read it, and change it by PUT",
        K::KIND,
        there.name()
    );
    Problem::new(StatusCode::PRECONDITION_FAILED, "exists", text).with(vec![conflict])
}

async fn replace_one<K: Served>(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let (tenant, name) = place::<K>(&call);
    let name = name.unwrap_or_default();
    authorize(
        actor,
        K::GROUP,
        Verb::Write,
        target::<K>(tenant, Some(name)),
    )?;
    let new: Changed<K> = call.read()?;
    let options = Options {
        force: call.query.flag("force")?,
        owner: new.owner.clone(),
        take_over: call.query.flag("take_over")?,
    };
    let wanted = Wanted {
        actor,
        subject: call.subject(K::KIND, tenant, name)?,
        dry_run: call.query.flag("dry_run")?,
        status: StatusCode::OK.as_u16(),
        idempotency: call.idempotency()?,
    };
    require_reason::<K>(options.force, &wanted)?;
    let dry_run = wanted.dry_run;
    let applied = call.director.change(wanted, |live, origin| {
        call.check_revision(found::<K>(live, tenant, name)?)?;
        let spec = new.spec.clone();
        let options = options.clone();
        let accepted = replace(&live.state, tenant, name, spec, origin, options)?;
        planned(live, accepted)
    });
    changed(applied.await?, dry_run)
}

async fn remove_one<K: Served>(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let (tenant, name) = place::<K>(&call);
    let name = name.unwrap_or_default();
    authorize(
        actor,
        K::GROUP,
        Verb::Write,
        target::<K>(tenant, Some(name)),
    )?;
    let options = Options {
        force: call.query.flag("force")?,
        ..Options::default()
    };
    let wanted = Wanted {
        actor,
        subject: call.subject(K::KIND, tenant, name)?,
        dry_run: call.query.flag("dry_run")?,
        status: StatusCode::NO_CONTENT.as_u16(),
        idempotency: call.idempotency()?,
    };
    require_reason::<K>(options.force, &wanted)?;
    let dry_run = wanted.dry_run;
    let applied = call.director.change(wanted, |live, origin| {
        call.check_revision(found::<K>(live, tenant, name)?)?;
        let options = options.clone();
        let accepted = remove::<K>(&live.state, tenant, name, origin, options)?;
        planned(live, accepted)
    });
    let applied = applied.await?;
    if dry_run {
        return changed(applied, true);
    }
    Ok(Answer::done().with_warnings(&applied.warnings))
}

/// Refuses a change without a reason that is forced, as the audit is to tell why others were
/// overruled, or that the provider makes of a tenant's own objects. A dry run changes nothing and
/// needs none.
fn require_reason<K: Served>(force: bool, wanted: &Wanted<'_>) -> Result<(), Problem> {
    if wanted.dry_run || wanted.subject.reason.is_some() {
        return Ok(());
    }
    let by_provider = wanted.actor.tenant.is_none();
    match control::reason_for(K::KIND, force, by_provider) {
        None => Ok(()),
        Some(ReasonFor::Force) => Err(Problem::reason()),
        Some(ReasonFor::TenantsOwn) => Err(Problem::tenant_reason()),
    }
}
