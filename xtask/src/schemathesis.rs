//! Tests the director's API against its own document: schemathesis, from Python's registry, sends
//! what the document allows and what it does not, without a token and by each role. At the end it
//! prints the number of requests of each run.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    bpf::tools,
    cargo::cargo,
    step::{output, run, step},
    target,
};

/// The version that the figures of docs/testing.md are of.
const VERSION: &str = "4.32.5";
/// Where the director listens.
const ADDRESS: &str = "127.0.0.1:6197";
/// Roles of people: name, whether the role belongs to a tenant.
const PEOPLE: [(&str, bool); 4] = [
    ("provider-operator", false),
    ("provider-auditor", false),
    ("tenant-admin", true),
    ("tenant-operator", true),
];
/// Roles of machines, with their objects.
const MACHINES: [(&str, &str); 2] = [("gateway", "gw1"), ("appliance", "h1")];
/// The password of all users of this run.
const PASSWORD: &str = "correct horse battery";
/// Not tested in the main runs: a watch does not end (director/tests/unit/schema.rs and people.rs
/// try it); a run would end its own token or user, and the rest of it would be refused, so that
/// users made for it try these at the end; and a document cannot say which values contradict
/// others (director/tests/unit/schema.rs tries each rule and its edge).
const SKIPPED: [&str; 8] = [
    "--exclude-operation-id",
    "watch",
    "--exclude-operation-id",
    "token.remove",
    "--exclude-operation-id",
    "user.remove",
    "--exclude-checks",
    "positive_data_acceptance",
];
/// Operations that may end the token or the user that sends them: by users made for it.
const ENDING: [&str; 8] = [
    "token.list",
    "token.create",
    "token.remove",
    "user.list",
    "user.create",
    "user.remove",
    "user.token.list",
    "user.token.remove",
];
/// Errors of the director's log that are printed.
const MAX_ERRORS_SHOWN: usize = 10;
/// Objects of each kind, so that operations find some.
const OBJECTS: &str = include_str!("schemathesis.toml");
/// Settings of schemathesis: its own list of refusals of bad data, and 412. A precondition comes
/// before the content (RFC 9110 section 13.2.1), so a request with both wrong is answered so.
const SETTINGS: &str = "[checks.negative_data_rejection]\nexpected-statuses = [400, 401, 403, \
                        404, 405, 406, 409, 412, 415, 422, 428, 429, \"5xx\"]\n";

/// The director of a run, which ends with it.
struct Director {
    child: Child,
    folder: PathBuf,
}

