//! Initial inputs: real messages, and short programs of acts that reach interesting states.
//!
//! `tests/corpus.rs` writes them to `seeds/`, and checks that the files equal what this makes.

use tunnel::segment::{ControlMessage, Header};
use tunnel::{
    Cipher, Framing, InitiationPolicy, LoadLimits, Output, PayloadKind, PeerConfig, PeerPath,
    TunnelControl,
};

use super::common::{Clock, Seeded, addresses, outputs, publics, secrets};
use super::receiver::session;

/// A seed: its target, its name, its bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// Every seed.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut all = messages();
    all.extend(keys());
    all.extend(segments());
    all.extend(receivers());
    all.extend(handshakes());
    all.extend(controls());
    all
}

/// One of each message, made by two ends; the responder is under load at the second initiation.
fn messages() -> Vec<Seed> {
    let mut clock = Clock::new();
    let mut random = Seeded(3);
    let ([ours, theirs], [here, there, ..]) = (secrets(), addresses());
    let load = LoadLimits {
        cookie_threshold: 1,
        ..LoadLimits::default()
    };
    let mut one = TunnelControl::new(ours, LoadLimits::default());
    let mut two = TunnelControl::new(theirs, load);
    let config = |key, policy, path: PeerPath| PeerConfig {
        paths: vec![path],
        ..PeerConfig::causeway(key, policy)
    };
    one.add_peer(
        clock.instant(),
        config(publics()[1], InitiationPolicy::Always, there),
    );
    two.add_peer(
        clock.instant(),
        config(publics()[0], InitiationPolicy::Never, here),
    );
    let mut all = Vec::new();
    for (own, answer) in [("initiation", "response"), ("initiation-2", "cookie-reply")] {
        one.handle_timeout(clock.now(), &mut random);
        for bytes in sent(&mut one) {
            // The second is answered by a cookie, which is an error.
            let _ = two.handle_datagram(clock.now(), here, &bytes, &mut random);
            all.push(("message", own, bytes));
        }
        all.extend(
            sent(&mut two)
                .into_iter()
                .map(|bytes| ("message", answer, bytes)),
        );
        clock.advance(300_000_000);
    }
    for (name, cipher) in [
        ("data-chacha20", Cipher::ChaCha20Poly1305),
        ("data-aes256", Cipher::Aes256Gcm),
    ] {
        let (mut senders, _) = session(clock, Framing::Segments, cipher);
        let mut out = [0; 128];
        let packet = [0x45; 20];
        if let Ok(len) =
            senders[0].seal_packet(clock.instant(), PayloadKind::Ip, 1, &packet, &mut out)
        {
            all.push(("message", name, out[..len].to_vec()));
        }
    }
    all
}

fn sent(control: &mut TunnelControl) -> Vec<Vec<u8>> {
    outputs(control, 40)
        .into_iter()
        .filter_map(|output| match output {
            Output::Transmit { datagram, .. } => Some(datagram.as_bytes().to_vec()),
            _ => None,
        })
        .collect()
}

fn keys() -> Vec<Seed> {
    let key = publics()[0].to_string();
    vec![
        ("keys", "key", key.clone().into_bytes()),
        ("keys", "key-and-space", format!(" {key}\n").into_bytes()),
        ("keys", "cipher", b"aes-256-gcm".to_vec()),
        ("keys", "cipher-2", b"chacha20-poly1305".to_vec()),
    ]
}

fn segments() -> Vec<Seed> {
    let whole = Header::whole(PayloadKind::Frame, 0x0012_3456);
    let fragment = Header {
        stride: 16,
        index: 1,
        last: 3,
        ..Header::whole(PayloadKind::Ip, 7)
    };
    let echo = ControlMessage::Echo {
        token: 0x0102_0304_0506_0708,
        size: 1472,
    };
    // Two slots of 600 bytes, 100 ms: honest fragments of packets, time, a packet with rotated
    // fragments.
    let mut acts = vec![1, 2, 87, 100];
    for base in [0, 1, 2] {
        for index in 0..4 {
            acts.extend([2, base, index, 0]);
        }
    }
    acts.extend([5, 1, 44, 60, 0, 0, 0, 0, 0, 0, 1, 0, 3]);
    acts.extend([6, 4, 0, 0, 7, 3, 1, 0, 0, 2, 1, 1, 0]);
    vec![
        (
            "segment",
            "whole",
            [&whole.to_bytes()[..], &[0xaa; 14]].concat(),
        ),
        (
            "segment",
            "piece",
            [&fragment.to_bytes()[..], &[0xbb; 16]].concat(),
        ),
        ("segment", "control-message", echo.to_bytes().to_vec()),
        ("segment", "acts", acts),
    ]
}

