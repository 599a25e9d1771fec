use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use super::*;

fn pair(address: IpAddr) -> (Socket, UdpSocket, Path) {
    let socket = Socket::bind((address, 0).into()).expect("a socket");
    let far = UdpSocket::bind((address, 0)).expect("a socket");
    let timeout = Some(Duration::from_secs(5));
    far.set_read_timeout(timeout).expect("a deadline");
    let to = Path {
        socket: 0,
        local: Some(address),
        remote: far.local_addr().expect("an address"),
    };
    (socket, far, to)
}

const LOOPBACKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

#[test]
fn joined_datagrams_are_sent_one_by_one() {
    let bytes: Vec<u8> = (0..=255).cycle().take(4000).collect();
    // Places and lengths; the bytes of some follow one another, of others not.
    let parts = [
        (0, 100),
        (100, 100),
        (300, 100),
        (400, 60),
        (460, 60),
        (2000, 90),
        (10, 90),
        (20, 1),
        (500, 1400),
    ];
    for address in LOOPBACKS {
        for way in ["joined", "not joined", "joined and refused"] {
            let (mut socket, far, to) = pair(address);
            socket.gso &= way != "not joined";
            let mut outbox = Outbox::new(64);
            for (offset, length) in parts {
                outbox.push(&socket, &to, offset, length);
            }
            let joined: Vec<usize> = outbox.messages.iter().map(|m| m.segments).collect();
            if socket.gso {
                assert_eq!(joined, [4, 1, 3, 1]);
            }
            let sent = if way == "joined and refused" {
                let mut sent = Sent::default();
                for message in outbox.messages.clone() {
                    outbox.one_by_one(&socket, &message, &bytes, &mut sent);
                }
                sent
            } else {
                outbox.flush(&mut socket, &bytes)
            };
            let all = Sent {
                sent: parts.len() as u64,
                ..Sent::default()
            };
            assert_eq!(sent, all, "{way}");
            let mut room = [0; 2048];
            for (offset, length) in parts {
                let (got, from) = far.recv_from(&mut room).expect("a datagram");
                assert_eq!(&room[..got], &bytes[offset..offset + length], "{way}");
                assert_eq!(from, socket.address);
            }
        }
    }
}

#[test]
fn refused_datagrams_are_counted_and_block_no_others() {
    let (mut socket, far, to) = pair(LOOPBACKS[0]);
    let refused = Path {
        remote: ([127, 0, 0, 1], 0).into(),
        ..to
    };
    let elsewhere = Path {
        local: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
        ..to
    };
    let bytes = [5; 100];
    let mut outbox = Outbox::new(8);
    for path in [refused, to, refused, refused, elsewhere, to] {
        outbox.push(&socket, &path, 0, 50);
    }
    let sent = outbox.flush(&mut socket, &bytes);
    assert_eq!((sent.sent, sent.refused, sent.full), (2, 4, 0));
    let mut room = [0; 100];
    for _ in 0..2 {
        assert_eq!(far.recv(&mut room).expect("a datagram"), 50);
    }
    assert!(socket.gso);
    // Beyond its room it takes no more.
    for _ in 0..20 {
        outbox.push(&socket, &to, 0, 50);
    }
    assert!(outbox.spans.capacity() >= 8 && outbox.messages.len() <= outbox.messages.capacity());
}

#[test]
fn a_batch_has_source_and_destination_of_each_message() {
    for address in LOOPBACKS {
        let (socket, far, _) = pair(address);
        far.connect(socket.address).expect("an address");
        for word in [&b"one"[..], b"", b"three"] {
            far.send(word).expect("send");
        }
        let mut batch = Batch::new();
        assert_eq!(batch.receive(&socket).expect("three"), 3);
        let lengths = [3, 0, 5];
        for (n, length) in lengths.into_iter().enumerate() {
            let received = batch.received(n).expect("whole");
            assert_eq!(received.length, length);
            assert_eq!(received.from, far.local_addr().expect("an address"));
            assert_eq!(received.local, Some(address));
        }
        assert!(batch.received(3).is_none());
        let offset = batch.received(2).expect("whole").offset;
        assert_eq!(&batch.bytes()[offset..offset + 5], b"three");
        let nothing = batch.receive(&socket).expect_err("nothing");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        assert!(batch.received(0).is_none());
    }
}
