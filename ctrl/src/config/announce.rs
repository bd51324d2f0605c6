//! `[announce]`: how the fabric is told that this server takes the services' traffic. Never tells
//! it.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::reader::Reader;
use super::{Config, HOUR, MINUTE, millis, seconds};

/// `[announce]`
#[derive(Debug, Clone, PartialEq)]
pub struct Announce {
    /// Who announces.
    pub announcer: Announcer,
    /// The prefixes as configured; when empty, each service's address is one. See
    /// [`Config::prefixes`].
    pub prefixes: Vec<IpNet>,
    /// How long the announcer may take.
    pub timeout: Duration,
    /// The announcer is told again after this time, as it may have been restarted.
    pub refresh: Duration,
    /// A server that has joined is announced after this time although not all of its sessions are
    /// published.
    pub publish_within: Duration,
    /// How long routing takes to follow: a drain is not over before.
    pub settle: Duration,
    /// Where it is kept what is announced, and that the server is drained; absolute.
    pub state_directory: PathBuf,
}

/// Who announces, on our word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announcer {
    /// Nobody: what routing announces is configured there.
    None,
    /// FRR's bgpd, through vtysh.
    Frr {
        /// vtysh and its arguments; never empty.
        command: Vec<String>,
        /// What stands behind `router bgp`; may be empty.
        bgp_instance: String,
    },
    /// ExaBGP, by lines.
    ExaBgp(Lines),
}

/// Where lines for ExaBGP go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lines {
    /// Into a named pipe that ExaBGP, or a process of its, reads.
    Pipe(PathBuf),
    /// To the standard input of a program, which is started for them; with its arguments, never
    /// empty.
    Command(Vec<String>),
}

impl Announcer {
    /// The word in the configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Announcer::None => Kind::None.name(),
            Announcer::Frr { .. } => Kind::Frr.name(),
            Announcer::ExaBgp(_) => Kind::ExaBgp.name(),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    None,
    Frr,
    ExaBgp,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::Frr => "frr",
            Kind::ExaBgp => "exabgp",
        }
    }
}

/// How the guide writes a text that is empty by default.
const EMPTY: &str = "\"\"";

/// `Some` of an absolute path, or of an empty one.
fn path_or_nothing(text: &str) -> Option<PathBuf> {
    (text.is_empty() || text.starts_with('/')).then(|| PathBuf::from(text))
}

pub(super) fn announce(reader: &mut Reader<'_>) -> Announce {
    let mut section = reader.section("announce");
    let kinds = [Kind::None, Kind::Frr, Kind::ExaBgp].map(|kind| (kind.name(), kind));
    let kind = section.choice("announcer", &kinds);
    let prefixes = section.texts(
        "prefixes",
        "a prefix around services' addresses, as in \"192.168.0.0/24\"",
        Some("[]"),
        |text| text.parse().ok().filter(|prefix: &IpNet| prefix.trunc() == *prefix),
    );
    let word = |text: &str| (!text.is_empty() && !text.contains('\0')).then(|| text.to_owned());
    let command = section.texts("command", "a program or an argument", Some("[]"), word);
    let pipe = section.text(
        "pipe",
        "the absolute path of a named pipe, or nothing",
        (EMPTY, PathBuf::new()),
        path_or_nothing,
    );
    let instance = |text: &str| {
        let sound = text.chars().all(|c| c.is_ascii_alphanumeric() || " ._:-".contains(c));
        sound.then(|| text.trim().to_owned())
    };
    let bgp_instance = section.text(
        "bgp_instance",
        "what follows \"router bgp\" in FRR's configuration, as in \"65001\" or \
         \"65001 vrf red\", or nothing",
        (EMPTY, String::new()),
        instance,
    );
    let timeout = section.duration("timeout", seconds(5), millis(100)..=seconds(MINUTE));
    let refresh = section.duration("refresh", seconds(30), seconds(1)..=seconds(HOUR));
    let publish_within =
        section.duration("publish_within", seconds(30), seconds(0)..=seconds(10 * MINUTE));
    let settle = section.duration("settle", seconds(3), seconds(0)..=seconds(5 * MINUTE));
    let directory = "/var/lib/holdfast";
    let state_directory = section.text(
        "state_directory",
        "an absolute path",
        (directory, PathBuf::from(directory)),
        |text| text.starts_with('/').then(|| PathBuf::from(text)),
    );
    section.finish();
    let announcer = announcer(reader, kind, command, pipe, bgp_instance);
    Announce { announcer, prefixes, timeout, refresh, publish_within, settle, state_directory }
}

