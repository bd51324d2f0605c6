//! A real daemon under a service manager that this test plays: what it is told, and that its
//! watchdog is fed while every thread turns and not while one hangs. The daemon's devices lead
//! nowhere. A thread is made to hang by a debugger's attach, which needs the right to trace.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::process::Signal;
use serde_json::Value;
use support::PATIENCE;
use support::daemon::{Daemon, Process};

/// How long the service manager waits for a sign of life.
const WATCHDOG: Duration = Duration::from_secs(2);

/// A daemon, and the service manager's end of the socket that it talks to.
struct Service {
    process: Process,
    daemon: Daemon,
    manager: UnixDatagram,
}

impl Service {
    /// Starts `holdfastd VERB`, as a server of its own.
    fn start(verb: &str, locator: &str, log_format: &str) -> Service {
        let daemon = Daemon::new(None);
        daemon.configure(&format!(
            r#"
            node.locator = "{locator}"
            node.log_format = "{log_format}"
            uplink.device = "net_null0"
            host_port.device = "net_null1"
            service = [{{ address = "192.168.79.1", ports = [80] }}]
            cluster.members = ["{locator}/32"]
            "#
        ));
        let notify = daemon.path("notify");
        let manager = UnixDatagram::bind(&notify).unwrap();
        let mut command = daemon.command(verb);
        let log = std::fs::metadata(daemon.path("log")).unwrap();
        command.env("NOTIFY_SOCKET", notify);
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        command.env("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()));
        Service { process: Process::spawn(&mut command), daemon, manager }
    }

    /// What the daemon says next; `None` when it says nothing for `timeout`.
    fn hear(&self, timeout: Duration) -> Option<String> {
        let mut datagram = [0; 4096];
        let timeout = timeout.max(Duration::from_millis(1));
        self.manager.set_read_timeout(Some(timeout)).unwrap();
        match self.manager.recv(&mut datagram) {
            Ok(length) => Some(String::from_utf8(datagram[..length].to_vec()).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Listens until the daemon says something that contains `wanted`; gives that.
    fn until(&self, wanted: &str) -> String {
        let start = Instant::now();
        let mut heard = Vec::new();
        while start.elapsed() < PATIENCE {
            match self.hear(Duration::from_secs(1)) {
                Some(said) if said.contains(wanted) => return said,
                said => heard.extend(said),
            }
        }
        panic!("never said {wanted:?}, but {heard:?}\n{}", self.daemon.log());
    }

    /// Listens until the daemon has said that `name` hangs, and then not fed its watchdog for twice
    /// the time between two feeds.
    fn until_unfed(&self, name: &str) {
        let hangs = format!("STATUS={name} hangs: it has not turned for ");
        let start = Instant::now();
        let mut heard = Vec::new();
        let mut since: Option<Instant> = None;
        while since.is_none_or(|since| since.elapsed() < WATCHDOG / 2) {
            let log = || self.daemon.log();
            assert!(start.elapsed() < PATIENCE, "{name} hangs, and {heard:?}\n{}", log());
            let Some(said) = self.hear(WATCHDOG / 8) else { continue };
            if said.contains(&hangs) {
                since = Some(Instant::now());
            } else if said.contains("WATCHDOG=1") {
                // On a busy machine it had hung for a moment before it was made to hang: it has
                // turned since, and that it hangs is still to be said.
                since = None;
            }
            heard.push(said);
        }
    }

    /// The thread of the daemon with this name.
    fn thread(&self, name: &str) -> Pid {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let named = |path: &std::path::PathBuf| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let path = tasks.map(|task| task.unwrap().path()).find(named).unwrap();
        Pid::from_raw(path.file_name().unwrap().to_str().unwrap().parse().unwrap())
    }
}

/// A thread of a daemon that is made to hang; it turns again when this is dropped. A daemon that is
/// killed does not end before that.
struct Hanging(Pid);

impl Hanging {
    fn make(thread: Pid) -> Hanging {
        ptrace::attach(thread).unwrap();
        let hanging = Hanging(thread);
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        hanging
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn the_watchdog_is_fed_while_every_thread_turns_and_not_while_one_hangs() {
    let mut service = Service::start("run", "127.79.0.1", "text");
    let ready = service.until("READY=1");
    assert!(ready.contains("STATUS=running: 0 local sessions, 0 redirects"), "{ready}");
    service.until("WATCHDOG=1");
    service.until("WATCHDOG=1");

    for (thread, name) in [("worker 0", "worker 0 on core 0"), ("dht", "the DHT core")] {
        let hanging = Hanging::make(service.thread(thread));
        service.until_unfed(name);
        drop(hanging);
        service.until("WATCHDOG=1");
        let log = service.daemon.log();
        for expected in [
            format!("\n<3>ERROR holdfast::watchdog: {name} hangs: "),
            format!("\n<6> INFO holdfast::watchdog: {name} turns again, after "),
        ] {
            assert!(log.contains(&expected), "{expected}: {log}");
        }
    }

    service.process.signal(Signal::TERM);
    service.until("STOPPING=1\nSTATUS=stopping");
    assert!(service.process.wait().success(), "{}", service.daemon.log());
}

#[test]
fn sighup_reloads_and_says_what_came_of_it() {
    let service = Service::start("run", "127.79.0.3", "json");
    service.until("READY=1");
    let hang_up = || {
        service.process.signal(Signal::HUP);
        let reloading = service.until("RELOADING=1");
        assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
        service.until("READY=1")
    };
    assert!(hang_up().contains("STATUS=configuration reloaded"));
    let path = service.daemon.path("c.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, text.replace("records_max = 2048", "records_max = 4096")).unwrap();
    let refused = hang_up();
    let expected = "STATUS=configuration not reloaded: dht.records_max needs a restart";
    assert!(refused.contains(expected), "{refused}");
    let log = service.daemon.log();
    // Behind each line's severity is its object.
    let object = |line: &str| serde_json::from_str::<Value>(line.get(line.find('{')?..)?).ok();
    let logged = |level: &str, message: &str| {
        log.lines().filter_map(object).any(|line| {
            line["level"] == level && line["message"].as_str().unwrap().starts_with(message)
        })
    };
    assert!(logged("INFO", "configuration reloaded: nothing differs"), "{log}");
    assert!(logged("ERROR", "configuration not reloaded: dht.records_max needs"), "{log}");
}

#[test]
fn a_daemon_that_does_not_start_is_never_ready() {
    // Only a TAP is held.
    let mut service = Service::start("hold", "127.79.0.2", "json");
    assert_eq!(service.process.wait().code(), Some(1));
    assert_eq!(service.hear(Duration::ZERO), None);
    let log = service.daemon.log();
    let line = log.strip_prefix("<3>").and_then(|line| serde_json::from_str::<Value>(line).ok());
    let line = line.unwrap_or_else(|| panic!("{log}"));
    assert_eq!(line["level"], "ERROR");
    assert_eq!(line["message"], "host_port.device is net_null1: only a TAP is held");
}
