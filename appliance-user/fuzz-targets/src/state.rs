//! The stored state: files of any bytes, and files of an appliance that were changed since.

use std::sync::OnceLock;

use appliance_user::state::{FailoverState, State, TenantMode, assign};
use failover::{NetworkContext, Plan, TenantContext};
use fuzzing::{Input, mutate};

use super::objects::World;

/// Updates of one state at most.
const MAX_UPDATES: usize = 6;
/// Bytes at the front that are changed more often: version and modes.
const HEAD: usize = 64;

/// Reads the input as a file, or as a state that is stored and changes of its file.
pub fn state(data: &[u8]) {
    let mut input = Input::new(data);
    if input.flag() {
        read(input.rest());
        return;
    }
    let changes = input.below(4);
    let written = written(&mut input);
    let mut file = written.to_json().expect("JSON");
    if changes == 0 {
        assert_eq!(read(&file), Some(written), "as it was stored");
        return;
    }
    for _ in 0..changes {
        mutate(&mut input, &mut file, HEAD);
    }
    read(&file);
}

/// Reads a file. A state that it has is written and read again the same.
fn read(file: &[u8]) -> Option<State> {
    let text = std::str::from_utf8(file).ok()?;
    let state = State::from_json(text).ok()?;
    let again = state.to_json().expect("JSON");
    let again = std::str::from_utf8(&again).expect("text");
    assert_eq!(State::from_json(again).as_ref().ok(), Some(&state));
    Some(state)
}

/// A plan of a full failover.
fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| {
        let net = |text: &str| text.parse().expect("a prefix");
        let tenant = TenantContext {
            name: "acme".to_owned(),
            allocation: vec![net("203.0.113.16/28")],
            nat_addresses: Vec::new(),
            reserved: Vec::new(),
            networks: vec![NetworkContext {
                name: "net1".to_owned(),
                prefixes: vec![net("10.1.0.0/24")],
                gateways: vec!["10.1.0.1".parse().expect("an address")],
                excluded: false,
            }],
            other_networks: Vec::new(),
        };
        let text = "name = \"dr\"\ntenant = \"acme\"\n[[network]]\nname = \"net1\"\n\
            internet = true\n[[rule]]\nname = \"web\"\npublic_ip = \"203.0.113.20\"\n\
            public_port = 443\ninternal_ip = \"10.1.0.10\"\n";
        Plan::parse(text, &tenant).expect("a plan")
    })
}

/// A state that the input selects.
fn written(input: &mut Input<'_>) -> State {
    let mut state = State {
        maintenance: input.flag(),
        nat_seed: input.flag().then(|| input.u32()),
        ..State::default()
    };
    for n in 0..input.below(4) {
        let failover = match input.below(3) {
            0 => FailoverState::Idle,
            1 => FailoverState::Partial,
            _ => FailoverState::Full(Box::new(plan().clone())),
        };
        let epoch = input.u32();
        let mode = TenantMode { failover, epoch };
        state.modes.insert(format!("o{n}"), mode);
    }
    for n in 0..input.below(4) {
        let addresses = (0..input.below(4)).map(|_| input.array::<4>().into());
        state.endpoints.insert(format!("o{n}"), addresses.collect());
    }
    state.assign_rule_slots();
    assign(&mut state.slots.tenants, &["o0", "o1"], 8);
    let mut world = World::default();
    for _ in 0..MAX_UPDATES {
        if input.is_empty() {
            break;
        }
        world.step(input);
    }
    if world.desired.revision > 0 {
        state.desired = Some(Box::new(world.desired));
    }
    state
}
