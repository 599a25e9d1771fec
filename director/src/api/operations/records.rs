//! The audit.

use axum::http::{Method, StatusCode};
use control::{Kind as _, Tenant};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::Store as _;
use utoipa::ToSchema;

use crate::{
    api::{
        answer::Answer,
        authorize::authorize,
        operation::{Operation, Success},
        parameter::{Parameter, Values},
        request::{Call, LARGEST_PAGE},
        schemas::schema,
    },
    audit::{self, Checkpoint, Entry},
    live::Live,
    people::Actor,
    problem::Problem,
    roles::{ObjectGroup, Verb},
};

/// Bytes after which a page ends: an entry of a change of many objects is long.
const LARGEST_BYTES: usize = 4 << 20;
/// Entries that a request reads at most: few of them may concern a tenant, and its page is then
/// short, or empty, with a `next`.
const LARGEST_SCAN: u64 = 2000;

/// A page of the audit.
#[derive(Debug, Serialize, ToSchema)]
struct AuditList {
    /// Entries, by number; those of a tenant without hashes. One whose stored text is no entry has
    /// its `number` and the reason, `unreadable`.
    items: Vec<Entry>,
    /// The number to read on after; `null` at the end.
    next: Option<u64>,
}

/// The signed checkpoints of the audit.
#[derive(Debug, Serialize, ToSchema)]
struct CheckpointList {
    /// Checkpoints, by number of their entry.
    items: Vec<Checkpoint>,
    /// The public key that signs new ones, hexadecimal; `null` before the first.
    key: Option<String>,
}

pub(super) fn register(all: &mut Vec<Operation>) {
    let ok = |schema| Success::json(StatusCode::OK, schema);
    all.push(Operation {
        query: vec![
            Parameter::new(
                "after",
                Values::Number {
                    least: 0,
                    most: u64::MAX,
                },
                "Entries after this number; from the first unless given.",
            ),
            Parameter::new(
                "limit",
                Values::Number {
                    least: 1,
                    most: LARGEST_PAGE,
                },
                "Entries on the page, 1 to 1000; 100 unless given.",
            ),
        ],
        success: vec![ok(Some(schema::<AuditList>()))],
        ..Operation::new(
            "audit.list",
            Method::GET,
            "/v1/audit",
            "List the entries of the audit.",
            |call| Box::pin(list(call)),
        )
    });
    all.push(Operation {
        success: vec![ok(Some(schema::<CheckpointList>()))],
        ..Operation::new(
            "audit.checkpoints",
            Method::GET,
            "/v1/audit/checkpoints",
            "List the signed checkpoints of the audit.",
            |call| Box::pin(checkpoints(call)),
        )
    });
}

