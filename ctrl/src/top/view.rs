//! Draws the screen.

use std::time::{Duration, SystemTime};

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Widget, Wrap};

use super::data::Round;
use super::screen::Screen;
use super::table::{GAP, Row, Subject, Tone, short, widths};
use crate::protocol::{HealthState, PortStats, StatsReply};
use crate::show::{micros, millis, short_time};

/// Smaller ones are not drawn on.
const WIDTH_MIN: u16 = 50;
const HEIGHT_MIN: u16 = 12;
/// From this height on there are blank lines.
const HEIGHT_AMPLE: u16 = 32;
/// Columns of the names in front of figures.
const NAME_WIDTH: usize = 11;

const HELP: &str = "\
q          quit              space, p  pause, go on
tab, ← →   next table        enter     it alone, or all
↑ ↓        its other rows; also page up and down,
           home and end
s, r       sort it by its next column; turn it round
/          show rows with a text in them
esc        all rows and all tables

Rates are of the last second, times of the last ten.
BUSY: share of turns that found packets. PER BURST:
packets in such a turn. CYCLES: spent on a packet.
LOST: sessions that were reset or dropped.";

/// A frame as plain text.
#[must_use]
pub fn frame(screen: &Screen, now: SystemTime, width: u16, height: u16) -> String {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    render(screen, now, area, &mut buffer);
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Draws the screen as it is at `now`.
pub fn render(screen: &Screen, now: SystemTime, area: Rect, buffer: &mut Buffer) {
    if area.width < WIDTH_MIN || area.height < HEIGHT_MIN {
        let text = format!(
            "{WIDTH_MIN} columns and {HEIGHT_MIN} lines are needed, and here are {} and {}.",
            area.width, area.height
        );
        Paragraph::new(text).wrap(Wrap { trim: true }).render(area, buffer);
        return;
    }
    let mut lines = head(screen, now, usize::from(area.width));
    if let Some(round) = screen.rounds.latest() {
        lines.extend(figures(screen, round, usize::from(area.width)));
    }
    if area.height >= HEIGHT_AMPLE {
        lines.push(Line::default());
    }
    let foot = Rect { y: area.bottom() - 1, height: 1, ..area };
    let [above, tables] = split(Rect { height: area.height - 1, ..area }, lines.len());
    for (y, line) in (above.y..above.bottom()).zip(&lines) {
        buffer.set_line(above.x, y, line, above.width);
    }
    match screen.rounds.latest() {
        Some(_) => render_tables(screen, tables, area.height >= HEIGHT_AMPLE, buffer),
        None => {
            let text = screen.trouble.clone();
            let text = text.unwrap_or_else(|| format!("asking {}", screen.socket.display()));
            Paragraph::new(text).wrap(Wrap { trim: true }).render(tables, buffer);
        }
    }
    let foot_line = keys(screen, usize::from(area.width));
    buffer.set_line(foot.x, foot.y, &foot_line, foot.width);
    if screen.is_help {
        render_help(area, buffer);
    }
}

/// The first lines, so many if there are, and the rest.
fn split(area: Rect, lines: usize) -> [Rect; 2] {
    let height = u16::try_from(lines).unwrap_or(u16::MAX).min(area.height);
    [Rect { height, ..area }, Rect { y: area.y + height, height: area.height - height, ..area }]
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Uneasy => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const REVERSED: Style = BOLD.add_modifier(Modifier::REVERSED);

/// Who answers, and when that was; and why it does not.
fn head(screen: &Screen, now: SystemTime, width: usize) -> Vec<Line<'static>> {
    let Some(round) = screen.rounds.latest() else {
        return vec![Line::styled("holdfastctl top", BOLD), Line::default()];
    };
    let daemon = &round.stats.daemon;
    let who = format!(
        "holdfastd {} at {}, up {}",
        daemon.version,
        daemon.locator,
        millis(daemon.uptime_ms)
    );
    let pause = if screen.is_paused { "PAUSED  " } else { "" };
    let when = format!("{pause}{}", clock(round.at));
    let left = width.saturating_sub(when.chars().count());
    let who = cut(&who, left.saturating_sub(GAP));
    let gap = left.saturating_sub(who.chars().count());
    let line = Line::from(vec![
        Span::styled(who, BOLD),
        Span::raw(" ".repeat(gap)),
        Span::styled(when, if screen.is_paused { REVERSED } else { Style::new() }),
    ]);
    let Some(trouble) = &screen.trouble else {
        return vec![line];
    };
    let age = now.duration_since(round.at).unwrap_or_default();
    let age = short_time(Duration::from_secs(age.as_secs().max(1)));
    let first = trouble.lines().next().unwrap_or_default();
    let trouble = format!("AS IT WAS {age} AGO: {first}");
    vec![line, Line::styled(cut(&trouble, width), style(Tone::Bad))]
}

/// The time of day in UTC.
fn clock(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (hours, minutes, seconds) = (since / 3600 % 24, since / 60 % 60, since % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02} UTC")
}

/// A figure with its name, or a word.
type Item = (String, Tone);

fn plain(text: String) -> Item {
    (text, Tone::Plain)
}

/// A line of items: those that fit, whole.
fn line(name: &str, items: Vec<Item>, width: usize) -> Line<'static> {
    let mut spans = vec![Span::styled(format!("{name:<NAME_WIDTH$}"), BOLD)];
    let mut used = NAME_WIDTH;
    for (index, (text, tone)) in items.into_iter().enumerate() {
        let gap = if index == 0 { 0 } else { GAP };
        let left = width.saturating_sub(used + gap);
        let length = text.chars().count();
        // Words may be cut, which figures must not.
        let text = match length <= left {
            true => text,
            false if tone != Tone::Plain && left > 8 => cut(&text, left),
            false => break,
        };
        used += gap + text.chars().count();
        spans.push(Span::raw(" ".repeat(gap)));
        spans.push(Span::styled(text, style(tone)));
    }
    Line::from(spans)
}

