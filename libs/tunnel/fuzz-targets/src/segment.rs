//! Segment headers, control messages, fragmentation and reassembly, against simple models.

use std::collections::BTreeMap;
use std::time::Duration;

use tunnel::segment::{
    CONTROL_MESSAGE_BYTES, ControlMessage, FragmentLayout, HEADER_BYTES, Header, InvalidSegment,
    MAX_FRAGMENTS, Reassembler, ReassemblyLimits,
};
use tunnel::{Instant, PayloadKind};

use fuzzing::Input;

const ACTS: usize = 200;
const MS: u64 = 1_000_000;

/// Parses the input as a segment and as a control message; then as acts on one [`Reassembler`].
pub fn segment(data: &[u8]) {
    header(data);
    control_message(data);
    reassemble(&mut Input::new(data));
}

fn header(plaintext: &[u8]) {
    let Ok((header, body)) = Header::parse(plaintext) else {
        return;
    };
    assert_eq!(header.to_bytes(), plaintext[..HEADER_BYTES]);
    assert_eq!(body, &plaintext[HEADER_BYTES..]);
    assert!(!body.is_empty() && fits(header, body));
}

/// Whether header and body agree, written again from the module's documentation.
fn fits(header: Header, body: &[u8]) -> bool {
    let (stride, len) = (usize::from(header.stride), body.len());
    match (header.index, header.last) {
        (0, 0) => stride == 0 && len > 0,
        _ if header.kind == PayloadKind::Control => false,
        (index, last @ 1..=15) if index < last => len == stride && len > 0,
        (index, last @ 1..=15) if index == last => (1..=stride).contains(&len),
        _ => false,
    }
}

fn control_message(body: &[u8]) {
    let Ok(message) = ControlMessage::parse(body) else {
        return;
    };
    assert_eq!(message.to_bytes(), body[..CONTROL_MESSAGE_BYTES]);
    assert!(body[CONTROL_MESSAGE_BYTES..].iter().all(|&byte| byte == 0));
}

/// An incomplete packet in the model.
struct Entry {
    name: (u32, u64),
    fields: (PayloadKind, u32, u16, u8),
    fragments: BTreeMap<u8, Vec<u8>>,
    since: Instant,
}

/// The model of [`Reassembler`]: fragments in a tree, packets in a list.
struct Model {
    limits: ReassemblyLimits,
    slots: Vec<Option<Entry>>,
}

impl Model {
    fn offer(
        &mut self,
        now: Instant,
        session: u32,
        counter: u64,
        header: Header,
        body: &[u8],
    ) -> Result<Option<Vec<u8>>, InvalidSegment> {
        let limit = self.limits.max_packet;
        let stride = usize::from(header.stride);
        if header.last == 0
            || usize::from(header.last) >= MAX_FRAGMENTS
            || header.index > header.last
            || !fits(header, body)
        {
            return Err(InvalidSegment::FragmentFields);
        }
        let end = usize::from(header.index) * stride + body.len();
        if end.max(usize::from(header.last) * stride + 1) > limit {
            return Err(InvalidSegment::TooLong { limit });
        }
        let Some(base) = counter.checked_sub(u64::from(header.index)) else {
            return Err(InvalidSegment::FragmentFields);
        };
        let name = (session, base);
        let fields = (header.kind, header.network, header.stride, header.last);
        let found = self
            .slots
            .iter()
            .position(|slot| slot.as_ref().is_some_and(|entry| entry.name == name));
        let at = found.unwrap_or_else(|| {
            let free = self.slots.iter().position(Option::is_none);
            free.unwrap_or_else(|| {
                let age = |at: &usize| self.slots[*at].as_ref().map(|entry| entry.since);
                (0..self.slots.len()).min_by_key(age).unwrap_or(0)
            })
        });
        let late = |entry: &Entry| now.since(entry.since) >= self.limits.timeout;
        if found.is_none() || self.slots[at].as_ref().is_none_or(late) {
            self.slots[at] = Some(Entry {
                name,
                fields,
                fragments: BTreeMap::new(),
                since: now,
            });
        }
        let Some(entry) = &mut self.slots[at] else {
            unreachable!("filled above")
        };
        if entry.fields != fields
            || entry
                .fragments
                .insert(header.index, body.to_vec())
                .is_some()
        {
            self.slots[at] = None;
            return Err(InvalidSegment::Conflict);
        }
        if entry.fragments.len() <= usize::from(header.last) {
            return Ok(None);
        }
        let entry = self.slots[at].take();
        Ok(entry.map(|entry| entry.fragments.into_values().flatten().collect()))
    }
}

struct World {
    now: u64,
    reassembler: Reassembler,
    model: Model,
    completed: u64,
    refused: u64,
}

fn reassemble(input: &mut Input<'_>) {
    let limits = ReassemblyLimits {
        slots: 1 + input.below(4),
        max_packet: 1 + usize::from(input.u16() % 600),
        timeout: Duration::from_millis(u64::from(input.u8())),
    };
    let mut world = World {
        now: 1_000 * MS,
        reassembler: Reassembler::new(limits),
        model: Model {
            limits,
            slots: (0..limits.slots).map(|_| None).collect(),
        },
        completed: 0,
        refused: 0,
    };
    for _ in 0..ACTS {
        if input.is_empty() {
            break;
        }
        world.act(input);
    }
}

