//! The tenant's and the appliance's end of a circuit: what it says to a gateway, and what it
//! believes of the answers.
//!
//! Pure: whoever has the socket asks for a bind every second or so, and at once when its network
//! changed; hands in what comes with a message's id; and sends what it is given.

use std::time::Duration;

use crate::wire::{CircuitId, Datagram, Key, Kind, MESSAGE_BYTES, Message, Side, Tag, parse};

/// One side of a circuit at one gateway.
#[derive(Debug)]
pub struct End {
    circuit: CircuitId,
    side: Side,
    key: Key,
    cookie: Tag,
    /// Of the last message that it made.
    newest: u64,
    /// Of the newest message that an answer was heard to; at first, below the first one.
    heard: u64,
    /// Whether the last bind that was asked for has had its challenge: one each, or two could go on
    /// for ever.
    challenged: bool,
}

/// What a gateway's message comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Send this to the gateway now.
    Send([u8; MESSAGE_BYTES]),
    /// It is bound, for so many milliseconds.
    Bound(u32),
    /// The gateway is about to stop: take another, and unbind here then.
    Move,
}

impl End {
    /// One that has said nothing yet.
    #[must_use]
    pub const fn new(circuit: CircuitId, side: Side, key: Key) -> Self {
        Self {
            circuit,
            side,
            key,
            cookie: Tag::NONE,
            newest: 0,
            heard: 0,
            challenged: false,
        }
    }

    /// A bind to send. `clock`: nanoseconds since 1970; a clock that stands still or steps back is
    /// made up for while this lives.
    pub fn bind(&mut self, clock: u64) -> [u8; MESSAGE_BYTES] {
        self.challenged = false;
        self.say(Kind::Bind, clock)
    }

    /// An unbind to send. Its answer is silence.
    pub fn unbind(&mut self, clock: u64) -> [u8; MESSAGE_BYTES] {
        self.say(Kind::Unbind, clock)
    }

    /// What a datagram from the gateway comes to; `None`: it is not a message to this end, or not
    /// of now.
    pub fn hear(&mut self, datagram: &[u8], clock: u64) -> Option<Heard> {
        let Ok(Datagram::Message(sealed)) = parse(datagram) else {
            return None;
        };
        if (sealed.circuit(), sealed.side()) != (self.circuit, self.side) {
            return None;
        }
        let message = sealed.open(&self.key)?;
        // What an end says, thrown back at it: not an answer, and no reason to be deaf to the true
        // one.
        if matches!(message.kind, Kind::Bind | Kind::Unbind) {
            return None;
        }
        // Unasked, a gateway says only that one is to move.
        let is_news = message.timestamp > self.heard
            || (message.kind == Kind::Move && message.timestamp == self.heard);
        if !is_news || message.timestamp > self.newest {
            return None;
        }
        self.heard = message.timestamp;
        match message.kind {
            Kind::Challenge if self.challenged => None,
            Kind::Challenge => {
                self.challenged = true;
                self.cookie = message.cookie;
                Some(Heard::Send(self.say(Kind::Bind, clock)))
            }
            Kind::Bound => {
                self.cookie = message.cookie;
                Some(Heard::Bound(message.lifetime))
            }
            Kind::Move => Some(Heard::Move),
            Kind::Bind | Kind::Unbind => None,
        }
    }

    /// How long the message took that was answered last, there and back; nothing where the clock
    /// was stepped.
    #[must_use]
    pub fn round_trip(&self, clock: u64) -> Duration {
        Duration::from_nanos(clock.saturating_sub(self.heard))
    }

    fn say(&mut self, kind: Kind, clock: u64) -> [u8; MESSAGE_BYTES] {
        if self.newest == 0 {
            self.heard = clock;
        }
        self.newest = clock.max(self.newest).saturating_add(1);
        let message = Message {
            kind,
            side: self.side,
            circuit: self.circuit,
            timestamp: self.newest,
            cookie: self.cookie,
            lifetime: 0,
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

    /// What a gateway answers.
    fn answer(bind: &[u8], kind: Kind) -> [u8; MESSAGE_BYTES] {
        let Ok(Datagram::Message(sealed)) = parse(bind) else {
            panic!("not a message");
        };
        let message = Message {
            kind,
            cookie: Tag([kind as u8; 16]),
            lifetime: if kind == Kind::Bound { 500 } else { 0 },
            ..sealed.open(&key()).expect("of this key")
        };
        message.seal(&key())
    }

    #[test]
    fn timestamps_grow_whatever_the_clock_does() {
        let mut end = end();
        let stamp = |bytes: [u8; MESSAGE_BYTES]| bytes[20..28].to_vec();
        let stamps = [5, 5, 9, 2, 0, 100].map(|clock| stamp(end.bind(clock)));
        assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
    }

    #[test]
    fn a_late_answer_counts_and_an_old_one_does_not() {
        let mut end = end();
        let (first, second) = (end.bind(10), end.bind(20));
        let late = answer(&first, Kind::Bound);
        assert_eq!(end.hear(&late, 21), Some(Heard::Bound(500)));
        assert_eq!(end.hear(&late, 21), None, "heard");
        let move_of = |bind| answer(bind, Kind::Move);
        assert_eq!(end.hear(&move_of(&first), 21), Some(Heard::Move));
        let news = answer(&second, Kind::Bound);
        assert_eq!(end.hear(&news, 21), Some(Heard::Bound(500)));
        assert_eq!(end.hear(&move_of(&first), 21), None, "old");
        // What was said to it in an earlier life is not of this one.
        let mut again = super::tests::end();
        again.bind(30);
        assert_eq!(again.hear(&news, 31), None);
    }

    #[test]
    fn challenges_do_not_go_on_for_ever() {
        let mut end = end();
        let mut word = end.bind(10);
        let mut said = 0;
        while let Some(Heard::Send(next)) = end.hear(&answer(&word, Kind::Challenge), 11) {
            word = next;
            said += 1;
        }
        assert_eq!(said, 1);
        assert_eq!(word[28..44], [Kind::Challenge as u8; 16]);
        end.bind(12);
    }

    #[test]
    fn its_own_words_and_those_for_others_are_nothing_to_it() {
        let mut end = end();
        let bind = end.bind(10);
        assert_eq!(end.hear(&bind, 11), None);
        let bound = answer(&bind, Kind::Bound);
        assert_eq!(end.hear(&bound, 11), Some(Heard::Bound(500)), "not deaf");
        let mut other = End::new(circuit(), Side::B, key());
        other.bind(10);
        assert_eq!(other.hear(&answer(&bind, Kind::Bound), 11), None);
        let mut stranger = End::new(circuit(), Side::A, Key::new([4; 32]));
        stranger.bind(10);
        assert_eq!(stranger.hear(&answer(&bind, Kind::Bound), 11), None);
        assert_eq!(end.hear(&answer(&bind, Kind::Unbind), 11), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_trouble(bytes in vec(any::<u8>(), 0..100), head in any::<bool>()) {
            let mut end = end();
            end.bind(10);
            let mut bytes = bytes;
            if head && bytes.len() >= 20 {
                bytes[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0, 0]);
                bytes[12..20].copy_from_slice(&circuit().to_bytes());
            }
            prop_assert_eq!(end.hear(&bytes, 11), None);
        }
    }
}
