//! Answers `sessions_…`: lists, counts and deletes entries of the session table, and tells of its
//! changes.

use std::time::Duration;

use holdfast_dataplane::session::changes::{Change, Seen};
use holdfast_dataplane::session::table::Entry;
use holdfast_dataplane::session::word::Kind;
use holdfast_dataplane::session::{Listed, Session, State};
use holdfast_dpdk as dpdk;
use holdfast_handoff::{Version, unix_us};
use holdfast_net::FlowKey;
use tracing::warn;

use super::Commands;
use crate::protocol::{
    ErrorCode, Limit, ProtocolError, SessionChange, SessionEntry, SessionEvent, SessionFilter,
    SessionKind, SessionsCountReply, SessionsDeleteReply, SessionsReply, StreamBounds, StreamReply,
};
use crate::socket::Stream;

/// Pause between two looks at what has changed: in it workers can tell of some 800,000 changes a
/// second before any is lost.
const WATCH_PAUSE: Duration = Duration::from_millis(20);
/// Changes taken at a time.
const WATCH_BATCH: usize = 1024;

impl Commands {
    /// Walks over the whole table, so that `total` is right; lists what the limit allows.
    pub(super) fn sessions_list(&self, filter: &SessionFilter, limit: Limit) -> SessionsReply {
        let mut reply = SessionsReply::default();
        self.walk(filter, |_, entry| {
            reply.total += 1;
            if reply.sessions.len() < limit.get() {
                reply.sessions.push(entry);
            }
        });
        reply.truncated = reply.total > reply.sessions.len() as u64;
        reply
    }

    pub(super) fn sessions_get(&self, flow: &FlowKey) -> Result<SessionEntry, ProtocolError> {
        self.session(flow).map(|(_, entry)| entry).ok_or_else(|| not_there(flow))
    }

    pub(super) fn sessions_count(&self, filter: &SessionFilter) -> SessionsCountReply {
        let mut reply = SessionsCountReply::default();
        self.walk(filter, |_, entry| {
            reply.total += 1;
            *reply.by_state.entry(entry.state).or_default() += 1;
            *reply.by_service.entry(entry.flow.service().to_string()).or_default() += 1;
            *reply.by_owner.entry(entry.owner.to_string()).or_default() += 1;
        });
        reply
    }

    /// Takes entries out of the table. What the kernel still holds comes back with the host's next
    /// segment (R7), or with the next kernel check.
    pub(super) fn sessions_delete(
        &self,
        filter: &SessionFilter,
        limit: Limit,
    ) -> Result<SessionsDeleteReply, ProtocolError> {
        if filter.is_empty() {
            let message = "expected a filter that says something: which sessions to delete";
            return Err(ProtocolError::new(ErrorCode::BadRequest, message));
        }
        let mut reply = SessionsDeleteReply::default();
        let mut withdraw: Vec<(FlowKey, Version)> = Vec::new();
        self.walk(filter, |found, entry| {
            let version = self.appliance.table.version(found);
            let is_published = found.is_published();
            if reply.sessions.len() == limit.get() || !self.appliance.table.remove(found) {
                reply.left += 1;
                return;
            }
            if let Some(version) = version.filter(|_| is_published) {
                withdraw.push((entry.flow, version));
            }
            reply.sessions.push(entry);
        });
        if let (Some(flow), 0, true) = (filter.flow, reply.left, reply.sessions.is_empty()) {
            return Err(not_there(&flow));
        }
        for (flow, version) in withdraw {
            match self.appliance.dht.withdraw(flow, version) {
                Ok(()) => reply.withdrawn += 1,
                Err(error) => warn!(%flow, %error, "the record of a deleted session stays"),
            }
        }
        Ok(reply)
    }

    /// Tells of changes as they happen, in the order in which workers made them.
    pub(super) fn sessions_watch(
        &self,
        filter: &SessionFilter,
        events: &[SessionEvent],
        bounds: StreamBounds,
        stream: &mut Stream<'_>,
    ) -> Result<StreamReply, ProtocolError> {
        let SessionFilter { idle_over_ms, idle_under_ms, published, .. } = filter;
        if idle_over_ms.or(*idle_under_ms).is_some() || published.is_some() {
            let message = "expected no idle_over_ms, idle_under_ms or published: changes have none";
            return Err(ProtocolError::new(ErrorCode::BadRequest, message));
        }
        stream.run(bounds, |items| {
            let mut watcher = self.appliance.table.changes().watch();
            loop {
                let seen = watcher.take(WATCH_BATCH);
                let pause = if seen.len() < WATCH_BATCH { WATCH_PAUSE } else { Duration::ZERO };
                for seen in seen {
                    match seen {
                        Seen::Missed(count) => items.missed(count)?,
                        Seen::Change(change) => {
                            let change = self.change(&change);
                            if wanted(filter, events, &change) {
                                items.send(&change)?;
                            }
                        }
                    }
                }
                items.wait(pause)?;
            }
        })
    }

    /// Shows `see` all entries that the filter admits. One walk at a time: however many clients
    /// ask, one core is busy with it.
    fn walk(&self, filter: &SessionFilter, mut see: impl FnMut(&Entry, SessionEntry)) {
        let _turn = self.walking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(flow) = filter.flow {
            if let Some((found, entry)) = self.session(&flow).filter(|(_, e)| filter.admits(e)) {
                see(&found, entry);
            }
            return;
        }
        let (table, now) = (&self.appliance.table, self.now());
        for bucket in 0..table.buckets() {
            table.visit(bucket, |found| {
                let entry = table.listed(&found, now).map(|listed| self.entry(&listed));
                if let Some(entry) = entry.filter(|entry| filter.admits(entry)) {
                    see(&found, entry);
                }
            });
        }
    }

