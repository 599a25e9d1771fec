//! `causeway`: the command line of the director's API.
//!
//! ```text
//!   command line ─▶ context: server, token, CA ─▶ client: HTTP, TLS ─▶ director
//!        │                                            │ answer ─▶ table or JSON
//!        └ nouns of objects: the list of kinds        └ problem ─▶ reason, conflicts, exit code
//!   file ─▶ declare: plan against what is there ─▶ diff, or changes that name their revisions
//! ```

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when the reader has closed the pipe: use outln! and errln!"
)]

mod audit;
mod change;
mod client;
mod context;
mod declare;
mod failure;
mod file;
mod machine;
mod objects;
mod output;
mod people;
mod policy;
mod settings;
mod status;
mod tenant;
mod watch;

use std::{cell::OnceCell, path::PathBuf, process::ExitCode};

use clap::{Args, Command, FromArgMatches as _, Subcommand};
use service::{errln, outln, stdout};

use client::Client;
use context::{Context, Contexts};
use failure::{Exit, Failure};

/// The command line of the director of Causeway.
#[derive(Args)]
struct Global {
    /// Context: the director and the token to use.
    #[arg(long, global = true, env = "CAUSEWAY_CONTEXT")]
    context: Option<String>,
    /// File of contexts; $XDG_CONFIG_HOME/causeway/contexts.toml unless given.
    #[arg(long, global = true, env = "CAUSEWAY_CONTEXTS", value_name = "FILE")]
    contexts: Option<PathBuf>,
    /// Address of the director, in place of the context's.
    #[arg(long, global = true, env = "CAUSEWAY_SERVER", value_name = "URL")]
    server: Option<String>,
    /// File with certificate authorities for it.
    #[arg(long, global = true, env = "CAUSEWAY_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print JSON: one value, or one a line for streams. Errors are JSON, too.
    #[arg(long, global = true)]
    json: bool,
}

/// Commands that are not about objects of a kind.
#[derive(Subcommand)]
enum Other {
    /// Log in with a name and a password, and keep the token in the context.
    Login(people::Login),
    /// End the token of the context.
    Logout,
    /// Show the user of the token.
    Whoami,
    /// Change your password, and end all your tokens but that of the context. The command asks for
    /// the current password and the new one, or reads them from standard input in this order.
    Password,
    /// List, create and delete users.
    #[command(subcommand)]
    User(people::UserVerb),
    /// List, create and delete your API tokens.
    #[command(subcommand)]
    Token(people::TokenVerb),
    /// Create and confirm your authenticator (TOTP).
    #[command(subcommand)]
    Totp(people::TotpVerb),
    /// List and check the audit.
    #[command(subcommand)]
    Audit(audit::Verb),
    /// Show numbers of objects, conditions that are not true, and leases that end within 7 days;
    /// exits with 1 if there is such a condition or lease.
    Status(status::Status),
    /// Print changes of objects as they are made.
    Watch(watch::Watch),
    /// Create and change the objects that files declare; with `--prune`, delete others.
    Apply(declare::Apply),
    /// Show what `apply` would change; exits with 1 if there are differences.
    Diff(declare::Diff),
    /// Print objects as a file for `apply`.
    Export(declare::Export),
    /// List, set and select contexts.
    #[command(subcommand)]
    Context(settings::Verb),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// The command line of one call, and the client that it makes when it needs one.
struct Session {
    json: bool,
    path: PathBuf,
    contexts: Contexts,
    /// Name of the context.
    name: Option<String>,
    context: Context,
    client: OnceCell<Client>,
}

impl Session {
    fn new(global: Global) -> Result<Self, Failure> {
        let path = match global.contexts {
            Some(path) => path,
            None => context::default_path()?,
        };
        let contexts = Contexts::load(&path)?;
        let name = global.context.or_else(|| contexts.current.clone());
        let mut context = match &name {
            Some(name) => contexts.contexts.get(name).cloned().unwrap_or_default(),
            None => Context::default(),
        };
        if let Some(server) = global.server {
            // The token of a context is for its director only.
            if server != context.server {
                context = Context::default();
            }
            context.server = server;
        }
        context.ca = global.ca.or(context.ca);
        if let Some(token) = std::env::var("CAUSEWAY_TOKEN")
            .ok()
            .filter(|token| !token.is_empty())
        {
            context.token = Some(token);
        }
        Ok(Self {
            json: global.json,
            path,
            contexts,
            name,
            context,
            client: OnceCell::new(),
        })
    }

    fn client(&self) -> Result<&Client, Failure> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        if self.context.server.is_empty() {
            if let Some(name) = &self.name {
                self.contexts.get(name)?;
            }
            return Err(Failure::usage(
                "no director is named: make a context with `causeway context set NAME --server \
                 https://HOST`, or write --server",
            ));
        }
        let client = Client::new(&self.context)?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Refuses to change a context that is of another director than the command line names.
    fn refuse_other_server(&self, name: &str) -> Result<(), Failure> {
        let kept = self.contexts.contexts.get(name);
        match kept.filter(|kept| kept.server != self.context.server) {
            None => Ok(()),
            Some(kept) => Err(Failure::usage(format!(
                "context {name:?} belongs to {}: write another name with --context; login creates \
                 it",
                kept.server
            ))),
        }
    }

