//! Decides whether this server takes the services' traffic: checks them, follows each prefix from
//! state to state, and has it announced or withdrawn. On a thread of its own that never waits for
//! a check or for the announcer, and never touches a packet.

pub mod check;
mod server;
pub mod state;
mod thread;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::info;

use crate::announce::{Route, Standing};
use crate::config::{Announce, Config};
use crate::drain::{self, Drain, PersistError};
use crate::protocol::{
    AnnouncerReport, CheckReport, DrainMode, DrainReport, HealthReply, HealthStats, PrefixReport,
};

use check::Checked;
use state::{Facts, State};

pub use server::{Publishing, Server};
pub use thread::HealthThread;

/// Longest wait for the thread to follow an order; it looks at once, unless the machine is busy.
const FOLLOW_MAX: Duration = Duration::from_millis(500);

/// What is known of this server's health; commands read it, and order drains.
#[derive(Debug)]
pub struct Health {
    announce: Announce,
    checks: Vec<Arc<Checked>>,
    inner: Mutex<Inner>,
    /// Told when the thread has followed an order.
    followed: Condvar,
    thread: OnceLock<Thread>,
}

#[derive(Debug)]
struct Inner {
    prefixes: Vec<Prefix>,
    drain: Option<Drain>,
    /// Orders that were given, to drain or not to, and those of them that the thread has followed.
    ordered: u64,
    followed: u64,
    /// What holds all prefixes back; empty when nothing does.
    awaited: Vec<String>,
    announcer: Standing,
    transitions: u64,
    /// Times that it was announced with sessions that were not published yet.
    unpublished: u64,
    state_file_failures: u64,
    /// Why what is announced cannot be written down.
    state_file_trouble: Option<String>,
}

/// A prefix, and where it stands.
#[derive(Debug, Clone)]
struct Prefix {
    prefix: IpNet,
    /// Its services' checks, by their index.
    checks: Vec<usize>,
    state: State,
    since: Instant,
    /// Why it is not announced.
    because: Vec<String>,
}

