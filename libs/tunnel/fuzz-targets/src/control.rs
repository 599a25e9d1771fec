//! The state machine under arbitrary time, order and reports: its outputs stay bounded, no timer
//! stays expired, and no receiver loses a session that is still in use.

use std::collections::VecDeque;
use std::time::Duration;

use tunnel::segment::ControlMessage;
use tunnel::{
    Cipher, Framing, InitiationPolicy, Instant, LoadLimits, MIN_DATAGRAM, OpenError, Output,
    Payload, PayloadKind, PeerConfig, PeerId, PeerPath, PmtuConfig, ReassemblyLimits, Receiver,
    RxActivity, Sender, TimerConfig, TunnelControl, TxActivity,
};

use fuzzing::Input;

use super::common::{Clock, Seeded, addresses, le32, outputs, publics, secrets};

const ACTS: usize = 96;
/// Datagrams on their way at most; further ones are lost.
const MAX_IN_FLIGHT: usize = 48;
/// Upper bound on the outputs of one act: five sessions and eight initiations retired, three lanes
/// twice, paths, control messages, events.
const OUTPUTS: usize = 40;
/// Timeouts at one moment after which no timer may be expired, as many as [`tunnel::Tunnel::poll`]
/// does.
const ROUNDS: usize = 4;
const MS: u64 = 1_000_000;

/// Acts on two ends with senders and receivers: time in both directions, timeouts, datagrams in any
/// order, true and false reports, control messages, paths, configuration.
pub fn control(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(&mut input);
    for _ in 0..ACTS {
        if input.is_empty() {
            break;
        }
        world.act(&mut input);
    }
}

struct End {
    control: TunnelControl,
    config: PeerConfig,
    peer: PeerId,
    lanes: Vec<(Sender, Receiver)>,
    /// Sessions that the receivers were given and must not lose: name, expiry.
    live_sessions: Vec<(u32, Instant)>,
    ceiling: usize,
    /// The path of data.
    path: Option<PeerPath>,
    /// Sizes probed on this path.
    probed: Vec<usize>,
}

struct World {
    clock: Clock,
    random: Seeded,
    ends: [End; 2],
    flying: VecDeque<(usize, Vec<u8>)>,
    /// Buffer for sealing, longer than any datagram.
    scratch: Vec<u8>,
}

fn configuration(input: &mut Input<'_>, policy: InitiationPolicy, own: usize) -> PeerConfig {
    let flags = input.u8();
    let shape = input.u8();
    let key = publics()[1 - own];
    let policy = if flags & 1 == 0 {
        policy
    } else {
        [
            InitiationPolicy::Always,
            InitiationPolicy::OnDemand,
            InitiationPolicy::Never,
        ][usize::from(shape % 3)]
    };
    let mut timers = if flags & 2 == 0 {
        TimerConfig::causeway()
    } else {
        TimerConfig::wireguard()
    };
    if flags & 4 != 0 {
        timers.persistent_keepalive = Some(Duration::from_millis(1 + u64::from(shape) * 100));
    }
    if flags & 8 != 0 {
        timers.rekey_after_messages = Some(u64::from(shape % 8));
        timers.reject_after_messages = Some(u64::from(shape % 16));
    }
    if flags & 16 != 0 {
        timers.give_up = Some(Duration::from_millis(u64::from(shape) * 50));
    }
    let ceiling = [1472, 8972, 65_535, 0][usize::from(shape >> 6)];
    PeerConfig {
        cipher: Cipher::ALL[usize::from(flags >> 5 & 1)],
        lanes: 1 + u32::from(flags >> 6) % 3,
        paths: addresses()[1 - own..][..1 + usize::from(shape >> 4 & 1)].to_vec(),
        timers,
        pmtu: Some(PmtuConfig {
            ceiling,
            ..PmtuConfig::default()
        }),
        ..PeerConfig::causeway(key, policy)
    }
}

fn lanes(config: &PeerConfig) -> Vec<(Sender, Receiver)> {
    let limits = ReassemblyLimits {
        slots: 1,
        max_packet: 256,
        ..ReassemblyLimits::default()
    };
    let count = if config.framing == Framing::Segments {
        config.lanes
    } else {
        1
    };
    (0..count)
        .map(|_| {
            (
                Sender::new(config.framing),
                Receiver::new(config.framing, limits),
            )
        })
        .collect()
}

