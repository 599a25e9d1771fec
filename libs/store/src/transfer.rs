//! A store as text that people can read, to move it into a store of any kind.
//!
//! ```text
//!   {"format":"causeway-store","version":1,"revision":42,"entries":2}
//!   {"key":"host/h1","value":{"metadata":{…},"spec":{…}}}
//!   {"key":"tenant/acme","value":{…}}
//!   {"sha256":"…"}                       of all lines before
//! ```
//!
//! A value that is a JSON object stands there byte for byte; any other text is a JSON string. Keys
//! are in order, each once. Leases are left out: they end with their process.
//!
//! An import is whole or not at all, also on stores that take few keys in one commit: the key
//! [`IMPORT`] is there from the first commit to the last. A store that has it is not used, and the
//! next import begins by deleting what is there.

use std::{
    fs,
    io::{self, BufRead, BufWriter, Read as _, Write},
    path::Path,
};

use control::audit::hex;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use sha2::{Digest as _, Sha256};

use crate::{
    Backup, CommitError, Error, Precondition, Revision, Snapshot, Store, Transaction,
    lease::PREFIX as LEASES,
    sqlite::{file_error, new_file, publish},
};

/// Key of a store into which an import has not finished.
pub const IMPORT: &str = "import";

const FORMAT: &str = "causeway-store";
const VERSION: u32 = 1;
/// Keys in one commit. etcd takes 128 operations, preconditions included.
const BATCH: usize = 60;
/// Longest line, bytes: a value that a director wrote, with room.
const MAX_LINE_LEN: u64 = 64 << 20;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    /// The last commit of the store that was exported.
    revision: Revision,
    entries: usize,
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trailer {
    sha256: String,
}

/// The text is no whole export.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It cannot be read.
    #[error("cannot read the export: {0}")]
    Read(#[from] io::Error),
    /// A newer program wrote it.
    #[error("the export has version {found}, and this program knows {VERSION}: use a newer one")]
    Newer {
        /// Version of the text.
        found: u32,
    },
    /// A line is not as `export` writes it.
    #[error("line {line} of the export {problem}: export the store again")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// The difference.
        problem: &'static str,
    },
}

/// The import failed. Nothing is in the store, or [`IMPORT`] is.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The store has keys.
    #[error("the store is not empty: import into a new one")]
    NotEmpty,
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] Error),
    /// The store cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// The content of an export: keys and values, in the order of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The last commit of the store that was exported.
    pub revision: Revision,
    /// Keys and values, in the order of keys.
    pub entries: Vec<(String, String)>,
}

