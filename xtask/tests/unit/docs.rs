//! The documentation names only files and commands that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use test_support::repository::{files, read, root, shown};

use crate::style::literals;

/// Folders at the top of the repository: a quoted path that begins with one of them must exist.
const TOP: [&str; 10] = [
    "appliance-ebpf/",
    "appliance-user/",
    "cli/",
    "director/",
    "docs/",
    "gateway/",
    "libs/",
    "tests/",
    "tools/",
    "xtask/",
];

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

/// `docs/install.md` has `docs/` installed as this folder.
const INSTALLED: &str = "file:/usr/share/doc/causeway/";

#[test]
fn units_name_installed_pages() {
    assert!(read(&root().join("docs/install.md")).contains(&INSTALLED["file:".len()..]));
    let mut units = files(&[".service", ".rs"]);
    units.retain(|path| path.extension().is_some_and(|ending| ending == "service"));
    assert!(units.len() >= 3, "{units:?}");
    for unit in units {
        let text = read(&unit);
        let named = text.lines().find_map(|l| l.strip_prefix("Documentation="));
        let named = named.unwrap_or_else(|| panic!("{}: Documentation= is missing", shown(&unit)));
        for uri in named.split(' ') {
            let page = uri
                .strip_prefix(INSTALLED)
                .map(|page| root().join("docs").join(page));
            let exists = page.is_some_and(|page| page.is_file());
            assert!(exists, "{}: no such page: {uri}", shown(&unit));
        }
    }
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

/// Words that may be between a symbol and its path: "`Outcome` in `maps.rs`".
const BESIDE: [&str; 3] = ["in", "of", "of its kind in"];
/// Words that may be between two symbols of one path.
const BETWEEN: [&str; 2] = [",", "and"];

/// Symbols of a line with the path beside each: "`A` and `b` of `libs/c/`".
fn symbols(line: &str) -> Vec<(String, String)> {
    let parts: Vec<_> = line.split('`').collect();
    let quoted = |at: usize| parts.get(at).copied().unwrap_or_default();
    let is_symbol = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut found = Vec::new();
    for path in (3..parts.len()).step_by(2) {
        let is_path = TOP.iter().any(|top| quoted(path).starts_with(top));
        if !is_path || !BESIDE.contains(&quoted(path - 1).trim()) {
            continue;
        }
        let mut at = path - 2;
        while is_symbol(quoted(at)) {
            found.push((quoted(at).to_owned(), quoted(path).to_owned()));
            if at < 2 || !BETWEEN.contains(&quoted(at - 1).trim()) {
                break;
            }
            at -= 2;
        }
    }
    found
}

/// Whether a source defines an item of this name, or implements the trait.
fn defines(source: &str, name: &str) -> bool {
    const ITEMS: [&str; 8] = [
        "struct", "enum", "trait", "impl", "fn", "const", "static", "type",
    ];
    ITEMS.iter().any(|item| {
        let item = format!("{item} {name}");
        source.match_indices(&item).any(|(at, _)| {
            let after = source[at + item.len()..].chars().next();
            after.is_some_and(|c| !c.is_ascii_alphanumeric() && c != '_')
        })
    })
}

#[test]
fn a_symbol_beside_a_path_is_defined_there() {
    let mut missing = Vec::new();
    let mut checked = 0;
    for line in read(&root().join("ARCHITECTURE.md")).lines() {
        for (name, path) in symbols(line) {
            checked += 1;
            let mut sources = files(&[".rs"]);
            sources.retain(|file| match path.strip_suffix('/') {
                Some(_) => shown(file).starts_with(&path),
                None => shown(file) == path,
            });
            if !sources.iter().any(|file| defines(&read(file), &name)) {
                missing.push(format!("`{name}` in `{path}`"));
            }
        }
    }
    assert!(checked > 5, "only {checked} symbols were found");
    assert!(missing.is_empty(), "not defined:\n{}", missing.join("\n"));
}

#[test]
fn every_drop_reason_has_a_meaning() {
    let source = read(&root().join("libs/appliance-common/src/counters.rs"));
    let page = read(&root().join("docs/metrics.md"));
    let labels = source.lines().filter_map(|line| {
        let (_, label) = line.trim().strip_suffix("\";")?.split_once(", \"")?;
        label.starts_with("drop_").then_some(label)
    });
    let labels: Vec<_> = labels.collect();
    assert!(labels.len() > 50, "{labels:?}");
    let mut missing = labels.iter();
    let missing = missing.find(|label| !page.contains(&format!("\n| `{label}` | ")));
    assert_eq!(missing, None, "docs/metrics.md has no row for it");
}

#[test]
fn every_fuzz_target_is_in_a_table() {
    let pages = ["docs/testing.md", "docs/tunnel.md"].map(|page| read(&root().join(page)));
    let mut targets = files(&[".rs"]);
    targets.retain(|path| shown(path).contains("/fuzz_targets/"));
    assert!(targets.len() > 10, "{targets:?}");
    for target in targets {
        let name = target.file_stem().expect("a file's name").to_string_lossy();
        let row = format!("\n| `{name}` | ");
        let is_listed = pages.iter().any(|page| page.contains(&row));
        assert!(is_listed, "{}: no page has a row for it", shown(&target));
    }
}

/// Files that git tracks, or, without git, all files outside of `target`, by path from the root.
fn tracked() -> BTreeSet<String> {
    let names: BTreeSet<_> = files(&[""]).iter().map(|path| shown(path)).collect();
    assert!(names.len() > 100, "the repository's files: {names:?}");
    names
}

/// Whether `path` matches `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((head, rest)) => path.strip_prefix(head).is_some_and(|path| {
            (0..=path.len()).any(|at| path.is_char_boundary(at) && matches(rest, &path[at..]))
        }),
    }
}