/// A text with at most so many characters.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { kept } else { kept + "…" }
}

/// What is above the tables.
fn figures(screen: &Screen, round: &Round, width: usize) -> Vec<Line<'static>> {
    let lines = [
        ("HEALTH", health(round)),
        ("PACKETS/S", packets(screen, round)),
        ("SESSIONS", sessions(screen, round)),
        ("DHT", dht(screen, round)),
        ("TIMES", times(screen)),
    ];
    lines.into_iter().map(|(name, items)| line(name, items, width)).collect()
}

fn health(round: &Round) -> Vec<Item> {
    let health = &round.health;
    let tone = match health.state {
        HealthState::Ready => Tone::Plain,
        HealthState::Unhealthy => Tone::Bad,
        _ => Tone::Uneasy,
    };
    let mut items = vec![(health.state.to_string(), tone)];
    for port in round.stats.ports.iter().filter(|port| !port.link_up) {
        items.push((format!("{} DOWN", port.role), Tone::Bad));
    }
    let is_told = |route: &str| health.prefixes.iter().filter(|p| p.route == route).count();
    let (count, kind) = (health.prefixes.len(), &health.announcer.kind);
    items.push(plain(match kind.as_str() {
        "none" => format!("{count} prefixes, no announcer"),
        _ => format!("{} of {count} prefixes announced by {kind}", is_told("announced")),
    }));
    if let Some(drain) = &health.drain {
        let left = millis(drain.timeout_ms.saturating_sub(drain.since_ms));
        let text = format!("drain by {}, {left} to go", drain.mode);
        items.push((text, Tone::Uneasy));
    }
    let left_ms = round.stats.reload.gauges.get("unconfirmed_ms").copied().unwrap_or_default();
    if left_ms > 0 {
        items.push((format!("reload unconfirmed, {} left", millis(left_ms)), Tone::Uneasy));
    }
    let troubles = [&health.announcer.trouble, &health.announcer.state_file_trouble];
    items.extend(troubles.into_iter().flatten().map(|text| (text.clone(), Tone::Bad)));
    let because = health.prefixes.iter().flat_map(|prefix| &prefix.because);
    items.extend(because.take(1).map(|text| (text.clone(), tone)));
    items
}

