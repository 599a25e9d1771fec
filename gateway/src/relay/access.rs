//! Access records: a line of JSON for each relayed connection, when it has ended.
//!
//! A thread of its own writes the file. A connection never waits for it: when its queue is full or
//! the file cannot be written, records are lost and counted. The thread opens the file again until
//! it can be written.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

/// Records that wait to be written.
const QUEUE: usize = 4096;
/// Bytes of records that are written at a time, about.
const CHUNK: usize = 1 << 16;
/// Pause after a failed write: the least, and the most.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(30)];

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
        let file = append(path)?;
        let (queue, records) = sync_channel(QUEUE);
        let mut writer = Writer {
            path: path.to_owned(),
            file: Some(file),
            pause: RETRY_PAUSES[0],
            retry: None,
            lost: lost.clone(),
        };
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.run(&records))?;
        Ok(Self { queue, lost })
    }

    /// Adds a record, or counts it as lost.
    pub fn add(&self, record: Record) {
        if self.queue.try_send(record).is_err() {
            self.lost.inc();
        }
    }
}

/// Opens the file for appending, readable by its owner and group.
fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).open(path)
}

/// The thread that writes the file.
struct Writer {
    path: PathBuf,
    /// `None` after an error, until it is opened again.
    file: Option<File>,
    /// The pause after the next error.
    pause: Duration,
    /// When the file is opened again.
    retry: Option<Instant>,
    lost: Counter,
}

impl Writer {
    /// Writes records until the last sender is gone. All that came is in the file before the thread
    /// waits.
    fn run(&mut self, records: &Receiver<Record>) {
        let mut lines = Vec::new();
        while let Ok(first) = records.recv() {
            let mut next = Some(first);
            let mut count = 0;
            while let Some(record) = next {
                // A record has nothing that JSON cannot express.
                let _ = serde_json::to_writer(&mut lines, &record);
                lines.push(b'\n');
                count += 1;
                next = (lines.len() < CHUNK)
                    .then(|| records.try_recv().ok())
                    .flatten();
            }
            self.write(&lines, count, Instant::now());
            lines.clear();
        }
    }

    /// Writes whole lines, or counts them as lost.
    fn write(&mut self, lines: &[u8], count: u64, now: Instant) {
        if self.file.is_none() && self.retry.is_none_or(|retry| retry <= now) {
            match append(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) => self.failed(&error, now),
            }
        }
        let Some(file) = &mut self.file else {
            self.lost.inc_by(count);
            return;
        };
        match write_whole(file, lines) {
            Ok(()) => {
                if self.retry.take().is_some() {
                    tracing::info!(path = %self.path.display(), "access records are written again");
                }
                self.pause = RETRY_PAUSES[0];
            }
            Err(error) => {
                self.lost.inc_by(count);
                self.failed(&error, now);
            }
        }
    }

    /// Notes an error; the file is opened again after a pause.
    fn failed(&mut self, error: &io::Error, now: Instant) {
        if self.retry.is_none() {
            tracing::error!(%error, path = %self.path.display(), "cannot write access records; \
                they are lost until the file can be written");
        }
        self.file = None;
        self.retry = Some(now + self.pause);
        self.pause = (self.pause * 2).min(RETRY_PAUSES[1]);
    }
}

/// Writes all bytes, or leaves the file as it was before.
fn write_whole(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return Err(cut(file, written, io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cut(file, written, error)),
        }
    }
    Ok(())
}

/// Cuts off what was written before an error.
fn cut(file: &File, written: usize, error: io::Error) -> io::Error {
    if written > 0
        && let Ok(metadata) = file.metadata()
    {
        // It fails, or does nothing, if another program has cut the file off meanwhile.
        let _ = file.set_len(metadata.len().saturating_sub(written as u64));
    }
    error
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn record(up: u64) -> Record {
        Record {
            accepted: 1,
            milliseconds: 2,
            client: ([192, 0, 2, 1], 3).into(),
            local: ([192, 0, 2, 2], 4).into(),
            name: "acme.example".to_owned(),
            tenant: String::new(),
            backend: "b".to_owned(),
            address: None,
            up,
            down: 0,
            end: "closed",
        }
    }

    /// A full disk costs the records of that time, and no others.
    #[test]
    fn records_are_written_again_after_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.jsonl");
        symlink("/dev/full", &path).expect("a link");
        let lost = Counter::default();
        let log = AccessLog::open(&path, lost.clone()).expect("opened");
        let wait = |what: &str, is_so: &dyn Fn() -> bool| {
            let begun = Instant::now();
            while !is_so() {
                assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        log.add(record(0));
        wait("lost", &|| lost.get() == 1);
        std::fs::remove_file(&path).expect("removed");
        wait("written again", &|| {
            log.add(record(1));
            std::fs::metadata(&path).is_ok_and(|file| file.len() > 0)
        });
        drop(log);
        let text = std::fs::read_to_string(&path).expect("text");
        for line in text.lines() {
            let read: serde_json::Value = serde_json::from_str(line).expect("a whole line");
            assert_eq!(read["up"], 1);
        }
        assert!(text.ends_with('\n') && lost.get() >= 1);
    }

    #[test]
    fn a_part_of_a_line_is_cut_off() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.jsonl");
        let mut file = append(&path).expect("opened");
        write_whole(&mut file, b"whole\n").expect("written");
        write_whole(&mut file, b"pa").expect("written");
        drop(cut(&file, 2, io::ErrorKind::StorageFull.into()));
        write_whole(&mut file, b"next\n").expect("written");
        assert_eq!(std::fs::read(&path).expect("bytes"), b"whole\nnext\n");
    }
}
