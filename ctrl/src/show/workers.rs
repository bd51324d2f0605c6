//! The text of `show workers`.

use crate::protocol::{LoadPeriod, WorkersReply};

use super::{Table, micros, or_none};

/// `show workers`.
#[must_use]
pub fn workers(reply: &WorkersReply) -> String {
    let last = match &reply.last_second {
        Some(period) => format!("LAST SECOND ({})\n{}", micros(period.duration_us), load(period)),
        None => "LAST SECOND\nnot measured yet\n".to_owned(),
    };
    format!(
        "{last}\nSINCE THE START ({})\n{}\ntime stamp counter {:.3} GHz, session table on pages of {}\n",
        micros(reply.since_start.duration_us),
        load(&reply.since_start),
        reply.tsc_hz as f64 / 1e9,
        page_size(reply.table_page_bytes),
    )
}

fn load(period: &LoadPeriod) -> String {
    let head = [
        "CORE",
        "BUSY",
        "PACKETS/BURST",
        "CYCLES/PACKET",
        "UPLINK PPS",
        "HOST PPS",
        "DROPS",
        "DROPS/S",
        "TURNS/S",
    ];
    let mut table = Table::new(&head, &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let ratio = |value: Option<f64>| or_none(value.map(|value| format!("{value:.1}")));
    for worker in &period.workers {
        table.row(vec![
            worker.core.to_string(),
            or_none(worker.busy_percent.map(|percent| format!("{percent:.1} %"))),
            ratio(worker.packets_per_burst),
            ratio(worker.cycles_per_packet),
            or_none(worker.uplink_packets_per_s),
            or_none(worker.host_packets_per_s),
            worker.drops.to_string(),
            or_none(worker.drops_per_s),
            or_none(worker.turns_per_s),
        ]);
    }
    table.render()
}

/// A page's size, as in `2 MiB`.
fn page_size(bytes: u64) -> String {
    match bytes.trailing_zeros() {
        30..=63 => format!("{} GiB", bytes >> 30),
        20..=29 => format!("{} MiB", bytes >> 20),
        10..=19 => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_short() {
        let rows = [
            (0, "0 bytes"),
            (100, "100 bytes"),
            (4 << 10, "4 KiB"),
            (2 << 20, "2 MiB"),
            (1 << 30, "1 GiB"),
            (1 << 63, "8589934592 GiB"),
            (u64::MAX, "18446744073709551615 bytes"),
        ];
        for (bytes, expected) in rows {
            assert_eq!(page_size(bytes), expected);
        }
    }
}
