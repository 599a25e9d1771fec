//! Answers of operations that succeed.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use control::Revision;
use serde::Serialize;
use serde_json::Value;

use crate::problem::Problem;

/// An answer to a request of the API, before it becomes one of HTTP.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, String)>,
    body: Body,
}

impl Answer {
    /// An answer in JSON.
    #[must_use]
    pub fn json(status: StatusCode, body: &Value) -> Self {
        Self::text(status, body.to_string())
    }

    /// An answer in JSON that is text already.
    #[must_use]
    pub fn text(status: StatusCode, text: String) -> Self {
        Self {
            status,
            headers: vec![(header::CONTENT_TYPE, "application/json".to_owned())],
            body: Body::from(text),
        }
    }

    /// An answer without content.
    #[must_use]
    pub fn done() -> Self {
        Self {
            status: StatusCode::NO_CONTENT,
            headers: Vec::new(),
            body: Body::empty(),
        }
    }

    /// Server-sent events.
    #[must_use]
    pub fn events(body: Body) -> Self {
        let kind = "text/event-stream".to_owned();
        Self {
            status: StatusCode::OK,
            headers: vec![(header::CONTENT_TYPE, kind)],
            body,
        }
    }

    /// With the revision as strong entity tag.
    #[must_use]
    pub fn tagged(mut self, revision: Revision) -> Self {
        self.headers.push((header::ETAG, etag(revision)));
        self
    }

    /// With the path of what was created.
    #[must_use]
    pub fn located(mut self, path: String) -> Self {
        self.headers.push((header::LOCATION, path));
        self
    }

    /// With warnings for the person who asked.
    #[must_use]
    pub fn with_warnings(mut self, warnings: &[String]) -> Self {
        for warning in warnings {
            let name = HeaderName::from_static("causeway-warning");
            self.headers.push((name, warning.clone()));
        }
        self
    }

    pub(super) fn into_response(self) -> Response {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.append(name, value);
            }
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// The entity tag of a revision (RFC 9110 section 8.8.3).
pub(super) fn etag(revision: Revision) -> String {
    format!("\"{revision}\"")
}

/// The value as a tree, for the answer or the store.
pub(super) fn body(value: &impl Serialize) -> Result<Value, Problem> {
    serde_json::to_value(value).map_err(|error| Problem::internal(&error))
}

/// An answer with the value as text, without a tree of values before.
pub(super) fn json_text<T: Serialize>(value: &T) -> Result<Answer, Problem> {
    match serde_json::to_string(value) {
        Ok(text) => Ok(Answer::text(StatusCode::OK, text)),
        Err(error) => Err(Problem::internal(&error)),
    }
}
