use std::sync::Arc;

use proptest::{collection::vec, prelude::*, sample::Index};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion, version::TLS12,
    version::TLS13,
};

use super::*;

/// The hello that `rustls` sends, as it sends it.
fn of_rustls(
    name: &str,
    protocols: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_protocol_versions(versions)
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let name = name.to_owned().try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut wire = Vec::new();
    client.write_tls(&mut wire).expect("a hello");
    wire
}

/// The body behind a length of `BYTES` bytes.
fn vector<const BYTES: usize>(content: &[u8]) -> Vec<u8> {
    let mut out = (content.len() as u64).to_be_bytes()[8 - BYTES..].to_vec();
    out.extend_from_slice(content);
    out
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut out = kind.to_be_bytes().to_vec();
    out.extend(vector::<2>(content));
    out
}

fn sni(name: &[u8]) -> Vec<u8> {
    let mut entry = vec![HOST_NAME];
    entry.extend(vector::<2>(name));
    extension(SERVER_NAME, &vector::<2>(&entry))
}

fn alpn(protocols: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = protocols.iter().flat_map(|p| vector::<1>(p)).collect();
    extension(ALPN, &vector::<2>(&list))
}

/// A body with these extensions; `None`: not even their length.
fn body(extensions: Option<&[u8]>) -> Vec<u8> {
    let mut out = vec![3, 3];
    out.extend([7; 32]);
    out.extend(vector::<1>(&[9; 32]));
    out.extend(vector::<2>(&[0x13, 0x01]));
    out.extend(vector::<1>(&[0]));
    out.extend(extensions.map(vector::<2>).unwrap_or_default());
    out
}

fn message(body: &[u8]) -> Vec<u8> {
    let mut out = vec![CLIENT_HELLO];
    out.extend(vector::<3>(body));
    out
}

/// A message in records of at most `fragment` bytes.
fn records(message: &[u8], fragment: usize) -> Vec<u8> {
    message
        .chunks(fragment)
        .flat_map(|part| [vec![HANDSHAKE, 3, 1], vector::<2>(part)].concat())
        .collect()
}

fn with(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(&body(Some(&extensions.concat()))), MAX_FRAGMENT)
}

fn read(wire: &[u8]) -> Result<Progress, HelloRefusal> {
    Reader::new().feed(wire)
}

fn hello(wire: &[u8]) -> Hello {
    match read(wire) {
        Ok(Progress::Hello(hello)) => hello,
        other => panic!("{other:?}"),
    }
}

/// The answer when the bytes come in these pieces, and how many had come when it was certain.
fn in_pieces<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Result<Progress, HelloRefusal>, usize, Reader) {
    let mut reader = Reader::new();
    let mut answer = Ok(Progress::More);
    let (mut fed, mut certain) = (0, 0);
    for piece in pieces {
        let before = answer;
        answer = reader.feed(piece);
        fed += piece.len();
        if before == Ok(Progress::More) {
            certain = fed;
        } else {
            assert_eq!(answer, before, "an answer is the last one");
        }
    }
    (answer, certain, reader)
}

#[test]
fn a_hello_of_rustls_gives_its_name_and_protocols() {
    for versions in [&[&TLS12][..], &[&TLS13], &[&TLS12, &TLS13]] {
        let wire = of_rustls("Director.Example.net", &["h2", "causeway/1"], versions);
        assert_eq!(
            hello(&wire),
            Hello {
                name: Some("director.example.net".to_owned()),
                protocols: vec![b"h2".to_vec(), b"causeway/1".to_vec()],
                bytes: wire.len(),
            }
        );
        let wire = of_rustls("a.example", &[], versions);
        assert!(hello(&wire).protocols.is_empty());
        // No name is sent for an address.
        assert_eq!(hello(&of_rustls("192.0.2.1", &["h2"], versions)).name, None);
    }
}

#[test]
fn a_hello_in_many_records_is_the_same_hello() {
    let message = message(&body(Some(&[alpn(&[b"h2"]), sni(b"a.example")].concat())));
    for fragment in 1..=message.len() {
        let mut wire = records(&message, fragment);
        let bytes = wire.len();
        wire.extend(b"early data");
        let mut reader = Reader::new();
        let Ok(Progress::Hello(hello)) = reader.feed(&wire) else {
            panic!("records of {fragment}");
        };
        assert_eq!(hello.name.as_deref(), Some("a.example"));
        assert_eq!(hello.bytes, bytes);
        assert_eq!(reader.into_bytes(), wire, "kept for the backend");
    }
}

#[test]
fn a_hello_without_extensions_has_no_name() {
    let wire = records(&message(&body(None)), MAX_FRAGMENT);
    assert_eq!(hello(&wire).name, None);
    assert_eq!(hello(&with(&[])).name, None);
}

