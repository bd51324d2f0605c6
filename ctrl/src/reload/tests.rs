//! Reloads of real files against a real table, a real DHT core and what workers look at.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::thread::JoinHandle;

use holdfast_dataplane::worker::PortLimits;
use holdfast_dht::{Counter, Service};
use holdfast_handoff::rings;
use holdfast_net::HashKey;

use super::*;
use crate::config::LogLevel;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// What is reloaded, and the thread of its DHT core.
struct Bench {
    directory: tempfile::TempDir,
    text: String,
    reload: Reload,
    core: Option<JoinHandle<Result<(), holdfast_dht::Error>>>,
    start: Instant,
}

impl Bench {
    /// A bench of test `number`: runs at the same time do not meet.
    fn new(number: u8) -> Bench {
        let locator = format!("127.{}.79.{number}", 20 + std::process::id() % 200);
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            r#"
            [node]
            locator = "{locator}"
            [uplink]
            device = "eth1"
            [[service]]
            address = "192.168.0.1"
            ports = [80]
            [sessions]
            capacity = 1024
            half_open_max = 1000
            [dht]
            records_max = 1024
            [cluster]
            members = ["127.0.0.0/8"]
            insecure = true
            "#
        );
        let path = directory.path().join("c.toml");
        std::fs::write(&path, &text).unwrap();
        let config = Config::load(&path).unwrap();
        let services = Services::new(config.service_sockets()).unwrap();
        let timeouts = appliance::timeouts(&config);
        let table = SessionTable::new(services.clone(), 1024, &timeouts, HashKey([1, 2])).unwrap();
        let ports = PortLimits {
            uplink_mtu: 1500,
            host_mtu: 1500,
            offloads_checksum: false,
            host_mac: None,
        };
        let settings = appliance::settings(&config, services, ports);
        let (dht, keys) = appliance::dht_config(&config);
        let core = Service::bind(dht, keys, Arc::default()).unwrap();
        let (_, core_end) = rings(1, 1, core.doorbell());
        let live = Live {
            table: Arc::new(table),
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            kernel_check: Plan::new(config.sessions.kernel_check),
            dht: core.handle(),
            health: Arc::new(Health::new(&config, Instant::now())),
        };
        Bench {
            reload: Reload::new(path, config, Hangup::default(), live),
            core: Some(std::thread::spawn(move || core.run(vec![core_end]))),
            directory,
            text,
            start: Instant::now(),
        }
    }

    /// Puts the first text with this in the place of that into the file.
    fn write(&self, old: &str, new: &str) {
        assert!(self.text.contains(old), "{old}");
        let text = self.text.replacen(old, new, 1);
        std::fs::write(self.directory.path().join("c.toml"), text).unwrap();
    }

    fn reload(&self) -> Result<ReloadReply, ProtocolError> {
        self.reload.reload(None, self.start)
    }

    fn settings(&self) -> Arc<Settings> {
        self.reload.live.settings.load_full()
    }

    fn serves(&self, socket: &str) -> bool {
        let socket: SocketAddr = socket.parse().unwrap();
        self.reload.live.table.services().contains(socket.ip(), socket.port())
    }

    fn count(&self, name: &str) -> u64 {
        self.reload.stats(self.start).counters[name]
    }

    fn stop_core(&mut self) {
        self.reload.live.dht.stop();
        if let Some(core) = self.core.take() {
            core.join().unwrap().unwrap();
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop_core();
    }
}

fn keys(reply: &ReloadReply) -> Vec<&str> {
    reply.changes.iter().map(|change| change.key.as_str()).collect()
}

