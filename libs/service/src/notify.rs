//! State notifications to systemd (sd_notify(3)), without a library.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// The service manager that started this process, if it asked for notifications.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// From the environment variables `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    #[must_use]
    pub fn from_env() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| connect(name.as_bytes()).ok());
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        // sd_watchdog_enabled(3): the variables may belong to another process, such as our parent.
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| is_ours && *usec > 0);
        Self {
            socket,
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    /// A manager at a socket of the file system, with this `WatchdogSec=`.
    #[cfg(test)]
    pub(crate) fn at(path: &std::path::Path, watchdog: Option<Duration>) -> Self {
        Self {
            socket: connect(path.as_os_str().as_bytes()).ok(),
            watchdog,
        }
    }

    /// Start-up is complete, or a reload is.
    pub(crate) fn ready(&self) {
        self.send("READY=1");
    }

    /// A reload begins. The time stamp is what `Type=notify-reload` requires.
    pub(crate) fn reloading(&self) {
        let usec = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or(0, |now| Duration::from(now).as_micros());
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// Shutdown begins.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The process is alive.
    pub(crate) fn keep_alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// One line for `systemctl status`.
    pub(crate) fn status(&self, line: &str) {
        self.send(&format!("STATUS={}", line.replace('\n', " ")));
    }

    /// The manager waits this long from now before it ends the process.
    pub(crate) fn extend_timeout(&self, by: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()));
    }

    /// `WatchdogSec=` of the unit; `None`: the unit has no watchdog.
    pub(crate) const fn watchdog_timeout(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Sends a state such as `READY=1`, without waiting. A failure is logged only, because the
    /// daemon works without a manager.
    pub fn send(&self, state: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(state.as_bytes(), address)
        {
            tracing::warn!(%error, state, "cannot notify the service manager");
        }
    }

    /// Half of `WATCHDOG_USEC`.
    #[must_use]
    pub fn watchdog() -> Option<Duration> {
        Self::from_env().watchdog.map(|timeout| timeout / 2)
    }
}

/// The socket of `NOTIFY_SOCKET`: a path, or an abstract name after `@`.
fn connect(name: &[u8]) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that reads no messages must not block the loop.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}
