//! holdfastctl: shows people and scripts what a holdfastd knows. Never links DPDK.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use holdfast::client::{AskError, ask};
use holdfast::doctor::Doctor;
use holdfast::protocol::{AnswerError, ClientFilter, Limit, Request, ServiceFilter, SessionKind};
use holdfast::show;
use holdfast_net::FlowKey;
use serde::de::DeserializeOwned;
use serde_json::Value;

const EXIT_CODES: &str = "Exit status: 0 done, 1 the daemon refused or was not understood, \
                          2 wrong usage, 3 the daemon cannot be reached.";

/// Asks holdfastd on this server.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Command {
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
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    #[command(flatten)]
    Ask(Ask),
    Doctor(Doctor),
}

/// What the daemon is asked.
#[derive(Subcommand)]
enum Ask {
    /// Show what the daemon knows.
    #[command(subcommand)]
    Show(Show),
    /// Look up who owns a flow, in the session table and in the DHT.
    Lookup {
        /// CLIENT-SERVICE, as in 20.1.1.1:1234-192.168.0.1:80.
        flow: FlowKey,
    },
}

#[derive(Subcommand)]
enum Show {
    /// Counters and gauges of ports, workers, session table and DHT.
    Stats {
        /// Show counters that are 0 as well.
        #[arg(long)]
        all: bool,
    },
    /// How busy each worker is: in the last second, and since the start.
    Workers,
    /// Entries of the session table.
    Sessions(Sessions),
    /// Members of the DHT.
    Peers,
    /// The last lookups in the DHT.
    Lookups {
        /// Most lookups to list, 1 to 10000.
        #[arg(long, value_name = "N", default_value = "100")]
        limit: Limit,
    },
    /// Versions of this program and of the daemon.
    Version,
}

#[derive(Args)]
struct Sessions {
    /// Only sessions of this kind: local or redirect.
    #[arg(long)]
    kind: Option<SessionKind>,
    /// Only sessions in this state, as in established.
    #[arg(long)]
    state: Option<String>,
    /// Only sessions of these clients: an address or a prefix.
    #[arg(long, value_name = "PREFIX")]
    client: Option<ClientFilter>,
    /// Only sessions to this service: ADDRESS or ADDRESS:PORT.
    #[arg(long)]
    service: Option<ServiceFilter>,
    /// Only sessions of the server with this locator.
    #[arg(long, value_name = "LOCATOR")]
    owner: Option<IpAddr>,
    /// Most sessions to list, 1 to 10000.
    #[arg(long, value_name = "N", default_value = "100")]
    limit: Limit,
}

fn main() -> ExitCode {
    let command = Command::parse();
    let verb = match &command.verb {
        Verb::Ask(verb) => verb,
        Verb::Doctor(doctor) => return doctor.run(command.json),
    };
    let text = ask(&command.socket, &request(verb))
        .and_then(|answer| Ok(render(verb, command.json, answer)?));
    match text {
        Ok(text) => print(&text),
        Err(error) => {
            complain(&error);
            match error {
                AskError::Unreachable { .. } => ExitCode::from(3),
                AskError::Answer(_) => ExitCode::from(1),
            }
        }
    }
}

fn request(verb: &Ask) -> Request {
    match verb {
        Ask::Show(Show::Stats { .. }) => Request::ShowStats {},
        Ask::Show(Show::Workers) => Request::ShowWorkers {},
        Ask::Show(Show::Sessions(sessions)) => Request::ShowSessions {
            kind: sessions.kind,
            state: sessions.state.clone(),
            client: sessions.client,
            service: sessions.service,
            owner: sessions.owner,
            limit: sessions.limit,
        },
        Ask::Show(Show::Peers) => Request::ShowPeers {},
        Ask::Show(Show::Lookups { limit }) => Request::ShowLookups { limit: *limit },
        Ask::Show(Show::Version) => Request::ShowVersion {},
        Ask::Lookup { flow } => Request::Lookup { flow: *flow },
    }
}

fn render(verb: &Ask, json: bool, answer: Value) -> Result<String, AnswerError> {
    if json {
        return Ok(format!("{answer}\n"));
    }
    Ok(match verb {
        Ask::Show(Show::Stats { all }) => show::stats(&understood(answer)?, *all),
        Ask::Show(Show::Workers) => show::workers(&understood(answer)?),
        Ask::Show(Show::Sessions(_)) => show::sessions(&understood(answer)?),
        Ask::Show(Show::Peers) => show::peers(&understood(answer)?),
        Ask::Show(Show::Lookups { .. }) => show::lookups(&understood(answer)?),
        Ask::Show(Show::Version) => show::version(&understood(answer)?),
        Ask::Lookup { .. } => show::lookup(&understood(answer)?),
    })
}

fn understood<T: DeserializeOwned>(answer: Value) -> Result<T, AnswerError> {
    serde_json::from_value(answer).map_err(|error| AnswerError::NotUnderstood(error.to_string()))
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(&error);
            ExitCode::from(1)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn complain(error: &dyn std::error::Error) {
    // With no standard error there is nobody to tell.
    let _ = writeln!(io::stderr(), "holdfastctl: {error}");
}
