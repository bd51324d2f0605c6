//! The configuration of a server: TOML, strict, with every value checked against the others.
//! Never guesses: an unknown key or a value out of range is an error, and all errors are reported
//! together. `docs/guide/configuration.md` documents every key.

mod announce;
mod changes;
mod check;
mod device;
mod insight;
mod key_file;
mod reader;
mod shown;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_net::headers::GUE_PORT;
use humantime_serde::re::humantime::format_duration;
use ipnet::IpNet;

pub use announce::{Announce, Announcer, Lines};
pub use changes::{RELOADED, is_reloaded};
pub use check::{CHECKS_MAX, Check, CheckKind};
pub use device::{Device, DeviceError, MacAddress, MacAddressError};
pub use insight::{Incidents, Metrics};
pub use key_file::{ClusterKey, ClusterKeys, KeyFileError, Secret};
pub use reader::{ConfigError, ConfigErrors};
use reader::{Known, Reader, Section, not_utf8};

/// Most pairs of service address and port in all: workers look a packet's up in one short table.
pub const SERVICES_MAX: usize = 64;
/// Most workers.
pub const WORKERS_MAX: usize = 64;
/// Most addresses in `host_port.next_hops`.
pub const NEXT_HOPS_MAX: usize = 8;

/// Bytes that an mbuf takes beside its frame: its metadata, headroom and share of the pool's rings.
const MBUF_BYTES: u64 = 384;
/// Mbufs that are neither in a descriptor ring nor parked: bursts and the pool's caches (512), and
/// fragments that wait for the first of their segment (256).
const MBUFS_UNDER_WAY: u64 = 512 + 256;
/// `sockaddr_un` holds a path of this many bytes and a zero.
const SOCKET_PATH_MAX: usize = 107;
/// A lease is at least this many times as long as it takes to find a server dead.
const LEASE_PER_DEAD_AFTER: u32 = 5;
/// So many checks fit the time in which one must find what the kernel holds: a reset session's
/// linger, of which the first quarter does not count, and the second half of an idle one's time.
const CHECKS_PER_LINGER: u32 = 2;
const CHECKS_PER_IDLE: u32 = 4;
/// Longest pause between checks that find all ends of sessions.
const CHECK_INBOUND_MAX: Duration = seconds(10);
const KEY_FILE: &str = "the path of a file with the cluster's key, the same on every member: \
     `(umask 027; openssl rand -hex 32 > /etc/holdfast/cluster.key)` makes one. A cluster that \
     does without says `insecure = true`";

/// EAL arguments which holdfast sets from keys of their own.
const OWN_EAL_ARGS: &[(&str, &str)] = &[
    ("--file-prefix", "dpdk.file_prefix"),
    ("--no-huge", "dpdk.huge_pages"),
    ("-m", "dpdk.memory_mib"),
    ("--socket-mem", "dpdk.memory_mib"),
    ("-l", "workers.cores"),
    ("-c", "workers.cores"),
    ("--lcores", "workers.cores"),
    ("--vdev", "uplink.device and host_port.device"),
];

/// Everything that a server is told before it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// This server.
    pub node: Node,
    /// DPDK's environment abstraction layer.
    pub dpdk: Dpdk,
    /// The port to the network.
    pub uplink: Uplink,
    /// The port to this server's kernel.
    pub host_port: HostPort,
    /// The worker threads.
    pub workers: Workers,
    /// The anycast services; no two with the same address, never empty.
    pub services: Vec<Service>,
    /// The session table.
    pub sessions: Sessions,
    /// Packets that wait for a lookup.
    pub parking: Parking,
    /// How many lookups are let through.
    pub admission: Admission,
    /// How strays travel to their owner.
    pub tunnel: Tunnel,
    /// The DHT core.
    pub dht: Dht,
    /// Who belongs to the cluster.
    pub cluster: Cluster,
    /// When a burst of strays is an incident, and how many are kept.
    pub incidents: Incidents,
    /// Where metrics can be read.
    pub metrics: Metrics,
    /// How the services are checked; none means that they are up.
    pub checks: Vec<Check>,
    /// How the services' prefixes are announced.
    pub announce: Announce,
    /// What works but is probably not meant; one sentence each.
    pub warnings: Vec<String>,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The server's unique address, which other servers tunnel to.
    pub locator: IpAddr,
    /// Path of the control socket; absolute.
    pub control_socket: PathBuf,
    /// Mode of the control socket's file.
    pub control_mode: u32,
    /// Group that the control socket's file is given to; `None` leaves it to the daemon's.
    pub control_group: Option<Group>,
    /// Least severity that is logged.
    pub log: LogLevel,
    /// How a line of the log looks.
    pub log_format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object.
    Json,
}

impl LogFormat {
    /// The word that the configuration uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// A group of this machine's users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name, or its number if that is what it was called by.
    pub name: String,
    /// Its number.
    pub id: u32,
}

/// Severity of log messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something was lost or cannot go on.
    Error,
    /// Something an operator should look at.
    Warn,
    /// The course of things: start, stop, members that come and go.
    Info,
    /// For finding faults.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word that the configuration uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// `[dpdk]`
#[derive(Debug, Clone, PartialEq)]
pub struct Dpdk {
    /// Appended to the EAL's arguments as they are.
    pub eal_args: Vec<String>,
    /// Whether huge pages are used.
    pub huge_pages: HugePages,
    /// Memory of the EAL without huge pages, and at most with them; in MiB.
    pub memory_mib: u32,
    /// Tells the DPDK processes of a machine apart.
    pub file_prefix: String,
    /// Packet buffers per worker.
    pub mbufs_per_worker: u32,
}

/// Use of huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePages {
    /// When enough of them are free.
    Auto,
    /// Always; without them the daemon does not start.
    On,
    /// Never.
    Off,
}

