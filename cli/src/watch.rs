//! The command `watch`: prints changes of objects from the director's stream of events.

use std::time::Duration;

use clap::Args;
use control::{Scope, kind};
use serde_json::Value;
use service::outln;

use crate::{
    Session,
    client::Call,
    failure::{Exit, Failure},
    output::cell,
    tenant::Choice,
};

/// Time before a connection that broke is made again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);
/// Time without a line after which a connection counts as broken: the director sends one every 15
/// seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

#[derive(Args)]
pub struct Watch {
    /// Kind of the objects, such as network.
    kind: String,
    #[command(flatten)]
    tenant: Choice,
    /// Print changes after this revision; without it, only changes that are made from now on.
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
    /// End after this number of changes.
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
}

/// Prints changes until the count is reached or the reader closes the pipe. A connection that
/// breaks is made again, and goes on after the last change.
pub fn run(session: &Session, given: &Watch) -> Result<(), Failure> {
    let client = session.client()?;
    let mut query = vec![("kind", given.kind.clone())];
    query.extend(tenant(session, given).map(|tenant| ("tenant", tenant)));
    query.extend(given.from.map(|from| ("from", from.to_string())));
    let (mut last, mut left, mut is_open) = (None::<String>, given.count, true);
    let mut was_connected = false;
    while is_open && left != Some(0) {
        let mut call = Call {
            path: "/v1/watch",
            query: query.clone(),
            ..Call::default()
        };
        call.headers
            .extend(last.clone().map(|last| ("last-event-id", last)));
        let result = client.stream(&call, IDLE_TIMEOUT, |line| {
            if let Some(id) = line.strip_prefix("id: ") {
                last = Some(id.to_owned());
            }
            if let Some(data) = line.strip_prefix("data: ") {
                is_open = print(session, data);
                left = left.map(|left| left.saturating_sub(1));
            }
            is_open && left != Some(0)
        });
        match result {
            Ok(()) => was_connected = true,
            Err(failure) if was_connected && failure.exit == Exit::Unavailable => {}
            Err(failure) => return Err(failure),
        }
        if is_open && left != Some(0) {
            client.pause(RECONNECT_DELAY);
        }
    }
    Ok(())
}

/// The tenant of the query. Kinds of the provider have one only where the command line names it: it
/// is refused there, and a default is not.
fn tenant(session: &Session, given: &Watch) -> Option<String> {
    let is_of_tenant = kind(&given.kind).is_some_and(|info| info.scope == Scope::Tenant);
    let is_asked = is_of_tenant || given.tenant.is_given();
    given.tenant.of(session).filter(|_| is_asked)
}

/// Prints one change; false if the reader has closed the pipe.
fn print(session: &Session, data: &str) -> bool {
    if session.json {
        return outln!("{data}");
    }
    let change: Value = serde_json::from_str(data).unwrap_or_default();
    let object = &change["object"];
    let verb = match object {
        Value::Null => "removed",
        object if object["metadata"]["generation"] == 1 => "written",
        _ => "changed",
    };
    let tenant = match change["tenant"].as_str() {
        Some(tenant) => format!("{tenant}/"),
        None => String::new(),
    };
    outln!(
        "{:>8} {verb:<8} {} {tenant}{}",
        cell(&change["revision"]),
        cell(&change["kind"]),
        cell(&change["name"])
    )
}
