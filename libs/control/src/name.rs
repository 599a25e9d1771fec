//! Names of objects, and texts of other systems.

/// Longest description, characters; whether a text is one. Plans and rules have the same.
pub(crate) use failover::{MAX_DESCRIPTION as DESCRIPTION, is_description};

/// Longest name of an object, characters.
pub(crate) const NAME: usize = 32;
/// Most entries of a list that has no smaller bound of its own.
pub(crate) const LIST: usize = 256;
/// How long a list may be.
pub(crate) const LIST_RULE: &str = "write at most 256";
/// Longest name that another system gave, such as a switch or a virtual machine, characters.
pub(crate) const FOREIGN_NAME: usize = 128;

/// Names of objects, as a regular expression.
pub const NAME_PATTERN: &str = "^[a-z0-9][a-z0-9-]{0,31}$";
/// How to write a name.
pub const NAME_RULE: &str = "write 1 to 32 characters of a to z, 0 to 9 and '-', the first \
                                    a letter or a digit";
/// How to write a name that another system gave.
pub(crate) const FOREIGN_RULE: &str =
    "write 1 to 128 characters without control characters, and without spaces at both ends";
/// How to write a description.
pub(crate) const DESCRIPTION_RULE: &str = "write at most 256 characters, on one line";

/// Whether this is a name of an object. Appliances accept the same names in their configuration.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=NAME).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('-')
}

/// Whether this is a name that another system may have given.
pub(crate) fn is_foreign_name(name: &str) -> bool {
    (1..=FOREIGN_NAME).contains(&name.chars().count())
        && name.trim() == name
        && !name.chars().any(char::is_control)
}

/// The name as one segment of a key: without `/`.
pub(crate) fn segment(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_few_characters() {
        for good in ["a", "edge-1", "0", "a--b", &"x".repeat(32)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", "A", "a b", "a/b", "a.b", "ä", &"x".repeat(33)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn names_of_other_systems_are_printable() {
        for good in [
            "vSwitch0",
            "VM Network",
            "Schalter Süd",
            "a/b",
            &"ü".repeat(128),
        ] {
            assert!(is_foreign_name(good), "{good}");
        }
        for bad in ["", " a", "a ", "a\nb", &"x".repeat(129)] {
            assert!(!is_foreign_name(bad), "{bad}");
        }
    }

    #[test]
    fn different_names_have_different_segments() {
        assert_eq!(segment("a/b"), "a%2Fb");
        assert_eq!(segment("a%2Fb"), "a%252Fb");
    }
}
