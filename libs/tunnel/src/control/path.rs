//! The path to one peer: where it is, how long a datagram may be, round-trip time and loss.

use std::collections::VecDeque;
use std::time::Duration;

use super::timer_table::{Timer, TimerTable};
use crate::path::PeerPath;
use crate::pmtu::PathMtu;
use crate::random::Random;
use crate::segment::ControlMessage;
use crate::time::Instant;

/// Echoes that count for the loss shown.
const LOSS_WINDOW: u32 = 32;
/// Shortest time between two moves that follow the peer.
pub(super) const FOLLOW_GAP: Duration = Duration::from_millis(250);
/// Path-MTU probes whose replies count, newest: as many as one size gets, and a late one.
const MAX_PROBES: usize = 4;

/// The path to a peer, with its MTU search and its losses.
pub(super) struct Path {
    current: Option<PeerPath>,
    /// Which of the other configured paths was tried last, by its place among them.
    alternative: usize,
    /// The path-MTU search; `None` where the peer does not answer probes.
    mtu: Option<PathMtu>,
    /// Tokens of the newest probes on this path, oldest first.
    probes: VecDeque<u64>,
    /// Token of the echo under way, and when it was sent.
    echo: Option<(u64, Instant)>,
    /// One bit per echo, newest lowest; set if it was lost.
    lost_echoes: u32,
    echoes: u32,
    round_trip: Option<Duration>,
    /// Since when data goes where it goes.
    changed_at: Instant,
    /// When data last followed the peer to another path.
    followed_at: Option<Instant>,
    /// Where the peer is, if data may not follow it there yet.
    follow_to: Option<PeerPath>,
}

/// The result of [`Path::replace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaced {
    /// The path is the one in use already.
    Unchanged,
    /// Another port of the same host: what is known of the path counts.
    Port,
    /// Another path, of which nothing is known.
    Path,
}

impl Path {
    pub(super) fn new(current: Option<PeerPath>, mtu: Option<PathMtu>) -> Self {
        Self {
            current,
            alternative: 0,
            mtu,
            probes: VecDeque::with_capacity(MAX_PROBES),
            echo: None,
            lost_echoes: 0,
            echoes: 0,
            round_trip: None,
            changed_at: Instant::ORIGIN,
            followed_at: None,
            follow_to: None,
        }
    }

    /// Where data goes.
    pub(super) const fn current(&self) -> Option<PeerPath> {
        self.current
    }

    /// Longest datagram, bytes of UDP payload; `None` where the path is not probed.
    pub(super) fn max_datagram(&self) -> Option<usize> {
        self.mtu.as_ref().map(PathMtu::current)
    }

    /// Whether a longer datagram is being looked for.
    pub(super) fn is_searching(&self) -> bool {
        self.mtu.as_ref().is_some_and(PathMtu::searching)
    }

    /// Round-trip time, smoothed; `None` until an echo was answered.
    pub(super) const fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Lost echoes of the last [`LOSS_WINDOW`], per cent.
    pub(super) fn loss_percent(&self) -> u32 {
        let lost = self.lost_echoes.count_ones() * 100;
        lost.checked_div(self.echoes.min(LOSS_WINDOW)).unwrap_or(0)
    }

    /// Where the initiation `attempt` (from zero) goes: to where the peer is or was last, and from
    /// the second attempt on to one of the other `configured` paths as well, in turn. It is one
    /// message: a peer that receives it twice answers once.
    pub(super) fn targets(
        &mut self,
        configured: &[PeerPath],
        attempt: u32,
    ) -> (Option<PeerPath>, Option<PeerPath>) {
        let first = self.current.or(configured.first().copied());
        let others = configured.iter().filter(|&&path| Some(path) != first);
        let other = match (others.clone().count(), attempt) {
            (0, _) | (_, 0) => None,
            (count, _) => {
                self.alternative = (self.alternative + 1) % count;
                others.clone().nth(self.alternative).copied()
            }
        };
        (first, other)
    }

    /// Other paths were configured: they are tried from the first on.
    pub(super) const fn restart_alternatives(&mut self) {
        self.alternative = 0;
    }

    /// The peer was at `path` when it was `seen`. Yields the path if data is to follow it there
    /// now: at most once in [`FOLLOW_GAP`]. Within that time only the newest path is kept;
    /// [`Timer::Follow`] then expires. What was seen before the path in use was taken is old news.
    pub(super) fn follow(
        &mut self,
        now: Instant,
        path: PeerPath,
        seen: Instant,
        timers: &mut TimerTable,
    ) -> Option<PeerPath> {
        if seen < self.changed_at {
            return None;
        }
        if self.current == Some(path) {
            self.follow_to = None;
            timers.stop(Timer::Follow);
            return None;
        }
        let next = self.followed_at.map(|last| last + FOLLOW_GAP);
        if let Some(next) = next.filter(|next| now < *next) {
            self.follow_to = Some(path);
            timers.set(Timer::Follow, next);
            return None;
        }
        self.follow_to = None;
        timers.stop(Timer::Follow);
        self.followed_at = Some(now);
        Some(path)
    }

