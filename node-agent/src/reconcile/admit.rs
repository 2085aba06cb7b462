//! An ADD for a pod, or in a namespace, that the API server's watch has not shown yet: it is asked once for the pod, and the
//! namespace is waited for, before the pod's task gets the ADD. That task goes on with everything else meanwhile.
//!
//! What stays unknown is judged as the plugin judges with no agent to ask. A namespace that is not known at all is no
//! namespace without labels: its pods wait.

use super::{Context, Message, Told, answer_error};
use crate::source::Answer;
use sluice_shared::cni::code;
use sluice_shared::ids::{PodRef, PodUid};
use sluice_shared::membership::Fallback;
use sluice_shared::wire::{Attachment, Reply};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Finds out what must be known, and passes the ADD on to the pod's task; or answers it.
pub(super) async fn admit(
    cx: Arc<Context>,
    uid: PodUid,
    shown: bool,
    attachment: Attachment,
    netns: OwnedFd,
    deadline: Instant,
    reply: oneshot::Sender<Reply>,
) {
    let pod = attachment.pod.clone().unwrap_or_else(|| PodRef::new("", ""));
    let told = match shown {
        true => Ok(Told::Shown),
        false => look_up(&cx, &pod, attachment.uid.as_ref(), deadline).await,
    };
    let told = match told {
        Ok(told) if cx.namespaces.wait_for(&pod.namespace, deadline).await => told,
        Ok(_) => return refuse(reply, &pod, "its namespace has not been shown by the API server yet"),
        Err(why) => return refuse(reply, &pod, &why),
    };
    // An old runtime says no uid: the pod of this name is the one.
    let uid = match &told {
        Told::Found(facts) => facts.uid.clone(),
        Told::Shown | Told::Unknown(_) => uid,
    };
    cx.tell(&uid, Message::Add { attachment, netns, told, deadline, reply });
}

/// Asks once. An error is why the pod must wait.
async fn look_up(
    cx: &Context,
    pod: &PodRef,
    uid: Option<&PodUid>,
    deadline: Instant,
) -> Result<Told, String> {
    match cx.lookup.find(pod, uid, deadline).await {
        Answer::Found(facts) => Ok(Told::Found(facts)),
        Answer::Gone(why) => Err(why),
        Answer::Unknown(why) => match cx.members.without_source(&pod.namespace) {
            Fallback::Wait(because) => {
                Err(format!("whether it is in the mesh is not known, and {because}: {why}"))
            }
            Fallback::Pass(_) => Ok(Told::Unknown(why)),
        },
    }
}

fn refuse(reply: oneshot::Sender<Reply>, pod: &PodRef, why: &str) {
    tracing::info!(%pod, why, "an ADD has to come again");
    answer_error(reply, code::TRY_AGAIN_LATER, format!("pod {pod}: {why}; see: sluicectl status"));
}
