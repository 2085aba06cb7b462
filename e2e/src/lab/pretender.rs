//! Somebody who is root and pretends to be a ztunnel: he acknowledges whatever the agent asks, serves nobody, and tells
//! what he was given.

use super::process::{Launch, Process, binary};
use super::topology::Node;
use crate::ztunnel::messages::{Request, hello, response};
use crate::ztunnel::session::receive;
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use sluice_shared::ids::NetnsId;
use std::io::Write;
use std::path::Path;
use tokio_seqpacket::UnixSeqpacket;

/// A running pretender. Dropping it ends it.
#[derive(Debug)]
pub struct Pretender {
    process: Process,
}

/// What he was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Given {
    /// A pod to serve.
    Pod {
        /// Its uid.
        uid: String,
        /// Its namespace, its name and its service account.
        who: [String; 3],
        /// The network namespace that came along.
        netns: NetnsId,
    },
    /// The end of the snapshot: from here on the agent takes him for ready.
    Snapshot,
    /// Something else that is asked of a ztunnel.
    Other(String),
    /// The end of the connection.
    Closed,
}

impl Pretender {
    /// Starts one in a cgroup of the node's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(node: &Node, name: &str, cgroup: &str) -> Result<Self> {
        let launch = Launch::new(binary("sluice-lab")?, &node.netns).arg("pretend").arg("--zds");
        let launch = launch.arg(node.socket("ztunnel.sock")).in_cgroup(&node.cgroup(cgroup)?);
        Ok(Self { process: launch.start(name, &node.logs())? })
    }

    /// What he was given until now.
    ///
    /// # Errors
    /// When his output cannot be read.
    pub fn given(&self) -> Result<Vec<Given>> {
        let said = self.process.stdout_from(0)?;
        said.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("read {line:?}")))
            .collect()
    }

    /// Waits until he was given this.
    ///
    /// # Errors
    /// What he was given instead.
    pub fn until(&self, wanted: &Given) -> Result<Vec<Given>> {
        super::eventually(&format!("the pretender to be given {wanted:?}"), super::agent::PATIENCE, || {
            let given = self.given()?;
            if given.contains(wanted) { Ok(given) } else { Err(anyhow!("he was given {given:?}")) }
        })
        .map_err(|why| why.context(self.process.last_words()))
    }
}

/// Pretends on one connection, until the agent closes it; a JSON line for each thing that he is given.
///
/// # Errors
/// When the socket cannot be reached, or the agent says what no ztunnel would understand.
pub async fn pretend(socket: &Path) -> Result<()> {
    let agent = UnixSeqpacket::connect(socket).await.context("connect")?;
    agent.send(&hello()).await.context("say hello")?;
    while let Some(packet) = receive(&agent).await.or_else(hung_up)? {
        tell(&match packet.request()? {
            Request::Add { uid, info, netns } => {
                let info = info.context("an Add that does not say who the pod is")?;
                let who = [info.namespace, info.name, info.service_account];
                Given::Pod { uid, who, netns: netns.id() }
            }
            Request::SnapshotSent => Given::Snapshot,
            other => Given::Other(format!("{other:?}")),
        })?;
        agent.send(&response("")).await.context("acknowledge")?;
    }
    tell(&Given::Closed)
}

/// Whoever closes with something unread resets the connection.
fn hung_up<T>(error: std::io::Error) -> std::io::Result<Option<T>> {
    if error.kind() == std::io::ErrorKind::ConnectionReset { Ok(None) } else { Err(error) }
}

fn tell(given: &Given) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(given)?).context("tell")
}
