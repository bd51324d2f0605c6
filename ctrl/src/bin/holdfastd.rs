//! holdfastd: the appliance of one server. Reads its configuration, sets up the log and hands
//! over to `holdfast::appliance`.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use holdfast::config::{Config, LoadError, LogLevel};
use holdfast::lifecycle::Shutdown;
use holdfast::{announce, ports};
use humantime_serde::re::humantime::parse_duration;
use tracing::Level;

/// Keeps TCP sessions alive when the network moves them to another server.
#[derive(Parser)]
#[command(version, disable_help_subcommand = true)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the appliance until SIGTERM or SIGINT.
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

fn main() -> ExitCode {
    let outcome = match Command::parse().verb {
        Verb::Run { config } => run(&config),
        Verb::Hold { config } => hold(&config),
        Verb::Withdraw { config, after } => withdraw(&config, after),
        Verb::Check { config } => check(&config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Errors in a configuration begin with their place, as editors expect it.
            let text = match error.downcast_ref() {
                Some(LoadError::Invalid(errors)) => errors.to_string(),
                _ => format!("holdfastd: {error:#}"),
            };
            // With no standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    log_to_stderr(config.node.log);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let shutdown = Shutdown::install().context("taking over signals")?;
    holdfast::appliance::run(config, &shutdown)
}

fn hold(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    log_to_stderr(config.node.log);
    let shutdown = Shutdown::install().context("taking over signals")?;
    let _held = ports::hold_host_port(&config)?;
    tracing::info!("holding {}", config.host_port.device);
    while !shutdown.wait(Duration::from_secs(3600)) {}
    Ok(())
}

fn withdraw(path: &Path, after: Option<Duration>) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    log_to_stderr(config.node.log);
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

/// The journal has times of its own.
fn log_to_stderr(level: LogLevel) {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
}
