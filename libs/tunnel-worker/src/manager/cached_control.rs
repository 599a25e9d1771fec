//! The tunnel's control half with its next deadline cached. To work it out takes a look at every
//! peer; most of hundreds of peers do nothing most of the time, and a gateway's answer to one
//! changes no other.

use std::ops::{Deref, DerefMut};

use tunnel::{Instant, Output, TunnelControl};

/// The control half, and whether it may have changed.
pub(super) struct CachedControl {
    control: TunnelControl,
    /// It was borrowed mutably since [`CachedControl::touched`] was called.
    touched: bool,
    /// The deadline, unless the control half was borrowed mutably since it was worked out.
    deadline: Option<Option<Instant>>,
}

impl CachedControl {
    pub const fn new(control: TunnelControl) -> Self {
        Self {
            control,
            touched: true,
            deadline: None,
        }
    }

    /// Whether the control half may have changed since the last call.
    pub const fn touched(&mut self) -> bool {
        std::mem::replace(&mut self.touched, false)
    }

    /// Works the deadline out, if it may be another.
    pub fn cache_deadline(&mut self) {
        if self.deadline.is_none() {
            self.deadline = Some(self.control.next_deadline());
        }
    }

    /// When [`TunnelControl::handle_timeout`] is to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadline
            .unwrap_or_else(|| self.control.next_deadline())
    }

    /// The next output. Taking it changes no peer, and so keeps the cache.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.control.poll_output()
    }
}

impl Deref for CachedControl {
    type Target = TunnelControl;

    fn deref(&self) -> &TunnelControl {
        &self.control
    }
}

impl DerefMut for CachedControl {
    fn deref_mut(&mut self) -> &mut TunnelControl {
        self.touched = true;
        self.deadline = None;
        &mut self.control
    }
}

#[cfg(test)]
mod tests {
    use tunnel::{InitiationPolicy, LoadLimits, PeerConfig, SecretKey};

    use super::*;

    #[test]
    fn the_deadline_is_cached_until_the_control_half_is_touched() {
        let secret = |n: u8| SecretKey::from_bytes(&[n; 32]);
        let mut control = CachedControl::new(TunnelControl::new(secret(1), LoadLimits::default()));
        assert!(control.touched(), "not called yet");
        control.cache_deadline();
        assert_eq!(control.next_deadline(), None);
        assert!(control.poll_output().is_none() && control.status(now(), id_of_none()).is_none());
        assert!(!control.touched(), "reading changes nothing");
        let peer = PeerConfig::causeway(secret(2).public(), InitiationPolicy::Always);
        let id = control.add_peer(now(), peer);
        assert_eq!(control.next_deadline(), Some(now()), "it dials at once");
        assert!(control.touched() && !control.touched());
        control.cache_deadline();
        assert_eq!(control.next_deadline(), Some(now()));
        control.remove_peer(id);
        assert_eq!(control.next_deadline(), None);
        assert!(control.touched());
    }

    fn now() -> Instant {
        Instant::from_nanos(1)
    }

    /// A peer of another control half.
    fn id_of_none() -> tunnel::PeerId {
        let mut other = TunnelControl::new(SecretKey::from_bytes(&[3; 32]), LoadLimits::default());
        let key = SecretKey::from_bytes(&[4; 32]).public();
        other.add_peer(now(), PeerConfig::causeway(key, InitiationPolicy::Never))
    }
}
