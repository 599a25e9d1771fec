//! Tells systemd how the service is (sd_notify(3)), without a library.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStringExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// The service manager, if one asked to be told.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// From the environment variable `NOTIFY_SOCKET`.
    #[must_use]
    pub fn from_env() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let name = name.into_vec();
            let address = match name.strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name).ok()?,
                None => SocketAddr::from_pathname(std::ffi::OsString::from_vec(name)).ok()?,
            };
            Some((UnixDatagram::unbound().ok()?, address))
        });
        Self { socket }
    }

    /// Sends a state such as `READY=1`. A manager that does not listen is not an error of ours.
    pub fn send(&self, state: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(state.as_bytes(), address)
        {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }
}