fn uplink(stats: &StatsReply) -> Option<&PortStats> {
    stats.ports.iter().find(|port| port.role == "uplink")
}

/// A rate with its name behind it; nothing before it is known.
fn rate(per_second: Option<f64>, name: &str) -> Item {
    plain(format!("{} {name}", per_second.map_or_else(|| "-".to_owned(), short)))
}

fn packets(screen: &Screen, round: &Round) -> Vec<Item> {
    let of = |of: fn(&PortStats) -> u64| screen.rounds.per_second(|stats| uplink(stats).map(of));
    let total = |name: &str| screen.rounds.per_second(|stats| stats.totals.get(name).copied());
    let workers = round.workers.last_second.as_ref().map(|period| &period.workers);
    let dropped = workers.map(|workers| workers.iter().map(|worker| worker.drops).sum::<u64>());
    let by_device = of(|port| port.rx_missed + port.rx_errors + port.rx_no_mbuf + port.tx_errors);
    let bits = |bytes: Option<f64>, name| rate(bytes.map(|bytes| 8.0 * bytes), name);
    let mut items =
        vec![rate(of(|port| port.rx_packets), "in"), rate(of(|port| port.tx_packets), "out")];
    let (text, _) = rate(dropped.map(|dropped| dropped as f64), "dropped");
    let is_dropping = dropped.is_some_and(|dropped| dropped > 0);
    items.push((text, if is_dropping { Tone::Uneasy } else { Tone::Plain }));
    if by_device.is_some_and(|lost| lost > 0.0) {
        items.push((rate(by_device, "lost by the device").0, Tone::Uneasy));
    }
    items.push(rate(total("tunnel_sent"), "tunnelled"));
    items.push(rate(total("tunnel_received"), "from tunnels"));
    items.push(bits(of(|port| port.rx_bytes), "bit/s in"));
    items.push(bits(of(|port| port.tx_bytes), "bit/s out"));
    items
}

fn gauge(gauges: &crate::protocol::Counters, name: &str) -> u64 {
    gauges.get(name).copied().unwrap_or_default()
}

fn sessions(screen: &Screen, round: &Round) -> Vec<Item> {
    let table = &round.stats.table;
    let (local, redirect) = (gauge(table, "local"), gauge(table, "redirect"));
    let capacity = gauge(table, "capacity");
    let share = 100.0 * (local + redirect) as f64 / capacity.max(1) as f64;
    let total = |name: &str| screen.rounds.per_second(|stats| stats.totals.get(name).copied());
    let is_full = if share > 90.0 { Tone::Uneasy } else { Tone::Plain };
    vec![
        plain(format!("{local} local")),
        plain(format!("{redirect} redirects")),
        (format!("{share:.1} % of {}", short(capacity as f64)), is_full),
        rate(total("session_opened"), "opened/s"),
        rate(total("miss"), "strays/s"),
        rate(total("redirect_installed"), "redirected/s"),
    ]
}

fn dht(screen: &Screen, round: &Round) -> Vec<Item> {
    let gauges = &round.stats.dht.gauges;
    let rate_of = |names: &[&str]| {
        screen.rounds.per_second(|stats| {
            Some(names.iter().map(|name| gauge(&stats.dht.counters, name)).sum())
        })
    };
    let mut items = vec![plain(format!("{} peers", gauge(gauges, "peers")))];
    if gauges.get("joined") == Some(&0) {
        items.push(("not joined".to_owned(), Tone::Bad));
    }
    for (name, tone) in [("suspect", Tone::Uneasy), ("away", Tone::Uneasy), ("dead", Tone::Bad)] {
        let count = gauge(gauges, &format!("peers_{name}"));
        if count > 0 {
            items.push((format!("{count} {name}"), tone));
        }
    }
    items.push(rate(rate_of(&["lookups_asked"]), "lookups/s"));
    items.push(rate(rate_of(&["lookups_timed_out", "lookups_refused"]), "failed/s"));
    items.push(plain(format!("{} records", gauge(gauges, "records"))));
    items.push(plain(format!("{} unacked", gauge(gauges, "published_unacked"))));
    items.push(plain(format!("{} in flight", gauge(gauges, "requests_in_flight"))));
    items
}

