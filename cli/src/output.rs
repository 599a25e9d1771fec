//! Output for people: tables, and objects field by field.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Longest cell of a table, characters; a longer one is cut.
const CELL: usize = 48;

/// A table: the header and the rows, in columns as wide as their longest cell.
#[derive(Debug, Default)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<S: AsRef<str>>(header: &[S]) -> Self {
        let header = header.iter().map(|name| {
            let name = name.as_ref().to_uppercase();
            name.replace('_', "-")
        });
        Self {
            header: header.collect(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub fn print(&self) {
        service::stdout::print(self.text());
    }

    fn text(&self) -> String {
        let rows = || std::iter::once(&self.header).chain(&self.rows);
        let width = |column: usize| {
            let cells = rows().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<_> = (0..self.header.len()).map(width).collect();
        let mut text = String::new();
        for row in rows() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a String never fails.
                let _ = write!(line, "{cell:<width$}  ");
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// A value in one cell.
pub fn cell(value: &Value) -> String {
    let text = plain(value);
    if text.is_empty() {
        return "-".to_owned();
    }
    if text.chars().count() <= CELL {
        return text;
    }
    let kept: String = text.chars().take(CELL - 1).collect();
    kept + "…"
}

/// A value on one line: the items of a list between commas, and the fields of an object as
/// `name=value`, an object of a list by its name alone.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.chars().map(visible).collect(),
        Value::Array(items) => {
            let items: Vec<_> = items
                .iter()
                .map(|item| match &item["name"] {
                    Value::String(name) => name.chars().map(visible).collect(),
                    _ => plain(item),
                })
                .collect();
            items.join(",")
        }
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            let fields: Vec<_> = fields
                .map(|(name, value)| format!("{name}={}", plain(value)))
                .collect();
            fields.join(" ")
        }
    }
}

/// A control character could move the cursor of a terminal.
fn visible(c: char) -> char {
    match c.is_control() {
        true => '\u{fffd}',
        false => c,
    }
}

/// Objects of one kind as a table. Columns are the fields of spec and status in the order of the
/// objects, but for descriptions.
pub fn objects(items: &[Value], with_tenant: bool) -> Table {
    let mut columns: Vec<(&str, String)> = Vec::new();
    for item in items {
        for part in ["spec", "status"] {
            for name in item[part].as_object().into_iter().flat_map(Map::keys) {
                let column = (part, name.clone());
                if name != "description" && !columns.contains(&column) {
                    columns.push(column);
                }
            }
        }
    }
    columns.sort_by_key(|(part, _)| *part);
    let mut header = vec!["name"];
    if with_tenant {
        header.insert(0, "tenant");
    }
    header.extend(columns.iter().map(|(_, name)| name.as_str()));
    let mut table = Table::new(&header);
    for item in items {
        let mut row = vec![cell(&item["metadata"]["name"])];
        if with_tenant {
            row.insert(0, cell(&item["metadata"]["tenant"]));
        }
        row.extend(columns.iter().map(|(part, name)| cell(&item[*part][name])));
        table.row(row);
    }
    table
}

/// Values as a table of their fields, those of the first one in its order.
pub fn items(items: &[Value]) -> Table {
    let first = items.first().and_then(Value::as_object);
    let header: Vec<_> = first.into_iter().flat_map(Map::keys).collect();
    let mut table = Table::new(&header);
    for item in items {
        table.row(header.iter().map(|name| cell(&item[*name])).collect());
    }
    table
}

/// An object, a line for each field.
pub fn object(value: &Value) -> String {
    let mut lines = Vec::new();
    for part in ["metadata", "spec", "status"] {
        let prefix = match part {
            "metadata" => String::new(),
            part => format!("{part}."),
        };
        flat(&prefix, &value[part], &mut lines);
    }
    for condition in value["conditions"].as_array().into_iter().flatten() {
        let text = |field: &str| plain(&condition[field]);
        lines.push((
            format!("condition.{}", text("type")),
            format!(
                "{} ({}): {}",
                text("status"),
                text("reason"),
                text("message")
            ),
        ));
    }
    aligned(lines)
}

/// A value that is no object of a kind, a line for each field.
pub fn fields(value: &Value) -> String {
    let mut lines = Vec::new();
    flat("", value, &mut lines);
    aligned(lines)
}

fn aligned(lines: Vec<(String, String)>) -> String {
    let width = lines.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or_default() + 1;
    let mut text = String::new();
    for (name, value) in lines {
        let line = format!("{:<width$} {value}", format!("{name}:"));
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn flat(prefix: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let name = format!("{prefix}{name}");
        match value {
            Value::Object(_) => flat(&format!("{name}."), value, lines),
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for (place, item) in items.iter().enumerate() {
                    lines.push((format!("{name}[{place}]"), plain(item)));
                }
            }
            value => lines.push((name, plain(value))),
        }
    }
}

/// Differences of objects, as a dry run answers them.
pub fn differences(differences: &[Value]) -> Table {
    let mut table = Table::new(&[
        "change", "kind", "tenant", "name", "field", "before", "after",
    ]);
    for difference in differences {
        let head: Vec<_> = ["change", "kind", "tenant", "name"]
            .iter()
            .map(|field| cell(&difference[field]))
            .collect();
        let fields = difference["fields"].as_array();
        let fields = fields.map_or(&[][..], Vec::as_slice);
        if fields.is_empty() {
            table.row(head.clone());
        }
        for field in fields {
            let mut row = head.clone();
            row.extend(["field", "before", "after"].map(|name| cell(&field[name])));
            table.row(row);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_a_table() {
        let items = [
            json!({ "metadata": { "name": "h1" }, "spec": { "platform": "kvm",
                "switches": [{ "name": "br0" }, { "name": "br1" }], "description": "x" },
                "status": {} }),
            json!({ "metadata": { "name": "host-2" }, "spec": { "platform": "esxi",
                "switches": [] }, "status": {} }),
        ];
        let text = objects(&items, false).text();
        let expected = "\
NAME    PLATFORM  SWITCHES
h1      kvm       br0,br1
host-2  esxi      -
";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_object_has_a_line_for_each_field() {
        let value = json!({ "metadata": { "name": "t" }, "spec": { "limits": { "a": 1 },
            "vms": [{ "name": "web", "delay": 60 }], "on": true }, "status": {} });
        let expected = "\
name:          t
spec.limits.a: 1
spec.on:       yes
spec.vms[0]:   delay=60 name=web
";
        assert_eq!(object(&value), expected);
    }

    #[test]
    fn cells_are_short_and_printable() {
        assert_eq!(cell(&json!("a\u{1b}[2Jb")), "a\u{fffd}[2Jb");
        assert_eq!(cell(&json!("x".repeat(60))).chars().count(), CELL);
        assert_eq!(cell(&json!({ "mode": "idle" })), "mode=idle");
        assert_eq!(cell(&Value::Null), "-");
    }
}
