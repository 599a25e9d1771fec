//! Answers to echo requests that reach a gateway's address in fragments.
//!
//! For: pings that are longer than the network's MTU (RFC 1122 section 3.2.2.6, RFC 4443 section
//! 4.2). The programs answer whole requests; they hand fragments to this engine. It reassembles the
//! request (RFC 791, RFC 8200 section 4.5) and returns the reply in fragments. Never: input,
//! output, a clock, or another message than an echo request. Datagrams are bounded for each
//! network, each tenant and in total, where the tenant with most makes room for others; fragments
//! that overlap discard their datagram (RFC 5722).
//!
//! ```text
//!   SLOW_PACKETS ─▶ fragment ─▶ all there? ─ no ─▶ waits 5 s at most
//!                                   └─ yes ─▶ reply, split to the MTU
//! ```

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use appliance_common::wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPV4_LEN, IPV6_LEN};
use packet_rules::{
    checksum::checksum,
    ipv4::{MORE_FRAGMENTS, OFFSET_MASK},
    ipv6::{FRAGMENT, total_len},
};

use crate::frame::{ipv4_lengths, split_v4};

/// Datagrams of one network that wait for fragments.
const MAX_PER_NETWORK: usize = 8;
/// Datagrams of one tenant that wait for fragments.
const MAX_PER_TENANT: usize = 32;
/// Datagrams that wait for fragments in total: each has 64 KiB at most.
const MAX_DATAGRAMS: usize = 128;
/// Time in which all fragments of a datagram must come.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest payload of an IP packet, bytes.
const MAX_PAYLOAD: usize = 65_535 - IPV6_LEN;
/// Bytes of an IPv6 fragment header (RFC 8200 section 4.5).
const FRAGMENT_HEADER_LEN: usize = 8;
/// Bytes of an echo request's header.
const ECHO_LEN: usize = 8;
/// Hop limit of replies (RFC 1700).
const HOPS: u8 = 64;

/// A fragmented datagram: its network, addresses and identification.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    vni: u32,
    /// Source and destination: 8 or 32 bytes.
    addresses: Vec<u8>,
    identification: u32,
}

#[derive(Debug)]
struct Datagram {
    /// Number of its network's tenant.
    tenant: u32,
    began: Instant,
    /// By offset, bytes; none overlap.
    pieces: BTreeMap<usize, Vec<u8>>,
    /// Bytes of the whole payload, once the last fragment has come.
    len: Option<usize>,
}

/// A fragment of an ICMP or ICMPv6 message.
struct Fragment<'a> {
    key: Key,
    offset: usize,
    more: bool,
    payload: &'a [u8],
}

/// Reassembles echo requests to gateways. See the [module](self).
#[derive(Debug, Default)]
pub struct GatewayEcho {
    datagrams: BTreeMap<Key, Datagram>,
    /// Requests answered.
    pub answered: u64,
    /// Fragments and datagrams dropped: malformed, overlapping, incomplete, without room, or no
    /// echo request.
    pub dropped: u64,
}

impl GatewayEcho {
    /// Takes the fragment in `frame`, whose IP header is at `l3`, on a network, which is given by
    /// VNI and number of its tenant. Returns the frames of the reply, each with at most `mtu` bytes
    /// of IP, if it completes an echo request.
    pub fn fragment(
        &mut self,
        now: Instant,
        (vni, tenant): (u32, u32),
        l3: usize,
        frame: &[u8],
        mtu: usize,
    ) -> Vec<Vec<u8>> {
        let before = self.datagrams.len();
        self.datagrams
            .retain(|_, datagram| now.saturating_duration_since(datagram.began) < TIMEOUT);
        self.dropped += (before - self.datagrams.len()) as u64;
        let (Some(head), Some(packet)) = (frame.get(..l3), frame.get(l3..)) else {
            self.dropped += 1;
            return Vec::new();
        };
        let (Some(fragment), Some(ethernet)) = (parse(vni, packet), reversed(head)) else {
            self.dropped += 1;
            return Vec::new();
        };
        let key = fragment.key.clone();
        let Some(message) = self.reassemble(now, tenant, fragment) else {
            return Vec::new();
        };
        match reply(&key, message, mtu) {
            Some(packets) => {
                self.answered += 1;
                let framed = |packet: Vec<u8>| [&ethernet[..], &packet].concat();
                packets.into_iter().map(framed).collect()
            }
            None => {
                self.dropped += 1;
                Vec::new()
            }
        }
    }

