//! Reaches a gateway, or any other service, that has several addresses and perhaps a DNS name.
//!
//! ```text
//!   ServiceAddress
//!     ├─ address ──────────┐                  ┌────────── reports ◀─────────┐
//!     └─ name ─▶ Names ────┴─▶ Target ─▶ Dialler ─▶ Race ──"connect"──▶ owner
//!                 │ ▲                        ▲         ▲────result──────┘
//!   "look up"─────┴─┴─answer             Chooser: health, load, order
//! ```
//!
//! [`Names`] keeps the addresses of names, [`Dialler`] the health of targets and the order in which
//! they are tried, and [`Race`] connects to the first address that answers (RFC 8305). A circuit's
//! binds need no connection: [`crate::selector`] binds at the same [`Target`]s, by the same
//! [`crate::pool::Chooser`]. There is no socket, clock or random source: the owner does the
//! actions, and passes `now` of any monotonic clock and seeds.

mod dialler;
mod names;
mod race;
mod service_address;

pub use dialler::{DialSettings, Dialler};
pub use names::{NameSettings, NameState, Names};
pub use race::{AttemptId, Race, RaceAction, RaceSettings};
pub use service_address::{BadServiceAddress, ServiceAddress, dns_name};

use std::net::SocketAddr;

/// Addresses of a gateway at most, in the configuration of an end and at the director, and those of
/// a DNS name that are used: each one that does not answer costs time.
pub const MAX_ADDRESSES: usize = 8;

/// A service that can be connected to, such as a gateway, and all its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Unique name.
    pub name: String,
    /// Where to connect or to bind, in order of preference; without one the target is ignored.
    pub addresses: Vec<SocketAddr>,
    /// Addresses that it had a short time ago: a binding or connection there stays while it works.
    pub former: Vec<SocketAddr>,
}

/// The addresses without repetitions, with families in turn, the first one's first (RFC 8305
/// section 4). Within a family the order is kept.
#[must_use]
pub fn interleave(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    let Some(first) = all.first().map(SocketAddr::is_ipv4) else {
        return all;
    };
    let (preferred, other): (Vec<_>, Vec<_>) = all.into_iter().partition(|a| a.is_ipv4() == first);
    let mut sorted = Vec::with_capacity(preferred.len() + other.len());
    let (mut preferred, mut other) = (preferred.into_iter(), other.into_iter());
    loop {
        let two = [preferred.next(), other.next()];
        let before = sorted.len();
        sorted.extend(two.into_iter().flatten());
        if sorted.len() == before {
            return sorted;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn address(n: u8, v6: bool) -> SocketAddr {
        if v6 {
            SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()], 6180))
        } else {
            SocketAddr::from(([192, 0, 2, n], 6180))
        }
    }

    #[test]
    fn families_take_turns() {
        let [a, b, c] = [1, 2, 3].map(|n| address(n, false));
        let [x, y] = [1, 2].map(|n| address(n, true));
        assert_eq!(interleave([a, b, c, x, y]), [a, x, b, y, c]);
        assert_eq!(interleave([x, a, x, b]), [x, a, b]);
        assert_eq!(interleave([]), []);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_family_keeps_its_order(
            all in vec((0u8..6, any::<bool>()), 0..20),
        ) {
            let all: Vec<_> = all.into_iter().map(|(n, v6)| address(n, v6)).collect();
            let sorted = interleave(all.iter().copied());
            for v4 in [false, true] {
                let mut kept: Vec<SocketAddr> = Vec::new();
                for address in all.iter().filter(|a| a.is_ipv4() == v4) {
                    if !kept.contains(address) {
                        kept.push(*address);
                    }
                }
                let family: Vec<_> =
                    sorted.iter().filter(|a| a.is_ipv4() == v4).copied().collect();
                prop_assert_eq!(family, kept);
            }
            prop_assert_eq!(sorted.first(), all.first());
            // While both families are left, they take turns.
            let turns = sorted.windows(2).take_while(|w| w[0].is_ipv4() != w[1].is_ipv4()).count();
            let rest = &sorted[turns.min(sorted.len())..];
            prop_assert!(rest.windows(2).all(|w| w[0].is_ipv4() == w[1].is_ipv4()));
        }
    }
}
