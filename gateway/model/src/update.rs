//! Updates of the desired state, and why one is refused.

use serde::{Deserialize, Serialize};
use service::config::Problem;

use crate::objects::{Ids, Objects};

/// Whether an update may remove most of the circuits, routes or tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Withdrawal {
    /// No: it is taken for a mistake of the sender.
    #[default]
    Unintended,
    /// Yes.
    Intended,
}

impl Withdrawal {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A whole state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Number of the state, from 1; 0 in the stored state: from the configuration file.
    pub revision: u64,
    #[serde(default, skip_serializing_if = "Withdrawal::is_default")]
    pub withdrawal: Withdrawal,
    #[serde(default)]
    pub objects: Objects,
}

/// A difference between two states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// Revision of the state that it changes.
    pub base: u64,
    /// Revision of the new state, above `base`.
    pub revision: u64,
    #[serde(default, skip_serializing_if = "Withdrawal::is_default")]
    pub withdrawal: Withdrawal,
    /// Objects that are added, or replace that of their ID.
    #[serde(default)]
    pub put: Objects,
    /// Objects that are removed; each must be there.
    #[serde(default)]
    pub remove: Ids,
}

/// An update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Update {
    Snapshot(Snapshot),
    Delta(Delta),
}

impl Update {
    /// Revision of the state after the update.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        match self {
            Self::Snapshot(snapshot) => snapshot.revision,
            Self::Delta(delta) => delta.revision,
        }
    }
}

/// Why an update is refused. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A newer state is in force.
    #[error("revision {revision} is older than revision {applied}, which is in force")]
    Older { revision: u64, applied: u64 },
    /// The delta is of another state.
    #[error(
        "the delta changes revision {base}, and revision {applied} is in force: send a delta of \
         {applied}, or a snapshot"
    )]
    Base { base: u64, applied: u64 },
    /// A delta of a state that has no revision.
    #[error("the state in force is that of the configuration file: send a snapshot first")]
    NoBase,
    /// The revision was used for another state.
    #[error("revision {revision} is in force with other contents: use a higher revision")]
    Differs { revision: u64 },
    /// The number is wrong.
    #[error("revision {revision}: write a number above {above}")]
    Number { revision: u64, above: u64 },
    /// It removes more than half.
    #[error(
        "it removes {removed} of {present} {kind}: if that is intended, write \"withdrawal\": \
         \"intended\""
    )]
    Withdrawal {
        kind: &'static str,
        removed: usize,
        present: usize,
    },
    /// The objects are wrong; every problem is listed.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|p| format!("  - {p}")).collect();
    let s = if problems.len() == 1 { "" } else { "s" };
    format!("{} problem{s}:\n{}", problems.len(), lines.join("\n"))
}
