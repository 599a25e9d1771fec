//! Why a connection is not relayed: the reason for counters and logs, and the alert for the client.

use std::io;

use gateway_core::hello;

use super::{limits::Full, route::NoRoute};

/// Why a connection is not relayed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionRefusal {
    /// A limit is reached.
    #[error(transparent)]
    Full(#[from] Full),
    /// A sender of `relay.proxy_from` sent no PROXY header, or not in time.
    #[error(
        "the sender is in relay.proxy_from, and its first bytes are no PROXY header of version 2"
    )]
    NoProxyHeader,
    /// The client closed while its backend was dialled.
    #[error("the client closed the connection while its backend was dialled")]
    Gone,
    /// The client closed before its first byte.
    #[error("the client closed the connection before its first byte")]
    NoHello,
    /// The client closed within its hello.
    #[error("the client closed the connection within its hello")]
    CutHello,
    /// The hello was not complete in time.
    #[error("the hello was not complete within relay.hello_timeout")]
    SlowHello,
    /// The bytes are no hello.
    #[error(transparent)]
    Hello(#[from] hello::HelloRefusal),
    /// No route matches.
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    /// No address of the backend answered, or the backend did not take the hello.
    #[error("backend {backend:?} is unreachable: {source}")]
    Unreachable {
        backend: String,
        /// The error of the last address.
        source: io::Error,
    },
}

impl ConnectionRefusal {
    /// All reasons.
    pub const REASONS: [&'static str; 21] = [
        "limit-gateway",
        "limit-source",
        "limit-tenant",
        "proxy-header",
        "client-gone",
        "hello-none",
        "hello-cut",
        "hello-slow",
        "not-tls",
        "record-version",
        "record-length",
        "not-a-hello",
        "hello-too-long",
        "bytes-after-hello",
        "hello-malformed",
        "extension-twice",
        "server-name-malformed",
        "no-server-name",
        "no-route",
        "no-protocol",
        "backend-unreachable",
    ];

    /// Stable name for counters and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Full(Full::Gateway) => "limit-gateway",
            Self::Full(Full::Source) => "limit-source",
            Self::Full(Full::Tenant) => "limit-tenant",
            Self::NoProxyHeader => "proxy-header",
            Self::Gone => "client-gone",
            Self::NoHello => "hello-none",
            Self::CutHello => "hello-cut",
            Self::SlowHello => "hello-slow",
            Self::Hello(refusal) => refusal.reason(),
            Self::NoRoute(NoRoute::NoName) => "no-server-name",
            Self::NoRoute(NoRoute::Name) => "no-route",
            Self::NoRoute(NoRoute::Protocol) => "no-protocol",
            Self::Unreachable { .. } => "backend-unreachable",
        }
    }

    /// The fatal alert for the client (RFC 8446 section 6); `None` if the client may not speak TLS.
    pub(super) const fn alert(&self) -> Option<u8> {
        match self {
            // internal_error
            Self::Full(Full::Tenant) | Self::Unreachable { .. } => Some(80),
            // unrecognized_name
            Self::NoRoute(NoRoute::NoName | NoRoute::Name) => Some(112),
            // no_application_protocol
            Self::NoRoute(NoRoute::Protocol) => Some(120),
            Self::Hello(refusal) => match refusal {
                hello::HelloRefusal::NotTls { .. }
                | hello::HelloRefusal::Version { .. }
                | hello::HelloRefusal::RecordLength { .. }
                | hello::HelloRefusal::NotHello { .. } => None,
                // decode_error
                hello::HelloRefusal::TooLong
                | hello::HelloRefusal::Trailing { .. }
                | hello::HelloRefusal::Malformed { .. } => Some(50),
                // illegal_parameter
                hello::HelloRefusal::Twice { .. } | hello::HelloRefusal::Name => Some(47),
            },
            Self::Full(Full::Gateway | Full::Source)
            | Self::NoProxyHeader
            | Self::Gone
            | Self::NoHello
            | Self::CutHello
            | Self::SlowHello => None,
        }
    }
}
