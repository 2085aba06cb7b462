//! The ztunnel of a node: the stand-in, or a real one when `ZTUNNEL` names its program (built with its fake CA).

use super::process::{Launch, Process, binary};
use super::topology::Node;
use super::xds::Mesh;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

/// Names a real ztunnel to run in the stand-in's place.
pub const VARIABLE: &str = "ZTUNNEL";

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The lab's own.
    StandIn,
    /// A real one.
    Real(PathBuf),
}

/// A running ztunnel. Dropping it kills it.
#[derive(Debug)]
pub struct Ztunnel {
    kind: Kind,
    process: Process,
    netns: super::netns::Netns,
    /// Where this life's output begins.
    from: u64,
}

/// Where the mesh's file is on a node.
fn mesh_file(node: &Node) -> PathBuf {
    node.dir.join("mesh.yaml")
}

/// What will run.
#[must_use]
pub fn kind() -> Kind {
    match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => Kind::Real(path.into()),
        None => Kind::StandIn,
    }
}

impl Ztunnel {
    /// Starts one in a cgroup of its own, `<name>`, and tells it of the mesh. Does not wait for the agent.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(node: &Node, name: &str, mesh: &Mesh) -> Result<Self> {
        Self::start_with(node, name, mesh, &[])
    }

    /// As [`Ztunnel::start`], with more arguments for the stand-in.
    ///
    /// # Errors
    /// When it cannot be started, or arguments are given for a real one.
    pub fn start_with(node: &Node, name: &str, mesh: &Mesh, args: &[&str]) -> Result<Self> {
        mesh.write(&mesh_file(node))?;
        let cgroup = node.cgroup(name)?;
        let launch = match kind() {
            Kind::StandIn => {
                let launch = Launch::new(binary("ztunnel-standin")?, &node.netns)
                    .arg("--zds")
                    .arg(node.socket("ztunnel.sock"))
                    .arg("--workloads")
                    .arg(mesh_file(node))
                    .arg("--node")
                    .arg(&node.name);
                args.iter().fold(launch, Launch::arg)
            }
            Kind::Real(program) => {
                ensure!(args.is_empty(), "a real ztunnel takes no {args:?}");
                Launch::new(program, &node.netns)
                    .arg("proxy")
                    .env("FAKE_CA", "true")
                    .env("XDS_ADDRESS", "")
                    .env("LOCAL_XDS_PATH", mesh_file(node))
                    .env("INPOD_UDS", node.socket("ztunnel.sock"))
                    .env("NODE_NAME", &node.name)
                    .env("CLUSTER_ID", "Kubernetes")
                    .env("RUST_LOG", "info")
                    .env("LOG_FORMAT", "json")
                    .env("IPV6_ENABLED", "true")
                    .env("ZTUNNEL_WORKER_THREADS", "2")
                    .env("PROXY_MODE", "shared")
            }
        };
        let from = std::fs::metadata(node.logs().join(format!("{name}.out"))).map_or(0, |found| found.len());
        let process = launch.in_cgroup(&cgroup).start(name, &node.logs())?;
        Ok(Self { kind: kind(), process, netns: node.netns.clone(), from })
    }

    /// Waits until it has been told of every pod.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub fn until_ready(&mut self) -> Result<()> {
        super::eventually("ztunnel to be ready", super::agent::PATIENCE, || {
            self.process.must_run()?;
            match self.kind {
                Kind::StandIn => {
                    let ready = self.events()?.iter().any(|event| event["event"] == "ready");
                    ensure!(ready, "it has not said so");
                }
                Kind::Real(_) => self.asks_ready()?,
            }
            Ok(())
        })
        .map_err(|why| why.context(self.process.last_words()))
    }

    /// Everything that the stand-in said in this life; of a real one, its log.
    ///
    /// # Errors
    /// When its output cannot be read.
    pub fn events(&self) -> Result<Vec<Value>> {
        let said = self.process.stdout_from(self.from)?;
        Ok(said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Fails if the stand-in found a fault with the agent. A real one has no opinion.
    ///
    /// # Errors
    /// The faults.
    pub fn must_be_content(&mut self) -> Result<()> {
        self.process.must_run()?;
        let events = self.events()?;
        let faults: Vec<_> = events.iter().filter(|event| event["event"] == "protocol-error").collect();
        ensure!(faults.is_empty(), "ztunnel's stand-in complains of the agent: {faults:?}");
        Ok(())
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub fn kill(self) -> Result<()> {
        self.process.kill()
    }

    /// Stops it as the kubelet does. The stand-in ends well only if the agent made no mistake.
    ///
    /// # Errors
    /// When it does not end in time, or not well.
    pub fn stop(self) -> Result<()> {
        let words = self.process.last_words();
        let status = self.process.stop(Duration::from_secs(30))?;
        ensure!(status.success(), "ztunnel ended with {status}; {words}");
        Ok(())
    }

    /// Stops (`SIGSTOP`) or continues it: a hung ztunnel.
    ///
    /// # Errors
    /// When it has ended.
    pub fn hang(&self, hung: bool) -> Result<()> {
        self.process.signal(if hung { Signal::SIGSTOP } else { Signal::SIGCONT })
    }

    fn asks_ready(&self) -> Result<()> {
        let answer = self.netns.run(|| {
            let address: SocketAddr = ([127, 0, 0, 1], 15021).into();
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"GET /healthz/ready HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let answer = answer.context("ask /healthz/ready")?;
        let status = answer.lines().next().unwrap_or_default();
        if !status.contains(" 200 ") {
            bail!("/healthz/ready says {answer:?}");
        }
        Ok(())
    }
}
