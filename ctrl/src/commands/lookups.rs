//! Answers `lookup`, which asks the DHT, and `show_lookups`, which does not.

use holdfast_dht as dht;
use holdfast_net::FlowKey;

use super::{Commands, unavailable};
use crate::protocol::{
    JournalEntry, LookupOutcome, LookupReply, LookupReport, LookupsReply, ProtocolError,
    ReplicaAnswer,
};

impl Commands {
    pub(super) fn lookups(&self, limit: usize) -> Result<LookupsReply, ProtocolError> {
        let lookups = self.appliance.dht.recent_lookups(limit).map_err(unavailable)?;
        let lookups = lookups.into_iter().map(|lookup| JournalEntry {
            flow: lookup.flow,
            asked_at_unix_us: lookup.asked_at_unix_us,
            duration_us: lookup.duration_us,
            outcome: outcome(lookup.outcome),
            owner: lookup.owner,
        });
        Ok(LookupsReply { lookups: lookups.collect() })
    }

    pub(super) fn lookup(&self, flow: FlowKey) -> Result<LookupReply, ProtocolError> {
        let table = self.session(&flow).map(|(_, entry)| entry);
        let report = self.appliance.dht.lookup(flow).map_err(unavailable)?;
        Ok(LookupReply { flow, table, dht: lookup_report(&report) })
    }
}

fn outcome(outcome: dht::Outcome) -> LookupOutcome {
    match outcome {
        dht::Outcome::Owner => LookupOutcome::Owner,
        dht::Outcome::NotFound => LookupOutcome::NotFound,
        dht::Outcome::TimedOut => LookupOutcome::TimedOut,
    }
}

pub(super) fn lookup_report(report: &dht::LookupReport) -> LookupReport {
    LookupReport {
        outcome: outcome(report.outcome),
        owner: report.owner,
        version: report.version.map(|version| version.0),
        duration_us: report.duration_us,
        replicas: report.replicas.iter().map(replica_answer).collect(),
    }
}

fn replica_answer(report: &dht::ReplicaReport) -> ReplicaAnswer {
    let (answer, claim) = match &report.said {
        dht::Statement::Holds(claim) => ("owner", Some(claim)),
        dht::Statement::Deleted(claim) => ("deleted", Some(claim)),
        dht::Statement::Orphaned(claim) => ("orphaned", Some(claim)),
        dht::Statement::NotHeld => ("not_found", None),
        dht::Statement::NoAnswer => ("no_answer", None),
    };
    ReplicaAnswer {
        locator: report.locator,
        answer: answer.to_owned(),
        owner: claim.map(|claim| claim.owner),
        version: claim.map(|claim| claim.version.0),
        rtt_us: report.rtt_us,
    }
}
