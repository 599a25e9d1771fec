//! Why an established connection ended. A leaf: it depends on no other module.

use std::io;

use gateway_client::stream::Malformed;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// The owner closed it.
    #[error("closed by this end")]
    Requested,
    /// A newer connection of the circuit replaced it.
    #[error("the circuit has a newer connection")]
    Replaced,
    /// The circuit was removed or given another key.
    #[error("the circuit was removed from the configuration, or its key was changed")]
    Removed,
    /// The machine was restored from a snapshot.
    #[error("this machine was restored from a snapshot: its earlier keys are no longer used")]
    Restored,
    /// The other end closed it, with TLS's `close_notify`.
    #[error("closed by the other end")]
    ByPeer,
    /// TCP ended without `close_notify`.
    #[error(
        "the connection ended without TLS close_notify: the other end or a gateway on the path was \
         stopped"
    )]
    Cut,
    /// TCP lost it.
    #[error("the connection was lost: {0}")]
    Lost(#[source] io::Error),
    /// TLS found an error.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// The other end sent something that is no frame.
    #[error("the other end does not speak the tunnel's protocol: {0}")]
    Malformed(#[from] Malformed),
}