/// A tenant sees the entries about its objects, also those of the provider's users.
async fn list(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    authorize(actor, ObjectGroup::Audit, Verb::Read, None)?;
    // The reader sees what came before the request. A store that cannot be written, which is
    // logged, hides nothing of what is in it.
    let _ = call.director.flush_accesses().await;
    let limit = call.query.limit()?;
    let mut after = call.query.number("after", 0, 0..=u64::MAX)?;
    let (last, since) = {
        let live = call.director.live().await?;
        let own = actor.tenant.as_deref();
        (live.head.number, own.and_then(|own| Since::of(&live, own)))
    };
    let until = last.min(after.saturating_add(LARGEST_SCAN));
    let mut items = Vec::new();
    let (mut bytes, mut is_full) = (0, false);
    while after < until && !is_full {
        // The keys of a hundred entries have the same digits but two.
        let hundred = (after + 1) / 100;
        let key = format!("{}{hundred:018}", audit::PREFIX);
        let snapshot = call.director.store.snapshot(&key).await;
        let snapshot = snapshot.map_err(|_| Problem::unavailable())?;
        let end = (hundred * 100 + 99).min(last);
        for stored in snapshot.entries {
            let number = stored.key[audit::PREFIX.len()..].parse();
            let number: u64 = number.map_err(|error| Problem::internal(&error))?;
            if number <= after || number > last {
                continue;
            }
            if items.len() as u64 == limit || bytes >= LARGEST_BYTES {
                is_full = true;
                break;
            }
            after = number;
            let seen = seen_by(actor, since, number, stored.value)?;
            bytes += seen.as_ref().map_or(0, String::len);
            items.extend(seen);
        }
        if !is_full {
            after = end;
        }
    }
    // Entries are answered as they are stored: to read and write thousands takes too long.
    let items = items.join(",");
    let next = (after < last).then_some(after);
    let next = next.map_or_else(|| "null".to_owned(), |next| next.to_string());
    let text = format!(r#"{{"items":[{items}],"next":{next}}}"#);
    Ok(Answer::text(StatusCode::OK, text))
}

/// The first entry that concerns a tenant, and none of an earlier one of its name.
#[derive(Clone, Copy)]
enum Since {
    /// The entry of its creation.
    Entry(u64),
    /// Entries from the time of its creation, for a tenant that an earlier version made.
    Time(Timestamp),
}

impl Since {
    /// `None` if there is no such tenant.
    fn of(live: &Live, tenant: &str) -> Option<Self> {
        let created = live.state.get::<Tenant>(None, tenant)?.metadata.created;
        let entry = live.creations.get(tenant);
        Some(entry.map_or(Self::Time(created), |(number, _)| Self::Entry(*number)))
    }

    fn is_before(self, number: u64, at: Timestamp) -> bool {
        match self {
            Self::Entry(first) => number < first,
            Self::Time(first) => at < first,
        }
    }
}

/// The part of an entry that shows whether it is one.
#[derive(Deserialize)]
struct Numbered {
    #[serde(rename = "number")]
    _number: u64,
}

/// An entry as the actor sees it: of a change that concerns several tenants, each sees its own
/// part, without the hashes of the whole, from which the rest could be guessed. Entries from before
/// the tenant was made concern another one of the same name. A reason may speak of other tenants,
/// unless it is given for a change of the tenant's own.
fn seen_by(
    actor: &Actor,
    since: Option<Since>,
    number: u64,
    text: String,
) -> Result<Option<String>, Problem> {
    let Some(own) = &actor.tenant else {
        // Text that is no entry would make the whole page unreadable.
        let readable = serde_json::from_str::<Numbered>(&text);
        let marked = |error: serde_json::Error| {
            let reason = format!("the stored text is no entry: {error}");
            json!({ "number": number, "unreadable": reason }).to_string()
        };
        return Ok(Some(readable.map_or_else(marked, |_| text)));
    };
    if !text.contains(&format!("\"{own}\"")) {
        return Ok(None);
    }
    // The provider sees an entry that cannot be read; whose it is cannot be told.
    let Ok(mut entry) = serde_json::from_str::<Entry>(&text) else {
        return Ok(None);
    };
    entry.changes.retain(|change| {
        change.tenant.as_ref() == Some(own) || (change.kind == Tenant::KIND && change.name == *own)
    });
    let is_of_tenant = || entry.user_tenant.as_ref().is_none_or(|of| of == own);
    let is_own = entry.tenant.as_ref() == Some(own)
        || (entry.kind == Tenant::KIND && entry.name == *own && is_of_tenant());
    if since.is_none_or(|since| since.is_before(number, entry.at))
        || !is_own && entry.changes.is_empty()
    {
        return Ok(None);
    }
    if !is_own {
        entry.reason = None;
    }
    entry.previous.clear();
    entry.hash.clear();
    let text = serde_json::to_string(&entry);
    text.map(Some).map_err(|error| Problem::internal(&error))
}

async fn checkpoints(call: Call) -> Result<Answer, Problem> {
    authorize(call.actor()?, ObjectGroup::Audit, Verb::Read, None)?;
    let snapshot = call.director.store.snapshot(audit::CHECKPOINTS).await;
    let snapshot = snapshot.map_err(|_| Problem::unavailable())?;
    let items = snapshot.entries.iter();
    let items: Vec<Checkpoint> = items
        .map(|entry| serde_json::from_str(&entry.value))
        .collect::<Result<_, _>>()
        .map_err(|error| Problem::internal(&error))?;
    let key = items.last().map(|last| last.signer().to_owned());
    Ok(Answer::json(
        StatusCode::OK,
        &json!({ "items": items, "key": key }),
    ))
}
