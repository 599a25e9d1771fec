//! Export of a store as text, import of the text into a new store, and the checks of both exports
//! and backups.

use std::{
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use store::{
    Backup, Export, FormatError, IMPORT, ImportError, Memory, Options, Sqlite, restore, with_suffix,
};

use crate::{
    audit::{self, Trust, VerifyError},
    live::{Live, LoadError},
};

/// An export or a backup cannot be used. There is no store then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened, or the store of the import not be removed.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// The operation, as in "open".
        operation: &'static str,
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The text is no whole export.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The state in it cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The chain of its audit is broken.
    #[error("its audit is not whole: {0}; use another export or backup")]
    Audit(#[from] VerifyError),
    /// It cannot be written.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The new store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Makes a store of a text that `causeway-director export` wrote, where there is none: the numbers
/// of keys and of audit entries. The state and the audit in the text are checked before.
///
/// # Errors
/// [`Error`].
pub async fn import(text: &Path, path: &Path) -> Result<(usize, u64), Error> {
    if path.exists() {
        let path = path.to_owned();
        return Err(store::Error::Exists { path }.into());
    }
    let file = File::open(text).map_err(failed("open", text))?;
    let export = Export::read(&mut BufReader::new(file))?;
    let entries = check(&export).await?;
    // The store appears when it is whole; its revisions begin far behind those of the one before,
    // as after a restore.
    let new = with_suffix(path, ".import");
    remove(&new)?;
    let store = Sqlite::open(&new, Options::default())?;
    export.import(&store).await?;
    drop(store);
    restore(&new, path)?;
    remove(&new)?;
    Ok((export.entries.len(), entries))
}

/// Checks a backup, or a store that is closed, as [`check`] checks an export. The file is not
/// changed.
///
/// # Errors
/// [`Error`].
pub async fn check_backup(backup: &Path) -> Result<u64, Error> {
    let export = Export::of_backup(&Backup::open(backup)?)?;
    check(&export).await
}

/// Makes a store of a backup, where there is none: the number of audit entries. The backup is
/// checked before, as [`import`] checks an export.
///
/// # Errors
/// [`Error`].
pub async fn restore_backup(backup: &Path, path: &Path) -> Result<u64, Error> {
    if path.exists() {
        let path = path.to_owned();
        return Err(store::Error::Exists { path }.into());
    }
    let entries = check_backup(backup).await?;
    restore(backup, path)?;
    Ok(entries)
}

/// Checks that the state can be read, that claims and objects are the same, that changes could have
/// made the objects, and that the chain of the audit is whole: the number of audit entries.
///
/// # Errors
/// [`Error`].
pub async fn check(export: &Export) -> Result<u64, Error> {
    if export.entries.iter().any(|(key, _)| key == IMPORT) {
        return Err(LoadError::Unfinished.into());
    }
    let memory = Memory::default();
    export.import(&memory).await?;
    Live::load_checked(&memory).await?;
    let (entries, _) = audit::verify_store(&memory, &Trust::default()).await?;
    Ok(entries)
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::File {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// Removes the store of an import, also one that was interrupted.
fn remove(store: &Path) -> Result<(), Error> {
    for ending in ["", "-wal", "-shm", ".lock"] {
        let file = with_suffix(store, ending);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &file)(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
