//! Forwarding on circuits allocates no memory. The count covers the whole process, so this test has
//! a separate one.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::{Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use gateway::circuit::socket::{Circuits, Setup};
use gateway_client::{
    end::{End, EndEvent},
    wire::{CircuitId, Key, Side},
};
use gateway_model::{Changes, Circuit, Tenant};

struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps what the trait asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_datagram_costs_no_allocation() {
    const DATAGRAMS: u64 = 20_000;
    let id = CircuitId::new(7 << 32).expect("an id");
    let keys = [1, 2].map(|byte| Key::new([byte; 32]));
    let tenant = Tenant {
        connections: 1,
        datagrams: Some(1_000_000),
        bytes: None,
    };
    let circuit = Circuit {
        tenant: "acme".into(),
        keys: keys.clone(),
    };
    let plan = Changes {
        tenants: vec![("acme".into(), Some(tenant))],
        circuits: vec![(id, Some(circuit))],
        ..Changes::default()
    };
    let setup = Setup::new(Duration::from_secs(60), 1);
    let listen = [(Ipv4Addr::LOCALHOST, 0).into()];
    let gateway = Circuits::start(setup, &listen, &plan).expect("listen");
    let ends = std::iter::zip(Side::BOTH, keys).map(|(side, key)| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let timeout = Some(Duration::from_secs(5));
        socket.set_read_timeout(timeout).expect("a deadline");
        socket.connect(gateway.addresses()[0]).expect("an address");
        let mut end = End::new(id, side, key);
        let mut buffer = [0; 64];
        let mut message = end.bind(1);
        loop {
            socket.send(&message).expect("send");
            let length = socket.recv(&mut buffer).expect("an answer");
            match end.receive(&buffer[..length], 1) {
                Some(EndEvent::Send(next)) => message = next,
                Some(EndEvent::Bound(_)) => return (socket, end),
                other => panic!("{other:?}"),
            }
        }
    });
    let [(a, mut end), (b, _)]: [(UdpSocket, End); 2] =
        ends.collect::<Vec<_>>().try_into().expect("two");
    let mut datagram = [9; 500];
    datagram[..8].copy_from_slice(&id.to_bytes());
    let mut buffer = [0; 500];
    let mut carry = |count: u64| {
        let before = COUNT.load(Ordering::Relaxed);
        for n in 0..count {
            // Some datagrams are forged, or of an unknown circuit.
            let forged = [0; 64];
            match n % 10 {
                7 => a.send(&forged).expect("send"),
                8 => a.send(&buffer[1..20]).expect("send"),
                _ => 0,
            };
            a.send(&datagram).expect("send");
            b.recv(&mut buffer).expect("receive");
            assert!(buffer == datagram);
        }
        COUNT.load(Ordering::Relaxed) - before
    };
    carry(100);
    let allocated = carry(DATAGRAMS);
    // The test's own harness may make some.
    assert!(allocated < 20, "{allocated} for {DATAGRAMS} datagrams");
    let before = COUNT.load(Ordering::Relaxed);
    let mut answer = [0; 64];
    for _ in 0..20 {
        a.send(&end.bind(1)).expect("send");
        assert_eq!(a.recv(&mut answer).expect("an answer"), 64);
    }
    let allocated = COUNT.load(Ordering::Relaxed) - before;
    assert!(allocated < 10, "{allocated} for 20 binds");
}
