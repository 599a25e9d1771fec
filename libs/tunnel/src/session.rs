//! Sessions: the sending and receiving halves that a handshake yields, handed over by value.
//!
//! A session has one or more *lanes*, each with keys, counters and a replay window of its own, so
//! that workers that send to one peer share nothing. Lane `n` has the index of the session plus
//! `n`.

use std::fmt;
use std::time::Duration;

use crate::cipher::{AeadKey, Cipher};
use crate::hash::derive;
use crate::keys::Secrets;
use crate::replay::ReplayWindow;
use crate::time::Instant;

/// Greatest number of lanes of a session. Indices are drawn in blocks of this size, at its
/// multiples.
pub const MAX_LANES: u32 = 64;

/// Label of derived data keys.
const LABEL: &[u8] = b"causeway tunnel v1 data key";

/// Parameters of a peer's sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionParams {
    /// Cipher for sending.
    pub(crate) cipher: Cipher,
    /// Lanes, 1 to [`MAX_LANES`].
    pub(crate) lanes: u32,
    /// Whether messages sealed with AES-256-GCM are opened too.
    pub(crate) accept_aes: bool,
    /// Messages after which a handshake starts, if fewer than the cipher's own limit.
    pub(crate) rekey_after_messages: Option<u64>,
    /// Messages after which nothing is sealed, if fewer than the cipher's own limit.
    pub(crate) reject_after_messages: Option<u64>,
    /// Age at which a session expires.
    pub(crate) reject_after: Duration,
}

/// Sending half of one lane. Its key is wiped when it is dropped.
pub struct TxSession {
    pub(crate) key: AeadKey,
    /// The peer's index of this lane, which goes on the wire.
    pub(crate) receiver: u32,
    /// Our index of the session's lane zero, which names the session.
    pub(crate) index: u32,
    /// Next counter to use.
    pub(crate) next: u64,
    pub(crate) rekey_after_messages: u64,
    pub(crate) reject_after_messages: u64,
    pub(crate) ends: Instant,
}

/// Receiving half of one lane. Its keys are wiped when it is dropped.
pub struct RxSession {
    pub(crate) chacha: AeadKey,
    pub(crate) aes: Option<AeadKey>,
    /// Our index of this lane, which the peer puts on the wire.
    pub(crate) wire_index: u32,
    /// Our index of the session's lane zero, which names the session.
    pub(crate) index: u32,
    pub(crate) window: ReplayWindow,
    pub(crate) ends: Instant,
    pub(crate) used: bool,
}

impl fmt::Debug for TxSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxSession")
            .field("index", &self.index)
            .field("receiver", &self.receiver)
            .field("cipher", &self.key.cipher())
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RxSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RxSession")
            .field("index", &self.index)
            .field("wire_index", &self.wire_index)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl TxSession {
    /// Name of the session: this end's index of lane zero.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// The cipher for sealing.
    #[must_use]
    pub const fn cipher(&self) -> Cipher {
        self.key.cipher()
    }
}

impl RxSession {
    /// Name of the session: this end's index of lane zero.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// The index in datagrams of this lane.
    #[must_use]
    pub const fn wire_index(&self) -> u32 {
        self.wire_index
    }
}

/// Derives the key of one cipher and lane from the handshake's key of the direction.
///
/// ChaCha20-Poly1305 on lane zero uses the handshake's key itself, as WireGuard does. Other keys
/// are `BLAKE2s-256(key = handshake key, LABEL ‖ 0x00 ‖ cipher name ‖ 0x00 ‖ lane)` with the lane
/// as one byte.
fn data_key(secret: &[u8; 32], cipher: Cipher, lane: u32) -> AeadKey {
    if cipher == Cipher::ChaCha20Poly1305 && lane == 0 {
        return AeadKey::new(cipher, secret);
    }
    let key = derive(
        secret,
        &[LABEL, &[0], cipher.name().as_bytes(), &[0, lane as u8]],
    );
    AeadKey::new(cipher, &key)
}

/// Makes both halves of every lane. `ours` and `theirs` are the two ends' indices of lane zero.
pub(crate) fn make(
    plan: &SessionParams,
    secrets: &Secrets,
    initiator: bool,
    ours: u32,
    theirs: u32,
    made: Instant,
) -> Vec<(TxSession, Box<RxSession>)> {
    let (send, receive) = if initiator {
        (&secrets.from_initiator, &secrets.from_responder)
    } else {
        (&secrets.from_responder, &secrets.from_initiator)
    };
    let ends = made + plan.reject_after;
    let rekey = plan.cipher.rekey_after_messages();
    let reject = plan.cipher.reject_after_messages();
    (0..plan.lanes)
        .map(|lane| {
            let tx = TxSession {
                key: data_key(send, plan.cipher, lane),
                receiver: theirs.wrapping_add(lane),
                index: ours,
                next: 0,
                rekey_after_messages: plan
                    .rekey_after_messages
                    .map_or(rekey, |own| own.min(rekey)),
                reject_after_messages: plan
                    .reject_after_messages
                    .map_or(reject, |own| own.min(reject)),
                ends,
            };
            let rx = RxSession {
                chacha: data_key(receive, Cipher::ChaCha20Poly1305, lane),
                aes: plan
                    .accept_aes
                    .then(|| data_key(receive, Cipher::Aes256Gcm, lane)),
                wire_index: ours.wrapping_add(lane),
                index: ours,
                window: ReplayWindow::new(),
                ends,
                used: false,
            };
            (tx, Box::new(rx))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cipher_lane_and_direction_has_its_own_key() {
        let secrets = Secrets {
            from_initiator: [1; 32],
            from_responder: [2; 32],
        };
        let mut seen = Vec::new();
        for secret in [&secrets.from_initiator, &secrets.from_responder] {
            for cipher in Cipher::ALL {
                for lane in 0..4 {
                    let mut out = [0; 48];
                    let key = data_key(secret, cipher, lane);
                    key.seal_into(0, &[&[0; 32]], &mut out).unwrap();
                    assert!(!seen.contains(&out), "{cipher} lane {lane}");
                    seen.push(out);
                }
            }
        }
    }

    /// The derivation must not change: both ends of a pair must agree on it.
    #[test]
    fn the_derivation_is_pinned() {
        let key = derive(
            &[1; 32],
            &[b"causeway tunnel v1 data key\0aes-256-gcm\0\x03"],
        );
        let oracle = AeadKey::portable(Cipher::Aes256Gcm, &key);
        let (mut a, mut b) = ([0; 21], [0; 21]);
        oracle.seal_into(7, &[b"hello"], &mut a).unwrap();
        data_key(&[1; 32], Cipher::Aes256Gcm, 3)
            .seal_into(7, &[b"hello"], &mut b)
            .unwrap();
        assert_eq!(a, b);
    }

    #[test]
    fn sessions_do_not_show_their_keys() {
        let secrets = Secrets {
            from_initiator: [0xab; 32],
            from_responder: [0xab; 32],
        };
        let plan = SessionParams {
            cipher: Cipher::Aes256Gcm,
            lanes: 1,
            accept_aes: true,
            rekey_after_messages: None,
            reject_after_messages: None,
            reject_after: Duration::from_secs(180),
        };
        let halves = make(&plan, &secrets, true, 64, 128, Instant::ORIGIN);
        let text = format!("{halves:?}");
        assert!(!text.contains("171") && !text.contains("ab, ab"), "{text}");
    }
}
