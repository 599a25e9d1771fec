//! The runtime of a daemon: one loop for its work, its operator and its service manager.
//!
//! ```text
//!                 ┌───────────────────── one thread, one loop ─────────────────────┐
//!   its own work ─▶ Daemon::step                                                   │
//!   socket ───────▶ Daemon::handle, Daemon::reload ─▶ RELOADING=1 … READY=1        │─▶ systemd
//!   SIGHUP ───────▶ Daemon::reload                                                 │
//!   SIGTERM, INT ─▶ Daemon::stop ─▶ drains: EXTEND_TIMEOUT_USEC= ─▶ STOPPING=1     │
//!   timer ────────▶ WATCHDOG=1, STATUS=                                            │
//!                 └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The timer of the watchdog is a branch of the same `select!` that does the work: a loop that
//! hangs, in whatever method of the daemon, sends no `WATCHDOG=1`, and systemd restarts the
//! process.

mod health;
mod metrics;

use std::{io, ops::ControlFlow, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use health::State;
pub use health::{Health, Pulse};
pub use metrics::ProcessMetrics;

use crate::{
    LogFormat, Notifier,
    socket::{self, Control, RequestRefusal, Responder},
};

/// Interval of the loop's timer where the unit has no watchdog.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Requests that wait for the loop.
const QUEUE: usize = 16;

/// The part of a daemon that the runtime calls. All methods are called from one thread, one at a
/// time.
///
/// Every method but [`step`](Self::step) must return soon: while it runs, the loop does nothing
/// else, the watchdog included.
pub trait Daemon: Sized {
    /// Requests of the control socket.
    type Request: DeserializeOwned + Send + 'static;
    /// Replies of the control socket.
    type Reply: Serialize + Send + 'static;
    /// Why the daemon could not start or go on.
    type Error: From<Error>;

    /// Waits for the daemon's own events and does one bounded piece of work. `Break` ends the
    /// daemon.
    ///
    /// The runtime drops the future whenever a request, a signal or the timer comes first, and
    /// calls `step` again afterwards: it must be cancel-safe, as a `select!` over cancel-safe
    /// futures with synchronous branches is. A daemon without work of its own waits for ever.
    ///
    /// # Errors
    /// The daemon ends with the error.
    fn step(&mut self) -> impl Future<Output = Result<ControlFlow<()>, Self::Error>>;

    /// Finishes what a step has begun and must not be dropped half way. The runtime calls it after
    /// each step and each request, and waits for it.
    fn finish_step(&mut self) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// Answers a request other than a reload, now or later through the `responder`.
    fn handle(
        &mut self,
        request: Self::Request,
        responder: Responder<Self::Reply>,
    ) -> impl Future<Output = ()>;

    /// Whether the request asks for a reload; the runtime then calls [`reload`](Self::reload).
    fn is_reload(request: &Self::Request) -> bool;

    /// Reads the configuration again and puts it in force, whole or not at all. The reply is for
    /// the client that asked, if one did. The runtime logs the result.
    ///
    /// # Errors
    /// Why the new configuration is refused; the running one stays in force.
    fn reload(&mut self) -> impl Future<Output = Result<Self::Reply, RequestRefusal>>;

    /// The first SIGTERM or SIGINT has come. `Break` ends the daemon; `Continue` lets it drain
    /// until [`step`](Self::step) breaks, or a second signal comes.
    fn stop(&mut self) -> ControlFlow<()> {
        ControlFlow::Break(())
    }

    /// Whether the daemon takes no new work, for `/health`. The runtime asks after each piece of
    /// work.
    fn is_draining(&self) -> bool {
        false
    }

    /// The part of the daemon that does not do its work, for `/health`, as `the store does not
    /// answer`. A fault that lasts must end the daemon, by an error of [`step`](Self::step): the
    /// watchdog sees the loop only.
    fn fault(&self) -> Option<&'static str> {
        None
    }

    /// The effect of the last [`reload`](Self::reload) that was not refused, for the log.
    fn reloaded(&self) -> &'static str {
        "configuration reloaded"
    }

    /// One line for `systemctl status`, such as `12 connections`.
    fn status_line(&self) -> Option<String> {
        None
    }

    /// The loop has ended; the control socket is still there, and is removed afterwards.
    fn shut_down(self) {}
}

/// The runtime's interface, which a daemon gets at its start.
#[derive(Debug)]
pub struct Context {
    /// For [`http::Server::bind`](crate::http::Server::bind).
    pub health: Health,
    /// For the registry of the same server.
    pub metrics: ProcessMetrics,
    /// For requests that wait while the loop works.
    pub pulse: Pulse,
}

/// The runtime could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {source}")]
pub struct Error {
    operation: &'static str,
    source: io::Error,
}

/// Runs a daemon to its end on a runtime of this thread. `start` builds it, and its control socket.
///
/// Installs the log output, makes a panic of any thread end the process, and forbids core dumps.
///
/// # Errors
/// The errors of `start` and [`Daemon::step`], and [`Error`].
pub fn run<D, S>(log: LogFormat, start: S) -> Result<(), D::Error>
where
    D: Daemon,
    S: AsyncFnOnce(&Context) -> Result<(D, Control), D::Error>,
{
    crate::abort_on_panic();
    crate::init_logging(log);
    crate::core_dumps::forbid();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error {
            operation: "start the runtime",
            source,
        })?;
    runtime.block_on(serve(Notifier::from_env(), start))
}

