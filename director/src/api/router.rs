//! The router: from a request to the handler of its operation.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::Response,
};
use tokio::time::timeout;

use super::{
    answer::Answer,
    operation::Operation,
    operations::{DOCUMENT, operations},
    request::{Call, Query, decoded, refuse_lists_as_objects},
    seen::Seen,
};
use crate::{
    Director,
    metrics::Answered,
    people::{Actor, token_hash},
    problem::Problem,
    tls::Peer,
};

/// Longest body of a request, bytes.
pub const MAX_BODY: usize = 1 << 20;

/// Longest body of a request without a token, bytes: a name and a password.
const MAX_PUBLIC_BODY: usize = 8 << 10;

/// Time for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The router of a director.
pub fn router(director: Arc<Director>) -> Router {
    LazyLock::force(&DOCUMENT);
    let operations: Arc<[Operation]> = operations().into();
    Router::new()
        .fallback(async move |request: Request| answer(director, operations, request).await)
}

/// Answers a request. Its handler runs to its end also if the client closes the connection: a
/// commit is not cut from the state in memory, which would have to be read again.
async fn answer(
    director: Arc<Director>,
    operations: Arc<[Operation]>,
    request: Request,
) -> Response {
    let handler = tokio::spawn(handle(director, operations, request));
    match handler.await {
        Ok(response) => response,
        Err(error) => Problem::internal(&error).into_response(),
    }
}

async fn handle(
    director: Arc<Director>,
    operations: Arc<[Operation]>,
    request: Request,
) -> Response {
    let found = find(&operations, request.method(), request.uri().path());
    let (operation, result) = match found {
        Ok((operation, parameters)) => {
            let result = call(&director, operation, parameters, request).await;
            (operation.id.clone(), result)
        }
        Err(problem) => (String::new(), Err(problem)),
    };
    let response = match result {
        Ok(answer) => answer.into_response(),
        Err(problem) => problem.into_response(),
    };
    let status = response.status().as_u16();
    director
        .metrics
        .requests
        .get_or_create(&Answered { operation, status })
        .inc();
    response
}

/// The operation of a method and path, and the values in the path, in order.
fn find<'o>(
    operations: &'o [Operation],
    method: &Method,
    path: &str,
) -> Result<(&'o Operation, Vec<String>), Problem> {
    let mut methods = Vec::new();
    for operation in operations {
        let Some(parameters) = parameters(&operation.path, path) else {
            continue;
        };
        if operation.method == *method {
            return Ok((operation, parameters));
        }
        methods.push(operation.method.as_str());
    }
    if methods.is_empty() {
        return Err(Problem::no_path());
    }
    Err(Problem::no_method(&methods))
}

/// The values of the placeholders, if the path is of the pattern.
fn parameters(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut values = Vec::new();
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return Some(values),
            (Some(expected), Some(found)) if expected.starts_with('{') => {
                values.push(decoded(found)?);
            }
            (Some(expected), Some(found)) if expected == found => {}
            (Some(_) | None, Some(_) | None) => return None,
        }
    }
}

async fn call(
    director: &Arc<Director>,
    operation: &Operation,
    parameters: Vec<String>,
    request: Request,
) -> Result<Answer, Problem> {
    let (parts, body) = request.into_parts();
    let (actor, hash) = match operation.is_public {
        true => (None, String::new()),
        false => {
            let (actor, hash) = authenticate(director, &parts.headers).await?;
            (Some(actor), hash)
        }
    };
    let seen = actor
        .clone()
        .map(|actor| Seen::new(operation, actor, &parameters, &parts));
    let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.ip());
    let request = Request::from_parts(parts, body);
    let mut name = None;
    let result = carry_out(
        director,
        operation,
        parameters,
        request,
        (actor, hash),
        &mut name,
    )
    .await;
    if let Some(seen) = seen {
        seen.note(director, name, peer, &result);
    }
    result
}

