//! iproute2 and sysctls in the network namespace of the calling thread.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

/// Runs `program` with `input` on its standard input.
///
/// # Errors
///
/// When it does not start or does not succeed; the error has its messages and its input.
pub fn pipe(program: &str, arguments: &[&str], input: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!(
        "{program}: {messages}\nwith the input\n{input}"
    )))
}

/// Runs the commands of `ip -batch`.
///
/// # Errors
///
/// As [`pipe`].
pub fn batch(commands: &str) -> io::Result<()> {
    pipe("ip", &["-batch", "-"], commands)
}

/// Writes a sysctl, named by its path below `/proc/sys/net`.
///
/// # Errors
///
/// When the kernel refuses.
pub fn sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{name}");
    std::fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))
}

/// Lets the FIB route what a program looks up as if it came from the loopback.
///
/// # Errors
///
/// When the kernel refuses.
pub fn forward_from_loopback() -> io::Result<()> {
    sysctl("ipv4/conf/lo/forwarding", "1")?;
    sysctl("ipv6/conf/lo/forwarding", "1")
}
