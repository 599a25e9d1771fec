//! The objects that were in force last: used at a start, and checked before one.

use std::path::Path;

use anyhow::Context as _;
use service::desired::{Source, UpdateRefusal};

use super::keys::{self, Keys};
use crate::{
    config::{Config, desired::Desired},
    state::{State, Store},
};

/// The check of the stored state, which the next start would use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredCheck {
    /// The file has objects, which replace those of the state.
    OfFile,
    /// The stored objects fit the file: their revision; 0: from an earlier file.
    Fits(u64),
    /// There are none.
    None,
    /// They could not be checked, and why.
    Unchecked(String),
}

/// The configuration with the objects that were in force last, where the file has none. The state
/// gets those of a file, with their revision: a later file without objects keeps them, and older
/// ones that were applied before do not come back.
pub(super) fn with_objects(config: Config, state: &mut State) -> anyhow::Result<Config> {
    if config.source == Source::File {
        state.desired = Some(Box::new(Desired::of_file(&config)));
        return Ok(config);
    }
    let Some(desired) = &state.desired else {
        tracing::warn!(
            "there is no desired state: no network is connected until `apply`, or a reload of a \
             file with tenants, peers and networks"
        );
        return Ok(config);
    };
    let config = joined(&config, desired)?;
    tracing::info!(
        revision = desired.revision,
        "using the stored desired state"
    );
    Ok(config)
}

/// The machine of a file with stored objects.
fn joined(config: &Config, desired: &Desired) -> anyhow::Result<Config> {
    config.with_objects(&desired.objects).map_err(|problems| {
        let problems = UpdateRefusal::Invalid(problems);
        anyhow::anyhow!("the stored desired state does not fit the configuration file: {problems}")
    })
}

/// Reads and checks a file, with the key files that it names, the ports of this machine, and the
/// stored state that a start would use. Changes nothing.
///
/// # Errors
/// When a file cannot be read, or with every problem of the values and of the key files. Three more
/// are found only without those: a stored state that no start can use or that does not fit the
/// file, a peer with our own public key, and ports that the machine uses.
pub fn check(path: &Path) -> anyhow::Result<(Config, StoredCheck)> {
    let text = service::config::read(path)?;
    let problems = keys::problems(&Config::key_files(&text));
    let config = service::config::add(Config::parse(&text, path), path, problems)?;
    let store = Store::new(&config.state_dir);
    let (config, stored) = check_stored(config, &store)?;
    Keys::load(&config)?;
    config.check_ports()?;
    Ok((config, stored))
}

