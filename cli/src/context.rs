//! Contexts: which director a command speaks to, and with which token.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use service::{
    replace::NewFile,
    secret_file::{self, Access},
};

use crate::failure::Failure;

/// One director, and who the user is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Address of the API: `https://HOST[:PORT]`.
    pub server: String,
    /// File with the certificates of authorities that may sign the server's certificate; without
    /// it, those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// API token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Tenant of commands that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// The file of contexts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The context of commands that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Reads the file; none is as an empty one. It has tokens, so that others must not read it.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Failure::local(format!("cannot read {shown}: {error}"))),
        };
        secret_file::check(path, Access::Owner)
            .map_err(|exposed| Failure::local(exposed.to_string()))?;
        toml::from_str(&text).map_err(|error| {
            Failure::local(format!(
                "{shown} cannot be read: {error}; correct or remove it"
            ))
        })
    }

    /// Replaces the file in one step.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::local(format!("cannot write {}: {error}", path.display()))
        };
        let text = toml::to_string(self).map_err(|error| failed(&error))?;
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        fs::create_dir_all(folder).map_err(|error| failed(&error))?;
        // Two commands at once have a new file each.
        let ending = format!(".new.{}", std::process::id());
        let written = NewFile::create_as(path, &ending, 0o600).and_then(|mut new| {
            new.file().write_all(text.as_bytes())?;
            new.commit()
        });
        written.map(drop).map_err(|error| failed(&error))
    }

    /// The context of this name.
    pub fn get(&self, name: &str) -> Result<&Context, Failure> {
        self.contexts.get(name).ok_or_else(|| {
            let known: Vec<_> = self.contexts.keys().map(String::as_str).collect();
            Failure::usage(format!(
                "there is no context {name:?}: {}",
                match known.is_empty() {
                    true => "make it with `causeway context set`".to_owned(),
                    false => format!("use one of {}", known.join(", ")),
                }
            ))
        })
    }
}

/// The file of contexts unless the command line names one.
pub fn default_path() -> Result<PathBuf, Failure> {
    let folder = std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty());
    let folder = folder.map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
        Some(Path::new(&home).join(".config"))
    });
    let folder = folder.ok_or_else(|| {
        Failure::usage("neither HOME nor XDG_CONFIG_HOME is set: write --contexts FILE")
    })?;
    Ok(folder.join("causeway/contexts.toml"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_file_is_private_and_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/contexts.toml");
        assert_eq!(Contexts::load(&path).unwrap(), Contexts::default());
        let context = Context {
            server: "https://d.example".to_owned(),
            token: Some("cwy_1".to_owned()),
            ..Context::default()
        };
        let contexts = Contexts {
            current: Some("lab".to_owned()),
            contexts: BTreeMap::from([("lab".to_owned(), context)]),
        };
        contexts.save(&path).unwrap();
        assert_eq!(Contexts::load(&path).unwrap(), contexts);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        contexts.save(&path).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Contexts::load(&path).unwrap_err().text;
        assert!(error.contains("chmod 600"), "{error}");
        assert!(
            contexts
                .get("prod")
                .unwrap_err()
                .text
                .contains("use one of lab")
        );
    }
}
