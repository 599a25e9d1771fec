//! `causeway-lab`: sites to explore, and the demo.
//!
//! ```text
//!   up TOPOLOGY ─▶ a standing lab ─▶ exec HOST -- CMD…, capture, list ─▶ down
//!   demo        ─▶ raises its own, shows, measures, takes it down
//! ```

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when the reader has closed the pipe: use outln! and errln!"
)]

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lab::{
    Impairment, Lab, Options, Paths, Switchover, Topology, interrupt, sites, topology::Failover,
};

mod demo;

/// Raise whole sites in network namespaces on this machine. Needs root.
#[derive(Parser)]
#[command(name = "causeway-lab", version)]
struct Cli {
    #[command(flatten)]
    files: Files,
    #[command(subcommand)]
    command: Command,
}

/// Built files. Default: those in the folder of this program.
#[derive(Args)]
struct Files {
    /// The appliance daemon. Default: CAUSEWAY_APPLIANCE.
    #[arg(long, global = true, value_name = "FILE")]
    appliance: Option<PathBuf>,
    /// The gateway daemon. Default: CAUSEWAY_GATEWAY.
    #[arg(long, global = true, value_name = "FILE")]
    gateway: Option<PathBuf>,
    /// The appliance's BPF object. Default: CAUSEWAY_BPF_OBJECT.
    #[arg(long, global = true, value_name = "FILE")]
    bpf_object: Option<PathBuf>,
    /// The gateway's BPF object. Default: CAUSEWAY_GATEWAY_BPF_OBJECT.
    #[arg(long, global = true, value_name = "FILE")]
    gateway_bpf_object: Option<PathBuf>,
    /// The virtual switch's BPF object. Default: CAUSEWAY_LAB_BPF_OBJECT.
    #[arg(long, global = true, value_name = "FILE")]
    lab_bpf_object: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Raise sites and leave them running.
    Up {
        /// The topology to raise.
        topology: SiteName,
        /// Name of the lab. Default: the topology's name. A lab of that name is taken down first.
        #[arg(long)]
        name: Option<String>,
        /// Fail over after raising: the first machine, or in `full` the whole sites of both
        /// tenants.
        #[arg(long)]
        failed_over: bool,
        /// Do not start the appliances and gateways.
        #[arg(long, conflicts_with = "failed_over")]
        no_appliances: bool,
        #[command(flatten)]
        links: Links,
    },
    /// Take a lab down. No error if it does not exist.
    Down {
        /// Name of the lab. May be omitted if only one is up.
        name: Option<String>,
        /// Take down all labs, and namespaces with the lab prefix that no record lists.
        #[arg(long, conflicts_with = "name")]
        all: bool,
        /// Take down only labs that were left behind by tests that have ended.
        #[arg(long, conflicts_with_all = ["name", "all"])]
        tests: bool,
    },
    /// List the labs that are up.
    List,
    /// Run a command in a host, on this terminal. The exit status is that of the command.
    Exec {
        /// A host or switch.
        host: String,
        /// The lab. May be omitted if only one is up.
        #[arg(long)]
        lab: Option<String>,
        /// The command.
        #[arg(last = true, required = true, value_name = "CMD")]
        words: Vec<std::ffi::OsString>,
    },
    /// Make a gateway fail in some way, or end the failure.
    Gateway {
        /// The failure, or its end.
        fault: Fault,
        /// The gateway.
        #[arg(value_name = "GATEWAY")]
        which: String,
        /// The lab. May be omitted if only one is up.
        #[arg(long)]
        lab: Option<String>,
    },
    /// Fail over a machine to its replica, or a whole site.
    FailOver {
        /// The production host.
        #[arg(default_value = "prod-a")]
        machine: String,
        /// Fail over this tenant's whole site instead: cut it off, start its replicas, mode full.
        #[arg(long, conflicts_with = "machine")]
        tenant: Option<String>,
        /// The lab. May be omitted if only one is up.
        #[arg(long)]
        lab: Option<String>,
    },
    /// Fail back a machine to its production host, or a whole site.
    FailBack {
        /// The production host.
        #[arg(default_value = "prod-a")]
        machine: String,
        /// Fail back this tenant's whole site instead: mode idle, replicas off, reconnect the site.
        #[arg(long, conflicts_with = "machine")]
        tenant: Option<String>,
        /// The lab. May be omitted if only one is up.
        #[arg(long)]
        lab: Option<String>,
    },
    /// Capture frames on a link into a pcap file, until Ctrl-C or for a number of seconds.
    Capture {
        /// A host or switch.
        host: String,
        /// Its link.
        link: String,
        /// The lab. May be omitted if only one is up.
        #[arg(long)]
        lab: Option<String>,
        /// Capture at the switch port at the other end of the link. Frames that XDP consumes or
        /// sends are visible only there.
        #[arg(long)]
        far_end: bool,
        /// Stop after this number of seconds.
        #[arg(long)]
        seconds: Option<u64>,
        /// Copy the pcap file here at the end.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Delay, lose, reorder or limit UDP and TCP that arrive on a router's link, until Ctrl-C.
    Impair {
        /// A router, such as `wan`.
        host: String,
        /// Its link, such as `tenant` (traffic from the tenant) or `provider`.
        link: String,
        /// The lab. May be omitted if only one is up.
        #[arg(long)]
        lab: Option<String>,
        #[command(flatten)]
        impairment: ImpairmentArgs,
    },
    /// Raise sites, fail over a machine or whole sites, check and measure each step, take all down.
    Demo {
        /// The failover to show.
        #[arg(long, default_value = "partial")]
        scenario: demo::Scenario,
        /// Name of the demo's lab. Labs with other names are left alone.
        #[arg(long, default_value = "demo")]
        name: String,
        /// Write the result to this file as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        #[command(flatten)]
        links: Links,
    },
}

#[derive(Args, Clone, Copy)]
struct ImpairmentArgs {
    /// Delay of each packet, milliseconds.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    delay: u64,
    /// At most this much more delay for each packet, milliseconds. Packets overtake each other.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    jitter: u64,
    /// Lost packets, percent.
    #[arg(long, default_value_t = 0.0, value_name = "PERCENT", value_parser = percent)]
    loss: f64,
    /// Rate limit, kilobits per second; 0 for none.
    #[arg(long, default_value_t = 0, value_name = "KBIT/S")]
    rate: u64,
    /// Bytes that wait for the rate limit; more are dropped.
    #[arg(long, default_value_t = 256 * 1024, value_name = "BYTES")]
    queue: usize,
    /// Seed of losses and jitter.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl From<ImpairmentArgs> for Impairment {
    fn from(args: ImpairmentArgs) -> Self {
        Self {
            delay: Duration::from_millis(args.delay),
            jitter: Duration::from_millis(args.jitter),
            loss_ppm: (args.loss * 10_000.0) as u32,
            rate: args.rate.saturating_mul(1000),
            queue: args.queue,
            seed: args.seed,
        }
    }
}

/// Reads a percentage.
fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("write a number from 0 to 100".to_owned()),
    }
}

