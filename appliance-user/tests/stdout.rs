//! Commands whose standard output cannot be written: a closed pipe, or a full disk.

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

/// Runs a command whose standard output is a closed pipe.
fn run_with_closed_stdout(socket: &Path, words: &[&str]) -> Output {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let output = command(socket, words).stdout(writer).output();
    output.expect("run")
}

/// Serves the control socket with answers of `answer`. The receiver gets the requests.
fn serve(
    socket: &Path,
    answer: impl Fn(&str) -> String + Send + 'static,
) -> mpsc::Receiver<String> {
    let listener = UnixListener::bind(socket).expect("a socket");
    let (sender, requests) = mpsc::channel();
    spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut line = String::new();
            BufReader::new(&stream)
                .read_line(&mut line)
                .expect("a request");
            writeln!(stream, "{{\"ok\":{}}}", answer(&line)).expect("an answer");
            let _ = sender.send(line);
        }
    });
    requests
}

#[test]
fn a_command_ends_quietly_when_its_output_pipe_is_closed() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("appliance.sock");
    let endpoints: Vec<String> = (0..9000)
        .map(|n| format!("\"10.1.{}.{}\"", n / 250, n % 250))
        .collect();
    let endpoints = format!("{{\"office\":[{}]}}", endpoints.join(","));
    let _requests = serve(&socket, move |line| match line.contains("reload") {
        true => "\"reloaded\"".to_owned(),
        false => endpoints.clone(),
    });
    for words in [
        &["endpoint", "list"][..],
        &["endpoint", "list", "--json"],
        &["reload"],
    ] {
        let output = run_with_closed_stdout(&socket, words);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
        assert_eq!(output.status.code(), Some(0), "{words:?}");
    }
    // As with `| head -1`: the pipe is closed in the middle, and the rest exceeds its buffer.
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
fn a_trace_is_stopped_when_its_output_pipe_is_closed() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("appliance.sock");
    let step = r#"[{"at":1,"packet":"0.1","program":"access","step":"enter","interface":"eth0","action":"","counted":[],"len":60,"frame":"arp"}]"#;
    let requests = serve(&socket, move |line| match line {
        line if line.contains("next") => step.to_owned(),
        line if line.contains("stop") => "\"stopped\"".to_owned(),
        _ => "\"following\"".to_owned(),
    });
    let output = run_with_closed_stdout(&socket, &["trace"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    let requests: Vec<String> = requests.try_iter().collect();
    assert_eq!(requests.len(), 3, "start, next, stop: {requests:?}");
    assert!(requests[2].contains("stop"), "{requests:?}");
}

#[test]
fn a_full_disk_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("appliance.sock");
    let _requests = serve(&socket, |_| "\"reloaded\"".to_owned());
    let full: File = OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("a device");
    let output = command(&socket, &["reload"]).stdout(full).output();
    let output = output.expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("write to standard output: No space left"),
        "{stderr}"
    );
    assert_eq!(output.status.code(), Some(1));
}
