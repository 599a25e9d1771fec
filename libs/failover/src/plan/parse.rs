//! The TOML form of a plan, with the line of each problem.

use std::ops::Range;

use serde::{Deserialize, de::DeserializeOwned};
use toml::{
    Spanned,
    de::{DeTable, DeValue, Deserializer, ValueDeserializer},
};

use super::{
    Allow, Plan, PlanErrors, allow_at,
    check::{Draft, Problems},
    file::File,
};
use crate::{Rule, TenantContext, rule};

/// Parses a plan and checks it against the tenant.
pub(super) fn parse(text: &str, tenant: &TenantContext) -> Result<Plan, PlanErrors> {
    let mut problems = Problems::default();
    match DeTable::parse(text) {
        Ok(table) => {
            let draft = Reader { text }.draft(table, &mut problems);
            draft.check(Some(tenant), problems)
        }
        Err(error) => {
            problems.add(line(text, error.span()), one_line(error.message()));
            Err(problems.into_errors())
        }
    }
}

/// Parses each table separately, so that an invalid one does not hide problems of the others.
struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn draft(&self, mut table: Spanned<DeTable<'_>>, problems: &mut Problems) -> Draft {
        let mut take = |key: &'static str| Some((key, table.get_mut().remove(key)?));
        let lists = [take("network"), take("allow"), take("rule")];
        let head = File::deserialize(Deserializer::from(table));
        let head = head.map_err(|error| self.problem(problems, "", &error));
        let mut draft = Draft {
            head: head.ok(),
            networks: Vec::new(),
            unread: Vec::new(),
            allow: Vec::new(),
            rules: Vec::new(),
        };
        for (key, value) in lists.into_iter().flatten() {
            let at = format!("{key}: {}", line(self.text, Some(value.span())));
            let DeValue::Array(array) = value.into_inner() else {
                problems.add(
                    at,
                    format!("write [[{key}]], in double brackets: there may be more than one"),
                );
                if key == "network" {
                    draft.unread.push(String::new());
                }
                continue;
            };
            for value in array {
                self.table(key, value, &mut draft, problems);
            }
        }
        draft
    }

    /// Parses one table of a list.
    fn table(
        &self,
        key: &'static str,
        value: Spanned<DeValue<'_>>,
        draft: &mut Draft,
        problems: &mut Problems,
    ) {
        let written = |key: &str| {
            let value = value.get_ref().get(key)?.get_ref();
            value.as_str().map(ToOwned::to_owned)
        };
        let name = written("name");
        let at = match (key, &name, written("from"), written("to")) {
            ("allow", _, Some(from), Some(to)) => allow_at(&from, &to) + ": ",
            ("network" | "rule", Some(name), ..) => format!("{key} {name:?}: "),
            _ => format!("{key}: "),
        };
        match key {
            "network" => match self.read(&at, value, problems) {
                Some(network) => draft.networks.push(network),
                None => draft.unread.push(name.unwrap_or_default()),
            },
            "allow" => draft.allow.extend(self.read::<Allow>(&at, value, problems)),
            _ => {
                let Some(file) = self.read::<rule::File>(&at, value, problems) else {
                    return;
                };
                let at = format!("rule {:?}", file.name);
                match Rule::try_from(file) {
                    Ok(rule) => draft.rules.push(rule),
                    Err(error) => {
                        let text = error.to_string();
                        let message = text.strip_prefix(&format!("{at}: ")).unwrap_or(&text);
                        problems.add(&at, message);
                    }
                }
            }
        }
    }

    fn read<T: DeserializeOwned>(
        &self,
        at: &str,
        value: Spanned<DeValue<'_>>,
        problems: &mut Problems,
    ) -> Option<T> {
        T::deserialize(ValueDeserializer::from(value))
            .map_err(|error| self.problem(problems, at, &error))
            .ok()
    }

    fn problem(&self, problems: &mut Problems, at: &str, error: &toml::de::Error) {
        let at = format!("{at}{}", line(self.text, error.span()));
        // The error does not have the text, so it prints the message and, on a line of its own, the
        // key.
        let text = error.to_string();
        let key = text.strip_prefix(error.message()).unwrap_or_default();
        let key = key.trim().strip_prefix("in `");
        match key.and_then(|key| key.strip_suffix('`')) {
            Some(key) => problems.add(
                format!("{at}: {}", one_line(key)),
                one_line(error.message()),
            ),
            None => problems.add(at, one_line(error.message())),
        }
    }
}

/// `line 7`, counted from 1, for the start of a span.
fn line(text: &str, span: Option<Range<usize>>) -> String {
    let start = span.map_or(0, |span| span.start);
    let before = text.bytes().take(start);
    format!("line {}", before.filter(|byte| *byte == b'\n').count() + 1)
}

/// Messages of the TOML parser may quote the text, with control characters.
fn one_line(message: &str) -> String {
    message.replace('\n', " ").replace(char::is_control, "?")
}
