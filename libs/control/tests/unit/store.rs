//! The simplest store: a map in memory that compares and sets.

use std::collections::BTreeMap;

use control::{Precondition, Revision, State, Transaction};

/// Keys with their values and revisions.
#[derive(Clone, Debug, Default)]
pub struct Store {
    values: BTreeMap<String, (String, Revision)>,
    revision: Revision,
}

impl Store {
    /// Commits a transaction whose preconditions hold; else names the key of one that does not.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<Revision, String> {
        for (key, precondition) in &transaction.preconditions {
            let there = self.values.get(key).map(|(_, revision)| *revision);
            let holds = match precondition {
                Precondition::Absent => there.is_none(),
                Precondition::At(revision) => there == Some(*revision),
            };
            if !holds {
                return Err(key.clone());
            }
        }
        self.revision += 1;
        for key in &transaction.delete {
            assert!(
                !transaction.put.contains_key(key),
                "{key} is put and deleted in one transaction"
            );
            self.values.remove(key);
        }
        for (key, value) in &transaction.put {
            let value = (value.clone(), self.revision);
            self.values.insert(key.clone(), value);
        }
        Ok(self.revision)
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<String> {
        self.values.get(key).map(|(value, _)| value.clone())
    }

    /// The state of what is stored.
    pub fn load(&self) -> State {
        let values = self.values.iter();
        let values = values.map(|(key, (value, revision))| (&**key, &**value, *revision));
        State::load(values, self.revision).expect("readable values")
    }
}
