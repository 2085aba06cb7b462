//! Servers and clients over loopback.

use super::ask::{Question, Reply, ask};
use super::client::{Client, Plan as Load};
use super::server::{Plan, Server};
use super::totals::Totals;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(10);

fn plan() -> Plan {
    Plan {
        name: "server-1".into(),
        http: Some(0),
        tcp: Some(0),
        udp: Some(0),
        grpc: Some(0),
        well_after: Duration::ZERO,
        drain: PATIENCE,
    }
}

fn address(server: &Server, kind: &str) -> SocketAddr {
    let (_, address) = server.addresses.iter().find(|(served, _)| *served == kind).unwrap();
    SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()))
}

async fn says(to: SocketAddr, question: &Question) -> String {
    match ask(to, question, PATIENCE).await {
        Ok(Reply::Echo(answer)) => {
            assert!(answer.is_direct(), "{answer:?}");
            format!("{}: {}", answer.server, answer.said)
        }
        Ok(Reply::Text(text)) => text,
        Err(error) => format!("{error:#}"),
    }
}

fn http(method: &str, path: &str) -> Question {
    Question::Http(method.into(), path.into())
}

fn load(target: SocketAddr) -> Load {
    Load {
        targets: vec![target.to_string()],
        live: 0,
        per_second: 0,
        ping_every: Duration::from_millis(5),
        patience: PATIENCE,
        expect: String::new(),
    }
}

/// Runs load until its totals are as wanted, and stops it.
async fn run(plan: Load, until: impl Fn(&Totals) -> bool) -> Totals {
    let client = Client::new(plan);
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.run(stopped).await }
    });
    let reached = async {
        while !until(&client.totals()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE * 3, reached).await.unwrap_or_else(|_| panic!("{:?}", client.totals()));
    stop.send_replace(true);
    running.await.unwrap();
    client.totals()
}