    /// Adds a fragment to its datagram; returns the message if it is whole.
    fn reassemble(&mut self, now: Instant, tenant: u32, fragment: Fragment<'_>) -> Option<Vec<u8>> {
        let Fragment {
            key,
            offset,
            more,
            payload,
        } = fragment;
        let end = offset + payload.len();
        let aligned = !more || payload.len().is_multiple_of(8);
        if !aligned || end > MAX_PAYLOAD {
            self.dropped += 1;
            return None;
        }
        if !self.datagrams.contains_key(&key) {
            let of_network = |other: &&Key| other.vni == key.vni;
            let in_network = self.datagrams.keys().filter(of_network).count();
            if in_network >= MAX_PER_NETWORK || !self.has_room(tenant) {
                self.dropped += 1;
                return None;
            }
        }
        let datagram = self.datagrams.entry(key.clone()).or_insert(Datagram {
            tenant,
            began: now,
            pieces: BTreeMap::new(),
            len: None,
        });
        if datagram.pieces.get(&offset).map(Vec::as_slice) == Some(payload) {
            // The same fragment again.
            return None;
        }
        let before = datagram.pieces.range(..end).next_back();
        let overlaps = before.is_some_and(|(at, piece)| at + piece.len() > offset)
            || datagram.pieces.contains_key(&offset);
        let beyond = datagram.len.is_some_and(|len| end > len || !more);
        let short = !more && datagram.pieces.range(end..).next().is_some();
        if overlaps || beyond || short || payload.is_empty() {
            self.datagrams.remove(&key);
            self.dropped += 1;
            return None;
        }
        if !more {
            datagram.len = Some(end);
        }
        datagram.pieces.insert(offset, payload.to_vec());
        let there: usize = datagram.pieces.values().map(Vec::len).sum();
        if datagram.len != Some(there) {
            return None;
        }
        // As none overlap, they are without gaps.
        let datagram = self.datagrams.remove(&key)?;
        Some(datagram.pieces.into_values().flatten().collect())
    }

    /// Whether a tenant may have one more datagram wait. If there is no room in total, the oldest
    /// of the tenant with most makes room, unless this one would have as many.
    fn has_room(&mut self, tenant: u32) -> bool {
        let mut waiting: BTreeMap<u32, usize> = BTreeMap::new();
        for datagram in self.datagrams.values() {
            *waiting.entry(datagram.tenant).or_default() += 1;
        }
        let own = waiting.get(&tenant).copied().unwrap_or(0);
        if own >= MAX_PER_TENANT || self.datagrams.len() < MAX_DATAGRAMS {
            return own < MAX_PER_TENANT;
        }
        let Some((largest, most)) = waiting.into_iter().max_by_key(|(_, count)| *count) else {
            return false;
        };
        if most <= own + 1 {
            return false;
        }
        let of_largest = self.datagrams.iter().filter(|(_, d)| d.tenant == largest);
        let oldest = of_largest.min_by_key(|(_, d)| d.began);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.datagrams.remove(&key);
            self.dropped += 1;
        }
        true
    }
}

/// The Ethernet header `head`, reversed, with the same tags and type.
fn reversed(head: &[u8]) -> Option<Vec<u8>> {
    let (addresses, rest) = head.split_at_checked(12)?;
    Some([&addresses[6..], &addresses[..6], rest].concat())
}

