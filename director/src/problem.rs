//! Why a request is refused (RFC 9457): the answer of the API, and of all that it calls.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use control::{Conflict, Reason, Refusal};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{audit::Outcome, people::User};

/// Why a request is refused (RFC 9457).
#[derive(Clone, Debug)]
pub struct Problem(Box<ProblemBody>);

/// The content of a refusal (RFC 9457).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ProblemBody {
    /// Stable, for programs: `urn:causeway:problem:conflict`.
    #[serde(rename = "type")]
    kind: String,
    /// Short text of the status.
    title: String,
    /// Status of HTTP.
    status: u16,
    /// The reason, and what to do.
    detail: String,
    /// The objects and fields that contradict the request.
    #[schema(value_type = Vec<Object>)]
    conflicts: Vec<Conflict>,
    #[serde(skip)]
    #[schema(ignore)]
    allow: Option<String>,
    /// Time after which the request may be sent again, seconds.
    #[serde(skip)]
    #[schema(ignore)]
    retry_after: Option<u64>,
}

/// Types begin with this.
const TYPE: &str = "urn:causeway:problem:";

/// Time after which a request that was refused for its number, or for the state of the director,
/// may be sent again, unless the refusal knows better, seconds.
const RETRY_SECONDS: u64 = 5;

/// Longest detail, and longest value of a conflict, characters.
const MAX_DETAIL_LEN: usize = 2000;

/// Statuses of problems: the document lists them for each operation.
pub(crate) const STATUSES: [u16; 15] = [
    400, 401, 403, 404, 405, 409, 410, 412, 413, 415, 422, 429, 500, 503, 507,
];

impl Problem {
    pub(crate) fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(ProblemBody {
            kind: format!("{TYPE}{kind}"),
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            detail: shortened(detail.into()),
            conflicts: Vec::new(),
            allow: None,
            retry_after: None,
        }))
    }

    /// The same, with the objects and fields that contradict the request.
    pub(crate) fn with(mut self, conflicts: Vec<Conflict>) -> Self {
        self.0.conflicts = conflicts;
        for conflict in &mut self.0.conflicts {
            conflict.value = shortened(std::mem::take(&mut conflict.value));
            conflict.name = shortened(std::mem::take(&mut conflict.name));
        }
        self
    }

    /// The result for the audit.
    pub(crate) fn outcome(&self) -> Outcome {
        let kind = self.0.kind.strip_prefix(TYPE).unwrap_or_default();
        Outcome::refused(self.0.status, kind)
    }

    /// Whether it is of this type.
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.0.kind.strip_prefix(TYPE) == Some(kind)
    }

    /// The same, with the time after which the request may be sent again, seconds.
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        let time = match seconds {
            0..120 => format!("{seconds} seconds"),
            _ => format!("{} minutes", seconds.div_ceil(60)),
        };
        self.0.detail = shortened(format!("{}: try again in {time}", self.0.detail));
        self.0.retry_after = Some(seconds);
        self
    }

    pub(crate) fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "the store cannot be used at present, and the request may have been carried out or \
             not: read the object, and try again with the same Idempotency-Key",
        )
    }

    pub(crate) fn too_many(detail: &str) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many", detail)
    }

    pub(crate) fn stopping() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "the director stops, and nothing was changed: try again when it has started",
        )
    }

    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "internal error: a request failed, and nothing was changed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the request failed, and nothing was changed: the director's log has the reason",
        )
    }

    pub(crate) fn idempotency_key() -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key",
            "another request had this Idempotency-Key within a day: use a new key for each request",
        )
    }

    pub(crate) fn reason() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "reason",
            "force overrules what protects others, and the audit tells why: give the reason in the \
             header X-Reason (`causeway`: --reason)",
        )
    }

    /// A change of a tenant's own objects by the provider, without a reason.
    pub(crate) fn tenant_reason() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "reason",
            "the object is the tenant's own, whose audit tells why the provider changes it: give \
             the reason in the header X-Reason (`causeway`: --reason)",
        )
    }

    /// A user, or a field of it, contradicts the request.
    pub(crate) fn user(detail: impl Into<String>, user: &User, field: &str, value: &str) -> Self {
        let conflict = Conflict {
            kind: "user".to_owned(),
            tenant: user.tenant.clone(),
            name: user.name.clone(),
            field: field.to_owned(),
            value: value.to_owned(),
        };
        Self::new(StatusCode::CONFLICT, "conflict", detail).with(vec![conflict])
    }

    pub(crate) fn no_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no-path",
            "there is nothing at this path: see the paths of /v1/openapi.json",
        )
    }

    pub(crate) fn no_method(methods: &[&str]) -> Self {
        let allow = methods.join(", ");
        let detail = format!("this path has no such method: use {allow}");
        let mut problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, "no-method", detail);
        problem.0.allow = Some(allow);
        problem
    }

    pub(crate) fn no_token() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "no-token",
            "send a valid API token as `Authorization: Bearer cwy_…`; POST /v1/sessions makes one \
             of a user's name and password",
        )
    }

    pub(crate) fn forbidden(role: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!("the role {role} may not do this: ask an administrator"),
        )
    }

    /// The body is longer than this number of bytes.
    pub(crate) fn too_large(limit: usize) -> Self {
        let limit = match limit >> 20 {
            0 => format!("{} KiB", limit >> 10),
            mebibytes => format!("{mebibytes} MiB"),
        };
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            format!("the body exceeds {limit}, or ended early: send less at once"),
        )
    }

    pub(crate) fn media_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            "the body must be JSON: send `Content-Type: application/json`",
        )
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    pub(crate) fn moved(expected: &str, found: &str) -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "revision",
            format!(
                "If-Match has {expected}, and the object has {found}: read it again, and repeat \
                 the change on what it is now"
            ),
        )
    }

    pub(crate) fn into_response(self) -> Response {
        let text = serde_json::to_string(&self.0).unwrap_or_default();
        let mut response = Response::new(Body::from(text));
        *response.status_mut() =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.0.status == StatusCode::UNAUTHORIZED.as_u16() {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self.0.status, 429 | 503) {
            let seconds = self.0.retry_after.unwrap_or(RETRY_SECONDS);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.0.allow.and_then(|allow| allow.try_into().ok()) {
            headers.insert(header::ALLOW, allow);
        }
        response
    }
}

/// A refusal quotes the request, which may be long.
fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_DETAIL_LEN) {
        text.truncate(end);
        text.push_str("… (cut)");
    }
    text
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (status, kind) = match refusal.reason {
            Reason::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Reason::NotFound => (StatusCode::NOT_FOUND, "not-found"),
            Reason::Conflict => (StatusCode::CONFLICT, "conflict"),
            Reason::Exhausted => (StatusCode::INSUFFICIENT_STORAGE, "exhausted"),
        };
        Self::new(status, kind, refusal.detail).with(refusal.conflicts)
    }
}