    /// The tenant of the context.
    fn tenant(&self) -> Option<String> {
        self.context.tenant.clone()
    }
}

fn command() -> Command {
    let command = Command::new("causeway")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(
            "Exit codes: 0 done, 1 differences found, audit chain broken, a condition not true or \
             a lease that ends soon, 2 wrong command line, 3 no such object, 4 refused, 5 not \
             allowed, 6 changed meanwhile, 7 director not reachable, 8 a local file cannot be read \
             or written",
        )
        .subcommand_required(true)
        .arg_required_else_help(true);
    let command = Global::augment_args(command);
    // The docstrings of both types would be the description otherwise.
    Other::augment_subcommands(command.subcommands(objects::commands()))
        .about("The command line of the director of Causeway")
}

fn main() -> ExitCode {
    let (json, result) = match command().try_get_matches() {
        Ok(matches) => (matches.get_flag("json"), run(&matches)),
        // It exits with 0 for the help, and with 2 otherwise.
        Err(error) if !error.use_stderr() || !std::env::args_os().any(|word| word == "--json") => {
            error.exit()
        }
        Err(error) => (true, Err(Failure::usage(error.to_string()))),
    };
    let exit = match result {
        Ok(exit) => exit.map_or(0, |exit| exit as u8),
        Err(failure) => {
            match json {
                true => errln!("{}", failure.json()),
                false => errln!("causeway: {failure}"),
            }
            failure.exit as u8
        }
    };
    match stdout::finish() {
        Ok(()) => ExitCode::from(exit),
        Err(error) => {
            errln!("causeway: cannot write to standard output: {error}");
            ExitCode::from(Exit::Local as u8)
        }
    }
}

/// Runs the command: its exit code if that is not 0.
fn run(matches: &clap::ArgMatches) -> Result<Option<Exit>, Failure> {
    let wrong = |error: clap::Error| Failure::usage(error.to_string());
    let global = Global::from_arg_matches(matches).map_err(wrong)?;
    if let Some((noun, given)) = matches.subcommand()
        && let Some(info) = control::kind(noun)
    {
        return objects::run(&Session::new(global)?, info, given);
    }
    let other = Other::from_arg_matches(matches).map_err(wrong)?;
    if let Other::Completion { shell } = other {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command(), "causeway", &mut text);
        stdout::print(String::from_utf8_lossy(&text));
        return Ok(None);
    }
    let mut session = Session::new(global)?;
    match other {
        Other::Login(login) => people::log_in(&mut session, &login)?,
        Other::Logout => people::log_out(&mut session)?,
        Other::Whoami => {
            let user = session.client()?.get("/v1/self", Vec::new())?;
            match session.json {
                true => {
                    outln!("{user}");
                }
                false => people::print_self(&session, &user),
            }
        }
        Other::Password => people::password(&session)?,
        Other::User(verb) => people::user(&session, &verb)?,
        Other::Token(verb) => people::token(&session, &verb)?,
        Other::Totp(verb) => people::totp(&session, &verb)?,
        Other::Audit(verb) => return audit::run(&session, &verb),
        Other::Status(given) => return status::run(&session, &given),
        Other::Watch(given) => watch::run(&session, &given)?,
        Other::Apply(given) => declare::apply(&session, &given)?,
        Other::Diff(given) => return declare::diff(&session, &given),
        Other::Export(given) => declare::export(&session, &given)?,
        Other::Context(verb) => settings::run(&mut session, &verb)?,
        Other::Completion { .. } => {}
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_has_all_kinds() {
        command().debug_assert();
        for info in control::KINDS {
            let found = command();
            let noun = found.find_subcommand(info.kind);
            let noun = noun.unwrap_or_else(|| panic!("{}", info.kind));
            let verbs: Vec<_> = noun.get_subcommands().map(Command::get_name).collect();
            for verb in ["list", "get", "create", "replace", "set", "delete"] {
                assert!(verbs.contains(&verb), "{} {verb}", info.kind);
            }
        }
    }

    /// Verbs that people know of other products, beside those that every kind has.
    #[test]
    fn nouns_have_the_verbs_of_the_field() {
        let found = |words: &str| {
            let words = std::iter::once("causeway").chain(words.split(' '));
            command().try_get_matches_from(words)
        };
        for words in [
            "host add h1",
            "host show h1",
            "host remove h1",
            "vlan-pool usage pool",
            "address-pool add public",
            "address assign a1 --tenant acme",
            "address release a1 --tenant acme",
            "hardware-plan tenants small",
            "tenant set acme --fallback true",
            "tenant set acme --lease-ends 2027-12-31T00:00:00Z --bandwidth 100",
            "tenant set acme --gateway-pool gold --gateway-pool silver",
            "subscription create web -t acme --hardware-plan small --public-addresses 2",
            "gateway drain gw1",
            "network set web-1 -t acme --gateway 10.1.0.1 --gateway fd00::1",
            "policy allow web db -t acme",
            "policy deny web db -t acme --one-way",
            "rule add https -t acme",
            "plan check all -t acme",
            "plan export all -t acme --format json",
        ] {
            found(words).unwrap_or_else(|error| panic!("{words}: {error}"));
        }
        // A change of nothing.
        assert!(found("network set web-1 -t acme").is_err());
        assert!(found("host set h1").is_err());
    }

    #[test]
    fn quoted_commands_are_accepted() {
        test_support::commands::check(&test_support::commands::Program {
            names: &[("causeway", &[])],
            table: None,
            except: &["causeway tunnel over "],
            command,
        });
    }
}
