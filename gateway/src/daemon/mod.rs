//! The gateway as a process: what its operator and its service manager ask for.
//!
//! ```text
//!   SIGHUP, reload ─▶ file ─▶ checked whole ─▶ Controller::change: all in force, or nothing changes
//!   SIGTERM, drain ─▶ no new connections ─▶ the last has ended, or gateway.drain has passed ─▶ stop
//!                                           a second SIGTERM ─▶ stop at once
//! ```
//!
//! Connections and circuits have threads of their own; this loop only controls them.

mod controller;
mod files;
mod status;

use std::{io, ops::ControlFlow, path::PathBuf, time::Duration};

use service::{
    Context, Daemon as _,
    cli::RunArgs,
    socket::{self, Control, Refusal, Responder},
};
use tokio::time::{Instant, sleep, sleep_until};

use self::controller::Controller;
use crate::{
    circuit::{self, fast},
    config::{self, Config},
    control::{self, Request, Status},
    relay,
};

/// Interval at which a draining gateway looks for bound ends of circuits.
const DRAIN_POLL: Duration = Duration::from_millis(100);

/// Why the gateway does not run, or why a new configuration is not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Relay(#[from] relay::Error),
    #[error(transparent)]
    Circuits(#[from] circuit::socket::Error),
    #[error("circuits.xdp: {0}")]
    Fast(#[from] fast::Error),
    #[error(transparent)]
    Control(#[from] socket::BindError),
    #[error(transparent)]
    Http(#[from] service::http::Error),
    #[error(transparent)]
    Files(#[from] files::Error),
    #[error(transparent)]
    Service(#[from] service::run::Error),
    /// The key takes effect at a start only.
    #[error("{key} cannot be changed while the gateway runs; restart it, or write {running} again")]
    Fixed { key: &'static str, running: String },
    #[error("{operation}: {source}")]
    System {
        operation: &'static str,
        source: io::Error,
    },
}

/// Runs the gateway until it is told to stop and has drained.
///
/// # Errors
/// When it cannot start.
pub fn run(args: &RunArgs) -> Result<(), Error> {
    service::run(args.log_format, async |context: &Context| {
        let config = Config::load(&args.config)?;
        let limits = files::Limits::of_process()?;
        // First of all: a second gateway must not disturb the one that runs.
        let control = Control::bind(&control::SOCKET, &config.control_socket)?;
        let controller = Controller::start(config, limits, context.health.clone()).await?;
        let gateway = Gateway {
            path: args.config.clone(),
            controller,
            drain_until: None,
        };
        Ok((gateway, control))
    })
}

struct Gateway {
    /// The configuration file.
    path: PathBuf,
    controller: Controller,
    /// When a draining gateway stops, if connections are left by then.
    drain_until: Option<Instant>,
}

impl service::Daemon for Gateway {
    type Request = Request;
    type Reply = Box<Status>;
    type Error = Error;

    async fn step(&mut self) -> Result<ControlFlow<()>, Error> {
        let Some(deadline) = self.drain_until else {
            return std::future::pending().await;
        };
        tokio::select! {
            () = self.empty() => tracing::info!("drained"),
            () = sleep_until(deadline) => tracing::warn!(
                connections = self.controller.relay.connections(),
                "gateway.drain has passed; closing the remaining connections"
            ),
        }
        Ok(ControlFlow::Break(()))
    }

    async fn handle(&mut self, request: Request, responder: Responder<Box<Status>>) {
        match request {
            // The runtime calls `reload` instead.
            Request::Status | Request::Reload => {}
            Request::Drain => self.drain(),
        }
        responder.send(Ok(Box::new(self.controller.status())));
    }

    fn is_reload(request: &Request) -> bool {
        matches!(request, Request::Reload)
    }

    async fn reload(&mut self) -> Result<Box<Status>, Refusal> {
        let invalid = |error: Error| Refusal::new("invalid", error.to_string());
        if self.is_draining() {
            return Err(invalid(relay::Error::Draining.into()));
        }
        let config = Config::load(&self.path).map_err(|error| invalid(error.into()))?;
        self.controller.change(config).await.map_err(invalid)?;
        Ok(Box::new(self.controller.status()))
    }

    fn stop(&mut self) -> ControlFlow<()> {
        if self.is_draining() {
            return ControlFlow::Break(());
        }
        self.drain();
        ControlFlow::Continue(())
    }

    fn is_draining(&self) -> bool {
        self.drain_until.is_some()
    }

    fn status_line(&self) -> Option<String> {
        let state = if self.is_draining() {
            "draining"
        } else {
            "running"
        };
        let connections = self.controller.relay.connections();
        Some(format!("{state}, {connections} connections"))
    }
}

impl Gateway {
    /// Takes no new connections and binds. A second call changes nothing.
    fn drain(&mut self) {
        if self.is_draining() {
            return;
        }
        let limit = self.controller.config.drain;
        self.controller.relay.drain();
        self.controller.circuits.drain();
        self.drain_until = Some(Instant::now() + limit);
        tracing::info!(
            connections = self.controller.relay.connections(),
            seconds = limit.as_secs_f64(),
            "draining"
        );
    }

    /// Waits until there is neither a connection nor a bound end of a circuit.
    async fn empty(&self) {
        self.controller.relay.empty().await;
        while self.controller.circuits.state().bound > 0 {
            sleep(DRAIN_POLL).await;
        }
    }
}
