//! What a panic does to a daemon.

/// Makes a panic of any thread end the process with SIGABRT, after the message is printed.
///
/// A daemon whose worker thread has died alone would look alive and forward nothing. The service
/// manager starts a process that ended. The build profile keeps unwinding, because test programs
/// need it, and programs and tests then share one build of every dependency.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}
