//! The nouns and verbs of objects, made of the list of kinds.

use std::path::Path;

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, parser::ValueSource, value_parser};
use control::{KINDS, KindInfo, Scope, in_words, with_article};
use hyper::Method;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use service::outln;

use crate::{
    Session,
    change::change,
    client::encoded,
    declare::{Format, export_one},
    failure::{Exit, Failure},
    file, machine, output, policy,
};

/// The commands of all kinds.
pub fn commands() -> impl Iterator<Item = Command> {
    KINDS.iter().map(noun)
}

fn noun(info: &'static KindInfo) -> Command {
    let one = with_article(info.kind);
    let plural = in_words(info.plural);
    let verb =
        |name: &'static str, about: String| with_tenant(info, Command::new(name)).about(about);
    let list = verb("list", format!("List {plural}")).visible_alias("ls");
    let list = match info.scope {
        Scope::Provider => list,
        Scope::Tenant => list.arg(
            Arg::new("all-tenants")
                .long("all-tenants")
                .action(ArgAction::SetTrue)
                .help("List the objects of all tenants"),
        ),
    };
    let more = more_verbs(info).iter().map(|more| {
        let command = verb(more.name, more.about.to_owned()).arg(name());
        match more.does {
            Does::Read | Does::Check => command,
            Does::Export => command.arg(
                Arg::new("format")
                    .long("format")
                    .value_parser(value_parser!(Format))
                    .default_value("toml")
                    .help("Format of the file; with `--json`, JSON"),
            ),
            Does::Set(..) => with_change(command, true),
        }
    });
    let more_of_policies = match info.kind {
        "policy" => {
            let verbs = policy::commands().into_iter();
            verbs
                .map(|verb| with_change(with_tenant(info, verb), false))
                .collect()
        }
        _ => Vec::new(),
    };
    let of_machines = match machine::is_machine(info) {
        true => machine::commands(info.kind).into(),
        false => Vec::new(),
    };
    let of_machines = of_machines
        .into_iter()
        .map(|verb| with_change(with_tenant(info, verb).arg(name()), false));
    let (new, gone) = match info.kind {
        "address" => (&["add", "assign"][..], &["remove", "release"][..]),
        _ => (&["add"][..], &["remove"][..]),
    };
    Command::new(info.kind)
        .subcommands(more)
        .subcommands(more_of_policies)
        .subcommands(of_machines)
        .about(format!("List, get and change {plural}"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(list)
        .subcommand(
            verb("get", format!("Get {one}"))
                .visible_alias("show")
                .arg(name()),
        )
        .subcommand(with_change(
            with_spec(verb("create", format!("Create {one}")).arg(name()))
                .visible_aliases(new.iter().copied())
                .args(short_options(info)),
            false,
        ))
        .subcommand(with_change(
            with_spec(verb("replace", format!("Replace the spec of {one}")).arg(name()))
                .mut_arg("spec", |spec| spec.required(true))
                .arg(take_over()),
            true,
        ))
        .subcommand(with_change(
            verb("set", format!("Set some fields of {one}"))
                .arg(name())
                .arg(field())
                .args(short_options(info))
                .group(
                    ArgGroup::new("fields")
                        .args(["set"])
                        .args(shorts(info.kind).iter().map(|short| short.long))
                        .multiple(true)
                        .required(true),
                )
                .arg(owner())
                .arg(take_over()),
            true,
        ))
        .subcommand(with_change(
            verb("delete", format!("Delete {one}"))
                .visible_aliases(gone.iter().copied())
                .arg(name()),
            true,
        ))
}

/// An option that stands for a field of the spec.
struct Short {
    long: &'static str,
    field: &'static str,
    /// Whether it may be repeated, for the items of a list.
    is_list: bool,
    help: &'static str,
}

fn shorts(kind: &str) -> &'static [Short] {
    const fn one(long: &'static str, field: &'static str, help: &'static str) -> Short {
        Short {
            long,
            field,
            is_list: false,
            help,
        }
    }
    const fn list(long: &'static str, field: &'static str, help: &'static str) -> Short {
        Short {
            is_list: true,
            ..one(long, field, help)
        }
    }
    match kind {
        "network" => {
            &const {
                [
                    list(
                        "gateway",
                        "gateways",
                        "A default gateway; repeat it for both families",
                    ),
                    list(
                        "prefix",
                        "prefixes",
                        "A prefix of the production network; may be repeated",
                    ),
                ]
            }
        }
        "tenant" => {
            &const {
                [
                    one(
                        "lease-ends",
                        "lease_ends",
                        "End of the lease, such as 2027-12-31T00:00:00Z",
                    ),
                    one(
                        "bandwidth",
                        "limits.bandwidth_mbit",
                        "Bandwidth of the tunnels, Mbit/s",
                    ),
                    list(
                        "gateway-pool",
                        "gateway_pools",
                        "A gateway pool; repeat it in their order",
                    ),
                    one(
                        "fallback",
                        "gateway_fallback",
                        "Whether gateways without a pool may be used when those of the pools fail: \
                     true or false",
                    ),
                ]
            }
        }
        "subscription" => {
            &const {
                [
                    one("hardware-plan", "hardware_plan", "The hardware plan"),
                    one(
                        "public-addresses",
                        "public_addresses",
                        "Maximum of public addresses that the subscription gives the tenant",
                    ),
                ]
            }
        }
        _ => &[],
    }
}

fn short_options(info: &KindInfo) -> impl Iterator<Item = Arg> {
    shorts(info.kind).iter().map(|short| {
        let action = match short.is_list {
            true => ArgAction::Append,
            false => ArgAction::Set,
        };
        Arg::new(short.long)
            .long(short.long)
            .value_name("VALUE")
            .action(action)
            .help(short.help)
    })
}

/// A verb that only some kinds have.
struct More {
    name: &'static str,
    about: &'static str,
    does: Does,
}

/// Effect of such a verb.
#[derive(Clone, Copy)]
enum Does {
    /// Prints what is at the path of the same name, below the object's.
    Read,
    /// Prints the conditions, and exits with 1 if one is not well.
    Check,
    /// Prints the object as a file for `apply`.
    Export,
    /// Sets this field to this value.
    Set(&'static str, bool),
}

fn more_verbs(info: &KindInfo) -> &'static [More] {
    const fn more(name: &'static str, about: &'static str, does: Does) -> More {
        More { name, about, does }
    }
    match info.kind {
        "vlan-pool" => &const { [more("usage", "Show used and free VLANs", Does::Read)] },
        "address-pool" => &const { [more("usage", "Show used and free addresses", Does::Read)] },
        "plan" => {
            &const {
                [
                    more("check", "Check whether a plan can run", Does::Check),
                    more("export", "Print a plan as a file for `apply`", Does::Export),
                ]
            }
        }
        "hardware-plan" => &const { [more("tenants", "List the tenants of a plan", Does::Read)] },
        "tenant" => {
            &const {
                [
                    more(
                        "usage",
                        "Show the usage and the limits of a tenant",
                        Does::Read,
                    ),
                    more(
                        "enable",
                        "Enable a tenant: objects can be created for it",
                        Does::Set("enabled", true),
                    ),
                    more(
                        "disable",
                        "Disable a tenant: no objects can be created for it",
                        Does::Set("enabled", false),
                    ),
                ]
            }
        }
        "appliance" => {
            &const {
                [more(
                    "identity",
                    "Show the identity, the enrolment tokens and the connection of an appliance",
                    Does::Read,
                )]
            }
        }
        "gateway" => {
            &const {
                [
                    more(
                        "identity",
                        "Show the identity, the enrolment tokens and the connection of a gateway",
                        Does::Read,
                    ),
                    more(
                        "enable",
                        "Enable a gateway: tenants may use it",
                        Does::Set("enabled", true),
                    ),
                    more(
                        "disable",
                        "Disable a gateway: no tenant may use it",
                        Does::Set("enabled", false),
                    ),
                    more(
                        "drain",
                        "Drain a gateway: it gets no new circuits, and its circuits continue",
                        Does::Set("drain", true),
                    ),
                    more(
                        "undrain",
                        "End the drain of a gateway: it gets new circuits again",
                        Does::Set("drain", false),
                    ),
                ]
            }
        }
        _ => &[],
    }
}

fn name() -> Arg {
    Arg::new("name")
        .value_name("NAME")
        .required(true)
        .help("Name of the object")
}

fn with_tenant(info: &KindInfo, command: Command) -> Command {
    match info.scope {
        Scope::Provider => command,
        Scope::Tenant => command.arg(
            Arg::new("tenant")
                .long("tenant")
                .short('t')
                .value_name("TENANT")
                .env("CAUSEWAY_TENANT")
                .help("Tenant; without it, the tenant of the context"),
        ),
    }
}

fn with_spec(command: Command) -> Command {
    command
        .arg(
            Arg::new("spec")
                .long("spec")
                .short('f')
                .value_name("FILE")
                .help("File with the spec, in JSON or (*.toml) TOML; `-` reads JSON from stdin"),
        )
        .arg(field())
        .arg(owner())
}

fn field() -> Arg {
    Arg::new("set")
        .long("set")
        .short('s')
        .value_name("FIELD=VALUE")
        .action(ArgAction::Append)
        .help(
            "Set a field of the spec, such as limits.bandwidth_mbit=100. A VALUE that is JSON is \
             read as JSON, any other one as text",
        )
}

fn owner() -> Arg {
    Arg::new("owner")
        .long("owner")
        .value_name("OWNER")
        .help("Set the owner of the object: the name of the set that declares it")
}

fn take_over() -> Arg {
    Arg::new("take-over")
        .long("take-over")
        .action(ArgAction::SetTrue)
        .help("Take the object over from another owner")
}

fn with_change(command: Command, of_existing: bool) -> Command {
    let command = command
        .arg(
            Arg::new("dry-run")
                .long("dry-run")
                .action(ArgAction::SetTrue)
                .help("Show what the change would do, without making it"),
        )
        .arg(
            Arg::new("reason")
                .long("reason")
                .value_name("TEXT")
                .help("Reason for the change, which the audit records"),
        );
    if !of_existing {
        return command;
    }
    command
        .arg(
            Arg::new("force")
                .long("force")
                .action(ArgAction::SetTrue)
                .help(
                    "Make a change that is refused because it harms others: take the last gateway \
                     from tenants, or delete a tenant with all its objects. Requires --reason",
                ),
        )
        .arg(
            Arg::new("if-revision")
                .long("if-revision")
                .value_name("REVISION")
                .value_parser(value_parser!(u64))
                .help("Change the object only if this is its revision"),
        )
}

/// Runs a verb of a kind: its exit code if that is not 0.
pub fn run(
    session: &Session,
    info: &KindInfo,
    matches: &ArgMatches,
) -> Result<Option<Exit>, Failure> {
    let Some((verb, given)) = matches.subcommand() else {
        return Err(Failure::usage(
            "write a verb: list, get, create, replace, set or delete",
        ));
    };
    if verb == "list" {
        return list(session, info, given).map(|()| None);
    }
    let tenant = tenant(session, info, given)?;
    let name = given.try_get_one::<String>("name").ok().flatten();
    let name = name.map_or("", String::as_str);
    let collection = info.collection(&encoded(&tenant));
    let path = format!("{collection}/{}", encoded(name));
    if let Some(more) = more_verbs(info).iter().find(|more| more.name == verb) {
        return match more.does {
            Does::Read => read_below(session, &format!("{path}/{verb}")).map(|()| None),
            Does::Check => check(session, &path),
            Does::Export => {
                let object = session.client()?.get(&path, Vec::new())?;
                let format = given.get_one("format").copied().unwrap_or(Format::Toml);
                export_one(session, info, &tenant, &object, format).map(|()| None)
            }
            Does::Set(field, value) => set_flag(session, given, &path, field, value).map(|()| None),
        };
    }
    let done = match verb {
        "allow" => policy::allow(session, given, &collection),
        "deny" => policy::deny(session, given, &collection),
        "token" => machine::token(session, given, &path),
        "revoke" => machine::revoke(session, given, &path),
        "get" => {
            let object = session.client()?.get(&path, Vec::new())?;
            match session.json {
                true => outln!("{object}"),
                false => service::stdout::print(output::object(&object)),
            };
            Ok(())
        }
        "create" => {
            let mut body = json!({ "name": name, "spec": spec(info, given, None)? });
            set_owner(&mut body, given);
            change(session, given, Method::POST, &collection, Some(&body), None)
        }
        "replace" | "set" => {
            let before = match verb {
                "set" => Some(session.client()?.get(&path, Vec::new())?),
                _ => None,
            };
            let revision = before
                .as_ref()
                .and_then(|object| object["metadata"]["revision"].as_u64());
            let spec = spec(info, given, before.map(|object| object["spec"].clone()))?;
            let mut body = json!({ "spec": spec });
            set_owner(&mut body, given);
            change(session, given, Method::PUT, &path, Some(&body), revision)
        }
        _ => change(session, given, Method::DELETE, &path, None, None),
    };
    done.map(|()| None)
}

/// Prints the conditions of an object: the exit code of a difference if one is not well.
fn check(session: &Session, path: &str) -> Result<Option<Exit>, Failure> {
    let object = session.client()?.get(path, Vec::new())?;
    let conditions = object["conditions"].as_array().cloned().unwrap_or_default();
    match session.json {
        true => {
            outln!("{}", Value::Array(conditions.clone()));
        }
        false => output::items(&conditions).print(),
    }
    let is_well = |condition: &Value| condition["status"] == "true";
    Ok((!conditions.iter().all(is_well)).then_some(Exit::Different))
}

/// Prints what is at a path: items as a table, any other value field by field.
fn read_below(session: &Session, path: &str) -> Result<(), Failure> {
    let value = session.client()?.get(path, Vec::new())?;
    if session.json {
        outln!("{value}");
        return Ok(());
    }
    match value["items"].as_array() {
        Some(items) => output::items(items).print(),
        None => drop(service::stdout::print(output::fields(&value))),
    }
    Ok(())
}

/// Sets a field of a spec that must not change meanwhile.
fn set_flag(
    session: &Session,
    given: &ArgMatches,
    path: &str,
    field: &str,
    value: bool,
) -> Result<(), Failure> {
    let before = session.client()?.get(path, Vec::new())?;
    let revision = before["metadata"]["revision"].as_u64();
    let mut spec = before["spec"].clone();
    spec[field] = value.into();
    let body = json!({ "spec": spec });
    change(session, given, Method::PUT, path, Some(&body), revision)
}

fn list(session: &Session, info: &KindInfo, given: &ArgMatches) -> Result<(), Failure> {
    let is_all = info.scope == Scope::Tenant && given.get_flag("all-tenants");
    // That of the environment is a default, and does not contradict.
    if is_all && given.value_source("tenant") == Some(ValueSource::CommandLine) {
        return Err(Failure::usage(
            "--tenant and --all-tenants contradict each other: write one of the two",
        ));
    }
    let client = session.client()?;
    let mut items = Vec::new();
    if is_all {
        for tenant in client.list("/v1/tenants")? {
            let tenant = tenant["metadata"]["name"].as_str().unwrap_or_default();
            items.extend(client.list(&info.collection(&encoded(tenant)))?);
        }
    } else {
        let tenant = tenant(session, info, given)?;
        items = client.list(&info.collection(&encoded(&tenant)))?;
    }
    match session.json {
        true => {
            outln!("{}", Value::Array(items));
        }
        false => output::objects(&items, is_all).print(),
    }
    Ok(())
}

/// The tenant that the command line or the context names; empty for kinds of the provider.
pub fn tenant(session: &Session, info: &KindInfo, given: &ArgMatches) -> Result<String, Failure> {
    if info.scope == Scope::Provider {
        return Ok(String::new());
    }
    if let Some(tenant) = given.get_one::<String>("tenant") {
        return Ok(tenant.clone());
    }
    session.tenant().ok_or_else(|| {
        Failure::usage(format!(
            "{} belong to a tenant: name it by --tenant, CAUSEWAY_TENANT, or in the context",
            in_words(info.plural)
        ))
    })
}

fn set_owner(body: &mut Value, given: &ArgMatches) {
    if let Some(owner) = given.get_one::<String>("owner") {
        body["owner"] = owner.as_str().into();
    }
}

/// The spec: that of the file or the one before, with the fields of the command line.
fn spec(info: &KindInfo, given: &ArgMatches, before: Option<Value>) -> Result<Value, Failure> {
    let path = given.try_get_one::<String>("spec").ok().flatten();
    let mut spec = match path {
        Some(path) => file::read(Path::new(path))?,
        None => before.unwrap_or_else(|| json!({})),
    };
    for text in given.get_many::<String>("set").into_iter().flatten() {
        let (field, value) = text
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--set {text:?}: write FIELD=VALUE")))?;
        set(&mut spec, field, value_of(field, value)?)?;
    }
    for short in shorts(info.kind) {
        let Ok(Some(values)) = given.try_get_many::<String>(short.long) else {
            continue;
        };
        let values = values.map(|text| value_of(short.field, text));
        let mut values = values.collect::<Result<Vec<_>, _>>()?;
        let value = match short.is_list {
            true => Value::Array(values),
            false => values.pop().unwrap_or_default(),
        };
        set(&mut spec, short.field, value)?;
    }
    Ok(spec)
}

/// The value of a field on the command line: JSON, or else text.
fn value_of(field: &str, text: &str) -> Result<Value, Failure> {
    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Ok(text.into());
    }
    // JSON, in which a repeated name is an error.
    control::json::parse(text.as_bytes())
        .map_err(|error| Failure::usage(format!("{field}={text}: {error}")))
}

/// Sets a field, of which the path has dots. `null` removes it.
fn set(spec: &mut Value, path: &str, value: Value) -> Result<(), Failure> {
    let wrong = || {
        Failure::usage(format!(
            "--set {path}: a parent of the field is not an object: write the whole field in JSON"
        ))
    };
    let mut at = spec;
    let mut names = path.split('.').peekable();
    while let Some(name) = names.next() {
        let fields = at.as_object_mut().ok_or_else(wrong)?;
        if names.peek().is_some() {
            at = fields.entry(name).or_insert_with(|| json!({}));
        } else if value.is_null() {
            fields.remove(name);
            break;
        } else {
            fields.insert(name.to_owned(), value);
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_set_by_their_path() {
        let mut spec = json!({ "limits": { "a": 1 }, "gone": 1 });
        set(&mut spec, "limits.b", json!(2)).unwrap();
        set(&mut spec, "new.c", json!("x")).unwrap();
        set(&mut spec, "gone", Value::Null).unwrap();
        assert_eq!(
            spec,
            json!({ "limits": { "a": 1, "b": 2 }, "new": { "c": "x" } })
        );
        assert!(set(&mut spec, "limits.a.d", json!(1)).is_err());
    }
}
