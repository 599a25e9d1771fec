//! The choice of the cipher for sending: the configured one, or the one that is faster on this CPU.

use tunnel::{Cipher, CipherChoice, CipherTimings, bench_cipher};

use crate::clock;

/// Packets sealed in one round with each cipher: below a millisecond.
const PACKETS: u32 = 500;
/// Rounds, of which the fastest counts.
const ROUNDS: usize = 8;

/// The cipher for sending.
pub(super) fn choose(choice: CipherChoice) -> Cipher {
    let measured = measure();
    let cipher = choice.resolve(measured);
    tracing::info!(
        cipher = cipher.name(),
        chosen = if choice == CipherChoice::Auto {
            "measured"
        } else {
            "configured"
        },
        chacha20_poly1305_ns = measured.chacha20_poly1305 / u64::from(PACKETS),
        aes_256_gcm_ns = measured.aes_256_gcm / u64::from(PACKETS),
        "cipher for sending, time for 1420 bytes"
    );
    cipher
}

/// Seals with both ciphers. Measures CPU time, and takes the best of several rounds, so that a busy
/// machine chooses as an idle one does.
fn measure() -> CipherTimings {
    let time = |cipher| {
        (0..ROUNDS)
            .map(|_| {
                let begun = clock::thread_nanos();
                std::hint::black_box(bench_cipher(cipher, PACKETS));
                clock::thread_nanos() - begun
            })
            .min()
            .unwrap_or_default()
    };
    CipherTimings {
        chacha20_poly1305: time(Cipher::ChaCha20Poly1305),
        aes_256_gcm: time(Cipher::Aes256Gcm),
    }
}
