//! The text of `explain`.

use crate::protocol::{ExplainReply, Verdict};

use super::lookups::{replicas, report};
use super::{Table, sessions, wrapped};

/// `explain FLOW`.
#[must_use]
pub fn explain(reply: &ExplainReply) -> String {
    let mut text = format!("flow     {}\nverdict  {}\n\n", reply.flow, verdict(reply));
    for (step, number) in reply.steps.iter().zip(1..) {
        let rule = step.rule.as_deref().unwrap_or("");
        text += &wrapped(&format!("{number:>2}. {rule:<4} "), &step.text);
    }
    if let Some(entry) = &reply.table {
        text += &format!("\ntable    {}\n", sessions::line(entry));
    }
    if let Some(dht) = &reply.dht {
        text += &format!("\ndht      {}\n", report(dht));
        if !dht.replicas.is_empty() {
            text.push('\n');
            text += &replicas(dht);
        }
    }
    if !reply.members.is_empty() {
        let mut table = Table::new(&["SERVER", "ROLE", "STATE"], &[]);
        for member in &reply.members {
            let roles = member.roles.join(", ");
            table.row(vec![member.locator.to_string(), roles, member.state.clone()]);
        }
        text.push('\n');
        text += &table.render();
    }
    text
}

fn verdict(reply: &ExplainReply) -> String {
    match (reply.verdict, reply.tunnel_to) {
        (Verdict::Pass, _) => "passes through: no service's".to_owned(),
        (Verdict::Host, _) => "to this server's host".to_owned(),
        (Verdict::Tunnel, Some(owner)) => format!("into the tunnel to {owner}"),
        (Verdict::Tunnel, None) => "into a tunnel".to_owned(),
        (Verdict::Drop, _) => "dropped; TCP repeats it".to_owned(),
    }
}
