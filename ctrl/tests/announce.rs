//! A real daemon, a real FRR that announces for it, and a router that hears it: a server's and a
//! router's network namespace, joined by a veth pair. BGP runs through the appliance, as it does in
//! a data centre. Needs root and FRR.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use holdfast::client::ask;
use holdfast::config::{Check, CheckKind};
use holdfast::health::check::probe;
use holdfast::protocol::{DrainMode, HealthReply, HealthState, Request};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::daemon::Daemon;
use support::namespace::{Namespace, succeed, veth};
use support::session::listen;
use support::{PATIENCE, skipped};

const FRR: &str = "/usr/lib/frr";
const SERVICES: [&str; 2] = ["192.168.83.1:80", "[fd83:80::1]:80"];
const PREFIXES: [(&str, &str); 2] = [("ipv4", "192.168.83.1/32"), ("ipv6", "fd83:80::1/128")];

/// Whether there can be namespaces, and FRR is there; says so when not.
fn can_run() -> bool {
    let lacks = if !rustix::process::geteuid().is_root() {
        "root for network namespaces"
    } else if !Path::new(FRR).join("bgpd").exists() {
        "FRR (apt-get install frr)"
    } else {
        return true;
    };
    skipped(&format!("announce.rs needs {lacks}"));
    false
}

/// Services of the server: each answers GET with its status, and echoes everything else.
struct Web {
    statuses: [AtomicU16; 2],
}

impl Web {
    fn start(server: &Namespace) -> Arc<Web> {
        let web = Arc::new(Web { statuses: [200, 200].map(AtomicU16::new) });
        for (index, service) in SERVICES.iter().enumerate() {
            let listener = listen(server, service.parse().unwrap());
            let web = Arc::clone(&web);
            // It ends with the process.
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let web = Arc::clone(&web);
                    std::thread::spawn(move || web.serve(index, stream));
                }
            });
        }
        web
    }

    fn serve(&self, index: usize, mut stream: TcpStream) {
        let mut bytes = [0; 1024];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            let got = &bytes[..length];
            if got.starts_with(b"GET ") {
                let status = self.statuses[index].load(Ordering::Relaxed);
                let _ = write!(stream, "HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n");
                return;
            }
            if stream.write_all(got).is_err() {
                return;
            }
        }
    }

    fn answer(&self, index: usize, status: u16) {
        self.statuses[index].store(status, Ordering::Relaxed);
    }
}

/// The two namespaces, FRR in both, and the server's daemon; gone when dropped.
struct Lab {
    daemon: Daemon,
    server: Namespace,
    router: Namespace,
}

impl Lab {
    fn start() -> Lab {
        let [server, router] = ["server", "router"].map(Namespace::new);
        veth([(&server, "up0"), (&router, "down0")]);
        server.set_up_uplink("up0");
        server.add_addresses("lo", ["10.83.9.1/32", "192.168.83.1/32", "fd83:80::1/128"]);
        router.add_addresses("down0", ["10.83.0.2/24", "fd83:1::2/64 nodad"]);
        router.ip("link set down0 up");
        let mut lab = Lab { daemon: Daemon::new(Some(&server)), server, router };
        lab.daemon.configure(&lab.configuration());
        lab.daemon.run();
        lab.daemon.until("host0 is there", || lab.server.try_ip("link set host0 up"));
        lab.server.add_addresses("host0", ["10.83.0.1/24", "fd83:1::1/64 nodad"]);
        for (node, number) in [("server", 1), ("router", 2)] {
            lab.start_frr(node, number);
        }
        lab
    }

    /// The files of a node's FRR.
    fn frr(&self, node: &str) -> PathBuf {
        self.daemon.path(node)
    }

    fn namespace(&self, node: &str) -> &Namespace {
        if node == "server" { &self.server } else { &self.router }
    }

    fn start_frr(&self, node: &str, number: u8) {
        let directory = self.frr(node);
        std::fs::create_dir_all(&directory).unwrap();
        let peer = 3 - number;
        let bgpd = format!(
            "router bgp 6500{number}\n bgp router-id 10.83.0.{number}\n \
             no bgp ebgp-requires-policy\n timers bgp 2 6\n \
             neighbor fabric peer-group\n neighbor fabric remote-as external\n \
             neighbor fabric timers connect 1\n neighbor fabric advertisement-interval 0\n \
             neighbor 10.83.0.{peer} peer-group fabric\n neighbor fd83:1::{peer} peer-group fabric\n \
             address-family ipv6 unicast\n  neighbor fd83:1::{peer} activate\n exit-address-family\n"
        );
        for (daemon, config) in [("zebra", String::new()), ("bgpd", bgpd)] {
            std::fs::write(directory.join(format!("{daemon}.conf")), config).unwrap();
        }
        // FRR gives root's rights up.
        succeed(Command::new("chmod").arg("755").arg(directory.parent().unwrap()));
        succeed(Command::new("chown").args(["-R", "frr:frr"]).arg(&directory));
        for daemon in ["zebra", "bgpd"] {
            self.start_frr_daemon(node, daemon);
        }
    }

