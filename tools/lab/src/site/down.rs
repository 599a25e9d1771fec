//! Takes labs down, after any crash too: from their records, and by the names of namespaces.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{mount::umount, sys::signal::Signal};

use super::{
    BPFFS, Lab, PIN_ROOT, RUN_ROOT, TEST_PREFIX, is_bpffs, lock, must_ip, need_root, own,
    recorded_labs,
};
use crate::{
    error::{During as _, Error, Result},
    netns,
    process::Process,
    record::{Entry, Record},
};

impl Lab {
    /// Takes lab `name` down, from its record alone: processes, pins, namespaces, mounts, its run
    /// directory; and namespaces of that name that no record knows. Nothing there is no error.
    ///
    /// # Errors
    /// The first thing that would not go. The rest is taken down nevertheless, and the record
    /// stays, so that it can be tried again.
    pub fn down(name: &str) -> Result<()> {
        need_root()?;
        let run_dir = Path::new(RUN_ROOT).join(name);
        let entries = Record::read(&run_dir)?;
        let mut first = None;
        let mut note = |result: Result<()>| {
            if let Err(e) = result {
                first.get_or_insert(e);
            }
        };

        stop_all(&entries, &mut note);
        for entry in &entries {
            if let Entry::Pins { path } = entry {
                note(remove_pins(path));
            }
        }
        // Pins of a lab whose record was lost.
        note(remove_pins(&Path::new(PIN_ROOT).join(name)));
        let mut namespaces: Vec<String> = entries
            .iter()
            .filter_map(|e| match e {
                Entry::Namespace { name } => Some(name.clone()),
                _ => None,
            })
            .collect();
        let ours = netns::name(name, "");
        namespaces.extend(strays()?.into_iter().filter(|n| n.starts_with(&ours)));
        note(remove_namespaces(namespaces));
        for entry in &entries {
            if let Entry::Mount { path } = entry {
                note(unmount_if_unused(path));
            }
        }
        match first {
            Some(error) => Err(error),
            None => match fs::remove_dir_all(&run_dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(e).during(|| format!("removing {}", run_dir.display()))
                }
                _ => Ok(()),
            },
        }
    }

    /// Takes every lab down, and every namespace with our prefix that no record knows. Returns the
    /// names of the labs.
    ///
    /// # Errors
    /// As [`Lab::down`].
    pub fn down_all() -> Result<Vec<String>> {
        need_root()?;
        let labs = recorded_labs()?;
        for lab in &labs {
            Self::down(lab)?;
        }
        remove_namespaces(strays()?)?;
        Ok(labs)
    }

    /// Takes down every lab of tests ([`TEST_PREFIX`]) that no process uses any more: a test that
    /// was killed left it. Returns their names.
    ///
    /// # Errors
    /// As [`Lab::down`].
    pub fn down_abandoned_tests() -> Result<Vec<String>> {
        need_root()?;
        let mut labs = recorded_labs()?;
        labs.retain(|lab| lab.starts_with(TEST_PREFIX));
        let mut taken = Vec::new();
        for lab in labs {
            match own(&lab) {
                Ok(_claim) => Self::down(&lab)?,
                Err(Error::InUse { .. }) => continue,
                Err(error) => return Err(error),
            }
            taken.push(lab);
        }
        Ok(taken)
    }
}

/// Namespaces with our prefix that no record knows.
fn strays() -> Result<Vec<String>> {
    let mut known = BTreeSet::new();
    for lab in recorded_labs()? {
        for entry in Record::read(&Path::new(RUN_ROOT).join(lab))? {
            if let Entry::Namespace { name } = entry {
                known.insert(name);
            }
        }
    }
    Ok(netns::list()?
        .into_iter()
        .filter(|n| !known.contains(n))
        .collect())
}

fn remove_namespaces(mut names: Vec<String>) -> Result<()> {
    let there: BTreeSet<_> = netns::list()?.into_iter().collect();
    names.sort();
    names.dedup();
    let lines: Vec<_> = names
        .iter()
        .filter(|n| there.contains(*n))
        .map(|n| format!("netns del {n}"))
        .collect();
    if lines.is_empty() {
        return Ok(());
    }
    must_ip(&["-force", "-batch", "-"], Some(&lines.join("\n"))).map(drop)
}

/// SIGTERM to all, SIGKILL to those that are still there after a second and a half.
fn stop_all(entries: &[Entry], note: &mut impl FnMut(Result<()>)) {
    let processes: Vec<_> = entries
        .iter()
        .filter_map(|e| match e {
            Entry::Process { pid, start, .. } => Some(Process {
                pid: *pid,
                start: *start,
            }),
            _ => None,
        })
        .filter(|p| p.is_alive())
        .collect();
    for process in &processes {
        note(process.signal(Signal::SIGTERM));
    }
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until && processes.iter().any(|p| p.is_alive()) {
        thread::sleep(Duration::from_millis(5));
    }
    for process in processes {
        note(process.kill());
    }
}

/// Removes a directory of pins with all below it, and its parents that are empty then.
fn remove_pins(path: &Path) -> Result<()> {
    if !path.starts_with(PIN_ROOT) || path == Path::new(PIN_ROOT) {
        return Ok(());
    }
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).during(|| format!("removing pins {}", path.display()));
        }
        _ => {}
    }
    for parent in path.ancestors().skip(1) {
        // Not empty: another appliance's or lab's.
        if !parent.starts_with(PIN_ROOT) || fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

/// Unmounts a bpffs that a lab mounted, unless it holds other pins by now.
fn unmount_if_unused(path: &Path) -> Result<()> {
    let _lock = lock()?;
    if path != Path::new(BPFFS) || !is_bpffs(path) {
        return Ok(());
    }
    // The kernel's own `maps.debug` and `progs.debug` are in every bpffs.
    let empty = fs::read_dir(path).is_ok_and(|dir| {
        dir.flatten()
            .all(|e| e.file_name().as_encoded_bytes().ends_with(b".debug"))
    });
    if empty {
        // Busy means in use, which is the other reason to leave it.
        let _ = umount(path);
    }
    Ok(())
}
