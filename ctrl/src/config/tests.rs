//! Good and bad configurations as rows, and the guide held against the code.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::sync::LazyLock;

use super::*;

const MINIMAL: &str = include_str!("../../examples/minimal.toml");
const FULL: &str = include_str!("../../examples/full.toml");
const GUIDE: &str = include_str!("../../../docs/guide/configuration.md");
const KEY_FILE: &str = "/etc/holdfast/cluster.key";

/// A key file with this content and mode.
fn key_file(content: &str, mode: u32) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut options = std::fs::OpenOptions::new();
    let path = directory.path().join("cluster.key");
    let file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
    std::io::Write::write_all(&mut &file, content.as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
    directory
}

/// A key file that is there for as long as the tests run.
static KEYS: LazyLock<tempfile::TempDir> = LazyLock::new(|| key_file(&"0f".repeat(32), 0o640));

/// The minimal example with a key file that is there.
fn minimal() -> String {
    let path = KEYS.path().join("cluster.key");
    MINIMAL.replace(KEY_FILE, path.to_str().unwrap())
}

/// What the minimal example says, for tests elsewhere.
#[cfg(feature = "daemon")]
pub(crate) fn minimal_config() -> Config {
    Config::parse("minimal.toml", &minimal()).unwrap()
}

/// The full example with a key file that is there.
fn full(directory: &tempfile::TempDir) -> String {
    let path = directory.path().join("cluster.key");
    FULL.replace(KEY_FILE, path.to_str().unwrap())
}

/// The host port through the NIC's switch.
const SWITCH: &str = "\n[host_port]\ndevice = \"switch\"\nmac = \"02:00:00:00:00:4e\"\n\
    next_hops = [\"10.1.0.11\", \"fe80::11\"]\n";

fn refusal(text: &str) -> String {
    Config::parse("c.toml", text).expect_err("refused").to_string()
}

#[test]
fn the_examples_are_valid_and_the_full_one_shows_the_defaults() {
    let directory = key_file(&"0f".repeat(32), 0o640);
    let minimal = Config::parse("minimal.toml", &minimal()).unwrap();
    let mut full = Config::parse("full.toml", &full(&directory)).unwrap();

    let keys = full.cluster.keys.as_ref().unwrap();
    assert_eq!(keys.sealing, ClusterKey { id: 0, secret: Secret([0x0f; 32]) });
    assert_eq!(full.host_port.mac.take().unwrap().to_string(), "02:00:00:00:00:01");
    assert_eq!(full.dht.bootstrap, ["10.0.0.2:7000".parse().unwrap()]);
    full.dht.bootstrap.clear();
    assert_eq!(
        full.incidents.journal.take().unwrap(),
        Path::new("/var/lib/holdfast/incidents.jsonl")
    );
    assert_eq!(full.metrics.listen.take().unwrap().to_string(), "127.0.0.1:9464");
    let check = full.checks.remove(0);
    assert_eq!(check.service, check.target);
    let host = "www.example.org".to_owned();
    assert_eq!(check.kind, CheckKind::Http { path: "/".to_owned(), status: 200, host });
    let root = Group { name: "root".to_owned(), id: 0 };
    assert_eq!(full.node.control_group.take(), Some(root));
    full.cluster.key_file.clone_from(&minimal.cluster.key_file);
    assert_eq!(full, minimal);
    assert!(minimal.warnings.is_empty(), "{:?}", minimal.warnings);
}

/// What is shown makes the same configuration, has every key, and does not have the secrets.
#[test]
fn what_is_shown_is_the_configuration() {
    let directory = key_file(&"0f".repeat(32), 0o640);
    let frr = "[announce]\nannouncer = \"frr\"\nbgp_instance = \"65001\"";
    let pipe = "[announce]\nannouncer = \"exabgp\"\npipe = \"/run/exabgp.in\"";
    let command = "[announce]\nannouncer = \"exabgp\"\ncommand = [\"tee\", \"-a\", \"/x\"]";
    let announcing = [frr, pipe, command].map(|announce| minimal() + announce);
    for text in
        [minimal(), full(&directory)].into_iter().chain(announcing).chain([minimal() + SWITCH])
    {
        let config = Config::parse("c.toml", &text).unwrap();
        let shown = config.shown();
        assert_eq!(shown["cluster"]["keys"], serde_json::json!({"sealing": 0, "opening": null}));
        let reply = crate::protocol::ConfigReply { config: shown, ..Default::default() };
        let text = crate::show::config(&reply);
        assert!(!text.contains("0f0f"), "{text}");
        assert!(text.contains("# key 0 seals"), "{text}");
        let (mut again, known) =
            read("shown.toml", &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        again.warnings.clone_from(&config.warnings);
        assert_eq!(again, config, "{text}");
        let table: toml::Table = toml::from_str(&text).unwrap();
        for Known { key, default, .. } in known {
            let (section, name) = key.split_once('.').unwrap();
            let there = match section.strip_suffix("[0]") {
                Some(section) => table[section][0].get(name).is_some(),
                None => table[section].get(name).is_some(),
            };
            assert!(there || default.is_none(), "{key} is not shown");
        }
    }
}

#[test]
fn through_the_switch_is_inbound_only_and_not_promiscuous() {
    let config = Config::parse("c.toml", &(minimal() + SWITCH)).unwrap();
    assert!(config.host_port.inbound_only && !config.uplink.promiscuous);
    assert_eq!(config.sessions.kernel_check, Duration::from_secs(2));
    let summary = config.summary();
    let line = "host port  02:00:00:00:00:4e behind the NIC's switch, next hops 10.1.0.11 fe80::11, \
                inbound only";
    assert!(summary.contains(line), "{summary}");
    // There is one port's descriptors to fill.
    let mbufs = "\n[dpdk]\nmbufs_per_worker = 5120\n";
    assert!(Config::parse("c.toml", &(minimal() + mbufs)).is_err());
    assert!(Config::parse("c.toml", &(minimal() + SWITCH + mbufs)).is_ok());
}

#[test]
fn the_full_example_has_every_key() {
    let directory = key_file(&"0f".repeat(32), 0o600);
    let text = full(&directory);
    let (_, known) = read("full.toml", &text).unwrap();
    let table: toml::Table = toml::from_str(&text).unwrap();
    for Known { key, .. } in known {
        let (section, name) = key.split_once('.').unwrap();
        let there = match section.strip_suffix("[0]") {
            Some(section) => table[section][0].get(name).is_some(),
            None => table[section].get(name).is_some(),
        };
        assert!(there, "{key} is not in examples/full.toml");
    }
}

#[test]
fn the_guide_documents_every_key_with_its_default_and_range() {
    let directory = key_file(&"0f".repeat(32), 0o640);
    let (_, known) = read("full.toml", &full(&directory)).unwrap();
    let mut documented: BTreeSet<&str> = GUIDE
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|key| key.contains('.'))
        .collect();
    for known in known {
        let key = known.key.replace("[0]", "");
        let row = format!("| `{key}` |");
        let row = GUIDE.lines().find(|line| line.starts_with(&row));
        let row = row.unwrap_or_else(|| panic!("{key} has no row in the guide"));
        documented.remove(key.as_str());
        let default = known.default.map_or("—".to_owned(), |default| format!("`{default}`"));
        let range = known.range.map(|(min, max)| format!("`{min}` to `{max}`"));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[2], default, "default of {key}");
        assert_eq!(cells[3], range.as_deref().unwrap_or(cells[3]), "range of {key}");
    }
    assert!(documented.is_empty(), "in the guide but not known: {documented:?}");
}

