//! Log-in, users and tokens.

use std::io::{BufRead as _, IsTerminal as _};

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};
use service::{errln, outln};

use crate::{
    Session,
    client::{Call, Client, encoded},
    context::Context,
    failure::{Exit, Failure},
    output::{Table, cell},
};

#[derive(Args)]
pub struct Login {
    /// Name of the user.
    #[arg(long, short)]
    user: String,
}

#[derive(Subcommand)]
pub enum UserVerb {
    /// List users.
    #[command(visible_alias = "ls")]
    List,
    /// Create a user. The password is asked for, or read from standard input. Machines, which are
    /// named by --object, have none.
    Create {
        name: String,
        /// Role, such as provider-operator or tenant-admin.
        #[arg(long)]
        role: String,
        /// Tenant, for roles of a tenant.
        #[arg(long, short)]
        tenant: Option<String>,
        /// The gateway or appliance that a machine is, for the roles gateway and appliance.
        #[arg(long)]
        object: Option<String>,
    },
    /// Delete a user and its tokens.
    #[command(visible_alias = "remove")]
    Delete { name: String },
    /// Create a token for a machine and print its secret, which is shown only once.
    Token {
        name: String,
        /// Lifetime, hours, 1 to 8784.
        #[arg(long)]
        hours: u32,
    },
    /// Set the password of another user, which ends all tokens of that user. It is asked for, or
    /// read from standard input.
    SetPassword { name: String },
    /// Remove the authenticator of a user who has lost it.
    RemoveTotp { name: String },
}

#[derive(Subcommand)]
pub enum TotpVerb {
    /// Create your authenticator. Its secret and the recovery codes are shown only once.
    Create,
    /// Confirm your authenticator by a code: from then on, a login requires a code.
    Confirm,
}

#[derive(Subcommand)]
pub enum TokenVerb {
    /// List your tokens.
    #[command(visible_alias = "ls")]
    List,
    /// Create a token and print its secret, which is shown only once.
    Create {
        /// Lifetime, hours, 1 to 8784.
        #[arg(long)]
        hours: u32,
        /// Description, for people.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Delete a token.
    #[command(visible_alias = "remove")]
    Delete { id: String },
}

/// A line that the user types without an echo, or the next line of standard input.
pub fn line(prompt: &str) -> Result<String, Failure> {
    let failed =
        |error: std::io::Error| Failure::local(format!("cannot read the {prompt}: {error}"));
    let text = match std::io::stdin().is_terminal() {
        true => rpassword::prompt_password(format!("{prompt}: ")).map_err(failed)?,
        false => {
            let mut text = String::new();
            std::io::stdin()
                .lock()
                .read_line(&mut text)
                .map_err(failed)?;
            text
        }
    };
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(Failure::usage(format!(
            "there is no {prompt}: type it, or send it on standard input"
        )));
    }
    Ok(text.to_owned())
}

/// A new password, which the user types twice on a terminal.
fn new_password() -> Result<String, Failure> {
    let password = line("new password")?;
    if std::io::stdin().is_terminal() && line("new password again")? != password {
        return Err(Failure::usage(
            "the two passwords differ: type the same one twice",
        ));
    }
    Ok(password)
}

fn put(client: &Client, path: &str, body: &Value) -> Result<Value, Failure> {
    let call = Call {
        method: Method::PUT,
        path,
        body: Some(body),
        ..Call::default()
    };
    Ok(client.send(&call)?.body)
}

/// Changes the user's own password.
pub fn password(session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let mut body = json!({});
    if client.get("/v1/self", Vec::new())?["password"] == true {
        body["current"] = line("present password")?.into();
    }
    body["password"] = new_password()?.into();
    let answer = put(client, "/v1/self/password", &body)?;
    print_ended(session, &answer);
    Ok(())
}

fn print_ended(session: &Session, answer: &Value) {
    match session.json {
        true => outln!("{answer}"),
        false => outln!("password changed; tokens ended: {}", answer["ended"]),
    };
}

