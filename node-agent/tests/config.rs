//! The configuration, from what is written to what is in force, and as a process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use sluice_agent::adopt::cri::USUAL_SOCKETS;
use sluice_agent::config::{
    BackendChoice, Config, ConfigError, ExistingConnections, Invocation, KubeletCgroup, LogFormat,
    MarkGuardChoice, Own, ProbesChoice, RawConfig, Source, in_force,
};
use sluice_shared::enroll::default_selectors;
use sluice_shared::membership::WhenAgentUnavailable;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

type Env<'a> = BTreeMap<&'a str, &'a str>;

fn gather(flags: &[&str], env: &Env<'_>) -> Result<RawConfig, ConfigError> {
    let args = ["sluice-agent"].iter().chain(flags);
    RawConfig::gather(&Invocation::parse(args, env).unwrap(), env)
}

fn resolve(flags: &[&str], env: &Env<'_>) -> Result<Config, ConfigError> {
    Config::resolve(&gather(flags, env)?)
}

/// The environment that the tests start from: what has no default.
fn env() -> Env<'static> {
    Env::from([
        ("HOSTNAME", "Node-1"),
        ("SLUICE_SOURCE", "file"),
        ("SLUICE_PODS_FILE", "/etc/sluice/pods.yaml"),
    ])
}

/// A directory with a configuration file in it.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.yaml");
    std::fs::write(&path, text).unwrap();
    let flag = format!("--config={}", path.display());
    (dir, flag)
}

