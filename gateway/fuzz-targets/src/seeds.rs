//! Inputs to begin with: hellos, and short programs of acts that get somewhere.
//!
//! `gateway/tests/corpus.rs` writes them to `seeds/` and sees that they stay what this makes.

use gateway_client::proxy_header;
use gateway_client::stream::{self, LivenessFrame};
use gateway_client::wire::{CircuitId, Key, Tag};

use super::hello::vector;

/// A seed: its target, its name, its bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// Every seed.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut all = hellos();
    all.extend(streams());
    all.extend(proxies());
    all.extend(circuits());
    all.extend(binds());
    all.extend(updates());
    all.extend(stored());
    all.extend(names());
    all
}

/// A hello of a name and a protocol, with a random, a session and extensions as clients send them.
fn wire(name: &[u8], fragment: usize) -> Vec<u8> {
    let entry = [&[0][..], &vector::<2>(name)].concat();
    let extensions = [
        [&[0, 43][..], &vector::<2>(&[2, 3, 4])].concat(),
        [&[0, 0][..], &vector::<2>(&vector::<2>(&entry))].concat(),
        [
            &[0, 16][..],
            &vector::<2>(&vector::<2>(&vector::<1>(b"h2"))),
        ]
        .concat(),
    ];
    let body = [
        &[3, 3][..],
        &[7; 32],
        &vector::<1>(&[9; 32]),
        &vector::<2>(&[0x13, 0x01, 0x13, 0x02]),
        &vector::<1>(&[0]),
        &vector::<2>(&extensions.concat()),
    ]
    .concat();
    [&[1][..], &vector::<3>(&body)]
        .concat()
        .chunks(fragment)
        .flat_map(|part| [&[22, 3, 1][..], &vector::<2>(part)].concat())
        .collect()
}

fn hellos() -> Vec<Seed> {
    // The sizes of the pieces, and that the bytes are those of the wire.
    let raw = |bytes: &[u8]| [&[0, 4, 99, 255, 0][..], bytes].concat();
    // The target writes a hello: a session, four bytes of suites, a compression method.
    let written = |bytes: &[u8]| [&[2, 30, 200, 255, 1, 32, 4, 1][..], bytes].concat();
    vec![
        (
            "hello",
            "whole",
            raw(&wire(b"acme.gateway.example.net", 1 << 14)),
        ),
        ("hello", "in-records", raw(&wire(b"a.example", 11))),
        (
            "hello",
            "with-early-data",
            raw(&[wire(b"a.example", 1 << 14), vec![20, 3, 3, 0, 1, 1]].concat()),
        ),
        ("hello", "not-tls", raw(b"GET / HTTP/1.1\r\n")),
        // A name and a protocol; records of 512 bytes; nothing changed, nothing cut.
        (
            "hello",
            "written",
            written(b"\x02\x00\x09a.example\x02\x01\x02h2\x02\x00\x00\x00"),
        ),
        // Two names in one list of the third kind.
        (
            "hello",
            "other-kinds-of-names",
            written(b"\x01\x01\x03\x01\x02xx\x00\x02ab\x02\x03cde\x40\x00\x00\x00"),
        ),
        // 16 200 bytes of padding in records of 16 KiB: about as long as may be.
        (
            "hello",
            "long",
            written(b"\x01\x03\x3f\x00\x40\x00\x00\x00"),
        ),
        // One byte a record.
        (
            "hello",
            "16-kib",
            written(b"\x01\x03\x3f\xa6\x40\x00\x00\x00"),
        ),
        (
            "hello",
            "16-kib-and-a-byte",
            written(b"\x01\x03\x3f\xa7\x40\x00\x00\x00"),
        ),
        (
            "hello",
            "an-address-for-a-name",
            raw(&wire(b"192.0.2.1", 1 << 14)),
        ),
        (
            "hello",
            "long-in-small-records",
            written(b"\x01\x03\x08\x00\x00\x01\x00\x00"),
        ),
        (
            "hello",
            "no-extensions",
            written(b"\x00\x00\x40\x00\x00\x00"),
        ),
        (
            "hello",
            "a-byte-changed",
            written(b"\x01\x00\x09a.example\x02\x00\x02\x00\x40\xff\x00\x02\x01\x00\x00"),
        ),
    ]
}

