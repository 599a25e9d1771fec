//! Rules of style that can be counted: widths of lines, lengths of files, vague pronouns and
//! phrases.

use std::path::Path;

use test_support::repository::{files, read, shown};

/// Longest line of code, comments and prose, characters.
const COLUMNS: usize = 100;
/// Longest source file outside of tests, lines.
const LINES: usize = 800;
/// Pronouns that hide the actor, where a noun names it: "the daemon", "the peer", "the attacker".
const VAGUE: [&str; 5] = ["nobody", "whoever", "somebody", "anybody", "who's"];
/// Literary phrases, where a plain verb states the fact: "silently", "distinguished", "reports".
const PHRASES: [&str; 15] = [
    "aloud",
    "by himself",
    "come home",
    "comes about",
    "comes home",
    "held against",
    "in its turn",
    "in vain",
    "of before",
    "of its own accord",
    "said so",
    "told apart",
    "well again",
    "whence",
    "without a word",
];
/// Words that do not name the actor, in names of functions: "an_attacker_changes_nothing".
const VAGUE_IN_NAMES: [&str; 6] = [
    "anybody", "nobody", "somebody", "whatever", "who", "whoever",
];
/// Relative clauses at the beginning of a paragraph, where a noun names the subject.
const RELATIVE: [&str; 4] = ["What ", "Who ", "Whoever ", "That which "];

/// The prose of a file: comments of sources and settings, and text of pages, without fenced blocks
/// and pictures. Rows of tables begin with `|`. Yields line numbers from 1. The formatter keeps the
/// width of code.
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
        if !fenced && !is_picture(content) {
            lines.push((number + 1, line.to_owned()));
        }
    }
    lines
}

/// Whether a line of prose is a row of a table.
fn is_row(line: &str) -> bool {
    line.trim_start_matches(['/', '!', '#', ' '])
        .starts_with('|')
}

/// Whether a line has characters of pictures: box drawing and arrows.
fn is_picture(line: &str) -> bool {
    line.chars().any(|c| ('\u{2190}'..='\u{25ff}').contains(&c))
}

/// The string literals of a source text, with the line numbers of their beginnings. The line breaks
/// of a literal are single spaces, and so are escaped ones.
pub(crate) fn literals(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut number = 1;
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let (length, literal) = token(rest);
        if let Some(literal) = literal {
            let words: Vec<_> = literal
                .split(['\n', '\r', '\t', ' '])
                .filter(|word| !word.is_empty() && *word != "\\")
                .collect();
            found.push((number, words.join(" ")));
        }
        let (token, after) = rest.split_at(length.max(first.len_utf8()));
        number += token.matches('\n').count();
        rest = after;
    }
    found
}

