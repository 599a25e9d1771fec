//! The stored form of a state: a whole state in the first line, then a delta a line, each in JSON.
//!
//! A reader uses the lines up to the first that is cut off or does not follow from those before it:
//! a machine may stop while a line is written.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use service::config::Checker;

use crate::{Bounds, Delta, Model, Snapshot, Update};

/// Version of the form.
pub const VERSION: u32 = 1;

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head<T> {
    version: u32,
    snapshot: T,
}

/// The version alone, of a text of any version.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The version of a text of another version; `None`: it is of [`VERSION`], or its first line names
/// none.
#[must_use]
pub fn other_version(text: &str) -> Option<u32> {
    let first = text.lines().next()?;
    let Version { version } = serde_json::from_str(first).ok()?;
    (version != VERSION).then_some(version)
}

/// Writes the first line.
///
/// # Errors
/// Those of `out`.
pub fn write_state(mut out: impl Write, snapshot: &Snapshot) -> io::Result<()> {
    let head = Head {
        version: VERSION,
        snapshot,
    };
    serde_json::to_writer(&mut out, &head)?;
    out.write_all(b"\n")
}

/// Writes a further line.
///
/// # Errors
/// Those of `out`.
pub fn write_delta(mut out: impl Write, delta: &Delta) -> io::Result<()> {
    serde_json::to_writer(&mut out, delta)?;
    out.write_all(b"\n")
}

/// Reads a text of [`VERSION`]: the state, and what is wrong with a later line.
///
/// # Errors
/// What is wrong with the first line: there is no state.
pub fn read(text: &str) -> Result<(Model, Option<String>), String> {
    // The last line is cut off if the machine stopped while it was written.
    let end = text.rfind('\n').map_or(0, |end| end + 1);
    let mut problem = (end < text.len()).then(|| "the last line is incomplete".to_owned());
    let mut lines = text[..end].lines();
    let first = lines.next().ok_or("it has no complete line")?;
    let head: Head<Snapshot> = serde_json::from_str(first).map_err(|e| e.to_string())?;
    let mut model = Model::default();
    let bounds = Bounds::none();
    let prepared = if head.snapshot.revision == 0 {
        let mut c = Checker::new();
        let prepared = model.prepare_file(&mut c, &head.snapshot.objects, &bounds);
        c.finish(prepared).map_err(|problems| {
            let problems = problems.first().map(ToString::to_string);
            problems.unwrap_or_default()
        })?
    } else {
        let update = Update::Snapshot(head.snapshot);
        model.prepare(&update, &bounds).map_err(|e| e.to_string())?
    };
    drop(model.commit(prepared));
    for (n, line) in (2..).zip(lines) {
        let changed = serde_json::from_str(line)
            .map_err(|error| error.to_string())
            .and_then(|delta| {
                let update = Update::Delta(delta);
                model.prepare(&update, &bounds).map_err(|e| e.to_string())
            });
        match changed {
            Ok(prepared) => drop(model.commit(prepared)),
            Err(error) => {
                problem = Some(format!("line {n}: {error}"));
                break;
            }
        }
    }
    Ok((model, problem))
}
