//! The operator's decisions at run time, which survive the process: modes, plans, endpoints, slots.
//!
//! For: `state.json`, replaced whole. Never: the effects of the decisions (`daemon::controller`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use appliance_common::limits::MAX_RULES;
use failover::{Plan, mode};
use serde::{Deserialize, Serialize};
use service::replace::{NewFile, replace, sync_folder_of};
use zeroize::Zeroizing;

use crate::config::{Config, desired::Desired};

/// Version of the layout of the file.
const VERSION: u32 = 3;
/// The oldest version that is read: before full failover.
const OLDEST: u32 = 1;

/// The state: the contents of the file.
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
    /// Whether new failovers are refused.
    #[serde(default)]
    pub maintenance: bool,
    /// Secret of this appliance from which the first port of each search for a free one follows.
    #[serde(default)]
    pub nat_seed: Option<u32>,
    /// The objects in force, by updates or from the file, with their revision; `None`: none were
    /// put in force. They came with version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<Box<Desired>>,
}

/// Handshake timestamps (TAI64N) by the peer's public key. A peer refuses a handshake whose
/// timestamp is not newer than the last one: a clock that was set back must not lock the appliance
/// out.
pub type Timestamps = BTreeMap<String, [u8; 12]>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FileMode", into = "FileMode")]
pub struct TenantMode {
    /// The mode of its networks.
    pub failover: FailoverState,
    /// Raised at each switch.
    pub epoch: u32,
}

/// The mode of a tenant's networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FailoverState {
    /// Nothing has failed over.
    #[default]
    Idle,
    /// Partial failover.
    Partial,
    /// Full failover, by a plan.
    Full(Box<Plan>),
}

impl FailoverState {
    /// The plan of a full failover.
    #[must_use]
    pub fn plan(&self) -> Option<&Plan> {
        match self {
            Self::Full(plan) => Some(plan),
            Self::Idle | Self::Partial => None,
        }
    }

    /// As the crate `failover` has it.
    #[must_use]
    pub fn state(&self) -> mode::State {
        match self {
            Self::Idle => mode::State::Idle,
            Self::Partial => mode::State::Partial,
            Self::Full(plan) => mode::State::Full {
                plan: plan.name().to_owned(),
            },
        }
    }
}

/// A tenant's mode in the file; `full` came with version 2.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMode {
    partial: bool,
    epoch: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    full: Option<Box<Plan>>,
}

impl From<TenantMode> for FileMode {
    fn from(mode: TenantMode) -> Self {
        Self {
            partial: mode.failover == FailoverState::Partial,
            epoch: mode.epoch,
            full: match mode.failover {
                FailoverState::Full(plan) => Some(plan),
                FailoverState::Idle | FailoverState::Partial => None,
            },
        }
    }
}

impl TryFrom<FileMode> for TenantMode {
    type Error = &'static str;

    fn try_from(file: FileMode) -> Result<Self, Self::Error> {
        Ok(Self {
            failover: match (file.partial, file.full) {
                (false, None) => FailoverState::Idle,
                (true, None) => FailoverState::Partial,
                (false, Some(plan)) => FailoverState::Full(plan),
                (true, Some(_)) => {
                    return Err("a tenant is in partial failover and in full failover");
                }
            },
            epoch: file.epoch,
        })
    }
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
    /// By [`rule_key`].
    #[serde(default)]
    pub rules: BTreeMap<String, u32>,
}

/// The version of a state, whatever else it has.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// A text is no state that this program reads.
#[derive(Debug, thiserror::Error)]
pub enum BadState {
    /// It is not the JSON of a state.
    #[error(transparent)]
    Malformed(#[from] serde_json::Error),
    /// The state is of another version.
    #[error("version {0}")]
    Version(u32),
}

impl State {
    /// Reads the contents of a file, of this version or an older one.
    ///
    /// # Errors
    /// [`BadState`].
    pub fn from_json(text: &str) -> Result<Self, BadState> {
        // By itself first: a state of a newer version has keys that this one does not know.
        let Head { version } = serde_json::from_str(text)?;
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(BadState::Version(version));
        }
        let mut state: Self = serde_json::from_str(text)?;
        state.version = VERSION;
        Ok(state)
    }

