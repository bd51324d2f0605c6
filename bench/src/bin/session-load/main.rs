//! `session-load`: holds some hundreds of TCP sessions open while the network below
//! them changes, and says of each whether it lived, how it died, and how long it
//! stood still. It never opens a failed session again, and never judges a run: it
//! prints what it saw as JSON lines.
//!
//! Standard input takes one command per line: `mark [NAME]` (the network changes
//! now: the idle sessions ask again some seconds later) and `finish` (end).

#![forbid(unsafe_code)]

mod control;
mod http;
mod meter;
mod report;
mod session;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};

use control::Control;
use report::{Kind, SessionReport, Summary};
use session::{Event, Plan};

/// A session's thread needs no more: its buffers are on the heap.
const STACK_BYTES: usize = 128 * 1024;

/// Holds TCP sessions open through a network change and reports what became of them.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address and port of the service, e.g. `192.168.0.1:80` or `[2001:db8::1]:80`
    #[arg(long)]
    target: SocketAddr,
    /// Sessions that ask once, keep silent, and ask again after each mark and at the end
    #[arg(long, default_value_t = 120)]
    idle: usize,
    /// Sessions that ask again and again
    #[arg(long, default_value_t = 60)]
    request: usize,
    /// Sessions that download one large file
    #[arg(long, default_value_t = 20)]
    bulk: usize,
    /// Pause between two requests of a request session, in milliseconds
    #[arg(long, default_value_t = 100)]
    request_interval_ms: u64,
    /// Path of the large file
    #[arg(long, default_value = "/bulk")]
    bulk_path: String,
    /// SHA-256 of the large file, in hexadecimal
    #[arg(long, conflicts_with = "bulk_sha256_file")]
    bulk_sha256: Option<String>,
    /// A file that begins with that SHA-256
    #[arg(long)]
    bulk_sha256_file: Option<PathBuf>,
    /// How long after a mark the idle sessions ask again, in milliseconds
    #[arg(long, default_value_t = 2000)]
    probe_delay_ms: u64,
    /// Opening the sessions is spread over this time, in milliseconds
    #[arg(long, default_value_t = 2000)]
    ramp_ms: u64,
    /// A session without progress for so long has failed, in seconds
    #[arg(long, default_value_t = 30)]
    timeout_s: u64,
    /// Finish by itself so long after all sessions are open, in seconds
    #[arg(long, default_value_t = 60)]
    duration_s: u64,
    /// Whatever is not done so long after the start has failed, in seconds
    #[arg(long, default_value_t = 240)]
    limit_s: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let total = args.idle + args.request + args.bulk;
    ensure!(total > 0, "no sessions asked for: give --idle, --request or --bulk");
    ensure!(args.timeout_s > 0, "--timeout-s must be at least 1");
    let plan = Arc::new(plan_of(&args)?);
    let control = Arc::new(Control::new(Duration::from_secs(args.limit_s)));
    let (sender, events) = channel();
    spawn_sessions(&args, &plan, &control, &sender)?;
    drop(sender);
    let reports = watch(&args, &control, &events, total)?;
    print_line(&Summary::new(reports, control.marks()).to_json())
}

fn plan_of(args: &Args) -> Result<Plan> {
    let bulk_sha256 = match (&args.bulk_sha256, &args.bulk_sha256_file) {
        (Some(hex), None) => Some(parse_sha256(hex)?),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Some(parse_sha256(text.split_whitespace().next().unwrap_or(""))?)
        }
        _ => None,
    };
    if args.bulk > 0 && bulk_sha256.is_none() {
        bail!(
            "bulk sessions need --bulk-sha256 or --bulk-sha256-file: a download that is not checked proves nothing"
        );
    }
    Ok(Plan {
        target: args.target,
        timeout: Duration::from_secs(args.timeout_s),
        request_interval: Duration::from_millis(args.request_interval_ms),
        probe_delay: Duration::from_millis(args.probe_delay_ms),
        bulk_path: args.bulk_path.clone(),
        bulk_sha256: bulk_sha256.unwrap_or_default(),
    })
}

fn parse_sha256(hex: &str) -> Result<[u8; 32]> {
    ensure!(hex.len() == 64 && hex.is_ascii(), "'{hex}' is no SHA-256: 64 hexadecimal digits are");
    let mut digest = [0; 32];
    for (byte, digits) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits)?;
        *byte = u8::from_str_radix(digits, 16).with_context(|| format!("'{hex}' is no SHA-256"))?;
    }
    Ok(digest)
}