/// Whether a file or folder has this path from the root, or from a folder of the repository.
fn is_known(path: &str, tracked: &BTreeSet<String>) -> bool {
    let path = path.trim_end_matches('/');
    let below = format!("*/{path}");
    if path.contains('*') {
        return tracked
            .iter()
            .any(|file| matches(path, file) || matches(&below, file));
    }
    let (inner, last) = (format!("/{path}/"), format!("/{path}"));
    tracked.iter().any(|file| {
        let file = format!("/{file}");
        file.contains(&inner) || file.ends_with(&last)
    })
}

/// Words of a comment that are paths of the repository: they begin with one of its folders, or are
/// names of sources or pages.
fn paths_in(comment: &str) -> Vec<String> {
    comment
        .split_whitespace()
        .filter(|word| !word.contains("://"))
        .flat_map(|word| {
            word.split(|c: char| !(c.is_ascii_alphanumeric() || "_-./{},*".contains(c)))
        })
        .map(|word| word.trim_end_matches(['.', ',']))
        .filter(|word| {
            let is_file = [".rs", ".md"]
                .iter()
                .any(|end| word.strip_suffix(end).is_some_and(|stem| !stem.is_empty()));
            is_file || TOP.iter().any(|top| word.starts_with(top))
        })
        .flat_map(expanded)
        .collect()
}

/// The document outside of the repository that a comment cites.
fn cites_absent_document(comment: &str) -> Option<&'static str> {
    const DOCUMENTS: [&str; 7] = [
        "SPEC section",
        "REVIEW",
        "FIELD-REPORTS",
        "CONTROL-PLANE",
        "DESIGN",
        "STYLE",
        "issue",
    ];
    DOCUMENTS.into_iter().find(|document| {
        comment.match_indices(document).any(|(at, found)| {
            let before = comment[..at].chars().next_back();
            let mut after = comment[at + found.len()..].chars();
            let is_word = before.is_none_or(|c| !c.is_ascii_alphanumeric());
            is_word
                && match (*document, after.next(), after.next()) {
                    ("issue", Some(' '), Some(next)) => next.is_ascii_digit(),
                    ("issue", ..) => false,
                    ("DESIGN" | "STYLE", Some(','), _) => true,
                    ("DESIGN" | "STYLE" | "REVIEW", Some(' '), Some(next)) => {
                        next.is_ascii_digit() || "ABCDE§".contains(next)
                    }
                    ("DESIGN" | "STYLE" | "REVIEW", ..) => false,
                    (_, next, _) => next.is_none_or(|c| !c.is_ascii_alphanumeric()),
                }
        })
    })
}

#[test]
fn every_path_in_a_comment_exists() {
    let tracked = tracked();
    let mut missing = Vec::new();
    let mut checked = 0;
    for path in files(&[".rs"]) {
        // This file has examples of missing ones.
        if path.ends_with("xtask/tests/unit/docs.rs") {
            continue;
        }
        for (number, line) in read(&path).lines().enumerate() {
            let Some(at) = line.find("//") else { continue };
            let comment = &line[at..];
            for word in paths_in(comment) {
                checked += 1;
                if !is_known(&word, &tracked) {
                    missing.push(format!("{}:{}: {word}", shown(&path), number + 1));
                }
            }
            if let Some(document) = cites_absent_document(comment) {
                missing.push(format!("{}:{}: {document}", shown(&path), number + 1));
            }
        }
    }
    assert!(checked > 50, "only {checked} paths were found in comments");
    assert!(missing.is_empty(), "no such path:\n{}", missing.join("\n"));
}

