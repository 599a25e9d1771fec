//! A client's hello, against its layout written down a second time, in any pieces.

use gateway_core::hello::{Hello, HelloRefusal, MAX_HELLO, Progress, Reader};

use fuzzing::Input;

/// Pieces of the input's own sizes, before they are repeated.
const SIZES: usize = 4;
/// Up to so many bytes, each is fed by itself; where there are more, pieces are larger.
const MAX_BYTEWISE: usize = 1024;
/// Extensions that an input may write.
const EXTENSIONS: usize = 8;

/// Reads the input as bytes of a connection, or as what a hello is to be written of: the longest
/// hello is longer than a fuzzer's inputs.
pub fn hello(data: &[u8]) {
    let mut input = Input::new(data);
    let sizes = input.array::<SIZES>().map(|size| usize::from(size) + 1);
    let wire = if input.flag() {
        written(&mut input)
    } else {
        input.rest().to_vec()
    };
    check(&wire, sizes);
}

/// `content` with its length before it, in `BYTES` bytes, modulo their range.
pub(crate) fn vector<const BYTES: usize>(content: &[u8]) -> Vec<u8> {
    let mut out = (content.len() as u64).to_be_bytes()[8 - BYTES..].to_vec();
    out.extend_from_slice(content);
    out
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), vector::<2>(content)].concat()
}

/// A hello that the input describes, valid or not, in records of one size.
fn written(input: &mut Input<'_>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    let session = input.below(40);
    body.extend(vector::<1>(&vec![9; session]));
    let suites = input.below(64);
    body.extend(vector::<2>(&vec![0x13; suites]));
    let compressions = input.below(4);
    body.extend(vector::<1>(&vec![0; compressions]));
    let mut extensions = Vec::new();
    for _ in 0..input.below(EXTENSIONS + 1) {
        let one = match input.below(6) {
            0 => {
                let length = input.below(256);
                let name = [&[0][..], &vector::<2>(input.bytes(length))].concat();
                extension(0, &vector::<2>(&name))
            }
            1 => {
                let mut list = Vec::new();
                for _ in 0..input.below(4) {
                    list.push(input.u8() % 3);
                    let length = input.below(40);
                    list.extend(vector::<2>(input.bytes(length)));
                }
                extension(0, &vector::<2>(&list))
            }
            2 => {
                let mut list = Vec::new();
                for _ in 0..input.below(5) {
                    let length = input.below(20);
                    list.extend(vector::<1>(input.bytes(length)));
                }
                extension(16, &vector::<2>(&list))
            }
            3 => extension(21, &vec![0; input.u16().into()]),
            4 => {
                let (kind, length) = (input.u16() % 60, input.below(40));
                extension(kind, input.bytes(length))
            }
            _ => {
                let length = input.below(12);
                input.bytes(length).to_vec()
            }
        };
        extensions.extend(one);
    }
    if !extensions.is_empty() || input.flag() {
        body.extend(vector::<2>(&extensions));
    }
    let message = [&[1][..], &vector::<3>(&body)].concat();
    let fragment = usize::from(input.u16()).max(1);
    let mut wire = Vec::new();
    for part in message.chunks(fragment) {
        wire.extend([22, 3, 1]);
        wire.extend((part.len() as u16).to_be_bytes());
        wire.extend(part);
        if wire.len() > MAX_HELLO + MAX_BYTEWISE {
            break;
        }
    }
    for _ in 0..input.below(4) {
        let at = usize::from(input.u16()) % wire.len();
        wire[at] = input.u8();
    }
    if input.flag() {
        wire.truncate(usize::from(input.u16()) % (wire.len() + 1));
    }
    wire.extend(input.rest());
    wire.truncate(MAX_HELLO + MAX_BYTEWISE);
    wire
}