fn times(screen: &Screen) -> Vec<Item> {
    let named = [
        ("lookup", "lookup_time_us"),
        ("set", "setting_time_us"),
        ("not found", "lookup_time_not_found_us"),
    ];
    let item = |(name, key): (&str, &str)| match screen.rounds.recent(key) {
        Some(times) => plain(format!("{name} {}, 99 % {}", micros(times.p50), micros(times.p99))),
        None => plain(format!("{name} -")),
    };
    named.into_iter().map(item).collect()
}

/// What keys do, or what is being typed.
fn keys(screen: &Screen, width: usize) -> Line<'static> {
    if screen.is_typing {
        let text = format!("filter: {}▏", screen.filter);
        return Line::styled(cut(&(text + "   enter keep  esc no filter"), width), BOLD);
    }
    let alone = if screen.is_alone { "enter all" } else { "enter alone" };
    let pause = if screen.is_paused { "space go on" } else { "space pause" };
    let mut keys = vec!["q quit", pause, "? help", "tab table", alone, "s sort", "r reverse"];
    let filter = format!("/ filter: {}", screen.filter);
    // What hides rows is not to be overlooked.
    if screen.filter.is_empty() {
        keys.push("/ filter")
    } else {
        keys.insert(1, &filter)
    };
    let mut text = String::new();
    for key in keys {
        let gap = if text.is_empty() { 0 } else { GAP };
        if text.chars().count() + gap + key.chars().count() > width {
            break;
        }
        text += &" ".repeat(gap);
        text += key;
    }
    Line::styled(text, Style::new().add_modifier(Modifier::DIM))
}

fn render_tables(screen: &Screen, area: Rect, has_gaps: bool, buffer: &mut Buffer) {
    let subjects = match screen.is_alone {
        true => vec![screen.focus],
        false => Subject::ALL.to_vec(),
    };
    let tables: Vec<Vec<Row>> = subjects.iter().map(|subject| screen.rows(*subject)).collect();
    let gap = usize::from(has_gaps);
    let heads = (1 + gap) * subjects.len();
    let wanted: Vec<usize> = tables.iter().map(Vec::len).collect();
    let focus = subjects.iter().position(|subject| *subject == screen.focus).unwrap_or_default();
    let shares = shares(&wanted, focus, usize::from(area.height).saturating_sub(heads));
    let mut left = area;
    for ((subject, rows), shown) in subjects.into_iter().zip(&tables).zip(shares) {
        let [above, below] = split(left, 1 + shown);
        render_table(screen, subject, rows, above, buffer);
        left = split(below, gap)[1];
    }
}

/// Gives each table as many rows as it wants, if there are so many; else in turn, the focused one
/// first.
fn shares(wanted: &[usize], focus: usize, mut rows: usize) -> Vec<usize> {
    let mut shares = vec![0; wanted.len()];
    while rows > 0 && shares != wanted {
        for step in 0..wanted.len() {
            let index = (focus + step) % wanted.len();
            if rows > 0 && shares[index] < wanted[index] {
                shares[index] += 1;
                rows -= 1;
            }
        }
    }
    shares
}

