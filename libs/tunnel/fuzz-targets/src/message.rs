//! The four messages, against their layout written a second time.

use tunnel::wire::{Data, Message};

use super::common::le32;

/// Parses the input as a datagram; then again, cut or padded with zeros to the length in its last
/// two bytes, because the longest datagrams are longer than a fuzzer's inputs.
pub fn message(data: &[u8]) {
    check(data);
    if let Some(&[high, low]) = data.last_chunk::<2>() {
        let mut long = data.to_vec();
        long.resize(usize::from(u16::from_be_bytes([high, low])), 0);
        check(&long);
    }
}

/// The type, if these bytes are a message (white paper, section 5.4, and one bit for the cipher).
fn kind(bytes: &[u8]) -> Option<u8> {
    match (*bytes.first_chunk::<4>()?, bytes.len()) {
        ([1, 0, 0, 0], 148) => Some(1),
        ([2, 0, 0, 0], 92) => Some(2),
        ([3, 0, 0, 0], 64) => Some(3),
        ([4, 0 | 1, 0, 0], 32..=65_507) => Some(4),
        _ => None,
    }
}

fn check(bytes: &[u8]) {
    let parsed = Message::parse(bytes);
    let found = match &parsed {
        Ok(Message::Initiation(initiation)) => {
            assert_eq!(initiation.as_bytes(), bytes);
            assert_eq!(initiation.sender(), le32(bytes, 4));
            Some(1)
        }
        Ok(Message::Response(response)) => {
            assert_eq!(response.as_bytes(), bytes);
            assert_eq!(response.sender(), le32(bytes, 4));
            assert_eq!(response.receiver(), le32(bytes, 8));
            Some(2)
        }
        Ok(Message::CookieReply(reply)) => {
            assert_eq!(reply.receiver(), le32(bytes, 4));
            Some(3)
        }
        Ok(Message::Data(data)) => {
            assert_eq!(data.cipher, bytes[1]);
            assert_eq!(data.receiver, le32(bytes, 4));
            let counter = u64::from(le32(bytes, 8)) | u64::from(le32(bytes, 12)) << 32;
            assert_eq!(data.counter, counter);
            assert_eq!(data.sealed, &bytes[16..]);
            Some(4)
        }
        Err(malformed) => {
            assert!(!malformed.to_string().is_empty());
            None
        }
    };
    assert_eq!(found, kind(bytes), "{parsed:?}");
    match (Data::parse(bytes), parsed) {
        (Ok(data), Ok(message)) => assert_eq!(Message::Data(data), message),
        (Err(_), Ok(Message::Data(_))) | (Ok(_), Err(_)) => {
            panic!("the two parsers of data messages differ")
        }
        (Err(_), _) => {}
    }
}
