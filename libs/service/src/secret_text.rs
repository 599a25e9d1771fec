//! Secrets as they are written in configurations and updates: keys in base64.

use std::fmt;

use gateway_client::wire::is_same;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret as a text. Its drop wipes it, `Debug` does not show it, and comparison takes a time
/// that depends on the length only. It is serialized as the text, for states that are stored or
/// sent.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretText(String);

impl SecretText {
    /// The text. Do not log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl PartialEq for SecretText {
    fn eq(&self, other: &Self) -> bool {
        is_same(self.0.as_bytes(), other.0.as_bytes())
    }
}

impl Eq for SecretText {}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_wiped_by_its_drop<T: ZeroizeOnDrop>(_: &T) {}

    #[test]
    fn a_secret_is_serialized_and_shown_nowhere_else() {
        let secret = SecretText::from("c2VjcmV0".to_owned());
        is_wiped_by_its_drop(&secret);
        assert_eq!(format!("{secret:?}"), "SecretText(hidden)");
        let json = serde_json::to_string(&secret).expect("JSON");
        assert_eq!(json, "\"c2VjcmV0\"");
        let read: SecretText = serde_json::from_str(&json).expect("a text");
        assert_eq!(read, secret);
        let of_file: Vec<SecretText> = toml::from_str::<toml::Table>("keys = [\"c2VjcmV0\"]")
            .expect("TOML")["keys"]
            .clone()
            .try_into()
            .expect("texts");
        assert_eq!(of_file, [secret]);
    }

    #[test]
    fn secrets_are_equal_only_as_a_whole() {
        let secret = |text: &str| SecretText::from(text.to_owned());
        assert_eq!(secret("abc"), secret("abc"));
        for other in ["abd", "bbc", "ab", "abcd", ""] {
            assert_ne!(secret("abc"), secret(other), "{other}");
        }
        let mut wiped = secret("abc");
        wiped.zeroize();
        assert_eq!(wiped.expose(), "");
    }
}
