use super::*;
use proptest::prelude::*;

/// As aws writes it: strings for numbers and booleans, a key of the list that most do not know.
const AWS: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "aws-cni",
  "disableCheck": true,
  "plugins": [
    {
      "name": "aws-cni",
      "type": "aws-cni",
      "mtu": "9001",
      "enabled": "false"
    },
    {
      "type": "portmap",
      "capabilities": {"portMappings": true},
      "snat": true
    }
  ]
}
"#;
const OURS: &str = r#"{"type":"sluice-cni"}"#;

fn entry() -> Entry {
    Entry { timeout_seconds: Some(5), ..Entry::default() }
}

#[test]
fn our_entry_is_the_last_and_nothing_else_changes() {
    let edited = insert(AWS, &entry()).unwrap();
    let expected = AWS.replace(
        "      \"snat\": true\n    }",
        "      \"snat\": true\n    },\n    {\"type\":\"sluice-cni\",\"timeoutSeconds\":5}",
    );
    assert_eq!(edited, expected);
    assert_eq!(remove(&edited).unwrap(), AWS);
    assert!(contains(&edited).unwrap() && !contains(AWS).unwrap());
}

#[test]
fn a_list_on_one_line_stays_on_one_line() {
    let list = r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}],"name":"n"}"#;
    let edited = insert(list, &Entry::default()).unwrap();
    assert_eq!(
        edited,
        r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"},{"type":"sluice-cni"}],"name":"n"}"#
    );
    assert_eq!(remove(&edited).unwrap(), list);
}

#[test]
fn all_that_an_entry_can_say() {
    let entry = Entry {
        agent_socket: Some("/run/x.sock".into()),
        state_dir: Some("/var/x".into()),
        timeout_seconds: Some(7),
        log_level: Some(LogLevel::Debug),
        exempt_pods: vec![ExemptPod { namespace: "a".into(), name_prefix: "b-".into() }],
    };
    let edited = insert(r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#, &entry).unwrap();
    assert!(edited.contains(
        r#"{"type":"sluice-cni","agentSocket":"/run/x.sock","stateDir":"/var/x","timeoutSeconds":7,"logLevel":"debug","exemptPods":[{"namespace":"a","namePrefix":"b-"}]}"#
    ));
}

#[test]
fn an_entry_that_is_there_and_right_is_left_alone_to_the_byte() {
    let list =
        r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}, { "timeoutSeconds" :5, "type":"sluice-cni" }]}"#;
    assert_eq!(insert(list, &entry()).unwrap(), list);
}

