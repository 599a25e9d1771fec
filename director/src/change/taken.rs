//! Entries of the audit for accesses, in the transaction of a change or in one of their own.

use control::Transaction;

use crate::{
    audit::{self, Access, Accesses, Head, Take},
    live::Live,
    problem::Problem,
};

/// Accesses that are being committed. They are given back unless they are.
pub(super) struct Taken<'a> {
    from: &'a Accesses,
    pub list: Vec<Access>,
}

impl<'a> Taken<'a> {
    pub fn of(from: &'a Accesses, take: Take) -> Self {
        let list = from.take(take);
        Self { from, list }
    }

    /// Adds their entries to a transaction: the head after them.
    pub fn append(&self, transaction: &mut Transaction, live: &Live) -> Result<Head, Problem> {
        let (mut head, written) = (live.head.clone(), live.head_written);
        for Access { at, actor, subject } in &self.list {
            let added = audit::append(transaction, &head, written, *at, actor, subject, Vec::new());
            head = added.map_err(|error| Problem::internal(&error))?;
        }
        Ok(head)
    }

    pub fn committed(mut self) {
        self.list.clear();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.from.give_back(std::mem::take(&mut self.list));
    }
}
