//! Values in files, which the command line names.

use std::{io::Read as _, path::Path};

use serde_json::Value;

use crate::failure::Failure;

/// A value in a file: JSON, or TOML if its name ends so; `-` is JSON from standard input.
pub fn read(path: &Path) -> Result<Value, Failure> {
    let shown = path.display();
    let mut text = String::new();
    let result = match path == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text).map(drop),
        false => std::fs::read_to_string(path).map(|read| text = read),
    };
    result.map_err(|error| Failure::local(format!("cannot read {shown}: {error}")))?;
    let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{shown}: {error}"));
    if path.extension().is_some_and(|ending| ending == "toml") {
        let value: toml::Table = toml::from_str(&text).map_err(|error| wrong(&error))?;
        return serde_json::to_value(value).map_err(|error| wrong(&error));
    }
    control::json::parse(text.as_bytes()).map_err(|error| wrong(&error))
}
