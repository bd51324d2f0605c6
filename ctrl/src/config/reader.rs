//! Reads TOML value by value and remembers where each stood. Never stops at the first error:
//! whoever edits a configuration sees all that is wrong with it at once.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::ops::{Range, RangeInclusive};
use std::str::Utf8Error;
use std::time::Duration;

use humantime_serde::re::humantime::{format_duration, parse_duration};
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest piece of a configuration that an error repeats, in characters.
const QUOTE_MAX: usize = 60;

/// One thing that is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct ConfigError {
    /// Name of the file, as it was given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key, the bad value and what would be right.
    pub message: String,
}

/// All that is wrong with a configuration, in the order of the file; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A key that the program asks for: what the guide has to document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// `section.key`.
    pub key: String,
    /// Default as the guide writes it; `None` when there is none.
    pub default: Option<String>,
    /// Smallest and greatest value as the guide writes them.
    pub range: Option<(String, String)>,
}

/// The text, what was found in it and what was wrong with it.
pub(super) struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    root: DeTable<'a>,
    places: BTreeMap<String, Range<usize>>,
    errors: Vec<(Range<usize>, String)>,
    refused: Vec<String>,
    pub known: Vec<Known>,
}

impl<'a> Reader<'a> {
    /// A reader of `text`; syntax errors are kept for [`Reader::finish`].
    pub fn new(file: &'a str, text: &'a str) -> Reader<'a> {
        let (root, syntax) = DeTable::parse_recoverable(text);
        let errors = syntax
            .iter()
            .map(|error| (error.span().unwrap_or(0..0), error.message().to_owned()))
            .collect();
        Reader {
            file,
            text,
            root: root.into_inner(),
            places: BTreeMap::new(),
            errors,
            refused: Vec::new(),
            known: Vec::new(),
        }
    }

    /// Whether the text is TOML at all; if not, reading on would only repeat the errors.
    pub fn is_toml(&self) -> bool {
        self.errors.is_empty()
    }

    /// The table `[name]`; an empty one when it is not there.
    pub fn section(&mut self, name: &str) -> Section<'_, 'a> {
        let table = match self.root.remove(name) {
            None => DeTable::new(),
            Some(value) => self.table(name, value),
        };
        Section::new(self, name.to_owned(), table)
    }

    /// The tables `[[name]]`, as many as there are.
    pub fn tables(&mut self, name: &str) -> Vec<DeTable<'a>> {
        let Some(value) = self.root.remove(name) else {
            return Vec::new();
        };
        self.places.insert(name.to_owned(), value.span());
        let DeValue::Array(array) = value.into_inner() else {
            self.refuse(name, format_args!("expected tables, each headed [[{name}]]"));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (index, value) in array.into_iter().enumerate() {
            tables.push(self.table(&format!("{name}[{index}]"), value));
        }
        tables
    }

    fn table(&mut self, name: &str, value: Spanned<DeValue<'a>>) -> DeTable<'a> {
        self.places.insert(name.to_owned(), value.span());
        if let DeValue::Table(table) = value.into_inner() {
            return table;
        }
        self.refuse(name, format_args!("expected a table, headed [{name}]"));
        DeTable::new()
    }

    /// Notes that the value of `key` cannot be used and what would be right.
    pub fn refuse(&mut self, key: &str, right: impl Display) {
        let message = match self.places.get(key) {
            Some(place) => {
                let quote = quote(&self.text[place.clone()]);
                if quote.starts_with('[') && !key.contains('.') {
                    format!("{quote}: {right}")
                } else {
                    format!("{key} = {quote}: {right}")
                }
            }
            None => match self.known.iter().find(|known| known.key == key) {
                Some(Known { default: Some(default), .. }) => {
                    format!("{key} = {default} (the default): {right}")
                }
                _ => format!("{key}: {right}"),
            },
        };
        self.errors.push((self.place(key), message));
        self.refused.push(key.to_owned());
    }

    /// Notes that `key`, which has no default, is not there.
    pub fn missing(&mut self, key: &str, expected: impl Display) {
        let message = format!("{key} is missing: expected {expected}");
        self.errors.push((self.place(key), message));
        self.refused.push(key.to_owned());
    }

    /// Whether none of `keys` was refused: only then is it worth comparing them.
    pub fn sound(&self, keys: &[&str]) -> bool {
        let begins =
            |refused: &String, key: &str| refused == key || refused.starts_with(&format!("{key}["));
        !keys.iter().any(|key| self.refused.iter().any(|refused| begins(refused, key)))
    }

    /// Where `key` stands, else its section, else the end of the text.
    fn place(&self, key: &str) -> Range<usize> {
        let section = key.split_once('.').map_or(key, |(section, _)| section);
        let place = self.places.get(key).or_else(|| self.places.get(section));
        place.cloned().unwrap_or(self.text.len()..self.text.len())
    }

    /// All errors, unknown sections among them.
    pub fn finish(mut self) -> Result<Vec<Known>, ConfigErrors> {
        if self.is_toml() || !self.known.is_empty() {
            let root = std::mem::take(&mut self.root);
            let mut sections: Vec<String> = Vec::new();
            for known in &self.known {
                let section = known.key.split(['.', '[']).next().unwrap_or_default();
                if sections.last().is_none_or(|last| last != section) {
                    sections.push(section.to_owned());
                }
            }
            for key in root.keys() {
                self.unknown("", key, &sections);
            }
        }
        if self.errors.is_empty() {
            return Ok(self.known);
        }
        self.errors.sort_by_key(|(place, _)| place.start);
        Err(ConfigErrors(
            self.errors.iter().map(|(place, message)| self.error(place.start, message)).collect(),
        ))
    }

    fn unknown(
        &mut self,
        section: &str,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        known: &[String],
    ) {
        let name = key.get_ref();
        let place = if section.is_empty() { String::new() } else { format!(" in [{section}]") };
        let known = known.join(", ");
        let message = format!("unknown key '{}'{place}: expected one of {known}", quote(name));
        self.errors.push((key.span(), message));
    }

    fn error(&self, offset: usize, message: &str) -> ConfigError {
        error_behind(self.file, self.text.get(..offset).unwrap_or(self.text), message)
    }
}

