//! Export of a store as text, and import of the text into a new store.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use store::{Export, FormatError, ImportError, Memory, Options, Sqlite, restore};

use crate::{
    audit::{self, Trust, VerifyError},
    live::{Live, LoadError},
};

/// The text cannot be imported. There is no store then.
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
    #[error("the audit in the export is not whole: {0}; export the store again")]
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
    let new = beside(path, ".import");
    remove(&new)?;
    let store = Sqlite::open(&new, Options::default())?;
    export.import(&store).await?;
    drop(store);
    restore(&new, path)?;
    remove(&new)?;
    Ok((export.entries.len(), entries))
}

/// Checks the state and the audit of an export: the number of audit entries.
///
/// # Errors
/// [`Error`].
pub async fn check(export: &Export) -> Result<u64, Error> {
    let memory = Memory::default();
    export.import(&memory).await?;
    Live::load(&memory).await?;
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

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    PathBuf::from(name)
}

/// Removes the store of an import, also one that was interrupted.
fn remove(store: &Path) -> Result<(), Error> {
    for ending in ["", "-wal", "-shm", ".lock"] {
        let file = beside(store, ending);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &file)(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
