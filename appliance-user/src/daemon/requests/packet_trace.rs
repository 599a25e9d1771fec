//! Packet trace: programs that report each step, for as long as a client asks.

use std::time::{Duration, Instant};

use appliance_common::events::TraceFilter;

use super::Outcome;
use crate::{
    control::{Answer, Done, RequestRefusal},
    daemon::controller::Controller,
    datapath::Error,
    trace::{MAX_STEPS, PacketFilter, Step},
};

/// Time without a request after which a trace ends by itself: a client that was killed leaves no
/// trace running.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The trace that is running, if one is.
#[derive(Default)]
pub(in crate::daemon) struct PacketTrace {
    /// When its client last asked.
    last_asked: Option<Instant>,
}

impl PacketTrace {
    /// Begins a trace.
    ///
    /// # Errors
    /// The refusal: another one is running, there is no such interface, or a program cannot be
    /// replaced.
    pub fn start(&mut self, controller: &mut Controller, filter: &PacketFilter) -> Outcome {
        if self.last_asked.is_some() {
            return Err(RequestRefusal::new(
                "conflict",
                "another client is tracing packets; try again when it has finished",
            ));
        }
        let datapath = controller.datapath();
        let ifindex = match &filter.interface {
            None => None,
            Some(name) if datapath.attached().contains_key(name) => {
                let link = controller.snapshot().links.get(name);
                link.map(|link| link.ifindex)
            }
            Some(name) => {
                let names: Vec<&str> = datapath.attached().keys().map(String::as_str).collect();
                let names = names.join(", ");
                return Err(RequestRefusal::new(
                    "not-found",
                    format!("interface {name:?} has no XDP program; interfaces that have: {names}"),
                ));
            }
        };
        let datapath = controller.datapath_mut();
        // Steps that an earlier trace left unread.
        while datapath.next_trace_event().is_some() {}
        datapath
            .set_trace_filter(&filter.to_map(ifindex))
            .map_err(internal)?;
        datapath.set_tracing(true).map_err(internal)?;
        self.last_asked = Some(Instant::now());
        tracing::info!(?filter, "packet trace started: tracing programs attached");
        Ok(Answer::Done(Done::Following))
    }

    /// The steps since the last request, at most [`MAX_STEPS`].
    ///
    /// # Errors
    /// The refusal: no trace is running.
    pub fn next(&mut self, controller: &mut Controller) -> Outcome {
        let Some(last_asked) = &mut self.last_asked else {
            return Err(RequestRefusal::new(
                "conflict",
                "no packet trace is running: it was stopped, or timed out; start it again",
            ));
        };
        *last_asked = Instant::now();
        let mut steps = Vec::new();
        while steps.len() < MAX_STEPS {
            let Some(event) = controller.datapath_mut().next_trace_event() else {
                break;
            };
            let mut links = controller.snapshot().links.iter();
            let name = links
                .find(|(_, link)| link.ifindex == event.ifindex)
                .map(|(name, _)| name.as_str());
            steps.push(Step::new(&event, name));
        }
        Ok(Answer::Steps(steps))
    }

    /// Ends a trace, if one is running.
    ///
    /// # Errors
    /// The refusal: a program cannot be replaced.
    pub fn stop(&mut self, controller: &mut Controller) -> Outcome {
        if self.last_asked.take().is_some() {
            let datapath = controller.datapath_mut();
            datapath
                .set_trace_filter(&TraceFilter::default())
                .map_err(internal)?;
            datapath.set_tracing(false).map_err(internal)?;
            tracing::info!("packet trace stopped: normal programs attached");
        }
        Ok(Answer::Done(Done::Stopped))
    }

    /// Ends a trace whose client has not asked for a while.
    pub fn end_if_stale(&mut self, controller: &mut Controller) {
        let last_asked = self.last_asked;
        let stale = last_asked.is_some_and(|asked| asked.elapsed() > CLIENT_TIMEOUT);
        if stale && let Err(refusal) = self.stop(controller) {
            tracing::error!(
                reason = refusal.message,
                "cannot replace the tracing programs by the normal ones"
            );
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn internal(error: Error) -> RequestRefusal {
    RequestRefusal::new("internal", error.to_string())
}
