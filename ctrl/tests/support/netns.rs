//! Network namespaces for tests that run a real daemon.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Whether there can be namespaces; says so when not.
pub fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        // Not by a macro, whose words the test harness keeps to itself.
        let skipped = format!("********** SKIPPED: {test} needs root for namespaces **********\n");
        std::io::stderr().write_all(skipped.as_bytes()).unwrap();
    }
    is_root
}

/// Runs ip(8); whether it was done.
pub fn ip(arguments: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace()).stderr(Stdio::null());
    command.status().unwrap().success()
}

/// Runs `what` in a namespace; sockets that it makes stay there.
pub fn inside<T: Send>(namespace: &str, what: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        let run = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            what()
        };
        scope.spawn(run).join().unwrap()
    })
}

/// Runs a program in a namespace, which must succeed.
pub fn command_in(namespace: &str, program: &str, arguments: &str) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]).args(arguments.split_whitespace());
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.unwrap().success(), "{program} {arguments}");
}
