//! What applications see, and what is on the wire.

use crate::Test;
use crate::apps::{Call, echo};
use crate::lab::{Lab, PATIENCE, WORKLOADS, redirect, redirect_without_nat};
use crate::wire::Capture;
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("meshed pods talk by mTLS over IPv4", || meshed("10.244.0.3:8080", "10.244.0.2")),
    ("meshed pods talk by mTLS over IPv6", || meshed("[fd00::3]:8080", "fd00::2")),
    ("a service is reached through its address", || meshed("10.96.0.10:80", "10.244.0.2")),
    ("a service is reached through its IPv6 address", || meshed("[fd96::a]:80", "fd00::2")),
    ("a pod reaches itself through its service", hairpin),
    ("a redirection without NAT works too", without_nat),
    ("a hold for transparent sockets lets it through", passes_the_hold),
    ("without IPv6 only IPv4 is served", without_ipv6),
    ("what leaves the mesh is passed through", leaves_the_mesh),
    ("what enters in plaintext keeps its address", enters_in_plaintext),
    ("without transparency the application sees the proxy", without_transparency),
    ("names are answered", names_are_answered),
    ("each direction closes on its own", closes_on_its_own),
    ("64 MiB arrive whole", arrives_whole),
    ("200 connections at once share one mTLS connection", many_at_once),
    ("the server may speak first and close first", server_first),
    ("nobody listening is an error, not silence", nobody_listens),
    ("a connection to ztunnel itself is refused", self_calls),
    ("an unknown workload is waited for", unknown_workload),
    ("a peer with another identity is refused", wrong_identity),
];

