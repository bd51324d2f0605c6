//! The real holdfastctl's trace and capture against a real socket that streams known packets. What
//! capture writes is read by tshark and capinfos, where they are installed.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use holdfast::protocol::{
    CapturedFrame, ErrorCode, FramePort, PacketItem, PacketKind, PacketOrigin, PacketVerdict,
    ProtocolError, Reply, Request, StreamBounds, StreamEnd, request_line,
};
use holdfast::socket::{ControlSocket, Handler, Permissions};
use serde_json::{Value, json};
use support::{schema, skipped};

/// What the daemon streams.
#[derive(Clone)]
struct Answer {
    items: Vec<PacketItem>,
    missed: u64,
    ended: StreamEnd,
}

struct Daemon {
    path: PathBuf,
    asked: Arc<Mutex<Vec<Request>>>,
    _socket: ControlSocket,
    directory: tempfile::TempDir,
}

/// A daemon that answers every request with this stream, or refuses it.
fn daemon(answer: Result<Answer, ProtocolError>) -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let handler: Handler = Arc::new(move |request, stream| {
        log.lock().unwrap().push(request);
        let Answer { items, missed, ended } = answer.clone()?;
        let reply = stream.run(StreamBounds::default(), |out| {
            for item in &items {
                out.send(item)?;
            }
            out.missed(missed)?;
            Err(ended)
        });
        reply.map(Reply::Stream)
    });
    let socket =
        ControlSocket::open(&path, Permissions::default(), Arc::default(), handler).unwrap();
    Daemon { path, asked, _socket: socket, directory }
}

fn run(daemon: &Daemon, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
    command.arg("--socket").arg(&daemon.path).args(arguments.split_whitespace());
    command.stdin(Stdio::null()).output().unwrap()
}

