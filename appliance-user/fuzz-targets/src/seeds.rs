//! Inputs to begin with: updates and states that get somewhere.
//!
//! `appliance-user/tests/corpus.rs` writes them to `seeds/` and sees that they stay as made here.

/// A seed: its target, its name, its bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// Every seed.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut all = objects();
    all.extend(states());
    all
}

/// Objects of an update: kind, number, and two choices.
const TENANT: [u8; 4] = [0, 1, 20, 0];
const GATEWAY: [u8; 4] = [1, 0, 0, 7];
const PEER: [u8; 4] = [2, 2, 0, 9];
const NETWORK: [u8; 4] = [3, 0, 1, 2];

/// A snapshot of the objects before and these, of the next revision, or a delta.
fn update(kind: u8, put: &[[u8; 4]], remove: &[[u8; 2]]) -> Vec<u8> {
    let head = match kind {
        1 => &[1, 3, 3, 1, 1][..],
        _ => &[kind, 3, 3, 1],
    };
    let put = [&[put.len() as u8], put.as_flattened()].concat();
    let remove = [&[remove.len() as u8], remove.as_flattened()].concat();
    [head, &put, &remove].concat()
}

fn several() -> Vec<u8> {
    [
        update(1, &[TENANT, GATEWAY, PEER, NETWORK], &[]),
        update(4, &[[0, 3, 21, 0]], &[]),
        update(4, &[], &[[3, 0]]),
    ]
    .concat()
}

fn objects() -> Vec<Seed> {
    let choices = |steps: &[Vec<u8>]| [vec![0], steps.concat()].concat();
    let tenants = |from: u8, to: u8| -> Vec<[u8; 4]> { (from..to).map(|n| [0, n, n, 0]).collect() };
    let text = concat!(
        "\x01",
        r#"{"snapshot":{"revision":7,"#,
        r#""objects":{"tenants":{"acme":{"public":["203.0.113.16/28"]}},"#,
        r#""peers":{"p":{"public_key":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","#,
        r#""address":"203.0.113.5:6180"}},"networks":{"n":{"tenant":"acme","peer":"p","vni":1001,"#,
        r#""interface":"eth1","prefixes":["10.1.0.0/24"]}}}}}"#,
        "\n",
        r#"{"delta":{"base":7,"revision":8,"remove":{"networks":["n"]}}}"#,
        "\n"
    );
    vec![
        ("objects", "as-json", text.into()),
        ("objects", "of-every-kind", choices(&[several()])),
        ("objects", "an-older-one", choices(&[several(), vec![0, 0]])),
        (
            "objects",
            "the-same-again",
            choices(&[several(), vec![0, 2]]),
        ),
        (
            "objects",
            "a-peer-that-is-used-is-removed",
            choices(&[
                update(1, &[TENANT, PEER, NETWORK], &[]),
                update(4, &[], &[[2, 2]]),
            ]),
        ),
        (
            "objects",
            "most-tenants-are-removed",
            choices(&[
                update(1, &tenants(0, 11), &[]),
                update(4, &[], &[[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5]]),
            ]),
        ),
    ]
}

fn states() -> Vec<Seed> {
    let raw = |text: &str| [b"\x01", text.as_bytes()].concat();
    let oldest = concat!(
        r#"{"version":1,"modes":{"a":{"partial":true,"epoch":3}},"#,
        r#""endpoints":{"n":["10.1.0.10"]},"#,
        r#""slots":{"tenants":{"a":0},"peers":{},"networks":{}}}"#,
    );
    // Maintenance, a seed, three modes, a network with an address.
    let modes = [
        1, 1, 0, 0, 0, 7, 3, 0, 0, 0, 0, 1, 1, 0, 0, 0, 2, 2, 0, 0, 0, 9, 1, 1, 10, 1, 0, 10,
    ];
    let written = |changes: u8, rest: &[u8]| [&[0, changes], &modes[..], rest].concat();
    vec![
        ("state", "of-the-first-version", raw(oldest)),
        ("state", "of-a-newer-version", raw(r#"{"version":9}"#)),
        ("state", "cut-off", raw(&oldest[..60])),
        ("state", "written", written(0, &several())),
        (
            "state",
            "written-and-changed",
            written(2, &[&several()[..], &[1, 90, 0, 3, 0, 12, 4, 50]].concat()),
        ),
    ]
}
