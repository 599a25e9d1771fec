//! A switch of a tenant's mode: from the present state and the goal to the new state. Pure.

use failover::{
    Plan,
    mode::{self, Circumstances, Endpoints, Goal, Kind, Request, decide},
};
use tunnel::Random;

use crate::{
    config::Config,
    state::{FailoverState, State, TenantMode},
};

/// The switch that an operator asks for. The tenant's name is in the [`Circumstances`].
pub(in crate::daemon) struct SwitchRequest {
    /// The mode to switch to.
    pub goal: Goal,
    /// The plan of a full failover.
    pub plan: Option<Plan>,
    /// A partial failover may be ended for a full one.
    pub force: bool,
}

/// The result of a switch.
#[derive(Debug)]
pub(in crate::daemon) struct Switch {
    /// The new state.
    pub state: State,
    /// The kind of switch.
    pub kind: Kind,
    /// The differences in the plan of a full failover that goes on, a line each; empty: none.
    pub changes: Vec<String>,
}

impl Switch {
    /// Whether the switch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.kind == Kind::Stay || (self.kind == Kind::Update && self.changes.is_empty())
    }
}

/// The state after a switch.
///
/// # Errors
/// The refusal of the crate `failover`.
pub(in crate::daemon) fn switch(
    config: &Config,
    state: &State,
    asked: SwitchRequest,
    circumstances: &Circumstances,
    random: &mut impl Random,
) -> Result<Switch, mode::ModeRefusal> {
    let tenant = circumstances.tenant.as_str();
    let now = state.modes.get(tenant);
    let failover = now.map_or(FailoverState::Idle, |mode| mode.failover.clone());
    let SwitchRequest { goal, plan, force } = asked;
    let step = decide(failover.state(), Request { goal, force }, circumstances)?;
    let mut switch = Switch {
        state: state.clone(),
        kind: step.kind,
        changes: match (failover.plan(), &plan, step.kind) {
            (Some(old), Some(new), Kind::Update) => old.diff(new),
            _ => Vec::new(),
        },
    };
    if switch.is_empty() {
        return Ok(switch);
    }
    // A new epoch makes earlier connections stale; those of a plan that changes go on.
    let epoch = match (now, step.kind) {
        (Some(now), Kind::Update) => now.epoch,
        (Some(now), _) => next_epoch(now.epoch),
        (None, _) => first_epoch(random),
    };
    let was_partial = failover == FailoverState::Partial;
    let before = failover;
    let failover = match (step.mode, plan) {
        (mode::State::Full { .. }, Some(plan)) => FailoverState::Full(Box::new(plan)),
        (mode::State::Partial, _) => FailoverState::Partial,
        (mode::State::Idle | mode::State::Full { .. }, _) => FailoverState::Idle,
    };
    // `mode idle` after a partial failover leaves the addresses, which are removed one by one.
    let clears = step.endpoints == Endpoints::Clear && !(step.kind == Kind::Undo && was_partial);
    let new = &mut switch.state;
    if config.tenant(tenant).is_some() {
        if clears {
            for network in config.networks.iter().filter(|n| n.tenant == tenant) {
                new.endpoints.remove(&network.name);
            }
        }
        let mode = TenantMode { failover, epoch };
        new.modes.insert(tenant.to_owned(), mode);
    } else {
        // The tenant is no longer configured, and only the plan knows its networks.
        let networks = before.plan().into_iter().flat_map(Plan::networks);
        for network in networks.filter(|n| config.network(n.name()).is_none()) {
            new.endpoints.remove(network.name());
        }
        new.modes.remove(tenant);
    }
    Ok(switch)
}

/// The epoch of a tenant's first switch, at random in 32 bits: the maps may hold connections from
/// before the state file was moved away, or of another tenant that had the slot, and their epochs
/// can then be hit by chance only. Never zero, which is the outside's epoch.
fn first_epoch(random: &mut impl Random) -> u32 {
    next_epoch(random.u64() as u32)
}

