//! Classes of ICMP and ICMPv6 messages by their type.

/// Whether an ICMP type is an error, about which no other error is sent (RFC 1122 section 3.2.2):
/// unreachable, source quench, redirect, time exceeded, parameter problem.
#[inline(always)]
#[must_use]
pub const fn is_v4_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// Whether an ICMPv6 type is an error, about which no other error is sent (RFC 4443 sections 2.1
/// and 2.4(e)).
#[inline(always)]
#[must_use]
pub const fn is_v6_error(kind: u8) -> bool {
    kind < 128
}

/// Type of a router solicitation (RFC 4861 section 4.1).
pub const ROUTER_SOLICITATION: u8 = 133;
/// Type of a router advertisement (RFC 4861 section 4.2).
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// Type of a neighbour solicitation (RFC 4861 section 4.3).
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Type of a neighbour advertisement (RFC 4861 section 4.4).
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Type of a redirect (RFC 4861 section 4.5).
pub const REDIRECT: u8 = 137;

/// Option of neighbour discovery: the sender's link-layer address (RFC 4861 section 4.6.1).
pub const OPTION_SOURCE_LINK: u8 = 1;
/// Option of neighbour discovery: the target's link-layer address (RFC 4861 section 4.6.1).
pub const OPTION_TARGET_LINK: u8 = 2;

/// Whether an ICMPv6 type is router or neighbour discovery or redirect, 133 to 137. These never
/// leave their link (RFC 4861 section 4), so a tunnel that keeps the hop limit must not carry them.
#[inline(always)]
#[must_use]
pub const fn is_discovery(kind: u8) -> bool {
    matches!(kind, ROUTER_SOLICITATION..=REDIRECT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_no_errors() {
        for query in [0, 8, 9, 10, 13, 14, 15, 16, 17, 18] {
            assert!(!is_v4_error(query), "{query}");
        }
        let errors = (0..=u8::MAX).filter(|kind| is_v4_error(*kind)).count();
        assert_eq!(errors, 5);
        assert!(is_v6_error(1) && is_v6_error(2) && is_v6_error(127));
        assert!(!is_v6_error(128) && !is_v6_error(135));
    }

    #[test]
    fn discovery_is_router_and_neighbour_messages_and_redirect() {
        let discovery: Vec<_> = (0..=u8::MAX).filter(|kind| is_discovery(*kind)).collect();
        assert_eq!(discovery, [133, 134, 135, 136, 137]);
    }
}
