//! Keys of 32 bytes, each in a file of its own, in hexadecimal, which other users cannot read.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use control::audit::{hex, unhex};
use service::{
    replace::NewFile,
    secret_file::{self, Access, Exposed},
};

use crate::Environment;

/// Bytes of a key.
const LEN: usize = 32;

/// A file with a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyFile<'a> {
    pub path: &'a Path,
    /// Name of the key for people, such as "audit key".
    pub key: &'static str,
    /// The setting that names the file, such as `director.audit_key`.
    pub setting: &'static str,
}

/// A file of a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("cannot use the {key} {}: {source}; write another {setting}", path.display())]
    File {
        /// Name of the key for people.
        key: &'static str,
        /// The setting that names the file.
        setting: &'static str,
        path: PathBuf,
        /// The error of the kernel.
        source: std::io::Error,
    },
    /// Others may read the key.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The file has no key.
    #[error(
        "{} has no key of {LEN} bytes in hexadecimal: put it back from where it was kept",
        path.display()
    )]
    Format { path: PathBuf },
}

impl KeyFile<'_> {
    /// Reads the key; `None` if there is no file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(&self) -> Result<Option<[u8; LEN]>, Error> {
        let text = match fs::read_to_string(self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        secret_file::check(self.path, Access::OwnerAndGroup)?;
        let bytes = unhex(text.trim()).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Some).ok_or_else(|| self.malformed())
    }

    /// Reads the key, or makes a file with a new one, for its owner alone.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load_or_create(&self, environment: &dyn Environment) -> Result<[u8; LEN], Error> {
        if let Some(key) = self.load()? {
            return Ok(key);
        }
        let mut key = [0; LEN];
        // It is there whole, and on the disk, or not at all.
        let written = environment.fill(&mut key).and_then(|()| {
            let mut file = NewFile::create(self.path, 0o600)?;
            store::give(file.file(), self.path)?;
            file.file().write_all(hex(&key).as_bytes())?;
            file.commit().map(drop)
        });
        written.map_err(|error| self.failed(error))?;
        Ok(key)
    }

    /// The error of a file whose content is no key.
    pub fn malformed(&self) -> Error {
        Error::Format {
            path: self.path.to_owned(),
        }
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::File {
            key: self.key,
            setting: self.setting,
            path: self.path.to_owned(),
            source,
        }
    }
}