#[test]
fn other_protocols_are_refused_at_the_first_wrong_byte() {
    for (wire, bytes, refusal) in [
        (
            &b"GET / HTTP/1.1\r\n"[..],
            1,
            HelloRefusal::NotTls { found: b'G' },
        ),
        (b"SSH-2.0-x\r\n", 1, HelloRefusal::NotTls { found: b'S' }),
        (
            b"\x80\x2e\x01\x00\x02",
            1,
            HelloRefusal::NotTls { found: 0x80 },
        ),
        (
            b"\x15\x03\x03\x00\x02\x02\x28",
            1,
            HelloRefusal::NotTls { found: 21 },
        ),
        (
            b"\x16\x02\x00\x00\x10",
            2,
            HelloRefusal::Version { found: 2 },
        ),
        (
            b"\x16\x03\x01\x00\x00",
            5,
            HelloRefusal::RecordLength { length: 0 },
        ),
        (
            b"\x16\x03\x01\x40\x01",
            5,
            HelloRefusal::RecordLength { length: 16385 },
        ),
        (
            b"\x16\x03\x03\x00\x04\x02\x00",
            6,
            HelloRefusal::NotHello { found: 2 },
        ),
        // A hello of 16 MiB in a small record, and a record that is too long by itself.
        (
            b"\x16\x03\x01\x00\x10\x01\xff\xff\xff",
            9,
            HelloRefusal::TooLong,
        ),
        (b"\x16\x03\x01\x3f\xfc\x01", 6, HelloRefusal::TooLong),
        // The second record is not of the handshake.
        (
            b"\x16\x03\x01\x00\x01\x01\x17",
            7,
            HelloRefusal::NotTls { found: 23 },
        ),
    ] {
        let (answer, certain, _) = in_pieces(wire.chunks(1));
        assert_eq!((answer, certain), (Err(refusal), bytes), "{wire:x?}");
    }
}

#[test]
fn a_hello_has_at_most_16_kib() {
    let of = |padding: usize| with(&[sni(b"a.example"), extension(21, &vec![0; padding])]);
    let most = MAX_HELLO - of(0).len();
    assert_eq!(hello(&of(most)).bytes, MAX_HELLO);
    assert_eq!(read(&of(most + 1)), Err(HelloRefusal::TooLong));
    // Headers count: one byte a record is six on the wire.
    let long = message(&body(Some(&extension(21, &[0; 3000]))));
    assert_eq!(read(&records(&long, 1)), Err(HelloRefusal::TooLong));
    let mut reader = Reader::new();
    let endless = records(&long, 1);
    assert_eq!(reader.feed(&endless[..15_000]), Ok(Progress::More));
    assert_eq!(reader.room(), MAX_HELLO - 15_000);
}

#[test]
fn malformed_hellos_are_refused_with_their_field() {
    let malformed = |field| HelloRefusal::Malformed { field };
    let mut short_suites = body(Some(&[]));
    short_suites[67..69].copy_from_slice(&[0, 1]);
    let mut long_session = vec![3, 3];
    long_session.extend([7; 32]);
    long_session.extend(vector::<1>(&[9; 33]));
    let mut no_compression = body(None);
    no_compression.truncate(no_compression.len() - 2);
    no_compression.push(0);
    let mut behind = body(Some(&sni(b"a.example")));
    behind.push(0);
    for (body, refusal) in [
        (vec![3], malformed("the version")),
        (vec![3; 20], malformed("the random")),
        (long_session, malformed("the session id")),
        (short_suites, malformed("the cipher suites")),
        (no_compression, malformed("the compression methods")),
        (behind, malformed("the end of the hello")),
        (body(Some(&[0])), malformed("an extension's number")),
        (body(Some(&[0, 5, 0, 9, 1])), malformed("an extension")),
        (
            body(Some(&extension(SERVER_NAME, &[]))),
            malformed("the server name"),
        ),
        (
            body(Some(&extension(SERVER_NAME, &[0, 0]))),
            malformed("the server name"),
        ),
        (
            body(Some(&extension(ALPN, &[0, 0]))),
            malformed("the list of protocols"),
        ),
        (
            body(Some(&alpn(&[b""]))),
            malformed("the list of protocols"),
        ),
        (
            body(Some(&[sni(b"a.example"), sni(b"b.example")].concat())),
            HelloRefusal::Twice { extension: 0 },
        ),
        (
            body(Some(&[alpn(&[b"a"]), alpn(&[b"b"])].concat())),
            HelloRefusal::Twice { extension: 16 },
        ),
    ] {
        let wire = records(&message(&body), MAX_FRAGMENT);
        assert_eq!(read(&wire), Err(refusal));
    }
    let two = [
        &[HOST_NAME][..],
        &vector::<2>(b"a.example"),
        &[HOST_NAME],
        &vector::<2>(b"b.example"),
    ]
    .concat();
    assert_eq!(
        read(&with(&[extension(SERVER_NAME, &vector::<2>(&two))])),
        Err(HelloRefusal::Twice { extension: 0 })
    );
    // A second message in the hello's record.
    let mut twice = message(&body(Some(&sni(b"a.example"))));
    twice.extend([20, 0, 0]);
    assert_eq!(
        read(&records(&twice, MAX_FRAGMENT)),
        Err(HelloRefusal::Trailing { extra: 3 })
    );
}

