//! The objects that the tests make, as the API server takes them.

use serde_json::{Map, Value, json};
use sluice_shared::contract::{ANNOTATION_SIDECAR, LABEL_DATAPLANE_MODE};

/// The application's image.
const IMAGE: &str = "docker.io/sluice/app:dev";
/// The application's echo port.
pub const ECHO: u16 = 9000;
/// The application's HTTP port.
pub const HTTP: u16 = 8080;
/// The application's port for gRPC's health service.
pub const GRPC: u16 = 9002;
/// Where a client tells its totals, in its own pod.
pub const TOTALS: u16 = 8081;

/// A pod that is being described. What it becomes on a node is [`Shape::pod`]; what a controller makes of it,
/// [`Shape::template`].
#[derive(Clone, Debug)]
pub struct Shape {
    namespace: String,
    name: String,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    spec: Map<String, Value>,
}

/// A namespace, in the mesh or not.
#[must_use]
pub fn namespace(name: &str, mode: Option<&str>) -> Value {
    let labels: Map<String, Value> =
        mode.map(|mode| (LABEL_DATAPLANE_MODE.to_owned(), json!(mode))).into_iter().collect();
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A service of the pods with the label `app: NAME`, on their echo port.
#[must_use]
pub fn service(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {"app": name},
            "ports": [{"name": "tcp-echo", "port": ECHO, "targetPort": ECHO}],
        },
    })
}

/// Several objects in one.
#[must_use]
pub fn list(items: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// A container that runs `sluice-app ARGS…`.
#[must_use]
pub fn container(name: &str, args: &[&str]) -> Value {
    json!({
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": args,
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    })
}

impl Shape {
    /// A pod of one container that runs `sluice-app ARGS…`, ends at once when it is told to, and does not need a
    /// service account.
    #[must_use]
    pub fn of(namespace: &str, name: &str, args: &[&str]) -> Self {
        let mut spec = Map::new();
        spec.insert("terminationGracePeriodSeconds".into(), json!(1));
        spec.insert("automountServiceAccountToken".into(), json!(false));
        // The cluster's own services as variables, for a hundred pods, are noise.
        spec.insert("enableServiceLinks".into(), json!(false));
        spec.insert("containers".into(), json!([container("app", args)]));
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: Map::from_iter([("app".to_owned(), json!(name))]),
            annotations: Map::new(),
            spec,
        }
    }

    /// A server of everything, that is ready when it is asked over HTTP.
    #[must_use]
    pub fn server(namespace: &str, name: &str) -> Self {
        Self::of(namespace, name, &["serve"])
    }

    /// A pod that does nothing until it is told to end: cheap by the hundred.
    #[must_use]
    pub fn idle(namespace: &str, name: &str) -> Self {
        Self::of(namespace, name, &["sleep"])
    }

    /// A client with `live` connections that stay and `rate` new ones a second.
    #[must_use]
    pub fn client(namespace: &str, name: &str, targets: &[String], live: usize, rate: u32) -> Self {
        let (live, rate) = (live.to_string(), rate.to_string());
        let mut args = vec!["client", "--live", &live, "--rate", &rate];
        for target in targets {
            args.extend(["--to", target]);
        }
        Self::of(namespace, name, &args)
    }

    /// On a node, as the scheduler would have it.
    #[must_use]
    pub fn on(self, node: &str) -> Self {
        self.with("nodeSelector", json!({"kubernetes.io/hostname": node}))
    }

    /// With those of one controller's generation evenly on all nodes, whatever the scheduler would rather do.
    #[must_use]
    pub fn spread(self) -> Self {
        let pods = json!({"matchLabels": self.labels});
        let evenly = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": pods, "matchLabelKeys": ["pod-template-hash"]}]);
        self.with("topologySpreadConstraints", evenly)
    }

    /// With a field of its spec.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.spec.insert(field.to_owned(), value);
        self
    }

    /// With a field of its first container.
    #[must_use]
    pub fn with_in_container(mut self, field: &str, value: Value) -> Self {
        if let Some(container) = self.spec.get_mut("containers").and_then(|all| all.get_mut(0)) {
            container[field] = value;
        }
        self
    }

    /// With an init container that runs `sluice-app ARGS…`, after those it has.
    #[must_use]
    pub fn init(mut self, name: &str, args: &[&str]) -> Self {
        let inits = self.spec.entry("initContainers").or_insert_with(|| json!([]));
        if let Some(inits) = inits.as_array_mut() {
            inits.push(container(name, args));
        }
        self
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), json!(value));
        self
    }

    /// With a label that says whether it is in the mesh.
    #[must_use]
    pub fn mode(self, mode: &str) -> Self {
        self.label(LABEL_DATAPLANE_MODE, mode)
    }

    /// As an injector of sidecars leaves it.
    #[must_use]
    pub fn with_sidecar(mut self) -> Self {
        self.annotations.insert(ANNOTATION_SIDECAR.to_owned(), json!(r#"{"containers":["istio-proxy"]}"#));
        self
    }

    /// The pod itself.
    #[must_use]
    pub fn pod(&self) -> Value {
        let mut pod = self.template();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["namespace"] = json!(self.namespace);
        pod["metadata"]["name"] = json!(self.name);
        pod
    }

    /// Its template in a controller of the group `apps` or `batch`.
    #[must_use]
    pub fn template(&self) -> Value {
        json!({"metadata": {"labels": self.labels, "annotations": self.annotations}, "spec": self.spec})
    }

    /// A Deployment of it.
    #[must_use]
    pub fn deployment(&self, replicas: usize) -> Value {
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": self.name}}, "template": self.template()},
        })
    }

    /// A StatefulSet of one of it.
    #[must_use]
    pub fn stateful_set(&self) -> Value {
        json!({
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": {
                "replicas": 1,
                "serviceName": self.name,
                "selector": {"matchLabels": {"app": self.name}},
                "template": self.template(),
            },
        })
    }

    /// A Job of it, that is not tried again.
    #[must_use]
    pub fn job(&self) -> Value {
        let shape = self.clone().with("restartPolicy", json!("Never"));
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": {"backoffLimit": 0, "template": shape.template()},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_the_same_pod_wherever_it_is_used() {
        let shape = Shape::server("demo", "echo").on("node1").mode("none").init("first", &["sleep", "1"]);
        let (pod, deployment) = (shape.pod(), shape.deployment(3));
        assert_eq!(pod["spec"], deployment["spec"]["template"]["spec"]);
        assert_eq!(pod["metadata"]["labels"][LABEL_DATAPLANE_MODE], "none");
        assert_eq!(pod["spec"]["initContainers"][0]["args"], json!(["sleep", "1"]));
        assert_eq!(deployment["spec"]["selector"]["matchLabels"]["app"], "echo");
    }

    #[test]
    fn a_field_of_a_container_is_set_in_the_first() {
        let shape = Shape::server("demo", "echo").with_in_container("readinessProbe", json!({"x": 1}));
        assert_eq!(shape.pod()["spec"]["containers"][0]["readinessProbe"]["x"], 1);
        assert_eq!(shape.job()["spec"]["template"]["spec"]["restartPolicy"], "Never");
    }
}
