//! `holdfastctl doctor` on trees that stand for servers: each row spoils one thing of a server where
//! all is well, and says what is found and how it is mended. Last, on this machine itself.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A server with its uplink on VF 1 of ens1, two workers that never sleep, and a TAP.
const CONFIG: &str = r#"
[node]
locator = "10.0.0.1"
[uplink]
device = "0000:3b:02.1"
[workers]
cores = [2, 3]
idle = "busy"
[dpdk]
memory_mib = 512
[[service]]
address = "192.168.0.1"
ports = [80]
[dht]
bootstrap = ["10.0.0.2:7000"]
[cluster]
members = ["10.0.0.0/24"]
insecure = true
"#;

const FIB: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.0.0.1
        /32 host LOCAL
     |-- 10.0.0.2
        /32 link UNICAST
     |-- 192.168.0.1
        /32 host LOCAL
";

struct Server {
    tree: tempfile::TempDir,
}

impl Server {
    fn healthy() -> Server {
        let server = Server { tree: tempfile::tempdir().unwrap() };
        server.write("cluster.key", &"0f".repeat(32));
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(server.path("cluster.key"), mode).unwrap();
        let key_file = format!("key_file = {:?}", server.path("cluster.key"));
        server.write("c.toml", &CONFIG.replace("insecure = true", &key_file));
        let (pf, vf) = ("sys/bus/pci/devices/0000:3b:00.0", "sys/bus/pci/devices/0000:3b:02.1");
        for (path, text) in [
            (format!("{pf}/net/ens1/x"), ""),
            (format!("{vf}/numa_node"), "0"),
            ("sys/class/net/ens1/operstate".to_owned(), "up"),
            ("sys/class/net/ens1/mtu".to_owned(), "1600"),
            ("sys/class/net/ens2/operstate".to_owned(), "up"),
            ("sys/class/net/ens2/mtu".to_owned(), "1600"),
            ("sys/class/net/ens2/queues/rx-0/x".to_owned(), ""),
            ("sys/class/net/ens2/queues/rx-1/x".to_owned(), ""),
            ("sys/class/net/ens2/queues/tx-0/x".to_owned(), ""),
            ("sys/kernel/iommu_groups/7/devices/x".to_owned(), ""),
            ("sys/bus/pci/drivers/vfio-pci/x".to_owned(), ""),
            ("sys/bus/pci/drivers/iavf/x".to_owned(), ""),
            ("sys/devices/system/node/node0/cpulist".to_owned(), "0-3"),
            ("sys/devices/system/cpu/online".to_owned(), "0-3"),
            ("sys/devices/system/cpu/isolated".to_owned(), "2-3"),
            ("sys/devices/system/cpu/nohz_full".to_owned(), "2-3"),
            ("sys/devices/system/cpu/cpu2/topology/thread_siblings_list".to_owned(), "2"),
            ("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor".to_owned(), "performance"),
            ("proc/irq/9/effective_affinity_list".to_owned(), "0"),
            ("proc/meminfo".to_owned(), MEMINFO),
            ("proc/self/limits".to_owned(), LIMITS),
            ("proc/net/fib_trie".to_owned(), FIB),
            ("proc/net/protocols".to_owned(), "protocol  size\nXDP       1024"),
            ("proc/net/if_inet6".to_owned(), "fe80000000000000000000000000000a 04 40 20 80 lo\n"),
            ("proc/sys/vm/overcommit_memory".to_owned(), "0"),
            ("proc/sys/net/ipv4/conf/all/rp_filter".to_owned(), "0"),
            ("proc/sys/net/ipv4/conf/host0/rp_filter".to_owned(), "2"),
            ("dev/net/tun".to_owned(), ""),
        ] {
            server.write(&path, text);
        }
        server.link(&format!("{vf}/physfn"), pf);
        server.link(&format!("{pf}/virtfn1"), vf);
        server.link(&format!("{vf}/driver"), "sys/bus/pci/drivers/vfio-pci");
        server.link(&format!("{vf}/iommu_group"), "sys/kernel/iommu_groups/7");
        server.link("sys/kernel/iommu_groups/7/devices/0000:3b:02.1", vf);
        server.program("ip", VF_TRUSTED);
        server
            .program("ethtool", "large-receive-offload: off [fixed]\ngeneric-receive-offload: off");
        server.program("timedatectl", "yes");
        server
    }