/// An error at the end of what stands before it.
fn error_behind(file: &str, before: &str, message: &str) -> ConfigError {
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    ConfigError {
        file: file.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message: message.to_owned(),
    }
}

/// A file that is no text, and where that begins.
pub(super) fn not_utf8(file: &str, bytes: &[u8], error: Utf8Error) -> ConfigError {
    let before = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
    error_behind(file, before, "expected text in UTF-8")
}

/// The first line of a value, cut where it is too long to repeat.
fn quote(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut quoted: String = line.chars().take(QUOTE_MAX).collect();
    if quoted.len() < text.len() {
        quoted.push('…');
    }
    quoted
}

/// One table, whose keys are taken one by one; what is left in the end is unknown.
pub(super) struct Section<'r, 'a> {
    reader: &'r mut Reader<'a>,
    name: String,
    table: DeTable<'a>,
    keys: Vec<String>,
}

impl<'r, 'a> Section<'r, 'a> {
    /// A table that was read before, by the name that errors give it.
    pub fn new(reader: &'r mut Reader<'a>, name: String, table: DeTable<'a>) -> Section<'r, 'a> {
        Section { reader, name, table, keys: Vec::new() }
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self) {
        let section = self.name.split('[').next().unwrap_or_default().to_owned();
        for key in self.table.keys() {
            self.reader.unknown(&section, key, &self.keys);
        }
    }

    fn take(
        &mut self,
        key: &str,
        default: Option<String>,
        range: Option<(String, String)>,
    ) -> (String, Option<DeValue<'a>>) {
        let full = format!("{}.{key}", self.name);
        self.keys.push(key.to_owned());
        self.reader.known.push(Known { key: full.clone(), default, range });
        let value = self.table.remove(key).map(|value| {
            self.reader.places.insert(full.clone(), value.span());
            value.into_inner()
        });
        (full, value)
    }

