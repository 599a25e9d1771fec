//! Changes as server-sent events, which a client resumes by the id of the last event.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Method, StatusCode},
};
use control::{Kind as _, Revision, Scope, Tenant};
use jiff::Timestamp;
use serde_json::{Value, json};
use store::{Changes, ReadError, Sqlite, Store as _, Watch};
use tokio::time::{Instant, timeout_at};

use crate::{
    Director,
    api::{
        answer::Answer,
        authorize::{authorize, no_tenant},
        operation::{Operation, Success},
        parameter::{Parameter, Values},
        request::Call,
        served::group_of,
    },
    audit::{Access, Outcome, Subject},
    problem::Problem,
    roles::{AccessScope, Verb, access_scope},
};

/// Interval of comments that keep a connection open, and of checks whether the token still holds.
const HEARTBEAT: Duration = Duration::from_secs(15);

pub(super) fn register(all: &mut Vec<Operation>) {
    all.push(Operation {
        query: vec![
            Parameter {
                name: "kind",
                values: Values::Kind,
                is_required: true,
                description: "The kind, such as vlan-pool.",
            },
            Parameter::new(
                "tenant",
                Values::Name,
                "The tenant, for kinds that belong to one.",
            ),
            Parameter::new(
                "from",
                Values::Number {
                    least: 0,
                    most: u64::MAX,
                },
                "Changes after this revision; those to come unless given.",
            ),
        ],
        headers: vec![Parameter::new(
            "Last-Event-ID",
            Values::Header,
            "As `from`; browsers send it when they connect again.",
        )],
        success: vec![Success {
            status: StatusCode::OK,
            schema: None,
            content_type: "text/event-stream",
            headers: &[],
        }],
        ..Operation::new(
            "watch",
            Method::GET,
            "/v1/watch",
            "Watch the changes of objects of a kind, as server-sent events.",
            |call| Box::pin(watch(call)),
        )
    });
}

async fn watch(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let kind = call.query.get("kind").unwrap_or_default();
    let (group, scope) = group_of(kind).ok_or_else(|| {
        Problem::bad_request(format!(
            "kind: {kind:?} is no kind: write one such as vlan-pool"
        ))
    })?;
    let tenant = match (scope, call.query.get("tenant"), &actor.tenant) {
        (Scope::Provider, Some(_), _) => {
            return Err(Problem::bad_request(format!("tenant: omit it for {kind}")));
        }
        (Scope::Tenant, None, own) => own.clone(),
        (_, given, _) => given.map(ToOwned::to_owned),
    };
    // A machine sees itself, and so does a tenant of tenants.
    let is_itself = access_scope(actor.role, group, Verb::Read) == AccessScope::Itself
        && actor.role.machine() == Some(kind);
    if !is_itself {
        authorize(actor, group, Verb::Read, tenant.as_deref())?;
    }
    if let Some(tenant) = &tenant
        && scope == Scope::Tenant
        && call
            .director
            .live()
            .await?
            .state
            .get::<Tenant>(None, tenant)
            .is_none()
    {
        return Err(no_tenant(tenant));
    }
    let own = match is_itself {
        true => actor.object.as_deref(),
        false => actor.tenant.as_deref().filter(|_| scope == Scope::Provider),
    };
    let prefix = match (&tenant, own) {
        (Some(tenant), _) => format!("{kind}/{tenant}/"),
        (None, Some(own)) => format!("{kind}/{own}"),
        (None, None) => format!("{kind}/"),
    };
    let exact = own.is_some().then(|| prefix.clone());
    let from = match call.last_event()? {
        Some(last) => Some(last),
        None => call.query.get("from").map(ToOwned::to_owned),
    };
    let from = match from {
        Some(text) => text.parse::<Revision>().map_err(|_| {
            Problem::bad_request(format!(
                "from: {text:?}: write the revision of a list or an event"
            ))
        })?,
        None => call.director.live().await?.state.revision(),
    };
    // A revision that is not known any more is refused before the answer begins.
    match call.director.store.changes(&prefix, from).await {
        Ok(_) => {}
        Err(ReadError::Compacted { .. }) => return Err(compacted(from)),
        Err(ReadError::Unavailable(_)) => return Err(Problem::unavailable()),
    }
    if let Some(tenant) = &actor.tenant {
        refuse_earlier(&call, tenant, from).await?;
    }
    // The provider's reads of tenants' objects are in the audit.
    let access = match (&actor.tenant, scope) {
        (None, Scope::Tenant) => Some(Access {
            at: call.director.environment.now(),
            actor: actor.clone(),
            subject: Subject {
                operation: call.operation.clone(),
                kind: String::new(),
                tenant: None,
                name: String::new(),
                reason: None,
                address: call.peer,
                outcome: Outcome::done(StatusCode::OK.as_u16()),
            },
        }),
        _ => None,
    };
    let stream = Stream {
        access,
        heartbeat: Instant::now() + HEARTBEAT,
        through: from,
        is_new: true,
        watch: call.director.store.watch(&prefix, from),
        director: Arc::clone(&call.director),
        token_hash: call.token_hash,
        kind: kind.to_owned(),
        exact,
    };
    let events = futures::stream::unfold(stream, |mut stream| async move {
        let text = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(text), stream))
    });
    Ok(Answer::events(Body::from_stream(events)))
}

