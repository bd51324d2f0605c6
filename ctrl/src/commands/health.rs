//! Answers `show_health`, `drain` and `undrain`.

use std::time::Instant;

use super::Commands;
use crate::drain::{Drain, PersistError};
use crate::health::Server;
use crate::protocol::{
    DrainMode, DrainTimeout, ErrorCode, HealthReply, HealthStats, ProtocolError,
};

impl Commands {
    pub(super) fn health(&self) -> HealthReply {
        let appliance = &*self.appliance;
        appliance.health.report(appliance.sessions_left(), Instant::now())
    }

    pub(super) fn health_stats(&self) -> HealthStats {
        let appliance = &*self.appliance;
        appliance.health.stats(appliance.sessions_left(), Instant::now())
    }

    pub(super) fn drain(
        &self,
        timeout: DrainTimeout,
        mode: DrainMode,
        persist: bool,
    ) -> Result<HealthReply, ProtocolError> {
        let order = Drain { mode, timeout: timeout.get(), persist, since: Instant::now() };
        self.appliance.health.drain(order).map_err(not_kept)?;
        Ok(self.health())
    }

    pub(super) fn undrain(&self) -> Result<HealthReply, ProtocolError> {
        self.appliance.health.undrain().map_err(not_kept)?;
        Ok(self.health())
    }
}

fn not_kept(error: PersistError) -> ProtocolError {
    let message = format!("nothing has changed, as that could not be kept: {error}");
    ProtocolError::new(ErrorCode::Internal, message)
}
