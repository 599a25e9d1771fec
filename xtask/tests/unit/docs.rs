//! The documentation names only files and commands that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Folders at the top of the repository: a quoted path that begins with one of them must exist.
const TOP: [&str; 8] = [
    "appliance-ebpf/",
    "appliance-user/",
    "docs/",
    "gateway/",
    "libs/",
    "tests/",
    "tools/",
    "xtask/",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository")
        .to_owned()
}

/// Markdown files of the repository, by path.
fn pages() -> BTreeMap<PathBuf, String> {
    fn walk(folder: &Path, pages: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).expect("a folder of the repository") {
            let entry = entry.expect("an entry of the folder");
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if entry.file_type().expect("its type").is_dir() {
                if name != "target" && !name.starts_with('.') {
                    walk(&path, pages);
                }
            } else if name.ends_with(".md") {
                let text = fs::read_to_string(&path).expect("a page in UTF-8");
                pages.insert(path, text);
            }
        }
    }
    let mut pages = BTreeMap::new();
    walk(&root(), &mut pages);
    assert!(pages.len() > 5, "no pages found below {}", root().display());
    pages
}

/// Targets of `[text](target)` links without scheme.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .collect()
}

/// Anchors of a page's headings, as common Markdown viewers make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced && line.starts_with('#') {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter_map(|c| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                _ => None,
            });
            anchors.insert(kept.collect());
        }
    }
    anchors
}

/// Text in backticks, and the lines of code blocks.
fn quoted(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            found.push(line.trim().to_owned());
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

/// `a/{b,c}/d` as `a/b/d` and `a/c/d`.
fn expanded(path: &str) -> Vec<String> {
    let Some((head, rest)) = path.split_once('{') else {
        return vec![path.to_owned()];
    };
    let Some((choices, tail)) = rest.split_once('}') else {
        return vec![path.to_owned()];
    };
    choices
        .split(',')
        .flat_map(|choice| expanded(&format!("{head}{choice}{tail}")))
        .collect()
}

fn exists(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    match path.split_once('*') {
        // A pattern: the folder in front of it is checked.
        Some((head, _)) => {
            let folder = head.rsplit_once('/').map_or("", |(folder, _)| folder);
            root().join(folder).is_dir()
        }
        None => root().join(path).exists(),
    }
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let pages = pages();
    let mut broken = Vec::new();
    for (page, text) in &pages {
        for link in links(text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().expect("its folder").join(file),
            };
            let target = target.canonicalize().unwrap_or(target);
            if !target.exists() {
                broken.push(format!("{}: {link}: no such file", page.display()));
            } else if !anchor.is_empty()
                && !pages
                    .get(&target)
                    .is_some_and(|t| anchors(t).contains(anchor))
            {
                broken.push(format!("{}: {link}: no such heading", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_quoted_path_of_the_repository_exists() {
    let mut missing = Vec::new();
    for (page, text) in pages() {
        for quoted in quoted(&text) {
            for word in quoted.split_whitespace() {
                let word = word.trim_matches(|c: char| ",;:()".contains(c));
                // A placeholder in capitals, as TARGET, ends what can be checked.
                let placeholder = word
                    .split('/')
                    .any(|part| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase()));
                if placeholder || !TOP.iter().any(|top| word.starts_with(top)) {
                    continue;
                }
                let path = word.split(['#', ':']).next().expect("a first part");
                for path in expanded(path) {
                    if !exists(&path) {
                        missing.push(format!("{}: `{path}`", page.display()));
                    }
                }
            }
        }
    }
    assert!(missing.is_empty(), "no such path:\n{}", missing.join("\n"));
}

/// The words that follow a program's name where a page quotes a command, down to the first that is
/// an option, a placeholder or an argument.
fn subcommand<'q>(line: &'q str, program: &str) -> Option<&'q str> {
    let rest = line.strip_prefix(program)?.strip_prefix(' ')?;
    let word = rest.split_whitespace().next()?;
    let plain = word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    (plain && !word.starts_with('-')).then_some(word)
}

#[test]
fn every_quoted_command_exists() {
    let xtask = PathBuf::from(env!("CARGO_BIN_EXE_xtask"));
    let programs = [
        ("cargo xtask", xtask.clone()),
        (
            "causeway-appliance",
            xtask.with_file_name("causeway-appliance"),
        ),
        ("causeway-gateway", xtask.with_file_name("causeway-gateway")),
    ];
    let mut named = BTreeSet::new();
    for (page, text) in pages() {
        for quoted in quoted(&text) {
            for (index, (program, _)) in programs.iter().enumerate() {
                if let Some(word) = subcommand(&quoted, program) {
                    named.insert((index, word.to_owned(), page.clone()));
                }
            }
        }
    }
    assert!(named.len() > 10, "the pages quote commands");
    let mut unknown = Vec::new();
    for (index, word, page) in named {
        let (program, path) = &programs[index];
        if !path.exists() {
            println!(
                "SKIPPED: every_quoted_command_exists: {program} {word}: {} is not built",
                path.display()
            );
            continue;
        }
        let status = Command::new(path)
            .args([&word, "--help"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("the program starts");
        if !status.success() {
            unknown.push(format!("{}: `{program} {word}`", page.display()));
        }
    }
    assert!(
        unknown.is_empty(),
        "no such command:\n{}",
        unknown.join("\n")
    );
}