impl Export {
    /// All keys of a store but leases, as one commit left them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn of(store: &impl Store) -> Result<Self, Error> {
        Ok(Self::of_snapshot(store.snapshot("").await?))
    }

    /// All keys of a backup but leases, [`IMPORT`] among them if an import has not finished.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_backup(backup: &Backup) -> Result<Self, Error> {
        Ok(Self::of_snapshot(backup.snapshot("")?))
    }

    fn of_snapshot(snapshot: Snapshot) -> Self {
        let entries = snapshot.entries.into_iter();
        let entries = entries.filter(|entry| !entry.key.starts_with(LEASES));
        Self {
            revision: snapshot.revision,
            entries: entries.map(|entry| (entry.key, entry.value)).collect(),
        }
    }

    /// Writes the text.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut digest = Sha256::new();
        let mut line = |text: &str| {
            digest.update(text.as_bytes());
            digest.update(b"\n");
            writeln!(to, "{text}")
        };
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            revision: self.revision,
            entries: self.entries.len(),
        };
        line(&serde_json::to_string(&header)?)?;
        for (key, value) in &self.entries {
            let key = serde_json::to_string(key)?;
            let value = match is_object(value) {
                true => value.clone(),
                false => serde_json::to_string(value)?,
            };
            line(&format!(r#"{{"key":{key},"value":{value}}}"#))?;
        }
        let trailer = Trailer {
            sha256: hex(&digest.finalize()),
        };
        writeln!(to, "{}", serde_json::to_string(&trailer)?)
    }

    /// Writes the text to a new file, for its owner alone: it has the hashes of passwords. The file
    /// is whole when it appears.
    ///
    /// # Errors
    /// [`Error`], such as [`Error::Exists`].
    pub fn write_file(&self, to: &Path) -> Result<(), Error> {
        let part = new_file(to)?;
        let write = || {
            let file = fs::OpenOptions::new().write(true).open(&part)?;
            let mut file = BufWriter::new(file);
            self.write(&mut file)?;
            file.flush()
        };
        write()
            .map_err(|source| file_error("write", &part, source))
            .and_then(|()| publish(&part, to))
            .inspect_err(|_| drop(fs::remove_file(&part)))
    }

    /// Reads the text, and checks that it is whole.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn read(from: &mut impl BufRead) -> Result<Self, FormatError> {
        let mut lines = Lines {
            from,
            number: 0,
            digest: Sha256::new(),
        };
        let first = lines.next(true)?;
        let header: Header = serde_json::from_str(&first)
            .map_err(|_| lines.wrong("is not the first line of an export"))?;
        if header.format != FORMAT {
            return Err(lines.wrong("is not the first line of an export"));
        }
        if header.version != VERSION {
            return Err(FormatError::Newer {
                found: header.version,
            });
        }
        let mut entries: Vec<(String, String)> = Vec::new();
        for _ in 0..header.entries {
            let line = lines.next(true)?;
            let entry = entry(&line);
            let (key, value) = entry.ok_or_else(|| lines.wrong("has no key and value"))?;
            if entries.last().is_some_and(|(before, _)| *before >= key) {
                return Err(lines.wrong("has a key out of order"));
            }
            if key == IMPORT || key.starts_with(LEASES) {
                return Err(lines.wrong("has a key that no export has"));
            }
            entries.push((key, value));
        }
        let last = lines.next(false)?;
        let trailer: Trailer = serde_json::from_str(&last)
            .map_err(|_| lines.wrong("is not the last line of an export"))?;
        if hex(&lines.digest.clone().finalize()) != trailer.sha256 {
            return Err(lines.wrong("has another sum than the lines before"));
        }
        let mut more = [0];
        if lines.from.read(&mut more)? > 0 {
            return Err(lines.wrong("is not the last one of the file"));
        }
        Ok(Self {
            revision: header.revision,
            entries,
        })
    }

    /// Writes all keys to an empty store, or to one in which an import has not finished.
    ///
    /// # Errors
    /// [`ImportError`].
    pub async fn import(&self, store: &impl Store) -> Result<(), ImportError> {
        let there = store.snapshot("").await?;
        let is_other = |key: &str| key != IMPORT && !key.starts_with(LEASES);
        let marker = there.entries.iter().find(|entry| entry.key == IMPORT);
        let mut begun = match marker {
            Some(marker) => Precondition::At(marker.revision),
            None if there.entries.iter().any(|entry| is_other(&entry.key)) => {
                return Err(ImportError::NotEmpty);
            }
            None => Precondition::Absent,
        };
        let mut transaction = Transaction::default();
        transaction.preconditions.insert(IMPORT.to_owned(), begun);
        transaction.put.insert(IMPORT.to_owned(), "{}".to_owned());
        begun = Precondition::At(store.commit(transaction, None).await?);
        let left = there.entries.iter().filter(|entry| is_other(&entry.key));
        let left: Vec<_> = left.map(|entry| entry.key.clone()).collect();
        for keys in left.chunks(BATCH) {
            let mut transaction = Transaction::default();
            transaction.preconditions.insert(IMPORT.to_owned(), begun);
            transaction.delete.extend(keys.iter().cloned());
            store.commit(transaction, None).await?;
        }
        for entries in self.entries.chunks(BATCH) {
            let mut transaction = Transaction::default();
            transaction.preconditions.insert(IMPORT.to_owned(), begun);
            for (key, value) in entries {
                transaction.create(key.clone(), value.clone());
            }
            store.commit(transaction, None).await?;
        }
        let mut transaction = Transaction::default();
        transaction.preconditions.insert(IMPORT.to_owned(), begun);
        transaction.delete.insert(IMPORT.to_owned());
        store.commit(transaction, None).await?;
        Ok(())
    }
}

/// Whether an import into the store has not finished.
///
/// # Errors
/// When the store cannot be read.
pub async fn is_unfinished(store: &impl Store) -> Result<bool, Error> {
    let snapshot = store.snapshot(IMPORT).await?;
    Ok(snapshot.entries.iter().any(|entry| entry.key == IMPORT))
}

/// Whether a text is a JSON object on one line, and nothing else.
fn is_object(text: &str) -> bool {
    text.starts_with('{')
        && text.ends_with('}')
        && !text.contains(['\n', '\r'])
        && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Key and value of a line.
fn entry(line: &str) -> Option<(String, String)> {
    let rest = line.strip_prefix(r#"{"key":"#)?;
    let mut parts = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    let key = parts.next()?.ok()?;
    let value = rest.get(parts.byte_offset()..)?;
    let value = value.strip_prefix(r#","value":"#)?.strip_suffix('}')?;
    let value = match is_object(value) {
        true => value.to_owned(),
        false => serde_json::from_str(value).ok()?,
    };
    Some((key, value))
}

struct Lines<'r, R> {
    from: &'r mut R,
    number: usize,
    digest: Sha256,
}

impl<R: BufRead> Lines<'_, R> {
    fn wrong(&self, problem: &'static str) -> FormatError {
        FormatError::Line {
            line: self.number,
            problem,
        }
    }

    /// The next line, without its end.
    fn next(&mut self, is_summed: bool) -> Result<String, FormatError> {
        self.number += 1;
        let mut bytes = Vec::new();
        let mut limited = self.from.by_ref().take(MAX_LINE_LEN);
        limited.read_until(b'\n', &mut bytes)?;
        if is_summed {
            self.digest.update(&bytes);
        }
        if bytes.pop() != Some(b'\n') {
            return Err(self.wrong("is missing or cut"));
        }
        String::from_utf8(bytes).map_err(|_| self.wrong("is not UTF-8"))
    }
}