fn spawn_sessions(
    args: &Args,
    plan: &Arc<Plan>,
    control: &Arc<Control>,
    sender: &Sender<Event>,
) -> Result<()> {
    let kinds = interleaved(args.idle, args.request, args.bulk);
    let total = u32::try_from(kinds.len())?;
    let ramp = Duration::from_millis(args.ramp_ms);
    for (id, kind) in kinds.into_iter().enumerate() {
        let start_after = ramp * u32::try_from(id)? / total;
        let (plan, control, sender) = (Arc::clone(plan), Arc::clone(control), sender.clone());
        thread::Builder::new()
            .name(format!("session-{id}"))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                thread::sleep(start_after);
                session::run(id, kind, &plan, &control, &sender);
            })
            .context("cannot start a session's thread")?;
    }
    Ok(())
}

/// The kinds in turn, so that no kind has the first or last of the opening time.
fn interleaved(idle: usize, request: usize, bulk: usize) -> Vec<Kind> {
    let mut left =
        [(Kind::Idle, idle, idle), (Kind::Request, request, request), (Kind::Bulk, bulk, bulk)];
    let mut kinds = Vec::with_capacity(idle + request + bulk);
    // Always the kind of which the greatest share is left.
    while let Some(most) = left
        .iter_mut()
        .filter(|(_, left, _)| *left > 0)
        .max_by(|a, b| (a.1 * b.2).cmp(&(b.1 * a.2)))
    {
        most.1 -= 1;
        kinds.push(most.0);
    }
    kinds
}

/// Follows the sessions from opening to end; returns a report of each.
fn watch(
    args: &Args,
    control: &Arc<Control>,
    events: &Receiver<Event>,
    total: usize,
) -> Result<Vec<SessionReport>> {
    let mut reports = Vec::with_capacity(total);
    let mut opened = BTreeMap::<String, BTreeMap<&str, u64>>::new();
    let mut count_opened = 0;
    while count_opened + reports.len() < total {
        match events.recv().context("the sessions' threads are gone")? {
            Event::Opened { kind, server } => {
                count_opened += 1;
                *opened.entry(server).or_default().entry(kind.name()).or_default() += 1;
            }
            Event::Done(report) => reports.push(*report),
        }
    }
    print_line(&json!({
        "event": "ready", "unix_us": control::unix_us(), "sessions": total,
        "open": count_opened, "failed_to_open": reports.len(), "by_server": opened,
    }))?;
    follow_stdin(control);
    let mut finish_in = Some(Duration::from_secs(args.duration_s));
    let ready = std::time::Instant::now();
    while reports.len() < total {
        let wait = finish_in.map_or(Duration::from_secs(args.limit_s), |after| {
            after.saturating_sub(ready.elapsed())
        });
        match events.recv_timeout(wait) {
            Ok(Event::Done(report)) => {
                if let Some(line) = failure_line(&report) {
                    print_line(&line)?;
                }
                reports.push(*report);
            }
            Ok(Event::Opened { .. }) => bail!("a session opened twice"),
            Err(RecvTimeoutError::Timeout) => {
                control.finish();
                finish_in = None;
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("a session's thread ended without a report")
            }
        }
    }
    Ok(reports)
}

fn failure_line(report: &SessionReport) -> Option<Value> {
    let (cause, detail) = report.failure.as_ref()?.words();
    Some(json!({
        "event": "failed", "unix_us": report.ended_unix_us, "session": report.id, "kind": report.kind.name(),
        "local_port": report.local_port, "cause": cause, "detail": detail,
    }))
}

/// Reads the commands until the input ends; its end means no more commands.
fn follow_stdin(control: &Arc<Control>) {
    let control = Arc::clone(control);
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let (command, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            let answer = match command {
                "mark" => {
                    let unix_us = control.mark();
                    json!({"event": "mark", "unix_us": unix_us, "name": rest.trim()})
                }
                "finish" => {
                    control.finish();
                    json!({"event": "finish", "unix_us": control::unix_us()})
                }
                "" => continue,
                other => {
                    json!({"event": "error", "detail": format!("unknown command '{other}': mark [NAME], finish")})
                }
            };
            if print_line(&answer).is_err() {
                return;
            }
        }
    });
}

fn print_line(value: &Value) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{value}")
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_interleaved_and_complete() {
        let kinds = interleaved(6, 3, 1);
        let count = |kind| kinds.iter().filter(|k| **k == kind).count();
        assert_eq!((count(Kind::Idle), count(Kind::Request), count(Kind::Bulk)), (6, 3, 1));
        assert!(kinds[..5].contains(&Kind::Request) && kinds[5..].contains(&Kind::Request));
        assert_eq!(interleaved(0, 0, 2), [Kind::Bulk, Kind::Bulk]);
    }

    #[test]
    fn sha256_is_read_or_refused() {
        let digest =
            parse_sha256("00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff0a0b")
                .expect("a digest");
        assert_eq!((digest[0], digest[1], digest[31]), (0, 0xff, 0x0b));
        assert!(parse_sha256("00ff").is_err());
        assert!(parse_sha256(&"g".repeat(64)).is_err());
        assert!(parse_sha256(&"é".repeat(32)).is_err());
    }
}
