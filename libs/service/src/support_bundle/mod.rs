//! A file for support: what a daemon and its machine tell, without secrets, as one archive.
//!
//! For: collecting what can be had while the daemon runs, hangs or is down; a part that cannot be
//! had is named with its reason, and ends nothing. Never: keys, tokens, passwords or traffic.
//!
//! ```text
//!   control socket ─▶ status … ──┐
//!   configuration file ──────────┼─▶ redact ─▶ Bundle ─▶ NAME.tar.gz, mode 600
//!   journal, /proc, /sys ────────┘              └ contents.txt: what is there, what is missing
//! ```

mod machine;

use std::{
    fmt::{Display, Write as _},
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use serde_json::Value;

use crate::{outln, redact};

/// Longest part of the journal, bytes; of a longer one the end is taken.
const MAX_JOURNAL: usize = 16 << 20;
/// Longest text of its errors, bytes.
const MAX_ERRORS: usize = 4 << 10;
/// Longest configuration file, bytes: one with 100 000 circuits has about 20 million.
const MAX_CONFIGURATION: u64 = 64 << 20;
/// Time that the journal may take.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the end of `journalctl` is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Folder of what the kernel tells of the machine.
const MACHINE: &str = "machine/";

/// Arguments of the command `support-bundle`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// File to write, a tar archive compressed by gzip; an existing one is refused. Without it:
    /// PROGRAM-HOST.tar.gz in the current directory.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Configuration file of the daemon; without it, that of the unit.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Latest lines of the daemon's journal.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20_000,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub lines: u32,
}

/// The parts of a support bundle. Secrets are removed as parts are added.
#[derive(Debug)]
pub struct Bundle {
    /// Folder in the archive.
    folder: String,
    /// Names and contents.
    files: Vec<(String, String)>,
    /// Names of what could not be had, and why.
    missing: Vec<(String, String)>,
}

/// A bundle that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The archive.
    pub path: PathBuf,
    /// Number of files in it.
    pub files: usize,
    /// Names of what is missing, and why.
    pub missing: Vec<(String, String)>,
}

impl Written {
    /// Prints where the bundle is, and what it lacks.
    pub fn print(&self) {
        outln!("{}: {} files", self.path.display(), self.files);
        for (name, why) in &self.missing {
            // Most kernels lack some of these; `contents.txt` names them.
            if !name.starts_with(MACHINE) {
                outln!("missing: {name}: {why}");
            }
        }
    }
}

