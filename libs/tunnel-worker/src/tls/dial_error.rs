//! Why an attempt to connect failed, in messages with the remedy.

use std::{fmt, io, net::SocketAddr, time::Duration};

use gateway_client::pool::Failure;

use super::{close_reason::CloseReason, identity::Fingerprint};

/// Why an address failed.
#[derive(Debug, thiserror::Error)]
pub enum DialStepError {
    /// TCP was refused, or there is no route.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// Nothing answered to TCP in time.
    #[error("no answer to TCP within {0:?}: is the port open on the path?")]
    NoAnswer(Duration),
    /// The gateway does not know the name.
    #[error(
        "the gateway has no route for the server name \"{0}\" and the tunnel's protocol: compare \
         the name with the gateway's configuration"
    )]
    NoRoute(String),
    /// The gateway knows the name, but cannot connect to the appliance behind it.
    #[error(
        "the gateway cannot reach the provider's appliance, or the tenant has reached its \
         connection limit; the gateway's `status` tells which"
    )]
    NoBackend,
    /// The certificate is not the pinned one.
    #[error(
        "the certificate has the fingerprint {presented}, not {} as in `tls.fingerprint`: \
         either a third party answers in the provider's place, such as a proxy that inspects \
         TLS, or the provider has a new certificate; ask the provider for its fingerprint and \
         compare, and exempt the gateways from inspection",
        any_of(pinned)
    )]
    Fingerprint {
        /// The fingerprint presented.
        presented: Fingerprint,
        /// The fingerprints pinned.
        pinned: Vec<Fingerprint>,
    },
    /// TLS failed for another reason.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// TLS or the answer to the hello took too long.
    #[error("connected, but TLS and the hello were not answered within {0:?}")]
    Slow(Duration),
    /// The certificate is right, the protocol is not.
    #[error(
        "the other end speaks TLS, but not the tunnel's protocol: is the server name \"{0}\" that \
         of an appliance?"
    )]
    NoProtocol(String),
    /// The other end closed the connection instead of answering the hello.
    #[error(
        "the provider's appliance did not accept the circuit: is it configured there with the same \
         key?"
    )]
    Refused,
    /// The answer to the hello is not authentic.
    #[error("the answer to the hello was not made with the circuit's key")]
    WrongAnswer,
    /// The connection ended during the handshake.
    #[error("{0}")]
    Ended(#[source] CloseReason),
    /// No descriptor, or the kernel refused an option.
    #[error("cannot set up the socket: {0}")]
    Socket(#[source] io::Error),
}

impl DialStepError {
    /// As the choice of a gateway counts it.
    #[must_use]
    pub const fn failure(&self) -> Failure {
        match self {
            Self::Connect(_) | Self::Socket(_) => Failure::Unreachable,
            Self::NoAnswer(_) | Self::Slow(_) => Failure::Silent,
            Self::NoRoute(_)
            | Self::NoBackend
            | Self::Fingerprint { .. }
            | Self::Tls(_)
            | Self::NoProtocol(_)
            | Self::Refused
            | Self::WrongAnswer
            | Self::Ended(_) => Failure::Refused,
        }
    }
}

/// An address and why it failed.
#[derive(Debug)]
pub struct AddressError {
    pub address: SocketAddr,
    /// Why it failed.
    pub error: DialStepError,
}

/// Why an attempt failed.
#[derive(Debug)]
pub enum DialError {
    /// The owner cancelled it.
    Cancelled,
    /// All addresses failed; in the order in which they did.
    Exhausted(Vec<AddressError>),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("cancelled"),
            Self::Exhausted(attempts) if attempts.is_empty() => {
                f.write_str("no address to connect to")
            }
            Self::Exhausted(attempts) => {
                for (n, AddressError { address, error }) in attempts.iter().enumerate() {
                    let separator = if n == 0 { "" } else { "; " };
                    write!(f, "{separator}{address}: {error}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for DialError {}

/// Why no attempt was begun.
#[derive(Debug, thiserror::Error)]
pub enum DialStartError {
    /// The server name is invalid.
    #[error(
        "\"{0}\" is not a server name: use a DNS name, by which the gateway finds the provider's \
         appliance"
    )]
    Name(String),
    /// TLS refuses its configuration.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// There are no threads or descriptors left.
    #[error("cannot start a connection's thread: {0}")]
    Thread(#[source] io::Error),
}

/// A list in words: "a" or "a or b".
fn any_of(all: &[Fingerprint]) -> String {
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    all.join(" or ")
}
