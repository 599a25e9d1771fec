//! The owner's handle of an established connection.

use std::sync::Arc;

use super::{
    stats::{ConnectionStats, SharedStats},
    thread_control::{StopReason, ThreadControl},
};

/// An established connection. Dropping it closes the connection.
#[derive(Debug)]
pub struct ConnectionHandle {
    pub(super) control: Arc<ThreadControl>,
    pub(super) stats: Arc<SharedStats>,
}

impl ConnectionHandle {
    /// Tells the thread to send `close_notify` and stop; [`Closed`](super::ConnectionEvent::Closed)
    /// follows.
    pub fn close(&self) {
        self.control.stop(StopReason::Close);
    }

    /// Whether the thread was told to stop, as when a newer connection has replaced this one.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.control.stop_reason().is_some()
    }

    /// The connection's traffic until now, or its total once it is closed.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        self.stats.get()
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        self.close();
    }
}
