//! The book held against the code: commands, configurations, metrics, alerts, files and tests that
//! it names are there, and its lists are complete. `scripts/check-book` builds it and follows its links.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../src/bin/holdfastd.rs"]
mod holdfastd;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command as Process;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory};
use holdfast::cli::Cli;
use holdfast::config::Config;
use support::markdown::{Page, files, repository, simple_commands};

/// Fails with all of them.
fn none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// Compares a generated page with what is committed; `HOLDFAST_UPDATE_BOOK=1` writes it.
fn is_committed(name: &str, text: &str) {
    let path = repository().join(name);
    if std::env::var_os("HOLDFAST_UPDATE_BOOK").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "{name}: HOLDFAST_UPDATE_BOOK=1 cargo test -p holdfast --test book makes it anew"
    );
}

// --- commands ------------------------------------------------------------------------

fn program(name: &str) -> Option<Command> {
    match name {
        "holdfastctl" => Some(Cli::command().name("holdfastctl").bin_name("holdfastctl")),
        "holdfastd" => Some(holdfastd::Command::command().name("holdfastd").bin_name("holdfastd")),
        _ => None,
    }
}

/// Why a program would not take these words; the first is its name.
fn refusal(words: &[String]) -> Option<(ErrorKind, String)> {
    let name = Path::new(words.first()?).file_name()?.to_str()?;
    let error = program(name)?.try_get_matches_from(words).err()?;
    let is_shown = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let text = format!("{}: {}", words.join(" "), error.to_string().trim());
    (!is_shown).then_some((error.kind(), text))
}

/// A command without what stands before it: settings of variables, and whom it is run by.
fn stripped(words: &[String]) -> &[String] {
    match words {
        [first, rest @ ..] if first == "sudo" || first.contains('=') => stripped(rest),
        [lab, exec, _, rest @ ..] if lab == "scripts/lab" && exec == "exec" => stripped(rest),
        words => words,
    }
}

#[test]
fn every_command_in_the_book_is_understood() {
    let (mut faults, mut count) = (Vec::new(), 0);
    for page in Page::all() {
        for block in page.blocks() {
            // Else its commands would not be looked at.
            if block.language != "console" && block.text.lines().any(|line| line.starts_with("$ "))
            {
                faults.push(format!("{}: is a console", block.place));
            }
            for words in block.commands() {
                count += 1;
                let refusal = refusal(stripped(&words));
                faults.extend(refusal.map(|(_, refusal)| format!("{}: {refusal}", block.place)));
            }
        }
    }
    assert!(count > 50, "{count}");
    none(faults);
}

/// What stands in running text for something to be filled in.
const PLACEHOLDERS: &[(&str, &str)] = &[
    ("COMMAND", "show version"),
    ("FILE", "/x"),
    ("FILE.pcapng", "/x"),
    ("FLOW", "20.1.1.1:1234-192.168.0.1:80"),
    ("ID", "1"),
    ("…", ""),
];

#[test]
fn every_command_in_running_text_is_understood() {
    let mut faults = Vec::new();
    let verbs: BTreeSet<String> =
        Cli::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    for page in Page::all() {
        for (span, place) in page.spans() {
            let mut text: Vec<&str> = span.split(' ').collect();
            // `show peers` is holdfastctl's; a word alone may be anything.
            if verbs.contains(text[0]) && text.len() > 1 {
                text.insert(0, "holdfastctl");
            }
            if program(text[0]).is_none() || text.len() == 1 {
                continue;
            }
            let filled = text.iter().map(|word| {
                let of_word = PLACEHOLDERS.iter().find(|(name, _)| name == word);
                of_word.map_or(*word, |(_, value)| value)
            });
            let words = simple_commands(&filled.collect::<Vec<_>>().join(" "));
            // Text may name a command without its arguments.
            let refusal = refusal(stripped(&words[0])).filter(|(kind, _)| {
                !matches!(
                    kind,
                    ErrorKind::MissingRequiredArgument
                        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                )
            });
            faults.extend(refusal.map(|(_, refusal)| format!("{place}: {refusal}")));
        }
    }
    none(faults);
}