    /// As [`State::from_json`] reads it.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn to_json(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        serde_json::to_vec_pretty(self).map(Zeroizing::new)
    }

    /// Tenants that are in failover by this state, and are not configured any more.
    #[must_use]
    pub fn left_over(&self, config: &Config) -> Vec<String> {
        let left = |(name, mode): &(&String, &TenantMode)| {
            mode.failover != FailoverState::Idle && config.tenant(name).is_none()
        };
        let left = self.modes.iter().filter(left);
        left.map(|(name, _)| name.clone()).collect()
    }

    /// Assigns slots in `RULES` to the rules of all plans in force.
    pub fn assign_rule_slots(&mut self) {
        let keys: Vec<String> = self
            .modes
            .iter()
            .filter_map(|(tenant, mode)| Some((tenant, mode.failover.plan()?)))
            .flat_map(|(tenant, plan)| {
                let rules = plan.rules().iter();
                rules.map(move |rule| rule_key(tenant, rule.name()))
            })
            .collect();
        let names: Vec<&str> = keys.iter().map(String::as_str).collect();
        assign(&mut self.slots.rules, &names, MAX_RULES);
    }
}

/// The key of a public IP rule's slot. Neither name has a `/`.
#[must_use]
pub fn rule_key(tenant: &str, rule: &str) -> String {
    format!("{tenant}/{rule}")
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            modes: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            slots: Slots::default(),
            maintenance: false,
            nat_seed: None,
            desired: None,
        }
    }
}

/// Why the state could not be read or saved. The file is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// The operation that failed.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The file does not hold a state.
    #[error(
        "{} is not a state file: {source}; it says which addresses are failed over, so it is not \
         replaced: restore it from a copy, or move it away to start idle",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The problem of the text.
        source: serde_json::Error,
    },
    /// The file is of another version.
    #[error(
        "{} is of version {found}, this program reads {OLDEST} to {VERSION}; run the version that \
         wrote it, or move it away to start idle",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl Error {
    /// Whether this user may not do it.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        let denied = io::ErrorKind::PermissionDenied;
        matches!(self, Self::Io { source, .. } if source.kind() == denied)
    }
}

/// The files of the state.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

/// A state that has replaced the one before it, as long as the power does not fail.
#[derive(Debug)]
#[must_use]
pub struct CommittedState {
    path: PathBuf,
}

impl CommittedState {
    /// Returns once the state is in place also after a loss of power. It waits for the disk; a
    /// failure is logged.
    pub fn sync(self) {
        if let Err(error) = sync_folder_of(&self.path) {
            let path = self.path.display();
            tracing::warn!(%error, %path, "cannot synchronize the folder of the state");
        }
    }
}

/// A state that is on the disk beside that in force. Dropped, it changes nothing.
#[derive(Debug)]
#[must_use]
pub struct PreparedState {
    new: NewFile,
    path: PathBuf,
}

