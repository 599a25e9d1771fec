//! A daemon's memory holds keys: it leaves no copy of itself on a disk.

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// Has the kernel write no core dump of this process, whatever `kernel.core_pattern` says, and let
/// other processes of its user neither read its memory nor trace it (`PR_SET_DUMPABLE`, prctl(2)).
/// A refusal of the kernel is logged, and the daemon works without it.
pub(crate) fn forbid() {
    let limited = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Err(error) = limited.and_then(|()| prctl::set_dumpable(false)) {
        tracing::warn!(%error, "cannot forbid core dumps: a crash may write keys to the disk");
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::getrlimit;

    use super::*;

    #[test]
    fn a_process_that_forbids_core_dumps_is_not_dumped() {
        forbid();
        assert_eq!(prctl::get_dumpable(), Ok(false));
        assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
    }
}
