use std::{
    io::Read as _,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{client::ask_within, *};

static LAMP: Socket = Socket {
    name: "lamp",
    one: "a lamp",
    setting: "lamp.control_socket",
    max_request: 64,
    who: Who::RootAndOwner,
};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    Light { watts: u32 },
    Dark,
}

/// Serves at `path` until the test's runtime ends: light is given, darkness refused.
async fn lit(path: &Path) {
    let listener = bind(&LAMP, path).expect("the place is free");
    let (calls, mut requests) = mpsc::channel::<Call<Request, Value>>(1);
    tokio::spawn(serve(&LAMP, listener, calls));
    tokio::spawn(async move {
        while let Some((request, reply)) = requests.recv().await {
            let answer = match request {
                Request::Light { watts } => Reply::Ok(json!({ "watts": watts })),
                Request::Dark => Reply::Error(Refusal::new("conflict", "it is day")),
            };
            // A client that went away does not want the answer.
            let _ = reply.send(answer);
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
async fn a_request_is_answered_or_refused_in_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lamp.sock");
    let nobody = asked(&path, Request::Dark)
        .await
        .expect_err("nobody is there");
    assert!(
        nobody.starts_with(&format!("no lamp answers at {}: ", path.display()))
            && nobody.contains("`systemctl status causeway-lamp`"),
        "{nobody}"
    );
    lit(&path).await;
    let light = asked(&path, Request::Light { watts: 40 }).await;
    assert_eq!(light, Ok(json!({ "watts": 40 })));
    assert_eq!(
        asked(&path, Request::Dark).await,
        Err("it is day".to_owned())
    );
    let other = asked(&path, json!({ "request": "blink" }))
        .await
        .expect_err("no such request");
    assert!(
        other.starts_with("not a request of this version: "),
        "{other}"
    );
    // Longer than a request may be: cut, and so none.
    let long = json!({ "request": "light", "watts": 1, "why": "x".repeat(100) });
    let long = asked(&path, long).await.expect_err("too long");
    assert!(
        long.starts_with("not a request of this version: "),
        "{long}"
    );
    assert!(
        asked(&path, Request::Light { watts: 1 }).await.is_ok(),
        "it goes on"
    );
}

#[tokio::test]
async fn a_live_socket_is_not_taken_and_a_dead_one_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lamp.sock");
    drop(UnixListener::bind(&path).expect("a dead socket"));
    lit(&path).await;
    let error = bind(&LAMP, &path).expect_err("a live one").to_string();
    assert_eq!(
        error,
        format!(
            "a lamp is already running: it answers at {}; stop it first, or give this one another lamp.control_socket",
            path.display()
        )
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "kept").expect("a file");
    let error = bind(&LAMP, &file).expect_err("no socket").to_string();
    assert!(
        error.ends_with("is there and is not a socket; move it away"),
        "{error}"
    );
    assert_eq!(std::fs::read(&file).expect("a file"), b"kept");
}

/// Reads a request and says nothing.
fn heard(mut stream: UnixStream) -> Option<UnixStream> {
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).expect("a request");
    }
    Some(stream)
}

/// Asks who does with the connection what `answerer` does; what is said of it.
fn said_by(answerer: fn(UnixStream) -> Option<UnixStream>, why: usize) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lamp.sock");
    let listener = UnixListener::bind(&path).expect("the place is free");
    let other = std::thread::spawn(move || answerer(listener.accept().expect("a client").0));
    let request = json!({ "request": "light", "why": "x".repeat(why) });
    let asked: Result<Value, AskError> =
        ask_within(&LAMP, &path, &request, Duration::from_millis(200));
    // What it kept open was open until now.
    drop(other.join().expect("no panic in the answerer"));
    asked.expect_err("no answer").to_string()
}

#[test]
fn without_an_answer_it_is_said_whether_it_may_be_done_all_the_same() {
    let look = "look with `causeway-lamp status` before asking again";
    assert_eq!(
        said_by(heard, 0),
        format!(
            "the lamp has not answered for 0.2 s, and may still carry out what it was asked: {look}"
        )
    );
    let closed = |stream: UnixStream| heard(stream).and(None);
    assert_eq!(
        said_by(closed, 0),
        format!(
            "the lamp closed the connection without an answer: only root and whoever runs it may ask; if it was being stopped it may have carried out what it was asked: {look}"
        )
    );
    // Bytes that nobody has read: a reset.
    let reset = |mut stream: UnixStream| {
        stream.read_exact(&mut [0]).expect("a request");
        None
    };
    let said = said_by(reset, 0);
    assert!(
        said.starts_with("waiting for the answer of the lamp: ") && said.ends_with(look),
        "{said}"
    );
    // More than any buffer takes.
    assert_eq!(
        said_by(Some, 8 << 20),
        "asking the lamp: it does not take the request; the request was not sent whole: ask again"
    );
    assert_eq!(
        said_by(reset, 8 << 20),
        "asking the lamp: it closed the connection: only root and whoever runs it may ask; the request was not sent whole: ask again"
    );
}

#[test]
fn who_may_ask_is_root_and_whom_the_daemon_lets() {
    let own = nix::unistd::geteuid().as_raw();
    let stranger = own + 4711;
    for who in [Who::Root, Who::RootAndOwner] {
        assert!(who.includes(0) && !who.includes(stranger));
    }
    assert!(Who::RootAndOwner.includes(own));
    assert_eq!(Who::Root.includes(own), own == 0);
}
