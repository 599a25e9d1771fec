//! Printing of commands, safe against a reader that closes the pipe early, as `status | head -1`
//! does.
//!
//! `println!` panics then. [`outln!`](crate::outln) drops the output instead, and the command
//! continues to its end, so that its work is not left half done. SIGPIPE stays ignored, as Rust
//! sets it: it would end a daemon through any of its sockets.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
    sync::{Mutex, PoisonError},
};

/// State of standard output.
#[derive(Debug)]
enum Output {
    /// Every write succeeded.
    Open,
    /// The reader closed the pipe.
    Closed,
    /// A write failed, for example because the disk is full.
    Failed(io::Error),
}

static STDOUT: Mutex<Output> = Mutex::new(Output::Open);

/// Prints a line to standard output as `println!` does; returns whether it was written.
#[macro_export]
macro_rules! outln {
    () => {
        $crate::stdout::print("\n")
    };
    ($($text:tt)*) => {
        $crate::stdout::print(::std::format_args!("{}\n", ::std::format_args!($($text)*)))
    };
}

/// Prints a line to standard error as `eprintln!` does; ignores write errors.
#[macro_export]
macro_rules! errln {
    ($($text:tt)*) => {
        $crate::stdout::print_error(::std::format_args!($($text)*))
    };
}

/// Prints to standard output without a line end; returns whether the text was written.
/// After the first failure nothing more is written.
pub fn print(text: impl Display) -> bool {
    let mut output = STDOUT.lock().unwrap_or_else(PoisonError::into_inner);
    write(&mut output, &mut io::stdout().lock(), text)
}

/// Implements [`errln!`](crate::errln).
pub fn print_error(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Reports the first failed write to standard output. Call it at the end of a command.
///
/// # Errors
/// The first write error other than a closed pipe.
pub fn finish() -> io::Result<()> {
    let mut output = STDOUT.lock().unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *output, Output::Closed) {
        Output::Open => {
            *output = Output::Open;
            Ok(())
        }
        Output::Closed => Ok(()),
        Output::Failed(error) => Err(error),
    }
}

fn write(output: &mut Output, out: &mut impl Write, text: impl Display) -> bool {
    if !matches!(output, Output::Open) {
        return false;
    }
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            *output = Output::Closed;
            false
        }
        Err(error) => {
            *output = Output::Failed(error);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_to_a_closed_pipe_is_dropped() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut output = Output::Open;
        assert!(write(&mut output, &mut writer, "one\n"));
        drop(reader);
        assert!(!write(&mut output, &mut writer, "two\n"));
        assert!(matches!(output, Output::Closed));
        let mut other = Vec::new();
        assert!(!write(&mut output, &mut other, "three\n"));
        assert!(other.is_empty(), "nothing is written after a failure");
    }

    #[test]
    fn a_full_disk_is_reported() {
        let mut full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut output = Output::Open;
        assert!(!write(&mut output, &mut full, "one\n"));
        let Output::Failed(error) = output else {
            panic!("{output:?}")
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}
