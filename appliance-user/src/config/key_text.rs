//! Keys that an update carries.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use service::SecretText;

/// Text in the place of a key that is not shown; no key.
const HIDDEN: &str = "(not shown)";

/// A secret key as an update has it: 32 bytes in base64. It is serialized for the state file, and
/// for `desired --keys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyText(SecretText);

impl KeyText {
    /// The text, as it was written.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// Replaces it by a text that `apply` refuses.
    pub fn hide(&mut self) {
        self.0 = HIDDEN.to_owned().into();
    }

    /// Why it is no key, without the text; `None`: it is one.
    pub(super) fn problem(&self) -> Option<&'static str> {
        if self.expose() == HIDDEN {
            Some("is not in this document: `causeway-appliance desired --keys` writes it")
        } else if self.expose().parse::<tunnel::PresharedKey>().is_err() {
            Some("is not 32 bytes in base64")
        } else {
            None
        }
    }
}

/// Where a key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file of the machine.
    File(PathBuf),
    /// The update itself.
    Given(KeyText),
}
