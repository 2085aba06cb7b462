//! Which way probes go, by what was tried: table and properties.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sluice_shared::ids::PodUid;
use sluice_shared::selftest::*;
use std::collections::BTreeSet;

fn passed() -> Attempt {
    Attempt::Passed
}

fn blocked() -> Attempt {
    Attempt::Blocked("mesh/a: no answer".into())
}

fn unsound() -> Attempt {
    Attempt::Unsound("mesh/a: its rules could not be changed in time".into())
}

/// All of different namespaces.
fn apart(attempts: &[Attempt]) -> Finding {
    let shown = attempts.iter().enumerate().map(|(number, attempt)| (number.to_string(), attempt.clone()));
    finding(&shown.collect::<Vec<_>>())
}

fn works() -> Finding {
    apart(&[passed(), passed()])
}

fn blocks() -> Finding {
    apart(&[blocked(), blocked()])
}

fn unjudged() -> Finding {
    apart(&[unsound()])
}

fn unavailable() -> Finding {
    Finding::Unavailable("the kernel refuses the program".into())
}

#[test]
fn what_pods_have_shown_together() {
    let table = [
        (vec![], "could not be judged: no pod was asked"),
        (vec![passed()], "passes in 1 of 1 pods asked"),
        (vec![passed(), blocked()], "passes in 1 of 2 pods asked (not in mesh/a: no answer)"),
        (vec![passed(), blocked(), blocked()], "does not pass in 2 of 3 pods asked (mesh/a: no answer)"),
        (vec![passed(), unsound(), unsound()], "passes in 1 of 1 pods asked"),
        (vec![blocked(), unsound(), unsound()], "does not pass in 1 of 1 pods asked (mesh/a: no answer)"),
        (vec![unsound()], "could not be judged: mesh/a: its rules could not be changed in time"),
    ];
    for (attempts, said) in table {
        assert_eq!(apart(&attempts).to_string(), said, "{attempts:?}");
    }
}

#[test]
fn a_namespace_has_one_vote() {
    let fell = |shown: &[(&str, Attempt)]| {
        let shown: Vec<_> =
            shown.iter().map(|(namespace, attempt)| ((*namespace).to_owned(), attempt.clone())).collect();
        matches!(finding(&shown), Finding::Blocked { .. })
    };
    assert!(!fell(&[("a", blocked()), ("a", blocked()), ("b", passed())]), "one tenant against another");
    assert!(fell(&[("a", blocked()), ("a", blocked()), ("a", passed())]), "most of the only one");
    assert!(fell(&[("a", blocked()), ("b", blocked()), ("b", blocked())]), "both");
    assert!(!fell(&[("a", blocked()), ("b", blocked()), ("b", passed())]), "b does not know");
    assert!(fell(&[("a", blocked()), ("b", unsound()), ("b", unsound())]), "nobody else can tell");
}

#[test]
fn the_first_way_that_works_is_taken() {
    use Way::{Cookie, Snat, Source};
    let table = [
        // What is in use, what was found, what is to be taken, what is shown of that, whether there could be better.
        (Some(Snat), vec![(Cookie, works())], Some(Cookie), Verdict::Works, false),
        (Some(Cookie), vec![(Cookie, works())], None, Verdict::Works, false),
        (Some(Snat), vec![(Cookie, unavailable()), (Snat, works())], None, Verdict::Works, false),
        (Some(Snat), vec![(Cookie, blocks()), (Snat, works())], None, Verdict::Works, true),
        (Some(Cookie), vec![(Cookie, blocks()), (Snat, works())], Some(Snat), Verdict::Works, true),
        (Some(Cookie), vec![(Cookie, unavailable()), (Snat, works())], Some(Snat), Verdict::Works, true),
        (
            Some(Snat),
            vec![(Cookie, unavailable()), (Snat, blocks()), (Source, works())],
            Some(Source),
            Verdict::Works,
            true,
        ),
        (
            Some(Snat),
            vec![(Cookie, unavailable()), (Snat, blocks()), (Source, blocks())],
            None,
            Verdict::Blocked,
            true,
        ),
        // Ignorance does not lead to a way that lets more through.
        (Some(Cookie), vec![(Cookie, unjudged()), (Snat, works())], None, Verdict::Untested, true),
        (Some(Snat), vec![(Cookie, unjudged()), (Snat, works())], None, Verdict::Works, true),
        (
            Some(Snat),
            vec![(Cookie, unjudged()), (Snat, unjudged()), (Source, unjudged())],
            None,
            Verdict::Untested,
            true,
        ),
        (
            Some(Snat),
            vec![(Cookie, unjudged()), (Snat, blocks()), (Source, unjudged())],
            None,
            Verdict::Blocked,
            true,
        ),
        // Another way fell in a pod that ended before it could be asked about the one in use.
        (
            Some(Snat),
            vec![(Cookie, blocks()), (Snat, unjudged()), (Source, unjudged())],
            None,
            Verdict::Untested,
            true,
        ),
        // What the kubelet's connections need is gone, and nothing else passes.
        (Some(Cookie), vec![(Cookie, unavailable()), (Snat, blocks())], None, Verdict::Blocked, true),
        (Some(Snat), vec![], None, Verdict::Untested, false),
    ];
    for (now, findings, take, verdict, second_best) in table {
        let decided = decide(now, &findings);
        let is = (decided.take, decided.verdict, decided.second_best);
        assert_eq!(is, (take, verdict, second_best), "{now:?}: {}", decided.because);
    }
}

