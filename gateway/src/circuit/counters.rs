//! Metrics of circuits, collected from their threads at each scrape.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::{
    fast::Fast,
    socket::Observer,
    table::{Reason, TenantCounts},
};

/// The metrics of all circuits.
#[derive(Debug)]
pub struct Collected(pub Observer);

const COUNTER: MetricType = MetricType::Counter;
const SIDES: [&str; 2] = ["a", "b"];

/// Labels and value of a sample.
type Sample<'a> = (Vec<(&'static str, &'a str)>, u64);

fn counters<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<&Unit>),
    samples: impl Iterator<Item = Sample<'a>>,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, unit, COUNTER)?;
    for (labels, value) in samples {
        ConstCounter::new(value).encode(metric.encode_family(&Labels(labels))?)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Labels<'a>(Vec<(&'static str, &'a str)>);

impl EncodeLabelSet for Labels<'_> {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>,
    ) -> Result<(), fmt::Error> {
        self.0.as_slice().encode(encoder)
    }
}

/// Metrics of the XDP program.
fn encode_xdp(encoder: &mut DescriptorEncoder<'_>, fast: &Fast) -> Result<(), fmt::Error> {
    // An unreadable map gives no samples.
    let outcomes = fast.outcomes().unwrap_or_default();
    let outcomes = outcomes
        .iter()
        .map(|(outcome, count)| (vec![("outcome", outcome.name())], *count));
    let name = "causeway_gateway_xdp_frames";
    let help = "Frames that the XDP program received, by `outcome`";
    counters(encoder, (name, help, None), outcomes)?;
    let mut metric = encoder.encode_descriptor(
        "causeway_gateway_xdp_interface",
        "Whether XDP forwards circuits on the interface; 0: refused, circuits use user space",
        None,
        MetricType::Gauge,
    )?;
    for interface in fast.interfaces() {
        let mode = interface.mode.as_ref().map_or("none", |mode| mode.name());
        let labels = vec![("interface", interface.name.as_str()), ("mode", mode)];
        ConstGauge::new(u64::from(interface.mode.is_ok()))
            .encode(metric.encode_family(&Labels(labels))?)?;
    }
    Ok(())
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let state = self.0.summary();
        let encoder = &mut encoder;
        let totals = state.totals;
        for (name, help, value) in [
            (
                "causeway_gateway_datagrams_received",
                "Datagrams received on the UDP port of circuits",
                totals.received,
            ),
            (
                "causeway_gateway_datagrams_overflowed",
                "Datagrams dropped because a receive buffer was full",
                totals.overflowed,
            ),
            (
                "causeway_gateway_datagrams_sent",
                "Datagrams sent, answers to messages included",
                totals.sent,
            ),
            (
                "causeway_gateway_datagrams_no_room",
                "Datagrams dropped because a send buffer was full",
                totals.full,
            ),
            (
                "causeway_gateway_datagrams_not_sent",
                "Datagrams that the kernel refused to send",
                totals.refused,
            ),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, COUNTER)?;
            ConstCounter::new(value).encode(metric)?;
        }
        let name = "causeway_gateway_datagrams_dropped";
        let help = "Dropped datagrams; empty `tenant` means unknown circuit ID";
        let unknown = Reason::ALL.into_iter().zip(state.drops);
        let unknown = unknown.filter(|(reason, _)| !reason.has_circuit());
        let unknown =
            unknown.map(|(reason, n)| (vec![("tenant", ""), ("reason", reason.name())], n));
        let of_tenants = state.tenants.iter().flat_map(|(tenant, of)| {
            let drops = Reason::ALL.into_iter().zip(of.counts.drops);
            let drops = drops.filter(|(_, count)| *count > 0);
            drops.map(|(reason, count)| {
                (
                    vec![("tenant", &**tenant), ("reason", reason.name())],
                    count,
                )
            })
        });
        counters(encoder, (name, help, None), unknown.chain(of_tenants))?;
        let by_side = |value: fn(&TenantCounts, usize) -> u64| {
            state.tenants.iter().flat_map(move |(tenant, of)| {
                SIDES.into_iter().enumerate().map(move |(side, name)| {
                    (vec![("tenant", &**tenant), ("from", name)], value(of, side))
                })
            })
        };
        let name = "causeway_gateway_circuit_datagrams";
        let help = "Forwarded datagrams, by sending side";
        let datagrams = by_side(|of, side| of.counts.from[side].datagrams);
        counters(encoder, (name, help, None), datagrams)?;
        let name = "causeway_gateway_circuit";
        let help = "Forwarded bytes, circuit IDs included, by sending side";
        let bytes = by_side(|of, side| of.counts.from[side].bytes);
        counters(encoder, (name, help, Some(&Unit::Bytes)), bytes)?;
        let name = "causeway_gateway_circuit_fast_datagrams";
        let help = "Forwarded datagrams that XDP forwarded, by sending side";
        let fast = by_side(|of, side| of.fast[side].datagrams);
        counters(encoder, (name, help, None), fast)?;
        if let Some(fast) = self.0.fast() {
            encode_xdp(encoder, fast)?;
        }
        let events = state.tenants.iter().flat_map(|(tenant, of)| {
            let events = of.counts.events.named().into_iter();
            let events = events.filter(|(_, count)| *count > 0);
            events.map(|(event, count)| (vec![("tenant", &**tenant), ("event", event)], count))
        });
        let name = "causeway_gateway_circuit_events";
        let help =
            "Events of the ends of circuits: bound, moved, challenged, expired, left, sent-away";
        counters(encoder, (name, help, None), events)?;
        for (name, help, value) in [
            (
                "causeway_gateway_circuits",
                "Circuits of the tenant",
                (|of| of.circuits) as fn(&TenantCounts) -> usize,
            ),
            (
                "causeway_gateway_circuit_bound",
                "Bound ends of the tenant's circuits, two for each circuit at most",
                |of| of.bound,
            ),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (tenant, of) in &state.tenants {
                let labels = Labels(vec![("tenant", &**tenant)]);
                ConstGauge::new(value(of) as u64).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
