//! The order of a tenant's modes: which mode may follow which, and the steps of each switch.
//!
//! ```text
//!                              undo
//!        ┌────────────────────────────────────────────────┐
//!        ▼             partial                            │
//!      Idle ─────────────────────────────────────────▶ Partial
//!       ▲ │                                             │   │
//!       │ │                                     promote │   │ full, forced
//!       │ │                              endpoints kept │   │ endpoints cleared, flows flushed
//!       │ │             full                            ▼   ▼
//!       │ └─────────────────────────────────────────────▶ Full ──┐
//!       │                      undo                        │ ▲   │ full, the same plan: changed
//!       └──────────────────────────────────────────────────┘ └───┘
//! ```
//!
//! There is one kind of failover at a time: no arrow leads from Full to Partial, forced or not.
//! Maintenance, and an appliance that is not ready, refuse requests that begin a failover (partial,
//! full, promote), and no others: an active failover can be undone, and its plan changed, in any
//! state of the appliances.

/// Mode of a tenant's networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No failover.
    #[default]
    Idle,
    /// Partial site failover: some machines have failed over.
    Partial,
    /// Full site failover: all machines have failed over.
    Full {
        /// The plan's name.
        plan: String,
    },
}

/// A request to switch the mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The requested mode.
    pub goal: Goal,
    /// Full failover may end a partial one (`--force`).
    pub force: bool,
}

/// A requested mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Undo the failover.
    Idle,
    /// Partial site failover.
    Partial,
    /// Full site failover by a plan. With the name of the active plan, its differences are applied.
    Full {
        /// The plan's name.
        plan: String,
    },
    /// Full site failover from a partial one, whose addresses stay failed over (`--promote`).
    Promote {
        /// The plan's name.
        plan: String,
    },
}

/// The circumstances of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// The tenant's name, for messages.
    pub tenant: String,
    /// Whether the appliance is in maintenance.
    pub maintenance: bool,
    /// Appliances that the failover needs and that are not ready; empty if all are ready.
    pub unready: Vec<UnreadyAppliance>,
}

/// An appliance that is not ready for a failover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadyAppliance {
    /// The appliance's name.
    pub appliance: String,
    /// Why it is not ready.
    pub reason: String,
}

/// The effects of a switch, in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The new mode.
    pub mode: State,
    /// Kind of the step.
    pub kind: Kind,
    /// The treatment of endpoints that failed over one by one.
    pub endpoints: Endpoints,
    /// Whether connections end, because their state belongs to the mode before.
    pub flush_flows: bool,
    /// Whether announcements of the mode before must be corrected in neighbours' caches. The new
    /// mode makes its own announcements in any case.
    pub correct_announcements: bool,
}

/// Kind of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The mode is active already: nothing to do.
    Stay,
    /// A failover begins.
    Begin,
    /// The full failover continues with a changed plan.
    Update,
    /// The partial failover becomes a full one.
    Promote,
    /// The partial failover ends and a full one begins, by force.
    Replace,
    /// The failover is undone.
    Undo,
}

/// The treatment of the endpoints of a partial failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// They stay failed over.
    Keep,
    /// They are removed.
    Clear,
}

