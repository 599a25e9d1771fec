//! The difference that a change makes to the stored keys, and its preconditions.

use std::collections::{BTreeMap, BTreeSet};

/// Number of a commit. Each commit of a store has a greater one than the commit before; 0 is
/// before the first.
pub type Revision = u64;

/// Precondition for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The key does not exist.
    Absent,
    /// The key exists, and this commit wrote it last.
    At(Revision),
}

/// Keys to write and to delete, all or none, if all preconditions hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// By key. Unless all hold, nothing is written.
    pub preconditions: BTreeMap<String, Precondition>,
    /// Values to write.
    pub put: BTreeMap<String, String>,
    /// Keys to delete. None of them is in `put`. A key that does not exist is no error.
    pub delete: BTreeSet<String>,
}

impl Transaction {
    /// Whether nothing is written and nothing deleted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty()
    }

    /// Keys that it deletes, then those that it writes, with their values.
    pub fn changes(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let deleted = self.delete.iter().map(|key| (key.as_str(), None));
        let put = self.put.iter();
        deleted.chain(put.map(|(key, value)| (key.as_str(), Some(value.as_str()))))
    }

    /// Writes a key which must not exist.
    pub fn create(&mut self, key: String, value: String) {
        self.preconditions.insert(key.clone(), Precondition::Absent);
        self.put.insert(key, value);
    }
}
