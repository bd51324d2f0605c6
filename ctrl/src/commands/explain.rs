//! Answers `explain`: what would become of a flow's next segment here, and why, step by step. Asks
//! the table, the kernel and the DHT, and sends nothing to the flow.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_dataplane::foresee::{Fate, fate};
use holdfast_dataplane::kernel::{Held, Kernel};
use holdfast_dataplane::session::{Session, State};
use holdfast_dht::{self as dht, Statement};
use holdfast_handoff::{Resolution, Version};
use holdfast_net::FlowKey;
use humantime_serde::re::humantime::format_duration;

use super::lookups::lookup_report;
use super::{Commands, unavailable};
use crate::config::Config;
use crate::kernel_sockets::KernelSockets;
use crate::protocol::{
    ExplainMember, ExplainReply, ExplainStep, KernelHolds, ProtocolError, SessionEntry,
    SessionKind, Verdict,
};

impl Commands {
    pub(super) fn explain(&self, flow: FlowKey) -> Result<ExplainReply, ProtocolError> {
        let appliance = &self.appliance;
        let (config, table) = (&*appliance.reload.config(), &appliance.table);
        let locator = config.node.locator;
        if !table.services().contains(flow.service().ip(), flow.service().port()) {
            return Ok(not_a_services(flow));
        }
        let found = table.lookup(&flow, self.now()).map(|found| found.session);
        let entry = self.session(&flow).map(|(_, entry)| entry);
        let kernel = KernelSockets::new(Arc::default()).holds(&flow);
        let kernel = kernel.map_err(|error| format!("{error:#}"));
        let report = appliance.dht.lookup(flow).map_err(unavailable)?;
        let (present, absent) = appliance.dht.peers().map_err(unavailable)?;
        let facts = Facts { config, locator, found, entry, kernel, report, present, absent };
        Ok(facts.explain())
    }
}

/// Segments of other flows are none of ours.
fn not_a_services(flow: FlowKey) -> ExplainReply {
    let text = format!(
        "{} is no service of this server ([[service]] in its configuration): what is not of a \
         service passes through untouched.",
        flow.service()
    );
    ExplainReply {
        flow,
        verdict: Verdict::Pass,
        tunnel_to: None,
        steps: vec![ExplainStep { rule: None, text }],
        table: None,
        kernel: KernelHolds::Unknown,
        dht: None,
        members: Vec::new(),
    }
}

/// What is known of a flow at this moment.
struct Facts<'a> {
    config: &'a Config,
    locator: IpAddr,
    found: Option<Session>,
    entry: Option<SessionEntry>,
    kernel: Result<Held, String>,
    report: dht::LookupReport,
    present: Vec<dht::Peer>,
    absent: Vec<dht::AbsentPeer>,
}

/// The steps of an explanation.
#[derive(Default)]
struct Steps(Vec<ExplainStep>);

impl Steps {
    fn add(&mut self, rule: &str, text: impl Into<String>) {
        self.0.push(ExplainStep { rule: Some(rule.to_owned()), text: text.into() });
    }
}

