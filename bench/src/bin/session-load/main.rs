//! `session-load`: holds some hundreds of TCP sessions open while the network below
//! them changes, and says of each whether it lived, how it died, and how long it
//! stood still. It never opens a failed session again, and never judges a run: it
//! prints what it saw as JSON lines.
//!
//! Standard input takes one command per line: `mark [NAME]` (the network changes
//! now: the idle sessions ask again some seconds later), `status` (how many live) and
//! `finish` (end: each session completes what it is at). They are heard from the
//! `ready` line on, which says that every session was opened or failed to open.

#![forbid(unsafe_code)]

mod churn;
mod connection;
mod control;
mod http;
mod meter;
mod report;
mod served;
mod session;
mod upload;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};

use control::Control;
use holdfast_bench::{pattern, serve_protocol};
use report::{Counts, Kind, SessionReport, Summary};
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
    /// Sessions that upload a file and download it, again and again
    #[arg(long, default_value_t = 0)]
    upload: usize,
    /// Sessions that send a block and get it back, again and again (--serve-target)
    #[arg(long, default_value_t = 0)]
    echo: usize,
    /// Sessions that send FIN first and then receive (--serve-target)
    #[arg(long, default_value_t = 0)]
    half_close: usize,
    /// Sessions that get FIN first and then send (--serve-target)
    #[arg(long, default_value_t = 0)]
    host_close: usize,
    /// Sessions that the server ends with RST (--serve-target)
    #[arg(long, default_value_t = 0)]
    server_reset: usize,
    /// Sessions that end themselves with RST at the first mark or the end (--serve-target)
    #[arg(long, default_value_t = 0)]
    client_reset: usize,
    /// Loops that open a connection, ask once, and close it, in turn by FIN, by the
    /// server's FIN, and by RST; each counts as one session
    #[arg(long, default_value_t = 0)]
    churn: usize,
    /// Address and port of session-serve, for the kinds that need it
    #[arg(long)]
    serve_target: Option<SocketAddr>,
    /// Pause between two requests of a request session or two blocks of an echo session, in milliseconds
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
    /// Length of an upload, in bytes
    #[arg(long, default_value_t = 256 * 1024)]
    upload_bytes: u64,
    /// Rate of an upload, in KiB per second; 0: as fast as it goes
    #[arg(long, default_value_t = 256)]
    upload_rate_kib: u64,
    /// Path of an upload; the session's number follows. Two loads at a time need two
    #[arg(long, default_value = "/up/")]
    upload_path: String,
    /// Length of an echo session's block, in bytes
    #[arg(long, default_value_t = 16 * 1024)]
    echo_bytes: usize,
    /// How long half-close and host-close sessions go on after the first FIN, in seconds
    #[arg(long, default_value_t = 60)]
    half_close_s: u64,
    /// Rate of their one direction meanwhile, in KiB per second
    #[arg(long, default_value_t = 32)]
    half_close_rate_kib: u64,
    /// How long after the request the server sends RST, in milliseconds
    #[arg(long, default_value_t = 10_000)]
    server_reset_ms: u64,
    /// Pause of a churn loop between two connections, in milliseconds
    #[arg(long, default_value_t = 50)]
    churn_pause_ms: u64,
    /// Local address of all connections
    #[arg(long)]
    source_address: Option<IpAddr>,
    /// Local port of session 0; session N has the N-th after it. Churn loops and questions for
    /// verdicts leave theirs unused: their ports are the kernel's choice, outside of its
    /// range for that these should be (net.ipv4.ip_local_port_range)
    #[arg(long)]
    source_port_first: Option<u16>,
    /// Let the ACK of the handshake travel with the first data, not alone
    #[arg(long)]
    data_with_ack: bool,
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
    let kinds = interleaved(&counts_by_kind(&args));
    check(&args, &kinds)?;
    let total = kinds.len();
    let plan = Arc::new(plan_of(&args)?);
    let control = Arc::new(Control::new(Duration::from_secs(args.limit_s)));
    let (sender, events) = channel();
    spawn_sessions(kinds, args.ramp_ms, &plan, &control, &sender)?;
    drop(sender);
    let reports = watch(&args, &control, &events, total)?;
    print_line(&Summary::new(reports, control.marks()).to_json())
}

