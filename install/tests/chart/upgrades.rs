//! An upgrade from any values to any others is one that the API server takes: nothing that cannot change does.

use super::helm::{apicheck, render, renderings};

#[test]
#[ignore = "needs helm: make chart-test"]
fn every_rendering_can_follow_every_other() {
    let texts: Vec<_> = renderings()
        .iter()
        .map(|values| render(&values.iter().map(String::as_str).collect::<Vec<_>>()).text)
        .collect();
    let default = &texts[0];
    for text in &texts {
        for (before, after) in [(default, text), (text, default)] {
            let said = apicheck(after, Some(before));
            assert!(said.is_ok(), "{said:?}");
        }
    }
    // That the check can fail.
    let other = default.replace("app.kubernetes.io/name: sluice-agent", "app.kubernetes.io/name: other");
    let why = apicheck(&other, Some(default)).unwrap_err();
    assert!(why.contains("spec.selector") && why.contains("immutable"), "{why}");
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn pods_are_replaced_when_the_configuration_changes_and_else_not() {
    let checksum = |args: &[&str]| {
        let rendered = render(args);
        rendered.one("DaemonSet")["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone()
    };
    let before = checksum(&[]);
    assert_eq!(checksum(&[]), before);
    assert_eq!(checksum(&["--set", "podMonitor.interval=5s"]), before);
    assert_ne!(checksum(&["--set", "config.holdTimeoutSeconds=5"]), before);
    assert_ne!(checksum(&["--set", "excludeNamespaces={a}"]), before);
}
