//! The commands of a real daemon about real sessions: a client and a server in network namespaces,
//! the server's kernel behind the daemon; needs root.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

#[path = "support/netns.rs"]
mod netns;
#[path = "support/schema.rs"]
mod schema;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use holdfast::client::{self, StreamLine, ask};
use holdfast::config::Config;
use holdfast::protocol::{
    COMMANDS, Limit, Request, SessionFilter, StreamCount, StreamTime, answer_line,
};
use netns::{command_in, inside, ip, is_root};
use serde_json::{Value, json};

const SERVICE: &str = "192.168.82.1:80";

/// A client's and a server's namespace, and the server's daemon; gone when dropped.
struct Lab {
    directory: tempfile::TempDir,
    client: String,
    server: String,
    daemon: Child,
    /// What was said, for the schema.
    documents: Vec<(String, Value)>,
}

impl Lab {
    fn start() -> Lab {
        let [client, server] =
            ["client", "server"].map(|name| format!("holdfast-cmd-{}-{name}", std::process::id()));
        for namespace in [&client, &server] {
            assert!(ip(&format!("netns add {namespace}")));
            assert!(ip(&format!("-n {namespace} link set lo up")));
        }
        assert!(ip(&format!("link add cl0 netns {client} type veth peer up0 netns {server}")));
        for (namespace, interface) in [(&client, "cl0"), (&server, "up0")] {
            let off = "tx off rx off sg off tso off gso off gro off";
            command_in(namespace, "ethtool", &format!("-K {interface} {off}"));
        }
        command_in(&server, "sysctl", "-qw net.ipv6.conf.up0.disable_ipv6=1");
        assert!(ip(&format!("-n {server} link set up0 promisc on arp off up")));
        assert!(ip(&format!("-n {client} address add 10.82.1.2/24 dev cl0")));
        assert!(ip(&format!("-n {client} link set cl0 up")));
        assert!(ip(&format!("-n {client} route add 192.168.82.1 via 10.82.1.1")));
        for address in ["10.82.0.1/32", "192.168.82.1/32"] {
            assert!(ip(&format!("-n {server} address add {address} dev lo")));
        }

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("holdfast.toml");
        std::fs::write(&path, configuration(&directory, &server)).unwrap();
        let mut daemon = Command::new("ip");
        daemon.args(["netns", "exec", &server, env!("CARGO_BIN_EXE_holdfastd"), "run"]);
        daemon.arg(path).stdin(Stdio::null()).stdout(Stdio::null());
        let log = File::create(directory.path().join("log")).unwrap();
        let daemon = daemon.stderr(log).spawn().unwrap();
        let lab = Lab { directory, client, server, daemon, documents: Vec::new() };
        lab.until("host0 is there", || ip(&format!("-n {} link set host0 up", lab.server)));
        assert!(ip(&format!("-n {} address add 10.82.1.1/24 dev host0", lab.server)));
        lab.until("it answers", || ask(&lab.socket(), &Request::ShowVersion {}).is_ok());
        lab
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// What `holdfastctl --json` prints when all is well.
    fn json(&mut self, command: &str, arguments: &str) -> Value {
        let output = ctl(&self.socket(), &format!("{arguments} --json"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {error}\n{}", self.log());
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        self.documents.push((format!("{command}.ok"), value.clone()));
        value
    }

    /// What `holdfastctl` prints for people; it fits a terminal.
    fn text(&self, arguments: &str) -> String {
        let output = ctl(&self.socket(), arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("# warning: "));
        let longest = lines.map(|line| line.chars().count()).max().unwrap_or(0);
        // The keys that set limits are long.
        let most = if arguments == "show limits" { 110 } else { 100 };
        assert!(longest <= most, "{arguments}: {longest} columns\n{text}");
        text
    }

    fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(60), "not so: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn published(&self) -> u64 {
        let stats = ask(&self.socket(), &Request::ShowStats {}).unwrap();
        stats["dht"]["gauges"]["published"].as_u64().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for namespace in [&self.client, &self.server] {
            ip(&format!("netns delete {namespace}"));
        }
    }
}

fn ctl(socket: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
    command.arg("--socket").arg(socket).args(arguments.split_whitespace()).output().unwrap()
}

fn configuration(directory: &tempfile::TempDir, prefix: &str) -> String {
    format!(
        r#"
        [node]
        locator = "10.82.0.1"
        control_socket = "{}"
        control_mode = "0666"
        [dpdk]
        eal_args = ["--no-telemetry"]
        huge_pages = "off"
        file_prefix = "{prefix}"
        [uplink]
        device = "up0"
        [[service]]
        address = "192.168.82.1"
        ports = [80]
        [sessions]
        capacity = 2048
        half_open_max = 1024
        linger = "1s"
        kernel_check = "500ms"
        [dht]
        bootstrap = ["10.82.0.1:7000"]
        records_max = 2048
        [cluster]
        members = ["10.82.0.0/24"]
        insecure = true
        [incidents]
        flows = 1
        "#,
        directory.path().join("socket").display(),
    )
}

/// Takes items until one has this event; gives it. All events on the way are noted.
fn event(stream: &mut client::Stream, wanted: &str, seen: &mut Vec<Value>) -> Value {
    loop {
        match stream.next().unwrap() {
            StreamLine::Item(item) => {
                seen.push(item.clone());
                if item["event"] == wanted {
                    return item;
                }
            }
            other => panic!("{other:?} before {wanted}: {seen:?}"),
        }
    }
}

fn echo(client: &mut TcpStream, accepted: &mut TcpStream) {
    let mut bytes = [0; 4];
    client.write_all(b"ping").unwrap();
    accepted.read_exact(&mut bytes).unwrap();
    accepted.write_all(&bytes).unwrap();
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
}

#[test]
fn commands_tell_the_truth_about_real_sessions() {
    if !is_root("control_commands.rs") {
        return;
    }
    let mut lab = Lab::start();
    let service: SocketAddr = SERVICE.parse().unwrap();
    let listener = inside(&lab.server, || TcpListener::bind(service).unwrap());
    let watch = Request::SessionsWatch {
        filter: SessionFilter::default(),
        events: Vec::new(),
        for_ms: StreamTime::default(),
        count: StreamCount::default(),
    };
    let mut stream = client::stream(&lab.socket(), &watch).unwrap();
    lab.until("it is watched", || {
        let stats = ask(&lab.socket(), &Request::ShowStats {}).unwrap();
        stats["control"]["gauges"]["streams"] == 1
    });
    let mut seen = Vec::new();

    // A session opens, and all of it is told, in order and with its version.
    let mut client = inside(&lab.client, || TcpStream::connect(service).unwrap());
    let (mut accepted, _) = listener.accept().unwrap();
    let flow = format!("{}-{SERVICE}", client.local_addr().unwrap());
    let opened = event(&mut stream, "opened", &mut seen);
    let established = event(&mut stream, "established", &mut seen);
    assert_eq!((&opened["flow"], &established["flow"]), (&json!(flow), &json!(flow)));
    assert_eq!((&opened["before"], &opened["after"]), (&Value::Null, &json!("half_open")));
    assert_eq!(opened["version"], established["version"]);
    echo(&mut client, &mut accepted);
    lab.until("it is published", || lab.published() == 1);

    // It is listed, found and counted, by every filter that fits.
    let entry = lab.json("sessions_get", &format!("sessions get {flow}"));
    assert_eq!((&entry["state"], &entry["published"]), (&json!("established"), &json!(true)));
    assert_eq!(entry["version"], opened["version"]);
    let port = client.local_addr().unwrap().port();
    for (filter, fits) in [
        (String::new(), true),
        ("--kind local --state established --owner 10.82.0.1 --published true".to_owned(), true),
        (format!("--client 10.82.1.0/24 --client-port {port} --service {SERVICE}"), true),
        ("--idle-under 1h".to_owned(), true),
        ("--kind redirect".to_owned(), false),
        ("--idle-over 1h".to_owned(), false),
        ("--published false".to_owned(), false),
    ] {
        let list = lab.json("sessions_list", &format!("sessions list {filter}"));
        assert_eq!(list["total"], u64::from(fits), "{filter}: {list}");
        let same = lab.json("sessions_list", &format!("show sessions {filter}"));
        assert_eq!(same["total"], list["total"]);
    }
    let count = lab.json("sessions_count", "sessions count");
    assert_eq!(count["by_state"], json!({ "established": 1 }));
    assert_eq!(count["by_service"], json!({ SERVICE: 1 }));
    lab.text("sessions list");
    lab.text("sessions count");

    // It is explained.
    let explained = lab.json("explain", &format!("explain {flow}"));
    assert_eq!((&explained["verdict"], &explained["kernel"]), (&json!("host"), &json!("session")));
    assert_eq!(explained["dht"]["outcome"], "owner");
    let text = lab.text(&format!("explain {flow}"));
    assert!(text.contains("R1"), "{text}");
    let nobodys = format!("10.82.1.2:1-{SERVICE}");
    lab.until("the cluster is settled", || {
        let reply = ask(&lab.socket(), &Request::Explain { flow: nobodys.parse().unwrap() });
        reply.unwrap()["dht"]["outcome"] == "not_found"
    });
    let explained = lab.json("explain", &format!("explain {nobodys}"));
    assert_eq!((&explained["verdict"], &explained["kernel"]), (&json!("host"), &json!("nothing")));
    let explained = lab.json("explain", "explain 10.82.1.2:1-192.168.82.9:80");
    assert_eq!((&explained["verdict"], &explained["dht"]), (&json!("pass"), &Value::Null));
    let output = ctl(&lab.socket(), &format!("sessions get {nobodys}"));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("(not_found)"));

    deletes(&mut lab, &flow, &mut stream, &mut seen, (&mut client, &mut accepted));
    closes(&mut lab, &mut stream, &mut seen, client, accepted);
    others(&mut lab);
    for item in seen {
        lab.documents.push(("sessions_watch.item".to_owned(), item));
    }
    let checked: Vec<&str> =
        lab.documents.iter().filter_map(|(name, _)| name.split('.').next()).collect();
    for (command, _) in COMMANDS {
        // packets_daemon.rs, reload.rs
        let is_elsewhere =
            matches!(command.split('_').next(), Some("trace" | "capture" | "reload"));
        assert!(is_elsewhere || checked.contains(command), "{command} was not tried");
    }
    schema::assert_valid(&lab.documents);
}

/// Only root may delete a session; its record goes; and what the kernel holds comes back.
fn deletes(
    lab: &mut Lab,
    flow: &str,
    stream: &mut client::Stream,
    seen: &mut Vec<Value>,
    (client, accepted): (&mut TcpStream, &mut TcpStream),
) {
    // Where another user finds it.
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let program = directory.path().join("holdfastctl");
    std::fs::copy(env!("CARGO_BIN_EXE_holdfastctl"), &program).unwrap();
    let open = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
    for path in [directory.path(), lab.directory.path()] {
        std::fs::set_permissions(path, open()).unwrap();
    }
    let as_nobody = |arguments: &str| {
        let mut command = Command::new(&program);
        command.uid(65_534).gid(65_534).arg("--socket").arg(lab.socket());
        command.args(arguments.split_whitespace()).output().unwrap()
    };
    assert!(as_nobody("show version").status.success(), "{}", lab.log());
    let output = as_nobody(&format!("sessions delete {flow}"));
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("sessions_delete changes things") && error.contains("(forbidden)"));
    assert_eq!(lab.published(), 1);

