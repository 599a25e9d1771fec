//! The tunnel's control half, and what it said last of its next deadline: of hundreds of peers most do nothing most of the time, and to
//! ask all of them each time that a gateway answers one costs more than everything else.

use std::ops::{Deref, DerefMut};

use tunnel::{Instant, Output, TunnelControl};

/// The control half, with a note of whether it may have changed.
pub(super) struct Control {
    half: TunnelControl,
    /// It was there to be changed since [`Control::touched`] was asked.
    touched: bool,
    /// What it said, unless it was there to be changed since.
    next: Option<Option<Instant>>,
}

impl Control {
    pub const fn new(half: TunnelControl) -> Self {
        Self {
            half,
            touched: true,
            next: None,
        }
    }

    /// Whether it may have changed since this was last asked.
    pub const fn touched(&mut self) -> bool {
        std::mem::replace(&mut self.touched, false)
    }

    /// Asks for the next deadline, if it may be another.
    pub fn settle(&mut self) {
        if self.next.is_none() {
            self.next = Some(self.half.next_deadline());
        }
    }

    /// When [`TunnelControl::handle_timeout`] wants to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.next.unwrap_or_else(|| self.half.next_deadline())
    }

    /// The next thing to do. To take it changes no peer.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.half.poll_output()
    }
}

impl Deref for Control {
    type Target = TunnelControl;

    fn deref(&self) -> &TunnelControl {
        &self.half
    }
}

impl DerefMut for Control {
    fn deref_mut(&mut self) -> &mut TunnelControl {
        self.touched = true;
        self.next = None;
        &mut self.half
    }
}

#[cfg(test)]
mod tests {
    use tunnel::{InitiationPolicy, LoadLimits, PeerConfig, SecretKey};

    use super::*;

    #[test]
    fn what_it_said_holds_until_it_is_touched() {
        let secret = |n: u8| SecretKey::from_bytes(&[n; 32]);
        let mut control = Control::new(TunnelControl::new(secret(1), LoadLimits::default()));
        assert!(control.touched(), "nobody has looked yet");
        control.settle();
        assert_eq!(control.next_deadline(), None);
        assert!(control.poll_output().is_none() && control.status(now(), id_of_none()).is_none());
        assert!(!control.touched(), "to look changes nothing");
        let peer = PeerConfig::causeway(secret(2).public(), InitiationPolicy::Always);
        let id = control.add_peer(now(), peer);
        assert_eq!(control.next_deadline(), Some(now()), "it dials at once");
        assert!(control.touched() && !control.touched());
        control.settle();
        assert_eq!(control.next_deadline(), Some(now()));
        control.remove_peer(id);
        assert_eq!(control.next_deadline(), None);
        assert!(control.touched());
    }

    fn now() -> Instant {
        Instant::from_nanos(1)
    }

    /// Of a peer that another control half has.
    fn id_of_none() -> tunnel::PeerId {
        let mut other = TunnelControl::new(SecretKey::from_bytes(&[3; 32]), LoadLimits::default());
        let key = SecretKey::from_bytes(&[4; 32]).public();
        other.add_peer(now(), PeerConfig::causeway(key, InitiationPolicy::Never))
    }
}
