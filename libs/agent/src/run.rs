//! The agent's life: enrol, connect, report, renew, return.

use std::{
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_protocol::{
    EnrolRequest, FromAgent, Hello, Identity, MAX_REASON_LEN, MAX_REASONS, RenewRequest,
    agents_client::AgentsClient, from_agent, from_director,
};
use identity::{BadToken, Certificate, EnrolmentToken, MachineKey, tls};
use jiff::Timestamp;
use rustls::{pki_types::CertificateDer, time_provider::TimeProvider};
use service::restore::Restores;
use tokio::{
    sync::{mpsc, watch},
    time::{interval, sleep, timeout},
};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    connector::{self, CALL_TIMEOUT, Connector},
    folder::{Folder, Kept, Unusable, fingerprint},
    pauses::Pauses,
};

/// Time between looks for a token, without an identity.
const TOKEN_PAUSE: Duration = Duration::from_secs(5);
/// Least pause after a refusal, which an administrator has to correct.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Longest pause after refusals one after the other.
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_secs(3600);
/// Pause before a renewal, or a token that was not accepted, is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(300);
/// Least time between renewals, whatever the clocks of both ends say.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3600);
/// Longest wait within the stream, so that a clock which jumps is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Longest token file, bytes.
const MAX_TOKEN: u64 = 16 << 10;

/// Settings of an agent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of the identity.
    pub folder: PathBuf,
    /// File with an enrolment token. A token that was not used yet enrols the machine, also one
    /// that has an identity.
    pub token: PathBuf,
    /// Version of the daemon.
    pub version: String,
    /// The wall clock, for certificates.
    pub clock: Arc<dyn TimeProvider>,
    /// Seed of pauses; machines have different ones.
    pub seed: u64,
    /// Restores of the machine from a snapshot: at each, its connection ends without another byte,
    /// and it connects again at once.
    pub restores: Restores,
}

/// How the machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether it does what it is configured for.
    pub ready: bool,
    /// Why it does not.
    pub reasons: Vec<String>,
}

/// Progress of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for a token.
    NoToken,
    /// It connects, or pauses after this error.
    Connecting {
        /// The last error; `None` before the first attempt.
        error: Option<String>,
    },
    /// It is connected.
    Connected {
        /// Address and port of the director, or of a gateway that relays.
        address: std::net::SocketAddr,
        /// Begin of the stream.
        since: Timestamp,
    },
}

/// The agent's state, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Name of the machine, and the last second of its certificate.
    pub identity: Option<(String, Timestamp)>,
    /// Why the token of the file is not used, while the machine has an identity.
    pub token: Option<String>,
    /// Progress towards a stream.
    pub phase: Phase,
}

impl Default for State {
    fn default() -> Self {
        Self {
            identity: None,
            token: None,
            phase: Phase::Connecting { error: None },
        }
    }
}

/// Why the agent is not connected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token file cannot be read.
    #[error("cannot read the enrolment token {}: {source}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The file has no token.
    #[error("{}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The error.
        source: BadToken,
    },
    /// The identity cannot be read or written.
    #[error(transparent)]
    Folder(#[from] Unusable),
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] connector::Error),
    /// The director refuses.
    #[error("the director refuses: {}", .0.message())]
    Refused(Status),
    /// The connection or the director fails.
    #[error("the connection to the director fails: {}", .0.message())]
    Failed(Status),
    /// The machine was restored from a snapshot: TLS must not use its nonces a second time.
    #[error("this machine may have been restored from a snapshot: earlier keys are no longer used")]
    Restored,
    /// The certificate has expired, and was not renewed.
    #[error(
        "the certificate has expired at {at}, and the director does not renew it: {source}; write \
         a new enrolment token"
    )]
    Expired {
        /// Its last second.
        at: Timestamp,
        /// Why it was not renewed.
        source: Box<Self>,
    },
    /// The director's answer cannot be used.
    #[error("the director has sent a certificate that is not for this machine's key")]
    Answer,
    /// A key or TLS cannot be made.
    #[error("cannot use a key or certificate: {0}")]
    Tls(String),
    /// The agent cannot start.
    #[error("cannot start: {0}")]
    Start(io::Error),
}