fn proxies() -> Vec<Seed> {
    let at = |text: &str| text.parse().expect("an address and a port");
    let raw = |client: &str, local: &str| {
        let name = "acme.gateway.example.net";
        [vec![0], proxy_header::header(at(client), at(local), name)].concat()
    };
    let v4 = raw("192.0.2.1:1000", "192.0.2.2:6180");
    let mut local = v4.clone();
    local[13] = 0x20;
    let mut long = v4.clone();
    long[15] = 5;
    vec![
        ("proxy", "v4", v4.clone()),
        (
            "proxy",
            "v6",
            raw("[2001:db8::1]:1000", "[2001:db8::2]:6180"),
        ),
        (
            "proxy",
            "mixed",
            raw("192.0.2.1:1000", "[2001:db8::2]:6180"),
        ),
        ("proxy", "local", local),
        ("proxy", "too-long", long),
        ("proxy", "cut", v4[..30].to_vec()),
        ("proxy", "made", [1; 60].to_vec()),
    ]
}

fn streams() -> Vec<Seed> {
    // A raw stream: the sizes of the pieces, the longest frame (more than 255 × 256), the bytes.
    let raw = |cut: u8, bytes: &[u8]| [&[0, cut, 255][..], bytes].concat();
    // Written: the same, bytes that are missing at the end, then a length and a first byte for each
    // frame.
    let written = |missing: u16, frames: &[(u16, u8)]| {
        let mut seed = vec![1, 255, 255];
        seed.extend(missing.to_be_bytes());
        for (length, first) in frames {
            seed.extend(length.to_be_bytes());
            seed.push(*first);
        }
        seed
    };
    // The target tries keys of one repeated byte; no mutation reaches this key.
    let key = Key::new(std::array::from_fn(|n| n as u8));
    let circuit = CircuitId::new(0x3f9a_1c02_77d1_e05b).expect("an id");
    let hello = stream::hello(circuit, &key, 0x0102, Tag([9; 16]));
    let opened = stream::read_hello(&hello[stream::LENGTH_BYTES..])
        .ok()
        .and_then(|sealed| stream::open_hello(&sealed, &key, Tag([9; 16]), None).ok());
    let answer = stream::answer(&opened.expect("a hello"), &key);
    let question = LivenessFrame::Question.frame();
    let frames = [
        vector::<2>(b"ab"),
        vector::<2>(&[7; 300]),
        vector::<2>(b"datagram"),
    ]
    .concat();
    vec![
        ("stream", "frames", raw(3, &frames)),
        ("stream", "frames-byte-by-byte", raw(0, &frames)),
        ("stream", "frames-in-one-piece", raw(180, &frames[306..])),
        ("stream", "a-frame-cut", raw(9, &frames[..200])),
        ("stream", "a-length-cut", raw(9, &frames[..4])),
        (
            "stream",
            "length-0",
            raw(9, &[0, 2, 9, 9, 0, 0, 0, 2, 9, 9]),
        ),
        (
            "stream",
            "questions-and-answers-between-frames",
            raw(
                1,
                &[
                    &question[..],
                    &frames,
                    &question,
                    &LivenessFrame::Answer.frame(),
                    &frames,
                    &question,
                ]
                .concat(),
            ),
        ),
        (
            "stream",
            "a-question-cut",
            raw(1, &[&question[..], &question[..2]].concat()),
        ),
        (
            "stream",
            "a-byte-that-is-no-word",
            raw(4, &[&question[..], &[0, 1, 3], &question].concat()),
        ),
        // At most 201 bytes.
        (
            "stream",
            "too-long-by-a-byte",
            [
                &[0, 200, 0][..],
                &vector::<2>(&[7; 201]),
                &vector::<2>(&[7; 202]),
            ]
            .concat(),
        ),
        (
            "stream",
            "a-hello-and-frames",
            raw(5, &[&hello[..], &frames].concat()),
        ),
        ("stream", "a-hello-cut", raw(5, &hello[..40])),
        (
            "stream",
            "a-hello-of-side-b",
            raw(5, &{
                let mut other = hello;
                other[stream::LENGTH_BYTES + 10] = 1;
                other
            }),
        ),
        (
            "stream",
            "an-answer-and-frames",
            raw(5, &[&answer[..], &frames].concat()),
        ),
        // After short frames, so that the decoder has to move its partial long frame.
        (
            "stream",
            "as-long-as-may-be",
            written(0, &[(100, 1), (65535, 2), (3, 9), (65535, 3)]),
        ),
        (
            "stream",
            "as-long-as-may-be-and-cut",
            written(1, &[(20, 1), (65535, 2)]),
        ),
        ("stream", "many-written", written(7, &[(1400, 1); 40])),
        (
            "stream",
            "length-0-behind-a-long-one",
            written(0, &[(30, 1), (1, 2), (65000, 2), (0, 0), (5, 1)]),
        ),
    ]
}

