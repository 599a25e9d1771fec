//! Rules of style that can be counted: widths of lines, lengths of files, vague pronouns and
//! phrases.

use std::path::Path;

use crate::repository::{files, read, shown};

/// Longest line of code, comments and prose, characters.
const COLUMNS: usize = 100;
/// Longest source file outside of tests, lines.
const LINES: usize = 800;
/// Pronouns that hide the actor, where a noun names it: "the daemon", "the peer", "the attacker".
const VAGUE: [&str; 5] = ["nobody", "whoever", "somebody", "anybody", "who's"];
/// Literary phrases, where a plain verb states the fact: "silently", "distinguished", "reports".
const PHRASES: [&str; 14] = [
    "aloud",
    "by himself",
    "come home",
    "comes about",
    "comes home",
    "held against",
    "in its turn",
    "in vain",
    "of its own accord",
    "said so",
    "told apart",
    "well again",
    "whence",
    "without a word",
];
/// Folders whose comments name their subject instead of beginning with a relative clause.
const NAMED: [&str; 6] = [
    "docs/",
    "gateway/fuzz/",
    "gateway/tests/",
    "tests/",
    "tools/",
    "xtask/",
];
const RELATIVE: [&str; 3] = ["What ", "Who ", "That which "];

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

/// The string literals of a source file, with their line numbers. A literal of several lines is
/// found on its first line only.
fn literals(path: &Path) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in read(path).lines().enumerate() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        // `\"` does not end a literal.
        let line = line.replace("\\\\", "").replace("\\\"", "");
        let parts = line.split('"').skip(1).step_by(2);
        found.extend(parts.map(|text| (number + 1, text.to_owned())));
    }
    found
}

/// Whether `text` contains `phrase` as whole words.
fn contains_words(text: &str, phrase: &str) -> bool {
    let is_inner = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(phrase).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + phrase.len()..]);
        !is_inner(before.chars().next_back()) && !is_inner(after.chars().next())
    })
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
fn prose_and_messages_use_plain_terms() {
    let mut wrong = Vec::new();
    for path in files(&[".rs", ".md", ".toml", ".service"]) {
        // This file has to quote them.
        if path.ends_with("xtask/tests/unit/style.rs") {
            continue;
        }
        let mut check = |number: usize, line: &str, terms: &[&str]| {
            let lower = line.to_lowercase();
            for term in terms.iter().filter(|term| contains_words(&lower, term)) {
                wrong.push(format!("{}:{number}: {term}", shown(&path)));
            }
        };
        // Identifiers have no spaces, so phrases are looked for in code, too.
        for (number, line) in read(&path).lines().enumerate() {
            check(number + 1, line, &PHRASES);
        }
        let mut lines = prose(&path);
        if path.extension().is_some_and(|ending| ending == "rs") {
            lines.extend(literals(&path));
        }
        for (number, line) in lines {
            check(number, &line, &VAGUE);
        }
    }
    assert!(
        wrong.is_empty(),
        "name the actor and use plain terms:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn comments_begin_with_their_subject() {
    let mut wrong = Vec::new();
    for path in files(&[".rs", ".md"]) {
        let name = shown(&path);
        if !NAMED.iter().any(|folder| name.starts_with(folder)) {
            continue;
        }
        let mut before = 0;
        for (number, line) in prose(&path) {
            let text = line.trim_start().trim_start_matches(['/', '!', ' ']);
            let is_first = number != before + 1;
            before = number;
            if is_first && RELATIVE.iter().any(|word| text.starts_with(word)) {
                wrong.push(format!("{name}:{number}: {text}"));
            }
        }
    }
    assert!(wrong.is_empty(), "name the subject:\n{}", wrong.join("\n"));
}