impl Drop for Director {
    fn drop(&mut self) {
        // Our own child.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Director {
    fn start(folder: &Path) -> anyhow::Result<(Self, String)> {
        if folder.exists() {
            fs::remove_dir_all(folder).context("remove the store of the run before")?;
        }
        fs::create_dir_all(folder)?;
        let config = folder.join("director.toml");
        let at = |name: &str| folder.join(name).display().to_string();
        let text = format!(
            "[director]\nlisten = \"{ADDRESS}\"\nstore = {:?}\naudit_key = {:?}\ncontrol_socket = \
             {:?}\n",
            at("store"),
            at("audit-key"),
            at("socket")
        );
        fs::write(&config, text)?;
        fs::write(folder.join("schemathesis.toml"), SETTINGS)?;
        let program = target().join("release/causeway-director");
        let init = Command::new(&program)
            .args(["init", "--config"])
            .arg(&config)
            .output()
            .context("start causeway-director init")?;
        if !init.status.success() {
            bail!("init: {}", String::from_utf8_lossy(&init.stderr));
        }
        let token = String::from_utf8(init.stdout)?.trim().to_owned();
        let child = Command::new(&program)
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.join("director.log"))?)
            .spawn()
            .context("start causeway-director run")?;
        let director = Self {
            child,
            folder: folder.to_owned(),
        };
        let begun = Instant::now();
        while director.causeway(&token, &["whoami"], "").is_err() {
            if begun.elapsed() > Duration::from_secs(10) {
                bail!("the director does not answer: see {}", at("director.log"));
            }
            sleep(Duration::from_millis(50));
        }
        Ok((director, token))
    }

    /// Runs the command line of the API: its output.
    fn causeway(&self, token: &str, words: &[&str], input: &str) -> anyhow::Result<String> {
        let mut child = Command::new(target().join("release/causeway"))
            .args(words)
            .env("XDG_CONFIG_HOME", &self.folder)
            .env("CAUSEWAY_SERVER", format!("http://{ADDRESS}"))
            .env("CAUSEWAY_TOKEN", token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start causeway")?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that fails early reads nothing.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "causeway {}: {}",
                words.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Tokens of users of whom nothing else depends, by name of the role.
    fn spare_tokens(&self, admin: &str) -> anyhow::Result<Vec<(String, String)>> {
        let mut tokens = Vec::new();
        for (role, is_of_tenant) in PEOPLE.into_iter().chain([("provider-admin", false)]) {
            let (user, context) = (format!("spare-{role}"), format!("spare-{role}"));
            let mut words = vec!["user", "create", &user, "--role", role];
            if is_of_tenant {
                words.extend(["--tenant", "acme"]);
            }
            self.causeway(admin, &words, PASSWORD)?;
            self.causeway(
                "",
                &["--context", &context, "login", "--user", &user],
                PASSWORD,
            )?;
            let words = ["--context", &context, "token", "create", "--hours", "24"];
            tokens.push((role.to_owned(), self.causeway("", &words, "")?));
        }
        Ok(tokens)
    }

    /// A token of each role, by name of the role; none for requests without a token.
    fn tokens(&self, admin: &str) -> anyhow::Result<Vec<(String, Option<String>)>> {
        let mut tokens = vec![("no token".to_owned(), None)];
        for (role, is_of_tenant) in PEOPLE {
            let user = format!("u-{role}");
            let mut words = vec!["user", "create", &user, "--role", role];
            if is_of_tenant {
                words.extend(["--tenant", "acme"]);
            }
            self.causeway(admin, &words, PASSWORD)?;
            let context = ["--context", role, "login", "--user", &user];
            self.causeway("", &context, PASSWORD)?;
            let words = ["--context", role, "token", "create", "--hours", "24"];
            tokens.push((role.to_owned(), Some(self.causeway("", &words, "")?)));
        }
        for (role, object) in MACHINES {
            let mut words = vec!["user", "create", object, "--role", role, "--object", object];
            if role == "appliance" {
                words.extend(["--tenant", "acme"]);
            }
            self.causeway(admin, &words, "")?;
            let words = ["user", "token", object, "--hours", "24"];
            tokens.push((role.to_owned(), Some(self.causeway(admin, &words, "")?)));
        }
        // After the users of its tenant, whose passwords it sets and whose tokens it removes.
        tokens.sort_by_key(|(role, _)| role == "tenant-admin");
        // The last one: it removes objects that the others read.
        tokens.push(("provider-admin".to_owned(), Some(admin.to_owned())));
        Ok(tokens)
    }
}

/// Runs schemathesis by each role, or by one.
pub fn schemathesis(examples: u32, only: Option<&str>) -> anyhow::Result<ExitCode> {
    let program = install()?;
    step("programs: causeway-director causeway-cli", || {
        run(cargo().args([
            "build",
            "--release",
            "--locked",
            "--package",
            "causeway-director",
            "--package",
            "causeway-cli",
        ]))
    })?;
    let folder = target().join("schemathesis");
    let (director, admin) = Director::start(&folder)?;
    let file = folder.join("objects.toml");
    fs::write(&file, OBJECTS)?;
    let file = file.display().to_string();
    director.causeway(
        &admin,
        &["apply", "--file", &file, "--reason", "set up"],
        "",
    )?;
    let (mut failed, mut counts) = (Vec::new(), Vec::new());
    for (role, token) in director.tokens(&admin)? {
        if only.is_some_and(|only| only != role) {
            continue;
        }
        let run = Run {
            program: &program,
            folder: &folder,
            examples,
        };
        let (done, cases) = run.by(&role, token.as_deref(), &SKIPPED)?;
        counts.push((role.clone(), cases));
        let holds = token.is_none_or(|token| director.causeway(&token, &["whoami"], "").is_ok());
        if !holds {
            errln!("xtask: the token of {role} has ended, so that the rest was refused");
        }
        if !(done && holds) {
            failed.push(role.clone());
        }
    }
    for (role, token) in director.spare_tokens(&admin)? {
        if only.is_some_and(|only| only != role) {
            continue;
        }
        let mut arguments = vec!["--exclude-checks", "positive_data_acceptance"];
        for operation in ENDING {
            arguments.extend(["--include-operation-id", operation]);
        }
        let run = Run {
            program: &program,
            folder: &folder,
            examples,
        };
        let name = format!("{role}, who may end");
        let (done, cases) = run.by(&name, Some(&token), &arguments)?;
        counts.push((name.clone(), cases));
        if !done {
            failed.push(name);
        }
    }
    for (name, cases) in counts {
        outln!("{name}: {cases}");
    }
    // A failure that the client was told of as a plain refusal, or that came after the answer.
    let log = folder.join("director.log");
    let errors = fs::read_to_string(&log)?;
    let errors: Vec<_> = errors.lines().filter(|line| is_error(line)).collect();
    for line in errors.iter().take(MAX_ERRORS_SHOWN) {
        errln!("xtask: {}: {line}", log.display());
    }
    if !errors.is_empty() {
        failed.push("the director's log".to_owned());
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    errln!(
        "xtask: findings by {}: see the files above",
        failed.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

/// Runs of schemathesis.
struct Run<'r> {
    program: &'r Path,
    folder: &'r Path,
    examples: u32,
}

impl Run<'_> {
    /// Runs it with a token, and prints its summary: whether it found nothing, and the number of
    /// requests and findings.
    fn by(
        &self,
        name: &str,
        token: Option<&str>,
        arguments: &[&str],
    ) -> anyhow::Result<(bool, String)> {
        let mut command = Command::new(self.program);
        command
            .current_dir(self.folder)
            .args(["run", &format!("http://{ADDRESS}/v1/openapi.json")])
            .args(["--max-examples", &self.examples.to_string()])
            .args(["--generation-database", "none", "--no-color"])
            .args(["--continue-on-failure", "--warnings", "off"])
            .args(arguments);
        if let Some(token) = token {
            command.args(["--header", &format!("Authorization: Bearer {token}")]);
        }
        let file = name.replace([' ', ','], "-");
        let log = self.folder.join(format!("{file}.log"));
        command.stdout(fs::File::create(&log)?);
        let shown = format!("by {name}: {}", log.display());
        // The token is not printed.
        let done = step(&shown, || {
            let status = command.stdin(Stdio::null()).status();
            Ok(status.context("start schemathesis")?.success())
        })?;
        let text = fs::read_to_string(&log)?;
        let summary = text.rsplit(" SUMMARY ").next().unwrap_or_default();
        outln!("{}", summary.trim_start_matches('=').trim());
        // Without the line, schemathesis has not sent a request, whatever it ended with.
        let cases = cases(summary).with_context(|| {
            let text = "the output names no test cases: schemathesis has tested nothing";
            format!("{}: {text}", log.display())
        })?;
        Ok((done, cases.to_owned()))
    }
}

/// The line of a summary that counts requests and findings.
fn cases(summary: &str) -> Option<&str> {
    let (_, rest) = summary.split_once("Test cases:")?;
    let line = rest.trim_start().lines().next()?;
    line.starts_with(|c: char| c.is_ascii_digit())
        .then_some(line)
}

/// Whether a line of a daemon's log is of the level ERROR.
fn is_error(line: &str) -> bool {
    line.split_whitespace().take(3).any(|word| word == "ERROR")
}

/// Installs schemathesis in a folder of its own: its program.
fn install() -> anyhow::Result<PathBuf> {
    let folder = tools().join("schemathesis");
    let program = folder.join("bin/schemathesis");
    let found = output(&program, &["--version"]);
    if found.is_some_and(|version| version.contains(VERSION)) {
        return Ok(program);
    }
    step(&format!("schemathesis {VERSION}, some seconds"), || {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let wanted = format!("schemathesis=={VERSION}");
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", &wanted]))
    })
    .context("install python3 and its module venv: apt-get install -y python3-venv")?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_requests() {
        let summary = "====\n\nTest cases:\n  7411 generated, 7411 passed\n\nSeed: 1\n";
        assert_eq!(cases(summary), Some("7411 generated, 7411 passed"));
        assert_eq!(cases("Test cases:\n  No test cases were generated\n"), None);
        assert_eq!(cases("Errors: 1"), None);
    }

    #[test]
    fn errors_of_the_log_are_found() {
        assert!(is_error(
            "2026-11-30T18:00:00Z ERROR director: cannot commit a change"
        ));
        assert!(is_error("ERROR request failed error=x"));
        assert!(!is_error(
            "2026-11-30T18:00:00Z  WARN director: log-in refused user=ERROR"
        ));
    }
}