#[test]
fn the_guide_marks_the_keys_that_a_reload_changes() {
    let (_, known) = read("minimal.toml", &minimal()).unwrap();
    let mut reloaded: BTreeSet<&str> = RELOADED.iter().copied().collect();
    for known in known {
        let key = known.key.replace("[0]", "");
        let row = GUIDE.lines().find(|line| line.starts_with(&format!("| `{key}` |"))).unwrap();
        let meaning = row.split('|').nth(4).unwrap();
        let is_reloaded = reloaded.remove(key.as_str());
        assert_eq!(meaning.starts_with(" ↻ "), is_reloaded, "mark of {key}");
    }
    assert!(reloaded.is_empty(), "reloaded but not known: {reloaded:?}");
    assert!(is_reloaded("service") && is_reloaded("admission.burst"));
    assert!(!is_reloaded("dht.listen") && !is_reloaded("node.locato") && !is_reloaded("nod"));
}

/// What replaces what in the minimal example, and the keys that are otherwise then.
const CHANGED: &[(&str, &str, &[&str])] = &[
    ("", "", &[]),
    ("", "[sessions]\nlinger = \"60s\"\n[admission]\nburst = 4_096", &[]),
    ("[uplink]", "log = \"debug\"\n[uplink]", &["node.log"]),
    ("[uplink]", "control_group = \"0\"\n[uplink]", &["node.control_group"]),
    ("\"eth1\"", "\"eth2\"\nrx_descriptors = 512", &["uplink.device", "uplink.rx_descriptors"]),
    ("[80, 443]", "[443]", &["service"]),
    ("", "[dht]\nbootstrap = [\"10.0.0.2:7000\"]", &["dht.bootstrap"]),
    ("/24\"]", "/24\", \"10.0.1.0/24\"]", &["cluster.members"]),
];

#[test]
fn changes_are_named_by_their_keys_and_only_real_ones() {
    let before = Config::parse("c.toml", &minimal()).unwrap();
    for (old, new, keys) in CHANGED {
        let text = if old.is_empty() { minimal() + new } else { minimal().replacen(old, new, 1) };
        let after = Config::parse("c.toml", &text).unwrap();
        let changes = before.changes(&after);
        let changed: Vec<&str> = changes.iter().map(|change| change.key.as_str()).collect();
        assert_eq!(&changed, keys, "{new}");
        let back = after.changes(&before);
        for (change, back) in changes.iter().zip(back) {
            assert_eq!((&change.before, &change.after), (&back.after, &back.before));
        }
    }
}

#[test]
fn other_keys_of_the_cluster_are_a_change_of_their_file() {
    let before = Config::parse("c.toml", &minimal()).unwrap();
    let mut after = before.clone();
    after.cluster.keys.as_mut().unwrap().sealing.secret.0[5] ^= 1;
    let changes = before.changes(&after);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].key, "cluster.key_file");
    let shown = format!("{changes:?}");
    assert!(!shown.contains("0f0f") && !shown.contains("15, 15"), "{shown}");

    let other = key_file(&"0e".repeat(32), 0o640);
    let path = other.path().join("cluster.key");
    let text = MINIMAL.replace(KEY_FILE, path.to_str().unwrap());
    let changes = before.changes(&Config::parse("c.toml", &text).unwrap());
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].after, path.to_str().unwrap());
}

#[test]
fn the_guide_shows_the_minimal_example() {
    assert!(GUIDE.contains(MINIMAL.trim()));
}