/// A point in time near `now`, before or after, far away, or none.
fn moment(input: &mut Input<'_>, clock: Clock) -> Option<Instant> {
    let nanos = match input.below(5) {
        0 => return None,
        1 => clock.mono,
        2 => clock.mono.saturating_sub(u64::from(input.u16()) * 10 * MS),
        3 => clock.mono.saturating_add(u64::from(input.u16()) * 10 * MS),
        _ => input.u64(),
    };
    Some(Instant::from_nanos(nanos))
}

fn control_message(input: &mut Input<'_>) -> ControlMessage {
    let (token, size) = (input.u64(), input.u16());
    if input.flag() {
        ControlMessage::Echo { token, size }
    } else {
        ControlMessage::EchoReply { token, size }
    }
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let clock = Clock::new();
        let keys = secrets();
        let wireguard = input.u8() & 3 == 3;
        let load = LoadLimits {
            cookie_threshold: if input.u8() & 7 == 7 { 1 } else { 200 },
            ..LoadLimits::default()
        };
        let mut end = |own: usize| {
            let dial = if own == 0 {
                InitiationPolicy::Always
            } else {
                InitiationPolicy::Never
            };
            let mut config = configuration(input, dial, own);
            if wireguard {
                config.framing = Framing::WireGuard;
            }
            let mut control = TunnelControl::new(keys[own].clone(), load);
            let peer = control.add_peer(clock.instant(), config.clone());
            End {
                control,
                lanes: lanes(&config),
                ceiling: ceiling(&config),
                config,
                peer,
                live_sessions: Vec::new(),
                path: None,
                probed: Vec::new(),
            }
        };
        let ends = [end(0), end(1)];
        let mut world = Self {
            clock,
            random: Seeded(7),
            ends,
            flying: VecDeque::new(),
            scratch: vec![0; 65_600],
        };
        world.apply_outputs(0);
        world.apply_outputs(1);
        world
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let act = input.below(24);
        let at = input.below(2);
        let now = self.clock.instant();
        match act {
            0..=3 => self.pass(input),
            4..=6 => self.timeout(at),
            // As a caller without other work: sleep until the deadline, several times.
            7 | 8 => {
                for _ in 0..1 + input.below(8) {
                    let Some(deadline) = self.ends[at].control.next_deadline() else {
                        break;
                    };
                    self.clock.set(self.clock.mono.max(deadline.as_nanos()));
                    self.timeout(at);
                }
            }
            9..=13 => {
                let back = input.below(self.flying.len());
                if back < self.flying.len()
                    && let Some((to, bytes)) = self.flying.remove(back)
                {
                    if input.u8() > 240 {
                        self.flying.push_back((to, bytes.clone()));
                    }
                    let from = if input.u8() < 200 { 1 - to } else { 2 };
                    self.arrive(to, from, bytes);
                }
            }
            14..=16 => self.send(at, input),
            17 => {
                let activity = TxActivity {
                    session: match input.below(3) {
                        0 => None,
                        1 => self.ends[at].lanes[0].0.session(),
                        _ => Some(input.u32()),
                    },
                    packets: input.u64(),
                    bytes: input.u64(),
                    last_sent: moment(input, self.clock),
                    last_reply_expected: moment(input, self.clock),
                    last_no_session: moment(input, self.clock),
                    rekey_due: input.flag(),
                };
                let end = &mut self.ends[at];
                end.control.report_sent(now, end.peer, activity);
            }
            18 => {
                let activity = RxActivity {
                    last_received: moment(input, self.clock),
                    last_content: moment(input, self.clock),
                    ..RxActivity::default()
                };
                let end = &mut self.ends[at];
                end.control.report_received(now, end.peer, activity);
            }
            19 => {
                let message = control_message(input);
                let end = &mut self.ends[at];
                end.control.handle_control_message(now, end.peer, message);
            }
            20 => {
                let end = &mut self.ends[at];
                let index = match end.live_sessions.last() {
                    Some(&(name, _)) if input.flag() => name,
                    _ => input.u32(),
                };
                // True or false: a daemon with a wrong report harms only itself, but must not
                // panic.
                end.control.confirm_session(now, end.peer, index);
            }
            21 => {
                let (what, size) = (input.below(4), usize::from(input.u16()));
                let end = &mut self.ends[at];
                match what {
                    0 => end.control.move_peer(now, end.peer, addresses()[size % 4]),
                    1 => end.control.pmtu_hint(now, end.peer, size),
                    2 => {
                        let addresses = addresses()[..size % 5].to_vec();
                        end.control.set_paths(now, end.peer, addresses);
                    }
                    _ => end.control.initiate(now, end.peer),
                }
            }
            22 => {
                let (end, id) = (&self.ends[at], PeerId(input.u32() % 3));
                let status = end.control.status(now, id);
                if let Some(status) = status {
                    assert!(status.loss_percent <= 100);
                    assert!((MIN_DATAGRAM..=end.ceiling).contains(&status.max_datagram));
                }
            }
            _ => {
                // Configured again: the sessions are removed.
                if input.u8() < 128 {
                    let end = &mut self.ends[at];
                    let config = end.config.clone();
                    end.peer = end.control.add_peer(now, config);
                    self.apply_outputs(at);
                    let end = &mut self.ends[at];
                    assert!(
                        end.live_sessions.is_empty(),
                        "a replaced peer's sessions stay"
                    );
                    end.lanes = lanes(&end.config);
                }
            }
        }
        for at in 0..2 {
            self.apply_outputs(at);
        }
    }

    fn pass(&mut self, input: &mut Input<'_>) {
        let some = u64::from(input.u8());
        match input.below(8) {
            0 | 1 => self.clock.advance(some * MS),
            2 | 3 => self.clock.advance(some * 20 * MS),
            4 => self.clock.advance(some * 2_000 * MS),
            5 => self
                .clock
                .set(self.clock.mono.saturating_sub(some * 500 * MS)),
            6 => self.clock.unix = input.u64(),
            _ => self.clock.set(input.u64()),
        }
    }

    /// One timeout, and as many more as [`tunnel::Tunnel::poll`] allows. Then no timer may be
    /// expired.
    fn timeout(&mut self, at: usize) {
        let now = self.clock.now();
        for round in 0..=ROUNDS {
            let end = &mut self.ends[at];
            end.control.handle_timeout(now, &mut self.random);
            self.apply_outputs(at);
            let due = self.ends[at].control.next_deadline();
            if due.is_none_or(|due| due > now.mono) {
                return;
            }
            assert!(round < ROUNDS, "a timer stays due: {due:?} at {now:?}");
        }
    }

    fn fly(flying: &mut VecDeque<(usize, Vec<u8>)>, to: usize, bytes: &[u8]) {
        if flying.len() < MAX_IN_FLIGHT {
            flying.push_back((to, bytes.to_vec()));
        }
    }

    /// Carries out the outputs of an end, as [`tunnel::Tunnel`] does.
    fn apply_outputs(&mut self, at: usize) {
        let now = self.clock.instant();
        let end = &mut self.ends[at];
        let scratch = &mut self.scratch;
        // Sealing makes reports, and reports may make outputs, but not endlessly.
        for round in 0..ROUNDS {
            let all = outputs(&mut end.control, OUTPUTS);
            if all.is_empty() {
                break;
            }
            assert!(round + 1 < ROUNDS, "outputs make outputs: {all:?}");
            for output in all {
                match output {
                    Output::Transmit { datagram, .. } => {
                        Self::fly(&mut self.flying, 1 - at, datagram.as_bytes());
                    }
                    Output::Receive { lane, session, .. } => {
                        if lane == 0 {
                            assert!(
                                end.live_sessions
                                    .iter()
                                    .all(|&(name, _)| name != session.index()),
                                "the name of a session that lives was drawn again"
                            );
                            let ends = now + end.config.timers.reject_after;
                            end.live_sessions.push((session.index(), ends));
                            assert!(
                                end.live_sessions.len() <= 5,
                                "more sessions than a receiver holds"
                            );
                        }
                        end.lanes[lane as usize].1.install(session);
                    }
                    Output::Send { lane, session, .. } => {
                        let name = session.index();
                        assert!(
                            end.live_sessions.iter().any(|&(index, _)| index == name),
                            "a session to send by, but not to receive by"
                        );
                        end.lanes[lane as usize].0.install(session);
                    }
                    Output::Retire { index, .. } => {
                        end.live_sessions.retain(|&(name, _)| name != index);
                        for (sender, receiver) in &mut end.lanes {
                            sender.retire(index);
                            receiver.retire(index);
                        }
                    }
                    Output::MaxDatagram { bytes, .. } => {
                        assert!((MIN_DATAGRAM..=end.ceiling).contains(&bytes), "{bytes}");
                        assert!(
                            bytes == MIN_DATAGRAM || end.probed.contains(&bytes),
                            "{bytes} were never tried on this path"
                        );
                        for (sender, _) in &mut end.lanes {
                            sender.set_max_datagram(bytes);
                        }
                    }
                    Output::Keepalive { peer } => {
                        let sender = &mut end.lanes[0].0;
                        if let Ok(len) = sender.seal_keepalive(now, scratch) {
                            Self::fly(&mut self.flying, 1 - at, &scratch[..len]);
                            end.control.report_sent(now, peer, sender.activity());
                        }
                    }
                    Output::ControlMessage {
                        peer,
                        message,
                        pad_to,
                    } => {
                        assert!(pad_to <= end.ceiling);
                        if pad_to > 0 {
                            end.probed.push(pad_to);
                        }
                        let sender = &mut end.lanes[0].0;
                        if let Ok(len) = sender.seal_control(now, message, pad_to, scratch) {
                            assert!(pad_to == 0 || len == pad_to);
                            Self::fly(&mut self.flying, 1 - at, &scratch[..len]);
                            end.control.report_sent(now, peer, sender.activity());
                        }
                    }
                    Output::Path { path, .. } => {
                        for (_, receiver) in &mut end.lanes {
                            receiver.set_path(path);
                        }
                        if end.path.replace(path) != Some(path) {
                            end.probed.clear();
                        }
                    }
                    Output::Event { .. } => {}
                }
            }
        }
    }

    fn send(&mut self, at: usize, input: &mut Input<'_>) {
        let now = self.clock.instant();
        let end = &mut self.ends[at];
        let lane = input.below(end.lanes.len());
        let mut packet = vec![0; 20 + input.below(200)];
        packet[0] = 0x45;
        let sender = &mut end.lanes[lane].0;
        let mut out = [0; 512];
        if let Ok(len) = sender.seal_packet(now, PayloadKind::Ip, 1, &packet, &mut out) {
            Self::fly(&mut self.flying, 1 - at, &out[..len]);
        }
        end.control.report_sent(now, end.peer, sender.activity());
    }

    fn arrive(&mut self, to: usize, from: usize, mut bytes: Vec<u8>) {
        let now = self.clock.now();
        let end = &mut self.ends[to];
        let from = addresses()[from];
        if bytes[0] != 4 {
            let _ = end
                .control
                .handle_datagram(now, from, &bytes, &mut self.random);
            return;
        }
        let index = le32(&bytes, 4);
        let session = index & !63;
        let session_entry = end
            .live_sessions
            .iter()
            .find(|&&(name, _)| name == session)
            .copied();
        let lane = (index - session) as usize;
        let Some((_, receiver)) = end.lanes.get_mut(lane) else {
            return;
        };
        match receiver.open(now.mono, from, &mut bytes) {
            Ok(opened) => {
                let (ends, first) = (session_entry.map(|(_, ends)| ends), opened.first_of_session);
                assert!(
                    ends.is_some_and(|ends| now.mono < ends),
                    "a session that is over"
                );
                let (moved, payload) = (opened.moved_to, opened.payload);
                if let Some(index) = first {
                    end.control.confirm_session(now.mono, end.peer, index);
                }
                if let Some(address) = moved {
                    end.control
                        .follow_peer(now.mono, end.peer, address, now.mono);
                }
                if let Payload::Control(message) = payload {
                    end.control
                        .handle_control_message(now.mono, end.peer, message);
                }
            }
            Err(OpenError::UnknownSession { .. }) => {
                assert!(
                    session_entry.is_none(),
                    "a session that was not retired is not known any more"
                );
            }
            Err(OpenError::Expired { .. }) => {
                assert!(session_entry.is_none_or(|(_, ends)| now.mono >= ends));
            }
            Err(OpenError::Duplicate { .. }) => {}
            Err(error) => panic!("an honest message was refused: {error}"),
        }
        let activity = end.lanes[lane].1.activity();
        end.control.report_received(now.mono, end.peer, activity);
    }
}

fn ceiling(config: &PeerConfig) -> usize {
    config.pmtu.map_or(MIN_DATAGRAM, |pmtu| {
        pmtu.ceiling.clamp(MIN_DATAGRAM, 65_507)
    })
}