impl Bundle {
    /// A bundle without parts, of a program on the machine of this name.
    #[must_use]
    pub fn new(program: &str, host: &str) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let host = host.replace(|c| !plain(c), "_");
        Self {
            folder: format!("{program}-{host}"),
            files: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// As [`new`](Self::new), for this machine.
    #[must_use]
    pub fn of_this_machine(program: &str) -> Self {
        let host = machine::read(Path::new("/proc/sys/kernel/hostname"));
        Self::new(program, host.unwrap_or_default().trim_end())
    }

    /// Adds a text, or notes why it is missing.
    pub fn text<E: Display>(&mut self, name: &str, text: Result<String, E>) {
        match text {
            Ok(text) => self.files.push((name.to_owned(), redact::text(&text))),
            Err(error) => {
                let why = redact::text(&error.to_string());
                self.missing.push((name.to_owned(), why));
            }
        }
    }

    /// Adds a value as JSON, or notes why it is missing.
    pub fn json<T: Serialize, E: Display>(&mut self, name: &str, value: Result<T, E>) {
        let value = value.map_err(|error| error.to_string());
        let value =
            value.and_then(|value| serde_json::to_value(value).map_err(|error| error.to_string()));
        let text = value.and_then(|mut value| {
            redact::value(&mut value);
            serde_json::to_string_pretty(&value).map_err(|error| error.to_string())
        });
        match text {
            // A second look would remove public keys, which tell whether two ends fit.
            Ok(text) => self.files.push((name.to_owned(), text)),
            Err(why) => self.text(name, Err::<String, _>(why)),
        }
    }

    /// Adds a configuration file as JSON. Its comments are left out: they may have anything.
    pub fn configuration(&mut self, path: &Path) {
        let text = machine::read_within(path, MAX_CONFIGURATION);
        let value = match text {
            Err(error) => Err(error.to_string()),
            Ok((_, true)) => Err(format!("longer than {MAX_CONFIGURATION} bytes")),
            // The error's text may have the line with the error.
            Ok((text, false)) => toml::from_str::<Value>(&text)
                .map_err(|_| "no TOML: run `check` with it".to_owned()),
        };
        let value = value.map_err(|why| format!("{}: {why}", path.display()));
        self.json("configuration.json", value);
    }

    /// Adds what the kernel tells of the machine below `root`, which is `/` but in tests.
    pub fn machine(&mut self, root: &Path) {
        for file in machine::FILES {
            let text = machine::read(&root.join(file));
            self.text(&format!("{MACHINE}{}", file.replace('/', "_")), text);
        }
        self.text(&format!("{MACHINE}interfaces"), machine::interfaces(root));
        let settings = machine::settings(root);
        self.text(&format!("{MACHINE}settings"), Ok::<_, io::Error>(settings));
    }

    /// Adds the latest lines of a unit's journal.
    pub fn journal(&mut self, unit: &str, lines: u32) {
        let mut command = Command::new("journalctl");
        command
            .args(["--no-pager", "--output", "short-iso-precise", "--unit"])
            .arg(unit)
            .args(["--lines", &lines.to_string()]);
        self.text("journal.txt", output(&mut command, JOURNAL_TIMEOUT));
    }

    /// Writes the archive. Without a path it is named after the program and the machine. The times
    /// of its files are `now`.
    ///
    /// # Errors
    /// That of the kernel, as for a file that exists.
    pub fn write(mut self, path: Option<PathBuf>, now: SystemTime) -> io::Result<Written> {
        let path = path.unwrap_or_else(|| format!("{}.tar.gz", self.folder).into());
        let contents = self.contents();
        self.files.push(("contents.txt".to_owned(), contents));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let written = self.archive(&file, now);
        if let Err(error) = written.and_then(|()| file.sync_all()) {
            // A part of an archive is of no use.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(Written {
            path,
            files: self.files.len(),
            missing: self.missing,
        })
    }

    fn archive(&self, file: &File, now: SystemTime) -> io::Result<()> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let time = since.unwrap_or_default().as_secs();
        let compressed = GzEncoder::new(BufWriter::new(file), Compression::default());
        let mut archive = tar::Builder::new(compressed);
        for (name, contents) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(time);
            let path = Path::new(&self.folder).join(name);
            archive.append_data(&mut header, path, contents.as_bytes())?;
        }
        archive.into_inner()?.finish()?.flush()
    }

    /// The list of files with their lengths, and what is missing.
    fn contents(&self) -> String {
        let mut text = String::from("length, file\n");
        for (name, contents) in &self.files {
            let _ = writeln!(text, "{:>10} {name}", contents.len());
        }
        if !self.missing.is_empty() {
            text.push_str("\nmissing\n");
        }
        for (name, why) in &self.missing {
            let _ = writeln!(text, "{name}: {why}");
        }
        text
    }
}

/// The end of what a command prints, at most [`MAX_JOURNAL`] bytes of it. It is killed after
/// `timeout`. An error has what it printed to standard error.
fn output(command: &mut Command, timeout: Duration) -> io::Result<String> {
    let deadline = Instant::now() + timeout;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().map(|pipe| end_of(pipe, MAX_JOURNAL));
    let errors = child.stderr.take().map(|pipe| end_of(pipe, MAX_ERRORS));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            let text = format!("it took longer than {} s", timeout.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        thread::sleep(POLL_INTERVAL);
    };
    let text = |thread: Option<JoinHandle<Vec<u8>>>| {
        let bytes = thread.and_then(|thread| thread.join().ok());
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    };
    let (out, errors) = (text(out), text(errors));
    if !status.success() || (out.is_empty() && !errors.is_empty()) {
        let text = format!("it ended with {status}: {}", errors.trim());
        return Err(io::Error::other(text));
    }
    Ok(out)
}

