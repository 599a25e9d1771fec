//! Conditions of machines, as their agents tell of them.

use crate::{Condition, Holds, Kind, NO_AGENT, Object, Observed};

/// Whether a machine has enrolled; if so, whether its agent is connected, and says that the machine
/// is ready.
pub(super) fn of_agent<K: Kind>(object: &Object<K>, observed: &Observed<'_>) -> Vec<Condition> {
    let kind = K::KIND;
    let condition = |kind, holds, reason, text| Condition::new(object, kind, holds, reason, text);
    let Some(agent) = observed.agent(object) else {
        let text = format!(
            "no machine has enrolled as this {kind}: create a token by `causeway {kind} token`"
        );
        return vec![condition("Enrolled", false, NO_AGENT, text)];
    };
    let text = format!("the machine's certificate holds until {}", agent.expires);
    let mut enrolled = condition("Enrolled", true, "Enrolled", text);
    enrolled.since = Some(agent.enrolled);
    if observed.now > agent.expires {
        enrolled.is_well = false;
        enrolled.reason = "CertificateExpired";
        enrolled.message = format!(
            "the machine's certificate has expired at {}: connect the machine, which renews it, or \
             enrol it by a new token",
            agent.expires
        );
    }
    let Some(connection) = agent.connection else {
        let text = "the machine's agent is not connected: look at its log, and at the gateways \
                    between"
            .to_owned();
        let connected = condition("Connected", false, "NotConnected", text.clone());
        let mut ready = condition("Ready", false, "NotConnected", text);
        ready.status = Holds::Unknown;
        return vec![enrolled, connected, ready];
    };
    let text = format!("the machine runs version {}", connection.version);
    let mut connected = condition("Connected", true, "Connected", text);
    connected.since = Some(connection.since);
    let ready = match connection.report {
        None => {
            let text = "the machine has not reported yet".to_owned();
            let mut ready = condition("Ready", false, "NoReport", text);
            ready.status = Holds::Unknown;
            ready
        }
        Some((true, _)) => {
            let text = "the machine does what it is configured for".to_owned();
            condition("Ready", true, "Ready", text)
        }
        Some((false, reasons)) => condition("Ready", false, "NotReady", reasons.join("; ")),
    };
    vec![enrolled, connected, ready]
}
