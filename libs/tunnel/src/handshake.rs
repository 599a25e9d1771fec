//! WireGuard's handshake (white paper, section 5.4), Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, with
//! the library `snow`.
//!
//! ```text
//!   initiator                                    responder
//!   Initiator::start ── type 1: e, es, s, ss, {timestamp} ──▶ Responder::read
//!                                                             which peer? timestamp newer? psk?
//!   Initiator::finish ◀── type 2: e, ee, se, psk, {} ──────── Responder::answer
//!   Secrets                                                   Secrets
//! ```
//!
//! Three limits of `snow` are removed here. Its X25519 accepts points of small order; ours refuses
//! them, as WireGuard does. It does not wipe its states; [`WipedOnDrop`] does so for the memory of
//! a state (not for copies that the compiler leaves on the stack while a state is built). Its
//! ciphers, which are on the heap, keep their keys when they are dropped; [`HandshakeCipher`] wipes
//! them. Randomness comes from the caller: exactly one ephemeral key per handshake.

use std::mem::MaybeUninit;
use std::sync::LazyLock;

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::{Builder, HandshakeState};
use zeroize::{Zeroize, Zeroizing};

use crate::error::HandshakeError;
use crate::keys::{KEY_BYTES, PresharedKey, PublicKey, SecretKey, Secrets};
use crate::random::Random;
use crate::time::Tai64n;
use crate::wire::{
    INITIATION_BYTES, Initiation, RESPONSE_BYTES, Response, TAG_BYTES, TYPE_INITIATION,
    TYPE_RESPONSE,
};

/// WireGuard's identifier: the prologue of the handshake.
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// `None` only if `snow` was built without the primitives, which the tests would show.
static PARAMS: LazyLock<Option<NoiseParams>> =
    LazyLock::new(|| "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().ok());

/// Gives `snow` its primitives: our X25519, randomness and cipher, its own hash.
struct Resolver {
    ephemeral: Zeroizing<[u8; KEY_BYTES]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn snow::types::Random>> {
        Some(Box::new(SingleUseRandom(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn snow::types::Dh>> {
        matches!(choice, DHChoice::Curve25519)
            .then(|| -> Box<dyn snow::types::Dh> { Box::new(Dh::empty()) })
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn snow::types::Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn snow::types::Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly)
            .then(|| -> Box<dyn snow::types::Cipher> { Box::new(HandshakeCipher::empty()) })
    }
}

/// ChaCha20-Poly1305 with the nonces of Noise (revision 34, section 12.3): four zero bytes and the
/// counter, little-endian. The key is wiped when it is replaced and when the cipher is dropped.
///
/// `snow` keeps four of these for a handshake: two for its messages, and two for the transport
/// keys, which are the keys of a session's first lane.
struct HandshakeCipher {
    key: Zeroizing<[u8; KEY_BYTES]>,
}

impl HandshakeCipher {
    fn empty() -> Self {
        Self {
            key: Zeroizing::new([0; KEY_BYTES]),
        }
    }

    fn nonce(counter: u64) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        nonce
    }
}

impl snow::types::Cipher for HandshakeCipher {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; KEY_BYTES]) {
        self.key.copy_from_slice(key);
    }

    /// `out` has room for the tag: `snow` checks that before it calls.
    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let bytes = plaintext.len();
        let (body, rest) = out.split_at_mut(bytes);
        body.copy_from_slice(plaintext);
        let cipher = ChaCha20Poly1305::new((&*self.key).into());
        let nonce = Self::nonce(nonce).into();
        match cipher.encrypt_inout_detached(&nonce, authtext, body.into()) {
            Ok(tag) => {
                rest[..TAG_BYTES].copy_from_slice(&tag);
                bytes + TAG_BYTES
            }
            // Only for texts of more than 256 GiB. A message of this length is refused.
            Err(_) => 0,
        }
    }

    fn decrypt(
        &self,
        nonce: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, snow::Error> {
        let (body, tag) = ciphertext
            .split_last_chunk::<TAG_BYTES>()
            .ok_or(snow::Error::Decrypt)?;
        let out = out.get_mut(..body.len()).ok_or(snow::Error::Decrypt)?;
        out.copy_from_slice(body);
        let cipher = ChaCha20Poly1305::new((&*self.key).into());
        let nonce = Self::nonce(nonce).into();
        cipher
            .decrypt_inout_detached(&nonce, authtext, out.into(), &(*tag).into())
            .map_err(|_| snow::Error::Decrypt)?;
        Ok(body.len())
    }
}

/// Randomness for one ephemeral key; an error for any further request.
struct SingleUseRandom(Option<Zeroizing<[u8; KEY_BYTES]>>);

impl snow::types::Random for SingleUseRandom {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        let bytes = self.0.take().ok_or(snow::Error::Rng)?;
        if out.len() != bytes.len() {
            return Err(snow::Error::Rng);
        }
        out.copy_from_slice(bytes.as_ref());
        Ok(())
    }
}

