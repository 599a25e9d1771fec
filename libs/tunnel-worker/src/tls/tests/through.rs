//! Through the gateway's relay.

use gateway::relay::{
    Backend, Desired, Limits as RelayLimits, Relay, RelayConfig, Times as RelayTimes,
    route::{Names, Route, Table},
};

use super::*;

/// A gateway whose names below `acme.example` that offer the tunnel's protocol go to this listener.
fn relay(to: SocketAddr, proxy: bool) -> (tokio::runtime::Runtime, Relay) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let plan = RelayConfig {
        listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        limits: RelayLimits {
            connections: 100,
            per_source: 100,
            pipes: 100,
        },
        times: RelayTimes {
            hello: TIMEOUT,
            dial: TIMEOUT,
            idle: TIMEOUT,
            trial: TIMEOUT,
        },
        proxy_from: Vec::new(),
        names_file: None,
        access_log: None,
        desired: Desired {
            tenants: HashMap::from([("acme".into(), 10)]).into(),
            backends: HashMap::from([("appliance".into(), Backend::new(vec![to], proxy))]).into(),
            table: Table::new(vec![Route {
                names: Names::Below("acme.example".to_owned()),
                protocols: vec![ALPN.to_vec()],
                tenant: Some("acme".into()),
                backend: "appliance".into(),
            }])
            .expect("routes")
            .into(),
        },
    };
    let relay = {
        let _in = runtime.enter();
        Relay::start(plan).expect("listen")
    };
    (runtime, relay)
}

#[test]
fn a_gateway_relays_by_server_name_and_passes_the_clients_address() {
    for proxy in [false, true] {
        let (tenant, provider) = (Owner::new(), Owner::new());
        let (listener, fingerprint) = provider.listen(Limits::default(), proxy);
        let (_runtime, relay) = relay(listener.addresses()[0], proxy);
        let at = relay.addresses()[0];
        let _dialer = tenant.dial(dialing(at, fingerprint, 1));
        let (mut a, mut b) = (tenant.established(), provider.established());
        let (end, other) = (&mut a.rings[0], &mut b.rings[0]);
        exchange(end, other, 5000, |n| payload(n, (n % 2000) as usize + 2));
        assert_eq!(relay.connections_of("acme"), 1);
        assert_eq!(a.peer, at);
        let (mut client, tag) = raw(at, fingerprint);
        let hello = stream::hello(circuit(3), &key(3), 1, tag);
        client.write_all(&hello).expect("send");
        let from = client.sock.local_addr().expect("an address");
        let third = provider.established();
        assert_eq!(
            third.peer == from,
            proxy,
            "the address of the client with a PROXY header, otherwise the gateway's"
        );
        drop(third);
        assert!(matches!(provider.closed().1, CloseReason::Requested));
        if proxy {
            // A client that does not come through the gateway sends no PROXY header.
            let direct = tenant.dial(dialing(listener.addresses()[0], fingerprint, 2));
            let step = tenant.failed();
            assert!(matches!(step, DialStepError::Ended(_)), "{step:?}");
            until("counted", || {
                listener.stats().refused(RefusalReason::NoProxy) == 1
            });
            drop(direct);
        }
        drop(a);
        assert!(matches!(tenant.closed().1, CloseReason::Requested));
        assert!(matches!(provider.closed().1, CloseReason::ByPeer));
    }
}

#[test]
fn connections_from_outside_the_allowed_sources_are_refused() {
    let nets = |all: &[&str]| {
        all.iter()
            .map(|net| net.parse().expect("a prefix"))
            .collect()
    };
    let (tenant, provider) = (Owner::new(), Owner::new());
    for proxy in [false, true] {
        let elsewhere = nets(&["192.0.2.0/28", "2001:db8::10", "::1"]);
        let (listener, fingerprint) = provider.listen_to(elsewhere, Limits::default(), proxy);
        let (_runtime, relay) = relay(listener.addresses()[0], proxy);
        let _dialer = tenant.dial(dialing(relay.addresses()[0], fingerprint, 1));
        let step = tenant.failed();
        assert!(matches!(step, DialStepError::Ended(_)), "{step:?}");
        let stats = listener.stats();
        assert_eq!(
            (stats.refused(RefusalReason::NoGateway), stats.established),
            (1, 0)
        );
        drop(listener);

        let here = nets(&["192.0.2.0/28", "127.0.0.0/8"]);
        let (listener, fingerprint) = provider.listen_to(here, Limits::default(), proxy);
        let (_runtime, relay) = super::through::relay(listener.addresses()[0], proxy);
        let _dialer = tenant.dial(dialing(relay.addresses()[0], fingerprint, 1));
        let (mut a, mut b) = (tenant.established(), provider.established());
        exchange(&mut a.rings[0], &mut b.rings[0], 10, |n| payload(n, 100));
        assert_eq!(listener.stats().refused(RefusalReason::NoGateway), 0);
        drop(a);
        assert!(matches!(tenant.closed().1, CloseReason::Requested));
        assert!(matches!(provider.closed().1, CloseReason::ByPeer));
    }
}

#[test]
fn the_dialer_names_the_refusal_of_the_gateway() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let (_runtime, relay) = relay(listener.addresses()[0], false);
    let at = relay.addresses()[0];
    let mut unknown = dialing(at, fingerprint, 1);
    unknown.name = "tunnel.evil.example".to_owned();
    let _first = tenant.dial(unknown);
    let step = tenant.failed();
    assert!(matches!(step, DialStepError::NoRoute(_)), "{step:?}");
    drop(listener);
    let _second = tenant.dial(dialing(at, fingerprint, 1));
    let step = tenant.failed();
    assert!(matches!(step, DialStepError::NoBackend), "{step:?}");
}
