//! What each metric means, in a sentence: of those whose meaning does not stand where they are
//! counted.

/// The sentence for `name`; empty when there is none, which a test finds.
pub fn of<'a>(texts: &[(&str, &'a str)], name: &str) -> &'a str {
    texts.iter().find(|(known, _)| *known == name).map_or("", |(_, text)| text)
}

pub const BUILD: &str = "The daemon's version, that of DPDK, and the server's locator.";
pub const UPTIME: &str = "Time since the daemon's start.";

pub const WORKER_BUSY: &str = "Time spent in turns that found something to do.";
pub const WORKER_IDLE: &str =
    "Time spent in turns that found nothing to do, and waiting after them.";

pub const RX_PACKETS: &str = "Packets received.";
pub const RX_BYTES: &str = "Bytes received.";
pub const RX_MISSED: &str = "Packets that the device dropped because no descriptor was free.";
pub const RX_ERRORS: &str = "Broken packets received.";
pub const RX_NO_MBUF: &str = "Packets received for which there was no mbuf.";
pub const TX_PACKETS: &str = "Packets sent.";
pub const TX_BYTES: &str = "Bytes sent.";
pub const TX_ERRORS: &str = "Packets that the device failed to send.";
pub const LINK_DOWNS: &str = "How often the uplink's link went down.";
pub const LINK_UP: &str =
    "1 when the link is up. Of a host port by AF_XDP its driver always says so.";
pub const MTU: &str = "Largest IP packet.";
pub const SPEED: &str = "Speed of the link, if it has one.";

pub const TABLE: &[(&str, &str)] = &[
    ("capacity", "Entries that the session table has room for."),
    ("local", "Sessions of this server in the session table."),
    ("half_open", "Of these, the ones whose handshake is not complete."),
    ("lingering", "Of these, the ones that are over and only linger."),
    ("redirect", "Redirects in the session table."),
    ("displaced", "Entries outside of their home bucket, which cost a lookup a second cache line."),
    ("page_bytes", "Size of the pages that the session table lies in."),
];

pub const KERNEL_CHECK: &[(&str, &str)] = &[
    ("checks", "Comparisons of the session table with the kernel's sockets."),
    ("failures", "Comparisons that the kernel did not answer, or not to the end."),
    ("learnt", "Sessions that the kernel held and the table lacked (R7)."),
    ("table_full", "The same, but the table had no room."),
    ("kept_alive", "Times that an idle session did not expire, as the kernel holds it."),
    ("established", "Sessions that were half-open in the table and established in the kernel."),
    ("revived", "Sessions that were closed or reset in the table and live in the kernel (R8)."),
    ("ended", "Sessions that the kernel does not hold any more (R8)."),
    ("asked", "Single sockets that the kernel was asked for, to be sure."),
    ("held", "Sessions of services that the kernel held at the last check."),
    ("duration_us", "How long the last check took."),
];

pub const HEALTH: &[(&str, &str)] = &[
    ("transitions", "Steps of prefixes from one state to another."),
    ("ready_unpublished", "Times that the server was taken for ready with unpublished sessions."),
    ("announcer_runs", "Times that the announcer was told something."),
    ("announcer_failures", "Of these, the ones that failed."),
    ("state_file_failures", "Times that what is announced could not be written down."),
    ("state", "0 starting, 1 joining, 2 ready, 3 unhealthy, 4 draining, 5 drained, 6 stopping."),
    ("sessions_left", "Sessions of this server that are not over."),
    ("prefixes", "Prefixes that are announced when all is well."),
    ("prefixes_announced", "Of these, the ones that are announced."),
    ("prefixes_graceful_shutdown", "The ones that are announced with GRACEFUL_SHUTDOWN."),
    ("services_down", "Checks whose service is down, or that have no result yet."),
];
pub const CHECK_UP: &str = "1 when the service is up by this check.";
pub const CHECKS: &str = "Checks of this service that were made.";
pub const CHECK_FAILURES: &str = "Of these, the ones that failed.";
pub const CHECK_CHANGES: &str = "Times that this service went down or came up by this check.";

