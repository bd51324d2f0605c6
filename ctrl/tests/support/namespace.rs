//! Network namespaces for tests that run a real daemon, and the links between them.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::unique;

/// A network namespace; gone when dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one for this role in a lab. Its loopback is up, and packets may come by another
    /// interface than answers go by.
    pub fn new(role: &str) -> Namespace {
        let namespace = Namespace { name: unique(role) };
        ip(&format!("netns add {}", namespace.name));
        namespace.ip("link set lo up");
        for interface in ["all", "default"] {
            namespace.sysctl(&format!("net.ipv4.conf.{interface}.rp_filter=0"));
        }
        namespace
    }

    /// What ip(8) knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs ip(8) on it, which must succeed.
    pub fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    /// Runs ip(8) on it; whether it was done.
    pub fn try_ip(&self, arguments: &str) -> bool {
        run_ip(&format!("-n {} {arguments}", self.name)).status.success()
    }

    /// Gives an interface these addresses.
    pub fn add_addresses<const N: usize>(&self, interface: &str, addresses: [&str; N]) {
        for address in addresses {
            self.ip(&format!("address add {address} dev {interface}"));
        }
    }

    /// A program that is to run in it: the process itself, no shell around it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Sets a variable of its kernel.
    pub fn sysctl(&self, setting: &str) {
        succeed(self.command("sysctl").args(["-qw", setting]));
    }

    /// Runs `what` in it; sockets that it makes stay there.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let run = move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                what()
            };
            scope.spawn(run).join().unwrap()
        })
    }

    /// Makes an interface a daemon's uplink, on which the kernel does not speak.
    pub fn set_up_uplink(&self, interface: &str) {
        self.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6=1"));
        self.ip(&format!("link set {interface} promisc on arp off up"));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run_ip(&format!("netns delete {}", self.name));
    }
}

/// Joins an interface of one namespace to one of another, by a veth pair. The kernels leave it no
/// checksums and no segments to make: a daemon would get them unmade.
pub fn veth(ends: [(&Namespace, &str); 2]) {
    let [(one, interface), (other, peer)] = ends;
    let link = format!("link add {interface} netns {} type veth peer {peer}", one.name);
    ip(&format!("{link} netns {}", other.name));
    for (namespace, interface) in ends {
        let off = format!("-K {interface} tx off rx off sg off tso off gso off gro off");
        succeed(namespace.command("ethtool").args(off.split_whitespace()));
    }
}

/// Runs ip(8), which must succeed.
fn ip(arguments: &str) {
    let output = run_ip(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

fn run_ip(arguments: &str) -> Output {
    Command::new("ip").args(arguments.split_whitespace()).output().unwrap()
}

/// Runs a command, which must succeed.
pub fn succeed(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
}
