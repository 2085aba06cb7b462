//! What the API server says: lists, read once, each with its own reason where it is refused.

use super::{ApiServer, date};
use crate::source::kubernetes::api::{Api, Failure, Target};
use crate::source::kubernetes::connect;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sluice_shared::contract::{LABEL_DATAPLANE_MODE, MODE_AMBIENT};
use sluice_shared::doctor::{Cluster, DaemonSet, Look, NetworkPolicy, Unlooked};
use sluice_shared::facts::StringMap;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long one list may take.
const WITHIN: Duration = Duration::from_secs(30);
const WHOLE: &str = "application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json";

/// Asks for everything.
pub(super) async fn ask(api_server: &ApiServer) -> Look<Cluster> {
    let kubeconfig = match api_server {
        ApiServer::Unasked => return Err(Unlooked::no_cluster()),
        ApiServer::Kubeconfig(path) => Some(path.as_path()),
        ApiServer::InCluster => None,
    };
    let client = connect(kubeconfig)
        .await
        .map_err(|error| Unlooked::new(error.to_string(), "name a kubeconfig that works"))?;
    let api = Api::new(client);
    // First of all, so that a server that is away costs one wait and is said once.
    let clock_ahead = clock(&api).await;
    if let Err(Asked::Unreachable(why)) = clock_ahead {
        return Err(Unlooked::new(
            why,
            "see whether this node reaches the API server, and name a kubeconfig that does",
        ));
    }
    let (namespaces, policies, daemon_sets, cilium) =
        tokio::join!(namespaces(&api), policies(&api), daemon_sets(&api), cilium(&api));
    Ok(Cluster {
        namespaces,
        policies,
        daemon_sets,
        cilium,
        clock_ahead: clock_ahead
            .map_err(|asked| Unlooked::new(asked.why(), "nothing: it answers without a date")),
    })
}

enum Asked {
    Unreachable(String),
    NoDate(String),
}

impl Asked {
    fn why(self) -> String {
        match self {
            Self::Unreachable(why) | Self::NoDate(why) => why,
        }
    }
}

async fn clock(api: &Api) -> Result<i64, Asked> {
    let said = match api.date().await {
        Ok(said) => said,
        // It is there, and says who may ask for what.
        Err(Failure::Status { code, .. }) => {
            return Err(Asked::NoDate(format!("/version is refused: {code}")));
        }
        Err(failure) => return Err(Asked::Unreachable(failure.to_string())),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed());
    let there = said.as_deref().and_then(date::seconds);
    there
        .map(|there| now - there)
        .ok_or_else(|| Asked::NoDate(format!("its answer has no usable date: {said:?}")))
}

/// A list. With version 0 it comes from the server's memory and costs its store nothing.
async fn list<T: DeserializeOwned>(api: &Api, path: &str, accept: &'static str) -> Look<Vec<T>> {
    #[derive(Deserialize)]
    struct List<T> {
        // Go writes an empty list as null.
        items: Option<Vec<T>>,
    }
    let target = Target::new(path, accept).with("resourceVersion", "0");
    let answer = api.fetch(&target, WITHIN).await.map_err(|failure| refused(&failure, path))?;
    let list: List<T> =
        serde_json::from_slice(&answer).map_err(|error| refused(&Failure::garbage(&error, &answer), path))?;
    Ok(list.items.unwrap_or_default())
}

fn refused(failure: &Failure, path: &str) -> Unlooked {
    let how = match failure {
        Failure::Status { code: 401 | 403, .. } => {
            "name the kubeconfig of somebody who may read it, with --kubeconfig"
        }
        _ => "ask again; if it stays so, see whether kubectl can",
    };
    Unlooked::new(format!("{path}: {failure}"), how)
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    namespace: String,
    name: String,
    #[serde(default)]
    labels: StringMap,
}

async fn namespaces(api: &Api) -> Look<BTreeMap<String, bool>> {
    let found: Vec<Object> = list(api, "/api/v1/namespaces", METADATA).await?;
    let in_mesh =
        |labels: &StringMap| labels.get(LABEL_DATAPLANE_MODE).is_some_and(|mode| mode == MODE_AMBIENT);
    Ok(found.into_iter().map(|found| (found.metadata.name, in_mesh(&found.metadata.labels))).collect())
}

async fn policies(api: &Api) -> Look<Vec<NetworkPolicy>> {
    list(api, "/apis/networking.k8s.io/v1/networkpolicies", WHOLE).await
}

async fn daemon_sets(api: &Api) -> Look<Vec<DaemonSet>> {
    #[derive(Deserialize)]
    struct Found {
        metadata: Metadata,
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Spec {
        template: Template,
    }
    #[derive(Deserialize)]
    struct Template {
        spec: PodSpec,
    }
    #[derive(Deserialize)]
    struct PodSpec {
        #[serde(default)]
        containers: Vec<Container>,
    }
    #[derive(Deserialize)]
    struct Container {
        #[serde(default)]
        env: Vec<Variable>,
    }
    #[derive(Deserialize)]
    struct Variable {
        name: String,
        value: Option<String>,
    }
    let found: Vec<Found> = list(api, "/apis/apps/v1/daemonsets", WHOLE).await?;
    Ok(found
        .into_iter()
        .map(|Found { metadata, spec }| {
            let variables = spec.template.spec.containers.into_iter().flat_map(|container| container.env);
            let env = variables.filter_map(|variable| Some((variable.name, variable.value?))).collect();
            DaemonSet { namespace: metadata.namespace, name: metadata.name, env }
        })
        .collect())
}

async fn cilium(api: &Api) -> Look<Option<BTreeMap<String, String>>> {
    #[derive(Deserialize)]
    struct ConfigMap {
        #[serde(default)]
        data: BTreeMap<String, String>,
    }
    const PATH: &str = "/api/v1/namespaces/kube-system/configmaps/cilium-config";
    match api.fetch(&Target::new(PATH, WHOLE), WITHIN).await {
        Ok(answer) => {
            let found: Result<ConfigMap, _> = serde_json::from_slice(&answer);
            found
                .map(|found| Some(found.data))
                .map_err(|error| refused(&Failure::garbage(&error, &answer), PATH))
        }
        Err(Failure::Status { code: 404, .. }) => Ok(None),
        Err(failure) => Err(refused(&failure, PATH)),
    }
}