/// Whether a page quotes this as the name of a test, a field or a counter; metrics have their own
/// test. `…` ends an abbreviated name.
fn is_name(quoted: &str) -> bool {
    let words: Vec<_> = quoted.trim_end_matches(['…', '_']).split('_').collect();
    let is_word = |word: &&str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    (words.len() > 2 || (words.len() > 1 && quoted.ends_with('…')))
        && words.iter().all(is_word)
        && !quoted.starts_with("causeway_")
        && !quoted.ends_with("_total")
}

#[test]
fn every_name_that_a_page_quotes_is_in_the_sources() {
    let mut names = BTreeSet::new();
    for path in files(&[".rs"]) {
        let stem = path.file_stem().expect("a file's name");
        names.insert(stem.to_string_lossy().into_owned());
        let text = read(&path);
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            names.extend(words.filter(|word| word.contains('_')).map(str::to_owned));
        }
    }
    let mut unknown = Vec::new();
    let mut checked = 0;
    // The changelog quotes former names too.
    let pages = pages();
    let current = pages.iter().filter(|(p, _)| !p.ends_with("CHANGELOG.md"));
    for (page, text) in current {
        for quoted in quoted(text).iter().filter(|quoted| is_name(quoted)) {
            checked += 1;
            let known = match quoted.strip_suffix('…') {
                Some(head) => names
                    .range(head.to_owned()..)
                    .next()
                    .is_some_and(|name| name.starts_with(head)),
                None => names.contains(quoted),
            };
            if !known {
                unknown.push(format!("{}: `{quoted}`", page.display()));
            }
        }
    }
    assert!(checked > 30, "only {checked} names were found in the pages");
    assert!(unknown.is_empty(), "no such name:\n{}", unknown.join("\n"));
}

/// Whether a text contains the parts of a pattern in their order; `…` stands for any text, with the
/// spaces around it.
fn contains_pattern(text: &str, pattern: &str) -> bool {
    let mut rest = text;
    pattern
        .split('…')
        .all(|part| match rest.split_once(part.trim()) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
}

/// The first cells of the rows of a text's tables, with those of the headings.
fn first_cells(text: &str) -> impl Iterator<Item = &str> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    rows.map(|row| row.split(" |").next().unwrap_or_default())
}

/// String literals of the programs, without those of tests and tools.
fn printed() -> Vec<String> {
    let mut sources = files(&[".rs"]);
    sources.retain(|path| {
        let name = shown(path);
        name.contains("/src/")
            && !["tests/", "tools/", "xtask/"]
                .iter()
                .any(|top| name.starts_with(top))
            && !name.ends_with("tests.rs")
    });
    let of_source = |path: &PathBuf| {
        let text = read(path);
        let code = text.split("\n#[cfg(test)]\nmod tests {").next();
        literals(code.unwrap_or_default())
    };
    sources
        .iter()
        .flat_map(of_source)
        .map(|(_, literal)| literal)
        .collect()
}

#[test]
fn troubleshooting_quotes_texts_that_programs_print() {
    let page = read(&root().join("docs/troubleshooting.md"));
    let of_status = page
        .split_once("\n## Appliance: `status`\n")
        .and_then(|(_, rest)| rest.split_once("\n## "))
        .expect("a section about `status`")
        .0;
    for cell in first_cells(of_status).skip(1) {
        let quoted = cell.strip_prefix('`').and_then(|c| c.strip_suffix('`'));
        let is_one_text = quoted.is_some_and(|text| !text.contains('`'));
        assert!(is_one_text, "quote the text that is shown: {cell}");
    }
    // Words are names and numbers, which other tests look up; commands have their own pages.
    let is_text = |quoted: &&str| {
        quoted.contains(' ') && !quoted.starts_with("--") && !quoted.starts_with("causeway")
    };
    let texts: Vec<_> = first_cells(&page)
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(is_text)
        .collect();
    assert!(texts.len() > 15, "{texts:?}");
    let printed = printed();
    let is_printed = |text: &str| printed.iter().any(|of| contains_pattern(of, text));
    let unknown: Vec<_> = texts.into_iter().filter(|text| !is_printed(text)).collect();
    assert!(
        unknown.is_empty(),
        "printed by no program:\n{}",
        unknown.join("\n")
    );
}

