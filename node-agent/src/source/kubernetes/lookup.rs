//! One pod, asked for by name: what an ADD may need of a pod that the watch has not shown yet.

use super::api::{Api, Failure};
use super::pod::is_static;
use super::resource::{Pods, Resource as _, WantedLabels, check_names};
use crate::source::Answer;
use sluice_shared::enroll::EnrollPolicy;
use sluice_shared::ids::{PodRef, PodUid};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The longest that an answer is waited for: some of an ADD's time must be left to capture the pod.
const WITHIN: Duration = Duration::from_secs(3);

/// The way to single pods.
#[derive(Clone)]
pub struct PodLookup {
    api: Api,
    pods: Pods,
}

impl PodLookup {
    /// Looks up pods of `node`, and keeps the labels that `policy` goes by.
    #[must_use]
    pub fn new(client: kube::Client, node: &str, policy: &EnrollPolicy) -> Self {
        Self { api: Api::new(client), pods: Pods::new(node, WantedLabels::of(policy)) }
    }

    /// Asks once for the pod of this name. With a uid, only the pod of that uid is the one: a StatefulSet's pods follow
    /// each other under one name.
    pub async fn find(&self, pod: &PodRef, uid: Option<&PodUid>, deadline: Instant) -> Answer {
        if let Err(why) = check_names(&pod.namespace, &pod.name) {
            return Answer::Unknown(why);
        }
        let deadline = deadline.min(Instant::now() + WITHIN);
        let target = Pods::one(&pod.namespace, &pod.name);
        let answer = timeout_at(deadline, self.api.fetch(&target, WITHIN)).await;
        match answer.unwrap_or(Err(Failure::Late(WITHIN))) {
            Ok(text) => self.read(&text, uid),
            // The object that stands for a static pod is made by the kubelet, which may not have been able to.
            Err(Failure::Status { code: 404, .. }) if uid.is_none_or(|uid| !is_static(uid.as_str())) => {
                Answer::Gone("the API server has no such pod".to_owned())
            }
            Err(why) => Answer::Unknown(why.to_string()),
        }
    }

    fn read(&self, json: &[u8], uid: Option<&PodUid>) -> Answer {
        match self.pods.read(json) {
            Ok(Some(facts)) if uid.is_none_or(|uid| *uid == facts.uid) => Answer::Found(Box::new(facts)),
            Ok(Some(other)) => {
                Answer::Gone(format!("the pod of this name is another one, with uid {}", other.uid))
            }
            Ok(None) => Answer::Gone("the pod of this name is on another node".to_owned()),
            Err(why) => Answer::Unknown(format!("its object cannot be used: {why}")),
        }
    }
}
