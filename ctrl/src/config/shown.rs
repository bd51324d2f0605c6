//! The configuration in effect as its operator reads it: the file's own form, with all defaults
//! filled in. Never shows a key of the cluster.

use std::fmt::Display;
use std::time::Duration;

use humantime_serde::re::humantime::format_duration;
use serde_json::{Map, Value, json};

use super::{
    Admission, Announce, Announcer, Check, CheckKind, Cluster, ClusterKeys, Config, Dht, Dpdk,
    HostPort, HugePages, Idle, Incidents, Lines, Metrics, Node, Parking, Service, Sessions, Tunnel,
    Uplink, Workers,
};

/// A text as the file has it.
fn text(value: &impl Display) -> Value {
    Value::String(value.to_string())
}

fn time(value: Duration) -> Value {
    text(&format_duration(value))
}

fn texts<T: Display>(values: &[T]) -> Value {
    values.iter().map(text).collect()
}

impl Config {
    /// All sections with all keys, each in the form that the file has. What [`Config::parse`] makes
    /// of it is this configuration.
    #[must_use]
    pub fn shown(&self) -> Map<String, Value> {
        // All of them: a new section or key does not compile before it is here.
        let Config {
            node,
            dpdk,
            uplink,
            host_port,
            workers,
            services,
            sessions,
            parking,
            admission,
            tunnel,
            dht,
            cluster,
            incidents,
            metrics,
            checks,
            announce,
            warnings: _,
        } = self;
        let mut shown = Map::new();
        for (name, section) in [
            ("node", shown_node(node)),
            ("dpdk", shown_dpdk(dpdk)),
            ("uplink", shown_uplink(uplink)),
            ("host_port", shown_host_port(host_port)),
            ("workers", shown_workers(workers)),
            ("service", services.iter().map(shown_service).collect()),
            ("sessions", shown_sessions(sessions)),
            ("parking", shown_parking(parking)),
            ("admission", shown_admission(admission)),
            ("tunnel", shown_tunnel(tunnel)),
            ("dht", shown_dht(dht)),
            ("cluster", shown_cluster(cluster)),
            ("incidents", shown_incidents(incidents)),
            ("metrics", shown_metrics(metrics)),
            ("announce", shown_announce(announce)),
        ] {
            shown.insert(name.to_owned(), section);
        }
        // Without one there is no such table.
        if !checks.is_empty() {
            shown.insert("check".to_owned(), checks.iter().map(shown_check).collect());
        }
        shown
    }
}

fn shown_check(check: &Check) -> Value {
    let Check { service, target, kind, interval, timeout, rise, fall } = check;
    let mut shown = json!({
        "service": text(service),
        "port": target.port(),
        "kind": kind.name(),
        "interval": time(*interval),
        "timeout": time(*timeout),
        "rise": rise,
        "fall": fall,
    });
    if let CheckKind::Http { path, status, host } = kind {
        shown["path"] = text(path);
        shown["status"] = json!(status);
        shown["host"] = text(host);
    }
    shown
}

fn shown_announce(announce: &Announce) -> Value {
    let Announce { announcer, prefixes, timeout, refresh, publish_within, settle, state_directory } =
        announce;
    let (command, pipe, bgp_instance) = match announcer {
        Announcer::None => (&[][..], String::new(), ""),
        Announcer::Frr { command, bgp_instance } => {
            (&command[..], String::new(), &bgp_instance[..])
        }
        Announcer::ExaBgp(Lines::Pipe(pipe)) => (&[][..], pipe.display().to_string(), ""),
        Announcer::ExaBgp(Lines::Command(command)) => (&command[..], String::new(), ""),
    };
    json!({
        "announcer": announcer.name(),
        "prefixes": texts(prefixes),
        "command": command,
        "pipe": pipe,
        "bgp_instance": bgp_instance,
        "timeout": time(*timeout),
        "refresh": time(*refresh),
        "publish_within": time(*publish_within),
        "settle": time(*settle),
        "state_directory": text(&state_directory.display()),
    })
}

fn shown_node(node: &Node) -> Value {
    let Node { locator, control_socket, control_mode, control_group, log, log_format } = node;
    let mut shown = json!({
        "locator": text(locator),
        "control_socket": text(&control_socket.display()),
        "control_mode": format!("{control_mode:04o}"),
        "log": log.as_str(),
        "log_format": log_format.as_str(),
    });
    if let Some(group) = control_group {
        shown["control_group"] = text(&group.name);
    }
    shown
}

fn shown_dpdk(dpdk: &Dpdk) -> Value {
    let Dpdk { eal_args, huge_pages, memory_mib, file_prefix, mbufs_per_worker } = dpdk;
    let huge_pages = match huge_pages {
        HugePages::Auto => "auto",
        HugePages::On => "on",
        HugePages::Off => "off",
    };
    json!({
        "eal_args": eal_args,
        "huge_pages": huge_pages,
        "memory_mib": memory_mib,
        "file_prefix": file_prefix,
        "mbufs_per_worker": mbufs_per_worker,
    })
}

