//! The audit: entries, and the check of their chain.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use control::audit::{Broken, Chain, Checkpoint, Entry, Trust};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use service::{errln, outln};

use crate::{
    Session,
    failure::{Exit, Failure},
    output::{Table, cell},
};

#[derive(Subcommand)]
pub enum Verb {
    /// List entries.
    List {
        /// List entries after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// List at most this number of entries.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Check that no entry was altered, removed or inserted, and that the signed checkpoints agree.
    /// Missing last entries are found only with --since. Exits with 1 if the chain is broken.
    Verify {
        /// Public key that must have signed the last checkpoints, hexadecimal; may be repeated.
        /// Keep it apart from the director.
        #[arg(long, value_name = "HEX")]
        key: Vec<String>,
        /// File with such keys, one a line.
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// File with a checkpoint that `audit checkpoint` printed before: its entry must be there.
        #[arg(long, value_name = "FILE")]
        since: Option<PathBuf>,
    },
    /// Print the last signed checkpoint, as JSON. Keep it apart from the director, for `--since`.
    Checkpoint,
    /// Print the public key that signs checkpoints.
    Key,
}

pub fn run(session: &Session, verb: &Verb) -> Result<Option<Exit>, Failure> {
    match verb {
        Verb::List { after, limit } => list(session, *after, *limit).map(|()| None),
        Verb::Key => {
            let answer = session.client()?.get("/v1/audit/checkpoints", Vec::new())?;
            match answer["key"].as_str() {
                Some(key) if session.json => outln!("{}", json!({ "key": key })),
                Some(key) => outln!("{key}"),
                None => return Err(Failure::new(Exit::Absent, "the director signs nothing yet")),
            };
            Ok(None)
        }
        Verb::Checkpoint => {
            let answer = session.client()?.get("/v1/audit/checkpoints", Vec::new())?;
            match answer["items"].as_array().and_then(|items| items.last()) {
                Some(last) => outln!("{last}"),
                None => return Err(Failure::new(Exit::Absent, "the director signs nothing yet")),
            };
            Ok(None)
        }
        Verb::Verify {
            key,
            key_file,
            since,
        } => {
            let mut keys = key.clone();
            if let Some(path) = key_file {
                let text = text(path)?;
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                keys.extend(lines.map(ToOwned::to_owned));
            }
            let since = since.as_ref().map(|path| {
                serde_json::from_str(&text(path)?).map_err(|error| {
                    Failure::local(format!("{}: no checkpoint: {error}", path.display()))
                })
            });
            let trust = Trust {
                keys,
                since: since.transpose()?,
            };
            verify(session, &trust)
        }
    }
}

fn text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::local(format!("cannot read {}: {error}", path.display())))
}

/// Calls `each` with every page of entries after a number, until it returns false.
fn pages(
    session: &Session,
    mut after: u64,
    limit: usize,
    mut each: impl FnMut(&[Value]) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    loop {
        let query = vec![
            ("after", after.to_string()),
            ("limit", limit.clamp(1, 1000).to_string()),
        ];
        let page = session.client()?.get("/v1/audit", query)?;
        let items = page["items"].as_array().map_or(&[][..], Vec::as_slice);
        if !each(items)? {
            return Ok(());
        }
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => return Ok(()),
        }
    }
}

fn list(session: &Session, after: u64, limit: usize) -> Result<(), Failure> {
    let mut all = Vec::new();
    pages(session, after, limit, |items| {
        all.extend(items.iter().take(limit - all.len()).cloned());
        Ok(all.len() < limit)
    })?;
    if session.json {
        outln!("{}", Value::Array(all));
        return Ok(());
    }
    let fields = [
        "number",
        "at",
        "user",
        "operation",
        "tenant",
        "name",
        "result",
        "reason",
    ];
    let mut table = Table::new(&fields);
    for entry in &all {
        let row = fields.iter().map(|field| match *field {
            "result" => result(&entry[field]),
            field => cell(&entry[field]),
        });
        table.row(row.collect());
    }
    table.print();
    Ok(())
}

