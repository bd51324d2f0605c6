//! The commands of a real daemon about real sessions: a client and a server in network namespaces,
//! the server's kernel behind the daemon; needs root.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use holdfast::client::{self, StreamLine};
use holdfast::config::Config;
use holdfast::protocol::{
    COMMANDS, Limit, Request, SessionFilter, StreamCount, StreamTime, answer_line,
};
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::namespace::{Namespace, veth};
use support::session::{echo, listen, open};
use support::{is_root, schema};

const SERVICE: &str = "192.168.82.1:80";
const CONFIGURATION: &str = r#"
    node.locator = "10.82.0.1"
    node.control_mode = "0666"
    uplink.device = "up0"
    service = [{ address = "192.168.82.1", ports = [80] }]
    sessions.linger = "1s"
    sessions.kernel_check = "500ms"
    dht.bootstrap = ["10.82.0.1:7000"]
    cluster.members = ["10.82.0.0/24"]
    incidents.flows = 1
"#;

/// A client's and a server's namespace, and the server's daemon.
struct Lab {
    daemon: Daemon,
    client: Namespace,
    server: Namespace,
    /// What was said, for the schema.
    documents: Vec<(String, Value)>,
}

impl Lab {
    fn start() -> Lab {
        let [client, server] = ["client", "server"].map(Namespace::new);
        veth([(&client, "cl0"), (&server, "up0")]);
        server.set_up_uplink("up0");
        server.add_addresses("lo", ["10.82.0.1/32", "192.168.82.1/32"]);
        client.add_addresses("cl0", ["10.82.1.2/24"]);
        client.ip("link set cl0 up");
        client.ip("route add 192.168.82.1 via 10.82.1.1");
        let daemon = Daemon::start(Some(&server), CONFIGURATION);
        daemon.until("host0 is there", || server.try_ip("link set host0 up"));
        server.add_addresses("host0", ["10.82.1.1/24"]);
        Lab { daemon, client, server, documents: Vec::new() }
    }

    fn ctl(&self, arguments: &str) -> Output {
        self.daemon.holdfastctl(arguments).output().unwrap()
    }