/// X25519 that refuses a zero result.
struct Dh {
    secret: SecretKey,
    public: [u8; KEY_BYTES],
}

impl Dh {
    fn empty() -> Self {
        Self {
            secret: SecretKey::from_bytes(&[0; KEY_BYTES]),
            public: [0; KEY_BYTES],
        }
    }
}

impl snow::types::Dh for Dh {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_BYTES
    }

    fn priv_len(&self) -> usize {
        KEY_BYTES
    }

    fn set(&mut self, privkey: &[u8]) {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        bytes.copy_from_slice(privkey);
        self.secret = SecretKey::from_bytes(&bytes);
        self.public = *self.secret.public().as_bytes();
    }

    fn generate(&mut self, random: &mut dyn snow::types::Random) -> Result<(), snow::Error> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        random.try_fill_bytes(bytes.as_mut())?;
        self.set(bytes.as_ref());
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.secret.expose()
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public = pubkey.first_chunk().ok_or(snow::Error::Dh)?;
        let shared = self.secret.agree(public).ok_or(snow::Error::Dh)?;
        out.get_mut(..KEY_BYTES)
            .ok_or(snow::Error::Dh)?
            .copy_from_slice(shared.as_ref());
        Ok(())
    }
}

/// A handshake state on the heap whose memory is overwritten when it is dropped.
struct WipedOnDrop(Box<MaybeUninit<HandshakeState>>);

impl WipedOnDrop {
    fn new(state: HandshakeState) -> Self {
        Self(Box::new(MaybeUninit::new(state)))
    }

    fn state(&mut self) -> &mut HandshakeState {
        // SAFETY: `new` initialised it, and only `drop` uninitialises it.
        unsafe { self.0.assume_init_mut() }
    }
}

impl Drop for WipedOnDrop {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, dropped once, here, and never touched as a state again.
        unsafe { self.0.assume_init_drop() };
        self.0.as_bytes_mut_compat().zeroize();
    }
}

/// The bytes of possibly uninitialised memory.
trait Bytes {
    fn as_bytes_mut_compat(&mut self) -> &mut [MaybeUninit<u8>];
}

impl<T> Bytes for MaybeUninit<T> {
    fn as_bytes_mut_compat(&mut self) -> &mut [MaybeUninit<u8>] {
        let bytes = size_of::<T>();
        // SAFETY: the memory is exactly `bytes` long, borrowed for as long as the result lives, and
        // `MaybeUninit<u8>` asks nothing of its content.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), bytes) }
    }
}

fn builder<'a>(own: &'a SecretKey, random: &mut dyn Random) -> Result<Builder<'a>, HandshakeError> {
    let mut ephemeral = Zeroizing::new([0; KEY_BYTES]);
    random.fill(ephemeral.as_mut());
    let params = PARAMS.clone().ok_or(HandshakeError::Unsupported)?;
    Builder::with_resolver(params, Box::new(Resolver { ephemeral }))
        .prologue(PROLOGUE)
        .and_then(|builder| builder.local_private_key(own.expose()))
        .map_err(|_| HandshakeError::Unsupported)
}

fn secrets(state: &mut HandshakeState) -> Secrets {
    let (mut one, mut two) = state.dangerously_get_raw_split();
    let secrets = Secrets {
        from_initiator: one,
        from_responder: two,
    };
    one.zeroize();
    two.zeroize();
    secrets
}

/// The initiator between its initiation and the response.
pub(crate) struct Initiator(WipedOnDrop);