/// `[uplink]`
#[derive(Debug, Clone, PartialEq)]
pub struct Uplink {
    /// The device.
    pub device: Device,
    /// Descriptors of each receive queue; a power of two.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue; a power of two.
    pub tx_descriptors: u16,
    /// Whether frames for other stations are received: the kernel's addresses behind the host
    /// port may differ from the device's.
    pub promiscuous: bool,
    /// Bytes of the largest IP packet, of a device that is no interface of the kernel.
    pub mtu: u16,
    /// Whether the device does what it offers of tags and checksums.
    pub offloads: bool,
    /// The VLAN that the physical function has put this virtual one in.
    pub port_vlan: Option<u16>,
}

impl Uplink {
    /// The MTU to tell `device`, which has none of its own; nothing when it is what DPDK takes for
    /// granted, as not every virtual device can be told.
    #[must_use]
    pub fn mtu_for(&self, device: &Device) -> Option<u16> {
        match device {
            Device::Pci(_) => Some(self.mtu),
            Device::Vdev { .. } | Device::Vhost { .. } => {
                Some(self.mtu).filter(|mtu| *mtu != MTU_DEFAULT)
            }
            // The driver takes frames of 1,500 bytes and no others.
            Device::Tap { .. } | Device::Interface(_) | Device::Switch => None,
        }
    }

    /// Bytes of frame that an mbuf holds, so that each frame is in one: a multiple of 1,024, as some
    /// NICs count no finer.
    #[must_use]
    pub fn mbuf_room(&self) -> u16 {
        (self.mtu + FRAME_OVERHEAD).next_multiple_of(1024).max(2048)
    }
}

/// The MTU of Ethernet.
const MTU_DEFAULT: u16 = 1500;
/// What a frame is longer than its IP packet, at most: Ethernet header, two tags, frame check
/// sequence.
const FRAME_OVERHEAD: u16 = 14 + 8 + 4;
/// Largest MTU with an interface of the kernel: AF_XDP wants mbufs to fit a page.
const MTU_XDP_MAX: u16 = 2048 - FRAME_OVERHEAD;

/// `[host_port]`
#[derive(Debug, Clone, PartialEq)]
pub struct HostPort {
    /// The device.
    pub device: Device,
    /// Address of a TAP, or of the kernel's function behind the NIC's switch; `None` lets the driver
    /// choose.
    pub mac: Option<MacAddress>,
    /// Addresses on the uplink's link that the appliance answers for; empty but with
    /// [`Device::Switch`].
    pub next_hops: Vec<IpAddr>,
    /// Whether the kernel sends by another interface, so that its answers do not come by.
    pub inbound_only: bool,
}

/// `[workers]`
#[derive(Debug, Clone, PartialEq)]
pub struct Workers {
    /// The CPU of each worker; no two alike, never empty.
    pub cores: Vec<u16>,
    /// What a worker does when there is nothing to do.
    pub idle: Idle,
}

/// What a worker does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Spins, then pauses, then sleeps for short times.
    Adaptive,
    /// Always polls: the least delay, a whole CPU.
    Busy,
}

/// `[[service]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// The anycast address.
    pub address: IpAddr,
    /// The TCP ports; no two alike, never empty, never 0.
    pub ports: Vec<u16>,
}

/// `[sessions]`
#[derive(Debug, Clone, PartialEq)]
pub struct Sessions {
    /// Entries of the table, local sessions and redirects together.
    pub capacity: usize,
    /// Half-open sessions above which publishing waits for the handshake's end (R3).
    pub half_open_max: usize,
    /// An established session without packets is forgotten after this time.
    pub established_idle: Duration,
    /// A redirect without packets is forgotten after this time.
    pub redirect_idle: Duration,
    /// A session whose handshake does not end is forgotten after this time.
    pub half_open_timeout: Duration,
    /// A closed session is kept for this time (R8).
    pub linger: Duration,
    /// Pause between two comparisons of the table with the kernel's sockets (R7, R8).
    pub kernel_check: Duration,
}

/// `[parking]`
#[derive(Debug, Clone, PartialEq)]
pub struct Parking {
    /// Most parked packets per worker.
    pub packets_max: usize,
    /// Most parked packets per flow.
    pub packets_per_flow_max: usize,
    /// A packet is dropped when it has waited for this long.
    pub timeout: Duration,
    /// Pause before "nobody owns it" is asked again (R5).
    pub grace: Duration,
}

/// `[admission]`
#[derive(Debug, Clone, PartialEq)]
pub struct Admission {
    /// Lookups per second and worker in the long run.
    pub lookups_per_second: u32,
    /// Lookups per worker at once.
    pub burst: u32,
    /// Lookups per second, worker and source prefix in the long run.
    pub per_source_per_second: u32,
    /// Lookups per worker and source prefix at once.
    pub per_source_burst: u32,
    /// How long "nobody owns it" is remembered.
    pub negative_ttl: Duration,
}

/// `[tunnel]`
#[derive(Debug, Clone, PartialEq)]
pub struct Tunnel {
    /// Form of the outer header.
    pub encapsulation: Encapsulation,
    /// UDP destination port.
    pub port: u16,
}

/// Form of the tunnel's outer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulation {
    /// Generic UDP encapsulation.
    Gue,
    /// IP in IP.
    Ipip,
    /// No outer header: the destination is rewritten.
    Rewrite,
}

const ENCAPSULATIONS: &[(&str, Encapsulation)] = &[
    ("gue", Encapsulation::Gue),
    ("ipip", Encapsulation::Ipip),
    ("rewrite", Encapsulation::Rewrite),
];

impl Encapsulation {
    /// The name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        let of = ENCAPSULATIONS.iter().find(|(_, encapsulation)| *encapsulation == self);
        of.map_or("", |(name, _)| name)
    }
}

