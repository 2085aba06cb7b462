use super::*;
use sluice_shared::admin::LeaseState;
use sluice_shared::install::{self, Fought, INSTALL_VERSION};

fn fought() -> Installation {
    let fight = Fought { file: "10-a.conflist".into(), times: 5, seconds: 20, suspect: "somebody".into() };
    Installation {
        version: INSTALL_VERSION,
        boot: String::new(),
        state: install::State::Fighting,
        message: String::new(),
        directory: String::new(),
        way: None,
        why: String::new(),
        file: None,
        primary: None,
        primary_seen: true,
        writes: 9,
        repairs: 7,
        istio: Vec::new(),
        fight: Some(fight),
        updated: 0,
    }
}

fn lease() -> LeaseStatus {
    LeaseStatus { state: LeaseState::Held, age_seconds: 12, horizon_seconds: 3600 }
}

#[test]
fn every_metric_is_rendered_under_its_name() {
    let metrics = Metrics::new();
    metrics.add_took(AddPhase::Kernel, Duration::from_millis(1));
    metrics.set_pods(State::Enabled, 3);
    metrics.set_held_pods(1);
    metrics.drift_repaired(DriftObject::PolicyRule);
    metrics.kernel_error(KernelStep::Enroll);
    metrics.zds_nack();
    metrics.source_error(SourceKind::File);
    metrics.plugin_request("ADD", &Reply::Ok { outcome: "captured".to_owned() });
    metrics.status_patch("ok");
    metrics.set_status_pending(5);
    metrics.event("withheld");
    metrics.set_ztunnels(2);
    metrics.ready_after(Duration::from_millis(1500));
    metrics.ready_after(Duration::from_secs(99));
    metrics.set_open_netns_fds(4);
    metrics.set_membership_stale(true);
    metrics.set_backend("iptables");
    metrics.set_backend("nftables");
    metrics.probes("snat", "untested");
    metrics.probes("cookie", "works");
    metrics.probe_test("works");
    metrics.installation(Some(&fought()), Some(&lease()));
    metrics.taint_removal("ok");
    let text = metrics.render();
    for line in [
        "sluice_add_duration_seconds_bucket{le=\"0.001\",phase=\"kernel\"} 1",
        "sluice_pods{state=\"enabled\"} 3",
        "sluice_pods{state=\"drifted\"} 0",
        "sluice_held_pods 1",
        "sluice_drift_repairs_total{object=\"policy_rule\"} 1",
        "sluice_kernel_errors_total{step=\"enroll\"} 1",
        "sluice_probes_info{strategy=\"cookie\",tested=\"works\"} 1",
        "sluice_probe_tests_total{result=\"works\"} 1",
        "sluice_zds_nacks_total 1",
        "sluice_source_errors_total{source=\"file\"} 1",
        "sluice_plugin_requests_total{verb=\"ADD\",code=\"0\"} 1",
        "sluice_status_patches_total{result=\"ok\"} 1",
        "sluice_status_pending 5",
        "sluice_events_total{result=\"withheld\"} 1",
        "ztunnel_connected 2",
        "sluice_start_to_ready_seconds 1.5",
        "sluice_open_netns_fds 4",
        "sluice_membership_stale 1",
        "sluice_install_state{state=\"fighting\"} 1",
        "sluice_install_state{state=\"chained\"} 0",
        "sluice_install_writes_total 9",
        "sluice_install_repairs_total 7",
        "sluice_install_fight_undone 5",
        "sluice_lease_state{state=\"held\"} 1",
        "sluice_lease_state{state=\"none\"} 0",
        "sluice_lease_age_seconds 12",
        "sluice_taint_removals_total{result=\"ok\"} 1",
        "sluice_backend_info{kind=\"nftables\"} 1",
        concat!("sluice_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    assert!(!text.contains("kind=\"iptables\""), "the backend before is still there:\n{text}");
}

#[test]
fn no_installer_is_not_one_that_waits() {
    let metrics = Metrics::new();
    metrics.installation(Some(&fought()), Some(&lease()));
    metrics.installation(None, None);
    let text = metrics.render();
    let on = |metric: &str| {
        let on = text.lines().filter(|line| line.starts_with(metric) && line.ends_with(" 1"));
        on.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(on("sluice_install_state"), ["sluice_install_state{state=\"unknown\"} 1"]);
    assert_eq!(on("sluice_lease_state"), ["sluice_lease_state{state=\"none\"} 1"]);
    assert!(text.lines().any(|line| line == "sluice_install_fight_undone 0"), "{text}");
}
