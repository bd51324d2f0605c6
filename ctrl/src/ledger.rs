//! The ledger: takes the workers' reports on strays, opens an incident when many come at once, and
//! says what it did to sessions. Never asks a clock, a worker or the DHT: it is told.
//!
//! ```text
//!   workers ── reports ──►  followed flows ──►  incident ──►  journal
//! ```

mod journal;
#[cfg(test)]
mod tests;
mod thread;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use holdfast_dht::stats::Times;
use holdfast_handoff::{StrayFate, StrayLoss, StrayReport};
use holdfast_net::FlowKey;

use crate::protocol::{
    Cause, CauseKind, Counters, Distribution, Incident, IncidentState, IncidentStats, LOST_MAX,
    LossReason, LostSession, OWNERS_MAX, OwnerCount, SessionCounts,
};

pub use journal::{Journal, SetAside};
pub use thread::{Incidents, LedgerThread, Sources, causes_of_peers};

/// Flows followed at once. Reports on more are counted, not followed.
pub const FLOWS_MAX: usize = 65_536;
/// An incident that lasts for longer is closed, and the next one opens with the next burst.
const LONGEST_US: u64 = 3_600_000_000;
/// What happened earlier than this before an incident's first stray is no cause of it: routes have
/// long followed. A server that died is found out by its neighbours when the hold time of BGP is over
/// (RFC 4271), in three minutes at the latest by default.
const CAUSE_BEFORE_US: u64 = 30_000_000;
const DEATH_BEFORE_US: u64 = 180_000_000;
/// For so long after a client has ended a session that had a redirect, its strays are the last of it:
/// nothing is at risk.
const ENDED_US: u64 = 30_000_000;
/// Causes that an incident names.
const CAUSES_MAX: usize = 32;
/// Two causes alike that are closer than this are one.
const CAUSES_APART_US: u64 = 1_000_000;
/// Pause between two looks for causes while an incident is open.
const CAUSES_PAUSE_US: u64 = 5_000_000;
/// Pause between two searches for followed flows of which nothing comes any more.
const SWEEP_PAUSE_US: u64 = 1_000_000;

/// When an incident opens and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// It opens when strays of so many new flows come within `window_us`; at least 1.
    pub flows: usize,
    /// See `flows`; in microseconds.
    pub window_us: u64,
    /// It closes when nothing came of any of its flows, and no new one, for this long; in
    /// microseconds.
    pub quiet_us: u64,
}

/// A point in time, by the workers' clock and by the wall's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds of the workers' clock.
    pub us: u64,
    /// Microseconds since the Unix epoch.
    pub unix_us: u64,
}

impl Moment {
    /// The wall's time when the workers' clock stood at `us`.
    const fn unix_at(self, us: u64) -> u64 {
        self.unix_us.saturating_sub(self.us.saturating_sub(us))
    }
}

/// What the session table says of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    Nowhere,
    /// It is a session of this server's.
    Local,
    /// It is redirected.
    Redirected,
}

/// Looks a flow up in the session table.
pub type FindPlace = Box<dyn Fn(&FlowKey) -> Place + Send>;

/// What became of a flow, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Saved(IpAddr),
    /// Redirected, but nothing was sent yet.
    Redirected(IpAddr),
    Kept,
    /// Given to the host.
    Nobodys(LossReason, Option<IpAddr>),
    Reset(LossReason, Option<IpAddr>),
    Dropped(LossReason, Option<IpAddr>),
}

impl Standing {
    /// What a report says; `None` when it is not about strays that were parked or dropped.
    fn of(fate: StrayFate) -> Option<Standing> {
        Some(match fate {
            StrayFate::Tunnelled { owner } => Standing::Saved(owner),
            StrayFate::Redirected { owner } => Standing::Redirected(owner),
            StrayFate::Kept => Standing::Kept,
            StrayFate::Nobody { given_up: None } => Standing::Nobodys(LossReason::NotFound, None),
            StrayFate::Nobody { given_up } => Standing::Nobodys(LossReason::OwnerGivenUp, given_up),
            StrayFate::Dropped(loss) => {
                let (reason, owner) = reason(loss);
                Standing::Dropped(reason, owner)
            }
            StrayFate::Reset | StrayFate::Ended => return None,
        })
    }

    /// What the session table adds when nothing more is expected.
    fn settled(self, place: Place) -> Standing {
        match (self, place) {
            (Standing::Redirected(owner), Place::Redirected) => Standing::Saved(owner),
            (Standing::Redirected(owner), _) => Standing::Dropped(LossReason::NotSent, Some(owner)),
            // The host has taken it up, as it does with a SYN cookie.
            (Standing::Nobodys(..), Place::Local) => Standing::Kept,
            (standing, _) => standing,
        }
    }

