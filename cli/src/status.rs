//! The command `status`: counts of objects, conditions that are not true, leases that end soon.

use clap::Args;
use service::outln;

use crate::{
    Session,
    failure::{Exit, Failure},
    output::items,
    tenant::Choice,
};

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    tenant: Choice,
}

/// Prints numbers of objects, conditions that are not well, and leases that end within 7 days. The
/// exit code is that of a difference if a condition is not well or a lease ends.
///
/// # Errors
/// [`Failure`] when the director does not answer.
pub fn run(session: &Session, given: &Status) -> Result<Option<Exit>, Failure> {
    let tenant = given.tenant.of(session);
    let query = tenant.into_iter().map(|tenant| ("tenant", tenant));
    let status = session.client()?.get("/v1/status", query.collect())?;
    if session.json {
        outln!("{status}");
    } else {
        let counts = status["counts"].as_object().into_iter().flatten();
        for (kind, count) in counts.filter(|(_, count)| count.as_u64() != Some(0)) {
            outln!("{kind}: {count}");
        }
        for part in ["conditions", "leases"] {
            let found = status[part].as_array().map_or(&[][..], Vec::as_slice);
            if !found.is_empty() {
                outln!("");
                items(found).print();
            }
        }
    }
    let is_well = status["is_well"].as_bool().unwrap_or_default();
    Ok((!is_well).then_some(Exit::Different))
}
