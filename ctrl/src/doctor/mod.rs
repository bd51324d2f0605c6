//! Looks at a server for what holdfast needs of it and says what is wrong, with the command that
//! mends it. Reads, and asks some programs and the daemon, if one runs; never changes anything.

mod cores;
mod daemon;
mod device;
mod machine;
mod switch;
mod system;

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::config::{Config, LoadError};
use machine::Machine;

const EXIT_CODES: &str = "Exit status: 0 nothing fails (warnings are allowed), 1 something fails, \
                          2 wrong usage.";

/// Examine this server: what is wrong for holdfast, and the command that mends it.
///
/// Needs no running daemon. Run it as root: the cluster's key and other users' processes are read.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Doctor {
    /// The daemon's configuration.
    #[arg(default_value = "/etc/holdfast/holdfast.toml")]
    config: PathBuf,
    /// The folder that /sys, /proc and /dev are taken from.
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
}

impl Doctor {
    /// Examines, and prints what was found; as JSON if wanted.
    #[must_use]
    pub fn run(&self, json: bool) -> ExitCode {
        let report = self.examine();
        let text = if json {
            // Texts and numbers: there is nothing that JSON does not have.
            serde_json::to_string(&report).unwrap_or_default() + "\n"
        } else {
            report.text()
        };
        match io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ if report.fail > 0 => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        }
    }

    fn examine(&self) -> Report {
        let machine = Machine::new(&self.root);
        let mut checks = Vec::new();
        match Config::load(&self.config) {
            Ok(config) => {
                checks.push(Check::ok("configuration", self.config.display().to_string()));
                let warnings = config.warnings.iter();
                checks.extend(
                    warnings.map(|text| Check::warn("configuration", text.clone(), self.edit())),
                );
                device::examine(&machine, &config, &mut checks);
                cores::examine(&machine, &config, &mut checks);
                system::examine(&machine, &config, &mut checks);
                daemon::examine(&config, &mut checks);
            }
            Err(LoadError::Invalid(errors)) => {
                let errors = errors.0.iter().map(ToString::to_string);
                checks.extend(errors.map(|text| Check::fail("configuration", text, self.edit())));
            }
            Err(error) => {
                let example = "/etc/holdfast/holdfast.toml.example";
                let mend = format!("cp {example} {0} && editor {0}", self.config.display());
                checks.push(Check::fail("configuration", error.to_string(), mend));
            }
        }
        system::examine_clock(&machine, &mut checks);
        Report::of(checks)
    }

    fn edit(&self) -> String {
        format!("editor {0} && holdfastd check {0}", self.config.display())
    }
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// holdfast runs, and not as well as it could; or it cannot be told.
    Warn,
    /// holdfast does not run, or loses packets.
    Fail,
}

impl Status {
    const fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    /// What was found.
    found: String,
    /// The command that mends it, or what to do where no command does.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, status: Status::Ok, found: found.into(), mend: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
        Check { name, status: Status::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
        Check { name, status: Status::Fail, found: found.into(), mend: Some(mend.into()) }
    }
}

/// All of them, and how many came out how.
#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Check>,
    ok: usize,
    warn: usize,
    fail: usize,
}

impl Report {
    fn of(checks: Vec<Check>) -> Report {
        let count = |status| checks.iter().filter(|check| check.status == status).count();
        let [ok, warn, fail] = [Status::Ok, Status::Warn, Status::Fail].map(count);
        Report { checks, ok, warn, fail }
    }

    fn text(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Check { name, status, found, mend } in &self.checks {
            let status = status.name();
            // Writing to a text does not fail.
            let _ = writeln!(text, "{status:<4}  {name:<width$}  {found}");
            if let Some(mend) = mend {
                let _ = writeln!(text, "{:1$}mend: {mend}", "", width + 8);
            }
        }
        let _ = writeln!(text, "\n{} ok, {} warnings, {} failures", self.ok, self.warn, self.fail);
        text
    }
}
