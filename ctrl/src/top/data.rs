//! What is shown: the daemon's answers to a round of requests, and what follows from two rounds.

use std::collections::VecDeque;
use std::time::SystemTime;

use serde::de::DeserializeOwned;

use crate::client::{AskError, Connection};
use crate::protocol::{
    AnswerError, Distribution, HealthReply, IncidentsReply, Limit, PeersReply, Request,
    SessionFilter, SessionsReply, StatsReply, WorkersReply,
};

/// Entries of the session table that are asked for, at most.
const SESSIONS_MAX: usize = 1000;
/// Rounds that recent times are of.
const RECENT: usize = 10;

/// The daemon's answers to a round of requests.
#[derive(Debug, Clone)]
pub struct Round {
    /// When they came.
    pub at: SystemTime,
    /// To `show_stats`.
    pub stats: StatsReply,
    /// To `show_workers`.
    pub workers: WorkersReply,
    /// To `show_peers`.
    pub peers: PeersReply,
    /// To `show_health`.
    pub health: HealthReply,
    /// To `incidents_list`.
    pub incidents: IncidentsReply,
    /// To `sessions_list`, if that was asked.
    pub sessions: Option<SessionsReply>,
}

impl Round {
    /// Asks for all of it. Sessions only if they are shown: the daemon walks over its table for
    /// them.
    ///
    /// # Errors
    /// When one of them is not answered.
    pub fn ask(connection: &mut Connection, with_sessions: bool) -> Result<Round, AskError> {
        let sessions = Request::SessionsList {
            filter: SessionFilter::default(),
            limit: Limit::try_from(SESSIONS_MAX).unwrap_or_default(),
        };
        Ok(Round {
            stats: answer(connection, &Request::ShowStats {})?,
            workers: answer(connection, &Request::ShowWorkers {})?,
            peers: answer(connection, &Request::ShowPeers {})?,
            health: answer(connection, &Request::ShowHealth {})?,
            incidents: answer(connection, &Request::IncidentsList { limit: Limit::default() })?,
            sessions: with_sessions.then(|| answer(connection, &sessions)).transpose()?,
            at: SystemTime::now(),
        })
    }
}

fn answer<T: DeserializeOwned>(
    connection: &mut Connection,
    request: &Request,
) -> Result<T, AskError> {
    let understood = serde_json::from_value(connection.ask(request)?);
    Ok(understood.map_err(|error| AnswerError::NotUnderstood(error.to_string()))?)
}

/// The last rounds.
#[derive(Debug, Default)]
pub struct Rounds {
    latest: Option<Round>,
    /// The one before it, if it was of the same daemon.
    earlier: Option<StatsReply>,
    /// Distributions of the rounds before it, the oldest first.
    before: VecDeque<Distributions>,
}

type Distributions = std::collections::BTreeMap<String, Distribution>;

/// How times were distributed lately, in µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recent {
    /// Half of them were not above.
    pub p50: u64,
    /// 99 of 100 were not above.
    pub p99: u64,
}

impl Rounds {
    /// Takes a round that is later than those before.
    pub fn push(&mut self, round: Round) {
        let former = self.latest.replace(round).map(|round| round.stats);
        let (Some(former), Some(Round { stats, .. })) = (former, &self.latest) else {
            return;
        };
        // Counters of another daemon, or of one that was started anew, begin again.
        let is_same = former.daemon.pid == stats.daemon.pid
            && former.daemon.uptime_ms <= stats.daemon.uptime_ms;
        if !is_same {
            self.earlier = None;
            self.before.clear();
            return;
        }
        if self.before.len() == RECENT {
            self.before.pop_front();
        }
        self.before.push_back(former.dht.distributions.clone());
        self.earlier = Some(former);
    }

    /// The latest one.
    #[must_use]
    pub fn latest(&self) -> Option<&Round> {
        self.latest.as_ref()
    }

    /// How much of something came in a second, between the last two rounds; `None` before there
    /// are two.
    #[must_use]
    pub fn per_second(&self, of: impl Fn(&StatsReply) -> Option<u64>) -> Option<f64> {
        let (earlier, latest) = (self.earlier.as_ref()?, &self.latest.as_ref()?.stats);
        let ms = latest.daemon.uptime_ms.checked_sub(earlier.daemon.uptime_ms)?;
        let more = of(latest)?.checked_sub(of(earlier)?)?;
        (ms > 0).then(|| more as f64 * 1000.0 / ms as f64)
    }

    /// A distribution of the DHT core's as it was in the last seconds; `None` when nothing was
    /// measured in them.
    #[must_use]
    pub fn recent(&self, name: &str) -> Option<Recent> {
        let now = self.latest.as_ref()?.stats.dht.distributions.get(name)?;
        let none = Distribution::default();
        let before = self.before.front().map_or(&none, |all| all.get(name).unwrap_or(&none));
        let mut old = before.buckets.iter().copied().peekable();
        let since = now.buckets.iter().map(|&(value, count)| {
            while old.next_if(|(other, _)| *other < value).is_some() {}
            let counted = old.next_if(|(other, _)| *other == value).map_or(0, |(_, count)| count);
            (value, count.saturating_sub(counted))
        });
        let since: Vec<(u64, u64)> = since.filter(|(_, count)| *count > 0).collect();
        let total: u64 = since.iter().map(|(_, count)| count).sum();
        let of = |percent: u64| {
            let mut left = (total * percent).div_ceil(100);
            let found = since.iter().find(|(_, count)| {
                left = left.saturating_sub(*count);
                left == 0
            });
            found.map(|(value, _)| *value)
        };
        Some(Recent { p50: of(50)?, p99: of(99)? })
    }
}
