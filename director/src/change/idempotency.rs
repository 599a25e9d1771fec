//! Answers to requests with an `Idempotency-Key`, kept in the transactions of their changes.

use axum::http::StatusCode;
use control::{Precondition, Revision, Transaction};
use jiff::Timestamp;
use serde_json::Value;

use super::plan::{Applied, Wanted};
use crate::{
    live::{
        ANSWER_LIFETIME, Live, MAX_STORED_ANSWER_LEN, MAX_STORED_ANSWERS, STORED_ANSWER_PREFIX,
        StoredAnswer,
    },
    problem::Problem,
};

/// Stored answers that a change forgets at most.
const MAX_EXPIRED_REMOVED: usize = 16;

/// Writes the revision into the metadata of an answer's object.
pub(super) fn set_revision(body: &mut Value, revision: Revision) {
    if let Some(metadata) = body.get_mut("metadata") {
        metadata["revision"] = revision.into();
    }
}

/// The answer that is kept for a request with the same key.
pub(super) fn stored_answer(
    live: &Live,
    wanted: &Wanted<'_>,
    now: Timestamp,
) -> Result<Option<Applied>, Problem> {
    let Some((key, request)) = &wanted.idempotency else {
        return Ok(None);
    };
    let Some((stored, revision)) = live.stored_answers.get(key) else {
        return Ok(None);
    };
    if now.duration_since(stored.at) >= ANSWER_LIFETIME {
        return Ok(None);
    }
    if stored.request != *request {
        return Err(Problem::idempotency_key());
    }
    let mut body = stored.body.clone();
    let revision = (!stored.is_unchanged).then_some(*revision);
    if let Some(revision) = revision {
        set_revision(&mut body, revision);
    }
    Ok(Some(Applied {
        status: stored.status,
        body,
        warnings: stored.warnings.clone(),
        differences: Vec::new(),
        revision,
    }))
}

/// Adds the answer that is kept for a request with the same key, if the request has one, and
/// forgets old ones.
pub(super) fn keep_answer(
    live: &Live,
    wanted: &Wanted<'_>,
    transaction: &mut Transaction,
    applied: &Applied,
    is_unchanged: bool,
    now: Timestamp,
) -> Result<(), Problem> {
    let is_old = |stored: &StoredAnswer| now.duration_since(stored.at) >= ANSWER_LIFETIME;
    let old = live
        .stored_answers
        .iter()
        .filter(|(_, (stored, _))| is_old(stored));
    for (key, _) in old.take(MAX_EXPIRED_REMOVED) {
        transaction
            .delete
            .insert(format!("{STORED_ANSWER_PREFIX}{key}"));
    }
    if let Some((key, request)) = &wanted.idempotency {
        let user = &wanted.actor.user;
        if !live.stored_answers.contains_key(key)
            && live.stored_answers_of(user).count() >= MAX_STORED_ANSWERS
        {
            return Err(Problem::too_many(&format!(
                "user {user:?} has sent {MAX_STORED_ANSWERS} requests with an Idempotency-Key \
                 within a day: omit the key"
            )));
        }
        let answer = StoredAnswer {
            at: now,
            request: request.clone(),
            status: applied.status,
            body: applied.body.clone(),
            warnings: applied.warnings.clone(),
            is_unchanged,
        };
        let text = serde_json::to_string(&answer).map_err(|error| Problem::internal(&error))?;
        if text.len() > MAX_STORED_ANSWER_LEN {
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                format!(
                    "an answer of more than {MAX_STORED_ANSWER_LEN} bytes is not kept: omit the \
                     Idempotency-Key, and use If-Match to repeat the change safely"
                ),
            ));
        }
        let stored = format!("{STORED_ANSWER_PREFIX}{key}");
        let precondition = match live.stored_answers.get(key) {
            Some((_, revision)) => Precondition::At(*revision),
            None => Precondition::Absent,
        };
        transaction.delete.remove(&stored);
        transaction
            .preconditions
            .insert(stored.clone(), precondition);
        transaction.put.insert(stored, text);
    }
    Ok(())
}
