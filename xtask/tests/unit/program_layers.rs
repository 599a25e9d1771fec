//! The XDP programs are built in layers, and no module imports one above it or in a circle.
//!
//! ```text
//!   main.rs ─▶ stage/ ─▶ helper/ ─▶ maps
//! ```
//!
//! The sources are read as text: `use crate::…`, `use super::…`, and paths that begin with a child
//! module.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use test_support::repository::root;

/// The layers, from the top. A module may import its own layer and those behind it in this list.
const LAYERS: [&str; 4] = ["", "stage", "helper", "maps"];

/// Modules of one program by path (`helper::nat::flow`), each with its source text.
type Modules = BTreeMap<String, String>;

fn read(dir: &Path, module: &str, modules: &mut Modules) {
    for entry in fs::read_dir(dir).expect("the program's sources") {
        let path = entry.expect("a directory entry").path();
        let stem = path.file_stem().expect("a name").to_str().expect("UTF-8");
        let child = |name: &str| match (module, name) {
            (_, "main" | "mod") => module.to_owned(),
            ("", name) => name.to_owned(),
            (module, name) => format!("{module}::{name}"),
        };
        if path.is_dir() {
            read(&path, &child(stem), modules);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            modules.insert(child(stem), text);
        }
    }
}

/// A source without its comments.
fn code(text: &str) -> String {
    let line = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The paths of a `use` tree: `a::{b, c::{d, e}}` is `a::b`, `a::c::d`, `a::c::e`.
fn flatten(tree: &str, prefix: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap_or_default().trim();
        paths.push(format!("{prefix}{name}"));
        return;
    };
    let inner = rest.rsplit_once('}').expect("a closing brace").0;
    let (mut depth, mut from) = (0, 0);
    for (at, character) in inner.char_indices().chain([(inner.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[from..at].trim().is_empty() {
                    flatten(&inner[from..at], &format!("{prefix}{head}"), paths);
                }
                from = at + 1;
            }
            _ => {}
        }
    }
}

/// Every path that a module names: of its `use` items, and those beginning with `crate`, `super` or
/// a child module.
fn named_paths(text: &str, children: &[&str]) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in text.match_indices("use ") {
        let starts_item = text[..at].trim_end_matches("pub ").ends_with(['\n', ' ']) || at == 0;
        if starts_item && let Some((tree, _)) = text[at + 4..].split_once(';') {
            flatten(tree, "", &mut paths);
        }
    }
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in text.split(|c| !is_path(c)) {
        let first = word.split("::").next().unwrap_or_default();
        let local = first == "crate" || first == "super" || children.contains(&first);
        // A word that ends so is the head of a `use` tree.
        if local && word.contains("::") && !word.ends_with("::") {
            paths.push(word.to_owned());
        }
    }
    paths
}

/// The module that a path named in `module` leads to, if it is of the program.
fn resolve(path: &str, module: &str, modules: &Modules) -> Option<String> {
    let mut at: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    let mut parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
    match *parts.first()? {
        "crate" => {
            at.clear();
            parts.remove(0);
        }
        "self" => {
            parts.remove(0);
        }
        "super" => {
            while parts.first() == Some(&"super") {
                at.pop();
                parts.remove(0);
            }
        }
        child => {
            let mut path = at.clone();
            path.push(child);
            if !modules.contains_key(&path.join("::")) {
                return None;
            }
        }
    }
    at.extend(parts);
    while !at.is_empty() {
        let found = at.join("::");
        if modules.contains_key(&found) {
            return Some(found);
        }
        at.pop();
    }
    Some(String::new())
}

fn layer(module: &str) -> usize {
    let top = module.split("::").next().unwrap_or_default();
    LAYERS
        .iter()
        .position(|layer| *layer == top)
        .unwrap_or_else(|| panic!("module {module} is in none of the layers {LAYERS:?}"))
}

