//! What a daemon that runs says of its devices. Without one nothing is said.

use super::Check;
use crate::client;
use crate::config::Config;
use crate::protocol::{Request, StatsReply};

pub(super) fn examine(config: &Config, checks: &mut Vec<Check>) {
    let Ok(answer) = client::ask(&config.node.control_socket, &Request::ShowStats {}) else {
        return;
    };
    // Of another version, perhaps.
    let Ok(stats) = serde_json::from_value::<StatsReply>(answer) else {
        return;
    };
    for port in stats.ports {
        let device = format!("{} {} ({})", port.role.replace('_', " "), port.name, port.driver);
        if !port.link_up && port.role == "uplink" {
            let found = format!("{device}: its link is down");
            checks.push(Check::fail(
                "link",
                found,
                "the cable, the switch's port, the PF: ip link",
            ));
        }
        checks.push(if port.lacks.is_empty() {
            Check::ok("device", device)
        } else {
            let found = format!("{device} has {}", port.lacks.join("; "));
            let mend = "docs/guide/deploy.md: what a device cannot do";
            Check::warn("device", found, mend)
        });
    }
}