fn agent(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-agent"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLUICE_")) {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

#[test]
fn defaults_are_what_the_reference_says() {
    let config = resolve(&[], &env()).unwrap();
    let expected = Config {
        source: Source::File(PathBuf::from("/etc/sluice/pods.yaml")),
        node_name: "node-1".to_owned(),
        own: Own::default(),
        node_taints: Vec::new(),
        agent_socket: PathBuf::from("/run/sluice/agent.sock"),
        admin_socket: PathBuf::from("/run/sluice/admin.sock"),
        zds_socket: PathBuf::from("/var/run/ztunnel/ztunnel.sock"),
        state_dir: PathBuf::from("/var/lib/sluice"),
        run_dir: PathBuf::from("/run/sluice"),
        backend: BackendChoice::Auto,
        probes: ProbesChoice::Auto,
        probe_source_v4: sluice_shared::contract::PROBE_SOURCE_V4,
        probe_source_v6: sluice_shared::contract::PROBE_SOURCE_V6,
        ipv6: true,
        dns_capture: true,
        exclude_namespaces: ["kube-system".to_owned()].into(),
        enablement_selectors: default_selectors(),
        when_agent_unavailable: WhenAgentUnavailable::Auto,
        metrics_address: Some("127.0.0.1:15014".parse().unwrap()),
        existing_connections: ExistingConnections::Keep,
        drain_timeout: Duration::from_secs(3600),
        hold_timeout: Some(Duration::from_secs(30)),
        add_timeout: Duration::from_secs(25),
        host_proc: PathBuf::from("/proc"),
        cri_sockets: USUAL_SOCKETS.map(PathBuf::from).to_vec(),
        netns_dirs: ["/run/netns", "/var/run/netns", "/run/docker/netns"].map(PathBuf::from).to_vec(),
        host_netns: PathBuf::from("/proc/self/ns/net"),
        kubelet_cgroup: KubeletCgroup::Auto,
        mark_guard: MarkGuardChoice::Auto,
        kernel_threads: std::thread::available_parallelism().unwrap(),
        log_format: LogFormat::Text,
        log_level: "info".to_owned(),
    };
    assert_eq!(config, expected);
}

#[test]
fn the_source_is_the_api_server_unless_a_file_is_asked_for() {
    let none = Env::from([("HOSTNAME", "x")]);
    let source = |flags: &[&str]| resolve(flags, &none).unwrap().source;
    assert_eq!(source(&[]), Source::Kubernetes { kubeconfig: None });
    let named = Source::Kubernetes { kubeconfig: Some(PathBuf::from("/k")) };
    assert_eq!(source(&["--kubeconfig=/k", "--pods-file=/p"]), named);
    assert_eq!(source(&["--source=file", "--pods-file=/p"]), Source::File(PathBuf::from("/p")));
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let (_dir, flag) = file("backend: iptables\nprobes: snat\nipv6: false\nnodeName: from-file\n");
    let mut env = env();
    env.extend([("SLUICE_PROBES", "none"), ("SLUICE_NODE_NAME", "from-env")]);
    let config = resolve(&[&flag, "--node-name", "from-flag"], &env).unwrap();
    assert_eq!(config.backend, BackendChoice::Iptables);
    assert_eq!(config.probes, ProbesChoice::None);
    assert_eq!(config.node_name, "from-flag");
    assert!(!config.ipv6 && config.dns_capture);

    // A host whose name is no node's name matters only where nobody says another.
    env.insert("HOSTNAME", "my_host");
    assert!(resolve(&[&flag], &env).is_ok());
    env.remove("SLUICE_NODE_NAME");
    env.insert("SLUICE_CONFIG", "/nonexistent");
    assert!(resolve(&[&flag], &env).is_ok(), "--config does not win over SLUICE_CONFIG");
    env.remove("SLUICE_CONFIG");
    let error = resolve(&[], &env).unwrap_err().to_string();
    assert!(error.starts_with("default: nodeName: \"my_host\" is not a DNS name"), "{error}");
}

#[test]
fn the_hosts_network_is_that_of_its_first_process_where_its_procfs_is_mounted_elsewhere() {
    let resolved = |extra: &[&str]| {
        let flags = ["--source=file", "--pods-file=/p", "--host-proc=/host/proc"];
        resolve(&[&flags[..], extra].concat(), &env()).unwrap().host_netns
    };
    assert_eq!(resolved(&[]), PathBuf::from("/host/proc/1/ns/net"));
    assert_eq!(resolved(&["--host-netns=/proc/self/ns/net"]), PathBuf::from("/proc/self/ns/net"));
}

#[test]
fn who_the_agent_is_is_told_whole_or_not_at_all() {
    let own = |flags: &[&str]| resolve(flags, &env()).map(|config| config.own).map_err(|e| e.to_string());
    let whole = own(&["--namespace=s", "--daemonset=d", "--pod-name=d-1", "--pod-uid=0a-b"]).unwrap();
    let daemon_set = whole.daemon_set.unwrap();
    assert_eq!((daemon_set.namespace.as_str(), daemon_set.name.as_str()), ("s", "d"));
    let (pod, uid) = whole.pod.unwrap();
    assert_eq!((pod.to_string(), uid.as_str()), ("s/d-1".to_owned(), "0a-b"));
    assert_eq!(own(&["--namespace=s"]), Ok(Own::default()));
    for (flags, missing) in [
        (&["--daemonset=d"][..], "namespace"),
        (&["--pod-name=d-1", "--pod-uid=0"], "namespace"),
        (&["--namespace=s", "--pod-name=d-1"], "podUid"),
        (&["--namespace=s", "--pod-uid=0"], "podName"),
    ] {
        let error = own(flags).unwrap_err();
        assert!(error.ends_with(&format!("it needs `{missing}`")), "{error}");
    }
    assert!(own(&["--daemonset=a/b", "--namespace=s"]).is_err());
    assert!(resolve(&["--node-taints=a:NoExecute"], &env()).is_err());
}

#[test]
fn every_key_can_be_written_everywhere() {
    let values: BTreeMap<&str, (&str, &str)> = BTreeMap::from([
        ("source", ("file", "file")),
        ("kubeconfig", ("/c", "/c")),
        ("podsFile", ("/p", "/p")),
        ("nodeName", ("n", "n")),
        ("namespace", ("sluice-system", "sluice-system")),
        ("daemonset", ("d", "d")),
        ("podName", ("d-x1", "d-x1")),
        ("podUid", ("'0'", "0")),
        ("nodeTaints", ("[a/b, c]", "a/b, c")),
        ("agentSocket", ("/a", "/a")),
        ("adminSocket", ("/b", "/b")),
        ("zdsSocket", ("/z", "/z")),
        ("stateDir", ("/s", "/s")),
        ("runDir", ("/r", "/r")),
        ("backend", ("nftables", "nftables")),
        ("probes", ("source", "source")),
        ("probeSourceV4", ("169.254.1.1", "169.254.1.1")),
        ("probeSourceV6", ("fd00::1", "fd00::1")),
        ("ipv6", ("false", "false")),
        ("dnsCapture", ("false", "false")),
        ("excludeNamespaces", ("[a, b]", "a, b")),
        (
            "enablementSelectors",
            ("[{podSelector: {matchLabels: {m: 'y'}}}]", "[{podSelector: {matchLabels: {m: 'y'}}}]"),
        ),
        ("whenAgentUnavailable", ("pass", "pass")),
        ("metricsAddress", ("", "")),
        ("existingConnections", ("reset", "reset")),
        ("drainTimeoutSeconds", ("5", "5")),
        ("holdTimeoutSeconds", ("0", "0")),
        ("addTimeoutSeconds", ("3", "3")),
        ("hostProc", ("/q", "/q")),
        ("criSocket", ("/x.sock", "/x.sock")),
        ("netnsDirs", ("[/n, /m]", "/n, /m")),
        ("hostNetns", ("/h", "/h")),
        ("kubeletCgroup", ("/k", "/k")),
        ("markGuard", ("off", "off")),
        ("kernelThreads", ("3", "3")),
        ("logFormat", ("json", "json")),
        ("logLevel", ("warn,sluice_agent=debug", "warn,sluice_agent=debug")),
    ]);
    let none = Env::from([("HOSTNAME", "x")]);
    let text: String = values.iter().map(|(key, (yaml, _))| format!("{key}: {yaml}\n")).collect();
    let (_dir, flag) = file(&text);
    let by_file = resolve(&[&flag], &none).unwrap();

    let words = |key: &str, between: char| {
        key.chars()
            .flat_map(|c| c.is_ascii_uppercase().then_some(between).into_iter().chain([c]))
            .collect::<String>()
    };
    let variable = |key: &str| format!("SLUICE_{}", words(key, '_').to_uppercase());
    let variables: Vec<(String, &str)> =
        values.iter().map(|(key, (_, text))| (variable(key), *text)).collect();
    let by_env =
        resolve(&[], &variables.iter().map(|(name, text)| (name.as_str(), *text)).collect()).unwrap();

    let flag = |key: &str| format!("--{}", words(key, '-').to_lowercase());
    let flags: Vec<String> = values.iter().map(|(key, (_, text))| format!("{}={text}", flag(key))).collect();
    let by_flag = resolve(&flags.iter().map(String::as_str).collect::<Vec<_>>(), &none).unwrap();
    assert_eq!(by_file, by_env);
    assert_eq!(by_file, by_flag);

    // Nothing was left at its default, and no key was forgotten here.
    let defaults = in_force(&gather(&[], &env()).unwrap());
    let written = in_force(&gather(&flags.iter().map(String::as_str).collect::<Vec<_>>(), &none).unwrap());
    assert_eq!(defaults.lines().count(), values.len());
    assert!(written.lines().all(|line| line.contains("# flag --")), "{written}");
    assert_eq!((by_flag.hold_timeout, by_flag.metrics_address), (None, None));
    assert_eq!(by_flag.kernel_threads.get(), 3);
}

#[test]
fn what_is_printed_sets_the_same_again() {
    let (_dir, flag) =
        file("logLevel: 'info,sluice_agent::zds=debug'\nexcludeNamespaces: []\npodsFile: '/x #y'\n");
    let raw = gather(&[&flag, "--metrics-address="], &env()).unwrap();
    let printed = in_force(&raw);
    assert!(printed.contains("podsFile: /etc/sluice/pods.yaml"), "{printed}");
    assert!(printed.contains("# environment SLUICE_PODS_FILE\n"), "{printed}");
    assert!(printed.contains("agent.yaml: line 2, column 20\n"), "{printed}");
    let (_dir, again) = file(&printed);
    let none = Env::from([("HOSTNAME", "other")]);
    assert_eq!(resolve(&[&again], &none).unwrap(), Config::resolve(&raw).unwrap());
}

#[test]
fn every_mistake_says_where_which_key_what_and_what_is_allowed() {
    for (text, expected) in [
        (
            "backend: nft\n",
            "line 1, column 10: backend: \"nft\" is not one of them (did you mean nftables?); allowed: auto, nftables, iptables, ebpf",
        ),
        (
            "ipv6: true\nbackends: auto\n",
            "line 2, column 11: backends: there is no such key (did you mean backend?)",
        ),
        ("quantum: 1\n", "line 1, column 10: quantum: there is no such key"),
        (
            "ipv6: maybe\n",
            "line 1, column 7: ipv6: invalid type: string \"maybe\", expected a boolean; allowed: true, false",
        ),
        (
            "addTimeoutSeconds: 56\n",
            "line 1, column 20: addTimeoutSeconds: 56 is out of range; allowed: a whole number from 1 to 55",
        ),
        ("drainTimeoutSeconds: -1\n", "line 1, column 22: drainTimeoutSeconds: invalid"),
        (
            "drainTimeoutSeconds: 1.5\n",
            "line 1, column 22: drainTimeoutSeconds: invalid type: floating point `1.5`",
        ),
        ("drainTimeoutSeconds: 1h\n", "line 1, column 22: drainTimeoutSeconds: invalid type: string \"1h\""),
        ("agentSocket: run/x\n", "line 1, column 14: agentSocket: \"run/x\" is not an absolute path"),
        ("podsFile: [x]\n", "line 1, column 11: podsFile: invalid type: sequence, expected a string"),
        ("probeSourceV4: 127.0.0.1\n", "line 1, column 16: probeSourceV4: 127.0.0.1 cannot be the source"),
        ("probeSourceV6: '::ffff:1.2.3.4'\n", "line 1, column 16: probeSourceV6: ::ffff:1.2.3.4 cannot be"),
        (
            "metricsAddress: localhost:1\n",
            "line 1, column 17: metricsAddress: \"localhost:1\" is not an address and port",
        ),
        ("excludeNamespaces: [a, B]\n", "line 1, column 20: excludeNamespaces: \"B\" is not a DNS label"),
        ("logLevel: 'a=b=c'\n", "line 1, column 11: logLevel: \"a=b=c\": "),
        (
            "enablementSelectors:\n- podSelector: {}\n- podSelector:\n    matchExpressions:\n    - {key: a, operator: Is}\n",
            "line 5, column 26: enablementSelectors[1].podSelector.matchExpressions[0].operator: unknown variant `Is`",
        ),
        (
            "enablementSelectors:\n- namespaceSelector: {matchExpressions: [{key: a, operator: In}]}\n",
            "line 2, column 1: enablementSelectors: [0].namespaceSelector: matchExpressions: key \"a\": In and NotIn need",
        ),
        (
            "enablementSelectors: [{podselector: {}}]\n",
            "line 1, column 37: enablementSelectors[0].podselector: unknown field",
        ),
        ("ipv6: true\nipv6: false\n", "duplicate entry with key \"ipv6\""),
        ("ipv6: true\n---\nipv6: false\n", "more than one document"),
        ("- ipv6\n", "line 1, column 1: invalid type: sequence"),
        ("ipv6: {\n", "line 2, column 1: ipv6: did not find"),
        ("kubeconfig: admin.conf\n", "line 1, column 13: kubeconfig: \"admin.conf\" is not an absolute path"),
        ("source: file\npodsFile: ''\n", "podsFile: it must be set where `source` is `file`"),
        ("backend: ebpf\n", "backend: this build has no eBPF backend; use auto, nftables or iptables"),
        ("agentSocket: /s\nadminSocket: /s\n", "line 2, column 14: adminSocket: /s is agentSocket's already"),
    ] {
        let (_dir, flag) = file(text);
        let none = Env::from([("HOSTNAME", "x")]);
        // The file alone, but for what it must have to get as far as its mistake.
        let mut flags = vec![flag.as_str()];
        if !text.contains("source: ") {
            flags.push("--source=file");
        }
        if !text.contains("podsFile: ") {
            flags.push("--pods-file=/p");
        }
        let said = resolve(&flags, &none).unwrap_err().to_string();
        assert!(said.contains(expected), "{text:?}:\n  {said}\ndoes not have\n  {expected}");
        assert!(said.contains("agent.yaml: "), "the file is not named: {said}");
    }
}

#[test]
fn mistakes_in_variables_and_flags_name_them() {
    let with = |name, text| {
        let mut env = env();
        env.insert(name, text);
        resolve(&[], &env).unwrap_err().to_string()
    };
    assert!(
        with("SLUICE_IPV6", "yes")
            .starts_with("environment SLUICE_IPV6: ipv6: \"yes\" is not true or false; allowed:")
    );
    assert!(
        with("SLUICE_BACKEND", "")
            .starts_with("environment SLUICE_BACKEND: backend: \"\" is not one of them")
    );
    assert!(with("SLUICE_ENABLEMENT_SELECTORS", "[{x: 1}]").contains("column 6: [0].x: unknown field"));
    let flag = resolve(&["--log-format=xml"], &env()).unwrap_err().to_string();
    assert!(flag.starts_with("flag --log-format: logFormat: \"xml\" is not one of them"), "{flag}");
    let missing = resolve(&["--config=/nonexistent"], &env()).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent: No such file"), "{missing}");
}

#[test]
fn a_misspelt_variable_is_warned_of_and_a_service_s_is_not() {
    let mut env = env();
    env.extend([
        ("SLUICE_POD_FILE", "/x"),
        ("SLUICE_AGENT_PORT_443_TCP", "x"),
        ("SLUICE_AGENT_SERVICE_HOST", "x"),
    ]);
    let warnings = gather(&[], &env).unwrap().warnings;
    assert_eq!(warnings, ["the variable SLUICE_POD_FILE sets no key; did you mean SLUICE_PODS_FILE?"]);
}

#[test]
fn the_process_tells_usage_errors_from_others() {
    let (_dir, flag) = file("backend: nft\n");
    let output = agent(&[&flag, "--source=file", "--pods-file=/p"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{stderr}");
    assert!(stderr.starts_with("sluice-agent: ") && stderr.contains("did you mean nftables?"), "{stderr}");
    assert!(output.stdout.is_empty());
    assert_eq!(agent(&["--no-such-flag"]).status.code(), Some(64));
    assert_eq!(agent(&["--source=file"]).status.code(), Some(64));
    let help = agent(&["--help"]);
    assert!(
        help.status.success() && String::from_utf8(help.stdout).unwrap().contains("--drain-timeout-seconds")
    );
    let print =
        agent(&["--print-config", "--source=file", "--pods-file=/p", "--ipv6", "--dns-capture=false"]);
    let printed = String::from_utf8(print.stdout).unwrap();
    assert!(print.status.success() && printed.contains("dnsCapture: false"), "{printed}");
}

#[test]
fn the_committed_reference_is_up_to_date() {
    let output = agent(&["--print-config-docs"]);
    assert!(output.status.success());
    let committed =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md")).unwrap();
    let hint = "docs/config.md is out of date: sluice-agent --print-config-docs > docs/config.md";
    assert!(String::from_utf8(output.stdout).unwrap() == committed, "{hint}");
}