    /// [`Timer::Follow`] has expired: where data is to follow the peer now.
    pub(super) fn follow_expired(&mut self, now: Instant) -> Option<PeerPath> {
        let path = self.follow_to.take()?;
        self.followed_at = Some(now);
        Some(path)
    }

    /// Data goes to `path` from now on. If that is the path to another host, what is known of the
    /// one before does not count.
    pub(super) fn replace(
        &mut self,
        now: Instant,
        path: Option<PeerPath>,
        established: bool,
        timers: &mut TimerTable,
    ) -> Replaced {
        if self.current == path {
            return Replaced::Unchanged;
        }
        self.changed_at = now;
        self.follow_to = None;
        timers.stop(Timer::Follow);
        let before = std::mem::replace(&mut self.current, path);
        if let (Some(before), Some(path)) = (before, path)
            && before.is_same_host(&path)
        {
            return Replaced::Port;
        }
        self.probes.clear();
        if let Some(mtu) = &mut self.mtu {
            mtu.restart(now);
        }
        self.set_mtu_timer(established, timers);
        Replaced::Path
    }

    /// The uplink takes datagrams of `bytes` from now on. True if the longest datagram has changed.
    pub(super) fn set_ceiling(
        &mut self,
        now: Instant,
        bytes: usize,
        established: bool,
        timers: &mut TimerTable,
    ) -> bool {
        let Some(mtu) = &mut self.mtu else {
            return false;
        };
        let changed = mtu.set_ceiling(now, bytes);
        self.set_mtu_timer(established, timers);
        changed
    }

    /// A session is in use that was not before: an echo goes out at once.
    pub(super) fn session_established(
        &mut self,
        now: Instant,
        echo_every: Option<Duration>,
        timers: &mut TimerTable,
    ) {
        timers.set_or_stop(Timer::Echo, echo_every.map(|_| now));
        self.set_mtu_timer(true, timers);
    }

    /// The last session is over: there is nothing to probe with.
    pub(super) const fn session_lost(&mut self, timers: &mut TimerTable) {
        timers.stop(Timer::Echo);
        timers.stop(Timer::PathMtu);
    }

    /// [`Timer::Echo`] has expired. An echo that is still unanswered counts as lost.
    pub(super) fn next_echo(
        &mut self,
        now: Instant,
        every: Duration,
        timers: &mut TimerTable,
        random: &mut dyn Random,
    ) -> ControlMessage {
        timers.set(Timer::Echo, now + every);
        if self.echo.take().is_some() {
            self.count_echo(true);
        }
        let token = random.u64();
        self.echo = Some((token, now));
        ControlMessage::Echo { token, size: 0 }
    }

    /// [`Timer::PathMtu`] has expired. Yields the next probe, with the bytes its datagram is padded
    /// to. `alive`: the peer answers plain echoes.
    pub(super) fn next_probe(
        &mut self,
        now: Instant,
        alive: bool,
        timers: &mut TimerTable,
        random: &mut dyn Random,
    ) -> Option<(ControlMessage, usize)> {
        let mtu = self.mtu.as_mut()?;
        let size = mtu.poll(now, alive);
        timers.set(Timer::PathMtu, mtu.deadline());
        let (size, wire) = size.and_then(|size| Some((size, u16::try_from(size).ok()?)))?;
        let token = random.u64();
        if self.probes.len() == MAX_PROBES {
            self.probes.pop_front();
        }
        self.probes.push_back(token);
        Some((ControlMessage::Echo { token, size: wire }, size))
    }

    /// An echo or a probe was answered. True if the longest datagram has changed.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        token: u64,
        size: u16,
        established: bool,
        timers: &mut TimerTable,
    ) -> bool {
        if let Some((sent_token, sent)) = self.echo
            && sent_token == token
        {
            self.echo = None;
            let sample = now.since(sent);
            // RFC 6298 section 2.3, without the variance.
            let smoothed = |smooth: Duration| (smooth * 7 + sample) / 8;
            self.round_trip = Some(self.round_trip.map_or(sample, smoothed));
            self.count_echo(false);
        }
        // A reply to a probe of the path before says nothing about this one.
        if size == 0 || !self.probes.contains(&token) {
            return false;
        }
        let Some(mtu) = &mut self.mtu else {
            return false;
        };
        let changed = mtu.answered(now, usize::from(size));
        self.set_mtu_timer(established, timers);
        changed
    }

    /// ICMP says that datagrams may be `bytes` long.
    pub(super) fn mtu_hint(
        &mut self,
        now: Instant,
        bytes: usize,
        established: bool,
        timers: &mut TimerTable,
    ) {
        if let Some(mtu) = &mut self.mtu {
            mtu.hint(now, bytes);
            self.set_mtu_timer(established, timers);
        }
    }

    fn set_mtu_timer(&self, established: bool, timers: &mut TimerTable) {
        let mtu = self.mtu.as_ref().filter(|_| established);
        timers.set_or_stop(Timer::PathMtu, mtu.map(PathMtu::deadline));
    }

    fn count_echo(&mut self, lost: bool) {
        self.lost_echoes = (self.lost_echoes << 1) | u32::from(lost);
        self.echoes = self.echoes.saturating_add(1);
    }

    #[cfg(test)]
    pub(super) const fn mtu(&self) -> Option<&PathMtu> {
        self.mtu.as_ref()
    }
}