/// The fragment in an IP packet, if it is one of an ICMP or ICMPv6 message.
fn parse(vni: u32, packet: &[u8]) -> Option<Fragment<'_>> {
    let half = |at: usize| Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?));
    match packet.first()? >> 4 {
        4 => {
            let lengths = ipv4_lengths(packet)?;
            let field = half(6)?;
            (packet[9] == IPPROTO_ICMP).then(|| Fragment {
                key: Key {
                    vni,
                    addresses: packet[12..20].to_vec(),
                    identification: u16::from_be_bytes([packet[4], packet[5]]).into(),
                },
                offset: usize::from(field & OFFSET_MASK) * 8,
                more: field & MORE_FRAGMENTS != 0,
                payload: &packet[lengths.header..lengths.total],
            })
        }
        6 if packet.len() >= IPV6_LEN + FRAGMENT_HEADER_LEN && packet[6] == FRAGMENT => {
            let total = total_len(packet[0], half(4)?, 0, packet.len())?;
            let payload = packet.get(IPV6_LEN + FRAGMENT_HEADER_LEN..total)?;
            let field = half(IPV6_LEN + 2)?;
            let [_, _, _, _, id @ ..] = *packet[IPV6_LEN..].first_chunk::<8>()?;
            (packet[IPV6_LEN] == IPPROTO_ICMPV6).then(|| Fragment {
                key: Key {
                    vni,
                    addresses: packet[8..40].to_vec(),
                    identification: u32::from_be_bytes(id),
                },
                offset: usize::from(field & 0xfff8),
                more: field & 1 != 0,
                payload,
            })
        }
        _ => None,
    }
}

/// The packets of the reply to an echo request; `None` if `message` is no valid one.
fn reply(request: &Key, mut message: Vec<u8>, mtu: usize) -> Option<Vec<Vec<u8>>> {
    let (from, to) = request.addresses.split_at(request.addresses.len() / 2);
    let ipv6 = from.len() == 16;
    let asked = if ipv6 { [128, 0] } else { [8, 0] };
    if message.len() < ECHO_LEN
        || message[..2] != asked
        || message_checksum(from, to, &message)? != 0
    {
        return None;
    }
    message[0] = if ipv6 { 129 } else { 0 };
    message[2..4].fill(0);
    let check = message_checksum(to, from, &message)?;
    message[2..4].copy_from_slice(&check.to_ne_bytes());
    if ipv6 {
        return Some(fragments_v6(
            request.identification,
            to,
            from,
            &message,
            mtu,
        ));
    }
    let mut packet = vec![0; IPV4_LEN];
    let total = u16::try_from(IPV4_LEN + message.len()).ok()?;
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[4..6].copy_from_slice(&(request.identification as u16).to_be_bytes());
    packet[8] = HOPS;
    packet[9] = IPPROTO_ICMP;
    packet[12..16].copy_from_slice(to);
    packet[16..20].copy_from_slice(from);
    let check = checksum(&packet);
    packet[10..12].copy_from_slice(&check.to_ne_bytes());
    packet.extend_from_slice(&message);
    split_v4(&packet, mtu).ok()
}

/// The checksum of an ICMP message, or of an ICMPv6 one with its pseudo-header (RFC 8200 section
/// 8.1); zero if the message has a right one. `None` for a message that is too long.
fn message_checksum(from: &[u8], to: &[u8], message: &[u8]) -> Option<u16> {
    if from.len() != 16 {
        return Some(checksum(message));
    }
    let len = u32::try_from(message.len()).ok()?.to_be_bytes();
    let next = [0, 0, 0, IPPROTO_ICMPV6];
    Some(checksum(&[from, to, &len, &next, message].concat()))
}

