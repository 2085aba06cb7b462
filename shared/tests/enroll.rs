//! Who is in the mesh, and what annotations change: tables of cases, one line each.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its tools too")]

use sluice_shared::contract::{
    ANNOTATION_BYPASS_INBOUND, ANNOTATION_DNS_CAPTURE, ANNOTATION_REROUTE_INTERFACES, ANNOTATION_SIDECAR,
    LABEL_DATAPLANE_MODE,
};
use sluice_shared::enroll::*;
use sluice_shared::facts::{NamespaceFacts, Phase, PodFacts, StringMap};
use sluice_shared::ids::{Ifname, PodUid};
use sluice_shared::plan::{Hold, MarkGuard, Older, ProbeDoor, RedirectConfig, Stage, redirect};
use sluice_shared::selector::{LabelSelector, Operator, Requirement};
use std::collections::BTreeSet;

fn map(pairs: &[(&str, &str)]) -> StringMap {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn mode(value: &str) -> StringMap {
    if value.is_empty() { StringMap::new() } else { map(&[(LABEL_DATAPLANE_MODE, value)]) }
}

fn pod(labels: StringMap) -> PodFacts {
    PodFacts {
        uid: PodUid::new("u1").unwrap(),
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        service_account: "default".to_owned(),
        labels,
        annotations: StringMap::new(),
        host_network: false,
        phase: Phase::Running,
        ips: Vec::new(),
        probe_ports: Vec::new(),
        netns: None,
    }
}

fn namespace(labels: StringMap) -> NamespaceFacts {
    NamespaceFacts { name: "shop".to_owned(), labels }
}

fn because(verdict: &Verdict) -> Option<Because> {
    match verdict {
        Verdict::InMesh { because, .. } => Some(because.clone()),
        Verdict::Outside(_) => None,
    }
}

#[test]
fn the_two_labels_decide_as_istio_says() {
    let cases = [
        // pod, namespace, answer
        ("ambient", "", Ok(Because::PodLabel)),
        ("ambient", "ambient", Ok(Because::PodLabel)),
        ("ambient", "none", Ok(Because::PodLabel)),
        ("", "ambient", Ok(Because::NamespaceLabel)),
        ("sidecar", "ambient", Ok(Because::NamespaceLabel)),
        ("none", "ambient", Err(Reason::OptedOut)),
        ("none", "", Err(Reason::NotSelected)),
        ("", "", Err(Reason::NotSelected)),
        ("", "none", Err(Reason::NotSelected)),
        ("Ambient", "", Err(Reason::NotSelected)),
    ];
    for (pod_mode, namespace_mode, expected) in cases {
        let verdict =
            decide(&pod(mode(pod_mode)), Some(&namespace(mode(namespace_mode))), &EnrollPolicy::default());
        let got = match verdict {
            Verdict::InMesh { because, .. } => Ok(because),
            Verdict::Outside(reason) => Err(reason),
        };
        assert_eq!(got, expected, "pod {pod_mode:?} in namespace {namespace_mode:?}");
    }
}

#[test]
fn a_namespace_that_no_source_has_shown_has_no_labels() {
    let policy = EnrollPolicy::default();
    assert_eq!(decide(&pod(mode("")), None, &policy), Verdict::Outside(Reason::NotSelected));
    assert_eq!(because(&decide(&pod(mode("ambient")), None, &policy)), Some(Because::PodLabel));
}

#[test]
fn nothing_enrolls_what_cannot_be() {
    type Change = fn(&mut PodFacts);
    let cases: [(Change, Reason); 7] = [
        (|pod| pod.host_network = true, Reason::HostNetwork),
        (|pod| pod.annotations = map(&[(ANNOTATION_SIDECAR, "{}")]), Reason::Sidecar),
        (|pod| pod.annotations = map(&[(ANNOTATION_SIDECAR, "")]), Reason::Sidecar),
        (|pod| pod.namespace = "kube-system".to_owned(), Reason::ExcludedNamespace),
        (|pod| pod.phase = Phase::Succeeded, Reason::Terminal),
        (|pod| pod.phase = Phase::Failed, Reason::Terminal),
        // The first reason of several is given.
        (
            |pod| {
                pod.phase = Phase::Failed;
                pod.annotations = map(&[(ANNOTATION_SIDECAR, "x")]);
                pod.host_network = true;
            },
            Reason::HostNetwork,
        ),
    ];
    for (change, reason) in cases {
        let mut pod = pod(mode("ambient"));
        change(&mut pod);
        let verdict = decide(&pod, Some(&namespace(mode("ambient"))), &EnrollPolicy::default());
        assert_eq!(verdict, Verdict::Outside(reason));
    }
}

#[test]
fn a_pod_that_has_not_started_is_enrolled_like_one_that_runs() {
    for phase in [Phase::Pending, Phase::Running, Phase::Unknown] {
        let pod = PodFacts { phase, ..pod(mode("ambient")) };
        assert!(because(&decide(&pod, None, &EnrollPolicy::default())).is_some(), "{phase:?}");
    }
}

/// Selects pods of tier `web`, in namespaces that have a team.
fn by_team() -> EnablementSelector {
    EnablementSelector {
        pod_selector: LabelSelector { match_labels: map(&[("tier", "web")]), match_expressions: Vec::new() },
        namespace_selector: LabelSelector {
            match_labels: StringMap::new(),
            match_expressions: vec![Requirement {
                key: "team".to_owned(),
                operator: Operator::Exists,
                values: Vec::new(),
            }],
        },
    }
}

#[test]
fn configured_selectors_need_both_parts_and_any_one_is_enough() {
    let never = LabelSelector { match_labels: map(&[("never", "there")]), match_expressions: Vec::new() };
    let nobody = EnablementSelector { pod_selector: never, namespace_selector: LabelSelector::default() };
    let policy =
        EnrollPolicy { exclude_namespaces: BTreeSet::new(), selectors: vec![nobody.clone(), by_team()] };
    let web = pod(map(&[("tier", "web")]));
    let team = namespace(map(&[("team", "a")]));
    assert_eq!(because(&decide(&web, Some(&team), &policy)), Some(Because::Selector(1)));
    assert_eq!(because(&decide(&web, Some(&namespace(mode(""))), &policy)), None, "namespace part");
    assert_eq!(because(&decide(&pod(mode("")), Some(&team), &policy)), None, "pod part");
    // Istio's labels mean nothing where the configured selectors do not ask for them.
    assert_eq!(because(&decide(&pod(mode("ambient")), None, &policy)), None);
    let everything = EnrollPolicy { selectors: vec![nobody, EnablementSelector::default()], ..policy };
    assert_eq!(because(&decide(&pod(mode("")), None, &everything)), Some(Because::Selector(1)));
    let nothing = EnrollPolicy { selectors: Vec::new(), ..everything };
    assert_eq!(decide(&pod(mode("ambient")), None, &nothing), Verdict::Outside(Reason::NotSelected));
}

#[test]
fn a_namespace_is_in_when_a_selector_speaks_of_it() {
    let default = EnrollPolicy::default();
    assert!(namespace_in_mesh(&namespace(mode("ambient")), &default));
    assert!(!namespace_in_mesh(&namespace(mode("")), &default), "pods may opt in, which does not make it in");
    let system = NamespaceFacts { name: "kube-system".to_owned(), labels: mode("ambient") };
    assert!(!namespace_in_mesh(&system, &default));
    let policy = |selector| EnrollPolicy { exclude_namespaces: BTreeSet::new(), selectors: vec![selector] };
    assert!(namespace_in_mesh(&namespace(map(&[("team", "a")])), &policy(by_team())));
    assert!(!namespace_in_mesh(&namespace(mode("")), &policy(by_team())));
    assert!(namespace_in_mesh(&namespace(mode("")), &policy(EnablementSelector::default())));
}

#[test]
fn annotations_are_read_as_users_write_them() {
    let read = |key: &str, value: &str| Overrides::from_annotations(&map(&[(key, value)]));
    for (text, expected) in [("true", true), ("1", true), ("T", true), ("False", false), ("0", false)] {
        assert_eq!(read(ANNOTATION_BYPASS_INBOUND, text).bypass_inbound, expected, "{text}");
        assert_eq!(read(ANNOTATION_DNS_CAPTURE, text).dns_capture, Some(expected), "{text}");
    }
    for text in ["yes", "", " true", "tRUE"] {
        let bypass = read(ANNOTATION_BYPASS_INBOUND, text);
        assert!(!bypass.bypass_inbound, "a typo opens no hole: {text:?}");
        assert_eq!(bypass.warnings.len(), 1);
        let dns = read(ANNOTATION_DNS_CAPTURE, text);
        assert_eq!((dns.dns_capture, dns.warnings.len()), (None, 1), "{text:?}");
        assert!(dns.warnings[0].contains(ANNOTATION_DNS_CAPTURE));
    }
    assert_eq!(Overrides::from_annotations(&StringMap::new()), Overrides::default());
}

#[test]
fn interfaces_are_listed_once_and_bad_names_left_out_with_a_word() {
    let list = |text: &str| Overrides::from_annotations(&map(&[(ANNOTATION_REROUTE_INTERFACES, text)]));
    let names = |text: &str| -> Vec<String> {
        list(text).virtual_interfaces.iter().map(ToString::to_string).collect()
    };
    assert_eq!(names("k6t-eth0"), ["k6t-eth0"]);
    assert_eq!(names(" a , b,,a, "), ["a", "b"]);
    assert!(names("").is_empty());
    let mixed = list("ok,way-too-long-for-an-interface,with/slash,two words,\"; drop");
    assert_eq!(mixed.virtual_interfaces, [Ifname::new("ok").unwrap()]);
    assert_eq!(mixed.warnings.len(), 4);
}

#[test]
fn overrides_shape_the_plan() {
    let config = RedirectConfig { dns_capture: true, ipv6: true };
    let door = ProbeDoor::Snat { v4: [169, 254, 7, 127].into(), v6: [0xfd16, 0, 0, 0, 0, 0, 0, 1].into() };
    let plan = |overrides: &Overrides, dns_capture| {
        let config = RedirectConfig { dns_capture, ..config.clone() };
        redirect(overrides, &config, Stage::Redirect(Older::None), door.clone(), MarkGuard::Off, Hold::Drop)
    };
    let plain = plan(&Overrides::default(), true);
    assert!(plain.capture_inbound && plain.capture_dns && plain.ipv6);
    assert_eq!(plain.probe, door);
    // bypass-inbound-capture: nothing is captured on its way in, so no door is needed in it.
    let bypass = plan(&Overrides { bypass_inbound: true, ..Overrides::default() }, true);
    assert!(!bypass.capture_inbound);
    assert_eq!(bypass.probe, ProbeDoor::Closed);
    // dns-capture: forces either way.
    for (forced, node, expected) in
        [(Some(true), false, true), (Some(false), true, false), (None, true, true), (None, false, false)]
    {
        let overrides = Overrides { dns_capture: forced, ..Overrides::default() };
        assert_eq!(plan(&overrides, node).capture_dns, expected, "{forced:?} over {node}");
    }
    let names = vec![Ifname::new("k6t-eth0").unwrap()];
    let overrides = Overrides { virtual_interfaces: names.clone(), ..Overrides::default() };
    assert_eq!(plan(&overrides, true).virtual_interfaces, names);
}

#[test]
fn what_is_shown_says_which_label_and_why() {
    assert_eq!(
        Because::NamespaceLabel.to_string(),
        "its namespace is labelled istio.io/dataplane-mode=ambient"
    );
    assert_eq!(Because::Selector(2).to_string(), "enablementSelectors[2] selects it");
    assert!(Reason::Sidecar.to_string().contains(ANNOTATION_SIDECAR));
    assert!(Reason::OptedOut.to_string().contains(LABEL_DATAPLANE_MODE));
}
