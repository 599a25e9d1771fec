//! The pins on the BPF file system, which keep maps, programs and links alive without this process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use appliance_common::maps::SCHEMA_VERSION;

use super::error::{Error, io_error};

/// Directories of pins below the root: of links, programs and maps.
pub(super) const DIRECTORIES: [&str; 3] = ["links", "programs", "maps"];

/// Directory of the pins of this schema version.
#[must_use]
pub fn root(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{SCHEMA_VERSION}"))
}

/// Removes all pins of an appliance, of every schema version, which ends forwarding. Returns their
/// number.
///
/// # Errors
/// When a pin cannot be removed. Another call removes the remaining pins.
pub fn detach(pin_dir: &Path) -> Result<usize, Error> {
    let root = root(pin_dir);
    let mut removed = 0;
    for root in other_roots(&root).into_iter().chain([root]) {
        removed += remove_root(&root)?;
    }
    Ok(removed)
}

/// Directories of the pins of other schema versions, next to `root`.
pub(super) fn other_roots(root: &Path) -> Vec<PathBuf> {
    let is_version = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix('v'))
            .is_some_and(|number| number.parse::<u32>().is_ok())
    };
    root.parent()
        .and_then(|dir| fs::read_dir(dir).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path != root && is_version(path))
        .collect()
}

/// Removes the pins of one schema version and returns their number.
pub(super) fn remove_root(root: &Path) -> Result<usize, Error> {
    let mut removed = 0;
    for dir in DIRECTORIES {
        let dir = root.join(dir);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(io_error("list", &dir, source)),
        };
        for entry in entries.flatten() {
            fs::remove_file(entry.path())
                .map_err(|source| io_error("remove", &entry.path(), source))?;
            removed += 1;
        }
        fs::remove_dir(&dir).map_err(|source| io_error("remove", &dir, source))?;
    }
    if root.exists() {
        fs::remove_dir(root).map_err(|source| io_error("remove", root, source))?;
    }
    Ok(removed)
}

/// Removes one pin, if it exists.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(io_error("remove", path, source)),
    }
}

/// Creates a directory for pins and checks that it is on a BPF file system.
pub(super) fn make_dir(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|source| {
        // On sysfs, without a mounted bpffs, mkdir fails with EPERM.
        if source.kind() == io::ErrorKind::PermissionDenied {
            Error::NotBpffs {
                path: dir.to_owned(),
            }
        } else {
            io_error("create", dir, source)
        }
    })?;
    let stat =
        nix::sys::statfs::statfs(dir).map_err(|source| io_error("statfs", dir, source.into()))?;
    if stat.filesystem_type() != nix::sys::statfs::BPF_FS_MAGIC {
        return Err(Error::NotBpffs {
            path: dir.to_owned(),
        });
    }
    Ok(())
}
