//! The command line of holdfastctl; a file for each group of commands. Never knows more than the
//! daemon answers.

mod capture;
mod drain;
mod explain;
mod incidents;
mod lookup;
mod reload;
mod sessions;
mod show;
mod top;
mod trace;

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ipnet::IpNet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::client::{self, AskError, StreamLine};
use crate::doctor::Doctor;
use crate::protocol::{AnswerError, Request, StreamReply};
use crate::show::{self as text, missed, stream_end};

const EXIT_CODES: &str = "Exit status: 0 done, 1 the daemon refused or was not understood, \
                          2 wrong usage, 3 the daemon cannot be reached, 4 `drain --wait` \
                          with sessions left, 5 with a prefix that may still be announced.";

/// Asks holdfastd on this server.
#[derive(Debug, Parser)]
#[command(name = "holdfastctl", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    daemon: Daemon,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what the daemon knows.
    #[command(subcommand)]
    Show(show::Show),
    /// List, count, watch and delete sessions.
    #[command(subcommand)]
    Sessions(sessions::Sessions),
    Lookup(lookup::Lookup),
    Doctor(Doctor),
    Incidents(incidents::Incidents),
    Explain(explain::Explain),
    Drain(drain::Drain),
    Undrain(drain::Undrain),
    Trace(trace::Trace),
    Capture(capture::Capture),
    Reload(reload::Reload),
    Top(top::Top),
}

/// The daemon that is asked, and the form in which its answers are printed.
#[derive(Debug, clap::Args)]
pub struct Daemon {
    /// The daemon's control socket (node.control_socket in its configuration).
    #[arg(
        long,
        value_name = "PATH",
        global = true,
        default_value = "/run/holdfast/holdfastd.sock"
    )]
    socket: PathBuf,
    /// Print the daemon's answer as JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// Why a command was not carried out.
#[derive(Debug, Error)]
pub enum Failure {
    /// There is no answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It cannot be printed.
    #[error(transparent)]
    Print(#[from] io::Error),
    /// A file cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The command line asks for what is not done so.
    #[error("{0}")]
    Usage(String),
    /// The drain that is waited for is not ordered any more.
    #[error(
        "the server is not to be drained any more: another undrain, or a restart, came between"
    )]
    Undrained,
    /// The drain's time is over, and there are sessions.
    #[error("the drain's time is over: {} left", text::count(*.0, "session"))]
    SessionsLeft(u64),
    /// The server is drained, and routing does not know.
    #[error("{0} may still be announced: `holdfastctl show health` says why")]
    Announced(IpNet),
}

impl Failure {
    /// A reader that has seen enough (`| head`) is no failure.
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Print(error) | Failure::Write { error, .. }
                if error.kind() == ErrorKind::BrokenPipe =>
            {
                0
            }
            Failure::Ask(AskError::Answer(_))
            | Failure::Print(_)
            | Failure::Write { .. }
            | Failure::Undrained => 1,
            Failure::Usage(_) => 2,
            Failure::Ask(AskError::Unreachable { .. }) => 3,
            Failure::SessionsLeft(_) => 4,
            Failure::Announced(_) => 5,
        }
    }
}

impl Cli {
    /// Carries the command out.
    pub fn run(&self) -> ExitCode {
        let daemon = &self.daemon;
        let outcome = match &self.verb {
            Verb::Show(show) => show.run(daemon),
            Verb::Sessions(sessions) => sessions.run(daemon),
            Verb::Lookup(lookup) => lookup.run(daemon),
            Verb::Doctor(doctor) => return doctor.run(daemon.json),
            Verb::Incidents(incidents) => incidents.run(daemon),
            Verb::Explain(explain) => explain.run(daemon),
            Verb::Drain(drain) => drain.run(daemon),
            Verb::Undrain(undrain) => undrain.run(daemon),
            Verb::Trace(trace) => trace.run(daemon),
            Verb::Capture(capture) => capture.run(daemon),
            Verb::Reload(reload) => reload.run(daemon),
            Verb::Top(top) => top.run(daemon),
        };
        let Err(failure) = outcome else {
            return ExitCode::SUCCESS;
        };
        let code = failure.exit_code();
        if code > 0 {
            // With no standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "holdfastctl: {failure}");
        }
        ExitCode::from(code)
    }
}

impl Daemon {
    /// Asks; gives the answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Failure> {
        Ok(understood(client::ask(&self.socket, request)?)?)
    }

    /// Asks, and prints the answer: as it is with `--json`, else as `text` puts it.
    ///
    /// # Errors
    /// When there is no answer, or it cannot be printed.
    pub fn show<T: DeserializeOwned>(
        &self,
        request: &Request,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let answer = client::ask(&self.socket, request)?;
        let text = if self.json { format!("{answer}\n") } else { text(&understood(answer)?) };
        print(&text)
    }

    /// Prints a reply: as it is with `--json`, else as `text` puts it.
    ///
    /// # Errors
    /// When it cannot be printed.
    pub fn print<T: Serialize>(
        &self,
        reply: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.json {
            true => print(&format!("{}\n", serde_json::to_string(reply).map_err(io::Error::from)?)),
            false => print(&text(reply)),
        }
    }

    /// Says how a stream ended: for people on the standard error, as its items may go to a file.
    ///
    /// # Errors
    /// When it cannot be printed.
    pub fn end(&self, reply: &StreamReply) -> Result<(), Failure> {
        if self.json {
            return print(&format!("{}\n", serde_json::json!({ "ok": reply })));
        }
        // With no standard error there is nobody to tell.
        let _ = write!(io::stderr(), "{}", stream_end(reply));
        Ok(())
    }

    /// Asks for a stream and prints its items as they come: the daemon's lines with `--json`, else
    /// as `text` puts them. Gives what its last line says.
    ///
    /// # Errors
    /// When there is no answer, or it cannot be printed.
    pub fn follow<T: DeserializeOwned>(
        &self,
        request: &Request,
        mut text: impl FnMut(&T) -> String,
    ) -> Result<StreamReply, Failure> {
        let mut stream = client::stream(&self.socket, request)?;
        loop {
            match stream.next()? {
                StreamLine::Item(item) if self.json => print(&format!("{{\"item\":{item}}}\n"))?,
                StreamLine::Item(item) => print(&text(&understood(item)?))?,
                StreamLine::Missed(count) if self.json => {
                    print(&format!("{{\"missed\":{count}}}\n"))?;
                }
                StreamLine::Missed(count) => print(&missed(count))?,
                StreamLine::End(reply) => return Ok(reply),
            }
        }
    }
}

fn understood<T: DeserializeOwned>(answer: Value) -> Result<T, AskError> {
    let understood = serde_json::from_value(answer);
    Ok(understood.map_err(|error| AnswerError::NotUnderstood(error.to_string()))?)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