/// The result of an operation in one cell: `403 forbidden`, and `(3 times)` if the entry stands for
/// several equal ones.
fn result(result: &Value) -> String {
    let mut words = Vec::new();
    for field in ["status", "problem"] {
        if !result[field].is_null() {
            words.push(cell(&result[field]));
        }
    }
    if let Some(count) = result["count"].as_u64().filter(|count| *count > 1) {
        words.push(format!("({count} times)"));
    }
    match words.is_empty() {
        // An entry of an earlier version.
        true => "-".to_owned(),
        false => words.join(" "),
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Failure> {
    serde_json::from_value(value.clone()).map_err(|error| {
        let text = format!("the answer cannot be read: {error}; use the director's version");
        Failure::new(Exit::Unavailable, text)
    })
}

fn verify(session: &Session, trust: &Trust) -> Result<Option<Exit>, Failure> {
    let user = session.client()?.get("/v1/self", Vec::new())?;
    if !user["tenant"].is_null() {
        let text = "a tenant sees its own entries only, which are no chain: ask a provider-auditor";
        return Err(Failure::new(Exit::Forbidden, text));
    }
    let answer = session.client()?.get("/v1/audit/checkpoints", Vec::new())?;
    let checkpoints: Vec<Checkpoint> = read(&answer["items"])?;
    let count = checkpoints.len();
    let mut entries = 0_u64;
    let checked = Chain::new(checkpoints, trust).and_then(|mut chain| {
        let mut broken = None;
        let mut failed = None;
        let result = pages(session, 0, 1000, |items| {
            for item in items {
                // The whole text of an entry is hashed: one with another field is another one.
                let entry: Result<Entry, _> = serde_json::from_value(item.clone());
                let unreadable = |error: serde_json::Error| Broken::Unreadable {
                    after: entries,
                    reason: match item["unreadable"].as_str() {
                        Some(reason) => reason.to_owned(),
                        None => error.to_string(),
                    },
                };
                let pushed = entry.map_err(unreadable);
                if let Err(error) = pushed.and_then(|entry| chain.push(&entry)) {
                    broken = Some(error);
                    return Ok(false);
                }
                entries += 1;
            }
            Ok(true)
        });
        if let Err(failure) = result {
            failed = Some(failure);
        }
        match broken {
            Some(error) => Err(error),
            None => Ok((chain, failed)),
        }
    });
    let finished = match checked {
        Ok((_, Some(failure))) => return Err(failure),
        Ok((chain, None)) => chain.finish(),
        Err(broken) => Err(broken),
    };
    match finished {
        Ok((head, signed)) => {
            match session.json {
                true => outln!(
                    "{}",
                    json!({ "entries": entries, "checkpoints": count, "signed": signed,
                        "hash": head.hash, "broken": null })
                ),
                false => {
                    outln!("good: {entries} entries, {count} checkpoints");
                    match signed {
                        Some(signed) => outln!("signed: entries 1 to {signed}"),
                        None => outln!("signed: none yet"),
                    }
                }
            };
            if trust.keys.is_empty() && count > 0 {
                errln!(
                    "causeway: warning: without --key, checkpoints that an intruder signed with a \
                     key of its own pass"
                );
            }
            Ok(None)
        }
        Err(broken) => {
            match session.json {
                true => outln!("{}", json!({ "broken": broken.to_string() })),
                false => outln!("BROKEN: {broken}"),
            };
            Ok(Some(Exit::Different))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_one_cell() {
        for (value, expected) in [
            (json!({ "status": 201 }), "201"),
            (
                json!({ "status": 403, "problem": "forbidden" }),
                "403 forbidden",
            ),
            (
                json!({ "status": 409, "problem": "conflict", "count": 3 }),
                "409 conflict (3 times)",
            ),
            (Value::Null, "-"),
        ] {
            assert_eq!(result(&value), expected);
        }
    }
}
