//! The book's pages as its tests see them: blocks of code, spans of code, and the commands in both.

use std::path::{Path, PathBuf};

/// A file in Markdown.
pub struct Page {
    /// Its path in the repository.
    pub name: String,
    pub text: String,
}

/// A fenced block of code.
pub struct Block<'a> {
    pub language: &'a str,
    pub text: String,
    /// `docs/guide/x.md:17`, for messages.
    pub place: String,
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All files below a directory whose names end so, by their paths in the repository.
pub fn files(directory: &str, suffix: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::from(directory)];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(repository().join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                directories.push(path);
            } else if path.to_str().unwrap().ends_with(suffix) {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort_unstable();
    found
}

impl Page {
    pub fn read(name: &str) -> Page {
        let text = std::fs::read_to_string(repository().join(name));
        Page { name: name.to_owned(), text: text.unwrap_or_else(|error| panic!("{name}: {error}")) }
    }

    /// Every page of the book, and README.md.
    pub fn all() -> Vec<Page> {
        let mut names = files("docs", ".md");
        names.push("README.md".to_owned());
        names.iter().map(|name| Page::read(name)).collect()
    }

    pub fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = Vec::new();
        let mut open: Option<(Block<'_>, usize)> = None;
        for (index, line) in self.text.lines().enumerate() {
            let content = line.trim_start();
            match (&mut open, content.strip_prefix("```")) {
                (None, Some(language)) => {
                    let place = format!("{}:{}", self.name, index + 1);
                    let block = Block { language: language.trim(), text: String::new(), place };
                    open = Some((block, line.len() - content.len()));
                }
                (Some(_), Some(_)) => blocks.extend(open.take().map(|(block, _)| block)),
                (Some((block, indent)), None) => {
                    block.text += line.get(*indent..).unwrap_or_default();
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block without an end", self.name);
        blocks
    }

    /// What stands between backticks outside of blocks, each with its place.
    pub fn spans(&self) -> Vec<(String, String)> {
        let mut spans = Vec::new();
        let mut is_block = false;
        let mut paragraph = (0, String::new());
        let mut end = |(line, text): &(usize, String)| {
            let place = format!("{}:{line}", self.name);
            let codes = text.split('`').skip(1).step_by(2);
            spans.extend(codes.map(|code| (code.to_owned(), place.clone())));
        };
        for (index, line) in self.text.lines().enumerate() {
            let is_fence = line.trim_start().starts_with("```");
            if is_fence || line.trim().is_empty() || line.starts_with('|') {
                end(&std::mem::take(&mut paragraph));
            }
            is_block ^= is_fence;
            if is_fence || is_block {
                continue;
            }
            if paragraph.1.is_empty() {
                paragraph.0 = index + 1;
            } else {
                paragraph.1.push(' ');
            }
            paragraph.1 += line.trim();
        }
        end(&paragraph);
        spans
    }
}

impl Block<'_> {
    /// What is typed: all of a script, and of a console what stands behind a prompt.
    pub fn commands(&self) -> Vec<Vec<String>> {
        match self.language {
            "sh" => simple_commands(&self.text),
            "console" => {
                let mut typed = String::new();
                let mut goes_on = false;
                for line in self.text.lines() {
                    let prompt = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
                    let Some(command) = prompt.or(goes_on.then_some(line)) else { continue };
                    typed += command;
                    typed.push('\n');
                    goes_on = command.ends_with('\\');
                }
                simple_commands(&typed)
            }
            _ => Vec::new(),
        }
    }
}

/// The words of each simple command of a shell script; what the shell would put into them stays
/// as it is.
pub fn simple_commands(script: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut characters = script.chars().peekable();
    let mut finish = |word: &mut Option<String>, ends_command: bool| {
        commands.last_mut().unwrap().extend(word.take());
        if ends_command {
            commands.push(Vec::new());
        }
    };
    while let Some(character) = characters.next() {
        match character {
            '\\' if characters.peek() == Some(&'\n') => {
                characters.next();
            }
            '\\' => word.get_or_insert_default().extend(characters.next()),
            '\'' | '"' => {
                let quoted = word.get_or_insert_default();
                quoted.extend(characters.by_ref().take_while(|&c| c != character));
            }
            '#' if word.is_none() => while characters.next_if(|&c| c != '\n').is_some() {},
            '\n' | '|' | ';' | '&' | '(' | ')' => finish(&mut word, true),
            // Where output goes is no argument.
            '>' | '<' => {
                finish(&mut word, false);
                while characters.next_if(|c| "<>& ".contains(*c)).is_some() {}
                while characters.next_if(|c| !" \n;|".contains(*c)).is_some() {}
            }
            ' ' | '\t' => finish(&mut word, false),
            other => word.get_or_insert_default().push(other),
        }
    }
    finish(&mut word, true);
    commands.retain(|words| !words.is_empty());
    commands
}
