//! `trace FLOW`.

use clap::Args;
use holdfast_net::FlowKey;

use super::{Daemon, Failure};
use crate::protocol::{Request, StreamCount, StreamTime};
use crate::show;

/// Show what becomes of every packet of a flow, of both directions, and by which rule.
#[derive(Debug, Args)]
pub struct Trace {
    /// CLIENT-SERVICE, as in 20.1.1.1:1234-192.168.0.1:80.
    flow: FlowKey,
    /// How long, 1ms to 1h.
    #[arg(long = "for", value_name = "TIME", default_value = "30s")]
    time: StreamTime,
    /// Most packets, 1 to 10000000.
    #[arg(long, value_name = "N", default_value = "10000")]
    count: StreamCount,
}

impl Trace {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        let request = Request::Trace { flow: self.flow, for_ms: self.time, count: self.count };
        let mut is_first = true;
        let reply = daemon.follow(&request, |item| {
            let head = if std::mem::take(&mut is_first) { show::packets_head() } else { "" };
            format!("{head}{}", show::packet(item))
        })?;
        daemon.end(&reply)
    }
}
