//! The last use of tokens, which lists show.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use director::{Director, Environment, Kernel, api, init};
use jiff::{SignedDuration, Timestamp};
use store::{Options, Sqlite};
use tokio::net::TcpListener;

use super::{Answered, Server};

/// The kernel's clock, some minutes ahead.
#[derive(Debug, Default)]
pub(super) struct Ahead(pub(super) AtomicI64);

impl Environment for Ahead {
    fn now(&self) -> Timestamp {
        Kernel.now() + SignedDuration::from_mins(self.0.load(Ordering::SeqCst))
    }

    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        Kernel.fill(bytes)
    }
}

fn last_used(list: &Answered, id: &str) -> Option<Timestamp> {
    let list = list.json();
    let mut items = list["items"].as_array().expect("a list").iter();
    let token = items.find(|item| item["id"] == id).expect("the token");
    token["last_used"]
        .as_str()
        .map(|text| text.parse().expect("a time"))
}

#[tokio::test]
async fn lists_of_tokens_tell_their_last_use_also_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store");
    let admin = init(&path, "admin", None, &Kernel).await.expect("a store");
    let clock = Arc::new(Ahead::default());
    let (director, server) = {
        let store = opened(&path).await;
        let director = Director::new(store, Arc::<Ahead>::clone(&clock))
            .await
            .expect("a director");
        let director = Arc::new(director);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let router = api::router(Arc::clone(&director));
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        (
            director,
            Server::at(address, admin.clone(), path.clone(), task),
        )
    };
    let body = serde_json::json!({ "name": "m", "role": "provider-auditor",
        "password": "correct horse battery" });
    server.post(&admin, "/v1/users", body).await.expect(201);
    let login = serde_json::json!({ "user": "m", "password": "correct horse battery" });
    let made = server
        .post("", "/v1/sessions", login)
        .await
        .expect(201)
        .json();
    let secret = made["secret"].as_str().expect("a secret").to_owned();
    let id = made["token"]["id"].as_str().expect("an id").to_owned();
    let of_user = "/v1/users/m/tokens";
    let list = server.get(&admin, of_user).await.expect(200);
    assert_eq!(last_used(&list, &id), None);
    server.get(&secret, "/v1/self").await.expect(200);
    let list = server.get(&admin, of_user).await.expect(200);
    let first = last_used(&list, &id).expect("a use");
    // An hour later it is stored, and again not with the next use.
    clock.0.store(61, Ordering::SeqCst);
    server.get(&secret, "/v1/self").await.expect(200);
    clock.0.store(65, Ordering::SeqCst);
    server.get(&secret, "/v1/self").await.expect(200);
    let list = server.get(&admin, of_user).await.expect(200);
    let last = last_used(&list, &id).expect("a use");
    assert!(
        last >= first + SignedDuration::from_mins(65),
        "{first} {last}"
    );
    let mut server = server;
    drop(director);
    server.restart().await;
    let list = server.get(&admin, of_user).await.expect(200);
    let stored = last_used(&list, &id).expect("a stored use");
    assert!(
        stored < last && stored >= first + SignedDuration::from_mins(61),
        "{stored} {last}"
    );
}

/// Opens the store as soon as the thread of `init` has closed it.
async fn opened(path: &std::path::Path) -> Sqlite {
    for _ in 0..250 {
        if let Ok(store) = Sqlite::open(path, Options::default()) {
            return store;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the store is still in use");
}
