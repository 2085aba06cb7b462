//! From what was written to what is in force.

use super::raw::RawConfig;
use super::value::Value;
use super::{
    BackendChoice, Config, ConfigError, DaemonSetRef, ExistingConnections, KubeletCgroup, LogFormat,
    MarkGuardChoice, Own, ProbesChoice, Source,
};
use crate::adopt::cri::USUAL_SOCKETS;
use sluice_shared::enroll::EnablementSelector;
use sluice_shared::ids::{PodRef, PodUid};
use sluice_shared::membership::WhenAgentUnavailable;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

impl Config {
    /// Resolves what was written. Values are already right by themselves; what is left is whether this build can do them
    /// and whether they fit together.
    ///
    /// # Errors
    /// The first key that cannot be as it is.
    pub fn resolve(raw: &RawConfig) -> Result<Self, ConfigError> {
        let config = Self {
            source: source(raw)?,
            node_name: raw.text("nodeName")?.to_owned(),
            own: own(raw)?,
            node_taints: raw.names("nodeTaints")?.to_vec(),
            agent_socket: raw.parsed("agentSocket")?,
            admin_socket: raw.parsed("adminSocket")?,
            zds_socket: raw.parsed("zdsSocket")?,
            state_dir: raw.parsed("stateDir")?,
            run_dir: raw.parsed("runDir")?,
            backend: backend(raw)?,
            probes: probes(raw)?,
            probe_source_v4: raw.parsed("probeSourceV4")?,
            probe_source_v6: raw.parsed("probeSourceV6")?,
            ipv6: raw.flag("ipv6")?,
            dns_capture: raw.flag("dnsCapture")?,
            exclude_namespaces: raw.names("excludeNamespaces")?.iter().cloned().collect(),
            enablement_selectors: raw.selectors("enablementSelectors")?.to_vec(),
            when_agent_unavailable: match raw.text("whenAgentUnavailable")? {
                "fail-closed" => WhenAgentUnavailable::FailClosed,
                "pass" => WhenAgentUnavailable::Pass,
                _ => WhenAgentUnavailable::Auto,
            },
            metrics_address: match raw.text("metricsAddress")? {
                "" => None,
                _ => Some(raw.parsed("metricsAddress")?),
            },
            existing_connections: match raw.text("existingConnections")? {
                "reset" => ExistingConnections::Reset,
                _ => ExistingConnections::Keep,
            },
            drain_timeout: raw.seconds("drainTimeoutSeconds")?,
            hold_timeout: Some(raw.seconds("holdTimeoutSeconds")?).filter(|time| !time.is_zero()),
            add_timeout: raw.seconds("addTimeoutSeconds")?,
            host_proc: raw.parsed("hostProc")?,
            host_netns: host_netns(raw)?,
            kubelet_cgroup: match raw.text("kubeletCgroup")? {
                "auto" => KubeletCgroup::Auto,
                path => KubeletCgroup::Path(PathBuf::from(path)),
            },
            mark_guard: match raw.text("markGuard")? {
                "off" => MarkGuardChoice::Off,
                _ => MarkGuardChoice::Auto,
            },
            cri_sockets: match raw.text("criSocket")? {
                "" => Vec::new(),
                "auto" => USUAL_SOCKETS.iter().map(PathBuf::from).collect(),
                path => vec![PathBuf::from(path)],
            },
            netns_dirs: raw.names("netnsDirs")?.iter().map(PathBuf::from).collect(),
            kernel_threads: threads(raw.number("kernelThreads")?),
            log_format: match raw.text("logFormat")? {
                "json" => LogFormat::Json,
                _ => LogFormat::Text,
            },
            log_level: raw.text("logLevel")?.to_owned(),
        };
        config.check_sockets(raw)?;
        Ok(config)
    }

    /// One path cannot be two sockets.
    fn check_sockets(&self, raw: &RawConfig) -> Result<(), ConfigError> {
        let sockets = [
            ("agentSocket", &self.agent_socket),
            ("adminSocket", &self.admin_socket),
            ("zdsSocket", &self.zds_socket),
        ];
        for (index, (name, path)) in sockets.iter().enumerate() {
            if let Some((other, _)) = sockets[..index].iter().find(|(_, other)| other == path) {
                return Err(raw.refuse(name, format!("{} is {other}'s already", path.display())));
            }
        }
        Ok(())
    }
}

/// Without hostPID, and perhaps without hostNetwork, only the host's first process is sure to be in its network.
fn host_netns(raw: &RawConfig) -> Result<PathBuf, ConfigError> {
    let proc = Path::new(raw.text("hostProc")?);
    Ok(match raw.text("hostNetns")? {
        "" if proc == Path::new("/proc") => PathBuf::from("/proc/self/ns/net"),
        "" => proc.join("1/ns/net"),
        named => PathBuf::from(named),
    })
}

