//! One round of the manager: gives received messages to the sans-IO halves, and carries out their
//! decisions.
//!
//! ```text
//!   messages, reports ─▶ circuits and transports that are due ─▶ outputs of the tunnel's control half
//!                                       └────── another path ───────▲
//! ```

use std::{net::SocketAddr, time::Duration};

use appliance_common::addr::from_ip;
use gateway_client::wire::CircuitId;
use tunnel::{DownReason, Instant, Now, Output, PeerId, PeerPath, Random as _, TunnelControl};

use super::{
    TunnelManager,
    circuit::CircuitClient,
    handshake_io::{CircuitFrame, Incoming, classify},
    peer_table::{LaneActivity, Peer},
    status::HostActivity,
    tls_connections::{self, Change},
    transport::{Transport, TransportState},
    workers::WorkerPool,
};
use crate::{
    clock,
    host::{MapWrite, ProgramMaps},
    pipeline::{Command, Event},
    worker::Request,
};

/// Handshakes without an answer that make a path doubtful.
const MAX_UNANSWERED_HANDSHAKES: u32 = 3;
/// Time for handshake messages before other work is done.
const HANDSHAKE_TIME_SLICE: Duration = Duration::from_millis(10);
/// Rounds of outputs in a row before other work is done.
const ROUNDS: usize = 4;

impl TunnelManager {
    /// Receives handshake messages and gateways' messages, and handles them for a bounded time.
    pub(super) fn take_messages(&mut self) {
        let (known, handshakes) = (&self.known_addresses, &mut self.handshakes);
        self.sockets.receive(|from, datagram| {
            let is_known = known.contains(&from_ip(from.ip().to_canonical()));
            handshakes.push(is_known, from, datagram);
        });
        let started = clock::mono();
        let mut now = started;
        while now.since(started) < HANDSHAKE_TIME_SLICE
            && let Some(message) = self.handshakes.take(now)
        {
            self.take_message(message.from, message.as_bytes());
            let begun = now;
            now = clock::mono();
            if message.is_unknown {
                self.handshakes.spent(now, now.since(begun));
            }
        }
        let now = clock::now();
        let Self {
            control,
            random,
            tls,
            ..
        } = self;
        tls.take_messages(|circuit, message| {
            let path = PeerPath::Stream(circuit.number());
            if let Err(error) = control.handle_datagram(now, path, message, random) {
                tracing::debug!(%circuit, %error, "handshake message over TLS refused");
            }
        });
    }

    /// Handles one message of the tunnel's port.
    fn take_message(&mut self, from: SocketAddr, datagram: &[u8]) {
        let now = clock::now();
        match classify(from, datagram) {
            Incoming::Gateway(message) => {
                let circuit = super::circuit::of_message(message);
                let circuit = circuit.and_then(|id| self.peers.circuit(id));
                let Some((slot, circuit)) = circuit else {
                    tracing::debug!(%from, "gateway message for an unknown circuit");
                    return;
                };
                // Drives the circuit at once: the message may have changed its next deadline.
                if circuit.receive(from, message, now) && circuit.follows() {
                    self.paths.set_due_now(slot);
                }
            }
            Incoming::Handshake { path, message } => {
                // Directly, or from a gateway of a circuit that is configured here.
                let is_known = match path {
                    PeerPath::Circuit { gateway, id } => CircuitId::new(id.get())
                        .and_then(|id| self.peers.circuit(id))
                        .is_some_and(|(_, circuit)| circuit.gateway_name(gateway).is_some()),
                    PeerPath::Direct(_) | PeerPath::Stream(_) => true,
                };
                if !is_known {
                    tracing::debug!(%path, "handshake message through an unknown circuit");
                    return;
                }
                let random = &mut self.random;
                match self.control.handle_datagram(now, path, message, random) {
                    Ok(id) => {
                        if let Some((_, peer)) = self.peers.by_id(id) {
                            let last = peer.handshake_source.replace(from.ip());
                            self.changes.watched |= last != Some(from.ip());
                        }
                    }
                    Err(error) => tracing::debug!(%from, %error, "handshake message refused"),
                }
            }
        }
    }