impl Health {
    /// Of a server with this configuration that has not looked at anything yet.
    #[must_use]
    pub fn new(config: &Config, now: Instant) -> Health {
        // One that was drained for good has had its time.
        let directory = &config.announce.state_directory;
        let drain = drain::is_persisted(directory).then_some(Drain {
            mode: DrainMode::Withdraw,
            timeout: Duration::ZERO,
            persist: true,
            since: now,
        });
        let checks = config.checks.iter().cloned().map(Checked::new).map(Arc::new);
        let checks: Vec<_> = checks.collect();
        let prefix = |prefix| Prefix::new(prefix, &checks, now);
        let prefixes = config.prefixes().into_iter().map(prefix).collect();
        Health {
            announce: config.announce.clone(),
            checks,
            inner: Mutex::new(Inner {
                prefixes,
                drain,
                ordered: 0,
                followed: 0,
                awaited: Vec::new(),
                announcer: Standing::default(),
                transitions: 0,
                unpublished: 0,
                state_file_failures: 0,
                state_file_trouble: None,
            }),
            followed: Condvar::new(),
            thread: OnceLock::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Goes on with other prefixes. One that there was stands where it stood, and one that is none
    /// any more is withdrawn.
    pub fn set_prefixes(&self, prefixes: Vec<IpNet>, now: Instant) {
        let mut inner = self.inner();
        let mut former = std::mem::take(&mut inner.prefixes);
        let prefix = |prefix| match former.iter().position(|former| former.prefix == prefix) {
            Some(index) => former.swap_remove(index),
            None => Prefix::new(prefix, &self.checks, now),
        };
        inner.prefixes = prefixes.into_iter().map(prefix).collect();
        drop(inner);
        self.wake();
    }

    /// Orders a drain; a further order takes the place of the one before. Waits a moment for the states
    /// to follow.
    ///
    /// # Errors
    /// When it is to outlive the daemon and cannot; it is not ordered then.
    pub fn drain(&self, drain: Drain) -> Result<(), PersistError> {
        let mut inner = self.inner();
        drain::persist(&self.announce.state_directory, drain.persist)?;
        inner.drain = Some(drain);
        self.see_followed(inner);
        Ok(())
    }

    /// Takes the order to drain back, if there is one, and waits as for an order.
    ///
    /// # Errors
    /// When it would outlive the daemon all the same; it is not taken back then.
    pub fn undrain(&self) -> Result<(), PersistError> {
        let mut inner = self.inner();
        drain::persist(&self.announce.state_directory, false)?;
        inner.drain = None;
        self.see_followed(inner);
        Ok(())
    }

    /// Has the thread look, and waits until it has: who asks next is told what follows.
    fn see_followed(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.ordered += 1;
        let order = inner.ordered;
        drop(inner);
        if self.thread.get().is_none() {
            return;
        }
        self.wake();
        let is_ahead = |inner: &mut Inner| inner.followed < order;
        drop(self.followed.wait_timeout_while(self.inner(), FOLLOW_MAX, is_ahead));
    }

    /// All that is known, with the number of local sessions that are not over.
    #[must_use]
    pub fn report(&self, sessions_left: u64, now: Instant) -> HealthReply {
        let inner = self.inner();
        let ago = |since: Instant| millis(now.saturating_duration_since(since));
        let told = |prefix| {
            let told = inner.announcer.told.iter().find(|(told, _)| *told == prefix);
            told.and_then(|(_, route)| *route).map(Route::name).unwrap_or("unknown").to_owned()
        };
        HealthReply {
            state: inner.state(),
            sessions_left,
            awaited: inner.awaited.clone(),
            prefixes: inner
                .prefixes
                .iter()
                .map(|prefix| PrefixReport {
                    prefix: prefix.prefix,
                    state: prefix.state,
                    since_ms: ago(prefix.since),
                    route: told(prefix.prefix),
                    because: prefix.because.clone(),
                })
                .collect(),
            checks: self.check_reports(now),
            drain: inner.drain.map(|drain| DrainReport {
                mode: drain.mode,
                since_ms: ago(drain.since),
                timeout_ms: millis(drain.timeout),
                persist: drain.persist,
            }),
            announcer: AnnouncerReport {
                kind: self.announce.announcer.name().to_owned(),
                trouble: inner.announcer.trouble.clone(),
                state_file_trouble: inner.state_file_trouble.clone(),
            },
        }
    }

    /// Whether all of some checks say that the service is up, if that is known of all; and why
    /// not.
    fn are_up(&self, checks: &[usize]) -> (Option<bool>, Vec<String>) {
        let (mut up, mut because) = (Some(true), Vec::new());
        for index in checks {
            let checked = &self.checks[*index];
            let found = checked.found();
            let trouble = match found.up {
                Some(true) => continue,
                // The others do not matter any more.
                Some(false) => found.trouble.unwrap_or_else(|| "it was down until now".to_owned()),
                None => "it is being checked".to_owned(),
            };
            up = if up == Some(false) { up } else { found.up };
            because.push(format!("{}: {trouble}", checked.check.service));
        }
        (up, because)
    }

    fn check_reports(&self, now: Instant) -> Vec<CheckReport> {
        let report = |checked: &Arc<Checked>| {
            let (check, found) = (&checked.check, checked.found());
            CheckReport {
                service: check.service,
                target: check.target,
                kind: check.kind.name().to_owned(),
                up: found.up,
                since_ms: found.since.map(|since| millis(now.saturating_duration_since(since))),
                checks: found.checks,
                failures: found.failures,
                changes: found.changes,
                duration_us: u64::try_from(found.duration.as_micros()).unwrap_or(u64::MAX),
                trouble: found.trouble,
            }
        };
        self.checks.iter().map(report).collect()
    }

    /// Counters and gauges for `show stats`.
    #[must_use]
    pub fn stats(&self, sessions_left: u64, now: Instant) -> HealthStats {
        let checks = self.check_reports(now);
        let inner = self.inner();
        let is_told = |route| {
            let told = inner.announcer.told.iter().filter(|(_, told)| *told == Some(route));
            told.count() as u64
        };
        let sum = |of: fn(&CheckReport) -> u64| checks.iter().map(of).sum::<u64>();
        let named = |(name, value): (&str, u64)| (name.to_owned(), value);
        let counters = [
            ("health_checks", sum(|check| check.checks)),
            ("health_failures", sum(|check| check.failures)),
            ("health_changes", sum(|check| check.changes)),
            ("transitions", inner.transitions),
            ("ready_unpublished", inner.unpublished),
            ("announcer_runs", inner.announcer.runs),
            ("announcer_failures", inner.announcer.failures),
            ("state_file_failures", inner.state_file_failures),
        ];
        let gauges = [
            ("state", inner.state() as u64),
            ("sessions_left", sessions_left),
            ("prefixes", inner.prefixes.len() as u64),
            ("prefixes_announced", is_told(Route::Announced)),
            ("prefixes_graceful_shutdown", is_told(Route::GracefulShutdown)),
            ("services_down", checks.iter().filter(|check| check.up != Some(true)).count() as u64),
        ];
        HealthStats {
            counters: counters.map(named).into(),
            gauges: gauges.map(named).into(),
            checks,
        }
    }
}

impl Inner {
    /// The server's state: its prefixes', and where these differ, as one is unhealthy, that.
    fn state(&self) -> State {
        let states = self.prefixes.iter().map(|prefix| prefix.state);
        states.max().unwrap_or(State::Starting)
    }

    /// Moves a prefix on as far as the facts take it.
    fn follow(&mut self, index: usize, facts: &Facts, because: Vec<String>, now: Instant) {
        let prefix = &mut self.prefixes[index];
        prefix.because = because;
        while let next = prefix.state.after(facts)
            && next != prefix.state
        {
            prefix.log(next);
            prefix.state = next;
            prefix.since = now;
            self.transitions += 1;
        }
    }
}

impl Prefix {
    /// Nothing is known of it yet.
    fn new(prefix: IpNet, checks: &[Arc<Checked>], now: Instant) -> Prefix {
        let own = checks.iter().enumerate();
        let own = own.filter(|(_, checked)| prefix.contains(&checked.check.service.ip()));
        let (state, because) = (State::Starting, Vec::new());
        let checks = own.map(|(index, _)| index).collect();
        Prefix { prefix, checks, state, since: now, because }
    }

    fn log(&self, next: State) {
        let Prefix { prefix, state, because, .. } = self;
        let (state, next, because) = (state.name(), next.name(), because.join("; "));
        match because.is_empty() {
            true => info!("{prefix}: {state} → {next}"),
            false => info!("{prefix}: {state} → {next}: {because}"),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
