//! Intermediate changes: where changes wait for each other, one object first gives up what the
//! others need. Two pools that exchange ranges, and a pool under another name, need that.

use std::{collections::BTreeSet, net::IpAddr};

use control::{AddressRange, KINDS, KindInfo, VlanRange};
use serde_json::{Value, json};

use super::{Pending, Work, cleared, shown};

/// Makes one change on the way to those that wait. False if there is none that was not tried.
pub(super) fn any(work: &mut Work, pending: &[Pending], tried: &mut BTreeSet<String>) -> bool {
    for change in pending.iter().filter(|change| !change.is_last) {
        let (place, tenant, name) = &change.key;
        let info = &KINDS[*place];
        let there = work.copy.get(info, tenant, name);
        let there = there.map(|object| object["spec"].clone());
        let others = work.copy.others(info, tenant, name);
        for way in ways(info, there.as_ref(), change.spec.as_ref(), &others) {
            let text = way.as_ref().map_or_else(String::new, Value::to_string);
            let is_new = way != there && way != change.spec;
            let is_new = is_new && tried.insert(format!("{}: {text}", shown(&change.key)));
            let owner = change.owner.as_deref();
            if is_new && work.attempt(&change.key, way.as_ref(), owner).is_ok() {
                return true;
            }
        }
    }
    false
}

/// Specs that an object may have in between, the mildest first; `None` for a removal.
fn ways(
    info: &KindInfo,
    there: Option<&Value>,
    wanted: Option<&Value>,
    others: &[Value],
) -> Vec<Option<Value>> {
    match info.kind {
        "vlan-pool" => vlans(there, wanted, others),
        "address-pool" => ranges(there, wanted, others),
        "gateway" => items("addresses", there, wanted, others),
        "gateway-pool" => items("gateways", there, wanted, others),
        // Gateways of the pools that it keeps.
        "tenant" => kept(&["gateway_pools"], there, wanted),
        // The parts that are both in the new and in the old one.
        "plan" => {
            let mut all = kept(&["rules", "networks", "vms"], there, wanted);
            all.extend(there.map(|_| None));
            all
        }
        "network" | "appliance" => there.map(|_| cleared(info)).into_iter().collect(),
        "mapping" | "policy" | "rule" => there.map(|_| None).into_iter().collect(),
        _ => Vec::new(),
    }
}

fn list<'v>(spec: &'v Value, field: &str) -> &'v [Value] {
    spec[field].as_array().map_or(&[], Vec::as_slice)
}

fn with(spec: &Value, field: &str, items: Vec<Value>) -> Value {
    let mut spec = spec.clone();
    spec[field] = items.into();
    spec
}

/// The spec that is there, without what it shall lose.
fn kept(fields: &[&str], there: Option<&Value>, wanted: Option<&Value>) -> Vec<Option<Value>> {
    let (Some(there), Some(wanted)) = (there, wanted) else {
        return Vec::new();
    };
    let mut spec = there.clone();
    for field in fields {
        let both = list(there, field).iter();
        let both = both.filter(|item| list(wanted, field).contains(item));
        spec[*field] = both.cloned().collect::<Vec<_>>().into();
    }
    vec![Some(spec)]
}

/// A list of which each item is in one object only: what it shall have and no other has, what it
/// keeps, or its first item alone.
fn items(
    field: &str,
    there: Option<&Value>,
    wanted: Option<&Value>,
    others: &[Value],
) -> Vec<Option<Value>> {
    let is_taken = |item: &Value| others.iter().any(|other| list(other, field).contains(item));
    let mut all = Vec::new();
    if let Some(wanted) = wanted {
        let free = list(wanted, field).iter().filter(|item| !is_taken(item));
        all.push(with(wanted, field, free.cloned().collect()));
    }
    all.extend(kept(&[field], there, wanted).into_iter().flatten());
    all.extend(there.map(|there| {
        let first = list(there, field).iter().take(1);
        with(there, field, first.cloned().collect())
    }));
    some(all, &[field])
}

/// Specs with at least one item in these lists.
fn some(specs: Vec<Value>, fields: &[&str]) -> Vec<Option<Value>> {
    let has_any = |spec: &Value| fields.iter().any(|field| !list(spec, field).is_empty());
    specs.into_iter().filter(has_any).map(Some).collect()
}

const VLANS: [&str; 2] = ["with_internet", "without_internet"];

fn vlans_of(spec: &Value, field: &str) -> BTreeSet<u16> {
    let ranges = list(spec, field).iter().filter_map(Value::as_str);
    let ranges = ranges.filter_map(|text| text.parse::<VlanRange>().ok());
    ranges.flat_map(VlanRange::iter).collect()
}

/// VLANs as ranges.
fn as_ranges(vlans: &BTreeSet<u16>) -> Vec<Value> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for vlan in vlans {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *vlan => *last = *vlan,
            _ => ranges.push((*vlan, *vlan)),
        }
    }
    let ranges = ranges.into_iter();
    ranges
        .filter_map(|(first, last)| Some(json!(VlanRange::new(first, last)?)))
        .collect()
}