fn announcer(
    reader: &mut Reader<'_>,
    kind: Kind,
    command: Vec<String>,
    pipe: PathBuf,
    bgp_instance: String,
) -> Announcer {
    let (has_command, has_pipe) = (!command.is_empty(), !pipe.as_os_str().is_empty());
    let mut only_with = |key: &str, is_set: bool, kinds: &[Kind]| {
        if is_set && !kinds.contains(&kind) && reader.sound(&["announce.announcer"]) {
            let names: Vec<_> = kinds.iter().map(|kind| format!("\"{}\"", kind.name())).collect();
            let right =
                format_args!("expected only with announce.announcer {}", names.join(" or "));
            reader.refuse(key, right);
        }
    };
    only_with("announce.command", has_command, &[Kind::Frr, Kind::ExaBgp]);
    only_with("announce.pipe", has_pipe, &[Kind::ExaBgp]);
    only_with("announce.bgp_instance", !bgp_instance.is_empty(), &[Kind::Frr]);
    match kind {
        Kind::None => Announcer::None,
        Kind::Frr => {
            let command = if has_command { command } else { vec!["vtysh".to_owned()] };
            Announcer::Frr { command, bgp_instance }
        }
        Kind::ExaBgp => {
            let keys = ["announce.command", "announce.pipe"];
            if has_command == has_pipe && reader.sound(&keys) {
                let right = "expected announce.pipe or announce.command, one of them, with \
                             announce.announcer \"exabgp\"";
                reader.refuse("announce.announcer", right);
            }
            let pipe = Lines::Pipe(pipe);
            Announcer::ExaBgp(if has_command { Lines::Command(command) } else { pipe })
        }
    }
}

pub(super) fn check_announce(reader: &mut Reader<'_>, config: &Config) {
    let prefixes = &config.announce.prefixes;
    let keys = ["announce.prefixes", "service", "node.locator"];
    if prefixes.is_empty() || !reader.sound(&keys) {
        return;
    }
    for (index, prefix) in prefixes.iter().enumerate() {
        let key = format!("announce.prefixes[{index}]");
        let before = prefixes[..index].iter().find(|other| overlap(prefix, other));
        if let Some(other) = before {
            reader.refuse(&key, format_args!("expected no prefix that overlaps with {other}"));
        }
        if prefix.contains(&config.node.locator) {
            let right = "expected a prefix without node.locator, which stays announced";
            reader.refuse(&key, right);
        }
        if !config.services.iter().any(|service| prefix.contains(&service.address)) {
            reader.refuse(&key, "expected the address of a [[service]] in it");
        }
    }
    for service in &config.services {
        if !prefixes.iter().any(|prefix| prefix.contains(&service.address)) {
            let right = format_args!("expected a prefix around service {} too", service.address);
            reader.refuse("announce.prefixes", right);
        }
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

impl Config {
    /// What is announced: the prefixes of `announce.prefixes`, or else each service's address as
    /// a prefix of its own. Each service's address lies in exactly one.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        let addresses = self.services.iter().map(|service| IpNet::from(service.address));
        let configured = &self.announce.prefixes;
        if configured.is_empty() { addresses.collect() } else { configured.clone() }
    }
}
