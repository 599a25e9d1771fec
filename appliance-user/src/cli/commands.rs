//! The commands: a request to the daemon, and its reply as text or JSON.

use std::{fs::File, io::Read as _, os::unix::net::UnixStream, path::Path, time::SystemTime};

use anyhow::Context as _;
use appliance_user::{
    config::{
        Config, DesiredPage,
        desired::{Applied, Snapshot, Update},
    },
    control::{
        self, Connections, CounterStatus, Done, Endpoints, EndpointsAdded, EndpointsRemoved,
        MaintenanceStatus, ModeStatus, Request, RuleStatus, RulesAdded, RulesChecked, RulesRemoved,
        Status, render, rules,
    },
    daemon::{self, StoredCheck},
    datapath,
    datapath::nat,
};
use failover::{IpPrefix, Rule};
use serde::Serialize;
use service::{
    cli, outln,
    socket::{AskError, Client, Page},
    stdout,
    support_bundle::{self, Bundle},
};
use tunnel::{PresharedKey, SecretKey};
use tunnel_worker::keys::{self, OsRandom};
use zeroize::Zeroizing;

use super::{
    args::{Cli, Command, EndpointCommand, FlowArgs, ModeArgs, RuleCommand},
    trace,
};

/// Longest file that is read for the daemon, bytes: a plan of ten thousand rules has less than two
/// million.
const MAX_FILE: u64 = 6 << 20;

/// The program, and its unit.
const PROGRAM: &str = "causeway-appliance";
/// Configuration file of the unit.
const CONFIG: &str = "/etc/causeway/appliance.toml";

/// Runs a command.
///
/// # Errors
/// Why it failed, with the remedy.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let client = Client::new(&control::SOCKET, cli.socket);
    match cli.command {
        Command::Run(args) => daemon::run(&args)?,
        Command::Check { file } => check(&file)?,
        Command::Status { json } => print(&status(&client)?, json, render::status)?,
        Command::Counters { json } => {
            let counters: Vec<CounterStatus> = client.ask(&Request::Counters {})?;
            print(&counters, json, |counters| render::counters(counters))?;
        }
        Command::Mode(args) => mode(&client, args)?,
        Command::Keygen {
            private_key,
            preshared: false,
        } => {
            let key = SecretKey::generate(&mut OsRandom);
            keys::write(&private_key, &key.expose_base64())?;
            outln!("{}", key.public());
        }
        Command::Keygen {
            private_key: file,
            preshared: true,
        }
        | Command::PresharedKey { file } => {
            let key = PresharedKey::generate(&mut OsRandom);
            keys::write(&file, &key.expose_base64())?;
        }
        Command::Pubkey { private_key } => {
            outln!("{}", keys::private(&private_key)?.public());
        }
        Command::Flows(args) => flows(&client, args)?,
        Command::Maintenance { switch } => {
            let on = switch.map(|switch| switch == "on");
            let status: MaintenanceStatus = client.ask(&Request::Maintenance { on })?;
            let state = if status.maintenance { "on" } else { "off" };
            outln!("maintenance: {state}");
        }
        Command::Rule { command } => rule(&client, command)?,
        Command::Endpoint { command } => endpoint(&client, command)?,
        Command::Trace(args) => trace::run(&client, args)?,
        Command::Apply { file } => apply(&client, &file)?,
        Command::Desired { keys } => {
            let snapshot = desired(|after| client.ask(&Request::Desired { after, keys }))?;
            cli::print_json(&Update::Snapshot(snapshot))?;
        }
        Command::Reload => {
            let _: Done = client.ask(&Request::Reload {})?;
            outln!("reloaded");
        }
        Command::SupportBundle(args) => support_bundle(&client, args)?,
        Command::Detach { config } => detach(&config)?,
    }
    Ok(())
}

fn apply(client: &Client, file: &Path) -> anyhow::Result<()> {
    // It may have keys.
    let text = Zeroizing::new(read(file)?);
    let update: Update = serde_json::from_str(&text)
        .with_context(|| format!("{}: neither a snapshot nor a delta", file.display()))?;
    let update = Box::new(update);
    let applied: Applied = client.ask(&Request::Apply { update })?;
    let (put, removed) = (applied.put, applied.removed);
    for (kind, put, removed) in [
        ("tenants", put.tenants, removed.tenants),
        ("gateways", put.gateways, removed.gateways),
        ("peers", put.peers, removed.peers),
        ("networks", put.networks, removed.networks),
    ] {
        if put + removed > 0 {
            outln!("{kind}: {put} added or changed, {removed} removed");
        }
    }
    outln!("revision {} is in force, and stored", applied.revision);
    Ok(())
}