/// As [`items`], VLAN by VLAN.
fn vlans(there: Option<&Value>, wanted: Option<&Value>, others: &[Value]) -> Vec<Option<Value>> {
    let mut all = Vec::new();
    if let Some(wanted) = wanted {
        let is_near =
            |other: &&Value| other["host"] == wanted["host"] && other["switch"] == wanted["switch"];
        let near = others.iter().filter(is_near);
        let taken: BTreeSet<_> = near
            .flat_map(|other| VLANS.map(|field| vlans_of(other, field)))
            .flatten()
            .collect();
        let mut spec = wanted.clone();
        for field in VLANS {
            spec[field] = as_ranges(&(&vlans_of(wanted, field) - &taken)).into();
        }
        all.push(spec);
    }
    if let (Some(there), Some(wanted)) = (there, wanted) {
        let mut spec = there.clone();
        for field in VLANS {
            spec[field] = as_ranges(&(&vlans_of(there, field) & &vlans_of(wanted, field))).into();
        }
        all.push(spec);
    }
    for field in VLANS {
        let first = there.and_then(|there| vlans_of(there, field).first().copied());
        if let (Some(there), Some(first)) = (there, first) {
            let mut spec = there.clone();
            for of in VLANS {
                let vlans = (of == field).then_some(first).into_iter().collect();
                spec[of] = as_ranges(&vlans).into();
            }
            all.push(spec);
        }
    }
    some(all, &VLANS)
}

/// As [`items`], by parts of ranges.
fn ranges(there: Option<&Value>, wanted: Option<&Value>, others: &[Value]) -> Vec<Option<Value>> {
    const FIELD: &str = "ranges";
    let of = |spec: &Value| -> Vec<AddressRange> {
        let texts = list(spec, FIELD).iter().filter_map(Value::as_str);
        texts.filter_map(|text| text.parse().ok()).collect()
    };
    let taken: Vec<_> = others.iter().flat_map(of).collect();
    let mut all = Vec::new();
    if let Some(wanted) = wanted {
        let free = of(wanted)
            .into_iter()
            .flat_map(|range| without(range, &taken));
        all.push(with(
            wanted,
            FIELD,
            free.map(|range| json!(range)).collect(),
        ));
    }
    if let (Some(there), Some(wanted)) = (there, wanted) {
        let (ours, theirs) = (of(there), of(wanted));
        let both = ours.iter().flat_map(|range| {
            theirs
                .iter()
                .filter_map(|other| range.intersection(*other))
                .map(|both| json!(both))
        });
        all.push(with(there, FIELD, both.collect()));
    }
    all.extend(there.map(|there| {
        let first = of(there)
            .into_iter()
            .take(1)
            .map(|range| json!(range.first().to_string()));
        with(there, FIELD, first.collect())
    }));
    some(all, &[FIELD])
}

/// The parts of a range that are in none of the others.
fn without(range: AddressRange, others: &[AddressRange]) -> Vec<AddressRange> {
    let mut parts = vec![range];
    for other in others {
        let cut = |part: AddressRange| {
            let Some(both) = part.intersection(*other) else {
                return [Some(part), None];
            };
            let below = before(both.first()).and_then(|last| AddressRange::new(part.first(), last));
            let above = after(both.last()).and_then(|first| AddressRange::new(first, part.last()));
            [below, above]
        };
        parts = parts.into_iter().flat_map(cut).flatten().collect();
    }
    parts
}

fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(IpAddr::V4(u32::from(v4).checked_sub(1)?.into())),
        IpAddr::V6(v6) => Some(IpAddr::V6(u128::from(v6).checked_sub(1)?.into())),
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(IpAddr::V4(u32::from(v4).checked_add(1)?.into())),
        IpAddr::V6(v6) => Some(IpAddr::V6(u128::from(v6).checked_add(1)?.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_become_ranges() {
        let vlans = BTreeSet::from([1, 2, 3, 7, 9, 10]);
        assert_eq!(json!(as_ranges(&vlans)), json!(["1-3", "7", "9-10"]));
        assert!(as_ranges(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_pool_lets_go_of_what_it_shall_lose_before_it_takes() {
        let pool = |ranges: &[&str]| json!({ "host": "h", "switch": "s", "with_internet": ranges });
        let (there, wanted) = (pool(&["101-110"]), pool(&["105-120"]));
        let all = vlans(Some(&there), Some(&wanted), &[pool(&["111-130"])]);
        let shown: Vec<_> = all
            .into_iter()
            .flatten()
            .map(|spec| spec["with_internet"].clone())
            .collect();
        assert_eq!(
            shown,
            [json!(["105-110"]), json!(["105-110"]), json!(["101"])]
        );
        let (there, wanted) = (
            json!({ "ranges": ["192.0.2.10-192.0.2.19"] }),
            json!({ "ranges": ["192.0.2.15-192.0.2.29", "198.51.100.1"] }),
        );
        let all = ranges(
            Some(&there),
            Some(&wanted),
            &[json!({ "ranges": ["192.0.2.20-192.0.2.40"] })],
        );
        let shown: Vec<_> = all
            .into_iter()
            .flatten()
            .map(|spec| spec["ranges"].clone())
            .collect();
        assert_eq!(
            shown,
            [
                json!(["192.0.2.15-192.0.2.19", "198.51.100.1"]),
                json!(["192.0.2.15-192.0.2.19"]),
                json!(["192.0.2.10"])
            ]
        );
    }
}
