//! The control protocol's lines: what is read, what is refused, and that nothing panics.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

const SPECIFICATION: &str = include_str!("../../../docs/specification/control-protocol.md");

fn flow() -> FlowKey {
    "20.1.1.1:1234-192.168.0.1:80".parse().unwrap()
}

/// A request of every kind.
fn requests() -> Vec<Request> {
    vec![
        Request::ShowStats {},
        Request::ShowWorkers {},
        Request::ShowPeers {},
        Request::ShowLookups { limit: 5.try_into().unwrap() },
        Request::ShowVersion {},
        Request::ShowRouting { limit: Limit::default() },
        Request::ShowLimits {},
        Request::ShowConfig {},
        Request::SessionsList { filter: SessionFilter::default(), limit: Limit::default() },
        Request::SessionsList { filter: filter(), limit: LIMIT_MAX.try_into().unwrap() },
        Request::SessionsGet { flow: flow() },
        Request::SessionsCount { filter: filter() },
        Request::SessionsDelete { filter: filter(), limit: Limit::ONE },
        Request::SessionsWatch {
            filter: SessionFilter::default(),
            events: Vec::new(),
            for_ms: StreamTime::default(),
            count: StreamCount::default(),
        },
        Request::SessionsWatch {
            filter: filter(),
            events: vec![SessionEvent::Opened, SessionEvent::Redirected],
            for_ms: 1.try_into().unwrap(),
            count: STREAM_ITEMS_MAX.try_into().unwrap(),
        },
        Request::Explain { flow: flow() },
        Request::Lookup { flow: flow() },
        Request::IncidentsList { limit: 7.try_into().unwrap() },
        Request::IncidentsShow { id: u64::MAX },
        Request::ShowHealth {},
        Request::Drain {
            timeout: "90s".parse().unwrap(),
            mode: DrainMode::Withdraw,
            persist: true,
        },
        Request::Undrain {},
        Request::Trace {
            flow: flow(),
            for_ms: 1_000.try_into().unwrap(),
            count: 5.try_into().unwrap(),
        },
        Request::Capture {
            filter: "dropped,client=20.1.0.0/16".parse().unwrap(),
            snaplen: SNAPLEN_MAX.try_into().unwrap(),
            bytes: CAPTURE_BYTES_MAX.try_into().unwrap(),
            for_ms: 1_000.try_into().unwrap(),
            count: 5.try_into().unwrap(),
        },
        Request::Reload { dry_run: false, confirm_ms: None },
        Request::Reload { dry_run: true, confirm_ms: None },
        Request::Reload { dry_run: false, confirm_ms: Some(CONFIRM_MS_MAX.try_into().unwrap()) },
        Request::ReloadConfirm {},
        Request::ReloadRollBack {},
    ]
}

/// A filter that says all that can be said.
fn filter() -> SessionFilter {
    SessionFilter {
        flow: Some(flow()),
        kind: Some(SessionKind::Redirect),
        state: Some(SessionState::Established),
        client: Some("20.1.0.0/16".parse().unwrap()),
        client_port: Some(1234),
        service: Some("[2001:db8::80]:443".parse().unwrap()),
        owner: Some("10.0.0.2".parse().unwrap()),
        idle_over_ms: Some(5),
        idle_under_ms: Some(u64::MAX),
        published: Some(false),
    }
}

#[test]
fn every_request_survives_the_wire() {
    for request in requests() {
        let line = request_line(&request).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(parse_request(line.as_bytes()), Ok(request), "{line}");
    }
}

#[test]
fn every_command_is_known_by_its_name() {
    let mut names = Vec::new();
    for request in requests() {
        let value = serde_json::to_value(&request).unwrap();
        assert_eq!(value["command"], request.command());
        names.push(request.command());
    }
    names.dedup();
    let listed: Vec<&str> = COMMANDS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, listed);
}