/// A request is refused. The mode stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModeRefusal {
    /// Full failover during a partial one.
    #[error(
        "tenant {tenant:?}: a partial failover is active, so a full failover cannot start: end it \
         first (`mode idle`), or repeat the request with --force, which ends it, or with \
         --promote, which keeps its addresses"
    )]
    PartialActive {
        /// The tenant's name.
        tenant: String,
    },
    /// Partial failover during a full one.
    #[error(
        "tenant {tenant:?}: the full failover of plan {plan:?} is active, so a partial failover \
         cannot start, not even with --force: end it first (`mode idle`)"
    )]
    FullActive {
        /// The tenant's name.
        tenant: String,
        /// The active plan.
        plan: String,
    },
    /// Full failover by another plan than the active one.
    #[error(
        "tenant {tenant:?}: the full failover of plan {active:?} is active, so plan {asked:?} \
         cannot be applied: end it first (`mode idle`), or apply plan {active:?} again \
         to change its rules"
    )]
    OtherPlan {
        /// The tenant's name.
        tenant: String,
        /// The active plan.
        active: String,
        /// The requested plan.
        asked: String,
    },
    /// Promotion without a failover.
    #[error(
        "tenant {tenant:?}: there is no partial failover to promote: request full failover without \
         --promote"
    )]
    NothingToPromote {
        /// The tenant's name.
        tenant: String,
    },
    /// Promotion during a full failover.
    #[error(
        "tenant {tenant:?}: there is no partial failover to promote, because the full failover of \
         plan {plan:?} is active: apply plan {plan:?} again without --promote to change its rules"
    )]
    PromotedAlready {
        /// The tenant's name.
        tenant: String,
        /// The active plan.
        plan: String,
    },
    /// The appliance is in maintenance.
    #[error(
        "tenant {tenant:?}: the appliance is in maintenance, so no failover can start; active ones \
         can be undone: end maintenance, then try again"
    )]
    Maintenance {
        /// The tenant's name.
        tenant: String,
    },
    /// No appliance is ready.
    #[error(
        "tenant {tenant:?}: no appliance is ready for the failover: {}; fix that, then try again",
        each(unready)
    )]
    NotReady {
        /// The tenant's name.
        tenant: String,
        /// Which appliances are not ready, and why.
        unready: Vec<UnreadyAppliance>,
    },
}

/// Decides the steps of a request, or refuses it.
///
/// # Errors
/// [`ModeRefusal`]: first by the order of the modes, because the end of maintenance would not
/// change that; then for maintenance; last for appliances that are not ready.
pub fn decide(
    now: State,
    request: Request,
    circumstances: &Circumstances,
) -> Result<Step, ModeRefusal> {
    let tenant = || circumstances.tenant.clone();
    let Request { goal, force } = request;
    let (kind, mode) = match (now, goal) {
        (State::Idle, Goal::Idle) => (Kind::Stay, State::Idle),
        (State::Partial | State::Full { .. }, Goal::Idle) => (Kind::Undo, State::Idle),
        (State::Idle, Goal::Partial) => (Kind::Begin, State::Partial),
        (State::Partial, Goal::Partial) => (Kind::Stay, State::Partial),
        (State::Full { plan }, Goal::Partial) => {
            return Err(ModeRefusal::FullActive {
                tenant: tenant(),
                plan,
            });
        }
        (State::Idle, Goal::Full { plan }) => (Kind::Begin, State::Full { plan }),
        (State::Partial, Goal::Full { plan }) if force => (Kind::Replace, State::Full { plan }),
        (State::Partial, Goal::Full { .. }) => {
            return Err(ModeRefusal::PartialActive { tenant: tenant() });
        }
        (State::Full { plan: active }, Goal::Full { plan }) if active == plan => {
            (Kind::Update, State::Full { plan })
        }
        (State::Full { plan: active }, Goal::Full { plan: asked }) => {
            return Err(ModeRefusal::OtherPlan {
                tenant: tenant(),
                active,
                asked,
            });
        }
        (State::Partial, Goal::Promote { plan }) => (Kind::Promote, State::Full { plan }),
        (State::Idle, Goal::Promote { .. }) => {
            return Err(ModeRefusal::NothingToPromote { tenant: tenant() });
        }
        (State::Full { plan }, Goal::Promote { .. }) => {
            return Err(ModeRefusal::PromotedAlready {
                tenant: tenant(),
                plan,
            });
        }
    };
    if kind.begins() && circumstances.maintenance {
        return Err(ModeRefusal::Maintenance { tenant: tenant() });
    }
    if kind.begins() && !circumstances.unready.is_empty() {
        return Err(ModeRefusal::NotReady {
            tenant: tenant(),
            unready: circumstances.unready.clone(),
        });
    }
    Ok(kind.step(mode))
}

impl Kind {
    /// Whether the step begins a failover.
    const fn begins(self) -> bool {
        match self {
            Self::Begin | Self::Promote | Self::Replace => true,
            Self::Stay | Self::Update | Self::Undo => false,
        }
    }

