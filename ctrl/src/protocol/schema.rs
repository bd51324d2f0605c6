//! The JSON Schema of the protocol, made from its types:
//! `docs/specification/control-protocol.schema.json` is what [`schema`] gives.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{
    ConfigReply, ExplainReply, HealthReply, Incident, IncidentsReply, LimitsReply, LookupReply,
    LookupsReply, PROTOCOL_VERSION, PacketItem, PeersReply, ProtocolError, ReloadReply, Request,
    RoutingReply, SessionChange, SessionEntry, SessionsCountReply, SessionsDeleteReply,
    SessionsReply, StatsReply, StreamReply, VersionReply, WorkersReply,
};

/// What answers a command: the schema of its `ok` object, and of a stream's items.
struct Answer {
    command: &'static str,
    ok: Value,
    item: Option<Value>,
}

fn answer<T: JsonSchema>(generator: &mut SchemaGenerator, command: &'static str) -> Answer {
    Answer { command, ok: generator.subschema_for::<T>().to_value(), item: None }
}

fn stream<T: JsonSchema>(generator: &mut SchemaGenerator, command: &'static str) -> Answer {
    let item = generator.subschema_for::<T>().to_value();
    Answer { item: Some(item), ..answer::<StreamReply>(generator, command) }
}

/// A line for each command.
fn answers(generator: &mut SchemaGenerator) -> Vec<Answer> {
    vec![
        answer::<StatsReply>(generator, "show_stats"),
        answer::<WorkersReply>(generator, "show_workers"),
        answer::<PeersReply>(generator, "show_peers"),
        answer::<LookupsReply>(generator, "show_lookups"),
        answer::<VersionReply>(generator, "show_version"),
        answer::<RoutingReply>(generator, "show_routing"),
        answer::<LimitsReply>(generator, "show_limits"),
        answer::<ConfigReply>(generator, "show_config"),
        answer::<SessionsReply>(generator, "sessions_list"),
        answer::<SessionEntry>(generator, "sessions_get"),
        answer::<SessionsCountReply>(generator, "sessions_count"),
        answer::<SessionsDeleteReply>(generator, "sessions_delete"),
        stream::<SessionChange>(generator, "sessions_watch"),
        answer::<ExplainReply>(generator, "explain"),
        answer::<LookupReply>(generator, "lookup"),
        answer::<IncidentsReply>(generator, "incidents_list"),
        answer::<Incident>(generator, "incidents_show"),
        answer::<HealthReply>(generator, "show_health"),
        answer::<HealthReply>(generator, "drain"),
        answer::<HealthReply>(generator, "undrain"),
        stream::<PacketItem>(generator, "trace"),
        stream::<PacketItem>(generator, "capture"),
        answer::<ReloadReply>(generator, "reload"),
        answer::<ReloadReply>(generator, "reload_confirm"),
        answer::<ReloadReply>(generator, "reload_roll_back"),
    ]
}

/// The schema: of a line either way, and in `$defs` of a `request`, of an `answer`, of what answers
/// each command (`COMMAND.ok`), and of the items of a stream (`COMMAND.item`).
#[must_use]
pub fn schema() -> Value {
    let mut requests = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let mut request = requests.subschema_for::<Request>().to_value();
    let mut defs: Map<String, Value> = requests.take_definitions(true);
    // The request itself, not a reference to it: the version joins its keys.
    if let Some(inlined) = defs.remove("Request") {
        request = inlined;
    }
    versioned(&mut request);

    let mut replies = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let answers = answers(&mut replies);
    let error = replies.subschema_for::<ProtocolError>().to_value();
    defs.extend(replies.take_definitions(true));
    let line = |key: &str, value: Value| {
        json!({
            "type": "object",
            "properties": { "version": { "const": PROTOCOL_VERSION }, key: value },
            "required": ["version", key],
        })
    };
    let refer = |name: String| json!({ "$ref": format!("#/$defs/{name}") });
    let (mut oks, mut items) = (Vec::new(), Vec::new());
    for Answer { command, ok, item } in answers {
        oks.push(refer(format!("{command}.ok")));
        defs.insert(format!("{command}.ok"), ok);
        if let Some(item) = item {
            items.push(refer(format!("{command}.item")));
            defs.insert(format!("{command}.item"), item);
        }
    }
    let missed = json!({ "type": "integer", "minimum": 1 });
    let lines = [
        line("ok", json!({ "anyOf": oks })),
        line("error", error),
        line("item", json!({ "anyOf": items })),
        line("missed", missed),
    ];
    defs.insert("request".to_owned(), request);
    defs.insert("answer".to_owned(), json!({ "oneOf": lines }));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("The control protocol of holdfastd, version {PROTOCOL_VERSION}"),
        "description": "A line that a client sends, or that the daemon sends.",
        "anyOf": [refer("request".to_owned()), refer("answer".to_owned())],
        "$defs": defs,
    })
}

/// Adds the version to each form of a request.
fn versioned(request: &mut Value) {
    let forms = request.get_mut("oneOf").and_then(Value::as_array_mut);
    for form in forms.into_iter().flatten() {
        form["properties"]["version"] = json!({ "const": PROTOCOL_VERSION });
        if let Some(required) = form["required"].as_array_mut() {
            required.push("version".into());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::protocol::COMMANDS;

    const PATH: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/specification/control-protocol.schema.json");

    /// `HOLDFAST_UPDATE_SCHEMA=1` writes it.
    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
        if std::env::var_os("HOLDFAST_UPDATE_SCHEMA").is_some() {
            std::fs::write(PATH, &text).unwrap();
        }
        let committed = std::fs::read_to_string(PATH).unwrap_or_default();
        assert!(
            committed == text,
            "HOLDFAST_UPDATE_SCHEMA=1 cargo test -p holdfast --lib schema makes it anew"
        );
    }

    #[test]
    fn it_has_all_commands_and_what_answers_them() {
        let schema = schema();
        let forms = schema["$defs"]["request"]["oneOf"].as_array().unwrap();
        let commands: Vec<&str> = forms
            .iter()
            .map(|form| form["properties"]["command"]["const"].as_str().unwrap())
            .collect();
        for (command, _) in COMMANDS {
            assert!(commands.contains(command), "{command}");
            let ok = &schema["$defs"][format!("{command}.ok")];
            assert!(ok.is_object(), "{command} has no line in `answers`");
        }
        assert_eq!(commands.len(), COMMANDS.len());
        assert!(forms.iter().all(|form| form["additionalProperties"] == false));
    }
}