/// Reads a pipe to its end, and keeps the last `most` bytes.
fn end_of(mut pipe: impl io::Read + Send + 'static, most: usize) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut part = [0; 64 << 10];
        while let Ok(length @ 1..) = pipe.read(&mut part) {
            kept.extend_from_slice(&part[..length]);
            if kept.len() > 2 * most {
                kept.drain(..kept.len() - most);
            }
        }
        let excess = kept.len().saturating_sub(most);
        kept.drain(..excess);
        kept
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, io::Read as _, os::unix::fs::PermissionsExt as _};

    use flate2::read::GzDecoder;
    use serde_json::json;

    use super::*;

    const KEY: &str = "EpWd0K9XY53Z7dezjLgO+nyKnOCMcQXnGRWmf1/Y9vc=";

    fn read(path: &Path) -> BTreeMap<String, String> {
        let mut archive = tar::Archive::new(GzDecoder::new(File::open(path).expect("a file")));
        let entries = archive.entries().expect("an archive");
        let files = entries.map(|entry| {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("a text");
            (name, text)
        });
        files.collect()
    }

    #[test]
    fn a_bundle_has_what_was_added_without_secrets_and_names_what_is_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("config.toml");
        let text = format!("# old key {KEY}\n[peer]\npreshared_key = \"{KEY}\"\nport = 6180\n");
        fs::write(&config, text).expect("a file");
        let mut bundle = Bundle::new("causeway-test", "h/ost");
        bundle.json("status.json", Ok::<_, io::Error>(json!({"ready": true})));
        bundle.json("gone.json", Err::<Value, _>("the daemon is not running"));
        bundle.text(
            "log.txt",
            Ok::<_, io::Error>(format!("handshake with {KEY}")),
        );
        bundle.configuration(&config);
        let path = folder.path().join("bundle.tar.gz");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        let written = bundle.write(Some(path.clone()), now).expect("an archive");
        assert_eq!(written.files, 4);
        assert_eq!(written.missing.len(), 1);
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files = read(&path);
        let of = |name: &str| &files[&format!("causeway-test-h_ost/{name}")];
        assert_eq!(of("log.txt"), "handshake with (removed)");
        assert!(of("status.json").contains("\"ready\": true"));
        assert!(of("configuration.json").contains("6180"));
        assert!(of("contents.txt").contains("gone.json: the daemon is not running"));
        assert!(files.values().all(|text| !text.contains(KEY)), "{files:?}");
    }

    #[test]
    fn an_existing_file_is_refused_and_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bundle.tar.gz");
        fs::write(&path, "mine").expect("a file");
        let bundle = Bundle::new("causeway-test", "host");
        let error = bundle.write(Some(path.clone()), SystemTime::UNIX_EPOCH);
        let error = error.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(path).expect("a file"), "mine");
    }

    #[test]
    fn a_configuration_that_is_no_toml_is_missing_without_its_text() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("config.toml");
        fs::write(&config, "password = hunter2").expect("a file");
        let mut bundle = Bundle::new("causeway-test", "host");
        bundle.configuration(&config);
        assert_eq!(bundle.missing.len(), 1);
        assert!(!bundle.contents().contains("hunter2"));
    }

    #[test]
    fn the_machine_is_told_also_where_most_is_missing() {
        let root = tempfile::tempdir().expect("a folder");
        let mut bundle = Bundle::new("causeway-test", "host");
        bundle.machine(root.path());
        assert_eq!(bundle.files.len(), 1, "{:?}", bundle.files);
        assert_eq!(bundle.missing.len(), machine::FILES.len() + 1);
    }

    #[test]
    fn a_command_that_hangs_is_killed_and_one_that_fails_is_told() {
        let shell = |text: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", text]);
            output(&mut command, Duration::from_millis(500))
        };
        assert_eq!(shell("echo line").expect("an output"), "line\n");
        let error = shell("exec sleep 60").expect_err("killed");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = shell("echo why >&2; exit 3").expect_err("failed");
        assert!(error.to_string().ends_with("why"), "{error}");
    }

    #[test]
    fn of_a_long_output_the_end_is_kept() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "yes line | head -c 50000000; echo; echo end"]);
        let text = output(&mut command, Duration::from_secs(60)).expect("an output");
        assert_eq!(text.len(), MAX_JOURNAL);
        assert!(text.ends_with("end\n"));
    }
}
