//! Carries out `reload`, `reload_confirm` and `reload_roll_back`.

use std::time::Instant;

use super::Commands;
use crate::protocol::{ConfirmTime, ErrorCode, ProtocolError, ReloadReply};

impl Commands {
    pub(super) fn reload(
        &self,
        dry_run: bool,
        confirm: Option<ConfirmTime>,
    ) -> Result<ReloadReply, ProtocolError> {
        let (reload, now) = (&self.appliance.reload, Instant::now());
        match confirm {
            _ if !dry_run => reload.reload(confirm.map(ConfirmTime::get), now),
            None => reload.dry_run(now),
            Some(_) => {
                let message = "expected either dry_run or confirm_ms: what is not applied is not \
                               rolled back";
                Err(ProtocolError::new(ErrorCode::BadRequest, message))
            }
        }
    }

    pub(super) fn reload_confirm(&self) -> Result<ReloadReply, ProtocolError> {
        self.appliance.reload.confirm(Instant::now())
    }

    pub(super) fn reload_roll_back(&self) -> Result<ReloadReply, ProtocolError> {
        self.appliance.reload.roll_back(Instant::now())
    }
}