    /// What `holdfastctl --json` prints when all is well.
    fn json(&mut self, command: &str, arguments: &str) -> Value {
        let output = self.ctl(&format!("{arguments} --json"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {error}\n{}", self.daemon.log());
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        self.documents.push((format!("{command}.ok"), value.clone()));
        value
    }

    /// What `holdfastctl` prints for people; it fits a terminal.
    fn text(&self, arguments: &str) -> String {
        let output = self.ctl(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("# warning: "));
        let longest = lines.map(|line| line.chars().count()).max().unwrap_or(0);
        // The keys that set limits are long.
        let most = if arguments == "show limits" { 110 } else { 100 };
        assert!(longest <= most, "{arguments}: {longest} columns\n{text}");
        text
    }
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

#[test]
fn commands_tell_the_truth_about_real_sessions() {
    if !is_root("control_commands.rs") {
        return;
    }
    let mut lab = Lab::start();
    let listener = listen(&lab.server, SERVICE.parse().unwrap());
    let watch = Request::SessionsWatch {
        filter: SessionFilter::default(),
        events: Vec::new(),
        for_ms: StreamTime::default(),
        count: StreamCount::default(),
    };
    let mut stream = client::stream(&lab.daemon.socket(), &watch).unwrap();
    let is_watched = || lab.daemon.stats()["control"]["gauges"]["streams"] == 1;
    lab.daemon.until("it is watched", is_watched);
    let mut seen = Vec::new();

    // A session opens, and all of it is told, in order and with its version.
    let (mut client, mut accepted) = open(&lab.client, &listener);
    let flow = format!("{}-{SERVICE}", client.local_addr().unwrap());
    let opened = event(&mut stream, "opened", &mut seen);
    let established = event(&mut stream, "established", &mut seen);
    assert_eq!((&opened["flow"], &established["flow"]), (&json!(flow), &json!(flow)));
    assert_eq!((&opened["before"], &opened["after"]), (&Value::Null, &json!("half_open")));
    assert_eq!(opened["version"], established["version"]);
    echo(&mut client, &mut accepted);
    lab.daemon.until("it is published", || lab.daemon.published() == 1);

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
    lab.daemon.until("the cluster is settled", || {
        let request = Request::Explain { flow: nobodys.parse().unwrap() };
        lab.daemon.ask(&request)["dht"]["outcome"] == "not_found"
    });
    let explained = lab.json("explain", &format!("explain {nobodys}"));
    assert_eq!((&explained["verdict"], &explained["kernel"]), (&json!("host"), &json!("nothing")));
    let explained = lab.json("explain", "explain 10.82.1.2:1-192.168.82.9:80");
    assert_eq!((&explained["verdict"], &explained["dht"]), (&json!("pass"), &Value::Null));
    let output = lab.ctl(&format!("sessions get {nobodys}"));
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
    for path in [directory.path(), lab.daemon.socket().parent().unwrap()] {
        std::fs::set_permissions(path, open()).unwrap();
    }
    let as_nobody = |arguments: &str| {
        let mut command = Command::new(&program);
        command.uid(65_534).gid(65_534).arg("--socket").arg(lab.daemon.socket());
        command.args(arguments.split_whitespace()).output().unwrap()
    };
    assert!(as_nobody("show version").status.success(), "{}", lab.daemon.log());
    let output = as_nobody(&format!("sessions delete {flow}"));
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("sessions_delete changes things") && error.contains("(forbidden)"));
    assert_eq!(lab.daemon.published(), 1);

    let deleted = lab.json("sessions_delete", &format!("sessions delete {flow}"));
    assert_eq!(deleted["sessions"][0]["flow"], *flow);
    assert_eq!((&deleted["left"], &deleted["withdrawn"]), (&json!(0), &json!(1)));
    let removed = event(stream, "removed", seen);
    assert_eq!((&removed["flow"], &removed["before"]), (&json!(flow), &json!("established")));
    // R7: the kernel holds its socket.
    echo(client, accepted);
    event(stream, "learnt", seen);
    let log = lab.daemon.log();
    let logged = log.lines().find(|line| line.contains("\"command\":\"sessions_delete\"")).unwrap();
    assert!(
        logged.contains("INFO") && logged.contains("uid=0") && logged.contains("done"),
        "{log}"
    );
    assert!(logged.contains(flow) && logged.contains("pid="), "{logged}");
    assert_eq!(log.matches("sessions_delete").count(), 1, "what is forbidden is not done: {log}");
    let output = lab.ctl(&format!("sessions delete 10.82.1.2:1-{SERVICE}"));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("(not_found)"));
    lab.daemon.until("it is published again", || lab.daemon.published() == 1);
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
    lab.daemon.until("it is withdrawn", || lab.daemon.published() == 0);
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
    lab.daemon.until("an incident is there", || {
        let request = Request::IncidentsList { limit: Limit::default() };
        lab.daemon.ask(&request)["incidents"][0]["sessions"]["at_risk"] == 1
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
    // The answer is of a server that has followed, to each of several orders.
    for _ in 0..3 {
        let answer = lab.json("drain", "drain --withdraw --timeout 1h");
        assert_eq!(answer["state"], "draining");
        let answer = lab.json("undrain", "undrain");
        assert!(answer["state"] == "ready" || answer["state"] == "joining", "{answer}");
    }
    lab.json("drain", "drain --withdraw --timeout 0s");
    lab.json("drain", "drain --timeout 0s --wait");
    let health = lab.json("show_health", "show health");
    assert_eq!((&health["state"], &health["sessions_left"]), (&json!("drained"), &json!(0)));
    assert!(lab.text("show health").contains("withdraw the prefixes yourself"));
    lab.json("undrain", "undrain");
    let is_ready = || lab.daemon.ask(&Request::ShowHealth {})["state"] == "ready";
    lab.daemon.until("it is ready again", is_ready);

    let refusal =
        holdfast::protocol::ProtocolError::new(holdfast::protocol::ErrorCode::Forbidden, "not you");
    let line = serde_json::from_str(&answer_line(&Err(refusal))).unwrap();
    lab.documents.push(("answer".to_owned(), line));
}
