//! Answers about entries of the session table.

use holdfast_dataplane::session::{Listed, Session};

use super::Commands;
use crate::protocol::{Request, SessionEntry, SessionKind, SessionsReply};

impl Commands {
    /// Walks over the whole table, so that `total` is right; lists what the limit allows.
    pub(super) fn sessions(&self, request: &Request) -> SessionsReply {
        let Request::ShowSessions { limit, .. } = request else {
            return SessionsReply::default();
        };
        let table = &self.appliance.table;
        let now = self.now();
        let mut reply = SessionsReply::default();
        for bucket in 0..table.buckets() {
            table.visit(bucket, |entry| {
                let Some(listed) = table.listed(&entry, now) else {
                    return;
                };
                let entry = self.entry(&listed);
                if !matches(request, &entry) {
                    return;
                }
                reply.total += 1;
                if reply.sessions.len() < limit.get() {
                    reply.sessions.push(entry);
                }
            });
        }
        reply.truncated = reply.total > reply.sessions.len() as u64;
        reply
    }

    pub(super) fn entry(&self, listed: &Listed) -> SessionEntry {
        let (kind, state, owner, version) = match listed.session {
            Session::Local { state, version, .. } => (
                SessionKind::Local,
                state.name(),
                self.appliance.config.node.locator,
                Some(version.0),
            ),
            // The table keeps no version of redirects: the owner's record has it.
            Session::Redirect { owner } => (SessionKind::Redirect, "redirected", owner, None),
        };
        SessionEntry {
            flow: listed.flow,
            kind,
            state: state.to_owned(),
            owner,
            version,
            idle_ms: listed.idle_ms,
        }
    }
}

fn matches(request: &Request, entry: &SessionEntry) -> bool {
    let Request::ShowSessions { kind, state, client, service, owner, limit: _ } = request else {
        return false;
    };
    kind.is_none_or(|kind| kind == entry.kind)
        && state.as_ref().is_none_or(|state| *state == entry.state)
        && client.as_ref().is_none_or(|client| client.admits(&entry.flow))
        && service.as_ref().is_none_or(|service| service.admits(&entry.flow))
        && owner.is_none_or(|owner| owner == entry.owner)
}
