//! Reads the configuration anew while the daemon runs, and goes by it: by all of it, or by nothing
//! when any of it is wrong or needs a restart. Rolls back what nobody confirms in time. Never
//! writes the file.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use holdfast_dataplane::classify::Classifier;
use holdfast_dataplane::service::Services;
use holdfast_dataplane::session::expiry::Timeouts;
use holdfast_dataplane::session::table::SessionTable;
use holdfast_dataplane::worker::Settings;
use holdfast_dht::Handle;
use humantime_serde::re::humantime::format_duration;
use tracing::{error, info, warn};

use crate::appliance;
use crate::config::{Config, LoadError, is_reloaded};
use crate::health::Health;
use crate::kernel_check::Plan;
use crate::lifecycle::Hangup;
use crate::log;
use crate::protocol::{
    ConfigChange, ErrorCode, ProtocolError, ReloadReply, ReloadStats, UnconfirmedReload,
};
use crate::systemd;

/// Pause before a roll-back that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What of a running appliance goes by other settings.
#[derive(Debug)]
pub struct Live {
    /// The session table: services and timeouts.
    pub table: Arc<SessionTable>,
    /// What the workers look at before each turn.
    pub settings: Arc<ArcSwap<Settings>>,
    /// The kernel check's pauses, and the timeouts that it hands on to the table.
    pub kernel_check: Plan,
    /// The DHT core: members and bootstrap nodes.
    pub dht: Handle,
    /// What is announced: the prefixes.
    pub health: Arc<Health>,
}

/// The configuration in effect, and what changes it.
#[derive(Debug)]
pub struct Reload {
    path: PathBuf,
    hangup: Hangup,
    live: Live,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    config: Arc<Config>,
    unconfirmed: Option<Unconfirmed>,
    /// What the workers went by before: no worker is to free it.
    former: Option<Arc<Settings>>,
    applied: u64,
    refused: u64,
    confirmed: u64,
    rolled_back: u64,
}

#[derive(Debug)]
struct Unconfirmed {
    before: Arc<Config>,
    until: Instant,
}

/// What another configuration makes of what there is; found out before anything changes.
struct Prepared {
    services: Services,
    settings: Settings,
    timeouts: Timeouts,
}

impl Reload {
    /// The appliance began with `config`, from the file at `path`.
    #[must_use]
    pub fn new(path: PathBuf, config: Config, hangup: Hangup, live: Live) -> Reload {
        let state = State {
            config: Arc::new(config),
            unconfirmed: None,
            former: None,
            applied: 0,
            refused: 0,
            confirmed: 0,
            rolled_back: 0,
        };
        Reload { path, hangup, live, state: Mutex::new(state) }
    }