impl Error {
    /// Whether the director wants the certificate to be renewed first.
    fn is_expired(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::FailedPrecondition)
    }

    /// Whether an administrator has to correct it.
    const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused(_) | Self::Token { .. } | Self::Folder(_)
        )
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::PermissionDenied
            | Code::InvalidArgument
            | Code::Unauthenticated
            | Code::FailedPrecondition => Self::Refused(status),
            _ => Self::Failed(status),
        }
    }
}

impl From<identity::Error> for Error {
    fn from(error: identity::Error) -> Self {
        Self::Tls(error.to_string())
    }
}

impl From<rustls::Error> for Error {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error.to_string())
    }
}

/// Runs the agent until it is dropped. It takes reports from `reports`, where there are none before
/// the first one, and tells its state.
///
/// # Errors
/// [`Error::Start`], when a thread cannot be started; any other error is told in the state, and the
/// agent tries again.
pub async fn run(
    settings: Settings,
    reports: watch::Receiver<Option<Report>>,
    state: watch::Sender<State>,
) -> Result<(), Error> {
    let mut agent = Agent {
        folder: Folder::new(settings.folder.clone()),
        connector: Connector::start(settings.seed, settings.restores.clone())
            .map_err(Error::Start)?,
        pauses: Pauses::new(settings.seed),
        kept: None,
        is_loaded: false,
        tried: None,
        failed_token: None,
        renewed: None,
        is_token_repeated: false,
        settings,
        reports,
        state,
    };
    let mut refused = REFUSED_PAUSE;
    loop {
        let begun = Instant::now();
        let restored = agent.settings.restores.count();
        let result = agent.once().await;
        agent.pauses.was_open(begun.elapsed());
        let pause = match result {
            Ok(Next::NoToken) => {
                agent.tell(Phase::NoToken);
                TOKEN_PAUSE
            }
            Ok(Next::Again) => agent.pauses.next(Duration::ZERO),
            // Whatever the error is, its connection ended by that.
            Err(_) if agent.settings.restores.count() != restored => {
                agent.tell_error(&Error::Restored);
                Duration::ZERO
            }
            Err(error) => {
                let least = match error.is_refusal() {
                    true => refused,
                    false => Duration::ZERO,
                };
                refused = match error.is_refusal() {
                    true => (refused * 2).min(LONGEST_REFUSED_PAUSE),
                    false => REFUSED_PAUSE,
                };
                agent.tell_error(&error);
                agent.pauses.next(least)
            }
        };
        agent.pause(pause).await;
    }
}

/// The next pass after one without an error.
enum Next {
    /// There is neither an identity nor a token.
    NoToken,
    /// Connect at once: the certificate is new.
    Again,
}

struct Agent {
    settings: Settings,
    folder: Folder,
    connector: Connector,
    pauses: Pauses,
    kept: Option<Arc<Kept>>,
    is_loaded: bool,
    /// Hash of the secret of the token that the last pass has found.
    tried: Option<String>,
    /// The token that was not accepted while the machine had an identity, and when.
    failed_token: Option<(String, Instant)>,
    /// The last renewal, or the last attempt that failed, and the pause after it.
    renewed: Option<(Instant, Duration)>,
    /// The token of the identity was tried again, once.
    is_token_repeated: bool,
    reports: watch::Receiver<Option<Report>>,
    state: watch::Sender<State>,
}

/// An open stream.
struct Stream {
    client: AgentsClient<Channel>,
    messages: Streaming<agent_protocol::FromDirector>,
    /// Its drop ends the agent's half.
    send: mpsc::Sender<FromAgent>,
}

