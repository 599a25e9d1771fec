//! The gateway's process: the requests of its operator and of its service manager.
//!
//! ```text
//!   SIGHUP, reload ─▶ file ─▶ checked whole ─▶ Controller::change: all in force, or nothing changes
//!   apply ─────────▶ snapshot or delta ─▶ Controller::apply: all in force, or nothing changes
//!   drain ─────────▶ no new connections and binds, until undrain, over restarts
//!   SIGTERM ───────▶ drain ─▶ the last has left, or gateway.drain has passed ─▶ stop
//!                            a second SIGTERM ─▶ stop at once
//! ```
//!
//! Connections and circuits have threads of their own; this loop only controls them.

mod controller;
mod files;
mod status;
mod store;

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use agent::{Handle, Report};
use gateway_client::wire::Load;
use gateway_model::{Counts, Source, Update, UpdateRefusal};
use service::{
    Context,
    cli::RunArgs,
    config::{Problem, list},
    socket::{self, Control, RequestRefusal, Responder},
};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use self::{
    controller::Controller,
    store::{Done, Job, Store, Stored},
};
use crate::{
    circuit::{self, fast},
    config::{self, Config, Local},
    control::{self, Answer, PAGE_SIZE, Request, UpdateReply},
    relay,
};

/// Interval at which a draining gateway looks for bound ends of circuits.
const DRAIN_POLL: Duration = Duration::from_millis(100);

/// Interval at which ends are told the load anew.
const LOAD_INTERVAL: Duration = Duration::from_secs(5);

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
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The stored state cannot be read from the disk.
    #[error("the gateway would not start: {0}")]
    StoredState(store::Error),
    /// The desired state does not fit this machine.
    #[error("the desired state does not fit the configuration file: {}", list(.0))]
    Desired(Vec<Problem>),
    /// The update is refused.
    #[error(transparent)]
    Update(#[from] UpdateRefusal),
    /// The file decides.
    #[error(
        "the desired state is that of the configuration file: remove [[tenant]], [[circuit]], \
         [[backend]] and [[route]] from the file and reload it first; nothing was changed"
    )]
    FromFile,
    /// The key takes effect at a start only.
    #[error("{key} cannot be changed while the gateway runs; restart it, or write {running} again")]
    Fixed { key: &'static str, running: String },
    /// SIGTERM came.
    #[error("the gateway stops: start it again")]
    Stopping,
    #[error("{operation}: {source}")]
    System {
        operation: &'static str,
        source: io::Error,
    },
}

fn stopping() -> RequestRefusal {
    RequestRefusal::new("conflict", Error::Stopping.to_string())
}

/// The check of a stored state, which the next start would use.
#[derive(Debug)]
pub enum StoredCheck {
    /// It fits.
    Fits {
        revision: u64,
        /// Numbers of objects.
        counts: Counts,
        /// Why later revisions of the file are not used, if it has any.
        cut_off: Option<String>,
    },
    /// There is none.
    None,
    /// It could not be checked, and why.
    Unchecked(String),
}

/// Checks whether the stored state fits a configuration file without a desired state. Changes
/// nothing.
///
/// # Errors
/// [`Error::Desired`], or what is wrong with the file: the gateway would not start, or start
/// without a state.
pub fn check_stored(config: &Local) -> Result<StoredCheck, Error> {
    let Some(dir) = config.state_folder() else {
        let text = "gateway.state_dir is not set, and only the service manager knows its folder";
        return Ok(StoredCheck::Unchecked(text.to_owned()));
    };
    let (model, cut_off) = match store::stored_model(&dir) {
        Ok(Some(stored)) => stored,
        Ok(None) => return Ok(StoredCheck::None),
        // The gateway may have another user.
        Err(error) if error.is_denied() => {
            return Ok(StoredCheck::Unchecked(error.to_string()));
        }
        Err(error @ store::Error::Io { .. }) => return Err(Error::StoredState(error)),
        Err(error) => return Err(error.into()),
    };
    let problems = model.check(&config.bounds());
    if !problems.is_empty() {
        return Err(Error::Desired(problems));
    }
    Ok(StoredCheck::Fits {
        revision: model.revision(),
        counts: model.counts(),
        cut_off,
    })
}