/// Refuses changes from before the tenant was made: they are those of another one of the same name.
async fn refuse_earlier(call: &Call, tenant: &str, from: Revision) -> Result<(), Problem> {
    let key = format!("{}/{tenant}", Tenant::KIND);
    match call.director.store.changes(&key, from).await {
        Ok(found) => {
            let mut changes = found.changes.iter();
            match changes.any(|change| change.key == key && change.value.is_none()) {
                true => Err(compacted(from)),
                false => Ok(()),
            }
        }
        Err(ReadError::Compacted { .. }) => Err(compacted(from)),
        Err(ReadError::Unavailable(_)) => Err(Problem::unavailable()),
    }
}

fn compacted(from: Revision) -> Problem {
    Problem::new(
        StatusCode::GONE,
        "compacted",
        format!(
            "changes after revision {from} are not known any more: list the objects, and watch \
             from the revision of the list"
        ),
    )
}

struct Stream {
    watch: Watch<Sqlite>,
    director: Arc<Director>,
    token_hash: String,
    kind: String,
    /// The access that each tenant's objects in an event are, if they are a read of the provider.
    access: Option<Access>,
    /// Time of the next comment, unless events come before.
    heartbeat: Instant,
    /// All changes up to this revision are sent.
    through: Revision,
    /// Nothing is sent yet.
    is_new: bool,
    /// The only key that is of interest.
    exact: Option<String>,
}

impl Stream {
    /// The next events; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        if std::mem::take(&mut self.is_new) {
            // A client that connects again before the first change resumes here.
            return Some(format!("id: {}\n\n", self.through));
        }
        loop {
            let changes = timeout_at(self.heartbeat, self.watch.next()).await;
            let now = self.director.environment.now();
            let live = self.director.live().await.ok()?;
            live.actor(&self.token_hash, now)?;
            drop(live);
            match changes {
                // No event: a comment, and the id from which the client resumes.
                Err(_) => {
                    self.heartbeat = Instant::now() + HEARTBEAT;
                    self.through = self.watch.after().max(self.through);
                    return Some(format!(":\nid: {}\n\n", self.through));
                }
                Ok(Ok(changes)) => {
                    self.through = changes.through;
                    let text = self.events(&changes, now);
                    // Changes of others are waited through: their time would tell of them.
                    if !text.is_empty() {
                        self.heartbeat = Instant::now() + HEARTBEAT;
                        return Some(text);
                    }
                }
                // The client lists again.
                Ok(Err(ReadError::Compacted { .. } | ReadError::Unavailable(_))) => return None,
            }
        }
    }

    /// The events of changes. Only the last event of a commit has an id, so that a client that
    /// resumes there misses none. Empty if there is none for this client.
    fn events(&self, changes: &Changes, at: Timestamp) -> String {
        let mut text = String::new();
        let mut changes = changes
            .changes
            .iter()
            .filter(|change| self.exact.as_ref().is_none_or(|exact| *exact == change.key))
            .peekable();
        while let Some(change) = changes.next() {
            let object: Option<Value> = change.value.as_deref().and_then(|value| {
                let mut object: Value = serde_json::from_str(value).ok()?;
                object["metadata"]["revision"] = change.revision.into();
                Some(object)
            });
            let mut key = change.key.split('/').skip(1);
            let (first, second) = (key.next(), key.next());
            if let (Some(access), Some(tenant)) = (&self.access, second.and(first)) {
                let mut access = access.clone();
                access.at = at;
                access.subject.tenant = Some(tenant.to_owned());
                let now = self.director.environment.monotonic();
                self.director.accesses.read(access, tenant, now);
            }
            let data = json!({
                "kind": self.kind,
                "tenant": second.and(first),
                "name": second.or(first),
                "revision": change.revision,
                "object": object,
            });
            if changes
                .peek()
                .is_none_or(|next| next.revision != change.revision)
            {
                text += &format!("id: {}\n", change.revision);
            }
            text += &format!("event: change\ndata: {data}\n\n");
        }
        text
    }
}
