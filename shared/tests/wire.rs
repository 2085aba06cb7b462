//! The messages between plugin and agent, to the byte. The two are upgraded apart: whoever changes a text below
//! changes what the other of yesterday reads, and raises `WIRE_VERSION`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use sluice_shared::ids::PodRef;
use sluice_shared::wire::{Attachment, AttachmentId, Reply, Request, Verb, WIRE_VERSION};

fn id() -> AttachmentId {
    AttachmentId { container_id: "c0ffee".into(), ifname: "eth0".into() }
}

fn attachment() -> Attachment {
    Attachment {
        id: id(),
        netns: "/run/netns/x".into(),
        pod: Some(PodRef::new("shop", "cart")),
        uid: Some("u-1".to_owned().try_into().unwrap()),
        ips: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
    }
}

const ATTACHMENT: &str = r#""containerId":"c0ffee","ifname":"eth0","netns":"/run/netns/x","pod":{"namespace":"shop","name":"cart"},"uid":"u-1","ips":["10.0.0.5","fd00::5"]}"#;

#[test]
fn requests_of_version_1() {
    assert_eq!(
        WIRE_VERSION, 1,
        "a new version needs its own table; the old one must still be refused by name"
    );
    let table = [
        (Verb::Add(attachment()), format!(r#"{{"version":1,"verb":"add",{ATTACHMENT}"#)),
        (Verb::Del(attachment()), format!(r#"{{"version":1,"verb":"del",{ATTACHMENT}"#)),
        (Verb::Check(attachment()), format!(r#"{{"version":1,"verb":"check",{ATTACHMENT}"#)),
        (
            Verb::Gc { valid: vec![id()] },
            r#"{"version":1,"verb":"gc","valid":[{"containerId":"c0ffee","ifname":"eth0"}]}"#.to_owned(),
        ),
        (Verb::Status, r#"{"version":1,"verb":"status"}"#.to_owned()),
        (
            Verb::Log { level: "warn".into(), message: "line".into() },
            r#"{"version":1,"verb":"log","level":"warn","message":"line"}"#.to_owned(),
        ),
    ];
    for (verb, text) in table {
        let request = Request { version: WIRE_VERSION, verb };
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
    }
}

#[test]
fn replies_of_version_1() {
    let table = [
        (Reply::Ok { outcome: "captured".into() }, r#"{"result":"ok","outcome":"captured"}"#),
        (
            Reply::Error { code: 11, msg: "wait".into(), details: "why".into() },
            r#"{"result":"error","code":11,"msg":"wait","details":"why"}"#,
        ),
    ];
    for (reply, text) in table {
        assert_eq!(serde_json::to_string(&reply).unwrap(), text);
        assert_eq!(serde_json::from_str::<Reply>(text).unwrap(), reply);
    }
}

#[test]
fn fields_that_are_missing_or_not_known_yet_do_no_harm() {
    let sparse = r#"{"version":1,"verb":"del","containerId":"c","ifname":"eth0","new":{"a":[1]}}"#;
    let Verb::Del(del) = serde_json::from_str::<Request>(sparse).unwrap().verb else { panic!("no DEL") };
    assert_eq!((del.netns.as_str(), del.pod, del.uid, del.ips.len()), ("", None, None, 0));
    let sparse = r#"{"result":"error","code":11,"msg":"wait","new":1}"#;
    let reply: Reply = serde_json::from_str(sparse).unwrap();
    assert_eq!(reply, Reply::Error { code: 11, msg: "wait".into(), details: String::new() });
}