fn render_table(screen: &Screen, subject: Subject, rows: &[Row], area: Rect, buffer: &mut Buffer) {
    let shown = usize::from(area.height.saturating_sub(1));
    let offset = screen.offset(subject, rows.len(), shown);
    let visible = &rows[offset..rows.len().min(offset + shown)];
    let heads = heads(screen, subject, offset, visible.len(), rows.len());
    let widest = |column: usize| {
        let cells = visible.iter().map(|row| row.cells[column].text.chars().count());
        cells.chain([heads[column].chars().count()]).max().unwrap_or_default()
    };
    let columns = subject.columns();
    let wanted: Vec<usize> = (0..columns.len()).map(widest).collect();
    let widths = widths(columns, &wanted, usize::from(area.width));
    let text = |cells: &mut dyn Iterator<Item = &str>| {
        let cells = cells.zip(columns).zip(&widths).map(|((cell, column), width)| {
            let cell = cut(cell, *width);
            if column.is_right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join(&" ".repeat(GAP))
    };
    let head = text(&mut heads.iter().map(String::as_str));
    let is_focused = subject == screen.focus;
    let head_style = if is_focused { REVERSED } else { BOLD.add_modifier(Modifier::UNDERLINED) };
    let width = usize::from(area.width);
    let head = Line::styled(format!("{head:<width$}"), head_style);
    buffer.set_line(area.x, area.y, &head, area.width);
    for (y, row) in (area.y + 1..area.bottom()).zip(visible) {
        let line = text(&mut row.cells.iter().map(|cell| cell.text.as_str()));
        buffer.set_line(area.x, y, &Line::styled(line, style(row.tone)), area.width);
    }
}

/// The names of the columns: of the first one how many rows there are if not all are shown, and
/// of the one that is sorted by in which direction.
fn heads(
    screen: &Screen,
    subject: Subject,
    offset: usize,
    shown: usize,
    count: usize,
) -> Vec<String> {
    let order = screen.order(subject);
    let name = |(index, column): (usize, &super::table::Column)| {
        let arrow = match (index == order.column, order.is_descending) {
            (false, _) => "",
            (true, false) => "▲",
            (true, true) => "▼",
        };
        format!("{}{arrow}", column.name)
    };
    let mut heads: Vec<String> = subject.columns().iter().enumerate().map(name).collect();
    let all = match screen.rounds.latest().and_then(|round| round.sessions.as_ref()) {
        Some(reply) if subject == Subject::Sessions => reply.total,
        _ => count as u64,
    };
    if subject == Subject::Sessions && !screen.wants_sessions() {
        heads[0] += " (only with the focus)";
    } else if shown < count || all > count as u64 {
        let first = if shown == 0 { 0 } else { offset + 1 };
        heads[0] += &format!(" {first}-{} of {count}", offset + shown);
        if all > count as u64 {
            heads[0] += &format!(", {all} in all");
        }
    }
    heads
}

fn render_help(area: Rect, buffer: &mut Buffer) {
    let width = HELP.lines().map(|line| line.chars().count()).max().unwrap_or_default() + 4;
    let width = u16::try_from(width).unwrap_or(u16::MAX).min(area.width);
    let height = u16::try_from(HELP.lines().count() + 2).unwrap_or(u16::MAX).min(area.height);
    let inside = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    Clear.render(inside, buffer);
    let block = Block::bordered().title(" any key closes this ");
    let text = block.inner(inside);
    block.render(inside, buffer);
    let text = Rect { x: text.x + 1, width: text.width.saturating_sub(2), ..text };
    Paragraph::new(HELP).render(text, buffer);
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn rows_are_shared_out() {
        let rows: &[(&[usize], usize, usize, &[usize])] = &[
            (&[1, 3, 0, 9], 0, 20, &[1, 3, 0, 9]),
            (&[1, 30, 0, 9], 1, 10, &[1, 5, 0, 4]),
            (&[8, 30, 40, 9], 2, 10, &[2, 2, 3, 3]),
            (&[8, 30, 40, 9], 2, 1, &[0, 0, 1, 0]),
            (&[5], 0, 3, &[3]),
            (&[5], 0, 0, &[0]),
        ];
        for (wanted, focus, height, expected) in rows {
            assert_eq!(&shares(wanted, *focus, *height), expected, "{wanted:?} in {height}");
        }
    }
}
