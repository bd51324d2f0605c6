//! An incident: what a burst of strays did to sessions, as the control socket shows it and the
//! journal keeps it. Never finds anything out: the ledger does.

use std::fmt;
use std::net::IpAddr;

use holdfast_net::FlowKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Counters, Distribution, flow_text};

/// Lost sessions that an incident names.
pub const LOST_MAX: usize = 64;
/// Owners that an incident names.
pub const OWNERS_MAX: usize = 16;

/// A burst of strays, and what became of their sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Incident {
    /// Counts up, over restarts too when there is a journal.
    pub id: u64,
    /// Whether it is over.
    pub state: IncidentState,
    /// When its first stray came, in microseconds since the Unix epoch.
    pub began_unix_us: u64,
    /// When the last thing happened that belongs to it: of an open one, until now.
    pub ended_unix_us: u64,
    /// Its sessions, by what became of them.
    pub sessions: SessionCounts,
    /// The reset and the dropped ones, by [`LossReason`].
    pub losses: Counters,
    /// Strays that were dropped, of whatever session.
    pub strays_dropped: u64,
    /// The owners that sessions were redirected to, most sessions first, at most [`OWNERS_MAX`].
    pub owners: Vec<OwnerCount>,
    /// Sessions that were redirected to further owners.
    pub sessions_of_other_owners: u64,
    /// What happened shortly before or meanwhile, the earliest first; never empty once it is over.
    pub causes: Vec<Cause>,
    /// From the last cause before the first stray to that, in microseconds: the paper's detection
    /// time. `None` when the moment of a cause is not known here.
    pub detection_time_us: Option<u64>,
    /// From a session's first stray to its first segment in the tunnel, in microseconds.
    pub forward_time_us: Distribution,
    /// From a lookup's question to its answer, as workers see it, in microseconds.
    pub lookup_time_us: Distribution,
    /// Reset and dropped sessions, the first [`LOST_MAX`].
    pub lost: Vec<LostSession>,
    /// Reports of sessions above those that one incident follows.
    pub reports_untracked: u64,
    /// Reports that workers could not make meanwhile.
    pub reports_missed: u64,
}

/// Whether an incident is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IncidentState {
    /// Strays come, or came a moment ago.
    Open,
    /// It is over.
    Closed,
    /// The daemon stopped before it was over.
    Stopped,
    /// It was as long as one may be; another one goes on.
    TooLong,
    /// A state of a later daemon.
    #[serde(other)]
    Unknown,
}

impl IncidentState {
    /// The word that is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            IncidentState::Open => "open",
            IncidentState::Closed => "closed",
            IncidentState::Stopped => "stopped",
            IncidentState::TooLong => "too_long",
            IncidentState::Unknown => "unknown",
        }
    }
}

/// Sessions by what became of them. Of an open incident they may still change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SessionCounts {
    /// All of them: flows of which strays came.
    pub at_risk: u64,
    /// Sent to their owner.
    pub saved: u64,
    /// This server's own after all: given to its host.
    pub kept: u64,
    /// Nobody's: the host's RST went out to the client.
    pub reset: u64,
    /// Their strays were dropped, and none came after them.
    pub dropped: u64,
    /// Nobody's: given to the host, of which no answer was seen.
    pub unanswered: u64,
}

impl SessionCounts {
    /// All outcomes, with their names.
    #[must_use]
    pub const fn outcomes(&self) -> [(&'static str, u64); 5] {
        [
            ("saved", self.saved),
            ("kept", self.kept),
            ("reset", self.reset),
            ("dropped", self.dropped),
            ("unanswered", self.unanswered),
        ]
    }

    /// Sessions that are gone, as far as is known.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.reset + self.dropped
    }
}

/// Sessions that were redirected to one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OwnerCount {
    /// The owner's locator.
    pub locator: IpAddr,
    /// How many.
    pub sessions: u64,
}

/// Something that happened shortly before an incident, or meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cause {
    /// What.
    pub kind: CauseKind,
    /// The server that it is about, if it is not this one.
    pub locator: Option<IpAddr>,
    /// When, in microseconds since the Unix epoch; `None` when that is not known here.
    pub at_unix_us: Option<u64>,
}

/// What can happen.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// This daemon started.
    Started,
    /// The uplink's link went down.
    UplinkDown,
    /// The uplink's link came up.
    UplinkUp,
    /// A server said that it stops.
    PeerLeft,
    /// A server died: the moment is that of its last sign of life.
    PeerDied,
    /// A server's daemon started, by its own clock.
    PeerStarted,
    /// Nothing of that: the network chose another path.
    PathChange,
    /// A cause of a later daemon.
    #[serde(other)]
    Unknown,
}

impl CauseKind {
    /// What a person reads.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            CauseKind::Started => "this daemon started",
            CauseKind::UplinkDown => "the uplink went down",
            CauseKind::UplinkUp => "the uplink came up",
            CauseKind::PeerLeft => "peer left",
            CauseKind::PeerDied => "peer died",
            CauseKind::PeerStarted => "peer started",
            CauseKind::PathChange => "path change",
            CauseKind::Unknown => "unknown",
        }
    }
}

/// A session that was reset or dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LostSession {
    /// Its flow.
    #[serde(with = "flow_text")]
    #[schemars(with = "String")]
    pub flow: FlowKey,
    /// When its first stray came, in microseconds since the Unix epoch.
    pub came_unix_us: u64,
    /// Why.
    pub reason: LossReason,
    /// Its owner, if known.
    pub owner: Option<IpAddr>,
}