#[test]
fn reads_what_it_was_told() {
    let text = minimal()
        .replace("\"10.0.0.1\"", "\"2001:db8::1\"")
        .replace("[\"10.0.0.0/24\"]", "[\"2001:db8::/64\"]")
        .replace("\"eth1\"", "\"0000:3b:02.0\"")
        + r#"
[[service]]
address = "2001:db8:1::80"
ports = [443]

[sessions]
linger = "1m 30s"
kernel_check = "45s"

[host_port]
inbound_only = false

[dht]
bootstrap = ["[2001:db8::1]:7000", "[2001:db8::2]:7000"]
k = 20
bucket_bits = 1
spread = 3
lease = "90s"
dead_after = "3s"
probe_interval = "100ms"

[workers]
cores = [2, 3]
idle = "busy"
"#;
    let config = Config::parse("c.toml", &text).unwrap();
    assert_eq!(config.dht.listen, "[2001:db8::1]:7000".parse().unwrap());
    assert_eq!(config.dht.bootstrap.len(), 2, "itself among them: it may stand alone");
    assert_eq!((config.dht.spread, config.dht.lease), (3, Duration::from_secs(90)));
    assert_eq!(config.dht.dead_after, Duration::from_secs(3));
    assert_eq!(config.dht.restart_within, Duration::from_secs(10));
    assert_eq!(config.dht.probe_interval, Duration::from_millis(100));
    assert_eq!(config.sessions.linger, Duration::from_secs(90));
    assert_eq!(config.sessions.kernel_check, Duration::from_secs(45));
    assert_eq!(config.workers, Workers { cores: vec![2, 3], idle: Idle::Busy });
    assert_eq!(config.uplink.device, Device::Pci("0000:3b:02.0".to_owned()));
    let services: Vec<String> = config.service_sockets().map(|s| s.to_string()).collect();
    assert_eq!(services, ["192.168.0.1:80", "192.168.0.1:443", "[2001:db8:1::80]:443"]);
    let summary = config.summary();
    assert!(summary.contains("[2001:db8:1::80]:443"), "{summary}");
    assert!(summary.contains("joins [2001:db8::2]:7000, "), "{summary}");
    assert!(summary.contains("3 replicas among 3, lease 1m 30s"), "{summary}");
    assert!(config.cluster.is_member("2001:db8::7".parse().unwrap()));
    assert!(!config.cluster.is_member("2001:db8:7::7".parse().unwrap()));
}

#[test]
fn reads_checks_and_who_announces() {
    let text = minimal()
        + r#"
[[service]]
address = "2001:db8:1::80"
ports = [443]

[[check]]
service = "[2001:db8:1::80]:443"
rise = 1
interval = "1s"

[[check]]
service = "192.168.0.1:443"
port = 8080
kind = "http"
path = "/up?all"
status = 204

[announce]
announcer = "frr"
command = ["vtysh", "-N", "leaf"]
bgp_instance = "65001 vrf red"
prefixes = ["192.168.0.0/24", "2001:db8:1::/64"]
"#;
    let config = Config::parse("c.toml", &text).unwrap();
    let [tcp, http] = &config.checks[..] else { panic!("{:?}", config.checks) };
    assert_eq!((tcp.target, &tcp.kind), (tcp.service, &CheckKind::Tcp));
    assert_eq!((tcp.rise, tcp.fall, tcp.timeout), (1, 3, Duration::from_secs(1)));
    assert_eq!(http.service, "192.168.0.1:443".parse().unwrap());
    assert_eq!(http.target, "192.168.0.1:8080".parse().unwrap());
    let host = "192.168.0.1:8080".to_owned();
    assert_eq!(http.kind, CheckKind::Http { path: "/up?all".to_owned(), status: 204, host });
    let command = ["vtysh", "-N", "leaf"].map(str::to_owned).into();
    let bgp_instance = "65001 vrf red".to_owned();
    assert_eq!(config.announce.announcer, Announcer::Frr { command, bgp_instance });
    assert_eq!(config.prefixes(), config.announce.prefixes);
    let summary = config.summary();
    let checks = "checks     tcp [2001:db8:1::80]:443 http 192.168.0.1:8080\n";
    assert!(summary.contains(checks), "{summary}");
    let announcer = "announcer  frr, 192.168.0.0/24 2001:db8:1::/64\n";
    assert!(summary.contains(announcer), "{summary}");

    let exabgp = minimal() + "[announce]\nannouncer = \"exabgp\"\npipe = \"/run/exabgp/exabgp.in\"";
    let config = Config::parse("c.toml", &exabgp).unwrap();
    let pipe = PathBuf::from("/run/exabgp/exabgp.in");
    assert_eq!(config.announce.announcer, Announcer::ExaBgp(Lines::Pipe(pipe)));
    assert_eq!(config.prefixes(), ["192.168.0.1/32".parse().unwrap()]);
    let frr = minimal() + "[announce]\nannouncer = \"frr\"";
    let config = Config::parse("c.toml", &frr).unwrap();
    let announcer =
        Announcer::Frr { command: vec!["vtysh".to_owned()], bgp_instance: String::new() };
    assert_eq!(config.announce.announcer, announcer);
}

#[test]
fn too_many_checks_are_refused() {
    let checks = "[[check]]\nservice = \"192.168.0.1:80\"\n".repeat(CHECKS_MAX + 1);
    let error = refusal(&(minimal() + &checks));
    assert!(error.contains("65 checks: expected at most 64"), "{error}");
}