/// As [`run`], on the tokio runtime of the caller, with signals, and without log output of its own.
///
/// # Errors
/// The errors of `start` and [`Daemon::step`], and [`Error`].
pub async fn serve<D, S>(notifier: Notifier, start: S) -> Result<(), D::Error>
where
    D: Daemon,
    S: AsyncFnOnce(&Context) -> Result<(D, Control), D::Error>,
{
    let mut signals = Signals::new()?;
    let timeout = notifier.watchdog_timeout();
    let heartbeat = timeout.map_or(HEARTBEAT, |timeout| timeout / 2);
    let notifier = Arc::new(notifier);
    let health = Health::new(heartbeat);
    let context = Context {
        pulse: Pulse {
            notifier: Arc::clone(&notifier),
            health: health.clone(),
        },
        health,
        metrics: ProcessMetrics::default(),
    };
    let (daemon, control) = tokio::select! {
        started = start(&context) => started?,
        () = signals.stop() => {
            tracing::info!("stopped before the start was complete");
            return Ok(());
        }
    };
    let (sender, calls) = mpsc::channel(QUEUE);
    let server = control.serve(sender);
    let service = Service {
        daemon,
        notifier,
        health: context.health,
        metrics: context.metrics,
        watchdog: timeout.is_some(),
        heartbeat,
        stopping: false,
        status: None,
    };
    let result = service.run(signals, calls).await;
    server.finish().await;
    result
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let listen = |kind| {
            signal(kind).map_err(|source| Error {
                operation: "listen for signals",
                source,
            })
        };
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// The next signal. Cancel-safe.
    async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.hangup.recv() => SignalRequest::Reload,
            _ = self.terminate.recv() => SignalRequest::Stop,
            _ = self.interrupt.recv() => SignalRequest::Stop,
        }
    }

    /// SIGTERM or SIGINT. Cancel-safe.
    async fn stop(&mut self) {
        while self.next().await != SignalRequest::Stop {}
    }
}

/// A request that the service manager makes by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignalRequest {
    Reload,
    Stop,
}

struct Service<D> {
    daemon: D,
    notifier: Arc<Notifier>,
    health: Health,
    metrics: ProcessMetrics,
    /// Whether the unit has a watchdog.
    watchdog: bool,
    heartbeat: Duration,
    /// The service manager waits for the daemon to drain.
    stopping: bool,
    /// The line that the manager was last sent.
    status: Option<String>,
}

impl<D: Daemon> Service<D> {
    async fn run(
        mut self,
        mut signals: Signals,
        mut calls: mpsc::Receiver<socket::Call<D::Request, D::Reply>>,
    ) -> Result<(), D::Error> {
        let mut timer = interval(self.heartbeat);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.notifier.ready();
        self.metrics.applied();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
        let result = loop {
            tokio::select! {
                step = self.daemon.step() => match step {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => break Ok(()),
                    Err(error) => break Err(error),
                },
                Some((request, responder)) = calls.recv() => {
                    if D::is_reload(&request) {
                        responder.send(self.reload().await);
                    } else {
                        self.daemon.handle(request, responder).await;
                    }
                }
                _ = timer.tick() => self.beat(),
                asked = signals.next() => match asked {
                    // The result is logged.
                    SignalRequest::Reload => drop(self.reload().await),
                    SignalRequest::Stop => {
                        if self.stopping || self.daemon.stop().is_break() {
                            break Ok(());
                        }
                        self.stopping = true;
                        self.beat();
                    }
                },
            }
            self.daemon.finish_step().await;
            // Whatever was done may have begun or ended a drain or a fault.
            self.report_health();
        };
        self.notifier.stopping();
        self.health.set(State::Stopping);
        tracing::info!("stopping");
        self.daemon.shut_down();
        result
    }

    /// Tells `/health` that the loop runs, and the state of the daemon.
    fn report_health(&self) {
        self.health.set(match self.daemon.fault() {
            Some(fault) => State::Faulty(fault),
            None if self.daemon.is_draining() => State::Draining,
            None => State::Ready,
        });
    }

    /// Tells the manager that the loop runs. The loop reports to `/health` afterwards.
    fn beat(&mut self) {
        if self.watchdog {
            self.notifier.keep_alive();
        }
        if self.stopping {
            // Three beats: one that is late does not end the daemon.
            self.notifier.extend_timeout(self.heartbeat * 3);
        }
        let status = self.daemon.status_line();
        if let Some(line) = status.as_ref().filter(|_| status != self.status) {
            self.notifier.status(line);
        }
        self.status = status;
    }

    async fn reload(&mut self) -> Result<D::Reply, RequestRefusal> {
        self.notifier.reloading();
        let result = self.daemon.reload().await;
        self.metrics.count_reload(result.is_ok());
        match &result {
            Ok(_) => tracing::info!("{}", self.daemon.reloaded()),
            Err(refusal) => tracing::warn!(
                code = refusal.code,
                reason = refusal.message,
                "reload refused; the running configuration stays in force"
            ),
        }
        self.notifier.ready();
        result
    }
}

#[cfg(test)]
mod tests;
