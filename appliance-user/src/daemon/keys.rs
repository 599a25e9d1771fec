//! The keys that a configuration names or has, read.

use std::collections::BTreeMap;

use gateway_client::wire::Key;
use tunnel::{InvalidKey, PresharedKey, SecretKey};
use tunnel_worker::keys;

use crate::config::{Config, KeyFile, KeySource, Problem};

/// The keys that a configuration names.
#[derive(Default)]
pub(super) struct Keys {
    pub private: Option<SecretKey>,
    /// By peer name.
    pub preshared: BTreeMap<String, PresharedKey>,
    /// By peer name: of our side of the circuit to it.
    pub circuits: BTreeMap<String, Key>,
}

/// Why the keys of a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A file is missing, readable by others, or holds no key.
    #[error(transparent)]
    File(#[from] keys::Error),
    /// An update has no key where one belongs.
    #[error("a key is not 32 bytes in base64")]
    Given(#[from] InvalidKey),
    /// A peer has our own public key.
    #[error("peer {peer:?}: public_key is this appliance's own; write the other end's")]
    OwnPublicKey {
        /// The peer's name.
        peer: String,
    },
}

/// Problems of these files, each with the key that names it.
pub(super) fn problems(files: &[(String, KeyFile)]) -> Vec<Problem> {
    let problem = |(at, file): &(String, KeyFile)| {
        let read = match file {
            KeyFile::Private(path) => keys::private(path).map(drop),
            KeyFile::Preshared(path) => keys::preshared(path).map(drop),
        };
        read.err().map(|error| Problem {
            at: at.clone(),
            what: error.to_string(),
        })
    };
    files.iter().filter_map(problem).collect()
}

fn read(source: &KeySource) -> Result<PresharedKey, Error> {
    match source {
        KeySource::File(path) => Ok(keys::preshared(path)?),
        KeySource::Given(text) => Ok(text.expose().parse()?),
    }
}

impl Keys {
    /// Reads every key.
    ///
    /// # Errors
    /// The first that cannot be used, or the first peer that has our own public key.
    pub fn load(config: &Config) -> Result<Self, Error> {
        let private = match &config.tunnel {
            Some(tunnel) => Some(keys::private(&tunnel.private_key_file)?),
            None => None,
        };
        let (mut preshared, mut circuits) = (BTreeMap::new(), BTreeMap::new());
        for peer in &config.peers {
            let Some(identity) = peer.identity() else {
                continue;
            };
            if let Some(source) = &identity.preshared_key {
                preshared.insert(peer.name.clone(), read(source)?);
            }
            if let Some(circuit) = &identity.circuit {
                let key = read(&circuit.key)?;
                circuits.insert(peer.name.clone(), Key::new(*key.expose()));
            }
        }
        if let Some(own) = private.as_ref().map(SecretKey::public) {
            let is_own = |p: &&crate::config::Peer| {
                p.identity()
                    .is_some_and(|identity| identity.public_key == own)
            };
            if let Some(peer) = config.peers.iter().find(is_own) {
                return Err(Error::OwnPublicKey {
                    peer: peer.name.clone(),
                });
            }
        }
        Ok(Self {
            private,
            preshared,
            circuits,
        })
    }

    /// Whether our own identity is the same.
    pub fn same_identity(&self, other: &Self) -> bool {
        let public = |keys: &Self| keys.private.as_ref().map(SecretKey::public);
        public(self) == public(other)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    #[test]
    fn every_key_file_that_cannot_be_used_is_a_problem_of_the_configuration() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("appliance.toml");
        let file = |name: &str| -> PathBuf { dir.path().join(name) };
        std::fs::write(file("open.key"), "").expect("written");
        let text = format!(
            "[appliance]\nname = \"Site\"\nrole = \"tenant\"\n\
             [uplink]\ninterface = \"eth0\"\n\
             [tunnel]\nprivate_key_file = {:?}\nworkers = 0\n\
             [[peer]]\nname = \"hub\"\npreshared_key_file = {:?}\n\
             public_key = \"//////////////////////////////////////////8=\"\n\
             circuit = {{ id = \"3f9a1c0277d1e05b\", key_file = \"relative.key\" }}\n",
            file("none.key"),
            file("open.key"),
        );
        std::fs::write(&path, &text).expect("written");
        let error = super::super::check(&path)
            .expect_err("problems")
            .to_string();
        for problem in [
            "\n  - appliance.name: \"Site\" is not a name",
            "\n  - tunnel.workers: write 1 to",
            "\n  - tunnel.private_key_file: stat ",
            "\n  - peer \"hub\": preshared_key_file: ",
            "\n  - peer \"hub\": circuit.key_file: \"relative.key\": write an absolute path",
        ] {
            assert_eq!(error.matches(problem).count(), 1, "{problem} in {error}");
        }
    }
}