/// Why a session was lost.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LossReason {
    /// Reset: enough replicas said twice that nobody owns it.
    NotFound,
    /// Reset: its owner died and is given up.
    OwnerGivenUp,
    /// Dropped: its owner is dead, and may be back soon.
    OwnerDead,
    /// Dropped: too few replicas answered in time, or could say anything.
    LookupTimedOut,
    /// Dropped: the DHT core did not answer at all.
    NoAnswer,
    /// Dropped: the owner that was found is no member of the cluster.
    OwnerStranger,
    /// Dropped: there is no number left for the owner.
    OwnersFull,
    /// Dropped: the worker asked as many lookups as it may.
    AdmissionWorker,
    /// Dropped: its source prefix asked as many lookups as it may.
    AdmissionSource,
    /// Dropped: the parking was full.
    ParkingFull,
    /// Dropped: the ring to the DHT core was full.
    RingFull,
    /// Dropped: its strays could not be sent to the owner, and it has no redirect any more.
    NotSent,
    /// A reason of a later daemon.
    #[serde(other)]
    Unknown,
}

impl LossReason {
    /// All reasons.
    pub const ALL: [LossReason; 12] = [
        LossReason::NotFound,
        LossReason::OwnerGivenUp,
        LossReason::OwnerDead,
        LossReason::LookupTimedOut,
        LossReason::NoAnswer,
        LossReason::OwnerStranger,
        LossReason::OwnersFull,
        LossReason::AdmissionWorker,
        LossReason::AdmissionSource,
        LossReason::ParkingFull,
        LossReason::RingFull,
        LossReason::NotSent,
    ];

    /// Its name in listings, in JSON and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            LossReason::NotFound => "not_found",
            LossReason::OwnerGivenUp => "owner_given_up",
            LossReason::OwnerDead => "owner_dead",
            LossReason::LookupTimedOut => "lookup_timed_out",
            LossReason::NoAnswer => "no_answer",
            LossReason::OwnerStranger => "owner_stranger",
            LossReason::OwnersFull => "owners_full",
            LossReason::AdmissionWorker => "admission_worker",
            LossReason::AdmissionSource => "admission_source",
            LossReason::ParkingFull => "parking_full",
            LossReason::RingFull => "ring_full",
            LossReason::NotSent => "not_sent",
            LossReason::Unknown => "unknown",
        }
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An incident in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IncidentSummary {
    /// As [`Incident::id`], and so for the others.
    pub id: u64,
    /// Whether it is over.
    pub state: IncidentState,
    /// When its first stray came, in microseconds since the Unix epoch.
    pub began_unix_us: u64,
    /// When the last thing happened that belongs to it.
    pub ended_unix_us: u64,
    /// Its sessions.
    pub sessions: SessionCounts,
    /// What happened before or meanwhile.
    pub causes: Vec<Cause>,
    /// The paper's detection time.
    pub detection_time_us: Option<u64>,
    /// Median of the times to a session's first segment in the tunnel, if there was one.
    pub forward_time_p50_us: Option<u64>,
    /// The greatest of them.
    pub forward_time_max_us: Option<u64>,
}

impl From<&Incident> for IncidentSummary {
    fn from(incident: &Incident) -> IncidentSummary {
        let forward = Some(&incident.forward_time_us).filter(|times| times.count > 0);
        IncidentSummary {
            id: incident.id,
            state: incident.state,
            began_unix_us: incident.began_unix_us,
            ended_unix_us: incident.ended_unix_us,
            sessions: incident.sessions,
            causes: incident.causes.clone(),
            detection_time_us: incident.detection_time_us,
            forward_time_p50_us: forward.map(|times| times.p50),
            forward_time_max_us: forward.map(|times| times.max),
        }
    }
}

/// The incidents.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct IncidentsReply {
    /// The newest first; an open one is the first.
    pub incidents: Vec<IncidentSummary>,
}

/// What the ledger counted since the daemon's start.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct IncidentStats {
    /// Incidents that opened, and what limits and faults left out.
    pub counters: Counters,
    /// Sessions that strays came of, in incidents or not, by what became of them. They count when
    /// nothing came of them for `incidents.quiet`.
    pub sessions: SessionCounts,
    /// The reset and the dropped ones, by [`LossReason`].
    pub losses: Counters,
    /// The incident that is open.
    pub open: Option<SessionCounts>,
    /// From a session's first stray to its first segment in the tunnel, in microseconds.
    pub forward_time_us: Distribution,
    /// From a lookup's question to its answer, as workers see it, in microseconds.
    pub lookup_time_us: Distribution,
    /// From a cause whose moment is known to an incident's first stray, in microseconds.
    pub detection_time_us: Distribution,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_those_of_the_json() {
        for reason in LossReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
        }
        for state in [
            IncidentState::Open,
            IncidentState::Closed,
            IncidentState::Stopped,
            IncidentState::TooLong,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }

    #[test]
    fn words_of_a_later_daemon_are_unknown() {
        assert_eq!(serde_json::from_str::<LossReason>("\"new\"").unwrap(), LossReason::Unknown);
        assert_eq!(serde_json::from_str::<CauseKind>("\"new\"").unwrap(), CauseKind::Unknown);
        assert_eq!(
            serde_json::from_str::<IncidentState>("\"new\"").unwrap(),
            IncidentState::Unknown
        );
    }
}
