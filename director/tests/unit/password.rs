//! Changes of passwords, and the tokens that end by them.

use futures::future::join_all;
use serde_json::{Value, json};

use super::{Answered, Server};

const OLD: &str = "correct horse battery";
const NEW: &str = "staple, correct as well";

async fn put(server: &Server, token: &str, path: &str, body: Value) -> Answered {
    server.call(token, "PUT", path, &[], Some(&body)).await
}

async fn log_in(server: &Server, user: &str, password: &str) -> Answered {
    let body = json!({ "user": user, "password": password });
    server.post("", "/v1/sessions", body).await
}

fn secret(answer: &Answered) -> String {
    let secret = answer.json()["secret"].as_str().map(ToOwned::to_owned);
    secret.expect("a secret")
}

#[tokio::test]
async fn a_user_changes_the_own_password_and_other_tokens_end() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let session = secret(&log_in(&server, "alice", OLD).await.expect(201));
    let program = server
        .post(&alice, "/v1/tokens", json!({ "hours": 1 }))
        .await;
    let program = secret(&program.expect(201));
    let path = "/v1/self/password";
    for (body, status) in [
        (json!({ "password": NEW }), 422),
        (json!({ "current": OLD, "password": "short" }), 422),
        (json!({ "current": OLD, "password": OLD }), 422),
        (json!({ "current": "wrong", "password": NEW }), 422),
    ] {
        put(&server, &alice, path, body).await.expect(status);
    }
    for token in [&alice, &session, &program] {
        server.get(token, "/v1/self").await.expect(200);
    }
    let body = json!({ "current": OLD, "password": NEW });
    let done = put(&server, &alice, path, body.clone()).await.expect(200);
    assert_eq!(done.json(), json!({ "ended": 2 }));
    server.get(&alice, "/v1/self").await.expect(200);
    for token in [&session, &program] {
        server.get(token, "/v1/self").await.expect(401);
    }
    put(&server, &program, path, body).await.expect(401);
    log_in(&server, "alice", OLD).await.expect(401);
    log_in(&server, "alice", NEW).await.expect(201);
    // It is in the audit, and neither a password nor its hash.
    let audit = server
        .get(&server.admin, "/v1/audit?limit=1000")
        .await
        .expect(200);
    assert!(
        audit.text.contains("self.password.replace"),
        "{}",
        audit.text
    );
    for part in [OLD, NEW, "argon2"] {
        assert!(!audit.text.contains(part), "{part}");
    }
    let entry = audit.json()["items"]
        .as_array()
        .expect("a list")
        .iter()
        .find_map(|entry| {
            let is_done = entry["result"]["status"] == 200;
            (is_done && entry["operation"] == "self.password.replace")
                .then(|| entry["changes"].clone())
        });
    let entry = entry.expect("an entry").to_string();
    assert!(entry.contains("\"field\":\"password\""), "{entry}");
}

#[tokio::test]
async fn a_password_is_not_guessed_with_a_token() {
    let server = Server::start().await;
    let alice = server.user("alice", "provider-operator", None).await;
    let path = "/v1/self/password";
    for guess in 0..5 {
        let body = json!({ "current": format!("guess {guess}"), "password": NEW });
        let problem = put(&server, &alice, path, body).await.expect(422).json();
        assert_eq!(problem["type"], "urn:causeway:problem:wrong-password");
    }
    let right = json!({ "current": OLD, "password": NEW });
    put(&server, &alice, path, right).await.expect(429);
    // The log-in is another matter.
    log_in(&server, "alice", OLD).await.expect(201);
}

#[tokio::test]
async fn wrong_passwords_at_the_same_time_do_not_exceed_the_limit() {
    let server = Server::start().await;
    server.user("alice", "provider-operator", None).await;
    let right = join_all((0..12).map(|_| log_in(&server, "alice", OLD))).await;
    assert!(right.iter().all(|answer| answer.status == 201), "{right:?}");
    let wrong = join_all((0..24).map(|_| log_in(&server, "alice", "a wrong one"))).await;
    let of = |answers: &[Answered], status: u16| {
        let answers = answers.iter().filter(|answer| answer.status == status);
        answers.count()
    };
    assert_eq!((of(&wrong, 401), of(&wrong, 429)), (5, 19));
    log_in(&server, "alice", OLD).await.expect(429);

    // The same for one's own password, and for a code.
    let alice = server.user("bob", "provider-operator", None).await;
    let body = json!({ "current": "a wrong one", "password": NEW });
    let own = || put(&server, &alice, "/v1/self/password", body.clone());
    let wrong = join_all((0..24).map(|_| own())).await;
    assert_eq!((of(&wrong, 422), of(&wrong, 429)), (5, 19));
    let made = server
        .call(&alice, "POST", "/v1/self/totp", &[], None)
        .await;
    made.expect(201);
    let code = json!({ "code": "000000x" });
    let confirm = || put(&server, &alice, "/v1/self/totp", code.clone());
    let wrong = join_all((0..24).map(|_| confirm())).await;
    assert_eq!((of(&wrong, 422), of(&wrong, 429)), (5, 19));
}

