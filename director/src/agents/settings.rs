//! Settings of the listener of agents.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use gateway_client::dial::ServiceAddress;

use crate::key_file::KeyFile;

/// Settings of the listener of agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// The provider: the trust domain of all machines' names.
    pub provider: String,
    /// DNS name of the director in TLS; gateways relay by it.
    pub server_name: String,
    /// Where machines reach the director without a gateway.
    pub service_addresses: Vec<ServiceAddress>,
    /// File with the key that encrypts the authority's key.
    pub sealing_key: PathBuf,
    /// How long ago a certificate may have expired and still be renewed.
    pub grace: Duration,
}

impl Settings {
    pub(super) fn key_file(&self) -> KeyFile<'_> {
        KeyFile {
            path: &self.sealing_key,
            key: "sealing key",
            setting: "agents.sealing_key",
        }
    }
}
