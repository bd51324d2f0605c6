//! Packets in and packets out, byte for byte: the rows of `fixtures/rows.txt`, which `fixtures/make.py`
//! writes with scapy and not with our own encoder. Each row is a worker of its own.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use holdfast_dataplane::encap::Encapsulation;
use holdfast_dataplane::session::Session;
use holdfast_dataplane::session::table::Insert;
use holdfast_dataplane::stats::Counter;
use holdfast_handoff::{Announcement, Resolution};
use support::{ACK, Bench, Net, Options, nets};

const ROWS: &str = include_str!("fixtures/rows.txt");
/// The client's port in all rows.
const PORT: u16 = 1234;

/// What has to become of the packet.
#[derive(Debug, PartialEq)]
enum Fate {
    Uplink(String),
    Host(String),
    Parked,
    Dropped,
}

#[derive(Debug, Default)]
struct Row<'a> {
    name: &'a str,
    encapsulation: Encapsulation,
    /// Whether the service's address and the locators are IPv6.
    v6: (bool, bool),
    state: &'a str,
    from_host: bool,
    came: Vec<u8>,
    fate: Option<Fate>,
    counts: Vec<&'a str>,
}

fn bytes(digits: &str) -> Vec<u8> {
    assert!(digits.len().is_multiple_of(2), "{digits}");
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

fn row(text: &str) -> Row<'_> {
    let mut row = Row::default();
    for line in text.lines() {
        let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
        let came = !row.came.is_empty();
        match key {
            "row" => row.name = rest,
            "shows" => assert!(!rest.is_empty(), "{}", row.name),
            "world" => {
                let words: Vec<_> = rest.split(' ').collect();
                let [form, "service", service, "locator", locator] = words[..] else {
                    panic!("{line}")
                };
                row.encapsulation = match form {
                    "gue" => Encapsulation::Gue,
                    "ipip" => Encapsulation::Ipip,
                    "rewrite" => Encapsulation::Rewrite,
                    _ => panic!("{line}"),
                };
                row.v6 = (service == "6", locator == "6");
            }
            "state" => row.state = rest,
            "uplink" if came => row.fate = Some(Fate::Uplink(rest.to_owned())),
            "host" if came => row.fate = Some(Fate::Host(rest.to_owned())),
            "uplink" | "host" => {
                row.came = bytes(rest);
                row.from_host = key == "host";
            }
            "parked" => row.fate = Some(Fate::Parked),
            "dropped" => row.fate = Some(Fate::Dropped),
            "counts" => row.counts.push(rest),
            _ => panic!("{}: {line}", row.name),
        }
    }
    row
}

fn rows() -> Vec<Row<'static>> {
    ROWS.split("\n\n").filter(|text| text.starts_with("row ")).map(row).collect()
}

/// A worker in the row's state, and what it counted on the way there.
fn bench(row: &Row<'_>) -> (Bench, Vec<u64>) {
    let (service, locator) = (nets()[usize::from(row.v6.0)], nets()[usize::from(row.v6.1)]);
    let net = Net { client: service.client, service: service.service, ..locator };
    let options = Options { encapsulation: row.encapsulation, ..Options::default() };
    let mut bench = Bench::with(net, &options);
    let flow = net.flow(PORT);
    match row.state {
        "nothing" => {}
        "local" => {
            bench.host_sends(&net.host_segment(PORT, ACK, b""));
            assert!(bench.uplink_gets().is_some() && bench.announces().is_some());
        }
        "redirect" => {
            let at = bench.table.locate_flow(&flow).unwrap();
            let session = Session::Redirect { owner: net.other };
            let inserted = bench.table.insert(&at, session, bench.now.tick());
            assert!(matches!(inserted, Insert::Inserted(_)));
        }
        "nobody" => {
            bench.uplink_brings(&net.client_segment(PORT, ACK, b""));
            assert_eq!(bench.asks(), Some(flow));
            bench.core_answers(flow, Resolution::Orphaned);
            assert!(bench.host_gets().is_some());
        }
        other => panic!("{}: state {other}", row.name),
    }
    let before = Counter::ALL.iter().map(|counter| bench.count(*counter)).collect();
    (bench, before)
}

/// The bytes of a tunnel packet of the bench's flow: the table says what its hash is.
fn sent(bench: &Bench, digits: &str) -> Vec<u8> {
    let entropy = bench.table.locate_flow(&bench.net.flow(PORT)).unwrap().entropy();
    let port = format!("{:04x}", 0xc000 | entropy);
    bytes(&digits.replace("pppp", &port).replace("llll", &format!("{entropy:04x}")))
}

fn plays(row: &Row<'_>) {
    let name = row.name;
    let (mut bench, before) = bench(row);
    if row.from_host {
        bench.host_sends(&row.came)
    } else {
        bench.uplink_brings(&row.came)
    }

    let (to_uplink, to_host) = match row.fate.as_ref().expect(name) {
        Fate::Uplink(digits) => (Some(sent(&bench, digits)), None),
        Fate::Host(digits) => (None, Some(sent(&bench, digits))),
        Fate::Parked | Fate::Dropped => (None, None),
    };
    assert_eq!(bench.uplink_gets(), to_uplink, "{name}: to the uplink");
    assert_eq!(bench.host_gets(), to_host, "{name}: to the host");
    assert_eq!((bench.uplink_gets(), bench.host_gets()), (None, None), "{name}: twice");
    assert_eq!(bench.asks().is_some(), row.fate == Some(Fate::Parked), "{name}: asks");
    let told = matches!(bench.announces(), Some(Announcement::NotMine { sender, .. }) if sender == Some(bench.net.other));
    assert_eq!(told, row.counts.contains(&"not_mine_sent"), "{name}: NotMine");

    for (counter, before) in Counter::ALL.iter().zip(before) {
        let counted = bench.count(*counter) - before;
        let is_expected = row.counts.contains(&counter.name());
        let is_drop = counter.is_drop();
        assert!(!is_expected || counted == 1, "{name}: {} = {counted}", counter.name());
        assert!(is_expected || !is_drop || counted == 0, "{name}: {}", counter.name());
    }
    let dropped = row.counts.iter().any(|name| {
        let named = |counter: &&Counter| counter.name() == *name;
        Counter::ALL.iter().find(named).expect("a counter").is_drop()
    });
    assert_eq!(dropped, row.fate == Some(Fate::Dropped), "{name}: is dropped with a reason");
}

#[test]
fn every_row_comes_out_as_scapy_says() {
    let rows = rows();
    for row in &rows {
        plays(row);
    }
    assert!(rows.len() >= 150, "{} rows", rows.len());
}

#[test]
fn rows_have_names_of_their_own_and_counters_to_meet() {
    let rows = rows();
    let names: BTreeSet<_> = rows.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), rows.len());
    assert!(rows.iter().all(|row| !row.counts.is_empty()));
    let met: BTreeSet<_> = rows.iter().flat_map(|row| &row.counts).copied().collect();
    for reason in ["truncated", "version", "length", "extensions"] {
        assert!(met.contains(format!("malformed_{reason}").as_str()), "{reason}");
        assert!(met.contains(format!("tunnel_{reason}").as_str()), "{reason}");
    }
}
