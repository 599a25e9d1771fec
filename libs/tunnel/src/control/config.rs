//! Configuration of a peer.

use crate::cipher::Cipher;
use crate::data::{Framing, MIN_DATAGRAM};
use crate::keys::{PresharedKey, PublicKey};
use crate::path::PeerPath;
use crate::pmtu::PmtuConfig;
use crate::session::{MAX_LANES, SessionParams};
use crate::time::Tai64n;
use crate::timers::TimerConfig;
use crate::wire::DATA_OVERHEAD;

/// MTU inside the tunnel that WireGuard's tools set, bytes: 1500 less the headers of IPv6 (40), UDP
/// (8) and a data message (32).
const WIREGUARD_MTU: usize = 1420;

/// Identifies a peer of one [`super::TunnelControl`]. Ids of removed peers are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// When this end initiates handshakes with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InitiationPolicy {
    /// At once, and again until an attempt succeeds: the tenant's end.
    Always,
    /// When there is something to send, as WireGuard does.
    OnDemand,
    /// Never, with one exception: a session whose counters run out is renewed from here. The
    /// provider's end, to which the peer comes.
    Never,
}

/// Configuration of a peer.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// The peer's identity.
    pub public_key: PublicKey,
    /// Preshared key, mixed into the handshake; all zero for none.
    pub preshared_key: PresharedKey,
    /// The content of data messages: segments to an appliance, bare IP packets to any WireGuard.
    pub framing: Framing,
    /// Cipher for sending to the peer; a WireGuard peer always gets ChaCha20-Poly1305. See
    /// [`crate::CipherChoice`].
    pub cipher: Cipher,
    /// Lanes, 1 to [`MAX_LANES`]: workers that send to the peer in parallel. Must be equal at both
    /// ends. A WireGuard peer has one.
    pub lanes: u32,
    /// Paths to try, in order of preference. A peer that initiates itself needs none.
    pub paths: Vec<PeerPath>,
    /// When this end initiates handshakes.
    pub initiation: InitiationPolicy,
    /// Whether data goes to where the response to an initiation came from. Without it only
    /// [`super::TunnelControl::move_peer`] changes the path: a caller that selects the path itself
    /// must not be overruled by a late response over the path before.
    pub roams: bool,
    /// Durations of the state machine.
    pub timers: TimerConfig,
    /// Path-MTU search; `None` where the peer does not answer probes, as any WireGuard.
    pub pmtu: Option<PmtuConfig>,
    /// Longest datagram where the path is not probed, bytes of UDP payload; at least
    /// [`MIN_DATAGRAM`].
    pub max_datagram: usize,
    /// Timestamp of the newest initiation sent before a restart
    /// ([`super::TunnelControl::timestamp`]). It matters only where the wall clock may be set back:
    /// a peer refuses initiations that are not newer than the last one.
    pub timestamp: Tai64n,
}

impl PeerConfig {
    /// Defaults for a peer that is an appliance: one lane, path-MTU search,
    /// [`TimerConfig::causeway`].
    #[must_use]
    pub fn causeway(public_key: PublicKey, initiation: InitiationPolicy) -> Self {
        Self {
            public_key,
            preshared_key: PresharedKey::none(),
            framing: Framing::Segments,
            cipher: Cipher::ChaCha20Poly1305,
            lanes: 1,
            paths: Vec::new(),
            initiation,
            roams: true,
            timers: TimerConfig::causeway(),
            pmtu: Some(PmtuConfig::default()),
            max_datagram: MIN_DATAGRAM,
            timestamp: Tai64n::default(),
        }
    }

    /// Defaults for any WireGuard peer: 1420 bytes inside, which fit an MTU of 1500 over IPv6 too.
    #[must_use]
    pub fn wireguard(public_key: PublicKey) -> Self {
        Self {
            framing: Framing::WireGuard,
            timers: TimerConfig::wireguard(),
            pmtu: None,
            max_datagram: WIREGUARD_MTU + DATA_OVERHEAD,
            ..Self::causeway(public_key, InitiationPolicy::OnDemand)
        }
    }

    /// The parameters of the peer's sessions.
    pub(super) fn session_params(&self) -> SessionParams {
        let segments = self.framing == Framing::Segments;
        let (cipher, lanes) = if segments {
            (self.cipher, self.lanes.clamp(1, MAX_LANES))
        } else {
            (Cipher::ChaCha20Poly1305, 1)
        };
        SessionParams {
            cipher,
            lanes,
            accept_aes: segments,
            rekey_after_messages: self.timers.rekey_after_messages,
            reject_after_messages: self.timers.reject_after_messages,
            reject_after: self.timers.reject_after,
        }
    }
}