/// What replaces what in the minimal example, and the error that follows. An empty first text
/// appends the second one.
const REFUSED: &[(&str, &str, &str)] = &[
    // Syntax and structure.
    ("[node]", "[node", "c.toml:2:6: unclosed table, expected `]`"),
    ("[uplink]", "[uplnik]", "c.toml:5:2: unknown key 'uplnik': expected one of node, dpdk, "),
    (
        "locator",
        "locater",
        "c.toml:3:1: unknown key 'locater' in [node]: expected one of locator, control_socket, control_mode, \
         control_group, log",
    ),
    ("[node]", "node = 5\n[x]", "c.toml:2:8: node = 5: expected a table, headed [node]"),
    ("[[service]]", "[service]", "c.toml:8:1: [service]: expected tables, each headed [[service]]"),
    (
        "",
        "[dpdk]\nk = 1",
        "c.toml:16:1: unknown key 'k' in [dpdk]: expected one of eal_args, huge_pages, ",
    ),
    // Missing.
    (
        "locator = \"10.0.0.1\"",
        "",
        "c.toml:2:1: node.locator is missing: expected the unicast address",
    ),
    (
        "[cluster]\nmembers = [\"10.0.0.0/24\"]",
        "",
        "cluster.members is missing: expected a list, each entry a prefix",
    ),
    (
        "ports = [80, 443]",
        "",
        "c.toml:8:1: service[0].ports is missing: expected a list, each entry a whole number from 1 to 65535",
    ),
    // One value.
    (
        "\"10.0.0.1\"",
        "\"10.0.0\"",
        "c.toml:3:11: node.locator = \"10.0.0\": expected the unicast address of one server",
    ),
    ("\"10.0.0.1\"", "\"224.0.0.1\"", "node.locator = \"224.0.0.1\": expected the unicast address"),
    ("\"10.0.0.1\"", "\"0.0.0.0\"", "node.locator = \"0.0.0.0\": expected the unicast address"),
    ("\"10.0.0.1\"", "\"fe80::1\"", "node.locator = \"fe80::1\": expected the unicast address"),
    ("\"10.0.0.1\"", "10", "node.locator = 10: expected the unicast address"),
    ("\"eth1\"", "\"a/b\"", "c.toml:6:10: uplink.device = \"a/b\": expected a PCI address"),
    (
        "[80, 443]",
        "[80, 0]",
        "c.toml:10:14: service[0].ports[1] = 0: expected a whole number from 1 to 65535",
    ),
    ("[80, 443]", "[80, 65536]", "service[0].ports[1] = 65536: expected a whole number"),
    ("[80, 443]", "[80, \"443\"]", "service[0].ports[1] = \"443\": expected a whole number"),
    (
        "[80, 443]",
        "80",
        "service[0].ports = 80: expected a list, each entry a whole number from 1 to 65535",
    ),
    ("[80, 443]", "[]", "service[0].ports = []: expected at least one port"),
    (
        "\"10.0.0.0/24\"",
        "\"10.0.0.1/24\"",
        "cluster.members[0] = \"10.0.0.1/24\": expected a prefix",
    ),
    ("\"10.0.0.0/24\"", "\"0.0.0.0/0\"", "cluster.members[0] = \"0.0.0.0/0\": expected a prefix"),
    (
        "",
        "[sessions]\ncapacity = 1023",
        "c.toml:16:12: sessions.capacity = 1023: expected a whole number from 1024 to 134217728",
    ),
    ("", "[sessions]\ncapacity = -5", "sessions.capacity = -5: expected a whole number"),
    ("", "[sessions]\ncapacity = 1e6", "sessions.capacity = 1e6: expected a whole number"),
    (
        "",
        "[sessions]\nlinger = 60",
        "sessions.linger = 60: expected a time with its unit from \"1s\" to \"10m\"",
    ),
    (
        "",
        "[sessions]\nlinger = \"11m\"",
        "sessions.linger = \"11m\": expected a time with its unit",
    ),
    (
        "",
        "[sessions]\nlinger = \"5 lightyears\"",
        "sessions.linger = \"5 lightyears\": expected a time",
    ),
    ("", "[uplink2]\n", "unknown key 'uplink2'"),
    (
        "",
        "[workers]\nidle = \"lazy\"",
        "workers.idle = \"lazy\": expected \"adaptive\" or \"busy\"",
    ),
    (
        "",
        "[host_port]\nmac = \"01:00:5e:00:00:01\"",
        "host_port.mac = \"01:00:5e:00:00:01\": expected the Ethernet address of one station",
    ),
    (
        "",
        "[tunnel]\nencapsulation = \"vxlan\"",
        "tunnel.encapsulation = \"vxlan\": expected \"gue\" or \"ipip\" or \"rewrite\"",
    ),
    (
        "",
        "[dht]\nlisten = \"server1:7000\"",
        "dht.listen = \"server1:7000\": expected ADDRESS:PORT",
    ),
    (
        "",
        "[dht]\nbootstrap = [\"10.0.0.2\"]",
        "dht.bootstrap[0] = \"10.0.0.2\": expected ADDRESS:PORT",
    ),
    ("", "[dpdk]\nfile_prefix = \"../x\"", "dpdk.file_prefix = \"../x\": expected 1 to 64 letters"),
    (
        "",
        "[dpdk]\neal_args = [\"--file-prefix=x\"]",
        "dpdk.eal_args[0] = \"--file-prefix=x\": set dpdk.file_prefix instead",
    ),
    (
        "",
        "[dpdk]\neal_args = [\"-m512\"]",
        "dpdk.eal_args[0] = \"-m512\": set dpdk.memory_mib instead",
    ),
    (
        "[uplink]",
        "control_socket = \"run/x\"\n[uplink]",
        "node.control_socket = \"run/x\": expected an absolute path",
    ),
    (
        "[uplink]",
        "control_mode = \"0670\"\n[uplink]",
        "node.control_mode = \"0670\": expected an octal",
    ),
    (
        "[uplink]",
        "control_mode = \"0060\"\n[uplink]",
        "node.control_mode = \"0060\": expected an octal",
    ),
    (
        "[uplink]",
        "control_mode = \"rw\"\n[uplink]",
        "node.control_mode = \"rw\": expected an octal",
    ),
    (
        "[uplink]",
        "control_group = \"no such group\"\n[uplink]",
        "node.control_group = \"no such group\": expected a group of this machine",
    ),
    (
        "[uplink]",
        "log = \"loud\"\n[uplink]",
        "node.log = \"loud\": expected \"info\" or \"error\" or",
    ),
    ("[uplink]", "[uplink]\npromiscuous = 1", "uplink.promiscuous = 1: expected true or false"),
    (
        "\"eth1\"",
        "\"0000:3b:02.0\"\nport_vlan = 4095",
        "c.toml:7:13: uplink.port_vlan = 4095: expected a whole number from 0 to 4094",
    ),
    (
        "\"eth1\"",
        "\"eth1\"\nport_vlan = 7",
        "c.toml:7:13: uplink.port_vlan = 7: expected none: eth1 is no virtual function of a NIC",
    ),
    (
        "\"eth1\"",
        "\"0000:3b:02.0\"\nmtu = 1279",
        "c.toml:7:7: uplink.mtu = 1279: expected a whole number from 1280 to 9702",
    ),
    (
        "\"eth1\"",
        "\"eth1\"\nmtu = 9000",
        "c.toml:7:7: uplink.mtu = 9000: eth1 has its own: ip link set eth1 mtu 9000",
    ),
    (
        "\"eth1\"",
        "\"tap:wire0\"\nmtu = 9000",
        "c.toml:7:7: uplink.mtu = 9000: expected 1500, which is what the TAP wire0 takes",
    ),
    (
        "\"eth1\"",
        "\"0000:3b:02.0\"\nmtu = 2023\n[host_port]\ndevice = \"eth1\"",
        "c.toml:7:7: uplink.mtu = 2023: expected at most 2022: the host port eth1 is AF_XDP's",
    ),
    (
        "\"eth1\"",
        "\"0000:3b:02.0\"\nmtu = 9000\n[dpdk]\nmemory_mib = 74",
        "c.toml:9:14: dpdk.memory_mib = 74: expected at least 75, what the mbufs of all workers take",
    ),
    (
        "[uplink]",
        "[uplink]\nrx_descriptors = 1000",
        "uplink.rx_descriptors = 1000: expected a power of two",
    ),
    ("", "[incidents]\nflows = 0", "incidents.flows = 0: expected a whole number from 1 to 10000"),
    (
        "",
        "[incidents]\njournal = \"incidents.jsonl\"",
        "incidents.journal = \"incidents.jsonl\": expected an absolute path",
    ),
    (
        "",
        "[metrics]\nlisten = \"0.0.0.0:9464\"",
        "metrics.listen = \"0.0.0.0:9464\": expected ADDRESS:PORT with one address of this server",
    ),
    ("", "[metrics]\nlisten = \"[::]:9464\"", "metrics.listen = \"[::]:9464\": expected ADDRESS"),
    ("", "[metrics]\nlisten = 9464", "metrics.listen = 9464: expected ADDRESS:PORT"),
    (
        "",
        "[[check]]\nservice = \"192.168.0.1\"",
        "check[0].service = \"192.168.0.1\": expected ADDRESS:PORT of a [[service]]",
    ),
    ("", "[[check]]\nkind = \"tcp\"", "check[0].service is missing: expected ADDRESS:PORT of a"),
    (
        "",
        "[[check]]\nservice = \"192.168.0.1:80\"\nkind = \"icmp\"",
        "check[0].kind = \"icmp\": expected \"tcp\" or \"http\"",
    ),
    (
        "",
        "[[check]]\nservice = \"192.168.0.1:80\"\nkind = \"http\"\npath = \"/a b\"",
        "check[0].path = \"/a b\": expected a path of at most 1024 printable ASCII",
    ),
    (
        "",
        "[[check]]\nservice = \"192.168.0.1:80\"\nkind = \"http\"\nhost = \"a\\r\\nb: c\"",
        "check[0].host = \"a\\r\\nb: c\": expected a name, or a name and a port",
    ),
    (
        "",
        "[announce]\nannouncer = \"bird\"",
        "announce.announcer = \"bird\": expected \"none\" or \"frr\" or \"exabgp\"",
    ),
    (
        "",
        "[announce]\nprefixes = [\"192.168.0.1/24\"]",
        "announce.prefixes[0] = \"192.168.0.1/24\": expected a prefix around services' addresses",
    ),
    (
        "",
        "[announce]\nannouncer = \"exabgp\"\npipe = \"exabgp.in\"",
        "announce.pipe = \"exabgp.in\": expected the absolute path of a named pipe, or nothing",
    ),
    (
        "",
        "[announce]\nannouncer = \"frr\"\nbgp_instance = \"65001; exit\"",
        "announce.bgp_instance = \"65001; exit\": expected what follows \"router bgp\"",
    ),
    (
        "",
        "[announce]\nstate_directory = \".\"",
        "announce.state_directory = \".\": expected an absolute",
    ),
    // Values that contradict each other.
    (
        "",
        "[[check]]\nservice = \"192.168.0.1:8080\"",
        "check[0].service = \"192.168.0.1:8080\": expected an address and a port of a [[service]]",
    ),
    (
        "",
        "[[check]]\nservice = \"192.168.0.1:80\"\ninterval = \"500ms\"",
        "check[0].timeout = 1s (the default): expected at most check[0].interval",
    ),
    (
        "",
        "[[check]]\nservice = \"192.168.0.1:80\"\npath = \"/up\"",
        "check[0].path = \"/up\": expected only with kind = \"http\"",
    ),
    (
        "",
        "[announce]\ncommand = [\"vtysh\"]",
        "announce.command = [\"vtysh\"]: expected only with announce.announcer \"frr\" or \"exabgp\"",
    ),
    (
        "",
        "[announce]\nannouncer = \"frr\"\npipe = \"/run/pipe\"",
        "announce.pipe = \"/run/pipe\": expected only with announce.announcer \"exabgp\"",
    ),
    (
        "",
        "[announce]\nannouncer = \"exabgp\"",
        "announce.announcer = \"exabgp\": expected announce.pipe or announce.command, one of them",
    ),
    (
        "",
        "[announce]\nannouncer = \"exabgp\"\npipe = \"/p\"\ncommand = [\"cat\"]",
        "announce.announcer = \"exabgp\": expected announce.pipe or announce.command, one of them",
    ),
    (
        "",
        "[announce]\nprefixes = [\"192.168.0.0/24\", \"192.168.0.0/16\"]",
        "announce.prefixes[1] = \"192.168.0.0/16\": expected no prefix that overlaps with 192.168.0.0/24",
    ),
    (
        "",
        "[announce]\nprefixes = [\"0.0.0.0/0\"]",
        "announce.prefixes[0] = \"0.0.0.0/0\": expected a prefix without node.locator",
    ),
    (
        "",
        "[announce]\nprefixes = [\"192.168.0.0/24\", \"192.168.1.0/24\"]",
        "announce.prefixes[1] = \"192.168.1.0/24\": expected the address of a [[service]] in it",
    ),
    (
        "",
        "[announce]\nprefixes = [\"192.168.1.0/24\"]",
        "announce.prefixes = [\"192.168.1.0/24\"]: expected a prefix around service 192.168.0.1 too",
    ),
    (
        "\"192.168.0.1\"",
        "\"10.0.0.1\"",
        "service[0].address = \"10.0.0.1\": expected another address than node.locator",
    ),
    (
        "\"10.0.0.1\"",
        "\"10.0.1.1\"",
        "cluster.members = [\"10.0.0.0/24\"]: expected a prefix that contains node.locator, 10.0.1.1",
    ),
    (
        "[\"10.0.0.0/24\"]",
        "[\"10.0.0.0/24\", \"fd00::/8\"]",
        "cluster.members[1] = \"fd00::/8\": expected an IPv4 prefix: tunnels have the locator's family",
    ),
    ("[80, 443]", "[80, 80]", "service[0].ports[1] = 80: expected each port once"),
    (
        "[cluster]",
        "[[service]]\naddress = \"192.168.0.1\"\nports = [8080]\n[cluster]",
        "service[1].address = \"192.168.0.1\": expected all ports of an address in one [[service]]",
    ),
    (
        "",
        "[host_port]\ndevice = \"eth1\"",
        "host_port.device = \"eth1\": expected another device than uplink.device",
    ),
    (
        "",
        "[host_port]\ndevice = \"eth2\"\nmac = \"02:00:00:00:00:01\"",
        "host_port.mac = \"02:00:00:00:00:01\": expected only with a device \"tap:NAME\", \"vhost:NAME\" or \"switch\"",
    ),
    ("\"eth1\"", "\"switch\"", "c.toml:6:10: uplink.device = \"switch\": expected a PCI address"),
    (
        "",
        "[host_port]\nnext_hops = [\"10.1.0.11\"]",
        "c.toml:16:13: host_port.next_hops = [\"10.1.0.11\"]: expected only with host_port.device = \"switch\"",
    ),
    (
        "",
        "[host_port]\ndevice = \"switch\"\nnext_hops = [\"10.1.0.11\"]",
        "c.toml:15:1: host_port.mac is missing: expected the Ethernet address of the kernel's function",
    ),
    (
        "",
        "[host_port]\ndevice = \"switch\"\nmac = \"02:00:00:00:00:4e\"",
        "c.toml:15:1: host_port.next_hops is missing: expected a list of this server's addresses",
    ),
    (
        "",
        "[host_port]\ndevice = \"switch\"\nmac = \"02:00:00:00:00:4e\"\nnext_hops = [\"ff02::1\"]",
        "c.toml:18:14: host_port.next_hops[0] = \"ff02::1\": expected an address of this server's",
    ),
    (
        "",
        "[host_port]\ndevice = \"switch\"\nmac = \"02:00:00:00:00:4e\"\nnext_hops = [\"fe80::1\", \"fe80::1\"]",
        "c.toml:18:25: host_port.next_hops[1] = \"fe80::1\": expected each address once",
    ),
    (
        "",
        "[host_port]\ndevice = \"switch\"\nmac = \"02:00:00:00:00:4e\"\nnext_hops = [\"192.168.0.1\"]",
        "c.toml:18:14: host_port.next_hops[0] = \"192.168.0.1\": expected an address of this server alone",
    ),
    (
        "",
        "[host_port]\ndevice = \"switch\"\nmac = \"02:00:00:00:00:4e\"\nnext_hops = [\"10.0.0.1\", \"10.0.0.2\", \
         \"10.0.0.3\", \"10.0.0.4\", \"10.0.0.5\", \"10.0.0.6\", \"10.0.0.7\", \"10.0.0.8\", \"10.0.0.9\"]",
        "expected at most 8 addresses",
    ),
    (
        "",
        "[host_port]\ndevice = \"switch\"\nmac = \"02:00:00:00:00:4e\"\nnext_hops = [\"10.1.0.11\"]\n\
         inbound_only = false",
        "c.toml:19:16: host_port.inbound_only = false: expected true",
    ),
    (
        "\"eth1\"",
        "\"eth1\"\npromiscuous = true\n[host_port]\ndevice = \"switch\"\nmac = \"02:00:00:00:00:4e\"\n\
         next_hops = [\"10.1.0.11\"]",
        "c.toml:7:15: uplink.promiscuous = true: expected false",
    ),
    (
        "",
        "[workers]\ncores = [1, 2, 1]",
        "workers.cores[2] = 1: expected a core for each worker alone",
    ),
    ("", "[workers]\ncores = []", "workers.cores = []: expected at least one core"),
    (
        "",
        "[sessions]\ncapacity = 1024\nhalf_open_max = 1024",
        "sessions.half_open_max = 1024: expected less than sessions.capacity",
    ),
    (
        "",
        "[sessions]\ncapacity = 1024",
        "c.toml:15:1: sessions.half_open_max = 65536 (the default): expected less than sessions.capacity",
    ),
    (
        "",
        "[sessions]\nkernel_check = 15",
        "c.toml:16:16: sessions.kernel_check = 15: expected a time with its unit",
    ),
    (
        "",
        "[sessions]\nkernel_check = \"400ms\"",
        "sessions.kernel_check = \"400ms\": expected a time with its unit from \"500ms\" to \"5m\"",
    ),
    (
        "",
        "[sessions]\nkernel_check = \"31s\"",
        "c.toml:16:16: sessions.kernel_check = \"31s\": expected at most \"30s\", half of sessions.linger",
    ),
    (
        "",
        "[sessions]\nlinger = \"20s\"",
        "c.toml:15:1: sessions.kernel_check = 15s (the default): expected at most \"10s\", half of sessions.linger",
    ),
    (
        "",
        "[sessions]\nestablished_idle = \"1m\"\nkernel_check = \"16s\"",
        "c.toml:17:16: sessions.kernel_check = \"16s\": expected at most \"15s\", a quarter of sessions.established_idle",
    ),
    (
        "",
        "[host_port]\ninbound_only = \"yes\"",
        "c.toml:16:16: host_port.inbound_only = \"yes\": expected true or false",
    ),
    (
        "",
        "[sessions]\nkernel_check = \"11s\"\n[host_port]\ninbound_only = true",
        "c.toml:16:16: sessions.kernel_check = \"11s\": expected at most \"10s\" with host_port.inbound_only",
    ),
    (
        "",
        "[parking]\npackets_max = 4",
        "parking.packets_per_flow_max = 8 (the default): expected at most parking.packets_max",
    ),
    (
        "",
        "[parking]\ntimeout = \"500ms\"",
        "dht.lookup_timeout = 500ms (the default): expected less than parking.timeout",
    ),
    (
        "",
        "[dht]\nlisten = \"10.0.0.2:7000\"",
        "dht.listen = \"10.0.0.2:7000\": expected the locator's address, 10.0.0.1",
    ),
    (
        "",
        "[dht]\nlisten = \"10.0.0.1:6080\"",
        "dht.listen = \"10.0.0.1:6080\": expected another port than tunnel.port",
    ),
    (
        "",
        "[dht]\nbootstrap = [\"10.0.9.1:7000\"]",
        "dht.bootstrap[0] = \"10.0.9.1:7000\": expected an address in cluster.members",
    ),
    ("", "[dht]\nk = 2", "dht.alpha = 3 (the default): expected at most dht.k, 2"),
    (
        "",
        "[dht]\nspread = 0",
        "c.toml:16:10: dht.spread = 0: expected a whole number from 1 to 1024",
    ),
    (
        "",
        "[dht]\nspread = 1025",
        "c.toml:16:10: dht.spread = 1025: expected a whole number from 1 to 1024",
    ),
    ("", "[dht]\nspread = 129", "c.toml:16:10: dht.spread = 129: expected at most dht.k, 128"),
    (
        "",
        "[dht]\nk = 20\nbucket_bits = 1",
        "c.toml:15:1: dht.spread = 128 (the default): expected at most dht.k, 20",
    ),
    (
        "",
        "[dht]\nlease = \"4s\"",
        "c.toml:16:9: dht.lease = \"4s\": expected a time with its unit from \"5s\" to \"1h\"",
    ),
    ("", "[dht]\nlease = 60", "c.toml:16:9: dht.lease = 60: expected a time with its unit"),
    (
        "",
        "[dht]\nlease = \"9s\"",
        "c.toml:16:9: dht.lease = \"9s\": expected at least \"10s\", 5 times dht.dead_after",
    ),
    (
        "",
        "[dht]\ndead_after = \"13s\"",
        "dht.lease = 1m (the default): expected at least \"1m 5s\", 5 times dht.dead_after",
    ),
    (
        "",
        "[dht]\ndead_after = \"999ms\"",
        "dht.dead_after = \"999ms\": expected a time with its unit from \"1s\" to \"1m\"",
    ),
    (
        "",
        "[dht]\nlease = \"15s\"\nrestart_within = \"16s\"",
        "c.toml:17:18: dht.restart_within = \"16s\": expected at most dht.lease",
    ),
    (
        "",
        "[dht]\nrestart_within = \"6m\"",
        "dht.restart_within = \"6m\": expected a time with its unit from \"0s\" to \"5m\"",
    ),
    (
        "",
        "[dht]\nprobe_interval = \"2s\"",
        "dht.probe_interval = \"2s\": expected a time with its unit from \"10ms\" to \"1s\"",
    ),
    (
        "",
        "[dht]\nrecord_ttl = \"59s\"",
        "dht.record_ttl = \"59s\": expected a time with its unit from \"1m\" to \"7days\"",
    ),
    (
        "",
        "[dht]\nlease = \"2m\"\nrecord_ttl = \"1m\"",
        "c.toml:17:14: dht.record_ttl = \"1m\": expected at least dht.lease",
    ),
    (
        "",
        "[dpdk]\nmbufs_per_worker = 4096",
        "dpdk.mbufs_per_worker = 4096: expected at least 6912: the descriptors of all ports",
    ),
    (
        "",
        "[dpdk]\nmbufs_per_worker = 1000000",
        "dpdk.memory_mib = 256 (the default): expected at least 2320, what the mbufs of all workers take",
    ),
    (
        "",
        "[dpdk]\nhuge_pages = \"off\"\neal_args = [\"--in-memory\"]",
        "dpdk.eal_args[0] = \"--in-memory\": needs huge pages, but dpdk.huge_pages is \"off\"",
    ),
    ("", "[cluster.members]\n", "c.toml:15:10: duplicate key"),
];

