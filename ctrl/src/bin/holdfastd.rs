//! holdfastd: the appliance of one server. Reads its configuration, sets up the log and hands
//! over to `holdfast::appliance`.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use holdfast::config::{Config, LoadError};
use holdfast::lifecycle::{Hangup, Shutdown};
use holdfast::uplink::DeviceLost;
use holdfast::{announce, log, ports, systemd};
use humantime_serde::re::humantime::parse_duration;

/// Keeps TCP sessions alive when the network moves them to another server.
#[derive(Parser)]
#[command(version, disable_help_subcommand = true)]
pub(crate) struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the appliance until SIGTERM or SIGINT; SIGHUP has it read its configuration again. Exit
    /// status 78 when the configuration is not valid, 74 when a port's device is lost: removed, or
    /// reset.
    Run {
        /// The configuration file.
        config: PathBuf,
    },
    /// Hold the host port's TAP until SIGTERM or SIGINT, so that it keeps its carrier while the
    /// appliance is started again.
    Hold {
        /// The configuration file.
        config: PathBuf,
    },
    /// Withdraw what a daemon that stays away has left announced. Does nothing when it is back in
    /// time.
    Withdraw {
        /// The configuration file.
        config: PathBuf,
        /// How long to wait for a daemon to be back; dht.restart_within without it.
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        after: Option<Duration>,
    },
    /// Check a configuration file; nothing is started. Exit status 0 when it is valid, else 1.
    Check {
        /// The configuration file.
        config: PathBuf,
    },
}

/// Exit status of a daemon whose configuration is not valid (sysexits(3), EX_CONFIG): no restart
/// mends that.
const INVALID: u8 = 78;
/// Exit status of one whose NIC is lost (sysexits(3), EX_IOERR): started again it may be there.
const LOST: u8 = 74;

fn main() -> ExitCode {
    let verb = Command::parse().verb;
    let is_check = matches!(verb, Verb::Check { .. });
    let outcome = match verb {
        Verb::Run { config } => run(&config),
        Verb::Hold { config } => hold(&config),
        Verb::Withdraw { config, after } => withdraw(&config, after),
        Verb::Check { config } => check(&config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref() {
                // They begin with their place, as editors expect it.
                Some(LoadError::Invalid(errors)) => {
                    let _ = writeln!(io::stderr(), "{errors}");
                    if !is_check {
                        return ExitCode::from(INVALID);
                    }
                }
                _ => log::fatal(&error),
            }
            if error.is::<DeviceLost>() {
                return ExitCode::from(LOST);
            }
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    log::begin(&config.node);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let shutdown = Shutdown::install().context("taking over signals")?;
    let hangup = Hangup::install().context("taking over signals")?;
    holdfast::appliance::run(config, path.to_owned(), &shutdown, hangup)
}

fn hold(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    log::begin(&config.node);
    let shutdown = Shutdown::install().context("taking over signals")?;
    let _held = ports::hold_host_port(&config)?;
    let status = format!("holding {}", config.host_port.device);
    tracing::info!("{status}");
    systemd::ready(&status);
    while !shutdown.wait(Duration::from_secs(3600)) {}
    systemd::stopping();
    Ok(())
}

fn withdraw(path: &Path, after: Option<Duration>) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    log::begin(&config.node);
    let done = announce::withdraw(&config, after.unwrap_or(config.dht.restart_within))?;
    tracing::info!("{done}");
    Ok(())
}

fn check(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let mut text = format!("{}: ok\n{}", path.display(), config.summary());
    for warning in &config.warnings {
        text += &format!("warning: {warning}\n");
    }
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