fn receivers() -> Vec<Seed> {
    // framing, cipher; then lane, act and what the act needs.
    let begin = |wireguard: u8, aes: u8| vec![wireguard, aes];
    let mut honest = begin(0, 1);
    // A whole packet, one in fragments, a control message; each delivered twice, the newest first.
    honest.extend([0, 2, 0x45, 0, 40, 0, 2, 0x46, 9, 0xc4]);
    honest.extend([0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 5, 0xc0, 5, 0xc0]);
    for back in [0, 1, 2, 3, 4, 1] {
        honest.extend([0, 9, back]);
    }
    let mut nonsense = begin(0, 0);
    let fragment = Header {
        stride: 4,
        index: 0,
        last: 1,
        ..Header::whole(PayloadKind::Ip, 5)
    };
    nonsense.extend([1, 0, 12]);
    nonsense.extend(fragment.to_bytes());
    nonsense.extend([1, 2, 3, 4]);
    nonsense.extend([1, 1, 1, 4, 1, 0x77, 1, 9, 0, 1, 9, 1, 1, 9, 1]);
    nonsense.extend([0, 8, 0, 1, 6, 0, 0, 20, 0, 1]);
    // A packet before the session expires; then the clock jumps 200 s forward and back.
    let mut over = begin(0, 0);
    over.extend([
        0, 2, 7, 0, 80, 0, 9, 0, 0, 2, 8, 0, 90, 0, 4, 7, 208, 0, 0, 9, 0,
    ]);
    over.extend([0, 4, 255, 255, 1, 0, 9, 0, 0, 9, 0]);
    let mut wireguard = begin(1, 0);
    wireguard.extend([0, 2, 0, 0, 80, 0, 9, 0, 0, 0, 3, 0x45, 1, 2, 0, 9, 0]);
    vec![
        ("receiver", "honest", honest),
        ("receiver", "nonsense", nonsense),
        ("receiver", "over", over),
        ("receiver", "wireguard", wireguard),
    ]
}

fn handshakes() -> Vec<Seed> {
    // Timeout of the initiator, its initiation and the response delivered, data both ways.
    let round = [1, 0, 2, 0, 2, 0, 7, 0, 7, 1];
    let again = [0, 0, 200];
    let mut calm = vec![0];
    let mut loaded = vec![2];
    let mut changed = vec![8];
    for _ in 0..3 {
        calm.extend(round);
        calm.extend(again);
        // Initiation, cookie, initiation with the cookie; response, cookie, response again.
        loaded.extend([1, 0, 2, 0, 2, 0, 0, 1, 44, 1, 0, 2, 0, 2, 0, 2, 0]);
        loaded.extend(again);
        changed.extend([1, 0, 4, 0, 0, 5, 0, 1, 1, 0, 2, 0]);
        changed.extend([4, 0, 0, 0, 40, 0, 1, 1, 1, 2, 0, 6, 1, 1]);
    }
    // Responses that never arrive: sessions of the responder that are never confirmed.
    let mut lost = vec![0];
    lost.extend(round);
    lost.extend([0, 0xf0, 0, 0, 0xf0, 0]);
    for _ in 0..8 {
        lost.extend([0, 3, 232, 1, 0, 2, 0]);
    }
    lost.extend([7, 0, 7, 1]);
    vec![
        ("handshake", "calm", calm),
        ("handshake", "loaded", loaded),
        ("handshake", "changed", changed),
        ("handshake", "lost-answers", lost),
    ]
}

fn controls() -> Vec<Seed> {
    let up: &[u8] = &[
        4, 0, 9, 0, 0, 0, 0, 9, 0, 0, 0, 0, 9, 0, 0, 0, 0, 9, 0, 0, 0, 0,
    ];
    let talk: &[u8] = &[14, 0, 0, 50, 9, 0, 0, 0, 0, 14, 1, 0, 50, 9, 0, 0, 0, 0];
    let wait: &[u8] = &[7, 0, 7, 7, 1, 7, 2, 0, 100, 2];
    let mut plain = vec![0, 0, 0, 0, 0, 0];
    let mut lanes = vec![0, 0, 0xc0, 0, 0xc0, 0];
    let mut wireguard = vec![3, 0, 2, 0, 2, 0];
    for seed in [&mut plain, &mut lanes, &mut wireguard] {
        seed.extend(up);
        for _ in 0..3 {
            seed.extend(talk);
            seed.extend(wait);
        }
    }
    let mut back = plain.clone();
    back.extend([0, 0, 200, 5, 4, 0, 4, 1, 0, 0, 255, 4, 4, 0, 4, 1]);
    back.extend(up);
    let mut reports = plain.clone();
    reports.extend([
        17, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1,
    ]);
    reports.extend([
        18, 0, 1, 2, 0, 100, 4, 0, 19, 0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 0xc0, 0,
    ]);
    reports.extend([23, 0, 0, 4, 0, 23, 1, 0]);
    vec![
        ("control", "plain", plain),
        ("control", "lanes", lanes),
        ("control", "wireguard", wireguard),
        ("control", "clock-back", back),
        ("control", "reports", reports),
    ]
}