/// Prints a reply as JSON with sorted keys, or as text.
fn print<T: Serialize>(
    reply: &T,
    json: bool,
    render: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    if json {
        outln!("{}", serde_json::to_value(reply)?);
    } else {
        stdout::print(render(reply));
    }
    Ok(())
}

/// The status with the lists that come in pages.
fn status(client: &Client) -> Result<Status, AskError> {
    let mut status: Status = client.ask(&Request::Status {})?;
    status.tenants = Page::collect(|after| client.ask(&Request::Tenants { after }))?;
    status.networks = Page::collect(|after| client.ask(&Request::Networks { after }))?;
    status.peers = Page::collect(|after| client.ask(&Request::Peers { after }))?;
    status.neighbours = Page::collect(|after| client.ask(&Request::Neighbours { after }))?;
    Ok(status)
}

/// How often the pages of a desired state are read until all are of one revision.
const ATTEMPTS: u32 = 10;

/// The desired state, of one revision, whose pages `ask` gets.
///
/// # Errors
/// That of a request; and when the state changed while it was read, each time.
fn desired(
    mut ask: impl FnMut(Option<String>) -> Result<DesiredPage, AskError>,
) -> anyhow::Result<Snapshot> {
    for _ in 0..ATTEMPTS {
        let mut snapshot = Snapshot::default();
        let mut after = None;
        let mut position = None;
        loop {
            let page = ask(after)?;
            // Another state is in force since the page before: begin again.
            if *position.get_or_insert((page.source, page.revision)) != (page.source, page.revision)
            {
                break;
            }
            snapshot.revision = page.revision;
            snapshot.objects.add(page.objects);
            after = page.next;
            if after.is_none() {
                return Ok(snapshot);
            }
        }
    }
    anyhow::bail!("the state changed during each of {ATTEMPTS} attempts to read it: try again")
}

fn check(file: &Path) -> anyhow::Result<()> {
    let (config, stored) = daemon::check(file)?;
    let stored = match stored {
        StoredCheck::OfFile => String::new(),
        StoredCheck::Fits(0) => "; objects of an earlier file, which are stored".to_owned(),
        StoredCheck::Fits(revision) => format!("; stored objects of revision {revision}"),
        StoredCheck::None => "; no objects are stored yet".to_owned(),
        StoredCheck::Unchecked(why) => format!("; stored objects are not checked: {why}"),
    };
    outln!(
        "{}: good: {} side, {} tenants, {} peers, {} networks{stored}",
        file.display(),
        config.role.name(),
        config.tenants.len(),
        config.peers.len(),
        config.networks.len()
    );
    Ok(())
}

fn support_bundle(client: &Client, args: support_bundle::Args) -> anyhow::Result<()> {
    let mut bundle = Bundle::of_this_machine(PROGRAM);
    let status = status(client);
    let answers = status.is_ok();
    bundle.json("status.json", status);
    // A daemon that hangs would be waited for with each of them.
    if answers {
        let counters: Result<Vec<CounterStatus>, _> = client.ask(&Request::Counters {});
        bundle.json("counters.json", counters);
        let endpoints: Result<Endpoints, _> = client.ask(&Request::EndpointList { network: None });
        bundle.json("endpoints.json", endpoints);
        let rules: Result<Vec<RuleStatus>, _> = Page::collect(|after| {
            let tenant = None;
            client.ask(&Request::RuleList { tenant, after })
        });
        bundle.json("rules.json", rules);
        let keys = false;
        let desired = desired(|after| client.ask(&Request::Desired { after, keys }));
        bundle.json("desired.json", desired);
    }
    bundle.configuration(args.config.as_deref().unwrap_or(Path::new(CONFIG)));
    bundle.journal(PROGRAM, args.lines);
    bundle.machine(Path::new("/"));
    let written = bundle.write(args.output, SystemTime::now());
    written.context("cannot write the support bundle")?.print();
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

fn mode(client: &Client, args: ModeArgs) -> anyhow::Result<()> {
    let modes: Vec<ModeStatus> = client.ask(&Request::Mode {
        tenant: args.tenant,
        mode: args.mode,
        plan: args.plan.as_deref().map(read).transpose()?,
        force: args.force,
        promote: args.promote,
        take_over: args.take_over,
    })?;
    print(&modes, args.json, |modes| render::modes(modes))
}

fn flows(client: &Client, args: FlowArgs) -> anyhow::Result<()> {
    let found: Connections = client.ask(&Request::Flows {
        tenant: args.tenant,
        protocol: args.protocol,
        address: args.address,
        port: args.port,
        top: args.top,
    })?;
    print(&found, args.json, |found| {
        nat::render(&found.connections, found.total)
    })
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
        "{} is too large: a plan, an update or a file of rules has at most {MAX_FILE} bytes",
        path.display()
    );
    Ok(text)
}

