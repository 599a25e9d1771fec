//! Files with secrets, which other users must not be able to read: keys, tokens, and
//! configurations that have them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Users that may have access to a file with secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its owner alone.
    Owner,
    /// Its owner and its group, as that of a daemon for a file that belongs to root.
    OwnerAndGroup,
}

impl Access {
    /// Permission bits that the file must not have.
    const fn forbidden(self) -> u32 {
        match self {
            Self::Owner => 0o077,
            Self::OwnerAndGroup => 0o007,
        }
    }

    /// Argument of `chmod` that takes these bits away.
    const fn remedy(self) -> &'static str {
        match self {
            Self::Owner => "600",
            Self::OwnerAndGroup => "o=",
        }
    }
}

/// More users than necessary have access to a file with secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{path} has secrets, and other users can access it (mode {mode:03o}): run `chmod {remedy} \
     {path}`",
    path = path.display(),
    remedy = access.remedy()
)]
pub struct Exposed {
    path: PathBuf,
    /// The permission bits of the file.
    mode: u32,
    access: Access,
}

/// Checks the permissions of a file with secrets. If they cannot be read, the file is not refused
/// here: its contents cannot be read either, and that error names the reason.
///
/// # Errors
/// [`Exposed`] when others than those of `access` can read, write or execute the file.
pub fn check(path: &Path, access: Access) -> Result<(), Exposed> {
    fs::metadata(path).map_or(Ok(()), |data| check_metadata(path, &data, access))
}

/// As [`check`], for a caller that has the metadata of the file.
///
/// # Errors
/// As [`check`].
pub fn check_metadata(path: &Path, data: &fs::Metadata, access: Access) -> Result<(), Exposed> {
    let mode = data.permissions().mode() & 0o777;
    if mode & access.forbidden() == 0 {
        return Ok(());
    }
    Err(Exposed {
        path: path.to_owned(),
        mode,
        access,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_other_users_can_access_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let has = |mode, access| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a file");
            check(&path, access)
        };
        assert_eq!(check(&path, Access::Owner), Ok(()), "there is no file");
        fs::write(&path, "secret").expect("a file");
        assert_eq!(has(0o600, Access::Owner), Ok(()));
        assert_eq!(has(0o640, Access::OwnerAndGroup), Ok(()));
        for (mode, access, remedy) in [
            (0o640, Access::Owner, "600"),
            (0o604, Access::Owner, "600"),
            (0o641, Access::OwnerAndGroup, "o="),
        ] {
            let path = path.display();
            let expected = format!(
                "{path} has secrets, and other users can access it (mode {mode:03o}): run `chmod \
                 {remedy} {path}`"
            );
            let error = has(mode, access).expect_err("exposed");
            assert_eq!(error.to_string(), expected);
        }
    }
}
