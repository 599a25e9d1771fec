//! Commands on contexts.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};
use service::outln;

use crate::{Session, client::Client, failure::Failure, output::Table};

#[derive(Subcommand)]
pub enum Verb {
    /// List contexts; `*` marks the current one.
    List,
    /// Create or change a context. It becomes the current one if there is none.
    Set {
        name: String,
        /// Address of the director: https://HOST[:PORT].
        #[arg(long, value_name = "URL")]
        server: Option<String>,
        /// File with the certificate authorities of the director; an empty text selects those of
        /// the system.
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// Tenant of commands that name none; an empty text removes it.
        #[arg(long)]
        tenant: Option<String>,
        /// Read an API token from the first line of standard input.
        #[arg(long)]
        token_stdin: bool,
    },
    /// Make a context the current one.
    Use { name: String },
    /// Delete a context and its token.
    Delete { name: String },
}

pub fn run(session: &mut Session, verb: &Verb) -> Result<(), Failure> {
    let contexts = &mut session.contexts;
    match verb {
        Verb::List if session.json => {
            let items = contexts.contexts.iter().map(|(name, context)| {
                json!({ "name": name, "current": contexts.current.as_ref() == Some(name),
                    "server": context.server, "ca": context.ca, "tenant": context.tenant,
                    "has_token": context.token.is_some() })
            });
            outln!("{}", Value::Array(items.collect()));
            return Ok(());
        }
        Verb::List => {
            let mut table = Table::new(&["current", "name", "server", "tenant", "token"]);
            for (name, context) in &contexts.contexts {
                let is_current = contexts.current.as_ref() == Some(name);
                let mark = |is: bool, text: &str| if is { text } else { "-" }.to_owned();
                table.row(vec![
                    mark(is_current, "*"),
                    name.clone(),
                    context.server.clone(),
                    context.tenant.clone().unwrap_or_else(|| "-".to_owned()),
                    mark(context.token.is_some(), "kept"),
                ]);
            }
            table.print();
            return Ok(());
        }
        Verb::Set {
            name,
            server,
            ca,
            tenant,
            token_stdin,
        } => {
            let mut context = contexts.contexts.get(name).cloned().unwrap_or_default();
            if let Some(server) = server {
                // A token is for one director only.
                if *server != context.server {
                    context.token = None;
                }
                context.server.clone_from(server);
            }
            if context.server.is_empty() {
                return Err(Failure::usage(
                    "name the director: --server https://HOST[:PORT]",
                ));
            }
            if let Some(ca) = ca {
                let is_none = ca.as_os_str().is_empty();
                let absolute = std::path::absolute(ca).ok();
                context.ca = absolute.filter(|_| !is_none);
            }
            if let Some(tenant) = tenant {
                context.tenant = Some(tenant.clone()).filter(|tenant| !tenant.is_empty());
            }
            if *token_stdin {
                context.token = Some(crate::people::line("token")?);
            }
            // Refuses a wrong address and an unreadable file.
            Client::new(&context)?;
            contexts.contexts.insert(name.clone(), context);
            contexts.current.get_or_insert_with(|| name.clone());
        }
        Verb::Use { name } => {
            contexts.get(name)?;
            contexts.current = Some(name.clone());
        }
        Verb::Delete { name } => {
            contexts.get(name)?;
            contexts.contexts.remove(name);
            if contexts.current.as_ref() == Some(name) {
                contexts.current = None;
            }
        }
    }
    contexts.save(&session.path)?;
    match &contexts.current {
        current if session.json => {
            outln!("{}", json!({ "current": current }));
        }
        Some(current) => {
            outln!("current context: {current}");
        }
        None => {}
    }
    Ok(())
}