/// A circle among the imports that `module` leads to.
fn circle<'a>(
    module: &'a str,
    imports: &'a BTreeMap<String, BTreeSet<String>>,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<String> {
    if let Some(from) = path.iter().position(|of| *of == module) {
        let circle = [&path[from..], &[module]].concat();
        return Some(circle.join(" -> "));
    }
    if !done.insert(module) {
        return None;
    }
    path.push(module);
    for import in &imports[module] {
        if let found @ Some(_) = circle(import, imports, path, done) {
            return found;
        }
    }
    path.pop();
    None
}

/// The errors in the imports of a program.
fn defects(modules: &Modules) -> Vec<String> {
    let mut defects = Vec::new();
    let mut imports = BTreeMap::new();
    for (module, text) in modules {
        let text = code(text);
        let prefix = format!("{module}::");
        let children: Vec<&str> = modules
            .keys()
            .filter_map(|of| match module.as_str() {
                "" => Some(of.as_str()),
                _ => of.strip_prefix(&prefix),
            })
            .filter(|rest| !rest.is_empty() && !rest.contains("::"))
            .collect();
        let of: BTreeSet<String> = named_paths(&text, &children)
            .iter()
            .filter_map(|path| resolve(path, module, modules))
            .filter(|import| import != module)
            .collect();
        for import in &of {
            if layer(import) < layer(module) {
                defects.push(format!("{module} imports {import}, which is a layer above"));
            }
        }
        imports.insert(module.clone(), of);
    }
    let mut done = BTreeSet::new();
    for module in imports.keys() {
        if let Some(circle) = circle(module, &imports, &mut Vec::new(), &mut done) {
            defects.push(format!("circle: {circle}"));
        }
    }
    defects
}

fn check(sources: &str) {
    let mut modules = Modules::new();
    read(&root().join(sources), "", &mut modules);
    assert!(modules.len() > 3, "{modules:?}");
    assert_eq!(defects(&modules), [""; 0], "{sources}");
}

#[test]
fn the_appliances_programs_import_downwards_without_a_circle() {
    check("appliance-ebpf/src");
}

#[test]
fn the_gateways_program_imports_downwards_without_a_circle() {
    check("gateway/ebpf/src");
}

#[test]
fn upward_imports_and_circles_are_found() {
    let modules = |list: &[(&str, &str)]| {
        let of = |(module, text): &(&str, &str)| ((*module).to_owned(), format!("{text}\n"));
        list.iter().map(of).collect::<Modules>()
    };
    let fine = [
        ("", "mod stage;\nuse crate::helper::a;\n"),
        ("stage", "pub mod x;\n"),
        (
            "stage::x",
            "use crate::{\n    helper::{a::{b, c}, d},\n    maps::M,\n};\n",
        ),
        ("helper", "pub mod a;\npub mod d;\n"),
        ("helper::a", "// use crate::stage::x;\nuse super::d::e;\n"),
        ("helper::d", ""),
        ("maps", ""),
    ];
    assert_eq!(defects(&modules(&fine)), [""; 0]);
    let upward = [
        fine.as_slice(),
        &[("maps", "use crate::{helper::{a::b}};\n")],
    ]
    .concat();
    assert_eq!(
        defects(&modules(&upward)),
        ["maps imports helper::a, which is a layer above"]
    );
    let inline = [
        fine.as_slice(),
        &[("maps", "fn f() { crate::stage::x::g() }\n")],
    ]
    .concat();
    assert_eq!(
        defects(&modules(&inline))[0],
        "maps imports stage::x, which is a layer above"
    );
    let circular = [
        fine.as_slice(),
        &[("helper::d", "use crate::helper::a::f;\n")],
    ]
    .concat();
    assert_eq!(
        defects(&modules(&circular)),
        ["circle: helper::a -> helper::d -> helper::a"]
    );
    let parent = [
        fine.as_slice(),
        &[
            ("helper", "mod a;\nfn f() { a::b() }\n"),
            ("helper::a", "use super::f;\n"),
        ],
    ]
    .concat();
    assert_eq!(
        defects(&modules(&parent)),
        ["circle: helper::a -> helper -> helper::a"]
    );
}