fn rule(client: &Client, command: RuleCommand) -> anyhow::Result<()> {
    match command {
        RuleCommand::Add {
            tenant,
            name,
            line,
            allow,
            description,
            file,
            take_over,
        } => {
            let rules = match (file, name, line) {
                (Some(file), _, _) => rules_of(&file)?,
                (None, Some(name), Some(line)) => {
                    vec![one_rule(&name, &line, allow, description)?]
                }
                (None, _, _) => anyhow::bail!("give a name and a rule, or --file FILE"),
            };
            let reply: RulesAdded = client.ask(&Request::RuleAdd {
                tenant,
                rules,
                take_over,
            })?;
            outln!("{} added", reply.added.len());
        }
        RuleCommand::Remove { tenant, names } => {
            let reply: RulesRemoved = client.ask(&Request::RuleRemove { tenant, names })?;
            outln!("{} removed", reply.removed.len());
        }
        RuleCommand::List { tenant, json } => {
            let rules: Vec<RuleStatus> = Page::collect(|after| {
                let tenant = tenant.clone();
                client.ask(&Request::RuleList { tenant, after })
            })?;
            print(&rules, json, |rules| render::rules(rules))?;
        }
        RuleCommand::Check { tenant, file } => {
            let (rules, mut problems) = rules::read(&read(&file)?);
            let count = rules.len();
            let checked: RulesChecked = client.ask(&Request::RuleCheck { tenant, rules })?;
            problems.extend(checked.refused);
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

fn endpoint(client: &Client, command: EndpointCommand) -> anyhow::Result<()> {
    match command {
        EndpointCommand::Add { network, addresses } => {
            let reply: EndpointsAdded = client.ask(&Request::EndpointAdd { network, addresses })?;
            outln!("{}: {} failed over", reply.network, reply.added.len());
        }
        EndpointCommand::Remove { network, addresses } => {
            let request = Request::EndpointRemove { network, addresses };
            let reply: EndpointsRemoved = client.ask(&request)?;
            let count = reply.removed.len();
            outln!("{}: {count} back in production", reply.network);
        }
        EndpointCommand::List { network, json } => {
            let listed: Endpoints = client.ask(&Request::EndpointList { network })?;
            print(&listed, json, render::endpoints)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use appliance_user::config::Objects;

    use super::*;

    /// So many tenants, at a revision.
    fn state(count: usize, revision: u64) -> (Objects, u64) {
        let tenants = (0..count).map(|n| (format!("t{n:02}"), serde_json::json!({})));
        let tenants: serde_json::Map<_, _> = tenants.collect();
        let objects = serde_json::json!({ "tenants": tenants });
        (serde_json::from_value(objects).expect("objects"), revision)
    }

    #[test]
    fn a_state_that_changes_between_two_pages_is_read_again() {
        let (before, after) = (state(9, 5), state(7, 6));
        let mut asked = 0;
        let read = desired(|key| {
            asked += 1;
            let (objects, revision) = if asked < 3 { &before } else { &after };
            let (objects, next) = objects.page(key.as_deref(), 4).expect("a page");
            Ok(DesiredPage {
                revision: *revision,
                objects,
                next,
                ..DesiredPage::default()
            })
        });
        let read = read.expect("a state");
        assert_eq!((read.objects, read.revision), after);
        // Two pages, one of the other state, and two of that.
        assert_eq!(asked, 5);
    }
}
