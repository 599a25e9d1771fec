//! An initramfs with the appliance, a shell and the tools that it needs.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// An archive in the kernel's format `newc` (Documentation/driver-api/early-userspace).
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<PathBuf>,
    inode: u32,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

impl Archive {
    /// Adds a folder, and those above it.
    pub fn folder(&mut self, path: &str) {
        let path = Path::new(path);
        let above: Vec<PathBuf> = path.ancestors().map(Path::to_owned).collect();
        for folder in above.into_iter().rev() {
            if folder.parent().is_some() && self.folders.insert(folder.clone()) {
                self.entry(&folder, FOLDER, &[]);
            }
        }
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        if let Some(folder) = Path::new(path).parent() {
            self.folder(&folder.display().to_string());
        }
        self.entry(Path::new(path), FILE | mode, bytes);
    }

    /// Adds a program of this machine under a name, with the libraries that it is linked with.
    pub fn program(&mut self, path: &str, of: &Path) -> io::Result<()> {
        self.copy(path, of)?;
        let linked = Command::new("ldd").arg(of).output()?;
        let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
        for library in linked
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            if self.folders.insert(PathBuf::from(library)) {
                self.copy(library, Path::new(library))?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, path: &str, of: &Path) -> io::Result<()> {
        let mode = fs::metadata(of)?.permissions().mode() & 0o777;
        let bytes = fs::read(of).map_err(|e| io::Error::other(format!("{}: {e}", of.display())))?;
        self.file(path, mode, &bytes);
        Ok(())
    }

    /// The archive, ended.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(Path::new("/TRAILER!!!"), 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        let name = path.display().to_string();
        let name = name.trim_start_matches('/');
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0, // user
            0, // group
            1, // links
            0, // time
            content.len() as u32,
            0, // device
            0,
            0, // of a device file
            0,
            name.len() as u32 + 1,
            0, // checksum
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}