#[test]
fn an_entry_that_is_old_or_not_the_last_or_there_twice_is_replaced() {
    let of = |plugins: &[&str]| format!(r#"{{"cniVersion":"1.0.0","plugins":[{}]}}"#, plugins.join(", "));
    let (ptp, portmap) = (r#"{"type":"ptp"}"#, r#"{"type":"portmap"}"#);
    let right = of(&[ptp, portmap, OURS]);
    for odd in [
        of(&[ptp, portmap, r#"{"type":"sluice-cni","timeoutSeconds":9}"#]),
        of(&[ptp, OURS, portmap]),
        of(&[OURS, ptp, portmap]),
        of(&[OURS, ptp, OURS, portmap, OURS]),
    ] {
        assert_eq!(insert(&odd, &Entry::default()).unwrap(), right, "{odd}");
        assert_eq!(remove(&odd).unwrap(), of(&[ptp, portmap]), "{odd}");
    }
}

#[test]
fn taking_out_the_only_plugin_leaves_an_empty_list() {
    let only = format!(r#"{{"cniVersion":"1.0.0","plugins":[ {OURS} ]}}"#);
    assert_eq!(remove(&only).unwrap(), r#"{"cniVersion":"1.0.0","plugins":[  ]}"#);
    assert_eq!(insert(&only, &entry()), Err(ConflistError::NoPlugins));
}

#[test]
fn what_cannot_be_edited_is_said() {
    let refused = |text: &str| insert(text, &Entry::default()).unwrap_err();
    for cut in ["", " ", "{", r#"{"cniVersion":"1.0.0","plugins":[{"type":"#] {
        assert!(matches!(refused(cut), ConflistError::CutOff(_)), "{cut}");
        assert!(matches!(remove(cut), Err(ConflistError::CutOff(_))), "{cut}");
    }
    for other in
        ["7", "\u{feff}{}", "{}", r#"{"plugins":{}}"#, r#"{"plugins":[7]}"#, r#"{"plugins":[{}]}"#, "{} {}"]
    {
        assert!(matches!(refused(other), ConflistError::NotAList(_)), "{other}: {:?}", refused(other));
    }
    assert_eq!(refused(r#"{"cniVersion":"1.0.0","type":"ptp"}"#), ConflistError::SinglePlugin);
    assert_eq!(refused(r#"{"cniVersion":"1.0.0","plugins":[]}"#), ConflistError::NoPlugins);
    assert_eq!(
        refused(r#"{"cniVersion":"0.2.0","plugins":[{"type":"x"}]}"#),
        ConflistError::Version("0.2.0".into())
    );
    assert_eq!(refused(r#"{"plugins":[{"type":"x"}]}"#), ConflistError::Version(String::new()));
    let newer = r#"{"cniVersion":"1.0.0","cniVersions":["1.0.0","2.0.0"],"plugins":[{"type":"x"}]}"#;
    assert_eq!(refused(newer), ConflistError::Version("2.0.0".into()));
    assert_eq!(refused(&" ".repeat(MAX_CONFLIST + 1)), ConflistError::TooLong);
}

#[test]
fn an_entry_that_the_plugin_would_refuse_is_never_written() {
    for (wrong, key) in [
        (Entry { timeout_seconds: Some(0), ..Entry::default() }, "timeoutSeconds"),
        (Entry { agent_socket: Some("relative".into()), ..Entry::default() }, "agentSocket"),
        (
            Entry {
                exempt_pods: vec![ExemptPod { namespace: "a".into(), name_prefix: String::new() }],
                ..Entry::default()
            },
            "exemptPods",
        ),
    ] {
        let error = insert(AWS, &wrong).unwrap_err();
        assert!(matches!(&error, ConflistError::Entry(e) if e.to_string().contains(key)), "{error}");
    }
}

/// A list with odd white space, odd keys and odd plugins.
fn any_list() -> impl Strategy<Value = String> {
    let space = || "[ \t\r\n]{0,3}";
    let plugin =
        (space(), "[a-z]{1,8}", any::<String>(), any::<i32>(), space()).prop_map(|(a, kind, text, n, b)| {
            let text = serde_json::to_string(&text).unwrap();
            format!(r#"{{{a}"x":{text},"type":"{kind}" ,{b}"n":{n}.50}}"#)
        });
    (proptest::collection::vec((space(), plugin, space()), 1..5), space(), any::<bool>()).prop_map(
        |(plugins, space, plugins_first)| {
            let plugins: Vec<_> = plugins.iter().map(|(a, plugin, b)| format!("{a}{plugin}{b}")).collect();
            let plugins = format!(r#""plugins"{space}:[{}]"#, plugins.join(","));
            let rest = r#""cniVersion":"1.0.0","name":"a\u0062c","o":{"plugins":[1]}"#;
            match plugins_first {
                true => format!("{space}{{{plugins},{rest}}}{space}"),
                false => format!("{{{rest},{plugins}{space}}}\n"),
            }
        },
    )
}

proptest! {
    #[test]
    fn what_was_put_in_is_taken_out_to_the_byte(list in any_list()) {
        let edited = insert(&list, &entry()).unwrap();
        prop_assert_eq!(remove(&edited).unwrap(), list);
        prop_assert_eq!(insert(&edited, &entry()).unwrap(), edited);
    }

    #[test]
    fn the_others_are_the_same_json_as_before(list in any_list()) {
        let edited = insert(&list, &entry()).unwrap();
        let before: serde_json::Value = serde_json::from_str(&list).unwrap();
        let mut after: serde_json::Value = serde_json::from_str(&edited).unwrap();
        let ours = after["plugins"].as_array_mut().unwrap().pop().unwrap();
        prop_assert_eq!(&ours["type"], PLUGIN_TYPE);
        prop_assert_eq!(after, before);
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,60}") {
        let _ = insert(&text, &entry()).map_err(|e| e.to_string());
        let _ = remove(&text).map_err(|e| e.to_string());
    }
}
