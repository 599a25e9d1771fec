//! Tells systemd how the service is (sd_notify(3)), without a library.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
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
            let name = name.into_encoded_bytes();
            let address = match name.strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name).ok()?,
                None => {
                    use std::os::unix::ffi::OsStrExt as _;
                    SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(&name)).ok()?
                }
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

    /// How often the manager wants a sign of life: half of `WATCHDOG_USEC`.
    #[must_use]
    pub fn watchdog() -> Option<Duration> {
        let usec: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
        Some(Duration::from_micros(usec / 2)).filter(|d| !d.is_zero())
    }
}