    fn path(&self, path: &str) -> PathBuf {
        self.tree.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, to: &str) {
        let _ = std::fs::remove_file(self.path(path));
        std::fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        symlink(self.path(to), self.path(path)).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path(path);
        if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }

    /// A program that says this, whatever it is asked.
    fn program(&self, name: &str, says: &str) {
        let path = format!("bin/{name}");
        self.write(&path, &format!("#!/bin/sh\n/bin/cat <<'END'\n{says}\nEND\n"));
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.path(&path), mode).unwrap();
    }

    /// A change of the configuration.
    fn configure(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path("c.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        self.write("c.toml", &text.replace(from, to));
    }

    fn doctor(&self, arguments: &[&str]) -> Output {
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
        doctor.arg("doctor").arg(self.path("c.toml")).arg("--root").arg(self.tree.path());
        doctor.args(arguments).env("PATH", self.path("bin")).output().unwrap()
    }

    fn report(&self) -> (Option<i32>, Value) {
        let output = self.doctor(&["--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    }
}

const MEMINFO: &str = "MemTotal: 1 kB
HugePages_Total:     300
HugePages_Free:      280
Hugepagesize:       2048 kB";
const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units
Max locked memory         unlimited            unlimited            bytes";
const VF_TRUSTED: &str =
    r#"[{"ifname":"ens1","vfinfo_list":[{"vf":0},{"vf":1,"spoofchk":false,"trust":true}]}]"#;

const VF: &str = "sys/bus/pci/devices/0000:3b:02.1";
/// The host port through the NIC's switch: the kernel has VF 0, which is ens1v0.
fn behind_the_switch(server: &Server) {
    let host_port = "[host_port]\ndevice = \"switch\"\nmac = \"3e:fd:fe:00:00:11\"\n\
                     next_hops = [\"10.1.0.11\", \"fe80::11\"]\n[workers]";
    server.configure("[workers]", host_port);
    server.write("sys/class/net/ens1v0/address", "3e:fd:fe:00:00:11");
    server.write("sys/class/net/ens1v0/operstate", "up");
    server.write("sys/class/net/ens1v0/mtu", "1500");
    let vf = "sys/bus/pci/devices/0000:3b:02.0";
    server.write(&format!("{vf}/x"), "");
    server.link(&format!("{vf}/physfn"), "sys/bus/pci/devices/0000:3b:00.0");
    server.link("sys/class/net/ens1v0/device", vf);
    // Neither is needed.
    let untrusted = VF_TRUSTED.replace("\"trust\":true", "\"trust\":false");
    server.program("ip", &untrusted.replace("\"spoofchk\":false", "\"spoofchk\":true"));
}

const BY_AF_XDP: (&str, &str) = ("0000:3b:02.1", "ens2");

struct Row {
    spoil: fn(&Server),
    name: &'static str,
    status: &'static str,
    found: &'static str,
    mend: &'static str,
}

const fn row(
    spoil: fn(&Server),
    name: &'static str,
    status: &'static str,
    found: &'static str,
    mend: &'static str,
) -> Row {
    Row { spoil, name, status, found, mend }
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row(|s| s.configure("locator = \"10.0.0.1\"", "locator = 7"), "configuration", "fail",
        "c.toml:3:11: node.locator = 7", "holdfastd check"),
    row(|s| s.remove("c.toml"), "configuration", "fail", "No such file", "holdfast.toml.example"),
    // The uplink.
    row(|s| s.remove(VF), "uplink", "fail", "there is no PCI device 0000:3b:02.1", "lspci"),
    row(|s| s.link(&format!("{VF}/driver"), "sys/bus/pci/drivers/iavf"), "uplink", "fail",
        "bound to the kernel's driver iavf", "echo vfio-pci > /sys/bus/pci/devices/0000:3b:02.1/driver_override"),
    row(|s| s.remove(&format!("{VF}/driver")), "uplink", "fail", "has no driver", "modprobe vfio-pci"),
    row(|s| s.link(&format!("{VF}/driver"), "sys/bus/pci/drivers/igb_uio"), "uplink", "warn",
        "bound to igb_uio", "vfio-pci"),
    row(|s| s.remove(&format!("{VF}/iommu_group")), "iommu", "fail", "in no IOMMU group", "intel_iommu=on"),
    row(|s| {
        s.remove(&format!("{VF}/iommu_group"));
        s.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y");
    }, "iommu", "warn", "vfio runs without one", "intel_iommu=on"),
    row(|s| {
        s.link("sys/bus/pci/devices/0000:3b:02.0/driver", "sys/bus/pci/drivers/iavf");
        s.write("sys/kernel/iommu_groups/7/devices/0000:3b:02.0/x", "");
    }, "iommu", "fail", "shares group 7 with 0000:3b:02.0 (iavf)", "another slot"),
    row(|s| s.write("sys/class/net/ens1/operstate", "down"), "sr-iov", "fail", "VF 1 of ens1, which is down",
        "ip link set ens1 up"),
    row(|s| {
        s.configure("device = \"0000:3b:02.1\"", "device = \"0000:3b:02.1\"\npromiscuous = false\n[host_port]\nmac = \"02:00:00:00:00:01\"");
        s.program("ip", &VF_TRUSTED.replace("\"vf\":1,", "\"vf\":1,\"address\":\"02:00:00:00:00:02\","));
    }, "sr-iov", "fail", "has the address 02:00:00:00:00:02, and the host port another one", "mac = \"02:00:00:00:00:02\" in [host_port]"),
    row(|s| s.program("ip", &VF_TRUSTED.replace("\"vf\":1,", "\"vf\":1,\"vlan_list\":[{\"vlan\":7}],")), "sr-iov", "fail",
        "VF 1 of ens1 is in VLAN 7, and uplink.port_vlan is 0", "port_vlan = 7 in [uplink]"),
    row(|s| s.program("ip", &VF_TRUSTED.replace("\"spoofchk\":false", "\"spoofchk\":true")), "sr-iov", "fail",
        "checked for spoofing", "ip link set ens1 vf 1 spoofchk off"),
    row(|s| s.program("ip", &VF_TRUSTED.replace("\"trust\":true", "\"trust\":false")), "sr-iov", "warn",
        "not trusted", "ip link set ens1 vf 1 trust on"),
    row(|s| s.remove("bin/ip"), "sr-iov", "warn", "does not say what VF 1 may do", "ip link show dev ens1"),
    row(|s| s.write("proc/sys/net/ipv4/conf/ens1/arp_ignore", "0"), "arp", "warn",
        "ens1 answers ARP for the host port's addresses", "sysctl -w net.ipv4.conf.ens1.arp_ignore=1"),
    row(|s| s.write("sys/devices/system/node/node0/cpulist", "0-2"), "numa", "warn", "cores [3] are not",
        "workers.cores"),
    row(|s| s.write("sys/class/net/ens1/mtu", "1531"), "mtu", "warn",
        "the uplink's is 1531, the host's 1500, and a tunnel takes 32", "MTU to 1532"),
    row(|s| {
        s.write("sys/class/net/ens1/mtu", "1520");
        s.configure("[cluster]", "[tunnel]\nencapsulation = \"ipip\"\n[cluster]");
        s.write("sys/class/net/host0/mtu", "1501");
    }, "mtu", "warn", "the uplink's is 1520, the host's 1501, and a tunnel takes 20", "1521"),
    row(|s| s.configure(BY_AF_XDP.0, "ens9"), "uplink", "fail", "no network interface ens9", "ip link"),
    row(|s| {
        s.configure(BY_AF_XDP.0, BY_AF_XDP.1);
        s.remove("sys/class/net/ens2/queues/rx-1");
    }, "uplink", "fail", "ens2 has 1 receive queues for 2 workers", "ethtool -L ens2 combined 2"),
    row(|s| {
        s.configure(BY_AF_XDP.0, BY_AF_XDP.1);
        s.write("proc/net/protocols", "TCP 1");
    }, "uplink", "fail", "no AF_XDP", "kernel"),
    row(|s| {
        s.configure(BY_AF_XDP.0, BY_AF_XDP.1);
        s.write("sys/class/net/ens2/operstate", "down");
    }, "uplink", "fail", "ens2 is down", "ip link set ens2 up"),
    row(|s| {
        s.configure(BY_AF_XDP.0, BY_AF_XDP.1);
        s.write("proc/net/if_inet6", "fe80000000000000000000000000000a 04 40 20 80 ens2");
    }, "uplink", "warn", "the kernel speaks IPv6 on ens2", "net.ipv6.conf.ens2.disable_ipv6=1"),
    row(|s| {
        s.configure(BY_AF_XDP.0, BY_AF_XDP.1);
        s.program("ethtool", "large-receive-offload: on\ngeneric-receive-offload: on\nrx-gro-hw: off");
    }, "offloads", "warn", "joins segments (lro, gro)", "ethtool -K ens2 lro off gro off"),
    row(|s| {
        s.configure(BY_AF_XDP.0, BY_AF_XDP.1);
        s.remove("bin/ethtool");
    }, "offloads", "warn", "ethtool is missing", "apt-get install ethtool"),
    // The host port.
    row(|s| s.remove("dev/net/tun"), "host port", "fail", "no /dev/net/tun", "modprobe tun"),
    row(|s| s.configure("[workers]", "[host_port]\ndevice = \"vhost:host0\"\n[workers]"), "host port", "fail",
        "no /dev/vhost-net", "modprobe vhost_net"),
    row(|s| {
        s.configure("[workers]", "[host_port]\ninbound_only = true\n[workers]");
        s.write("proc/sys/net/ipv4/conf/host0/rp_filter", "1");
    }, "rp_filter", "fail", "host0 drops what clients send", "net.ipv4.conf.host0.rp_filter=0"),
    row(|s| {
        behind_the_switch(s);
        s.write("sys/class/net/ens1v0/address", "3e:fd:fe:00:00:12");
    }, "host port", "fail", "no network interface has 3e:fd:fe:00:00:11", "--driver kernel"),
    row(|s| {
        behind_the_switch(s);
        s.write("sys/class/net/ens1v0/operstate", "down");
    }, "host port", "fail", "ens1v0, the kernel's function, is down", "ip link set ens1v0 up"),
    row(|s| {
        behind_the_switch(s);
        s.link("sys/bus/pci/devices/0000:3b:02.0/physfn", "sys/bus/pci/devices/0000:5e:00.0");
    }, "host port", "fail", "ens1v0 is a function of 0000:5e:00.0, the uplink one of 0000:3b:00.0", "host_port.mac"),
    row(|s| {
        behind_the_switch(s);
        s.program("bridge", "2: ens1: <BROADCAST,MULTICAST,UP> mtu 1500 hwmode VEPA");
    }, "sr-iov", "fail", "mode VEPA", "bridge link set dev ens1 hwmode veb"),
    row(|s| {
        behind_the_switch(s);
        s.write("proc/net/fib_trie", &(FIB.to_owned() + "     |-- 10.1.0.11\n        /32 host LOCAL\n"));
    }, "next hop", "fail", "the kernel has 10.1.0.11 as well", "net.ipv4.conf.ens1v0.arp_ignore=1"),
    row(|s| {
        behind_the_switch(s);
        s.write("proc/net/if_inet6", "fe800000000000000000000000000011 04 40 20 80 ens1v0");
    }, "next hop", "fail", "the kernel has fe80::11 as well", "ip address del fe80::11/64 dev ens1v0"),
    row(|s| {
        behind_the_switch(s);
        s.write("proc/sys/net/ipv4/conf/ens1v0/rp_filter", "1");
    }, "rp_filter", "fail", "ens1v0 drops what clients send", "net.ipv4.conf.ens1v0.rp_filter=0"),
    // Cores.
    row(|s| s.configure("[2, 3]", "[3, 4]"), "cores", "fail", "names [4]", "workers.cores"),
    row(|s| s.configure("[2, 3]", "[0, 1, 2, 3]"), "cores", "fail", "have all cores", "at least one core"),
    row(|s| s.write("sys/devices/system/cpu/isolated", ""), "cores", "warn", "2,3 are not isolated",
        "isolcpus=2,3 nohz_full=2,3 rcu_nocbs=2,3"),
    row(|s| s.write("sys/devices/system/cpu/nohz_full", "3"), "cores", "warn", "2 are not free of the kernel's tick",
        "nohz_full=2,3"),
    row(|s| s.write("sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2-3"), "cores", "warn",
        "2 and 3 are threads of one core", "lscpu"),
    row(|s| s.write("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "powersave"), "cores", "warn",
        "governor powersave", "cpupower"),
    row(|s| s.write("proc/irq/33/effective_affinity_list", "1,3"), "interrupts", "warn",
        "1 go to workers' cores, 33 among them", "IRQBALANCE_BANNED_CPULIST=2,3"),
    // The system.
    row(|s| s.write("proc/meminfo", &MEMINFO.replace("300", "100")), "huge pages", "warn",
        "200 MiB of them, and dpdk.memory_mib is 512", "echo 256 > /proc/sys/vm/nr_hugepages"),
    row(|s| {
        s.configure("memory_mib = 512", "memory_mib = 512\nhuge_pages = \"on\"");
        s.write("proc/meminfo", "");
    }, "huge pages", "fail", "0 MiB of them", "nr_hugepages"),
    row(|s| s.write("proc/meminfo", &MEMINFO.replace("280", "1")), "huge pages", "warn", "2 MiB free", "numa_maps"),
    row(|s| s.configure("memory_mib", "huge_pages = \"off\"\nmemory_mib"), "huge pages", "warn", "slower", "auto"),
    row(|s| s.write("proc/self/limits", &LIMITS.replace("unlimited", "8388608  ")), "memlock", "warn",
        "this shell's limit is 8388608 bytes", "ulimit -l unlimited"),
    row(|s| {
        s.write("proc/77/comm", "holdfastd\n");
        s.write("proc/77/limits", &LIMITS.replace("unlimited", "65536"));
    }, "memlock", "warn", "the daemon's limit is 65536 bytes", "LimitMEMLOCK"),
    row(|s| s.write("proc/sys/vm/overcommit_memory", "2"), "sysctl", "warn", "overcommit_memory is 2",
        "vm.overcommit_memory=0"),
    row(|s| {
        s.write("sys/devices/system/node/node1/cpulist", "4");
        s.write("proc/sys/kernel/numa_balancing", "1");
    }, "sysctl", "warn", "numa_balancing is on", "kernel.numa_balancing=0"),
    row(|s| s.write("proc/net/fib_trie", &FIB.replace("10.0.0.1", "10.0.0.11")), "locator", "fail",
        "10.0.0.1 is not on this machine", "ip address add 10.0.0.1/32 dev lo"),
    row(|s| s.configure("192.168.0.1", "2001:db8::7"), "service", "warn", "2001:db8::7 is not on this machine",
        "ip address add 2001:db8::7/128 dev lo"),
    row(|s| s.program("timedatectl", "no"), "clock", "warn", "not synchronised", "chrony"),
    row(|s| s.remove("bin/timedatectl"), "clock", "warn", "cannot tell", "chronyc"),
];

#[test]
fn a_server_where_all_is_well_has_no_warnings() {
    let server = Server::healthy();
    let (code, report) = server.report();
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["status"] == "ok"), "{report:#}");
    assert!(checks.iter().all(|check| check.get("mend").is_none()), "{report:#}");
    assert_eq!(
        (code, report["fail"].as_u64(), report["warn"].as_u64()),
        (Some(0), Some(0), Some(0))
    );
    let names: Vec<_> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    let expected = ["uplink", "iommu", "sr-iov", "numa", "host port", "mtu", "rp_filter", "cores"];
    for name in expected.iter().chain(&["interrupts", "huge pages", "memlock", "locator", "clock"])
    {
        assert!(names.contains(name), "{name}: {names:?}");
    }

    let switched = Server::healthy();
    behind_the_switch(&switched);
    let fib = FIB.to_owned() + "     |-- 10.1.0.11\n        /32 host LOCAL\n";
    // On the loopback interface a next hop may be, if the kernel keeps silent about it.
    switched.write("proc/net/fib_trie", &fib);
    switched.write("proc/sys/net/ipv4/conf/ens1v0/arp_ignore", "1");
    let (code, report) = switched.report();
    assert_eq!((code, report["warn"].as_u64()), (Some(0), Some(0)), "{report:#}");

    // By AF_XDP, and with workers that sleep.
    server.configure(BY_AF_XDP.0, BY_AF_XDP.1);
    server.configure("busy", "adaptive");
    server.write("sys/devices/system/cpu/isolated", "");
    let (code, report) = server.report();
    assert_eq!((code, report["warn"].as_u64()), (Some(0), Some(0)), "{report:#}");
}

#[test]
fn what_is_wrong_is_found_with_the_command_that_mends_it() {
    for Row { spoil, name, status, found, mend } in ROWS {
        let server = Server::healthy();
        spoil(&server);
        let (code, report) = server.report();
        let checks = report["checks"].as_array().unwrap();
        let is_it = |check: &&Value| {
            let has = |key: &str, text| check[key].as_str().is_some_and(|is| is.contains(text));
            check["name"] == *name && check["status"] == *status && has("found", *found)
        };
        let check = checks.iter().find(is_it);
        let check = check.unwrap_or_else(|| panic!("{name} {status} {found}: {report:#}"));
        assert!(check["mend"].as_str().unwrap().contains(mend), "{mend}: {check:#}");
        assert_eq!(code, Some(i32::from(report["fail"] != 0)), "{report:#}");
        assert_eq!(report["fail"] != 0, checks.iter().any(|check| check["status"] == "fail"));
    }
}

#[test]
fn people_get_lines() {
    let server = Server::healthy();
    server.write("sys/class/net/ens1/operstate", "down");
    server.program("timedatectl", "no");
    let output = server.doctor(&[]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[1].starts_with("ok    uplink         0000:3b:02.1 is bound to vfio-pci"),
        "{text}"
    );
    let failure = lines.iter().position(|line| line.starts_with("FAIL  sr-iov         ")).unwrap();
    assert_eq!(lines[failure + 1], "                     mend: ip link set ens1 up", "{text}");
    assert!(lines.iter().any(|line| line.starts_with("warn  clock          not sync")), "{text}");
    assert!(lines.last().unwrap().ends_with(" ok, 1 warnings, 1 failures"), "{text}");
    assert!(output.stderr.is_empty());
}

#[test]
fn it_examines_this_machine_without_a_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    std::fs::write(&path, CONFIG).unwrap();
    let doctor = |path: &Path| {
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
        doctor.arg("doctor").arg(path).arg("--json").output().unwrap()
    };
    let output = doctor(&path);
    // It is no server of holdfast's: its locator is not here.
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let has = |name: &str, status: &str| {
        checks.iter().any(|check| check["name"] == name && check["status"] == status)
    };
    assert!(has("uplink", "fail") && has("locator", "fail"), "{report:#}");
}
