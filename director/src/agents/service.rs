//! The gRPC service of agents.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_protocol::{
    EnrolRequest, FromAgent, FromDirector, Hello, Identity, MAX_REASON_LEN, MAX_REASONS,
    RenewRequest, Welcome, agents_server, from_agent, from_director,
};
use futures::{Stream, stream};
use identity::Certificate;
use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{interval, timeout},
};
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::{
    enrol::{self, EnrolmentRefusal, Granted},
    shared::Agents,
};
use crate::{
    Director, Environment,
    machines::{Closing, OpenStream, Report},
    metrics::AgentResult,
};

/// Time for the first message of a stream.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which the certificate of an open stream is looked at.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(30);
/// Longest version, bytes.
const MAX_VERSION: usize = 64;

/// The other end of a connection: its address, and the certificate that it has shown.
#[derive(Clone, Debug)]
pub(super) struct AgentPeer {
    pub address: SocketAddr,
    pub certificate: Option<Certificate>,
    /// Open streams of the connection.
    pub streams: Arc<AtomicUsize>,
}

/// A stream that counts for its connection until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(streams: &Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(streams))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers the calls of one listener.
pub(super) struct Service {
    pub director: Arc<Director>,
    pub agents: Arc<Agents>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<FromDirector, Status>> + Send>>;

#[tonic::async_trait]
impl agents_server::Agents for Service {
    type ConnectStream = Answers;

    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Identity>, Status> {
        let (address, _) = peer(request.extensions())?;
        let EnrolRequest {
            secret,
            certificate_request,
        } = request.into_inner();
        let (director, agents) = self.both();
        let granted = to_its_end(async move {
            let asked = (&secret[..], &certificate_request[..]);
            enrol::enrol(&director, &agents, asked, address.ip()).await
        });
        self.answer("enrol", granted.await)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Identity>, Status> {
        let (address, certificate) = peer(request.extensions())?;
        let certificate = certificate.ok_or_else(no_certificate)?;
        let asked = request.into_inner().certificate_request;
        let (director, agents) = self.both();
        let granted = to_its_end(async move {
            enrol::renew(&director, &agents, (&certificate, &asked), address.ip()).await
        });
        let granted = granted.await;
        self.answer("renew", granted)
    }

    async fn connect(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Answers>, Status> {
        let (address, certificate) = peer(request.extensions())?;
        let certificate = certificate.ok_or_else(no_certificate)?;
        let streams = request.extensions().get::<AgentPeer>();
        let streams = streams
            .map(|peer| Arc::clone(&peer.streams))
            .unwrap_or_default();
        let accepted = self.accept(&certificate, address.ip()).await;
        let (key, enrolment) = self.count("connect", accepted)?;
        let mut messages = request.into_inner();
        let hello = timeout(HELLO_TIMEOUT, messages.message()).await;
        let hello = hello.map_err(|_| Status::deadline_exceeded("no hello came in time"))??;
        let Some(from_agent::Message::Hello(Hello { version })) = hello.and_then(|m| m.message)
        else {
            return Err(Status::invalid_argument("the first message is not a hello"));
        };
        let version = shortened(&version, MAX_VERSION);
        tracing::info!(machine = key, %address, version, "an agent has connected");
        let place = self.director.presence.enter(
            &key,
            version,
            enrolment.clone(),
            address,
            self.director.environment.now(),
        );
        // The identity may have been revoked since it was read: only streams that are entered are
        // closed then.
        let again = self.accept(&certificate, address.ip()).await;
        if again.map_err(|refused| status(&refused))?.1 != enrolment {
            return Err(closed(Closing::Revoked));
        }
        let welcome = FromDirector {
            message: Some(from_director::Message::Welcome(Welcome {
                authorities: self.agents.trusted.roots(),
            })),
        };
        let (sender, receiver) = mpsc::channel(2);
        let mut open = Connected {
            place,
            messages,
            until: certificate.validity.not_after,
            environment: Arc::clone(&self.director.environment),
            _counted: Counted::new(&streams),
        };
        // A task of its own: the director closes the stream also if its agent takes no message.
        tokio::spawn(async move {
            // There is room for both messages.
            let _ = sender.try_send(Ok(welcome));
            if let Some(status) = open.serve().await {
                let _ = sender.try_send(Err(status));
            }
            tracing::info!(machine = key, "an agent's stream has ended");
        });
        let answers = stream::unfold(receiver, async |mut receiver| {
            Some((receiver.recv().await?, receiver))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Awaits work that runs to its end also if the client closes the connection: a commit is not cut
/// from its consequences.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, EnrolmentRefusal>> + Send + 'static,
) -> Result<T, EnrolmentRefusal> {
    tokio::spawn(work)
        .await
        .unwrap_or(Err(EnrolmentRefusal::Unavailable))
}

impl Service {
    fn both(&self) -> (Arc<Director>, Arc<Agents>) {
        (Arc::clone(&self.director), Arc::clone(&self.agents))
    }

    /// Key and enrolment of a machine whose certificate is valid.
    async fn accept(
        &self,
        certificate: &Certificate,
        peer: IpAddr,
    ) -> Result<(String, String), EnrolmentRefusal> {
        let (director, agents) = self.both();
        let certificate = certificate.clone();
        to_its_end(async move { enrol::accept(&director, &agents, &certificate, peer).await }).await
    }

    /// Counts a result.
    fn count<T>(
        &self,
        call: &'static str,
        result: Result<T, EnrolmentRefusal>,
    ) -> Result<T, Status> {
        let name = match &result {
            Ok(_) => "ok",
            Err(EnrolmentRefusal::Unavailable) => "unavailable",
            Err(_) => "refused",
        };
        let result_of = AgentResult { call, result: name };
        self.director
            .metrics
            .agent_calls
            .get_or_create(&result_of)
            .inc();
        result.map_err(|refused| status(&refused))
    }

    fn answer(
        &self,
        call: &'static str,
        granted: Result<Granted, EnrolmentRefusal>,
    ) -> Result<Response<Identity>, Status> {
        let Granted { issued, roots } = self.count(call, granted)?;
        Ok(Response::new(Identity {
            certificate: issued.der.to_vec(),
            authorities: roots,
        }))
    }
}

/// An open stream.
struct Connected {
    place: OpenStream,
    messages: Streaming<FromAgent>,
    /// Last second of the certificate.
    until: Timestamp,
    environment: Arc<dyn Environment>,
    _counted: Counted,
}

impl Connected {
    /// Takes reports until the stream ends: the reason, if the agent is to be told one.
    async fn serve(&mut self) -> Option<Status> {
        let mut looks = interval(EXPIRY_INTERVAL);
        loop {
            let message = tokio::select! {
                closing = self.place.closing() => return Some(closed(closing)),
                message = self.messages.message() => message,
                _ = looks.tick() => {
                    let at = self.until;
                    if self.environment.now() > at {
                        return Some(status(&EnrolmentRefusal::Renew { at }));
                    }
                    continue;
                }
            };
            match message {
                Ok(Some(FromAgent {
                    message: Some(from_agent::Message::Report(report)),
                })) => {
                    let reasons = report.reasons.iter().take(MAX_REASONS);
                    self.place.report(Report {
                        ready: report.ready,
                        reasons: reasons
                            .map(|text| shortened(text, MAX_REASON_LEN))
                            .collect(),
                    });
                }
                // A message of a later version.
                Ok(Some(FromAgent { message: None })) => {}
                Ok(Some(FromAgent {
                    message: Some(from_agent::Message::Hello(_)),
                })) => return Some(Status::invalid_argument("a second hello")),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// Text of an agent, on one line and of limited length.
fn shortened(text: &str, most: usize) -> String {
    let mut short = String::new();
    for letter in text.chars() {
        if short.len() + letter.len_utf8() > most {
            break;
        }
        short.push(if letter.is_control() { ' ' } else { letter });
    }
    short
}

fn peer(extensions: &Extensions) -> Result<(SocketAddr, Option<Certificate>), Status> {
    let peer = extensions.get::<AgentPeer>();
    let peer = peer.ok_or_else(|| Status::internal("the connection has no peer"))?;
    Ok((peer.address, peer.certificate.clone()))
}

fn no_certificate() -> Status {
    Status::unauthenticated("this needs the machine's certificate: enrol first")
}

fn closed(closing: Closing) -> Status {
    match closing {
        Closing::Revoked => Status::permission_denied(
            "the identity of this machine was revoked or enrolled anew: enrol by a new token",
        ),
        Closing::Replaced => Status::already_exists("this machine has opened another stream"),
    }
}

fn status(refused: &EnrolmentRefusal) -> Status {
    let text = refused.to_string();
    match refused {
        EnrolmentRefusal::Request(_) => Status::invalid_argument(text),
        EnrolmentRefusal::Unavailable => Status::unavailable(text),
        EnrolmentRefusal::Renew { .. } => Status::failed_precondition(text),
        EnrolmentRefusal::TooSoon { .. } => Status::resource_exhausted(text),
        EnrolmentRefusal::UnknownToken
        | EnrolmentRefusal::Expired { .. }
        | EnrolmentRefusal::Used { .. }
        | EnrolmentRefusal::Certificate { .. } => Status::permission_denied(text),
    }
}