/// Every command that has none below it.
fn leaves(command: &Command, path: &str, into: &mut Vec<String>) {
    let below = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    if !command.has_subcommands() {
        into.push(path.to_owned());
    }
    for verb in below {
        leaves(verb, &format!("{path} {}", verb.get_name()), into);
    }
}

#[test]
fn every_command_has_an_example_with_what_it_prints() {
    let mut commands = Vec::new();
    for name in ["holdfastctl", "holdfastd"] {
        leaves(&program(name).unwrap(), name, &mut commands);
    }
    let pages = Page::all();
    let mut shown = Vec::new();
    for block in pages.iter().flat_map(Page::blocks) {
        let prints = block.text.lines().any(|line| !line.starts_with(['$', '#']));
        if block.language == "console" && prints {
            let commands = block.commands().into_iter();
            shown.extend(commands.map(|words| stripped(&words).join(" ")));
        }
    }
    let is_shown = |command: &&String| {
        shown.iter().any(|shown| {
            // With its options, but not with another command of the same name's beginning.
            let rest = shown.strip_prefix(command.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        })
    };
    let missing: Vec<String> = commands.iter().filter(|path| !is_shown(path)).cloned().collect();
    none(missing);
}

#[test]
fn the_pages_of_commands_begin_with_all_of_them() {
    let mut missing = Vec::new();
    for name in ["holdfastctl", "holdfastd"] {
        let page = Page::read(&format!("docs/commands/{name}.md"));
        let rows: Vec<&str> = page.text.lines().filter(|line| line.starts_with('|')).collect();
        let program = program(name).unwrap();
        for verb in program.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let words = rows.iter().flat_map(|row| row.split(['`', ' ']));
            if !words.into_iter().any(|word| word == verb.get_name()) {
                missing.push(format!("{name} {}", verb.get_name()));
            }
        }
    }
    none(missing);
}

#[test]
fn the_reference_has_what_the_programs_say_of_themselves() {
    let mut text = String::from(
        "# All commands\n\nWhat `holdfastctl` and `holdfastd` say with `--help`: a test writes this page.\n",
    );
    for name in ["holdfastctl", "holdfastd"] {
        let mut command = program(name).unwrap();
        command.build();
        write_help(&mut command, name, &mut text);
    }
    is_committed("docs/commands/reference.md", &text);
}

fn write_help(command: &mut Command, path: &str, text: &mut String) {
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    write!(text, "\n## {path}\n\n```text\n{}\n```\n", help.join("\n")).unwrap();
    for verb in command.get_subcommands_mut().filter(|verb| !verb.is_hide_set()) {
        let path = format!("{path} {}", verb.get_name());
        write_help(verb, &path, text);
    }
}

/// What a script says of itself, and of its first command.
fn help_of(script: &str, verb: Option<&str>) -> String {
    let mut text = String::new();
    for verb in [None, verb] {
        let mut process = Process::new(repository().join(script));
        let output = process.args(verb).arg("--help").output().unwrap();
        text += &String::from_utf8_lossy(&output.stdout);
        text += &String::from_utf8_lossy(&output.stderr);
    }
    text
}