#[test]
fn server_names_are_dns_names() {
    let long = [&[b'a'; 63][..], &[b'b'; 63], &[b'c'; 63], &[b'd'; 61]].join(&b'.');
    let too_long = [&[b'a'; 63][..], &[b'b'; 63], &[b'c'; 63], &[b'd'; 62]].join(&b'.');
    for (name, good) in [
        (&b"a"[..], true),
        (b"A.Example", true),
        (b"_x.a-b.example", true),
        (b"xn--bcher-kva.example", true),
        (b"1.2.3.4.example", true),
        (&long, true),
        (&too_long, false),
        (&[b'a'; 64], false),
        (b"", false),
        (b"a.example.", false),
        (b".example", false),
        (b"a..example", false),
        (b"192.0.2.1", false),
        (b"2001:db8::1", false),
        (b"a.example\0.evil.example", false),
        (b"a b", false),
        (b"*.example", false),
        ("b\u{fc}cher.example".as_bytes(), false),
    ] {
        let answer = read(&with(&[sni(name)]));
        if good {
            let lower = String::from_utf8(name.to_ascii_lowercase()).expect("ASCII");
            assert_eq!(hello(&with(&[sni(name)])).name, Some(lower));
        } else {
            assert_eq!(answer, Err(HelloRefusal::Name), "{name:x?}");
        }
    }
}

#[test]
fn other_types_of_names_are_ignored() {
    let list = [
        &[5][..],
        &vector::<2>(b"\xff\xff"),
        &[HOST_NAME],
        &vector::<2>(b"a.example"),
    ]
    .concat();
    let wire = with(&[extension(SERVER_NAME, &vector::<2>(&list))]);
    assert_eq!(hello(&wire).name.as_deref(), Some("a.example"));
}

/// Bytes that get somewhere: hellos, whole or not, with some bytes of them changed.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let name = "[a-z]{1,9}(\\.[a-z]{1,9}){0,3}";
    let extensions = vec(
        prop_oneof![
            4 => name.prop_map(|name| sni(name.as_bytes())),
            2 => vec(vec(any::<u8>(), 1..9), 1..4)
                .prop_map(|p| alpn(&p.iter().map(Vec::as_slice).collect::<Vec<_>>())),
            2 => (any::<u16>(), vec(any::<u8>(), 0..40)).prop_map(|(k, c)| extension(k, &c)),
            1 => (0usize..17_000).prop_map(|padding| extension(21, &vec![0; padding])),
        ],
        0..4,
    );
    (
        extensions,
        prop_oneof![1usize..20, 20usize..2000, Just(MAX_FRAGMENT)],
        vec((any::<Index>(), any::<u8>()), 0..3),
        vec(any::<u8>(), 0..20),
        any::<Index>(),
        any::<bool>(),
    )
        .prop_map(|(extensions, fragment, changes, behind, cut, whole)| {
            let content = extensions.concat();
            let content = &content[..content.len().min(60_000)];
            let mut wire = records(&message(&body(Some(content))), fragment);
            wire.extend(behind);
            for (at, value) in changes {
                let at = at.index(wire.len().min(300));
                wire[at] = value;
            }
            if !whole {
                wire.truncate(cut.index(wire.len()));
            }
            wire
        })
}

proptest! {
    #[test]
    fn any_pieces_give_the_same_answer(
        wire in prop_oneof![nearly(), vec(any::<u8>(), 0..200)],
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let whole = read(&wire);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
        at.extend([0, wire.len()]);
        at.sort_unstable();
        let pieces = at.windows(2).map(|pair| &wire[pair[0]..pair[1]]);
        let (answer, _, reader) = in_pieces(pieces);
        prop_assert_eq!(&answer, &whole);
        prop_assert_eq!(&reader.into_bytes(), &wire);
        let (answer, certain, _) = in_pieces(wire.chunks(1));
        prop_assert_eq!(&answer, &whole);
        prop_assert!(certain <= MAX_HELLO);
        if let Ok(Progress::Hello(hello)) = &whole {
            prop_assert_eq!(hello.bytes, certain, "no byte behind the hello is needed");
        }
        if wire.len() >= MAX_HELLO {
            prop_assert_ne!(&whole, &Ok(Progress::More));
        }
    }

    #[test]
    fn what_is_written_is_read(
        name in proptest::option::of("[a-z]{1,9}(\\.[a-z]{1,9}){0,3}"),
        protocols in vec(vec(any::<u8>(), 1..20), 0..5),
        fragment in 1usize..600,
    ) {
        let mut extensions = vec![extension(43, &[2, 3, 4])];
        if !protocols.is_empty() {
            extensions.push(alpn(&protocols.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        }
        extensions.extend(name.as_ref().map(|name| sni(name.as_bytes())));
        let wire = records(&message(&body(Some(&extensions.concat()))), fragment);
        let bytes = wire.len();
        prop_assert_eq!(hello(&wire), Hello { name, protocols, bytes });
    }
}