/// Acts of `circuit`, by their places in its list.
fn circuits() -> Vec<Seed> {
    let (raw, tunnel, nearly, bind, unbind, roam) = (0, 1, 2, 3, 4, 5);
    let (wait, replay, change, admin, clock, hear) = (6, 7, 8, 9, 10, 11);
    // Both sides of the first circuit, carried there and back.
    let joined = [bind, 0, 0, bind, 1, 0];
    let then = |acts: &[u8]| [&joined[..], acts].concat();
    vec![
        (
            "circuit",
            "from-side-to-side",
            then(&[tunnel, 0, 0, 0, 9, 0, tunnel, 0, 1, 4, 0, 0]),
        ),
        (
            "circuit",
            "a-stranger",
            then(&[
                tunnel, 0, 6, 0, 9, 0, tunnel, 3, 0, 0, 9, 0, raw, 0, 3, 1, 2, 3, nearly, 0, 1, 1,
                0, 0, 0, 0, 0, 1, 0, 0, 0, 5,
            ]),
        ),
        (
            "circuit",
            "roams",
            then(&[
                roam, 0, 6, bind, 0, 0, tunnel, 0, 1, 0, 9, 0, tunnel, 0, 0, 0, 9, 0,
            ]),
        ),
        (
            "circuit",
            "replayed-and-changed",
            then(&[
                replay, 0, 6, replay, 1, 0, change, 0, 0, 30, 0, 1, 0, 0, 0, change, 2, 0, 10, 0,
                1, 0, 0, 1,
            ]),
        ),
        (
            "circuit",
            "ends-and-leaves",
            then(&[
                wait, 3, 0, tunnel, 0, 0, 0, 9, 0, admin, 0, bind, 0, 0, unbind, 0, 0,
            ]),
        ),
        (
            "circuit",
            "one-side-ends-before-the-other",
            vec![
                bind, 0, 0, wait, 2, 49, bind, 1, 0, wait, 2, 59, tunnel, 0, 1, 0, 9, 0, tunnel, 0,
                0, 0, 9, 0,
            ],
        ),
        ("circuit", "an-old-cookie", then(&[wait, 3, 25, bind, 0, 0])),
        (
            "circuit",
            "heard-late",
            [
                &[bind, 0, 1, bind, 0, 2][..],
                &[hear, 1, 0, hear, 0, 0, clock, 9, 9, 1, bind, 0, 0],
            ]
            .concat(),
        ),
        (
            "circuit",
            "drains",
            then(&[
                admin, 2, bind, 0, 0, bind, 2, 0, hear, 4, 0, tunnel, 0, 0, 0, 9, 0,
            ]),
        ),
        (
            "circuit",
            "another-plan",
            then(&[
                admin, 6, tunnel, 0, 0, 0, 9, 0, admin, 7, bind, 1, 0, admin, 5, admin, 3, admin, 4,
            ]),
        ),
        (
            "circuit",
            "more-than-its-share",
            then(&[tunnel, 0, 0, 4, 0, 7, tunnel, 0, 1, 4, 0, 7]).repeat(6),
        ),
        (
            // The clock of end 0 goes forward; it binds; its unbind is captured; its clock goes
            // back and it starts again.
            "circuit",
            "a-replayed-unbind",
            [
                &[clock, 255, 255, 0][..],
                &joined[..],
                &[unbind, 0, 1, clock, 0xea, 0x60, 1],
                &[bind, 0, 0, replay, 6, 0, bind, 0, 0, replay, 6, 0],
                &[tunnel, 0, 1, 0, 9, 0],
            ]
            .concat(),
        ),
        ("circuit", "flood-of-binds", [bind, 0, 0].repeat(40)),
    ]
}

