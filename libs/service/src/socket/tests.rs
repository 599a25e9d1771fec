use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{client::ask_within, server::serve, *};

static LAMP: Socket = Socket {
    name: "lamp",
    one: "a lamp",
    setting: "lamp.control_socket",
    max_request: 64,
    access: Access::RootAndOwner,
};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    Light { watts: u32 },
    // With braces, for unknown fields to be refused.
    Dark {},
}

/// Serves at `path` until the runtime of the test ends; refuses `Dark`.
async fn serve_lamp(path: &Path) {
    let listener = bind(&LAMP, path).expect("the path is free");
    let (calls, mut requests) = mpsc::channel::<Call<Request, Value>>(1);
    tokio::spawn(serve(&LAMP, listener, calls, mpsc::channel(1).0));
    tokio::spawn(async move {
        while let Some((request, reply)) = requests.recv().await {
            let answer = match request {
                Request::Light { watts } => Reply::Ok(json!({ "watts": watts })),
                Request::Dark {} => Reply::Error(RequestRefusal::new("conflict", "it is day")),
            };
            reply.send(answer);
        }
    });
}

async fn asked<Q: Serialize + Send + 'static>(path: &Path, request: Q) -> Result<Value, String> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        ask(&LAMP, &path, &request).map_err(|e: AskError| e.to_string())
    })
    .await
    .expect("no panic in the client")
}

#[tokio::test]
async fn requests_are_answered_or_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lamp.sock");
    let absent = asked(&path, Request::Dark {}).await.expect_err("no daemon");
    assert!(
        absent.starts_with(&format!(
            "cannot connect to the lamp at {}: ",
            path.display()
        )) && absent.contains("`systemctl status causeway-lamp`"),
        "{absent}"
    );
    serve_lamp(&path).await;
    let light = asked(&path, Request::Light { watts: 40 }).await;
    assert_eq!(light, Ok(json!({ "watts": 40 })));
    assert_eq!(
        asked(&path, Request::Dark {}).await,
        Err("it is day".to_owned())
    );
    let other = asked(&path, json!({ "request": "blink" }))
        .await
        .expect_err("no such request");
    assert!(other.starts_with("cannot parse the request: "), "{other}");
    // Longer than the longest request: cut, and so no JSON.
    let long = json!({ "request": "light", "watts": 1, "why": "x".repeat(100) });
    let long = asked(&path, long).await.expect_err("too long");
    assert!(long.starts_with("cannot parse the request: "), "{long}");
    assert!(
        asked(&path, Request::Light { watts: 1 }).await.is_ok(),
        "it goes on"
    );
}

#[tokio::test]
async fn a_refusal_is_short_however_long_the_request_is() {
    static LARGE: Socket = Socket {
        max_request: 64 << 20,
        ..LAMP
    };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lamp.sock");
    let listener = bind(&LARGE, &path).expect("the path is free");
    let (calls, _requests) = mpsc::channel::<Call<Request, Value>>(1);
    tokio::spawn(serve(&LARGE, listener, calls, mpsc::channel(1).0));
    let long = json!({ "request": "light", ("x".repeat(MAX_LINE as usize + 1)): 1 });
    let error = asked(&path, long).await.expect_err("an unknown field");
    let begin = "cannot parse the request: unknown field `xxx";
    assert!(error.starts_with(begin) && error.ends_with("x…"));
    assert!(error.len() < MAX_MESSAGE + 10, "{} bytes", error.len());
}