#[tokio::test]
async fn it_answers_over_each_way() {
    let server = Server::start(plan()).await.unwrap();
    assert_eq!(says(address(&server, "tcp"), &Question::Line("a line".into())).await, "server-1: a line");
    assert_eq!(says(address(&server, "udp"), &Question::Datagram("a word".into())).await, "server-1: a word");
    assert_eq!(says(address(&server, "grpc"), &Question::Grpc).await, "Serving");
    assert_eq!(says(address(&server, "http"), &http("GET", "/healthz")).await, "ok");
    let whom = says(address(&server, "http"), &http("GET", "/")).await;
    let whom: serde_json::Value = serde_json::from_str(&whom).unwrap();
    assert_eq!((&whom["name"], &whom["ip"]), (&"server-1".into(), &"127.0.0.1".into()));
    assert!(whom["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(says(address(&server, "http"), &http("GET", "/else")).await.contains("status 404"));
    server.finish().await;
}

#[tokio::test]
async fn its_health_is_one_over_http_and_grpc_and_can_be_switched() {
    let server = Server::start(plan()).await.unwrap();
    let (web, rpc) = (address(&server, "http"), address(&server, "grpc"));
    assert_eq!(says(web, &http("POST", "/healthz/fail")).await, "not well from now on");
    assert!(says(web, &http("GET", "/healthz")).await.contains("status 503"));
    assert!(says(rpc, &Question::Grpc).await.contains("NotServing"));
    assert_eq!(says(web, &http("POST", "/healthz/pass")).await, "well from now on");
    assert_eq!(says(rpc, &Question::Grpc).await, "Serving");
    server.finish().await;
}

#[tokio::test]
async fn an_application_that_is_slow_to_start_is_not_well_at_once() {
    let slow = Plan { well_after: Duration::from_secs(3600), ..plan() };
    let server = Server::start(slow).await.unwrap();
    assert!(says(address(&server, "http"), &http("GET", "/healthz")).await.contains("status 503"));
    assert!(says(address(&server, "grpc"), &Question::Grpc).await.contains("NotServing"));
    server.finish().await;
}

#[tokio::test]
async fn at_its_end_it_takes_no_more_and_serves_those_that_are_there() {
    let server = Server::start(plan()).await.unwrap();
    let at = address(&server, "tcp");
    let mut open = TcpStream::connect(at).await.unwrap();
    open.write_all(b"first\n").await.unwrap();
    let mut answer = [0; 256];
    assert!(open.read(&mut answer).await.unwrap() > 0);
    let ending = tokio::spawn(server.finish());
    let refused = async {
        while TcpStream::connect(at).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    open.write_all(b"last\n").await.unwrap();
    let length = open.read(&mut answer).await.unwrap();
    assert!(answer[..length].ends_with(b" last\n"));
    drop(open);
    ending.await.unwrap();
}

#[tokio::test]
async fn load_counts_what_is_answered() {
    let server = Server::start(plan()).await.unwrap();
    let plan = Load { live: 3, per_second: 100, ..load(address(&server, "tcp")) };
    let totals = run(plan, |totals| totals.new.direct >= 10 && totals.live.pings >= 30).await;
    assert_eq!((totals.live.wanted, totals.live.open, totals.live.opened), (3, 3, 3));
    assert_eq!(totals.new.begun, totals.new.direct, "{totals:?}");
    assert_eq!(totals.live.direct, 3);
    assert!(totals.servers["server-1"] >= 40);
    assert!(totals.failures.is_empty() && totals.mismatches == 0);
    server.finish().await;
}

#[tokio::test]
async fn load_takes_its_targets_in_turns() {
    let servers = [
        Server::start(plan()).await.unwrap(),
        Server::start(Plan { name: "server-2".into(), ..plan() }).await.unwrap(),
    ];
    let targets = servers.iter().map(|server| address(server, "tcp").to_string()).collect();
    let both = Load { targets, per_second: 100, ..load(address(&servers[0], "tcp")) };
    let totals = run(both, |totals| totals.new.direct >= 10).await;
    let [first, second] =
        ["server-1", "server-2"].map(|name| totals.servers.get(name).copied().unwrap_or_default());
    assert!(first.abs_diff(second) <= 1, "{totals:?}");
    for server in servers {
        server.finish().await;
    }
}

#[tokio::test]
async fn load_counts_what_is_lost_and_opens_it_anew() {
    // Answers twice on each connection, then cuts it off.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let rude = tokio::spawn(async move {
        loop {
            let (mut stream, peer) = listener.accept().await.unwrap();
            let mut line = [0; 64];
            for _ in 0..2 {
                let length = stream.read(&mut line).await.unwrap();
                let said = String::from_utf8_lossy(&line[..length]).into_owned();
                stream.write_all(format!("rude {peer} {said}").as_bytes()).await.unwrap();
            }
            // What is unread makes it a reset.
            stream.readable().await.unwrap();
        }
    });
    let totals = run(Load { live: 1, ..load(at) }, |totals| totals.live.lost >= 2).await;
    rude.abort();
    assert_eq!(totals.live.lost, totals.live.resets, "{totals:?}");
    assert!(totals.live.opened >= totals.live.lost);
    assert!(totals.failures[0].contains("after 1 pings"), "{:?}", totals.failures);
}

#[tokio::test]
async fn load_counts_who_refuses_and_who_is_not_whom_it_wants() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let totals = run(Load { live: 1, per_second: 50, ..load(nobody) }, |totals| {
        totals.new.failed > 0 && totals.live.refused > 0
    })
    .await;
    assert_eq!((totals.live.opened, totals.live.lost, totals.new.resets), (0, 0, 0));
    assert!(totals.failures[0].contains("refused"), "{:?}", totals.failures);

    let server = Server::start(plan()).await.unwrap();
    let other = Load { per_second: 50, expect: "server-2".into(), ..load(address(&server, "tcp")) };
    let totals = run(other, |totals| totals.mismatches > 0).await;
    assert!(totals.failures[0].contains("server-1"), "{:?}", totals.failures);
    server.finish().await;
}

#[test]
fn totals_are_read_as_they_are_written() {
    let totals = Totals { mismatches: 3, ..Totals::default() };
    let text = serde_json::to_string(&totals).unwrap();
    assert!(text.contains("slowestMs"), "{text}");
    assert_eq!(serde_json::from_str::<Totals>(&text).unwrap(), totals);
}

#[tokio::test]
async fn load_tells_of_a_connection_that_nothing_comes_through_any_more() {
    let server = Server::start(plan()).await.unwrap();
    let to = address(&server, "tcp");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    // Passes the first connection on, and of the second only the first line.
    let relay = tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        let (mut second, _) = listener.accept().await.unwrap();
        let mut to_first = TcpStream::connect(to).await.unwrap();
        let mut to_second = TcpStream::connect(to).await.unwrap();
        let stall = async {
            let mut line = [0; 256];
            let length = second.read(&mut line).await.unwrap();
            to_second.write_all(&line[..length]).await.unwrap();
            let length = to_second.read(&mut line).await.unwrap();
            second.write_all(&line[..length]).await.unwrap();
            std::future::pending::<()>().await;
        };
        let pass = tokio::io::copy_bidirectional(&mut first, &mut to_first);
        tokio::join!(stall, pass).1.unwrap();
    });
    let silent = |totals: &Totals| totals.live.silent_ms >= 200 && totals.live.pings >= 10;
    let totals = run(Load { live: 2, ..load(at) }, silent).await;
    relay.abort();
    assert_eq!((totals.live.open, totals.live.lost), (2, 0), "{totals:?}");
    server.finish().await;
}