impl Agent {
    /// Enrols if there is a new token, and holds a stream to its end.
    async fn once(&mut self) -> Result<Next, Error> {
        if !self.is_loaded {
            let folder = self.folder.clone();
            self.kept = blocking(move || folder.load()).await?.map(Arc::new);
            self.is_loaded = true;
        }
        self.use_token().await?;
        let Some(kept) = &self.kept else {
            return Ok(Next::NoToken);
        };
        self.connector.set(&kept.service_addresses);
        self.tell_identity();
        let error = match self.connect().await {
            Ok(next) => return Ok(next),
            Err(error) => error,
        };
        // A director whose store was set back may have forgotten the enrolment, and not the token.
        let is_unknown = matches!(&error, Error::Refused(s) if s.code() == Code::PermissionDenied);
        if is_unknown && !self.is_token_repeated {
            self.is_token_repeated = true;
            if let Ok(Some(token)) = self.token()
                && self.enrol(&token).await.is_ok()
            {
                return Ok(Next::Again);
            }
            if let Some(kept) = &self.kept {
                self.connector.set(&kept.service_addresses);
            }
        }
        Err(error)
    }

    /// Enrols by the token of the file, if it is another one than that of the identity: whether it
    /// did. A machine that has an identity keeps it after an error.
    ///
    /// # Errors
    /// Without an identity, why it did not.
    async fn use_token(&mut self) -> Result<bool, Error> {
        let token = self.new_token();
        let hash = |token: &EnrolmentToken| token.secret.hash();
        self.tried = token
            .as_ref()
            .ok()
            .and_then(|token| token.as_ref().map(hash));
        let result = match token {
            Ok(None) => Ok(false),
            Ok(Some(token)) => {
                let is_paused = |(failed, at): &(String, Instant)| {
                    *failed == hash(&token) && at.elapsed() < RETRY_PAUSE
                };
                if self.failed_token.as_ref().is_some_and(is_paused) {
                    return Ok(false);
                }
                let enrolled = self.enrol(&token).await;
                self.failed_token = match &enrolled {
                    Ok(()) => None,
                    Err(_) => Some((hash(&token), Instant::now())),
                };
                enrolled.map(|()| true)
            }
            Err(error) => Err(error),
        };
        let (Some(kept), Err(error)) = (&self.kept, &result) else {
            self.tell_token(None);
            return result;
        };
        self.connector.set(&kept.service_addresses);
        self.tell_token(Some(error.to_string()));
        Ok(false)
    }

    /// Pauses for this time, or until there is another token than the last pass has found.
    async fn pause(&self, time: Duration) {
        let begun = Instant::now();
        loop {
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            sleep(left.min(TOKEN_PAUSE)).await;
            // An error is told by the next pass.
            if let Ok(Some(token)) = self.new_token()
                && Some(token.secret.hash()) != self.tried
            {
                return;
            }
        }
    }

    /// The token of the file, unless the identity is by it already, or there is none.
    fn new_token(&self) -> Result<Option<EnrolmentToken>, Error> {
        let token = self.token()?;
        let of_identity = self.kept.as_ref().map(|kept| kept.token.as_str());
        Ok(token.filter(|token| of_identity != Some(&*token.secret.hash())))
    }

