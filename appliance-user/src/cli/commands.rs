//! The commands: a request to the daemon, and its reply as text or JSON.

use std::{fs::File, io::Read as _, net::IpAddr, os::unix::net::UnixStream, path::Path};

use anyhow::Context as _;
use appliance_user::{
    config::Config,
    control::{self, Request, render, rules},
    daemon, datapath,
};
use failover::{IpPrefix, Rule};
use serde::de::DeserializeOwned;
use serde_json::Value;
use service::{outln, socket, stdout};
use tunnel::{PresharedKey, SecretKey};
use tunnel_worker::keys::{self, OsRandom};

use super::{
    args::{Cli, Command, EndpointCommand, FlowArgs, ModeArgs, RuleCommand},
    trace,
};

/// Asks the daemon.
pub type Ask<'a> = &'a dyn Fn(&Request) -> Result<Value, socket::AskError>;

/// Longest file that is read for the daemon, bytes: a plan of ten thousand rules has less than two
/// million.
const MAX_FILE: u64 = 6 << 20;

/// Runs a command.
///
/// # Errors
/// Why it failed, with what to do.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let socket = cli.socket;
    let ask = |request: &Request| socket::ask(&control::SOCKET, &socket, request);
    match cli.command {
        Command::Run(args) => daemon::run(&args)?,
        Command::Check { file } => check(&file)?,
        Command::Status { json } => print(ask(&Request::Status)?, json, render::status)?,
        Command::Counters { json } => print(ask(&Request::Counters)?, json, render::counters)?,
        Command::Mode(args) => mode(&ask, args)?,
        Command::Keygen {
            private_key,
            preshared,
        } => keygen(&private_key, preshared)?,
        Command::Pubkey { private_key } => {
            outln!("{}", keys::private(&private_key)?.public());
        }
        Command::Flows(args) => flows(&ask, args)?,
        Command::Maintenance { switch } => {
            let on = switch.map(|switch| switch == "on");
            let value = ask(&Request::Maintenance { on })?;
            let on = value["maintenance"].as_bool().unwrap_or_default();
            outln!("maintenance: {}", if on { "on" } else { "off" });
        }
        Command::Rule { command } => rule(&ask, command)?,
        Command::Endpoint { command } => endpoint(&ask, command)?,
        Command::Trace(args) => trace::run(&ask, args)?,
        Command::Reload => {
            ask(&Request::Reload)?;
            outln!("reloaded");
        }
        Command::Detach { config } => detach(&config)?,
    }
    Ok(())
}

/// Prints a reply as it came, or as text.
fn print<T: DeserializeOwned>(
    value: Value,
    json: bool,
    render: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    if json {
        outln!("{value}");
    } else {
        let reply = serde_json::from_value(value).context("read the reply")?;
        stdout::print(render(&reply));
    }
    Ok(())
}

fn check(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    daemon::check_keys(&config)?;
    config.check_ports()?;
    outln!(
        "{}: good: {} side, {} tenants, {} peers, {} networks",
        file.display(),
        config.role.name(),
        config.tenants.len(),
        config.peers.len(),
        config.networks.len()
    );
    Ok(())
}

fn detach(config: &Path) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    anyhow::ensure!(
        UnixStream::connect(&config.control_socket).is_err(),
        "the daemon is running (it answers at {}); stop it first",
        config.control_socket.display()
    );
    let removed = datapath::detach(&config.pin_dir)?;
    outln!("removed {removed} pins; forwarding has stopped");
    Ok(())
}

fn keygen(private_key: &Path, preshared: bool) -> anyhow::Result<()> {
    if preshared {
        let key = PresharedKey::generate(&mut OsRandom);
        keys::write(private_key, &key.expose_base64())?;
    } else {
        let key = SecretKey::generate(&mut OsRandom);
        keys::write(private_key, &key.expose_base64())?;
        outln!("{}", key.public());
    }
    Ok(())
}

