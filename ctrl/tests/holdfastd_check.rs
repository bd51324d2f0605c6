//! `holdfastd check` on configurations that are valid and that are not.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const MINIMAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/minimal.toml");
const FULL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/full.toml");

fn check(path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfastd")).arg("check").arg(path).output().unwrap()
}

#[test]
fn a_valid_configuration_is_ok_and_summed_up() {
    let directory = tempfile::tempdir().unwrap();
    let [path, key] = ["c.toml", "cluster.key"].map(|name| directory.path().join(name));
    std::fs::write(&key, "0f".repeat(32)).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let text = std::fs::read_to_string(MINIMAL).unwrap();
    let text = text.replace("/etc/holdfast/cluster.key", key.to_str().unwrap());
    std::fs::write(&path, text).unwrap();
    let output = check(&path);
    assert_eq!(output.status.code(), Some(0));
    let expected = format!(
        "{}: ok
  locator    10.0.0.1
  uplink     eth1
  host port  tap:host0
  workers    1 on cores 0
  services   192.168.0.1:80 192.168.0.1:443
  sessions   1000000
  tunnel     gue, UDP port 6080
  dht        10.0.0.1:7000, joins nobody, 3 replicas among 128, lease 1m
  members    10.0.0.0/24
  keys       0 seals
  checks     none
  announcer  none, 192.168.0.1/32
  control    /run/holdfast/holdfastd.sock
",
        path.display()
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert!(output.stderr.is_empty());
}

#[test]
fn all_errors_are_listed_with_their_places() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.toml");
    let text = std::fs::read_to_string(FULL).unwrap();
    let text = text.replace("/etc/holdfast/cluster.key", "/nowhere/cluster.key");
    let text = text.replace("capacity = 1_000_000", "capacity = 7");
    let text = text.replace("spread = 128", "spread = 0");
    std::fs::write(&path, &text).unwrap();
    let output = check(&path);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let error = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 3, "{error}");
    let file = path.display();
    let at = |setting: &str| {
        let line = text.lines().position(|line| line == setting).unwrap() + 1;
        format!("{file}:{line}:{}: ", setting.find("= ").unwrap() + 3)
    };
    let expected = at("capacity = 7") + "sessions.capacity = 7: expected a whole number from ";
    assert!(lines[0].starts_with(&expected), "{error}");
    let expected = at("spread = 0") + "dht.spread = 0: expected a whole number from 1 to 1024";
    assert!(lines[1].starts_with(&expected), "{error}");
    let expected = at("key_file = \"/nowhere/cluster.key\"") + "cluster.key_file = \"/nowhere/";
    assert!(lines[2].starts_with(&expected), "{error}");
}

#[test]
fn every_error_of_a_file_that_is_no_toml_or_no_text_has_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.toml");
    let file = path.display();
    let rows: [(&[u8], &[&str]); 4] = [
        (b"[node]\nlocator = \nlog = \n", &["2:", "3:"]),
        (b"[node]\nlog = \"info\"\nlog = \"warn\"\n", &["3:1: "]),
        (
            "[node]\n# größ".as_bytes(),
            &["1:1: node.locator is missing", "2:7: uplink.device is missing"],
        ),
        (b"[node]\n# gr\xc3\xb6\xffe\n", &["2:6: expected text in UTF-8"]),
    ];
    for (text, expected) in rows {
        std::fs::write(&path, text).unwrap();
        let output = check(&path);
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        for place in expected {
            let begins = format!("{file}:{place}");
            assert!(error.lines().any(|line| line.starts_with(&begins)), "{begins}: {error}");
        }
        let placed = |line: &str| line.starts_with(&format!("{file}:"));
        assert!(error.lines().all(placed), "{error}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = check(Path::new("/nowhere/c.toml"));
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("/nowhere/c.toml: No such file"), "{error}");
}

#[test]
fn a_daemon_does_not_start_with_what_is_invalid_and_says_so_by_its_exit_status() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.toml");
    std::fs::write(&path, "[node]\nlocator = 7\n").unwrap();
    for verb in ["run", "hold"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastd"));
        let output = command.arg(verb).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{verb}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            error.starts_with(&format!("{}:2:11: node.locator = 7", path.display())),
            "{error}"
        );
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [&[][..], &["check"], &["check", MINIMAL, MINIMAL], &["fly"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastd"));
        let output = command.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