    const fn loss(self) -> Option<(LossReason, Option<IpAddr>)> {
        match self {
            Standing::Reset(reason, owner) | Standing::Dropped(reason, owner) => {
                Some((reason, owner))
            }
            _ => None,
        }
    }

    fn count(self, counts: &mut SessionCounts) {
        counts.at_risk += 1;
        *match self {
            Standing::Saved(_) | Standing::Redirected(_) => &mut counts.saved,
            Standing::Kept => &mut counts.kept,
            Standing::Nobodys(..) => &mut counts.unanswered,
            Standing::Reset(..) => &mut counts.reset,
            Standing::Dropped(..) => &mut counts.dropped,
        } += 1;
    }
}

/// Why strays were dropped, and whose they were.
const fn reason(loss: StrayLoss) -> (LossReason, Option<IpAddr>) {
    match loss {
        StrayLoss::TimedOut => (LossReason::LookupTimedOut, None),
        StrayLoss::OwnerDead(owner) => (LossReason::OwnerDead, Some(owner)),
        StrayLoss::Expired => (LossReason::NoAnswer, None),
        StrayLoss::Stranger => (LossReason::OwnerStranger, None),
        StrayLoss::OwnersFull => (LossReason::OwnersFull, None),
        StrayLoss::RefusedWorker => (LossReason::AdmissionWorker, None),
        StrayLoss::RefusedSource => (LossReason::AdmissionSource, None),
        StrayLoss::ParkingFull => (LossReason::ParkingFull, None),
        StrayLoss::RingFull => (LossReason::RingFull, None),
    }
}

/// A flow of which strays came.
#[derive(Debug, Clone, Copy)]
struct Followed {
    came_us: u64,
    last_us: u64,
    standing: Standing,
    /// From its first stray to its first segment in the tunnel.
    forward_us: Option<u64>,
    /// Of its last lookup.
    lookup_us: Option<u64>,
    dropped: u64,
}

/// The incident that is open.
#[derive(Debug)]
struct Open {
    id: u64,
    /// Its sessions are the followed flows whose strays came since then.
    since_us: u64,
    began_us: u64,
    last_us: u64,
    causes: Vec<Cause>,
    causes_next_us: u64,
    untracked: u64,
    missed_before: u64,
}

impl Open {
    const fn has(&self, followed: &Followed) -> bool {
        followed.came_us >= self.since_us
    }
}

/// Sums since the daemon's start.
#[derive(Debug)]
struct Sums {
    incidents: u64,
    sessions_outside: u64,
    untracked: u64,
    after_end: u64,
    sessions: SessionCounts,
    losses: Losses,
    forward: Times,
    lookup: Times,
    detection: Times,
}

/// Lost sessions by their reasons, in the order of [`LossReason::ALL`].
#[derive(Debug, Clone, Copy, Default)]
struct Losses([u64; LossReason::ALL.len()]);

impl Losses {
    fn count(&mut self, reason: LossReason) {
        let place = LossReason::ALL.iter().position(|known| *known == reason);
        if let Some(count) = place.and_then(|place| self.0.get_mut(place)) {
            *count += 1;
        }
    }

    /// All reasons, those that did not occur too.
    fn all(&self) -> Counters {
        LossReason::ALL.iter().map(|reason| reason.name().to_owned()).zip(self.0).collect()
    }

    fn occurred(&self) -> Counters {
        self.all().into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

/// Follows the flows that strays came of.
pub struct Ledger {
    limits: Limits,
    find: FindPlace,
    flows: HashMap<FlowKey, Followed>,
    /// Redirected sessions that their clients have ended, and when.
    ended: HashMap<FlowKey, u64>,
    /// When strays of the last new flows came, at most `limits.flows`; not while one is open.
    recent: VecDeque<u64>,
    open: Option<Open>,
    next_id: u64,
    /// RSTs that passed, and those that wait for a turn: another worker may report first what its
    /// flow was given to the host for.
    resets: [Vec<(FlowKey, u64)>; 2],
    swept_us: u64,
    /// Reports that workers could not make.
    missed: u64,
    sums: Sums,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("flows", &self.flows.len())
            .field("open", &self.open)
            .finish()
    }
}

impl Ledger {
    /// An empty ledger, whose first incident has the id `next_id`. `find` looks a flow up in the
    /// session table.
    #[must_use]
    pub fn new(limits: Limits, next_id: u64, find: FindPlace) -> Ledger {
        Ledger {
            limits,
            find,
            flows: HashMap::new(),
            ended: HashMap::new(),
            recent: VecDeque::new(),
            open: None,
            next_id,
            resets: [Vec::new(), Vec::new()],
            swept_us: 0,
            missed: 0,
            sums: Sums {
                incidents: 0,
                sessions_outside: 0,
                untracked: 0,
                after_end: 0,
                sessions: SessionCounts::default(),
                losses: Losses::default(),
                forward: Times::new(),
                lookup: Times::new(),
                detection: Times::new(),
            },
        }
    }

