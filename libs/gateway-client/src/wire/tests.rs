use proptest::{array::uniform16, array::uniform32, collection::vec, prelude::*};

use super::*;

fn message() -> impl Strategy<Value = Message> {
    let kinds = prop::sample::select(vec![
        Kind::Bind,
        Kind::Challenge,
        Kind::Bound,
        Kind::Move,
        Kind::Unbind,
    ]);
    let fields = (
        1u64 << 32..,
        any::<u64>(),
        any::<u32>(),
        uniform16(any::<u8>()),
        any::<bool>(),
        any::<u16>(),
    );
    (kinds, fields).prop_map(
        |(kind, (id, timestamp, lifetime, cookie, b, load))| Message {
            kind,
            side: if b { Side::B } else { Side::A },
            circuit: CircuitId::new(id).expect("an id"),
            timestamp,
            cookie: Tag(cookie),
            lifetime: if kind == Kind::Bound { lifetime } else { 0 },
            load: match kind {
                Kind::Bound | Kind::Move => Load::from_thousandths(load),
                _ => Load::UNKNOWN,
            },
        },
    )
}

fn open(bytes: &[u8], key: &Key) -> Option<Message> {
    match parse(bytes) {
        Ok(Datagram::Message(sealed)) => sealed.open(key),
        Ok(Datagram::Tunnel(_)) | Err(Malformed) => None,
    }
}

#[test]
fn a_load_keeps_its_step() {
    assert_eq!(Load::UNKNOWN.thousandths(), None);
    for (told, kept) in [
        (0, 0),
        (3, 0),
        (4, 4),
        (999, 996),
        (1000, 1000),
        (9000, 1000),
    ] {
        assert_eq!(Load::from_thousandths(told).thousandths(), Some(kept));
    }
    assert_eq!(Load::from_byte(255).thousandths(), Some(1000));
}

#[test]
fn only_answers_of_a_bound_end_carry_a_load() {
    let key = Key::new([7; 32]);
    let mut message = Message {
        kind: Kind::Bound,
        side: Side::A,
        circuit: CircuitId::new(1 << 32).expect("an id"),
        timestamp: 5,
        cookie: Tag::NONE,
        lifetime: 0,
        load: Load::from_thousandths(500),
    };
    for (kind, is_valid) in [
        (Kind::Bind, false),
        (Kind::Challenge, false),
        (Kind::Bound, true),
        (Kind::Move, true),
        (Kind::Unbind, false),
    ] {
        message.kind = kind;
        let bytes = message.seal(&key);
        assert_eq!(bytes[11], 126);
        assert_eq!(open(&bytes, &key), is_valid.then_some(message));
    }
}