/// `[dht]`
#[derive(Debug, Clone, PartialEq)]
pub struct Dht {
    /// The core's UDP socket, on the locator.
    pub listen: SocketAddr,
    /// Nodes that a new one asks first. When this server is among them it may stand alone if none
    /// of the others answers. Empty when there are no others.
    pub bootstrap: Vec<SocketAddr>,
    /// Nodes per k-bucket.
    pub k: usize,
    /// Bits of the id that a bucket's level stands for.
    pub bucket_bits: u8,
    /// Queries in flight per lookup.
    pub alpha: usize,
    /// Servers that hold each record.
    pub replicas: usize,
    /// Nodes closest to a record among which its replicas are drawn.
    pub spread: usize,
    /// The records of a server are kept for this long after it was last known to live.
    pub lease: Duration,
    /// The same for a server that is not in the routing table, from its last STORE.
    pub record_ttl: Duration,
    /// Pause between two probes of other servers.
    pub probe_interval: Duration,
    /// A suspect that gives no sign of life for this long is dead.
    pub dead_after: Duration,
    /// The sessions of a dead server are its own for this long since its last sign of life.
    pub restart_within: Duration,
    /// A lookup without enough answers ends after this time.
    pub lookup_timeout: Duration,
    /// Most records that this server holds for the cluster.
    pub records_max: usize,
}

/// `[cluster]`
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Prefixes of the members' locators, of the locator's family; never empty.
    pub members: Vec<IpNet>,
    /// The file that they are in.
    pub key_file: Option<PathBuf>,
    /// The cluster's keys; none if it is insecure and says so.
    pub keys: Option<ClusterKeys>,
}