fn mode(ask: Ask<'_>, args: ModeArgs) -> anyhow::Result<()> {
    let value = ask(&Request::Mode {
        tenant: args.tenant,
        mode: args.mode,
        plan: args.plan.as_deref().map(read).transpose()?,
        force: args.force,
        promote: args.promote,
    })?;
    if args.json {
        outln!("{value}");
        return Ok(());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for tenant in value.as_array().into_iter().flatten() {
        let plan = tenant["plan"].as_str().map(|plan| format!(" ({plan})"));
        outln!(
            "{}: {}{}",
            text(&tenant["name"]),
            text(&tenant["mode"]),
            plan.unwrap_or_default()
        );
        let Some(changes) = tenant["changes"].as_array() else {
            continue;
        };
        if changes.is_empty() {
            outln!("  no changes: the plan is already in force");
        }
        for change in changes {
            outln!("  {}", text(change));
        }
    }
    Ok(())
}

fn flows(ask: Ask<'_>, args: FlowArgs) -> anyhow::Result<()> {
    let value = ask(&Request::Flows {
        tenant: args.tenant,
        protocol: args.protocol,
        address: args.address,
        port: args.port,
        top: args.top,
        text: !args.json,
    })?;
    match value.as_str() {
        Some(text) if !args.json => stdout::print(text),
        _ => outln!("{value}"),
    };
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let mut text = String::new();
    let length = File::open(path)
        .with_context(cannot)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .with_context(cannot)?;
    anyhow::ensure!(
        length as u64 <= MAX_FILE,
        "{} is too large: a plan or a file of rules has at most {MAX_FILE} bytes",
        path.display()
    );
    Ok(text)
}

fn rule(ask: Ask<'_>, command: RuleCommand) -> anyhow::Result<()> {
    match command {
        RuleCommand::Add {
            tenant,
            name,
            line,
            allow,
            description,
            file,
        } => {
            let rules = match (file, name, line) {
                (Some(file), _, _) => rules_of(&file)?,
                (None, Some(name), Some(line)) => {
                    vec![one_rule(&name, &line, allow, description)?]
                }
                (None, _, _) => anyhow::bail!("give a name and a rule, or --file FILE"),
            };
            let count = rules.len();
            ask(&Request::RuleAdd { tenant, rules })?;
            outln!("{count} added");
        }
        RuleCommand::Remove { tenant, names } => {
            let count = names.len();
            ask(&Request::RuleRemove { tenant, names })?;
            outln!("{count} removed");
        }
        RuleCommand::List { tenant, json } => {
            print(ask(&Request::RuleList { tenant })?, json, render::rules)?;
        }
        RuleCommand::Check { tenant, file } => {
            let (rules, mut problems) = rules::read(&read(&file)?);
            let count = rules.len();
            let value = ask(&Request::RuleCheck { tenant, rules })?;
            let refused = value["refused"].as_array().into_iter().flatten();
            problems.extend(refused.filter_map(|p| p.as_str().map(ToOwned::to_owned)));
            anyhow::ensure!(
                problems.is_empty(),
                "{} would be refused:\n{}",
                file.display(),
                problems.join("\n")
            );
            outln!("{}: good: {count} rules", file.display());
        }
    }
    Ok(())
}

/// The rules of a file.
fn rules_of(file: &Path) -> anyhow::Result<Vec<Rule>> {
    let (rules, problems) = rules::read(&read(file)?);
    anyhow::ensure!(
        problems.is_empty(),
        "{}: nothing was changed:\n{}",
        file.display(),
        problems.join("\n")
    );
    Ok(rules)
}

fn one_rule(
    name: &str,
    line: &str,
    allow: Vec<IpPrefix>,
    description: Option<String>,
) -> anyhow::Result<Rule> {
    let rule = Rule::from_line(name, line)?.with_allow(allow)?;
    Ok(rule.with_description(&description.unwrap_or_default())?)
}

fn endpoint(ask: Ask<'_>, command: EndpointCommand) -> anyhow::Result<()> {
    match command {
        EndpointCommand::Add { network, addresses } => {
            let (name, count): (_, usize) = (network.clone(), addresses.len());
            ask(&Request::EndpointAdd { network, addresses })?;
            outln!("{name}: {count} failed over");
        }
        EndpointCommand::Remove { network, addresses } => {
            let (name, count): (_, usize) = (network.clone(), addresses.len());
            ask(&Request::EndpointRemove { network, addresses })?;
            outln!("{name}: {count} back in production");
        }
        EndpointCommand::List { network, json } => {
            let value = ask(&Request::EndpointList { network })?;
            type Endpoints = std::collections::BTreeMap<String, Vec<IpAddr>>;
            print(value, json, |endpoints: &Endpoints| {
                let lines = endpoints.iter().flat_map(|(network, addresses)| {
                    let line = move |address| format!("{network}  {address}\n");
                    addresses.iter().map(line)
                });
                lines.collect()
            })?;
        }
    }
    Ok(())
}