#[test]
fn a_refusal_is_a_line_in_the_log() {
    let line = |message: &str| RequestRefusal::new("invalid", message).line();
    assert_eq!(line("it is day"), "it is day");
    assert_eq!(line("1 problem:\n  - watts: 0"), "1 problem: watts: 0");
    let many = "3 problems:\n  - watts: 0\n  - volts: 0\n  - lamp: none";
    assert_eq!(line(many), "3 problems, first: watts: 0");
    assert_eq!(line("it is\n  dark\n  there"), "it is dark (and 1 lines)");
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lamp.sock");
    serve_lamp(&path).await;
    let more = json!({ "request": "dark", "x": 1 });
    let error = asked(&path, more).await.expect_err("an unknown field");
    let begin = "cannot parse the request: unknown field `x`";
    assert!(error.starts_with(begin), "{error}");
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(&path).expect("a lamp");
        stream.write_all(b"{\"request\":\"\xff\"}\n").expect("sent");
        let mut answer = String::new();
        let mut lines = std::io::BufReader::new(stream);
        std::io::BufRead::read_line(&mut lines, &mut answer).expect("a reply");
        answer
    });
    let answer = answer.await.expect("no panic");
    let begin = "{\"error\":{\"code\":\"bad-request\",\"message\":\"cannot parse the request: ";
    assert!(answer.starts_with(begin), "{answer}");
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lamp.sock");
    drop(UnixListener::bind(&path).expect("a dead socket"));
    serve_lamp(&path).await;
    let error = bind(&LAMP, &path).expect_err("a live one").to_string();
    assert_eq!(
        error,
        format!(
            "a lamp is already running: it answers at {}; stop it first, or give this one another \
             lamp.control_socket",
            path.display()
        )
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "kept").expect("a file");
    let error = bind(&LAMP, &file).expect_err("no socket").to_string();
    assert!(
        error.ends_with("exists and is not a socket; move it away"),
        "{error}"
    );
    assert_eq!(std::fs::read(&file).expect("a file"), b"kept");
}

/// Reads a request and sends no reply.
fn read_request(mut stream: UnixStream) -> Option<UnixStream> {
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).expect("a request");
    }
    Some(stream)
}

/// The error of a request to a server that does with the connection what `answerer` does.
fn error_of(answerer: fn(UnixStream) -> Option<UnixStream>, why: usize) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lamp.sock");
    let listener = UnixListener::bind(&path).expect("the path is free");
    let other = std::thread::spawn(move || answerer(listener.accept().expect("a client").0));
    let request = json!({ "request": "light", "why": "x".repeat(why) });
    let asked: Result<Value, AskError> =
        ask_within(&LAMP, &path, &request, Duration::from_millis(200));
    // A connection that the answerer keeps is open until here.
    drop(other.join().expect("no panic in the answerer"));
    asked.expect_err("no answer").to_string()
}

#[test]
fn an_error_without_an_answer_tells_whether_the_request_may_be_carried_out() {
    let check = "check `causeway-lamp status` before retrying";
    assert_eq!(
        error_of(read_request, 0),
        format!("the lamp did not reply within 0.2 s. The request may still be executed; {check}")
    );
    let closed = |stream: UnixStream| read_request(stream).and(None);
    assert_eq!(
        error_of(closed, 0),
        format!(
            "the lamp closed the connection without a reply: it accepts requests of root and of \
             its own user only; if it was stopping, the request may have been executed; {check}"
        )
    );
    // Closed with unread bytes: a reset.
    let reset = |mut stream: UnixStream| {
        stream.read_exact(&mut [0]).expect("a request");
        None
    };
    let lost = error_of(reset, 0);
    assert!(
        lost.starts_with("connection lost while waiting for the lamp's reply: ")
            && lost.ends_with(&format!("; the request may have been executed; {check}")),
        "{lost}"
    );
    // More than any socket buffer holds.
    assert_eq!(
        error_of(Some, 8 << 20),
        "cannot send the request to the lamp: it does not read the request; retry"
    );
    assert_eq!(
        error_of(reset, 8 << 20),
        "cannot send the request to the lamp: it closed the connection: it accepts requests of \
         root and of its own user only; retry"
    );
    let unreadable = |stream: UnixStream| {
        let mut stream = read_request(stream)?;
        stream.write_all(b"lit\n").expect("a client");
        Some(stream)
    };
    let unread = error_of(unreadable, 0);
    assert!(
        unread.starts_with("cannot parse the lamp's reply: ")
            && unread.ends_with("; client and daemon versions may differ"),
        "{unread}"
    );
}

#[test]
fn root_may_ask_and_the_user_of_the_daemon_where_it_is_granted() {
    let own = nix::unistd::geteuid().as_raw();
    let stranger = own + 4711;
    for access in [Access::Root, Access::RootAndOwner] {
        assert!(access.includes(0) && !access.includes(stranger));
    }
    assert!(Access::RootAndOwner.includes(own));
    assert_eq!(Access::Root.includes(own), own == 0);
}