#[tokio::test]
async fn administrators_set_passwords_of_their_users() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let bob = server.user("bob", "tenant-operator", Some("acme")).await;
    let carol = server
        .user("carol", "tenant-operator", Some("globex"))
        .await;
    let body = json!({ "password": NEW });
    for (token, user, status) in [
        (&bob, "alice", 403),
        (&alice, "carol", 404),
        (&alice, "missing", 404),
        (&alice, "admin", 404),
        (&alice, "alice", 409),
    ] {
        let path = format!("/v1/users/{user}/password");
        put(&server, token, &path, body.clone())
            .await
            .expect(status);
    }
    let foreign = put(&server, &alice, "/v1/users/carol/password", body.clone()).await;
    let absent = put(&server, &alice, "/v1/users/nobod/password", body.clone()).await;
    assert_eq!(foreign.text.replace("carol", "nobod"), absent.text);
    let path = "/v1/users/bob/password";
    put(&server, &alice, path, json!({ "password": "short" }))
        .await
        .expect(422);
    let done = put(&server, &alice, path, body.clone()).await.expect(200);
    assert_eq!(done.json(), json!({ "ended": 1 }));
    server.get(&bob, "/v1/self").await.expect(401);
    log_in(&server, "bob", OLD).await.expect(401);
    log_in(&server, "bob", NEW).await.expect(201);
    // Changes of a tenant's user by the provider are in the tenant's audit.
    put(&server, &server.admin, "/v1/users/carol/password", body)
        .await
        .expect(200);
    server.get(&carol, "/v1/self").await.expect(401);
    let seen = server.get(&alice, "/v1/audit?limit=1000").await;
    let seen = seen.expect(200).json();
    let seen = seen["items"].as_array().expect("a list");
    // Refused requests are those of the tenant's own users.
    let done = seen.iter().filter(|e| e["result"]["status"] == 200);
    let done: Vec<_> = done.map(ToString::to_string).collect();
    assert_eq!(done.len(), 1, "{done:?}");
    assert!(done[0].contains("user.password.replace") && done[0].contains("bob"));
    let others = seen.iter().filter(|e| e["user"] != "alice");
    assert!(!others.map(ToString::to_string).any(|e| e.contains("carol")));
}

#[tokio::test]
async fn the_first_administrator_gets_a_password() {
    let server = Server::start().await;
    let own = server
        .get(&server.admin, "/v1/self")
        .await
        .expect(200)
        .json();
    assert_eq!(own["password"], false);
    let path = "/v1/self/password";
    let wrong = json!({ "current": OLD, "password": NEW });
    put(&server, &server.admin, path, wrong).await.expect(422);
    put(&server, &server.admin, path, json!({ "password": OLD }))
        .await
        .expect(200);
    log_in(&server, "admin", OLD).await.expect(201);
    // From now on it takes the password before.
    put(&server, &server.admin, path, json!({ "password": NEW }))
        .await
        .expect(422);
    let own = server
        .get(&server.admin, "/v1/self")
        .await
        .expect(200)
        .json();
    assert_eq!(own["password"], true);
}

#[tokio::test]
async fn a_machine_has_no_password() {
    let server = Server::with_tenants().await;
    let machine = json!({ "name": "m", "role": "appliance", "tenant": "acme", "object": "h1" });
    server
        .post(&server.admin, "/v1/users", machine)
        .await
        .expect(201);
    let made = server
        .post(&server.admin, "/v1/users/m/tokens", json!({ "hours": 1 }))
        .await;
    let token = secret(&made.expect(201));
    let body = json!({ "password": NEW });
    put(&server, &server.admin, "/v1/users/m/password", body.clone())
        .await
        .expect(409);
    put(&server, &token, "/v1/self/password", body)
        .await
        .expect(409);
}