#[test]
fn what_was_found_is_said_in_one_line() {
    let said =
        decide(None, &[(Way::Cookie, unavailable()), (Way::Snat, blocks()), (Way::Source, works())]).because;
    assert_eq!(
        said,
        "cookie is not to be had: the kernel refuses the program; snat does not pass in 2 of 2 pods asked (mesh/a: no \
         answer); source passes in 2 of 2 pods asked"
    );
}

fn attempt() -> impl Strategy<Value = Attempt> {
    select(vec![passed(), blocked(), unsound()])
}

fn found() -> impl Strategy<Value = Finding> {
    prop_oneof![4 => vec(attempt(), 0..=WITNESSES).prop_map(|attempts| apart(&attempts)), 1 => Just(unavailable())]
}

proptest! {
    /// Pods that are tampered with and are fewer than half of those that can tell do not make a way fall.
    #[test]
    fn a_minority_cannot_bring_a_way_down(honest in 1usize..4, lies in vec(attempt(), 0..4)) {
        let against = lies.iter().filter(|attempt| matches!(attempt, Attempt::Blocked(_))).count();
        let mut attempts = vec![passed(); honest];
        attempts.extend(lies);
        let fell = matches!(apart(&attempts), Finding::Blocked { .. });
        prop_assert_eq!(fell, against > attempts.iter().filter(|attempt| **attempt == passed()).count());
    }

    /// What is taken works, no better one works, and what is in use is left only for something that works.
    #[test]
    fn what_is_taken_is_the_best_that_works(now in prop::option::of(select(Way::ALL.to_vec())), found in vec(found(), 3)) {
        let findings: Vec<_> = Way::ALL.into_iter().zip(found).collect();
        let decided = decide(now, &findings);
        let works = |way: Way| findings.iter().any(|(of, found)| *of == way && matches!(found, Finding::Works { .. }));
        if let Some(taken) = decided.take {
            prop_assert!(works(taken) && now != Some(taken));
            prop_assert!(Way::ALL.into_iter().all(|way| way >= taken || !works(way)));
            prop_assert_eq!(decided.verdict, Verdict::Works);
        } else if decided.verdict == Verdict::Works {
            prop_assert!(now.is_some_and(works));
        }
        if decided.verdict == Verdict::Blocked {
            prop_assert!(Way::ALL.into_iter().all(|way| !works(way)));
        }
    }

    /// As many as there are, up to the number wanted, each once, from as many namespaces as can be; and in some round every
    /// pod is asked.
    #[test]
    fn witnesses_are_of_many_namespaces(of in vec(0usize..4, 0..12), round in 0usize..50) {
        let pods: Vec<_> = of
            .iter()
            .enumerate()
            .map(|(number, namespace)| (PodUid::new(format!("u{number}")).unwrap(), format!("n{namespace}")))
            .collect();
        let namespace = |uid: &PodUid| pods.iter().find(|(known, _)| known == uid).unwrap().1.clone();
        let chosen = witnesses(&pods, round);
        prop_assert_eq!(chosen.len(), pods.len().min(WITNESSES));
        prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
        let namespaces = |uids: &mut dyn Iterator<Item = &PodUid>| uids.map(namespace).collect::<BTreeSet<_>>().len();
        let all = namespaces(&mut pods.iter().map(|(uid, _)| uid));
        prop_assert_eq!(namespaces(&mut chosen.iter()), all.min(WITNESSES));
        let asked: BTreeSet<_> = (0..200).flat_map(|round| witnesses(&pods, round)).collect();
        prop_assert_eq!(asked.len(), pods.len());
    }
}
