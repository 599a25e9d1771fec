//! The gateway's process: the requests of its operator and of its service manager.
//!
//! ```text
//!   SIGHUP, reload ─▶ file ─▶ checked whole ─▶ Controller::change: all in force, or nothing changes
//!   drain ─────────▶ no new connections and binds, until undrain; the process goes on
//!   SIGTERM ───────▶ drain ─▶ the last has left, or gateway.drain has passed ─▶ stop
//!                            a second SIGTERM ─▶ stop at once
//! ```
//!
//! Connections and circuits have threads of their own; this loop only controls them.

mod controller;
mod files;
mod status;

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use service::{
    Context,
    cli::RunArgs,
    socket::{self, Control, Refusal, Responder},
};
use tokio::time::{Instant, sleep, sleep_until};

use self::controller::Controller;
use crate::{
    circuit::{self, fast},
    config::{self, Config},
    control::{self, Answer, Request},
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
        let config = load(&args.config)?;
        let limits = files::Limits::of_process()?;
        // First of all: a second gateway must not disturb the one that runs.
        let control = Control::bind(&control::SOCKET, &config.control_socket)?;
        let controller = Controller::start(config, limits, context.health.clone()).await?;
        let gateway = Gateway {
            path: args.config.clone(),
            controller,
            drain: None,
        };
        Ok((gateway, control))
    })
}

struct Gateway {
    /// The configuration file.
    path: PathBuf,
    controller: Controller,
    drain: Option<Drain>,
}

/// A drain.
#[derive(Clone, Copy, Debug)]
struct Drain {
    /// When the process stops, if connections are left by then; `None`: it goes on until it is told
    /// to stop.
    until: Option<Instant>,
    /// That nothing is left was logged.
    is_empty: bool,
}

/// The configuration, for the address families of this machine.
fn load(path: &Path) -> Result<Config, config::Error> {
    let mut config = Config::load(path)?;
    let has_ipv6 = || std::net::UdpSocket::bind("[::]:0").is_ok();
    if config.drop_missing_family(has_ipv6) {
        tracing::info!("IPv6 is off on this machine: the default of gateway.listen is IPv4 only");
    }
    Ok(config)
}

impl service::Daemon for Gateway {
    type Request = Request;
    type Reply = Answer;
    type Error = Error;

    async fn step(&mut self) -> Result<ControlFlow<()>, Error> {
        let Some(drain) = self.drain else {
            return std::future::pending().await;
        };
        let Some(deadline) = drain.until else {
            if drain.is_empty {
                return std::future::pending().await;
            }
            self.empty().await;
            tracing::info!("drained; `undrain` accepts connections again");
            self.drain = Some(Drain {
                is_empty: true,
                ..drain
            });
            return Ok(ControlFlow::Continue(()));
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

    async fn handle(&mut self, request: Request, responder: Responder<Answer>) {
        let controller = &self.controller;
        let answer = match request {
            Request::Status => Ok(Answer::Status(Box::new(controller.status()))),
            Request::Tenants { after } => {
                Ok(Answer::Tenants(controller.tenants_page(after.as_deref())))
            }
            Request::Circuits { after, tenant } => controller
                .circuits_page(after.as_deref(), tenant.as_deref())
                .map(Answer::Circuits)
                .ok_or_else(|| Refusal::new("bad-request", "after: write a circuit ID")),
            // The runtime calls `reload` instead.
            Request::Reload => Ok(Answer::Brief(controller.brief())),
            Request::Drain => {
                self.drain(None);
                Ok(Answer::Brief(self.controller.brief()))
            }
            Request::Undrain => self
                .undrain()
                .await
                .map(|()| Answer::Brief(self.controller.brief())),
        };
        responder.send(answer);
    }

    fn is_reload(request: &Request) -> bool {
        matches!(request, Request::Reload)
    }

    async fn reload(&mut self) -> Result<Answer, Refusal> {
        let result = self.change().await;
        self.controller.count_reload(result.is_ok());
        result.map_err(|error| Refusal::new("invalid", error.to_string()))?;
        Ok(Answer::Brief(self.controller.brief()))
    }

    fn stop(&mut self) -> ControlFlow<()> {
        if self.drain.is_some_and(|drain| drain.until.is_some()) {
            return ControlFlow::Break(());
        }
        self.drain(Some(Instant::now() + self.controller.config.drain));
        ControlFlow::Continue(())
    }

    fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    fn status_line(&self) -> Option<String> {
        let state = match self.drain {
            None => "running",
            Some(Drain { is_empty: true, .. }) => "drained",
            Some(_) => "draining",
        };
        let connections = self.controller.relay.connections();
        Some(format!("{state}, {connections} connections"))
    }
}

impl Gateway {
    /// Reads the file again and puts it in force.
    async fn change(&mut self) -> Result<(), Error> {
        if self.drain.is_some() {
            return Err(relay::Error::Draining.into());
        }
        let config = load(&self.path)?;
        self.controller.change(config).await
    }

    /// Takes no new connections and binds; with a deadline, the process stops afterwards.
    fn drain(&mut self, until: Option<Instant>) {
        if self.drain.is_none() {
            self.controller.relay.drain();
            self.controller.circuits.drain();
        } else if until.is_none() {
            return;
        }
        self.drain = Some(Drain {
            until,
            is_empty: false,
        });
        tracing::info!(
            connections = self.controller.relay.connections(),
            stops = until.is_some(),
            "draining"
        );
    }

    /// Accepts connections and binds again.
    async fn undrain(&mut self) -> Result<(), Refusal> {
        match self.drain {
            None => return Ok(()),
            Some(Drain { until: Some(_), .. }) => {
                let why = "the gateway stops: start it again";
                return Err(Refusal::new("conflict", why));
            }
            Some(Drain { until: None, .. }) => {}
        }
        let resumed = self.controller.relay.resume().await;
        resumed.map_err(|error| Refusal::new("internal", error.to_string()))?;
        self.controller.circuits.undrain();
        self.drain = None;
        tracing::info!("accepting connections again");
        Ok(())
    }

    /// Waits until there is neither a connection nor a bound end of a circuit.
    async fn empty(&self) {
        self.controller.relay.empty().await;
        let circuits = self.controller.circuits.observer();
        while circuits.bound() > 0 {
            sleep(DRAIN_POLL).await;
        }
    }
}
