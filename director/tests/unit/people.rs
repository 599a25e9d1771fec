//! Authenticators, and the users of machines.

use aws_lc_rs::hmac;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Duration, timeout},
};

use super::Server;

const PASSWORD: &str = "correct horse battery";

/// The code of a secret at a time (RFC 6238), computed apart from the director.
fn code(secret: &str, seconds: i64) -> String {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut bits = String::new();
    for letter in secret.chars() {
        let value = LETTERS.find(letter).expect("base32");
        bits += &format!("{value:05b}");
    }
    let bytes: Vec<u8> = (0..bits.len() / 8)
        .map(|at| u8::from_str_radix(&bits[at * 8..at * 8 + 8], 2).expect("bits"))
        .collect();
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &bytes);
    let tag = hmac::sign(&key, &(seconds / 30).to_be_bytes());
    let tag = tag.as_ref();
    let at = usize::from(tag[19] & 15);
    let four: [u8; 4] = tag[at..at + 4].try_into().expect("four bytes");
    format!(
        "{:06}",
        (u32::from_be_bytes(four) & 0x7fff_ffff) % 1_000_000
    )
}

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.expect("after 1970").as_secs()).expect("a time")
}

async fn log_in(server: &Server, code: Option<&str>) -> super::Answered {
    let mut body = json!({ "user": "alice", "password": PASSWORD });
    if let Some(code) = code {
        body["code"] = code.into();
    }
    server.post("", "/v1/sessions", body).await
}

#[tokio::test]
async fn a_log_in_with_an_authenticator_takes_a_code_once() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let made = server
        .call(&alice, "POST", "/v1/self/totp", &[], None)
        .await;
    let made = made.expect(201).json();
    let secret = made["secret"].as_str().expect("a secret");
    assert!(made["uri"].as_str().expect("a URI").contains(secret));
    // Not confirmed: a log-in takes no code yet.
    log_in(&server, None).await.expect(201);
    let confirm = async |code: &str| {
        let body = json!({ "code": code });
        server
            .call(&alice, "PUT", "/v1/self/totp", &[], Some(&body))
            .await
    };
    confirm("000000x").await.expect(422);
    // The code of the step before leaves the present one for the log-in.
    confirm(&code(secret, now() - 30)).await.expect(204);

    let missing = log_in(&server, None).await.expect(401).json();
    assert_eq!(missing["type"], "urn:causeway:problem:code");
    let present = code(secret, now());
    log_in(&server, Some(&present)).await.expect(201);
    let replay = log_in(&server, Some(&present)).await.expect(401).json();
    assert_eq!(replay["type"], "urn:causeway:problem:wrong-code");
    let recovery = made["recovery"][0].as_str().expect("a code");
    log_in(&server, Some(recovery)).await.expect(201);
    log_in(&server, Some(recovery)).await.expect(401);

    // A guesser waits, even with the right code.
    for _ in 0..4 {
        log_in(&server, Some("123")).await.expect(401);
    }
    let other = made["recovery"][1].as_str().expect("a code");
    let refused = log_in(&server, Some(other)).await.expect(429);
    let left: u64 = refused
        .header("retry-after")
        .expect("a time")
        .parse()
        .expect("seconds");
    assert!((1..=900).contains(&left), "{refused:?}");
    assert!(refused.text.contains("try again in"), "{refused:?}");
    // Without the password, nothing is told of the authenticator.
    let body = json!({ "user": "alice", "password": "wrong", "code": other });
    let wrong = server
        .post("", "/v1/sessions", body)
        .await
        .expect(401)
        .json();
    assert_eq!(wrong["type"], "urn:causeway:problem:credentials");
    let remove = "/v1/users/alice/totp";
    // A thief of a token does not take the second factor away.
    let own = server.call(&alice, "DELETE", remove, &[], None).await;
    let own = own.expect(409);
    assert!(own.text.contains("your own authenticator"), "{own:?}");
    log_in(&server, None).await.expect(401);
    server
        .call(&server.admin, "DELETE", remove, &[], None)
        .await
        .expect(204);
    log_in(&server, None).await.expect(201);
    // The secret is in no answer and no audit entry.
    let audit = server
        .get(&server.admin, "/v1/audit?limit=1000")
        .await
        .expect(200);
    assert!(!audit.text.contains(secret) && audit.text.contains("self.totp.confirm"));
}