/// The configuration with the objects that a start would use.
fn check_stored(config: Config, store: &Store) -> anyhow::Result<(Config, StoredCheck)> {
    let state = match store.load() {
        Ok(state) => state,
        // Only root may read it.
        Err(error) if error.is_denied() => {
            return Ok((config, StoredCheck::Unchecked(error.to_string())));
        }
        Err(error) => return Err(error).context("the appliance would not start"),
    };
    match state.desired {
        _ if config.source == Source::File => Ok((config, StoredCheck::OfFile)),
        None => Ok((config, StoredCheck::None)),
        Some(desired) => {
            let config = joined(&config, &desired)?;
            Ok((config, StoredCheck::Fits(desired.revision)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "[appliance]\nname = \"edge\"\nrole = \"tenant\"\n\
        [uplink]\ninterface = \"eth0\"\n";

    fn with_tenant(name: &str) -> String {
        format!("{LOCAL}[[tenant]]\nname = \"{name}\"\n")
    }

    /// Starts with a file, as far as the objects are concerned; returns the names of its tenants,
    /// and source and revision of the state that is on the disk then.
    fn started(store: &Store, file: &str) -> (Vec<String>, Option<(Source, u64)>) {
        let config = Config::parse(file, Path::new("t.toml")).expect("good");
        let mut state = store.load().expect("readable");
        let config = with_objects(config, &mut state).expect("good");
        store.save(&state).expect("stored");
        let tenants = config.tenants.iter().map(|tenant| tenant.name.clone());
        let stored = store.load().expect("readable").desired;
        let position = stored.map(|desired| (desired.source, desired.revision));
        (tenants.collect(), position)
    }

    #[test]
    fn the_objects_that_were_in_force_last_stay_with_their_revision() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path());
        assert_eq!(started(&store, LOCAL), (vec![], None));
        let of_file = Some((Source::File, 0));
        let acme = (vec!["acme".to_owned()], of_file);
        assert_eq!(started(&store, &with_tenant("acme")), acme);
        // The file loses its objects while the daemon is not there.
        assert_eq!(started(&store, LOCAL), acme);
        // Others are applied, and the file gets objects again: the applied ones do not come back.
        let applied = |revision| {
            let globex = Config::parse(&with_tenant("globex"), Path::new("t.toml")).expect("good");
            let mut state = store.load().expect("readable");
            state.desired = Some(Box::new(Desired {
                source: Source::Applied,
                revision,
                objects: (*globex.objects).clone(),
            }));
            state
        };
        store.save(&applied(7)).expect("stored");
        let globex = (vec!["globex".to_owned()], Some((Source::Applied, 7)));
        assert_eq!(started(&store, LOCAL), globex);
        assert_eq!(started(&store, &with_tenant("acme")), acme);
        assert_eq!(started(&store, LOCAL), acme);
    }

    /// Revision and objects are one file, which is replaced as a whole: a crash at any step of
    /// that leaves either both previous ones or both new ones.
    #[test]
    fn a_crash_at_any_step_leaves_a_revision_with_its_objects() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path());
        let state = |revision: u64, tenant: &str| {
            let config = Config::parse(&with_tenant(tenant), Path::new("t.toml")).expect("good");
            State {
                desired: Some(Box::new(Desired {
                    source: Source::Applied,
                    revision,
                    objects: (*config.objects).clone(),
                })),
                ..State::default()
            }
        };
        let (before, after) = (state(1, "acme"), state(2, "globex"));
        store.save(&before).expect("stored");
        let prepared = store.prepare(&after).expect("written");
        let new = dir.path().join("state.json.new");
        let text = std::fs::read(&new).expect("the new state");
        for length in (0..text.len()).step_by(7).chain([text.len()]) {
            std::fs::write(&new, &text[..length]).expect("cut off");
            assert_eq!(store.load().expect("readable"), before, "{length}");
        }
        let committed = prepared.commit().expect("in place");
        assert_eq!(store.load().expect("readable"), after);
        committed.sync();
        // A file that a crash left behind does not disturb the next change.
        std::fs::write(&new, &text[..9]).expect("cut off");
        assert_eq!(store.load().expect("readable"), after);
        store.save(&state(3, "initech")).expect("stored");
        assert_eq!(store.load().expect("readable"), state(3, "initech"));
        assert!(!new.exists());
    }

    /// Checks a file beside what the store has.
    fn checked(store: &Store, file: &str) -> Result<StoredCheck, String> {
        let config = Config::parse(file, Path::new("t.toml")).expect("good");
        let checked = check_stored(config, store);
        checked
            .map(|(_, stored)| stored)
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_check_tells_of_the_state_that_a_start_would_use() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path());
        assert_eq!(checked(&store, LOCAL), Ok(StoredCheck::None));
        let acme = with_tenant("acme");
        assert_eq!(checked(&store, &acme), Ok(StoredCheck::OfFile));
        let applied = |objects: &str| {
            let config = Config::parse(objects, Path::new("t.toml")).expect("good");
            let state = State {
                desired: Some(Box::new(Desired {
                    source: Source::Applied,
                    revision: 7,
                    objects: (*config.objects).clone(),
                })),
                ..State::default()
            };
            store.save(&state).expect("stored");
        };
        applied(&acme);
        assert_eq!(checked(&store, LOCAL), Ok(StoredCheck::Fits(7)));
        // The peer needs the key of the machine.
        let machine = format!("{LOCAL}[tunnel]\nprivate_key_file = \"/k\"\n");
        let peer = "[[peer]]\nname = \"p\"\naddress = \"203.0.113.5:6180\"\n\
            public_key = \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"\n";
        applied(&format!("{machine}{peer}"));
        assert_eq!(checked(&store, &machine), Ok(StoredCheck::Fits(7)));
        let error = checked(&store, LOCAL).expect_err("there is no [tunnel]");
        assert!(
            error.starts_with("the stored desired state does not fit the configuration file: "),
            "{error}"
        );
        assert!(error.contains("peer \"p\": kind"), "{error}");
        // A file with objects replaces them.
        assert_eq!(checked(&store, &acme), Ok(StoredCheck::OfFile));
        // No start reads this, whatever the file is.
        std::fs::write(dir.path().join("state.json"), "{\"version\":3,\"mo").expect("damaged");
        for file in [LOCAL, &acme] {
            let error = checked(&store, file).expect_err("damaged");
            assert!(
                error.starts_with("the appliance would not start: "),
                "{error}"
            );
            assert!(error.contains("is not a state file"), "{error}");
        }
    }
}