    /// The token of the file.
    fn token(&self) -> Result<Option<EnrolmentToken>, Error> {
        let path = &self.settings.token;
        let failed = |source| Error::TokenFile {
            path: path.clone(),
            source,
        };
        let text = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
            Ok(data) if data.len() > MAX_TOKEN => {
                let source = BadToken::Prefix;
                let path = path.clone();
                return Err(Error::Token { path, source });
            }
            Ok(_) => fs::read_to_string(path).map_err(failed)?,
        };
        if text.trim().is_empty() {
            return Ok(None);
        }
        let token = text
            .parse::<EnrolmentToken>()
            .map_err(|source| Error::Token {
                path: path.clone(),
                source,
            })?;
        Ok(Some(token))
    }

    /// Enrols by a token; the identity is on the disk then.
    async fn enrol(&mut self, token: &EnrolmentToken) -> Result<(), Error> {
        let (folder, of) = (self.folder.clone(), token.clone());
        let key = blocking(move || folder.enrolment_key(&of)).await?;
        let config = tls::first_contact(token.authority, Arc::clone(&self.settings.clock))?;
        self.connector.set(&token.service_addresses);
        let (channel, address) = self.connector.connect(&token.server_name, config).await?;
        let request = EnrolRequest {
            secret: token.secret.as_bytes().to_vec(),
            certificate_request: key.request()?,
        };
        let mut client = AgentsClient::new(channel);
        let answer = within(client.enrol(request)).await;
        let answer = answer.inspect_err(|_| self.connector.failed(address))?;
        let mut kept = Kept {
            authorities: Vec::new(),
            server_name: token.server_name.clone(),
            service_addresses: token.service_addresses.clone(),
            token: token.secret.hash(),
            ..granted(key, &answer)?
        };
        kept.authorities = authorities(answer.authorities);
        if !kept
            .authorities
            .iter()
            .any(|root| fingerprint(root) == token.authority)
        {
            return Err(Error::Answer);
        }
        tracing::info!(name = %kept.contents.name, "enrolled");
        self.keep(kept).await
    }

    /// Holds a stream, and renews the certificate in it.
    async fn connect(&mut self) -> Result<Next, Error> {
        let mut stream = match self.open().await {
            Ok(stream) => stream,
            // A certificate that has expired may be renewed only.
            Err(error) if self.is_expired() || error.is_expired() => {
                return self.renew_expired(error).await;
            }
            Err(error) => return Err(error),
        };
        let jitter = self.pauses.random();
        let mut looks = interval(LONGEST_WAIT);
        // The first one is at once.
        looks.reset();
        let mut reports = self.reports.clone();
        reports.mark_changed();
        loop {
            let now = self.now();
            let due = self
                .kept
                .as_ref()
                .map(|kept| kept.contents.validity.renewal(jitter));
            let is_paused = self.renewed.is_some_and(|(at, pause)| at.elapsed() < pause);
            if due.is_some_and(|due| now >= due) && !is_paused {
                match self.renew(&mut stream.client).await {
                    // The stream of the new certificate comes before the end of this one.
                    Ok(()) => stream = self.open().await?,
                    Err(error) => {
                        tracing::warn!(%error, "cannot renew the certificate; trying again");
                        self.renewed = Some((Instant::now(), RETRY_PAUSE));
                    }
                }
                reports.mark_changed();
                continue;
            }
            tokio::select! {
                changed = reports.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    let Some(report) = reports.borrow_and_update().clone() else {
                        continue;
                    };
                    if stream.send.send(message(&report)).await.is_err() {
                        return Err(Error::Failed(Status::unavailable("the stream has ended")));
                    }
                }
                message = stream.messages.message() => match message? {
                    Some(message) => self.take(message).await?,
                    None => return Err(Error::Failed(Status::unavailable("the stream has ended"))),
                },
                _ = looks.tick() => {
                    if self.use_token().await? {
                        return Ok(Next::Again);
                    }
                }
            }
        }
    }

    /// Connects by the certificate, and opens a stream.
    async fn open(&mut self) -> Result<Stream, Error> {
        let channel = self.channel().await?;
        let (channel, address) = channel;
        let opened = self.open_over(channel).await;
        let (stream, welcome) = opened.inspect_err(|_| self.connector.failed(address))?;
        self.tell(Phase::Connected {
            address,
            since: self.now(),
        });
        tracing::info!(%address, "connected to the director");
        self.take(welcome).await?;
        Ok(stream)
    }

    async fn open_over(
        &self,
        channel: Channel,
    ) -> Result<(Stream, agent_protocol::FromDirector), Error> {
        let mut client = AgentsClient::new(channel);
        let (send, receive) = mpsc::channel(4);
        let hello = FromAgent {
            message: Some(from_agent::Message::Hello(Hello {
                version: self.settings.version.clone(),
            })),
        };
        // The channel has room.
        let _ = send.send(hello).await;
        let sent = futures::stream::unfold(receive, async |mut receive| {
            Some((receive.recv().await?, receive))
        });
        let mut messages = within(client.connect(sent)).await?;
        let welcome = within_time(messages.message()).await?;
        let ended = || Error::Failed(Status::unavailable("the stream has ended"));
        let welcome = welcome.ok_or_else(ended)?;
        let stream = Stream {
            client,
            messages,
            send,
        };
        Ok((stream, welcome))
    }

    async fn channel(&self) -> Result<(Channel, std::net::SocketAddr), Error> {
        let kept = self.kept.as_ref().ok_or(Error::Answer)?;
        let clock = Arc::clone(&self.settings.clock);
        let config = tls::machine(
            kept.certificate.clone(),
            &kept.key,
            &kept.authorities,
            clock,
        )?;
        Ok(self.connector.connect(&kept.server_name, config).await?)
    }

    /// Renews a certificate that has expired, over a connection for this alone.
    async fn renew_expired(&mut self, error: Error) -> Result<Next, Error> {
        let at = self
            .kept
            .as_ref()
            .map(|kept| kept.contents.validity.not_after);
        let at = at.unwrap_or_else(|| self.now());
        let Ok((channel, _)) = self.channel().await else {
            return Err(error);
        };
        let renewed = self.renew(&mut AgentsClient::new(channel)).await;
        renewed.map_err(|error| Error::Expired {
            at,
            source: Box::new(error),
        })?;
        Ok(Next::Again)
    }

    async fn renew(&mut self, client: &mut AgentsClient<Channel>) -> Result<(), Error> {
        let key = MachineKey::generate()?;
        let request = RenewRequest {
            certificate_request: key.request()?,
        };
        let answer = within(client.renew(request)).await?;
        let new = granted(key, &answer)?;
        let before = self.kept.as_ref().ok_or(Error::Answer)?;
        if new.contents.name != before.contents.name {
            return Err(Error::Answer);
        }
        let roots = authorities(answer.authorities);
        let kept = Kept {
            authorities: match roots.is_empty() {
                true => before.authorities.clone(),
                false => roots,
            },
            server_name: before.server_name.clone(),
            service_addresses: before.service_addresses.clone(),
            token: before.token.clone(),
            ..new
        };
        let until = kept.contents.validity.not_after;
        // If it cannot be stored, the one before stays in use, and valid.
        self.keep(kept).await?;
        self.renewed = Some((Instant::now(), RENEWAL_INTERVAL));
        tracing::info!(%until, "renewed the certificate");
        Ok(())
    }

    /// Does what a message of the director asks for.
    async fn take(&mut self, message: agent_protocol::FromDirector) -> Result<(), Error> {
        match message.message {
            Some(from_director::Message::Welcome(welcome)) => {
                let roots = authorities(welcome.authorities);
                let Some(kept) = &self.kept else {
                    return Ok(());
                };
                if roots.is_empty() || roots == kept.authorities {
                    return Ok(());
                }
                let kept = Kept {
                    key: MachineKey::from_der(&kept.key.to_der())?,
                    certificate: kept.certificate.clone(),
                    contents: kept.contents.clone(),
                    authorities: roots,
                    server_name: kept.server_name.clone(),
                    service_addresses: kept.service_addresses.clone(),
                    token: kept.token.clone(),
                };
                self.keep(kept).await
            }
            // A message of a later version.
            None => Ok(()),
        }
    }

    /// Writes the identity to the disk, and uses it from then on.
    async fn keep(&mut self, kept: Kept) -> Result<(), Error> {
        let (folder, kept) = (self.folder.clone(), Arc::new(kept));
        let stored = Arc::clone(&kept);
        blocking(move || folder.store(&stored)).await?;
        self.kept = Some(kept);
        self.tell_identity();
        Ok(())
    }

    fn is_expired(&self) -> bool {
        let now = self.now();
        let kept = self.kept.as_ref();
        kept.is_some_and(|kept| now > kept.contents.validity.not_after)
    }

    /// The wall clock; the begin of 1970 if it has no time.
    fn now(&self) -> Timestamp {
        let now = self.settings.clock.current_time();
        let seconds = now.and_then(|now| i64::try_from(now.as_secs()).ok());
        let now = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
        now.unwrap_or(Timestamp::UNIX_EPOCH)
    }

    fn tell(&self, phase: Phase) {
        self.state.send_if_modified(|state| {
            let is_new = state.phase != phase;
            state.phase = phase;
            is_new
        });
    }

    fn tell_error(&self, error: &Error) {
        let text = error.to_string();
        let phase = Phase::Connecting {
            error: Some(text.clone()),
        };
        // The same error again is no news.
        if self.state.borrow().phase != phase {
            tracing::warn!(error = text, "not connected to the director; trying again");
        }
        self.tell(phase);
    }

    fn tell_token(&self, error: Option<String>) {
        if self.state.borrow().token != error
            && let Some(error) = &error
        {
            tracing::warn!(
                error,
                "cannot use the enrolment token; keeping the current identity"
            );
        }
        self.state.send_if_modified(|state| {
            let is_new = state.token != error;
            state.token = error;
            is_new
        });
    }

    fn tell_identity(&self) {
        let identity = self.kept.as_ref().map(|kept| {
            let Certificate { name, validity, .. } = &kept.contents;
            (name.to_string(), validity.not_after)
        });
        self.state.send_if_modified(|state| {
            let is_new = state.identity != identity;
            state.identity = identity;
            is_new
        });
    }
}