/// Opens the store in the folder of the state.
fn open_store(config: &Config) -> Result<(Option<Store>, Stored), Error> {
    let Some(dir) = config.local.state_folder() else {
        return Ok((None, Stored::default()));
    };
    let (store, stored) = Store::open(&dir)?;
    Ok((Some(store), stored))
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
        let control = Control::bind(&control::SOCKET, &config.local.control_socket)?;
        let stored = open_store(&config)?;
        let drain = stored.1.draining.then_some(Drain {
            until: None,
            is_empty: false,
        });
        let controller = Controller::start(config, stored, limits, context).await?;
        if drain.is_some() {
            tracing::warn!(
                "the gateway was draining when it stopped and continues to drain: \
                 `causeway-gateway undrain` ends the drain"
            );
        }
        let agent = controller.config.agent.as_ref().map(|config| {
            let seed = getrandom::u64().unwrap_or_default();
            Handle::start(config, env!("CARGO_PKG_VERSION"), seed)
        });
        let gateway = Gateway {
            agent,
            path: args.config.clone(),
            controller,
            drain,
            next_load: Instant::now(),
            load: Load::UNKNOWN,
        };
        Ok((gateway, control))
    })
}

struct Gateway {
    /// The configuration file.
    path: PathBuf,
    controller: Controller,
    drain: Option<Drain>,
    /// Time of the next report of the load to ends.
    next_load: Instant,
    /// The load last reported to ends.
    load: Load,
    agent: Option<Handle>,
}

/// A drain that was asked for, before a stop or by the command `drain`.
#[derive(Clone, Copy, Debug)]
struct Drain {
    /// When the process stops, if connections are left by then; `None`: it runs until a stop is
    /// requested.
    until: Option<Instant>,
    /// Whether "drained" was logged.
    is_empty: bool,
}

/// The configuration, for the address families of this machine.
fn load(path: &Path) -> Result<Config, config::Error> {
    let mut config = Config::load(path)?;
    let has_ipv6 = || std::net::UdpSocket::bind("[::]:0").is_ok();
    if config.local.drop_missing_family(has_ipv6) {
        tracing::info!("IPv6 is off on this machine: the default of gateway.listen is IPv4 only");
    }
    Ok(config)
}

impl service::Daemon for Gateway {
    type Request = Request;
    type Reply = Answer;
    type Error = Error;

    async fn step(&mut self) -> Result<ControlFlow<()>, Error> {
        let next = self.next_load;
        if let Ok(outcome) = timeout_at(next, self.watch_drain()).await {
            return Ok(outcome);
        }
        self.next_load = Instant::now() + LOAD_INTERVAL;
        self.report();
        self.load = self.controller.report_load(self.load);
        let now = std::time::Instant::now();
        self.controller.follow_interfaces(now);
        self.controller.circuits.share_buckets();
        let draining = (!self.is_stopping()).then_some(self.drain.is_some());
        self.controller.store_again(draining, now);
        Ok(ControlFlow::Continue(()))
    }

    async fn handle(&mut self, request: Request, responder: Responder<Answer>) {
        let controller = &self.controller;
        let answer = match request {
            Request::Status {} => {
                let mut status = controller.status();
                status.agent = self.agent.as_ref().map(Handle::status);
                Ok(Answer::Status(Box::new(status)))
            }
            Request::Tenants { after } => {
                Ok(Answer::Tenants(controller.tenants_page(after.as_deref())))
            }
            Request::Circuits { after, tenant } => controller
                .circuits_page(after.as_deref(), tenant.as_deref())
                .map(Answer::Circuits)
                .ok_or_else(|| RequestRefusal::new("bad-request", "after: write a circuit ID")),
            Request::Desired { after, keys } => controller
                .model
                .page(after.as_deref(), PAGE_SIZE, keys)
                .map(Answer::Desired)
                .ok_or_else(|| RequestRefusal::new("bad-request", "after: write `next` of a page")),
            Request::Apply { update } => return self.apply(*update, responder),
            // The runtime calls `reload` instead.
            Request::Reload {} => Ok(Answer::Brief(controller.brief())),
            Request::Drain {} if self.is_stopping() => Err(stopping()),
            Request::Drain {} => {
                self.drain(None);
                return self.answer_stored(Job::Draining(true), responder);
            }
            Request::Undrain {} => match self.undrain().await {
                Ok(()) => return self.answer_stored(Job::Draining(false), responder),
                Err(refusal) => Err(refusal),
            },
        };
        responder.send(answer);
    }

