//! The time of encryption alone, on one core: the floor of any encrypted tunnel.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tunnel::{AeadKey, Cipher};

use crate::rig::extent::{Amount, Extent};

/// Time of one measurement.
const TIME: Amount<Duration> = Amount {
    full: Duration::from_millis(200),
    smoke: Duration::from_millis(2),
};
/// More bytes than a tag has.
const TAG_CAPACITY: usize = 64;

/// Nanoseconds to encrypt one packet of `bytes` with [`AeadKey`], as the tunnel does.
pub fn seal(cipher: Cipher, bytes: usize, extent: Extent) -> anyhow::Result<f64> {
    let key = AeadKey::new(cipher, &[0x5a; 32]);
    let packet = vec![0x5a_u8; bytes];
    let mut out = vec![0_u8; bytes + TAG_CAPACITY];
    let mut counter = 0_u64;
    let begun = Instant::now();
    loop {
        for _ in 0..1000 {
            key.seal_into(counter, &[black_box(&packet)], &mut out)
                .context("seal a packet")?;
            black_box(&mut out);
            counter += 1;
        }
        let took = begun.elapsed();
        if took >= TIME.of(extent) {
            return Ok(took.as_secs_f64() * 1e9 / counter as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ciphers_seal_both_sizes() {
        for cipher in Cipher::ALL {
            for bytes in [66, 1420] {
                assert!(seal(cipher, bytes, Extent::Smoke).unwrap() > 0.0);
            }
        }
    }
}