    /// The configuration in effect. Whoever goes by a key that a reload changes asks anew each
    /// time.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.lock().config)
    }

    /// What the workers tell flows by, as of now.
    #[must_use]
    pub fn classifier(&self) -> Classifier {
        self.live.settings.load().classifier.clone()
    }

    /// Reads the file and goes by it; with `confirm` only for so long, unless that is confirmed.
    ///
    /// # Errors
    /// The refusal to send back: `bad_config` with all that is wrong, `needs_restart` with the keys
    /// that do, `conflict` while another reload waits for its confirmation, `unavailable` when the
    /// DHT core does not answer. Nothing has changed then.
    pub fn reload(
        &self,
        confirm: Option<Duration>,
        now: Instant,
    ) -> Result<ReloadReply, ProtocolError> {
        let mut state = self.lock();
        let outcome = self.apply_file(&mut state, confirm, now);
        if outcome.is_err() {
            state.refused += 1;
        }
        outcome
    }

    fn apply_file(
        &self,
        state: &mut State,
        confirm: Option<Duration>,
        now: Instant,
    ) -> Result<ReloadReply, ProtocolError> {
        if let Some(Unconfirmed { until, .. }) = state.unconfirmed {
            let left = until.saturating_duration_since(now).as_secs();
            let message = format!(
                "a reload waits for its confirmation, for {left} s more: confirm it or roll it back"
            );
            return Err(ProtocolError::new(ErrorCode::Conflict, message));
        }
        let (config, changes, prepared) = self.read(&state.config)?;
        self.apply(state, &config, prepared, now)?;
        let before = std::mem::replace(&mut state.config, Arc::new(config));
        let confirm = confirm.filter(|_| !changes.is_empty());
        state.unconfirmed = confirm.map(|confirm| Unconfirmed { before, until: now + confirm });
        state.applied += 1;
        let until = confirm.map_or_else(String::new, |confirm| {
            format!(", for {} unless it is confirmed", format_duration(confirm))
        });
        info!("configuration reloaded{until}: {}", listed(&changes));
        for warning in &state.config.warnings {
            warn!("{warning}");
        }
        Ok(self.reply(state, changes, true, now))
    }

    /// What a reload would change. Changes nothing.
    ///
    /// # Errors
    /// As [`Reload::reload`].
    pub fn dry_run(&self, now: Instant) -> Result<ReloadReply, ProtocolError> {
        let state = self.lock();
        let (config, changes, _) = self.read(&state.config)?;
        let reply = self.reply(&state, changes, false, now);
        Ok(ReloadReply { warnings: config.warnings, ..reply })
    }

    /// Keeps what was reloaded and waits for its confirmation.
    ///
    /// # Errors
    /// `conflict` when nothing waits.
    pub fn confirm(&self, now: Instant) -> Result<ReloadReply, ProtocolError> {
        let mut state = self.lock();
        let Unconfirmed { before, .. } = state.unconfirmed.take().ok_or_else(nothing_waits)?;
        state.confirmed += 1;
        info!("the reloaded configuration is confirmed");
        Ok(self.reply(&state, before.changes(&state.config), true, now))
    }

    /// Goes by what was before the reload that waits for its confirmation.
    ///
    /// # Errors
    /// `conflict` when none waits, and `unavailable` as [`Reload::reload`]: it waits on, then.
    pub fn roll_back(&self, now: Instant) -> Result<ReloadReply, ProtocolError> {
        let mut state = self.lock();
        let unconfirmed = state.unconfirmed.as_ref().ok_or_else(nothing_waits)?;
        let (before, after) = (Arc::clone(&unconfirmed.before), Arc::clone(&state.config));
        let prepared = self.prepare(&before).map_err(|unfit| needs_restart(&unfit))?;
        self.apply(&mut state, &before, prepared, now)?;
        let changes = after.changes(&before);
        info!("configuration rolled back: {}", listed(&changes));
        state.config = before;
        state.unconfirmed = None;
        state.rolled_back += 1;
        Ok(self.reply(&state, changes, true, now))
    }

    /// Does what is due: reloads after SIGHUP, and rolls back what was not confirmed in time. For
    /// the main thread, a few times a second.
    pub fn look(&self, now: Instant) {
        if self.hangup.take() {
            self.reload_for_service_manager(now);
        }
        let is_due = |unconfirmed: &Unconfirmed| unconfirmed.until <= now;
        if !self.lock().unconfirmed.as_ref().is_some_and(is_due) {
            return;
        }
        warn!("the reloaded configuration was not confirmed in time");
        if let Err(refusal) = self.roll_back(now) {
            error!("configuration not rolled back, to be tried again: {refusal}");
            if let Some(unconfirmed) = &mut self.lock().unconfirmed {
                unconfirmed.until = now + TRY_AGAIN;
            }
        }
    }

    /// Reloads after SIGHUP, and says so to a service manager that sent it (Type=notify-reload).
    fn reload_for_service_manager(&self, now: Instant) {
        if let Err(error) = systemd::reloading() {
            warn!("the service manager cannot be told: {error}");
        }
        match self.reload(None, now) {
            Ok(_) => systemd::ready("configuration reloaded"),
            Err(refusal) => {
                let text = format!("configuration not reloaded: {refusal}");
                error!("{text}");
                systemd::ready(&text);
            }
        }
    }

    /// The reload that waits for its confirmation.
    #[must_use]
    pub fn unconfirmed(&self, now: Instant) -> Option<UnconfirmedReload> {
        let state = self.lock();
        let unconfirmed = state.unconfirmed.as_ref()?;
        Some(UnconfirmedReload {
            left_ms: left_ms(unconfirmed, now),
            changes: unconfirmed.before.changes(&state.config),
        })
    }

    /// Counters and gauges for `show stats`.
    #[must_use]
    pub fn stats(&self, now: Instant) -> ReloadStats {
        let state = self.lock();
        let named = |(name, value): (&str, u64)| (name.to_owned(), value);
        let counters = [
            ("applied", state.applied),
            ("refused", state.refused),
            ("confirmed", state.confirmed),
            ("rolled_back", state.rolled_back),
        ];
        let left = state.unconfirmed.as_ref().map_or(0, |unconfirmed| left_ms(unconfirmed, now));
        let gauges = [("unconfirmed_ms", left)];
        ReloadStats { counters: counters.map(named).into(), gauges: gauges.map(named).into() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is in it is replaced whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reply(
        &self,
        state: &State,
        changes: Vec<ConfigChange>,
        applied: bool,
        now: Instant,
    ) -> ReloadReply {
        let unconfirmed = state.unconfirmed.as_ref().filter(|_| applied);
        ReloadReply {
            path: self.path.display().to_string(),
            changes,
            applied,
            confirm_within_ms: unconfirmed.map(|unconfirmed| left_ms(unconfirmed, now)),
            warnings: state.config.warnings.clone(),
        }
    }

    /// The file, what is otherwise in it than in `config`, and what is to be made of it.
    fn read(
        &self,
        config: &Config,
    ) -> Result<(Config, Vec<ConfigChange>, Prepared), ProtocolError> {
        let bad = |error: LoadError| ProtocolError::new(ErrorCode::BadConfig, error.to_string());
        let after = Config::load(&self.path).map_err(bad)?;
        let changes = config.changes(&after);
        let fixed = changes.iter().map(|change| &change.key).filter(|key| !is_reloaded(key));
        let mut fixed: Vec<String> = fixed.cloned().collect();
        match self.prepare(&after) {
            Ok(prepared) if fixed.is_empty() => Ok((after, changes, prepared)),
            Ok(_) => Err(needs_restart(&fixed)),
            Err(unfit) => {
                fixed.extend(unfit);
                Err(needs_restart(&fixed))
            }
        }
    }

    /// What `config` makes of what there is; else the keys whose values do not fit it, and why.
    fn prepare(&self, config: &Config) -> Result<Prepared, Vec<String>> {
        let Live { table, settings, .. } = &self.live;
        let mut unfit = Vec::new();
        let (has_v4, has_v6) = table.families();
        for service in &config.services {
            let (family, has) = match service.address {
                IpAddr::V4(_) => ("IPv4", has_v4),
                IpAddr::V6(_) => ("IPv6", has_v6),
            };
            if !has {
                let address = service.address;
                unfit.push(format!("service {address} (the first one of {family})"));
            }
        }
        let timeouts = appliance::timeouts(config);
        let max = table.timeouts_max();
        for (key, ms, max_ms) in [
            ("established_idle", timeouts.established_ms, max.established_ms),
            ("redirect_idle", timeouts.redirect_ms, max.redirect_ms),
            ("half_open_timeout", timeouts.half_open_ms, max.half_open_ms),
            ("linger", timeouts.linger_ms, max.linger_ms),
        ] {
            if ms > max_ms {
                let max = format_duration(Duration::from_millis(max_ms));
                unfit.push(format!("sessions.{key} (more than \"{max}\")"));
            }
        }
        match table.services().followed_by(config.service_sockets()) {
            Ok(services) if unfit.is_empty() => {
                let ports = settings.load().ports;
                let settings = appliance::settings(config, services.clone(), ports);
                Ok(Prepared { services, settings, timeouts })
            }
            Ok(_) => Err(unfit),
            Err(too_many) => {
                unfit.push(format!("service ({too_many}, former ones included)"));
                Err(unfit)
            }
        }
    }

    /// Goes by `config`. What can fail comes first.
    fn apply(
        &self,
        state: &mut State,
        config: &Config,
        prepared: Prepared,
        now: Instant,
    ) -> Result<(), ProtocolError> {
        let Live { table, settings, kernel_check, dht, health } = &self.live;
        let [before, after] = [&*state.config, config]
            .map(|config| (config.cluster.members.clone(), config.dht.bootstrap.clone()));
        if before != after {
            let (members, bootstrap) = after;
            let unavailable = |error: String| ProtocolError::new(ErrorCode::Unavailable, error);
            dht.set_cluster(members, bootstrap)
                .map_err(|error| unavailable(error.to_string()))?
                .map_err(|error| unavailable(error.to_string()))?;
        }
        // First the table: it knows the flows of services that a worker has not heard of yet.
        table.set_services(prepared.services);
        state.former = Some(settings.swap(Arc::new(prepared.settings)));
        if config.sessions != state.config.sessions {
            kernel_check.change(config.sessions.kernel_check, prepared.timeouts);
        }
        if config.prefixes() != state.config.prefixes() {
            health.set_prefixes(config.prefixes(), now);
        }
        log::set_level(config.node.log);
        Ok(())
    }
}

fn left_ms(unconfirmed: &Unconfirmed, now: Instant) -> u64 {
    let left = unconfirmed.until.saturating_duration_since(now);
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}

fn nothing_waits() -> ProtocolError {
    let message = "no reload waits for its confirmation: it was rolled back, or there was none";
    ProtocolError::new(ErrorCode::Conflict, message)
}

fn needs_restart(keys: &[String]) -> ProtocolError {
    let verb = if keys.len() == 1 { "needs" } else { "need" };
    let message = format!("{} {verb} a restart; nothing has changed", keys.join(", "));
    ProtocolError::new(ErrorCode::NeedsRestart, message)
}

/// Changes on one line of the log.
fn listed(changes: &[ConfigChange]) -> String {
    if changes.is_empty() {
        return "nothing differs".to_owned();
    }
    let change = |change: &ConfigChange| {
        let ConfigChange { key, before, after } = change;
        format!("{key} from {before} to {after}")
    };
    changes.iter().map(change).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
