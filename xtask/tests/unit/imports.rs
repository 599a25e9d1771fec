//! The modules of a crate, and which of them each one names: read from the sources as text.
//!
//! A module names another one by a `use` item, or by a path that begins with `crate`, `self`,
//! `super` or a child module. What a parent exports again counts as the parent's. Tests, which may
//! name anything, are left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Modules by path (`helper::nat::flow`; empty for the root), each with its source text.
pub type Modules = BTreeMap<String, String>;

/// For each module those that it names, each with the first path by which it does.
pub type Imports = BTreeMap<String, BTreeMap<String, String>>;

/// The modules in a folder of sources. A library and a program in it share the root; programs in
/// `bin` are left out, as each is a crate of its own.
pub fn read(sources: &Path) -> Modules {
    fn walk(folder: &Path, module: &str, modules: &mut Modules) {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("a directory entry").path();
            let stem = path.file_stem().expect("a name").to_str().expect("UTF-8");
            if path.is_dir() {
                if !(module.is_empty() && stem == "bin") {
                    walk(&path, &child(module, stem), modules);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let name = match stem {
                    "lib" | "main" if module.is_empty() => String::new(),
                    "mod" => module.to_owned(),
                    stem => child(module, stem),
                };
                modules.entry(name).or_default().push_str(&text);
            }
        }
    }
    let mut modules = Modules::new();
    walk(sources, "", &mut modules);
    modules
}

/// The path of a module below another one.
fn child(module: &str, name: &str) -> String {
    match module {
        "" => name.to_owned(),
        module => format!("{module}::{name}"),
    }
}

/// The modules that each module names.
pub fn imports(modules: &Modules) -> Imports {
    let sources: Vec<_> = modules
        .iter()
        .map(|(module, text)| (module, Source::of(text)))
        .collect();
    let tests: BTreeSet<String> = sources
        .iter()
        .flat_map(|(module, source)| {
            let tests = source.tests.iter();
            tests.map(move |test| child(module, test))
        })
        .collect();
    let is_test = |module: &str| {
        let mut tests = tests.iter();
        tests.any(|test| module.strip_prefix(test.as_str()).is_some_and(is_end))
    };
    let mut imports = Imports::new();
    for (module, source) in &sources {
        if is_test(module) {
            continue;
        }
        let named = imports.entry((*module).clone()).or_default();
        for path in &source.paths {
            if let Some(found) = resolve(path, module, modules)
                && found != **module
            {
                named.entry(found).or_insert_with(|| path.join("::"));
            }
        }
    }
    imports
}

/// Whether a path ends here, and not within the name of a module.
fn is_end(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with("::")
}

/// The module that a path in `module` leads to, if it is one of the crate's.
fn resolve(path: &[&str], module: &str, modules: &Modules) -> Option<String> {
    let mut at: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    let (first, mut rest) = path.split_first()?;
    match *first {
        "crate" => at.clear(),
        "self" => {}
        "super" => {
            at.pop();
            while let Some(("super", further)) = rest.split_first().map(|(f, r)| (*f, r)) {
                at.pop();
                rest = further;
            }
        }
        name if modules.contains_key(&child(module, name)) => at.push(name),
        _ => return None,
    }
    at.extend(rest);
    while !at.is_empty() {
        let found = at.join("::");
        if modules.contains_key(&found) {
            return Some(found);
        }
        at.pop();
    }
    Some(String::new())
}

/// A part of a source that matters to paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'t> {
    Name(&'t str),
    /// `::`
    Step,
    Mark(char),
}

/// The tokens of a source, without comments, literals and lifetimes.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_in_name = |c: char| c.is_alphanumeric() || c == '_';
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            length_of_comment(rest)
        } else if first.is_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !is_in_name(c)).unwrap_or(rest.len());
            let (name, behind) = rest.split_at(end);
            match name {
                "r" | "br" | "cr" if length_of_raw(behind) > 0 => end + length_of_raw(behind),
                "b" | "c" if behind.starts_with('"') => end + length_of_string(behind),
                "b" if behind.starts_with('\'') => end + length_of_quote(behind),
                // The name itself follows, as in `r#type`.
                "r" if behind.starts_with('#') => end + 1,
                name => {
                    tokens.push(Token::Name(name));
                    end
                }
            }
        } else if first.is_ascii_digit() {
            rest.find(|c: char| !is_in_name(c)).unwrap_or(rest.len())
        } else if first == '"' {
            length_of_string(rest)
        } else if first == '\'' {
            length_of_quote(rest)
        } else if rest.starts_with("::") {
            tokens.push(Token::Step);
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Mark(first));
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// Bytes of a block comment, others within it included.
fn length_of_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_u32, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Bytes of a string in quotation marks.
fn length_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Bytes of a raw string behind its `r`; 0 if there is none.
fn length_of_raw(text: &str) -> usize {
    let hashes = text.len() - text.trim_start_matches('#').len();
    if !text[hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let begin = hashes + 1;
    text[begin..]
        .find(&end)
        .map_or(text.len(), |at| begin + at + end.len())
}

/// Bytes of a character in quotation marks; of a lifetime, those of its quotation mark.
fn length_of_quote(text: &str) -> usize {
    let mut letters = text.char_indices().skip(1);
    match letters.next() {
        Some((_, '\\')) => {
            // The escaped character may be a quotation mark.
            let mut end = letters.skip(1);
            end.find(|(_, c)| *c == '\'')
                .map_or(text.len(), |(at, _)| at + 1)
        }
        _ => match letters.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
    }
}

/// The modules and imports of a source.
#[derive(Debug, Default, PartialEq, Eq)]
struct Source<'t> {
    /// Paths of two names or more, and those of `use` items.
    paths: Vec<Vec<&'t str>>,
    /// Child modules that are compiled for tests only.
    tests: Vec<&'t str>,
}

