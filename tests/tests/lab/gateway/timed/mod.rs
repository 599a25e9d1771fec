//! Times of a gateway with circuits: each test runs alone.

mod scale;

use super::*;

#[test]
fn circuits_are_restored_within_a_second_of_a_kill() {
    let Some(mut site) = Site::raise() else {
        return;
    };
    site.write(&[1], NATIVE, "");
    site.start();
    let [mut a, mut b] = site.bound_ends(1);
    site.signal(Signal::SIGKILL);
    // The kernel detached the program.
    a.send(b"dropped");
    assert_eq!(b.receive(), None);
    let begun = Instant::now();
    site.start();
    let ready = Instant::now();
    a.bind();
    b.bind();
    talk(&a, &b, 1);
    let (starting, binding) = (ready - begun, ready.elapsed());
    println!("ready after {starting:?}, bound and talking {binding:?} later");
    assert!(
        binding < Duration::from_secs(1),
        "{starting:?} and {binding:?}"
    );
    talk(&a, &b, 9);
    assert_eq!(site.carried(1), ([10; 2], [10; 2]));
}