    fn is_reload(request: &Request) -> bool {
        matches!(request, Request::Reload {})
    }

    async fn reload(&mut self) -> Result<Answer, RequestRefusal> {
        let result = self.change().await;
        result.map_err(|error| RequestRefusal::new("invalid", error.to_string()))?;
        Ok(Answer::Brief(self.controller.brief()))
    }

    fn stop(&mut self) -> ControlFlow<()> {
        if self.is_stopping() {
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
    /// Watches a drain: whether nothing is left, or its time is over. Waits for ever without one.
    async fn watch_drain(&mut self) -> ControlFlow<()> {
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
            return ControlFlow::Continue(());
        };
        tokio::select! {
            () = self.empty() => tracing::info!("drained"),
            () = sleep_until(deadline) => tracing::warn!(
                connections = self.controller.relay.connections(),
                "gateway.drain has passed; closing the remaining connections"
            ),
        }
        ControlFlow::Break(())
    }

    /// Puts an update in force; answers once it is stored.
    fn apply(&mut self, update: Update, responder: Responder<Answer>) {
        let before = (
            self.controller.model.source(),
            self.controller.model.revision(),
        );
        let applied = match self.controller.apply(&update) {
            Ok(applied) => applied,
            Err(error) => {
                let refusal = match &error {
                    Error::Update(refusal) => RequestRefusal::from(refusal),
                    Error::FromFile => RequestRefusal::new("conflict", error.to_string()),
                    _ => RequestRefusal::new("internal", error.to_string()),
                };
                tracing::warn!(
                    error = refusal.line(),
                    "update refused; keeping the state in force"
                );
                return responder.send(Err(refusal));
            }
        };
        let answer = move |stored| Answer::Update(UpdateReply { applied, stored });
        let is_repeated = before == (Source::Applied, applied.revision);
        match self.controller.job(update, is_repeated) {
            Some(job) => self.store(
                job,
                Box::new(move |result| responder.send(Ok(answer(result.is_ok())))),
            ),
            None => responder.send(Ok(answer(self.controller.store.is_some()))),
        }
    }

    /// Tells the director how the gateway is.
    fn report(&self) {
        let Some(agent) = &self.agent else {
            return;
        };
        let reasons = match self.drain {
            None => Vec::new(),
            Some(_) if self.is_stopping() => vec!["the gateway stops".to_owned()],
            Some(_) => vec!["the gateway drains: end it by `causeway-gateway undrain`".to_owned()],
        };
        agent.report(Report {
            ready: reasons.is_empty(),
            reasons,
        });
    }

    /// Whether the process stops when it has drained.
    fn is_stopping(&self) -> bool {
        self.drain.is_some_and(|drain| drain.until.is_some())
    }

    /// Stores that the gateway drains, or no longer drains; answers then.
    fn answer_stored(&self, job: Job, responder: Responder<Answer>) {
        let mut brief = self.controller.brief();
        // Nothing was stored that would have to be undone.
        let is_nowhere = self.controller.store.is_none() && matches!(job, Job::Draining(false));
        let answer = move |result: Result<(), store::Error>| {
            brief.stored = Some(is_nowhere || result.is_ok());
            responder.send(Ok(Answer::Brief(brief)));
        };
        self.store(job, Box::new(answer));
    }

    fn store(&self, job: Job, done: Done) {
        match &self.controller.store {
            Some(store) => store.put(job, done),
            None => done(Err(store::Error::Nowhere)),
        }
    }

    /// Reads the file again and puts it in force.
    async fn change(&mut self) -> Result<(), Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
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
    async fn undrain(&mut self) -> Result<(), RequestRefusal> {
        match self.drain {
            None => return Ok(()),
            Some(Drain { until: Some(_), .. }) => return Err(stopping()),
            Some(Drain { until: None, .. }) => {}
        }
        let resumed = self.controller.relay.resume().await;
        resumed.map_err(|error| RequestRefusal::new("internal", error.to_string()))?;
        self.controller.circuits.undrain();
        self.drain = None;
        tracing::info!("accepting connections again");
        Ok(())
    }

    /// Waits until there is neither a connection nor a bound end of a circuit.
    async fn empty(&self) {
        self.controller.relay.empty().await;
        let circuits = self.controller.circuits.observer();
        while !circuits.is_empty() {
            sleep(DRAIN_POLL).await;
        }
    }
}