/// Lines after a row of a table that are neither a row nor empty: a viewer takes them for one.
fn after_tables(text: &str) -> Vec<&str> {
    let mut is_row = false;
    let mut fenced = false;
    let mut wrong = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        if is_row && !line.is_empty() && !line.starts_with('|') {
            wrong.push(line);
        }
        is_row = !fenced && line.starts_with('|');
    }
    wrong
}

#[test]
fn tables_end_with_an_empty_line() {
    let row = "| a |\n|---|\n| b |\n";
    assert_eq!(after_tables(&format!("{row}\ntext")), [""; 0]);
    assert_eq!(after_tables(&format!("{row}text\nmore")), ["text"]);
    assert_eq!(after_tables("```\n| a\nb\n```\n"), [""; 0]);
    for (path, text) in pages() {
        assert_eq!(after_tables(&text), [""; 0], "{}", path.display());
    }
}

#[test]
fn every_variable_of_the_environment_is_documented() {
    let is_variable = |literal: &str| {
        literal
            .strip_prefix("CAUSEWAY_")
            .is_some_and(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
    };
    let pages: String = pages().into_values().collect();
    let mut variables = BTreeSet::new();
    for path in files(&[".rs"]) {
        let literals = literals(&read(&path)).into_iter();
        variables.extend(literals.map(|(_, text)| text).filter(|t| is_variable(t)));
    }
    assert!(variables.len() > 20, "{variables:?}");
    variables.retain(|name| !pages.contains(name.as_str()));
    assert!(variables.is_empty(), "on no page: {variables:?}");
}

#[test]
fn paths_and_names_are_recognised() {
    let found = paths_in("// see libs/a/{b,c}.rs, (`d/e.rs`), https://x.org/libs/f.rs and `g.md`.");
    assert_eq!(found, ["libs/a/b.rs", "libs/a/c.rs", "d/e.rs", "g.md"]);
    let found = symbols("| no: `x`, `A`, `B` and `c` of `libs/d/`; `E` in `cli/f.rs`, `G` |");
    let found: Vec<_> = found
        .iter()
        .map(|(n, p)| (n.as_str(), p.as_str()))
        .collect();
    let d = "libs/d/";
    assert_eq!(
        found,
        [("c", d), ("B", d), ("A", d), ("x", d), ("E", "cli/f.rs")]
    );
    assert!(defines("pub fn a<T>()", "a") && !defines("pub fn ab()", "a"));
    let tracked = BTreeSet::from(["libs/a/src/b.rs".to_owned()]);
    for known in ["libs/a/", "src/b.rs", "b.rs", "libs/*/src/*.rs", "src/*.rs"] {
        assert!(is_known(known, &tracked), "{known}");
    }
    for unknown in ["libs/b/", "rc/b.rs", "src/c.rs", "libs/*/b.rs.rs"] {
        assert!(!is_known(unknown, &tracked), "{unknown}");
    }
    for cited in [
        "REVIEW C14",
        "(REVIEW §D)",
        "FIELD-REPORTS B18",
        "DESIGN, 4",
        "issue 12",
        "SPEC section 3",
    ] {
        assert!(cites_absent_document(cited).is_some(), "{cited}");
    }
    for plain in [
        "to REVIEW it",
        "the issue is",
        "issues 3",
        "RESIGN, a",
        "a tissue 3",
    ] {
        assert_eq!(cites_absent_document(plain), None, "{plain}");
    }
    assert!(contains_pattern(
        "tenant {} is in {mode} and",
        "tenant … is in … and"
    ));
    assert!(!contains_pattern("is in tenant {}", "tenant … is in …"));
    assert!(is_name("a_b_c") && is_name("rfc1_req2_…") && is_name("a_b…"));
    assert!(!is_name("a_b") && !is_name("a_B_c") && !is_name("a_b_total"));
}

#[test]
fn every_file_of_tests_is_in_their_list() {
    const LIST: &str = "tests/README.md";
    let list = read(&root().join(LIST));
    let missing: Vec<_> = tracked()
        .into_iter()
        .filter(|path| path.contains("/tests/") && path.ends_with(".rs") && !path.contains("/src/"))
        .filter(|path| {
            let name = path.rsplit('/').next().unwrap_or(path);
            !["main.rs", "mod.rs"].contains(&name) && !list.contains(name)
        })
        .collect();
    assert!(missing.is_empty(), "not in {LIST}:\n{}", missing.join("\n"));
}
