//! Lists the connections of full failover: reads whole maps, on a thread of its own.

use std::collections::BTreeMap;

use service::socket::Responder;

use super::one_tenant;
use crate::{
    control::{Answer, Connections, Reply, Request, RequestRefusal},
    daemon::controller::Controller,
    datapath::nat::{self, Filter, SlotNames},
    state::State,
};

/// Answers a request for connections.
pub(super) fn answer(controller: &Controller, request: Request, responder: Responder<Answer>) {
    let Request::Flows {
        tenant,
        protocol,
        address,
        port,
        top,
    } = request
    else {
        return;
    };
    if let Some(tenant) = &tenant
        && let Err(refusal) = one_tenant(controller, Some(tenant))
    {
        responder.send(Reply::Error(refusal));
        return;
    }
    let filter = Filter {
        tenant,
        protocol,
        address,
        port,
    };
    let root = controller.datapath().root().to_owned();
    let names = slot_names(controller.state());
    let answer = move || match nat::list(&root, &filter, &names, top) {
        Ok((connections, total)) => {
            Reply::Ok(Answer::Connections(Connections { total, connections }))
        }
        Err(error) => Reply::Error(RequestRefusal::new(
            "internal",
            format!("cannot read the connections: {error}"),
        )),
    };
    // At most as many threads at once as clients are served at once.
    let thread = std::thread::Builder::new().name("flows".to_owned());
    if let Err(error) = thread.spawn(move || responder.send(answer())) {
        tracing::warn!(%error, "cannot start a thread to read the connections");
    }
}

/// The names of the networks and tenants in the slots of the maps.
pub(in crate::daemon) fn slot_names(state: &State) -> SlotNames {
    let slots = &state.slots;
    let by_slot =
        |slots: &BTreeMap<String, u32>| slots.iter().map(|(n, slot)| (*slot, n.clone())).collect();
    let rule = |(key, slot): (&String, &u32)| {
        let name = key.split_once('/').map_or(key.as_str(), |(_, rule)| rule);
        (*slot, name.to_owned())
    };
    SlotNames {
        tenants: by_slot(&slots.tenants),
        networks: by_slot(&slots.networks),
        rules: slots.rules.iter().map(rule).collect(),
    }
}