fn kind(input: &mut Input<'_>) -> PayloadKind {
    [PayloadKind::Ip, PayloadKind::Frame, PayloadKind::Control][input.below(3)]
}

impl World {
    fn offer(&mut self, session: u32, counter: u64, header: Header, body: &[u8]) {
        let now = Instant::from_nanos(self.now);
        let expected = self.model.offer(now, session, counter, header, body);
        let got = self.reassembler.offer(now, session, counter, header, body);
        match (&got, &expected) {
            (Ok(Some(got)), Ok(Some(expected))) => {
                assert_eq!(got, expected);
                self.completed += 1;
            }
            (Ok(None), Ok(None)) => {}
            (Err(got), Err(expected)) => {
                assert_eq!(got, expected);
                self.refused += 1;
            }
            _ => panic!("{header:?} of counter {counter}: {got:?}, expected {expected:?}"),
        }
        let pending = self.model.slots.iter().flatten().count();
        assert_eq!(self.reassembler.pending(), pending);
        let stats = self.reassembler.stats();
        assert_eq!(
            (stats.completed, stats.refused),
            (self.completed, self.refused)
        );
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            // Any fields, also those with which no header is parsed.
            0 => {
                let header = Header {
                    kind: kind(input),
                    network: u32::from(input.u8()),
                    stride: u16::from(input.u8()),
                    index: input.u8() % 20,
                    last: input.u8() % 20,
                };
                let (session, counter) = (input.u32() % 2, input.u64());
                let len = input.below(200);
                let body = input.bytes(len);
                self.offer(session, counter, header, body);
            }
            // A plaintext from the input.
            1 => {
                let counter = u64::from(input.u8());
                let len = input.below(200);
                if let Ok((header, body)) = Header::parse(input.bytes(len)) {
                    self.offer(0, counter, header, body);
                }
            }
            // One fragment of an honest packet that follows from its counter; sometimes a wrong
            // one.
            2..=4 => {
                let base = u64::from(input.u8() % 64) * 16;
                let len = 2 + (base as usize * 7) % 300;
                let room = 1 + len / (1 + (base as usize / 16) % 15);
                let packet: Vec<u8> = (0..len).map(|at| (at as u64 ^ base) as u8).collect();
                let Some(plan) = FragmentLayout::new(len, room).filter(|plan| plan.last > 0) else {
                    return;
                };
                let index = input.u8() % plan.fragments() as u8;
                let header = Header {
                    kind: if input.u8() < 250 {
                        PayloadKind::Ip
                    } else {
                        PayloadKind::Frame
                    },
                    network: 7,
                    stride: plan.stride,
                    index,
                    last: plan.last,
                };
                let counter = base + u64::from(index);
                self.offer(0, counter, header, plan.fragment(&packet, index));
            }
            // A whole packet, its fragments rotated: it must be completed unless there are
            // conflicts.
            5 => self.cut(input),
            6 => {
                let step = u64::from(input.u16()) * MS / 8;
                self.now = if input.flag() {
                    self.now.saturating_sub(step)
                } else {
                    self.now.saturating_add(step)
                };
            }
            _ => {
                let now = Instant::from_nanos(self.now);
                self.reassembler.expire(now);
                let timeout = self.model.limits.timeout;
                for slot in &mut self.model.slots {
                    slot.take_if(|entry| now.since(entry.since) >= timeout);
                }
                let pending = self.model.slots.iter().flatten().count();
                assert_eq!(self.reassembler.pending(), pending);
            }
        }
    }

    fn cut(&mut self, input: &mut Input<'_>) {
        let (len, room) = (usize::from(input.u16() % 700), usize::from(input.u8()));
        let packet: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let Some(plan) = FragmentLayout::new(len, room) else {
            assert!(len == 0 || room == 0 || len.div_ceil(room) > MAX_FRAGMENTS);
            return;
        };
        assert_eq!(plan.fragments(), len.div_ceil(room));
        let joined: Vec<u8> = (0..plan.fragments() as u8)
            .flat_map(|index| plan.fragment(&packet, index).to_vec())
            .collect();
        assert_eq!(joined, packet);
        if plan.last == 0 {
            return;
        }
        let (base, turn) = (input.u64() >> 1, input.u8());
        for step in 0..plan.fragments() as u8 {
            let index = (step.wrapping_add(turn)) % plan.fragments() as u8;
            let header = Header {
                kind: PayloadKind::Frame,
                network: 9,
                stride: plan.stride,
                index,
                last: plan.last,
            };
            let body = plan.fragment(&packet, index);
            assert!(body.len() <= room);
            let mut plaintext = header.to_bytes().to_vec();
            plaintext.extend_from_slice(body);
            assert_eq!(Header::parse(&plaintext), Ok((header, body)));
            self.offer(1, base + u64::from(index), header, body);
        }
    }
}
