//! Answers `show_workers`.

use super::Commands;
use crate::appliance::Appliance;
use crate::load;
use crate::protocol::WorkersReply;

impl Commands {
    pub(super) fn workers(&self) -> WorkersReply {
        let Appliance { config, counters, samples, started, .. } = &*self.appliance;
        let cores = &config.workers.cores;
        WorkersReply {
            tsc_hz: self.appliance.tsc_hz,
            table_page_bytes: self.appliance.table.page_bytes() as u64,
            last_second: samples.last(cores),
            since_start: load::since_start(cores, counters, started.elapsed()),
        }
    }
}
