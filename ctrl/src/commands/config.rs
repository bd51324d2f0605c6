//! Answers `show_config`.

use std::time::Instant;

use super::Commands;
use crate::protocol::ConfigReply;

impl Commands {
    pub(super) fn config(&self) -> ConfigReply {
        let reload = &self.appliance.reload;
        let config = reload.config();
        ConfigReply {
            config: config.shown(),
            warnings: config.warnings.clone(),
            unconfirmed: reload.unconfirmed(Instant::now()),
        }
    }
}