    /// A whole number in `range`.
    pub fn number<T>(&mut self, key: &str, default: T, range: RangeInclusive<T>) -> T
    where
        T: TryFrom<u64> + PartialOrd + Copy + Display,
    {
        let (min, max) = (*range.start(), *range.end());
        let bounds = Some((min.to_string(), max.to_string()));
        let (full, value) = self.take(key, Some(default.to_string()), bounds);
        let Some(value) = value else { return default };
        match whole_number(&value).filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let right = format_args!("expected a whole number from {min} to {max}");
                self.reader.refuse(&full, right);
                default
            }
        }
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        let (full, value) = self.take(key, Some(default.to_string()), None);
        match value {
            None => default,
            Some(DeValue::Boolean(flag)) => flag,
            Some(_) => {
                self.reader.refuse(&full, "expected true or false");
                default
            }
        }
    }

    /// A time such as `"65s"` or `"2h 5m"`, in `range`.
    pub fn duration(
        &mut self,
        key: &str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let written = |duration: &Duration| format_duration(*duration).to_string();
        let (min, max) = (written(range.start()), written(range.end()));
        let bounds = Some((min.clone(), max.clone()));
        let (full, value) = self.take(key, Some(written(&default)), bounds);
        let Some(value) = value else { return default };
        let duration = value.as_str().and_then(|text| parse_duration(text).ok());
        match duration.filter(|duration| range.contains(duration)) {
            Some(duration) => duration,
            None => {
                let right =
                    format_args!("expected a time with its unit from \"{min}\" to \"{max}\"");
                self.reader.refuse(&full, right);
                default
            }
        }
    }

    /// One of the words; the first is the default.
    pub fn choice<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        let (full, value) = self.take(key, Some(words[0].0.to_owned()), None);
        let Some(value) = value else {
            return words[0].1;
        };
        let chosen = |word: &&(&str, T)| value.as_str() == Some(word.0);
        if let Some((_, choice)) = words.iter().find(chosen) {
            return *choice;
        }
        let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.reader.refuse(&full, format_args!("expected {}", all.join(" or ")));
        words[0].1
    }

    /// A text that `parse` understands; `fallback` when it is missing or wrong, which is
    /// an error either way.
    pub fn required<T>(
        &mut self,
        key: &str,
        expected: &str,
        fallback: T,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let (full, value) = self.take(key, None, None);
        let Some(value) = value else {
            self.reader.missing(&full, expected);
            return fallback;
        };
        self.parsed(&full, &value, expected, parse).unwrap_or(fallback)
    }

    /// A text that `parse` understands, or `default`, which it understands as well.
    pub fn text<T>(
        &mut self,
        key: &str,
        expected: &str,
        default: (&str, T),
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let (full, value) = self.take(key, Some(default.0.to_owned()), None);
        let Some(value) = value else { return default.1 };
        self.parsed(&full, &value, expected, parse).unwrap_or(default.1)
    }

    /// A text that `parse` understands, if it is there.
    pub fn optional<T>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let (full, value) = self.take(key, None, None);
        let value = value?;
        self.parsed(&full, &value, expected, parse)
    }

    fn parsed<T>(
        &mut self,
        full: &str,
        value: &DeValue<'_>,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let parsed = value.as_str().and_then(parse);
        if parsed.is_none() {
            self.reader.refuse(full, format_args!("expected {expected}"));
        }
        parsed
    }

    /// A list of texts; `default` is how the guide writes the default, `None` when the list is
    /// required.
    pub fn texts<T>(
        &mut self,
        key: &str,
        expected: &str,
        default: Option<&str>,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let parse = |value: &DeValue<'_>| value.as_str().and_then(&parse);
        let missing = format!("a list, each entry {expected}");
        let values = self.list(key, expected, default, None, parse);
        values.unwrap_or_else(|full| {
            if default.is_none() {
                self.reader.missing(&full, missing);
            }
            Vec::new()
        })
    }

    /// A list of whole numbers in `range`, or `default`; not empty when there is no default.
    pub fn numbers<T>(&mut self, key: &str, default: Option<T>, range: RangeInclusive<T>) -> Vec<T>
    where
        T: TryFrom<u64> + PartialOrd + Copy + Display,
    {
        let (min, max) = (range.start().to_string(), range.end().to_string());
        let expected = format!("a whole number from {min} to {max}");
        let written = default.map(|default| format!("[{default}]"));
        let parse =
            |value: &DeValue<'_>| whole_number(value).filter(|number| range.contains(number));
        let values = self.list(key, &expected, written.as_deref(), Some((min, max)), parse);
        values.unwrap_or_else(|full| {
            if default.is_none() {
                self.reader.missing(&full, format_args!("a list, each entry {expected}"));
            }
            default.into_iter().collect()
        })
    }

    /// `Err` with the full key when the list is not there.
    fn list<T>(
        &mut self,
        key: &str,
        expected: &str,
        default: Option<&str>,
        range: Option<(String, String)>,
        parse: impl Fn(&DeValue<'_>) -> Option<T>,
    ) -> Result<Vec<T>, String> {
        let (full, value) = self.take(key, default.map(str::to_owned), range);
        let array = match value {
            None => return Err(full),
            Some(DeValue::Array(array)) => array,
            Some(_) => {
                let right = format_args!("expected a list, each entry {expected}");
                self.reader.refuse(&full, right);
                return Ok(Vec::new());
            }
        };
        let mut values = Vec::with_capacity(array.len());
        for (index, value) in array.iter().enumerate() {
            let entry = format!("{full}[{index}]");
            self.reader.places.insert(entry.clone(), value.span());
            match parse(value.get_ref()) {
                Some(value) => values.push(value),
                None => self.reader.refuse(&entry, format_args!("expected {expected}")),
            }
        }
        Ok(values)
    }
}

fn whole_number<T: TryFrom<u64>>(value: &DeValue<'_>) -> Option<T> {
    let integer = value.as_integer()?;
    let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
    T::try_from(number).ok()
}
