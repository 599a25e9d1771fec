//! The objects in pages: there may be thousands, and a reply is bounded.

use std::{collections::BTreeMap, ops::Bound};

use serde::{Deserialize, Serialize};
use service::desired::Source;

use super::Objects;

/// The kinds of objects in the order of pages.
const KINDS: [&str; 4] = ["tenant", "gateway", "peer", "network"];

/// Some objects of the desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredPage {
    pub source: Source,
    /// Revision of the state; 0: from a file. Pages of different revisions do not fit together.
    pub revision: u64,
    pub objects: Objects,
    /// The key to ask for the next page with, if more follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Progress through the objects.
struct Cursor<'a> {
    /// The page begins behind this object: the index of its kind, and its ID.
    after: Option<(usize, &'a str)>,
    /// Objects that still fit.
    left: usize,
    /// The last object of the page: kind and ID.
    last: String,
    /// More objects follow.
    is_full: bool,
}

impl Cursor<'_> {
    /// The objects of a kind that belong to the page.
    fn take<T: Clone>(&mut self, kind: usize, all: &BTreeMap<String, T>) -> BTreeMap<String, T> {
        let mut taken = BTreeMap::new();
        let from: Bound<&str> = match self.after {
            Some((of, _)) if kind < of => return taken,
            Some((of, id)) if kind == of => Bound::Excluded(id),
            Some(_) | None => Bound::Unbounded,
        };
        for (id, object) in all.range::<str, _>((from, Bound::Unbounded)) {
            if self.left == 0 {
                self.is_full = true;
                break;
            }
            self.left -= 1;
            self.last = format!("{}:{id}", KINDS[kind]);
            taken.insert(id.clone(), object.clone());
        }
        taken
    }
}

impl Objects {
    /// At most `limit` objects behind those of an earlier page, whose `next` is `after`, and the
    /// `next` of this page. `None`: `after` comes from no page.
    #[must_use]
    pub fn page(&self, after: Option<&str>, limit: usize) -> Option<(Self, Option<String>)> {
        let after = match after {
            None => None,
            Some(after) => {
                let (kind, id) = after.split_once(':')?;
                Some((KINDS.iter().position(|k| *k == kind)?, id))
            }
        };
        let mut cursor = Cursor {
            after,
            left: limit.max(1),
            last: String::new(),
            is_full: false,
        };
        let page = Self {
            tenants: cursor.take(0, &self.tenants),
            gateways: cursor.take(1, &self.gateways),
            peers: cursor.take(2, &self.peers),
            networks: cursor.take(3, &self.networks),
        };
        Some((page, cursor.is_full.then_some(cursor.last)))
    }

    /// Adds the objects of a further page.
    pub fn add(&mut self, page: Self) {
        self.tenants.extend(page.tenants);
        self.gateways.extend(page.gateways);
        self.peers.extend(page.peers);
        self.networks.extend(page.networks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many tenants, peers and networks, and one gateway.
    fn objects(count: usize) -> Objects {
        let mut objects: Objects = serde_json::from_value(serde_json::json!({
            "tenants": { "t": {} },
            "gateways": { "gw1": { "addresses": ["192.0.2.1:6180"] } },
            "peers": { "p": { "public_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=" } },
            "networks": { "n": { "tenant": "t", "peer": "p", "vni": 7, "interface": "eth1",
                "prefixes": ["10.1.0.0/24"] } },
        }))
        .expect("objects");
        let (tenant, peer) = (objects.tenants["t"].clone(), objects.peers["p"].clone());
        let network = objects.networks["n"].clone();
        for n in 1..count {
            objects.tenants.insert(format!("t{n}"), tenant.clone());
            objects.peers.insert(format!("p{n}"), peer.clone());
            objects.networks.insert(format!("n{n}"), network.clone());
        }
        objects
    }

    #[test]
    fn pages_have_each_object_once_and_no_page_is_longer_than_its_limit() {
        let all = objects(7);
        for limit in [1, 2, 7, 21, 22, 100] {
            let (mut joined, mut after, mut pages) = (Objects::default(), None, 0);
            loop {
                let (page, next) = all.page(after.as_deref(), limit).expect("a page");
                let counts = page.counts();
                let count = counts.tenants + counts.gateways + counts.peers + counts.networks;
                assert!((1..=limit).contains(&count), "{limit}: {count}");
                joined.add(page);
                pages += 1;
                after = next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(joined, all, "{limit}");
            assert_eq!(pages, 22_usize.div_ceil(limit));
        }
        for wrong in ["tenant", "host:t"] {
            assert_eq!(all.page(Some(wrong), 1), None, "{wrong}");
        }
        // An object that is gone meanwhile does not disturb its followers.
        let (page, _) = all.page(Some("peer:p3x"), 2).expect("a page");
        assert_eq!(page.peers.keys().collect::<Vec<_>>(), ["p4", "p5"]);
        let none = Objects::default().page(None, 5);
        assert_eq!(none, Some((Objects::default(), None)));
    }

    #[test]
    fn a_page_of_ten_thousand_objects_is_as_long_as_one_of_two_thousand() {
        let length = |count: usize| {
            let (page, next) = objects(count).page(None, 1000).expect("a page");
            assert!(next.is_some());
            serde_json::to_string(&page).expect("JSON").len()
        };
        let (few, many) = (length(2000), length(10_000));
        assert!(many < few + few / 10, "{few} and {many} bytes");
    }
}
