//! A process that writes is killed: every commit that it acknowledged is there, and every one is
//! whole.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use store::{Options, Sqlite, Store as _};

use super::block_on;

/// Times that the process is killed; in the long series, more.
const KILLS: usize = 10;
const KILLS_LONG: usize = 200;

/// Milliseconds from 5 to 260.
pub fn random_pause() -> Duration {
    let mut random = [0];
    getrandom::fill(&mut random).expect("random bytes");
    Duration::from_millis(5 + u64::from(random[0]))
}

/// Runs the writer, kills it, and returns the commits that it acknowledged, by writer and number.
pub fn write_until_killed(path: &Path, pause: Duration) -> BTreeMap<(u64, u64), u64> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_causeway-store-load"))
        .arg(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the writer");
    let mut output = BufReader::new(child.stdout.take().expect("its output"));
    let mut first = String::new();
    output.read_line(&mut first).expect("a first commit");
    let reader = thread::spawn(move || {
        let mut lines = vec![first];
        // The last line may not be whole.
        while let Some(Ok(line)) = output.by_ref().lines().next() {
            lines.push(line);
        }
        lines
    });
    thread::sleep(pause);
    child.kill().expect("SIGKILL");
    let status = child.wait().expect("its end");
    let mut errors = String::new();
    let stderr = child.stderr.take().expect("its errors");
    BufReader::new(stderr)
        .read_to_string(&mut errors)
        .expect("text");
    assert_eq!(status.code(), None, "it ended by itself: {errors}");
    let lines = reader.join().expect("no panic");
    let parsed = lines.iter().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (writer, number) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(((writer, number), numbers.next()?.ok()?))
    });
    parsed.collect()
}

#[test]
fn every_acknowledged_commit_survives_a_kill() {
    let kills = match std::env::var_os("CAUSEWAY_LONG") {
        Some(value) if value == "1" => KILLS_LONG,
        Some(_) | None => KILLS,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store");
    let (mut acknowledged, mut there_before) = (BTreeMap::new(), 0);
    let mut total = 0;
    for kill in 0..kills {
        // The last line of a killed process may be cut within its revision, so only the others'
        // revisions are compared.
        let lines = write_until_killed(&path, random_pause());
        assert!(!lines.is_empty(), "kill {kill}: nothing was acknowledged");
        total += lines.len();
        acknowledged.extend(lines);
        let store = Sqlite::open(&path, Options::default()).expect("a store");
        let snapshot = block_on(store.snapshot("pair/")).expect("a snapshot");
        let entries: BTreeMap<_, _> = snapshot
            .entries
            .iter()
            .map(|entry| (entry.key.as_str(), entry))
            .collect();
        for (writer, number) in acknowledged.keys() {
            let pair = ["a", "b"].map(|side| {
                let key = format!("pair/{side}/{writer}/{number}");
                entries.get(key.as_str()).map(|entry| entry.revision)
            });
            assert!(
                pair[0].is_some() && pair[0] == pair[1],
                "kill {kill}: writer {writer} was told that commit {number} is there: {pair:?}"
            );
        }
        assert_eq!(entries.len() % 2, 0, "kill {kill}: half a commit");
        assert!(entries.len() > there_before, "kill {kill}");
        there_before = entries.len();
    }
    assert!(
        there_before >= 2 * total,
        "{there_before} entries of {total} commits"
    );
    let check = rusqlite::Connection::open(&path).expect("SQLite");
    let check: String = check
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("a result");
    assert_eq!(check, "ok");
    println!("{kills} kills, {total} acknowledged commits, all there");
}
