//! One end of a circuit at one gateway: makes its messages and checks the answers.
//!
//! The owner of the socket asks for a bind about every second, and at once when its network has
//! changed; hands in received messages; and sends the messages that it gets.

use std::{collections::VecDeque, time::Duration};

use crate::wire::{CircuitId, Datagram, Key, Kind, Load, MESSAGE_BYTES, Message, Side, Tag, parse};

/// Unanswered binds at most: those of five seconds at the shortest interval of binds.
const MAX_OUTSTANDING: usize = 64;

/// One side of a circuit at one gateway.
#[derive(Debug)]
pub struct End {
    circuit: CircuitId,
    side: Side,
    key: Key,
    cookie: Tag,
    /// Timestamp of the last message.
    newest: u64,
    /// Timestamp of the newest answered message; at first, below that of the first message.
    answered: u64,
    /// Timestamps of the binds whose answers count, ascending: [`MAX_OUTSTANDING`] at most.
    outstanding: VecDeque<u64>,
    /// Whether the last bind was challenged: one challenge for each bind prevents endless
    /// exchanges.
    challenged: bool,
    /// Timestamp of the last unbind, which one challenge may answer; `None` after that, or after a
    /// later bind.
    leaving: Option<u64>,
    /// Load of the gateway, by its last answer that told it.
    load: Option<u16>,
}

/// The effect of a message of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndEvent {
    /// Send this message to the gateway now.
    Send([u8; MESSAGE_BYTES]),
    /// The end is bound for this number of milliseconds.
    Bound(u32),
    /// The gateway stops soon: bind at another gateway, then unbind here.
    Move,
}

impl End {
    /// An end that has sent no message.
    #[must_use]
    pub fn new(circuit: CircuitId, side: Side, key: Key) -> Self {
        Self {
            circuit,
            side,
            key,
            cookie: Tag::NONE,
            newest: 0,
            answered: 0,
            outstanding: VecDeque::new(),
            challenged: false,
            leaving: None,
            load: None,
        }
    }

    /// A bind to send. `clock`: nanoseconds since 1970. Timestamps grow even if the clock stands or
    /// steps back.
    pub fn bind(&mut self, clock: u64) -> [u8; MESSAGE_BYTES] {
        self.challenged = false;
        self.leaving = None;
        self.message(Kind::Bind, clock)
    }

    /// An unbind to send. Answers to earlier binds do not count from now on: a late challenge must
    /// not bind the end again. A gateway that accepts the unbind does not answer. One that does not
    /// accept its cookie sends a challenge, for which [`End::receive`] returns another unbind; if
    /// that is lost, the end is unbound after the lifetime.
    pub fn unbind(&mut self, clock: u64) -> [u8; MESSAGE_BYTES] {
        self.outstanding.clear();
        let message = self.message(Kind::Unbind, clock);
        self.leaving = Some(self.newest);
        message
    }

    /// Handles a datagram of the gateway; `None`: it is no valid, new message for this end.
    pub fn receive(&mut self, datagram: &[u8], clock: u64) -> Option<EndEvent> {
        let Ok(Datagram::Message(sealed)) = parse(datagram) else {
            return None;
        };
        if (sealed.circuit(), sealed.side()) != (self.circuit, self.side) {
            return None;
        }
        let message = sealed.open(&self.key)?;
        // A reflected message of an end is no answer; the true answer must still count.
        if matches!(message.kind, Kind::Bind | Kind::Unbind) {
            return None;
        }
        if message.kind == Kind::Challenge && self.leaving == Some(message.timestamp) {
            self.leaving = None;
            self.cookie = message.cookie;
            return Some(EndEvent::Send(self.message(Kind::Unbind, clock)));
        }
        // An answer counts once, and only for a bind of this instance. Only `Move` may come without
        // a new request.
        let is_awaited = self.outstanding.contains(&message.timestamp)
            || (message.kind == Kind::Move && message.timestamp == self.answered);
        if !is_awaited {
            return None;
        }
        self.outstanding.retain(|sent| *sent > message.timestamp);
        self.answered = message.timestamp;
        self.load = message.load.thousandths().or(self.load);
        match message.kind {
            Kind::Challenge if self.challenged => None,
            Kind::Challenge => {
                self.challenged = true;
                self.cookie = message.cookie;
                Some(EndEvent::Send(self.message(Kind::Bind, clock)))
            }
            Kind::Bound => {
                self.cookie = message.cookie;
                Some(EndEvent::Bound(message.lifetime))
            }
            Kind::Move => {
                // The answer to a bind has one, for the unbind that follows; an order without a
                // bind has none.
                if message.cookie != Tag::NONE {
                    self.cookie = message.cookie;
                }
                Some(EndEvent::Move)
            }
            Kind::Bind | Kind::Unbind => None,
        }
    }

