//! etcd, the API server, the controller manager and the scheduler, on a host of their own on the fabric.

use super::pki::{Authority, Subject};
use super::programs::Programs;
use super::progress::Progress;
use super::{address, audit};
use crate::lab::netns::Netns;
use crate::lab::process::{Launch, Process};
use crate::lab::{eventually, write_whole};
use anyhow::{Context, Result, ensure};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

const ETCD_PORT: u16 = 2379;

/// The control plane. Dropping it ends it.
pub struct ControlPlane {
    host: Netns,
    programs: Programs,
    dir: PathBuf,
    logs: PathBuf,
    progress: Progress,
    admin: PathBuf,
    apiserver: Launch,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    apiserver: Option<Process>,
    /// When it was killed, until it was ready again.
    outages: Vec<Range<SystemTime>>,
    away_since: Option<SystemTime>,
    /// The others, in the order in which they were started.
    others: Vec<Process>,
}

impl ControlPlane {
    /// Issues the certificates; nothing runs yet. `dir` is the cluster's directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn prepare(
        host: &Netns,
        programs: &Programs,
        dir: &Path,
        authority: &Authority,
        progress: &Progress,
    ) -> Result<Self> {
        let pki = authority.file("");
        let admin = authority.kubeconfig(&pki, "admin", &Subject::client("admin", "system:masters"))?;
        for component in ["controller-manager", "scheduler"] {
            let user = format!("system:kube-{component}");
            authority.kubeconfig(&pki, component, &Subject::client(&user, ""))?;
        }
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let addresses = address::of_api_server();
        let server =
            Subject { common_name: "kube-apiserver", organization: "", names: &names, addresses: &addresses };
        authority.issue(&pki, "apiserver", &server)?;
        authority.issue(&pki, "kubelet-client", &Subject::client("kube-apiserver", "system:masters"))?;
        write_whole(&dir.join("audit-policy.yaml"), &audit::policy())?;
        // The kubeconfig that people and tests use is in the cluster's directory, with paths that hold there.
        let text = std::fs::read_to_string(&admin)?;
        let absolute = |text: String, file: &str| {
            text.replace(&format!(": {file}\n"), &format!(": {}\n", pki.join(file).display()))
        };
        let text = ["ca.crt", "admin.crt", "admin.key"].into_iter().fold(text, absolute);
        let admin = dir.join("admin.kubeconfig");
        write_whole(&admin, &text)?;
        Ok(Self {
            apiserver: apiserver(host, programs, dir, &pki),
            host: host.clone(),
            programs: programs.clone(),
            dir: dir.to_path_buf(),
            logs: dir.join("logs"),
            progress: progress.clone(),
            admin,
            running: Mutex::default(),
        })
    }

    /// Starts all of it, and returns when the API server is ready.
    ///
    /// # Errors
    /// Which part did not come up, and what it said last.
    pub fn start(&self) -> Result<()> {
        let mut etcd = self.etcd().start("etcd", &self.logs)?;
        self.until_listening(&mut etcd, Ipv4Addr::LOCALHOST, ETCD_PORT, Duration::from_secs(30))?;
        self.keep(etcd);
        self.progress.say("etcd is up");
        self.start_apiserver()?;
        for (name, args) in
            [("controller-manager", self.controller_manager_args()), ("scheduler", self.scheduler_args())]
        {
            let component = format!("kube-{name}");
            let launch = Launch::new(self.programs.path(&component), &self.host).args(args);
            self.keep(launch.start(&component, &self.logs)?);
        }
        Ok(())
    }

    /// Starts the API server, and returns when it is ready.
    ///
    /// # Errors
    /// When it runs already or does not get ready.
    pub fn start_apiserver(&self) -> Result<()> {
        ensure!(self.lock().apiserver.is_none(), "the API server runs already");
        let mut server = self.apiserver.start("kube-apiserver", &self.logs)?;
        self.until_listening(
            &mut server,
            address::CONTROL_PLANE_V4,
            address::API_PORT,
            Duration::from_secs(60),
        )?;
        eventually("the API server to be ready", Duration::from_secs(60), || {
            server.must_run()?;
            self.kubectl(&["get", "--raw", "/readyz"], b"").or_else(pause)
        })
        .map_err(|why| why.context(server.last_words()))?;
        let mut running = self.lock();
        running.apiserver = Some(server);
        let outage = running.away_since.take().map(|since| since..SystemTime::now());
        running.outages.extend(outage);
        drop(running);
        self.progress.say("the API server is ready");
        Ok(())
    }

    /// Kills the API server, as a machine that fails does. Connections to it are reset.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop_apiserver(&self) -> Result<()> {
        let mut running = self.lock();
        let server = running.apiserver.take().context("the API server does not run")?;
        running.away_since = Some(SystemTime::now());
        drop(running);
        server.kill()
    }

    /// When the API server was away, each time until it was ready again. One that has just begun answers before it is
    /// ready, and refuses what it does not know the rights for yet.
    #[must_use]
    pub fn outages(&self) -> Vec<Range<SystemTime>> {
        self.lock().outages.clone()
    }

    /// Fails if a part of it has ended by itself.
    ///
    /// # Errors
    /// Which, and its last words.
    pub fn must_run(&self) -> Result<()> {
        let mut running = self.lock();
        if let Some(server) = &mut running.apiserver {
            server.must_run()?;
        }
        running.others.iter_mut().try_for_each(Process::must_run)
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// A kubectl that acts as the administrator, on the control plane's host.
    #[must_use]
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        self.administrators("kubectl", args)
    }

    /// Runs kubectl, with `input` on its stdin; returns its stdout.
    ///
    /// # Errors
    /// With its stderr when it fails.
    pub fn kubectl(&self, args: &[&str], input: &[u8]) -> Result<String> {
        self.ask("kubectl", args, input)
    }

    /// Runs helm, with `input` on its stdin; returns its stdout.
    ///
    /// # Errors
    /// With its stderr when it fails.
    pub fn helm(&self, args: &[&str], input: &[u8]) -> Result<String> {
        self.ask("helm", args, input)
    }

    fn ask(&self, program: &str, args: &[&str], input: &[u8]) -> Result<String> {
        let output = self.host.output(&mut self.administrators(program, args), input)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {}: {}", args.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn administrators(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.programs.path(program));
        // Their caches of what the API server offers are no use to the next cluster.
        command.args(args).env("KUBECONFIG", &self.admin).env("HOME", &self.dir);
        command
    }

    fn etcd(&self) -> Launch {
        let (client, peer) = (format!("http://127.0.0.1:{ETCD_PORT}"), "http://127.0.0.1:2380");
        let args = [
            format!("--data-dir={}", self.dir.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            // The data does not outlive the machine.
            "--unsafe-no-fsync".into(),
        ];
        Launch::new(self.programs.path("etcd"), &self.host).args(args)
    }

    fn controller_manager_args(&self) -> Vec<String> {
        let pki = |name: &str| self.dir.join("pki").join(name).display().to_string();
        vec![
            format!("--kubeconfig={}", pki("controller-manager.kubeconfig")),
            "--bind-address=127.0.0.1".into(),
            "--leader-elect=false".into(),
            "--use-service-account-credentials=true".into(),
            format!("--service-account-private-key-file={}", pki("sa.key")),
            format!("--root-ca-file={}", pki("ca.crt")),
            format!("--cluster-signing-cert-file={}", pki("ca.crt")),
            format!("--cluster-signing-key-file={}", pki("ca.key")),
            // Each node's pod network is fixed.
            "--allocate-node-cidrs=false".into(),
            // An API server that comes back after a minute would take every node for dead, and its pods out of their
            // services, until the kubelets have reported.
            "--node-monitor-grace-period=300s".into(),
            "--kube-api-qps=200".into(),
            "--kube-api-burst=400".into(),
        ]
    }

    fn scheduler_args(&self) -> Vec<String> {
        vec![
            format!("--kubeconfig={}", self.dir.join("pki/scheduler.kubeconfig").display()),
            "--bind-address=127.0.0.1".into(),
            "--leader-elect=false".into(),
            "--kube-api-qps=200".into(),
            "--kube-api-burst=400".into(),
        ]
    }

    fn until_listening(
        &self,
        process: &mut Process,
        address: Ipv4Addr,
        port: u16,
        patience: Duration,
    ) -> Result<()> {
        let address = SocketAddr::from((address, port));
        eventually(&format!("somebody to listen at {address}"), patience, || {
            process.must_run()?;
            self.host.run(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1))?)).map(drop)
        })
        .map_err(|why| why.context(process.last_words()))
    }

    fn keep(&self, process: Process) {
        self.lock().others.push(process);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apiserver(host: &Netns, programs: &Programs, dir: &Path, pki: &Path) -> Launch {
    let pki = |name: &str| pki.join(name).display().to_string();
    let args = [
        format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
        format!("--advertise-address={}", address::CONTROL_PLANE_V4),
        format!("--secure-port={}", address::API_PORT),
        format!("--service-cluster-ip-range={}", address::SERVICE_CIDRS),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--kubelet-certificate-authority={}", pki("ca.crt")),
        format!("--kubelet-client-certificate={}", pki("kubelet-client.crt")),
        format!("--kubelet-client-key={}", pki("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={}", pki("sa.pub")),
        format!("--service-account-signing-key-file={}", pki("sa.key")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        format!("--audit-policy-file={}", dir.join("audit-policy.yaml").display()),
        format!("--audit-log-path={}", dir.join("audit.log").display()),
        // In megabytes: one file for as long as the cluster lives.
        "--audit-log-maxsize=4096".into(),
    ];
    Launch::new(programs.path("kube-apiserver"), host).args(args)
}

/// Between two questions that cost a process each.
fn pause<T>(why: anyhow::Error) -> Result<T> {
    std::thread::sleep(Duration::from_millis(200));
    Err(why)
}
