//! The files of a target's modules, by their `mod` lines.

use std::path::{Path, PathBuf};

/// The files that the `mod` lines of `source`, the text of `path`, may name, each with whether its
/// own modules are in its folder, as those of a root are (The Rust Reference, "Module source
/// filenames"). Each module has two candidates, the file of its name and `mod.rs` in the folder of
/// its name; one of them exists.
#[must_use]
pub fn named(path: &Path, source: &str, is_root: bool) -> Vec<(PathBuf, bool)> {
    let folder = path.parent().unwrap_or(Path::new(""));
    // Where the modules of this file are.
    let below = match path.file_stem().filter(|stem| *stem != "mod") {
        Some(stem) if !is_root => folder.join(stem),
        _ => folder.to_owned(),
    };
    let mut found = Vec::new();
    let (mut given, mut inner) = (None, Vec::new());
    for line in source.lines() {
        let code = line.trim();
        if let Some(named) = code.strip_prefix("#[path = \"") {
            given = named.split('"').next();
            continue;
        }
        if code.starts_with("#[") || code.starts_with("//") {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        inner.retain(|(_, depth)| *depth < indent || code != "}");
        let Some(module) = module(code) else {
            given = None;
            continue;
        };
        let parents = inner.iter().map(|(name, _)| *name);
        let base = below.join(parents.collect::<PathBuf>());
        match (module, given.take()) {
            (Module::Inline(name), _) => inner.push((name, indent)),
            (Module::File(_), Some(named)) if inner.is_empty() => {
                found.push((folder.join(named), true));
            }
            (Module::File(_), Some(named)) => found.push((base.join(named), true)),
            (Module::File(name), None) => {
                found.push((base.join(name).with_extension("rs"), false));
                found.push((base.join(name).join("mod.rs"), false));
            }
        }
    }
    found
}

/// A declaration of a module.
enum Module<'a> {
    /// `mod name;`
    File(&'a str),
    /// `mod name {`
    Inline(&'a str),
}

fn module(code: &str) -> Option<Module<'_>> {
    let code = match code.strip_prefix("pub") {
        Some(rest) => match rest.strip_prefix('(') {
            Some(rest) => rest.split_once(')')?.1,
            None => rest,
        },
        None => code,
    };
    let declared = code.trim_start().strip_prefix("mod ")?;
    let (name, kind) = declared.split_at(declared.find([';', '{'])?);
    let name = name.trim().trim_start_matches("r#");
    Some(match kind.starts_with(';') {
        true => Module::File(name),
        false if kind.ends_with('}') => return None,
        false => Module::Inline(name),
    })
}