impl Initiator {
    /// Composes an initiation. The last 32 bytes, for the MACs, are zero.
    pub(crate) fn start(
        own: &SecretKey,
        peer: &PublicKey,
        shared: &PresharedKey,
        index: u32,
        timestamp: Tai64n,
        random: &mut dyn Random,
    ) -> Result<(Self, [u8; INITIATION_BYTES]), HandshakeError> {
        let state = builder(own, random)?
            .remote_public_key(peer.as_bytes())
            .and_then(|builder| builder.psk(2, shared.expose()))
            .and_then(Builder::build_initiator)
            .map_err(|_| HandshakeError::Unsupported)?;
        let mut state = WipedOnDrop::new(state);
        let mut message = [0; INITIATION_BYTES];
        message[0] = TYPE_INITIATION;
        message[4..8].copy_from_slice(&index.to_le_bytes());
        let written = state
            .state()
            .write_message(timestamp.as_bytes(), &mut message[8..INITIATION_BYTES - 32])
            .map_err(|_| HandshakeError::WeakKey)?;
        debug_assert_eq!(written, INITIATION_BYTES - 40);
        Ok((Self(state), message))
    }

    /// Takes the response. After an error, another response may still be authentic.
    pub(crate) fn finish(&mut self, response: &Response<'_>) -> Result<Secrets, HandshakeError> {
        let mut nothing = [0; 16];
        let state = self.0.state();
        match state.read_message(response.noise(), &mut nothing) {
            Ok(0) => Ok(secrets(state)),
            _ => Err(HandshakeError::Forged),
        }
    }
}

/// The responder between the initiation and its response.
pub(crate) struct Responder {
    state: WipedOnDrop,
    /// The sender; authentic, but the initiation may be a replay.
    pub(crate) peer: PublicKey,
    pub(crate) timestamp: Tai64n,
    /// The index that the sender chose.
    pub(crate) sender: u32,
}

impl Responder {
    /// Opens an initiation.
    pub(crate) fn read(
        own: &SecretKey,
        initiation: &Initiation<'_>,
        random: &mut dyn Random,
    ) -> Result<Self, HandshakeError> {
        let state = builder(own, random)?
            .build_responder()
            .map_err(|_| HandshakeError::Unsupported)?;
        let mut state = WipedOnDrop::new(state);
        // With space for the tag, which snow needs for some ciphers.
        let mut payload = [0; 28];
        let read = state.state().read_message(initiation.noise(), &mut payload);
        let (Ok(12), Some(timestamp)) = (read, payload.first_chunk::<12>()) else {
            return Err(HandshakeError::Forged);
        };
        let timestamp = Tai64n::from_bytes(*timestamp);
        let peer = state
            .state()
            .get_remote_static()
            .and_then(|key| key.first_chunk::<KEY_BYTES>());
        let peer = PublicKey::from_bytes(*peer.ok_or(HandshakeError::Forged)?);
        Ok(Self {
            state,
            peer,
            timestamp,
            sender: initiation.sender(),
        })
    }

