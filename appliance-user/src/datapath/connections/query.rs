//! What an operator asks of the connections, read from the maps.

use std::{collections::BTreeMap, io, path::Path};

use appliance_common::{
    limits::MAX_TENANTS,
    maps::{Mode, Tenant},
    nat::{Flow, FlowKey, OUTSIDE},
};

use super::{ConnectionRow, Filter, PinnedMap, SlotNames, TopConnections, sweeper::ticks_now};

/// Most connections that one answer has.
pub const MAX_ROWS: usize = 10_000;

/// The connections that move most bytes, at most `most` of those wanted, and how many are wanted. It reads whole maps:
/// not for the daemon's loop.
///
/// # Errors
/// When a map is not there, or the kernel refuses.
pub fn list(
    root: &Path,
    filter: &Filter,
    names: &SlotNames,
    most: usize,
) -> io::Result<(Vec<ConnectionRow>, usize)> {
    let open = io::Error::other::<aya::maps::MapError>;
    let flows = PinnedMap::<FlowKey, Flow>::open(root, "FLOWS").map_err(open)?;
    let opening = PinnedMap::<FlowKey, Flow>::open(root, "OPENING").map_err(open)?;
    let tenants = tenants(root)?;
    // What is left of a failover that is over is no connection any more.
    let stands = |zone: u16, epoch| zone == OUTSIDE || tenants.get(&zone) == Some(&epoch);
    let mut top = TopConnections::new(most.min(MAX_ROWS));
    for table in [&flows, &opening] {
        table.each(|key, flow| {
            if stands(key.zone, flow.from_epoch) && stands(flow.to_zone, flow.to_epoch) {
                top.take(key, flow, filter, names, |back| get(table, back));
            }
        })?;
    }
    let total = top.total;
    let mut rows = Vec::new();
    for key in top.keys() {
        let found = [&flows, &opening]
            .into_iter()
            .find_map(|table| Some((table, get(table, &key)?)));
        // Gone since.
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

/// One entry; what cannot be read is as good as gone.
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
