use super::*;
use sluice_shared::facts::StringMap;

fn open(dir: &tempfile::TempDir) -> Members {
    Members::open(dir.path(), WhenAgentUnavailable::Auto).unwrap()
}

fn show(members: &Members, name: &str, mode: Option<&str>) {
    let labels = mode.map(|mode| ("istio.io/dataplane-mode".to_owned(), mode.to_owned()));
    let facts = NamespaceFacts { name: name.into(), labels: StringMap::from_iter(labels) };
    members.namespace(name, Some(&facts), &EnrollPolicy::default());
}

fn in_file(dir: &tempfile::TempDir) -> Membership {
    Membership::parse(&std::fs::read(dir.path().join(MEMBERSHIP_FILE)).unwrap()).unwrap()
}

#[tokio::test]
async fn a_namespace_that_leaves_is_held_and_one_that_is_gone_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let members = open(&dir);
    for (name, mode) in [("mesh", Some("ambient")), ("plain", None), ("former", Some("ambient"))] {
        show(&members, name, mode);
    }
    assert_eq!(members.without_source("mesh"), Fallback::Pass("no agent has served on this node yet"));
    members.synced();
    show(&members, "former", None);
    members.holds_a_pod("plain");
    members.settled().await.unwrap();
    let file = in_file(&dir);
    assert_eq!(file.namespaces["mesh"], Standing::In);
    assert_eq!(file.namespaces["former"], Standing::Held);
    assert_eq!(file.namespaces["plain"], Standing::Held);

    let later = open(&dir);
    assert!(matches!(later.without_source("former"), Fallback::Wait(_)));
    show(&later, "mesh", Some("ambient"));
    later.synced();
    later.settled().await.unwrap();
    assert_eq!(in_file(&dir).namespaces.keys().collect::<Vec<_>>(), ["mesh"]);
}

#[tokio::test]
async fn a_file_that_was_removed_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let members = open(&dir);
    show(&members, "mesh", Some("ambient"));
    members.look();
    assert!(!dir.path().join(MEMBERSHIP_FILE).exists(), "nothing is to be written yet");
    members.synced();
    members.settled().await.unwrap();
    members.look();
    std::fs::remove_file(dir.path().join(MEMBERSHIP_FILE)).unwrap();
    members.look();
    members.settled().await.unwrap();
    assert_eq!(in_file(&dir).namespaces["mesh"], Standing::In);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_holds_pods_back_until_a_good_one_is_there() {
    for garbage in ["{", r#"{"version":2,"namespaces":["other shape"]}"#] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MEMBERSHIP_FILE), garbage).unwrap();
        let members = open(&dir);
        assert_eq!(members.without_source("plain"), membership::with_unreadable_file("plain"));
        assert!(matches!(members.without_source("plain"), Fallback::Wait(_)));
        assert!(matches!(members.without_source("kube-system"), Fallback::Pass(_)));
        show(&members, "plain", None);
        members.synced();
        members.settled().await.unwrap();
        assert_eq!(members.without_source("plain"), Fallback::Pass("its namespace is outside the mesh"));
    }
}

#[tokio::test]
async fn nothing_is_written_before_the_source_has_said_everything() {
    let dir = tempfile::tempdir().unwrap();
    let members = open(&dir);
    members.holds_a_pod("early");
    show(&members, "plain", None);
    let waits = tokio::time::timeout(Duration::from_millis(50), members.settled()).await;
    assert!(waits.is_err(), "{waits:?}");
    assert!(!dir.path().join(MEMBERSHIP_FILE).exists());
    members.synced();
    members.settled().await.unwrap();
    assert_eq!(in_file(&dir).namespaces["early"], Standing::Held);
    assert_eq!(in_file(&dir).namespaces["plain"], Standing::Out);
}

#[tokio::test]
async fn a_write_that_fails_is_told_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let members = open(&dir);
    // A directory cannot be replaced by a file, not even by root.
    let path = dir.path().join(MEMBERSHIP_FILE);
    std::fs::create_dir_all(path.join("in the way")).unwrap();
    members.synced();
    let why = members.settled().await.unwrap_err();
    assert!(why.contains(MEMBERSHIP_FILE), "{why}");
    assert!(members.is_stale());
    std::fs::remove_dir_all(&path).unwrap();
    let written = async {
        while members.settled().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), written).await.unwrap();
    assert!(!members.is_stale());
    assert_eq!(in_file(&dir).namespaces.len(), 0);
}

#[tokio::test]
async fn what_was_said_last_is_written_after_the_members_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let members = open(&dir);
    members.synced();
    members.holds_a_pod("late");
    let mut on_disk = members.on_disk.clone();
    drop(members);
    while on_disk.changed().await.is_ok() {}
    assert_eq!(in_file(&dir).namespaces["late"], Standing::Held);
}
