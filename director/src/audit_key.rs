//! The key that signs checkpoints of the audit, in a file of its own.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use control::audit::{hex, unhex};

use crate::Environment;

/// The key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error(
        "cannot use the audit key {}: {source}; write another director.audit_key",
        path.display()
    )]
    File {
        path: PathBuf,
        /// The error of the kernel.
        source: std::io::Error,
    },
    /// There is no file.
    #[error(
        "there is no audit key {}: put it back from where it was kept; if it is lost, \
         `causeway-director replace-audit-key --lost --config FILE` makes another one, which the \
         audit records",
        path.display()
    )]
    Missing { path: PathBuf },
    /// The audit is signed by another key.
    #[error(
        "{} has the key {public}, and the audit is signed by {signer}: put that key back; if it is \
         lost, run `causeway-director replace-audit-key --lost --config FILE`, which the audit \
         records",
        path.display()
    )]
    Other {
        path: PathBuf,
        /// The public part of the file's key, hexadecimal.
        public: String,
        /// The public key of the audit, hexadecimal.
        signer: String,
    },
    /// Others may read the key.
    #[error(
        "{} has the key of the audit, and every user may read it: run `chmod o-rwx {}`",
        path.display(),
        path.display()
    )]
    Open { path: PathBuf },
    /// The file has no key.
    #[error(
        "{} has no key of 32 bytes in hexadecimal: put it back from where it was kept",
        path.display()
    )]
    Format { path: PathBuf },
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::File {
        path: path.to_owned(),
        source,
    }
}

/// Reads the key of a file.
///
/// # Errors
/// [`Error`].
pub fn load(path: &Path) -> Result<Ed25519KeyPair, Error> {
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::Missing {
            path: path.to_owned(),
        },
        _ => failed(path)(error),
    })?;
    let data = fs::metadata(path).map_err(failed(path))?;
    if data.permissions().mode() & 0o007 != 0 {
        return Err(Error::Open {
            path: path.to_owned(),
        });
    }
    let wrong = || Error::Format {
        path: path.to_owned(),
    };
    let seed = unhex(text.trim()).ok_or_else(wrong)?;
    Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| wrong())
}

/// Reads the key of a file, which must be the one that signs the audit, hexadecimal, if that is
/// known.
///
/// # Errors
/// [`Error`].
pub fn load_signer(path: &Path, signer: Option<&str>) -> Result<Ed25519KeyPair, Error> {
    let key = load(path)?;
    let public = public(&key);
    match signer.filter(|signer| *signer != public) {
        None => Ok(key),
        Some(signer) => Err(Error::Other {
            path: path.to_owned(),
            public,
            signer: signer.to_owned(),
        }),
    }
}

/// Checks the key before a store is made: a file that is there has a key, and one that is not can
/// be made, and is, unless there is a store, whose key it would not be.
///
/// # Errors
/// [`Error`].
pub fn prepare(path: &Path, store: &Path, environment: &dyn Environment) -> Result<(), Error> {
    match load(path) {
        Err(Error::Missing { .. }) if store.exists() => Ok(()),
        Err(Error::Missing { .. }) => create(path, environment).map(drop),
        found => found.map(drop),
    }
}

/// Reads the key of a file, or makes a file with a new one, for its owner alone.
///
/// # Errors
/// [`Error`].
pub fn create(path: &Path, environment: &dyn Environment) -> Result<Ed25519KeyPair, Error> {
    match load(path) {
        Err(Error::Missing { .. }) => {}
        found => return found,
    }
    let failed = failed(path);
    let mut seed = [0; 32];
    environment.fill(&mut seed).map_err(&failed)?;
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| {
        store::give(&file, path)?;
        file.write_all(hex(&seed).as_bytes())?;
        file.sync_all()
    });
    written.map_err(failed)?;
    load(path)
}

/// The public part, hexadecimal.
#[must_use]
pub fn public(key: &Ed25519KeyPair) -> String {
    hex(key.public_key().as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernel;

    #[test]
    fn a_key_is_made_once_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("put it back"), "{error}");
        assert!(!path.exists(), "reading makes none");
        let first = public(&create(&path, &Kernel).unwrap());
        assert_eq!(first, public(&create(&path, &Kernel).unwrap()));
        assert_eq!(first, public(&load(&path).unwrap()));
        assert!(load_signer(&path, Some(&first)).is_ok() && load_signer(&path, None).is_ok());
        let error = load_signer(&path, Some("00")).unwrap_err().to_string();
        assert!(error.contains("signed by 00: put that key back"), "{error}");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, "0011").unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("no key of 32 bytes"), "{error}");
    }
}
