//! Holds what programs say against the protocol's schema, by an independent judge: Python's
//! jsonschema.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::skipped;

const SCHEMA: &str = include_str!("../../../docs/specification/control-protocol.schema.json");

const JUDGE: &str = r##"
import json, sys
from jsonschema import Draft202012Validator
given = json.load(sys.stdin)
Draft202012Validator.check_schema(given["schema"])
for document in given["documents"]:
    schema = {"$ref": "#/$defs/" + document["is"], "$defs": given["schema"]["$defs"]}
    for error in Draft202012Validator(schema).iter_errors(document["value"]):
        print(document["is"], list(error.absolute_path), error.message[:500])
"##;

/// Whether there is a judge; says so when not.
pub fn judge() -> Option<&'static str> {
    // The system's own Python has Debian's packages, whatever is first in the path.
    let has = |python: &&&str| {
        let mut command = Command::new(python);
        command.args(["-c", "from jsonschema import Draft202012Validator"]);
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    ["python3", "/usr/bin/python3"].iter().find(has).copied()
}

/// Asserts that each document is what the part of the schema with this name says, as in
/// `show_stats.ok`.
pub fn assert_valid(documents: &[(String, Value)]) {
    let complaints = complaints(documents);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// What is wrong with documents; nothing when there is no judge.
pub fn complaints(documents: &[(String, Value)]) -> Vec<String> {
    let Some(python) = judge() else {
        skipped("no python3 with jsonschema");
        return Vec::new();
    };
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let documents: Vec<Value> =
        documents.iter().map(|(name, value)| json!({ "is": name, "value": value })).collect();
    let given = json!({ "schema": schema, "documents": documents });
    let mut child = Command::new(python)
        .args(["-c", JUDGE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(given.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
