//! Processes in namespaces: run to the end, or left running and known by pid and start time.

use std::{
    ffi::{CString, OsString},
    fs::File,
    io::Read as _,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use crate::{
    error::{During as _, Error, Result},
    interrupt,
    record::Record,
};

/// The result of a finished command.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status; 128 + signal if a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Whether the status is 0.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.status == 0
    }
}

/// A process of ours, alive or not: its pid could be another's by now, its start time could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start: u64,
}

/// Threads of a process, those that are ending included.
fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

impl Process {
    /// Whether it still runs. A zombie does not, unless it has threads that have not ended yet:
    /// until then its files are open.
    #[must_use]
    pub fn is_alive(self) -> bool {
        // Reaps it if it is a child of this process; otherwise an error that means nothing here.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        stat(self.pid).is_some_and(|(state, start)| {
            start == self.start && (state != b'Z' || threads(self.pid) > 1)
        })
    }

    /// Sends a signal, if it is still the same process.
    ///
    /// # Errors
    /// If the system refuses. A process that is gone is no error.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e).during(|| format!("sending {signal} to process {}", self.pid)),
        }
    }

    /// SIGTERM, and SIGKILL if it is still there after `grace`; returns when it is gone.
    ///
    /// # Errors
    /// If it cannot be signalled, or outlives SIGKILL by 5 s.
    pub fn stop(self, grace: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.wait_gone(grace) {
            return Ok(());
        }
        self.kill()
    }

    /// SIGKILL; returns when it is gone.
    ///
    /// # Errors
    /// If it cannot be signalled, or outlives it by 5 s.
    pub fn kill(self) -> Result<()> {
        let within = Duration::from_secs(5);
        self.signal(Signal::SIGKILL)?;
        if self.wait_gone(within) {
            return Ok(());
        }
        Err(Error::Timeout {
            what: format!("the end of process {}", self.pid),
            within,
            detail: "it outlives SIGKILL: see /proc/<pid>/stack".to_owned(),
        })
    }

    fn wait_gone(self, within: Duration) -> bool {
        let until = Instant::now() + within;
        loop {
            if !self.is_alive() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// State letter and start time of a process.
pub(crate) fn stat(pid: i32) -> Option<(u8, u64)> {
    parse_stat(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads `pid (comm) state … starttime …`; `comm` may hold spaces and parentheses. No allocation:
/// a forked child uses it too.
fn parse_stat(stat: &[u8]) -> Option<(u8, u64)> {
    let after = stat.iter().rposition(|b| *b == b')')? + 2;
    let mut fields = stat.get(after..)?.split(|b| *b == b' ');
    let state = *fields.next()?.first()?;
    // State is field 3 and the start time field 22.
    let start = fields.nth(18)?;
    let mut number = 0_u64;
    for digit in start {
        if !digit.is_ascii_digit() {
            return None;
        }
        number = number
            .checked_mul(10)?
            .checked_add(u64::from(digit - b'0'))?;
    }
    Some((state, number))
}

/// Makes `command` run in the network namespace behind `namespace`, in a separate process group
/// unless `foreground`.
pub(crate) fn in_namespace(command: &mut Command, namespace: OwnedFd, foreground: bool) {
    if !foreground {
        command.process_group(0);
    }
    // SAFETY: the closure only makes a system call on a descriptor that it owns.
    unsafe {
        command.pre_exec(move || {
            if libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}

/// Makes `command` see the file `hosts` in the place of `/etc/hosts`.
pub(crate) fn with_hosts(command: &mut Command, hosts: &Path) -> Result<()> {
    let bytes = hosts.as_os_str().as_bytes();
    let hosts = CString::new(bytes).map_err(|_| Error::Output {
        what: hosts.display().to_string(),
        reason: "a path has no zero byte".to_owned(),
    })?;
    let check = |status: libc::c_int| match status {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: the closure only makes system calls; the paths it passes end with a zero byte. Mounts
    // of the rest of the machine still come into the new namespace, and none goes out of it.
    unsafe {
        command.pre_exec(move || {
            let none = std::ptr::null();
            check(libc::unshare(libc::CLONE_NEWNS))?;
            let (root, bind) = (libc::MS_REC | libc::MS_SLAVE, libc::MS_BIND);
            check(libc::mount(none, c"/".as_ptr(), none, root, none.cast()))?;
            let target = c"/etc/hosts".as_ptr();
            check(libc::mount(hosts.as_ptr(), target, none, bind, none.cast()))
        });
    }
    Ok(())
}

/// Makes `command` die with the thread that starts it, as it does when a test is killed.
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure only makes a system call.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}

/// `program arg arg`, for messages.
pub(crate) fn text_of(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs `command` to its end, for at most `within`, without standard input; kills it after that.
///
/// # Errors
/// If it cannot be started, on a timeout, on an interrupt. A status other than 0 is no error.
pub fn run(command: &mut Command, within: Duration) -> Result<Output> {
    run_with(command, None, within, interrupt::check)
}

pub(crate) fn run_with(
    command: &mut Command,
    input: Option<&str>,
    within: Duration,
    check: impl Fn() -> Result<()>,
) -> Result<Output> {
    let text = text_of(command);
    command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().during(|| format!("starting `{text}`"))?;
    let drain = |stream: Option<Box<dyn std::io::Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // The output before an error is kept.
                let _ = stream.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = drain(child.stdout.take().map(|s| Box::new(s) as _));
    let stderr = drain(child.stderr.take().map(|s| Box::new(s) as _));
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        use std::io::Write as _;
        // A program that ends without reading prints the reason on standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let until = Instant::now() + within;
    let mut pause = Duration::from_micros(300);
    let status = loop {
        if let Some(status) = child.try_wait().during(|| format!("awaiting `{text}`"))? {
            break status;
        }
        let failed = match check() {
            Err(e) => Some(e),
            Ok(()) if Instant::now() >= until => Some(Error::Timeout {
                what: format!("the end of `{text}`"),
                within,
                detail: String::new(),
            }),
            Ok(()) => None,
        };
        if let Some(error) = failed {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    let join = |t: thread::JoinHandle<String>| t.join().unwrap_or_default();
    Ok(Output {
        status: std::os::unix::process::ExitStatusExt::signal(&status)
            .map_or_else(|| status.code().unwrap_or(-1), |signal| 128 + signal),
        stdout: join(stdout),
        stderr: join(stderr),
    })
}

/// As [`run`], but a status other than 0 is an error that carries the program's standard error.
pub(crate) fn must(
    command: &mut Command,
    input: Option<&str>,
    within: Duration,
    check: impl Fn() -> Result<()>,
) -> Result<Output> {
    let output = run_with(command, input, within, check)?;
    if output.ok() {
        return Ok(output);
    }
    Err(Error::Command {
        command: text_of(command),
        status: format!("status {}", output.status),
        stderr: output.stderr.trim().to_owned(),
    })
}

/// Starts `command` in the background; before it executes the program, it adds itself to
/// `record`. Its output goes to `log`.
pub(crate) fn spawn(
    command: &mut Command,
    name: &str,
    record: &Record,
    log: File,
) -> Result<Process> {
    interrupt::check()?;
    let text = text_of(command);
    let errors = log.try_clone().during(|| "duplicating a log".to_owned())?;
    let into = record
        .file()
        .try_clone()
        .during(|| "duplicating the record".to_owned())?;
    let tail = format!(
        ",\"name\":{}}}\n",
        serde_json::Value::String(name.to_owned())
    );
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0);
    // SAFETY: the closure only uses stack buffers and the system calls open, read, getpid, write,
    // which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let mut stat = [0_u8; 1024];
            let length = File::open("/proc/self/stat")?.read(&mut stat)?;
            let (_, start) = parse_stat(stat.get(..length).unwrap_or_default())
                .ok_or_else(|| std::io::Error::from_raw_os_error(libc::EINVAL))?;
            let mut line = Line::default();
            line.text(b"{\"kind\":\"process\",\"pid\":");
            line.number(u64::from(std::process::id()));
            line.text(b",\"start\":");
            line.number(start);
            line.text(tail.as_bytes());
            let written = libc::write(into.as_raw_fd(), line.buffer.as_ptr().cast(), line.length);
            if usize::try_from(written) == Ok(line.length) {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let child = command.spawn().during(|| format!("starting `{text}`"))?;
    let pid = i32::try_from(child.id()).map_err(|_| Error::Output {
        what: "a process id".to_owned(),
        reason: "it is beyond 31 bits".to_owned(),
    })?;
    let (_, start) = stat(pid).ok_or_else(|| Error::Command {
        command: text,
        status: "gone at once".to_owned(),
        stderr: String::new(),
    })?;
    Ok(Process { pid, start })
}

/// A line built without allocating.
struct Line {
    buffer: [u8; 512],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            buffer: [0; 512],
            length: 0,
        }
    }
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(slot) = self.buffer.get_mut(self.length) {
                *slot = *byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, mut number: u64) {
        let mut digits = [0_u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        let (_, used) = digits.split_at(at);
        self.text(used);
    }
}

/// A command from its program and arguments.
pub(crate) fn command<S: Into<OsString> + Clone>(words: &[S]) -> Result<Command> {
    let Some((program, args)) = words.split_first() else {
        return Err(Error::Parse {
            what: "command",
            value: String::new(),
            reason: "it has no words",
        });
    };
    let mut command = Command::new(program.clone().into());
    command.args(args.iter().map(|a| a.clone().into()));
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn stat_reads_past_spaces_and_parentheses_in_the_name() {
        let stat = b"42 (a b) c) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9";
        assert_eq!(parse_stat(stat), Some((b'S', 123_456)));
        assert_eq!(parse_stat(b"42 (x) S 1"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn output_and_status_are_returned() {
        let out = run(
            Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]),
            10 * SECOND,
        )
        .unwrap();
        assert_eq!(
            (out.status, out.stdout.as_str(), out.stderr.as_str()),
            (3, "out\n", "err\n")
        );
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended() {
        let before = Instant::now();
        let error = run(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(before.elapsed() < 10 * SECOND);
    }

    #[test]
    fn a_spawned_process_is_in_the_record_and_only_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::open(dir.path()).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let process = spawn(Command::new("sleep").arg("60"), "a \"b\"", &record, log).unwrap();
        let entries = Record::read(dir.path()).unwrap();
        assert_eq!(
            entries,
            [crate::record::Entry::Process {
                pid: process.pid,
                start: process.start,
                name: "a \"b\"".to_owned()
            }]
        );
        let other = Process {
            start: process.start + 1,
            ..process
        };
        assert!(!other.is_alive());
        other.kill().unwrap();
        assert!(process.is_alive());
        process.stop(SECOND).unwrap();
        assert!(!process.is_alive());
    }
}
