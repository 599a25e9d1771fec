//! The key that signs checkpoints of the audit, in a file of its own.

use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use control::audit::hex;

use crate::{
    Environment,
    key_file::{self, KeyFile},
};

/// The key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] key_file::Error),
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
}

const fn file(path: &Path) -> KeyFile<'_> {
    KeyFile {
        path,
        key: "audit key",
        setting: "director.audit_key",
    }
}

/// Reads the key of a file.
///
/// # Errors
/// [`Error`].
pub fn load(path: &Path) -> Result<Ed25519KeyPair, Error> {
    let seed = file(path).load()?.ok_or_else(|| Error::Missing {
        path: path.to_owned(),
    })?;
    pair(path, &seed)
}

fn pair(path: &Path, seed: &[u8]) -> Result<Ed25519KeyPair, Error> {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed);
    Ok(pair.map_err(|_| file(path).malformed())?)
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
    pair(path, &file(path).load_or_create(environment)?)
}

/// The public part, hexadecimal.
#[must_use]
pub fn public(key: &Ed25519KeyPair) -> String {
    hex(key.public_key().as_ref())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

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
