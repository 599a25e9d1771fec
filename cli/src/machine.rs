//! The commands `token`, `identity` and `revoke` of gateways and appliances: enrolment tokens and
//! identities.

use clap::{Arg, ArgMatches, Command, value_parser};
use control::KindInfo;
use hyper::Method;
use serde_json::json;
use service::outln;

use crate::{
    Session,
    change::{change, send},
    failure::Failure,
};

/// Hours of an enrolment token unless given.
const HOURS: &str = "24";

/// Whether the objects of a kind are machines, which enrol.
pub fn is_machine(info: &KindInfo) -> bool {
    ["gateway", "appliance"].contains(&info.kind)
}

/// The verbs, without the name and the options that all changes have.
pub fn commands(kind: &str) -> [Command; 2] {
    let hours = Arg::new("hours")
        .long("hours")
        .value_name("HOURS")
        .default_value(HOURS)
        .value_parser(value_parser!(u32).range(1..=168))
        .help("Lifetime of the token, 1 to 168");
    let token = Command::new("token").arg(hours).about(format!(
        "Create an enrolment token for the {kind} and print it once. It replaces an unused token"
    ));
    let revoke = Command::new("revoke").about(format!(
        "Revoke the identity of the {kind}: its connection ends at once, and it needs a new token"
    ));
    [token, revoke]
}

/// Creates an enrolment token.
pub fn token(session: &Session, given: &ArgMatches, path: &str) -> Result<(), Failure> {
    let hours = given.get_one::<u32>("hours").copied().unwrap_or_default();
    let body = json!({ "hours": hours });
    let path = format!("{path}/enrolments");
    if let Some(made) = send(session, given, Method::POST, &path, Some(&body), None)? {
        let is_printed = match session.json {
            true => outln!("{made}"),
            false => outln!("{}", made["token"].as_str().unwrap_or_default()),
        };
        if !is_printed {
            let text = "the token could not be printed: create another one, which ends this one";
            return Err(Failure::local(text));
        }
    }
    Ok(())
}

/// Revokes an identity.
pub fn revoke(session: &Session, given: &ArgMatches, path: &str) -> Result<(), Failure> {
    let path = format!("{path}/identity");
    change(session, given, Method::DELETE, &path, None, None)
}