/// An ICMPv6 message in fragments of at most `mtu` bytes, or whole if it fits.
fn fragments_v6(id: u32, from: &[u8], to: &[u8], message: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let packet = |next: u8, payload: &[&[u8]]| {
        let len: usize = payload.iter().map(|part| part.len()).sum();
        let [high, low] = (len as u16).to_be_bytes();
        let head = [0x60, 0, 0, 0, high, low, next, HOPS];
        [&[&head[..], from, to], payload].concat().concat()
    };
    if IPV6_LEN + message.len() <= mtu {
        return vec![packet(IPPROTO_ICMPV6, &[message])];
    }
    let room = mtu.saturating_sub(IPV6_LEN + FRAGMENT_HEADER_LEN).max(8) & !7;
    let piece = |(n, part): (usize, &[u8])| {
        let offset = n * room;
        let more = u16::from(offset + part.len() < message.len());
        let [high, low] = (offset as u16 | more).to_be_bytes();
        let [a, b, c, d] = id.to_be_bytes();
        let header = [IPPROTO_ICMPV6, 0, high, low, a, b, c, d];
        packet(FRAGMENT, &[&header, part])
    };
    message.chunks(room).enumerate().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: [u8; 18] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x81, 0, 0, 101, 8, 0];
    const HOST: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
    const ROUTER: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    fn ends(ipv6: bool) -> (&'static [u8], &'static [u8]) {
        if ipv6 {
            (&HOST, &ROUTER)
        } else {
            (&[10, 1, 0, 10], &[10, 1, 0, 1])
        }
    }

    /// An echo request of the host with `len` bytes of data, in fragments of at most `mtu` bytes.
    fn request(ipv6: bool, id: u16, len: usize, mtu: usize) -> Vec<Vec<u8>> {
        let (from, to) = ends(ipv6);
        let mut message = vec![if ipv6 { 128 } else { 8 }, 0, 0, 0, 1, 2, 3, 4];
        message.extend((0..len).map(|n| n as u8));
        let check = message_checksum(from, to, &message).expect("short");
        message[2..4].copy_from_slice(&check.to_ne_bytes());
        if ipv6 {
            return fragments_v6(id.into(), from, to, &message, mtu);
        }
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend_from_slice(from);
        packet.extend_from_slice(to);
        packet[2..4].copy_from_slice(&((20 + message.len()) as u16).to_be_bytes());
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        let check = checksum(&packet);
        packet[10..12].copy_from_slice(&check.to_ne_bytes());
        packet.extend_from_slice(&message);
        split_v4(&packet, mtu).expect("it may be split")
    }

    /// On a network of a tenant of the same number.
    fn give(echo: &mut GatewayEcho, now: Instant, vni: u32, packet: &[u8]) -> Vec<Vec<u8>> {
        give_of(echo, now, (vni, vni), packet)
    }

    fn give_of(
        echo: &mut GatewayEcho,
        now: Instant,
        network: (u32, u32),
        packet: &[u8],
    ) -> Vec<Vec<u8>> {
        let frame = [&HEAD[..], packet].concat();
        echo.fragment(now, network, HEAD.len(), &frame, 1500)
    }

    /// The message of the reply in `frames`; checks their lengths and headers.
    fn reassembled(ipv6: bool, frames: &[Vec<u8>]) -> Vec<u8> {
        let (host, router) = ends(ipv6);
        let mut echo = GatewayEcho::default();
        let mut message = None;
        for frame in frames {
            let (head, packet) = frame.split_at(HEAD.len());
            assert_eq!(head[..6], HEAD[6..12]);
            assert_eq!(head[6..12], HEAD[..6]);
            assert_eq!(head[12..], HEAD[12..]);
            assert!(packet.len() <= 1500, "{} bytes", packet.len());
            let fragment = parse(1, packet).expect("a fragment");
            assert_eq!(fragment.key.addresses, [router, host].concat());
            message = echo.reassemble(Instant::now(), 1, fragment);
        }
        message.expect("a whole message")
    }

    #[test]
    fn a_long_request_is_answered_in_any_order_of_fragments() {
        let now = Instant::now();
        for ipv6 in [false, true] {
            let mut echo = GatewayEcho::default();
            let mut pieces = request(ipv6, 7, 5000, 1500);
            assert_eq!(pieces.len(), 4);
            pieces.swap(0, 3);
            let mut frames = Vec::new();
            for piece in &pieces {
                assert!(frames.is_empty());
                frames = give(&mut echo, now, 1, piece);
            }
            let message = reassembled(ipv6, &frames);
            let (host, router) = ends(ipv6);
            assert_eq!(message[..2], [if ipv6 { 129 } else { 0 }, 0]);
            assert_eq!(message_checksum(router, host, &message), Some(0));
            assert_eq!(message[4..8], [1, 2, 3, 4]);
            assert!(
                message[8..]
                    .iter()
                    .zip(0..)
                    .all(|(b, n)| usize::from(*b) == n % 256)
            );
            assert_eq!((message.len(), echo.answered, echo.dropped), (5008, 1, 0));
            assert!(echo.datagrams.is_empty());
        }
    }

    #[test]
    fn overlapping_fragments_discard_the_datagram() {
        let now = Instant::now();
        let mut echo = GatewayEcho::default();
        let pieces = request(false, 7, 5000, 1500);
        give(&mut echo, now, 1, &pieces[0]);
        give(&mut echo, now, 1, &pieces[0]);
        assert_eq!(
            (echo.datagrams.len(), echo.dropped),
            (1, 0),
            "the same again"
        );
        let mut other = pieces[0].clone();
        other[1400] ^= 1;
        give(&mut echo, now, 1, &other);
        assert_eq!((echo.datagrams.len(), echo.dropped), (0, 1));
        for piece in &pieces[1..] {
            assert!(give(&mut echo, now, 1, piece).is_empty());
        }
    }

    #[test]
    fn only_valid_echo_requests_are_answered() {
        let now = Instant::now();
        let mut echo = GatewayEcho::default();
        // Of another type, and with another byte.
        for (at, id) in [(20, 1), (1000, 2)] {
            let mut pieces = request(false, id, 3000, 1500);
            pieces[0][at] ^= 0x80;
            for piece in &pieces {
                assert!(give(&mut echo, now, 1, piece).is_empty());
            }
        }
        assert_eq!((echo.answered, echo.dropped), (0, 2));
    }

    #[test]
    fn waiting_datagrams_are_bounded_and_expire() {
        let now = Instant::now();
        let mut echo = GatewayEcho::default();
        for id in 0..100 {
            give(&mut echo, now, 1, &request(false, id, 3000, 1500)[0]);
        }
        assert_eq!(echo.datagrams.len(), MAX_PER_NETWORK);
        for id in 0..1000u16 {
            let vni = 2 + u32::from(id / 4);
            give(&mut echo, now, vni, &request(true, id, 3000, 1500)[0]);
        }
        assert_eq!(echo.datagrams.len(), MAX_DATAGRAMS);
        let later = now + TIMEOUT;
        let mut frames = Vec::new();
        for piece in request(false, 1, 3000, 1500) {
            frames = give(&mut echo, later, 1, &piece);
        }
        assert!(!frames.is_empty() && echo.datagrams.is_empty());
    }

    #[test]
    fn a_tenant_with_many_networks_leaves_room_for_others() {
        let now = Instant::now();
        let mut echo = GatewayEcho::default();
        let first = |id| request(false, id, 3000, 1500).swap_remove(0);
        let waiting = |echo: &GatewayEcho, tenant| {
            let of_tenant = echo.datagrams.values().filter(|d| d.tenant == tenant);
            of_tenant.count()
        };
        // Four tenants with 20 networks each fill all places.
        for tenant in 1..=4 {
            for n in 0..20 * MAX_PER_NETWORK as u16 {
                let vni = tenant * 100 + u32::from(n % 20);
                let later = now + Duration::from_millis(n.into());
                give_of(&mut echo, later, (vni, tenant), &first(n));
            }
            assert_eq!(waiting(&echo, tenant), MAX_PER_TENANT);
        }
        assert_eq!(echo.datagrams.len(), MAX_DATAGRAMS);
        // Those of a fifth are answered, and it gets its share, of which none takes from it.
        let later = now + Duration::from_secs(1);
        let mut frames = Vec::new();
        for piece in request(false, 1, 3000, 1500) {
            frames = give_of(&mut echo, later, (900, 5), &piece);
        }
        assert_eq!(reassembled(false, &frames).len(), 3008);
        for n in 0..200u16 {
            let vni = 900 + u32::from(n % 20);
            give_of(&mut echo, later, (vni, 5), &first(n));
            give_of(&mut echo, later, (150, 1), &first(500 + n));
        }
        let shares: Vec<usize> = (1..=5).map(|tenant| waiting(&echo, tenant)).collect();
        assert!(shares.iter().all(|n| (25..=26).contains(n)), "{shares:?}");
        assert_eq!(echo.datagrams.len(), MAX_DATAGRAMS);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(
            frames in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..200), any::<bool>()),
                0..20,
            ),
            l3 in 0usize..40,
        ) {
            let mut echo = GatewayEcho::default();
            for (mut frame, shaped) in frames {
                if shaped && frame.len() > l3 {
                    frame[l3] = 0x45;
                }
                echo.fragment(Instant::now(), (1, 1), l3, &frame, 1500);
            }
            prop_assert!(echo.datagrams.len() <= MAX_PER_NETWORK);
        }
    }
}
