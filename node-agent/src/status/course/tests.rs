use super::*;
use crate::status::annotation::Redirection::{Enabled, Pending};
use proptest::prelude::*;
use sluice_shared::enroll::{Because, Overrides};
use sluice_shared::ids::{NetnsId, PodUid};

fn status(state: State) -> PodStatus {
    let outside = (state == State::Outside).then_some(Reason::NotSelected);
    PodStatus {
        uid: PodUid::new("u1").unwrap(),
        namespace: "demo".into(),
        name: "pod".into(),
        ips: vec!["10.0.0.2".parse().unwrap()],
        state,
        reason: format!("it is {state}"),
        because: matches!(state, State::Enabled | State::Pending | State::Drifted)
            .then_some(Because::NamespaceLabel),
        outside,
        overrides: Overrides::default(),
        netns: Some(NetnsId { dev: 1, inode: 2 }),
        kept_connections: 0,
        drift_repairs: 0,
        checks: Vec::new(),
    }
}

/// A course, its clock, and what it has said.
struct Ride {
    course: Course,
    has: Option<Has>,
    now: Instant,
    said: Vec<Occasion>,
}

impl Ride {
    fn of(has: Has) -> Self {
        Self { course: Course::default(), has: Some(has), now: Instant::now(), said: Vec::new() }
    }

    fn is(&mut self, state: State) -> Wish {
        self.shows(&status(state))
    }

    fn shows(&mut self, status: &PodStatus) -> Wish {
        let said = self.course.stands(status, self.has, self.now);
        self.said.extend(said.into_iter().map(|(occasion, _)| occasion));
        self.course.wish()
    }

    fn after(&mut self, millis: u64) -> Wish {
        self.now += Duration::from_millis(millis);
        self.said.extend(self.course.pass(self.now).map(|(occasion, _)| occasion));
        self.course.wish()
    }
}

#[test]
fn what_a_state_means_to_peers() {
    let mut unborn = status(State::Pending);
    (unborn.netns, unborn.ips) = (None, Vec::new());
    let unjudged = PodStatus { because: None, outside: Some(Reason::NotSelected), ..status(State::Pending) };
    let ended = PodStatus { outside: Some(Reason::Terminal), ..status(State::Outside) };
    let unheard = PodStatus { outside: Some(Reason::Unknown), ..status(State::Outside) };
    let table = [
        (status(State::Enabled), Stand::Captured),
        (status(State::Pending), Stand::Waiting),
        (status(State::Drifted), Stand::Drifted),
        (status(State::Draining), Stand::Leaving),
        (status(State::Outside), Stand::Outside { ended: false }),
        (ended, Stand::Outside { ended: true }),
        (unheard, Stand::Unknown),
        (unjudged, Stand::Unknown),
        (unborn, Stand::Unknown),
    ];
    for (status, stand) in table {
        assert_eq!(Stand::of(&status), stand, "{status:?}");
    }
}

#[test]
fn a_pod_captured_at_its_start_is_said_once_and_makes_no_noise() {
    let mut ride = Ride::of(Has::Absent);
    assert_eq!(ride.is(State::Pending), Wish::AsIs);
    ride.after(40);
    assert_eq!(ride.is(State::Enabled), Wish::Say(Enabled));
    assert_eq!(ride.after(60_000), Wish::Say(Enabled));
    assert!(ride.said.is_empty(), "{:?}", ride.said);
    assert_eq!(ride.course.due(), None);
}

#[test]
fn a_pod_that_waits_is_pending_with_a_warning_and_its_capture_is_news() {
    let mut ride = Ride::of(Has::Absent);
    ride.is(State::Pending);
    assert_eq!(ride.after(4_999), Wish::AsIs);
    assert_eq!(ride.after(1), Wish::Say(Pending));
    ride.is(State::Pending);
    ride.after(60_000);
    assert_eq!(ride.is(State::Enabled), Wish::Say(Enabled), "the first capture need not prove itself");
    assert_eq!(ride.said, [Occasion::CapturePending, Occasion::Captured]);
}

#[test]
fn a_restarted_agent_leaves_what_is_right() {
    let mut ride = Ride::of(Has::Says(Enabled));
    ride.shows(&PodStatus { because: None, ..status(State::Pending) });
    ride.is(State::Pending);
    assert_eq!(ride.after(15_000), Wish::AsIs, "ztunnel may take as long to come back");
    ride.is(State::Enabled);
    assert_eq!(ride.after(1_000), Wish::Say(Enabled));
    assert!(ride.said.is_empty(), "{:?}", ride.said);
}

#[test]
fn a_gap_is_outlasted_and_a_loss_is_not() {
    let mut ride = Ride::of(Has::Absent);
    ride.is(State::Enabled);
    ride.is(State::Pending);
    assert_eq!(ride.after(19_999), Wish::Say(Enabled));
    ride.is(State::Enabled);
    ride.after(1_000);
    assert!(ride.said.is_empty());
    ride.is(State::Pending);
    assert_eq!(ride.after(20_000), Wish::Say(Pending));
    assert_eq!(ride.said, [Occasion::CaptureLost]);
    ride.is(State::Enabled);
    assert_eq!(ride.after(999), Wish::Say(Pending));
    assert_eq!(ride.after(1), Wish::Say(Enabled));
    assert_eq!(ride.said, [Occasion::CaptureLost, Occasion::Captured]);
}

