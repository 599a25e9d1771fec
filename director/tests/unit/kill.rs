//! The director is killed while clients write over its API: every write that it acknowledged is
//! there after the next start, its entry is in the audit, and the audit's chain is whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::process::{Site, verified};

/// Times that the director is killed; in the long series, more.
const KILLS: usize = 10;
const KILLS_LONG: usize = 200;
/// Clients at once.
const WRITERS: usize = 4;
/// Tenants that a client leaves behind it, so that the state stays small.
const KEPT_TENANTS: usize = 4;
/// Entries of the audit in one answer.
const PAGE: u64 = 1000;

/// A connection to the director, used for one request after the other.
struct Client<'s> {
    stream: BufReader<TcpStream>,
    token: &'s str,
}

/// Writes that were sent, by name of the tenant: whether it is to be there.
#[derive(Default)]
struct Sent {
    /// Those that the director acknowledged.
    acknowledged: BTreeMap<String, bool>,
    /// Operation and name of each of them.
    entries: Vec<(&'static str, String)>,
    /// Those without an answer: they may have happened or not.
    open: BTreeSet<String>,
}

impl<'s> Client<'s> {
    fn new(site: &'s Site) -> std::io::Result<Self> {
        let stream = TcpStream::connect(&site.address)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
            token: &site.token,
        })
    }

    /// Sends a request: status and body of its whole answer.
    fn send(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> std::io::Result<(u16, String)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: d\r\nauthorization: Bearer {}\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        self.stream.get_mut().write_all(text.as_bytes())?;
        let ended = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let line = line.strip_suffix("\r\n").ok_or_else(ended)?;
            if line.is_empty() {
                break;
            }
            if status.is_none() {
                let word = line.split(' ').nth(1).ok_or_else(ended)?;
                status = Some(word.parse().map_err(|_| ended())?);
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().map_err(|_| ended())?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let body = String::from_utf8(body).map_err(|_| ended())?;
        Ok((status.ok_or_else(ended)?, body))
    }

    #[track_caller]
    fn get(&mut self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, None).expect("an answer");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }
}

/// Creates tenants and removes them again until the director ends.
fn write_until_killed(site: &Site, kill: usize, writer: usize) -> Sent {
    let mut sent = Sent::default();
    let Ok(mut client) = Client::new(site) else {
        return sent;
    };
    let name = |number: usize| format!("t-{kill}-{writer}-{number}");
    for number in 0.. {
        let mut wishes = vec![(name(number), true)];
        if number >= KEPT_TENANTS {
            wishes.push((name(number - KEPT_TENANTS), false));
        }
        for (name, is_new) in wishes {
            let answer = match is_new {
                true => {
                    let body = json!({ "name": name, "spec": {} });
                    client.send("POST", "/v1/tenants", Some(&body))
                }
                false => client.send("DELETE", &format!("/v1/tenants/{name}"), None),
            };
            let Ok((status, body)) = answer else {
                sent.open.insert(name);
                return sent;
            };
            let (expected, operation) = match is_new {
                true => (201, "tenant.create"),
                false => (204, "tenant.remove"),
            };
            assert_eq!(status, expected, "{name}: {body}");
            sent.acknowledged.insert(name.clone(), is_new);
            sent.entries.push((operation, name));
        }
    }
    sent
}

/// Acknowledged writes that are not there, of those whose outcome is known.
fn lost<'a>(sent: &'a Sent, there: &BTreeSet<String>) -> Vec<(&'a str, bool)> {
    let known = sent.acknowledged.iter();
    let known = known.filter(|(name, _)| !sent.open.contains(*name));
    let lost = known.filter(|(name, is_there)| there.contains(*name) != **is_there);
    lost.map(|(name, is_there)| (name.as_str(), *is_there))
        .collect()
}

/// Names of all tenants.
fn tenants(client: &mut Client<'_>) -> BTreeSet<String> {
    let (mut names, mut page) = (BTreeSet::new(), String::new());
    loop {
        let list = client.get(&format!("/v1/tenants?limit=1000{page}"));
        let items = list["items"].as_array().expect("a list");
        names.extend(items.iter().map(|item| {
            let name = item["metadata"]["name"].as_str();
            name.expect("a name").to_owned()
        }));
        match list["next"].as_str() {
            Some(next) => page = format!("&page={next}"),
            None => return names,
        }
    }
}

/// Operation and name of all entries of the audit.
fn entries(client: &mut Client<'_>) -> BTreeSet<(String, String)> {
    let (mut entries, mut after) = (BTreeSet::new(), 0);
    loop {
        let list = client.get(&format!("/v1/audit?limit={PAGE}&after={after}"));
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let items = list["items"].as_array().expect("a list");
        entries.extend(
            items
                .iter()
                .map(|item| (text(&item["operation"]), text(&item["name"]))),
        );
        match list["next"].as_u64() {
            Some(next) => after = next,
            None => return entries,
        }
    }
}

#[test]
fn every_acknowledged_write_survives_a_kill() {
    let kills = match std::env::var_os("CAUSEWAY_LONG") {
        Some(value) if value == "1" => KILLS_LONG,
        Some(_) | None => KILLS,
    };
    let begun = Instant::now();
    let mut site = Site::initialised();
    let mut all = Sent::default();
    site.start();
    for kill in 0..kills {
        let mut random = [0];
        getrandom::fill(&mut random).expect("random bytes");
        let pause = Duration::from_millis(5 + u64::from(random[0]));
        let child = site.child.take().expect("a director");
        let parts = thread::scope(|scope| {
            let site = &site;
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| scope.spawn(move || write_until_killed(site, kill, writer)))
                .collect();
            thread::sleep(pause);
            let mut child = child;
            child.kill().expect("SIGKILL");
            let status = child.wait().expect("its end");
            assert_eq!(status.code(), None, "kill {kill}: it ended by itself");
            let writers = writers.into_iter();
            writers
                .map(|writer| writer.join().expect("no panic"))
                .collect::<Vec<_>>()
        });
        for part in parts {
            all.acknowledged.extend(part.acknowledged);
            all.entries.extend(part.entries);
            all.open.extend(part.open);
        }
        site.start();
        let there = tenants(&mut Client::new(&site).expect("a connection"));
        let lost = lost(&all, &there);
        assert!(lost.is_empty(), "kill {kill}: lost, or back: {lost:?}");
    }
    let written = all.entries.len();
    assert!(
        written >= kills,
        "{written} writes: too few to mean anything"
    );
    let found = entries(&mut Client::new(&site).expect("a connection"));
    let has = |(operation, name): &(&str, String)| {
        found.contains(&((*operation).to_owned(), name.clone()))
    };
    let missing: Vec<_> = all.entries.iter().filter(|entry| !has(entry)).collect();
    assert!(missing.is_empty(), "without an entry: {missing:?}");
    site.stop();
    let text = verified(&site.path("store"));
    assert!(text.contains("of them signed"), "{text}");
    println!(
        "{kills} kills, {written} acknowledged writes, all there and in the audit, {:.1} s",
        begun.elapsed().as_secs_f64()
    );
}

#[test]
fn a_lost_write_is_seen() {
    let mut sent = Sent::default();
    for (name, is_there) in [
        ("kept", true),
        ("lost", true),
        ("gone", false),
        ("back", false),
    ] {
        sent.acknowledged.insert(name.to_owned(), is_there);
    }
    sent.acknowledged.insert("unknown".to_owned(), true);
    sent.open.insert("unknown".to_owned());
    let there = ["kept", "back"].map(ToOwned::to_owned).into();
    assert_eq!(lost(&sent, &there), [("back", false), ("lost", true)]);
}
