//! The daemon's log: lines on standard error, for people or as JSON. The journal is told each
//! line's level. Never writes to a file of its own: whoever reads standard error keeps the lines.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use rustix::fs::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogLevel, Node};

/// Sets the level of the log that the process has.
type SetLevel = Box<dyn Fn(LevelFilter) + Send + Sync>;

static SET_LEVEL: OnceLock<SetLevel> = OnceLock::new();

/// Begins the log, as the configuration has it. Call it once.
pub fn begin(node: &Node) {
    let in_journal = is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), io::stderr());
    let ansi = io::stderr().is_terminal();
    // The layer above it says which lines there are.
    let log = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(io::stderr);
    match node.log_format {
        LogFormat::Text if in_journal => {
            // The journal has times of its own.
            let format = Format::default().without_time().with_ansi(false);
            let log = log.with_ansi(false).event_format(Line { in_journal, format });
            log.finish().with(level_layer(node.log)).init();
        }
        LogFormat::Text => log.with_ansi(ansi).finish().with(level_layer(node.log)).init(),
        LogFormat::Json => {
            let format: Format<Json> = Format::default().json().flatten_event(true);
            let format = format.with_current_span(false).with_span_list(false);
            let line = Line { in_journal, format };
            let log = log.with_ansi(false).fmt_fields(JsonFields::new()).event_format(line);
            log.finish().with(level_layer(node.log)).init();
        }
    }
}

/// A layer that lets lines of `level` and worse through, and others after [`set_level`]: the first
/// one that is made, for a process has one log.
pub fn level_layer<S: Subscriber>(level: LogLevel) -> reload::Layer<LevelFilter, S> {
    let (layer, handle) = reload::Layer::new(filter(level));
    let set = move |level| {
        // Without a log there is nothing to set.
        let _ = handle.reload(level);
    };
    let _ = SET_LEVEL.set(Box::new(set));
    layer
}

/// Logs lines of `level` and worse from now on.
pub fn set_level(level: LogLevel) {
    if let Some(set) = SET_LEVEL.get() {
        set(filter(level));
    }
}

const fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Says why the daemon cannot go on: in the log when that has begun, else on standard error.
pub fn fatal(error: &anyhow::Error) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{error:#}");
    } else {
        // With no standard error there is nobody to tell.
        let _ = writeln!(io::stderr(), "holdfastd: {error:#}");
    }
}

/// Whether `stream` is the one that systemd connected with the journal: what it started may pass
/// the variable on and have a standard error of its own.
fn is_journal(variable: Option<&str>, stream: impl std::os::fd::AsFd) -> bool {
    let named = variable.and_then(|text| {
        let (device, inode) = text.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    named.is_some() && fstat(stream).is_ok_and(|stat| named == Some((stat.st_dev, stat.st_ino)))
}

/// A line of the log, with the level before it where the journal takes that off (sd-daemon(3)).
struct Line<F> {
    in_journal: bool,
    format: F,
}

impl<S, N, F> FormatEvent<S, N> for Line<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.in_journal {
            write!(writer, "<{}>", severity(*event.metadata().level()))?;
        }
        self.format.format_event(context, writer, event)
    }
}

/// The severity of syslog (RFC 5424, §6.2.1).
const fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        // Debug and trace: syslog knows nothing below.
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_stream_that_the_variable_names_is_the_journals() {
        let file = tempfile::tempfile().unwrap();
        let stat = fstat(&file).unwrap();
        let named = format!("{}:{}", stat.st_dev, stat.st_ino);
        let other = format!("{}:{}", stat.st_dev, stat.st_ino + 1);
        assert!(is_journal(Some(&named), &file));
        for text in [None, Some(other.as_str()), Some(""), Some("1"), Some("1:"), Some("a:b")] {
            assert!(!is_journal(text, &file), "{text:?}");
        }
    }

    #[test]
    fn levels_have_the_severities_of_syslog() {
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        assert_eq!(levels.map(severity), [3, 4, 6, 7, 7]);
    }
}