fn check(wire: &[u8], sizes: [usize; SIZES]) {
    let whole = Reader::new().feed(wire);
    let certain = if wire.len() <= MAX_BYTEWISE {
        byte_by_byte(wire)
    } else {
        // Once there is an answer, there is one with more bytes, too.
        let (mut open, mut closed) = (0, wire.len() + 1);
        while closed - open > 1 {
            let middle = open.midpoint(closed);
            match Reader::new().feed(&wire[..middle]) {
                Ok(Progress::More) => open = middle,
                _ => closed = middle,
            }
        }
        (closed <= wire.len()).then_some(closed)
    };
    if let Some(bytes) = certain {
        assert_eq!(
            Reader::new().feed(&wire[..bytes]),
            whole,
            "at its last byte"
        );
    }
    assert_eq!(certain.is_none(), whole == Ok(Progress::More));
    assert!(certain.is_some() || wire.len() < MAX_HELLO);
    assert!(certain.is_none_or(|bytes| bytes <= MAX_HELLO));
    // In pieces.
    let mut reader = Reader::new();
    let (mut rest, mut answer) = (wire, Ok(Progress::More));
    for size in sizes.iter().cycle() {
        let size = size * (1 + wire.len() / MAX_BYTEWISE);
        let (piece, behind) = rest.split_at(size.min(rest.len()));
        let next = reader.feed(piece);
        assert!(
            answer == Ok(Progress::More) || answer == next,
            "an answer is the last one"
        );
        (rest, answer) = (behind, next);
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(answer, whole, "in pieces of {sizes:?}");
    assert_eq!(reader.into_bytes(), wire, "kept for the backend");

    match (&whole, read(wire)) {
        (Ok(Progress::Hello(hello)), Some(wanted)) => {
            assert_eq!(*hello, wanted);
            assert_eq!(certain, Some(hello.bytes), "nothing behind it is needed");
            let alone = Reader::new().feed(&wire[..hello.bytes]);
            assert_eq!(alone, whole);
        }
        (Ok(Progress::More) | Err(_), None) => {}
        (whole, wanted) => panic!("read {whole:?}, expected {wanted:?}"),
    }
    if let Err(refusal) = whole {
        assert!(!refusal.to_string().is_empty() && !refusal.reason().is_empty());
        if let HelloRefusal::Trailing { extra } = refusal {
            assert!(extra > 0);
        }
    }
}

/// With how many bytes the answer is certain, if it is.
fn byte_by_byte(wire: &[u8]) -> Option<usize> {
    let mut reader = Reader::new();
    for (at, byte) in wire.iter().enumerate() {
        assert_eq!(reader.room(), MAX_HELLO - at);
        assert_eq!(reader.is_empty(), at == 0);
        if reader.feed(&[*byte]) != Ok(Progress::More) {
            return Some(at + 1);
        }
    }
    None
}

/// A whole hello at the beginning of these bytes: RFC 8446, sections 4.1.2 and 5.1, and what
/// `docs/gateway.md` allows of it.
fn read(wire: &[u8]) -> Option<Hello> {
    let (mut message, mut rest) = (Vec::new(), wire);
    while message.len() < 4 || message.len() < 4 + number(&message[1..4]) {
        let &[kind, major, ..] = cut(&mut rest, 3)? else {
            return None;
        };
        let fragment = block(&mut rest, 2)?;
        if kind != 22 || major != 3 || !(1..=1 << 14).contains(&fragment.len()) {
            return None;
        }
        message.extend_from_slice(fragment);
    }
    let bytes = wire.len() - rest.len();
    if message[0] != 1 || message.len() != 4 + number(&message[1..4]) || bytes > MAX_HELLO {
        return None;
    }
    let mut body = &message[4..];
    cut(&mut body, 34)?;
    let session = block(&mut body, 1)?;
    let suites = block(&mut body, 2)?;
    let compressions = block(&mut body, 1)?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 == 1 || compressions.is_empty() {
        return None;
    }
    let (mut names, mut lists) = (Vec::new(), Vec::new());
    if !body.is_empty() {
        let mut extensions = block(&mut body, 2)?;
        if !body.is_empty() {
            return None;
        }
        while !extensions.is_empty() {
            let kind = number(cut(&mut extensions, 2)?);
            let content = block(&mut extensions, 2)?;
            match kind {
                0 => names.push(host(content)?),
                16 => lists.push(protocols(content)?),
                _ => {}
            }
        }
    }
    if names.len() > 1 || lists.len() > 1 {
        return None;
    }
    Some(Hello {
        name: names.pop(),
        protocols: lists.pop().unwrap_or_default(),
        bytes,
    })
}

fn host(mut content: &[u8]) -> Option<String> {
    let mut list = block(&mut content, 2)?;
    let mut hosts = Vec::new();
    while !list.is_empty() {
        let kind = cut(&mut list, 1)?;
        let value = block(&mut list, 2)?;
        if kind == [0] {
            hosts.push(std::str::from_utf8(value).ok()?.to_ascii_lowercase());
        }
    }
    let [name] = hosts.try_into().ok()?;
    let is_label = |label: &str| {
        let allowed = |c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_');
        (1..=63).contains(&label.len()) && label.chars().all(allowed)
    };
    let (_, top) = name.rsplit_once('.').unwrap_or(("", &name));
    let holds = content.is_empty()
        && name.len() <= 253
        && name.split('.').all(is_label)
        && top.chars().any(|c| !c.is_ascii_digit());
    holds.then_some(name)
}

fn protocols(mut content: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut list = block(&mut content, 2)?;
    let mut found = Vec::new();
    while !list.is_empty() {
        found.push(block(&mut list, 1)?.to_vec());
    }
    let holds =
        content.is_empty() && !found.is_empty() && found.iter().all(|name| !name.is_empty());
    holds.then_some(found)
}

/// The next `length` bytes.
fn cut<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// The content after a length field of `bytes` bytes.
fn block<'a>(from: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let length = number(cut(from, bytes)?);
    cut(from, length)
}

fn number(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}
