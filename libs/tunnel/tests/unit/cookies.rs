//! Cookie replies: the address they come from does not matter, and each counts once.

use std::{net::SocketAddr, time::Duration};

use tunnel::{
    InitiationPolicy, Instant, LoadLimits, Now, Output, PeerConfig, PeerPath, SecretKey,
    TunnelControl, control::Datagram, testing::Seeded,
};

const COOKIE_REPLY: u8 = 3;

fn path(host: u8) -> PeerPath {
    SocketAddr::from(([192, 0, 2, host], 6180)).into()
}

fn at(seconds: u64) -> Now {
    Now {
        mono: Instant::ORIGIN + Duration::from_secs(seconds),
        unix: Duration::from_secs(1_700_000_000 + seconds),
    }
}

/// The handshake messages that an end sends, with their destinations.
fn sent(control: &mut TunnelControl) -> Vec<(PeerPath, Datagram)> {
    std::iter::from_fn(|| control.poll_output())
        .filter_map(|output| match output {
            Output::Transmit { to, datagram } => Some((to, datagram)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_cookie_reply_from_another_address_does_not_move_the_peer() {
    let mut random = Seeded(7);
    let secrets = [(), ()].map(|()| SecretKey::generate(&mut random));
    let [client, server] = [0, 1].map(|own: usize| {
        let policy = [InitiationPolicy::Always, InitiationPolicy::Never][own];
        let limits = LoadLimits {
            cookie_threshold: [200, 0][own],
            ..LoadLimits::default()
        };
        let mut control = TunnelControl::new(secrets[own].clone(), limits);
        let config = PeerConfig {
            paths: if own == 0 { vec![path(1)] } else { Vec::new() },
            ..PeerConfig::wireguard(secrets[1 - own].public())
        };
        let peer = control.add_peer(
            at(0).mono,
            PeerConfig {
                initiation: policy,
                ..config
            },
        );
        (control, peer)
    });
    let ((mut client, peer), (mut server, _)) = (client, server);

    client.initiate(at(1).mono, peer);
    client.handle_timeout(at(1), &mut random);
    let [(to, initiation)] = sent(&mut client)[..] else {
        panic!("one initiation")
    };
    assert_eq!(to, path(1));
    let handled = server.handle_datagram(at(1), path(9), initiation.as_bytes(), &mut random);
    handled.expect_err("under load it wants a cookie");
    let [(_, reply)] = sent(&mut server)[..] else {
        panic!("one cookie reply")
    };
    assert_eq!(reply.as_bytes()[0], COOKIE_REPLY);

    // The reply, and copies of it, come from addresses that are not the peer's.
    let taken = client.handle_datagram(at(2), path(66), reply.as_bytes(), &mut random);
    taken.expect("it is the answer to this initiation");
    for host in [66, 67] {
        let copy = client.handle_datagram(at(2), path(host), reply.as_bytes(), &mut random);
        copy.expect_err("a cookie reply is taken once");
    }
    assert_eq!(sent(&mut client).len(), 0);

    // The next initiation goes where the first one went, and has the cookie.
    client.handle_timeout(at(8), &mut random);
    let [(to, initiation)] = sent(&mut client)[..] else {
        panic!("one more initiation")
    };
    assert_eq!(to, path(1));
    let handled = server.handle_datagram(at(8), path(9), initiation.as_bytes(), &mut random);
    handled.expect("it has the cookie of its path");
}