    let deleted = lab.json("sessions_delete", &format!("sessions delete {flow}"));
    assert_eq!(deleted["sessions"][0]["flow"], *flow);
    assert_eq!((&deleted["left"], &deleted["withdrawn"]), (&json!(0), &json!(1)));
    let removed = event(stream, "removed", seen);
    assert_eq!((&removed["flow"], &removed["before"]), (&json!(flow), &json!("established")));
    // R7: the kernel holds its socket.
    echo(client, accepted);
    event(stream, "learnt", seen);
    let log = lab.log();
    let logged = log.lines().find(|line| line.contains("\"command\":\"sessions_delete\"")).unwrap();
    assert!(
        logged.contains("INFO") && logged.contains("uid=0") && logged.contains("done"),
        "{log}"
    );
    assert!(logged.contains(flow) && logged.contains("pid="), "{logged}");
    assert_eq!(log.matches("sessions_delete").count(), 1, "what is forbidden is not done: {log}");
    let output = ctl(&lab.socket(), &format!("sessions delete 10.82.1.2:1-{SERVICE}"));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("(not_found)"));
    lab.until("it is published again", || lab.published() == 1);
}

/// The end of a session, and of the daemon's memory of it.
fn closes(
    lab: &mut Lab,
    stream: &mut client::Stream,
    seen: &mut Vec<Value>,
    client: TcpStream,
    mut accepted: TcpStream,
) {
    drop(client);
    event(stream, "client_closed", seen);
    assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
    drop(accepted);
    event(stream, "closed", seen);
    let removed = event(stream, "removed", seen);
    assert_eq!(removed["before"], "closed");
    lab.until("it is withdrawn", || lab.published() == 0);
}

