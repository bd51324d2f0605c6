//! The configuration as the protocol shows it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::UnconfirmedReload;

/// The configuration in effect.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ConfigReply {
    /// Its sections with all their keys, as in the file, defaults filled in. Keys of the cluster
    /// are never among them; `cluster.keys` says which ids they have.
    pub config: Map<String, Value>,
    /// What works but is probably not meant.
    pub warnings: Vec<String>,
    /// A reload that is rolled back unless it is confirmed.
    #[serde(default)]
    pub unconfirmed: Option<UnconfirmedReload>,
}
