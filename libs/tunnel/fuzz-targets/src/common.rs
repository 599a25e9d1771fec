//! Helpers of the targets: randomness, two ends and the path between them.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
pub(crate) use tunnel::testing::Seeded;
use tunnel::{Instant, Now, Output, PeerPath, PublicKey, SecretKey, TunnelControl};

/// Secret keys of the two ends.
pub(crate) fn secrets() -> [SecretKey; 2] {
    [
        SecretKey::from_bytes(&[0x11; 32]),
        SecretKey::from_bytes(&[0x22; 32]),
    ]
}

/// Public keys of the two ends. Computed once, because that is curve arithmetic.
pub(crate) fn publics() -> [PublicKey; 2] {
    static PUBLICS: LazyLock<[PublicKey; 2]> =
        LazyLock::new(|| secrets().map(|secret| secret.public()));
    *PUBLICS
}

/// The addresses of the two ends, and two other addresses with the same ports.
pub(crate) fn addresses() -> [PeerPath; 4] {
    [
        PeerPath::from(SocketAddr::from(([198, 51, 100, 2], 40_000))),
        PeerPath::from(SocketAddr::from(([203, 0, 113, 5], 6180))),
        PeerPath::from(SocketAddr::from(([192, 0, 2, 9], 40_000))),
        PeerPath::from(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9], 6180))),
    ]
}

/// Both clocks. The monotonic one never reaches [`Instant::NEVER`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) mono: u64,
    pub(crate) unix: u64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            mono: 1_000_000_000,
            unix: 1_700_000_000_000_000_000,
        }
    }

    pub(crate) fn set(&mut self, mono: u64) {
        self.mono = mono.min(u64::MAX - 1);
    }

    /// Moves both clocks forward.
    pub(crate) fn advance(&mut self, nanos: u64) {
        self.set(self.mono.saturating_add(nanos));
        self.unix = self.unix.saturating_add(nanos);
    }

    pub(crate) fn instant(self) -> Instant {
        Instant::from_nanos(self.mono)
    }

    pub(crate) fn now(self) -> Now {
        Now {
            mono: self.instant(),
            unix: Duration::from_nanos(self.unix),
        }
    }
}

/// Writes mac1 into a handshake message (white paper, section 5.4.4).
pub(crate) fn stamp(receiver: &PublicKey, message: &mut [u8]) {
    let Some(at) = message.len().checked_sub(32) else {
        return;
    };
    let mut key = Blake2s256::new();
    Digest::update(&mut key, b"mac1----");
    Digest::update(&mut key, receiver.as_bytes());
    let key = key.finalize();
    let mut mac = <Blake2sMac<blake2::digest::consts::U16> as KeyInit>::new_from_slice(&key)
        .expect("BLAKE2s takes 32 bytes of key");
    Update::update(&mut mac, &message[..at]);
    message[at..at + 16].copy_from_slice(&mac.finalize_fixed());
}

/// All outputs of an end. Panics if there are more than `most`.
pub(crate) fn outputs(control: &mut TunnelControl, most: usize) -> Vec<Output> {
    let mut all = Vec::new();
    while let Some(output) = control.poll_output() {
        all.push(output);
        assert!(all.len() <= most, "too many outputs: {all:?}");
    }
    all
}

/// Little-endian number at `at` of a datagram.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}
