//! How often somebody may try to come in. Each name and each peer has a bucket of tries that fills again by the clock. The buckets
//! are a fixed number, chosen by a hash whose key nobody knows: whoever invents names and addresses takes no more memory, and
//! pushes nobody's bucket out.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// Tries that a name has at once, and how soon another one comes. A day has 2900 of them.
const OF_A_NAME: Rate = Rate { tries: 20, again: Duration::from_secs(30) };

/// The same for a peer.
const OF_A_PEER: Rate = Rate { tries: 10, again: Duration::from_secs(20) };

/// How many buckets there are of each kind.
const BUCKETS: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Rate {
    tries: u32,
    again: Duration,
}

/// When each bucket is full again: none, or an instant that has passed, is full.
type Buckets = Vec<Option<Instant>>;

/// All of them.
#[derive(Debug)]
pub(crate) struct Limits {
    key: RandomState,
    names: Buckets,
    peers: Buckets,
}

impl Default for Limits {
    fn default() -> Self {
        Self { key: RandomState::new(), names: vec![None; BUCKETS], peers: vec![None; BUCKETS] }
    }
}

impl Limits {
    /// Takes a try of both.
    ///
    /// # Errors
    /// After how long there is one again; then none was taken.
    pub(crate) fn take(&mut self, name: &str, peer: &str, now: Instant) -> Result<(), Duration> {
        let (name, peer) = self.places(name, peer);
        let waits = [wait(self.names[name], OF_A_NAME, now), wait(self.peers[peer], OF_A_PEER, now)];
        if let Some(wait) = waits.into_iter().flatten().max() {
            return Err(wait);
        }
        let take = |bucket: &mut Option<Instant>, rate: Rate| {
            *bucket = Some(bucket.map_or(now, |full| full.max(now)) + rate.again);
        };
        take(&mut self.names[name], OF_A_NAME);
        take(&mut self.peers[peer], OF_A_PEER);
        Ok(())
    }

    /// Gives them back: the password was right.
    pub(crate) fn give_back(&mut self, name: &str, peer: &str) {
        let (name, peer) = self.places(name, peer);
        let give = |bucket: &mut Option<Instant>, rate: Rate| {
            *bucket = bucket.and_then(|full| full.checked_sub(rate.again));
        };
        give(&mut self.names[name], OF_A_NAME);
        give(&mut self.peers[peer], OF_A_PEER);
    }

    fn places(&self, name: &str, peer: &str) -> (usize, usize) {
        let place = |text: &str| (self.key.hash_one(text) % BUCKETS as u64) as usize;
        (place(name), place(peer))
    }
}

/// How long until a bucket has a try; none if it has one.
fn wait(full: Option<Instant>, rate: Rate, now: Instant) -> Option<Duration> {
    // What is missing from a full bucket, with the one that would be taken, must not be more than all tries.
    let missing = full?.saturating_duration_since(now) + rate.again;
    missing.checked_sub(rate.again * rate.tries).filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(
        limits: &mut Limits,
        name: impl Fn(u32) -> String,
        peer: impl Fn(u32) -> String,
        now: Instant,
    ) -> u32 {
        (0..1000).take_while(|try_| limits.take(&name(*try_), &peer(*try_), now).is_ok()).count() as u32
    }

    #[test]
    fn a_peer_who_guesses_is_held_up_and_so_is_who_guesses_from_everywhere() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        assert_eq!(tried(&mut limits, |_| "anna".into(), |_| "192.0.2.1".into(), now), 10);
        assert_eq!(limits.take("anna", "192.0.2.1", now), Err(Duration::from_secs(20)));
        assert_eq!(limits.take("bert", "192.0.2.1", now), Err(Duration::from_secs(20)));
        // From other peers, ten more for the same name, and then none from anywhere.
        let others = tried(&mut limits, |_| "anna".into(), |peer| format!("192.0.2.{}", peer + 2), now);
        assert!(others <= 10, "{others}");
        assert!(limits.take("anna", "198.51.100.1", now).is_err());
        // Later there is one again, and the next is as far.
        let later = now + Duration::from_secs(30);
        assert_eq!(limits.take("anna", "192.0.2.1", later), Ok(()));
        assert!(limits.take("anna", "192.0.2.1", later).is_err());
        // Whoever did nothing for long has all of them, and no more.
        let long = now + Duration::from_secs(100_000);
        assert_eq!(tried(&mut limits, |_| "anna".into(), |_| "192.0.2.1".into(), long), 10);
    }

    #[test]
    fn who_is_right_is_not_held_up() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        for _ in 0..100 {
            limits.take("anna", "192.0.2.1", now).unwrap();
            limits.give_back("anna", "192.0.2.1");
        }
    }

    #[test]
    fn however_many_come_the_memory_is_the_same() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        limits.take("anna", "192.0.2.1", now).unwrap();
        for number in 0..100_000 {
            let _held_up = limits.take(&format!("name{number}"), &format!("peer{number}"), now).is_err();
        }
        assert_eq!((limits.names.len(), limits.peers.len()), (BUCKETS, BUCKETS));
        // And all of it has not made anybody's bucket full again.
        let tries = tried(&mut limits, |_| "anna".into(), |_| "192.0.2.1".into(), now);
        assert!(tries < 10, "{tries}");
    }
}