#[test]
fn refuses_what_is_wrong_and_says_where_and_what_would_be_right() {
    let minimal = minimal();
    for (old, new, expected) in REFUSED {
        let text = if old.is_empty() {
            format!("{minimal}{new}\n")
        } else {
            assert!(minimal.contains(old), "{old}");
            minimal.replace(old, new)
        };
        let message = refusal(&text);
        assert!(message.contains(expected), "{new}\n  gave: {message}\n  not:  {expected}");
    }
}

#[test]
fn reports_all_errors_together_in_the_order_of_the_file() {
    let text = r#"
[node]
locator = "here"
log = "loud"
[[service]]
address = "192.168.0.1"
ports = [0]
colour = "red"
[sessions]
capacity = 10
"#;
    let errors = Config::parse("c.toml", text).expect_err("refused").0;
    let places: Vec<(usize, usize)> = errors.iter().map(|e| (e.line, e.column)).collect();
    let expected = [(3, 11), (4, 7), (7, 10), (8, 1), (10, 12), (11, 1), (11, 1), (11, 1)];
    assert_eq!(places, expected, "{errors:#?}");
    assert!(errors[5].message.starts_with("uplink.device is missing"), "{errors:#?}");
    assert!(errors[6].message.starts_with("cluster.members is missing"), "{errors:#?}");
    assert!(errors[7].message.starts_with("cluster.key_file is missing"), "{errors:#?}");
}

