//! The keys by which the other ends of circuits are recognized in TLS connections. Each costs an
//! X25519, so that only those of new circuits and other ends are derived. Pure.

use std::collections::HashMap;

use gateway_client::wire::{CircuitId, Key};
use tunnel::PublicKey;

/// The key of each circuit, and the other end that it was derived with; no key: that public key is
/// invalid.
#[derive(Default)]
pub(super) struct CircuitKeys(HashMap<CircuitId, (PublicKey, Option<Key>)>);

impl CircuitKeys {
    /// Sets the circuits with the public keys of their other ends, and derives the keys that are
    /// missing by `derive`, which is a function of its arguments. Returns whether any key differs.
    pub fn set(
        &mut self,
        wanted: impl IntoIterator<Item = (CircuitId, PublicKey)>,
        mut derive: impl FnMut(CircuitId, &PublicKey) -> Option<Key>,
    ) -> bool {
        let mut old = std::mem::take(&mut self.0);
        let mut differs = false;
        for (id, end) in wanted {
            let known = old.remove(&id).filter(|(of, _)| *of == end);
            let entry = known.unwrap_or_else(|| {
                differs = true;
                (end, derive(id, &end))
            });
            self.0.insert(id, entry);
        }
        differs || !old.is_empty()
    }

    /// The circuits that have a key.
    pub fn known(&self) -> HashMap<CircuitId, Key> {
        let keys = self.0.iter();
        let keys = keys.filter_map(|(id, (_, key))| Some((*id, key.clone()?)));
        keys.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuit(n: u64) -> CircuitId {
        CircuitId::new(1 << 32 | n).expect("an id")
    }

    fn end(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    /// Sets circuits whose end 0 is invalid; returns whether any key differs, and the circuits
    /// whose key was derived.
    fn set(keys: &mut CircuitKeys, wanted: &[(u64, u8)]) -> (bool, Vec<u64>) {
        let mut derived = Vec::new();
        let wanted = wanted.iter().map(|(n, of)| (circuit(*n), end(*of)));
        let differs = keys.set(wanted, |id, of| {
            derived.push(id.get() & 0xffff);
            let of = of.as_bytes()[0];
            (of > 0).then(|| Key::new([of; 32]))
        });
        (differs, derived)
    }

    #[test]
    fn one_changed_circuit_among_a_thousand_costs_one_key() {
        let mut keys = CircuitKeys::default();
        let mut wanted: Vec<(u64, u8)> = (0..1000).map(|n| (n, 1 + (n % 200) as u8)).collect();
        assert_eq!(set(&mut keys, &wanted).1.len(), 1000);
        assert_eq!(set(&mut keys, &wanted), (false, vec![]), "the same again");
        wanted.push((1000, 7));
        assert_eq!(set(&mut keys, &wanted), (true, vec![1000]), "one more");
        wanted[500].1 = 250;
        assert_eq!(set(&mut keys, &wanted), (true, vec![500]), "another end");
        assert_eq!(keys.known()[&circuit(500)], Key::new([250; 32]));
        wanted.remove(3);
        assert_eq!(set(&mut keys, &wanted), (true, vec![]), "one less");
        let known = keys.known();
        assert_eq!((known.len(), known.get(&circuit(3))), (1000, None));
    }

    #[test]
    fn an_invalid_end_has_no_key_and_is_not_tried_each_time() {
        let mut keys = CircuitKeys::default();
        assert_eq!(set(&mut keys, &[(1, 0), (2, 5)]), (true, vec![1, 2]));
        assert_eq!(set(&mut keys, &[(1, 0), (2, 5)]), (false, vec![]));
        assert_eq!(keys.known(), [(circuit(2), Key::new([5; 32]))].into());
    }
}
