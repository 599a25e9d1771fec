use std::path::Path;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;

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
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a dead socket"));
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