fn source(raw: &RawConfig) -> Result<Source, ConfigError> {
    match (raw.text("source")?, raw.text("kubeconfig")?, raw.text("podsFile")?) {
        ("file", _, "") => Err(raw.refuse("podsFile", "it must be set where `source` is `file`")),
        ("file", _, path) => Ok(Source::File(PathBuf::from(path))),
        (_, "", _) => Ok(Source::Kubernetes { kubeconfig: None }),
        (_, path, _) => Ok(Source::Kubernetes { kubeconfig: Some(PathBuf::from(path)) }),
    }
}

/// Names are of no use without the namespace that they are in.
fn own(raw: &RawConfig) -> Result<Own, ConfigError> {
    let namespace = raw.text("namespace")?;
    let needs = |key: &str, what: &str| raw.refuse(key, format!("it needs `{what}`"));
    let daemon_set = match (raw.text("daemonset")?, namespace) {
        ("", _) => None,
        (_, "") => return Err(needs("daemonset", "namespace")),
        (name, namespace) => Some(DaemonSetRef { namespace: namespace.to_owned(), name: name.to_owned() }),
    };
    let pod = match (raw.text("podName")?, raw.text("podUid")?, namespace) {
        ("", "", _) => None,
        ("", ..) => return Err(needs("podUid", "podName")),
        (_, "", _) => return Err(needs("podName", "podUid")),
        (.., "") => return Err(needs("podName", "namespace")),
        (name, _, namespace) => Some((PodRef::new(namespace, name), raw.parsed_uid("podUid")?)),
    };
    Ok(Own { daemon_set, pod })
}

fn backend(raw: &RawConfig) -> Result<BackendChoice, ConfigError> {
    match raw.text("backend")? {
        "nftables" => Ok(BackendChoice::Nftables),
        "iptables" => Ok(BackendChoice::Iptables),
        "ebpf" => {
            Err(raw.refuse("backend", "this build has no eBPF backend; use auto, nftables or iptables"))
        }
        _ => Ok(BackendChoice::Auto),
    }
}

fn probes(raw: &RawConfig) -> Result<ProbesChoice, ConfigError> {
    match raw.text("probes")? {
        "snat" => Ok(ProbesChoice::Snat),
        "source" => Ok(ProbesChoice::Source),
        "none" => Ok(ProbesChoice::None),
        "cookie" => Ok(ProbesChoice::Cookie),
        _ => Ok(ProbesChoice::Auto),
    }
}

/// 0 is one for each CPU that this process may use.
fn threads(wanted: u64) -> NonZeroUsize {
    usize::try_from(wanted)
        .ok()
        .and_then(NonZeroUsize::new)
        .or_else(|| std::thread::available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN)
}

/// What is read here was checked by its key's kind; an error is a key that the table has otherwise, and a test
/// resolves them all.
impl RawConfig {
    fn text(&self, name: &str) -> Result<&str, ConfigError> {
        match self.value(name) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(self.unfit(name)),
        }
    }

    fn parsed<T: FromStr>(&self, name: &str) -> Result<T, ConfigError> {
        self.text(name)?.parse().map_err(|_| self.unfit(name))
    }

    fn parsed_uid(&self, name: &str) -> Result<PodUid, ConfigError> {
        PodUid::new(self.text(name)?).map_err(|error| self.refuse(name, error.to_string()))
    }

    fn flag(&self, name: &str) -> Result<bool, ConfigError> {
        match self.value(name) {
            Some(Value::Flag(flag)) => Ok(*flag),
            _ => Err(self.unfit(name)),
        }
    }

    fn number(&self, name: &str) -> Result<u64, ConfigError> {
        match self.value(name) {
            Some(Value::Number(number)) => Ok(*number),
            _ => Err(self.unfit(name)),
        }
    }

    fn seconds(&self, name: &str) -> Result<Duration, ConfigError> {
        self.number(name).map(Duration::from_secs)
    }

    fn names(&self, name: &str) -> Result<&[String], ConfigError> {
        match self.value(name) {
            Some(Value::Names(names)) => Ok(names),
            _ => Err(self.unfit(name)),
        }
    }

    fn selectors(&self, name: &str) -> Result<&[EnablementSelector], ConfigError> {
        match self.value(name) {
            Some(Value::Selectors(selectors)) => Ok(selectors),
            _ => Err(self.unfit(name)),
        }
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.get(name).map(|setting| &setting.value)
    }

    fn unfit(&self, name: &str) -> ConfigError {
        self.refuse(name, "it has no value of its kind")
    }
}