/// The length of the first token of a source text in bytes, and its content if it is a string
/// literal. Only comments, strings and characters are longer than one character.
fn token(text: &str) -> (usize, Option<&str>) {
    let end_of = |close: &str, from: usize| {
        let found = text[from..].find(close);
        found.map_or(text.len(), |at| from + at + close.len())
    };
    if text.starts_with("//") {
        return (end_of("\n", 0), None);
    }
    if text.starts_with("/*") {
        return (end_of("*/", 2), None);
    }
    // r"…", r#"…"#.
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    if text.starts_with('r') && text[1 + hashes..].starts_with('"') {
        let (begin, close) = (hashes + 2, format!("\"{}", "#".repeat(hashes)));
        let end = end_of(&close, begin);
        return (end, text.get(begin..end - close.len()));
    }
    // A character, and not a lifetime.
    if let Some(inside) = text.strip_prefix('\'') {
        let mut inside = inside.chars();
        let first = inside.next();
        if first == Some('\\') {
            return (end_of("'", 3.min(text.len())), None);
        }
        let length = 2 + first.map_or(0, char::len_utf8);
        return (
            if inside.next() == Some('\'') {
                length
            } else {
                1
            },
            None,
        );
    }
    if let Some(inside) = text.strip_prefix('"') {
        let mut escaped = false;
        for (at, c) in inside.char_indices() {
            match c {
                '"' if !escaped => return (at + 2, Some(&inside[..at])),
                _ => escaped = c == '\\' && !escaped,
            }
        }
    }
    // A whole word, so that an `r` at its end begins no literal.
    let word = text
        .char_indices()
        .find(|(_, c)| !(c.is_alphanumeric() || *c == '_'))
        .map_or(text.len(), |(at, _)| at);
    (word.max(1), None)
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
            if is_row(&line) {
                continue;
            }
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

/// Tables of tests that are longer.
const LONG_TABLES: [&str; 6] = [
    "gateway/core/src/table/tests/mod.rs",
    "libs/control/tests/unit/refusals.rs",
    "tests/tests/packets/gateway_xdp.rs",
    "tests/tests/packets/nat.rs",
    "tests/tests/packets/nat_rfc.rs",
    "tests/tests/packets/secure.rs",
];

#[test]
fn source_files_have_at_most_800_lines() {
    let mut large = Vec::new();
    for path in files(&[".rs"]) {
        let name = shown(&path);
        let lines = read(&path).lines().count();
        match (lines > LINES, LONG_TABLES.contains(&name.as_str())) {
            (true, false) => large.push(format!("{name}: {lines} lines: split it")),
            (false, true) => large.push(format!("{name}: {lines} lines: no longer in LONG_TABLES")),
            (true, true) | (false, false) => {}
        }
    }
    assert!(large.is_empty(), "{}", large.join("\n"));
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
            lines.extend(literals(&read(&path)));
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

fn assert_none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

/// The beginning of each paragraph of a file's prose, with line numbers.
fn paragraphs(path: &Path) -> Vec<(usize, String)> {
    let mut beginnings = Vec::new();
    let mut inside = None;
    for (number, line) in prose(path) {
        let text = line.trim_start().trim_start_matches(['/', '!', '#', ' ']);
        if inside != Some(number) && !text.is_empty() {
            beginnings.push((number, text.to_owned()));
        }
        inside = (!text.is_empty()).then_some(number + 1);
    }
    beginnings
}

#[test]
fn comments_begin_with_their_subject() {
    let mut found = Vec::new();
    for path in files(&[".rs", ".md", ".toml"]) {
        for (number, text) in paragraphs(&path) {
            if RELATIVE.iter().any(|word| text.starts_with(word)) {
                found.push(format!("{}:{number}: {text}", shown(&path)));
            }
        }
    }
    assert_none(&found, "name the subject");
}

#[test]
fn code_is_at_most_100_columns_wide() {
    let mut found = Vec::new();
    for path in files(&[".rs"]) {
        for (number, line) in read(&path).lines().enumerate() {
            let width = line.chars().count();
            // Prose and pictures have their own test. Data of a few long words cannot be broken.
            let is_exempt = line.trim_start().starts_with("//") || is_picture(line);
            if width > COLUMNS && !is_exempt && line.split_whitespace().count() > 4 {
                found.push(format!("{}:{}: {width} columns", shown(&path), number + 1));
            }
        }
    }
    assert_none(&found, "code is too wide");
}

#[test]
fn names_of_functions_use_plain_terms() {
    let mut found = Vec::new();
    for path in files(&[".rs"]) {
        for (number, line) in read(&path).lines().enumerate() {
            let Some((before, name)) = line.split_once("fn ") else {
                continue;
            };
            let name = name.split(['(', '<']).next().unwrap_or_default();
            let is_definition = before.split_whitespace().all(|word| {
                matches!(word, "pub" | "const" | "async" | "unsafe" | "extern")
                    || word.starts_with("pub(")
            });
            // "Who has" is the question of an ARP request.
            let is_vague =
                name != "who_has" && name.split('_').any(|word| VAGUE_IN_NAMES.contains(&word));
            if is_definition && is_vague {
                found.push(format!("{}:{}: {name}", shown(&path), number + 1));
            }
        }
    }
    assert_none(&found, "name the actor");
}

/// The words of a name, lower case: `peer_table` and `PeerTable` are "peer" and "table".
fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c.is_uppercase() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c != '_') {
            word.extend(c.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Whether a docstring of one line says nothing beyond the name of its item.
fn repeats_name(doc: &str, item: &str) -> bool {
    const KEYWORDS: [&str; 9] = [
        "async", "const", "enum", "fn", "mod", "pub", "static", "struct", "type",
    ];
    let mut item = item.trim();
    while let Some((word, rest)) = item.split_once(' ') {
        if !KEYWORDS.contains(&word) && !word.starts_with("pub(") {
            break;
        }
        item = rest;
    }
    let name = item
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .next();
    let name = words_of(name.unwrap_or_default());
    let mut doc = doc
        .split_whitespace()
        .map(|word| word.trim_end_matches('.').to_lowercase())
        .filter(|word| !matches!(word.as_str(), "a" | "an" | "its" | "of" | "the"))
        .filter(|word| !word.ends_with("'s"))
        .peekable();
    let singular = |word: &str| word.trim_end_matches('s').to_owned();
    doc.peek().is_some()
        && doc.all(|word| name.iter().any(|part| singular(part) == singular(&word)))
}

/// The first line after a docstring that is not of an attribute: the item's. Attributes may have
/// several lines.
fn item_below<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let mut open = 0;
    lines.iter().copied().find(|line| {
        let is_attribute = open > 0 || line.trim_start().starts_with("#[");
        if is_attribute {
            open += line.matches('[').count();
            open = open.saturating_sub(line.matches(']').count());
        }
        !is_attribute
    })
}

#[test]
fn docstrings_say_more_than_the_name() {
    // Help texts of options, and descriptions in the API, are docstrings.
    let is_exempt = |name: &str, text: &str| {
        let generates = ["clap", "ToSchema"].iter().any(|word| text.contains(word));
        generates || name.contains("/fuzz-targets/")
    };
    let mut found = Vec::new();
    for path in files(&[".rs"]) {
        let (name, text) = (shown(&path), read(&path));
        if is_exempt(&name, &text) {
            continue;
        }
        let lines: Vec<&str> = text.lines().collect();
        let is_doc = |at: usize| lines.get(at).is_some_and(|l| l.trim().starts_with("///"));
        for (at, line) in lines.iter().enumerate() {
            let is_single = !is_doc(at + 1) && (at == 0 || !is_doc(at - 1));
            let doc = line.trim().strip_prefix("/// ").filter(|_| is_single);
            let Some((doc, item)) = doc.zip(item_below(&lines[at + 1..])) else {
                continue;
            };
            if repeats_name(doc, item) {
                found.push(format!("{name}:{}: {doc}", at + 1));
            }
        }
    }
    assert_none(&found, "say more than the name, or nothing");
}

#[test]
fn names_are_split_into_words() {
    assert_eq!(words_of("PeerTable"), ["peer", "table"]);
    assert_eq!(words_of("tx_bytes"), ["tx", "bytes"]);
    for (doc, item, repeats) in [
        ("Its name.", "pub name: String,", true),
        ("Networks.", "pub networks: Vec<Network>,", true),
        ("The name.", "pub(super) const fn name(&self) {", true),
        ("The rule's name.", "pub name: String,", true),
        ("Its name, for messages.", "pub name: String,", false),
        ("Zero: padding.", "pub zero: u32,", false),
    ] {
        assert_eq!(repeats_name(doc, item), repeats, "{doc}");
    }
    let attributes = [
        "#[derive(Debug)]",
        "#[error(",
        "    \"{0:?}\"",
        ")]",
        "pub a: u8,",
    ];
    assert_eq!(item_below(&attributes), Some("pub a: u8,"));
    assert_eq!(item_below(&attributes[..4]), None);
}

#[test]
fn literals_are_found_whole() {
    let source = "let a = \"one \\\n    two\"; // \"no\"\nlet b: &'a str = r#\"three \"x\"\"#;\n\
                  let c = '\"'; let d = \"four\\\"\"; for_r(\"five\"); /* \"no\n\" */ b\"six\"; \
                  '\\'' \"seven\"";
    let found = literals(source);
    let texts: Vec<_> = found.iter().map(|(_, text)| text.as_str()).collect();
    let expected = ["one two", "three \"x\"", "four\\\"", "five", "six", "seven"];
    assert_eq!(texts, expected);
    let numbers: Vec<_> = found.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [1, 3, 4, 4, 5, 5]);
}
