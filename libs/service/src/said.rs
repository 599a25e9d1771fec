//! Errors for a person.

use std::error::Error;

/// An error with its causes, each said once: many of ours name their cause themselves.
#[must_use]
pub fn said(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut error = error.source();
    while let Some(cause) = error {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        error = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Says {
        says: &'static str,
        source: Option<Box<Says>>,
    }

    fn chain(words: &[&'static str]) -> Says {
        let (says, rest) = words.split_first().expect("something is said");
        Says {
            says,
            source: (!rest.is_empty()).then(|| Box::new(chain(rest))),
        }
    }

    #[test]
    fn a_cause_is_said_once() {
        for (words, text) in [
            (&["open"][..], "open"),
            (&["open", "no such file"], "open: no such file"),
            (
                &["open: no such file", "no such file"],
                "open: no such file",
            ),
            (&["start", "open", "denied"], "start: open: denied"),
        ] {
            assert_eq!(said(&chain(words)), text);
        }
    }
}
