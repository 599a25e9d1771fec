//! Limits of wrong passwords and codes. An attempt is counted before it is checked, so that
//! attempts at the same time do not exceed the limit.
//!
//! ```text
//!   begin ─▶ wrong < 5: wrong + pending < 5 ─▶ pending + 1 ─▶ check ─┬─▶ right: all are forgotten
//!          │                    └─ no: wait for another check        ├─▶ wrong: wrong + 1
//!          └ no: 429                                                 └─▶ not checked: pending - 1
//! ```

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use crate::problem::Problem;

/// Type of the refusal of a wrong code.
pub(crate) const WRONG_CODE: &str = "wrong-code";
/// Wrong codes or passwords in a row after which a user waits. A guesser of codes with the password
/// would need a million tries otherwise, which are some hours.
const MAX_WRONG: u32 = 5;
/// Time that the user waits.
const LOCKOUT: Duration = Duration::from_secs(15 * 60);

/// Attempts of all users, by what is tried: codes by the user's name, passwords by a text that is
/// no name.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    counts: Mutex<HashMap<String, Count>>,
    /// A check has ended.
    ended: Notify,
}

#[derive(Debug)]
struct Count {
    wrong: u32,
    /// Checks that run now.
    pending: u32,
    /// Time of the last attempt, of a clock that is never set.
    last: Duration,
}

/// An attempt that is being checked. Dropped without a result, it does not count.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    attempts: &'a Attempts,
    key: String,
}

impl Attempts {
    /// Counts an attempt before it is checked. Waits while as many are being checked as may still
    /// be wrong.
    ///
    /// # Errors
    /// 429 after [`MAX_WRONG`] wrong ones in a row, for [`LOCKOUT`].
    pub async fn begin(&self, key: &str, now: Duration) -> Result<Attempt<'_>, Problem> {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // An attempt that ends from here on is noticed.
            ended.as_mut().enable();
            if self.reserve(key, now)? {
                return Ok(Attempt {
                    attempts: self,
                    key: key.to_owned(),
                });
            }
            ended.await;
        }
    }

    /// Whether there was room for an attempt.
    fn reserve(&self, key: &str, now: Duration) -> Result<bool, Problem> {
        let mut counts = self.lock();
        // Those who waited long enough are forgotten.
        counts.retain(|_, count| {
            count.pending > 0 || count.wrong > 0 && now.saturating_sub(count.last) < LOCKOUT
        });
        let count = counts.entry(key.to_owned()).or_insert(Count {
            wrong: 0,
            pending: 0,
            last: now,
        });
        if count.wrong >= MAX_WRONG {
            let left = LOCKOUT.saturating_sub(now.saturating_sub(count.last));
            let text = format!(
                "{MAX_WRONG} wrong codes or passwords in a row: wait, or ask an administrator"
            );
            let seconds = left.as_secs().max(1);
            return Err(Problem::too_many(&text).retry_after(seconds));
        }
        if count.wrong + count.pending >= MAX_WRONG {
            return Ok(false);
        }
        count.pending += 1;
        count.last = now;
        Ok(true)
    }

    /// Forgets wrong attempts.
    pub fn forgive(&self, key: &str) {
        self.update(key, |count| count.wrong = 0);
    }

    fn update(&self, key: &str, change: impl FnOnce(&mut Count)) {
        let mut counts = self.lock();
        if let Some(count) = counts.get_mut(key) {
            change(count);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt<'_> {
    /// It was wrong.
    pub fn wrong(self) {
        self.attempts.update(&self.key, |count| count.wrong += 1);
    }

    /// It was wrong if the result says so, right if there is none, and else not checked.
    pub fn end<T>(self, result: &Result<T, Problem>) {
        match result {
            Ok(_) => self.right(),
            Err(problem) if problem.is(WRONG_CODE) => self.wrong(),
            Err(_) => {}
        }
    }

    /// It was right: wrong ones before are forgotten.
    pub fn right(self) {
        self.attempts.forgive(&self.key);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let release = |count: &mut Count| count.pending = count.pending.saturating_sub(1);
        self.attempts.update(&self.key, release);
        self.attempts.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn attempts_at_the_same_time_do_not_exceed_the_limit() {
        let attempts = Attempts::default();
        let now = Duration::ZERO;
        let tried = async |key: &str, is_right: bool| {
            let attempt = attempts.begin(key, now).await?;
            tokio::task::yield_now().await;
            match is_right {
                true => attempt.right(),
                false => attempt.wrong(),
            }
            Ok::<_, Problem>(())
        };
        let all = join_all((0..24).map(|_| tried("wrong", false))).await;
        assert_eq!(all.iter().filter(|result| result.is_ok()).count(), 5);
        tried("wrong", true).await.expect_err("locked out");
        // Right ones wait for each other, and none is refused.
        let all = join_all((0..24).map(|_| tried("right", true))).await;
        assert!(all.iter().all(Result::is_ok));
        // After the time, and after an administrator's help.
        let later = now + LOCKOUT;
        drop(attempts.begin("wrong", later).await.expect("long ago"));
        for _ in 0..5 {
            attempts.begin("wrong", later).await.expect("room").wrong();
        }
        attempts
            .begin("wrong", later)
            .await
            .expect_err("locked out");
        attempts.forgive("wrong");
        attempts
            .begin("wrong", later)
            .await
            .expect("forgiven")
            .right();
        // Attempts that were not checked do not count.
        for _ in 0..9 {
            drop(attempts.begin("other", later).await.expect("room"));
        }
    }
}