impl PreparedState {
    /// Replaces the state in force, by a rename, which does not wait for the disk.
    ///
    /// # Errors
    /// When that failed; the old state is still in place.
    pub fn commit(self) -> Result<CommittedState, Error> {
        let error = |source| Error::Io {
            operation: "replace",
            path: self.path.clone(),
            source,
        };
        self.new.rename().map_err(error)?;
        Ok(CommittedState { path: self.path })
    }
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
            // It may have keys.
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(source) => return Err(self.io("read", source)),
        };
        let path = self.path.clone();
        State::from_json(&text).map_err(|error| match error {
            BadState::Malformed(source) => Error::Corrupt { path, source },
            BadState::Version(found) => Error::Version { path, found },
        })
    }

    /// Replaces the file, and returns once it is on the disk: the file holds the old state or the
    /// new one, never a part.
    ///
    /// # Errors
    /// When it could not be written; the old file is then still in place.
    pub fn save(&self, state: &State) -> Result<(), Error> {
        self.prepare(state)?.commit()?.sync();
        Ok(())
    }

    /// Writes the state beside the file, and returns once it is on the disk. The old state stays
    /// until [`PreparedState::commit`].
    ///
    /// # Errors
    /// When it could not be written.
    pub fn prepare(&self, state: &State) -> Result<PreparedState, Error> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(|e| self.io("create the directory of", e))?;
        let text = state.to_json();
        let text = text.map_err(|e| self.io("encode", io::Error::other(e)))?;
        let write = || -> io::Result<NewFile> {
            // The state may have keys.
            let mut new = NewFile::create(&self.path, 0o600)?;
            new.file().write_all(&text)?;
            new.sync()?;
            Ok(new)
        };
        Ok(PreparedState {
            new: write().map_err(|e| self.io("write", e))?,
            path: self.path.clone(),
        })
    }

    /// The newest handshake timestamps sent, by peer; none where the file is missing or damaged:
    /// they matter only if the clock was set back.
    #[must_use]
    pub fn timestamps(&self) -> Timestamps {
        fs::read_to_string(self.timestamps_path())
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default()
    }

    /// Saves handshake timestamps, whole or not at all. It waits for the disk.
    ///
    /// # Errors
    /// When they could not be written.
    pub fn save_timestamps(&self, timestamps: &Timestamps) -> Result<(), Error> {
        let text =
            serde_json::to_vec(timestamps).map_err(|e| self.io("encode", io::Error::other(e)))?;
        replaced(&self.timestamps_path(), &text)
    }

    /// A time, in nanoseconds since 1970, before which all messages to gateways and listeners were
    /// marked; 0 where the file is missing or damaged: it matters only if the clock was set back.
    #[must_use]
    pub fn circuit_clock(&self) -> u64 {
        fs::read_to_string(self.circuit_clock_path())
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or_default()
    }

    /// Saves the time of [`Store::circuit_clock`], whole or not at all.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn save_circuit_clock(&self, nanos: u64) -> Result<(), Error> {
        replaced(&self.circuit_clock_path(), format!("{nanos}\n").as_bytes())
    }

    fn circuit_clock_path(&self) -> PathBuf {
        self.path.with_file_name("circuit-clock")
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

/// Replaces a file, whole or not at all, also if the power fails.
fn replaced(path: &Path, contents: &[u8]) -> Result<(), Error> {
    replace(path, 0o644, contents).map_err(|source| Error::Io {
        operation: "write",
        path: path.to_owned(),
        source,
    })
}

/// Gives each of `names` a slot below `limit`: the one it has, or the lowest free one. Names that
/// are gone lose theirs. A slot that becomes free here is given out last: until all tables follow,
/// some lead to it for the name that is gone.
pub fn assign(slots: &mut BTreeMap<String, u32>, names: &[&str], limit: u32) {
    let wanted: BTreeSet<&str> = names.iter().copied().collect();
    let before: BTreeSet<u32> = slots.values().copied().collect();
    slots.retain(|name, slot| wanted.contains(name.as_str()) && *slot < limit);
    let kept: BTreeSet<u32> = slots.values().copied().collect();
    let never = (0..limit).filter(|slot| !before.contains(slot));
    let gone = before.iter().copied().filter(|slot| *slot < limit);
    let mut free = never.chain(gone.filter(|slot| !kept.contains(slot)));
    for name in names {
        if slots.contains_key(*name) {
            continue;
        }
        let Some(slot) = free.next() else {
            return;
        };
        slots.insert((*name).to_owned(), slot);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

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
        // An earlier version left it readable for all; it may have keys now.
        for name in ["state.json", "state.json.new"] {
            let path = dir.path().join(name);
            fs::write(&path, "").expect("written");
            fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("a mode");
        }
        store.save(&state).expect("saved");
        assert_eq!(store.load().expect("read"), state);
        let saved = fs::metadata(dir.path().join("state.json")).expect("a file");
        assert_eq!(saved.permissions().mode() & 0o777, 0o600);
    }

    /// A change that could not be applied is not in force after a restart, whatever the disk does
    /// by then.
    #[test]
    fn a_prepared_state_is_in_force_only_when_it_is_committed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::new(dir.path());
        let mut state = State::default();
        store.save(&state).expect("saved");
        state.maintenance = true;
        drop(store.prepare(&state).expect("written"));
        assert!(!store.load().expect("read").maintenance);
        store
            .prepare(&state)
            .expect("written")
            .commit()
            .expect("in place")
            .sync();
        assert!(store.load().expect("read").maintenance);
        // The temporary file is gone: the old state stays.
        state.maintenance = false;
        let prepared = store.prepare(&state).expect("written");
        fs::remove_file(dir.path().join("state.json.new")).expect("removed");
        assert!(prepared.commit().is_err());
        assert!(store.load().expect("read").maintenance);
    }

    #[test]
    fn file_from_before_full_failover_is_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::new(dir.path());
        let text = r#"{"version":1,"modes":{"a":{"partial":true,"epoch":3},"b":{"partial":false,"epoch":4}},
            "endpoints":{},"slots":{"tenants":{"a":0},"peers":{},"networks":{}}}"#;
        fs::write(dir.path().join("state.json"), text).expect("written");
        let state = store.load().expect("read");
        assert_eq!(state.modes["a"].failover, FailoverState::Partial);
        assert_eq!(
            (&state.modes["b"].failover, state.modes["b"].epoch),
            (&FailoverState::Idle, 4)
        );
        assert!(!state.maintenance && state.slots.rules.is_empty());
        store.save(&state).expect("saved");
        assert_eq!(store.load().expect("read"), state);
    }

    #[test]
    fn full_failover_is_saved_with_its_plan() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::new(dir.path());
        let net = |text: &str| text.parse().expect("a prefix");
        let tenant = failover::TenantContext {
            name: "acme".to_owned(),
            allocation: vec![net("203.0.113.16/28")],
            nat_addresses: Vec::new(),
            reserved: Vec::new(),
            networks: vec![failover::NetworkContext {
                name: "net1".to_owned(),
                prefixes: vec![net("10.1.0.0/24")],
                gateways: vec!["10.1.0.1".parse().expect("address")],
                excluded: false,
            }],
            other_networks: Vec::new(),
        };
        let text = "name = \"dr\"\ntenant = \"acme\"\n[[network]]\nname = \"net1\"\n\
            internet = true\n[[rule]]\nname = \"web\"\npublic_ip = \"203.0.113.20\"\n\
            public_port = 443\ninternal_ip = \"10.1.0.10\"\n";
        let plan = Plan::parse(text, &tenant).expect("a plan");
        let mut state = State {
            maintenance: true,
            nat_seed: Some(7),
            ..State::default()
        };
        let mode = TenantMode {
            failover: FailoverState::Full(Box::new(plan)),
            epoch: 9,
        };
        state.modes.insert("acme".to_owned(), mode);
        assign(&mut state.slots.rules, &[&rule_key("acme", "web")], 4);
        store.save(&state).expect("saved");
        assert_eq!(store.load().expect("read"), state);
        let both = fs::read_to_string(dir.path().join("state.json"))
            .expect("read")
            .replace("\"partial\": false", "\"partial\": true");
        fs::write(dir.path().join("state.json"), both).expect("written");
        let message = store.load().expect_err("both").to_string();
        assert!(
            message.contains("in partial failover and in full failover"),
            "{message}"
        );
    }

    #[test]
    fn timestamps_are_read_back_and_damaged_ones_ignored() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::new(dir.path());
        assert!(store.timestamps().is_empty());
        let kept = Timestamps::from([("key".to_owned(), [7; 12])]);
        store.save_timestamps(&kept).expect("saved");
        assert_eq!(store.timestamps(), kept);
        assert_eq!(store.circuit_clock(), 0);
        store.save_circuit_clock(u64::MAX).expect("saved");
        assert_eq!(store.circuit_clock(), u64::MAX);
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
        fs::write(&path, "{\"version\":9,\"new\":{}}").expect("written");
        let message = store.load().expect_err("version").to_string();
        assert!(message.contains("version 9"), "{message}");
    }

    #[test]
    fn names_keep_their_slots() {
        let mut slots = BTreeMap::new();
        assign(&mut slots, &["a", "b", "c"], 4);
        assert_eq!(slots["c"], 2);
        assign(&mut slots, &["c", "d"], 4);
        assert_eq!((slots["c"], slots["d"]), (2, 3), "no slot of `a` or `b`");
        assert_eq!(slots.len(), 2);
        assign(&mut slots, &["c", "d", "e"], 4);
        assert_eq!(slots["e"], 0, "free since an earlier change");
        assign(&mut slots, &["d", "f", "g", "h"], 4);
        assert_eq!((slots["f"], slots["g"], slots["h"]), (1, 0, 2), "no other");
        assign(&mut slots, &["d", "f", "g", "h", "i"], 4);
        assert_eq!(slots.get("i"), None, "there are four");
    }
}
