//! Which runtime the node has, asked over its socket and written down for the installer.

use crate::fixture::SOON;
use crate::runtime::{Manner, Runtime as Cri, Sandbox};
use sluice_agent::installed::keep_runtime;
use sluice_shared::conflist::{DropIns, Runtime};
use sluice_shared::install::RUNTIME_FILE;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn sandbox() -> Sandbox {
    Sandbox {
        id: "s1".into(),
        uid: "u1".into(),
        name: "sluice-agent-x1".into(),
        attempt: 0,
        ready: true,
        ip: String::new(),
        info: "{}".into(),
    }
}

fn written(dir: &Path) -> Option<Runtime> {
    serde_json::from_slice(&std::fs::read(dir.join(RUNTIME_FILE)).ok()?).ok()
}

async fn until(dir: &Path, version: &str) -> Runtime {
    let same = async {
        loop {
            match written(dir) {
                Some(runtime) if runtime.version == version => return runtime,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let came = tokio::time::timeout(SOON, same).await;
    came.unwrap_or_else(|_| panic!("{:?}, and not {version}", written(dir)))
}

#[tokio::test]
async fn the_runtime_is_written_down_and_again_when_another_one_comes() {
    let dir = tempfile::tempdir().unwrap();
    let [unused, used] = ["unused.sock", "used.sock"].map(|name| dir.path().join(name));
    let other = Cri::listen(&unused, Vec::new(), Manner::Honest);
    *other.version.lock().unwrap() = ("cri-o".into(), "1.34.0".into());
    let first = Cri::listen(&used, vec![sandbox()], Manner::Honest);
    let sockets = vec![dir.path().join("absent.sock"), unused, used.clone()];
    let task = tokio::spawn(keep_runtime(sockets, dir.path().to_owned()));
    let runtime = until(dir.path(), "v2.1.4").await;
    assert_eq!((runtime.name.as_str(), runtime.drop_ins()), ("containerd", DropIns::Added));
    let stamp = std::fs::metadata(dir.path().join(RUNTIME_FILE)).unwrap().modified().unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(first.versions.load(Ordering::SeqCst), 1, "it is not asked again and again");
    assert_eq!(std::fs::metadata(dir.path().join(RUNTIME_FILE)).unwrap().modified().unwrap(), stamp);

    std::fs::remove_file(&used).unwrap();
    let second = Cri::listen(&used, vec![sandbox()], Manner::Fails);
    *second.version.lock().unwrap() = ("containerd".into(), "1.7.28".into());
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(
        written(dir.path()).unwrap().version,
        "v2.1.4",
        "another one that answers is not the kubelet's"
    );
    *second.manner.lock().unwrap() = Manner::Honest;
    assert_eq!(until(dir.path(), "1.7.28").await.drop_ins(), DropIns::Ignored);
    task.abort();
}