impl Cluster {
    /// Whether `locator` may be a member's.
    #[must_use]
    pub fn is_member(&self, locator: IpAddr) -> bool {
        self.members.iter().any(|prefix| prefix.contains(&locator))
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is no valid configuration.
    #[error(transparent)]
    Invalid(#[from] ConfigErrors),
}

impl Config {
    /// Reads and checks the configuration in `path`.
    ///
    /// # Errors
    /// When the file cannot be read, or all that is wrong in it.
    pub fn load(path: &Path) -> Result<Config, LoadError> {
        let bytes = std::fs::read(path)
            .map_err(|error| LoadError::Unreadable { path: path.to_owned(), error })?;
        let file = path.display().to_string();
        let text = String::from_utf8(bytes).map_err(|error| {
            ConfigErrors(vec![not_utf8(&file, error.as_bytes(), error.utf8_error())])
        })?;
        Ok(Config::parse(&file, &text)?)
    }

    /// Checks the configuration in `text`; errors call it `file`. The cluster's key file, when
    /// the text names one, is read.
    ///
    /// # Errors
    /// All that is wrong, in the order of the text.
    pub fn parse(file: &str, text: &str) -> Result<Config, ConfigErrors> {
        Ok(read(file, text)?.0)
    }

    /// Every pair of service address and port; at most [`SERVICES_MAX`].
    pub fn service_sockets(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.services.iter().flat_map(|service| {
            let sockets = service.ports.iter();
            sockets.map(|port| SocketAddr::new(service.address, *port))
        })
    }

    /// What a person wants to see confirmed, a line each.
    #[must_use]
    pub fn summary(&self) -> String {
        let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(" ");
        let services = list(&mut self.service_sockets().map(|socket| socket.to_string()));
        let members = list(&mut self.cluster.members.iter().map(ToString::to_string));
        let cores = list(&mut self.workers.cores.iter().map(ToString::to_string));
        let bootstrap = list(&mut others(&self.dht).map(ToString::to_string));
        let bootstrap = if bootstrap.is_empty() { "nobody".to_owned() } else { bootstrap };
        let keys = match &self.cluster.keys {
            None => "none: insecure".to_owned(),
            Some(ClusterKeys { sealing, opening: None, .. }) => format!("{} seals", sealing.id),
            Some(ClusterKeys { sealing, opening: Some(opening), .. }) => {
                format!("{} seals, {} opens as well", sealing.id, opening.id)
            }
        };
        let tunnel = match self.tunnel.encapsulation {
            Encapsulation::Gue => format!("gue, UDP port {}", self.tunnel.port),
            other => other.name().to_owned(),
        };
        let checks =
            list(&mut self.checks.iter().map(|c| format!("{} {}", c.kind.name(), c.target)));
        let checks = if checks.is_empty() { "none".to_owned() } else { checks };
        let announcer = self.announce.announcer.name();
        let prefixes = list(&mut self.prefixes().iter().map(ToString::to_string));
        let HostPort { device: host_port, mac, next_hops, inbound_only } = &self.host_port;
        let host_port = match (host_port, mac) {
            (Device::Switch, Some(mac)) => {
                let next_hops = list(&mut next_hops.iter().map(ToString::to_string));
                format!("{mac} behind the NIC's switch, next hops {next_hops}")
            }
            _ => host_port.to_string(),
        };
        let inbound_only = if *inbound_only { ", inbound only" } else { "" };
        format!(
            "  locator    {}\n  uplink     {}\n  host port  {}{inbound_only}\n  workers    {} on cores {cores}\n  \
             services   {services}\n  sessions   {}\n  tunnel     {tunnel}\n  \
             dht        {}, joins {bootstrap}, {} replicas among {}, lease {}\n  members    {members}\n  \
             keys       {keys}\n  checks     {checks}\n  announcer  {announcer}, {prefixes}\n  \
             control    {}\n",
            self.node.locator,
            self.uplink.device,
            host_port,
            self.workers.cores.len(),
            self.sessions.capacity,
            self.dht.listen,
            self.dht.replicas,
            self.dht.spread,
            format_duration(self.dht.lease),
            self.node.control_socket.display(),
        )
    }
}

/// The nodes to ask first, without this server itself.
fn others(dht: &Dht) -> impl Iterator<Item = &SocketAddr> {
    dht.bootstrap.iter().filter(|address| **address != dht.listen)
}

/// The configuration, and the keys that were asked for on the way.
fn read(file: &str, text: &str) -> Result<(Config, Vec<Known>), ConfigErrors> {
    let mut reader = Reader::new(file, text);
    if !reader.is_toml() {
        reader.finish()?;
        reader = Reader::new(file, "");
    }
    let mut config = sections(&mut reader);
    check(&mut reader, &config);
    config.warnings = warnings(&config);
    if others(&config.dht).next().is_none() {
        // There is nobody to ask: the server need not wait for answers before it stands alone.
        config.dht.bootstrap.clear();
    }
    Ok((config, reader.finish()?))
}

fn sections(reader: &mut Reader<'_>) -> Config {
    let node = node(reader);
    let listen = SocketAddr::new(node.locator, 7000);
    let (dpdk, host_port) = (dpdk(reader), host_port(reader));
    let uplink = uplink(reader, host_port.device != Device::Switch);
    Config {
        dpdk,
        uplink,
        workers: workers(reader),
        services: services(reader),
        sessions: sessions(reader, host_port.inbound_only),
        host_port,
        parking: parking(reader),
        admission: admission(reader),
        tunnel: tunnel(reader),
        dht: dht(reader, listen),
        cluster: cluster(reader),
        incidents: insight::incidents(reader),
        metrics: insight::metrics(reader),
        checks: check::checks(reader),
        announce: announce::announce(reader),
        warnings: Vec::new(),
        node,
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// An address that one machine can have; `None` for others.
fn unicast(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let one = match address {
        IpAddr::V4(v4) => !v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_none() && !v6.is_unicast_link_local(),
    };
    (one && !address.is_unspecified() && !address.is_multicast()).then_some(address)
}

const UNICAST: &str = "the unicast address of one server, IPv4 or IPv6, as in \"10.0.0.1\"";

/// The group of this name or number.
fn group(text: &str) -> Option<Group> {
    let name = text.to_owned();
    if let Ok(id) = text.parse() {
        return Some(Group { name, id });
    }
    let group = nix::unistd::Group::from_name(text).ok().flatten()?;
    Some(Group { name, id: group.gid.as_raw() })
}

fn node(reader: &mut Reader<'_>) -> Node {
    let mut section = reader.section("node");
    let socket = "/run/holdfast/holdfastd.sock";
    let node = Node {
        locator: section.required("locator", UNICAST, IpAddr::from([0; 4]), unicast),
        control_socket: section.text(
            "control_socket",
            "an absolute path of at most 107 bytes",
            (socket, PathBuf::from(socket)),
            |text| {
                let sound = text.starts_with('/') && text.len() <= SOCKET_PATH_MAX;
                sound.then(|| PathBuf::from(text))
            },
        ),
        control_mode: section.text(
            "control_mode",
            "an octal mode in which the owner reads and writes and nobody executes, as in \"0660\"",
            ("0660", 0o660),
            |text| {
                let mode = u32::from_str_radix(text, 8).ok()?;
                (mode & !0o066 == 0o600).then_some(mode)
            },
        ),
        control_group: section.optional(
            "control_group",
            "a group of this machine, by its name or number; `groupadd --system holdfast` makes one",
            group,
        ),
        log: section.choice(
            "log",
            &[LogLevel::Info, LogLevel::Error, LogLevel::Warn, LogLevel::Debug, LogLevel::Trace]
                .map(|level| (level.as_str(), level)),
        ),
        log_format: section
            .choice("log_format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
    };
    section.finish();
    node
}

fn dpdk(reader: &mut Reader<'_>) -> Dpdk {
    let mut section = reader.section("dpdk");
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let prefix = |text: &str| {
        let sound = (1..=64).contains(&text.len()) && text.chars().all(word);
        (sound && !text.starts_with('.')).then(|| text.to_owned())
    };
    let dpdk = Dpdk {
        eal_args: section.texts("eal_args", "an argument of the EAL", Some("[]"), |text| {
            (!text.is_empty()).then(|| text.to_owned())
        }),
        huge_pages: section.choice(
            "huge_pages",
            &[("auto", HugePages::Auto), ("on", HugePages::On), ("off", HugePages::Off)],
        ),
        memory_mib: section.number("memory_mib", 256, 64..=1_048_576),
        file_prefix: section.text(
            "file_prefix",
            "1 to 64 letters, digits, '_', '-' or '.'",
            ("holdfast", "holdfast".to_owned()),
            prefix,
        ),
        mbufs_per_worker: section.number("mbufs_per_worker", 8192, 1024..=4_194_304),
    };
    section.finish();
    dpdk
}

const DEVICE: &str = "a PCI address (\"0000:3b:02.0\"), a DPDK virtual device \
     (\"net_ring0,ARGUMENTS\"), a TAP (\"tap:NAME\") or a network interface (\"eth1\")";
const HOST_DEVICE: &str = "a PCI address (\"0000:3b:02.0\"), a DPDK virtual device \
     (\"net_ring0,ARGUMENTS\"), a TAP (\"tap:NAME\"), vhost-net (\"vhost:NAME\"), a network interface (\"eth1\") or \"switch\"";

fn device(text: &str) -> Option<Device> {
    text.parse().ok()
}

/// An address of one station on a link.
fn on_link(text: &str) -> Option<IpAddr> {
    match text.parse() {
        Ok(IpAddr::V6(address)) if address.is_unicast_link_local() => Some(address.into()),
        _ => unicast(text),
    }
}

fn uplink(reader: &mut Reader<'_>, promiscuous: bool) -> Uplink {
    let mut section = reader.section("uplink");
    let none = Device::Interface(String::new());
    let uplink = Uplink {
        device: section.required("device", DEVICE, none, |text| {
            device(text).filter(|device| !matches!(device, Device::Switch | Device::Vhost { .. }))
        }),
        rx_descriptors: section.number("rx_descriptors", 1024, 64..=32768),
        tx_descriptors: section.number("tx_descriptors", 1024, 64..=32768),
        promiscuous: section.flag("promiscuous", promiscuous),
        mtu: section.number("mtu", MTU_DEFAULT, 1280..=9702),
        offloads: section.flag("offloads", true),
        port_vlan: Some(section.number("port_vlan", 0, 0..=4094)).filter(|vlan| *vlan != 0),
    };
    section.finish();
    uplink
}

fn host_port(reader: &mut Reader<'_>) -> HostPort {
    let mut section = reader.section("host_port");
    let name = "host0".to_owned();
    let device = section.text("device", HOST_DEVICE, ("tap:host0", Device::Tap { name }), device);
    let is_switch = device == Device::Switch;
    let host_port = HostPort {
        device,
        mac: section.optional(
            "mac",
            "the Ethernet address of one station, as in \"02:00:00:00:00:01\"",
            |text| text.parse().ok(),
        ),
        next_hops: section.texts(
            "next_hops",
            "an address of this server's on the uplink's link, as in \"10.1.0.11\"",
            Some("[]"),
            on_link,
        ),
        inbound_only: section.flag("inbound_only", is_switch),
    };
    section.finish();
    host_port
}

fn workers(reader: &mut Reader<'_>) -> Workers {
    let mut section = reader.section("workers");
    let workers = Workers {
        cores: section.numbers("cores", Some(0), 0..=1023),
        idle: section.choice("idle", &[("adaptive", Idle::Adaptive), ("busy", Idle::Busy)]),
    };
    section.finish();
    workers
}

fn services(reader: &mut Reader<'_>) -> Vec<Service> {
    let tables = reader.tables("service");
    if tables.is_empty() {
        reader.missing("service", "at least one [[service]] with its address and ports");
    }
    let mut services = Vec::with_capacity(tables.len());
    for (index, table) in tables.into_iter().enumerate() {
        let mut section = Section::new(reader, format!("service[{index}]"), table);
        services.push(Service {
            address: section.required("address", UNICAST, IpAddr::from([0; 4]), unicast),
            ports: section.numbers("ports", None, 1..=65535),
        });
        section.finish();
    }
    services
}

fn sessions(reader: &mut Reader<'_>, inbound_only: bool) -> Sessions {
    let mut section = reader.section("sessions");
    let sessions = Sessions {
        capacity: section.number("capacity", 1_000_000, 1024..=1 << 27),
        half_open_max: section.number("half_open_max", 65_536, 1..=1 << 27),
        // As Linux's connection tracking: a kernel may hold a silent socket for this long.
        established_idle: section.duration(
            "established_idle",
            seconds(5 * DAY),
            seconds(MINUTE)..=seconds(30 * DAY),
        ),
        // Less than sessions linger: while their owner still knows of them, it hears of later ones.
        redirect_idle: section.duration("redirect_idle", seconds(30), seconds(1)..=seconds(DAY)),
        // Linux repeats a SYN-ACK five times, over 63 s.
        half_open_timeout: section.duration(
            "half_open_timeout",
            seconds(65),
            seconds(1)..=seconds(10 * MINUTE),
        ),
        linger: section.duration("linger", seconds(60), seconds(1)..=seconds(10 * MINUTE)),
        // Four in the default linger. Inbound-only, the ends of sessions wait for it.
        kernel_check: section.duration(
            "kernel_check",
            seconds(if inbound_only { 2 } else { 15 }),
            millis(500)..=seconds(5 * MINUTE),
        ),
    };
    section.finish();
    sessions
}

fn parking(reader: &mut Reader<'_>) -> Parking {
    let mut section = reader.section("parking");
    let parking = Parking {
        packets_max: section.number("packets_max", 2048, 1..=1 << 20),
        packets_per_flow_max: section.number("packets_per_flow_max", 8, 1..=8),
        timeout: section.duration("timeout", seconds(1), millis(10)..=seconds(60)),
        grace: section.duration("grace", millis(30), millis(1)..=seconds(5)),
    };
    section.finish();
    parking
}

fn admission(reader: &mut Reader<'_>) -> Admission {
    let mut section = reader.section("admission");
    let admission = Admission {
        lookups_per_second: section.number("lookups_per_second", 20_000, 1..=10_000_000),
        burst: section.number("burst", 4096, 1..=1 << 20),
        per_source_per_second: section.number("per_source_per_second", 2_000, 1..=10_000_000),
        per_source_burst: section.number("per_source_burst", 2_048, 1..=1 << 20),
        negative_ttl: section.duration("negative_ttl", seconds(1), millis(10)..=seconds(60)),
    };
    section.finish();
    admission
}

fn tunnel(reader: &mut Reader<'_>) -> Tunnel {
    let mut section = reader.section("tunnel");
    let tunnel = Tunnel {
        encapsulation: section.choice("encapsulation", ENCAPSULATIONS),
        port: section.number("port", GUE_PORT, 1..=65535),
    };
    section.finish();
    tunnel
}

fn dht(reader: &mut Reader<'_>, listen: SocketAddr) -> Dht {
    let mut section = reader.section("dht");
    let socket = |text: &str| {
        let socket: SocketAddr = text.parse().ok()?;
        let sound = socket.port() > 0 && unicast(&socket.ip().to_string()).is_some();
        sound.then_some(socket)
    };
    let expected = "ADDRESS:PORT, as in \"10.0.0.1:7000\" or \"[2001:db8::1]:7000\"; \
         names are not looked up";
    let dht = Dht {
        listen: section.text("listen", expected, ("locator:7000", listen), socket),
        bootstrap: section.texts("bootstrap", expected, Some("[]"), socket),
        k: section.number("k", 128, 1..=1024),
        bucket_bits: section.number("bucket_bits", 8, 1..=8),
        alpha: section.number("alpha", 3, 1..=16),
        replicas: section.number("replicas", 3, 1..=6),
        spread: section.number("spread", 128, 1..=1024),
        lease: section.duration("lease", seconds(MINUTE), seconds(5)..=seconds(HOUR)),
        record_ttl: section.duration(
            "record_ttl",
            seconds(HOUR),
            seconds(MINUTE)..=seconds(7 * DAY),
        ),
        probe_interval: section.duration("probe_interval", millis(50), millis(10)..=seconds(1)),
        dead_after: section.duration("dead_after", seconds(2), seconds(1)..=seconds(MINUTE)),
        restart_within: section.duration(
            "restart_within",
            seconds(10),
            seconds(0)..=seconds(5 * MINUTE),
        ),
        lookup_timeout: section.duration("lookup_timeout", millis(500), millis(20)..=seconds(30)),
        records_max: section.number("records_max", 4_000_000, 1024..=1 << 28),
    };
    section.finish();
    dht
}

fn cluster(reader: &mut Reader<'_>) -> Cluster {
    let mut section = reader.section("cluster");
    let members = section.texts(
        "members",
        "a prefix of the members' locators, as in \"10.0.0.0/24\"",
        None,
        |text| {
            let prefix: IpNet = text.parse().ok()?;
            (prefix.prefix_len() > 0 && prefix.trunc() == prefix).then_some(prefix)
        },
    );
    let path = section.optional("key_file", "an absolute path", |text| {
        text.starts_with('/').then(|| PathBuf::from(text))
    });
    let insecure = section.flag("insecure", false);
    section.finish();
    let key_file = path.clone();
    let keys = match (path, insecure) {
        (Some(path), false) => match ClusterKeys::load(&path) {
            Ok(keys) => Some(keys),
            Err(error) => {
                reader.refuse("cluster.key_file", error);
                None
            }
        },
        (Some(_), true) => {
            reader.refuse("cluster.insecure", "expected no cluster.key_file with it");
            None
        }
        (None, false) => {
            // A path that is refused is there.
            if reader.sound(&["cluster.key_file", "cluster.insecure"]) {
                reader.missing("cluster.key_file", KEY_FILE);
            }
            None
        }
        (None, true) => None,
    };
    Cluster { members, key_file, keys }
}

/// What each value alone cannot tell.
fn check(reader: &mut Reader<'_>, config: &Config) {
    check_dpdk(reader, config);
    check_ports(reader, config);
    check_services(reader, config);
    check_limits(reader, config);
    check_kernel_check(reader, config);
    check_dht(reader, config);
    check_cluster(reader, config);
    check::check_checks(reader, config);
    announce::check_announce(reader, config);
}

fn check_dpdk(reader: &mut Reader<'_>, config: &Config) {
    for (index, arg) in config.dpdk.eal_args.iter().enumerate() {
        let entry = format!("dpdk.eal_args[{index}]");
        let name = arg.split('=').next().unwrap_or_default();
        let own = OWN_EAL_ARGS.iter().find(|(own, _)| {
            // A short option may have its value behind it: -m512.
            *own == name || (own.len() == 2 && !name.starts_with("--") && name.starts_with(own))
        });
        if let Some((_, key)) = own {
            reader.refuse(&entry, format_args!("set {key} instead"));
        }
        if name == "--in-memory" && config.dpdk.huge_pages == HugePages::Off {
            reader.refuse(&entry, "needs huge pages, but dpdk.huge_pages is \"off\"");
        }
    }
    let mbufs = u64::from(config.dpdk.mbufs_per_worker);
    let descriptors =
        u64::from(config.uplink.rx_descriptors) + u64::from(config.uplink.tx_descriptors);
    let ports = if config.host_port.device == Device::Switch { 1 } else { 2 };
    let needed = ports * descriptors + config.parking.packets_max as u64 + MBUFS_UNDER_WAY;
    let keys = ["dpdk.mbufs_per_worker", "uplink.rx_descriptors", "uplink.tx_descriptors"];
    if reader.sound(&keys) && reader.sound(&["parking.packets_max"]) && mbufs < needed {
        let right = format_args!(
            "expected at least {needed}: the descriptors of all ports, parking.packets_max \
             and {MBUFS_UNDER_WAY} under way"
        );
        reader.refuse("dpdk.mbufs_per_worker", right);
    }
    let mbuf_bytes = MBUF_BYTES + u64::from(config.uplink.mbuf_room());
    let mib = (mbufs * config.workers.cores.len() as u64 * mbuf_bytes).div_ceil(1 << 20);
    let keys = ["dpdk.mbufs_per_worker", "dpdk.memory_mib", "workers.cores", "uplink.mtu"];
    if reader.sound(&keys) && u64::from(config.dpdk.memory_mib) < mib {
        let right = format_args!("expected at least {mib}, what the mbufs of all workers take");
        reader.refuse("dpdk.memory_mib", right);
    }
}

fn check_ports(reader: &mut Reader<'_>, config: &Config) {
    for (key, value) in [
        ("uplink.rx_descriptors", config.uplink.rx_descriptors),
        ("uplink.tx_descriptors", config.uplink.tx_descriptors),
    ] {
        if !value.is_power_of_two() {
            reader.refuse(key, "expected a power of two");
        }
    }
    let (uplink, host) = (&config.uplink.device, &config.host_port.device);
    let same_port = uplink.port_name(0) == host.port_name(1);
    let same_interface = uplink.interface().is_some() && uplink.interface() == host.interface();
    if reader.sound(&["uplink.device", "host_port.device"]) && (same_port || same_interface) {
        reader.refuse("host_port.device", "expected another device than uplink.device");
    }
    let has_mac = matches!(host, Device::Tap { .. } | Device::Vhost { .. } | Device::Switch);
    if config.host_port.mac.is_some() && !has_mac {
        let right = "expected only with a device \"tap:NAME\", \"vhost:NAME\" or \"switch\"";
        reader.refuse("host_port.mac", right);
    }
    check_switch(reader, config);
    check_mtu(reader, config);
    check_port_vlan(reader, config);
    let cores = &config.workers.cores;
    if cores.is_empty() && reader.sound(&["workers.cores"]) {
        reader.refuse("workers.cores", "expected at least one core");
    }
    if cores.len() > WORKERS_MAX {
        let right = format_args!("expected at most {WORKERS_MAX} cores");
        reader.refuse("workers.cores", right);
    }
    for index in repeated(cores) {
        let entry = format!("workers.cores[{index}]");
        reader.refuse(&entry, "expected a core for each worker alone");
    }
}

/// Interfaces of the kernel have their own MTU, and bound what the mbufs hold.
fn check_mtu(reader: &mut Reader<'_>, config: &Config) {
    let mtu = config.uplink.mtu;
    if mtu == MTU_DEFAULT {
        return;
    }
    if let Device::Interface(name) = &config.uplink.device {
        let right = format_args!("{name} has its own: ip link set {name} mtu {mtu}");
        reader.refuse("uplink.mtu", right);
    } else if let Device::Tap { name } = &config.uplink.device {
        reader.refuse(
            "uplink.mtu",
            format_args!("expected 1500, which is what the TAP {name} takes"),
        );
    } else if let Device::Interface(name) = &config.host_port.device
        && mtu > MTU_XDP_MAX
    {
        let right =
            format_args!("expected at most {MTU_XDP_MAX}: the host port {name} is AF_XDP's");
        reader.refuse("uplink.mtu", right);
    }
}

fn check_port_vlan(reader: &mut Reader<'_>, config: &Config) {
    let Uplink { device, port_vlan, .. } = &config.uplink;
    if port_vlan.is_some() && !matches!(device, Device::Pci(_)) {
        let right = format_args!("expected none: {device} is no virtual function of a NIC");
        reader.refuse("uplink.port_vlan", right);
    }
}

/// The host port through the NIC's switch, and what stands only beside it.
fn check_switch(reader: &mut Reader<'_>, config: &Config) {
    let HostPort { device, mac, next_hops, inbound_only } = &config.host_port;
    let is_sound = reader.sound(&["host_port.device", "host_port.next_hops"]);
    if *device != Device::Switch {
        if !next_hops.is_empty() && is_sound {
            reader
                .refuse("host_port.next_hops", "expected only with host_port.device = \"switch\"");
        }
        return;
    }
    if mac.is_none() && reader.sound(&["host_port.mac"]) {
        let right = "the Ethernet address of the kernel's function of the same NIC: \
                     host_port.device is \"switch\"";
        reader.missing("host_port.mac", right);
    }
    if next_hops.is_empty() && is_sound {
        let right = "a list of this server's addresses that the fabric sends the services' packets \
                     to, which the appliance answers for: host_port.device is \"switch\"";
        reader.missing("host_port.next_hops", right);
    }
    if next_hops.len() > NEXT_HOPS_MAX {
        let right = format_args!("expected at most {NEXT_HOPS_MAX} addresses");
        reader.refuse("host_port.next_hops", right);
    }
    for index in repeated(next_hops) {
        reader.refuse(&format!("host_port.next_hops[{index}]"), "expected each address once");
    }
    for (index, next_hop) in next_hops.iter().enumerate() {
        let entry = format!("host_port.next_hops[{index}]");
        if config.services.iter().any(|service| service.address == *next_hop) {
            reader.refuse(&entry, "expected an address of this server alone, not a service's");
        }
    }
    if !inbound_only {
        let right = "expected true: with host_port.device = \"switch\" the kernel's answers leave by \
                     its own function";
        reader.refuse("host_port.inbound_only", right);
    }
    if config.uplink.promiscuous {
        let right = "expected false: with host_port.device = \"switch\" only frames to the uplink's \
                     own address are taken";
        reader.refuse("uplink.promiscuous", right);
    }
}

fn check_services(reader: &mut Reader<'_>, config: &Config) {
    let addresses: Vec<IpAddr> = config.services.iter().map(|service| service.address).collect();
    for index in repeated(&addresses) {
        let key = format!("service[{index}].address");
        if reader.sound(&[&key]) {
            reader.refuse(&key, "expected all ports of an address in one [[service]]");
        }
    }
    for (index, service) in config.services.iter().enumerate() {
        let key = format!("service[{index}].address");
        if service.address == config.node.locator && reader.sound(&[&key, "node.locator"]) {
            reader.refuse(&key, "expected another address than node.locator, which is not anycast");
        }
        let key = format!("service[{index}].ports");
        if service.ports.is_empty() && reader.sound(&[&key]) {
            reader.refuse(&key, "expected at least one port");
        }
        if reader.sound(&[&key]) {
            for repeated in repeated(&service.ports) {
                reader.refuse(&format!("{key}[{repeated}]"), "expected each port once");
            }
        }
    }
    let sockets = config.service_sockets().count();
    if sockets > SERVICES_MAX {
        let right = format_args!("{sockets} ports in all: expected at most {SERVICES_MAX}");
        reader.refuse("service", right);
    }
    if config.tunnel.encapsulation == Encapsulation::Rewrite {
        check_rewritable(reader, config);
    }
}

/// A rewritten packet shows its service's port and not its address, and its address is written
/// over the service's.
fn check_rewritable(reader: &mut Reader<'_>, config: &Config) {
    let mut ports = Vec::new();
    for (index, service) in config.services.iter().enumerate() {
        let key = format!("service[{index}].address");
        let is_sound = reader.sound(&[&key, "node.locator", "tunnel.encapsulation"]);
        if service.address.is_ipv4() != config.node.locator.is_ipv4() && is_sound {
            reader.refuse(
                &key,
                "expected the address family of node.locator: tunnel.encapsulation is \"rewrite\"",
            );
        }
        let key = format!("service[{index}].ports");
        if service.ports.iter().any(|port| ports.contains(port)) && reader.sound(&[&key]) {
            reader.refuse(
                &key,
                "expected ports of no other service: tunnel.encapsulation is \"rewrite\"",
            );
        }
        ports.extend(&service.ports);
    }
}

/// Indices of the entries that stand further ahead as well.
fn repeated<T: PartialEq>(values: &[T]) -> Vec<usize> {
    let again = |index: &usize| values[..*index].contains(&values[*index]);
    (0..values.len()).filter(again).collect()
}

fn check_limits(reader: &mut Reader<'_>, config: &Config) {
    let (sessions, parking) = (&config.sessions, &config.parking);
    let mut compare = |key: &str, relation: &str, other: &str, ok: bool| {
        if !ok && reader.sound(&[key, other]) {
            reader.refuse(key, format_args!("expected {relation} {other}"));
        }
    };
    compare(
        "sessions.half_open_max",
        "less than",
        "sessions.capacity",
        sessions.half_open_max < sessions.capacity,
    );
    compare(
        "parking.packets_per_flow_max",
        "at most",
        "parking.packets_max",
        parking.packets_per_flow_max <= parking.packets_max,
    );
    compare("parking.grace", "less than", "parking.timeout", parking.grace < parking.timeout);
    compare(
        "dht.lookup_timeout",
        "less than",
        "parking.timeout",
        config.dht.lookup_timeout < parking.timeout,
    );
}

/// What the kernel holds must be found in time: before a session that a forged RST has reset, or
/// that is idle, is withdrawn.
fn check_kernel_check(reader: &mut Reader<'_>, config: &Config) {
    let Sessions { kernel_check, linger, established_idle, .. } = config.sessions;
    for (other, time, checks, part) in [
        ("sessions.linger", linger, CHECKS_PER_LINGER, "half"),
        ("sessions.established_idle", established_idle, CHECKS_PER_IDLE, "a quarter"),
    ] {
        let most = time / checks;
        if kernel_check > most && reader.sound(&["sessions.kernel_check", other]) {
            let most = format_duration(most);
            let right = format_args!("expected at most \"{most}\", {part} of {other}");
            reader.refuse("sessions.kernel_check", right);
        }
    }
    let is_late = config.host_port.inbound_only && kernel_check > CHECK_INBOUND_MAX;
    if is_late && reader.sound(&["sessions.kernel_check", "host_port.inbound_only"]) {
        let most = format_duration(CHECK_INBOUND_MAX);
        let right = format_args!(
            "expected at most \"{most}\" with host_port.inbound_only: it finds the ends of sessions"
        );
        reader.refuse("sessions.kernel_check", right);
    }
}

fn check_dht(reader: &mut Reader<'_>, config: &Config) {
    let (dht, locator) = (&config.dht, config.node.locator);
    if reader.sound(&["dht.listen", "node.locator"]) {
        if dht.listen.ip() != locator {
            reader.refuse("dht.listen", format_args!("expected the locator's address, {locator}"));
        }
        if dht.listen.port() == config.tunnel.port {
            reader.refuse("dht.listen", "expected another port than tunnel.port");
        }
    }
    // A server knows the nodes around a record as far as its buckets hold them: who draws among
    // more than that does not draw alike.
    let at_most_k =
        [("dht.alpha", dht.alpha), ("dht.replicas", dht.replicas), ("dht.spread", dht.spread)];
    for (key, value) in at_most_k {
        if value > dht.k && reader.sound(&[key, "dht.k"]) {
            reader.refuse(key, format_args!("expected at most dht.k, {}", dht.k));
        }
    }
    check_lease(reader, dht);
    for (index, address) in dht.bootstrap.iter().enumerate() {
        let keys = ["dht.bootstrap", "cluster.members"];
        if reader.sound(&keys) && !config.cluster.is_member(address.ip()) {
            let entry = format!("dht.bootstrap[{index}]");
            reader.refuse(&entry, "expected an address in cluster.members");
        }
    }
}

/// A server that was taken for dead and lives, or is started again, must have time to come back and
/// store again before its records end.
fn check_lease(reader: &mut Reader<'_>, dht: &Dht) {
    let least = LEASE_PER_DEAD_AFTER * dht.dead_after;
    if dht.lease < least && reader.sound(&["dht.lease", "dht.dead_after"]) {
        let least = format_duration(least);
        let right = format_args!(
            "expected at least \"{least}\", {LEASE_PER_DEAD_AFTER} times dht.dead_after"
        );
        reader.refuse("dht.lease", right);
    }
    // The records must last as long as the sessions are to be found again.
    if dht.lease < dht.restart_within && reader.sound(&["dht.lease", "dht.restart_within"]) {
        reader.refuse("dht.restart_within", "expected at most dht.lease");
    }
    if dht.record_ttl < dht.lease && reader.sound(&["dht.record_ttl", "dht.lease"]) {
        reader.refuse("dht.record_ttl", "expected at least dht.lease");
    }
}

fn check_cluster(reader: &mut Reader<'_>, config: &Config) {
    let (cluster, locator) = (&config.cluster, config.node.locator);
    if !reader.sound(&["cluster.members", "node.locator"]) {
        return;
    }
    for (index, prefix) in cluster.members.iter().enumerate() {
        if prefix.addr().is_ipv4() != locator.is_ipv4() {
            let family = if locator.is_ipv4() { "IPv4" } else { "IPv6" };
            let right =
                format_args!("expected an {family} prefix: tunnels have the locator's family");
            reader.refuse(&format!("cluster.members[{index}]"), right);
        }
    }
    if !cluster.is_member(locator) {
        let right = format_args!("expected a prefix that contains node.locator, {locator}");
        reader.refuse("cluster.members", right);
    }
}

fn warnings(config: &Config) -> Vec<String> {
    let mut warnings: Vec<String> = config.metrics.warning().into_iter().collect();
    if config.cluster.keys.is_none() {
        warnings.push(
            "cluster.insecure is set: anyone who can send from a member's address can speak in \
             the DHT"
                .to_owned(),
        );
    }
    let Sessions { redirect_idle, linger, .. } = config.sessions;
    if redirect_idle > linger {
        warnings.push(format!(
            "sessions.redirect_idle is more than sessions.linger, \"{}\": a port that a client \
             uses again may lead to the server that had it before, which does not know any more \
             who has it now",
            format_duration(linger)
        ));
    }
    for service in &config.services {
        if config.cluster.is_member(service.address) {
            warnings.push(format!(
                "service address {} is in cluster.members: narrow the prefixes to the locators",
                service.address
            ));
        }
    }
    warnings
}

#[cfg(test)]
pub(crate) mod tests;