#[test]
fn every_script_in_the_book_is_there_and_has_its_options() {
    let (mut faults, mut helps) = (Vec::new(), BTreeMap::new());
    for page in Page::all() {
        for block in page.blocks() {
            for words in block.commands() {
                let words = match &words[..] {
                    [first, ..] if first == "scripts/lab" => &words[..],
                    words => stripped(words),
                };
                let Some(first) = words.first() else { continue };
                let script = first.replacen("/usr/lib/holdfast/", "scripts/", 1);
                if !script.starts_with("scripts/") {
                    continue;
                }
                if !repository().join(&script).exists() {
                    faults.push(format!("{}: there is no {script}", block.place));
                    continue;
                }
                let is_verb = |word: &&String| word.bytes().all(|b| b.is_ascii_lowercase());
                let verb = words.iter().skip(1).find(|word| !word.starts_with('-'));
                let verb = verb.filter(is_verb).cloned();
                let mut options: Vec<&String> =
                    words.iter().filter(|word| word.starts_with("--")).collect();
                options.extend(&verb);
                // What follows belongs to another program.
                if options.is_empty() || verb.as_deref() == Some("exec") {
                    continue;
                }
                let help = helps
                    .entry((script.clone(), verb.clone()))
                    .or_insert_with(|| help_of(&script, verb.as_deref()));
                let is_known = |option: &str| {
                    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
                    help.split(|c| !is_word(c)).any(|word| word == option)
                };
                for option in options.into_iter().filter(|option| !is_known(option)) {
                    faults.push(format!("{}: {script} has no {option}", block.place));
                }
            }
        }
    }
    none(faults);
}

// --- configuration -------------------------------------------------------------------

#[test]
fn every_configuration_in_the_book_is_valid() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("cluster.key");
    std::fs::write(&key, "0f".repeat(32)).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let minimal = std::fs::read_to_string(repository().join("ctrl/examples/minimal.toml")).unwrap();
    let (mut faults, mut count) = (Vec::new(), 0);
    for page in Page::all() {
        for block in page.blocks().into_iter().filter(|block| block.language == "toml") {
            // A part of a file stands in the least one.
            let mut whole: toml::Table = toml::from_str(&minimal).unwrap();
            match toml::from_str::<toml::Table>(&block.text) {
                Ok(part) => put(&mut whole, part),
                Err(error) => faults.push(format!("{}: {error}", block.place)),
            }
            let mut text = toml::to_string(&whole).unwrap();
            text = text.replace("/etc/holdfast/cluster.key", key.to_str().unwrap());
            let outcome = Config::parse(&block.place, &text);
            faults.extend(outcome.err().map(|errors| errors.to_string()));
            count += 1;
        }
    }
    assert!(count > 2, "{count}");
    none(faults);
}

