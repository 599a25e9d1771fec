//! The key that signs checkpoints of the audit, in a file of its own.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::signature::Ed25519KeyPair;
use control::audit::{hex, unhex};

use crate::Chance;

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
    /// The file has no key.
    #[error(
        "{} has no key of 32 bytes in hexadecimal: put it back from where it was kept, or move it \
         away for a new one",
        path.display()
    )]
    Format { path: PathBuf },
}

/// Reads the key of a file, or makes a file with a new one.
///
/// # Errors
/// [`Error`].
pub fn load(path: &Path, chance: &dyn Chance) -> Result<Ed25519KeyPair, Error> {
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut seed = [0; 32];
            chance.fill(&mut seed).map_err(failed)?;
            let text = hex(&seed);
            let mut options = OpenOptions::new();
            let options = options.write(true).create_new(true).mode(0o600);
            let written = options.open(path).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            });
            written.map_err(failed)?;
            text
        }
        Err(error) => return Err(failed(error)),
    };
    let wrong = || Error::Format {
        path: path.to_owned(),
    };
    let seed = unhex(text.trim()).ok_or_else(wrong)?;
    Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use aws_lc_rs::signature::KeyPair as _;

    use super::*;
    use crate::Kernel;

    #[test]
    fn a_key_is_made_once_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let first = load(&path, &Kernel).unwrap();
        let again = load(&path, &Kernel).unwrap();
        assert_eq!(first.public_key().as_ref(), again.public_key().as_ref());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, "0011").unwrap();
        let error = load(&path, &Kernel).unwrap_err().to_string();
        assert!(error.contains("no key of 32 bytes"), "{error}");
    }
}