/// Acts of `bind`, by their places in its list.
fn binds() -> Vec<Seed> {
    let (forge, forge_answer, bind, unbind, hear) = (0, 1, 2, 3, 4);
    let (replay, change, roam, wait, tunnel, admin) = (5, 6, 7, 8, 9, 10);
    let joined = [bind, 0, 0, bind, 1, 0];
    let then = |acts: &[u8]| [&joined[..], acts].concat();
    vec![
        // Side, kind, timestamp, cookie, lifetime, key, place.
        (
            "bind",
            "a-true-key-elsewhere",
            then(&[
                forge, 0, 0, 1, 5, 0, 1, 1, 6, forge, 0, 0, 1, 9, 2, 0, 1, 1, 6, tunnel, 0, 1, 0,
                9, 0,
            ]),
        ),
        (
            "bind",
            "anothers-cookie",
            then(&[forge, 0, 0, 1, 5, 2, 1, 1, 1, 6]),
        ),
        (
            "bind",
            "a-wrong-key",
            then(&[
                forge, 0, 0, 1, 5, 0, 1, 0x40, 6, forge, 0, 4, 1, 5, 0, 1, 0x14, 0,
            ]),
        ),
        (
            "bind",
            "unbound-by-a-true-key",
            then(&[forge, 0, 4, 1, 9, 0, 1, 1, 0, unbind, 1, 0]),
        ),
        (
            "bind",
            "a-gateways-words",
            then(&[
                forge,
                0,
                2,
                1,
                5,
                0,
                0,
                0,
                9,
                1,
                0,
                forge_answer,
                0,
                3,
                1,
                0,
                0,
                1,
                1,
                0,
                forge_answer,
                0,
                2,
                1,
                0,
                0,
                0,
                0,
                9,
                1,
                0,
            ]),
        ),
        (
            "bind",
            "heard-late-and-twice",
            vec![bind, 0, 2, hear, 1, 0, hear, 1, 0, replay, 0, 6],
        ),
        (
            "bind",
            "at-the-others-address",
            then(&[roam, 1, 0, bind, 1, 0]),
        ),
        (
            "bind",
            "all-timestamps-spent",
            then(&[
                forge, 2, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 1, 1, 2,
            ]),
        ),
        (
            "bind",
            "changed",
            then(&[
                change, 0, 0, 9, 4, 5, 0, 0, 0, wait, 3, 20, change, 1, 0, 30, 0, 1, 0, 1, 0,
                admin, 2,
            ]),
        ),
    ]
}

/// Objects of an update: kind, number, and three choices.
const TENANT: [u8; 5] = [0, 1, 0, 3, 5];
const BACKEND: [u8; 5] = [3, 0, 0, 1, 0];
const ROUTE: [u8; 5] = [4, 0, 1, 0, 0];
const CIRCUIT: [u8; 5] = [6, 1, 1, 2, 3];

/// A snapshot of the objects before and these, of the next revision.
fn snapshot(put: &[[u8; 5]]) -> Vec<u8> {
    [&[2, 3, 1, 1, put.len() as u8], put.as_flattened()].concat()
}

/// A delta of the state in force, of the next revision. Removed objects: kind and number.
fn delta(put: &[[u8; 5]], remove: &[[u8; 2]]) -> Vec<u8> {
    let head = [4, 3, 1, put.len() as u8];
    let middle = [2, remove.len() as u8];
    [&head, put.as_flattened(), &middle, remove.as_flattened()].concat()
}

/// Updates that put objects of every kind in force, and remove some.
fn several() -> Vec<u8> {
    [
        snapshot(&[TENANT, BACKEND, ROUTE, CIRCUIT]),
        delta(&[[6, 2, 1, 4, 5]], &[]),
        delta(&[], &[[3, 1], [2, 0]]),
    ]
    .concat()
}

const SNAPSHOT: &str = concat!(
    r#"{"revision":7,"objects":{"tenants":{"acme":{}},"#,
    r#""backends":{"b":{"addresses":["b.example:443"]}},"#,
    r#""routes":{"r":{"name":"d.example","protocols":["h2"],"tenant":"acme","backend":"b"}},"#,
    r#""circuits":{"0123456789abcdef":{"tenant":"acme","#,
    r#""keys":["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","#,
    r#""ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="]}}}}"#,
);
const DELTA: &str =
    r#"{"base":7,"revision":8,"put":{"tenants":{"globex":{}}},"remove":{"routes":["r"]}}"#;