/// What shows the daemon and not its sessions.
fn others(lab: &mut Lab) {
    let limits = lab.json("show_limits", "show limits");
    let limit = |name: &str| {
        let mut all = limits["limits"].as_array().unwrap().iter();
        all.find(|limit| limit["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    assert_eq!(limit("table.entries")["value"], 2048);
    assert_eq!(limit("dht.records")["value"], 2048);
    assert!(limit("worker.mbufs")["used"].as_u64().unwrap() > 0, "descriptors hold some");
    assert_eq!(limit("control.streams")["used"], 1);
    lab.text("show limits");

    let shown = lab.json("show_config", "show config");
    assert_eq!(shown["config"]["dht"]["records_max"], 2048);
    assert_eq!(shown["config"]["sessions"]["linger"], "1s");
    let text = lab.text("show config");
    Config::parse("shown.toml", &text).unwrap();

    let routing = lab.json("show_routing", "show routing");
    assert_eq!(routing["buckets"], json!([]));
    lab.text("show routing");

    let stats = lab.json("show_stats", "show stats");
    let requests = &stats["control"]["requests"];
    assert_eq!(requests["sessions_delete"], 3);
    assert_eq!(requests["sessions_watch"], 1);
    assert_eq!(stats["control"]["counters"]["forbidden"], 1);
    lab.text("show stats --all");
    lab.json("show_workers", "show workers");
    lab.json("show_peers", "show peers");
    lab.json("show_lookups", "show lookups");
    lab.json("show_version", "show version");
    lab.json("lookup", &format!("lookup 10.82.1.2:1-{SERVICE}"));

    // The client's segment after its session was deleted was a stray.
    lab.until("an incident is there", || {
        let limit = Limit::default();
        let reply = ask(&lab.socket(), &Request::IncidentsList { limit }).unwrap();
        reply["incidents"][0]["sessions"]["at_risk"] == 1
    });
    let incidents = lab.json("incidents_list", "incidents");
    let id = &incidents["incidents"][0]["id"];
    let incident = lab.json("incidents_show", &format!("incidents show {id}"));
    assert_eq!(incident["sessions"]["at_risk"], 1);
    lab.text(&format!("incidents show {id}"));

    // There are neither checks nor an announcer, so all is well.
    let health = lab.json("show_health", "show health");
    assert_eq!(
        (&health["state"], &health["prefixes"][0]["route"]),
        (&json!("ready"), &json!("announced"))
    );
    lab.text("show health");
    lab.json("drain", "drain --withdraw --timeout 0s");
    lab.json("drain", "drain --timeout 0s --wait");
    let health = lab.json("show_health", "show health");
    assert_eq!((&health["state"], &health["sessions_left"]), (&json!("drained"), &json!(0)));
    assert!(lab.text("show health").contains("withdraw the prefixes yourself"));
    lab.json("undrain", "undrain");
    lab.until("it is ready again", || {
        ask(&lab.socket(), &Request::ShowHealth {}).unwrap()["state"] == "ready"
    });

    let refusal =
        holdfast::protocol::ProtocolError::new(holdfast::protocol::ErrorCode::Forbidden, "not you");
    let line = serde_json::from_str(&answer_line(&Err(refusal))).unwrap();
    lab.documents.push(("answer".to_owned(), line));
}
