//! Commands that documentation, messages, examples and units quote, checked by the program's own
//! parser.
//!
//! ```text
//!   *.md, *.rs, *.toml, *.service ─▶ quotes ─▶ words ─▶ variants: with and without [options],
//!                                                       each a|b ─▶ clap ─▶ accepted, or why not
//! ```

use clap::{
    Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::repository::{files, read, shown};

/// A program whose commands are quoted.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// How quotes call it, and the words that each name stands for in front of the arguments:
    /// `cargo xtask demo` runs `causeway-lab demo`.
    pub names: &'static [(&'static str, &'static [&'static str])],
    /// Page with a table of its commands, which leaves the name out.
    pub table: Option<&'static str>,
    /// Beginnings of quotes that are no commands.
    pub except: &'static [&'static str],
    /// Its parser.
    pub command: fn() -> Command,
}

/// Checks every quoted command of a program. A quote of subcommands only, as
/// `causeway-appliance keygen`, needs no arguments; every other one must be accepted by the parser,
/// with values for its placeholders.
///
/// # Panics
/// If the parser refuses a quoted command, or none is found.
#[track_caller]
pub fn check(program: &Program) {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for path in files(&[".md", ".rs", ".toml", ".service"]) {
        // It has examples of wrong ones.
        if path.ends_with(file!()) {
            continue;
        }
        let page = shown(&path);
        let text = read(&path);
        let mut lines = match page.rsplit_once('.').map_or("", |(_, ending)| ending) {
            "md" => quotes_of_page(&text),
            "rs" => quotes_of_source(&text),
            "toml" => quotes_of_example(&text),
            _ => commands_of_unit(&text),
        };
        lines.retain(|line| !program.except.iter().any(|except| line.starts_with(except)));
        let mut calls: Vec<_> = lines
            .iter()
            .filter_map(|line| program.called_by(line))
            .collect();
        if program.table == Some(page.as_str()) {
            calls.extend(table(&text).into_iter().map(|row| (&[][..], row)));
        }
        for (first, rest) in calls {
            checked += 1;
            if let Err(reason) = accepted(program.command, first, &rest) {
                wrong.push(format!("{page}: `{rest}`: {reason}"));
            }
        }
    }
    let name = program.names.first().map_or("", |(name, _)| name);
    assert!(
        wrong.is_empty(),
        "{name} does not take:\n{}",
        wrong.join("\n")
    );
    assert!(checked > 0, "no file quotes a command of {name}");
}

impl Program {
    /// The words in front and the arguments, if a quote calls this program. The longest name
    /// counts.
    fn called_by(&self, line: &str) -> Option<(&'static [&'static str], String)> {
        let line = line.trim_start_matches("$ ").trim_start_matches("sudo ");
        let calls = self.names.iter().filter_map(|(name, first)| {
            let rest = line.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with(' ')).then_some((name.len(), *first, rest))
        });
        let (_, first, rest) = calls.max_by_key(|(length, ..)| *length)?;
        Some((first, rest.trim().to_owned()))
    }
}

/// Text in backticks, and the lines of code blocks.
fn quotes_of_page(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut paragraph, mut code) = (String::new(), String::new());
    let mut fenced = false;
    let end = |paragraph: &mut String, found: &mut Vec<String>| {
        found.extend(in_backticks(&std::mem::take(paragraph)));
    };
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("```") {
            fenced = !fenced;
            end(&mut paragraph, &mut found);
        } else if fenced {
            code.push_str(line.trim_end_matches('\\'));
            if !line.ends_with('\\') {
                found.push(std::mem::take(&mut code));
            }
        } else if line.is_empty() || line.starts_with(['|', '#', '-']) {
            end(&mut paragraph, &mut found);
            paragraph.push_str(line);
        } else {
            paragraph.push(' ');
            paragraph.push_str(line);
        }
    }
    end(&mut paragraph, &mut found);
    found
}

/// The text between each first and second backtick. A bar is escaped in tables.
fn in_backticks(text: &str) -> Vec<String> {
    let quotes = text.split('`').skip(1).step_by(2);
    quotes.map(|quote| quote.replace("\\|", "|")).collect()
}

/// Text in backticks of comments and string literals, also over the end of a line.
fn quotes_of_source(text: &str) -> Vec<String> {
    let mut joined = String::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        let comment = ["/// ", "//! ", "// "]
            .iter()
            .find_map(|start| trimmed.strip_prefix(start));
        match (comment, joined.ends_with('\\')) {
            (None, true) => {
                joined.pop();
                joined.push_str(trimmed);
            }
            (Some(comment), _) => {
                joined.push(' ');
                joined.push_str(comment);
            }
            (None, false) => {
                joined.push('\n');
                joined.push_str(line);
            }
        }
    }
    let joined = joined.replace("\\\"", "\"");
    // Backticks need not be in pairs: each one may begin a quote.
    let quotes = joined.split('`').skip(1);
    quotes
        .filter(|quote| !quote.contains('\n') && quote.len() < 200)
        .map(str::to_owned)
        .collect()
}

