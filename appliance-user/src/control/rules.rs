//! Files of public IP rules, for `rule add --file` and `rule check`.

use failover::Rule;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<toml::Table>,
}

/// The rules in the text of a file, and the problems of those that are invalid.
#[must_use]
pub fn read(text: &str) -> (Vec<Rule>, Vec<String>) {
    let file: File = match toml::from_str(text) {
        Ok(file) => file,
        Err(error) => return (Vec::new(), vec![error.to_string().trim_end().to_owned()]),
    };
    let (mut rules, mut problems) = (Vec::new(), Vec::new());
    if file.rule.is_empty() {
        problems.push("there is no rule: write a [[rule]] for each".to_owned());
    }
    for (number, table) in (1..).zip(file.rule) {
        match Rule::deserialize(table) {
            Ok(rule) => rules.push(rule),
            Err(error) => {
                let message = error.message();
                if message.starts_with("rule ") {
                    problems.push(message.to_owned());
                } else {
                    problems.push(format!("rule {number}: {message}"));
                }
            }
        }
    }
    (rules, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_rules_are_reported_and_the_others_are_read() {
        let text = r#"
[[rule]]
name = "web"
public_ip = "203.0.113.20"
public_port = "8000-8100"
internal_ip = "10.1.0.10"
[[rule]]
name = "ssh"
public_ip = "203.0.113.20"
public_port = 22
internal_ip = "10.1.0.10"
[[rule]]
name = "new"
publicip = "203.0.113.20"
"#;
        let (rules, problems) = read(text);
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].name(), "web");
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].starts_with("rule \"ssh\": public_port: 22 is refused"),
            "{problems:?}"
        );
        assert!(
            problems[1].starts_with("rule 3: unknown field `publicip`"),
            "{problems:?}"
        );
        assert!(read("").1[0].contains("there is no rule"));
        assert!(read("rules = 3").1[0].contains("unknown field"));
    }
}