    /// Load of the gateway in thousandths, by the last of its answers that told it.
    #[must_use]
    pub const fn load(&self) -> Option<u16> {
        self.load
    }

    /// Round trip of the last answered message; zero if the clock has stepped back.
    #[must_use]
    pub fn round_trip(&self, clock: u64) -> Duration {
        Duration::from_nanos(clock.saturating_sub(self.answered))
    }

    fn message(&mut self, kind: Kind, clock: u64) -> [u8; MESSAGE_BYTES] {
        if self.newest == 0 {
            self.answered = clock;
        }
        self.newest = clock.max(self.newest).saturating_add(1);
        if kind == Kind::Bind {
            if self.outstanding.len() == MAX_OUTSTANDING {
                self.outstanding.pop_front();
            }
            self.outstanding.push_back(self.newest);
        }
        let message = Message {
            kind,
            side: self.side,
            circuit: self.circuit,
            timestamp: self.newest,
            cookie: self.cookie,
            lifetime: 0,
            load: Load::UNKNOWN,
        };
        message.seal(&self.key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn circuit() -> CircuitId {
        CircuitId::new(1 << 32).expect("an id")
    }

    fn key() -> Key {
        Key::new([3; 32])
    }

    fn end() -> End {
        End::new(circuit(), Side::A, key())
    }

    /// The answer of a gateway.
    fn answer(bind: &[u8], kind: Kind) -> [u8; MESSAGE_BYTES] {
        let Ok(Datagram::Message(sealed)) = parse(bind) else {
            panic!("not a message");
        };
        let message = Message {
            kind,
            cookie: Tag([kind as u8; 16]),
            lifetime: if kind == Kind::Bound { 500 } else { 0 },
            load: match kind {
                Kind::Bound | Kind::Move => Load::from_thousandths(kind as u16 * 100),
                _ => Load::UNKNOWN,
            },
            ..sealed.open(&key()).expect("of this key")
        };
        message.seal(&key())
    }

    #[test]
    fn timestamps_grow_with_any_clock() {
        let mut end = end();
        let stamp = |bytes: [u8; MESSAGE_BYTES]| bytes[20..28].to_vec();
        let stamps = [5, 5, 9, 2, 0, 100].map(|clock| stamp(end.bind(clock)));
        assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
    }

    #[test]
    fn late_answers_count_and_old_ones_do_not() {
        let mut end = end();
        let (first, second) = (end.bind(10), end.bind(20));
        let late = answer(&first, Kind::Bound);
        assert_eq!(end.load(), None);
        assert_eq!(end.receive(&late, 21), Some(EndEvent::Bound(500)));
        assert_eq!(end.load(), Some(300));
        assert_eq!(end.receive(&late, 21), None, "already answered");
        let move_of = |bind| answer(bind, Kind::Move);
        assert_eq!(end.receive(&move_of(&first), 21), Some(EndEvent::Move));
        assert_eq!(end.load(), Some(400));
        let news = answer(&second, Kind::Bound);
        assert_eq!(end.receive(&news, 21), Some(EndEvent::Bound(500)));
        assert_eq!(end.receive(&move_of(&first), 21), None, "old");
        // A message that was never asked for does not count, whatever its timestamp.
        let third = end.bind(30);
        let mut made_up = answer(&third, Kind::Bound);
        let stamp = 25u64.to_be_bytes();
        made_up[20..28].copy_from_slice(&stamp);
        let tag = key().tag(&[&made_up[..48]]);
        made_up[48..].copy_from_slice(&tag.0);
        assert_eq!(end.receive(&made_up, 31), None);
        let unbound = end.unbind(40);
        assert_eq!(end.receive(&answer(&unbound, Kind::Bound), 41), None);
        // Answers to an earlier instance do not count.
        let mut again = super::tests::end();
        again.bind(30);
        assert_eq!(again.receive(&news, 31), None);
    }

    #[test]
    fn a_bind_answers_one_challenge() {
        let mut end = end();
        let mut message = end.bind(10);
        let mut said = 0;
        while let Some(EndEvent::Send(next)) = end.receive(&answer(&message, Kind::Challenge), 11) {
            message = next;
            said += 1;
        }
        assert_eq!(said, 1);
        assert_eq!(message[28..44], [Kind::Challenge as u8; 16]);
        end.bind(12);
    }

    #[test]
    fn an_unbind_answers_one_challenge_and_no_late_one_of_a_bind() {
        let mut end = end();
        let bind = end.bind(10);
        let unbind = end.unbind(20);
        for late in [Kind::Challenge, Kind::Bound, Kind::Move] {
            assert_eq!(end.receive(&answer(&bind, late), 21), None, "{late:?}");
        }
        let challenge = answer(&unbind, Kind::Challenge);
        let Some(EndEvent::Send(again)) = end.receive(&challenge, 21) else {
            panic!("no second unbind");
        };
        assert_eq!(again[9], Kind::Unbind as u8);
        assert_eq!(again[28..44], [Kind::Challenge as u8; 16], "its cookie");
        assert!(again[20..28] > unbind[20..28], "a later timestamp");
        assert_eq!(end.receive(&challenge, 22), None, "answered");
        let second = answer(&again, Kind::Challenge);
        assert_eq!(end.receive(&second, 22), None, "one challenge an unbind");
    }

    #[test]
    fn an_end_that_binds_again_does_not_unbind_because_of_an_old_challenge() {
        let mut end = end();
        end.bind(10);
        let unbind = end.unbind(20);
        let bind = end.bind(30);
        assert_eq!(end.receive(&answer(&unbind, Kind::Challenge), 31), None);
        let bound = answer(&bind, Kind::Bound);
        assert_eq!(end.receive(&bound, 31), Some(EndEvent::Bound(500)));
    }

    #[test]
    fn an_unbind_has_the_cookie_of_the_last_answer() {
        let mut end = end();
        for kind in [Kind::Bound, Kind::Move] {
            let bind = end.bind(10);
            assert!(end.receive(&answer(&bind, kind), 11).is_some());
            assert_eq!(end.unbind(12)[28..44], [kind as u8; 16], "{kind:?}");
        }
    }

    #[test]
    fn reflected_messages_and_those_for_others_are_ignored() {
        let mut end = end();
        let bind = end.bind(10);
        assert_eq!(end.receive(&bind, 11), None);
        let bound = answer(&bind, Kind::Bound);
        assert_eq!(
            end.receive(&bound, 11),
            Some(EndEvent::Bound(500)),
            "the true answer counts"
        );
        let mut other = End::new(circuit(), Side::B, key());
        other.bind(10);
        assert_eq!(other.receive(&answer(&bind, Kind::Bound), 11), None);
        let mut stranger = End::new(circuit(), Side::A, Key::new([4; 32]));
        stranger.bind(10);
        assert_eq!(stranger.receive(&answer(&bind, Kind::Bound), 11), None);
        assert_eq!(end.receive(&answer(&bind, Kind::Unbind), 11), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted_without_a_panic(
            bytes in vec(any::<u8>(), 0..100),
            head in any::<bool>(),
        ) {
            let mut end = end();
            end.bind(10);
            let mut bytes = bytes;
            if head && bytes.len() >= 20 {
                bytes[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0, 0]);
                bytes[12..20].copy_from_slice(&circuit().to_bytes());
            }
            prop_assert_eq!(end.receive(&bytes, 11), None);
        }
    }
}