#[test]
fn all_that_a_reload_changes_takes_effect() {
    let bench = Bench::new(1);
    bench.write(
        "[uplink]",
        "log = \"warn\"
        [workers]
        idle = \"busy\"
        [parking]
        packets_per_flow_max = 2
        timeout = \"2s\"
        grace = \"10ms\"
        [admission]
        lookups_per_second = 1
        burst = 2
        per_source_per_second = 3
        per_source_burst = 4
        negative_ttl = \"5s\"
        [uplink]",
    );
    let reply = bench.reload().unwrap();
    let expected = [
        "admission.burst",
        "admission.lookups_per_second",
        "admission.negative_ttl",
        "admission.per_source_burst",
        "admission.per_source_per_second",
        "node.log",
        "parking.grace",
        "parking.packets_per_flow_max",
        "parking.timeout",
        "workers.idle",
    ];
    assert_eq!(keys(&reply), expected);
    assert!(reply.applied && reply.confirm_within_ms.is_none());
    assert_eq!(reply.warnings.len(), 1, "the file's: the cluster is insecure");
    let settings = bench.settings();
    assert_eq!(settings.idle, holdfast_dataplane::idle::IdleStrategy::Busy);
    assert_eq!((settings.admission.per_second, settings.admission.burst), (1, 2));
    assert_eq!(settings.admission.per_source_per_second, 3);
    assert_eq!(settings.admission.per_source_burst, 4);
    assert_eq!(settings.admission.negative_us, 5_000_000);
    assert_eq!(settings.parking.packets_per_flow_max, 2);
    assert_eq!((settings.parking.timeout_us, settings.parking.grace_us), (2_000_000, 10_000));
    assert_eq!(bench.reload.config().node.log, LogLevel::Warn);

    bench.write("half_open_max = 1000", "half_open_max = 7");
    assert_eq!(keys(&bench.reload().unwrap()).len(), 11, "and the others are back");
    assert_eq!((bench.settings().half_open_max, bench.settings().admission.burst), (7, 4096));
    assert_eq!(bench.count("applied"), 2);
}

