//! A real daemon, a real FRR that announces for it, and a router that hears it: a server's and a
//! router's network namespace, joined by a veth pair. BGP runs through the appliance, as it does in
//! a data centre. Needs root and FRR.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use holdfast::client::ask;
use holdfast::config::{Check, CheckKind};
use holdfast::health::check::probe;
use holdfast::protocol::{DrainMode, HealthReply, HealthState, Request};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

const FRR: &str = "/usr/lib/frr";
const SERVICES: [&str; 2] = ["192.168.83.1:80", "[fd83:80::1]:80"];
const PREFIXES: [(&str, &str); 2] = [("ipv4", "192.168.83.1/32"), ("ipv6", "fd83:80::1/128")];
const LONG: Duration = Duration::from_secs(60);

fn ip(arguments: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace()).stderr(Stdio::null());
    command.status().unwrap().success()
}

fn command_in(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

fn run_in(namespace: &str, program: &str, arguments: &str) {
    let mut command = command_in(namespace, program);
    let status = command.args(arguments.split_whitespace()).stdout(Stdio::null()).status();
    assert!(status.unwrap().success(), "{program} {arguments}");
}

/// Runs `what` in a namespace; sockets that it makes stay there.
fn inside<T: Send>(namespace: &str, what: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        let run = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            what()
        };
        scope.spawn(run).join().unwrap()
    })
}

/// Of this test's thread, as tests run side by side.
fn namespace(name: &str) -> String {
    let thread = rustix::thread::gettid().as_raw_nonzero();
    format!("holdfast-an-{}-{thread}-{name}", std::process::id())
}

/// Whether there can be namespaces, and FRR is there; says so when not.
fn can_run() -> bool {
    let lacks = if !rustix::process::geteuid().is_root() {
        "root for network namespaces"
    } else if !Path::new(FRR).join("bgpd").exists() {
        "FRR (apt-get install frr)"
    } else {
        return true;
    };
    // Not by a macro, whose words the test harness keeps to itself.
    let skipped = format!("********** SKIPPED: announce.rs needs {lacks} **********\n");
    std::io::stderr().write_all(skipped.as_bytes()).unwrap();
    false
}

/// Services of the server: each answers GET with its status, and echoes everything else.
struct Web {
    statuses: [AtomicU16; 2],
}

