//! Objects as a file that makes the same ones at another director.

use std::collections::BTreeMap;

use control::{KINDS, KindInfo, Scope, kind};
use serde_json::{Value, json};
use service::outln;

use super::{Declared, Export, File, Format, all_collections, collection, made, name_of, owner_of};
use crate::{
    Session,
    client::{Client, encoded},
    failure::Failure,
};

pub fn export(session: &Session, given: &Export) -> Result<(), Failure> {
    let client = session.client()?;
    let only = given.tenant.of(session);
    if let Some(tenant) = &only {
        // One that does not exist has no objects, but is an error.
        client.get(&format!("/v1/tenants/{}", encoded(tenant)), Vec::new())?;
    }
    for name in &given.kind {
        if kind(name).is_none() {
            let kinds: Vec<_> = KINDS.iter().map(|info| info.kind).collect();
            return Err(Failure::usage(format!(
                "--kind {name}: write one of {}",
                kinds.join(", ")
            )));
        }
    }
    let mut file = File {
        owner: given.owner.clone(),
        ..File::default()
    };
    for (place, tenant) in all_collections(client, only.as_deref())? {
        let info = &KINDS[place];
        let is_kind = given.kind.is_empty() || given.kind.iter().any(|name| name == info.kind);
        let is_tenants = info.scope == Scope::Tenant || info.kind == "tenant";
        if !is_kind || (only.is_some() && !is_tenants) {
            continue;
        }
        let objects = collection(client, info, &tenant)?;
        let networks = match info.kind == "subscription" && !objects.is_empty() {
            true => networks(client, &tenant)?,
            false => BTreeMap::new(),
        };
        for object in objects {
            let owner = owner_of(&object);
            let is_other = given.owner.is_some() && given.owner.as_deref() != owner;
            let is_other = is_other
                || (info.kind == "tenant"
                    && only
                        .as_deref()
                        .is_some_and(|tenant| tenant != name_of(&object)));
            // It comes with its subscription.
            let is_default = made(info).as_ref() == Some(&object["spec"]) && owner.is_none();
            if is_other || is_default {
                continue;
            }
            let mut object = declaration(info, &tenant, &object, &networks);
            object
                .owner
                .take_if(|owner| file.owner.as_ref() == Some(owner));
            file.object.push(object);
        }
    }
    print(session, &file, given.format)
}

/// Prints one object as a file. It needs no other one, unless its kind is `subscription`.
pub fn export_one(
    session: &Session,
    info: &KindInfo,
    tenant: &str,
    object: &Value,
    format: Format,
) -> Result<(), Failure> {
    let file = File {
        owner: None,
        object: vec![declaration(info, tenant, object, &BTreeMap::new())],
    };
    print(session, &file, format)
}

/// An object as a file declares it. `networks` are those of its tenant, for a subscription.
fn declaration(
    info: &KindInfo,
    tenant: &str,
    object: &Value,
    networks: &BTreeMap<String, Value>,
) -> Declared {
    Declared {
        kind: info.kind.to_owned(),
        tenant: Some(tenant.to_owned()).filter(|tenant| !tenant.is_empty()),
        name: name_of(object).to_owned(),
        owner: owner_of(object).map(ToOwned::to_owned),
        spec: spec(info, object, networks),
    }
}

fn print(session: &Session, file: &File, format: Format) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::local(format!("cannot export: {error}"));
    let text = match format {
        Format::Toml if !session.json => {
            toml::to_string_pretty(file).map_err(|error| failed(&error))?
        }
        Format::Json | Format::Toml => {
            serde_json::to_string_pretty(file).map_err(|error| failed(&error))?
        }
    };
    outln!("{}", text.trim_end());
    Ok(())
}

/// The networks of a tenant, by name.
fn networks(client: &Client, tenant: &str) -> Result<BTreeMap<String, Value>, Failure> {
    let Some(info) = kind("network") else {
        return Ok(BTreeMap::new());
    };
    let networks = collection(client, info, tenant)?.into_iter();
    Ok(networks
        .map(|network| (name_of(&network).to_owned(), network))
        .collect())
}

/// The spec with what the director has picked: another one would pick other addresses, numbers and
/// VLANs.
fn spec(info: &KindInfo, object: &Value, networks: &BTreeMap<String, Value>) -> Value {
    let (mut spec, status) = (object["spec"].clone(), &object["status"]);
    match info.kind {
        "address" => spec["address"] = status["address"].clone(),
        "subscription" => {
            let names = status["networks"].as_array().into_iter().flatten();
            let of = |name: &Value| {
                let name = name.as_str()?;
                let (_, number) = name.rsplit_once('-')?;
                let status = &networks.get(name)?["status"];
                Some(json!({
                    "number": number.parse::<u32>().ok()?,
                    "internet": status["internet"],
                    "vlan": status["vlan"],
                }))
            };
            let allocated: Vec<_> = names.filter_map(of).collect();
            spec["allocation"] = json!({ "networks": allocated, "next": status["next"] });
        }
        _ => {}
    }
    spec
}
