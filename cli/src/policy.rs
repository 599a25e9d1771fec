//! `policy allow` and `policy deny`: policies by the networks that they are between.

use clap::{Arg, ArgAction, ArgMatches, Command};
use hyper::Method;
use serde_json::{Value, json};

use crate::{
    Session,
    change::change,
    client::encoded,
    failure::{Exit, Failure},
};

/// The verbs, without the options that all changes have.
pub fn commands() -> [Command; 2] {
    let network = |id: &'static str, name: &'static str, help: &'static str| {
        Arg::new(id).value_name(name).required(true).help(help)
    };
    let of = |name: &'static str, about: &'static str, one_way: &'static str| {
        Command::new(name)
            .about(about)
            .arg(network("from", "FROM", "Network that packets come from"))
            .arg(network("to", "TO", "Network that packets go to"))
            .arg(
                Arg::new("one-way")
                    .long("one-way")
                    .action(ArgAction::SetTrue)
                    .help(one_way),
            )
    };
    let allow = of(
        "allow",
        "Allow routing between two networks, by a new policy",
        "Allow only packets from FROM to TO; replies need another policy",
    );
    let deny = of(
        "deny",
        "Stop routing between two networks: delete or narrow the policies that allow it",
        "Stop only packets from FROM to TO",
    );
    let name = Arg::new("as")
        .long("name")
        .value_name("NAME")
        .help("Name of the policy; FROM-TO unless given");
    [allow.arg(name), deny]
}

fn networks(given: &ArgMatches) -> (&str, &str) {
    let of = |id| given.get_one::<String>(id).map_or("", String::as_str);
    (of("from"), of("to"))
}

/// Creates a policy.
pub fn allow(session: &Session, given: &ArgMatches, collection: &str) -> Result<(), Failure> {
    let (from, to) = networks(given);
    let name = given.get_one::<String>("as").cloned();
    let name = name.unwrap_or_else(|| format!("{from}-{to}"));
    if !control::is_name(&name) {
        return Err(Failure::usage(format!(
            "{name:?} is no name of a policy: write --name; {}",
            control::NAME_RULE
        )));
    }
    let both = !given.get_flag("one-way");
    let body = json!({ "name": name, "spec": { "from": from, "to": to, "both": both } });
    change(session, given, Method::POST, collection, Some(&body), None)
}

/// Deletes the policies between two networks, or leaves them the direction that is not denied.
pub fn deny(session: &Session, given: &ArgMatches, collection: &str) -> Result<(), Failure> {
    let (from, to) = networks(given);
    let denied = match given.get_flag("one-way") {
        true => vec![(from, to)],
        false => vec![(from, to), (to, from)],
    };
    let policies = session.client()?.list(collection)?;
    let mut is_found = false;
    for policy in &policies {
        let Some(left) = left(&policy["spec"], &denied) else {
            continue;
        };
        is_found = true;
        let name = policy["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("{collection}/{}", encoded(name));
        let revision = policy["metadata"]["revision"].as_u64();
        match left {
            Some((from, to)) => {
                let body = json!({ "spec": { "from": from, "to": to, "both": false } });
                change(session, given, Method::PUT, &path, Some(&body), revision)?;
            }
            None => change(session, given, Method::DELETE, &path, None, revision)?,
        }
    }
    if is_found {
        return Ok(());
    }
    let text = format!("no policy allows routing from {from:?} to {to:?}: see `policy list`");
    Err(Failure::new(Exit::Absent, text))
}

/// The direction that a policy still allows when others are denied, if any. `None` if it
/// allows none of them.
fn left<'s>(spec: &'s Value, denied: &[(&str, &str)]) -> Option<Option<(&'s str, &'s str)>> {
    let (from, to) = (spec["from"].as_str()?, spec["to"].as_str()?);
    let mut directions = vec![(from, to)];
    if spec["both"] == true {
        directions.push((to, from));
    }
    let before = directions.len();
    directions.retain(|direction| !denied.contains(direction));
    (directions.len() < before).then(|| directions.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_keeps_the_direction_that_is_not_denied() {
        let both = json!({ "from": "a", "to": "b", "both": true });
        let one = json!({ "from": "a", "to": "b", "both": false });
        let (ab, ba) = (("a", "b"), ("b", "a"));
        assert_eq!(left(&both, &[ab]), Some(Some(ba)));
        assert_eq!(left(&both, &[ba]), Some(Some(ab)));
        assert_eq!(left(&both, &[ab, ba]), Some(None));
        assert_eq!(left(&one, &[ab, ba]), Some(None));
        assert_eq!(left(&one, &[ba]), None);
    }
}
