//! Secrets as they are written in configurations and updates: keys in base64.

use std::fmt;

use gateway_client::wire::is_same;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret as a text. Its drop wipes it, `Debug` does not show it, and comparison takes a time
/// that depends on the length only. It is serialized as the text, for states that are stored or
/// sent.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretText(String);

impl SecretText {
    /// Reads a list of secrets. Serde's own error would show a text that stands in place of the
    /// list, as one key does.
    ///
    /// # Errors
    /// Of the deserializer, without the text.
    pub fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Self>, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Vec<SecretText>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of secrets")
            }

            fn visit_str<E: de::Error>(self, _: &str) -> Result<Self::Value, E> {
                Err(E::custom(
                    "a secret in place of a list of secrets: put it in brackets",
                ))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut secrets = Vec::new();
                while let Some(secret) = list.next_element()? {
                    secrets.push(secret);
                }
                Ok(secrets)
            }
        }
        // Asked for a list, JSON would refuse a text by itself, and show it.
        deserializer.deserialize_any(List)
    }

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
    fn a_secret_in_place_of_a_list_is_refused_and_not_shown() {
        #[derive(Debug, Deserialize)]
        struct Keys {
            #[serde(deserialize_with = "SecretText::list")]
            keys: Vec<SecretText>,
        }
        let refused = [
            serde_json::from_str::<Keys>(r#"{"keys": "c2VjcmV0"}"#).map_err(|e| e.to_string()),
            toml::from_str::<Keys>("keys = \"c2VjcmV0\"").map_err(|e| e.message().to_owned()),
        ];
        for refused in refused {
            let error = refused.expect_err("refused");
            assert!(error.contains("put it in brackets"), "{error}");
            assert!(!error.contains("c2VjcmV0"), "{error}");
        }
        let read = serde_json::from_str::<Keys>(r#"{"keys": ["a", "b"]}"#).expect("a list");
        assert_eq!(read.keys[1].expose(), "b");
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