/// Comments of an example: text in backticks, and the whole comment.
fn quotes_of_example(text: &str) -> Vec<String> {
    let comments = text.lines().filter_map(|line| line.split_once("# "));
    let comments: Vec<_> = comments.map(|(_, comment)| comment.trim()).collect();
    let mut found = in_backticks(&comments.join(" "));
    found.extend(comments.into_iter().map(str::to_owned));
    found
}

/// Commands that systemd runs, without the folders of their programs.
fn commands_of_unit(text: &str) -> Vec<String> {
    let commands = text.lines().filter_map(|line| {
        let (key, command) = line.split_once('=')?;
        key.starts_with("Exec").then_some(command)
    });
    let named = commands.map(|command| {
        let path = command.split(' ').next().unwrap_or_default();
        let folders = path.rfind('/').map_or(0, |at| at + 1);
        command[folders..].to_owned()
    });
    named.collect()
}

/// Commands in the first column of the tables with the heading `command`.
fn table(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        inside = line.starts_with("| command |") || (inside && line.starts_with('|'));
        let cell = line.trim_start_matches('|').trim_start();
        if inside && let Some(quote) = cell.strip_prefix('`') {
            let quote = quote.split('`').next().unwrap_or_default();
            found.push(quote.replace("\\|", "|"));
        }
    }
    found
}

/// A word of a quoted command.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    /// One, or those between bars.
    alternatives: Vec<String>,
    /// It is in brackets.
    is_optional: bool,
}

/// The words of a quoted command, and whether `…` stands for more.
fn words(line: &str) -> (Vec<Word>, bool) {
    let (mut found, mut is_partial) = (Vec::new(), false);
    let (mut depth, mut quote) = (0_u32, None);
    let mut begun: Option<Word> = None;
    for c in line.chars().chain([' ']) {
        if quote == Some(c) {
            quote = None;
            continue;
        }
        let is_optional = depth > 0;
        let word = || Word {
            alternatives: vec![String::new()],
            is_optional,
        };
        match c {
            _ if quote.is_some() => push(begun.get_or_insert_with(word), c),
            '\'' | '"' => {
                quote = Some(c);
                begun.get_or_insert_with(word);
            }
            '[' if begun.is_none() => depth += 1,
            ']' if depth > 0 => depth -= 1,
            ' ' => {
                let Some(word) = begun.take() else { continue };
                let text = word.alternatives.join("|");
                // The end of the command: a comment, a pipe, another command.
                if ["#", "|", ">", "<", "&&", "&", ";", "2>&1"].contains(&text.as_str()) {
                    return (found, is_partial);
                }
                match text.as_str() {
                    "…" | "..." | "WORDS…" | "ARGS…" => is_partial = true,
                    _ => found.push(word),
                }
            }
            '|' if begun.is_some() => {
                if let Some(word) = &mut begun {
                    word.alternatives.push(String::new());
                }
            }
            c => push(begun.get_or_insert_with(word), c),
        }
    }
    for word in &mut found {
        for text in &mut word.alternatives {
            let plain = text.trim_end_matches(['…', ',', ';']).len();
            text.truncate(plain);
        }
    }
    (found, is_partial)
}

fn push(word: &mut Word, c: char) {
    if let Some(last) = word.alternatives.last_mut() {
        last.push(c);
    }
}

/// Values that a placeholder may stand for.
const VALUES: [&str; 9] = [
    "1",
    "a",
    "192.0.2.1",
    "192.0.2.0/24",
    "192.0.2.1:443",
    "203.0.113.20 -> 10.1.0.10",
    "acme=b",
    "https://a",
    "00",
];

/// Whether the author leaves the value to the reader: capitals, or something to fill in.
fn is_placeholder(word: &str) -> bool {
    let value = word.rsplit('=').next().unwrap_or(word);
    let is_capital = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "-_".contains(c);
    (value.chars().all(is_capital) && value.contains(|c: char| c.is_ascii_uppercase()))
        || value.contains(['{', '<', '$', '…'])
}

/// Whether the parser accepts a quoted command, in each of its variants; the reason if not.
fn accepted(command: fn() -> Command, first: &[&str], line: &str) -> Result<(), String> {
    let (words, is_partial) = words(line);
    let given = |with_optional: bool, alternative: usize| {
        let words = words
            .iter()
            .filter(|word| with_optional || !word.is_optional);
        let words = words.filter_map(|word| {
            let last = word.alternatives.len() - 1;
            word.alternatives.get(alternative.min(last)).cloned()
        });
        let first = first.iter().map(|&word| word.to_owned());
        first.chain(words).collect::<Vec<_>>()
    };
    let alternatives = words.iter().map(|word| word.alternatives.len()).max();
    for alternative in 0..alternatives.unwrap_or(1) {
        for with_optional in [false, true] {
            let words = given(with_optional, alternative);
            if is_mention(command(), &words) {
                continue;
            }
            match parse(command, words) {
                // Options in brackets may exclude each other.
                Err((ErrorKind::ArgumentConflict, _)) if with_optional => {}
                Err((ErrorKind::MissingRequiredArgument | ErrorKind::MissingSubcommand, _))
                    if is_partial => {}
                Err((_, reason)) => return Err(reason),
                Ok(()) => {}
            }
        }
    }
    Ok(())
}

