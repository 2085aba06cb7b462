//! helm, kubectl and apicheck, as they are called.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every platform that there is a preset for.
pub const PLATFORMS: [&str; 11] =
    ["gke", "eks", "aks", "openshift", "k3s", "k3d", "rke2", "minikube", "microk8s", "bottlerocket", "talos"];

/// What the chart renders.
pub struct Rendered {
    pub text: String,
    pub objects: Vec<Value>,
}

/// The image that is taken where none is named.
pub fn default_image() -> String {
    format!("docker.io/sluice/sluice:{}", env!("CARGO_PKG_VERSION"))
}

/// This crate's directory.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files of values that the chart is tried with, by name without `-values.yaml`.
pub fn values(name: &str) -> String {
    root().join(format!("chart/ci/{name}-values.yaml")).display().to_string()
}

/// The arguments of every rendering that should be possible: none, each platform, each file of values.
pub fn renderings() -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    all.extend(PLATFORMS.map(|platform| vec!["--set".to_owned(), format!("platform={platform}")]));
    let mut files: Vec<_> =
        fs::read_dir(root().join("chart/ci")).unwrap().map(|entry| entry.unwrap()).collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    assert_eq!(files.len(), 4, "a file of values is not tried, or gone");
    all.extend(files.iter().map(|file| vec!["--values".to_owned(), file.path().display().to_string()]));
    all
}

/// A program of target/cluster/bin; its output, or what it complained about.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let path = root().join("../target/cluster/bin").join(program);
    let output = Command::new(&path).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}; `make chart-test` builds it", path.display()));
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// `helm template` of a chart in the namespace `mesh`.
pub fn template_of(chart: &Path, args: &[&str]) -> Result<String, String> {
    let chart = chart.display().to_string();
    run("helm", &[&["template", "sluice", &chart, "--namespace", "mesh"], args].concat())
}

/// The chart, rendered.
pub fn try_render(args: &[&str]) -> Result<Rendered, String> {
    let text = template_of(&root().join("chart"), args)?;
    let objects = serde_norway::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|object| !object.is_null())
        .collect();
    Ok(Rendered { text, objects })
}

/// The chart, rendered by values that it must take.
pub fn render(args: &[&str]) -> Rendered {
    try_render(args).unwrap_or_else(|why| panic!("{args:?}: {why}"))
}

/// Whether Prometheus and its operator would take a text's objects.
pub fn promcheck(text: &str) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rendered.yaml");
    fs::write(&file, text).unwrap();
    run("promcheck", &[&file.display().to_string()])
}

/// Whether the API server would take a text's objects, and, with `before`, take them as updates of those.
pub fn apicheck(text: &str, before: Option<&str>) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let mut args =
        vec!["-foreign".to_owned(), "PodMonitor,PrometheusRule,SecurityContextConstraints".to_owned()];
    if let Some(before) = before {
        args.extend(["-before".to_owned(), file("before.yaml", before)]);
    }
    args.push(file("rendered.yaml", text));
    run("apicheck", &args.iter().map(String::as_str).collect::<Vec<_>>())
}

impl Rendered {
    /// The one object of a kind.
    pub fn one(&self, kind: &str) -> &Value {
        let mut found = self.objects.iter().filter(|object| object["kind"] == kind);
        let one = found.next().unwrap_or_else(|| panic!("there is no {kind}"));
        assert!(found.next().is_none(), "there are two of {kind}");
        one
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: &str) -> usize {
        self.objects.iter().filter(|object| object["kind"] == kind).count()
    }

    /// The DaemonSet's pod.
    pub fn pod(&self) -> &Value {
        &self.one("DaemonSet")["spec"]["template"]["spec"]
    }

    /// A container of that pod.
    pub fn container(&self, name: &str) -> &Value {
        let containers = self.pod()["containers"].as_array().unwrap();
        containers.iter().find(|container| container["name"] == name).unwrap()
    }

    /// agent.yaml.
    pub fn config(&self) -> Value {
        serde_norway::from_str(self.one("ConfigMap")["data"]["agent.yaml"].as_str().unwrap()).unwrap()
    }

    /// What the installer is told, without its first word.
    pub fn install_args(&self) -> BTreeSet<String> {
        strings(&self.container("install")["args"])
    }

    /// A container's mount of a path of the host, and whether it may write there.
    pub fn writes(&self, container: &str, path: &str) -> Option<bool> {
        let volumes = self.pod()["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["hostPath"]["path"] == path)?;
        let mounts = self.container(container)["volumeMounts"].as_array().unwrap();
        let mount = mounts.iter().find(|mount| mount["name"] == volume["name"])?;
        assert_eq!(mount["mountPath"], path, "the same path inside and outside");
        Some(mount["readOnly"] != true)
    }
}

/// An array of texts.
pub fn strings(value: &Value) -> BTreeSet<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}