impl Web {
    fn start(namespace: &str) -> Arc<Web> {
        let web = Arc::new(Web { statuses: [200, 200].map(AtomicU16::new) });
        for (index, service) in SERVICES.iter().enumerate() {
            let listener = inside(namespace, || TcpListener::bind(service).unwrap());
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
    directory: tempfile::TempDir,
    server: String,
    router: String,
    daemon: Option<Child>,
}

impl Lab {
    fn start() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        let [server, router] = ["server", "router"].map(namespace);
        for name in [&server, &router] {
            assert!(ip(&format!("netns add {name}")));
            assert!(ip(&format!("-n {name} link set lo up")));
        }
        let mut lab = Lab { directory, server, router, daemon: None };
        let (server, router) = (lab.server.clone(), lab.router.clone());
        assert!(ip(&format!("link add up0 netns {server} type veth peer down0 netns {router}")));
        for (name, interface) in [(&server, "up0"), (&router, "down0")] {
            let off = format!("-K {interface} tx off rx off sg off tso off gso off gro off");
            run_in(name, "ethtool", &off);
        }
        run_in(&server, "sysctl", "-qw net.ipv6.conf.up0.disable_ipv6=1");
        assert!(ip(&format!("-n {server} link set up0 promisc on arp off up")));
        for address in ["10.83.9.1/32", "192.168.83.1/32", "fd83:80::1/128"] {
            assert!(ip(&format!("-n {server} address add {address} dev lo")));
        }
        for address in ["10.83.0.2/24", "fd83:1::2/64 nodad"] {
            assert!(ip(&format!("-n {router} address add {address} dev down0")));
        }
        assert!(ip(&format!("-n {router} link set down0 up")));

        lab.start_daemon();
        for address in ["10.83.0.1/24", "fd83:1::1/64 nodad"] {
            let add = format!("-n {server} address add {address} dev host0");
            lab.until("host0 is there", || ip(&add));
        }
        assert!(ip(&format!("-n {server} link set host0 up")));
        for (node, number) in [("server", 1), ("router", 2)] {
            lab.start_frr(node, number);
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn namespace_of(&self, node: &str) -> &str {
        if node == "server" { &self.server } else { &self.router }
    }

    fn start_frr(&self, node: &str, number: u8) {
        let directory = self.path(node);
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
        let chmod = Command::new("chmod").arg("755").arg(self.directory.path()).status();
        let chown = Command::new("chown").args(["-R", "frr:frr"]).arg(&directory).status();
        assert!(chmod.unwrap().success() && chown.unwrap().success());
        for daemon in ["zebra", "bgpd"] {
            self.start_frr_daemon(node, daemon);
        }
    }

    fn start_frr_daemon(&self, node: &str, daemon: &str) {
        let directory = self.path(node);
        let text = directory.to_str().unwrap();
        let arguments = format!(
            "-d -P 0 -f {text}/{daemon}.conf -i {text}/{daemon}.pid -z {text}/zserv.api \
             --vty_socket {text} --log file:{text}/{daemon}.log"
        );
        let mut command = command_in(self.namespace_of(node), &format!("{FRR}/{daemon}"));
        command.args(arguments.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success(), "{daemon} does not start");
    }

    fn end_frr_daemon(&self, node: &str, daemon: &str) {
        let pid = std::fs::read_to_string(self.path(node).join(format!("{daemon}.pid")));
        let pid = pid.ok().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn vtysh(&self, node: &str, command: &str) -> String {
        let mut vtysh = Command::new("vtysh");
        vtysh.arg("--vty_socket").arg(self.path(node)).args(["-d", "bgpd", "-c", command]);
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

    fn start_daemon(&mut self) {
        let path = self.path("holdfast.toml");
        std::fs::write(&path, self.configuration()).unwrap();
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut daemon = command_in(&self.server, env!("CARGO_BIN_EXE_holdfastd"));
        daemon.arg("run").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(daemon.spawn().unwrap());
    }

    /// SIGKILL: it cannot say goodbye.
    fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// `holdfastd withdraw`; gives what it says.
    fn withdraw(&self, after: &str) -> impl FnOnce() -> String + use<> {
        let mut command = command_in(&self.server, env!("CARGO_BIN_EXE_holdfastd"));
        command.args(["withdraw", "--after", after]).arg(self.path("holdfast.toml"));
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
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
            [node]
            locator = "10.83.9.1"
            control_socket = "{directory}/socket"
            [dpdk]
            eal_args = ["--no-telemetry"]
            huge_pages = "off"
            file_prefix = "{prefix}"
            [uplink]
            device = "up0"
            [[service]]
            address = "192.168.83.1"
            ports = [80]
            [[service]]
            address = "fd83:80::1"
            ports = [80]
            [sessions]
            capacity = 2048
            half_open_max = 1024
            kernel_check = "500ms"
            [dht]
            bootstrap = ["10.83.9.1:7000"]
            records_max = 2048
            restart_within = "1m"
            [cluster]
            members = ["10.83.9.0/24"]
            insecure = true
            {}
            [announce]
            announcer = "frr"
            command = ["vtysh", "--vty_socket", "{directory}/server"]
            refresh = "1s"
            settle = "1s"
            state_directory = "{directory}/state"
            "#,
            checks.concat(),
            directory = self.directory.path().display(),
            prefix = self.server,
        )
    }

    fn ask(&self, request: &Request) -> Option<HealthReply> {
        serde_json::from_value(ask(&self.path("socket"), request).ok()?).unwrap()
    }

    fn health(&self) -> Option<HealthReply> {
        self.ask(&Request::ShowHealth {})
    }

    fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            if start.elapsed() > LONG {
                let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
                panic!("not so: {what}\n{:?}\n{log}", self.health());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the server is in this state, and its prefixes are heard like this.
    fn until_heard(&self, state: HealthState, heard: [char; 2]) {
        let is = || {
            self.health().is_some_and(|health| health.state == state)
                && [self.heard(0), self.heard(1)] == heard
        };
        self.until(&format!("{state}, heard {heard:?}"), is);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for node in ["server", "router"] {
            for daemon in ["bgpd", "zebra"] {
                self.end_frr_daemon(node, daemon);
            }
            ip(&format!("netns delete {}", self.namespace_of(node)));
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
    lab.until("the router has noticed", || lab.heard(0) == '-');
    lab.start_frr_daemon("server", "bgpd");
    lab.until_heard(Ready, ['+', '+']);

    // Drain, with a session that stays.
    let service: SocketAddr = SERVICES[0].parse().unwrap();
    let connect = || TcpStream::connect_timeout(&service, Duration::from_secs(1));
    let mut session = None;
    lab.until("a session is open", || {
        session = inside(&lab.router, connect).ok();
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
    lab.until("one session is left", || left() == 1);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(lab.health().unwrap().state, Draining, "for as long as the session lives");
    echo();
    drop(session);
    lab.until_heard(Drained, ['-', '-']);
    lab.until("none is left", || left() == 0);
    lab.ask(&Request::Undrain {}).unwrap();
    lab.until_heard(Ready, ['+', '+']);
    let timeout = "0s".parse().unwrap();
    lab.ask(&Request::Drain { timeout, mode, persist: true }).unwrap();
    lab.until_heard(Drained, ['-', '-']);

    // It is kept over a restart.
    lab.kill_daemon();
    lab.start_daemon();
    lab.until_heard(Drained, ['-', '-']);
    lab.ask(&Request::Undrain {}).unwrap();
    lab.until_heard(Ready, ['+', '+']);

    // A crash, and back in time: FRR is told nothing.
    lab.kill_daemon();
    let said = lab.withdraw("1m");
    lab.start_daemon();
    assert!(said().contains("a daemon runs: nothing is withdrawn"));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) || lab.health().is_none_or(|h| h.state != Ready)
    {
        assert!(start.elapsed() < LONG, "{:?}", lab.health());
        let text = lab.vtysh("server", "show running-config");
        assert_eq!(text.matches("route-map holdfast-announce\n").count(), 2, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
    lab.until_heard(Ready, ['+', '+']);

    // It stays away.
    lab.kill_daemon();
    let said = lab.withdraw("300ms")();
    assert!(said.contains("withdrawn: 192.168.83.1/32 fd83:80::1/128"), "{said}");
    let text = lab.vtysh("server", "show running-config");
    assert_eq!(text.matches("route-map holdfast-withdraw\n").count(), 2, "{text}");
    assert!(lab.withdraw("0s")().contains("nothing is announced"));
    lab.start_daemon();
    lab.until_heard(Ready, ['+', '+']);
    let stats = ask(&lab.path("socket"), &Request::ShowStats {}).unwrap();
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
    let name = namespace("self");
    assert!(ip(&format!("netns add {name}")));
    assert!(ip(&format!("-n {name} link set lo up")));
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    inside(&name, || std::fs::write(range, "40001 40001").unwrap());
    let target: SocketAddr = "127.0.0.1:40001".parse().unwrap();
    let check = Check {
        service: target,
        target,
        kind: CheckKind::Tcp,
        interval: LONG,
        timeout: LONG,
        rise: 1,
        fall: 1,
    };
    let outcome = inside(&name, || probe(&check, &AtomicBool::new(false)));
    assert!(ip(&format!("netns delete {name}")));
    assert_eq!(outcome.unwrap_err().to_string(), "connection refused");
}