    /// Handles the workers' reports.
    pub(super) fn take_reports(&mut self) -> HostActivity {
        let mut hosts = HostActivity::default();
        let now = clock::mono();
        let mut responsive = Vec::new();
        for worker in 0..self.workers.len() {
            while let Some(event) = self.workers.next_event(worker) {
                let slot = match &event {
                    Event::HostUsed { key } => {
                        hosts.used.push(*key);
                        continue;
                    }
                    Event::SessionConfirmed { peer, .. }
                    | Event::ControlMessage { peer, .. }
                    | Event::Activity { peer, .. } => *peer,
                };
                let Some(peer) = self.peers.get_mut(slot) else {
                    continue;
                };
                match event {
                    Event::SessionConfirmed { index, .. } => {
                        self.control.confirm_session(now, peer.id, index);
                    }
                    Event::ControlMessage { message, .. } => {
                        self.control.handle_control_message(now, peer.id, message);
                    }
                    Event::Activity { tx, rx, stats, .. } => {
                        if let Some(session) = rx.session {
                            self.control.confirm_session(now, peer.id, session);
                        }
                        if peer.record_activity(worker, LaneActivity { tx, rx, stats }) {
                            responsive.push(slot);
                        }
                        follow(&mut self.control, now, peer);
                        self.control.report_sent(now, peer.id, peer.tx());
                        self.control.report_received(now, peer.id, peer.rx());
                    }
                    Event::HostUsed { .. } => {}
                }
            }
            self.workers.take_unresolved(worker, &mut hosts.unresolved);
        }
        // One worker received from it; each has buffered segments of its own flows.
        for slot in responsive {
            self.workers.command_all(|| Command::PeerResponsive(slot));
        }
        hosts
    }

    /// Handles all expired timers.
    pub(super) fn drive(&mut self, maps: &mut dyn ProgramMaps) {
        let mut moved = self.drive_circuits(maps);
        moved |= self.take_outputs(maps);
        for _ in 0..ROUNDS {
            let now = clock::now();
            if self.control.next_deadline().is_none_or(|at| at > now.mono) {
                break;
            }
            self.control.handle_timeout(now, &mut self.random);
            moved |= self.take_outputs(maps);
        }
        if moved {
            self.write_peer_addresses(maps);
        }
        self.workers.wake_all();
    }

    /// Drives the circuits that are due. Returns whether a peer has another path now.
    fn drive_circuits(&mut self, maps: &mut dyn ProgramMaps) -> bool {
        let (now, mut moved) = (clock::now(), false);
        for change in self.tls.poll() {
            self.tls_changed(now, change);
        }
        for slot in self.paths.take_due(now.mono) {
            let chosen = self.choose_path(slot, now);
            let mut next = None;
            if let Some(circuit) = self.peers.get_mut(slot).and_then(|p| p.circuit.as_mut()) {
                while let Some(message) = circuit.poll() {
                    self.sockets.send(message.to, &message.bytes);
                }
                next = CircuitClient::next_deadline(circuit);
            }
            self.paths.driven(slot, next);
            let Some((path, peer)) = chosen.zip(self.peers.get(slot)) else {
                continue;
            };
            // The tunnel may have moved to this path for another reason.
            if peer.path == Some(path) {
                continue;
            }
            let id = peer.id;
            tracing::info!(peer = peer.spec.name, %path, "tunnel path changed");
            self.control.set_paths(now.mono, id, vec![path]);
            self.control.move_peer(now.mono, id, path);
            moved |= self.take_outputs(maps);
            // The other end learns of the path before there is data to send.
            self.send_own(id, Command::Keepalive);
        }
        moved
    }

    /// Handles a change of a TLS connection.
    fn tls_changed(&mut self, now: Now, change: Change) {
        let circuit = change.circuit();
        let random = self.random.u64();
        let transport = self
            .peers
            .slot_of(circuit)
            .and_then(|slot| self.peers.get_mut(slot)?.transport.as_mut());
        match change {
            Change::Open(_, rings) => {
                for (worker, ring) in rings.into_iter().enumerate() {
                    let request = Request::OpenRing(circuit.number(), ring);
                    self.workers.request(worker, request);
                    self.workers.wake(worker);
                }
                if let Some(transport) = transport {
                    transport.established();
                }
            }
            Change::Closed(_) => {
                if let Some(transport) = transport {
                    transport.closed(now.mono, random);
                }
                close_rings(&mut self.workers, circuit);
            }
            Change::Failed(_) => {
                if let Some(transport) = transport {
                    transport.failed(now.mono, random);
                }
            }
            Change::Stalled(_) => {
                if let Some(transport) = transport {
                    transport.stalled(now.mono, random);
                }
            }
            Change::Resumed(_) => {}
        }
        if let Some(slot) = self.peers.slot_of(circuit) {
            self.update_outer(slot);
        }
    }