#[test]
fn the_layout_is_as_documented() {
    let bind = Message {
        kind: Kind::Bind,
        side: Side::B,
        circuit: CircuitId::new(0x0102_0304_0506_0708).expect("an id"),
        timestamp: 0x1112_1314_1516_1718,
        cookie: Tag([0xcc; 16]),
        lifetime: 0,
        load: Load::UNKNOWN,
    };
    let key = Key::new([7; 32]);
    let bytes = bind.seal(&key);
    assert_eq!(bytes[..8], [0; 8]);
    assert_eq!(bytes[8..12], [1, 1, 1, 0]);
    assert_eq!(bytes[12..20], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(
        bytes[20..28],
        [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]
    );
    assert_eq!(bytes[28..44], [0xcc; 16]);
    assert_eq!(bytes[44..48], [0; 4]);
    // By Python's hashlib: blake2s(message[:48], digest_size=16, key=b"\7" * 32).
    let tag = [
        0x51, 0xb9, 0xa5, 0x9d, 0x91, 0x74, 0xad, 0xf6, 0x68, 0xa2, 0x0e, 0x82, 0x9e, 0xba, 0x9c,
        0x75,
    ];
    assert_eq!(bytes[48..], tag);
}

#[test]
fn a_key_is_44_characters_of_base64() {
    // printf '\0\1…\x1f' | base64
    let text = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let bytes: Vec<u8> = (0..32).collect();
    let key = Key::from_base64(text).expect("a key");
    assert_eq!(key, Key::new(bytes.try_into().expect("32")));
    assert_eq!(key.to_base64(), text);
    let other = text.replace('B', "/");
    assert_ne!(Key::from_base64(&other).expect("a key"), key);
    for bad in [
        "",
        "=",
        &text[..43],
        &text[1..],
        &text.replace('B', "-"),
        &text.replace('B', " "),
        // The last digit has two bits of no byte.
        &text.replace("8=", "9="),
        &format!("{text}\n"),
        "äAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    ] {
        assert_eq!(Key::from_base64(bad), None, "{bad:?}");
    }
    assert_eq!(format!("{key:?}"), "Key(..)");
}

#[test]
fn circuit_ids_have_nonzero_bytes() {
    assert_eq!(CircuitId::new(0), None);
    assert_eq!(CircuitId::new(u32::MAX.into()), None);
    assert_eq!(CircuitId::new(0x0400_0000_0102_0304), None);
    assert_eq!(CircuitId::new(1 << 32).map(CircuitId::get), Some(1 << 32));
}

proptest! {
    #[test]
    fn any_bytes_are_no_trouble(bytes in vec(any::<u8>(), 0..200), zeros in any::<bool>()) {
        let mut bytes = bytes;
        if zeros {
            let length = bytes.len().min(8);
            bytes[..length].fill(0);
        }
        match parse(&bytes) {
            Ok(Datagram::Tunnel(id)) => {
                prop_assert!(bytes.len() > 8 && bytes[..4] != [0; 4]);
                prop_assert_eq!(&bytes[..8], id.to_bytes());
            }
            Ok(Datagram::Message(sealed)) => {
                prop_assert_eq!(bytes.len(), MESSAGE_BYTES);
                prop_assert_eq!(sealed.open(&Key::new([1; 32])), None);
            }
            Err(Malformed) => {}
        }
    }

    /// Bytes that are more often nearly a message.
    #[test]
    fn what_looks_like_a_message_is_none_without_its_tag(
        mut bytes in vec(any::<u8>(), MESSAGE_BYTES),
        (kind, side) in (0u8..8, 0u8..3),
    ) {
        bytes[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, VERSION, kind, side, 0]);
        if kind != 3 {
            bytes[44..48].fill(0);
        }
        let id = CircuitId::new(number(&bytes[12..20]));
        let formed = (1..6).contains(&kind) && side < 2 && id.is_some();
        prop_assert_eq!(parse(&bytes).is_ok(), formed);
        prop_assert_eq!(open(&bytes, &Key::new([1; 32])), None);
    }

    #[test]
    fn what_is_sealed_is_opened_by_its_key_only(
        message in message(),
        key in uniform32(any::<u8>()),
        bit in 0usize..256,
    ) {
        let sealed = message.seal(&Key::new(key));
        prop_assert_eq!(open(&sealed, &Key::new(key)), Some(message));
        let mut other = key;
        other[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(open(&sealed, &Key::new(other)), None);
    }

    #[test]
    fn any_changed_bit_is_refused(message in message(), length in 0..MESSAGE_BYTES) {
        let key = Key::new([9; 32]);
        let sealed = message.seal(&key);
        for bit in 0..MESSAGE_BYTES * 8 {
            let mut changed = sealed;
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(open(&changed, &key), None, "bit {}", bit);
        }
        prop_assert_eq!(open(&sealed[..length], &key), None);
        let longer = [&sealed[..], &[0]].concat();
        prop_assert_eq!(open(&longer, &key), None);
    }
}

#[test]
fn each_gateway_has_a_key_of_its_own() {
    let key = Key::new([7; 32]);
    let keys = ["gw1", "gw2", "gw11", ""].map(|name| key.for_gateway(name));
    for (n, one) in keys.iter().enumerate() {
        assert_ne!(*one, key);
        assert!(keys[..n].iter().all(|other| other != one));
        assert_ne!(Key::new([8; 32]).for_gateway("gw1"), *one);
        assert_eq!(Key::from_base64(&one.to_base64()).as_ref(), Some(one));
    }
}