    const fn step(self, mode: State) -> Step {
        let (endpoints, flush_flows, correct_announcements) = match self {
            // Connections that a change does not affect survive it.
            Self::Stay | Self::Begin | Self::Update => (Endpoints::Keep, false, false),
            // The replicas answer for addresses of the production site themselves now.
            Self::Promote => (Endpoints::Keep, false, true),
            Self::Replace | Self::Undo => (Endpoints::Clear, true, true),
        };
        Step {
            mode,
            kind: self,
            endpoints,
            flush_flows,
            correct_announcements,
        }
    }
}

fn each(unready: &[UnreadyAppliance]) -> String {
    let each = unready
        .iter()
        .map(|UnreadyAppliance { appliance, reason }| format!("appliance {appliance:?}: {reason}"));
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(plan: &str) -> State {
        State::Full {
            plan: plan.to_owned(),
        }
    }

    fn goal(name: &str) -> Goal {
        match name.split_once(' ').unwrap_or((name, "")) {
            ("idle", _) => Goal::Idle,
            ("partial", _) => Goal::Partial,
            ("full", plan) => Goal::Full {
                plan: plan.to_owned(),
            },
            ("promote", plan) => Goal::Promote {
                plan: plan.to_owned(),
            },
            other => panic!("{other:?} is no goal"),
        }
    }

    fn state(name: &str) -> State {
        match name.split_once(' ').unwrap_or((name, "")) {
            ("idle", _) => State::Idle,
            ("partial", _) => State::Partial,
            ("full", plan) => full(plan),
            other => panic!("{other:?} is no state"),
        }
    }

    fn unready() -> Vec<UnreadyAppliance> {
        [
            ("prov-1", "ens224 has no carrier"),
            ("prov-2", "its programs could not be loaded"),
        ]
        .map(|(appliance, reason)| UnreadyAppliance {
            appliance: appliance.to_owned(),
            reason: reason.to_owned(),
        })
        .to_vec()
    }

    fn circumstances(maintenance: bool, healthy: bool) -> Circumstances {
        Circumstances {
            tenant: "acme".to_owned(),
            maintenance,
            unready: if healthy { Vec::new() } else { unready() },
        }
    }

    /// The outcome in one letter.
    fn letter(outcome: &Result<Step, ModeRefusal>) -> char {
        match outcome {
            Ok(step) => match step.kind {
                Kind::Stay => '.',
                Kind::Begin => 'B',
                Kind::Update => 'C',
                Kind::Promote => 'P',
                Kind::Replace => 'R',
                Kind::Undo => 'U',
            },
            Err(refusal) => match refusal {
                ModeRefusal::PartialActive { .. } => 'p',
                ModeRefusal::FullActive { .. } => 'f',
                ModeRefusal::OtherPlan { .. } => 'o',
                ModeRefusal::NothingToPromote { .. } => 'n',
                ModeRefusal::PromotedAlready { .. } => 'a',
                ModeRefusal::Maintenance { .. } => 'm',
                ModeRefusal::NotReady { .. } => 'h',
            },
        }
    }

    /// By state and goal: the outcome without force and with it; of each in service and in
    /// maintenance; of each with healthy appliances and without.
    #[rustfmt::skip]
    const TABLE: [(&str, &str, &str); 18] = [
        // state      goal            not forced    forced
        //                            serv. maint.  serv. maint.
        ("idle",      "idle",         ".. ..        .. .."),
        ("idle",      "partial",      "Bh mm        Bh mm"),
        ("idle",      "full dr",      "Bh mm        Bh mm"),
        ("idle",      "full other",   "Bh mm        Bh mm"),
        ("idle",      "promote dr",   "nn nn        nn nn"),
        ("idle",      "promote other","nn nn        nn nn"),
        ("partial",   "idle",         "UU UU        UU UU"),
        ("partial",   "partial",      ".. ..        .. .."),
        ("partial",   "full dr",      "pp pp        Rh mm"),
        ("partial",   "full other",   "pp pp        Rh mm"),
        ("partial",   "promote dr",   "Ph mm        Ph mm"),
        ("partial",   "promote other","Ph mm        Ph mm"),
        ("full dr",   "idle",         "UU UU        UU UU"),
        ("full dr",   "partial",      "ff ff        ff ff"),
        ("full dr",   "full dr",      "CC CC        CC CC"),
        ("full dr",   "full other",   "oo oo        oo oo"),
        ("full dr",   "promote dr",   "aa aa        aa aa"),
        ("full dr",   "promote other","aa aa        aa aa"),
    ];

    #[test]
    fn every_combination_comes_to_what_the_table_says() {
        for (now, to, row) in TABLE {
            let mut expected = row.chars().filter(|c| *c != ' ');
            for force in [false, true] {
                for maintenance in [false, true] {
                    for healthy in [true, false] {
                        let request = Request {
                            goal: goal(to),
                            force,
                        };
                        let around = circumstances(maintenance, healthy);
                        let outcome = decide(state(now), request, &around);
                        assert_eq!(
                            Some(letter(&outcome)),
                            expected.next(),
                            "{now}: {to}, force {force}, maintenance {maintenance}, healthy \
                             {healthy}: {outcome:?}"
                        );
                        // Where it leads is where it was to lead.
                        if let Ok(step) = outcome {
                            assert_eq!(step.mode, state(&to.replace("promote", "full")));
                        }
                    }
                }
            }
            assert_eq!(expected.next(), None, "{now}: {to}");
        }
        let mut pairs: Vec<_> = TABLE.iter().map(|(now, to, _)| (now, to)).collect();
        pairs.sort();
        pairs.dedup();
        assert_eq!(pairs.len(), 3 * 6);
    }

    #[test]
    fn each_step_says_what_it_does_besides() {
        use Endpoints::{Clear, Keep};
        for (now, to, kind, endpoints, flush, correct) in [
            ("idle", "idle", Kind::Stay, Keep, false, false),
            ("idle", "partial", Kind::Begin, Keep, false, false),
            ("idle", "full dr", Kind::Begin, Keep, false, false),
            ("partial", "partial", Kind::Stay, Keep, false, false),
            ("partial", "promote dr", Kind::Promote, Keep, false, true),
            ("partial", "full dr", Kind::Replace, Clear, true, true),
            ("partial", "idle", Kind::Undo, Clear, true, true),
            ("full dr", "full dr", Kind::Update, Keep, false, false),
            ("full dr", "idle", Kind::Undo, Clear, true, true),
        ] {
            let request = Request {
                goal: goal(to),
                force: true,
            };
            let expected = Step {
                mode: state(&to.replace("promote", "full")),
                kind,
                endpoints,
                flush_flows: flush,
                correct_announcements: correct,
            };
            assert_eq!(
                decide(state(now), request, &circumstances(false, true)),
                Ok(expected)
            );
        }
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        for (now, to, force, around, message) in [
            (
                "partial",
                "full dr",
                false,
                circumstances(false, true),
                "a partial failover is active, so a full failover cannot start: end it first \
                 (`mode idle`), or repeat the request with --force, which ends it, or with \
                 --promote, which keeps its addresses",
            ),
            (
                "full dr",
                "partial",
                true,
                circumstances(false, true),
                "the full failover of plan \"dr\" is active, so a partial failover cannot start, \
                 not even with --force: end it first (`mode idle`)",
            ),
            (
                "full dr",
                "full test",
                true,
                circumstances(false, true),
                "the full failover of plan \"dr\" is active, so plan \"test\" cannot be applied: \
                 end it first (`mode idle`), or apply plan \"dr\" again to change its rules",
            ),
            (
                "idle",
                "promote dr",
                false,
                circumstances(false, true),
                "there is no partial failover to promote: request full failover without --promote",
            ),
            (
                "full dr",
                "promote test",
                false,
                circumstances(false, true),
                "there is no partial failover to promote, because the full failover of plan \"dr\" \
                 is active: apply plan \"dr\" again without --promote to change its rules",
            ),
            (
                "idle",
                "partial",
                true,
                circumstances(true, false),
                "the appliance is in maintenance, so no failover can start; active ones can be \
                 undone: end maintenance, then try again",
            ),
            (
                "idle",
                "full dr",
                true,
                circumstances(false, false),
                "no appliance is ready for the failover: appliance \"prov-1\": ens224 has no \
                 carrier; appliance \"prov-2\": its programs could not be loaded; fix that, then \
                 try again",
            ),
        ] {
            let request = Request {
                goal: goal(to),
                force,
            };
            let refusal = decide(state(now), request, &around).expect_err("a refusal");
            assert_eq!(refusal.to_string(), format!("tenant \"acme\": {message}"));
        }
    }

    /// A data path that has no idea of modes: it does what the steps say, and both failovers could
    /// be active in it.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Path {
        partial: bool,
        full: Option<String>,
        endpoints: u32,
        flows: u32,
    }

    impl Path {
        fn apply(&mut self, step: &Step) {
            let ends = matches!(step.kind, Kind::Undo | Kind::Replace | Kind::Promote);
            if ends {
                self.partial = false;
            }
            if step.kind == Kind::Undo {
                self.full = None;
            }
            if step.kind != Kind::Undo && step.kind != Kind::Stay {
                match &step.mode {
                    State::Idle => {}
                    State::Partial => self.partial = true,
                    State::Full { plan } => self.full = Some(plan.clone()),
                }
            }
            if step.endpoints == Endpoints::Clear {
                self.endpoints = 0;
            }
            if step.flush_flows {
                self.flows = 0;
            }
        }
    }

    prop_compose! {
        fn requests()(
            goal in prop_oneof![
                Just("idle"), Just("partial"), Just("full dr"), Just("full test"), Just("promote \
                    dr"), Just("promote \
                    test")
            ].prop_map(goal),
            force: bool,
            maintenance in proptest::bool::weighted(0.2),
            healthy in proptest::bool::weighted(0.8),
        ) -> (Request, Circumstances) {
            (Request { goal, force }, circumstances(maintenance, healthy))
        }
    }

    proptest! {
        #[test]
        fn partial_and_full_are_never_both_active(
            requests in proptest::collection::vec(requests(), 0..40),
        ) {
            let (mut now, mut path) = (State::Idle, Path::default());
            for (request, around) in requests {
                let (before, old) = (now.clone(), path.clone());
                let Ok(step) = decide(now.clone(), request.clone(), &around) else {
                    continue;
                };
                path.apply(&step);
                now = step.mode;
                prop_assert!(!(path.partial && path.full.is_some()), "{before:?}, {request:?}: \
                    {path:?}");
                prop_assert_eq!(path.partial, now == State::Partial);
                let plan = match &now {
                    State::Full { plan } => Some(plan),
                    State::Idle | State::Partial => None,
                };
                prop_assert_eq!(path.full.as_ref(), plan);
                match &now {
                    // Nothing of the undone failover is left.
                    State::Idle => prop_assert_eq!(&path, &Path::default()),
                    // Only a promotion brings endpoints into a full failover, all of them.
                    State::Full { .. } if matches!(step.kind, Kind::Begin | Kind::Replace) => {
                        prop_assert_eq!((path.endpoints, path.flows), (0, 0));
                    }
                    State::Full { .. } => {
                        prop_assert_eq!((path.endpoints, path.flows), (old.endpoints, old.flows));
                    }
                    State::Partial => {}
                }
                // A beginning failover is refused in maintenance and without a healthy appliance.
                if around.maintenance || !around.unready.is_empty() {
                    prop_assert!(now == State::Idle || now == before);
                }
                // Then it is used.
                if path.partial {
                    path.endpoints += 1;
                }
                if now != State::Idle {
                    path.flows += 1;
                }
            }
            // Whatever the circumstances, there is a way back.
            let undo = Request { goal: Goal::Idle, force: false };
            let step = decide(now, undo, &circumstances(true, false)).expect("to be undone");
            path.apply(&step);
            prop_assert_eq!(path, Path::default());
        }
    }
}