/// Whether the words are subcommands only.
fn is_mention(mut command: Command, words: &[String]) -> bool {
    for word in words {
        match command.find_subcommand(word) {
            Some(found) => command = found.clone(),
            None => return false,
        }
    }
    true
}

/// Parses a command, with other values for a placeholder that the parser refuses. A placeholder for
/// which none of [`VALUES`] is right, as one for the name of an enumeration, is accepted.
fn parse(command: fn() -> Command, mut words: Vec<String>) -> Result<(), (ErrorKind, String)> {
    let originals = words.clone();
    let mut tried = vec![0; words.len()];
    loop {
        let call = std::iter::once("program".to_owned()).chain(words.iter().cloned());
        let error = match command().try_get_matches_from(call) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let kind = error.kind();
        let refused = match kind {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return Ok(()),
            ErrorKind::ValueValidation | ErrorKind::InvalidValue => ContextKind::InvalidValue,
            ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
            _ => return Err((kind, first_line(&error))),
        };
        let refused = match error.get(refused) {
            Some(ContextValue::String(refused)) => refused.clone(),
            _ => return Err((kind, first_line(&error))),
        };
        let at = (0..words.len()).find(|&at| {
            is_placeholder(&originals[at])
                && (words[at] == refused || words[at].ends_with(&format!("={refused}")))
        });
        let Some(at) = at else {
            return Err((kind, first_line(&error)));
        };
        let Some(value) = VALUES.get(tried[at]) else {
            return Ok(());
        };
        tried[at] += 1;
        words[at] = match originals[at].rsplit_once('=') {
            Some((option, _)) => format!("{option}={value}"),
            None => (*value).to_owned(),
        };
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.starts_with("Usage"));
    let lines: Vec<_> = lines.map(str::trim).filter(|l| !l.is_empty()).collect();
    lines.join(" ")
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction, value_parser};

    use super::*;

    fn command() -> Command {
        let file = Arg::new("file").long("file").required(true);
        let flag = |name| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let add = Command::new("add")
            .arg(file)
            .arg(flag("shared"))
            .arg(flag("force").conflicts_with("shared"))
            .arg(
                Arg::new("count")
                    .long("count")
                    .value_parser(value_parser!(u8)),
            );
        let list = Command::new("list").arg(Arg::new("kind").value_parser(["all", "new"]));
        Command::new("x")
            .subcommand_required(true)
            .subcommands([add, list])
    }

    fn accepts(line: &str) -> bool {
        accepted(command, &[], line).is_ok()
    }

    #[test]
    fn commands_as_they_are_quoted_are_accepted() {
        for right in [
            "",
            "add",
            "add --file F",
            "add --file=F --count N # for --nothing",
            "add --file 'a b' > out",
            "add --file F [--shared] [--force]",
            "add --file F --shared|--force",
            "add … --shared",
            "list all|new",
            "list [all|new]",
            "list KIND",
            "VERB",
            "--help",
        ] {
            assert_eq!(accepted(command, &[], right), Ok(()), "{right}");
        }
    }

    #[test]
    fn a_required_option_a_value_and_an_argument_too_many_are_found() {
        for wrong in [
            "drop",
            "add F",
            "add --shared",
            "add --file",
            "add --file F G",
            "add --file F --counts 1",
            "add --file F --count many",
            "add --file F [--old]",
            "list all|old",
            "list old",
        ] {
            assert!(!accepts(wrong), "{wrong}");
        }
    }

    #[test]
    fn quotes_are_found_over_the_ends_of_lines() {
        let page = "a `x\nadd F` b\n\n```\nx list \\\n  all\n```\n| `x add a\\|b` |\n";
        assert_eq!(quotes_of_page(page), ["x add F", "x list all", "x add a|b"]);
        let source = "/// It is `x\n    /// add`.\nlet a = \"make it by `x \\\n    list`\";\n";
        let quotes = quotes_of_source(source);
        assert!(quotes.contains(&"x add".to_owned()), "{quotes:?}");
        assert!(quotes.contains(&"x list".to_owned()), "{quotes:?}");
        let example = "a = 1 # x list\n# made by\n# `x add\n# F`\n";
        let quotes = quotes_of_example(example);
        assert!(quotes.contains(&"x list".to_owned()), "{quotes:?}");
        assert!(quotes.contains(&"x add F".to_owned()), "{quotes:?}");
        let unit = "[Service]\nExecStart=/usr/bin/x list all\nType=notify\n";
        assert_eq!(commands_of_unit(unit), ["x list all"]);
        let page = "| command | effect |\n|---|---|\n| `list [all]` | `x` |\n\n| `no` | a |\n";
        assert_eq!(table(page), ["list [all]"]);
    }
}