/// What it prints when all is well.
fn printed(daemon: &Daemon, arguments: &str) -> String {
    let output = run(daemon, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it says when it fails, and with which exit status.
fn refusal(daemon: &Daemon, arguments: &str) -> (i32, String) {
    let output = run(daemon, arguments);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// A stray that is parked.
fn parked() -> PacketItem {
    PacketItem {
        number: 1,
        at_unix_us: 1_470_182_400_123_456,
        core: 2,
        origin: PacketOrigin::Uplink,
        sender: None,
        kind: PacketKind::Segment,
        flow: Some("20.1.1.1:1234-192.168.0.1:80".parse().unwrap()),
        length: 66,
        flags: Some(texts(&["psh", "ack"])),
        verdict: PacketVerdict::Parked,
        owner: None,
        counter: None,
        rules: texts(&["R5"]),
        counters: texts(&["miss", "parked", "lookup_asked"]),
        sent: 0,
        frames: Vec::new(),
    }
}

fn answer(items: Vec<PacketItem>) -> Answer {
    Answer { items, missed: 0, ended: StreamEnd::Time }
}

/// A packet with each verdict, and from everywhere.
fn every_verdict() -> Vec<PacketItem> {
    let owner = Some("10.0.0.2".parse().unwrap());
    let base = PacketItem { rules: Vec::new(), counters: Vec::new(), ..parked() };
    let waited = PacketItem { origin: PacketOrigin::Waited, ..base.clone() };
    let host = PacketItem { origin: PacketOrigin::Host, ..base.clone() };
    let no_flags = |kind| PacketItem { flags: None, kind, ..base.clone() };
    let with = |item: &PacketItem, verdict| PacketItem { verdict, ..item.clone() };
    vec![
        parked(),
        PacketItem {
            owner,
            rules: texts(&["R5"]),
            counters: texts(&["released_tunnel", "tunnel_sent"]),
            ..with(&waited, PacketVerdict::Tunnelled)
        },
        with(&waited, PacketVerdict::ToHost),
        PacketItem {
            owner,
            rules: texts(&["R4", "R9"]),
            ..with(&no_flags(PacketKind::IcmpError), PacketVerdict::Tunnelled)
        },
        PacketItem {
            origin: PacketOrigin::Tunnel,
            sender: owner,
            ..with(&base, PacketVerdict::ToHost)
        },
        with(&no_flags(PacketKind::Fragment), PacketVerdict::Waits),
        with(&base, PacketVerdict::Answered),
        PacketItem { counter: Some("park_full".to_owned()), ..with(&base, PacketVerdict::Dropped) },
        with(&host, PacketVerdict::ToUplink),
        PacketItem {
            counter: Some("rst_withheld".to_owned()),
            flags: Some(texts(&["rst"])),
            ..with(&host, PacketVerdict::Withheld)
        },
        PacketItem { flow: None, ..with(&no_flags(PacketKind::Other), PacketVerdict::ToHost) },
    ]
}

const TRACE: &str = "trace 20.1.1.1:1234-192.168.0.1:80";

#[test]
fn traces_every_verdict() {
    let daemon = daemon(Ok(answer(every_verdict())));
    let output = run(&daemon, TRACE);
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = "\
TIME (UTC)       FROM             LENGTH  FLAGS     VERDICT                         RULES   COUNTERS
00:00:00.123456  uplink               66  PSH,ACK   parked                          R5      miss parked lookup_asked
00:00:00.123456  waited               66  PSH,ACK   released to 10.0.0.2            R5      released_tunnel tunnel_sent
00:00:00.123456  waited               66  PSH,ACK   released to the host
00:00:00.123456  uplink               66  (icmp)    tunnelled to 10.0.0.2           R4,R9
00:00:00.123456  tunnel 10.0.0.2      66  PSH,ACK   to the host
00:00:00.123456  uplink               66  (frag)    waits for the first fragment
00:00:00.123456  uplink               66  PSH,ACK   answered: too big
00:00:00.123456  uplink               66  PSH,ACK   dropped: park_full
00:00:00.123456  host                 66  PSH,ACK   to the network
00:00:00.123456  host                 66  RST       withheld: rst_withheld
00:00:00.123456  uplink               66  -         to the host
";
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn a_trace_says_what_it_missed_and_why_it_ended() {
    let rows = [
        (0, StreamEnd::Count, "", "1 shown: as many as were asked for\n"),
        (7, StreamEnd::Stopped, "(7 missed: ", "1 shown, 7 missed: the daemon stops\n"),
    ];
    for (missed, ended, line, expected) in rows {
        let daemon = daemon(Ok(Answer { items: vec![parked()], missed, ended }));
        let output = run(&daemon, TRACE);
        assert!(output.status.success());
        let lines = String::from_utf8(output.stdout).unwrap();
        assert!(lines.lines().last().unwrap().starts_with(line), "{lines}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
    }
}

#[test]
fn a_trace_as_json_is_the_daemons_items() {
    let daemon = daemon(Ok(Answer { items: vec![parked()], missed: 3, ended: StreamEnd::Time }));
    let text = printed(&daemon, &format!("--json {TRACE}"));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let item = json!({
        "number": 1, "at_unix_us": 1_470_182_400_123_456u64, "core": 2, "origin": "uplink",
        "sender": null, "kind": "segment", "flow": "20.1.1.1:1234-192.168.0.1:80", "length": 66,
        "flags": ["psh", "ack"], "verdict": "parked", "owner": null, "counter": null,
        "rules": ["R5"], "counters": ["miss", "parked", "lookup_asked"], "sent": 0,
    });
    let end = json!({"items": 1, "missed": 3, "ended": "time"});
    assert_eq!(lines, [json!({"item": item}), json!({"missed": 3}), json!({"ok": end})]);
}

#[test]
fn asks_for_what_was_said() {
    let daemon = daemon(Ok(answer(Vec::new())));
    printed(&daemon, &format!("--json {TRACE} --for 5s --count 7"));
    printed(&daemon, &format!("--json {TRACE}"));
    let file = daemon.directory.path().join("c");
    let capture = format!("capture -w {}", file.display());
    let options =
        "--filter dropped,client=20.1.0.0/16 --count 7 --for 5s --snaplen 1000 --bytes 99";
    printed(&daemon, &format!("{capture} {options}"));
    printed(&daemon, &capture);
    let flow = "20.1.1.1:1234-192.168.0.1:80".parse().unwrap();
    let trace = |ms: u64, count: u64| Request::Trace {
        flow,
        for_ms: ms.try_into().unwrap(),
        count: count.try_into().unwrap(),
    };
    let capture = |filter: &str, snaplen: u64, bytes: u64, ms: u64, count: u64| Request::Capture {
        filter: filter.parse().unwrap(),
        snaplen: snaplen.try_into().unwrap(),
        bytes: bytes.try_into().unwrap(),
        for_ms: ms.try_into().unwrap(),
        count: count.try_into().unwrap(),
    };
    let expected = [
        trace(5_000, 7),
        trace(30_000, 10_000),
        capture("dropped,client=20.1.0.0/16", 1000, 99, 5_000, 7),
        capture("all", 256, 64 << 20, 30_000, 1_000),
    ];
    assert_eq!(*daemon.asked.lock().unwrap(), expected);
}

#[test]
fn what_cannot_be_asked_is_wrong_usage() {
    let daemon = daemon(Ok(answer(Vec::new())));
    let rows = [
        ("trace", "<FLOW>"),
        ("trace nothing", "'nothing' is no flow"),
        ("trace 20.1.1.1:1-192.168.0.1:80 --for 2h", "expected a time from 1 ms to 1 h"),
        ("trace 20.1.1.1:1-192.168.0.1:80 --count 0", "expected a number from 1 to 10000000"),
        ("capture", "--write <FILE>"),
        ("capture -w x --filter lost", "'lost' is no part of a filter"),
        ("capture -w x --filter client=here", "expected a client's address or a prefix"),
        ("capture -w x --snaplen 20000", "from 64 to 16384"),
        ("capture -w x --bytes 0", "from 1 to 1073741824"),
        ("capture -w x --for 0s", "expected a time from 1 ms to 1 h"),
    ];
    for (arguments, message) in rows {
        let (status, error) = refusal(&daemon, arguments);
        assert!(status == 2 && error.contains(message), "{arguments}: {error}");
    }
    assert!(daemon.asked.lock().unwrap().is_empty());
}

#[test]
fn a_refused_capture_leaves_the_file_as_it_was() {
    let error = ProtocolError::new(ErrorCode::Busy, "another trace or capture is under way");
    let daemon = daemon(Err(error));
    let file = daemon.directory.path().join("kept");
    std::fs::write(&file, "kept").unwrap();
    let (status, error) = refusal(&daemon, &format!("capture -w {}", file.display()));
    assert_eq!(status, 1);
    assert!(error.contains("another trace or capture is under way (busy)"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn a_file_that_cannot_be_written_is_said_before_the_daemon_is_asked() {
    let daemon = daemon(Ok(answer(Vec::new())));
    let (status, error) = refusal(&daemon, "capture -w /nowhere/at/all");
    assert_eq!(status, 1);
    assert!(error.contains("cannot write /nowhere/at/all: No such file"), "{error}");
    assert!(daemon.asked.lock().unwrap().is_empty());
    // A full disk.
    let (status, error) = refusal(&daemon, "capture -w /dev/full");
    assert!(status == 1 && error.contains("cannot write /dev/full: No space left"), "{error}");
}

/// An Ethernet frame with an IPv4 packet to a service, as long as its headers and this.
fn frame(payload: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0xaa, 0x08, 0x00];
    let length = (20 + 20 + payload) as u16;
    frame.extend([0x45, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend([20, 1, 1, 1, 192, 168, 0, 1]);
    frame.extend([0x04, 0xd2, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0x10, 0, 0, 0, 0, 0]);
    frame.resize(frame.len() + payload, 7);
    frame
}

/// A packet that is parked, and released into two frames, the second cut to 100 bytes.
fn captured() -> Vec<PacketItem> {
    let image = |port, length: usize, kept: usize| CapturedFrame {
        port,
        length: length as u64,
        data: frame(length - 54)[..kept].to_vec(),
    };
    let owner = Some("10.0.0.2".parse().unwrap());
    vec![
        PacketItem { frames: vec![image(FramePort::UplinkIn, 66, 66)], ..parked() },
        PacketItem {
            number: 2,
            at_unix_us: 1_470_182_400_124_000,
            origin: PacketOrigin::Waited,
            verdict: PacketVerdict::Tunnelled,
            owner,
            counters: texts(&["released_tunnel", "tunnel_sent"]),
            sent: 2,
            frames: vec![
                image(FramePort::Waited, 66, 66),
                image(FramePort::UplinkOut, 98, 98),
                image(FramePort::UplinkOut, 1500, 100),
            ],
            ..parked()
        },
        PacketItem {
            number: 3,
            origin: PacketOrigin::Host,
            verdict: PacketVerdict::Withheld,
            counter: Some("rst_withheld".to_owned()),
            rules: texts(&["R12"]),
            counters: texts(&["rst_withheld"]),
            frames: vec![image(FramePort::HostIn, 60, 60), image(FramePort::HostOut, 60, 60)],
            ..parked()
        },
    ]
}

/// Whether there is such a program; says so when not.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        skipped(&format!("packets.rs reads with {program}, which is not installed"));
    }
    found
}

fn tshark(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-T", "fields", "-E", "separator=|"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
}

#[test]
fn a_capture_is_a_file_that_tshark_and_capinfos_read() {
    let daemon = daemon(Ok(Answer { items: captured(), missed: 3, ended: StreamEnd::Bytes }));
    let file = daemon.directory.path().join("c.pcapng");
    let text = printed(&daemon, &format!("capture -w {}", file.display()));
    let expected = format!(
        "3 packets as 6 frames of 450 bytes in {}, 3 missed: as many bytes as were asked for\n",
        file.display()
    );
    assert_eq!(text, expected);
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it shows what clients send");
    if has("tshark") {
        let fields = [
            "frame.interface_name",
            "frame.time_epoch",
            "frame.packet_flags_direction",
            "frame.packet_id",
            "frame.cap_len",
            "frame.len",
            "frame.comment",
            "tcp.srcport",
        ];
        let parked = "parked (R5); counters: miss parked lookup_asked; worker on core 2";
        let released =
            "released to 10.0.0.2 (R5); counters: released_tunnel tunnel_sent; worker on core 2";
        let withheld = "withheld: rst_withheld (R12); counters: rst_withheld; worker on core 2";
        let (early, late) = ("1470182400.123456000", "1470182400.124000000");
        let expected = [
            ["uplink in", early, "0x00000001", "1", "66", "66", parked, "1234"],
            ["waited", late, "0x00000000", "2", "66", "66", released, "1234"],
            ["uplink out", late, "0x00000002", "2", "98", "98", released, "1234"],
            ["uplink out", late, "0x00000002", "2", "100", "1500", released, "1234"],
            ["host in", early, "0x00000001", "3", "60", "60", withheld, "1234"],
            ["host out", early, "0x00000002", "3", "60", "60", withheld, "1234"],
        ];
        assert_eq!(tshark(&file, &fields), expected);
    }
    if has("capinfos") {
        let output = Command::new("capinfos").arg("-M").arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in ["Number of interfaces in file: 5", "Capture application: holdfastctl 0.1.0"] {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words(&text).contains(&words(line)), "{line}: {text}");
        }
    }
}

#[test]
fn a_capture_of_nothing_is_a_file_too() {
    let daemon = daemon(Ok(answer(Vec::new())));
    let file = daemon.directory.path().join("c.pcapng");
    // What was there before is gone.
    std::fs::write(&file, vec![b'x'; 100_000]).unwrap();
    printed(&daemon, &format!("capture -w {}", file.display()));
    if has("tshark") {
        assert!(tshark(&file, &["frame.number"]).is_empty());
    }
}

#[test]
fn a_capture_as_json_reports_itself() {
    let daemon = daemon(Ok(Answer { items: captured(), missed: 0, ended: StreamEnd::Count }));
    let file = daemon.directory.path().join("c.pcapng");
    let text = printed(&daemon, &format!("--json capture -w {}", file.display()));
    let expected = json!({
        "file": file, "frames": 6, "bytes": 450, "items": 3, "missed": 0, "ended": "count",
    });
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
}

#[test]
fn a_capture_goes_to_standard_output_and_what_it_says_to_standard_error() {
    let daemon = daemon(Ok(answer(captured())));
    let file = daemon.directory.path().join("c.pcapng");
    printed(&daemon, &format!("capture -w {}", file.display()));
    let output = run(&daemon, "capture -w -");
    assert!(output.status.success());
    assert_eq!(output.stdout, std::fs::read(&file).unwrap());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error, "3 packets as 6 frames of 450 bytes in -: the time is over\n");
}

#[test]
fn requests_and_items_are_as_the_schema_says() {
    let mut documents = Vec::new();
    let daemon = daemon(Ok(answer(every_verdict())));
    let file = daemon.directory.path().join("c");
    let output = printed(&daemon, &format!("--json {TRACE}"));
    for line in output.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let part = if line["ok"].is_null() { "item" } else { "ok" };
        documents.push((format!("trace.{part}"), line[part].clone()));
    }
    assert_eq!(documents.len(), every_verdict().len() + 1);
    printed(&daemon, &format!("capture -w {} --filter dropped,client_port=7", file.display()));
    for request in &*daemon.asked.lock().unwrap() {
        let line = serde_json::from_str(&request_line(request).unwrap()).unwrap();
        documents.push(("request".to_owned(), line));
    }
    for item in captured() {
        documents.push(("capture.item".to_owned(), serde_json::to_value(item).unwrap()));
    }
    schema::assert_valid(&documents);
    let wrong = [
        json!({"version": 1, "command": "trace"}),
        json!({"version": 1, "command": "capture", "filter": {"kind": "lost"}}),
        json!({"version": 1, "command": "capture", "filter": {"x": 1}}),
        json!({"version": 1, "command": "capture", "snaplen": 63}),
        json!({"version": 1, "command": "capture", "bytes": 0}),
    ];
    for value in wrong {
        let complaints = schema::complaints(&[("request".to_owned(), value.clone())]);
        assert!(!complaints.is_empty() || schema::judge().is_none(), "{value}");
    }
}
