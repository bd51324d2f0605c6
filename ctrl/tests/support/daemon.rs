//! A real holdfastd, with a directory and, where it is to have one, a network namespace of its own.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use holdfast::client::ask;
use holdfast::protocol::Request;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;

use super::namespace::Namespace;
use super::{PATIENCE, unique};

/// A process; killed when dropped.
pub struct Process(Child);

impl Process {
    /// Starts it.
    pub fn spawn(command: &mut Command) -> Process {
        Process(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Its number.
    pub fn id(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.id(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{:?} does not end", self.0);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.id()), options).unwrap().is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon: its files, and its process while there is one; all gone when dropped. Its files are
/// `c.toml`, `socket` for its control, `log`, and what it is configured to make.
pub struct Daemon {
    process: Option<Process>,
    directory: tempfile::TempDir,
    /// For DPDK's files.
    prefix: String,
    namespace: Option<String>,
}

impl Daemon {
    /// One that is not started yet, in a namespace or in this test's own.
    pub fn new(namespace: Option<&Namespace>) -> Daemon {
        Daemon {
            process: None,
            directory: tempfile::tempdir().unwrap(),
            prefix: unique("daemon"),
            namespace: namespace.map(|namespace| namespace.name().to_owned()),
        }
    }

    /// One that runs and answers; as [`Daemon::new`] and [`Daemon::configure`].
    pub fn start(namespace: Option<&Namespace>, particular: &str) -> Daemon {
        let mut daemon = Daemon::new(namespace);
        daemon.configure(particular);
        daemon.run();
        daemon
    }

    /// Writes its configuration: a small daemon that needs no huge pages, and what is
    /// `particular`. Keys have their section's name before them, as in `dht.listen`.
    pub fn configure(&self, particular: &str) {
        let (socket, prefix) = (self.socket(), &self.prefix);
        let text = format!(
            r#"
            node.control_socket = {socket:?}
            dpdk.eal_args = ["--no-telemetry"]
            dpdk.huge_pages = "off"
            dpdk.file_prefix = "{prefix}"
            sessions.capacity = 2048
            sessions.half_open_max = 1024
            dht.records_max = 2048
            cluster.insecure = true
            {particular}
            "#
        );
        std::fs::write(self.path("c.toml"), text).unwrap();
    }

    /// A file of its own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// `holdfastd VERB` with its configuration, not yet run. What it says goes into the log.
    pub fn command(&self, verb: &str) -> Command {
        let program = env!("CARGO_BIN_EXE_holdfastd");
        let mut command = match &self.namespace {
            None => Command::new(program),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, program]);
                command
            }
        };
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        command.arg(verb).arg(self.path("c.toml")).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log);
        command
    }

    /// Starts its process, and waits until it answers.
    pub fn run(&mut self) {
        self.process = Some(Process::spawn(&mut self.command("run")));
        self.until("it answers", || ask(&self.socket(), &Request::ShowVersion {}).is_ok());
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap().signal(signal);
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.as_mut().unwrap().wait()
    }

    /// SIGKILL: it cannot say goodbye.
    pub fn kill(&mut self) {
        drop(self.process.take().unwrap());
    }

    /// `holdfastctl` that asks it, not yet run.
    pub fn holdfastctl(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
        command.arg("--socket").arg(self.socket()).args(arguments.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Its answer, which must be one.
    #[track_caller]
    pub fn ask(&self, request: &Request) -> Value {
        match ask(&self.socket(), request) {
            Ok(answer) => answer,
            Err(error) => panic!("{error}\n{}", self.log()),
        }
    }

    /// What it counts.
    pub fn stats(&self) -> Value {
        self.ask(&Request::ShowStats {})
    }

    /// How many sessions it has published.
    pub fn published(&self) -> u64 {
        self.stats()["dht"]["gauges"]["published"].as_u64().unwrap()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until something is so; fails with the daemon's log when that takes too long, or the
    /// daemon has ended by itself.
    #[track_caller]
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_so() {
            let has_ended = self.process.as_ref().is_some_and(Process::has_ended);
            if has_ended || start.elapsed() > PATIENCE {
                let why = if has_ended { "it has ended" } else { "it takes too long" };
                let health = ask(&self.socket(), &Request::ShowHealth {});
                panic!("not so: {what}: {why}\n{health:?}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
