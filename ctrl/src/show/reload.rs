//! The text of `reload`.

use serde_json::Value;

use super::{NONE, Table, millis};
use crate::protocol::{ConfigChange, ReloadReply, Request};

/// `reload`: what has become of `request`.
#[must_use]
pub fn reload(reply: &ReloadReply, request: &Request) -> String {
    let count = match reply.changes.len() {
        0 => "nothing".to_owned(),
        1 => "1 key".to_owned(),
        count => format!("{count} keys"),
    };
    let path = &reply.path;
    let mut text = match request {
        Request::ReloadConfirm {} => format!("confirmed: {path} stays\n"),
        Request::ReloadRollBack {} => format!("rolled back to what was before {path}\n"),
        _ if reply.applied => format!("{path}: {count} changed\n"),
        _ => format!("{path}: {count} would change\n"),
    };
    if !reply.changes.is_empty() {
        text.push('\n');
        text += &changes(&reply.changes);
    }
    for warning in &reply.warnings {
        text += &format!("\nwarning: {warning}\n");
    }
    if let Some(left) = reply.confirm_within_ms {
        text += &format!("\n{}", unconfirmed(left));
    }
    text
}

/// What is otherwise, a line for each key.
pub(super) fn changes(changes: &[ConfigChange]) -> String {
    let mut table = Table::new(&["KEY", "BEFORE", "AFTER"], &[]);
    for ConfigChange { key, before, after } in changes {
        table.row(vec![key.clone(), value(before), value(after)]);
    }
    table.render()
}

/// What is to be done about a reload that is rolled back after this time.
pub(super) fn unconfirmed(left_ms: u64) -> String {
    format!(
        "rolled back in {} unless `holdfastctl reload --confirmed` comes before\n",
        millis(left_ms)
    )
}

fn value(value: &Value) -> String {
    match value {
        Value::Null => NONE.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
