//! A change of the director's objects, sent with the options that all changes have.

use clap::ArgMatches;
use hyper::Method;
use serde_json::Value;
use service::{errln, outln};

use crate::{
    Session,
    client::{Call, header_text},
    failure::Failure,
    output,
};

/// Sends a change, and prints what it made, or would make.
pub fn change(
    session: &Session,
    given: &ArgMatches,
    method: Method,
    path: &str,
    body: Option<&Value>,
    revision: Option<u64>,
) -> Result<(), Failure> {
    if let Some(made) = send(session, given, method, path, body, revision)? {
        match session.json {
            true => outln!("{made}"),
            false => service::stdout::print(output::object(&made)),
        };
    }
    Ok(())
}

/// Sends a change, and prints what a dry run would make: the answer's content, if it was made and
/// has any.
pub fn send(
    session: &Session,
    given: &ArgMatches,
    method: Method,
    path: &str,
    body: Option<&Value>,
    revision: Option<u64>,
) -> Result<Option<Value>, Failure> {
    let flag = |name: &str| {
        let found = given.try_get_one::<bool>(name).ok().flatten();
        found.copied().unwrap_or_default()
    };
    let reason = given.get_one::<String>("reason");
    if flag("force") && !flag("dry-run") && reason.is_none() {
        return Err(Failure::force_without_reason());
    }
    let number = given.try_get_one::<u64>("if-revision").ok().flatten();
    let mut call = Call {
        method,
        path,
        body,
        ..Call::default()
    };
    for (name, parameter) in [
        ("dry-run", "dry_run"),
        ("force", "force"),
        ("take-over", "take_over"),
    ] {
        if flag(name) {
            call.query.push((parameter, "true".to_owned()));
        }
    }
    if let Some(revision) = number.copied().or(revision) {
        call.headers.push(("if-match", format!("\"{revision}\"")));
    }
    if let Some(reason) = reason {
        call.headers.push(("x-reason", header_text(reason)));
    }
    let answer = session.client()?.send(&call)?;
    let mut warnings = answer.warnings;
    let is_dry = flag("dry-run");
    if is_dry {
        let more = answer.body["warnings"].as_array().into_iter().flatten();
        warnings.extend(more.filter_map(|text| text.as_str().map(ToOwned::to_owned)));
        match session.json {
            true => {
                outln!("{}", answer.body);
            }
            false => {
                let differences = answer.body["differences"].as_array();
                output::differences(differences.map_or(&[], Vec::as_slice)).print();
            }
        }
    }
    for warning in warnings {
        errln!("causeway: warning: {warning}");
    }
    Ok((!is_dry && !answer.body.is_null()).then_some(answer.body))
}
