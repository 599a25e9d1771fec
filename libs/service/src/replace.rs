//! Files that are replaced as a whole: they have the old contents or the new ones, never a part,
//! also if the power fails.
//!
//! ```text
//!   create ─▶ new file in the same folder ─ write, fsync ─▶ rename ─▶ fsync of the folder
//!                └─ dropped: removed; the old file stays
//! ```
//!
//! Each fsync waits for the disk, which may take seconds. A thread with deadlines leaves that to
//! another one; [`forbid_on_this_thread`] finds those that do not.

use std::{
    cell::Cell,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

thread_local! {
    /// Whether this thread must not wait for the disk.
    static IS_FORBIDDEN: Cell<bool> = const { Cell::new(false) };
    /// How often it did.
    static VIOLATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Declares that this thread has deadlines: from now on, each wait for the disk here is logged as
/// an error, which the tests of daemons do not accept.
pub fn forbid_on_this_thread() {
    IS_FORBIDDEN.set(true);
}

/// To be called before each fsync.
fn wait_begins(path: &Path) {
    if IS_FORBIDDEN.get() {
        VIOLATIONS.set(VIOLATIONS.get() + 1);
        tracing::error!(
            path = %path.display(),
            "a thread with deadlines waits for the disk: please report this defect"
        );
    }
}

/// Replaces a file, and returns once it is on the disk. It has this mode, less the umask.
///
/// # Errors
/// That of the kernel. Unless it was the fsync of the folder, the old file is still in place.
pub fn replace(path: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
    let mut new = NewFile::create(path, mode)?;
    new.file().write_all(contents)?;
    new.commit().map(drop)
}

/// Renames a file that is on the disk, and returns once its new name is, too.
///
/// # Errors
/// That of the kernel.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder_of(to)
}

/// Returns once the name of the file is on the disk.
///
/// # Errors
/// That of the kernel.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    wait_begins(path);
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// A file that is to replace another. Dropped, it is removed.
#[derive(Debug)]
#[must_use]
pub struct NewFile {
    file: File,
    temporary: Temporary,
    path: PathBuf,
}

/// The path of a file that is removed in the end, unless it was renamed.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl NewFile {
    /// A file with this mode, less the umask, in place of one that an earlier process left behind.
    /// It has the name of the other with `.new` behind it: one process at a time may replace a
    /// file.
    ///
    /// # Errors
    /// That of the kernel.
    pub fn create(path: &Path, mode: u32) -> io::Result<Self> {
        Self::create_as(path, ".new", mode)
    }

    /// The same with another ending, such as one with the number of the process.
    ///
    /// # Errors
    /// That of the kernel.
    pub fn create_as(path: &Path, ending: &str, mode: u32) -> io::Result<Self> {
        let mut temporary = OsString::from(path);
        temporary.push(ending);
        let temporary = PathBuf::from(temporary);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // A file that others could open before would keep its mode.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        Ok(Self {
            file,
            temporary: Temporary {
                path: temporary,
                renamed: false,
            },
            path: path.to_owned(),
        })
    }

    /// For writing.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Returns once what was written is on the disk, under the temporary name.
    ///
    /// # Errors
    /// That of the kernel.
    pub fn sync(&self) -> io::Result<()> {
        wait_begins(&self.path);
        self.file.sync_all()
    }

    /// Gives the file its name in place of the other, after [`sync`](Self::sync). A loss of power
    /// may bring the old one back until [`sync_folder_of`] returns.
    ///
    /// # Errors
    /// That of the kernel; the old file is still in place.
    pub fn rename(mut self) -> io::Result<File> {
        fs::rename(&self.temporary.path, &self.path)?;
        self.temporary.renamed = true;
        Ok(self.file)
    }

    /// Replaces the other file, and returns once that is on the disk.
    ///
    /// # Errors
    /// That of the kernel. Unless it was the fsync of the folder, the old file is still in place.
    pub fn commit(self) -> io::Result<File> {
        self.sync()?;
        let path = self.path.clone();
        let file = self.rename()?;
        sync_folder_of(&path)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let name = |entry: io::Result<fs::DirEntry>| {
            let name = entry.expect("an entry").file_name();
            name.into_string().expect("a name")
        };
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_is_left() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.json");
        fs::write(&path, "old").expect("written");
        // An earlier process left it, open for all.
        let left = dir.path().join("a.json.new");
        fs::write(&left, "a longer text").expect("written");
        replace(&path, 0o600, b"new").expect("replaced");
        assert_eq!(fs::read_to_string(&path).expect("a file"), "new");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn a_thread_with_deadlines_that_waits_for_the_disk_is_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a");
        let waits = |forbid: bool| {
            let path = path.clone();
            let thread = std::thread::spawn(move || {
                if forbid {
                    forbid_on_this_thread();
                }
                let new = NewFile::create(&path, 0o600).expect("a file");
                new.rename().expect("renamed");
                let before = VIOLATIONS.get();
                replace(&path, 0o600, b"new").expect("replaced");
                (before, VIOLATIONS.get())
            });
            thread.join().expect("no panic")
        };
        assert_eq!(waits(true), (0, 2), "the file and its folder");
        assert_eq!(waits(false), (0, 0));
    }

    #[test]
    fn the_old_file_stays_until_the_commit() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a");
        fs::write(&path, "old").expect("written");
        let mut new = NewFile::create_as(&path, ".new.7", 0o600).expect("a file");
        new.file().write_all(b"new").expect("written");
        assert_eq!(names(dir.path()), ["a", "a.new.7"]);
        drop(new);
        assert_eq!(names(dir.path()), ["a"]);
        assert_eq!(fs::read_to_string(&path).expect("a file"), "old");
        // A folder cannot be replaced by a file: that fails, and leaves nothing behind.
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).expect("a folder");
        assert!(replace(&folder, 0o600, b"new").is_err());
        assert_eq!(names(dir.path()), ["a", "folder"]);
    }
}
