use proptest::{collection::vec, prelude::*};

use super::*;

fn circuit() -> CircuitId {
    CircuitId::new(0x3f9a_1c02_77d1_e05b).expect("an id")
}

fn key() -> Key {
    Key::new([7; 32])
}

const HERE: Tag = Tag([9; 16]);

/// Reads a stream in pieces of these lengths, in turn.
fn decode(stream: &[u8], pieces: &[usize]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut decoder = Decoder::new(u16::MAX);
    let mut frames = Vec::new();
    let mut pieces = pieces.iter().cycle();
    let mut rest = stream;
    loop {
        while let Some(frame) = decoder.next_frame()? {
            frames.push(match frame {
                Frame::Datagram(datagram) => datagram.to_vec(),
                Frame::Control(control) => vec![control as u8],
            });
        }
        if rest.is_empty() {
            return Ok(frames);
        }
        let space = decoder.space();
        let piece = rest
            .len()
            .min(space.len())
            .min(*pieces.next().expect("one"));
        space[..piece].copy_from_slice(&rest[..piece]);
        decoder.filled(piece);
        rest = &rest[piece..];
    }
}

#[test]
fn frames_are_as_specified() {
    let mut encoder = Encoder::new(100);
    assert!(encoder.push(b"abc"));
    assert!(encoder.push(b"de"));
    assert_eq!(encoder.bytes(), b"\x00\x03abc\x00\x02de");
    assert_eq!(LivenessFrame::Question.frame(), *b"\x00\x01\x01");
    assert_eq!(LivenessFrame::Answer.frame(), *b"\x00\x01\x02");
    encoder.clear();
    assert_eq!(encoder.bytes(), b"");
    let hello = hello(circuit(), &key(), 0x0102, HERE);
    assert_eq!(
        hello[..22],
        *b"\x00\x40\0\0\0\0\0\0\0\0\x01\x01\x00\x00\x3f\x9a\x1c\x02\x77\xd1\xe0\x5b"
    );
    assert_eq!(hello[22..30], [0, 0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(hello[30..46], HERE.0);
    assert_eq!(hello[46..50], [0; 4]);
    assert_eq!(hello[50..], key().tag(&[&hello[2..50]]).0);
}

#[test]
fn an_encoder_accepts_only_whole_datagrams_that_fit() {
    let mut encoder = Encoder::new(10);
    assert!(encoder.push(b"abcd"));
    assert!(encoder.fits(2) && !encoder.fits(3));
    assert!(!encoder.push(b"abc"));
    assert!(encoder.push(b"ab"));
    assert!(!encoder.push(b""));
    assert_eq!(encoder.bytes().len(), 10);
    let mut encoder = Encoder::new(10);
    assert!(!encoder.push(b"a"), "it would be a control frame");
    let mut encoder = Encoder::new(1 << 20);
    assert!(encoder.push(&[0; MAX_DATAGRAM]));
    assert!(!encoder.push(&[0; MAX_DATAGRAM + 1]));
    assert_eq!(encoder.bytes().len(), 2 + MAX_DATAGRAM);
}

#[test]
fn the_longest_frames_pass_in_any_pieces() {
    let mut encoder = Encoder::new(400_000);
    for byte in 1..=5 {
        assert!(encoder.push(&[byte; MAX_DATAGRAM]));
    }
    for piece in [63, 4095, 16_384, 65_537, usize::MAX] {
        let frames = decode(encoder.bytes(), &[piece]).expect("frames");
        assert_eq!(frames.len(), 5);
        for (frame, byte) in frames.iter().zip(1..) {
            assert!(*frame == [byte; MAX_DATAGRAM]);
        }
    }
}

#[test]
fn empty_and_too_long_frames_end_the_stream() {
    assert_eq!(decode(b"\x00\x02xy\x00\x00", &[1]), Err(Malformed::Empty));
    let mut decoder = Decoder::new(64);
    decoder.space()[..2].copy_from_slice(&[0, 65]);
    decoder.filled(2);
    let too_long = Err(Malformed::TooLong {
        length: 65,
        longest: 64,
    });
    assert_eq!(decoder.next_frame(), too_long);
    assert_eq!(decoder.next_frame(), too_long, "for ever");
    decoder.allow(65);
    assert_eq!(decoder.next_frame(), Ok(None), "not all of it is there");
}

#[test]
fn a_frame_of_one_byte_is_a_control_message_or_ends_the_stream() {
    let mut decoder = Decoder::new(u16::MAX);
    let stream = b"\x00\x01\x01\x00\x02\x01\x01\x00\x01\x02\x00\x01\x03\x00\x01\x01";
    decoder.space()[..stream.len()].copy_from_slice(stream);
    decoder.filled(stream.len());
    for expected in [
        Ok(Some(Frame::Control(LivenessFrame::Question))),
        Ok(Some(Frame::Datagram(&[1, 1]))),
        Ok(Some(Frame::Control(LivenessFrame::Answer))),
        Err(Malformed::UnknownControl(3)),
        Err(Malformed::UnknownControl(3)),
    ] {
        assert_eq!(decoder.next_frame(), expected);
    }
    assert_eq!(
        decode(b"\x00\x01\x00", &[1]),
        Err(Malformed::UnknownControl(0))
    );
    assert_eq!(
        decode(b"\x00\x01", &[1]),
        Ok(vec![]),
        "not all of it is there"
    );
}

#[test]
fn a_hello_is_valid_once_with_its_key_on_its_connection() {
    let hello = hello(circuit(), &key(), 10, HERE);
    let sealed = read_hello(&hello[2..]).expect("a hello");
    assert_eq!(sealed.circuit(), circuit());
    let message = open_hello(&sealed, &key(), HERE, Some(9)).expect("let in");
    assert_eq!(message.timestamp, 10);
    let other = Key::new([8; 32]);
    let forged = open_hello(&sealed, &other, HERE, None);
    assert_eq!(forged, Err(BadHello::Forged));
    assert_eq!(
        open_hello(&sealed, &key(), Tag([8; 16]), None),
        Err(BadHello::OtherConnection)
    );
    for newest in [10, 11, 9 + REORDER_WINDOW_NS] {
        assert_eq!(
            open_hello(&sealed, &key(), HERE, Some(newest)),
            Err(BadHello::Replayed)
        );
    }
    // The present connection is that of a clock in the year 2099.
    for newest in [10 + REORDER_WINDOW_NS, 4_070_908_800_000_000_000] {
        assert!(open_hello(&sealed, &key(), HERE, Some(newest)).is_ok());
    }

    let answer = answer(&message, &key());
    let is_answer = |key: &Key, at, tag| super::is_answer(&answer[2..], circuit(), key, at, tag);
    assert!(is_answer(&key(), 10, HERE));
    assert!(!is_answer(&key(), 11, HERE));
    assert!(!is_answer(&key(), 10, Tag::NONE));
    assert!(!is_answer(&other, 10, HERE));
    // Its own words are no answer to it.
    assert!(!super::is_answer(&hello[2..], circuit(), &key(), 10, HERE));
}

#[test]
fn messages_of_udp_circuits_are_no_hellos() {
    let mut end = crate::end::End::new(circuit(), Side::A, key());
    let bind = end.bind(10);
    let sealed = read_hello(&bind).expect("the same form");
    assert_eq!(
        open_hello(&sealed, &key(), HERE, None),
        Err(BadHello::OtherConnection)
    );
    let unbind = end.unbind(11);
    assert!(matches!(read_hello(&unbind), Err(BadHello::NotAHello)));
    let mut provider = crate::end::End::new(circuit(), Side::B, key());
    let bind = provider.bind(10);
    assert!(matches!(read_hello(&bind), Err(BadHello::NotAHello)));
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_frames(
        lengths in vec((any::<u8>(), 2usize..3000), 0..60),
        pieces in vec(1usize..5000, 1..20),
    ) {
        let fill = |(byte, length): (u8, usize)| {
            (0..length).map(|n| byte.wrapping_add(n as u8)).collect()
        };
        let datagrams: Vec<Vec<u8>> = lengths.into_iter().map(fill).collect();
        let mut encoder = Encoder::new(200_000);
        for datagram in &datagrams {
            prop_assert!(encoder.push(datagram));
        }
        prop_assert_eq!(decode(encoder.bytes(), &pieces), Ok(datagrams));
    }

    #[test]
    fn any_bytes_are_frames_or_an_error(bytes in vec(any::<u8>(), 0..1000)) {
        fuzz(&bytes);
        let _ = decode(&bytes, &[7, 100]);
    }

    #[test]
    fn short_frames_and_garbage_behind_them(
        frames in vec(vec(1u8..=3, 1..70), 0..40),
        garbage in vec(any::<u8>(), 0..300),
        cut in any::<u8>(),
    ) {
        let framed = |frame: &Vec<u8>| [&[0, frame.len() as u8][..], frame].concat();
        let frames: Vec<u8> = frames.iter().flat_map(framed).collect();
        fuzz(&[&[cut, 0], &frames[..], &garbage].concat());
        fuzz(&[&[cut, 200], &frames[..], &garbage].concat());
    }

    #[test]
    fn a_changed_hello_opens_nothing(at in 0usize..64, bit in 0u8..8) {
        let mut hello = hello(circuit(), &key(), 10, HERE);
        hello[2 + at] ^= 1 << bit;
        if let Ok(sealed) = read_hello(&hello[2..]) {
            prop_assert_eq!(open_hello(&sealed, &key(), HERE, None), Err(BadHello::Forged));
        }
    }
}