impl Facts<'_> {
    fn explain(self) -> ExplainReply {
        let fate = fate(self.found.as_ref(), &self.resolution(), self.locator, |locator| {
            self.config.cluster.is_member(locator)
        });
        let mut steps = Steps::default();
        self.kernel_step(&mut steps);
        self.table_step(&mut steps);
        self.record_steps(&mut steps);
        self.owner_steps(&mut steps);
        self.verdict_step(fate, &mut steps);
        let (verdict, tunnel_to) = match fate {
            Fate::Host => (Verdict::Host, None),
            Fate::Tunnel(owner) => (Verdict::Tunnel, Some(owner)),
            Fate::Drop(_) => (Verdict::Drop, None),
        };
        ExplainReply {
            flow: self.report.flow,
            verdict,
            tunnel_to,
            steps: steps.0,
            kernel: self.kernel_holds(),
            members: self.members(),
            dht: Some(lookup_report(&self.report)),
            table: self.entry,
        }
    }

    /// What a worker would be answered.
    fn resolution(&self) -> Resolution {
        let dht::LookupReport { outcome, owner, version, .. } = &self.report;
        match (outcome, owner, version) {
            (dht::Outcome::Owner, Some(locator), Some(version)) => {
                Resolution::Owner { locator: *locator, version: *version }
            }
            (dht::Outcome::NotFound, ..) if self.orphaned().is_some() => Resolution::Orphaned,
            (dht::Outcome::NotFound, ..) => Resolution::NotFound,
            _ => Resolution::TimedOut,
        }
    }

    /// The owner that has died for good (R13), if the greatest claim that a replica named is its.
    fn orphaned(&self) -> Option<IpAddr> {
        let named = self.report.replicas.iter().filter_map(|replica| match &replica.said {
            Statement::Holds(claim) | Statement::Deleted(claim) => Some((claim, true)),
            Statement::Orphaned(claim) => Some((claim, false)),
            Statement::NotHeld | Statement::NoAnswer => None,
        });
        let (claim, counts) = named.max()?;
        (!counts).then_some(claim.owner)
    }

    fn kernel_holds(&self) -> KernelHolds {
        match self.kernel {
            Ok(Held::Session(_)) => KernelHolds::Session,
            Ok(Held::Opening) => KernelHolds::Handshake,
            Ok(Held::Over) => KernelHolds::Nothing,
            Ok(Held::NoService) => KernelHolds::NoListener,
            Err(_) => KernelHolds::Unknown,
        }
    }

    /// R1: the truth.
    fn kernel_step(&self, steps: &mut Steps) {
        let service = self.report.flow.service();
        let text = match &self.kernel {
            Ok(Held::Session(state)) => format!(
                "This server's kernel holds the session's socket, {}: the session is its own.",
                state.name()
            ),
            Ok(Held::Opening) => "This server's kernel holds a handshake of this flow that is not \
                 complete."
                .to_owned(),
            Ok(Held::Over) => "This server's kernel holds no session of this flow.".to_owned(),
            Ok(Held::NoService) => format!(
                "No socket listens for {service} in this server's network namespace, so its kernel \
                 says nothing of its sessions."
            ),
            Err(error) => format!("This server's kernel does not say what it holds: {error}."),
        };
        steps.add("R1", text);
    }

    fn table_step(&self, steps: &mut Steps) {
        let kernel_holds = matches!(self.kernel, Ok(Held::Session(_)));
        let Some(entry) = &self.entry else {
            steps.add("R4", "The session table of this server has no entry.");
            if kernel_holds {
                steps.add(
                    "R7",
                    format!(
                        "It learns the session with the next segment that the host sends, and with \
                         the next kernel check (sessions.kernel_check, {}).",
                        format_duration(self.config.sessions.kernel_check)
                    ),
                );
            }
            return;
        };
        let idle = format_duration(Duration::from_millis(entry.idle_ms));
        match entry.kind {
            SessionKind::Redirect => {
                let owner = entry.owner;
                let text = format!("The session table has a redirect to {owner}, idle for {idle}.");
                steps.add("R4", text);
                if kernel_holds {
                    steps.add(
                        "R12",
                        "The redirect counts for more than the kernel's socket: it is of a later \
                         session on this flow, and what the host has is left over from one whose \
                         client is gone. A SYN ends the redirect (R2).",
                    );
                }
            }
            SessionKind::Local => self.local_steps(entry, &idle.to_string(), steps),
        }
    }

    fn local_steps(&self, entry: &SessionEntry, idle: &str, steps: &mut Steps) {
        let version = entry.version.unwrap_or_default();
        steps.add(
            "R4",
            format!(
                "The session table has it as a local session, {}, version {version}, idle for {idle}.",
                entry.state
            ),
        );
        match self.found {
            Some(Session::Local { state: State::HalfOpen, published: false, .. }) => steps.add(
                "R3",
                "It is not published: above sessions.half_open_max that waits for the handshake's \
                 end.",
            ),
            Some(Session::Local { state, published: false, .. }) if !state.is_lingering() => {
                steps.add("R3", "It is not published yet: the ring to the DHT core was full.");
            }
            Some(Session::Local { state, .. }) if state.is_lingering() => steps.add(
                "R8",
                format!(
                    "It is over. It lingers for {} (sessions.linger) for late segments, then its \
                     record is deleted.",
                    format_duration(self.config.sessions.linger)
                ),
            ),
            _ => {}
        }
        let is_live = matches!(self.found, Some(Session::Local { state, .. })
            if state != State::HalfOpen && !state.is_lingering());
        if is_live && self.kernel == Ok(Held::Over) {
            steps.add(
                "R8",
                "The kernel does not hold it any more: two kernel checks in a row that find that \
                 close it.",
            );
        }
    }

    /// What the replicas have, and how that fits the table.
    fn record_steps(&self, steps: &mut Steps) {
        let mut by_claim: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for replica in &self.report.replicas {
            let said = match &replica.said {
                Statement::Holds(claim) => {
                    format!("the record with owner {}, version {}", claim.owner, claim.version.0)
                }
                Statement::Deleted(claim) => format!(
                    "a deleted record of owner {}, version {}",
                    claim.owner, claim.version.0
                ),
                Statement::Orphaned(claim) => format!(
                    "a record of owner {}, version {}, which has died for good",
                    claim.owner, claim.version.0
                ),
                Statement::NotHeld => "no record".to_owned(),
                Statement::NoAnswer => "not answered".to_owned(),
            };
            by_claim.entry(said).or_default().push(replica.locator.to_string());
        }
        if by_claim.is_empty() {
            steps.add("R3", "No replica of this flow's record is known: this server is alone.");
        }
        for (said, replicas) in &by_claim {
            let verb = if replicas.len() == 1 { "has" } else { "have" };
            steps.add("R3", format!("Of the replicas {} {verb} {said}.", replicas.join(", ")));
        }
        let claims = self.claims();
        let greatest = claims.iter().map(|(version, owner)| (*version, *owner)).max();
        if let (Some((version, owner)), true) = (greatest, claims.len() > 1) {
            steps.add(
                "R12",
                format!("They differ: the greatest version counts, {} of {owner}.", version.0),
            );
        }
        self.compare_with_table(greatest, steps);
    }

    /// The different live records that replicas have.
    fn claims(&self) -> Vec<(Version, IpAddr)> {
        let mut claims: Vec<_> = self
            .report
            .replicas
            .iter()
            .filter_map(|replica| match &replica.said {
                Statement::Holds(claim) => Some((claim.version, claim.owner)),
                _ => None,
            })
            .collect();
        claims.sort_unstable();
        claims.dedup();
        claims
    }

    fn compare_with_table(&self, greatest: Option<(Version, IpAddr)>, steps: &mut Steps) {
        match (self.found, greatest) {
            (Some(Session::Local { version, state, .. }), Some((found, owner)))
                if owner != self.locator && found > version && !state.is_lingering() =>
            {
                steps.add(
                    "R12",
                    format!(
                        "The record is of a later session on this flow, at {owner}. Its replicas \
                         tell this server, which redirects to it then."
                    ),
                );
            }
            (Some(Session::Local { published: true, state, .. }), None)
                if !state.is_lingering() && self.answered() > 0 =>
            {
                steps.add(
                    "R3",
                    "No replica that answered has the record, though it was published: it is on its \
                     way, or lost. Until it is there again this session's segments that reach other \
                     servers are strays that nobody owns.",
                );
            }
            (Some(Session::Redirect { owner }), Some((_, found))) if found != owner => {
                steps.add(
                    "R6",
                    format!(
                        "The record names another owner than the redirect. {owner} refuses what it \
                         does not hold (NotMine); then the redirect is dropped, and the flow looked up \
                         again."
                    ),
                );
            }
            _ => {}
        }
    }

    fn answered(&self) -> usize {
        let replicas = self.report.replicas.iter();
        replicas.filter(|replica| replica.said != Statement::NoAnswer).count()
    }

    /// Whether the owner that counts is there.
    fn owner_steps(&self, steps: &mut Steps) {
        let redirected = match self.found {
            Some(Session::Redirect { owner }) => Some(owner),
            _ => None,
        };
        let recorded = self.claims().last().map(|(_, owner)| *owner).or(self.orphaned());
        let Some(owner) = redirected.or(recorded).filter(|owner| *owner != self.locator) else {
            return;
        };
        let state = self.state(owner);
        let absent = self.absent.iter().find(|peer| peer.locator == owner);
        let since = absent.map_or_else(String::new, |peer| {
            let seconds = Duration::from_secs(peer.absent_us / 1_000_000);
            format!(" for {}", format_duration(seconds))
        });
        let text = match state {
            "alive" => format!("{owner} is alive."),
            "suspect" => format!(
                "{owner} is suspect: it missed a request, or others say so. Others are asked before \
                 it, and its sessions are its own."
            ),
            "away" => format!(
                "{owner} is away{since}: it said that it stops, and its sessions are its own for {} \
                 (dht.lease).",
                format_duration(self.config.dht.lease)
            ),
            "dead" => format!(
                "{owner} is dead{since}: redirects to it are dropped, and its strays too until it \
                 gave no sign of life for {} (dht.restart_within), for it may be started again; then \
                 its sessions are nobody's.",
                format_duration(self.config.dht.restart_within)
            ),
            _ => format!("{owner} is no member that this server knows."),
        };
        steps.add("R13", text);
    }

    fn verdict_step(&self, fate: Fate, steps: &mut Steps) {
        let resolution = self.resolution();
        let (rule, text) = match (fate, self.found) {
            (Fate::Host, Some(_)) => (
                "R4",
                "The next segment is a hit of a local session: it goes to the host's kernel.".to_owned(),
            ),
            (Fate::Tunnel(owner), Some(_)) => (
                "R4",
                format!(
                    "The next segment is a hit of the redirect: it goes into the tunnel to {owner} ({}).",
                    self.config.tunnel.encapsulation.name()
                ),
            ),
            (Fate::Tunnel(owner), None) => (
                "R5",
                format!(
                    "The next segment is a stray: it is parked, the DHT is asked and names {owner}; a \
                     redirect is made, and the segment goes into the tunnel ({}).",
                    self.config.tunnel.encapsulation.name()
                ),
            ),
            (Fate::Host, None) if resolution == Resolution::Orphaned => (
                "R5",
                "The next segment is a stray: it is parked, and the DHT asked. Its owner has died for \
                 good, so that nobody owns it: it goes to the host, whose kernel answers as TCP says."
                    .to_owned(),
            ),
            (Fate::Host, None) if resolution == Resolution::NotFound => (
                "R5",
                format!(
                    "The next segment is a stray: it is parked, and the DHT asked twice, {} apart \
                     (parking.grace). Nobody owns it, so it goes to the host, whose kernel answers as \
                     TCP says. RSTs of the host are withheld until nothing has been known of \
                     the flow for two seconds.",
                    format_duration(self.config.parking.grace)
                ),
            ),
            (Fate::Host, None) => (
                "R5",
                "The next segment is a stray: it is parked, the DHT is asked and names this server; the \
                 session is taken into the table again, and the segment goes to the host."
                    .to_owned(),
            ),
            (Fate::Drop(counter), _) => (
                "R5",
                format!(
                    "The next segment is a stray: it is parked, the DHT is asked and cannot say who owns \
                     it, so that it is dropped ({}). TCP repeats it, and it is looked up again; a false \
                     RST would kill a session that lives.",
                    counter.name()
                ),
            ),
        };
        steps.add(rule, text);
        let superseded = match self.found {
            Some(Session::Redirect { .. }) => ", and supersedes the redirect",
            _ => "",
        };
        steps.add("R2", format!("A SYN goes to this server's host in any case{superseded}."));
    }

    /// The state of a server as this one sees it.
    fn state(&self, locator: IpAddr) -> &'static str {
        if locator == self.locator {
            return "self";
        }
        if let Some(peer) = self.present.iter().find(|peer| peer.locator == locator) {
            return if peer.suspect { "suspect" } else { "alive" };
        }
        match self.absent.iter().find(|peer| peer.locator == locator) {
            Some(peer) if peer.away => "away",
            Some(_) => "dead",
            None => "unknown",
        }
    }

    fn members(&self) -> Vec<ExplainMember> {
        let mut roles: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        let mut add = |locator: IpAddr, role: &str| {
            let roles = roles.entry(locator).or_default();
            if !roles.iter().any(|known| known == role) {
                roles.push(role.to_owned());
            }
        };
        let owners = self.claims().into_iter().map(|(_, owner)| owner);
        for owner in owners.chain(self.entry.iter().map(|entry| entry.owner)) {
            add(owner, "owner");
        }
        for replica in &self.report.replicas {
            add(replica.locator, "replica");
        }
        let member = |(locator, roles)| ExplainMember {
            locator,
            roles,
            state: self.state(locator).to_owned(),
        };
        roles.into_iter().map(member).collect()
    }
}

#[cfg(test)]
mod tests;
