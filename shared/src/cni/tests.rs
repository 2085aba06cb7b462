use super::*;
use crate::ids::PodRef;
use proptest::prelude::*;
use serde_json::json;
use serde_json::value::RawValue;
use std::net::IpAddr;
use std::time::Duration;

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn versions_are_known_by_their_exact_text_and_ordered() {
    for version in SpecVersion::ALL {
        assert_eq!(SpecVersion::parse(version.as_str()), Some(version));
    }
    for other in ["", "0.1.0", "0.2.0", "1.0", "1.1.0 ", "v1.0.0", "1.2.0"] {
        assert_eq!(SpecVersion::parse(other), None, "{other}");
    }
    assert!(SpecVersion::ALL.is_sorted());
}

#[test]
fn the_version_answer_is_in_the_askers_version() {
    let answer = serde_json::to_value(VersionInfo::answer(Some(SpecVersion::V0_4_0))).unwrap();
    let all = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    assert_eq!(answer, json!({"cniVersion": "0.4.0", "supportedVersions": all}));
    assert_eq!(VersionInfo::answer(None).cni_version, "1.1.0");
}

#[test]
fn an_error_object_leaves_out_empty_details() {
    let mut error =
        CniError { cni_version: "1.0.0".into(), code: 11, msg: "wait".into(), details: String::new() };
    assert_eq!(serde_json::to_string(&error).unwrap(), r#"{"cniVersion":"1.0.0","code":11,"msg":"wait"}"#);
    error.details = "why".into();
    assert!(serde_json::to_string(&error).unwrap().ends_with(r#","details":"why"}"#));
}

#[test]
fn a_netconf_as_containerd_gives_it() {
    let text = br#"{"agentSocket":"/run/x.sock","capabilities":{"io.kubernetes.cri.pod-annotations":true},
        "cniVersion":"1.0.0","exemptPods":[{"namespace":"a","namePrefix":"b-"}],"logLevel":"debug",
        "name":"net","prevResult": {"ips" : []} ,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":null},
        "stateDir":"/var/x","timeoutSeconds":7,"type":"sluice-cni"}"#;
    let conf = NetConf::parse(text).unwrap();
    assert_eq!(conf.version, SpecVersion::V1_0_0);
    assert_eq!(conf.prev_result.unwrap().get(), r#"{"ips" : []}"#);
    let expected = Settings {
        agent_socket: "/run/x.sock".into(),
        state_dir: "/var/x".into(),
        timeout: Duration::from_secs(7),
        log_level: LogLevel::Debug,
        exempt_pods: vec![ExemptPod { namespace: "a".into(), name_prefix: "b-".into() }],
    };
    assert_eq!(conf.settings(), Ok(expected));
}

#[test]
fn every_key_of_ours_is_optional_and_may_be_null() {
    let absent = NetConf::parse(br#"{"cniVersion":"0.3.1"}"#).unwrap();
    assert_eq!(absent.settings(), Ok(Settings::default()));
    assert!(absent.prev_result.is_none());
    let null = NetConf::parse(
        br#"{"cniVersion":"0.3.1","prevResult":null,"agentSocket":null,"stateDir":null,"timeoutSeconds":null,
        "logLevel":null,"exemptPods":null,"cni.dev/valid-attachments":null}"#,
    )
    .unwrap();
    assert_eq!(null.settings(), Ok(Settings::default()));
    assert!(null.prev_result.is_none());
    assert_eq!(null.valid_attachments(), Ok(None));
}

#[test]
fn a_key_that_is_wrong_is_named_and_spoils_only_itself() {
    let conf = NetConf::parse(
        br#"{"cniVersion":"1.1.0","logLevel":3,"cni.dev/valid-attachments":[{"ifname":"x"}]}"#,
    );
    let conf = conf.unwrap();
    let error = conf.settings().unwrap_err();
    assert_eq!(error.code(), code::INVALID_NETCONF);
    assert!(error.to_string().starts_with("netconf key logLevel: "), "{error}");
    assert!(!error.to_string().contains("line"), "a position within the value would mislead: {error}");
    let error = conf.valid_attachments().unwrap_err();
    assert!(error.to_string().contains("containerID"), "{error}");
}

#[test]
fn valid_attachments_are_read_and_an_empty_list_is_a_list() {
    let conf =
        br#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0","x":1}]}"#;
    let valid = NetConf::parse(conf).unwrap().valid_attachments().unwrap().unwrap();
    assert_eq!((valid[0].container_id.as_str(), valid[0].ifname.as_str()), ("a", "eth0"));
    let conf = NetConf::parse(br#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":[]}"#).unwrap();
    assert_eq!(conf.valid_attachments(), Ok(Some(Vec::new())));
}

#[test]
fn addresses_of_every_version_and_of_odd_primaries() {
    let table: [(&str, &[&str], usize); 16] = [
        (r#"{"ips":[{"version":"4","address":"10.0.0.5/24","interface":0}]}"#, &["10.0.0.5"], 0),
        (r#"{"ips":[{"address":"10.0.0.5/32"},{"address":"fd00::5/128"}]}"#, &["10.0.0.5", "fd00::5"], 0),
        (r#"{"ips":[{"version":"6","address":"10.0.0.5/24","interface":-9}]}"#, &["10.0.0.5"], 0),
        (r#"{"ips":[{"address":"10.0.0.5","interface":"x","gateway":7}]}"#, &["10.0.0.5"], 0),
        (r#"{"ips":[{"address":"fe80::5%eth0/64"},{"address":"fe80::6/64%2"}]}"#, &["fe80::5"], 1),
        (r#"{"ips":[{"address":"::ffff:10.0.0.5/120"}]}"#, &["10.0.0.5"], 0),
        (r#"{"ips":[{"address":"10.0.0.5/24"},{"address":"10.0.0.5/32"}]}"#, &["10.0.0.5"], 0),
        (r#"{"ips":[{"address":"10.0.0.5/33"},{"address":"10.0.0.5/x"}]}"#, &[], 2),
        (r#"{"ips":[{"address":""},{"address":7},{},null,"10.0.0.5"]}"#, &[], 5),
        (r#"{"interfaces":[{"mac":"0","sandbox":2}],"ips":[]}"#, &[], 0),
        (r#"{"interfaces":"garbage","routes":7,"ips":[{"address":"10.0.0.5/24"}]}"#, &["10.0.0.5"], 0),
        (r#"{"ips":{"address":"10.0.0.5/24"}}"#, &[], 1),
        (r#"{"ips":"10.0.0.5"}"#, &[], 1),
        (r#"{"ips":null}"#, &[], 0),
        ("{}", &[], 0),
        ("7", &[], 1),
    ];
    for (text, expected, skipped) in table {
        let found = addresses(&raw(text));
        assert_eq!(found.ips, ips(expected), "{text}");
        assert_eq!(found.skipped.len(), skipped, "{text}: {:?}", found.skipped);
    }
}

#[test]
fn cni_args_in_any_order() {
    let expected = PodArgs {
        pod: Some(PodRef::new("shop", "cart-0.x")),
        uid: Some("u1".to_owned().try_into().unwrap()),
    };
    let parts = [
        "IgnoreUnknown=1",
        "K8S_POD_NAME=cart-0.x",
        "K8S_POD_UID=u1",
        "K8S_POD_NAMESPACE=shop",
        "MAC=a=b",
        "",
    ];
    for shift in 0..parts.len() {
        let mut turned = parts;
        turned.rotate_left(shift);
        assert_eq!(PodArgs::parse(&turned.join(";")), Ok(expected.clone()), "{turned:?}");
    }
    assert_eq!(PodArgs::parse(""), Ok(PodArgs::default()));
    let twice = "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b;K8S_POD_NAME=a";
    assert_eq!(PodArgs::parse(twice).unwrap().pod, Some(PodRef::new("b", "a")));
}

#[test]
fn cni_args_that_say_nothing_certain() {
    let long = format!("K8S_POD_NAMESPACE=a;K8S_POD_NAME={}", "x".repeat(254));
    for text in [
        "K8S_POD_NAME",
        "K8S_POD_NAME=a",
        "K8S_POD_NAMESPACE=a",
        "K8S_POD_NAMESPACE=a;K8S_POD_NAME=",
        "K8S_POD_NAMESPACE=a;K8S_POD_NAMESPACE=b;K8S_POD_NAME=c",
        "K8S_POD_NAMESPACE=a;K8S_POD_NAMESPACE=;K8S_POD_NAME=c",
        "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c",
        "K8S_POD_NAMESPACE=a;K8S_POD_NAME=\u{202e}c",
        "K8S_POD_NAMESPACE=a;K8S_POD_NAME=c;K8S_POD_UID=.hidden",
        &long,
    ] {
        assert!(PodArgs::parse(text).is_err(), "{text:?}");
    }
}

/// Text that looks like a netconf more often than random bytes do.
fn netconf_like() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("cniVersion"),
        Just("prevResult"),
        Just("agentSocket"),
        Just("timeoutSeconds"),
        Just("exemptPods"),
        Just("cni.dev/valid-attachments"),
        Just("other"),
    ];
    let value = prop_oneof![
        Just("\"1.0.0\"".to_owned()),
        Just("{\"ips\":[{\"address\":\"10.0.0.1/8\"}]}".to_owned()),
        Just("[{}]".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        "[ -~]{0,20}",
    ];
    proptest::collection::vec((key, value), 0..6).prop_map(|pairs| {
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}", pairs.join(","))
    })
}

/// Any JSON value, written with white space in odd places.
fn spaced_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<f64>().prop_filter("JSON has no NaN", |n| n.is_finite()).prop_map(|n| format!("{n:e}")),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    let space = "[ \t\r\n]{0,3}";
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let pair = (any::<String>(), space, inner.clone()).prop_map(|(key, space, value)| {
            format!("{}{space}:{value}", serde_json::to_string(&key).unwrap())
        });
        prop_oneof![
            (proptest::collection::vec(inner, 0..4), space)
                .prop_map(|(items, space)| format!("[{space}{}]", items.join(&format!("{space},")))),
            (proptest::collection::vec(pair, 0..4), space)
                .prop_map(|(pairs, space)| format!("{{{}{space}}}", pairs.join(&format!(",{space}")))),
        ]
    })
}

proptest! {
    #[test]
    fn prev_result_keeps_every_byte(value in spaced_json(), before in "[ \n]{0,3}", after in "[ \n]{0,3}") {
        let result = format!("{{\"x\":{value}}}");
        let text = format!("{{\"cniVersion\":\"1.0.0\",\"prevResult\":{before}{result}{after}}}");
        let conf = NetConf::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(conf.prev_result.unwrap().get(), result);
    }

    #[test]
    fn no_netconf_makes_it_panic(text in netconf_like()) {
        if let Ok(conf) = NetConf::parse(text.as_bytes()) {
            let _ = conf.settings().map_err(|e| e.to_string());
            let _ = conf.valid_attachments().map_err(|e| e.to_string());
            let _ = conf.prev_result.map(addresses);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = NetConf::parse(&bytes).map_err(|e| (e.code(), e.to_string()));
    }

    #[test]
    fn no_args_make_it_panic_and_what_is_read_is_a_name(text in "(K8S_POD_(NAME|NAMESPACE|UID)=\\PC{0,8};?){0,5}") {
        if let Ok(PodArgs { pod: Some(pod), .. }) = PodArgs::parse(&text) {
            let named = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '/');
            prop_assert!(named(&pod.name) && named(&pod.namespace), "{pod:?}");
        }
    }

    #[test]
    fn addresses_written_are_addresses_read(ips in proptest::collection::hash_set(any::<IpAddr>(), 0..5)) {
        let entries: Vec<_> = ips.iter().map(|ip| json!({"address": format!("{ip}/{}", if ip.is_ipv4() { 24 } else { 64 })})).collect();
        let found = addresses(&raw(&json!({"ips": entries}).to_string()));
        prop_assert!(found.skipped.is_empty());
        prop_assert!(ips.iter().all(|ip| found.ips.contains(&ip.to_canonical())));
    }
}
