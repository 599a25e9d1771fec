//! The life of one connection: opened (`open`), relayed (`carry`), counted and recorded.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{
    Shared,
    access::Record,
    carry::{End, Traffic, abort, carry},
    config::{RelayConfig, Times},
    counters, limits, open,
    refusal::ConnectionRefusal,
    threads::Busy,
};

pub(super) fn refuse(from: SocketAddr, refused: &ConnectionRefusal, shared: &Shared) {
    shared.counters.refuse(refused);
    tracing::debug!(%from, reason = refused.reason(), error = %refused, "connection refused");
}

/// Opens and relays an accepted connection until it ends.
pub(super) async fn serve(
    client: TcpStream,
    (from, local): (SocketAddr, SocketAddr),
    (mut counted, busy): (limits::Counted, Busy),
    config: Arc<RelayConfig>,
    shared: Arc<Shared>,
) {
    let counters = &shared.counters;
    let accepted = (SystemTime::now(), Instant::now());
    let mut info = open::ConnectionInfo {
        from,
        local,
        name: String::new(),
        tenant: String::new(),
        backend: String::new(),
        address: None,
    };
    // Boxed, so that the large state of opening is freed before the connection may become idle.
    let evicted = counted.eviction();
    let opened = Box::pin(open::open(
        &client,
        &mut info,
        &mut counted,
        &config,
        (counters, &shared.backends),
    ));
    let opened = tokio::select! {
        opened = opened => opened,
        () = evicted.notified() => Err(limits::Full::Gateway.into()),
    };
    let open::Opened {
        backend,
        limit,
        bytes,
        header,
    } = match opened {
        Ok(opened) => opened,
        Err(refused) => {
            refuse(info.from, &refused, &shared);
            // Connections without a route leave no record.
            if !info.backend.is_empty() {
                record(&shared, accepted, info, [0; 2], refused.reason());
            }
            return;
        }
    };
    let Times { idle, trial, .. } = config.times;
    drop(config);
    let traffic: Traffic = counters.traffic(&info.tenant);
    traffic.up.inc_by(bytes as u64);
    let open = counters.opened(&info.tenant);
    tracing::debug!(from = %info.from, tenant = info.tenant, "connection relayed");
    let read = [bytes + header, 0].map(|read| AtomicU64::new(read as u64));
    // Boxed, so that it is not kept where there is nothing to record.
    let info = shared.access().is_some().then(|| Box::new(info));
    let carried = carry(&client, &read, &backend, idle, &traffic, &shared.pipes);
    let limit = limit.unwrap_or(u32::MAX);
    let end = on_trial(carried, &mut counted, (trial, limit)).await;
    if end == End::Evicted {
        abort(&client, &backend);
    }
    let reason = end.name();
    counters
        .ended
        .get_or_create(&counters::Reason { reason })
        .inc();
    tracing::debug!(%from, end = reason, "connection ended");
    if let Some(info) = info {
        let [up, down] = read.map(AtomicU64::into_inner);
        record(&shared, accepted, *info, [up - header as u64, down], reason);
    }
    // Closed before they leave the count: an empty relay has no socket.
    drop((client, backend, open));
    drop((busy, counted));
}

/// Relays a connection, which may be evicted for others while it is on trial.
async fn on_trial(
    carried: impl Future<Output = End>,
    counted: &mut limits::Counted,
    (trial, limit): (Duration, u32),
) -> End {
    tokio::pin!(carried);
    tokio::select! {
        end = &mut carried => return end,
        () = counted.evicted() => return End::Evicted,
        () = sleep(trial) => {}
    }
    match counted.establish(limit) {
        Ok(()) => carried.await,
        Err(_) => End::Evicted,
    }
}

/// Writes an access record, if there is a file for them.
fn record(
    shared: &Shared,
    (time, begun): (SystemTime, Instant),
    info: open::ConnectionInfo,
    [up, down]: [u64; 2],
    end: &'static str,
) {
    let Some(access) = shared.access() else {
        return;
    };
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    access.add(Record {
        accepted: time.duration_since(UNIX_EPOCH).map_or(0, milliseconds),
        milliseconds: milliseconds(begun.elapsed()),
        client: info.from,
        local: info.local,
        name: info.name,
        tenant: info.tenant,
        backend: info.backend,
        address: info.address,
        up,
        down,
        end,
    });
}
