//! Access records: a line of JSON for each relayed connection, when it has ended.
//!
//! A thread of its own writes the file. A connection never waits for it: when its queue is full,
//! records are lost and counted.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
};

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

/// Records that wait to be written.
const QUEUE: usize = 4096;

/// A connection that has ended. Fields are stable; new ones may be added.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// When it was accepted, milliseconds since 1970.
    pub accepted: u64,
    /// Milliseconds until it ended.
    pub milliseconds: u64,
    /// The client: its own address, or that of its PROXY header.
    pub client: SocketAddr,
    /// The address that it connected to.
    pub local: SocketAddr,
    /// Server name of the hello.
    pub name: String,
    /// Empty: none.
    pub tenant: String,
    pub backend: String,
    /// Address of the backend, if it was reached.
    pub address: Option<SocketAddr>,
    /// Bytes of the client, the hello included.
    pub up: u64,
    /// Bytes of the backend.
    pub down: u64,
    /// How it ended: as `reason` of the metrics `ended` and `refused`.
    pub end: &'static str,
}

/// The file of access records. Its drop ends the thread after the last record.
#[derive(Debug)]
pub struct AccessLog {
    queue: SyncSender<Record>,
    lost: Counter,
}

impl AccessLog {
    /// Opens the file for appending, readable by its owner and group.
    ///
    /// # Errors
    /// When it cannot be opened, or the thread cannot be started.
    pub fn open(path: &Path, lost: Counter) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o640).open(path)?;
        let (queue, records) = sync_channel(QUEUE);
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                if let Err(error) = write(file, &records) {
                    tracing::error!(%error, path = %path.display(), "cannot write access records; \
                        they are lost until a reload");
                }
            })?;
        Ok(Self { queue, lost })
    }

    /// Adds a record, or counts it as lost.
    pub fn add(&self, record: Record) {
        if self.queue.try_send(record).is_err() {
            self.lost.inc();
        }
    }
}

/// Writes records until the last sender is gone. Whatever was written is in the file before the
/// thread waits.
fn write(file: File, records: &Receiver<Record>) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    loop {
        let record = match records.try_recv() {
            Ok(record) => record,
            Err(TryRecvError::Disconnected) => return file.flush(),
            Err(TryRecvError::Empty) => {
                file.flush()?;
                match records.recv() {
                    Ok(record) => record,
                    Err(_) => return Ok(()),
                }
            }
        };
        serde_json::to_writer(&mut file, &record)?;
        file.write_all(b"\n")?;
    }
}
