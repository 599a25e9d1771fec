//! Machines as the store and the memory have them: enrolment tokens, identities, the authority, and
//! the agents that are connected.
//!
//! For: their form, and what follows from a record by itself. Never: how machines come to them,
//! which is the module `agents`'.

mod presence;
mod records;

pub(crate) use presence::{Closing, OpenStream, Presence, Report};
pub(crate) use records::{
    AUTHORITIES, ENROLMENTS, IDENTITIES, StoredAuthority, authority_id, conflict, machine_key,
    must_be,
};
pub use records::{Enrolment, IssuedKey, MachineIdentity};

use gateway_client::dial::ServiceAddress;
use identity::Fingerprint;

/// The listener of agents, as enrolment tokens name it.
#[derive(Clone, Debug)]
pub(crate) struct AgentListener {
    /// Hash of the certificate that tokens pin.
    pub authority: Fingerprint,
    /// DNS name of the director in TLS.
    pub server_name: String,
    /// Where machines reach the director without a gateway.
    pub service_addresses: Vec<ServiceAddress>,
}