fn shown_uplink(uplink: &Uplink) -> Value {
    let Uplink { device, rx_descriptors, tx_descriptors, promiscuous, mtu, offloads, port_vlan } =
        uplink;
    json!({
        "device": text(device),
        "rx_descriptors": rx_descriptors,
        "tx_descriptors": tx_descriptors,
        "promiscuous": promiscuous,
        "mtu": mtu,
        "offloads": offloads,
        "port_vlan": port_vlan.unwrap_or(0),
    })
}

fn shown_host_port(host_port: &HostPort) -> Value {
    let HostPort { device, mac, next_hops, inbound_only } = host_port;
    let mut shown = json!({
        "device": text(device),
        "next_hops": texts(next_hops),
        "inbound_only": inbound_only,
    });
    if let Some(mac) = mac {
        shown["mac"] = text(mac);
    }
    shown
}

fn shown_workers(workers: &Workers) -> Value {
    let Workers { cores, idle } = workers;
    let idle = match idle {
        Idle::Adaptive => "adaptive",
        Idle::Busy => "busy",
    };
    json!({ "cores": cores, "idle": idle })
}

fn shown_service(service: &Service) -> Value {
    let Service { address, ports } = service;
    json!({ "address": text(address), "ports": ports })
}

fn shown_sessions(sessions: &Sessions) -> Value {
    let Sessions {
        capacity,
        half_open_max,
        established_idle,
        redirect_idle,
        half_open_timeout,
        linger,
        kernel_check,
    } = sessions;
    json!({
        "capacity": capacity,
        "half_open_max": half_open_max,
        "established_idle": time(*established_idle),
        "redirect_idle": time(*redirect_idle),
        "half_open_timeout": time(*half_open_timeout),
        "linger": time(*linger),
        "kernel_check": time(*kernel_check),
    })
}

fn shown_parking(parking: &Parking) -> Value {
    let Parking { packets_max, packets_per_flow_max, timeout, grace } = parking;
    json!({
        "packets_max": packets_max,
        "packets_per_flow_max": packets_per_flow_max,
        "timeout": time(*timeout),
        "grace": time(*grace),
    })
}

fn shown_admission(admission: &Admission) -> Value {
    let Admission {
        lookups_per_second,
        burst,
        per_source_per_second,
        per_source_burst,
        negative_ttl,
    } = admission;
    json!({
        "lookups_per_second": lookups_per_second,
        "burst": burst,
        "per_source_per_second": per_source_per_second,
        "per_source_burst": per_source_burst,
        "negative_ttl": time(*negative_ttl),
    })
}

fn shown_tunnel(tunnel: &Tunnel) -> Value {
    let Tunnel { encapsulation, port } = tunnel;
    json!({ "encapsulation": encapsulation.name(), "port": port })
}

fn shown_dht(dht: &Dht) -> Value {
    let Dht {
        listen,
        bootstrap,
        k,
        bucket_bits,
        alpha,
        replicas,
        spread,
        lease,
        record_ttl,
        probe_interval,
        dead_after,
        restart_within,
        lookup_timeout,
        records_max,
    } = dht;
    json!({
        "listen": text(listen),
        "bootstrap": texts(bootstrap),
        "k": k,
        "bucket_bits": bucket_bits,
        "alpha": alpha,
        "replicas": replicas,
        "spread": spread,
        "lease": time(*lease),
        "record_ttl": time(*record_ttl),
        "probe_interval": time(*probe_interval),
        "dead_after": time(*dead_after),
        "restart_within": time(*restart_within),
        "lookup_timeout": time(*lookup_timeout),
        "records_max": records_max,
    })
}

/// The keys' ids, and never the keys.
fn shown_cluster(cluster: &Cluster) -> Value {
    let Cluster { members, key_file, keys } = cluster;
    let mut shown = json!({ "members": texts(members), "insecure": keys.is_none() });
    if let Some(path) = key_file {
        shown["key_file"] = text(&path.display());
    }
    if let Some(ClusterKeys { sealing, opening, ids: _ }) = keys {
        shown["keys"] =
            json!({ "sealing": sealing.id, "opening": opening.as_ref().map(|key| key.id) });
    }
    shown
}

fn shown_incidents(incidents: &Incidents) -> Value {
    let Incidents { flows, window, quiet, keep, journal } = incidents;
    let mut shown = json!({
        "flows": flows,
        "window": time(*window),
        "quiet": time(*quiet),
        "keep": keep,
    });
    if let Some(path) = journal {
        shown["journal"] = text(&path.display());
    }
    shown
}

fn shown_metrics(metrics: &Metrics) -> Value {
    let Metrics { listen } = metrics;
    let mut shown = json!({});
    if let Some(listen) = listen {
        shown["listen"] = text(listen);
    }
    shown
}
