//! Commands to a thread of circuits.

use std::{sync::mpsc::SyncSender, time::Duration};

use gateway_client::wire::Load;

use super::{
    report::{PagePart, Query, SummaryPart},
    sys::Socket,
    table::Change,
};

/// A command to a thread.
pub(super) enum Command {
    /// New sockets, and the new index of each old one.
    Sockets(Vec<Socket>, Vec<Option<u16>>),
    Lifetime(Duration),
    Load(Load),
    Change(Change),
    Bound(SyncSender<usize>),
    Summary(SyncSender<SummaryPart>),
    Page(Query, SyncSender<PagePart>),
    Drain,
    Undrain,
    Stop,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command(..)")
    }
}
