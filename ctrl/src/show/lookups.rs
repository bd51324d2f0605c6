//! The text of `lookup` and `show lookups`.

use crate::protocol::{LookupOutcome, LookupReply, LookupReport, LookupsReply};

use super::sessions::line;
use super::{Table, micros, or_none, utc};

/// `show lookups`.
#[must_use]
pub fn lookups(reply: &LookupsReply) -> String {
    let head = ["ASKED (UTC)", "TOOK", "OUTCOME", "OWNER", "FLOW"];
    let mut table = Table::new(&head, &[1]);
    for lookup in &reply.lookups {
        table.row(vec![
            utc(lookup.asked_at_unix_us),
            micros(lookup.duration_us),
            lookup.outcome.to_string(),
            or_none(lookup.owner),
            lookup.flow.to_string(),
        ]);
    }
    format!("{}\n{} lookups, the newest first\n", table.render(), reply.lookups.len())
}

/// `lookup FLOW`.
#[must_use]
pub fn lookup(reply: &LookupReply) -> String {
    let table = reply.table.as_ref().map_or_else(|| "no entry".to_owned(), line);
    let mut text =
        format!("flow   {}\ntable  {table}\ndht    {}\n", reply.flow, report(&reply.dht));
    if !reply.dht.replicas.is_empty() {
        text.push('\n');
        text += &replicas(&reply.dht);
    }
    text
}

pub(super) fn report(report: &LookupReport) -> String {
    let outcome = match report.outcome {
        LookupOutcome::Owner => {
            let (owner, version) = (or_none(report.owner), or_none(report.version));
            format!("owner {owner}, version {version}")
        }
        LookupOutcome::NotFound => "nobody owns it".to_owned(),
        LookupOutcome::TimedOut => "too few replicas answered in time".to_owned(),
    };
    format!("{outcome}; took {}", micros(report.duration_us))
}

pub(super) fn replicas(report: &LookupReport) -> String {
    let head = ["ASKED", "ANSWER", "OWNER", "VERSION", "RTT"];
    let mut table = Table::new(&head, &[3, 4]);
    for replica in &report.replicas {
        table.row(vec![
            replica.locator.to_string(),
            replica.answer.clone(),
            or_none(replica.owner),
            or_none(replica.version),
            or_none(replica.rtt_us.map(micros)),
        ]);
    }
    table.render()
}