fn counts_by_kind(args: &Args) -> [(Kind, usize); 10] {
    [
        (Kind::Idle, args.idle),
        (Kind::Request, args.request),
        (Kind::Bulk, args.bulk),
        (Kind::Upload, args.upload),
        (Kind::Echo, args.echo),
        (Kind::HalfClose, args.half_close),
        (Kind::HostClose, args.host_close),
        (Kind::ServerReset, args.server_reset),
        (Kind::ClientReset, args.client_reset),
        (Kind::Churn, args.churn),
    ]
}

/// Refuses what cannot be run, or would not do what it says.
fn check(args: &Args, kinds: &[Kind]) -> Result<()> {
    ensure!(!kinds.is_empty(), "no sessions asked for: see --help for their kinds");
    ensure!(args.timeout_s > 0, "--timeout-s must be at least 1");
    ensure!(
        args.serve_target.is_some() || !kinds.iter().any(|kind| kind.needs_session_serve()),
        "echo, half-close, host-close, server-reset and client-reset sessions need --serve-target"
    );
    ensure!(
        (1..=serve_protocol::ECHO_BYTES_MAX).contains(&args.echo_bytes),
        "--echo-bytes must be 1 to {}",
        serve_protocol::ECHO_BYTES_MAX
    );
    let ms_max = serve_protocol::MS_MAX;
    ensure!(args.server_reset_ms <= ms_max, "--server-reset-ms must be at most {ms_max}");
    ensure!(args.half_close_s <= ms_max / 1000, "--half-close-s must be at most {}", ms_max / 1000);
    // 4 GiB per second: more than any network here has.
    let kib_max = 1 << 22;
    ensure!(
        args.upload_rate_kib <= kib_max && (1..=kib_max).contains(&args.half_close_rate_kib),
        "--upload-rate-kib and --half-close-rate-kib must be at most {kib_max}, and the latter at least 1"
    );
    ensure!(args.upload_bytes > 0, "--upload-bytes must be at least 1");
    if let Some(first) = args.source_port_first {
        ensure!(
            first > 0 && usize::from(first) + kinds.len() - 1 <= usize::from(u16::MAX),
            "--source-port-first {first}: the ports of {} sessions do not fit between it and 65535",
            kinds.len()
        );
    }
    if let Some(source) = args.source_address {
        ensure!(
            [Some(args.target), args.serve_target]
                .iter()
                .flatten()
                .all(|target| target.is_ipv4() == source.is_ipv4()),
            "--source-address {source} is of another family than a target"
        );
    }
    Ok(())
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
        serve_target: args.serve_target,
        source_address: args.source_address,
        source_port_first: args.source_port_first,
        data_with_ack: args.data_with_ack,
        upload_bytes: args.upload_bytes,
        upload_rate: args.upload_rate_kib * 1024,
        upload_path: args.upload_path.clone(),
        echo_bytes: args.echo_bytes,
        half_close: Duration::from_secs(args.half_close_s),
        half_close_rate: args.half_close_rate_kib * 1024,
        server_reset: Duration::from_millis(args.server_reset_ms),
        churn_pause: Duration::from_millis(args.churn_pause_ms),
        run: pattern::mix(control::unix_us() ^ u64::from(std::process::id()) << 48),
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
    kinds: Vec<Kind>,
    ramp_ms: u64,
    plan: &Arc<Plan>,
    control: &Arc<Control>,
    sender: &Sender<Event>,
) -> Result<()> {
    let total = u32::try_from(kinds.len())?;
    let ramp = Duration::from_millis(ramp_ms);
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
fn interleaved(counts: &[(Kind, usize)]) -> Vec<Kind> {
    let mut left: Vec<_> = counts.iter().map(|(kind, count)| (*kind, *count, *count)).collect();
    let mut kinds = Vec::new();
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
    let counts = Arc::new(Counts::default());
    let (mut count_opened, mut failed_to_open) = (0, 0);
    while count_opened + failed_to_open < total {
        match events.recv().context("the sessions' threads are gone")? {
            Event::Opened { kind, server } => {
                count_opened += 1;
                counts.opened();
                *opened.entry(server).or_default().entry(kind.name()).or_default() += 1;
            }
            Event::Done(report) => {
                failed_to_open += usize::from(!report.opened);
                counts.ended(&report);
                reports.push(*report);
            }
        }
    }
    print_line(&json!({
        "event": "ready", "unix_us": control::unix_us(), "sessions": total,
        "open": count_opened, "failed_to_open": failed_to_open, "by_server": opened,
    }))?;
    follow_stdin(control, &counts);
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
                counts.ended(&report);
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
    let mut line = json!({
        "event": "failed", "unix_us": report.ended_unix_us, "session": report.id, "kind": report.kind.name(),
        "local_port": report.local_port, "cause": cause, "detail": detail,
    });
    if let Some(phase) = report.phase {
        line["phase"] = phase.into();
        line["connect_ms"] = report::whole_ms(report.connect).into();
    }
    Some(line)
}

/// Reads the commands until the input ends; its end means no more commands.
fn follow_stdin(control: &Arc<Control>, counts: &Arc<Counts>) {
    let (control, counts) = (Arc::clone(control), Arc::clone(counts));
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let (command, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            let answer = match command {
                "mark" => {
                    let unix_us = control.mark();
                    json!({"event": "mark", "unix_us": unix_us, "name": rest.trim()})
                }
                "status" => counts.to_json(),
                "finish" => {
                    control.finish();
                    json!({"event": "finish", "unix_us": control::unix_us()})
                }
                "" => continue,
                other => {
                    json!({"event": "error", "detail": format!("unknown command '{other}': mark [NAME], status, finish")})
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
        let kinds = interleaved(&[(Kind::Idle, 6), (Kind::Request, 3), (Kind::Bulk, 1)]);
        let count = |kind| kinds.iter().filter(|k| **k == kind).count();
        assert_eq!((count(Kind::Idle), count(Kind::Request), count(Kind::Bulk)), (6, 3, 1));
        assert!(kinds[..5].contains(&Kind::Request) && kinds[5..].contains(&Kind::Request));
        assert_eq!(interleaved(&[(Kind::Idle, 0), (Kind::Bulk, 2)]), [Kind::Bulk, Kind::Bulk]);
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let checked = |options: &str| {
            let words = format!("session-load --target 192.0.2.1:80 {options}");
            let args = Args::try_parse_from(words.split_whitespace()).expect("known options");
            check(&args, &interleaved(&counts_by_kind(&args)))
        };
        for good in [
            "",
            "--churn 2 --upload 1 --upload-rate-kib 0",
            "--echo 1 --serve-target 192.0.2.1:9000 --source-address 198.51.100.1",
            "--idle 2 --request 0 --bulk 0 --source-port-first 65534",
        ] {
            checked(good).expect(good);
        }
        for bad in [
            "--idle 0 --request 0 --bulk 0",
            "--echo 1",
            "--client-reset 1",
            "--idle 2 --request 0 --bulk 0 --source-port-first 65535",
            "--source-port-first 0",
            "--source-address 2001:db8::1",
            "--serve-target [2001:db8::1]:9000 --source-address 198.51.100.1",
            "--echo-bytes 1048577",
            "--half-close-s 3601",
            "--server-reset-ms 3600001",
            "--upload-bytes 0",
        ] {
            assert!(checked(bad).is_err(), "{bad}");
        }
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
