//! mac1, mac2 and cookies (WireGuard white paper, sections 5.4.4 to 5.4.7).
//!
//! mac1 shows that a sender knows the responder's public key; it costs one hash to check. Under
//! load a responder also asks for mac2: proof that the sender receives at the address it claims,
//! given by a cookie sealed to that address. No state is kept for a sender that has not proven
//! this.

use std::time::Duration;

use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use zeroize::Zeroizing;

use crate::hash::{MAC_BYTES, Mac128, hash, mac};
use crate::keys::PublicKey;
use crate::path::PeerPath;
use crate::random::Random;
use crate::time::Instant;
use crate::wire::{COOKIE_REPLY_BYTES, CookieReply};

/// How long a cookie is valid, and how long the secret behind it is kept (white paper, section
/// 6.1).
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);

/// Compares in a time that does not depend on where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && std::hint::black_box(a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y))) == 0
}

/// Keys derived from a responder's public key.
#[derive(Clone)]
pub(crate) struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    pub(crate) fn new(public: &PublicKey) -> Self {
        Self {
            mac1: hash(&[b"mac1----", public.as_bytes()]),
            cookie: hash(&[b"cookie--", public.as_bytes()]),
        }
    }
}

/// The sender's side: adds mac1 and mac2 to messages to one peer, and keeps the peer's cookie.
pub(crate) struct MacStamper {
    keys: MacKeys,
    last_mac1: Option<Mac128>,
    cookie: Option<(Zeroizing<Mac128>, Instant)>,
}

impl MacStamper {
    pub(crate) fn new(peer: &PublicKey) -> Self {
        Self {
            keys: MacKeys::new(peer),
            last_mac1: None,
            cookie: None,
        }
    }

    /// Writes the last 32 bytes of a handshake message: mac1, and mac2 or zeros without a cookie.
    pub(crate) fn stamp(&mut self, now: Instant, message: &mut [u8]) {
        let (body, macs) = message.split_at_mut(message.len() - 2 * MAC_BYTES);
        let (mac1, mac2) = macs.split_at_mut(MAC_BYTES);
        let value = mac(&self.keys.mac1, &[body]);
        mac1.copy_from_slice(&value);
        self.last_mac1 = Some(value);
        match &self.cookie {
            Some((cookie, since)) if now.since(*since) < COOKIE_LIFETIME => {
                mac2.copy_from_slice(&mac(cookie.as_ref(), &[body, mac1]));
            }
            _ => mac2.fill(0),
        }
    }

    /// Takes the cookie from a reply to the last message. False if the reply is not authentic.
    pub(crate) fn take_cookie(&mut self, now: Instant, reply: &CookieReply<'_>) -> bool {
        let Some(mac1) = self.last_mac1 else {
            return false;
        };
        let mut cookie = Zeroizing::new([0; MAC_BYTES]);
        let (sealed, tag) = reply.cookie().split_at(MAC_BYTES);
        cookie.copy_from_slice(sealed);
        let cipher = XChaCha20Poly1305::new(&self.keys.cookie.into());
        let Ok(tag) = tag.try_into() else {
            return false;
        };
        let opened = cipher.decrypt_inout_detached(
            &(*reply.nonce()).into(),
            &mac1,
            cookie.as_mut_slice().into(),
            tag,
        );
        if opened.is_err() {
            return false;
        }
        // A message gets one reply: a second one would be a replay.
        self.last_mac1 = None;
        self.cookie = Some((cookie, now));
        true
    }
}

/// Facts about the sender that the MACs of a handshake message prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MacProof {
    /// Nothing: mac1 is wrong.
    None,
    /// The sender knows our public key.
    Mac1,
    /// The sender also receives at the path that it sends from.
    Mac1AndMac2,
}

/// The receiver's side: checks MACs and makes cookies.
pub(crate) struct MacVerifier {
    keys: MacKeys,
    secret: Zeroizing<[u8; 32]>,
    secret_drawn: Option<Instant>,
}

impl MacVerifier {
    pub(crate) fn new(own: &PublicKey) -> Self {
        Self {
            keys: MacKeys::new(own),
            secret: Zeroizing::new([0; 32]),
            secret_drawn: None,
        }
    }

    /// Checks mac1: one hash, and all that is computed for a sender without our public key.
    pub(crate) fn has_valid_mac1(&self, message: &[u8]) -> bool {
        let (body, macs) = message.split_at(message.len() - 2 * MAC_BYTES);
        same(&mac(&self.keys.mac1, &[body]), &macs[..MAC_BYTES])
    }