    /// Takes a worker's report.
    pub fn take(&mut self, report: &StrayReport) {
        let at_us = report.came_us.saturating_add(report.waited_us);
        let Some(standing) = Standing::of(report.fate) else {
            return self.take_passing(report);
        };
        if self.has_ended(report) {
            self.sums.after_end += 1;
            return;
        }
        if let Some(lookup_us) = report.lookup_us {
            self.sums.lookup.record(lookup_us);
        }
        let is_new = !self.flows.contains_key(&report.flow);
        if is_new && self.flows.len() >= FLOWS_MAX {
            self.sums.untracked += 1;
            if let Some(open) = &mut self.open {
                open.untracked += 1;
                open.last_us = open.last_us.max(at_us);
            }
            return;
        }
        let followed = self.flows.entry(report.flow).or_insert(Followed {
            came_us: report.came_us,
            last_us: at_us,
            standing,
            forward_us: None,
            lookup_us: None,
            dropped: 0,
        });
        followed.last_us = followed.last_us.max(at_us);
        followed.standing = standing;
        followed.lookup_us = report.lookup_us.or(followed.lookup_us);
        followed.dropped += u64::from(report.lost);
        if matches!(standing, Standing::Saved(_)) && followed.forward_us.is_none() {
            let forward_us = at_us.saturating_sub(followed.came_us);
            followed.forward_us = Some(forward_us);
            self.sums.forward.record(forward_us);
        }
        match &mut self.open {
            Some(open) if open.has(followed) => {
                open.began_us = open.began_us.min(followed.came_us);
                open.last_us = open.last_us.max(at_us);
            }
            None if is_new => self.follow(report.came_us),
            _ => {}
        }
    }

    /// Takes a report on something that passed.
    fn take_passing(&mut self, report: &StrayReport) {
        let StrayReport { flow, came_us, fate, .. } = *report;
        if fate == StrayFate::Reset {
            self.resets[0].push((flow, came_us));
        } else if self.ended.len() < FLOWS_MAX || self.ended.contains_key(&flow) {
            self.ended.insert(flow, came_us);
        } else {
            self.sums.untracked += 1;
        }
    }

    /// Whether strays came of a session that its client had ended just before.
    fn has_ended(&self, report: &StrayReport) -> bool {
        let since_us = |ended_us: &u64| report.came_us.checked_sub(*ended_us);
        self.ended.get(&report.flow).and_then(since_us).is_some_and(|since| since < ENDED_US)
    }

    /// A flow is new: with enough of them an incident opens.
    fn follow(&mut self, came_us: u64) {
        if self.recent.len() == self.limits.flows {
            self.recent.pop_front();
        }
        self.recent.push_back(came_us);
        let (first, last) = (self.recent.iter().min(), self.recent.iter().max());
        if let (Some(&first_us), Some(&last_us)) = (first, last)
            && self.recent.len() == self.limits.flows
            && last_us - first_us <= self.limits.window_us
        {
            self.open(last_us.saturating_sub(self.limits.window_us));
        }
    }

    /// Opens an incident of the flows whose strays came since `since_us`.
    fn open(&mut self, since_us: u64) {
        self.recent.clear();
        let mut open = Open {
            id: self.next_id,
            since_us,
            began_us: u64::MAX,
            last_us: since_us,
            causes: Vec::new(),
            causes_next_us: 0,
            untracked: 0,
            missed_before: self.missed,
        };
        for followed in self.flows.values() {
            if open.has(followed) {
                open.began_us = open.began_us.min(followed.came_us);
                open.last_us = open.last_us.max(followed.last_us);
            }
        }
        self.open = Some(open);
        self.next_id += 1;
        self.sums.incidents += 1;
    }

    /// A flow is not followed any more: what became of it counts.
    fn settle(&mut self, flow: &FlowKey, followed: &Followed) -> Standing {
        let standing = followed.standing.settled((self.find)(flow));
        standing.count(&mut self.sums.sessions);
        if let Some((reason, _)) = standing.loss() {
            self.sums.losses.count(reason);
        }
        standing
    }

