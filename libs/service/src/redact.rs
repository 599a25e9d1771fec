//! Takes secrets out of what is shown or sent: by the name of a setting, and by the form of keys,
//! tokens and private keys in any text.

use serde_json::Value;

/// Stands in place of a secret.
pub const REMOVED: &str = "(removed)";

/// Settings whose values are secrets, whatever their form.
const SECRET_NAMES: [&str; 7] = [
    "key",
    "keys",
    "password",
    "preshared_key",
    "private_key",
    "psk",
    "secret",
];
/// Settings with values of the form of a key that are no secrets.
const PUBLIC_NAMES: [&str; 2] = ["fingerprint", "public_key"];

/// Characters of 32 bytes in base64 (RFC 4648 section 4), without the padding.
const KEY_LEN: usize = 43;
/// Characters of 32 bytes in hexadecimal.
const HEX_KEY_LEN: usize = 64;
/// Tokens of the director and of enrolments begin so.
const TOKEN_PREFIXES: [&str; 2] = ["cwy-", "cwy_"];

/// Takes the secrets out of a value of JSON, in objects and arrays of any depth.
pub fn value(value: &mut Value) {
    match value {
        Value::String(string) => *string = text(string),
        Value::Array(values) => values.iter_mut().for_each(self::value),
        Value::Object(fields) => {
            for (name, field) in fields {
                let name = name.as_str();
                if SECRET_NAMES.contains(&name) {
                    remove(field);
                } else if !(PUBLIC_NAMES.contains(&name) && is_text(field)) {
                    self::value(field);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Whether a value is a text, or a list of texts.
fn is_text(value: &Value) -> bool {
    let list = value.as_array();
    value.is_string() || list.is_some_and(|list| list.iter().all(Value::is_string))
}

/// Removes a secret, or each of a list or table.
fn remove(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(remove),
        Value::Object(fields) => fields.values_mut().for_each(remove),
        Value::Null => {}
        Value::Bool(_) | Value::Number(_) | Value::String(_) => *value = REMOVED.into(),
    }
}

/// The text without keys (32 bytes in base64 or hexadecimal), tokens and private keys in PEM (RFC
/// 7468). Hashes of 32 bytes have the form of keys, and are removed as well.
pub fn text(text: &str) -> String {
    let text = without_private_keys(text);
    let bytes = text.as_bytes();
    let mut redacted = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = bytes[at..].iter().take_while(|b| is_word(**b)).count();
        if length == 0 {
            // Whole characters, which may have several bytes.
            let next = text[at..].chars().next().map_or(1, char::len_utf8);
            redacted.push_str(&text[at..at + next]);
            at += next;
            continue;
        }
        let word = &text[at..at + length];
        at += length;
        let padding = bytes[at..].iter().take_while(|b| **b == b'=').count();
        let rest = bytes.get(at).copied();
        if is_key(word, padding) {
            redacted.push_str(REMOVED);
            at += padding;
        } else if let Some(begin) = token_in(word, rest) {
            redacted.push_str(&word[..begin]);
            redacted.push_str(REMOVED);
            at += bytes[at..]
                .iter()
                .take_while(|b| is_word(**b) || **b == b'.')
                .count();
        } else {
            redacted.push_str(word);
        }
    }
    redacted
}

/// Whether a byte is of the alphabets of base64 and base64url.
const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}

/// Whether a word, with this number of `=` behind it, ends as a key does: other letters may touch
/// it at the begin, as in `key=KEY` or `path/KEY`.
fn is_key(word: &str, padding: usize) -> bool {
    let base64 = padding >= 1 && word.len() >= KEY_LEN;
    let hex = |byte: u8| byte.is_ascii_hexdigit();
    let mut digits = 0;
    let has_hex = word.bytes().any(|byte| {
        digits = if hex(byte) { digits + 1 } else { 0 };
        digits == HEX_KEY_LEN
    });
    base64 || has_hex
}

/// Where a token begins in a word, `rest` being the byte behind the word.
fn token_in(word: &str, rest: Option<u8>) -> Option<usize> {
    let begins = TOKEN_PREFIXES.iter().filter_map(|prefix| word.find(prefix));
    let begin = begins.min()?;
    (rest == Some(b'.') || word.len() - begin > 20).then_some(begin)
}

/// The text without the contents of private keys in PEM. One without an end is removed up to the
/// end of the text.
fn without_private_keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    const PRIVATE: &str = "PRIVATE KEY-----";
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let (before, block) = rest.split_at(begin);
        redacted.push_str(before);
        let line = block.lines().next().unwrap_or_default();
        if !line.contains(PRIVATE) {
            redacted.push_str(BEGIN);
            rest = &block[BEGIN.len()..];
            continue;
        }
        redacted.push_str(REMOVED);
        let contents = &block[line.find(PRIVATE).unwrap_or_default() + PRIVATE.len()..];
        rest = match contents.find(PRIVATE) {
            Some(end) => &contents[end + PRIVATE.len()..],
            None => "",
        };
    }
    redacted.push_str(rest);
    redacted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "EpWd0K9XY53Z7dezjLgO+nyKnOCMcQXnGRWmf1/Y9vc=";
    const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

    #[test]
    fn keys_and_tokens_are_removed_from_any_text() {
        for (before, after) in [
            (format!("key {KEY}, next"), "key (removed), next".to_owned()),
            (format!("\"{HEX}\""), "\"(removed)\"".to_owned()),
            (format!("id=x/{KEY}"), "id=(removed)".to_owned()),
            (
                "token cwy-enrol1.AbC_-9.x end".to_owned(),
                "token (removed) end".to_owned(),
            ),
            (
                "cwy_0123456789abcdefghijk".to_owned(),
                "(removed)".to_owned(),
            ),
            (
                r"/x/cwy-enrol1.AbC \ncwy-enrol1.AbC".to_owned(),
                r"/x/(removed) \n(removed)".to_owned(),
            ),
        ] {
            assert_eq!(text(&before), after, "{before}");
        }
    }

    #[test]
    fn other_text_is_kept() {
        for kept in [
            "2026-12-01T10:00:00.123456+00:00 host causeway-appliance[1]: ready: über 3 Netze",
            "/usr/lib/systemd/system/causeway-appliance.service.d/very/long/path",
            "circuit 3f9a1c0277d1e05b of 2001:db8::1",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            "",
        ] {
            assert_eq!(text(kept), kept);
        }
    }

    #[test]
    fn private_keys_in_pem_are_removed() {
        let pem = "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----";
        assert_eq!(text(&format!("a\n{pem}\nb")), "a\n(removed)\nb");
        let cut = "a -----BEGIN PRIVATE KEY-----\nMHcC";
        assert_eq!(text(cut), "a (removed)");
    }

    #[test]
    fn values_are_removed_by_the_name_of_their_setting() {
        let mut settings = json!({
            "preshared_key": "short",
            "public_key": KEY,
            "circuit": [{"keys": ["one", "two"], "tenant": "acme", "note": KEY}],
            "private_key_file": "/etc/causeway/private.key",
            "token": "/etc/causeway/token",
            "fingerprint": [KEY, KEY],
            "key": {"nested": 5},
        });
        value(&mut settings);
        let expected = json!({
            "preshared_key": REMOVED,
            "public_key": KEY,
            "circuit": [{"keys": [REMOVED, REMOVED], "tenant": "acme", "note": REMOVED}],
            "private_key_file": "/etc/causeway/private.key",
            "token": "/etc/causeway/token",
            "fingerprint": [KEY, KEY],
            "key": {"nested": REMOVED},
        });
        assert_eq!(settings, expected);
    }
}
