//! `sluice-install render` as a process: files and stdin in, bytes and exit status out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

const LIST: &str =
    "{\r\n \"cniVersion\": \"0.3.1\",\t\"mtu\":\"9001\",\n \"plugins\": [ {\"type\":\"ptp\"} ] }";

fn render(args: &[&str], stdin: &[u8]) -> Output {
    let mut install = Command::new(env!("CARGO_BIN_EXE_sluice-install"))
        .arg("render")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = install.stdin.take().unwrap().write_all(stdin);
    install.wait_with_output().unwrap()
}

#[test]
fn in_and_out_again_through_a_file_and_stdin() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), LIST).unwrap();
    let path = file.path().to_str().unwrap();
    let edited = render(&["--conflist", path, "--timeout-seconds", "5", "--exempt-pods", "a/b-"], b"");
    assert!(edited.status.success(), "{edited:?}");
    let ours =
        r#"{"type":"sluice-cni","timeoutSeconds":5,"exemptPods":[{"namespace":"a","namePrefix":"b-"}]}"#;
    let expected = LIST.replace("{\"type\":\"ptp\"}", &format!("{{\"type\":\"ptp\"}}, {ours}"));
    assert_eq!(String::from_utf8(edited.stdout.clone()).unwrap(), expected);
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), LIST, "render writes no file");
    let removed = render(&["--conflist", "-", "--remove"], &edited.stdout);
    assert_eq!(String::from_utf8(removed.stdout).unwrap(), LIST);
}

#[test]
fn what_cannot_be_done_is_said_and_nothing_is_printed() {
    let huge = vec![b' '; 2 * 1024 * 1024];
    let table: [(&[&str], &[u8], &str); 8] = [
        (&["--conflist", "/nonexistent.conflist"], b"", "/nonexistent.conflist"),
        (&["--conflist", "/"], b"", "cannot read /"),
        (&["--conflist", "-"], b"{\"plugins\":[", "cut off"),
        (&["--conflist", "-"], b"\xff\xfe", "cannot read -"),
        (&["--conflist", "-"], &huge, "1048576"),
        (&["--conflist", "-", "--timeout-seconds", "900"], LIST.as_bytes(), "timeoutSeconds"),
        (&["--conflist", "-", "--exempt-pods", "kube-system"], LIST.as_bytes(), "NAMESPACE/NAME-PREFIX"),
        (&["--conflist", "-", "--log-level", "loud"], LIST.as_bytes(), "none of"),
    ];
    for (args, stdin, said) in table {
        let output = render(args, stdin);
        assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
}
