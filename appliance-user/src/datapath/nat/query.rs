//! Reads the list of connections from the maps, on request of an operator.

use std::{collections::BTreeMap, io, path::Path};

use appliance_common::{
    limits::MAX_TENANTS,
    maps::{Mode, Tenant},
    nat::{Flow, FlowKey, OUTSIDE},
};

use super::{ConnectionRow, Filter, PinnedMap, SlotNames, TopConnections, clock::ticks_now};

/// Maximum number of connections in one answer.
pub const MAX_ROWS: usize = 10_000;

/// Lists the connections that match `filter`: at most `limit`, by bytes in descending order, and
/// the number of all matches. It reads whole maps, so it must not run on the daemon's event loop.
///
/// # Errors
/// When a map cannot be opened or read.
pub fn list(
    root: &Path,
    filter: &Filter,
    names: &SlotNames,
    limit: usize,
) -> io::Result<(Vec<ConnectionRow>, usize)> {
    let open = io::Error::other::<aya::maps::MapError>;
    let flows = PinnedMap::<FlowKey, Flow>::open(root, "FLOWS").map_err(open)?;
    let opening = PinnedMap::<FlowKey, Flow>::open(root, "OPENING").map_err(open)?;
    let excess = PinnedMap::<FlowKey, Flow>::open(root, "OPENING_EXCESS").map_err(open)?;
    let tenants = tenants(root)?;
    // Entries of an ended failover are not connections any more.
    let is_current = |zone: u16, epoch| zone == OUTSIDE || tenants.get(&zone) == Some(&epoch);
    let mut top = TopConnections::new(limit.min(MAX_ROWS));
    for table in [&flows, &opening, &excess] {
        table.for_each(|key, flow| {
            if is_current(key.zone, flow.from_epoch) && is_current(flow.to_zone, flow.to_epoch) {
                top.add(key, flow, filter, names, |back| get(table, back));
            }
        })?;
    }
    let total = top.total;
    let mut rows = Vec::new();
    for key in top.keys() {
        let found = [&flows, &opening, &excess]
            .into_iter()
            .find_map(|table| Some((table, get(table, &key)?)));
        // Deleted since.
        let Some((table, flow)) = found else { continue };
        let (mut back_key, mut back) = (FlowKey::default(), Flow::default());
        flow.inverse(&key, &mut back_key, &mut back);
        let back = get(table, &back_key);
        rows.push(ConnectionRow::new(
            &key,
            &flow,
            back.as_ref(),
            names,
            ticks_now(),
        ));
    }
    Ok((rows, total))
}

/// An entry; `None` if it does not exist or cannot be read.
fn get(table: &PinnedMap<FlowKey, Flow>, key: &FlowKey) -> Option<Flow> {
    table.get(key).ok().flatten()
}

/// The epochs of tenants in full failover, by zone.
fn tenants(root: &Path) -> io::Result<BTreeMap<u16, u32>> {
    let table = PinnedMap::<u32, Tenant>::open(root, "TENANTS").map_err(io::Error::other)?;
    let mut tenants = BTreeMap::new();
    for slot in 0..MAX_TENANTS {
        if let Some(tenant) = table.get(&slot)?
            && tenant.mode == Mode::Full as u32
        {
            tenants.insert(slot as u16 + 1, tenant.epoch);
        }
    }
    Ok(tenants)
}