pub const DHT: &[(&str, &str)] = &[
    ("peers", "Servers in the routing table."),
    ("peers_suspect", "Of these, suspects: they missed the last request, or others say so."),
    ("peers_away", "Servers that said that they stop, and whose lease has not ended."),
    ("peers_dead", "Servers that died in the last hour and are not back."),
    ("joined", "1 when the server has joined the DHT, or stands alone by configuration."),
    ("records", "Live records held, for others and for itself."),
    ("tombstones", "Deleted records remembered."),
    ("records_max", "Records and tombstones that can be held."),
    ("owners", "Owners of records, and servers in the routing table, in the store's memory."),
    ("published", "Sessions of this server that are published."),
    ("published_unacked", "Of these, the ones that not all replicas have acknowledged."),
    ("published_moving", "Of these, the ones that former replicas still hold."),
    ("withdrawing", "Ended sessions whose records are being deleted."),
    ("lookups_in_flight", "Lookups under way."),
    ("walks_in_flight", "Of these, the ones that search for nodes and are not one hop."),
    ("requests_in_flight", "Requests to all servers together that wait for an answer."),
    ("operations_in_flight", "Of these, the ones that were sent in batches."),
    ("operations_queued", "Operations that wait to be sent, to all servers together."),
    ("receive_buffer_bytes", "The kernel's buffer of what the control port receives."),
    ("send_buffer_bytes", "The kernel's buffer of what the control port sends."),
];

pub const SETTING_TIME: &str =
    "From a session's first STORE until all its replicas have acknowledged it.";
pub const LOOKUP_TIME: &str = "From a lookup's first request to another server until the owner is known, or that there is none.";

/// The ledger's counters: name, name of the metric, meaning.
pub const INCIDENTS: &[(&str, &str, &str)] = &[
    ("incidents", "incidents", "Incidents that opened: bursts of strays."),
    (
        "sessions_outside",
        "stray_sessions_outside",
        "Sessions that strays came of outside of incidents.",
    ),
    (
        "reports_untracked",
        "stray_reports_untracked",
        "Reports on strays of flows above those that are followed at once.",
    ),
    (
        "reports_after_end",
        "stray_reports_after_end",
        "Reports on strays of redirected sessions that their client had just ended.",
    ),
    (
        "journal_errors",
        "incident_journal_errors",
        "Times that the journal of incidents could not be opened or written.",
    ),
    (
        "journal_set_aside",
        "incident_journal_set_aside",
        "Journals of incidents that could not be read and were set aside.",
    ),
];

pub const STRAY_SESSIONS: &str =
    "Sessions that strays came of, by what became of them; counted when nothing comes any more.";
pub const LOST_SESSIONS: &str = "Of these, the reset and the dropped ones, by the reason.";
pub const INCIDENT_OPEN: &str = "1 while an incident is open.";
pub const OPEN_SESSIONS: &str = "Sessions of the open incident, by what became of them so far.";
pub const FORWARD_TIME: &str =
    "From a session's first stray to its first segment in the tunnel to its owner.";
pub const STRAY_LOOKUP_TIME: &str =
    "From a worker's question who owns a flow to the answer that decided.";
pub const DETECTION_TIME: &str =
    "From a cause whose moment is known here to an incident's first stray.";

pub const CONTROL: &[(&str, &str)] = &[
    ("clients", "Clients of the control socket that were served."),
    ("refused", "Clients that were sent away, for there were too many."),
    ("too_slow", "Clients that sent no whole request, or took no answer, in time."),
    ("too_large", "Clients that sent too long a line."),
    ("bad_requests", "Lines that were no request."),
    ("forbidden", "Changing commands of clients that may only read."),
    ("paced", "Requests that had to wait, for those of unprivileged clients were too many."),
    ("streams", "Streams that were begun."),
    ("streams_refused", "Streams that were refused, for there were too many."),
    ("items", "Items sent in streams."),
    ("items_missed", "Items that streams lacked."),
    ("changes_lost", "Changes of sessions that found the queue to those who watch full."),
    ("clients_now", "Clients of the control socket that are being served."),
    ("streams_now", "Streams under way."),
];
pub const RELOAD: &[(&str, &str)] = &[
    ("applied", "Reloads of the configuration that were applied."),
    ("refused", "Reloads of which nothing was applied: an error, or a key that needs a restart."),
    ("confirmed", "Reloads that were to be confirmed, and were."),
    ("rolled_back", "Reloads that were rolled back, by command or unconfirmed."),
];
pub const UNCONFIRMED: &str = "1 while a reload waits for its confirmation.";
pub const CONTROL_REQUESTS: &str = "Requests at the control socket, by command.";

pub const LIMIT: &str = "How much there can be of what is bounded.";
pub const LIMIT_USED: &str =
    "How much there is of it now, where that is known; of workers, at the one that has the most.";
pub const LIMIT_HITS: &str = "How often the bound was reached.";

/// What the metrics' own server answers, by the status.
pub const HTTP: &str = "Requests for metrics and health that were answered, by the status.";
pub const HTTP_LOST: &str = "Connections to the metrics' port that ended without an answer: the client left or was too slow.";
