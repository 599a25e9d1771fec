//! Limits that keep one client from what others need: memory for bodies and pages, and tokens that
//! had ended before the clock was set back.

use std::sync::{Arc, atomic::Ordering};

use serde_json::json;

use super::{Server, last_use::Ahead};

#[tokio::test]
async fn a_body_without_a_token_is_short() {
    let server = Server::start().await;
    let long = json!({ "user": "admin", "password": "x".repeat(8 << 10) });
    let refused = server.post("", "/v1/sessions", long.clone()).await;
    let refused = refused.expect(413);
    assert!(refused.text.contains("exceeds 8 KiB"), "{refused:?}");
    // With one, it may be long; this one is read, and refused for what it says.
    server
        .post(&server.admin, "/v1/hosts", long)
        .await
        .expect(422);
    let longest = "\u{1}".repeat(1024);
    let credentials = json!({ "user": "admin", "password": longest });
    server
        .post("", "/v1/sessions", credentials)
        .await
        .expect(401);
}

#[tokio::test]
async fn a_page_of_long_objects_ends_after_some_mebibytes() {
    let server = Server::start().await;
    let mut all = Vec::new();
    for number in 0..130 {
        let switches: Vec<_> = (0..256)
            .map(|switch| json!({ "name": format!("{switch:0128}") }))
            .collect();
        let name = format!("h{number:03}");
        let spec = json!({ "platform": "kvm", "switches": switches });
        server.create("/v1/hosts", &name, spec).await;
        all.push(name);
    }
    let mut found = Vec::new();
    let mut path = "/v1/hosts?limit=1000".to_owned();
    let mut pages = 0;
    loop {
        let page = server.get(&server.admin, &path).await.expect(200);
        assert!(page.text.len() < 5 << 20, "{}", page.text.len());
        pages += 1;
        let page = page.json();
        let items = page["items"].as_array().expect("a list");
        found.extend(items.iter().map(|item| item["metadata"]["name"].clone()));
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/hosts?limit=1000&page={next}"),
            None => break,
        }
    }
    assert!(pages > 1, "{pages}");
    assert_eq!(found, all);
}

#[tokio::test]
async fn a_token_that_had_ended_stays_so_when_the_clock_is_set_back() {
    let clock = Arc::new(Ahead::default());
    let server = Server::start_at(Arc::<Ahead>::clone(&clock)).await;
    let made = server
        .post(&server.admin, "/v1/tokens", json!({ "hours": 8784 }))
        .await
        .expect(201)
        .json();
    let other = made["secret"].as_str().expect("a secret");
    server.get(&server.admin, "/v1/self").await.expect(200);
    // The first token is for 24 hours.
    clock.0.store(25 * 60, Ordering::SeqCst);
    server.get(other, "/v1/self").await.expect(200);
    clock.0.store(0, Ordering::SeqCst);
    server.get(&server.admin, "/v1/self").await.expect(401);
    server.get(other, "/v1/self").await.expect(200);
    // Those that are made from then on have their time.
    let made = server
        .post(other, "/v1/tokens", json!({ "hours": 1 }))
        .await;
    let made = made.expect(201).json();
    let new = made["secret"].as_str().expect("a secret");
    server.get(new, "/v1/self").await.expect(200);
}
