//! Which handshake messages get curve arithmetic: mac1 for every sender; a cookie and a fair share
//! under load (white paper, sections 5.3 and 5.4.7).

use crate::error::Rejected;
use crate::keys::PublicKey;
use crate::load::{HandshakeLoad, LoadLimits};
use crate::mac::{MacProof, MacVerifier};
use crate::path::PeerPath;
use crate::random::Random;
use crate::time::Instant;
use crate::wire::COOKIE_REPLY_BYTES;

/// Checks handshake messages before anything is computed for them.
pub(super) struct Admission {
    verifier: MacVerifier,
    load: HandshakeLoad,
}

/// The verdict on a handshake message.
pub(super) enum Verdict {
    /// It is worked on.
    Admitted,
    /// The sender must prove by this cookie that it receives at its path.
    CookieRequired([u8; COOKIE_REPLY_BYTES]),
    /// It is dropped.
    Rejected(Rejected),
}

impl Admission {
    pub(super) fn new(own: &PublicKey, limits: LoadLimits) -> Self {
        Self {
            verifier: MacVerifier::new(own),
            load: HandshakeLoad::new(limits),
        }
    }

    /// Checks an initiation or a response with the index `sender`.
    pub(super) fn check(
        &mut self,
        now: Instant,
        from: PeerPath,
        sender: u32,
        message: &[u8],
        random: &mut dyn Random,
    ) -> Verdict {
        let proof = self.verifier.check(now, from, message);
        if proof == MacProof::None {
            return Verdict::Rejected(Rejected::InvalidMac1);
        }
        if !self.load.note_handshake(now) {
            return Verdict::Admitted;
        }
        if proof == MacProof::Mac1 {
            let cookie = self.verifier.reply(now, random, from, sender, message);
            return Verdict::CookieRequired(cookie);
        }
        if self.load.allow(now, &from, random) {
            Verdict::Admitted
        } else {
            Verdict::Rejected(Rejected::RateLimited)
        }
    }
}
