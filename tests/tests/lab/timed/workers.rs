//! Several workers: flows spread over them, and each flow stays in order, also if its frames arrive
//! at another worker's socket.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::{
    packet::ip,
    site::{ENCRYPTED, Site, Transfer},
};
use lab::Options;

const A: &str = "10.1.0.10";
const B: &str = "10.1.0.11";
const A6: &str = "2001:db8:1::10";
const TENANT: &str = "tenant-appliance";
const PROVIDER: &str = "provider-appliance";

/// Enough flows that the kernel's hash does not map all of them to one queue.
const FLOWS: u16 = 48;

/// Datagrams on many flows at once; each arrives once, in the order of its flow.
fn flows(site: &Site, from: (&str, &str), to: (&str, &str)) {
    const EACH: u32 = 50;
    let there = site.udp(to.0, to.1, 7000);
    let sockets: Vec<_> = (0..FLOWS)
        .map(|flow| site.udp(from.0, from.1, 7100 + flow))
        .collect();
    let target = SocketAddr::new(ip(to.1), 7000);
    let mut next = vec![0; usize::from(FLOWS)];
    for number in 0..EACH {
        for socket in &sockets {
            socket
                .send_to(&number.to_be_bytes(), target)
                .unwrap_or_else(|e| panic!("{}: {e}", from.0));
        }
        let mut buffer = [0; 64];
        for _ in 0..FLOWS {
            let (n, sender) = there
                .recv_from(&mut buffer)
                .unwrap_or_else(|e| panic!("{} → {}, number {number}: {e}", from.0, to.0));
            let flow = usize::from(sender.port() - 7100);
            assert_eq!(buffer[..n], u32::to_be_bytes(next[flow]), "flow {flow}");
            next[flow] += 1;
        }
    }
    assert!(next.iter().all(|n| *n == EACH));
}

/// A worker's numbers.
fn workers(site: &Site, appliance: &str, what: &str) -> Vec<u64> {
    let status = site.status(appliance);
    let all = status["workers"].as_array().expect("a list");
    all.iter()
        .map(|worker| worker[what].as_u64().expect("a number"))
        .collect()
}

/// Each worker delivered what was sealed for it, but one in a hundred: a machine that is held up
/// overflows veth's rings.
fn arrived(sealed: &[u64], delivered: &[u64]) {
    assert_eq!(sealed.len(), delivered.len());
    for (sealed, got) in sealed.iter().zip(delivered) {
        let enough = sealed - sealed / 100..=*sealed;
        assert!(
            enough.contains(got),
            "{got} of {sealed} arrived: {delivered:?}"
        );
    }
}

/// More than one worker has a good part.
fn spread(packets: &[u64]) {
    let busy = packets.iter().filter(|n| **n >= 100).count();
    assert!(busy > 1, "{packets:?}");
}

#[test]
fn flows_spread_over_the_workers_and_stay_in_order() {
    let options = Options {
        workers: 4,
        ..ENCRYPTED
    };
    let Some(site) = Site::bare(lab::sites::partial, options) else {
        return;
    };
    // The two ends need not have as many.
    site.configure(PROVIDER, |text| text.replace("workers = 4", "workers = 3"));
    site.start_appliances().unwrap_or_else(|e| panic!("{e}"));
    site.over("prod-a");
    for to in [A, A6] {
        site.reach("prod-b", to);
    }
    flows(&site, ("prod-b", B), ("replica-a", A));
    flows(&site, ("replica-a", A), ("prod-b", B));
    // Until the path MTU is found, each full-size packet is two datagrams.
    for host in [TENANT, PROVIDER] {
        site.await_path_mtu(host, 1500);
    }
    // Paced: a worker with more packets than its CPU can open drops them, and that is not tested
    // here.
    let pause = Duration::from_millis(1);
    Transfer::paced(&site, "prod-b", "replica-a", A, 64 << 20, pause).finish();
    for (from, ours, to, theirs) in [(TENANT, 4, PROVIDER, 3), (PROVIDER, 3, TENANT, 4)] {
        let sealed = workers(&site, from, "sealed");
        let delivered = workers(&site, to, "delivered");
        assert_eq!((sealed.len(), delivered.len()), (ours, theirs));
        spread(&sealed);
        // A worker seals in its own lane, and one worker opens each lane.
        let mut expected = vec![0; theirs];
        for (lane, packets) in sealed.iter().enumerate() {
            expected[lane % theirs] += packets;
        }
        arrived(&expected, &delivered);
        assert_eq!(site.counter(from, "drop_worker_full"), 0, "{from}");
    }
}

/// A NIC gives one queue to all datagrams of one peer: they are one UDP flow. Then workers hand
/// over.
#[test]
fn datagrams_of_one_queue_are_decrypted_by_all_workers() {
    let options = Options {
        workers: 4,
        ..ENCRYPTED
    };
    let Some(site) = Site::raise(lab::sites::partial, options) else {
        return;
    };
    // The router sends all by one queue, which is one queue at the provider's end.
    site.ok("wan", &["ethtool", "-L", "provider", "tx", "1"]);
    site.over("prod-a");
    site.reach("prod-b", A);
    flows(&site, ("prod-b", B), ("replica-a", A));
    let delivered = workers(&site, PROVIDER, "delivered");
    spread(&delivered);
    arrived(&workers(&site, TENANT, "sealed"), &delivered);
    let others: u64 = delivered[1..].iter().sum();
    let handed_over = workers(&site, PROVIDER, "handed_over");
    assert_eq!(handed_over[0], others, "{handed_over:?}");
    // Control messages before the router had one queue may have used others.
    let rest: u64 = handed_over[1..].iter().sum();
    assert!(rest * 100 < others, "{handed_over:?}");
    assert_eq!(site.counter(PROVIDER, "drop_worker_full"), 0);

    // A restarted daemon has all its workers.
    let provider = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    provider.kill().unwrap_or_else(|e| panic!("{e}"));
    provider.start().unwrap_or_else(|e| panic!("{e}"));
    site.reach("prod-b", A);
    flows(&site, ("prod-b", B), ("replica-a", A));
}

#[test]
fn an_interface_with_fewer_queues_than_workers_is_named() {
    let Some(site) = Site::bare(lab::sites::partial, ENCRYPTED) else {
        return;
    };
    site.configure(PROVIDER, |text| text.replace("workers = 1", "workers = 2"));
    let provider = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    provider.launch().unwrap_or_else(|e| panic!("{e}"));
    let begun = Instant::now();
    loop {
        // The control socket appears a moment later.
        let status = provider.cli(&["status"]).unwrap_or_else(|e| panic!("{e}"));
        if status
            .stdout
            .contains("has 1 receive and transmit queues for 2 workers")
        {
            assert!(
                status.stdout.contains("ethtool -L eth0 combined 2"),
                "{}",
                status.stdout
            );
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{}",
            status.stdout
        );
        thread::sleep(Duration::from_millis(50));
    }
}
