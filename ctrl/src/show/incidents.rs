//! The text of `incidents list` and `incidents show`.

use crate::protocol::{
    Cause, CauseKind, Distribution, Incident, IncidentState, IncidentStats, IncidentSummary,
    IncidentsReply, SessionCounts,
};

use super::{NONE, Table, micros, or_none, utc};

/// The longest bar of a histogram, in characters.
const BAR_MAX: u64 = 40;

/// `incidents list`.
#[must_use]
pub fn incidents(reply: &IncidentsReply) -> String {
    let head = [
        "ID",
        "BEGAN (UTC)",
        "LASTED",
        "STATE",
        "SESSIONS",
        "SAVED",
        "KEPT",
        "RESET",
        "DROPPED",
        "UNANSWERED",
        "DETECTED",
        "FORWARDED",
        "CAUSE",
    ];
    let mut table = Table::new(&head, &[0, 2, 4, 5, 6, 7, 8, 9, 10, 11]);
    for incident in &reply.incidents {
        let IncidentSummary { id, state, began_unix_us, ended_unix_us, sessions, .. } = incident;
        let SessionCounts { at_risk, .. } = sessions;
        let counts = sessions.outcomes().map(|(_, count)| count.to_string());
        let began = [
            id.to_string(),
            utc(*began_unix_us),
            micros(ended_unix_us.saturating_sub(*began_unix_us)),
            state.as_str().to_owned(),
            at_risk.to_string(),
        ];
        let rest = [
            or_none(incident.detection_time_us.map(micros)),
            or_none(incident.forward_time_p50_us.map(micros)),
            causes_in_short(&incident.causes),
        ];
        table.row(began.into_iter().chain(counts).chain(rest).collect());
    }
    format!("{}\n{} incidents, the newest first\n", table.render(), reply.incidents.len())
}