fn post(client: &Client, path: &str, body: &Value) -> Result<Value, Failure> {
    let call = Call {
        method: Method::POST,
        path,
        body: Some(body),
        ..Call::default()
    };
    Ok(client.send(&call)?.body)
}

fn delete(client: &Client, path: &str) -> Result<(), Failure> {
    let call = Call {
        method: Method::DELETE,
        path,
        ..Call::default()
    };
    client.send(&call).map(drop)
}

pub fn log_in(session: &mut Session, login: &Login) -> Result<(), Failure> {
    let name = session.name.clone().unwrap_or_else(|| "default".to_owned());
    session.refuse_other_server(&name)?;
    // The session is not bound to the previous token.
    session.context.token = None;
    let client = session.client()?;
    let mut body = json!({ "user": login.user, "password": line("password")? });
    let answer = match post(client, "/v1/sessions", &body) {
        Err(failure) if needs_code(&failure) => {
            body["code"] = line("code")?.into();
            post(client, "/v1/sessions", &body)?
        }
        answer => answer?,
    };
    let token = answer["secret"].as_str().map(ToOwned::to_owned);
    let context = Context {
        token,
        ..session.context.clone()
    };
    let contexts = &mut session.contexts;
    contexts.current.get_or_insert_with(|| name.clone());
    contexts.contexts.insert(name.clone(), context);
    contexts.save(&session.path)?;
    let expires = &answer["token"]["expires"];
    match session.json {
        true => outln!(
            "{}",
            json!({ "context": name, "user": login.user, "expires": expires })
        ),
        false => outln!(
            "context {name}: logged in as {} until {}",
            login.user,
            cell(expires)
        ),
    };
    Ok(())
}

/// Whether the name and the password are right, and a code of an authenticator is missing.
fn needs_code(failure: &Failure) -> bool {
    let problem = failure.problem.as_ref();
    problem.is_some_and(|problem| problem["type"] == "urn:causeway:problem:code")
}

/// Ends the token of the context, and forgets it.
pub fn log_out(session: &mut Session) -> Result<(), Failure> {
    let name = session.name.clone().unwrap_or_default();
    let kept = session.contexts.contexts.get(&name);
    let kept = kept.and_then(|context| context.token.clone());
    let Some(token) = kept else {
        return Err(Failure::usage(
            "the context has no token: end another one by `causeway token delete ID`",
        ));
    };
    session.refuse_other_server(&name)?;
    // Not that of the environment.
    session.context.token = Some(token);
    match end_token(session.client()?) {
        // It has ended already.
        Err(failure) if failure.exit == Exit::Absent || failure.exit == Exit::Forbidden => {
            errln!("causeway: warning: the token had ended already");
        }
        ended => ended?,
    }
    if let Some(context) = session.contexts.contexts.get_mut(&name) {
        context.token = None;
    }
    session.contexts.save(&session.path)
}

fn end_token(client: &Client) -> Result<(), Failure> {
    let own = client.get("/v1/self", Vec::new())?;
    let id = own["token"].as_str().unwrap_or_default();
    delete(client, &format!("/v1/tokens/{}", encoded(id)))
}

pub fn print_self(session: &Session, user: &Value) {
    let mut table = Table::new(&["user", "role", "tenant", "server"]);
    let mut row: Vec<_> = ["user", "role", "tenant"].map(|f| cell(&user[f])).into();
    row.push(session.context.server.clone());
    table.row(row);
    table.print();
}

/// Prints items as a table of these fields, or as JSON.
fn print(session: &Session, answer: &Value, fields: &[&str]) {
    if session.json {
        outln!("{}", answer["items"]);
        return;
    }
    let mut table = Table::new(fields);
    for item in answer["items"].as_array().into_iter().flatten() {
        table.row(fields.iter().map(|field| cell(&item[field])).collect());
    }
    table.print();
}