fn meshed(address: &str, client: &str) {
    let lab = Lab::new();
    let (_agent, mut standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    let capture = Capture::start(&lab.outside);
    let mut call = Call::open(&lab.a, address);
    assert_eq!(call.seen_as(), client);
    let secret = b"this must not be read on the way";
    call.echo(secret);
    call.finish(secret.len());

    let end =
        |direction: &'static str| move |e: &Value| e["event"] == "conn-end" && e["direction"] == direction;
    let outbound = standin.wait_for(end("outbound"), "the end outbound");
    let inbound = standin.wait_for(end("inbound-hbone"), "the end inbound");
    assert_eq!((&outbound["mtls"], &outbound["dst"]), (&true.into(), &address.into()));
    assert_eq!(
        (&inbound["mtls"], &inbound["identity"]),
        (&true.into(), &"spiffe://cluster.local/ns/demo/sa/default".into())
    );
    assert_eq!((&outbound["sent"], &inbound["sent"]), (&32.into(), &32.into()));
    assert_eq!(outbound["received"], inbound["received"]);
    assert_eq!((&outbound["error"], &inbound["error"]), (&Value::Null, &Value::Null));
    let frames = capture.finish();
    assert!(!frames.contain(secret), "plaintext on the wire");
    assert_eq!((frames.opened_to(15008), frames.opened_to(8080)), (1, 0));
    assert_eq!(standin.terminate(), 0);
}

fn hairpin() {
    let lab = Lab::new();
    let (_agent, mut standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    for (address, client) in [("10.96.0.10:80", "10.244.0.3"), ("[fd96::a]:80", "fd00::3")] {
        let mut call = Call::open(&lab.b, address);
        assert_eq!(call.seen_as(), client);
        call.echo(b"it is me");
        call.finish(8);
    }
    assert_eq!(standin.terminate(), 0);
}

/// As an agent does that tells ztunnel's listeners from an application's on the same ports.
fn passes_the_hold() {
    let lab = Lab::new();
    let opening = "tcp dport {15001, 15006, 15008} tcp flags & (fin|syn|rst|ack) == syn";
    for pod in [&lab.a, &lab.b] {
        pod.sh(&format!(
            "nft 'add chain inet standin hold {{ type filter hook input priority 0; }}; \
             add rule inet standin hold {opening} socket transparent 1 accept; \
             add rule inet standin hold {opening} drop'"
        ));
    }
    let (_agent, mut standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    for (from, address) in [
        (&lab.a, "10.244.0.3:8080"),
        (&lab.a, "[fd00::3]:8080"),
        (&lab.outside, "10.244.0.3:8080"),
        (&lab.outside, "[fd00::3]:8080"),
    ] {
        Call::open(from, address).seen_as();
    }
    assert_eq!(standin.terminate(), 0);
}

fn without_ipv6() {
    let lab = Lab::new();
    let (_agent, mut standin) = lab.serve_both(&["--ipv6", "false"]);
    echo(&lab.b, "[::]:8080");
    assert_eq!(Call::open(&lab.a, "10.244.0.3:8080").seen_as(), "10.244.0.2");
    for address in ["[::1]:15001", "[::1]:15006", "[::1]:15008", "[::1]:15053"] {
        assert!(lab.a.inside(|| TcpStream::connect(address)).is_err(), "{address} listens");
    }
    assert_eq!(standin.terminate(), 0);
}

/// As an agent does that redirects by TPROXY or in eBPF: the original destination is then the socket's own address.
fn without_nat() {
    let lab = Lab::unredirected();
    redirect_without_nat(&lab.a);
    redirect(&lab.b);
    let (_agent, mut standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    for (address, client) in [("10.244.0.3:8080", "10.244.0.2"), ("[fd00::3]:8080", "fd00::2")] {
        let mut call = Call::open(&lab.a, address);
        assert_eq!(call.seen_as(), client);
        call.echo(b"untranslated");
        call.finish(12);
        let is_it =
            |e: &Value| e["event"] == "conn-end" && e["direction"] == "outbound" && e["dst"] == address;
        assert_eq!(standin.wait_for(is_it, address)["mtls"], true);
    }
    assert_eq!(standin.terminate(), 0);
}

fn leaves_the_mesh() {
    let lab = Lab::new();
    let (_agent, mut standin) = lab.serve_both(&[]);
    echo(&lab.outside, "[::]:9090");
    for (address, client) in [("10.244.0.1:9090", "10.244.0.2"), ("[fd00::1]:9090", "fd00::2")] {
        let capture = Capture::start(&lab.outside);
        let mut call = Call::open(&lab.a, address);
        assert_eq!(call.seen_as(), client);
        call.echo(b"seen by everybody");
        call.finish(17);
        assert!(capture.finish().contain(b"seen by everybody"), "the capture sees nothing");
        let is_it = |e: &Value| e["event"] == "conn" && e["dst"] == address && e["direction"] == "outbound";
        assert_eq!(standin.wait_for(is_it, address)["mtls"], false);
    }
    assert_eq!(standin.terminate(), 0);
}

fn enters_in_plaintext() {
    let lab = Lab::new();
    let (_agent, mut standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    for (address, client) in [("10.244.0.3:8080", "10.244.0.1"), ("[fd00::3]:8080", "fd00::1")] {
        let mut call = Call::open(&lab.outside, address);
        assert_eq!(call.seen_as(), client);
        call.echo(b"hello");
        call.finish(5);
        let is_it = |e: &Value| e["event"] == "conn" && e["dst"] == address;
        assert_eq!(standin.wait_for(is_it, address)["direction"], "inbound-passthrough");
    }
    assert_eq!(standin.terminate(), 0);
}

fn without_transparency() {
    let lab = Lab::new();
    let (_agent, _standin) = lab.serve_both(&["--no-transparent"]);
    echo(&lab.b, "[::]:8080");
    let mut call = Call::open(&lab.outside, "10.244.0.3:8080");
    assert_eq!(call.seen_as(), "10.244.0.3");
}

fn names_are_answered() {
    let lab = Lab::new();
    let (_agent, standin) = lab.serve_both(&[]);
    // Flags, id and counts; the name; type A; class IN.
    let ask = |name: &str| {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).expect("short"));
            query.extend(label.as_bytes());
        }
        [query, vec![0, 0, 1, 0, 1]].concat()
    };
    for (bind, server) in [("0.0.0.0:0", "10.96.0.2:53"), ("[::]:0", "[fd96::2]:53")] {
        let udp = lab.a.inside(|| UdpSocket::bind(bind).expect("bind"));
        udp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut reply = [0; 512];
        for (name, end, code) in [
            ("echo.demo.svc.cluster.local", [10, 96, 0, 10], 0),
            ("ztunnel.standin.test", [192, 0, 2, 53], 0),
            ("example.com", [0, 1, 0, 1], 3),
        ] {
            udp.send_to(&ask(name), server).expect("send");
            let (n, from) = udp.recv_from(&mut reply).expect("an answer");
            assert_eq!(from, server.parse().expect("an address"), "the answer's source");
            assert_eq!((&reply[n - 4..n], reply[3] & 15), (&end[..], code), "{name}");
        }
    }
    let mut tcp = lab.a.inside(|| TcpStream::connect("10.96.0.2:53").expect("connect"));
    let query = ask("echo.demo.svc.cluster.local");
    tcp.write_all(&[&[0, u8::try_from(query.len()).expect("short")], query.as_slice()].concat())
        .expect("send");
    let mut length = [0; 2];
    tcp.read_exact(&mut length).expect("a length");
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    tcp.read_exact(&mut reply).expect("an answer");
    assert!(reply.ends_with(&[10, 96, 0, 10]));
    let is_it = |e: &Value| e["event"] == "conn" && e["direction"] == "dns" && e["transport"] == "tcp";
    standin.wait_for(is_it, "the question over TCP");
}

fn closes_on_its_own() {
    let lab = Lab::new();
    let (_agent, _standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    echo(&lab.outside, "[::]:9090");
    for (from, address) in
        [(&lab.a, "10.244.0.3:8080"), (&lab.a, "10.244.0.1:9090"), (&lab.outside, "10.244.0.3:8080")]
    {
        let mut call = Call::open(from, address);
        call.seen_as();
        call.echo(b"half");
        // `finish` closes one direction and then still expects the application's last words.
        call.finish(4);
    }
}

fn arrives_whole() {
    let lab = Lab::new();
    let (_agent, _standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    // A pattern that shows what is lost, doubled or moved.
    let payload: Vec<u8> =
        (0..16u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for from in [&lab.a, &lab.outside] {
        let mut call = Call::open(from, "10.244.0.3:8080");
        call.seen_as();
        let mut writer = call.0.get_ref().try_clone().expect("dup");
        let mut back = vec![0; payload.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&payload).expect("write"));
            call.0.read_exact(&mut back).expect("the echo");
        });
        assert!(back == payload, "the echo differs");
        call.finish(payload.len());
    }
}

fn many_at_once() {
    let lab = Lab::new();
    let (_agent, mut standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    let capture = Capture::start(&lab.outside);
    let mut calls: Vec<_> = (0..200).map(|_| Call::open(&lab.a, "10.244.0.3:8080")).collect();
    for (n, call) in calls.iter_mut().enumerate() {
        assert_eq!(call.seen_as(), "10.244.0.2");
        call.echo(format!("connection {n} of many").as_bytes());
    }
    for (n, call) in calls.into_iter().enumerate() {
        call.finish(format!("connection {n} of many").len());
    }
    assert_eq!(capture.finish().opened_to(15008), 1, "mTLS connections");
    assert_eq!(standin.terminate(), 0);
}

fn server_first() {
    let lab = Lab::new();
    let (_agent, _standin) = lab.serve_both(&[]);
    let listener = lab.b.inside(|| TcpListener::bind("[::]:25").expect("bind"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            writeln!(stream.expect("accept"), "220 and that was all").expect("write");
        }
    });
    for from in [&lab.a, &lab.outside] {
        let mut call = Call::open(from, "10.244.0.3:25");
        assert_eq!(call.line(), "220 and that was all\n");
        assert_eq!(call.0.read(&mut [0]).expect("the end"), 0);
    }
}

fn nobody_listens() {
    let lab = Lab::new();
    let (_agent, standin) = lab.serve_both(&[]);
    for (from, address) in
        [(&lab.a, "10.244.0.3:81"), (&lab.a, "10.244.0.1:81"), (&lab.outside, "10.244.0.3:81")]
    {
        assert_eq!(Call::open(from, address).failure(), ErrorKind::ConnectionReset, "{address}");
    }
    assert_eq!(
        Call::open(&lab.a, "10.96.0.10:81").failure(),
        ErrorKind::ConnectionReset,
        "no such service port"
    );
    let is_it =
        |e: &Value| e["event"] == "conn-end" && e["error"].as_str().is_some_and(|e| e.contains("503"));
    standin.wait_for(is_it, "the peer's refusal");
}

fn self_calls() {
    let lab = Lab::new();
    let (_agent, mut standin) = lab.serve_both(&[]);
    let calls = [
        (&lab.outside, "10.244.0.3:15001", "inbound-passthrough"),
        (&lab.outside, "10.244.0.3:15006", "inbound-passthrough"),
        (&lab.b, "10.244.0.3:15001", "outbound"),
        (&lab.b, "127.0.0.1:15001", "outbound"),
        (&lab.b, "127.0.0.1:15006", "inbound-passthrough"),
    ];
    for (from, address, direction) in calls {
        assert_eq!(Call::open(from, address).failure(), ErrorKind::ConnectionReset, "{address}");
        let is_it =
            |e: &Value| e["event"] == "conn-end" && e["dst"] == address && e["direction"] == direction;
        let error = standin.wait_for(is_it, address)["error"].to_string();
        assert!(error.contains("ztunnel itself"), "{error}");
    }
    assert_eq!(standin.terminate(), 0);
    assert_eq!(standin.events("conn").len(), calls.len(), "each was seen once, so none came back");
}

fn unknown_workload() {
    let lab = Lab::new();
    lab.tell_of("workloads: []");
    let (_agent, standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    let asked = Instant::now();
    assert_eq!(Call::open(&lab.a, "10.244.0.3:8080").failure(), ErrorKind::ConnectionReset);
    assert!(asked.elapsed() >= Duration::from_secs(4), "it was not waited for");
    let mut call = Call::open(&lab.a, "10.244.0.3:8080");
    std::thread::sleep(Duration::from_millis(300));
    lab.tell_of(WORKLOADS);
    assert_eq!(call.seen_as(), "10.244.0.2");
    // What cannot be read changes nothing.
    lab.tell_of("workloads: 7");
    standin.wait("workloads-error");
    assert_eq!(Call::open(&lab.a, "10.244.0.3:8080").seen_as(), "10.244.0.2");
}

fn wrong_identity() {
    let lab = Lab::new();
    let (_agent, standin) = lab.serve_both(&[]);
    echo(&lab.b, "[::]:8080");
    Call::open(&lab.b, "10.244.0.2:1").failure();
    // From now on, istiod would say, 10.244.0.3 is somebody else; its listener still shows pod-b's certificate.
    let other = WORKLOADS.replace(r#"workloadIps: ["10.244.0.3", "fd00::3"]"#, "workloadIps: []") + "\n";
    let stranger = "services:\n- name: echo";
    let added = "- {uid: x, name: x, namespace: demo, serviceAccount: x, trustDomain: cluster.local, \
                 workloadIps: [\"10.244.0.3\"], protocol: HBONE, node: node2, services: {}}\n";
    lab.tell_of(&other.replace(stranger, &format!("{added}{stranger}")));
    standin.wait("workloads");
    assert_eq!(Call::open(&lab.a, "10.244.0.3:8080").failure(), ErrorKind::ConnectionReset);
    let is_it =
        |e: &Value| e["event"] == "conn-end" && e["error"].as_str().is_some_and(|e| e.contains("HBONE"));
    standin.wait_for(is_it, "the failed handshake");
}
