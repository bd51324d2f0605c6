//! Answers `show_config`.

use super::Commands;
use crate::protocol::ConfigReply;

impl Commands {
    pub(super) fn config(&self) -> ConfigReply {
        let config = &self.appliance.config;
        ConfigReply { config: config.shown(), warnings: config.warnings.clone() }
    }
}
