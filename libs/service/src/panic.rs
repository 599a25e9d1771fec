//! A panic ends the daemon.

/// Makes a panic of any thread end the process with SIGABRT, after the message is printed.
///
/// A daemon without one of its worker threads would look alive and forward nothing; the service
/// manager restarts a process that has ended. The build profile keeps unwinding, because test
/// programs need it, and programs and tests then share one build of every dependency.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}
