//! Addresses of services and names of backends in any text, compared with simple parsers, and the
//! file of addresses that names had.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use fuzzing::{Input, mutate};
use gateway_client::dial::{MAX_ADDRESSES, NameSettings, Names, ServiceAddress};
use gateway_model::{BackendSpec, Bounds, Model, Objects, Snapshot, Update};
use service::{config, names::StoredNames};

/// Names of one file at most.
const MAX_NAMES: usize = 16;

/// Reads the input as an address of a service, a name of a backend, a file of names, or as the
/// names of such a file and its changes.
pub fn names(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(4) {
        0 => {
            service_address(&String::from_utf8_lossy(input.rest()));
        }
        1 => {
            let length = usize::from(input.u8());
            let id = String::from_utf8_lossy(input.bytes(length)).into_owned();
            backend(&id, &String::from_utf8_lossy(input.rest()));
        }
        2 => {
            file(input.rest());
        }
        _ => {
            let changes = input.below(4);
            let mut bytes = written(&mut input);
            for _ in 0..changes {
                mutate(&mut input, &mut bytes, 12);
            }
            let is_read = file(&bytes);
            assert!(is_read || changes > 0, "as it was stored");
        }
    }
}

/// Whether a machine can have the name (RFC 1035, RFC 1123), with the underscores that some have.
fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(is_label) && !last.chars().all(|c| c.is_ascii_digit())
}

/// The address in a text, as far as a configuration may have it.
fn parse(text: &str) -> Option<(String, u16)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        let is_elsewhere = match address {
            SocketAddr::V4(_) => true,
            SocketAddr::V6(v6) => v6.ip().segments()[0] & 0xffc0 != 0xfe80 || v6.scope_id() != 0,
        };
        let usable = is_elsewhere && address.port() != 0;
        return usable.then(|| (address.to_string(), address.port()));
    }
    let (name, digits) = text.rsplit_once(':')?;
    let is_number = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
    let port: u16 = digits.parse().ok().filter(|_| is_number)?;
    let usable = port != 0 && is_dns_name(name);
    usable.then(|| (format!("{}:{port}", name.to_ascii_lowercase()), port))
}

fn service_address(text: &str) {
    let read = text.parse::<ServiceAddress>();
    let found = read.as_ref().ok().map(|a| (a.to_string(), a.port()));
    assert_eq!(found, parse(text), "{text:?}");
    match read {
        Ok(address) => assert_eq!(address.to_string().parse(), Ok(address)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A backend of any name at any address is refused, or read again as it was written.
fn backend(id: &str, address: &str) {
    let is_name = (1..=32).contains(&id.len())
        && id.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
    assert_eq!(config::name(id).is_ok(), is_name, "{id:?}");
    let spec = BackendSpec {
        addresses: vec![address.to_owned()],
        proxy: false,
    };
    let update = Update::Snapshot(Snapshot {
        revision: 1,
        objects: Objects {
            backends: [(id.to_owned(), spec)].into(),
            ..Objects::default()
        },
        ..Snapshot::default()
    });
    let mut model = Model::default();
    let Ok(prepared) = model.prepare(&update, &Bounds::none()) else {
        return;
    };
    assert!(is_name && parse(address).is_some(), "{id:?} {address:?}");
    drop(model.commit(prepared));
    let again = Update::Snapshot(model.snapshot());
    let prepared = model.prepare(&again, &Bounds::none()).expect("read again");
    assert!(prepared.changes().is_empty(), "{again:?}");
}

/// A file of names with addresses, as the input selects them.
fn written(input: &mut Input<'_>) -> Vec<u8> {
    let mut names = new();
    let mut known: BTreeMap<Arc<str>, Vec<IpAddr>> = BTreeMap::new();
    for n in 0..input.below(MAX_NAMES) {
        let addresses = (0..input.below(12)).map(|_| match input.flag() {
            true => IpAddr::from(input.array::<4>()),
            false => IpAddr::from(input.array::<16>()),
        });
        known.insert(format!("n{n}.example").into(), addresses.collect());
    }
    names.restore(known.clone());
    names.set(known.into_keys(), Duration::ZERO);
    StoredNames::of(&names).write().expect("JSON")
}

fn new() -> Names {
    Names::new(NameSettings::default(), 1)
}

/// Reads a file as a start does; returns whether it is one. The names get a few addresses each, of
/// machines that can be connected to, and are stored again the same.
fn file(bytes: &[u8]) -> bool {
    let Ok(read) = StoredNames::read(bytes) else {
        return false;
    };
    let known: Vec<_> = read.into_known().collect();
    let set = known.iter().map(|(name, _)| Arc::clone(name));
    let set: Vec<Arc<str>> = set.collect();
    let mut names = new();
    names.restore(known);
    names.set(set.clone(), Duration::ZERO);
    for name in &set {
        let addresses = names.addresses(name);
        assert!(addresses.len() <= MAX_ADDRESSES);
        for address in addresses {
            assert!(!address.is_unspecified() && !address.is_loopback());
            assert!(!address.is_multicast());
        }
    }
    let stored = StoredNames::of(&names);
    let text = stored.write().expect("JSON");
    let again = StoredNames::read(&text).expect("as it was written");
    assert_eq!(again, stored);
    let mut later = new();
    later.restore(again.into_known());
    later.set(set.clone(), Duration::ZERO);
    for name in &set {
        assert_eq!(later.addresses(name), names.addresses(name));
    }
    true
}