fn updates() -> Vec<Seed> {
    let choices = |steps: Vec<Vec<u8>>| [vec![0], steps.concat()].concat();
    let tenants =
        |from: u8, to: u8| -> Vec<[u8; 5]> { (from..to).map(|n| [0, n, 0, 3, 0]).collect() };
    let text = format!("\x01{{\"snapshot\":{SNAPSHOT}}}\n{{\"delta\":{DELTA}}}\n");
    vec![
        ("updates", "as-json", text.into_bytes()),
        ("updates", "of-every-kind", choices(vec![several()])),
        // The first one again, which is older.
        (
            "updates",
            "an-older-one",
            choices(vec![several(), vec![1, 0]]),
        ),
        // The last one again.
        (
            "updates",
            "the-same-again",
            choices(vec![several(), vec![1, 2]]),
        ),
        (
            "updates",
            "a-tenant-that-is-used-is-removed",
            choices(vec![several(), delta(&[], &[[0, 1]])]),
        ),
        (
            "updates",
            "more-than-fit",
            choices(vec![snapshot(&tenants(0, 8)), delta(&tenants(8, 12), &[])]),
        ),
        (
            "updates",
            "most-tenants-are-removed",
            choices(vec![
                snapshot(&tenants(0, 10)),
                delta(&[], &[[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5]]),
            ]),
        ),
        (
            "updates",
            "keys-change-places",
            choices(vec![
                snapshot(&[TENANT, CIRCUIT, [6, 2, 1, 4, 5]]),
                delta(&[[6, 1, 1, 4, 5], [6, 2, 1, 2, 3]], &[]),
            ]),
        ),
        (
            "updates",
            "a-file-between",
            choices(vec![
                several(),
                [&[0, 2][..], &TENANT, &CIRCUIT].concat(),
                delta(&[TENANT], &[]),
                snapshot(&[BACKEND]),
            ]),
        ),
    ]
}

fn stored() -> Vec<Seed> {
    let file = format!("{{\"version\":1,\"snapshot\":{SNAPSHOT}}}\n{DELTA}\n");
    let raw = |text: &str| [b"\x01", text.as_bytes()].concat();
    let written = |changes: u8, steps: Vec<u8>| [vec![0, changes], steps].concat();
    vec![
        ("stored", "a-file", raw(&file)),
        ("stored", "cut-off", raw(&file[..file.len() - 9])),
        ("stored", "of-the-file-of-the-gateway", {
            raw("{\"version\":1,\"snapshot\":{\"revision\":0,\
                 \"objects\":{\"tenants\":{\"a\":{}}}}}\n")
        }),
        ("stored", "of-a-newer-version", raw("{\"version\":2}\n")),
        ("stored", "written", written(0, several())),
        ("stored", "written-and-changed", {
            written(2, [several(), vec![0, 90, 0, 3, 0, 40, 4, 1]].concat())
        }),
    ]
}

fn names() -> Vec<Seed> {
    let is = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    vec![
        ("names", "a-name", is(0, "GW1.Example.net:6180")),
        ("names", "an-address", is(0, "198.51.100.7:443")),
        ("names", "an-address-of-ipv6", is(0, "[2001:db8::1]:6180")),
        ("names", "of-one-link", is(0, "[fe80::1%2]:443")),
        ("names", "a-hyphen-outside", is(0, "a.-b.net:1")),
        ("names", "no-port", is(0, "gw1.example.net:0")),
        ("names", "a-backend", is(1, "\x08directorb.example:443")),
        (
            "names",
            "a-file",
            is(
                2,
                r#"{"version":1,"names":{"gw1.example.net":["192.0.2.1","2001:db8::1"],"":[]}}"#,
            ),
        ),
        (
            "names",
            "a-written-file",
            vec![
                3, 0, 2, 2, 1, 192, 0, 2, 1, 1, 127, 0, 0, 1, 1, 0, 32, 1, 13, 184,
            ],
        ),
        (
            "names",
            "a-changed-file",
            vec![3, 2, 1, 1, 1, 192, 0, 2, 1, 0, 40, 0, 3, 0, 20, 1],
        ),
    ]
}