/// A report as a message.
fn message(report: &Report) -> FromAgent {
    let reasons = report.reasons.iter().take(MAX_REASONS);
    let shortened = |text: &String| {
        let end = (0..=MAX_REASON_LEN.min(text.len())).rev();
        let end = end.into_iter().find(|end| text.is_char_boundary(*end));
        text[..end.unwrap_or_default()].to_owned()
    };
    let report = agent_protocol::Report {
        ready: report.ready,
        reasons: reasons.map(shortened).collect(),
    };
    FromAgent {
        message: Some(from_agent::Message::Report(report)),
    }
}

/// The identity of a certificate that the director has issued for this key. Its addresses and
/// authorities are empty.
fn granted(key: MachineKey, answer: &Identity) -> Result<Kept, Error> {
    let certificate = CertificateDer::from(answer.certificate.clone());
    let contents = Certificate::read(&certificate).map_err(|_| Error::Answer)?;
    let own = identity::Request::read(&key.request()?)?.key();
    if contents.key != own {
        return Err(Error::Answer);
    }
    Ok(Kept {
        key,
        certificate,
        contents,
        authorities: Vec::new(),
        server_name: String::new(),
        service_addresses: Vec::new(),
        token: String::new(),
    })
}

fn authorities(all: Vec<Vec<u8>>) -> Vec<CertificateDer<'static>> {
    all.into_iter().map(CertificateDer::from).collect()
}

/// The answer to a call, within its time.
async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Error> {
    Ok(within_time(call).await?.into_inner())
}

async fn within_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Error> {
    let answered = timeout(CALL_TIMEOUT, call).await;
    let answered =
        answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer came in time")));
    Ok(answered?)
}

/// Work with files, on a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unusable> + Send + 'static,
) -> Result<T, Error> {
    let joined = tokio::task::spawn_blocking(work).await;
    let joined = joined.map_err(|error| Error::Start(io::Error::other(error)))?;
    Ok(joined?)
}
