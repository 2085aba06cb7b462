//! Label selectors mean what the API server means by them.

use proptest::prelude::*;
use sluice_shared::facts::StringMap;
use sluice_shared::selector::{InvalidSelector, LabelSelector, Operator, Requirement};

fn map(pairs: &[(&str, &str)]) -> StringMap {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn requirement(operator: Operator, values: &[&str]) -> Requirement {
    Requirement {
        key: "tier".to_owned(),
        operator,
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    }
}

fn selector(labels: &[(&str, &str)], expressions: &[Requirement]) -> LabelSelector {
    LabelSelector { match_labels: map(labels), match_expressions: expressions.to_vec() }
}

#[test]
fn each_operator_on_present_other_and_absent_labels() {
    let (web, db, absent) = (map(&[("tier", "web")]), map(&[("tier", "db")]), map(&[("other", "web")]));
    let cases = [
        (Operator::In, &["web", "api"][..], [true, false, false]),
        // A label that is absent is not in any list: the API server selects it by NotIn.
        (Operator::NotIn, &["web", "api"][..], [false, true, true]),
        (Operator::Exists, &[][..], [true, true, false]),
        (Operator::DoesNotExist, &[][..], [false, false, true]),
    ];
    for (operator, values, expected) in cases {
        let selector = selector(&[], &[requirement(operator, values)]);
        let got = [&web, &db, &absent].map(|labels| selector.matches(labels));
        assert_eq!(got, expected, "{operator:?}");
    }
}

#[test]
fn an_empty_value_is_a_value() {
    let labels = map(&[("tier", "")]);
    assert!(selector(&[("tier", "")], &[]).matches(&labels));
    assert!(selector(&[], &[requirement(Operator::Exists, &[])]).matches(&labels));
    assert!(!selector(&[("tier", "")], &[]).matches(&StringMap::new()));
}

#[test]
fn all_parts_must_hold() {
    let both = selector(&[("app", "shop")], &[requirement(Operator::In, &["web"])]);
    assert!(both.matches(&map(&[("app", "shop"), ("tier", "web"), ("more", "x")])));
    assert!(!both.matches(&map(&[("app", "shop")])));
    assert!(!both.matches(&map(&[("tier", "web")])));
}

#[test]
fn what_the_api_server_refuses_is_refused() {
    for operator in [Operator::In, Operator::NotIn] {
        let refused = selector(&[], &[requirement(operator, &[])]).validate();
        assert_eq!(refused, Err(InvalidSelector::NoValues("tier".to_owned())));
        assert_eq!(selector(&[], &[requirement(operator, &["x"])]).validate(), Ok(()));
    }
    for operator in [Operator::Exists, Operator::DoesNotExist] {
        let refused = selector(&[], &[requirement(operator, &["x"])]).validate();
        assert_eq!(refused, Err(InvalidSelector::UnexpectedValues("tier".to_owned())));
        assert_eq!(selector(&[], &[requirement(operator, &[])]).validate(), Ok(()));
    }
    let refused = selector(&[], &[requirement(Operator::In, &[])]).validate().unwrap_err().to_string();
    assert!(refused.contains("\"tier\""), "names the key: {refused}");
}

#[test]
fn the_yaml_of_kubernetes_is_read_and_typos_are_not_overlooked() {
    let text = r#"{"matchLabels":{"a":"b"},"matchExpressions":[{"key":"tier","operator":"NotIn","values":["web"]}]}"#;
    let read: LabelSelector = serde_json::from_str(text).unwrap();
    assert_eq!(read, selector(&[("a", "b")], &[requirement(Operator::NotIn, &["web"])]));
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    assert!(serde_json::from_str::<LabelSelector>(r#"{"matchlabels":{}}"#).is_err());
    assert!(
        serde_json::from_str::<LabelSelector>(r#"{"matchExpressions":[{"key":"a","operator":"in"}]}"#)
            .is_err()
    );
}

fn labels() -> impl Strategy<Value = StringMap> {
    prop::collection::btree_map("[ab]", "[xy]?", 0..3)
}

proptest! {
    /// An empty selector selects everything, and is the only one that says it is empty.
    #[test]
    fn empty_selects_everything(labels in labels(), wanted in labels()) {
        prop_assert!(LabelSelector::default().matches(&labels));
        let selector = LabelSelector { match_labels: wanted.clone(), match_expressions: Vec::new() };
        prop_assert_eq!(selector.is_empty(), wanted.is_empty());
    }

    /// `In` and `NotIn` are each other's opposite, and so are `Exists` and `DoesNotExist`.
    #[test]
    fn operators_are_opposites(labels in labels(), values in prop::collection::vec("[xy]?", 1..3)) {
        let holds = |operator, values: &[String]| {
            let requirement = Requirement { key: "a".to_owned(), operator, values: values.to_vec() };
            LabelSelector { match_labels: StringMap::new(), match_expressions: vec![requirement] }.matches(&labels)
        };
        prop_assert_ne!(holds(Operator::In, &values), holds(Operator::NotIn, &values));
        prop_assert_ne!(holds(Operator::Exists, &[]), holds(Operator::DoesNotExist, &[]));
    }
}
