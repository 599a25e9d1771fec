//! The MSS of SYN segments is clamped to what the tunnel carries.

use appliance_common::wire::mss_for;

use super::*;

#[test]
fn a_syn_is_clamped_to_what_the_tunnel_carries() {
    let (mut tenant, mut provider) = pair();
    let mut sent = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 1, 0, 11], [10, 1, 0, 10], 64)
        .tcp(1, 2, 3, 4)
        .syn()
        .options(&[
            etherparse::TcpOptionElement::Noop,
            etherparse::TcpOptionElement::MaximumSegmentSize(1460),
        ])
        .expect("options")
        .write(&mut sent, &[])
        .expect("a packet");
    tenant.seal(at(10), &sent);
    let frames = tenant.take();
    provider.open(at(11), frames);
    let out = provider.take();
    let headers = etherparse::PacketHeaders::from_ethernet_slice(&out[0].1).expect("a frame");
    let (Some(etherparse::NetHeaders::Ipv4(ip, _)), Some(etherparse::TransportHeader::Tcp(tcp))) =
        (headers.net, headers.transport)
    else {
        panic!("no TCP over IPv4");
    };
    let mss = tcp.options_iterator().find_map(|option| match option {
        Ok(etherparse::TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
        _ => None,
    });
    assert_eq!(mss, Some(mss_for(1432, false)));
    assert_eq!(tcp.calc_checksum_ipv4(&ip, &[]), Ok(tcp.checksum));
    assert_eq!(provider.count(Counter::MssClamped), 1);
}

/// An IPv6 SYN behind `chain`: extension headers with their types, of eight bytes each.
fn syn6(chain: &[u8], to: &str) -> Vec<u8> {
    let mut tcp = vec![
        0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, 2, 0, 0, 0, 0, 0, 0,
    ];
    tcp.extend_from_slice(&[2, 4, 0x05, 0xa0]);
    let mut payload = Vec::new();
    for at in 0..chain.len() {
        let next = chain.get(at + 1).copied().unwrap_or(6);
        payload.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]);
    }
    payload.extend_from_slice(&tcp);
    let mut out = packet("2001:db8:1::11", to, &payload[8..]);
    out[6] = chain.first().copied().unwrap_or(6);
    out[40..].copy_from_slice(&payload);
    out
}

#[test]
fn a_syn_is_found_behind_four_extension_headers_and_no_more() {
    for (chain, clamped) in [
        (&[][..], 1),
        (&[0], 1),
        (&[60, 43], 1),
        (&[0, 43, 60, 60], 1),
        (&[0, 43, 60, 60, 60], 0),
        (&[44], 0),
    ] {
        let (mut tenant, mut provider) = pair();
        let sent = syn6(chain, "2001:db8:1::10");
        tenant.seal(at(10), &sent);
        let frames = tenant.take();
        provider.open(at(11), frames);
        let out = provider.take();
        let mss = &out[0].1[out[0].1.len() - 2..];
        let wanted = if clamped == 1 {
            mss_for(1432, true)
        } else {
            0x05a0
        };
        assert_eq!(mss, wanted.to_be_bytes(), "{chain:?}");
        assert_eq!(provider.count(Counter::MssClamped), clamped, "{chain:?}");
    }
}

#[test]
fn a_syn_that_waits_for_its_host_is_clamped_too() {
    let (mut tenant, mut provider) = pair();
    let unresolved = "2001:db8:1::12";
    provider.command(at(5), Command::Endpoint(host(VNI, unresolved), true));
    let sent = syn6(&[], unresolved);
    tenant.seal(at(10), &sent);
    let frames = tenant.take();
    provider.open(at(11), frames);
    let [(header, waiting)] = provider.wire.waiting.as_slice() else {
        panic!("nothing waits");
    };
    assert_eq!(header.len as usize, sent.len());
    assert_eq!(waiting[62..64], mss_for(1432, true).to_be_bytes());
    assert_eq!(provider.count(Counter::MssClamped), 1);
    assert_eq!(provider.count(Counter::SlowUnresolved), 1);
}
