//! Claims compared with the objects that they belong to.
//!
//! A claim reserves one VLAN or one public address for one object. Claims and objects are written
//! in the same transactions, so that they differ only in a store that was damaged or edited. Such a
//! store gives a VLAN or an address out twice: it is refused, or its claims are made again.

use std::collections::BTreeMap;

use crate::{
    Claim, Object, State, Transaction,
    state::{address_claim, vlan_claim, vlan_domain},
};

/// A difference between the claims and the objects of a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// An object has a VLAN or an address, and no claim reserves it.
    #[error("{owner} has {key:?}, and this claim is missing")]
    Missing {
        key: String,
        /// The object.
        owner: Claim,
    },
    /// A claim reserves a VLAN or an address that no object has.
    #[error("claim {key:?} is that of {claim}, which does not have it")]
    Unowned {
        key: String,
        /// As it is stored.
        claim: Claim,
    },
    /// A claim names another object or pool than the object that has the VLAN or the address.
    #[error("claim {key:?} is that of {claim}, and {owner} has it")]
    Other {
        key: String,
        /// As it is stored.
        claim: Claim,
        /// The object.
        owner: Claim,
    },
    /// Two objects have the same VLAN or address. No claims can be made for both.
    #[error("{first} and {second} both have {key:?}")]
    Twice {
        key: String,
        /// One of the objects.
        first: Claim,
        /// The other one.
        second: Claim,
    },
    /// The switch of a network does not exist. No claim can be made for its VLAN.
    #[error("{owner} is on switch {switch:?} of host {host:?}, which does not exist")]
    NoSwitch {
        /// The network.
        owner: Claim,
        /// Name of the host.
        host: String,
        /// Name of the switch.
        switch: String,
    },
}

impl ClaimError {
    /// Whether the objects themselves contradict each other, so that no claims can be made of them.
    #[must_use]
    pub const fn is_of_objects(&self) -> bool {
        matches!(self, Self::Twice { .. } | Self::NoSwitch { .. })
    }
}

impl State {
    /// All differences between claims and objects, in both directions: first those of the objects
    /// themselves, then those of claims, by key.
    #[must_use]
    pub fn claim_errors(&self) -> Vec<ClaimError> {
        let (owners, mut found) = self.owners();
        for (key, owner) in &owners {
            let (key, owner) = (key.clone(), owner.clone());
            match self.claims.get(&key).cloned() {
                Some(claim) if claim == owner => {}
                Some(claim) => found.push(ClaimError::Other { key, claim, owner }),
                None => found.push(ClaimError::Missing { key, owner }),
            }
        }
        for (key, claim) in &self.claims {
            if !owners.contains_key(key) {
                let (key, claim) = (key.clone(), claim.clone());
                found.push(ClaimError::Unowned { key, claim });
            }
        }
        found
    }

    /// The transaction that makes the claims those of the objects; empty if they are.
    ///
    /// # Errors
    /// The objects contradict each other.
    pub fn repaired_claims(&self) -> Result<Transaction, Box<ClaimError>> {
        let mut transaction = Transaction::default();
        for error in self.claim_errors() {
            match error {
                ClaimError::Missing { key, owner } | ClaimError::Other { key, owner, .. } => {
                    let value = serde_json::to_string(&owner).unwrap_or_default();
                    transaction.put.insert(key, value);
                }
                ClaimError::Unowned { key, .. } => drop(transaction.delete.insert(key)),
                ClaimError::Twice { .. } | ClaimError::NoSwitch { .. } => {
                    return Err(Box::new(error));
                }
            }
        }
        Ok(transaction)
    }

    /// The claims that the objects are to have, by key, and contradictions between the objects.
    fn owners(&self) -> (BTreeMap<String, Claim>, Vec<ClaimError>) {
        let (mut owners, mut found) = (BTreeMap::new(), Vec::new());
        let mut add = |key: String, owner: Claim, found: &mut Vec<ClaimError>| {
            if let Some(first) = owners.insert(key.clone(), owner.clone()) {
                let second = owner;
                found.push(ClaimError::Twice { key, first, second });
            }
        };
        for network in self.networks.iter() {
            let status = &network.status;
            let owner = claim_of(&status.pool, network);
            match vlan_domain(self, &status.host, &status.switch) {
                Some(domain) => add(vlan_claim(&domain, status.vlan), owner, &mut found),
                None => found.push(ClaimError::NoSwitch {
                    owner,
                    host: status.host.clone(),
                    switch: status.switch.clone(),
                }),
            }
        }
        for address in self.addresses.iter() {
            if let Some(given) = address.status.address {
                let owner = claim_of(&address.spec.pool, address);
                add(address_claim(given), owner, &mut found);
            }
        }
        (owners, found)
    }
}

fn claim_of<K: crate::Kind>(pool: &str, object: &Object<K>) -> Claim {
    Claim {
        pool: pool.to_owned(),
        tenant: object.tenant().to_owned(),
        owner: object.name().to_owned(),
    }
}
