//! The API, request by request, over one connection that is kept.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv6Addr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    runtime::Runtime,
    time::{error::Elapsed, timeout},
};
use tokio_rustls::TlsConnector;

use crate::{
    context::Context,
    failure::{Exit, Failure},
};

/// Port of the API unless the address names one.
const PORT: u16 = 6185;
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an answer. A change of a large tenant takes seconds at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// An address of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    is_tls: bool,
    host: String,
    port: u16,
}

impl Address {
    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::usage(format!(
                "{text:?} is no address of a director: write https://HOST or https://HOST:PORT"
            ))
        };
        let (is_tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) | None => return Err(wrong()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => {
                host.parse::<Ipv6Addr>().map_err(|_| wrong())?;
                let port = match port {
                    "" => None,
                    port => Some(port.strip_prefix(':').ok_or_else(wrong)?),
                };
                (host, port)
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let is_of_host = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        if host.is_empty() || !host.chars().all(is_of_host) {
            return Err(wrong());
        }
        let port = match port {
            Some(port) => port.parse().map_err(|_| wrong())?,
            None => PORT,
        };
        let is_here =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !is_tls && !is_here {
            return Err(Failure::usage(format!(
                "{text:?}: the token would be sent in the clear: write https://, as http:// is for \
                 addresses of this machine only"
            )));
        }
        Ok(Self {
            is_tls,
            host: host.to_owned(),
            port,
        })
    }
}

