//! The differences between two plans, for people.

use std::collections::BTreeMap;

use super::{Allow, Plan, PlanNetwork, allow_at};
use crate::{Rule, rules::list};

impl Plan {
    /// The differences to a `new` plan, a line each: description, networks, routes, rules. Empty if
    /// and only if failovers by the two do the same; the order of tables does not matter.
    #[must_use]
    pub fn diff(&self, new: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.description != new.description {
            lines.push("description: changed".to_owned());
        }
        let network = |n: &PlanNetwork| (format!("network {:?}", n.name), n.clone());
        changed(
            self.networks.iter().map(network).collect(),
            new.networks.iter().map(network).collect(),
            ToString::to_string,
            &mut lines,
        );
        let directions = |plan: &Self| -> BTreeMap<String, ()> {
            let all = plan.allow.iter().flat_map(Allow::directions);
            all.map(|(from, to)| (allow_at(from, to), ())).collect()
        };
        changed(
            directions(self),
            directions(new),
            |()| String::new(),
            &mut lines,
        );
        let rule = |rule: &Rule| (format!("rule {:?}", rule.name()), rule.clone());
        changed(
            self.rules.iter().map(rule).collect(),
            new.rules.iter().map(rule).collect(),
            rule_text,
            &mut lines,
        );
        lines
    }
}

/// Adds a line for each entry that was removed, added or changed.
fn changed<T: PartialEq>(
    old: BTreeMap<String, T>,
    new: BTreeMap<String, T>,
    text: impl Fn(&T) -> String,
    lines: &mut Vec<String>,
) {
    let mut line = |at: &str, what: &str, text: String| {
        let colon = if text.is_empty() { "" } else { ": " };
        lines.push(format!("{at}: {what}{colon}{text}"));
    };
    for (at, old) in old.iter().filter(|(at, _)| !new.contains_key(*at)) {
        line(at, "removed", text(old));
    }
    for (at, new) in &new {
        match old.get(at) {
            None => line(at, "added", text(new)),
            Some(old) if old != new => {
                line(at, "changed", format!("{}, was {}", text(new), text(old)));
            }
            Some(_) => {}
        }
    }
}

/// A rule without its name.
fn rule_text(rule: &Rule) -> String {
    let mut text = rule.to_string();
    if !rule.allow().is_empty() {
        text += &format!(" for {}", list(rule.allow()));
    }
    if !rule.description().is_empty() {
        text += &format!(" ({})", rule.description());
    }
    text
}