/// Carries out a request of an actor. `name` becomes that of the object that it creates.
async fn carry_out(
    director: &Arc<Director>,
    operation: &Operation,
    parameters: Vec<String>,
    request: Request,
    (actor, hash): (Option<Actor>, String),
    name: &mut Option<String>,
) -> Result<Answer, Problem> {
    let (parts, body) = request.into_parts();
    check_headers(operation, &parts.headers)?;
    let query = Query::parse(parts.uri.query().unwrap_or_default(), &operation.query)?;
    let body = read_body(operation, &parts.headers, body).await?;
    let json = control::json::parse(&body);
    if let Ok(json) = &json {
        *name = json["name"].as_str().map(ToOwned::to_owned);
    }
    // The handler refuses a body that is not JSON.
    if let (Some(schema), Ok(json)) = (&operation.body, &json) {
        refuse_lists_as_objects(schema, json)?;
    }
    let call = Call {
        director: Arc::clone(director),
        operation: operation.id.clone(),
        actor,
        token_hash: hash,
        peer: parts.extensions.get::<Peer>().map(|peer| peer.0.ip()),
        parameters,
        query,
        headers: parts.headers,
        method: parts.method,
        path: parts.uri.path().to_owned(),
        body,
        json,
    };
    (operation.handler)(call).await
}

/// The user of the request's token.
async fn authenticate(
    director: &Director,
    headers: &HeaderMap,
) -> Result<(Actor, String), Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    // Of two, either could be meant.
    let value = values.next().filter(|_| values.next().is_none());
    let value = value.and_then(|value| value.to_str().ok());
    // The scheme is of any case (RFC 9110 section 11.1).
    let secret = value.and_then(|value| value.split_once(' '));
    let secret = secret.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let secret = secret.map(|(_, secret)| secret);
    let secret = secret.ok_or_else(Problem::no_token)?;
    // The hash of a secret of 256 bits is looked up: its time tells nothing of other secrets.
    let hash = token_hash(secret);
    let now = director.environment.now();
    let live = director.live().await?;
    let has_ended = director.ended.has(&hash, &live, now);
    let actor = live.actor(&hash, now).filter(|_| !has_ended);
    let actor = actor.ok_or_else(Problem::no_token)?;
    let token = live.tokens.get(&hash).map(|(token, _)| token);
    let is_due = token.is_some_and(|token| director.last_uses.note(&hash, token, now));
    drop(live);
    if is_due {
        director.store_last_use(&hash, now).await;
    }
    Ok((actor, hash))
}

/// Refuses headers that are there twice, of which one would be left out, and those that would
/// promise what a change does not do.
fn check_headers(operation: &Operation, headers: &HeaderMap) -> Result<(), Problem> {
    let own = ["idempotency-key", "x-reason", "last-event-id"].map(HeaderName::from_static);
    let of_http = [
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
    ];
    for name in own.iter().chain(&of_http) {
        if headers.get_all(name).iter().count() > 1 {
            return Err(Problem::bad_request(format!(
                "{name} was sent twice: send it once"
            )));
        }
    }
    let [key, ..] = own;
    for name in [header::IF_MATCH, header::IF_NONE_MATCH, key] {
        let mut known = operation.headers.iter();
        let is_known = known.any(|known| known.name.eq_ignore_ascii_case(name.as_str()));
        if operation.method != Method::GET && headers.contains_key(&name) && !is_known {
            return Err(Problem::bad_request(format!(
                "{name}: this operation does not take it: omit it"
            )));
        }
    }
    Ok(())
}

async fn read_body(
    operation: &Operation,
    headers: &HeaderMap,
    body: Body,
) -> Result<Vec<u8>, Problem> {
    let limit = match operation.is_public {
        true => MAX_PUBLIC_BODY,
        false => MAX_BODY,
    };
    let bytes = timeout(BODY_TIMEOUT, axum::body::to_bytes(body, limit)).await;
    let bytes = bytes.map_err(|_| {
        Problem::bad_request(format!(
            "the body did not come within {} seconds: send it again",
            BODY_TIMEOUT.as_secs()
        ))
    })?;
    let bytes = bytes.map_err(|_| Problem::too_large(limit))?;
    if operation.body.is_none() {
        return match bytes.is_empty() {
            true => Ok(Vec::new()),
            false => Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "bad-request",
                "this operation has no body: send none",
            )),
        };
    }
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(Problem::media_type());
    }
    Ok(bytes.to_vec())
}