/// An answer of the director that carries out a request.
#[derive(Debug)]
pub struct Answer {
    /// Consequences to know of.
    pub warnings: Vec<String>,
    /// `null` for no content.
    pub body: Value,
}

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    /// Parameters of the query.
    pub query: Vec<(&'static str, String)>,
    pub headers: Vec<(&'static str, String)>,
    pub body: Option<&'a Value>,
}

/// The client of one director.
pub struct Client {
    runtime: Runtime,
    address: Address,
    shown: String,
    tls: Option<TlsConnector>,
    token: Option<String>,
    connection: RefCell<Option<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// A client of the context's director. It connects with the first request.
    pub fn new(context: &Context) -> Result<Self, Failure> {
        let address = Address::parse(&context.server)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::local(format!("cannot start the runtime: {error}")))?;
        let tls = match address.is_tls {
            true => Some(TlsConnector::from(Arc::new(trust(context.ca.as_deref())?))),
            false => None,
        };
        Ok(Self {
            runtime,
            address,
            shown: context.server.clone(),
            tls,
            token: context.token.clone(),
            connection: RefCell::default(),
        })
    }

    /// Sends a request without a body.
    pub fn get(&self, path: &str, query: Vec<(&'static str, String)>) -> Result<Value, Failure> {
        let call = Call {
            path,
            query,
            ..Call::default()
        };
        Ok(self.send(&call)?.body)
    }

    /// All items of a list, page by page.
    pub fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut page: Option<String> = None;
        loop {
            let mut query = vec![("limit", "1000".to_owned())];
            query.extend(page.take().map(|page| ("page", page)));
            let mut answer = self.get(path, query)?;
            if let Some(found) = answer["items"].as_array_mut() {
                items.append(found);
            }
            match answer["next"].as_str() {
                Some(next) => page = Some(next.to_owned()),
                None => return Ok(items),
            }
        }
    }

    /// Sends a request: the answer if the director carries it out.
    pub fn send(&self, call: &Call<'_>) -> Result<Answer, Failure> {
        self.runtime.block_on(async {
            let response = self.request(call).await?;
            let status = response.status();
            let warnings = response.headers().get_all("causeway-warning").iter();
            let warnings = warnings.map(|value| String::from_utf8_lossy(value.as_bytes()).into());
            let warnings = warnings.collect();
            let body = timeout(ANSWER_TIMEOUT, response.into_body().collect()).await;
            let body = self.in_time(body)?.to_bytes();
            let text = String::from_utf8_lossy(&body);
            if !status.is_success() {
                return Err(Failure::answered(status.as_u16(), &text));
            }
            let body = match text.is_empty() {
                true => Value::Null,
                false => serde_json::from_str(&text).map_err(|error| self.failed(&error))?,
            };
            Ok(Answer { warnings, body })
        })
    }

    /// Sends a request and hands over each line of the answer, until `each` returns false, the
    /// answer ends, or nothing comes for the time `quiet`. An error means that no answer began.
    pub fn stream(
        &self,
        call: &Call<'_>,
        quiet: Duration,
        mut each: impl FnMut(&str) -> bool,
    ) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let response = self.request(call).await?;
            // The connection is used up.
            self.connection.take();
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let body = timeout(ANSWER_TIMEOUT, body.collect()).await;
                let body = self.in_time(body)?.to_bytes();
                let text = String::from_utf8_lossy(&body);
                return Err(Failure::answered(status.as_u16(), &text));
            }
            let mut rest = Vec::new();
            while let Ok(Some(Ok(frame))) = timeout(quiet, body.frame()).await {
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                rest.extend_from_slice(&data);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<_> = rest.drain(..=end).collect();
                    if !each(String::from_utf8_lossy(&line).trim_end()) {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    /// Waits, for example before it connects again.
    pub fn pause(&self, time: Duration) {
        // The timer is made within the runtime.
        self.runtime
            .block_on(async { tokio::time::sleep(time).await });
    }

    async fn request(&self, call: &Call<'_>) -> Result<Response<Incoming>, Failure> {
        let mut target = call.path.to_owned();
        for (place, (name, value)) in call.query.iter().enumerate() {
            target += if place == 0 { "?" } else { "&" };
            target += &format!("{name}={}", encoded(value));
        }
        let body = call.body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(target)
            .header(header::HOST, self.address.authority())
            .header(header::USER_AGENT, "causeway");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::usage(format!("the request cannot be sent: {error}")))?;
        let kept = self.connection.take();
        let mut sender = match kept.filter(|kept| !kept.is_closed()) {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let sent = timeout(ANSWER_TIMEOUT, async {
            sender.ready().await?;
            sender.send_request(request).await
        });
        let response = self.in_time(sent.await)?;
        self.connection.replace(Some(sender));
        Ok(response)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let Address { host, port, .. } = &self.address;
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), *port))).await;
        let stream = stream.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(|error| self.unreachable(&error))?;
        let failed = |error: hyper::Error| self.unreachable(&error);
        let Some(tls) = &self.tls else {
            let (sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(failed)?;
            tokio::spawn(connection);
            return Ok(sender);
        };
        let name = ServerName::try_from(host.clone())
            .map_err(|error| Failure::usage(format!("{host:?}: {error}")))?;
        let stream = timeout(CONNECT_TIMEOUT, tls.connect(name, stream)).await;
        let stream = stream.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(|error| self.unreachable(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        let text = format!(
            "cannot connect to {}: {}; check the address, the certificate authority (--ca), and \
             that the director runs",
            self.shown,
            service::error_chain(error)
        );
        Failure::new(Exit::Unavailable, text)
    }

    fn failed(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        let text = format!(
            "no answer from {}: {}; a change may have been made or not: read the object first",
            self.shown,
            service::error_chain(error)
        );
        Failure::new(Exit::Unavailable, text)
    }

    fn in_time<T>(&self, result: Result<Result<T, hyper::Error>, Elapsed>) -> Result<T, Failure> {
        match result {
            Ok(result) => result.map_err(|error| self.failed(&error)),
            Err(elapsed) => Err(self.failed(&elapsed)),
        }
    }
}

/// The authorities that may sign the server's certificate: those of the file, or of the system.
fn trust(ca: Option<&Path>) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let failed = |error: &dyn std::fmt::Display| {
                let path = path.display();
                Failure::local(format!("cannot use the certificates of {path}: {error}"))
            };
            let found = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
            for certificate in found {
                let certificate = certificate.map_err(|error| failed(&error))?;
                roots.add(certificate).map_err(|error| failed(&error))?;
            }
            if roots.is_empty() {
                return Err(failed(&"it has none in PEM format"));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::local(format!("cannot use TLS: {error}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Text as one segment of a path or one value of a query (RFC 3986 section 2.1).
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(byte.into()),
            byte => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// Text as the value of a header: ASCII as it is, other text in the extended form (RFC 8187
/// section 3.2).
pub fn header_text(text: &str) -> String {
    let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    match is_plain && !text.starts_with("UTF-8''") {
        true => text.to_owned(),
        false => format!("UTF-8''{}", encoded(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_headers_are_ascii() {
        assert_eq!(header_text("contract ended, 50%"), "contract ended, 50%");
        assert_eq!(header_text("Wünsche"), "UTF-8''W%C3%BCnsche");
        assert_eq!(header_text("UTF-8''x"), "UTF-8''UTF-8%27%27x");
        assert_eq!(header_text("a\nb"), "UTF-8''a%0Ab");
    }

    #[test]
    fn addresses_are_read_strictly() {
        let parse = |text: &str| Address::parse(text).map(|a| (a.is_tls, a.host, a.port));
        let https = |host: &str, port| Some((true, host.to_owned(), port));
        for (text, expected) in [
            ("https://d.example", https("d.example", 6185)),
            ("https://d.example:443/", https("d.example", 443)),
            ("https://[2001:db8::1]:443", https("2001:db8::1", 443)),
            ("https://[::1]", https("::1", 6185)),
            (
                "http://127.0.0.1:80",
                Some((false, "127.0.0.1".to_owned(), 80)),
            ),
            ("http://192.0.2.1", None),
            ("d.example", None),
            ("ftp://d.example", None),
            ("https://", None),
            ("https://a/b", None),
            ("https://a:b", None),
            ("https://[a]", None),
            ("https://user@host", None),
        ] {
            assert_eq!(parse(text).ok(), expected, "{text}");
        }
        let error = Address::parse("http://192.0.2.1").unwrap_err().text;
        assert!(error.contains("in the clear"), "{error}");
    }

    #[test]
    fn an_answer_that_stops_without_an_end_is_left() {
        use std::io::{Read as _, Write as _};

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let context = Context {
            server: format!("http://{}", listener.local_addr().unwrap()),
            ..Context::default()
        };
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nid: 1\n";
            stream.write_all(answer.as_bytes()).unwrap();
            // As if the machine was gone: open until the client closes.
            assert_eq!(stream.read(&mut request).unwrap(), 0);
        });
        let client = Client::new(&context).unwrap();
        let mut lines = Vec::new();
        let call = Call {
            path: "/",
            ..Call::default()
        };
        client
            .stream(&call, Duration::from_millis(100), |line| {
                lines.push(line.to_owned());
                true
            })
            .unwrap();
        assert_eq!(lines, ["id: 1"]);
        client.pause(Duration::from_millis(1));
        drop(client);
        server.join().unwrap();
    }

    #[test]
    fn text_is_one_segment() {
        assert_eq!(encoded("web-1"), "web-1");
        assert_eq!(encoded("a/b ü?"), "a%2Fb%20%C3%BC%3F");
    }
}
