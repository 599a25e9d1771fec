//! The timer table against the state of the machines: whatever happens, no deadline is missed and
//! no timer stays expired.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::keys::SecretKey;
use crate::testing::Seeded;
use crate::timers::TimerConfig;

/// A step of the test at one of the two ends.
#[derive(Debug, Clone)]
enum Step {
    /// Time passes; expired timers are handled as they expire.
    Wait { ms: u64 },
    /// Time passes and no timer is handled.
    Sleep { ms: u64 },
    /// The oldest handshake message on its way arrives, or is lost.
    Carry { lost: bool },
    /// The first message of a session comes.
    Confirm { session: usize },
    /// A sender reports a message that it sent `ago` milliseconds ago.
    Sent {
        ago: u64,
        expects_reply: bool,
        no_session: bool,
        rekey_due: bool,
    },
    /// A receiver reports.
    Received { ago: u64, content: bool },
    /// An echo or probe is answered.
    Answer { probe: usize },
    /// Data goes to another path.
    Move { port: u16 },
    /// The peer is heard by another path.
    Follow { host: u8 },
    /// The uplink takes datagrams of another length.
    Ceiling { bytes: usize },
    /// This end was restored from a snapshot.
    RetireAll,
    /// Other paths are configured.
    SetPaths { count: usize },
    /// ICMP says that datagrams are too long.
    Hint { bytes: usize },
    /// The caller asks for a handshake.
    Initiate,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![0_u64..200, 0_u64..5_000, 0_u64..200_000].prop_map(|ms| Step::Wait { ms }),
        2 => prop_oneof![0_u64..2_000, 0_u64..200_000].prop_map(|ms| Step::Sleep { ms }),
        8 => prop::bool::weighted(0.2).prop_map(|lost| Step::Carry { lost }),
        3 => (0_usize..4).prop_map(|session| Step::Confirm { session }),
        4 => (0_u64..2_000, any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.1))
            .prop_map(|(ago, expects_reply, no_session, rekey_due)| {
                Step::Sent { ago, expects_reply, no_session, rekey_due }
            }),
        4 => (0_u64..2_000, any::<bool>())
            .prop_map(|(ago, content)| Step::Received { ago, content }),
        3 => (0_usize..4).prop_map(|probe| Step::Answer { probe }),
        1 => (1_u16..4).prop_map(|port| Step::Move { port }),
        2 => (1_u8..4).prop_map(|host| Step::Follow { host }),
        1 => (1_000_usize..9_000).prop_map(|bytes| Step::Ceiling { bytes }),
        1 => Just(Step::RetireAll),
        1 => (0_usize..3).prop_map(|count| Step::SetPaths { count }),
        1 => (1_000_usize..2_000).prop_map(|bytes| Step::Hint { bytes }),
        1 => Just(Step::Initiate),
    ]
}

fn path(port: u16) -> PeerPath {
    SocketAddr::from(([192, 0, 2, 1], port)).into()
}

struct End {
    control: TunnelControl,
    peer: PeerId,
    /// Names of the sessions made, newest first.
    sessions: VecDeque<u32>,
    /// Echoes and probes sent, newest first.
    echoes: VecDeque<(u64, u16)>,
}

struct World {
    random: Seeded,
    now: Instant,
    ends: [End; 2],
    /// Handshake messages on their way: to which end.
    flying: VecDeque<(usize, Datagram)>,
}

impl World {
    fn new(
        seed: u64,
        policies: [InitiationPolicy; 2],
        timers: TimerConfig,
        segments: bool,
    ) -> Self {
        let mut random = Seeded::new(seed);
        let secrets = [(), ()].map(|()| SecretKey::generate(&mut random));
        let now = Instant::ORIGIN + Duration::from_secs(1);
        let end = |own: usize| {
            let limits = LoadLimits::default();
            let mut control = TunnelControl::new(secrets[own].clone(), limits);
            let key = secrets[1 - own].public();
            let config = PeerConfig {
                paths: vec![path(1), path(2)],
                initiation: policies[own],
                timers,
                ..if segments {
                    PeerConfig::causeway(key, policies[own])
                } else {
                    PeerConfig::wireguard(key)
                }
            };
            End {
                peer: control.add_peer(now, config),
                control,
                sessions: VecDeque::new(),
                echoes: VecDeque::new(),
            }
        };
        Self {
            ends: [end(0), end(1)],
            random,
            now,
            flying: VecDeque::new(),
        }
    }