pub fn user(session: &Session, verb: &UserVerb) -> Result<(), Failure> {
    let client = session.client()?;
    match verb {
        UserVerb::List => {
            let answer = client.get("/v1/users", Vec::new())?;
            print(session, &answer, &["name", "role", "tenant"]);
        }
        UserVerb::Create {
            name,
            role,
            tenant,
            object,
        } => {
            let mut body = json!({ "name": name, "role": role });
            match object {
                Some(object) => body["object"] = object.as_str().into(),
                None => body["password"] = new_password()?.into(),
            }
            if let Some(tenant) = tenant {
                body["tenant"] = tenant.as_str().into();
            }
            let answer = post(client, "/v1/users", &body)?;
            print(
                session,
                &json!({ "items": [answer] }),
                &["name", "role", "tenant"],
            );
        }
        UserVerb::Delete { name } => delete(client, &format!("/v1/users/{}", encoded(name)))?,
        UserVerb::Token { name, hours } => {
            let path = format!("/v1/users/{}/tokens", encoded(name));
            let answer = post(client, &path, &json!({ "hours": hours }))?;
            print_secret(session, &answer, &path)?;
        }
        UserVerb::SetPassword { name } => {
            let path = format!("/v1/users/{}/password", encoded(name));
            let answer = put(client, &path, &json!({ "password": new_password()? }))?;
            print_ended(session, &answer);
        }
        UserVerb::RemoveTotp { name } => {
            delete(client, &format!("/v1/users/{}/totp", encoded(name)))?;
        }
    }
    Ok(())
}

/// Prints the secret of a new token of this collection. A token whose secret cannot be printed is
/// deleted: it would be valid, and the user could not use it.
fn print_secret(session: &Session, answer: &Value, collection: &str) -> Result<(), Failure> {
    let is_printed = match session.json {
        true => outln!("{answer}"),
        false => outln!("{}", answer["secret"].as_str().unwrap_or_default()),
    };
    if is_printed {
        return Ok(());
    }
    let id = answer["token"]["id"].as_str().unwrap_or_default();
    delete(session.client()?, &format!("{collection}/{}", encoded(id)))?;
    Err(Failure::local(format!(
        "cannot print the secret of the new token: token {id} is deleted"
    )))
}

pub fn totp(session: &Session, verb: &TotpVerb) -> Result<(), Failure> {
    let client = session.client()?;
    let call = |method, body| Call {
        method,
        path: "/v1/self/totp",
        body,
        ..Call::default()
    };
    match verb {
        TotpVerb::Create => {
            let answer = client.send(&call(Method::POST, None))?.body;
            if session.json {
                outln!("{answer}");
                return Ok(());
            }
            outln!(
                "{}\n\nrecovery codes:",
                answer["uri"].as_str().unwrap_or_default()
            );
            for code in answer["recovery"].as_array().into_iter().flatten() {
                outln!("{}", code.as_str().unwrap_or_default());
            }
        }
        TotpVerb::Confirm => {
            let body = json!({ "code": line("code")? });
            client.send(&call(Method::PUT, Some(&body)))?;
        }
    }
    Ok(())
}

pub fn token(session: &Session, verb: &TokenVerb) -> Result<(), Failure> {
    let client = session.client()?;
    match verb {
        TokenVerb::List => {
            let answer = client.get("/v1/tokens", Vec::new())?;
            print(
                session,
                &answer,
                &["id", "created", "expires", "last_used", "description"],
            );
        }
        TokenVerb::Create { hours, description } => {
            let body = json!({ "hours": hours, "description": description });
            let answer = post(client, "/v1/tokens", &body)?;
            print_secret(session, &answer, "/v1/tokens")?;
        }
        TokenVerb::Delete { id } => delete(client, &format!("/v1/tokens/{}", encoded(id)))?,
    }
    Ok(())
}
