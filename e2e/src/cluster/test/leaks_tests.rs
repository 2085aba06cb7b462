use super::super::lives::Span;
use super::*;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn span(from: u64) -> Span {
    Span { from: at(from), until: None }
}

fn life(ip: &str, captured: &[Span], hbone: &[Span]) -> Life {
    Life {
        uid: ip.to_owned(),
        name: format!("demo/{ip}"),
        seen: at(0),
        addresses: vec![(ip.parse().unwrap(), span(0))],
        captured: captured.to_vec(),
        hbone: hbone.to_vec(),
    }
}

/// a is of the mesh from 10 on, b from 10 on and known to be from 12 on, c is outside.
fn pods() -> Vec<Life> {
    vec![
        life("10.77.1.2", &[span(10)], &[]),
        life("10.77.1.3", &[span(10)], &[span(12)]),
        life("10.77.1.4", &[], &[]),
    ]
}

fn syn(seconds: u64, from: &str, to: &str) -> Packet {
    Packet {
        at: at(seconds),
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        transport: Transport::Tcp { flags: 2, sequence: 1 },
        options: Vec::new(),
        payload: Vec::new(),
    }
}

fn why(packet: Packet) -> Option<Why> {
    judge(&Packets(vec![packet]), &pods()).leaks.first().map(|leak| leak.why)
}

#[test]
fn the_application_s_own_syn_is_a_leak_wherever_it_goes() {
    assert_eq!(why(syn(11, "10.77.1.2:16001", "10.77.1.3:8080")), Some(Why::Application));
    assert_eq!(why(syn(11, "10.77.1.2:16001", "10.77.1.4:8080")), Some(Why::Application));
    assert_eq!(why(syn(11, "10.77.1.2:16001", "192.0.2.1:80")), Some(Why::Application));
}

#[test]
fn ztunnel_may_speak_plaintext_to_those_outside_only() {
    assert_eq!(why(syn(30, "10.77.1.2:40001", "10.77.1.3:8080")), Some(Why::Plaintext));
    assert_eq!(why(syn(30, "10.77.1.2:40001", "10.77.1.4:8080")), None);
    assert_eq!(why(syn(13, "10.77.1.2:40001", "10.77.1.3:8080")), None, "peers cannot know yet");
    assert_eq!(why(syn(30, "10.77.1.2:40001", "10.77.1.3:15008")), None);
}

#[test]
fn a_pod_outside_is_free_and_so_is_one_that_is_not_captured_yet() {
    assert_eq!(why(syn(11, "10.77.1.4:16001", "10.77.1.3:8080")), None);
    assert_eq!(why(syn(9, "10.77.1.2:16001", "10.77.1.3:8080")), None);
    assert_eq!(why(syn(11, "10.77.1.2:16001", "10.96.0.10:53")), None, "DNS has rules of its own");
}

#[test]
fn an_address_that_passes_on_is_judged_once_its_owner_is_sure() {
    let mut lives = pods();
    let mut last = life("10.77.1.2", &[], &[]);
    last.addresses[0].1.until = Some(at(20));
    lives.push(last);
    let leaks = |seconds| {
        let packets = Packets(vec![syn(seconds, "10.77.1.2:16001", "10.77.1.3:8080")]);
        judge(&packets, &lives).leaks.len()
    };
    assert_eq!((leaks(15), leaks(20)), (0, 1));
}

/// Of the pod at this address, so many connections from some second on.
fn talker(ip: &str, at_least: usize, since: u64) -> Talker {
    Talker { name: format!("demo/{ip}"), uid: ip.to_owned(), at_least, since: at(since) }
}

fn said(packets: &[Packet], about: &[Talker]) -> String {
    let judgement = judge(&Packets(packets.to_vec()), &pods());
    judgement.must_hold(about).unwrap_or_else(|why| format!("ERROR {why:#}"))
}

#[test]
fn nothing_seen_is_nothing_shown() {
    let outside = syn(11, "10.77.1.4:16001", "10.77.1.3:8080");
    assert_eq!(judge(&Packets(vec![outside.clone()]), &pods()).outside, 1);
    assert!(
        said(std::slice::from_ref(&outside), &[talker("10.77.1.2", 1, 0)])
            .starts_with("ERROR 1 of 1 pods began fewer")
    );
    assert!(said(&[outside], &[]).starts_with("ERROR there is no pod that this is about"));
}

#[test]
fn another_pods_connections_show_nothing_of_this_one() {
    let of_a = syn(20, "10.77.1.2:40001", "10.77.1.4:8080");
    assert!(
        said(std::slice::from_ref(&of_a), &[talker("10.77.1.3", 1, 0)])
            .contains("demo/10.77.1.3 began 0 of 1")
    );
    let both = [talker("10.77.1.2", 1, 0), talker("10.77.1.3", 1, 0)];
    assert!(said(std::slice::from_ref(&of_a), &both).starts_with("ERROR 1 of 2 pods"));
    let of_b = syn(20, "10.77.1.3:40001", "10.77.1.2:15008");
    assert_eq!(
        said(&[of_a, of_b], &both),
        "2 connections begun by 2 pods of the mesh, 1 of them to 15008, none uncaptured; 0 begun by other pods of the \
         mesh, 0 by pods outside"
    );
}

#[test]
fn a_syn_counts_once_on_however_many_links_it_is_seen() {
    let once = syn(20, "10.77.1.2:40001", "10.77.1.4:8080");
    let again = Packet { at: at(21), ..once.clone() };
    let packets = [once.clone(), again, once.clone()];
    assert!(said(&packets, &[talker("10.77.1.2", 2, 0)]).contains("began 1 of 2"));
    let other = Packet { transport: Transport::Tcp { flags: 2, sequence: 7 }, ..once.clone() };
    assert!(said(&[once, other], &[talker("10.77.1.2", 2, 0)]).starts_with("2 connections"));
}

#[test]
fn what_was_begun_before_it_had_to_be_does_not_count() {
    let uncaptured = syn(9, "10.77.1.2:16001", "10.77.1.4:8080");
    assert!(said(&[uncaptured], &[talker("10.77.1.2", 1, 0)]).contains("began 0 of 1"));
    let early = syn(20, "10.77.1.2:40001", "10.77.1.4:8080");
    assert!(said(std::slice::from_ref(&early), &[talker("10.77.1.2", 1, 21)]).contains("began 0 of 1"));
    assert!(said(&[early], &[talker("10.77.1.2", 1, 20)]).starts_with("1 connections"));
}

#[test]
fn a_leak_is_told_before_anything_else_and_once() {
    let leak = syn(11, "10.77.1.2:16001", "10.77.1.4:80");
    assert_eq!(judge(&Packets(vec![leak.clone(), leak.clone()]), &pods()).leaks.len(), 1);
    assert!(said(&[leak], &[]).starts_with("ERROR 1 leaks: demo/10.77.1.2"));
}

#[test]
fn while_an_address_passes_on_its_connections_are_of_neither_pod() {
    let mut lives = pods();
    lives.push(Life { uid: "next".into(), ..life("10.77.1.2", &[span(10)], &[]) });
    let packets = Packets(vec![syn(20, "10.77.1.2:40001", "10.77.1.4:8080")]);
    let judgement = judge(&packets, &lives);
    assert_eq!(judgement.begun.keys().collect::<Vec<_>>(), [""]);
    assert!(judgement.must_hold(&[talker("10.77.1.2", 1, 0)]).is_err());
}
