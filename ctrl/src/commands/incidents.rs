//! Answers `list_incidents` and `get_incident`.

use super::Commands;
use crate::protocol::{ErrorCode, Incident, IncidentsReply, ProtocolError};

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
}
