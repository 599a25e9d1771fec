//! What the commands print, to a reader who leaves before the end.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _, pipe},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread::spawn,
};

fn command(socket: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_causeway-appliance"));
    command.arg("--socket").arg(socket).args(words);
    command
}

/// As a command ends whose reader has left before it began.
fn unread(socket: &Path, words: &[&str]) -> Output {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let output = command(socket, words).stdout(writer).output();
    output.expect("run")
}

/// Answers what a daemon is asked with this, and tells what that was.
fn answers(
    socket: &Path,
    answer: impl Fn(&str) -> String + Send + 'static,
) -> mpsc::Receiver<String> {
    let listener = UnixListener::bind(socket).expect("a socket");
    let (asked, told) = mpsc::channel();
    spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut line = String::new();
            BufReader::new(&stream)
                .read_line(&mut line)
                .expect("a request");
            writeln!(stream, "{{\"ok\":{}}}", answer(&line)).expect("an answer");
            let _ = asked.send(line);
        }
    });
    told
}

#[test]
fn a_command_whose_reader_leaves_ends_quietly_and_well() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("appliance.sock");
    let endpoints: Vec<String> = (0..9000)
        .map(|n| format!("\"10.1.{}.{}\"", n / 250, n % 250))
        .collect();
    let endpoints = format!("{{\"office\":[{}]}}", endpoints.join(","));
    let _asked = answers(&socket, move |_| endpoints.clone());
    for words in [
        &["endpoint", "list"][..],
        &["endpoint", "list", "--json"],
        &["reload"],
    ] {
        let output = unread(&socket, words);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
        assert_eq!(output.status.code(), Some(0), "{words:?}");
    }
    // As with `| head -1`: the reader leaves in the middle, and the rest is more than a pipe holds.
    let mut child = command(&socket, &["endpoint", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run");
    let mut first = String::new();
    let mut reader = BufReader::new(child.stdout.take().expect("its output"));
    reader.read_line(&mut first).expect("a line");
    assert_eq!(first, "office  10.1.0.0\n");
    drop(reader);
    let output = child.wait_with_output().expect("an end");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_trace_that_nobody_reads_is_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("appliance.sock");
    let step = r#"[{"at":1,"packet":"0.1","program":"access","step":"enters","interface":"eth0","action":"","counted":[],"len":60,"frame":"arp"}]"#;
    let asked = answers(&socket, move |line| match line.contains("next") {
        true => step.to_owned(),
        false => "null".to_owned(),
    });
    let output = unread(&socket, &["trace"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    let asked: Vec<String> = asked.try_iter().collect();
    assert_eq!(asked.len(), 3, "begun, asked once, stopped: {asked:?}");
    assert!(asked[2].contains("stop"), "{asked:?}");
}

#[test]
fn a_disk_that_is_full_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("appliance.sock");
    let _asked = answers(&socket, |_| "null".to_owned());
    let full: File = OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("a device");
    let output = command(&socket, &["reload"]).stdout(full).output();
    let output = output.expect("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("write to standard output: No space left"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(1));
}