    fn clock(&self) -> Now {
        Now {
            mono: self.now,
            unix: Duration::from_secs(1_700_000_000) + self.now.since(Instant::ORIGIN),
        }
    }

    fn act(&mut self, own: usize, step: &Step) {
        let ms = Duration::from_millis;
        let now = self.now;
        let end = &mut self.ends[own];
        let ago = |by: u64| {
            Some(Instant::from_nanos(
                now.as_nanos().saturating_sub(by * 1_000_000),
            ))
        };
        match *step {
            Step::Wait { ms: pause } => self.wait(now + ms(pause)),
            Step::Sleep { ms: pause } => self.now = now + ms(pause),
            Step::Carry { lost } => {
                if let Some((to, datagram)) = self.flying.pop_front()
                    && !lost
                {
                    let clock = self.clock();
                    let control = &mut self.ends[to].control;
                    let bytes = datagram.as_bytes();
                    let _ = control.handle_datagram(clock, path(1), bytes, &mut self.random);
                }
            }
            Step::Confirm { session } => {
                if let Some(&index) = end.sessions.get(session) {
                    end.control.confirm_session(now, end.peer, index);
                }
            }
            Step::Sent {
                ago: by,
                expects_reply,
                no_session,
                rekey_due,
            } => {
                let activity = TxActivity {
                    session: end.sessions.front().copied(),
                    last_sent: ago(by),
                    last_reply_expected: ago(by).filter(|_| expects_reply),
                    last_no_session: ago(by).filter(|_| no_session),
                    rekey_due,
                    ..TxActivity::default()
                };
                end.control.report_sent(now, end.peer, activity);
            }
            Step::Received { ago: by, content } => {
                let activity = RxActivity {
                    last_received: ago(by),
                    last_content: ago(by).filter(|_| content),
                    ..RxActivity::default()
                };
                end.control.report_received(now, end.peer, activity);
            }
            Step::Answer { probe } => {
                if let Some(&(token, size)) = end.echoes.get(probe) {
                    let reply = ControlMessage::EchoReply { token, size };
                    end.control.handle_control_message(now, end.peer, reply);
                }
            }
            Step::Move { port } => end.control.move_peer(now, end.peer, path(port)),
            Step::Follow { host } => {
                let path = SocketAddr::from(([192, 0, 2, host], 1));
                end.control.follow_peer(now, end.peer, path, now);
            }
            Step::Ceiling { bytes } => end.control.set_max_payload(now, end.peer, bytes),
            Step::RetireAll => end.control.retire_all(now),
            Step::SetPaths { count } => {
                let paths = (1..).take(count).map(path).collect();
                end.control.set_paths(now, end.peer, paths);
            }
            Step::Hint { bytes } => end.control.pmtu_hint(now, end.peer, bytes),
            Step::Initiate => end.control.initiate(now, end.peer),
        }
        self.take_outputs();
        for end in &self.ends {
            let Some(peer) = end.control.peer_ref(end.peer) else {
                panic!("the peer is gone")
            };
            let (table, state) = (peer.next_deadline(), peer.deadline_by_state());
            if let Some(state) = state {
                assert!(
                    table.is_some_and(|table| table <= state),
                    "{table:?}, due {state:?}"
                );
            }
            assert!(!peer.has_idle_timers(), "after {step:?}");
            assert_eq!(table, end.control.next_deadline(), "after {step:?}");
        }
    }