/// The head of the answer to a watch, and the events of its first half second.
pub(super) async fn watched(server: &Server, token: &str, query: &str) -> String {
    let stream = TcpStream::connect(server.address).await;
    let mut stream = stream.expect("a connection");
    let text = format!(
        "GET /v1/watch?{query} HTTP/1.1\r\nhost: d\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.expect("sent");
    let (mut seen, mut bytes) = (String::new(), [0; 4096]);
    let time = Duration::from_millis(500);
    while let Ok(Ok(count @ 1..)) = timeout(time, stream.read(&mut bytes)).await {
        seen += &String::from_utf8_lossy(&bytes[..count]);
    }
    seen
}

#[tokio::test]
async fn machines_read_what_they_need_and_nothing_else() {
    let server = Server::with_tenants().await;
    for name in ["gw1", "gw2"] {
        let spec = json!({ "addresses": [format!("203.0.113.{}", &name[2..])] });
        server.create("/v1/gateways", name, spec).await;
    }
    let create = async |body: Value| server.post(&server.admin, "/v1/users", body).await;
    let gateway = json!({ "name": "m-gw1", "role": "gateway", "object": "gw1" });
    create(gateway).await.expect(201);
    let appliance =
        json!({ "name": "m-acme", "role": "appliance", "tenant": "acme", "object": "h1" });
    create(appliance.clone()).await.expect(201);
    for (field, value, status) in [
        ("object", json!("h9"), 409),
        ("object", Value::Null, 422),
        ("tenant", Value::Null, 422),
        ("password", json!(PASSWORD), 422),
    ] {
        let mut wrong = appliance.clone();
        wrong["name"] = "m-other".into();
        wrong[field] = value;
        create(wrong).await.expect(status);
    }
    let token = async |name: &str| {
        let body = json!({ "hours": 1 });
        let path = format!("/v1/users/{name}/tokens");
        let made = server
            .post(&server.admin, &path, body)
            .await
            .expect(201)
            .json();
        made["secret"].as_str().expect("a secret").to_owned()
    };
    let (gateway, appliance) = (token("m-gw1").await, token("m-acme").await);
    let admin = json!({ "hours": 1 });
    server
        .post(&server.admin, "/v1/users/admin/tokens", admin)
        .await
        .expect(409);
    for (token, path, status) in [
        (&gateway, "/v1/gateways/gw1", 200),
        (&gateway, "/v1/gateways/gw2", 404),
        (&gateway, "/v1/gateways", 403),
        (&gateway, "/v1/tenants/acme/networks", 403),
        (&gateway, "/v1/hosts/h1", 403),
        (&appliance, "/v1/tenants/acme/networks", 200),
        (&appliance, "/v1/tenants/acme/appliances/h1", 200),
        (&appliance, "/v1/tenants/globex/networks", 404),
        (&appliance, "/v1/gateways/gw1", 403),
        (&appliance, "/v1/audit", 403),
    ] {
        server.get(token, path).await.expect(status);
    }
    let foreign = server.get(&gateway, "/v1/gateways/gw2").await.text;
    let absent = server.get(&gateway, "/v1/gateways/gw9").await.text;
    assert_eq!(foreign.replace("gw2", "gw9"), absent);
    // A watch of others is refused; one of itself tells of nothing else.
    for (token, query, status) in [
        (&gateway, "kind=host", "403"),
        (&gateway, "kind=tenant", "403"),
        (&appliance, "kind=gateway", "403"),
        (&appliance, "kind=network&tenant=globex", "404"),
        (&appliance, "kind=network", "200"),
        (&gateway, "kind=gateway&from=1", "200"),
    ] {
        let seen = watched(&server, token, query).await;
        assert!(
            seen.starts_with(&format!("HTTP/1.1 {status} ")),
            "{query}: {seen}"
        );
        assert!(!seen.contains("gw2"), "{seen}");
        assert_eq!(seen.contains("gw1"), query.contains("from"), "{seen}");
    }
    // A machine makes no tokens, so that a stolen one ends.
    let body = json!({ "hours": 1 });
    server
        .post(&appliance, "/v1/tokens", body)
        .await
        .expect(403);
    // It goes with its object.
    let path = "/v1/gateways/gw1?force=true";
    let reason = [("x-reason", "it is broken")];
    server
        .call(&server.admin, "DELETE", path, &reason, None)
        .await
        .expect(204);
    server.get(&gateway, "/v1/self").await.expect(401);
}