#[test]
fn a_bad_value_causes_no_second_error() {
    let message = refusal(&minimal().replace("\"10.0.0.1\"", "\"x\""));
    assert_eq!(message.lines().count(), 1, "{message}");
    let message = refusal(&minimal().replace("[80, 443]", "[80, 99999]"));
    assert_eq!(message.lines().count(), 1, "{message}");
    let message = refusal("= 5");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn counts_columns_in_characters() {
    let minimal = minimal();
    let message = refusal(&format!("{minimal}\"größe\" = 5\n"));
    assert!(message.starts_with("c.toml:15:1: unknown key 'größe'"), "{message}");
    let message = refusal(&format!("{minimal}members2 = {{ \"ß\" = 1, \"ß\" = 2 }}\n"));
    assert!(message.starts_with("c.toml:15:23: duplicate key"), "{message}");
}

#[test]
fn a_key_file_that_others_can_read_or_that_is_no_key_is_refused() {
    let good = "0f".repeat(32);
    let long = format!("{good}{}", " ".repeat(5000));
    let rows = [
        (long.as_str(), 0o600, "expected at most 4096 bytes"),
        (good.as_str(), 0o644, "has mode 0644: expected at most 0640"),
        (good.as_str(), 0o660, "has mode 0660: expected at most 0640"),
        (&good[1..], 0o600, "expected 64 hexadecimal digits"),
        (&good.replace("0f", "+f"), 0o600, "expected 64 hexadecimal digits"),
        ("", 0o600, "expected 64 hexadecimal digits"),
    ];
    for (content, mode, expected) in rows {
        let directory = key_file(content, mode);
        let message = refusal(&full(&directory));
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains(&good), "the key is never shown: {message}");
    }
    let message = refusal(&FULL.replace(KEY_FILE, "/nowhere/cluster.key"));
    let expected = "cluster.key_file = \"/nowhere/cluster.key\": No such file";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn a_cluster_has_a_key_or_says_that_it_has_none() {
    let line = format!("key_file = \"{KEY_FILE}\"");
    assert!(MINIMAL.contains(&line));
    let message = refusal(&MINIMAL.replace(&line, ""));
    let expected = "c.toml:12:1: cluster.key_file is missing: expected the path of a file";
    assert!(message.contains(expected), "{message}");
    assert!(message.contains("openssl rand -hex 32 > /etc/holdfast/cluster.key"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    let message = refusal(&MINIMAL.replace(&line, "key_file = \"cluster.key\""));
    assert!(message.contains("cluster.key_file = \"cluster.key\": expected an absolute path"));
    assert_eq!(message.lines().count(), 1, "{message}");

    let insecure = Config::parse("c.toml", &MINIMAL.replace(&line, "insecure = true")).unwrap();
    assert_eq!(insecure.cluster.keys, None);
    assert!(insecure.warnings[0].starts_with("cluster.insecure is set"));
    let long = format!("{}[sessions]\nredirect_idle = \"61s\"\n", minimal());
    let long = Config::parse("c.toml", &long).unwrap();
    assert!(long.warnings[0].starts_with("sessions.redirect_idle is more than"));
    assert!(insecure.summary().contains("keys       none: insecure"), "{}", insecure.summary());
    let message = refusal(&format!("{}insecure = true\n", minimal()));
    let expected = "c.toml:15:12: cluster.insecure = true: expected no cluster.key_file with it";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn two_keys_are_summed_up() {
    let [old, new] = ["0f", "1e"].map(|byte| byte.repeat(32));
    let directory = key_file(&format!("1 {new}\n0 {old}\nids {old}\n"), 0o600);
    let config = Config::parse("c.toml", &full(&directory)).unwrap();
    let summary = config.summary();
    assert!(summary.contains("keys       1 seals, 0 opens as well"), "{summary}");
}

#[test]
fn a_server_that_is_alone_in_the_list_has_nobody_to_wait_for() {
    let text = minimal() + "[dht]\nbootstrap = [\"10.0.0.1:7000\"]\n";
    let config = Config::parse("c.toml", &text).unwrap();
    assert!(config.dht.bootstrap.is_empty());
    assert!(config.summary().contains("joins nobody"), "{}", config.summary());
}

#[test]
fn the_kernel_is_checked_more_often_where_its_answers_do_not_come_by() {
    let of = |more: &str| Config::parse("c.toml", &(minimal() + more)).unwrap();
    let (both_ways, inbound) = (of(""), of("[host_port]\ninbound_only = true\n"));
    assert_eq!((both_ways.host_port.inbound_only, inbound.host_port.inbound_only), (false, true));
    assert_eq!(both_ways.sessions.kernel_check, Duration::from_secs(15));
    assert_eq!(inbound.sessions.kernel_check, Duration::from_secs(2));
    let (both_ways, inbound) = (both_ways.summary(), inbound.summary());
    assert!(both_ways.contains("host port  tap:host0\n"), "{both_ways}");
    assert!(inbound.contains("host port  tap:host0, inbound only\n"), "{inbound}");
}

#[test]
fn too_many_services_are_refused() {
    let ports: Vec<String> = (1..=65).map(|port: u32| port.to_string()).collect();
    let text = minimal().replace("80, 443", &ports.join(","));
    let expected = "65 ports in all: expected at most 64";
    assert!(refusal(&text).contains(expected), "{}", refusal(&text));
}

proptest::proptest! {
    #[test]
    fn hostile_text_never_panics(text in "[\\[\\]a-z\"'=.,#0-9\\n ß{}-]{0,200}") {
        let _ = Config::parse("c.toml", &text);
        let _ = Config::parse("c.toml", &format!("{}{text}", minimal()));
    }
}

#[test]
fn metrics_beyond_loopback_are_warned_of() {
    let parse = |listen: &str| {
        let text = format!("{}[metrics]\nlisten = \"{listen}\"\n", minimal());
        Config::parse("c.toml", &text).unwrap()
    };
    let shown = parse("10.0.0.1:9464");
    assert_eq!(shown.metrics.listen, Some("10.0.0.1:9464".parse().unwrap()));
    assert!(shown.warnings[0].starts_with("metrics.listen = \"10.0.0.1:9464\": whoever"));
    for loopback in ["127.0.0.1:9464", "[::1]:9464"] {
        assert!(parse(loopback).warnings.is_empty(), "{loopback}");
    }
}