    /// Time has gone on; workers could not make `missed` reports so far. Call it after the reports
    /// that there were.
    pub fn advance(&mut self, now: Moment, missed: u64) {
        self.missed = missed;
        for (flow, at_us) in std::mem::take(&mut self.resets[1]) {
            self.reset(&flow, at_us);
        }
        self.resets.swap(0, 1);
        if now.us < self.swept_us.saturating_add(SWEEP_PAUSE_US) {
            return;
        }
        self.swept_us = now.us;
        self.ended.retain(|_, ended_us| now.us < ended_us.saturating_add(ENDED_US));
        if self.open.is_none() {
            let quiet_us = self.limits.quiet_us;
            let is_over = |followed: &Followed| now.us >= followed.last_us.saturating_add(quiet_us);
            let over: Vec<_> = self.flows.extract_if(|_, flow| is_over(flow)).collect();
            for (flow, followed) in over {
                self.settle(&flow, &followed);
                self.sums.sessions_outside += 1;
            }
        }
    }

    /// The host's RST to a flow's client has passed.
    fn reset(&mut self, flow: &FlowKey, at_us: u64) {
        let Some(followed) = self.flows.get_mut(flow) else {
            return;
        };
        if let Standing::Nobodys(reason, owner) = followed.standing {
            followed.standing = Standing::Reset(reason, owner);
            followed.last_us = followed.last_us.max(at_us);
            if let Some(open) = self.open.as_mut().filter(|open| open.has(followed)) {
                open.last_us = open.last_us.max(at_us);
            }
        }
    }

    /// Whether to look for causes now and tell [`Ledger::learn`].
    #[must_use]
    pub fn wants_causes(&self, now: Moment) -> bool {
        let is_due = |open: &Open| now.us >= open.causes_next_us;
        self.open.as_ref().is_some_and(is_due) || self.end(now).is_some()
    }

    /// Takes what has happened in the last minutes. What is too old for the open incident, or known,
    /// is left out.
    pub fn learn(&mut self, now: Moment, causes: &[Cause]) {
        let Some(open) = &mut self.open else {
            return;
        };
        open.causes_next_us = now.us.saturating_add(CAUSES_PAUSE_US);
        let began_unix_us = now.unix_at(open.began_us);
        for cause in causes {
            let before_us = match cause.kind {
                CauseKind::PeerDied => DEATH_BEFORE_US,
                _ => CAUSE_BEFORE_US,
            };
            let is_recent =
                cause.at_unix_us.is_none_or(|at| at.saturating_add(before_us) >= began_unix_us);
            let is_known = open.causes.iter().any(|known| is_same(known, cause));
            if is_recent && !is_known && open.causes.len() < CAUSES_MAX {
                open.causes.push(*cause);
            }
        }
        open.causes.sort_by_key(|cause| cause.at_unix_us);
    }

    /// How the open incident ends now, if it does.
    fn end(&self, now: Moment) -> Option<IncidentState> {
        let open = self.open.as_ref()?;
        if now.us >= open.last_us.saturating_add(self.limits.quiet_us) {
            return Some(IncidentState::Closed);
        }
        (now.us >= open.began_us.saturating_add(LONGEST_US)).then_some(IncidentState::TooLong)
    }

    /// Closes the open incident, if it is over.
    pub fn close(&mut self, now: Moment) -> Option<Incident> {
        let state = self.end(now)?;
        self.close_as(state, now)
    }

    /// Closes the open incident, as the daemon stops.
    pub fn stop(&mut self, now: Moment) -> Option<Incident> {
        self.close_as(IncidentState::Stopped, now)
    }

    fn close_as(&mut self, state: IncidentState, now: Moment) -> Option<Incident> {
        let mut open = self.open.take()?;
        if open.causes.is_empty() {
            let kind = CauseKind::PathChange;
            open.causes.push(Cause { kind, locator: None, at_unix_us: None });
        }
        let mut flows = std::mem::take(&mut self.flows);
        for (flow, followed) in &mut flows {
            followed.standing = self.settle(flow, followed);
            self.sums.sessions_outside += u64::from(!open.has(followed));
        }
        let incident = self.incident(&open, &flows, state, now);
        if let Some(detection_us) = incident.detection_time_us {
            self.sums.detection.record(detection_us);
        }
        Some(incident)
    }

    /// The open incident's id.
    #[must_use]
    pub fn open_incident_id(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.id)
    }

