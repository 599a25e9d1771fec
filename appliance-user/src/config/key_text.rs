//! Keys that an update carries.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Text in the place of a key that is not shown; no key.
const HIDDEN: &str = "(not shown)";

/// A secret key as an update has it: 32 bytes in base64. Its `Debug` does not show it; it is
/// serialized for the state file, and for `desired --keys`.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(Zeroizing<String>);

impl KeyText {
    /// The text, as it was written.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Replaces it by a text that `apply` refuses.
    pub fn hide(&mut self) {
        self.0 = Zeroizing::new(HIDDEN.to_owned());
    }

    /// Why it is no key, without the text; `None`: it is one.
    pub(super) fn problem(&self) -> Option<&'static str> {
        if *self.0 == HIDDEN {
            Some("is not in this document: `causeway-appliance desired --keys` writes it")
        } else if self.0.parse::<tunnel::PresharedKey>().is_err() {
            Some("is not 32 bytes in base64")
        } else {
            None
        }
    }
}

impl Serialize for KeyText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText")
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