#[derive(Args, Clone, Copy)]
struct Links {
    /// MTU of the WAN links, bytes.
    #[arg(long, default_value_t = 1500, value_name = "BYTES")]
    wan_mtu: u16,
    /// Switch TSO, GSO and GRO off on hosts and switch ports, as on a physical wire.
    #[arg(long)]
    wire_like: bool,
    /// Switch duplicate address detection off: IPv6 addresses are usable at once.
    #[arg(long)]
    no_dad: bool,
    /// Use plain tunnels (VXLAN, wholly in XDP) instead of encrypted ones.
    #[arg(long)]
    plain: bool,
    /// Workers of each appliance, which is also the number of queues of its links: 1 to 8.
    #[arg(
        long,
        default_value_t = 1,
        value_name = "N",
        value_parser = clap::value_parser!(u8).range(1..=8)
    )]
    workers: u8,
}

impl Links {
    fn options(self) -> Options {
        Options {
            wan_mtu: self.wan_mtu,
            offloads: !self.wire_like,
            dad: !self.no_dad,
            encrypted: !self.plain,
            workers: self.workers,
            ..Options::default()
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Fault {
    /// Send SIGKILL.
    Kill,
    /// Send SIGTERM: the gateway drains.
    Drain,
    /// Start the gateway again.
    Start,
    /// Set its WAN link down.
    Cut,
    /// Set its WAN link up.
    Restore,
    /// Drop all packets of its WAN link, which stays up.
    Blackhole,
    /// Stop dropping packets of its WAN link.
    EndBlackhole,
}

impl Fault {
    fn inject(self, lab: &Lab, name: &str) -> lab::Result<()> {
        let gateway = lab.gateway(name)?;
        let wan = format!("{name}-wan");
        match self {
            Self::Kill => gateway.kill(),
            Self::Drain => gateway.drain(),
            Self::Start => gateway.start(),
            Self::Cut => lab.cut(&wan),
            Self::Restore => lab.restore_link(&wan),
            Self::Blackhole => lab.blackhole(&wan),
            Self::EndBlackhole => lab.end_blackhole(&wan),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum SiteName {
    /// One tenant with two networks, a provider, a remote host.
    Partial,
    /// Two tenants with the same addresses.
    TwoTenants,
    /// Two tenants that fail over whole, a provider's router, the internet.
    Full,
    /// The same with second routers: of the uplink, and of a production network.
    TwoRouters,
    /// Two tenants that reach their provider through one of three gateways: one behind NAT, one
    /// without UDP.
    Gateways,
}

impl SiteName {
    fn topology(self, options: Options) -> Topology {
        match self {
            Self::Partial => sites::partial(options),
            Self::TwoTenants => sites::two_tenants(options),
            Self::Full => sites::full(options),
            Self::TwoRouters => sites::two_routers(options),
            Self::Gateways => sites::gateways(options),
        }
    }
}

fn main() -> ExitCode {
    let done = run(Cli::parse()).and_then(|code| {
        service::stdout::finish().context("writing to standard output")?;
        Ok(code)
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            service::errln!("causeway-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let found = Paths::find();
    let paths = Paths {
        appliance: cli.files.appliance.unwrap_or(found.appliance),
        gateway: cli.files.gateway.unwrap_or(found.gateway),
        bpf_object: cli.files.bpf_object.unwrap_or(found.bpf_object),
        gateway_bpf_object: cli
            .files
            .gateway_bpf_object
            .unwrap_or(found.gateway_bpf_object),
        lab_bpf_object: cli.files.lab_bpf_object.unwrap_or(found.lab_bpf_object),
    };
    match cli.command {
        Command::Up {
            topology,
            name,
            failed_over,
            no_appliances,
            links,
        } => {
            let topology = topology.topology(links.options());
            let name = name.unwrap_or_else(|| topology.name.clone());
            up(topology, &name, paths, !no_appliances, failed_over)?;
        }
        Command::Down { all: true, .. } => {
            for lab in Lab::down_all()? {
                service::outln!("{lab}: down");
            }
        }
        Command::Down { tests: true, .. } => {
            for lab in Lab::down_abandoned_tests()? {
                service::outln!("{lab}: down");
            }
        }
        Command::Down { name, .. } => {
            let name = match name {
                Some(name) => name,
                None => only_lab()?,
            };
            Lab::down(&name)?;
            service::outln!("{name}: down");
        }
        Command::List => list()?,
        Command::Exec { host, lab, words } => {
            let lab = open(lab, paths)?;
            // Becomes the command: its terminal, signals and exit status are all its own.
            let error = lab.command_in(&host, &words, true)?.exec();
            return Err(error).with_context(|| format!("running {}", words[0].display()));
        }
        Command::Gateway { fault, which, lab } => fault.inject(&open(lab, paths)?, &which)?,
        Command::FailOver {
            machine,
            tenant: None,
            lab,
        } => {
            let done = open(lab, paths)?.fail_over(&machine)?;
            service::outln!("{machine}: failed over in {} ms", ms(&done));
        }
        Command::FailOver {
            tenant: Some(tenant),
            lab,
            ..
        } => fail_over_site(&open(lab, paths)?, &tenant)?,
        Command::FailBack {
            machine,
            tenant: None,
            lab,
        } => {
            let done = open(lab, paths)?.fail_back(&machine)?;
            service::outln!("{machine}: failed back in {} ms", ms(&done));
        }
        Command::FailBack {
            tenant: Some(tenant),
            lab,
            ..
        } => {
            open(lab, paths)?.undo_site(&tenant)?;
            service::outln!("{tenant}: failed back");
        }
        Command::Capture {
            host,
            link,
            lab,
            far_end,
            seconds,
            out,
        } => {
            let lab = open(lab, paths)?;
            capture(&lab, &host, &link, far_end, seconds, out)?;
        }
        Command::Impair {
            host,
            link,
            lab,
            impairment,
        } => {
            let lab = open(lab, paths)?;
            interrupt::install()?;
            let impaired = lab.impair(&host, &link, impairment.into())?;
            service::errln!("impairing {link} of {host}; end it by Ctrl-C");
            while interrupt::check().is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
            interrupt::clear();
            let counts = impaired.stop()?;
            service::outln!(
                "{} packets passed ({} overtaken), {} lost, {} dropped by the rate limit",
                counts.passed,
                counts.reordered,
                counts.lost,
                counts.overflowed
            );
        }
        Command::Demo {
            scenario,
            name,
            json,
            links,
        } => {
            interrupt::install()?;
            return demo::demo(scenario, links.options(), &name, paths, json.as_deref());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn up(
    topology: Topology,
    name: &str,
    paths: Paths,
    appliances: bool,
    failed_over: bool,
) -> anyhow::Result<()> {
    interrupt::install()?;
    let began = Instant::now();
    service::outln!("{}", topology.picture);
    let lab = Lab::up(topology, name, paths)?;
    let rest = || -> anyhow::Result<()> {
        if appliances {
            lab.start_appliances()?;
        }
        for failover in &lab.topology().failovers {
            lab.write_plan(&failover.tenant)?;
        }
        if failed_over && !lab.topology().failovers.is_empty() {
            for Failover { tenant, .. } in &lab.topology().failovers {
                fail_over_site(&lab, tenant)?;
            }
        } else if failed_over {
            let machine = lab
                .topology()
                .machines
                .first()
                .context("the topology has no machine that can fail over")?;
            lab.fail_over(&machine.production)?;
            service::outln!("{} runs as {}", machine.production, machine.replica);
        }
        Ok(())
    };
    if let Err(error) = rest() {
        interrupt::clear();
        Lab::down(name).context("taking the lab down after a failure")?;
        return Err(error);
    }
    let first = lab
        .topology()
        .hosts
        .first()
        .map_or("HOST", |h| h.name.as_str());
    service::outln!(
        "lab {name} is up after {:.1} s; hosts: {}",
        began.elapsed().as_secs_f64(),
        lab.topology()
            .hosts
            .iter()
            .map(|h| h.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    );
    service::outln!("  causeway-lab exec {first} --lab {name} -- bash    explore a host");
    service::outln!("  causeway-lab down {name}");
    for appliance in lab.topology().appliances.iter().filter(|_| appliances) {
        service::outln!(
            "  causeway-appliance --socket {} status",
            lab.appliance(&appliance.host)?.socket_path().display()
        );
    }
    for gateway in lab.topology().cloud.gateways.iter().filter(|_| appliances) {
        service::outln!(
            "  causeway-gateway --socket {} status",
            lab.gateway(&gateway.host)?.socket_path().display()
        );
    }
    for failover in lab.topology().failovers.iter().filter(|_| appliances) {
        let tenant = &failover.tenant;
        let plan = lab.plan_path(tenant);
        service::outln!(
            "  causeway-lab fail-over --tenant {tenant} --lab {name}    with plan {}",
            plan.display()
        );
    }
    Ok(())
}

fn fail_over_site(lab: &Lab, tenant: &str) -> anyhow::Result<()> {
    let done = lab.fail_over_site(tenant)?;
    let took = (done.switched - done.booted).as_millis();
    service::outln!("{tenant}: the whole site runs at the provider, switched in {took} ms");
    Ok(())
}

/// From the first step until both appliances have switched and the machine is up.
fn ms(done: &Switchover) -> u128 {
    (done.switched.max(done.on) - done.began).as_millis()
}

fn only_lab() -> anyhow::Result<String> {
    let mut labs: Vec<_> = Lab::list()?.into_iter().map(|l| l.name).collect();
    match labs.len() {
        0 => bail!("no lab is up; raise one with `causeway-lab up partial`"),
        1 => Ok(labs.remove(0)),
        _ => bail!("several labs are up; name one of: {}", labs.join(", ")),
    }
}

fn open(name: Option<String>, paths: Paths) -> anyhow::Result<Lab> {
    let name = match name {
        Some(name) => name,
        None => only_lab()?,
    };
    Ok(Lab::open(&name, paths)?)
}

fn list() -> anyhow::Result<()> {
    for lab in Lab::list()? {
        service::outln!("{} ({})", lab.name, lab.topology);
        service::outln!("  hosts        {}", lab.hosts.join(", "));
        service::outln!("  appliances   {}", or_none(&lab.appliances));
        service::outln!("  gateways     {}", or_none(&lab.gateways));
        service::outln!("  failed over  {}", or_none(&lab.failed_over));
    }
    Ok(())
}

fn or_none(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn capture(
    lab: &Lab,
    host: &str,
    link: &str,
    far_end: bool,
    seconds: Option<u64>,
    out: Option<PathBuf>,
) -> anyhow::Result<()> {
    interrupt::install()?;
    let (host, link) = if far_end {
        lab.topology()
            .port_of(host, link)
            .with_context(|| format!("link {link} of {host} is not connected to a switch"))?
    } else {
        (host.to_owned(), link.to_owned())
    };
    let capture = lab.capture(&host, &link, None)?;
    let path = capture.path().to_owned();
    service::errln!("capturing on {link} of {host} into {}", path.display());
    let until = seconds.map(|s| Instant::now() + Duration::from_secs(s));
    while interrupt::check().is_ok() && until.is_none_or(|u| Instant::now() < u) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let frames = capture.stop()?;
    if let Some(out) = out {
        std::fs::copy(&path, &out).with_context(|| format!("copying to {}", out.display()))?;
    }
    service::outln!("{} frames", frames.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_line_can_be_read() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        let words = [
            "causeway-lab",
            "gateway",
            "end-blackhole",
            "gw1",
            "--lab",
            "x",
        ];
        let Ok(Command::Gateway { which, .. }) = Cli::try_parse_from(words).map(|c| c.command)
        else {
            panic!("not read");
        };
        assert_eq!(which, "gw1");
        let impair = |loss| {
            let words = ["causeway-lab", "impair", "wan", "tenant", "--delay", "40"];
            Cli::try_parse_from([&words[..], &["--loss", loss]].concat()).map(|c| c.command)
        };
        let Ok(Command::Impair { impairment, .. }) = impair("0.5") else {
            panic!("not read");
        };
        let impairment = Impairment::from(impairment);
        assert_eq!(impairment.loss_ppm, 5_000);
        assert_eq!(impairment.delay, Duration::from_millis(40));
        for wrong in ["-1", "101", "NaN", "much"] {
            assert!(impair(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn quoted_commands_are_accepted() {
        test_support::commands::check(&test_support::commands::Program {
            names: &[
                ("causeway-lab", &[]),
                ("cargo xtask lab", &[]),
                ("cargo xtask demo", &["demo"]),
            ],
            table: None,
            except: &[],
            command: <Cli as clap::CommandFactory>::command,
        });
    }
}
