//! Error messages for a person.

use std::error::Error;

/// The message of an error and of its causes, joined by `: `.
///
/// A cause whose text the message already contains is left out: many errors here format their
/// source themselves.
#[must_use]
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
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
    #[error("{message}")]
    struct Link {
        message: &'static str,
        source: Option<Box<Link>>,
    }

    fn chain(messages: &[&'static str]) -> Link {
        let (message, rest) = messages.split_first().expect("at least one message");
        Link {
            message,
            source: (!rest.is_empty()).then(|| Box::new(chain(rest))),
        }
    }

    #[test]
    fn each_cause_appears_once() {
        for (messages, text) in [
            (&["open"][..], "open"),
            (&["open", "no such file"], "open: no such file"),
            (
                &["open: no such file", "no such file"],
                "open: no such file",
            ),
            (&["start", "open", "denied"], "start: open: denied"),
        ] {
            assert_eq!(error_chain(&chain(messages)), text);
        }
    }
}
