//! Key files: base64 in a line, readable by their owner only.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use service::secret_file::{self, Access, Exposed};
use tunnel::{InvalidKey, PresharedKey, Random, SecretKey};
use zeroize::Zeroizing;

/// Why a key file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(
        "{operation} {}: {source}; make a key with `causeway-appliance keygen --private-key {}`",
        path.display(),
        path.display()
    )]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file exists.
    #[error(
        "{} exists and is not overwritten: peers that know its public key would lose the tunnel; \
         give another name, or move it away",
        path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Other users can access the file.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The file holds no key.
    #[error("{}: {source}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// Its error.
        source: InvalidKey,
    },
}

/// The operating system's generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsRandom;

impl Random for OsRandom {
    /// Aborts the process if the generator fails (a kernel without one, before 3.17): nothing safe
    /// can be done without it.
    fn fill(&mut self, out: &mut [u8]) {
        if let Err(error) = getrandom::fill(out) {
            tracing::error!(%error, "the operating system's random number generator failed; \
                exiting");
            std::process::abort();
        }
    }
}

/// Reads a private key.
///
/// # Errors
/// [`Error`], naming the file.
pub fn private(path: &Path) -> Result<SecretKey, Error> {
    read(path)
}

/// Reads a preshared key.
///
/// # Errors
/// [`Error`], naming the file.
pub fn preshared(path: &Path) -> Result<PresharedKey, Error> {
    read(path)
}

/// Reads the key of our side of a circuit.
///
/// # Errors
/// [`Error`], naming the file.
pub fn circuit(path: &Path) -> Result<gateway_client::wire::Key, Error> {
    let key: PresharedKey = read(path)?;
    Ok(gateway_client::wire::Key::new(*key.expose()))
}

fn read<K: FromStr<Err = InvalidKey>>(path: &Path) -> Result<K, Error> {
    let failed = |operation| {
        move |source| Error::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    let data = fs::metadata(path).map_err(failed("stat"))?;
    secret_file::check_metadata(path, &data, Access::Owner)?;
    let text = Zeroizing::new(fs::read_to_string(path).map_err(failed("read"))?);
    text.trim().parse().map_err(|source| Error::Text {
        path: path.to_owned(),
        source,
    })
}

/// Writes a new key file, mode 0600. Never overwrites one.
///
/// # Errors
/// [`Error`]. No partial file is left behind.
pub fn write(path: &Path, base64: &str) -> Result<(), Error> {
    let failed = |operation| {
        move |source: io::Error| Error::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                Error::Exists {
                    path: path.to_owned(),
                }
            } else {
                failed("create")(source)
            }
        })?;
    let text = Zeroizing::new(format!("{base64}\n"));
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|source| {
            let _ = fs::remove_file(path);
            failed("write")(source)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_read_as_written_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = SecretKey::generate(&mut OsRandom);
        write(&path, &key.expose_base64()).unwrap();
        assert_eq!(private(&path).unwrap().public(), key.public());
        assert!(matches!(write(&path, "x"), Err(Error::Exists { .. })));
        assert_eq!(private(&path).unwrap().public(), key.public());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, &SecretKey::generate(&mut OsRandom).expose_base64()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = private(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn other_text_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, "hunter2").unwrap();
        let error = private(&path).unwrap_err().to_string();
        assert!(
            error.contains("44 characters") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
