//! What a command prints, to a reader who may leave before the end, as that of `status | head -1` does.
//!
//! `println!` panics then. Here what nobody reads is dropped, and the command goes on to its end: what it was asked for is not left half
//! done. SIGPIPE stays ignored, as Rust has it: it would end a daemon by any of its sockets.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
    sync::{Mutex, PoisonError},
};

/// How printing went so far.
#[derive(Debug)]
enum Went {
    /// All of it was taken.
    Well,
    /// The reader has left.
    Unread,
    /// It could not be written: a full disk, say.
    Failed(io::Error),
}

static STDOUT: Mutex<Went> = Mutex::new(Went::Well);

/// Prints to standard output as `println!` does; whether it was taken.
#[macro_export]
macro_rules! say {
    () => {
        $crate::stdout::print("\n")
    };
    ($($text:tt)*) => {
        $crate::stdout::print(::std::format_args!("{}\n", ::std::format_args!($($text)*)))
    };
}

/// Prints to standard error as `eprintln!` does. Where that cannot be written there is nobody to tell.
#[macro_export]
macro_rules! complain {
    ($($text:tt)*) => {
        $crate::stdout::complain(::std::format_args!($($text)*))
    };
}

/// Prints to standard output, no line's end added; whether it was taken. Once something was not, nothing more is tried.
pub fn print(text: impl Display) -> bool {
    let mut went = STDOUT.lock().unwrap_or_else(PoisonError::into_inner);
    write(&mut went, &mut io::stdout().lock(), text)
}

/// What stands behind [`complain!`](crate::complain).
pub fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// To be asked at the end: whether all was written, or left unread.
///
/// # Errors
/// The first failure of any other kind.
pub fn finish() -> io::Result<()> {
    let mut went = STDOUT.lock().unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *went, Went::Unread) {
        Went::Well => {
            *went = Went::Well;
            Ok(())
        }
        Went::Unread => Ok(()),
        Went::Failed(error) => Err(error),
    }
}

fn write(went: &mut Went, out: &mut impl Write, text: impl Display) -> bool {
    if !matches!(went, Went::Well) {
        return false;
    }
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            *went = Went::Unread;
            false
        }
        Err(error) => {
            *went = Went::Failed(error);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_who_left_does_not_take_is_dropped() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut went = Went::Well;
        assert!(write(&mut went, &mut writer, "one\n"));
        drop(reader);
        assert!(!write(&mut went, &mut writer, "two\n"));
        assert!(matches!(went, Went::Unread));
        let mut other = Vec::new();
        assert!(!write(&mut went, &mut other, "three\n"));
        assert!(other.is_empty(), "nothing more is tried");
    }

    #[test]
    fn a_full_disk_is_told() {
        let mut full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut went = Went::Well;
        assert!(!write(&mut went, &mut full, "one\n"));
        let Went::Failed(error) = went else {
            panic!("{went:?}")
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}
