//! Another size of the maps of translation: at a start, a pinned map is replaced by one of the
//! configured size, and its entries are copied.
//!
//! ```text
//!   begin: maps/FLOWS ─▶ maps/FLOWS-old ─ load: a new maps/FLOWS ─ copy ─ tail calls
//!     ─ finish: copy what was added since, remove maps/FLOWS-old
//! ```
//!
//! The programs that translate are reached by tail calls only, so all of them change to the new map
//! at once. What they write into the old map after the first copy is copied by the second.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use appliance_common::nat::{Flow, FlowKey, Mapping, MappingKey, TenantQuota};
use aya::Pod;

use super::{
    error::{Error, io_error},
    maps::max_entries,
    nat::PinnedMap,
};

const CONNECTIONS: &str = "FLOWS";
const MAPPINGS: &str = "MAPPINGS";

/// The maps whose size the configuration sets, with their entries: one for each direction.
pub(super) const fn entries(room: TenantQuota) -> [(&'static str, u32); 2] {
    [
        (CONNECTIONS, 2 * room.connections),
        (MAPPINGS, 2 * room.mappings),
    ]
}

/// Maps that are being replaced.
#[derive(Debug)]
#[must_use]
pub(super) struct Resize {
    root: PathBuf,
    replaced: Vec<&'static str>,
}

fn pin(root: &Path, name: &str) -> PathBuf {
    root.join("maps").join(name)
}

fn old(name: &str) -> String {
    // No dot: the kernel refuses it in the name of a pin.
    format!("{name}-old")
}

impl Resize {
    /// Moves the pins of maps that have another size than `room` out of the way.
    pub(super) fn begin(root: &Path, room: TenantQuota) -> Result<Self, Error> {
        let mut replaced = Vec::new();
        for (name, wanted) in entries(room) {
            let (path, aside) = (pin(root, name), pin(root, &old(name)));
            // A process that ended in between: the old map has the connections, and the new one at
            // most those since then.
            if aside.exists() {
                if path.exists() {
                    fs::remove_file(&path).map_err(|e| io_error("remove", &path, e))?;
                }
                replaced.push(name);
                continue;
            }
            if !path.exists() {
                continue;
            }
            let current = max_entries(&path, name)?;
            if current == wanted {
                continue;
            }
            tracing::info!(
                map = name,
                from = current,
                to = wanted,
                "resizing the map, copying its entries"
            );
            fs::rename(&path, &aside).map_err(|e| io_error("rename", &path, e))?;
            replaced.push(name);
        }
        Ok(Self {
            root: root.to_owned(),
            replaced,
        })
    }

    /// Copies the entries of the old maps that the new ones do not have.
    pub(super) fn copy(&self) -> Result<(), Error> {
        for name in &self.replaced {
            let (copied, left) = self.copy_map(name)?;
            tracing::info!(map = name, copied, "copied the entries of the map");
            if left > 0 {
                tracing::warn!(
                    map = name,
                    left,
                    "entries do not fit the map's new size: their connections end"
                );
            }
        }
        Ok(())
    }

    fn copy_map(&self, name: &'static str) -> Result<(usize, usize), Error> {
        match name {
            CONNECTIONS => self.copy_one::<FlowKey, Flow>(name),
            _ => self.copy_one::<MappingKey, Mapping>(name),
        }
    }

    /// Numbers of copied entries and of those without room.
    fn copy_one<K: Pod, V: Pod>(&self, name: &'static str) -> Result<(usize, usize), Error> {
        let failed = |source| io_error("copy", &pin(&self.root, name), source);
        let open = |name: &str| {
            PinnedMap::<K, V>::open(&self.root, name).map_err(|e| failed(io::Error::other(e)))
        };
        let (from, to) = (open(&old(name))?, open(name)?);
        let (mut copied, mut left, mut error) = (0, 0, None);
        let read = from.for_each(|key, value| match to.insert(key, value) {
            Ok(true) => copied += 1,
            Ok(false) => {}
            Err(e) if e.raw_os_error() == Some(libc::E2BIG) => left += 1,
            Err(e) => error = Some(e),
        });
        read.and(error.map_or(Ok(()), Err)).map_err(failed)?;
        Ok((copied, left))
    }

    /// Copies what the programs wrote into the old maps since the first copy, and removes those.
    pub(super) fn finish(&self) -> Result<(), Error> {
        for name in &self.replaced {
            self.copy_map(name)?;
            let path = pin(&self.root, &old(name));
            fs::remove_file(&path).map_err(|e| io_error("remove", &path, e))?;
        }
        Ok(())
    }
}
