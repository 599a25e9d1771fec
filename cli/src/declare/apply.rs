//! The requests of `apply`.

use std::collections::BTreeSet;

use control::reason_for;
use hyper::Method;
use serde_json::{Value, json};
use service::{errln, outln};

use super::{
    Action, Apply, Step, digest,
    order::{Before, Permission, Request, order},
    plan, shown,
};
use crate::{
    Session,
    client::{Call, Client, encoded, header_text},
    failure::{Exit, Failure, Progress},
};

/// Makes the changes of files: none unless all are accepted on a copy, and the user may make them.
pub fn apply(session: &Session, given: &Apply) -> Result<(), Failure> {
    if given.force && given.reason.is_none() {
        return Err(Failure::force_without_reason());
    }
    let client = session.client()?;
    let plan = plan(client, &given.source)?;
    if let Some(expected) = &given.expect {
        let digest = digest(&plan.actions);
        if digest != *expected {
            let text = format!(
                "the changes have the digest {digest} by now, not {expected}: look at `causeway \
                 diff` again"
            );
            return Err(Failure::new(Exit::Moved, text));
        }
    }
    let permission = Permission {
        force: given.force,
        take_over: given.source.take_over,
    };
    let requests = order(&plan, permission)?;
    require_reason(client, given, &requests)?;
    rehearse(client, given, &requests)?;
    for (done, request) in requests.iter().enumerate() {
        let warnings = execute(client, given, request).map_err(|failure| {
            let of = |requests: &[Request]| requests.iter().map(Request::shown).collect();
            Failure {
                text: format!("{}: {}", request.shown(), failure.text),
                progress: Some(Progress {
                    made: of(&requests[..done]),
                    not_made: of(&requests[done..]),
                }),
                ..failure
            }
        })?;
        let action = plan.actions.iter().find(|action| action.key == request.key);
        report(session, request, action);
        for warning in warnings {
            errln!("causeway: warning: {warning}");
        }
    }
    if !session.json {
        outln!("{} changes", requests.len());
    }
    Ok(())
}

fn report(session: &Session, request: &Request, action: Option<&Action>) {
    let before = match (&request.before, action) {
        (Before::Made(spec), _) => json!({ "spec": spec }),
        (Before::At(_), Some(action)) => action.before.clone(),
        (Before::At(_) | Before::Absent, _) => Value::Null,
    };
    let made = Action {
        step: request.step,
        key: request.key.clone(),
        before,
        after: request.spec.clone(),
        owner: request.owner.clone(),
    };
    let verb = match request.step {
        Step::Create => "created",
        Step::Replace => "changed",
        Step::Delete => "deleted",
    };
    match session.json {
        true => outln!("{}", made.difference()),
        false => outln!("{verb} {}", shown(&request.key)),
    };
}

/// Refuses all changes if one of them must have a reason, which is not given: the director would
/// refuse it after those before it.
fn require_reason(client: &Client, given: &Apply, requests: &[Request]) -> Result<(), Failure> {
    let is_without = |request: &&Request, by_provider| {
        given.reason.is_none() && reason_for(request.info().kind, false, by_provider).is_some()
    };
    if !requests.iter().any(|request| is_without(&request, true)) {
        return Ok(());
    }
    let by_provider = client.get("/v1/self", Vec::new())?["tenant"].is_null();
    let without = requests.iter().filter(|r| is_without(r, by_provider));
    let without: Vec<_> = without.map(Request::shown).collect();
    match without.is_empty() {
        true => Ok(()),
        false => Err(Failure::change_without_reason(&without)),
    }
}

/// Asks the director for what can be asked before anything is changed: whether the user may make
/// changes of each kind, and whether those that depend on no other one are accepted.
fn rehearse(client: &Client, given: &Apply, requests: &[Request]) -> Result<(), Failure> {
    let mut asked = BTreeSet::new();
    for (place, request) in requests.iter().enumerate() {
        // The director has not seen the requests before this one.
        let is_first = place == 0;
        let verb = request.step as u8;
        if !asked.insert((request.key.0, verb)) && !is_first {
            continue;
        }
        if let Before::Made(_) = request.before {
            continue;
        }
        let mut call = call(given, request);
        call.query.push(("dry_run", "true".to_owned()));
        let path = path(request);
        let body = body(request);
        call.path = &path;
        call.body = body.as_ref();
        if let Err(failure) = client.send(&call) {
            let is_sure = is_first || failure.exit == Exit::Forbidden;
            if is_sure || failure.exit == Exit::Unavailable {
                let text = format!("{}: {} (nothing is changed)", request.shown(), failure.text);
                return Err(Failure { text, ..failure });
            }
        }
    }
    Ok(())
}

fn execute(client: &Client, given: &Apply, request: &Request) -> Result<Vec<String>, Failure> {
    let (path, body) = (path(request), body(request));
    let mut call = call(given, request);
    if let Before::Made(expected) = &request.before {
        let object = client.get(&path, Vec::new())?;
        if object["spec"] != *expected {
            let text = "another user has changed it meanwhile: look at `causeway diff` again";
            return Err(Failure::new(Exit::Moved, text));
        }
        let revision = object["metadata"]["revision"].as_u64().unwrap_or_default();
        call.headers.push(("if-match", format!("\"{revision}\"")));
    }
    call.path = &path;
    call.body = body.as_ref();
    Ok(client.send(&call)?.warnings)
}

/// The request but for its path and body.
fn call(given: &Apply, request: &Request) -> Call<'static> {
    let mut call = Call {
        method: match request.step {
            Step::Create => Method::POST,
            Step::Replace => Method::PUT,
            Step::Delete => Method::DELETE,
        },
        ..Call::default()
    };
    if request.step != Step::Create && given.force {
        call.query.push(("force", "true".to_owned()));
    }
    if request.step == Step::Replace && given.source.take_over {
        call.query.push(("take_over", "true".to_owned()));
    }
    if let Before::At(revision) = request.before {
        call.headers.push(("if-match", format!("\"{revision}\"")));
    }
    let reason = given.reason.as_deref().map(header_text);
    call.headers
        .extend(reason.map(|reason| ("x-reason", reason)));
    call
}

fn path(request: &Request) -> String {
    let (_, tenant, name) = &request.key;
    let collection = request.info().collection(&encoded(tenant));
    match request.step {
        Step::Create => collection,
        Step::Replace | Step::Delete => format!("{collection}/{}", encoded(name)),
    }
}

fn body(request: &Request) -> Option<Value> {
    let mut body = match request.step {
        Step::Create => json!({ "name": request.key.2, "spec": request.spec }),
        Step::Replace => json!({ "spec": request.spec }),
        Step::Delete => return None,
    };
    if let Some(owner) = &request.owner {
        body["owner"] = owner.as_str().into();
    }
    Some(body)
}
