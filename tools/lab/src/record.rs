//! The resources of a lab, recorded before they are created, so that any crash can be cleaned up.
//!
//! ```text
//!   /run/causeway-lab/<lab>/record.jsonl     one line per thing, only ever appended to
//! ```
//!
//! A line that a crash cut short is ignored: what it announced was not made yet.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::{During as _, Result};

/// One thing that a lab made, or was about to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Entry {
    /// A named network namespace; links, bridges and TC programs go with it.
    Namespace { name: String },
    /// A process, written by the process itself before it becomes the program.
    Process {
        /// Its id.
        pid: i32,
        /// Its start, clock ticks since boot: field 22 of `/proc/<pid>/stat`.
        start: u64,
        /// Its description; `appliance:<host>` and `gateway:<host>` for the daemons.
        name: String,
    },
    /// A directory on a BPF file system.
    Pins { path: PathBuf },
    /// A BPF file system that the lab mounted.
    Mount { path: PathBuf },
}

/// The record of one lab, open for appending.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: File,
}

impl Record {
    /// The record's place in a run directory.
    #[must_use]
    pub fn path_in(run_dir: &Path) -> PathBuf {
        run_dir.join("record.jsonl")
    }

    /// Opens or creates the record in `run_dir`.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(run_dir: &Path) -> Result<Self> {
        let path = Self::path_in(run_dir);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .during(|| format!("opening {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Appends `entries` in one write.
    ///
    /// # Errors
    /// If the write fails: what they announce must not be made then.
    pub fn add(&mut self, entries: &[Entry]) -> Result<()> {
        let mut text = Vec::new();
        for entry in entries {
            text.extend(line(entry)?);
        }
        self.file
            .write_all(&text)
            .during(|| format!("writing {}", self.path.display()))
    }

    /// The open file, for a child that writes its own line.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Everything that was written, in order.
    ///
    /// # Errors
    /// If the file is there but cannot be read. No file: empty.
    pub fn read(run_dir: &Path) -> Result<Vec<Entry>> {
        let path = Self::path_in(run_dir);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(parse(&String::from_utf8_lossy(&bytes))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e).during(|| format!("reading {}", path.display())),
        }
    }
}

fn line(entry: &Entry) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(entry)
        .map_err(std::io::Error::from)
        .during(|| format!("writing down {entry:?}"))?;
    text.push(b'\n');
    Ok(text)
}

/// Reads lines; those that do not parse were cut short by a crash and are skipped.
fn parse(text: &str) -> Vec<Entry> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_in_order_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            Entry::Namespace {
                name: "cw-x-a".to_owned(),
            },
            Entry::Process {
                pid: 7,
                start: 99,
                name: "iperf3".to_owned(),
            },
            Entry::Pins {
                path: "/sys/fs/bpf/causeway-lab/x/a".into(),
            },
            Entry::Mount {
                path: "/sys/fs/bpf".into(),
            },
        ];
        Record::open(dir.path())
            .unwrap()
            .add(&entries[..2])
            .unwrap();
        Record::open(dir.path())
            .unwrap()
            .add(&entries[2..])
            .unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), entries);
    }

    #[test]
    fn a_line_cut_short_is_skipped_and_what_follows_is_read() {
        let text = "{\"kind\":\"namespace\",\"name\":\"cw-x-a\"}\n{\"kind\":\"proc\n\
                    {\"kind\":\"process\",\"pid\":5,\"start\":6,\"name\":\"n\"}\n{\"kind\":\"na";
        assert_eq!(parse(text).len(), 2);
    }

    #[test]
    fn no_record_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), []);
    }
}
