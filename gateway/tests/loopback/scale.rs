//! A gateway of many tenants: what a whole configuration and one more circuit cost.

use std::{fmt::Write as _, path::Path, time::Instant};

use gateway::{circuit::socket::Circuits, config::Config};

/// A configuration of `tenants` tenants with ten circuits each, two limits and a route.
fn text(tenants: usize) -> String {
    let mut text = "[gateway]\nname = \"gw1\"\n[[backend]]\nname = \"b\"\naddresses = \
        [\"192.0.2.1:1\"]\n"
        .to_owned();
    for n in 0..tenants {
        let _ = write!(
            text,
            "[[tenant]]\nname = \"t{n}\"\ndatagrams = 1000\ndatagram_bytes = 1000000\n\
             [[route]]\nbelow = \"t{n}.example\"\ntenant = \"t{n}\"\nbackend = \"b\"\n"
        );
        for m in 0..10 {
            let circuit = n * 10 + m;
            let key = |side: usize| {
                let mut bytes = [side as u8; 32];
                bytes[..8].copy_from_slice(&(circuit as u64).to_be_bytes());
                gateway_client::wire::Key::new(bytes).to_base64()
            };
            let _ = write!(
                text,
                "[[circuit]]\nid = \"{:016x}\"\ntenant = \"t{n}\"\nkeys = [{:?}, {:?}]\n",
                (circuit as u64) << 48 | 1 << 32 | circuit as u64,
                key(0),
                key(1)
            );
        }
    }
    text
}

#[test]
fn a_configuration_of_100_000_circuits_is_applied_in_seconds() {
    // One whole tenant less, so that one more fits.
    let text = text(9_999);
    let begun = Instant::now();
    let config = Config::parse(&text, Path::new("test")).unwrap_or_else(|e| panic!("{e}"));
    let parsed = begun.elapsed();
    let listen = ["127.0.0.1:0".parse().expect("an address")];
    let mut circuits = Circuits::start(config.circuit_plan(), &listen, 2).expect("listen");
    let count = circuits.summary().circuits;
    let started = begun.elapsed();
    assert_eq!(count, config.circuits.list.len());
    let begun = Instant::now();
    let prepared = circuits
        .prepare(config.circuit_plan(), &listen)
        .expect("listen");
    circuits.take(prepared);
    assert_eq!(circuits.summary().circuits, count);
    let again = begun.elapsed();
    println!(
        "{count} circuits: checked in {parsed:?}, with threads in {started:?}; applied again in \
         {again:?}"
    );
    // Generous: two cores that others use as well. Quadratic checks took half a minute.
    assert!(
        started.as_secs() < 6 && again.as_secs() < 3,
        "{started:?} {again:?}"
    );
}