/// The next epoch. Epochs repeat after 2^32 switches, when no connection of the first is left.
const fn next_epoch(epoch: u32) -> u32 {
    match epoch.wrapping_add(1) {
        0 => 1,
        next => next,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const CONFIG: &str = r#"
[appliance]
name = "provider"
role = "provider"
[uplink]
interface = "eth0"
[[tenant]]
name = "acme"
public = ["203.0.113.16/28"]
[[peer]]
name = "a"
kind = "vxlan"
address = "198.51.100.5"
[[network]]
name = "net1"
tenant = "acme"
peer = "a"
vni = 1001
interface = "eth1"
prefixes = ["10.1.0.0/24"]
gateway = ["10.1.0.1"]
"#;
    const PLAN: &str = "name = \"dr\"\ntenant = \"acme\"\n[[network]]\nname = \"net1\"\n\
        internet = true\n[[rule]]\nname = \"web\"\npublic_ip = \"203.0.113.20\"\n\
        public_port = 443\ninternal_ip = \"10.1.0.10\"\n";

    /// Gives the same bytes again and again.
    struct Fixed([u8; 8]);

    impl Random for Fixed {
        fn fill(&mut self, out: &mut [u8]) {
            for (to, from) in out.iter_mut().zip(self.0.iter().cycle()) {
                *to = *from;
            }
        }
    }

    fn config() -> Config {
        Config::parse(CONFIG, Path::new("t")).expect("good")
    }

    fn plan(text: &str) -> Plan {
        Plan::parse(text, &config().tenant_of("acme").expect("a tenant")).expect("a plan")
    }

    fn ask(
        config: &Config,
        state: &State,
        goal: Goal,
        plan: Option<Plan>,
    ) -> Result<Switch, mode::ModeRefusal> {
        let circumstances = Circumstances {
            tenant: "acme".to_owned(),
            ..Circumstances::default()
        };
        let asked = SwitchRequest {
            goal,
            plan,
            force: false,
        };
        let mut random = Fixed(0x1234_5677_u64.to_le_bytes());
        switch(config, state, asked, &circumstances, &mut random)
    }

    fn to_full(state: &State, plan: &Plan) -> Result<Switch, mode::ModeRefusal> {
        let name = plan.name().to_owned();
        let goal = Goal::Full { plan: name };
        ask(&config(), state, goal, Some(plan.clone()))
    }

    #[test]
    fn reapplying_a_plan_changes_and_reports_the_differences() {
        let full = to_full(&State::default(), &plan(PLAN)).expect("a switch");
        assert_eq!((full.kind, full.changes.len()), (Kind::Begin, 0));
        let again = to_full(&full.state, &plan(PLAN)).expect("the same");
        assert!(again.is_empty());
        assert_eq!(again.state, full.state);

        let other = PLAN
            .replace("internet = true", "internet = false")
            .replace("443", "8443")
            + "[[rule]]\nname = \"dns\"\npublic_ip = \"203.0.113.20\"\npublic_port = 53\n\
               internal_ip = \"10.1.0.11\"\nprotocol = \"udp\"\n";
        let changed = to_full(&full.state, &plan(&other)).expect("a change");
        assert_eq!(changed.kind, Kind::Update);
        assert!(!changed.is_empty());
        assert_eq!(
            changed.changes,
            [
                "network \"net1\": changed: gateway 10.1.0.1, no internet, router advertisements, \
                 was gateway 10.1.0.1, internet, router advertisements",
                "rule \"dns\": added: 203.0.113.20:53/udp -> 10.1.0.11:53",
                "rule \"web\": changed: 203.0.113.20:8443/tcp -> 10.1.0.10:8443, was \
                 203.0.113.20:443/tcp -> 10.1.0.10:443",
            ]
        );
        // In one step, and connections that it does not concern go on.
        let mode = |s: &Switch| s.state.modes["acme"].clone();
        assert_eq!(mode(&changed).failover.plan(), Some(&plan(&other)));
        assert_eq!(mode(&changed).epoch, mode(&full).epoch);

        let another = plan(&other.replace("name = \"dr\"", "name = \"test\""));
        let refused = to_full(&changed.state, &another).expect_err("another plan");
        assert_eq!(
            refused.to_string(),
            "tenant \"acme\": the full failover of plan \"dr\" is active, so plan \"test\" cannot \
             be applied: end it first (`mode idle`), or apply plan \"dr\" again to change its \
             rules"
        );
    }

    #[test]
    fn epochs_begin_at_random_and_count_up() {
        let first = to_full(&State::default(), &plan(PLAN)).expect("a switch");
        assert_eq!(first.state.modes["acme"].epoch, 0x1234_5678);
        let idle = ask(&config(), &first.state, Goal::Idle, None).expect("a switch");
        assert_eq!(idle.state.modes["acme"].epoch, 0x1234_5679);
        let mut state = idle.state;
        state.modes.get_mut("acme").expect("a mode").epoch = u32::MAX;
        let around = to_full(&state, &plan(PLAN)).expect("a switch");
        assert_eq!(around.state.modes["acme"].epoch, 1);
        // Whatever is drawn, it is not the outside's.
        assert_eq!(first_epoch(&mut Fixed([0xff; 8])), 1);
    }

    #[test]
    fn failover_of_a_removed_tenant_can_be_undone() {
        let full = to_full(&State::default(), &plan(PLAN)).expect("a switch");
        let mut state = full.state;
        let address = "10.1.0.10".parse().expect("an address");
        for network in ["net1", "net9"] {
            state
                .endpoints
                .entry(network.to_owned())
                .or_default()
                .insert(address);
        }
        let text = CONFIG.replace("acme", "globex").replace("net1", "net9");
        let without = Config::parse(&text, Path::new("t")).expect("good");
        let undone = ask(&without, &state, Goal::Idle, None).expect("a switch");
        assert_eq!(undone.kind, Kind::Undo);
        assert!(undone.state.modes.is_empty());
        let left: Vec<&String> = undone.state.endpoints.keys().collect();
        assert_eq!(left, ["net9"], "another tenant's");
    }
}