    fn start_frr_daemon(&self, node: &str, daemon: &str) {
        let directory = self.frr(node);
        let text = directory.to_str().unwrap();
        let arguments = format!(
            "-d -P 0 -f {text}/{daemon}.conf -i {text}/{daemon}.pid -z {text}/zserv.api \
             --vty_socket {text} --log file:{text}/{daemon}.log"
        );
        let mut command = self.namespace(node).command(&format!("{FRR}/{daemon}"));
        command.args(arguments.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success(), "{daemon} does not start");
    }

    fn end_frr_daemon(&self, node: &str, daemon: &str) {
        let pid = std::fs::read_to_string(self.frr(node).join(format!("{daemon}.pid")));
        let pid = pid.ok().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn vtysh(&self, node: &str, command: &str) -> String {
        let mut vtysh = Command::new("vtysh");
        vtysh.arg("--vty_socket").arg(self.frr(node)).args(["-d", "bgpd", "-c", command]);
        String::from_utf8(vtysh.stderr(Stdio::null()).output().unwrap().stdout).unwrap()
    }

    /// How the router hears a service's prefix: `-` not at all, `+` as a route like any other, `~`
    /// with the community GRACEFUL_SHUTDOWN and the least preference.
    fn heard(&self, index: usize) -> char {
        let (family, prefix) = PREFIXES[index];
        let text = self.vtysh("router", &format!("show bgp {family} unicast {prefix} json"));
        let route: Value = serde_json::from_str(&text).unwrap_or_default();
        let Some(path) = route["paths"].get(0) else {
            return '-';
        };
        match path["community"]["string"].as_str() {
            Some("graceful-shutdown") if path["locPrf"] == 0 => '~',
            _ => '+',
        }
    }

    /// `holdfastd withdraw`; gives what it says.
    fn withdraw(&self, after: &str) -> impl FnOnce() -> String + use<> {
        let mut command = self.daemon.command("withdraw");
        let child = command.args(["--after", after]).stderr(Stdio::piped()).spawn().unwrap();
        move || {
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{said}");
            said
        }
    }

    fn configuration(&self) -> String {
        let checks = SERVICES.map(|service| {
            format!(
                "[[check]]\nservice = \"{service}\"\nkind = \"http\"\npath = \"/up\"\n\
                 interval = \"100ms\"\ntimeout = \"100ms\"\nrise = 2\nfall = 20\n"
            )
        });
        format!(
            r#"
            node.locator = "10.83.9.1"
            uplink.device = "up0"
            service = [
                {{ address = "192.168.83.1", ports = [80] }},
                {{ address = "fd83:80::1", ports = [80] }},
            ]
            sessions.kernel_check = "500ms"
            dht.bootstrap = ["10.83.9.1:7000"]
            dht.restart_within = "1m"
            cluster.members = ["10.83.9.0/24"]
            announce.announcer = "frr"
            announce.command = ["vtysh", "--vty_socket", {frr:?}]
            announce.refresh = "1s"
            announce.settle = "1s"
            announce.state_directory = {state:?}
            {checks}
            "#,
            frr = self.frr("server"),
            state = self.daemon.path("state"),
            checks = checks.concat(),
        )
    }

    fn ask(&self, request: &Request) -> Option<HealthReply> {
        serde_json::from_value(ask(&self.daemon.socket(), request).ok()?).unwrap()
    }

    fn health(&self) -> Option<HealthReply> {
        self.ask(&Request::ShowHealth {})
    }

    /// Waits until the server is in this state, and its prefixes are heard like this, and it knows.
    fn until_heard(&self, state: HealthState, heard: [char; 2]) {
        let routes = heard.map(|heard| match heard {
            '+' => "announced",
            '~' => "graceful_shutdown",
            _ => "withdrawn",
        });
        let is = || {
            self.health().is_some_and(|health| {
                health.state == state && health.prefixes.iter().map(|p| &p.route).eq(&routes)
            }) && [self.heard(0), self.heard(1)] == heard
        };
        self.daemon.until(&format!("{state}, heard {heard:?}"), is);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in ["server", "router"] {
            for daemon in ["bgpd", "zebra"] {
                self.end_frr_daemon(node, daemon);
            }
        }
    }
}

#[test]
fn frr_announces_what_the_daemon_says() {
    if !can_run() {
        return;
    }
    use HealthState::{Drained, Draining, Ready, Unhealthy};
    let mut lab = Lab::start();
    // Nobody serves.
    lab.until_heard(Unhealthy, ['-', '-']);
    let web = Web::start(&lab.server);
    lab.until_heard(Ready, ['+', '+']);
    // Each service for itself.
    web.answer(1, 503);
    lab.until_heard(Unhealthy, ['+', '-']);
    let because = lab.health().unwrap().prefixes[1].because.clone();
    assert_eq!(because, [format!("{}: status 503 instead of 200", SERVICES[1])]);
    web.answer(1, 200);
    lab.until_heard(Ready, ['+', '+']);
    // FRR has forgotten all that its own configuration does not say.
    lab.end_frr_daemon("server", "bgpd");
    lab.daemon.until("the router has noticed", || lab.heard(0) == '-');
    lab.start_frr_daemon("server", "bgpd");
    lab.until_heard(Ready, ['+', '+']);

    // Drain, with a session that stays.
    let service: SocketAddr = SERVICES[0].parse().unwrap();
    let connect = || TcpStream::connect_timeout(&service, Duration::from_secs(1));
    let mut session = None;
    lab.daemon.until("a session is open", || {
        session = lab.router.inside(connect).ok();
        session.is_some()
    });
    let mut session = session.unwrap();
    let mut echo = || {
        session.write_all(b"ping").unwrap();
        let mut bytes = [0; 4];
        session.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");
    };
    echo();
    let mode = DrainMode::GracefulShutdown;
    let timeout = "1h".parse().unwrap();
    lab.ask(&Request::Drain { timeout, mode, persist: false }).unwrap();
    lab.until_heard(Draining, ['~', '~']);
    let left = || lab.health().unwrap().sessions_left;
    lab.daemon.until("one session is left", || left() == 1);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(lab.health().unwrap().state, Draining, "for as long as the session lives");
    echo();
    drop(session);
    lab.until_heard(Drained, ['-', '-']);
    lab.daemon.until("none is left", || left() == 0);
    lab.ask(&Request::Undrain {}).unwrap();
    lab.until_heard(Ready, ['+', '+']);
    let timeout = "0s".parse().unwrap();
    lab.ask(&Request::Drain { timeout, mode, persist: true }).unwrap();
    lab.until_heard(Drained, ['-', '-']);

    // It is kept over a restart.
    lab.daemon.kill();
    lab.daemon.run();
    lab.until_heard(Drained, ['-', '-']);
    lab.ask(&Request::Undrain {}).unwrap();
    lab.until_heard(Ready, ['+', '+']);

    // A crash, and back in time: FRR is told nothing.
    lab.daemon.kill();
    let said = lab.withdraw("1m");
    lab.daemon.run();
    assert!(said().contains("a daemon runs: nothing is withdrawn"));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) || lab.health().is_none_or(|h| h.state != Ready)
    {
        assert!(start.elapsed() < PATIENCE, "{:?}\n{}", lab.health(), lab.daemon.log());
        let text = lab.vtysh("server", "show running-config");
        assert_eq!(text.matches("route-map holdfast-announce\n").count(), 2, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
    lab.until_heard(Ready, ['+', '+']);

    // It stays away.
    lab.daemon.kill();
    let said = lab.withdraw("300ms")();
    assert!(said.contains("withdrawn: 192.168.83.1/32 fd83:80::1/128"), "{said}");
    let text = lab.vtysh("server", "show running-config");
    assert_eq!(text.matches("route-map holdfast-withdraw\n").count(), 2, "{text}");
    assert!(lab.withdraw("0s")().contains("nothing is announced"));
    lab.daemon.run();
    lab.until_heard(Ready, ['+', '+']);
    let stats = lab.daemon.stats();
    let health = &stats["health"];
    assert_eq!(health["gauges"]["prefixes_announced"], 2, "{health}");
    assert_eq!(health["counters"]["announcer_failures"], 0, "{health}");
    assert!(health["checks"][0]["checks"].as_u64().unwrap() > 2, "{health}");
}

/// Nobody listens, and the kernel has but one port for the check's own end: the same.
#[test]
fn a_check_that_meets_itself_has_met_nobody() {
    if !can_run() {
        return;
    }
    let namespace = Namespace::new("self");
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    namespace.inside(|| std::fs::write(range, "40001 40001").unwrap());
    let target: SocketAddr = "127.0.0.1:40001".parse().unwrap();
    let check = Check {
        service: target,
        target,
        kind: CheckKind::Tcp,
        interval: PATIENCE,
        timeout: PATIENCE,
        rise: 1,
        fall: 1,
    };
    let outcome = namespace.inside(|| probe(&check, &AtomicBool::new(false)));
    assert_eq!(outcome.unwrap_err().to_string(), "connection refused");
}
