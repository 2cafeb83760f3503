//! What `podman inspect` prints, as far as a move needs it. podman leaves fields out or sets them to null as it likes, so all have defaults.
use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

/// One container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Record {
    #[serde(deserialize_with = "or_default")]
    pub id: String,
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Image id without `sha256:`.
    #[serde(deserialize_with = "or_default")]
    pub image: String,
    #[serde(deserialize_with = "or_default")]
    pub image_name: String,
    #[serde(deserialize_with = "or_default")]
    pub rootfs: String,
    #[serde(deserialize_with = "or_default")]
    pub pod: String,
    #[serde(deserialize_with = "or_default")]
    pub driver: String,
    #[serde(deserialize_with = "or_default")]
    pub static_dir: PathBuf,
    #[serde(rename = "OCIRuntime", deserialize_with = "or_default")]
    pub oci_runtime: String,
    #[serde(rename = "OCIConfigPath", deserialize_with = "or_default")]
    pub oci_config_path: PathBuf,
    #[serde(rename = "ExecIDs", deserialize_with = "or_default")]
    pub exec_ids: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub dependencies: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub state: State,
    #[serde(deserialize_with = "or_default")]
    pub graph_driver: GraphDriver,
    #[serde(deserialize_with = "or_default")]
    pub mounts: Vec<RecordMount>,
    #[serde(deserialize_with = "or_default")]
    pub network_settings: NetworkSettings,
    #[serde(deserialize_with = "or_default")]
    pub config: Config,
    #[serde(deserialize_with = "or_default")]
    pub host_config: HostConfig,
    /// Set for a container with a health check that has run.
    #[serde(rename = "IsInfra", deserialize_with = "or_default")]
    pub is_infra: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct State {
    #[serde(deserialize_with = "or_default")]
    pub status: String,
    pub running: bool,
    pub paused: bool,
    pub pid: i32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GraphDriver {
    #[serde(deserialize_with = "or_default")]
    pub data: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RecordMount {
    #[serde(rename = "Type", deserialize_with = "or_default")]
    pub kind: String,
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    #[serde(deserialize_with = "or_default")]
    pub source: PathBuf,
    #[serde(deserialize_with = "or_default")]
    pub destination: PathBuf,
    #[serde(deserialize_with = "or_default")]
    pub driver: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    /// The namespace's path.
    #[serde(deserialize_with = "or_default")]
    pub sandbox_key: PathBuf,
    #[serde(deserialize_with = "or_default")]
    pub networks: BTreeMap<String, Endpoint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Endpoint {
    #[serde(rename = "IPAddress", deserialize_with = "or_default")]
    pub ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: u8,
    #[serde(rename = "GlobalIPv6Address", deserialize_with = "or_default")]
    pub ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub ipv6_prefix_len: u8,
    #[serde(deserialize_with = "or_default")]
    pub mac_address: String,
    #[serde(deserialize_with = "or_default")]
    pub aliases: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    #[serde(deserialize_with = "or_default")]
    pub hostname: String,
    pub tty: bool,
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub create_command: Vec<String>,
    #[serde(rename = "HealthcheckOnFailureAction", deserialize_with = "or_default")]
    pub health_action: String,
    #[serde(deserialize_with = "or_default")]
    pub healthcheck: Option<serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    pub secrets: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    #[serde(deserialize_with = "or_default")]
    pub network_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub ipc_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub pid_mode: String,
    #[serde(rename = "UTSMode", deserialize_with = "or_default")]
    pub uts_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub userns_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub cgroup_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub port_bindings: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    pub restart_policy: RestartPolicy,
    pub auto_remove: bool,
    #[serde(deserialize_with = "or_default")]
    pub devices: Vec<serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    pub log_config: LogConfig,
    #[serde(rename = "IDMappings", deserialize_with = "or_default")]
    pub id_mappings: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    pub maximum_retry_count: u32,
}

impl RestartPolicy {
    /// As `--restart` takes it.
    pub fn argument(&self) -> String {
        match (self.name.as_str(), self.maximum_retry_count) {
            ("", _) => "no".to_owned(),
            ("on-failure", retries) if retries > 0 => format!("on-failure:{retries}"),
            (name, _) => name.to_owned(),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogConfig {
    #[serde(rename = "Type", deserialize_with = "or_default")]
    pub kind: String,
    #[serde(deserialize_with = "or_default")]
    pub path: PathBuf,
}

/// One network, of `podman network inspect`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NetworkRecord {
    pub name: String,
    pub driver: String,
    pub network_interface: String,
    pub subnets: Option<Vec<Subnet>>,
    pub internal: bool,
    pub dns_enabled: bool,
    pub options: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Subnet {
    pub subnet: String,
}

/// Null is the default too.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + DeserializeOwned,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
