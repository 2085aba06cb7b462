//! How the installation stands, told on the agent's own pod.

use crate::fake::FakeApi;
use crate::fixture::{SETTLED, SOON};
use serde_json::Value;
use sluice_agent::health::{Health, Server};
use sluice_agent::installed::{Looker, Standing, Teller};
use sluice_agent::metrics::Metrics;
use sluice_agent::status::Sink;
use sluice_shared::ids::{PodRef, PodUid};
use sluice_shared::install::{Fought, INSTALL_VERSION, INSTALLATION_FILE, Installation, State};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

const UID: &str = "6d9f3a52-0c8e-4b1e-9a57-1f0c5d3e7b42";

/// What the installer of this boot writes.
pub fn installation(state: State) -> Installation {
    let fight = (state == State::Fighting).then(|| Fought {
        file: "10-calico.conflist".into(),
        times: 5,
        seconds: 20,
        suspect: "calico-node".into(),
    });
    Installation {
        version: INSTALL_VERSION,
        boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned(),
        state,
        message: format!("it is {}", state.as_str()),
        directory: "/etc/cni/net.d".into(),
        way: None,
        why: String::new(),
        file: None,
        primary: None,
        primary_seen: true,
        writes: 9,
        repairs: 7,
        istio: Vec::new(),
        fight,
        updated: 0,
    }
}

#[tokio::test]
async fn a_fight_is_an_event_on_the_agents_own_pod_and_a_metric() {
    let api = FakeApi::start().await;
    let dir = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let (standing, mut now) = watch::channel(Standing::default());
    let teller = Teller {
        pod: Some((PodRef::new("sluice-system", "sluice-agent-x1"), PodUid::new(UID).unwrap())),
        status: Sink::start(api.client().await, "node1".into(), metrics.clone()),
        metrics: metrics.clone(),
        standing,
    };
    tokio::spawn(teller.run(Looker::new(dir.path(), dir.path()).unwrap()));
    let write = |state| {
        let bytes = serde_json::to_vec(&installation(state)).unwrap();
        std::fs::write(dir.path().join(INSTALLATION_FILE), bytes).unwrap();
    };
    write(State::Chained);
    now.wait_for(Standing::is_chained).await.unwrap();
    tokio::time::sleep(SETTLED).await;
    assert_eq!(api.asked(), Vec::<String>::new(), "that all is well is no news");

    write(State::Fighting);
    let fights = |now: &Standing| now.installation.as_ref().is_some_and(|found| found.fight.is_some());
    now.wait_for(fights).await.unwrap();
    while api.count("POST event") < 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let event: Value = serde_json::from_str(&api.requests()[0].body).unwrap();
    assert_eq!((&event["reason"], &event["type"]), (&"ChainFought".into(), &"Warning".into()));
    let about = &event["involvedObject"];
    assert_eq!((&about["kind"], &about["uid"]), (&"Pod".into(), &UID.into()));
    assert_eq!(about["name"], "sluice-agent-x1");
    assert_eq!(event["metadata"]["namespace"], "sluice-system");
    // What the admission policy goes by.
    assert_eq!(event["reportingComponent"], "sluice-agent");
    assert_eq!(event["reportingInstance"], "node1");
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("10-calico.conflist") && message.contains("by calico-node"), "{message}");
    assert!(message.ends_with("see on the node: sluicectl status"), "{message}");
    let text = metrics.render();
    assert!(text.contains("sluice_install_state{state=\"fighting\"} 1"), "{text}");
    assert!(text.contains("sluice_install_fight_undone 5"), "{text}");
    tokio::time::sleep(SETTLED * 3).await;
    assert_eq!(api.asked(), ["POST event"], "a fight that goes on is one Event");
}

/// A primary whose program puts its file back whenever it is not as it wrote it, and the real installer.
struct Fight {
    dir: tempfile::TempDir,
    installer: Child,
    goes_on: Arc<AtomicBool>,
    primary: Option<JoinHandle<()>>,
}

const CILIUM: &str =
    "{\"cniVersion\":\"0.3.1\",\"name\":\"cilium\",\"plugins\":[{\"type\":\"cilium-cni\"}]}\n";

impl Fight {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for sub in ["conf", "bin", "state", "run"] {
            std::fs::create_dir(path(sub)).unwrap();
        }
        std::fs::write(path("plugin"), "ELF").unwrap();
        std::fs::write(path("conf/05-cilium.conflist"), CILIUM).unwrap();
        // It was in the chain before, so nobody is asked whether the agent serves.
        std::fs::write(path("state/chained.json"), r#"{"version":1,"way":"in-place"}"#).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_sluice-agent")).with_file_name("sluice-install");
        let installer = Command::new(&program)
            .arg("run")
            .env("SLUICE_CONF_DIR", path("conf"))
            .env("SLUICE_BIN_DIR", path("bin"))
            .env("SLUICE_HOST_STATE_DIR", path("state"))
            .env("SLUICE_RUN_DIR", path("run"))
            .env("SLUICE_PLUGIN", path("plugin"))
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}; `make build` makes it", program.display()));
        let goes_on = Arc::new(AtomicBool::new(true));
        let (file, temporary, on) =
            (path("conf/05-cilium.conflist"), path("conf/cilium.tmp"), goes_on.clone());
        let primary = std::thread::spawn(move || {
            while on.load(Ordering::Relaxed) {
                if std::fs::read_to_string(&file).unwrap() != CILIUM {
                    std::fs::write(&temporary, CILIUM).unwrap();
                    std::fs::rename(&temporary, &file).unwrap();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { dir, installer, goes_on, primary: Some(primary) }
    }
}

impl Drop for Fight {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        let _ = self.primary.take().unwrap().join();
        let _ = self.installer.kill();
        let _ = self.installer.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fight_of_the_real_installer_is_told_by_an_event_and_at_the_metrics_endpoint() {
    let (api, metrics, fight) = (FakeApi::start().await, Metrics::new(), Fight::start());
    let (standing, _now) = watch::channel(Standing::default());
    let teller = Teller {
        pod: Some((PodRef::new("sluice-system", "sluice-agent-x1"), PodUid::new(UID).unwrap())),
        status: Sink::start(api.client().await, "node1".into(), metrics.clone()),
        metrics: metrics.clone(),
        standing,
    };
    let looker = Looker::new(&fight.dir.path().join("run"), &fight.dir.path().join("state")).unwrap();
    tokio::spawn(teller.run(looker));
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Health::new(metrics)).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.run());
    let told = async {
        while api.count("POST event") < 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, told).await.expect("nobody was told of the fight");
    let event: Value = serde_json::from_str(&api.requests()[0].body).unwrap();
    assert_eq!(event["reason"], "ChainFought");
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("05-cilium.conflist") && message.contains("cilium-agent"), "{message}");
    let scrape = || async {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = scrape().await;
    let undone = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("sluice_install_fight_undone "));
        line.and_then(|count| count.trim().parse::<f64>().ok()).unwrap_or_default()
    };
    assert!(text.contains("sluice_install_state{state=\"fighting\"} 1") && undone(&text) >= 5.0, "{text}");
}