/// The kinds, each once, and how many servers they are about.
pub(crate) fn causes_in_short(causes: &[Cause]) -> String {
    let mut kinds: Vec<CauseKind> = causes.iter().map(|cause| cause.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let texts = kinds.iter().map(|kind| {
        let of = |cause: &&Cause| cause.kind == *kind;
        match (causes.iter().filter(of).count(), causes.iter().find(of).and_then(|c| c.locator)) {
            (1, Some(locator)) => format!("{} {locator}", kind.text()),
            (1, None) => kind.text().to_owned(),
            (count, _) => format!("{} ({count})", kind.text()),
        }
    });
    let texts: Vec<String> = texts.collect();
    if texts.is_empty() { NONE.to_owned() } else { texts.join(", ") }
}

/// `incidents show`.
#[must_use]
pub fn incident(incident: &Incident) -> String {
    let Incident { id, state, began_unix_us, ended_unix_us, sessions, .. } = incident;
    let lasted = micros(ended_unix_us.saturating_sub(*began_unix_us));
    let until = match state {
        IncidentState::Open => "goes on",
        IncidentState::Stopped => "the daemon stopped before it was over",
        IncidentState::TooLong => "cut, as it lasted so long",
        IncidentState::Closed => "is over",
        IncidentState::Unknown => state.as_str(),
    };
    let detection = match incident.detection_time_us {
        Some(us) => micros(us),
        None => "the moment of the cause is not known here".to_owned(),
    };
    let mut text = format!(
        "incident   {id}, {until}\nbegan      {}\nlast seen  {}, after {lasted}\ndetection  {detection}\n",
        utc(*began_unix_us),
        utc(*ended_unix_us),
    );
    for cause in &incident.causes {
        text += &format!("cause      {}\n", cause_line(cause, *began_unix_us));
    }
    text += &format!("sessions   {} at risk: {}\n", sessions.at_risk, outcomes(sessions));
    text += &format!("strays     {} dropped\n", incident.strays_dropped);
    let Incident { reports_missed, reports_untracked, .. } = incident;
    if reports_missed + reports_untracked > 0 {
        text += &format!(
            "not seen   {reports_missed} reports of workers, and {reports_untracked} of flows above \
             those that are followed\n"
        );
    }
    text += "\n";
    text += &times(&[
        ("forward time", &incident.forward_time_us),
        ("lookup time", &incident.lookup_time_us),
    ]);
    if incident.forward_time_us.count > 0 {
        text += "\nFIRST STRAY TO FIRST FORWARD\n";
        text += &histogram(&incident.forward_time_us);
    }
    if !incident.owners.is_empty() {
        text += "\n";
        text += &owners(incident);
    }
    if sessions.lost() > 0 {
        text += "\n";
        text += &losses(incident);
    }
    text
}

fn outcomes(sessions: &SessionCounts) -> String {
    sessions.outcomes().map(|(outcome, count)| format!("{count} {outcome}")).join(", ")
}

fn cause_line(cause: &Cause, began_unix_us: u64) -> String {
    let who = cause.locator.map_or_else(String::new, |locator| format!(" {locator}"));
    let when = match cause.at_unix_us {
        None => String::new(),
        Some(at) if at <= began_unix_us => format!(", {} before", micros(began_unix_us - at)),
        Some(at) => format!(", {} after", micros(at - began_unix_us)),
    };
    format!("{}{who}{when}", cause.kind.text())
}

fn times(all: &[(&str, &Distribution)]) -> String {
    let head = ["", "COUNT", "MIN", "P50", "P90", "P99", "MAX"];
    let mut table = Table::new(&head, &[1, 2, 3, 4, 5, 6]);
    for (name, times) in all {
        let values = [times.min, times.p50, times.p90, times.p99, times.max];
        let values = values.map(|us| if times.count == 0 { NONE.to_owned() } else { micros(us) });
        let cells = [(*name).to_owned(), times.count.to_string()];
        table.row(cells.into_iter().chain(values).collect());
    }
    table.render()
}

/// A line for each step of 1, 2, 5, 10 and so on that has values, and for those between; from 100 µs.
fn histogram(times: &Distribution) -> String {
    let mut steps: Vec<(u64, u64)> = Vec::new();
    for &(us, count) in &times.buckets {
        while steps.last().is_none_or(|(bound, _)| *bound < us) {
            let next = steps.last().map_or_else(|| step(us.max(100)), |(bound, _)| step(bound + 1));
            steps.push((next, 0));
        }
        if let Some((_, sum)) = steps.last_mut() {
            *sum += count;
        }
    }
    let most = steps.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    let mut table = Table { rows: Vec::new(), right: &[0, 1] };
    for (bound, count) in steps {
        // Whatever is there shows.
        let length = (count * BAR_MAX).div_ceil(most);
        let bar = "#".repeat(usize::try_from(length).unwrap_or_default());
        table.row(vec![format!("to {}", micros(bound)), count.to_string(), bar]);
    }
    table.render()
}

/// The least of 1, 2, 5, 10, … that is not below `us`.
fn step(us: u64) -> u64 {
    let mut power: u64 = 1;
    loop {
        for factor in [1, 2, 5] {
            let bound = power.saturating_mul(factor);
            if bound >= us {
                return bound;
            }
        }
        power = power.saturating_mul(10);
    }
}

fn owners(incident: &Incident) -> String {
    let mut table = Table::new(&["OWNER", "SESSIONS"], &[1]);
    for owner in &incident.owners {
        table.row(vec![owner.locator.to_string(), owner.sessions.to_string()]);
    }
    if incident.sessions_of_other_owners > 0 {
        let others = incident.sessions_of_other_owners.to_string();
        table.row(vec!["others".to_owned(), others]);
    }
    table.render()
}

fn losses(incident: &Incident) -> String {
    let mut table = Table::new(&["LOST BECAUSE", "SESSIONS"], &[1]);
    for (reason, count) in &incident.losses {
        table.row(vec![reason.clone(), count.to_string()]);
    }
    let mut text = table.render();
    text.push('\n');
    let mut table = Table::new(&["LOST", "FIRST STRAY (UTC)", "BECAUSE", "OWNER"], &[]);
    for lost in &incident.lost {
        table.row(vec![
            lost.flow.to_string(),
            utc(lost.came_unix_us),
            lost.reason.to_string(),
            or_none(lost.owner),
        ]);
    }
    text += &table.render();
    let (shown, all) = (incident.lost.len() as u64, incident.sessions.lost());
    if shown < all {
        text += &format!("the first {shown} of {all}\n");
    }
    text
}

/// The part of `show stats`: nothing but counters and gauges.
pub(super) fn numbers(stats: &IncidentStats) -> crate::protocol::Counters {
    let mut numbers = stats.counters.clone();
    for (outcome, count) in stats.sessions.outcomes() {
        numbers.insert(format!("sessions_{outcome}"), count);
    }
    for (reason, count) in &stats.losses {
        numbers.insert(format!("lost_{reason}"), *count);
    }
    if let Some(open) = &stats.open {
        numbers.insert("open_sessions_at_risk".to_owned(), open.at_risk);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        let rows = [(0, 1), (1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (501, 1000), (1000, 1000)];
        for (us, expected) in rows {
            assert_eq!(step(us), expected);
        }
        assert_eq!(step(u64::MAX), u64::MAX, "and end");
    }

    #[test]
    fn a_histogram_shows_every_step_between() {
        let buckets = vec![(800, 1), (900, 79), (8000, 1)];
        let times = Distribution { count: 81, buckets, ..Distribution::default() };
        let expected = format!(
            "to 1.0 ms  80  {}\nto 2.0 ms   0\nto 5.0 ms   0\nto 10.0 ms   1  #\n",
            "#".repeat(40)
        );
        let squeeze = |text: &str| {
            text.lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(squeeze(&histogram(&times)), squeeze(&expected));
    }
}
