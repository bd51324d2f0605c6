//! The text of `show limits`.

use crate::protocol::{LimitEntry, LimitsReply};

use super::{NONE, Table, or_none};

/// `show limits`.
#[must_use]
pub fn limits(reply: &LimitsReply) -> String {
    let head = ["LIMIT", "VALUE", "UNIT", "PER", "USED", "HIT", "SET BY"];
    let mut table = Table::new(&head, &[1, 4, 5]);
    for limit in &reply.limits {
        table.row(vec![
            limit.name.clone(),
            limit.value.to_string(),
            limit.unit.replace('_', " "),
            limit.scope.to_string(),
            or_none(limit.used),
            limit.hits.to_string(),
            limit.key.clone().unwrap_or_else(|| NONE.to_owned()),
        ]);
    }
    let hit = reply.limits.iter().filter(|limit| limit.hits > 0).count();
    let near: Vec<&LimitEntry> = reply.limits.iter().filter(|limit| is_near(limit)).collect();
    let mut text = format!(
        "{}\n{} limits, {hit} of them reached since the start\n",
        table.render(),
        reply.limits.len()
    );
    for limit in near {
        text += &format!("{} is used by more than nine tenths now\n", limit.name);
    }
    text
}

fn is_near(limit: &LimitEntry) -> bool {
    limit.used.is_some_and(|used| used.saturating_mul(10) > limit.value.saturating_mul(9))
}
