//! The gateways that a tenant may use, and their order.

use std::collections::BTreeSet;

use thiserror::Error;

/// A gateway as the control plane knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Unique name.
    pub name: String,
    /// Pool of the gateway.
    pub pool: Option<String>,
    /// Load in thousandths of its capacity.
    pub load: u16,
}

/// The gateways that a tenant may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Pools in order; empty: only gateways without a pool.
    pub pools: Vec<String>,
    /// Whether gateways without a pool may be used when those of the pools fail. Ignored without
    /// pools.
    pub unpooled: bool,
}

/// A gateway that a tenant may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub name: String,
    /// Load in thousandths.
    pub load: u16,
    /// Position in the order: a gateway of a higher tier is used only while none of a lower tier
    /// works.
    pub tier: usize,
}

/// The gateways that a tenant may use, as received at bootstrap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(Vec<Candidate>);

/// Why a list cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ListError {
    /// Two gateways have one name, or one gateway is in two pools.
    #[error(
        "gateway {name:?} is defined twice, {first} and {second}; use unique names, and at most \
         one pool for each gateway"
    )]
    Twice {
        name: String,
        first: String,
        second: String,
    },
}

impl List {
    /// The gateways of `gateways` that `access` allows.
    ///
    /// # Errors
    /// [`ListError`], for every tenant.
    pub fn of(gateways: &[Gateway], access: &Access) -> Result<Self, ListError> {
        for (index, gateway) in gateways.iter().enumerate() {
            if let Some(other) = gateways[..index].iter().find(|g| g.name == gateway.name) {
                return Err(ListError::Twice {
                    name: gateway.name.clone(),
                    first: place(other),
                    second: place(gateway),
                });
            }
        }
        let tier = |gateway: &Gateway| match &gateway.pool {
            Some(pool) => access.pools.iter().position(|p| p == pool),
            None if access.pools.is_empty() || access.unpooled => Some(access.pools.len()),
            None => None,
        };
        let candidates = gateways.iter().filter_map(|gateway| {
            Some(Candidate {
                name: gateway.name.clone(),
                load: gateway.load,
                tier: tier(gateway)?,
            })
        });
        Ok(Self(candidates.collect()))
    }

    /// A received list. Of two gateways with one name the first is kept.
    #[must_use]
    pub fn received(mut candidates: Vec<Candidate>) -> Self {
        let mut seen = BTreeSet::new();
        candidates.retain(|candidate| seen.insert(candidate.name.clone()));
        Self(candidates)
    }

    /// The gateways, unordered.
    #[must_use]
    pub fn candidates(&self) -> &[Candidate] {
        &self.0
    }
}

fn place(gateway: &Gateway) -> String {
    match &gateway.pool {
        Some(pool) => format!("in pool {pool:?}"),
        None => "in no pool".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn gateway(name: &str, pool: Option<&str>) -> Gateway {
        Gateway {
            name: name.to_owned(),
            pool: pool.map(str::to_owned),
            load: 0,
        }
    }

    fn tiers(pools: &[&str], unpooled: bool) -> Vec<(String, usize)> {
        let gateways = [
            gateway("a", Some("gold")),
            gateway("b", Some("silver")),
            gateway("c", None),
            gateway("d", Some("lead")),
            gateway("e", Some("gold")),
        ];
        let access = Access {
            pools: pools.iter().map(|&p| p.to_owned()).collect(),
            unpooled,
        };
        let list = List::of(&gateways, &access).expect("a list");
        let mut tiers: Vec<_> = list
            .candidates()
            .iter()
            .map(|c| (c.name.clone(), c.tier))
            .collect();
        tiers.sort_by_key(|(_, tier)| *tier);
        tiers
    }

    fn named(tiers: &[(&str, usize)]) -> Vec<(String, usize)> {
        tiers.iter().map(|&(n, t)| (n.to_owned(), t)).collect()
    }

    #[test]
    fn a_tenant_without_a_pool_has_unpooled_gateways_only() {
        for unpooled in [false, true] {
            assert_eq!(tiers(&[], unpooled), named(&[("c", 0)]));
        }
    }

    #[test]
    fn a_tenant_with_pools_has_theirs_in_order() {
        assert_eq!(
            tiers(&["silver", "gold"], false),
            named(&[("b", 0), ("a", 1), ("e", 1)])
        );
    }

    #[test]
    fn unpooled_gateways_come_last_and_only_where_allowed() {
        assert_eq!(tiers(&["lead"], false), named(&[("d", 0)]));
        assert_eq!(tiers(&["lead"], true), named(&[("d", 0), ("c", 1)]));
        assert_eq!(tiers(&["nothing there"], false), named(&[]));
        assert_eq!(tiers(&["nothing there"], true), named(&[("c", 1)]));
    }

    #[test]
    fn a_gateway_in_two_pools_is_refused_by_name() {
        let gateways = [gateway("a", Some("gold")), gateway("a", None)];
        let error = List::of(&gateways, &Access::default()).expect_err("twice");
        assert_eq!(
            error.to_string(),
            "gateway \"a\" is defined twice, in pool \"gold\" and in no pool; use unique names, \
             and at most one pool for each gateway"
        );
    }

    #[test]
    fn a_received_list_keeps_each_name_once() {
        let candidate = |tier| Candidate {
            name: "a".to_owned(),
            load: 0,
            tier,
        };
        let list = List::received(vec![candidate(1), candidate(0)]);
        assert_eq!(list.candidates(), [candidate(1)]);
    }

    proptest! {
        #[test]
        fn a_tenant_gets_only_allowed_gateways(
            pools in vec(proptest::option::of(0usize..4), 0..12),
            access in vec(0usize..4, 0..4),
            unpooled: bool,
        ) {
            let pool = |n: usize| format!("p{n}");
            let gateways: Vec<_> = pools.iter().enumerate().map(|(n, p)| Gateway {
                name: n.to_string(),
                pool: p.map(pool),
                load: 0,
            }).collect();
            let list = List::of(&gateways, &Access {
                pools: access.iter().copied().map(pool).collect(),
                unpooled,
            }).expect("a list");
            for (n, p) in pools.iter().enumerate() {
                let given = list.candidates().iter().find(|c| c.name == n.to_string());
                let allowed = match p {
                    Some(p) => access.contains(p),
                    None => unpooled || access.is_empty(),
                };
                prop_assert_eq!(given.is_some(), allowed);
                if let (Some(given), Some(p)) = (given, p) {
                    prop_assert_eq!(access[given.tier], *p);
                    prop_assert!(!access[..given.tier].contains(p));
                } else if let Some(given) = given {
                    prop_assert_eq!(given.tier, access.len());
                }
            }
        }
    }
}