    /// Drives a peer's circuit and its choice between UDP and TLS; the path that the tunnel is to
    /// take, if this end chooses and there is one.
    fn choose_path(&mut self, slot: u32, now: Now) -> Option<PeerPath> {
        let peer = self.peers.get_mut(slot)?;
        let circuit = peer.circuit.as_mut()?;
        circuit.drive(now, peer.silent);
        let (id, udp) = (circuit.id(), circuit.udp_path());
        let Some(transport) = &mut peer.transport else {
            return udp;
        };
        let down = self.control.status(now.mono, peer.id).and_then(|s| s.down);
        let unanswered = matches!(down, Some(DownReason::NoAnswer { attempts })
            if attempts >= MAX_UNANSWERED_HANDSHAKES);
        let decision = transport.step(
            now.mono,
            TransportState {
                udp: udp.is_some(),
                tls: self.tls.is_open(id),
                stalled: self.tls.is_stalled(id),
                dialing: self.tls.is_dialing(id),
                silent: peer.silent || unanswered,
            },
        );
        let current = transport.current();
        if decision.close {
            let was_open = match current {
                Some(Transport::Tls) => self.tls.abandon(id),
                Some(Transport::Udp) | None => self.tls.close(id),
            };
            if was_open {
                close_rings(&mut self.workers, id);
            }
            transport.closed(now.mono, self.random.u64());
        }
        if decision.cancel_dial {
            self.tls.cancel_dial(id);
        }
        if decision.dial
            && let Some(spec) = &peer.spec.circuit
            && let Some(tls) = &spec.tls
            && let Some(key) = tls_connections::key(&self.secret, &peer.spec.public_key, id)
        {
            for (address, report) in self.tls.take_reports(id) {
                circuit.report_stream(address, report, now.mono);
            }
            // Without an address there is no attempt, and so no failure.
            if let Some(race) = circuit.race(self.tls.peer(id), now.mono)
                && !self.tls.dial(id, key, tls, race)
            {
                transport.failed(now.mono, self.random.u64());
            }
        }
        match current? {
            Transport::Udp => udp,
            Transport::Tls => Some(PeerPath::Stream(id.number())),
        }
    }

    /// Carries out the outputs of the tunnel's control half. Returns whether the path of a peer
    /// changed.
    pub(super) fn take_outputs(&mut self, maps: &mut dyn ProgramMaps) -> bool {
        let mut moved = false;
        while let Some(output) = self.control.poll_output() {
            match output {
                Output::Transmit { to, datagram } => self.transmit(to, datagram.as_bytes()),
                Output::Receive {
                    peer,
                    lane,
                    session,
                } => {
                    let Some((slot, peer)) = self.peers.by_id(peer) else {
                        continue;
                    };
                    let index = session.wire_index();
                    peer.sessions.insert(index, session.index());
                    let opener = self.workers.opener(lane);
                    self.workers
                        .command(opener, Command::Receive(slot, session));
                    self.workers.wake(opener);
                    let known = true;
                    if let Err(error) = maps.apply(MapWrite::Session { index, known }) {
                        tracing::error!(
                            %error,
                            "cannot write a session to the programs' map: its datagrams will be \
                             dropped"
                        );
                    }
                }
                Output::Send {
                    peer,
                    lane,
                    session,
                } => {
                    // Lanes past the number of workers are not sent on.
                    if let Some((slot, _)) = self.peers.by_id(peer) {
                        let command = Command::Send(slot, Box::new(session));
                        self.workers.command(lane as usize, command);
                    }
                }
                Output::Retire { peer, index } => {
                    let Some((slot, peer)) = self.peers.by_id(peer) else {
                        continue;
                    };
                    for wire_index in peer.retire_session(index) {
                        forget_session(maps, wire_index);
                    }
                    self.workers.command_all(|| Command::Retire(slot, index));
                }
                Output::Path { peer, path } => {
                    if let Some((slot, peer)) = self.peers.by_id(peer) {
                        let before = peer.path.replace(path);
                        note_address(clock::mono(), peer, path);
                        // Another port of the same host changes no route and no address.
                        if !before.is_some_and(|before| before.is_same_host(&path)) {
                            moved = true;
                            self.changes.watched = true;
                        }
                        self.workers.command_all(|| Command::PeerPath(slot, path));
                        self.update_outer(slot);
                    }
                }
                Output::MaxDatagram { peer, bytes } => {
                    if let Some((slot, peer)) = self.peers.by_id(peer) {
                        peer.max_datagram = bytes;
                        self.workers
                            .command_all(|| Command::MaxDatagram(slot, bytes));
                    }
                }
                Output::Keepalive { peer } => self.send_own(peer, Command::Keepalive),
                Output::ControlMessage {
                    peer,
                    message,
                    pad_to,
                } => {
                    self.send_own(peer, |slot| Command::ControlMessage(slot, message, pad_to));
                }
                Output::Event { peer, event } => {
                    if let Some((slot, peer)) = self.peers.by_id(peer) {
                        log_event(clock::mono(), peer, event);
                        if matches!(event, tunnel::Event::Silent | tunnel::Event::Down) {
                            peer.silent = true;
                            self.workers.command_all(|| Command::PeerSilent(slot));
                        }
                    }
                }
            }
        }
        moved
    }