    /// Composes the response. The last 32 bytes, for the MACs, are zero.
    pub(crate) fn answer(
        mut self,
        shared: &PresharedKey,
        index: u32,
    ) -> Result<([u8; RESPONSE_BYTES], Secrets), HandshakeError> {
        let state = self.state.state();
        let mut message = [0; RESPONSE_BYTES];
        message[0] = TYPE_RESPONSE;
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message[8..12].copy_from_slice(&self.sender.to_le_bytes());
        state
            .set_psk(2, shared.expose())
            .and_then(|()| state.write_message(&[], &mut message[12..RESPONSE_BYTES - 32]))
            .map_err(|_| HandshakeError::WeakKey)?;
        Ok((message, secrets(state)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freed_memory::FreedMemory;
    use crate::testing::Seeded;
    use crate::wire::Message;

    fn parse_initiation(message: &[u8]) -> Initiation<'_> {
        let Ok(Message::Initiation(initiation)) = Message::parse(message) else {
            panic!("no initiation")
        };
        initiation
    }

    fn parse_response(message: &[u8]) -> Response<'_> {
        let Ok(Message::Response(response)) = Message::parse(message) else {
            panic!("no response")
        };
        response
    }

    #[test]
    fn both_ends_arrive_at_the_same_secrets() {
        let mut random = Seeded::new(1);
        let (a, b) = (
            SecretKey::generate(&mut random),
            SecretKey::generate(&mut random),
        );
        let shared = PresharedKey::generate(&mut random);
        let stamp = Tai64n::from_bytes([9; 12]);
        let (mut initiator, first) =
            Initiator::start(&a, &b.public(), &shared, 5, stamp, &mut random).unwrap();
        let responder = Responder::read(&b, &parse_initiation(&first), &mut random).unwrap();
        assert_eq!(
            (responder.peer, responder.timestamp, responder.sender),
            (a.public(), stamp, 5)
        );
        let (second, theirs) = responder.answer(&shared, 6).unwrap();
        let response = parse_response(&second);
        assert_eq!((response.receiver(), response.sender()), (5, 6));

        let mut bent = second;
        bent[20] ^= 1;
        assert!(initiator.finish(&parse_response(&bent)).is_err());
        let ours = initiator
            .finish(&response)
            .expect("a forged response does no harm");
        assert_eq!(ours.from_initiator, theirs.from_initiator);
        assert_eq!(ours.from_responder, theirs.from_responder);
        assert_ne!(ours.from_initiator, ours.from_responder);
    }

    #[test]
    fn no_freed_memory_holds_a_transport_key() {
        let mut random = Seeded::new(6);
        let (a, b) = (
            SecretKey::generate(&mut random),
            SecretKey::generate(&mut random),
        );
        let shared = PresharedKey::generate(&mut random);
        let freed = FreedMemory::watch();
        let (mut initiator, first) =
            Initiator::start(&a, &b.public(), &shared, 5, Tai64n::default(), &mut random).unwrap();
        let responder = Responder::read(&b, &parse_initiation(&first), &mut random).unwrap();
        let (second, theirs) = responder.answer(&shared, 6).unwrap();
        let ours = initiator.finish(&parse_response(&second)).unwrap();
        drop(initiator);
        let blocks = freed.end();
        assert!(blocks.len() > 8, "the ciphers were freed: {}", blocks.len());
        for secrets in [&ours, &theirs] {
            for key in [&secrets.from_initiator, &secrets.from_responder] {
                let holds = |block: &&Vec<u8>| block.windows(KEY_BYTES).any(|part| part == key);
                assert_eq!(blocks.iter().filter(holds).count(), 0);
            }
        }
    }

    #[test]
    fn another_shared_key_fails_at_the_initiator() {
        let mut random = Seeded::new(2);
        let (a, b) = (
            SecretKey::generate(&mut random),
            SecretKey::generate(&mut random),
        );
        let (mut initiator, first) = Initiator::start(
            &a,
            &b.public(),
            &PresharedKey::none(),
            5,
            Tai64n::default(),
            &mut random,
        )
        .unwrap();
        let responder = Responder::read(&b, &parse_initiation(&first), &mut random).unwrap();
        let (second, _) = responder
            .answer(&PresharedKey::from_bytes([1; 32]), 6)
            .unwrap();
        assert!(initiator.finish(&parse_response(&second)).is_err());
    }

    #[test]
    fn every_bent_bit_of_an_initiation_is_noticed() {
        let mut random = Seeded::new(3);
        let (a, b) = (
            SecretKey::generate(&mut random),
            SecretKey::generate(&mut random),
        );
        let (_, first) = Initiator::start(
            &a,
            &b.public(),
            &PresharedKey::none(),
            5,
            Tai64n::default(),
            &mut random,
        )
        .unwrap();
        for byte in 8..INITIATION_BYTES - 32 {
            let mut bent = first;
            bent[byte] ^= 0x40;
            assert!(
                Responder::read(&b, &parse_initiation(&bent), &mut random).is_err(),
                "byte {byte}"
            );
        }
    }

    #[test]
    fn a_peer_key_of_small_order_is_refused() {
        let mut random = Seeded::new(4);
        let a = SecretKey::generate(&mut random);
        let weak = PublicKey::from_bytes([0; 32]);
        let started = Initiator::start(
            &a,
            &weak,
            &PresharedKey::none(),
            5,
            Tai64n::default(),
            &mut random,
        );
        assert_eq!(started.err(), Some(HandshakeError::WeakKey));
    }
}
