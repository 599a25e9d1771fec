//! What an operator decided at run time and must survive the process: modes, endpoints, slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Version of the file's layout.
const VERSION: u32 = 1;

/// The state, and the file's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Layout of the file.
    pub version: u32,
    /// Modes by tenant; a tenant that is missing is idle.
    #[serde(default)]
    pub modes: BTreeMap<String, TenantMode>,
    /// Failed-over addresses by network.
    #[serde(default)]
    pub endpoints: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Slots in the maps by name, so that a restart finds its entries.
    #[serde(default)]
    pub slots: Slots,
}

/// Handshake timestamps (TAI64N) by the peer's public key. A peer refuses one that is not newer than the
/// last, so a clock that was set back while we were off must not lock us out.
pub type Timestamps = BTreeMap<String, [u8; 12]>;

/// A tenant's mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantMode {
    /// Whether it is in partial failover.
    pub partial: bool,
    /// Raised at each switch.
    pub epoch: u32,
}

/// Slots in the array maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slots {
    /// By tenant name.
    #[serde(default)]
    pub tenants: BTreeMap<String, u32>,
    /// By peer name.
    #[serde(default)]
    pub peers: BTreeMap<String, u32>,
    /// By network name.
    #[serde(default)]
    pub networks: BTreeMap<String, u32>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            modes: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            slots: Slots::default(),
        }
    }
}

/// Why the state could not be read or kept. The file is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} is not a state file: {source}; it holds which addresses are failed over, so it is not replaced: restore it from a copy, or move it away to start idle", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The file is of another version.
    #[error("{} is of version {found}, this program reads {VERSION}; run the version that wrote it, or move it away to start idle", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// Where the state is kept.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// The store in a directory.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            path: dir.join("state.json"),
        }
    }

    /// Reads the state; the default where there is no file yet.
    ///
    /// # Errors
    /// When there is a file that cannot be read or understood.
    pub fn load(&self) -> Result<State, Error> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(source) => return Err(self.io("read", source)),
        };
        let state: State = serde_json::from_str(&text).map_err(|source| Error::Corrupt {
            path: self.path.clone(),
            source,
        })?;
        if state.version != VERSION {
            return Err(Error::Version {
                path: self.path.clone(),
                found: state.version,
            });
        }
        Ok(state)
    }

    /// Replaces the file whole, and returns once it is on the disk: either the old state or the new
    /// one is there, never a part.
    ///
    /// # Errors
    /// When it could not be written; the old file is then still in place.
    pub fn save(&self, state: &State) -> Result<(), Error> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(|e| self.io("create the directory of", e))?;
        let temporary = self.path.with_extension("json.new");
        let text =
            serde_json::to_vec_pretty(state).map_err(|e| self.io("encode", io::Error::other(e)))?;
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|e| self.io("write", e))
    }

    /// The newest handshake timestamps sent, by peer. A file that is missing or damaged counts for none:
    /// they matter only where the clock comes up behind what it was.
    #[must_use]
    pub fn timestamps(&self) -> Timestamps {
        fs::read_to_string(self.timestamps_path())
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default()
    }

    /// Keeps them. Whole or not at all, but not waiting for the disk: what is lost with a power failure is the
    /// last few.
    ///
    /// # Errors
    /// When they could not be written.
    pub fn save_timestamps(&self, timestamps: &Timestamps) -> Result<(), Error> {
        let path = self.timestamps_path();
        let temporary = path.with_extension("json.new");
        let text =
            serde_json::to_vec(timestamps).map_err(|e| self.io("encode", io::Error::other(e)))?;
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| Error::Io {
                operation: "write",
                path,
                source,
            })
    }

    fn timestamps_path(&self) -> PathBuf {
        self.path.with_file_name("timestamps.json")
    }

    fn io(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Io {
            operation,
            path: self.path.clone(),
            source,
        }
    }
}

/// Gives each of `names` a slot below `limit`: the one it has, else the lowest free one; names that
/// are gone lose theirs.
pub fn assign(slots: &mut BTreeMap<String, u32>, names: &[&str], limit: u32) {
    slots.retain(|name, slot| names.contains(&name.as_str()) && *slot < limit);
    let mut used: BTreeSet<u32> = slots.values().copied().collect();
    let mut free = 0..limit;
    for name in names {
        if slots.contains_key(*name) {
            continue;
        }
        let Some(slot) = free.find(|s| !used.contains(s)) else {
            return;
        };
        used.insert(slot);
        slots.insert((*name).to_owned(), slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_state_is_read_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::new(dir.path());
        assert_eq!(store.load().expect("no file"), State::default());
        let mut state = State::default();
        state
            .endpoints
            .entry("net1".to_owned())
            .or_default()
            .insert("10.1.0.10".parse().expect("address"));
        store.save(&state).expect("saved");
        assert_eq!(store.load().expect("read"), state);
    }

    #[test]
    fn timestamps_are_read_back_and_damaged_ones_are_none() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::new(dir.path());
        assert!(store.timestamps().is_empty());
        let kept = Timestamps::from([("key".to_owned(), [7; 12])]);
        store.save_timestamps(&kept).expect("saved");
        assert_eq!(store.timestamps(), kept);
        fs::write(dir.path().join("timestamps.json"), "{\"key\":[1,2").expect("written");
        assert!(store.timestamps().is_empty());
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::new(dir.path());
        let path = dir.path().join("state.json");
        fs::write(&path, "{\"version\":1,\"endpo").expect("written");
        let message = store.load().expect_err("damaged").to_string();
        assert!(message.contains("not a state file"), "{message}");
        assert_eq!(
            fs::read_to_string(&path).expect("read"),
            "{\"version\":1,\"endpo"
        );
        fs::write(&path, "{\"version\":9}").expect("written");
        let message = store.load().expect_err("version").to_string();
        assert!(message.contains("version 9"), "{message}");
    }

    #[test]
    fn slots_stay_with_their_names() {
        let mut slots = BTreeMap::new();
        assign(&mut slots, &["a", "b", "c"], 4);
        assert_eq!(slots["c"], 2);
        assign(&mut slots, &["c", "d"], 4);
        assert_eq!((slots["c"], slots["d"]), (2, 0));
        assert_eq!(slots.len(), 2);
    }
}