    /// Computes the headers for a peer's datagrams, and sends them to the workers if they changed.
    pub(super) fn update_outer(&mut self, slot: u32) {
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        let circuit = peer.circuit.as_ref();
        let tls_is_open = circuit.is_some_and(|circuit| self.tls.is_open(circuit.id()));
        let outer = self.paths.outer_header(peer, tls_is_open);
        if let Some(waiting) = peer.set_outer(outer) {
            self.workers
                .command_all(|| Command::OuterHeader(slot, outer.map(Box::new)));
            for message in waiting {
                self.workers.command(0, message);
            }
        }
    }

    /// Has lane 0 send a message of our own, now or as soon as the path to the peer is known: a
    /// peer that just dialed waits for an answer.
    fn send_own(&mut self, peer: PeerId, command: impl FnOnce(u32) -> Command) {
        let Some((slot, peer)) = self.peers.by_id(peer) else {
            return;
        };
        if let Some(command) = peer.send_or_queue(command(slot)) {
            self.workers.command(0, command);
        }
    }

    /// Sends a handshake message.
    fn transmit(&mut self, path: PeerPath, message: &[u8]) {
        self.changes.timestamps = true;
        match path {
            PeerPath::Direct(to) => self.sockets.send(to, message),
            PeerPath::Circuit { gateway, id } => {
                if let Some(frame) = CircuitFrame::new(id, message) {
                    self.sockets.send(gateway, frame.as_bytes());
                }
            }
            PeerPath::Stream(id) => {
                if !self.tls.send(id, message) {
                    self.sockets.count_send_error();
                }
            }
        }
    }
}

/// Moves data to the path of a peer's newest datagram, if that is allowed.
fn follow(control: &mut TunnelControl, now: Instant, peer: &mut Peer) {
    let rx = peer.rx();
    let (Some(path), Some(seen)) = (rx.path, rx.path_seen) else {
        return;
    };
    if peer.path == Some(path) {
        control.follow_peer(now, peer.id, path, seen);
        return;
    }
    if !peer.may_move_to(path) {
        tracing::trace!(
            peer = peer.spec.name,
            %path,
            "packet from the peer on a path that the peer may not move to"
        );
        return;
    }
    if let (Some(circuit), PeerPath::Circuit { gateway, .. }) = (&mut peer.circuit, path) {
        circuit.peer_received_from(gateway);
    }
    control.follow_peer(now, peer.id, path, seen);
}

/// Notes where data to a peer goes now, and logs if it begins to alternate between two addresses.
fn note_address(now: Instant, peer: &mut Peer, path: PeerPath) {
    // Several gateways are several addresses of one machine.
    let PeerPath::Direct(address) = path else {
        return;
    };
    if peer.alternation.note(now, address)
        && let Some([one, other]) = peer.alternation.addresses(now)
    {
        tracing::warn!(
            peer = peer.spec.name,
            %one,
            %other,
            "the peer's datagrams come from two addresses in turn; if two machines have its key, \
             such as an appliance and its clone, stop one of them"
        );
    }
}

/// Logs an event of a peer; its moves at a limited rate (`MoveLog`).
fn log_event(now: Instant, peer: &mut Peer, event: tunnel::Event) {
    match event {
        tunnel::Event::Moved(path) => {
            if let Some(moves) = peer.moves.note(now) {
                tracing::info!(peer = peer.spec.name, %path, moves, "the peer has moved");
            }
        }
        tunnel::Event::Rekeyed => {
            tracing::debug!(peer = peer.spec.name, "tunnel has new keys");
        }
        tunnel::Event::Up => tracing::info!(peer = peer.spec.name, "tunnel is up"),
        tunnel::Event::Down => {
            tracing::info!(
                peer = peer.spec.name,
                "tunnel is down: its last session expired"
            );
        }
        tunnel::Event::Silent => tracing::info!(peer = peer.spec.name, "peer does not answer"),
        tunnel::Event::GaveUp => {
            tracing::info!(
                peer = peer.spec.name,
                "handshake attempts ended; the next packet begins new ones"
            );
        }
    }
}

/// Removes a circuit's rings from the workers.
pub(super) fn close_rings(workers: &mut WorkerPool, circuit: CircuitId) {
    workers.request_all(|| Request::CloseRing(circuit.number()));
    workers.wake_all();
}

/// Removes a session's index from the programs' map.
pub(super) fn forget_session(maps: &mut dyn ProgramMaps, index: u32) {
    let known = false;
    if let Err(error) = maps.apply(MapWrite::Session { index, known }) {
        tracing::error!(%error, "cannot remove an ended session from the programs' map");
    }
}
