//! Writes what shells and `man` have to know of holdfastd and holdfastctl, made of the commands
//! themselves, for the Debian package: `pages DIRECTORY DATE`. The pages bear the date.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

#[allow(dead_code)]
#[path = "../src/bin/holdfastd.rs"]
mod holdfastd;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, date] = &arguments[..] else { bail!("usage: pages DIRECTORY DATE") };
    let directory = PathBuf::from(directory);
    write(holdfastd::Command::command(), "holdfastd", "8", date, &directory)?;
    write(holdfast::cli::Cli::command(), "holdfastctl", "1", date, &directory)
}

fn write(
    command: Command,
    name: &'static str,
    section: &str,
    date: &str,
    to: &Path,
) -> anyhow::Result<()> {
    let mut command = command.name(name).bin_name(name);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let directory = made(to.join("completions").join(shell.to_string()))?;
        generate_to(shell, &mut command, name, directory)?;
    }
    command.build();
    write_man(command, section, date, &made(to.join("man"))?)
}

/// A page for the command and one for each of its subcommands.
fn write_man(command: Command, section: &str, date: &str, to: &Path) -> anyhow::Result<()> {
    for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_man(subcommand.clone(), section, date, to)?;
    }
    let version = format!("holdfast {}", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command).section(section).manual("holdfast").date(date).source(version);
    page.generate_to(to)?;
    Ok(())
}

fn made(directory: PathBuf) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}