fn put(into: &mut toml::Table, part: toml::Table) {
    for (key, value) in part {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(part)) => put(into, part),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

// --- metrics and alerts --------------------------------------------------------------

fn metrics() -> BTreeSet<String> {
    let page = Page::read("docs/guide/metrics.md");
    let rows = page.text.lines().filter_map(|line| line.strip_prefix("| `holdfast_"));
    let mut names = BTreeSet::new();
    for row in rows {
        let (name, row) = row.split_once("` | ").unwrap();
        let name = format!("holdfast_{name}");
        if row.starts_with("histogram") {
            names.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
        }
        names.insert(name);
    }
    assert!(names.len() > 200, "{}", names.len());
    names
}

/// Crates are named so as well.
fn crates() -> BTreeSet<String> {
    let lock = Page::read("Cargo.lock");
    let names = lock.text.lines().filter_map(|line| line.strip_prefix("name = \"holdfast-"));
    names.map(|name| format!("holdfast_{}", name.trim_end_matches('"').replace('-', "_"))).collect()
}

/// A test of its own holds the list of `docs/guide/metrics.md` against a running daemon.
#[test]
fn every_metric_in_the_book_is_there() {
    let (metrics, crates) = (metrics(), crates());
    let mut faults = Vec::new();
    for page in Page::all() {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let words = page.text.split(|c| !is_name(c));
        let named = words.filter(|word| {
            let name = word.strip_prefix("holdfast_").unwrap_or_default();
            name.starts_with(|c: char| c.is_ascii_lowercase())
        });
        let unknown = named.filter(|name| !metrics.contains(*name) && !crates.contains(*name));
        faults.extend(unknown.map(|name| format!("{}: {name}", page.name)));
    }
    none(faults);
}

#[test]
fn every_alert_has_its_section_in_the_runbook_and_points_to_it() {
    let rules = Page::read("packaging/prometheus/holdfast.rules.yml");
    let runbook = Page::read("docs/guide/runbook.md");
    let mut sections: Vec<&str> =
        runbook.text.lines().filter_map(|line| line.strip_prefix("### Holdfast")).collect();
    let mut alerts = Vec::new();
    for rule in rules.text.split("- alert: Holdfast").skip(1) {
        let name = rule.lines().next().unwrap();
        let anchor = format!("/guide/runbook.md#holdfast{}\"", name.to_lowercase());
        let url = rule.lines().find(|line| line.trim_start().starts_with("runbook_url: "));
        assert!(url.is_some_and(|url| url.ends_with(&anchor)), "{name}: {url:?}");
        alerts.push(name);
    }
    alerts.sort_unstable();
    sections.sort_unstable();
    assert_eq!(sections, alerts);
}

/// A counter, gauge, key or metric that the runbook names is in the specification or the guide.
#[test]
fn what_the_runbook_looks_at_is_there() {
    let known: String = [
        "docs/specification/control-protocol.md",
        "docs/specification/control-protocol.schema.json",
        "docs/guide/metrics.md",
        "docs/guide/configuration.md",
    ]
    .map(|name| Page::read(name).text)
    .concat();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let known: BTreeSet<&str> = known.split(|c| !is_word(c)).collect();
    let spans = Page::read("docs/guide/runbook.md").spans();
    let is_name = |span: &&(String, String)| {
        span.0.contains('_') && span.0.chars().all(|c| c.is_ascii_lowercase() || "_.".contains(c))
    };
    let is_known = |name: &str| {
        let name = name.rsplit('.').next().unwrap();
        let is_counter = ["worker", "dht", "kernel_check", "control"]
            .iter()
            .any(|part| known.contains(format!("holdfast_{part}_{name}_total").as_str()));
        // `show stats` has times without their unit.
        is_counter || known.contains(name) || known.contains(format!("{name}_us").as_str())
    };
    let named: Vec<_> = spans.iter().filter(is_name).collect();
    assert!(named.len() > 20, "{}", named.len());
    let unknown = named.into_iter().filter(|(name, _)| !is_known(name));
    none(unknown.map(|(name, place)| format!("{place}: {name}")).collect());
}

// --- files and tests -----------------------------------------------------------------

fn sources() -> Vec<String> {
    ["bench", "ctrl", "dataplane", "dht"].iter().flat_map(|part| files(part, ".rs")).collect()
}

/// A path that the book names; of a Rust source the end of its path is enough.
#[test]
fn every_file_in_the_book_is_there() {
    let sources = sources();
    let tops = ["bench/", "ctrl/", "dataplane/", "dht/", "docs/", "packaging/", "scripts/"];
    let mut faults = Vec::new();
    for page in Page::all() {
        for (span, place) in page.spans() {
            let path = span.split([' ', ':']).next().unwrap();
            let plain = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
            if !path.chars().all(plain) {
                continue;
            }
            let below = format!("/{path}");
            let is_there = repository().join(path).exists()
                || sources.iter().any(|source| source.ends_with(&below));
            let is_path = path.ends_with(".rs") || tops.iter().any(|top| path.starts_with(top));
            if is_path && !is_there {
                faults.push(format!("{place}: there is no {path}"));
            }
        }
    }
    none(faults);
}

/// A page that says for each rule which tests and which scenarios keep it.
#[test]
fn the_list_of_tests_has_every_test_of_a_rule() {
    let mut tests: BTreeMap<u32, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for source in sources() {
        for line in Page::read(&source).text.lines() {
            let Some(rest) = line.trim_start().strip_prefix("fn ") else { continue };
            let name = rest.split(['(', '<']).next().unwrap();
            for rule in rules_of(name) {
                tests
                    .entry(rule)
                    .or_default()
                    .entry(source.clone())
                    .or_default()
                    .insert(name.into());
            }
        }
    }
    let mut text = String::from(TESTS_HEAD);
    let scenarios = scenarios();
    let names: BTreeMap<u32, String> = rule_names();
    assert_eq!(names.keys().copied().collect::<Vec<_>>(), (1..=13).collect::<Vec<_>>());
    for (rule, name) in names {
        let files = tests.get(&rule).unwrap_or_else(|| panic!("R{rule} has no test"));
        write!(text, "\n## R{rule} {name}\n").unwrap();
        for (file, tests) in files {
            write!(text, "\n`{file}`\n\n").unwrap();
            for test in tests {
                writeln!(text, "- `{test}`").unwrap();
            }
        }
        let with = scenarios.iter().filter(|(_, rules)| rules.contains(&format!("R{rule}")));
        let with: Vec<String> = with.map(|(name, _)| format!("`{name}`")).collect();
        if !with.is_empty() {
            write!(text, "\nScenarios: {}.\n", with.join(", ")).unwrap();
        }
    }
    is_committed("docs/specification/tests.md", &text);
}

const TESTS_HEAD: &str = "\
# Tests of the rules

Which tests keep each of [the rules](rules.md), and which [scenarios](../results/scenarios.md) of the lab.
A test has the numbers of its rules in its name; a test writes this page from them.

```sh
cargo test --workspace r12_      # all tests of a rule
scripts/lab test link-fails      # a scenario
```
";

/// Its name begins with the numbers of its rules: `r4_r5_…`.
fn rules_of(name: &str) -> Vec<u32> {
    let numbers = name.split('_').map_while(|part| part.strip_prefix('r')?.parse().ok());
    numbers.collect()
}

fn rule_names() -> BTreeMap<u32, String> {
    let page = Page::read("docs/specification/rules.md");
    let headings = page.text.lines().filter_map(|line| {
        let (number, name) = line.strip_prefix("## R")?.split_once(' ')?;
        Some((number.parse().ok()?, name.to_owned()))
    });
    headings.collect()
}

/// What `scripts/lab test --list` says: a scenario, its rules, its variants.
fn scenarios() -> Vec<(String, Vec<String>)> {
    let mut process = Process::new(repository().join("scripts/lab"));
    let output = process.args(["test", "--list"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        let rules = words.take_while(|word| word.starts_with('R')).map(str::to_owned);
        Some((name, rules.collect()))
    };
    let scenarios: Vec<_> = text.lines().filter_map(of_line).collect();
    assert!(scenarios.len() > 30, "{text}");
    scenarios
}

#[test]
fn every_alias_of_a_rule_is_one() {
    let known: BTreeSet<String> = rule_names().keys().map(|rule| format!("R{rule}")).collect();
    let mut faults = Vec::new();
    for page in Page::all() {
        let words = page.text.split(|c: char| !c.is_ascii_alphanumeric());
        let is_rule = |word: &&str| {
            word.strip_prefix('R').is_some_and(|number| number.parse::<u32>().is_ok())
        };
        let unknown = words.filter(is_rule).filter(|word| !known.contains(*word));
        faults.extend(unknown.map(|rule| format!("{}: {rule}", page.name)));
    }
    none(faults);
}

#[test]
fn nothing_in_the_book_waits_to_be_filled_in() {
    let mut faults = Vec::new();
    for page in Page::all() {
        for (index, line) in page.text.lines().enumerate() {
            let is_open = line.contains("@@")
                || ["TODO", "FIXME", "TBD"].iter().any(|word| line.contains(word));
            if is_open {
                faults.push(format!("{}:{}: {line}", page.name, index + 1));
            }
        }
    }
    none(faults);
}
