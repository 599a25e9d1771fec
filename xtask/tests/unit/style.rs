//! The rules of the house that can be counted: widths of lines, lengths of files, vague pronouns.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Longest line of code, comments and prose, characters.
const COLUMNS: usize = 100;
/// Longest source file outside of tests, lines.
const LINES: usize = 800;
/// Pronouns that hide the actor, where a noun names it: "the daemon", "the peer", "a stranger".
const VAGUE: [&str; 5] = ["nobody", "whoever", "somebody", "anybody", "who's"];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("xtask lies in the repository").to_owned()
}

/// Files that git tracks, or, without git, all files outside of `target`, with one of these
/// endings.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of the repository") {
            let entry = entry.expect("an entry of the folder");
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type().expect("its type").is_dir() {
                if name != "target" && !name.starts_with('.') {
                    walk(&entry.path(), files);
                }
            } else {
                files.push(entry.path());
            }
        }
    }
    let root = root();
    let tracked = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(&root)
        .output();
    let mut all = match tracked {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            .map(|name| root.join(name))
            .filter(|path| path.is_file())
            .collect(),
        _ => {
            let mut all = Vec::new();
            walk(&root, &mut all);
            all
        }
    };
    all.retain(|path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        endings.iter().any(|ending| name.ends_with(ending)) && name != "Cargo.lock"
    });
    assert!(
        all.len() > 10,
        "{endings:?}: too few files found below {}",
        root.display()
    );
    all
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    let root = root();
    path.strip_prefix(&root)
        .unwrap_or(path)
        .display()
        .to_string()
}

/// The prose of a file: comments of sources and settings, and text of pages, without fenced blocks,
/// tables and pictures. Yields line numbers from 1. The formatter keeps the width of code.
fn prose(path: &Path) -> Vec<(usize, String)> {
    let page = path.extension().is_some_and(|ending| ending == "md");
    let comment = if path.extension().is_some_and(|ending| ending == "rs") {
        "//"
    } else {
        "#"
    };
    let mut fenced = false;
    let mut lines = Vec::new();
    for (number, line) in read(path).lines().enumerate() {
        let text = line.trim_start();
        if !page && !text.starts_with(comment) {
            fenced = false;
            continue;
        }
        let content = text.trim_start_matches(['/', '!', '#', ' ']);
        if content.starts_with("```") {
            fenced = !fenced;
        }
        // Characters of pictures: box drawing and arrows.
        let picture = content
            .chars()
            .any(|c| ('\u{2190}'..='\u{25ff}').contains(&c));
        if !fenced && !picture && !content.starts_with('|') {
            lines.push((number + 1, line.to_owned()));
        }
    }
    lines
}

#[test]
fn prose_is_at_most_100_columns_wide() {
    let mut long = Vec::new();
    for path in files(&[".rs", ".md", ".toml", ".service"]) {
        for (number, line) in prose(&path) {
            let width = line.chars().count();
            // A line of a few long words, such as a link, cannot be broken.
            if width > COLUMNS && line.split_whitespace().count() > 4 {
                long.push(format!("{}:{number}: {width} columns", shown(&path)));
            }
        }
    }
    assert!(
        long.is_empty(),
        "{} lines:\n{}",
        long.len(),
        long.join("\n")
    );
}

#[test]
fn source_files_have_at_most_800_lines() {
    let mut large = Vec::new();
    for path in files(&[".rs"]) {
        let name = shown(&path);
        // Tables of tests may be long.
        let is_test = name
            .split(['/', '.'])
            .any(|part| matches!(part, "tests" | "test"));
        let lines = read(&path).lines().count();
        if lines > LINES && !is_test {
            large.push(format!("{name}: {lines} lines"));
        }
    }
    assert!(large.is_empty(), "split these:\n{}", large.join("\n"));
}

#[test]
fn prose_names_the_actor() {
    let mut vague = Vec::new();
    for path in files(&[".rs", ".md", ".toml", ".service"]) {
        // This file has to quote them.
        if path.ends_with("xtask/tests/unit/style.rs") {
            continue;
        }
        for (number, line) in prose(&path) {
            let lower = line.to_lowercase();
            let words = lower.split(|c: char| !c.is_alphabetic() && c != '\'');
            for word in words.filter(|word| VAGUE.contains(word)) {
                vague.push(format!("{}:{number}: {word}", shown(&path)));
            }
        }
    }
    assert!(vague.is_empty(), "name the actor:\n{}", vague.join("\n"));
}
