//! Answers `incidents_list` and `incidents_show`.

use super::Commands;
use super::limits::entry;
use crate::ledger::FLOWS_MAX;
use crate::protocol::{ErrorCode, Incident, IncidentsReply, LimitEntry, LimitScope, ProtocolError};

impl Commands {
    pub(super) fn incidents(&self, limit: usize) -> IncidentsReply {
        IncidentsReply { incidents: self.appliance.incidents.list(limit) }
    }

    pub(super) fn incident(&self, id: u64) -> Result<Box<Incident>, ProtocolError> {
        let found = self.appliance.incidents.get(id).map(Box::new);
        found.ok_or_else(|| {
            let message = format!("there is no incident {id}, or it is not kept any more");
            ProtocolError::new(ErrorCode::NotFound, message)
        })
    }

    /// The ledger's part of `show_limits`.
    pub(super) fn incident_limits(&self) -> [LimitEntry; 2] {
        let (followed, kept, untracked) = self.appliance.incidents.usage();
        let keep = self.appliance.config.incidents.keep as u64;
        let of = |name, key, value, unit| entry(name, key, LimitScope::Server, value, unit);
        [
            LimitEntry {
                used: Some(followed as u64),
                hits: untracked,
                counters: vec!["reports_untracked".to_owned()],
                ..of("incidents.followed", None, FLOWS_MAX as u64, "flows")
            },
            LimitEntry {
                used: Some(kept as u64),
                ..of("incidents.kept", Some("incidents.keep"), keep, "incidents")
            },
        ]
    }
}