    /// The entry of a flow, if there is one.
    pub(super) fn session(&self, flow: &FlowKey) -> Option<(Entry, SessionEntry)> {
        let found = self.appliance.table.lookup(flow, self.now())?;
        let listed = Listed { flow: *flow, session: found.session, idle_ms: found.idle_ms };
        Some((found.entry, self.entry(&listed)))
    }

    fn entry(&self, listed: &Listed) -> SessionEntry {
        let (kind, state, owner, version, published) = match listed.session {
            Session::Local { state, version, published } => (
                SessionKind::Local,
                state.name(),
                self.appliance.config.node.locator,
                Some(version.0),
                Some(published),
            ),
            // The table keeps no version of redirects: the owner's record has it.
            Session::Redirect { owner } => (SessionKind::Redirect, "redirected", owner, None, None),
        };
        SessionEntry {
            flow: listed.flow,
            kind,
            state: state.to_owned(),
            owner,
            version,
            published,
            idle_ms: listed.idle_ms,
        }
    }

    fn change(&self, change: &Change) -> SessionChange {
        let Change { tsc, flow, before, after, version, is_idle } = *change;
        let clock = self.appliance.clock;
        let ago_us = clock.at(dpdk::tsc()).us.saturating_sub(clock.at(tsc).us);
        let owner = match after.or(before) {
            Some(Kind::Redirect(owner)) => self.appliance.table.owners().locator(owner),
            Some(Kind::Local(_)) => Some(self.appliance.config.node.locator),
            None => None,
        };
        SessionChange {
            at_unix_us: unix_us().saturating_sub(ago_us),
            event: event(before, after, is_idle),
            flow,
            before: before.map(|kind| state(kind).to_owned()),
            after: after.map(|kind| state(kind).to_owned()),
            owner,
            version: version.map(|version| version.0),
        }
    }
}

fn not_there(flow: &FlowKey) -> ProtocolError {
    let message = format!("{flow} has no such entry in the session table of this server");
    ProtocolError::new(ErrorCode::NotFound, message)
}

fn state(kind: Kind) -> &'static str {
    match kind {
        Kind::Local(state) => state.name(),
        Kind::Redirect(_) => "redirected",
    }
}

/// What a change of an entry means.
fn event(before: Option<Kind>, after: Option<Kind>, is_idle: bool) -> SessionEvent {
    match (before, after) {
        (_, Some(Kind::Redirect(_))) => SessionEvent::Redirected,
        // Nothing moves on to half-open: it is another session on the same flow.
        (_, Some(Kind::Local(State::HalfOpen))) => SessionEvent::Opened,
        (None | Some(Kind::Redirect(_)), Some(Kind::Local(_))) => SessionEvent::Learnt,
        (_, Some(Kind::Local(State::Established))) => SessionEvent::Established,
        (_, Some(Kind::Local(State::HostClosed))) => SessionEvent::HostClosed,
        (_, Some(Kind::Local(State::ClientClosed))) => SessionEvent::ClientClosed,
        (_, Some(Kind::Local(State::Closed))) => SessionEvent::Closed,
        (_, Some(Kind::Local(State::Reset))) => SessionEvent::Reset,
        (Some(Kind::Local(state)), None) if state.is_lingering() => SessionEvent::Removed,
        (_, None) if is_idle => SessionEvent::Expired,
        (_, None) => SessionEvent::Removed,
    }
}

fn wanted(filter: &SessionFilter, events: &[SessionEvent], change: &SessionChange) -> bool {
    let SessionChange { event, flow, before, after, owner, .. } = change;
    let state = after.as_ref().or(before.as_ref()).map_or("", String::as_str);
    let kind = if state == "redirected" { SessionKind::Redirect } else { SessionKind::Local };
    (events.is_empty() || events.contains(event))
        && filter.admits_session(flow, kind, state, *owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_dataplane::session::owners::OwnerId;

    #[test]
    fn every_change_has_a_name() {
        use SessionEvent::*;
        let local = |state| Some(Kind::Local(state));
        let redirect = Some(Kind::Redirect(OwnerId(7)));
        let rows = [
            (None, local(State::HalfOpen), false, Opened),
            (local(State::Closed), local(State::HalfOpen), false, Opened),
            (redirect, local(State::HalfOpen), false, Opened),
            (None, local(State::Established), false, Learnt),
            (redirect, local(State::HostClosed), false, Learnt),
            (local(State::HalfOpen), local(State::Established), false, Established),
            (local(State::Reset), local(State::Established), false, Established),
            (local(State::Established), local(State::ClientClosed), false, ClientClosed),
            (local(State::Established), local(State::HostClosed), false, HostClosed),
            (local(State::HostClosed), local(State::Closed), false, Closed),
            (local(State::Established), local(State::Reset), false, Reset),
            (None, redirect, false, Redirected),
            (local(State::Established), redirect, false, Redirected),
            (local(State::Closed), None, true, Removed),
            (local(State::Reset), None, true, Removed),
            (local(State::HalfOpen), None, true, Expired),
            (local(State::Established), None, true, Expired),
            (local(State::Established), None, false, Removed),
            (redirect, None, true, Expired),
            (redirect, None, false, Removed),
        ];
        for (before, after, is_idle, expected) in rows {
            assert_eq!(event(before, after, is_idle), expected, "{before:?} {after:?}");
        }
    }
}
