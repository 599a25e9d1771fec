//! The maps pinned in a BPF file system of their own, for code of the daemon that opens them there.

use std::path::Path;

use aya::maps::MapData;
use nix::mount::{MsFlags, umount};

use super::{Harness, HarnessError};

/// Pins of all maps below `maps/` of a directory. Dropping it removes them.
#[derive(Debug)]
pub struct Pins {
    dir: tempfile::TempDir,
}

impl Pins {
    /// The directory that has `maps/`.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = umount(self.dir.path()) {
            eprintln!("umount {}: {error}", self.dir.path().display());
        }
    }
}

impl Harness {
    /// Pins every map.
    ///
    /// # Errors
    ///
    /// When the file system cannot be mounted, or a map cannot be pinned.
    pub fn pin(&self) -> Result<Pins, HarnessError> {
        let failed = |source| HarnessError::Raw {
            name: "all maps".to_owned(),
            operation: "pin",
            source,
        };
        let dir = tempfile::tempdir().map_err(failed)?;
        let none: Option<&str> = None;
        nix::mount::mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none)
            .map_err(|e| failed(e.into()))?;
        let pins = Pins { dir };
        let maps = pins.root().join("maps");
        std::fs::create_dir(&maps).map_err(failed)?;
        for raw in self.raw_maps() {
            let name = raw.name().to_owned();
            let fd = std::os::fd::AsFd::as_fd(raw).try_clone_to_owned();
            let map = MapData::from_fd(fd.map_err(failed)?)
                .map_err(|e| failed(std::io::Error::other(e)))?;
            // The kernel accepts no dot in the name of a pin.
            if name.contains('.') {
                continue;
            }
            map.pin(maps.join(name))
                .map_err(|e| failed(std::io::Error::other(e)))?;
        }
        Ok(pins)
    }
}