#[test]
fn services_come_and_go_in_the_table_and_for_the_workers() {
    let bench = Bench::new(2);
    bench.write(
        "ports = [80]",
        "ports = [443]\n[[service]]\naddress = \"192.168.0.2\"\nports = [80]",
    );
    let reply = bench.reload().unwrap();
    assert_eq!(keys(&reply), ["service"]);
    assert_eq!(reply.changes[0].before.as_array().map(Vec::len), Some(1));
    assert_eq!(reply.changes[0].after.as_array().map(Vec::len), Some(2));
    for (socket, serves) in
        [("192.168.0.1:80", false), ("192.168.0.1:443", true), ("192.168.0.2:80", true)]
    {
        assert_eq!(bench.serves(socket), serves, "{socket}");
        let socket: SocketAddr = socket.parse().unwrap();
        let services = &bench.settings().classifier.services;
        assert_eq!(services.contains(socket.ip(), socket.port()), serves);
    }
    let prefixes = || {
        let prefixes = bench.reload.live.health.report(0, bench.start).prefixes;
        prefixes.iter().map(|known| known.prefix.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(prefixes(), ["192.168.0.1/32", "192.168.0.2/32"]);
    bench.write("[sessions]", "[announce]\nprefixes = [\"192.168.0.0/24\"]\n[sessions]");
    assert_eq!(keys(&bench.reload().unwrap()), ["announce.prefixes", "service"]);
    assert_eq!(prefixes(), ["192.168.0.0/24"]);
    bench.write("", "");
    bench.reload().unwrap();
    assert!(bench.serves("192.168.0.1:80") && !bench.serves("192.168.0.2:80"));
}

#[test]
fn members_and_bootstrap_nodes_reach_the_dht_core() {
    let mut bench = Bench::new(3);
    let locator = bench.reload.config().node.locator;
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let refused =
        |bench: &Bench| bench.reload.live.dht.stats().unwrap().counters.get(Counter::NotMember);
    let until_refused = |bench: &Bench, count| {
        let end = Instant::now() + 10 * SECOND;
        while refused(bench) < count {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let narrow = format!("members = [\"{locator}/32\"]");
    bench.write("members = [\"127.0.0.0/8\"]", &narrow);
    assert_eq!(keys(&bench.reload().unwrap()), ["cluster.members"]);
    assert_eq!(bench.settings().members, [ipnet::IpNet::from(locator)]);
    stranger.send_to(b"x", (locator, 7000)).unwrap();
    until_refused(&bench, 1);

    // It does not answer any more, so nothing changes.
    bench.stop_core();
    let before = bench.settings();
    bench.write("half_open_max = 1000", "half_open_max = 7");
    let refusal = bench.reload().unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unavailable);
    assert!(Arc::ptr_eq(&before, &bench.settings()));
    assert_eq!(bench.reload.config().sessions.half_open_max, 1000);
    bench.write("members = [\"127.0.0.0/8\"]", &narrow);
    assert!(bench.reload().unwrap().changes.is_empty(), "without it there is nothing to ask");
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_changes_nothing() {
    let bench = Bench::new(4);
    let before = bench.settings();
    bench.write("half_open_max = 1000", "half_open_max = 7\nlinger = 60\nlinker = 1");
    let refusal = bench.reload().unwrap_err();
    assert_eq!(refusal.code, ErrorCode::BadConfig);
    let path = bench.directory.path().join("c.toml");
    let lines: Vec<&str> = refusal.message.lines().collect();
    assert_eq!(lines.len(), 2, "{refusal}");
    assert!(lines[0].starts_with(&format!("{}:12:10: sessions.linger = 60: ", path.display())));
    assert!(lines[1].starts_with(&format!("{}:13:1: unknown key 'linker'", path.display())));
    assert_eq!(bench.reload.dry_run(bench.start).unwrap_err(), refusal);

    std::fs::remove_file(&path).unwrap();
    let refusal = bench.reload().unwrap_err();
    assert_eq!(refusal.code, ErrorCode::BadConfig);
    assert!(refusal.message.contains("c.toml: No such file"), "{refusal}");
    assert!(Arc::ptr_eq(&before, &bench.settings()));
    assert_eq!((bench.count("refused"), bench.count("applied")), (2, 0));
}

/// What replaces what, and what is said to need a restart.
const RESTARTS: &[(&str, &str, &str)] = &[
    ("eth1", "eth2", "uplink.device needs a restart; nothing has changed"),
    (
        "[uplink]",
        "[workers]\ncores = [0, 1]\n[tunnel]\nport = 6081\n[uplink]",
        "tunnel.port, workers.cores need a restart; nothing has changed",
    ),
    ("insecure = true", "key_file = \"KEYS\"", "cluster.insecure, cluster.key_file need a restart"),
    (
        "192.168.0.1",
        "fd80::1",
        "service fd80::1 (the first one of IPv6) needs a restart; nothing has changed",
    ),
    (
        "capacity = 1024",
        "capacity = 1024\nestablished_idle = \"30days\"\nredirect_idle = \"20m\"",
        "sessions.established_idle (more than \"9days 17h 1m 800ms\"), sessions.redirect_idle \
         (more than \"51s 200ms\") need a restart; nothing has changed",
    ),
];

#[test]
fn what_needs_a_restart_is_refused_by_name_and_changes_nothing() {
    let bench = Bench::new(5);
    let before = bench.settings();
    let keys = bench.directory.path().join("keys");
    std::fs::write(&keys, "0f".repeat(32)).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&keys, private).unwrap();
    for (old, new, message) in RESTARTS {
        // One that could be reloaded changes with it.
        let text = bench.text.replacen(old, new, 1).replace("KEYS", keys.to_str().unwrap());
        let text = text.replace("half_open_max = 1000", "half_open_max = 7");
        std::fs::write(bench.directory.path().join("c.toml"), text).unwrap();
        let refusal = bench.reload().unwrap_err();
        assert_eq!(refusal.code, ErrorCode::NeedsRestart);
        assert!(refusal.message.starts_with(message), "{refusal}\n{message}");
        assert_eq!(bench.reload.dry_run(bench.start).unwrap_err(), refusal);
    }
    assert!(Arc::ptr_eq(&before, &bench.settings()));
    assert_eq!(bench.reload.config().sessions.half_open_max, 1000);
    assert_eq!((bench.count("refused"), bench.count("applied")), (RESTARTS.len() as u64, 0));
}

#[test]
fn the_65th_pair_of_address_and_port_since_the_start_needs_a_restart() {
    let bench = Bench::new(6);
    let ports = |range: std::ops::Range<u16>| format!("ports = {:?}", range.collect::<Vec<_>>());
    bench.write("ports = [80]", &ports(81..144));
    bench.reload().unwrap();
    bench.write("ports = [80]", &ports(82..145));
    let refusal = bench.reload().unwrap_err();
    assert!(refusal.message.starts_with("service (at most 64 pairs"), "{refusal}");
    assert!(bench.serves("192.168.0.1:81") && !bench.serves("192.168.0.1:144"));
    bench.write("ports = [80]", &ports(80..144));
    bench.reload().unwrap();
}

#[test]
fn what_nobody_confirms_in_time_is_rolled_back() {
    let bench = Bench::new(7);
    let Bench { reload, start, .. } = &bench;
    bench.write("ports = [80]", "ports = [443]");
    let reply = reload.reload(Some(MINUTE), *start).unwrap();
    assert_eq!((reply.applied, reply.confirm_within_ms), (true, Some(60_000)));
    assert!(bench.serves("192.168.0.1:443"));
    let unconfirmed = reload.unconfirmed(*start + 20 * SECOND).unwrap();
    assert_eq!((unconfirmed.left_ms, unconfirmed.changes), (40_000, reply.changes.clone()));
    assert_eq!(reload.stats(*start + 20 * SECOND).gauges["unconfirmed_ms"], 40_000);

    // Until then there is no other reload, not by a signal either.
    let refusal = reload.reload(None, *start + 59 * SECOND).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Conflict);
    assert!(refusal.message.contains("for 1 s more"), "{refusal}");
    assert!(reload.dry_run(*start).unwrap().changes.is_empty());

    reload.look(*start + MINUTE - SECOND);
    assert!(bench.serves("192.168.0.1:443"));
    reload.look(*start + MINUTE);
    assert!(bench.serves("192.168.0.1:80") && !bench.serves("192.168.0.1:443"));
    assert!(bench.settings().classifier.services.contains([192, 168, 0, 1].into(), 80));
    assert_eq!(reload.config().services[0].ports, [80]);
    assert_eq!(reload.unconfirmed(*start), None);
    assert_eq!((bench.count("rolled_back"), bench.count("confirmed")), (1, 0));
    assert_eq!(reload.confirm(*start).unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(reload.roll_back(*start).unwrap_err().code, ErrorCode::Conflict);
    // The file is as it was written.
    assert_eq!(keys(&reload.dry_run(*start).unwrap()), ["service"]);
}

#[test]
fn what_is_confirmed_stays() {
    let bench = Bench::new(8);
    let Bench { reload, start, .. } = &bench;
    assert!(reload.reload(Some(MINUTE), *start).unwrap().changes.is_empty());
    assert_eq!(reload.unconfirmed(*start), None, "there is nothing to confirm");
    bench.write("half_open_max = 1000", "half_open_max = 7");
    reload.reload(Some(MINUTE), *start).unwrap();
    let reply = reload.confirm(*start).unwrap();
    assert_eq!((keys(&reply), reply.confirm_within_ms), (vec!["sessions.half_open_max"], None));
    reload.look(*start + 2 * MINUTE);
    assert_eq!(bench.settings().half_open_max, 7);
    assert_eq!((bench.count("rolled_back"), bench.count("confirmed")), (0, 1));

    bench.write("half_open_max = 1000", "half_open_max = 8");
    reload.reload(Some(MINUTE), *start).unwrap();
    let reply = reload.roll_back(*start).unwrap();
    assert_eq!((&reply.changes[0].before, &reply.changes[0].after), (&8.into(), &7.into()));
    assert_eq!(bench.settings().half_open_max, 7);
}

#[test]
fn a_roll_back_that_cannot_be_is_tried_again() {
    let mut bench = Bench::new(9);
    let start = bench.start;
    let locator = bench.reload.config().node.locator;
    let narrow = format!("members = [\"{locator}/32\"]");
    bench.write("members = [\"127.0.0.0/8\"]", &narrow);
    bench.reload.reload(Some(MINUTE), start).unwrap();
    bench.stop_core();
    bench.reload.look(start + MINUTE);
    assert_eq!(bench.reload.unconfirmed(start + MINUTE).unwrap().left_ms, 1000);
    assert_eq!(bench.settings().members, [ipnet::IpNet::from(locator)]);
    assert_eq!(bench.count("rolled_back"), 0);
    bench.reload.look(start + MINUTE + SECOND);
    assert!(bench.reload.unconfirmed(start).is_some());
}
