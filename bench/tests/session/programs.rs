//! The two programs under test as children, which end with their handles.

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

fn spawn(program: &str, args: &[String]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program");
    let stdout = child.stdout.take().expect("its output");
    (child, BufReader::new(stdout).lines())
}

fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = lines.next().expect("one more line").expect("a line");
    serde_json::from_str(&line).expect("JSON")
}

/// session-serve.
pub struct Serve {
    child: Child,
    pub address: SocketAddr,
}

impl Serve {
    pub fn start(ip: IpAddr, name: &str, more: &[&str]) -> Self {
        let listen = SocketAddr::new(ip, 0).to_string();
        let mut args = vec!["--listen".to_owned(), listen, "--name".to_owned(), name.to_owned()];
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let (child, mut lines) = spawn(env!("CARGO_BIN_EXE_session-serve"), &args);
        let listening = next(&mut lines);
        assert_eq!((&listening["event"], &listening["name"]), (&"listening".into(), &name.into()));
        let address = listening["addresses"][0].as_str().expect("an address");
        Self { child, address: address.parse().expect("an address") }
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // It may have ended already; then the test has said why.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// session-load, without the kinds that it makes by default, and quicker.
pub struct Load {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Load {
    pub fn start(target: SocketAddr, serve: Option<SocketAddr>, more: &str) -> Self {
        let mut args = format!("--target {target} {more}");
        for (option, value) in [
            ("--idle", 0),
            ("--request", 0),
            ("--bulk", 0),
            ("--ramp-ms", 20),
            ("--request-interval-ms", 5),
            ("--half-close-s", 1),
            ("--server-reset-ms", 200),
            ("--churn-pause-ms", 1),
        ] {
            if !more.split_whitespace().any(|word| word == option) {
                args += &format!(" {option} {value}");
            }
        }
        if let Some(serve) = serve {
            args += &format!(" --serve-target {serve}");
        }
        let args: Vec<_> = args.split_whitespace().map(str::to_owned).collect();
        let (mut child, lines) = spawn(env!("CARGO_BIN_EXE_session-load"), &args);
        let stdin = child.stdin.take().expect("its input");
        Self { child, stdin, lines }
    }

    pub fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").expect("it reads commands");
    }

    /// The next line with this event.
    pub fn until(&mut self, event: &str) -> Value {
        loop {
            let line = next(&mut self.lines);
            if line["event"] == event {
                return line;
            }
            assert_ne!(line["event"], "result", "no '{event}' before the end: {line}");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