/// Who may give a command is decided here, once; a new command is to be added with thought.
#[test]
fn these_commands_are_for_root_and_all_others_only_read() {
    let changing: Vec<&str> = COMMANDS
        .iter()
        .filter(|(_, access)| *access == Access::Change)
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(
        changing,
        [
            "sessions_delete",
            "drain",
            "undrain",
            "capture",
            "reload",
            "reload_confirm",
            "reload_roll_back"
        ]
    );
    for request in requests() {
        let is_change = changing.contains(&request.command());
        assert_eq!(request.access() == Access::Change, is_change, "{request:?}");
    }
}

#[test]
fn the_specification_has_a_section_for_every_command() {
    for (command, _) in COMMANDS {
        let heading = format!("### `{command}`");
        assert!(SPECIFICATION.lines().any(|line| line == heading), "{command}");
    }
}

#[test]
fn the_wire_form_is_the_specified_one() {
    let rows = [
        (r#"{"version":1,"command":"show_stats"}"#, Request::ShowStats {}),
        (r#"{"version":1,"command":"show_workers"}"#, Request::ShowWorkers {}),
        (r#"{"command":"show_peers","version":1}"#, Request::ShowPeers {}),
        (
            r#"{"version":1,"command":"lookup","flow":"20.1.1.1:1234-192.168.0.1:80"}"#,
            Request::Lookup { flow: flow() },
        ),
        (
            r#"{"version":1,"command":"drain"}"#,
            Request::Drain {
                timeout: DrainTimeout::default(),
                mode: DrainMode::GracefulShutdown,
                persist: false,
            },
        ),
        (
            r#"{"version":1,"command":"drain","timeout_ms":0,"mode":"withdraw","persist":true}"#,
            Request::Drain {
                timeout: "0s".parse().unwrap(),
                mode: DrainMode::Withdraw,
                persist: true,
            },
        ),
        (
            r#"{"version":1,"command":"trace","flow":"20.1.1.1:1234-192.168.0.1:80"}"#,
            Request::Trace {
                flow: flow(),
                for_ms: 30_000.try_into().unwrap(),
                count: 10_000.try_into().unwrap(),
            },
        ),
        (
            r#"{"version":1,"command":"capture","filter":{"verdict":"parked"},"count":7}"#,
            Request::Capture {
                filter: "verdict=parked".parse().unwrap(),
                snaplen: 256.try_into().unwrap(),
                bytes: 67_108_864.try_into().unwrap(),
                for_ms: 30_000.try_into().unwrap(),
                count: 7.try_into().unwrap(),
            },
        ),
        (
            r#"{"version":1,"command":"sessions_list","filter":{"kind":"local","client":"20.1.1.1"},"limit":7}"#,
            Request::SessionsList {
                filter: SessionFilter {
                    kind: Some(SessionKind::Local),
                    client: Some(ClientFilter("20.1.1.1/32".parse().unwrap())),
                    ..SessionFilter::default()
                },
                limit: Limit(7),
            },
        ),
        (
            r#"{"version":1,"command":"sessions_watch","events":["opened"],"for_ms":5}"#,
            Request::SessionsWatch {
                filter: SessionFilter::default(),
                events: vec![SessionEvent::Opened],
                for_ms: 5.try_into().unwrap(),
                count: StreamCount::default(),
            },
        ),
    ];
    for (line, request) in rows {
        assert_eq!(parse_request(line.as_bytes()), Ok(request), "{line}");
    }
}

#[test]
fn what_is_no_request_is_refused_with_its_code() {
    use ErrorCode::*;
    let rows = [
        ("", BadRequest, "expected a JSON object"),
        ("show_stats", BadRequest, "expected a JSON object"),
        ("[1]", BadRequest, "expected a JSON object"),
        ("{}", BadRequest, "expected a key \"version\""),
        (r#"{"version":"1"}"#, BadRequest, "expected a key \"version\""),
        (r#"{"version":2,"command":"show_stats"}"#, UnsupportedVersion, "this daemon speaks 1"),
        (r#"{"version":1}"#, BadRequest, "expected a key \"command\""),
        (r#"{"version":1,"command":"reboot"}"#, UnknownCommand, "one of the commands show_stats,"),
        (r#"{"version":1,"command":"show_stats","x":1}"#, BadRequest, "unknown field `x`"),
        (r#"{"version":1,"command":"show_workers","core":1}"#, BadRequest, "unknown field `core`"),
        (r#"{"version":1,"command":"show_peers","limit":1}"#, BadRequest, "unknown field `limit`"),
        (r#"{"version":1,"command":"lookup"}"#, BadRequest, "missing field `flow`"),
        (r#"{"version":1,"command":"lookup","flow":7}"#, BadRequest, "expected a string"),
        (r#"{"version":1,"command":"lookup","flow":"a-b"}"#, BadFlow, "'a-b' is no flow"),
        (r#"{"version":1,"command":"incidents_list","limit":0}"#, BadRequest, "from 1 to 10000"),
        (r#"{"version":1,"command":"incidents_show"}"#, BadRequest, "missing field `id`"),
        (r#"{"version":1,"command":"incidents_show","id":-1}"#, BadRequest, "invalid value"),
        (
            r#"{"version":1,"command":"drain","timeout_ms":86400001}"#,
            BadRequest,
            "of at most one day",
        ),
        (r#"{"version":1,"command":"drain","mode":"now"}"#, BadRequest, "unknown variant `now`"),
        (r#"{"version":1,"command":"undrain","mode":"withdraw"}"#, BadRequest, "unknown field"),
        (r#"{"version":1,"command":"trace"}"#, BadRequest, "missing field `flow`"),
        (r#"{"version":1,"command":"trace","flow":"a-b"}"#, BadFlow, "'a-b' is no flow"),
        (r#"{"version":1,"command":"capture","filter":7}"#, BadRequest, "expected struct"),
        (r#"{"version":1,"command":"capture","filter":{"x":1}}"#, BadRequest, "unknown field `x`"),
        (
            r#"{"version":1,"command":"capture","filter":{"kind":"x"}}"#,
            BadRequest,
            "unknown variant `x`",
        ),
        (r#"{"version":1,"command":"capture","snaplen":63}"#, BadRequest, "from 64 to 16384"),
        (r#"{"version":1,"command":"capture","bytes":0}"#, BadRequest, "from 1 to 1073741824"),
        (r#"{"version":1,"command":"capture","for_ms":0}"#, BadRequest, "from 1 ms to 1 h"),
        (r#"{"version":1,"command":"show_lookups","limit":0}"#, BadRequest, "from 1 to 10000"),
        (r#"{"version":1,"command":"show_lookups","limit":10001}"#, BadRequest, "from 1 to 10000"),
        (
            r#"{"version":1,"command":"sessions_list","filter":{"client":"x"}}"#,
            BadRequest,
            "a client's address",
        ),
        (
            r#"{"version":1,"command":"sessions_list","filter":{"service":"x"}}"#,
            BadRequest,
            "a service as",
        ),
        (
            r#"{"version":1,"command":"sessions_list","filter":{"owner":"x"}}"#,
            BadRequest,
            "IP address",
        ),
        (
            r#"{"version":1,"command":"sessions_list","filter":{"kind":"x"}}"#,
            BadRequest,
            "unknown variant `x`",
        ),
        (
            r#"{"version":1,"command":"sessions_list","filter":{"state":"x"}}"#,
            BadRequest,
            "unknown variant `x`",
        ),
        (
            r#"{"version":1,"command":"sessions_list","filter":{"client_port":65536}}"#,
            BadRequest,
            "expected u16",
        ),
        (
            r#"{"version":1,"command":"sessions_list","filter":{"idle_over_ms":-1}}"#,
            BadRequest,
            "expected u64",
        ),
        (
            r#"{"version":1,"command":"sessions_list","filter":{"published":"yes"}}"#,
            BadRequest,
            "expected a boolean",
        ),
        (
            r#"{"version":1,"command":"sessions_list","filter":{"colour":"red"}}"#,
            BadRequest,
            "unknown field `colour`",
        ),
        (
            r#"{"version":1,"command":"sessions_list","kind":"local"}"#,
            BadRequest,
            "unknown field `kind`",
        ),
        (
            r#"{"version":1,"command":"sessions_count","filter":{"flow":"x"}}"#,
            BadFlow,
            "'x' is no flow",
        ),
        (r#"{"version":1,"command":"sessions_delete"}"#, BadRequest, "missing field `filter`"),
        (r#"{"version":1,"command":"sessions_get","flow":"x"}"#, BadFlow, "'x' is no flow"),
        (r#"{"version":1,"command":"sessions_watch","for_ms":0}"#, BadRequest, "from 1 ms to 1 h"),
        (
            r#"{"version":1,"command":"sessions_watch","for_ms":3600001}"#,
            BadRequest,
            "from 1 ms to 1 h",
        ),
        (r#"{"version":1,"command":"sessions_watch","count":0}"#, BadRequest, "from 1 to 10000000"),
        (
            r#"{"version":1,"command":"sessions_watch","events":["moved"]}"#,
            BadRequest,
            "unknown variant `moved`",
        ),
        (r#"{"version":1,"command":"explain","flow":"x"}"#, BadFlow, "'x' is no flow"),
        (r#"{"version":1,"command":"show_routing","limit":0}"#, BadRequest, "from 1 to 10000"),
    ];
    for (line, code, message) in rows {
        let error = parse_request(line.as_bytes()).expect_err(line);
        assert_eq!(error.code, code, "{line}");
        assert!(error.message.contains(message), "{line}: {}", error.message);
    }
    let deep = format!("{{\"version\":{}", "[".repeat(60_000));
    assert_eq!(parse_request(deep.as_bytes()).map_err(|error| error.code), Err(BadRequest));
}

#[test]
fn answers_survive_the_wire() {
    let reply = LookupReply {
        flow: flow(),
        table: None,
        dht: LookupReport {
            outcome: LookupOutcome::Owner,
            owner: Some("10.0.0.2".parse().unwrap()),
            version: Some(u64::MAX),
            duration_us: 312,
            replicas: Vec::new(),
        },
    };
    let line = answer_line(&Ok(Reply::Lookup(reply.clone())));
    let expected = json!({"version": 1, "ok": {
        "flow": "20.1.1.1:1234-192.168.0.1:80",
        "table": null,
        "dht": {"outcome": "owner", "owner": "10.0.0.2", "version": u64::MAX,
                "duration_us": 312, "replicas": []},
    }});
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
    let ok = parse_answer(line.as_bytes()).unwrap();
    assert_eq!(serde_json::from_value::<LookupReply>(ok).unwrap(), reply);

    let error = ProtocolError::new(ErrorCode::Busy, "try again");
    let line = answer_line(&Err(error.clone()));
    assert_eq!(line, r#"{"version":1,"error":{"code":"busy","message":"try again"}}"#);
    let refused = parse_answer(line.as_bytes()).expect_err("refused");
    assert!(matches!(refused, AnswerError::Refused(refusal) if refusal == error));
}

/// A worker that found packets, and one that never had a turn.
fn workers() -> WorkersReply {
    let busy = WorkerLoad {
        core: 2,
        busy_percent: Some(34.7),
        packets_per_burst: Some(12.0),
        cycles_per_packet: Some(151.3),
        uplink_packets_per_s: Some(u64::MAX),
        host_packets_per_s: Some(0),
        drops: 3,
        drops_per_s: Some(3),
        turns_per_s: Some(500_000),
    };
    let workers = vec![busy, WorkerLoad { core: 5, ..WorkerLoad::default() }];
    WorkersReply {
        tsc_hz: 2_500_000_000,
        table_page_bytes: 4096,
        last_second: None,
        since_start: LoadPeriod { duration_us: 400_000, workers },
    }
}

#[test]
fn figures_of_workers_survive_the_wire() {
    let reply = workers();
    let line = answer_line(&Ok(Reply::Workers(reply.clone())));
    let expected = json!({"version": 1, "ok": {
        "tsc_hz": 2_500_000_000u64,
        "table_page_bytes": 4096,
        "last_second": null,
        "since_start": {"duration_us": 400_000, "workers": [
            {"core": 2, "busy_percent": 34.7, "packets_per_burst": 12.0,
             "cycles_per_packet": 151.3, "uplink_packets_per_s": u64::MAX,
             "host_packets_per_s": 0, "drops": 3, "drops_per_s": 3, "turns_per_s": 500_000},
            {"core": 5, "busy_percent": null, "packets_per_burst": null,
             "cycles_per_packet": null, "uplink_packets_per_s": null,
             "host_packets_per_s": null, "drops": 0, "drops_per_s": null, "turns_per_s": null},
        ]},
    }});
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
    let ok = parse_answer(line.as_bytes()).unwrap();
    assert_eq!(serde_json::from_value::<WorkersReply>(ok).unwrap(), reply);
}

#[test]
fn the_specification_has_a_row_for_every_figure_of_workers() {
    let (_, section) = SPECIFICATION.split_once("### `show_workers`").unwrap();
    let (section, _) = section.split_once("\n### ").unwrap();
    let reply = serde_json::to_value(workers()).unwrap();
    let period = &reply["since_start"];
    let specified: Vec<&str> = section
        .lines()
        .filter_map(|line| {
            let (name, _) = line.strip_prefix("| `")?.split_once('`')?;
            Some(name)
        })
        .collect();
    let mut names: Vec<&str> = [&reply, period, &period["workers"][0]]
        .into_iter()
        .flat_map(|object| object.as_object().unwrap().keys().map(String::as_str))
        .collect();
    let mut rows = specified;
    names.sort_unstable();
    rows.sort_unstable();
    assert_eq!(rows, names);
}

#[test]
fn a_later_daemon_is_understood_as_far_as_possible() {
    let later = r#"{"version":1,"error":{"code":"overheated","message":"too hot","at":90}}"#;
    let error = parse_answer(later.as_bytes()).expect_err("refused");
    assert_eq!(error.to_string(), "too hot (unknown)");
    for line in [r#"{"version":2,"ok":{}}"#, r#"{"version":1}"#, r#"{"ok":{}}"#, "x", ""] {
        let error = parse_answer(line.as_bytes()).expect_err(line);
        assert!(matches!(error, AnswerError::NotUnderstood(_)), "{line}");
    }
}

#[test]
fn filters_admit_what_they_name() {
    let client = |text: &str| text.parse::<ClientFilter>().unwrap().admits(&flow());
    let service = |text: &str| text.parse::<ServiceFilter>().unwrap().admits(&flow());
    assert!(client("20.1.1.1") && client("20.0.0.0/8"));
    assert!(!client("20.1.1.2") && !client("21.0.0.0/8") && !client("::/0"));
    assert!(service("192.168.0.1") && service("192.168.0.1:80"));
    assert!(!service("192.168.0.1:443") && !service("192.168.0.2") && !service("[::1]:80"));
}

#[test]
fn session_filters_admit_what_all_of_them_admit() {
    let entry = SessionEntry {
        flow: flow(),
        kind: SessionKind::Local,
        state: "established".to_owned(),
        owner: "10.0.0.1".parse().unwrap(),
        version: Some(7),
        published: Some(true),
        idle_ms: 5000,
    };
    let admits = |filter: &str| {
        let filter: SessionFilter = serde_json::from_str(filter).unwrap();
        filter.admits(&entry)
    };
    for filter in [
        "{}",
        r#"{"kind":"local","state":"established","owner":"10.0.0.1","published":true}"#,
        r#"{"flow":"20.1.1.1:1234-192.168.0.1:80"}"#,
        r#"{"client":"20.0.0.0/8","client_port":1234,"service":"192.168.0.1"}"#,
        r#"{"idle_over_ms":4999,"idle_under_ms":5001}"#,
    ] {
        assert!(admits(filter), "{filter}");
    }
    for filter in [
        r#"{"kind":"redirect"}"#,
        r#"{"state":"half_open"}"#,
        r#"{"owner":"10.0.0.2"}"#,
        r#"{"published":false}"#,
        r#"{"flow":"20.1.1.1:1235-192.168.0.1:80"}"#,
        r#"{"client":"21.0.0.0/8"}"#,
        r#"{"client_port":1235}"#,
        r#"{"service":"192.168.0.1:443"}"#,
        r#"{"idle_over_ms":5000}"#,
        r#"{"idle_under_ms":5000}"#,
        r#"{"kind":"local","client_port":1235}"#,
    ] {
        assert!(!admits(filter), "{filter}");
    }
    let redirect = SessionEntry {
        kind: SessionKind::Redirect,
        state: "redirected".to_owned(),
        version: None,
        published: None,
        ..entry.clone()
    };
    for published in [true, false] {
        let filter = SessionFilter { published: Some(published), ..SessionFilter::default() };
        assert!(!filter.admits(&redirect), "redirects are neither");
    }
}

#[test]
fn states_and_events_are_what_their_names_say() {
    for (state, name) in SessionState::NAMES {
        assert_eq!(name.parse(), Ok(state));
        assert_eq!(serde_json::to_value(state).unwrap(), name);
    }
    for (event, name) in SessionEvent::NAMES {
        assert_eq!((name.parse(), event.to_string()), (Ok(event), name.to_owned()));
        assert_eq!(serde_json::to_value(event).unwrap(), name);
        assert!(SPECIFICATION.contains(&format!("`{name}`")), "{name}");
    }
    #[cfg(feature = "daemon")]
    for state in holdfast_dataplane::session::State::ALL {
        assert!(state.name().parse::<SessionState>().is_ok(), "{}", state.name());
    }
}

#[test]
fn lines_of_a_stream_survive_the_wire() {
    let line = item_line(&7);
    assert_eq!(line, r#"{"version":1,"item":7}"#);
    assert_eq!(parse_line(line.as_bytes()).unwrap(), Line::Item(json!(7)));
    assert_eq!(parse_line(missed_line(3).as_bytes()).unwrap(), Line::Missed(3));
    let reply = StreamReply { items: 1, missed: 3, ended: StreamEnd::Time };
    let line = answer_line(&Ok(Reply::Stream(reply.clone())));
    assert_eq!(parse_line(line.as_bytes()).unwrap(), Line::End(json!(reply)));
    assert!(parse_answer(missed_line(3).as_bytes()).is_err());
    assert!(parse_answer(item_line(&7).as_bytes()).is_err());
    let bounds = StreamBounds { time: "30s".parse().unwrap(), count: "5".parse().unwrap() };
    assert_eq!((bounds.duration().as_secs(), bounds.count()), (30, 5));
    for time in ["", "5", "2h", "0s", "x"] {
        assert!(time.parse::<StreamTime>().is_err(), "{time}");
    }
    for count in ["", "0", "-1", "10000001"] {
        assert!(count.parse::<StreamCount>().is_err(), "{count}");
    }
}

proptest! {
    #[test]
    fn hostile_lines_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_request(&bytes);
        let _ = parse_answer(&bytes);
    }

    #[test]
    fn hostile_json_never_panics(
        key in "(command|version|flow|limit|filter|events|for_ms|count|error|ok|item|missed|code|[a-z]{1,5})",
        value in "(1|-1|1e9|null|\"show_[a-z]{5,8}\"|\"lookup\"|\"[0-9.:/-]{0,20}\"|\\[\\]|\\{\\})",
        command in "(show_stats|sessions_list|sessions_watch|show_lookups|lookup|explain)",
    ) {
        let line = format!("{{\"version\":1,\"command\":\"{command}\",\"{key}\":{value}}}");
        let _ = parse_request(line.as_bytes());
        let _ = parse_answer(line.as_bytes());
    }
}