    /// The open incident as it stands.
    #[must_use]
    pub fn open_incident(&self, now: Moment) -> Option<Incident> {
        let open = self.open.as_ref()?;
        Some(self.incident(open, &self.flows, IncidentState::Open, now))
    }

    fn incident(
        &self,
        open: &Open,
        flows: &HashMap<FlowKey, Followed>,
        state: IncidentState,
        now: Moment,
    ) -> Incident {
        let began_unix_us = now.unix_at(open.began_us);
        let (mut sessions, mut losses) = (SessionCounts::default(), Losses::default());
        let (mut forward, mut lookup) = (Times::new(), Times::new());
        let (mut lost, mut owners) = (Vec::new(), HashMap::<IpAddr, u64>::new());
        let mut strays_dropped = 0;
        for (flow, followed) in flows.iter().filter(|(_, followed)| open.has(followed)) {
            followed.standing.count(&mut sessions);
            strays_dropped += followed.dropped;
            followed.forward_us.inspect(|us| forward.record(*us));
            followed.lookup_us.inspect(|us| lookup.record(*us));
            if let Standing::Saved(owner) | Standing::Redirected(owner) = followed.standing {
                *owners.entry(owner).or_default() += 1;
            }
            if let Some((reason, owner)) = followed.standing.loss() {
                losses.count(reason);
                let came_unix_us = now.unix_at(followed.came_us);
                lost.push(LostSession { flow: *flow, came_unix_us, reason, owner });
            }
        }
        lost.sort_by_key(|lost| (lost.came_unix_us, lost.flow));
        lost.truncate(LOST_MAX);
        let owners = owners.into_iter().map(|(locator, sessions)| OwnerCount { locator, sessions });
        let mut owners: Vec<_> = owners.collect();
        owners.sort_by_key(|owner| (std::cmp::Reverse(owner.sessions), owner.locator));
        let others = owners.split_off(OWNERS_MAX.min(owners.len()));
        Incident {
            id: open.id,
            state,
            began_unix_us,
            ended_unix_us: now.unix_at(open.last_us),
            sessions,
            losses: losses.occurred(),
            strays_dropped,
            owners,
            sessions_of_other_owners: others.iter().map(|owner| owner.sessions).sum(),
            causes: open.causes.clone(),
            detection_time_us: detection_us(&open.causes, began_unix_us),
            forward_time_us: distribution(&forward),
            lookup_time_us: distribution(&lookup),
            lost,
            reports_untracked: open.untracked,
            reports_missed: self.missed.saturating_sub(open.missed_before),
        }
    }

    /// Flows that are followed, and reports on flows above those that can be.
    #[must_use]
    pub fn usage(&self) -> (usize, u64) {
        (self.flows.len(), self.sums.untracked)
    }

    /// What was counted since the start.
    #[must_use]
    pub fn stats(&self) -> IncidentStats {
        let Sums { incidents, sessions_outside, untracked, after_end, .. } = &self.sums;
        let counters = [
            ("incidents", *incidents),
            ("sessions_outside", *sessions_outside),
            ("reports_untracked", *untracked),
            ("reports_after_end", *after_end),
        ];
        let open = self.open.as_ref().map(|open| {
            let mut counts = SessionCounts::default();
            let followed = self.flows.values().filter(|followed| open.has(followed));
            followed.for_each(|followed| followed.standing.count(&mut counts));
            counts
        });
        IncidentStats {
            counters: counters.map(|(name, value)| (name.to_owned(), value)).into(),
            sessions: self.sums.sessions,
            losses: self.sums.losses.all(),
            open,
            forward_time_us: distribution(&self.sums.forward),
            lookup_time_us: distribution(&self.sums.lookup),
            detection_time_us: distribution(&self.sums.detection),
        }
    }
}

/// From the last cause before the first stray to that.
fn detection_us(causes: &[Cause], began_unix_us: u64) -> Option<u64> {
    let moments = causes.iter().filter_map(|cause| cause.at_unix_us);
    let last = moments.filter(|at| *at <= began_unix_us).max()?;
    Some(began_unix_us - last)
}

fn is_same(one: &Cause, other: &Cause) -> bool {
    let apart_us = match (one.at_unix_us, other.at_unix_us) {
        (Some(one), Some(other)) => one.abs_diff(other),
        _ => 0,
    };
    one.kind == other.kind && one.locator == other.locator && apart_us < CAUSES_APART_US
}

fn distribution(times: &Times) -> Distribution {
    crate::commands::stats::distribution(&times.distribution())
}
