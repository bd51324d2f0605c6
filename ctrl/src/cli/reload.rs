//! `reload`.

use clap::Args;

use super::{Daemon, Failure};
use crate::protocol::{ConfirmTime, Request};
use crate::show;

/// Have the daemon read its configuration file again and go by it: all of it, or nothing when any of
/// it is wrong or needs a restart.
#[derive(Debug, Args)]
pub struct Reload {
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct How {
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Roll back after this time, 1s to 1h, unless --confirmed follows within it.
    #[arg(long, value_name = "TIME")]
    confirm: Option<ConfirmTime>,
    /// Keep what was reloaded with --confirm.
    #[arg(long)]
    confirmed: bool,
    /// Roll back what was reloaded with --confirm at once.
    #[arg(long)]
    roll_back: bool,
}

impl Reload {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        let How { dry_run, confirm: confirm_ms, confirmed, roll_back } = self.how;
        let request = match (confirmed, roll_back) {
            (true, _) => Request::ReloadConfirm {},
            (_, true) => Request::ReloadRollBack {},
            _ => Request::Reload { dry_run, confirm_ms },
        };
        daemon.show(&request, |reply| show::reload(reply, &request))
    }
}