    /// Checks mac1 and mac2 of a handshake message from `source`.
    pub(crate) fn check(&self, now: Instant, source: PeerPath, message: &[u8]) -> MacProof {
        if !self.has_valid_mac1(message) {
            return MacProof::None;
        }
        let fresh = self
            .secret_drawn
            .is_some_and(|at| now.since(at) < COOKIE_LIFETIME);
        let (signed, mac2) = message.split_at(message.len() - MAC_BYTES);
        if fresh && same(&mac(self.cookie_for(source).as_ref(), &[signed]), mac2) {
            MacProof::Mac1AndMac2
        } else {
            MacProof::Mac1
        }
    }

    /// The cookie reply to a handshake message with the index `sender`: the cookie of `source`,
    /// sealed with the message's mac1 as associated data.
    pub(crate) fn reply(
        &mut self,
        now: Instant,
        random: &mut dyn Random,
        source: PeerPath,
        sender: u32,
        message: &[u8],
    ) -> [u8; COOKIE_REPLY_BYTES] {
        if self
            .secret_drawn
            .is_none_or(|at| now.since(at) >= COOKIE_LIFETIME)
        {
            random.fill(self.secret.as_mut());
            self.secret_drawn = Some(now);
        }
        let mac1 = &message[message.len() - 2 * MAC_BYTES..message.len() - MAC_BYTES];
        let mut nonce = [0; 24];
        random.fill(&mut nonce);
        let mut sealed = [0; 32];
        let (cookie, tag_out) = sealed.split_at_mut(MAC_BYTES);
        cookie.copy_from_slice(self.cookie_for(source).as_ref());
        let tag = XChaCha20Poly1305::new(&self.keys.cookie.into())
            .encrypt_inout_detached(&nonce.into(), mac1, cookie.into())
            .expect("sixteen bytes are within XChaCha20's limit");
        tag_out.copy_from_slice(&tag);
        CookieReply::compose(sender, &nonce, &sealed)
    }

    /// The cookie of a source: a MAC of its path under the present secret.
    fn cookie_for(&self, source: PeerPath) -> Zeroizing<Mac128> {
        Zeroizing::new(mac(self.secret.as_ref(), &[&source.cookie_input()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SecretKey;
    use crate::testing::Seeded;
    use crate::wire::Message;

    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    fn source(port: u16) -> PeerPath {
        std::net::SocketAddr::from(([192, 0, 2, 1], port)).into()
    }

    #[test]
    fn a_cookie_proves_the_path_it_was_sent_to() {
        let mut random = Seeded::new(1);
        let own = SecretKey::generate(&mut random).public();
        let (mut stamper, mut checker) = (MacStamper::new(&own), MacVerifier::new(&own));

        let mut message = [0; 148];
        message[0] = 1;
        random.fill(&mut message[4..116]);
        assert_eq!(checker.check(NOW, source(1), &message), MacProof::None);
        stamper.stamp(NOW, &mut message);
        assert_eq!(checker.check(NOW, source(1), &message), MacProof::Mac1);

        let reply = checker.reply(NOW, &mut random, source(1), 7, &message);
        let Ok(Message::CookieReply(parsed)) = Message::parse(&reply) else {
            panic!("no cookie reply")
        };
        assert_eq!(parsed.receiver(), 7);
        let mut bent = reply;
        bent[40] ^= 1;
        let Ok(Message::CookieReply(bent)) = Message::parse(&bent) else {
            panic!("no cookie reply")
        };
        assert!(!stamper.take_cookie(NOW, &bent));
        assert!(stamper.take_cookie(NOW, &parsed));
        assert!(
            !stamper.take_cookie(NOW, &parsed),
            "a replayed reply is refused"
        );

        stamper.stamp(NOW, &mut message);
        assert_eq!(
            checker.check(NOW, source(1), &message),
            MacProof::Mac1AndMac2
        );
        assert_eq!(
            checker.check(NOW, source(2), &message),
            MacProof::Mac1,
            "another port"
        );
        assert_eq!(
            checker.check(NOW + COOKIE_LIFETIME, source(1), &message),
            MacProof::Mac1,
            "too late"
        );
        stamper.stamp(NOW + COOKIE_LIFETIME, &mut message);
        assert_eq!(message[132..], [0; 16], "an expired cookie is not used");
    }
}
