//! What became of the sessions that the server half closed. A bounded memory: the
//! oldest is forgotten for a new one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use holdfast_bench::serve_protocol::Verdict;

/// Verdicts by token.
#[derive(Debug)]
pub struct Verdicts {
    capacity: usize,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    of: HashMap<String, Verdict>,
    oldest_first: VecDeque<String>,
}

impl Verdicts {
    /// Remembers `capacity` of them.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, memory: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // A thread that panicked leaves at worst a token in one of the two.
        self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The session with this token begins. `false`: the token is in use.
    #[must_use]
    pub fn begin(&self, token: &str) -> bool {
        let mut memory = self.lock();
        if memory.of.contains_key(token) {
            return false;
        }
        if memory.of.len() >= self.capacity
            && let Some(oldest) = memory.oldest_first.pop_front()
        {
            memory.of.remove(&oldest);
        }
        memory.of.insert(token.to_owned(), Verdict::Pending);
        memory.oldest_first.push_back(token.to_owned());
        true
    }

    /// It came to its end.
    pub fn end(&self, token: &str, verdict: Verdict) {
        if let Some(known) = self.lock().of.get_mut(token) {
            *known = verdict;
        }
    }

    /// What is known of it.
    pub fn get(&self, token: &str) -> Verdict {
        self.lock().of.get(token).cloned().unwrap_or(Verdict::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten() {
        let verdicts = Verdicts::new(2);
        assert_eq!(verdicts.get("a"), Verdict::Unknown);
        assert!(verdicts.begin("a"));
        assert!(!verdicts.begin("a"));
        assert_eq!(verdicts.get("a"), Verdict::Pending);
        verdicts.end("a", Verdict::Good);
        assert!(verdicts.begin("b"));
        assert_eq!(verdicts.get("a"), Verdict::Good);
        assert!(verdicts.begin("c"));
        assert_eq!(verdicts.get("a"), Verdict::Unknown);
        verdicts.end("a", Verdict::Good);
        assert_eq!(verdicts.get("a"), Verdict::Unknown);
        assert_eq!(verdicts.get("c"), Verdict::Pending);
    }
}
