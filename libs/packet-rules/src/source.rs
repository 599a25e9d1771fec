//! Which addresses are on this side of a stretched network, and which sources may send.
//!
//! An *endpoint* is an address that is failed over: its machine runs as a replica at the provider.
//!
//! ```text
//!                     endpoint          any other address
//!   provider side     on this side      on the other side
//!   tenant side       on the other side on this side
//! ```

/// Whether an address is on this side of the tunnel, in partial failover.
#[inline(always)]
#[must_use]
pub const fn is_here(provider: bool, endpoint: bool) -> bool {
    endpoint == provider
}

/// Whether a port of the network may send packets from an address: at the provider, if it is an
/// endpoint; at the production site, if it is not one and `is_known`, that is within the network's
/// prefixes or reached by its router.
///
/// `is_known` only matters at the production site for an address that is no endpoint.
#[inline(always)]
#[must_use]
pub const fn may_send(provider: bool, endpoint: bool, is_known: bool) -> bool {
    if provider {
        return endpoint;
    }
    !endpoint && is_known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_on_one_side_only() {
        for endpoint in [false, true] {
            assert_ne!(is_here(true, endpoint), is_here(false, endpoint));
        }
        assert!(is_here(true, true) && is_here(false, false));
    }

    #[test]
    fn only_addresses_of_this_side_may_send() {
        for (provider, endpoint, known, expected) in [
            (true, true, false, true),
            (true, true, true, true),
            (true, false, true, false),
            (false, true, true, false),
            (false, false, true, true),
            (false, false, false, false),
        ] {
            assert_eq!(may_send(provider, endpoint, known), expected);
            assert!(!expected || is_here(provider, endpoint));
        }
    }
}
