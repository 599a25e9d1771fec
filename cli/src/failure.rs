//! Why a command fails, and its exit code.

use std::fmt;

use serde_json::{Value, json};

/// Exit codes. They are documented in `docs/cli.md`: programs depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `diff` has found differences, `audit verify` a broken chain, `status` or `plan check` a
    /// condition that is not true, or `status` a lease that ends soon.
    Different = 1,
    /// The command line is wrong. clap exits with the same code.
    Usage = 2,
    /// The object does not exist (404).
    Absent = 3,
    /// The director refuses the request: it is wrong, or contradicts other objects (400, 409, 422,
    /// 507).
    Refused = 4,
    /// The token does not suffice (401, 403).
    Forbidden = 5,
    /// The object has changed since it was read (410, 412).
    Moved = 6,
    /// The director cannot be reached, or fails (5xx).
    Unavailable = 7,
    /// A file of this machine cannot be used.
    Local = 8,
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    /// The reason, and the remedy.
    pub text: String,
    /// The director's answer (RFC 9457), if there is one.
    pub problem: Option<Value>,
    /// Of several requests, those that were carried out, and the others.
    pub progress: Option<Progress>,
}

/// Requests for people: `create host h1`.
#[derive(Debug)]
pub struct Progress {
    pub made: Vec<String>,
    /// The first one has failed.
    pub not_made: Vec<String>,
}

/// Requests that are printed of each part.
const MAX_LISTED: usize = 20;

impl Failure {
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
            problem: None,
            progress: None,
        }
    }

    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// `--force` without `--reason`.
    pub fn force_without_reason() -> Self {
        Self::usage(
            "--force overrules what protects others, and the audit tells why: add --reason TEXT",
        )
    }

    /// Changes of tenants' own objects by the provider, without `--reason`.
    pub fn change_without_reason(requests: &[String]) -> Self {
        let mut text = "the audit of a tenant must tell why the provider changes the tenant's own \
                        objects: add --reason TEXT (nothing is changed)"
            .to_owned();
        for request in requests.iter().take(MAX_LISTED) {
            text += &format!("\n  needs a reason: {request}");
        }
        if requests.len() > MAX_LISTED {
            text += &format!("\n  needs a reason: {} more", requests.len() - MAX_LISTED);
        }
        Self::usage(text)
    }

    pub fn local(text: impl Into<String>) -> Self {
        Self::new(Exit::Local, text)
    }

    /// For programs: the director's problem, or else one of the same form, with the exit code.
    pub fn json(&self) -> Value {
        let own = || json!({ "type": "about:blank", "detail": self.text, "exit": self.exit as u8 });
        let mut value = self.problem.clone().unwrap_or_else(own);
        if let (Some(progress), Some(fields)) = (&self.progress, value.as_object_mut()) {
            fields.insert("made".to_owned(), json!(progress.made));
            fields.insert("not_made".to_owned(), json!(progress.not_made));
        }
        value
    }

    /// The failure of a request that the director has answered with this status and body.
    pub fn answered(status: u16, body: &str) -> Self {
        let exit = match status {
            401 | 403 => Exit::Forbidden,
            404 => Exit::Absent,
            410 | 412 => Exit::Moved,
            507 | 400..=499 => Exit::Refused,
            _ => Exit::Unavailable,
        };
        let problem: Option<Value> = serde_json::from_str(body).ok();
        let detail = problem.as_ref().and_then(|body| body["detail"].as_str());
        let text = match detail {
            Some(detail) => detail.to_owned(),
            None => format!(
                "the server answered with status {status} and no reason: check that its address is \
                 that of a director"
            ),
        };
        Self {
            exit,
            text,
            problem,
            progress: None,
        }
    }
}

/// For people: the reason, and a line for each conflicting object.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        let problem = self.problem.as_ref();
        let conflicts = problem.and_then(|problem| problem["conflicts"].as_array());
        for conflict in conflicts.into_iter().flatten() {
            let text = |field: &str| conflict[field].as_str().unwrap_or_default();
            let tenant = match text("tenant") {
                "" => String::new(),
                tenant => format!(" of tenant {tenant}"),
            };
            let (kind, name, field) = (text("kind"), text("name"), text("field"));
            write!(f, "\n  conflict: {kind} {name}{tenant}: {field}")?;
            match text("value") {
                "" => {}
                value => write!(f, " = {value}")?,
            }
        }
        let Some(Progress { made, not_made }) = &self.progress else {
            return Ok(());
        };
        let (done, all) = (made.len(), made.len() + not_made.len());
        write!(
            f,
            "\n  {done} of {all} changes are made; apply the files again to go on"
        )?;
        for (head, requests) in [("made", made), ("not made", not_made)] {
            for request in requests.iter().take(MAX_LISTED) {
                write!(f, "\n  {head}: {request}")?;
            }
            if requests.len() > MAX_LISTED {
                write!(f, "\n  {head}: {} more", requests.len() - MAX_LISTED)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_an_exit_code() {
        for (status, exit) in [
            (400, Exit::Refused),
            (401, Exit::Forbidden),
            (403, Exit::Forbidden),
            (404, Exit::Absent),
            (409, Exit::Refused),
            (410, Exit::Moved),
            (412, Exit::Moved),
            (422, Exit::Refused),
            (429, Exit::Refused),
            (500, Exit::Unavailable),
            (503, Exit::Unavailable),
            (507, Exit::Refused),
        ] {
            assert_eq!(Failure::answered(status, "").exit, exit, "{status}");
        }
    }

    #[test]
    fn conflicts_are_printed_one_a_line() {
        let body = r#"{"detail": "no", "conflicts": [{"kind": "rule", "tenant": "acme",
            "name": "web", "field": "public_port", "value": "80"}, {"kind": "host", "name": "h1",
            "field": "name", "value": ""}]}"#;
        let text = Failure::answered(409, body).to_string();
        let expected = "no\n  conflict: rule web of tenant acme: public_port = 80\n  \
                        conflict: host h1: name";
        assert_eq!(text, expected);
    }
}
