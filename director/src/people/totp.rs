//! One-time codes of authenticators (TOTP, RFC 6238) and recovery codes.

use aws_lc_rs::hmac;
use control::audit::hex;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Environment;

/// Length of a step, seconds (RFC 6238 section 4.1).
const STEP_SECONDS: i64 = 30;
/// Steps before and after the present one whose codes are accepted, for clocks that differ
/// (RFC 6238 section 5.2 recommends one).
const MAX_DRIFT_STEPS: i64 = 1;
/// Codes are less than this: six digits.
const CODES: u32 = 1_000_000;
/// Bytes of a secret, as long as the hash (RFC 4226 section 4).
const SECRET: usize = 20;
/// Recovery codes of a user.
const RECOVERY: usize = 10;

/// The authenticator of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authenticator {
    /// The secret that director and authenticator share, hexadecimal.
    secret: String,
    /// Whether a code was seen, so that log-ins need one.
    pub is_confirmed: bool,
    /// The last step whose code was accepted; its code and earlier ones are not accepted again.
    #[serde(default)]
    last: i64,
    /// SHA-256 of the recovery codes that are left. They are random, so that a fast hash suffices.
    #[serde(default)]
    recovery: Vec<String>,
}

/// A new authenticator: its secret in base32, for people and programs, and the recovery codes.
#[derive(Debug)]
pub struct New {
    pub authenticator: Authenticator,
    pub secret: String,
    pub recovery: Vec<String>,
}

impl Authenticator {
    /// A new one, to be confirmed by a code.
    ///
    /// # Errors
    /// When the kernel has no random bytes.
    pub fn generate(environment: &dyn Environment) -> std::io::Result<New> {
        let mut secret = [0; SECRET];
        environment.fill(&mut secret)?;
        let mut recovery = Vec::new();
        for _ in 0..RECOVERY {
            let mut code = [0; 10];
            environment.fill(&mut code)?;
            recovery.push(base32(&code).to_lowercase());
        }
        let authenticator = Self {
            secret: hex(&secret),
            is_confirmed: false,
            last: 0,
            recovery: recovery.iter().map(|code| hashed(code)).collect(),
        };
        Ok(New {
            authenticator,
            secret: base32(&secret),
            recovery,
        })
    }

    /// The authenticator after it accepts a code; `None` if the code is wrong, or was used.
    #[must_use]
    pub fn accept(&self, code: &str, now: Timestamp) -> Option<Self> {
        let code: String = code.chars().filter(|c| !c.is_whitespace()).collect();
        let mut after = self.clone();
        if code.len() != 6 {
            let hash = hashed(&code.to_lowercase());
            let before = after.recovery.len();
            after.recovery.retain(|left| *left != hash);
            return (self.is_confirmed && after.recovery.len() < before).then_some(after);
        }
        let secret = control::audit::unhex(&self.secret)?;
        let present = now.as_second().div_euclid(STEP_SECONDS);
        for step in present - MAX_DRIFT_STEPS..=present + MAX_DRIFT_STEPS {
            if step > self.last && is_equal(&code_of(&secret, step), &code) {
                after.last = step;
                after.is_confirmed = true;
                return Some(after);
            }
        }
        None
    }

    /// Recovery codes that are left.
    #[must_use]
    pub fn recovery_left(&self) -> usize {
        self.recovery.len()
    }
}

fn hashed(code: &str) -> String {
    hex(&Sha256::digest(code.as_bytes()))
}

/// In a time that does not depend on the place of the first difference.
fn is_equal(a: &str, b: &str) -> bool {
    let differences = a.bytes().zip(b.bytes()).map(|(a, b)| a ^ b);
    a.len() == b.len() && differences.fold(0, |all, one| all | one) == 0
}

/// The code of a step (RFC 4226 section 5.3, with SHA-1 as authenticators have it).
fn code_of(secret: &[u8], step: i64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let bytes = tag.as_ref();
    let at = usize::from(bytes[bytes.len() - 1] & 0xf);
    let four = [
        bytes[at] & 0x7f,
        bytes[at + 1],
        bytes[at + 2],
        bytes[at + 3],
    ];
    format!("{:06}", u32::from_be_bytes(four) % CODES)
}

/// Base32 without padding (RFC 4648 section 6).
fn base32(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let (mut text, mut bits, mut count) = (String::new(), 0_u32, 0);
    for byte in bytes {
        bits = (bits << 8) | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(LETTERS[(bits >> count & 31) as usize].into());
        }
    }
    if count > 0 {
        text.push(LETTERS[(bits << (5 - count) & 31) as usize].into());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernel;

    #[test]
    fn codes_are_those_of_the_rfc() {
        // RFC 6238 appendix B, the last six of eight digits.
        for (seconds, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(
                code_of(b"12345678901234567890", seconds / STEP_SECONDS),
                code,
                "{seconds}"
            );
        }
        // RFC 4648 section 10.
        for (text, expected) in [
            ("", ""),
            ("f", "MY"),
            ("foob", "MZXW6YQ"),
            ("fooba", "MZXW6YTB"),
        ] {
            assert_eq!(base32(text.as_bytes()), expected);
        }
    }

    #[test]
    fn a_code_is_accepted_once_and_near_its_time_only() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let new = Authenticator::generate(&Kernel).unwrap().authenticator;
        let secret = control::audit::unhex(&new.secret).unwrap();
        let code = code_of(&secret, 1000);
        for (seconds, is_good) in [
            (29_969, false),
            (29_970, true),
            (30_000, true),
            (30_059, true),
            (30_060, false),
        ] {
            assert_eq!(
                new.accept(&code, at(seconds)).is_some(),
                is_good,
                "{seconds}"
            );
        }
        let used = new.accept(&code, at(30_000)).unwrap();
        assert!(used.is_confirmed);
        assert_eq!(used.accept(&code, at(30_001)), None, "a replay");
        let before = code_of(&secret, 999);
        assert_eq!(used.accept(&before, at(30_001)), None, "an earlier code");
        assert!(used.accept(&code_of(&secret, 1001), at(30_001)).is_some());
    }

    #[test]
    fn a_recovery_code_is_accepted_once() {
        let now = Timestamp::from_second(30_000).unwrap();
        let new = Authenticator::generate(&Kernel).unwrap();
        let code = &new.recovery[3];
        assert_eq!(
            new.authenticator.accept(code, now),
            None,
            "not before it is confirmed"
        );
        let confirmed = Authenticator {
            is_confirmed: true,
            ..new.authenticator
        };
        let used = confirmed.accept(&code.to_uppercase(), now).unwrap();
        assert_eq!(used.recovery_left(), RECOVERY - 1);
        assert_eq!(used.accept(code, now), None);
        assert_eq!(used.accept("", now), None);
    }
}