    /// Handles timers as they expire.
    fn wait(&mut self, until: Instant) {
        let mut rounds = 0;
        loop {
            let deadlines = self
                .ends
                .iter()
                .filter_map(|end| end.control.next_deadline());
            let Some(next) = deadlines.min().filter(|next| *next <= until) else {
                break;
            };
            self.now = self.now.max(next);
            let clock = self.clock();
            for end in &mut self.ends {
                end.control.handle_timeout(clock, &mut self.random);
                let next = end.control.next_deadline();
                assert!(
                    next.is_none_or(|next| next > self.now),
                    "{next:?} at {:?}",
                    self.now
                );
            }
            self.take_outputs();
            rounds += 1;
            assert!(rounds < 10_000, "timers expire without end");
        }
        self.now = self.now.max(until);
    }

    fn take_outputs(&mut self) {
        for (own, end) in self.ends.iter_mut().enumerate() {
            while let Some(output) = end.control.poll_output() {
                match output {
                    Output::Transmit { datagram, .. } => {
                        self.flying.push_back((1 - own, datagram));
                        self.flying.truncate(20);
                    }
                    Output::Receive { session, .. } => {
                        end.sessions.push_front(session.index());
                        end.sessions.truncate(6);
                    }
                    Output::ControlMessage {
                        message: ControlMessage::Echo { token, size },
                        ..
                    } => {
                        end.echoes.push_front((token, size));
                        end.echoes.truncate(6);
                    }
                    _ => {}
                }
            }
        }
    }
}

fn policy() -> impl Strategy<Value = InitiationPolicy> {
    prop_oneof![
        3 => Just(InitiationPolicy::Always),
        1 => Just(InitiationPolicy::OnDemand),
        2 => Just(InitiationPolicy::Never),
    ]
}

prop_compose! {
    fn timers()(
        causeway: bool,
        give_up in prop::option::of(1_u64..100_000),
        echo in prop::option::of(100_u64..10_000),
        persistent in prop::option::of(100_u64..30_000),
        rekey_after in 1_u64..200,
    ) -> TimerConfig {
        let ms = |ms: Option<u64>| ms.map(Duration::from_millis);
        let base = if causeway { TimerConfig::causeway() } else { TimerConfig::wireguard() };
        TimerConfig {
            rekey_after: Duration::from_secs(rekey_after),
            give_up: ms(give_up),
            echo: ms(echo),
            persistent_keepalive: ms(persistent),
            ..base
        }
    }
}

/// Sequences of steps to try: more in the long run (`cargo xtask test --long`).
fn config() -> ProptestConfig {
    let long = std::env::var_os("CAUSEWAY_LONG").is_some();
    ProptestConfig::with_cases(if long { 256 } else { 24 })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_deadline_is_missed_and_no_timer_stays_expired(
        seed: u64,
        policies in [policy(), policy()],
        timers in timers(),
        segments in prop::bool::weighted(0.7),
        steps in prop::collection::vec((0_usize..2, step()), 1..120),
    ) {
        let mut world = World::new(seed, policies, timers, segments);
        world.take_outputs();
        for (own, step) in steps {
            world.act(own, &step);
        }
        let until = world.now + Duration::from_secs(200);
        world.wait(until);
    }
}

/// An idle pair of appliances exchanges handshakes, echoes and probes only: the number of times
/// that a timer expires is bounded.
#[test]
fn an_established_pair_wakes_seldom() {
    use InitiationPolicy::{Always, Never};

    let mut world = World::new(7, [Always, Never], TimerConfig::causeway(), true);
    world.take_outputs();
    world.wait(world.now + Duration::from_millis(1));
    for _ in 0..4 {
        world.act(0, &Step::Carry { lost: false });
    }
    world.act(0, &Step::Confirm { session: 0 });
    world.act(1, &Step::Confirm { session: 0 });
    let up = |end: &End| end.control.status(world.now, end.peer);
    for end in &world.ends {
        assert!(up(end).is_some_and(|status| status.down.is_none()));
    }
    let mut wakes = 0;
    let until = world.now + Duration::from_secs(60);
    while let Some(next) = world
        .ends
        .iter()
        .filter_map(|e| e.control.next_deadline())
        .min()
    {
        if next > until {
            break;
        }
        for own in 0..2 {
            world.act(
                own,
                &Step::Received {
                    ago: 0,
                    content: false,
                },
            );
        }
        world.wait(next);
        wakes += 1;
    }
    assert!(wakes < 60 * 20, "{wakes}");
}
