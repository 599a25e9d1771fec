//! The pipeline beside the model: random orders, packets and datagrams go to both.

use appliance_common::maps::{HostKey, Network};

use super::*;

pub(super) struct World {
    pub random: Seeded,
    model: Model,
    pub pipeline: Pipeline,
    counters: Arc<WorkerCounters>,
    pub wire: Memory,
    test_peers: Vec<(TestPeer, u32, u32)>,
    /// Datagrams sealed for us: session and plaintext; `None` once received.
    sealed: BTreeMap<Vec<u8>, Option<(usize, Vec<u8>)>>,
    /// The time, milliseconds.
    pub ms: u64,
}

/// Outcomes, of which a frame has exactly one. The other counters add detail to an outcome.
fn outcomes(counters: &WorkerCounters) -> u64 {
    let details = [
        Counter::TunnelFragmented,
        Counter::TunnelReassembled,
        Counter::MssClamped,
        Counter::OutageFlushed,
    ];
    let all = Counter::ALL.iter().filter(|c| !details.contains(c));
    all.map(|c| counters.counter(*c)).sum()
}

impl World {
    pub fn new(seed: u64) -> Self {
        let counters = Arc::new(WorkerCounters::default());
        let mut world = Self {
            random: Seeded(seed),
            model: Model::default(),
            pipeline: Pipeline::new(LaneAssignment::WHOLE, seed, Arc::clone(&counters)),
            counters,
            wire: Memory::default(),
            test_peers: Vec::new(),
            sealed: BTreeMap::new(),
            ms: 10,
        };
        // A state in which packets are delivered.
        for slot in 0..PEERS {
            world.peer(slot);
            world.session(slot);
        }
        for (slot, vni) in VNIS.into_iter().enumerate() {
            world.network(slot, vni, slot as u32 % 2);
            world.command(Command::Tenant(
                slot as u32,
                Tenant {
                    mode: Mode::Partial as u32,
                    epoch: 1,
                },
            ));
            world.model.partial.insert(slot as u32);
        }
        for vni in VNIS {
            world.endpoint(vni, hosts()[0], true);
            world.endpoint(vni, hosts()[5], true);
        }
        world
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.random.u64() % bound as u64) as usize
    }

    fn command(&mut self, command: Command) {
        self.pipeline
            .command(at(self.ms).mono, command, &mut self.wire);
        assert!(self.wire.frames.is_empty(), "an order sends nothing");
    }

    fn peer(&mut self, slot: u32) {
        let vni = VNIS[self.below(2)];
        let nets = [
            ("10.1.0.77".parse().expect("an address"), 32),
            ("10.1.0.64".parse().expect("an address"), 26),
        ];
        let nets = &nets[self.below(2)..];
        let prefixes: Box<[Prefix]> = nets
            .iter()
            .map(|(n, l)| Prefix::new(&from_ip(*n), 96 + l).expect("a length"))
            .collect();
        let (lane, member) = if slot < 2 {
            (PeerLanes::appliance(LaneAssignment::WHOLE), None)
        } else {
            (
                PeerLanes::wireguard(LaneAssignment::WHOLE, vni, prefixes),
                Some((vni, nets.to_vec())),
            )
        };
        self.command(Command::Peer(slot, Some(Box::new(lane))));
        let peer = ModelPeer {
            member,
            max_datagram: 1232,
            ..ModelPeer::default()
        };
        self.model.peers.insert(slot, peer);
        self.outer(slot, true);
    }

    fn addresses(slot: u32) -> [String; 2] {
        [format!("192.0.2.{}:6180", slot + 1), LOCAL.to_owned()]
    }

    fn outer(&mut self, slot: u32, has_path: bool) {
        let [remote, local] = Self::addresses(slot).map(|text| text.parse().expect("an address"));
        let outer = OuterHeader::new(UPLINK, [9; 6], [8; 6], local, remote).filter(|_| has_path);
        self.command(Command::OuterHeader(slot, outer.map(Box::new)));
        if let Some(peer) = self.model.peers.get_mut(&slot) {
            peer.has_path = has_path;
        }
    }

    fn session(&mut self, slot: u32) {
        let framing = if slot < 2 {
            Framing::Segments
        } else {
            Framing::WireGuard
        };
        let [from, to] = Self::addresses(slot);
        let seed = 1 + self.test_peers.len() as u64 + self.random.u64() % (1 << 40) * 1000;
        let (test_peer, tx, rx) = TestPeer::new(framing, seed, [&from, &to]);
        let name = rx.index();
        self.command(Command::Receive(slot, rx));
        self.command(Command::Send(slot, Box::new(tx)));
        let number = self.test_peers.len();
        self.test_peers.push((test_peer, slot, name));
        if let Some(peer) = self.model.peers.get_mut(&slot) {
            peer.tx = Some(number);
            peer.rx.insert(number);
            // The receiver keeps five; the oldest is replaced.
            if peer.rx.len() > 5 {
                peer.rx.pop_first();
            }
        }
    }

    fn network(&mut self, slot: usize, vni: u32, peer: u32) {
        let (provider, router) = (self.below(2) == 0, self.below(2) == 0);
        let mut network = Network {
            vni,
            tenant: slot as u32,
            peer,
            flags: network_flags::ACTIVE
                | network_flags::SECURE
                | if provider { network_flags::PROVIDER } else { 0 },
            mtu: 1432,
            lan_mtu: u16::MAX,
            prefix_count: 2,
            ..Network::default()
        };
        let v4 = from_ip(Ipv4Addr::new(10, 1, 0, 0).into());
        let v6 = "2001:db8:1::".parse().expect("an address");
        network.prefixes[0] = Prefix::new(&v4, 96 + 24).expect("a length");
        network.prefixes[1] = Prefix::new(&from_ip(v6), 64).expect("a length");
        if router {
            network.gateway_v4 = from_ip(Ipv4Addr::new(10, 1, 0, 1).into());
        }
        self.command(Command::Network(SLOTS[slot], Some(Box::new(network))));
        let tenant = slot as u32;
        let network = ModelNetwork {
            vni,
            tenant,
            peer,
            provider,
            router,
        };
        self.model.networks.insert(SLOTS[slot], network);
    }

    fn endpoint(&mut self, vni: u32, ip: IpAddr, there: bool) {
        let key = HostKey {
            vni,
            address: from_ip(ip),
        };
        self.command(Command::Endpoint(key, there));
        if there {
            self.model.endpoints.insert((vni, ip));
        } else {
            self.model.endpoints.remove(&(vni, ip));
        }
    }

    /// Gives a random order to the pipeline and to the model.
    pub fn random_order(&mut self) {
        let slot = self.below(PEERS as usize) as u32;
        let place = self.below(3);
        let vni = VNIS[self.below(3)];
        let ip = hosts()[self.below(8)];
        let key = HostKey {
            vni,
            address: from_ip(ip),
        };
        match self.below(14) {
            0 => {
                let taken = |n: (&u32, &ModelNetwork)| *n.0 != SLOTS[place] && n.1.vni == vni;
                if !self.model.networks.iter().any(taken) {
                    self.network(place, vni, slot);
                }
            }
            1 => {
                self.command(Command::Network(SLOTS[place], None));
                self.model.networks.remove(&SLOTS[place]);
            }
            2 => {
                let partial = self.below(4) != 0;
                let mode = if partial { Mode::Partial } else { Mode::Idle } as u32;
                let tenant = place as u32;
                self.command(Command::Tenant(tenant, Tenant { mode, epoch: 2 }));
                if partial {
                    self.model.partial.insert(tenant);
                } else {
                    self.model.partial.remove(&tenant);
                }
            }
            3 | 4 => {
                let there = self.below(2) == 0;
                self.endpoint(vni, ip, there);
            }
            5 | 6 => {
                let number = self.random.u32() as u8;
                let neighbour =
                    Neighbour::new(ACCESS, [2, 0, 0, 0, 0, number], [4; 6], 5, 6, 0x88a8);
                self.command(Command::Neighbour(key, Some(Box::new(neighbour))));
                self.model.neighbours.insert((vni, ip), number);
            }
            7 => {
                self.command(Command::Neighbour(key, None));
                self.model.neighbours.remove(&(vni, ip));
            }
            8 => {
                let all = [
                    ("10.1.0.77", 32, 2),
                    ("10.1.0.64", 26, 3),
                    ("10.1.0.0", 24, 1),
                ];
                let all =
                    all.map(|(n, len, peer)| (n.parse::<IpAddr>().expect("an address"), len, peer));
                let list = all[self.below(4).min(3)..].to_vec();
                let members = list.iter().map(|(n, len, peer)| PeerRoute {
                    prefix: Prefix::new(&from_ip(*n), 96 + len).expect("a length"),
                    peer: *peer,
                });
                self.command(Command::PeerRoutes(vni, members.collect()));
                self.model.members.insert(vni, list);
            }
            9 => self.peer(slot),
            10 => {
                self.command(Command::Peer(slot, None));
                self.model.peers.remove(&slot);
            }
            11 => self.session(slot),
            12 if !self.test_peers.is_empty() => {
                let number = self.below(self.test_peers.len());
                let name = self.test_peers[number].2;
                self.command(Command::Retire(slot, name));
                if let Some(peer) = self.model.peers.get_mut(&slot)
                    && self.test_peers[number].1 == slot
                {
                    peer.rx.remove(&number);
                    peer.tx = peer.tx.filter(|tx| *tx != number);
                }
            }
            _ => {
                let has_path = self.below(3) != 0;
                self.outer(slot, has_path);
                let bytes = 1232 + self.below(300);
                self.command(Command::MaxDatagram(slot, bytes));
                if let Some(peer) = self.model.peers.get_mut(&slot) {
                    peer.max_datagram = bytes;
                }
            }
        }
    }

    /// A packet between addresses of one family, perhaps with a changed byte or length.
    fn packet(&mut self, most: usize) -> Vec<u8> {
        let all = if self.below(4) == 0 {
            uncarried()
        } else {
            hosts()
        };
        let source = all[self.below(all.len())];
        let family: Vec<IpAddr> = hosts()
            .into_iter()
            .chain(uncarried())
            .filter(|ip| ip.is_ipv4() == source.is_ipv4())
            .collect();
        let reach = if self.below(4) == 0 { family.len() } else { 3 };
        let destination = family[self.below(reach)];
        let (source, destination) = if self.below(2) == 0 {
            (source, destination)
        } else {
            (destination, source)
        };
        let byte = [0xa5, 128, 135, 0][self.below(4)];
        let len = [0, 1, 8, 40, most][self.below(5)];
        let mut out = packet(
            &source.to_string(),
            &destination.to_string(),
            &vec![byte; len],
        );
        let header = if source.is_ipv4() { 20 } else { 40 };
        out[header..header + 8].fill(byte);
        let protocol = if source.is_ipv4() { 9 } else { 6 };
        out[protocol] = [17, 58, 0, 60, 43, 44, 1][self.below(7)];
        match self.below(8) {
            0 => {
                let at = self.below(out.len().min(48));
                out[at] = self.random.u32() as u8;
            }
            1 => out.truncate(self.random.u32() as usize % (header + 9)),
            2 => out.extend_from_slice(&[byte; 24]),
            _ => {}
        }
        // No TCP, with either IP version.
        for at in [6, 9] {
            if out.get(at) == Some(&6) {
                out[at] = 17;
            }
        }
        out
    }

    /// Gives the pipeline a frame; returns the number of counted outcomes.
    fn feed(&mut self, frame: &[u8]) -> u64 {
        let before = outcomes(&self.counters);
        let mut frame = frame.to_vec();
        let now = at(self.ms).mono;
        self.pipeline.frame(now, &mut frame, &mut self.wire);
        outcomes(&self.counters) - before
    }

    /// Gives the pipeline a packet to seal, and compares with the model.
    pub fn seal(&mut self) {
        let most = [100, 1100, 1160, 1300, 1472][self.below(5)];
        let packet = self.packet(most);
        let slot = if self.below(16) == 0 {
            self.random.u32()
        } else {
            SLOTS[self.below(3)]
        };
        let own = self.model.networks.get(&slot).map(|n| n.vni);
        let vni = own
            .filter(|_| self.below(8) != 0)
            .unwrap_or(VNIS[self.below(3)]);
        let mut frame = to_seal(slot, vni, &packet);
        if self.below(16) == 0 {
            frame.truncate(14 + self.below(frame.len() - 13));
        }
        let expected = self.model.sealed(&frame);
        let full = self.below(16) == 0;
        self.wire.full = full;
        let counters = self.feed(&frame);
        self.wire.full = false;
        assert_eq!(counters, 1, "{:x?}", &frame[..frame.len().min(80)]);
        let frames = std::mem::take(&mut self.wire.frames);
        let Some((number, wanted)) = expected.filter(|_| !full) else {
            assert!(frames.is_empty(), "{:x?}", &frame[..frame.len().min(80)]);
            return;
        };
        let now = at(self.ms);
        let mut received = None;
        for (ifindex, sent) in &frames {
            assert_eq!(*ifindex, UPLINK);
            assert!(sent.len() <= 42 + 1532);
            for (other, (test_peer, ..)) in self.test_peers.iter_mut().enumerate() {
                let opened = test_peer.receive(now, sent);
                assert_eq!(
                    opened.is_some(),
                    other == number,
                    "session {other} for {number}"
                );
                received = opened.or(received);
            }
        }
        let received = received.expect("something was sent");
        match self.model.peers[&self.test_peers[number].1].member {
            None => assert_eq!(received, wanted),
            // Empty if the peer cannot parse the packet; as long as its header says, if that is
            // within the padding.
            Some(_) => {
                let padded = [&wanted[..], &[0; 15]].concat();
                assert!(received.is_empty() || padded.starts_with(&received));
            }
        }
    }

    /// A frame arrives; `authentic` is its session and plaintext if it is authentic and new.
    /// `fragment`: it may be kept without an outcome.
    fn arrive(&mut self, frame: &[u8], authentic: Option<(usize, Vec<u8>)>, fragment: bool) {
        let verdict = authentic.map_or(Verdict::Dropped, |(number, plaintext)| {
            let slot = self.test_peers[number].1;
            self.model.opened(slot, &plaintext)
        });
        self.wire.waiting.clear();
        let counters = self.feed(frame);
        // A kept fragment has no outcome of its own: the reassembled packet is counted.
        assert!(
            counters == 1 || fragment && counters == 0,
            "{counters} of {frame:x?}"
        );
        let frames = std::mem::take(&mut self.wire.frames);
        let got = match (frames.as_slice(), self.wire.waiting.as_slice()) {
            ([], []) => Verdict::Dropped,
            ([(ifindex, frame)], []) => {
                assert_eq!(*ifindex, ACCESS);
                assert_eq!(frame[12..20], [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]);
                let kind = if frame[22] >> 4 == 4 {
                    [8, 0]
                } else {
                    [0x86, 0xdd]
                };
                assert_eq!(frame[20..22], kind);
                Verdict::Host(frame[5], frame[22..].to_vec())
            }
            ([], [(header, packet)]) => {
                Verdict::UnresolvedPacket(header.vni, to_ip(&header.next_hop), packet.clone())
            }
            more => panic!("{more:x?}"),
        };
        assert_eq!(got, verdict, "{frame:x?}");
    }

    /// The session and plaintext of a datagram that was sealed and not received yet, if the session
    /// is known. Marks it as received.
    fn receive(&mut self, frame: &[u8]) -> Option<(usize, Vec<u8>)> {
        // Ethernet, IPv4, UDP; the length is UDP's.
        let good = frame.get(12..15)? == [8, 0, 0x45] && *frame.get(23)? == 17;
        let len = usize::from(*frame.get(38)?) << 8 | usize::from(*frame.get(39)?);
        let datagram = frame.get(42..34 + len).filter(|_| good)?;
        let entry = self.sealed.get_mut(datagram)?;
        let (number, _) = entry.as_ref()?;
        let known = self.model.peers.get(&self.test_peers[*number].1);
        if known.is_none_or(|peer| !peer.rx.contains(number)) {
            return None;
        }
        entry.take()
    }

    /// Seals a message in a session; returns the frame.
    fn seal_in(&mut self, number: usize, plaintext: &[u8]) -> Vec<u8> {
        let now = at(self.ms);
        let frame = self.test_peers[number].0.send(now, plaintext);
        let value = (number, plaintext.to_vec());
        self.sealed.insert(frame[42..].to_vec(), Some(value));
        frame
    }

    /// Gives the pipeline datagrams to open, and compares with the model.
    pub fn open(&mut self) {
        if self.test_peers.is_empty() {
            return;
        }
        // Often a session in use.
        let slot = self.below(PEERS as usize) as u32;
        let current = self.model.peers.get(&slot).and_then(|peer| peer.tx);
        let number = current.unwrap_or(self.below(self.test_peers.len()));
        let segments = self.test_peers[number].1 < 2;
        let vni = VNIS[self.below(3)];
        let packet = self.packet(1300);
        match self.below(8) {
            // Random bytes, sealed.
            0 => {
                let mut plaintext = vec![0; self.below(64)];
                self.random.fill(&mut plaintext);
                let len = plaintext.len();
                // No fragment: that is the next arm.
                if len > 7 && segments {
                    plaintext[7] = 0;
                }
                let frame = self.seal_in(number, &plaintext);
                let authentic = self.receive(&frame);
                self.arrive(&frame, authentic, false);
            }
            // Fragments in any order; one may be missing.
            1 if segments && packet.len() > 15 => {
                let most = 2 + self.below(14);
                let stride = packet.len().div_ceil(most);
                let last = packet.len().div_ceil(stride) - 1;
                let mut frames = Vec::new();
                for (index, part) in packet.chunks(stride).enumerate() {
                    let header = Header {
                        kind: PayloadKind::Ip,
                        network: vni,
                        stride: stride as u16,
                        index: index as u8,
                        last: last as u8,
                    };
                    frames.push(self.seal_in(number, &[&header.to_bytes()[..], part].concat()));
                }
                for at in (1..frames.len()).rev() {
                    let with = self.below(at + 1);
                    frames.swap(at, with);
                }
                if self.below(4) == 0 {
                    frames.pop();
                }
                let mut came = 0;
                for frame in frames {
                    came += usize::from(self.receive(&frame).is_some());
                    let whole = (came == last + 1).then(|| {
                        let header = Header::whole(PayloadKind::Ip, vni).to_bytes();
                        (number, [&header[..], &packet].concat())
                    });
                    self.arrive(&frame, whole, true);
                }
            }
            // A replayed datagram, and a changed one.
            2 | 3 => {
                let plaintext =
                    [&Header::whole(PayloadKind::Ip, vni).to_bytes()[..], &packet].concat();
                let frame = self.seal_in(number, if segments { &plaintext } else { &packet });
                let mut changed = frame.clone();
                for _ in 0..1 + self.below(3) {
                    let at = self.below(changed.len());
                    match self.below(4) {
                        0 => changed.truncate(at),
                        1 => changed.extend_from_slice(&[7; 9]),
                        // The first bytes mark a packet to seal: these stay.
                        _ if at > 13 => changed[at] ^= 1 << self.below(8),
                        _ => {}
                    }
                    if changed.is_empty() {
                        changed.push(0);
                    }
                }
                for frame in [changed, frame.clone(), frame] {
                    let authentic = self.receive(&frame);
                    self.arrive(&frame, authentic, false);
                }
            }
            // Random bytes, some after outer headers.
            4 => {
                let mut bytes = vec![0; self.below(200)];
                self.random.fill(&mut bytes);
                let path = self.test_peers[number].0.path;
                let frame = around(path, &bytes);
                self.arrive(&frame, None, false);
                // Bytes 12 and 13 of a packet to seal are zero; random bytes rarely are.
                self.arrive(&bytes, None, false);
            }
            _ => {
                let plaintext =
                    [&Header::whole(PayloadKind::Ip, vni).to_bytes()[..], &packet].concat();
                let frame = self.seal_in(number, if segments { &plaintext } else { &packet });
                let authentic = self.receive(&frame);
                self.arrive(&frame, authentic, false);
            }
        }
    }
}
