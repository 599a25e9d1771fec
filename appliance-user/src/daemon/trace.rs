//! Following packets, for as long as somebody looks.

use std::time::{Duration, Instant};

use appliance_common::events::TraceFilter;
use serde_json::json;

use super::{Daemon, requests::Answer};
use crate::{
    control::Refusal,
    trace::{MOST, Step, Wanted},
};

/// How long nobody may have asked before it ends by itself: a client that was killed leaves nothing behind.
const PATIENCE: Duration = Duration::from_secs(5);

impl Daemon {
    pub(super) fn trace_start(&mut self, wanted: &Wanted) -> Answer {
        if self.traced.is_some() {
            return Err(Refusal::new(
                "conflict",
                "packets are being followed for somebody else already; wait until that ends",
            ));
        }
        let ifindex = match &wanted.interface {
            None => None,
            Some(name) if self.datapath.attached().contains_key(name) => {
                self.snapshot.links.get(name).map(|link| link.ifindex)
            }
            Some(name) => {
                let names: Vec<&str> = self
                    .datapath
                    .attached()
                    .keys()
                    .map(String::as_str)
                    .collect();
                return Err(Refusal::new(
                    "not-found",
                    format!(
                        "there is no program on interface {name:?}; there are on: {}",
                        names.join(", ")
                    ),
                ));
            }
        };
        // What an earlier one left unread.
        while self.datapath.next_step().is_some() {}
        let failed = |error: crate::datapath::Error| Refusal::new("internal", error.to_string());
        self.datapath
            .set_trace(&wanted.filter(ifindex))
            .map_err(failed)?;
        self.datapath.follow(true).map_err(failed)?;
        self.traced = Some(Instant::now());
        tracing::info!(?wanted, "packets are followed: programs replaced");
        Ok(json!("following"))
    }

    pub(super) fn trace_next(&mut self) -> Answer {
        let Some(asked) = &mut self.traced else {
            return Err(Refusal::new(
                "conflict",
                "no packets are followed, or not any more; begin anew",
            ));
        };
        *asked = Instant::now();
        let mut steps = Vec::new();
        while steps.len() < MOST {
            let Some(event) = self.datapath.next_step() else {
                break;
            };
            let mut links = self.snapshot.links.iter();
            let name = links
                .find(|(_, link)| link.ifindex == event.ifindex)
                .map(|(name, _)| name.as_str());
            steps.push(Step::new(&event, name));
        }
        serde_json::to_value(steps).map_err(|e| Refusal::new("internal", e.to_string()))
    }

    pub(super) fn trace_stop(&mut self) -> Answer {
        if self.traced.take().is_some() {
            let failed =
                |error: crate::datapath::Error| Refusal::new("internal", error.to_string());
            self.datapath
                .set_trace(&TraceFilter::default())
                .map_err(failed)?;
            self.datapath.follow(false).map_err(failed)?;
            tracing::info!("packets are not followed any more: programs put back");
        }
        Ok(json!("stopped"))
    }

    /// Ends it where nobody has asked for a while.
    pub(super) fn end_stale_trace(&mut self) {
        let stale = self.traced.is_some_and(|asked| asked.elapsed() > PATIENCE);
        if stale && let Err(refusal) = self.trace_stop() {
            tracing::error!(
                reason = refusal.message,
                "the programs that follow packets could not be replaced"
            );
        }
    }
}
