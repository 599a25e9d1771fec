//! The tenant's and the appliance's end of a circuit: what it says to a gateway, and what it believes of the answers.
//!
//! Pure: whoever has the socket asks for a bind every second or so, and at once when its network changed; hands in what comes
//! with a message's id; and sends what it is given.

use super::wire::{CircuitId, Datagram, Key, Kind, MESSAGE_BYTES, Message, Side, Tag, parse};

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
    /// Whether the last bind that was asked for has had its challenge: one each, or two could go on for ever.
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

    /// A bind to send. `clock`: nanoseconds since 1970; a clock that stands still or steps back is made up for while this lives.
    pub fn bind(&mut self, clock: u64) -> [u8; MESSAGE_BYTES] {
        self.challenged = false;
        self.say(Kind::Bind, clock)
    }

    /// An unbind to send. Its answer is silence.
    pub fn unbind(&mut self, clock: u64) -> [u8; MESSAGE_BYTES] {
        self.say(Kind::Unbind, clock)
    }

    /// What a datagram from the gateway comes to; `None`: it is not a message to this end, or not of now.
    pub fn hear(&mut self, datagram: &[u8], clock: u64) -> Option<Heard> {
        let Ok(Datagram::Message(sealed)) = parse(datagram) else {
            return None;
        };
        if (sealed.circuit(), sealed.side()) != (self.circuit, self.side) {
            return None;
        }
        let message = sealed.open(&self.key)?;
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
            // What an end says, sent back to it.
            Kind::Bind | Kind::Unbind => None,
        }
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