impl<'t> Source<'t> {
    fn of(text: &'t str) -> Self {
        let tokens = tokens(text);
        let mut source = Self::default();
        let mut at = 0;
        while at < tokens.len() {
            at = match tokens[at..] {
                [Token::Mark('#'), Token::Mark('['), ..] => source.attribute(&tokens, at),
                [
                    Token::Name("use"),
                    Token::Name(_) | Token::Step | Token::Mark('{'),
                    ..,
                ] => source.tree(&tokens, at + 1, &[]),
                [Token::Name(_), ..] => source.path(&tokens, at),
                _ => at + 1,
            };
        }
        source
    }

    /// An attribute, and if it is one of tests, the item or field below it. Returns the place of
    /// what follows.
    fn attribute(&mut self, tokens: &[Token<'t>], at: usize) -> usize {
        let end = behind_brackets(tokens, at + 1);
        let names = |wanted| tokens[at..end].contains(&Token::Name(wanted));
        if tokens.get(at + 2) != Some(&Token::Name("cfg")) || !names("test") || names("not") {
            return end;
        }
        let mut at = end;
        // Other attributes, and the visibility.
        loop {
            at = match tokens.get(at..).unwrap_or_default() {
                [Token::Mark('#'), Token::Mark('['), ..] => behind_brackets(tokens, at + 1),
                [Token::Name("pub"), Token::Mark('('), ..] => behind_brackets(tokens, at + 1),
                [Token::Name("pub"), ..] => at + 1,
                [Token::Name("mod"), Token::Name(name), Token::Mark(';'), ..] => {
                    self.tests.push(*name);
                    return at + 3;
                }
                _ => break,
            };
        }
        behind_item(tokens, at)
    }

    /// The paths of a `use` item, of which this is a tree behind `prefix`. Returns the place of
    /// what follows.
    fn tree(&mut self, tokens: &[Token<'t>], mut at: usize, prefix: &[&'t str]) -> usize {
        let mut path = prefix.to_vec();
        loop {
            match tokens.get(at) {
                Some(Token::Name("as")) => at += 2,
                Some(Token::Name(name)) => {
                    path.push(*name);
                    at += 1;
                }
                Some(Token::Step | Token::Mark('*')) => at += 1,
                Some(Token::Mark('{')) => {
                    at += 1;
                    while !matches!(tokens.get(at), None | Some(Token::Mark('}'))) {
                        at = self.tree(tokens, at, &path);
                        if tokens.get(at) == Some(&Token::Mark(',')) {
                            at += 1;
                        }
                    }
                    return at + 1;
                }
                _ => {
                    self.paths.push(path);
                    // A mark that no tree has is passed, so that every call gets on.
                    let is_known =
                        matches!(tokens.get(at), None | Some(Token::Mark(',' | '}' | ';')));
                    return if is_known { at } else { at + 1 };
                }
            }
        }
    }

    /// A path outside of `use` items. Returns the place of what follows.
    fn path(&mut self, tokens: &[Token<'t>], mut at: usize) -> usize {
        let mut path = Vec::new();
        while let Some(Token::Name(name)) = tokens.get(at) {
            path.push(*name);
            at += 1;
            if tokens.get(at) != Some(&Token::Step) {
                break;
            }
            at += 1;
        }
        if path.len() > 1 {
            self.paths.push(path);
        }
        at
    }
}

/// The place behind brackets of any kind that open at `at`.
fn behind_brackets(tokens: &[Token<'_>], at: usize) -> usize {
    let mut depth = 0_u32;
    for (n, token) in tokens.iter().enumerate().skip(at) {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return n + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// The place behind an item, a statement or a field that begins at `at`.
fn behind_item(tokens: &[Token<'_>], mut at: usize) -> usize {
    let is_item = matches!(
        tokens.get(at),
        Some(Token::Name(
            "async"
                | "const"
                | "enum"
                | "extern"
                | "fn"
                | "impl"
                | "mod"
                | "static"
                | "struct"
                | "trait"
                | "type"
                | "unsafe"
                | "use"
        ))
    );
    let is_use = tokens.get(at) == Some(&Token::Name("use"));
    while let Some(token) = tokens.get(at) {
        match token {
            Token::Mark(';') => return at + 1,
            Token::Mark(',') if !is_item => return at + 1,
            // The end of what has the field.
            Token::Mark('}') => return at,
            Token::Mark('{') if is_item && !is_use => return behind_brackets(tokens, at),
            Token::Mark('(' | '[' | '{') => at = behind_brackets(tokens, at),
            _ => at += 1,
        }
    }
    at
}

#[test]
fn paths_of_use_items_and_code_are_found() {
    let text = r##"
        // use crate::comment::X;
        /* use crate::comment::{X}; /* nested */ use crate::comment; */
        pub(crate) use super::a::{self, b::{C as D, E}, f::*};
        use crate::{g, h::I};
        const TEXT: &str = "use crate::text::X; \" {";
        const RAW: &str = r#"use crate::raw::X; " {"#;
        const MARK: [char; 3] = ['"', '\'', '{'];
        fn f<'a>(x: &'a crate::j::K) -> impl Iterator<Item = L> + use<'a> {
            super::super::m::<N>::o(x.p::<Q>(), b'"', r#type::R)
        }
    "##;
    let source = Source::of(text);
    let paths: Vec<_> = source.paths.iter().map(|path| path.join("::")).collect();
    let expected = [
        "super::a::self",
        "super::a::b::C",
        "super::a::b::E",
        "super::a::f",
        "crate::g",
        "crate::h::I",
        "crate::j::K",
        "super::super::m",
        "type::R",
    ];
    assert_eq!(paths, expected);
    assert_eq!(source.tests, [""; 0]);
}

#[test]
fn tests_are_left_out() {
    let text = "
        #[cfg(test)]
        mod tests;
        #[cfg(all(test, unix))]
        #[path = \"x.rs\"]
        pub(crate) mod more;
        #[cfg(test)]
        use crate::{a::B, c};
        #[cfg(not(test))]
        use crate::d;
        struct S {
            #[cfg(test)]
            field: crate::e::F,
            other: crate::g::H,
        }
        #[cfg(test)]
        fn f(x: crate::i::J, y: u8) -> u8 { crate::k::l(x, y) }
        #[cfg(test)]
        mod inline {
            use crate::m::N;
            fn g() {}
        }
        #[cfg(feature = \"test\")]
        use crate::o;
    ";
    let source = Source::of(text);
    let paths: Vec<_> = source.paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["crate::d", "crate::g::H", "crate::o"]);
    assert_eq!(source.tests, ["tests", "more"]);
}

#[test]
fn paths_lead_to_the_deepest_module() {
    let names = ["", "a", "a::b", "a::b::c", "d"];
    let modules: Modules = names.map(|name| (name.to_owned(), String::new())).into();
    let found = |path: &str, module: &str| {
        let path: Vec<_> = path.split("::").collect();
        resolve(&path, module, &modules)
    };
    for (path, module, expected) in [
        ("crate::a::b::X", "d", Some("a::b")),
        ("crate::X", "d", Some("")),
        ("super::X", "a::b", Some("a")),
        ("super::super::d::x", "a::b", Some("d")),
        ("self::c::X", "a::b", Some("a::b::c")),
        ("c::X", "a::b", Some("a::b::c")),
        ("b::self", "a", Some("a::b")),
        ("std::fmt", "a", None),
        ("c::X", "a", None),
    ] {
        assert_eq!(
            found(path, module).as_deref(),
            expected,
            "{path} in {module}"
        );
    }
}

#[test]
fn modules_of_tests_import_nothing() {
    let sources = [
        ("", "mod a;"),
        ("a", "#[cfg(test)]\nmod tests;\nmod b;\nuse b::X;"),
        ("a::b", "fn f() -> crate::a::Y {}"),
        ("a::tests", "use crate::a::b::X;"),
        ("a::tests_of_b", "use super::b::X;"),
    ];
    let sources = sources.map(|(module, text)| (module.to_owned(), text.to_owned()));
    let imports = imports(&sources.into());
    let shown: Vec<_> = imports
        .iter()
        .flat_map(|(from, named)| {
            named
                .iter()
                .map(move |(to, by)| format!("{from}>{to} {by}"))
        })
        .collect();
    let expected = [
        "a>a::b b::X",
        "a::b>a crate::a::Y",
        "a::tests_of_b>a::b super::b::X",
    ];
    assert_eq!(shown, expected);
}