#[test]
fn a_fight_over_the_rules_costs_the_pod_its_word() {
    let mut ride = Ride::of(Has::Absent);
    ride.is(State::Enabled);
    for round in 0..100 {
        ride.is(State::Drifted);
        ride.after(100);
        let wish = ride.is(State::Enabled);
        let expected = if round <= 25 { Enabled } else { Pending };
        assert!(round == 25 || wish == Wish::Say(expected), "{round}: {wish:?}");
        ride.after(100);
    }
    assert_eq!(ride.said, [Occasion::CaptureLost]);
    assert_eq!(ride.after(1_000), Wish::Say(Enabled));
}

#[test]
fn a_repair_is_said_with_what_was_wrong() {
    let mut ride = Ride::of(Has::Absent);
    ride.is(State::Enabled);
    let drifted =
        PodStatus { reason: "its rules are gone; being put right".into(), ..status(State::Drifted) };
    ride.shows(&drifted);
    let repaired = PodStatus { drift_repairs: 1, ..status(State::Enabled) };
    let said = ride.course.stands(&repaired, ride.has, ride.now);
    assert_eq!(said, [(Occasion::Repaired, "its rules are gone; put right".to_owned())]);
    assert_eq!(ride.course.stands(&repaired, ride.has, ride.now), [], "once");
}

#[test]
fn leaving_takes_the_annotation_first_and_says_released_at_the_end() {
    let mut ride = Ride::of(Has::Absent);
    ride.is(State::Enabled);
    assert_eq!(ride.is(State::Draining), Wish::Absent);
    assert!(ride.said.is_empty());
    assert_eq!(ride.is(State::Outside), Wish::Absent);
    assert_eq!(ride.said, [Occasion::Released]);
    ride.is(State::Pending);
    ride.is(State::Enabled);
    assert_eq!(ride.said, [Occasion::Released, Occasion::Captured], "a live change back is news");
}

#[test]
fn a_completed_pod_loses_its_annotation_silently() {
    let mut ride = Ride::of(Has::Absent);
    ride.is(State::Enabled);
    let ended = PodStatus { outside: Some(Reason::Terminal), ..status(State::Outside) };
    assert_eq!(ride.shows(&ended), Wish::Absent);
    assert!(ride.said.is_empty());
}

#[test]
fn an_unreadable_annotation_is_said_once() {
    let mut ride = Ride::of(Has::Absent);
    let mut odd = status(State::Enabled);
    odd.overrides.warnings = vec!["dns-capture: \"maybe\" is not a boolean; treated as absent".into()];
    ride.shows(&odd);
    ride.shows(&odd);
    assert_eq!(ride.said, [Occasion::InvalidAnnotation]);
}

#[test]
fn reasons_are_distinct_and_in_camel_case() {
    let mut reasons: Vec<_> = Occasion::ALL.iter().map(|occasion| occasion.reason()).collect();
    for reason in &reasons {
        assert!(reason.starts_with(char::is_uppercase) && reason.chars().all(char::is_alphanumeric));
    }
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), Occasion::ALL.len());
}

#[test]
fn the_admission_policy_lets_every_reason_through_and_no_other() {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../install/chart/templates/admission.yaml");
    let policies = std::fs::read_to_string(chart).unwrap();
    let list = policies.split_once("object.reason in [").unwrap().1.split_once(']').unwrap().0;
    let mut allowed: Vec<_> = list.split(',').map(|reason| reason.trim().trim_matches('\'')).collect();
    let mut reasons: Vec<_> = Occasion::ALL.iter().map(|occasion| occasion.reason()).collect();
    allowed.sort_unstable();
    reasons.sort_unstable();
    assert_eq!(allowed, reasons);
}

fn any_state() -> impl Strategy<Value = State> {
    prop::sample::select(State::ALL.to_vec())
}

proptest! {
    #[test]
    fn enabled_is_never_outlived_by_more_than_the_longest_patience(
        steps in prop::collection::vec((any_state(), 0_u64..8_000), 1..40),
    ) {
        let mut ride = Ride::of(Has::Absent);
        let mut captured_at = None;
        for (state, wait) in steps {
            ride.is(state);
            let due = ride.course.due();
            ride.after(wait);
            if state == State::Enabled {
                captured_at = Some(ride.now);
            }
            if ride.course.wish() == Wish::Say(Enabled) {
                let last = captured_at.expect("never enabled before it was captured");
                let since = ride.now - last;
                prop_assert!(since < ZTUNNEL_AWAY, "{since:?} after it was last captured");
            }
            if matches!(state, State::Draining | State::Outside) {
                prop_assert_eq!(ride.course.wish(), Wish::Absent);
                prop_assert_eq!(due, None);
            }
        }
    }

    #[test]
    fn what_is_due_is_done_by_passing(steps in prop::collection::vec(any_state(), 1..20)) {
        let mut ride = Ride::of(Has::Says(Enabled));
        for state in steps {
            ride.is(state);
        }
        let mut turns = 0;
        while let Some(due) = ride.course.due() {
            ride.now = ride.now.max(due);
            ride.course.pass(ride.now);
            turns += 1;
            prop_assert!(turns < 3, "passing must end what was due");
        }
    }
}
