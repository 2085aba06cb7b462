use super::*;

fn placement(json: &str) -> Placement {
    serde_json::from_str(json).unwrap()
}

/// A node `n1` with these labels (`a=1`) and taints (`key=value:Effect`).
fn node(labels: &[&str], taints: &[&str]) -> Node {
    let pair = |text: &&str| {
        let (key, value) = text.split_once('=').unwrap();
        (key.to_owned(), value.to_owned())
    };
    let taint = |text: &&str| {
        let (taint, effect) = text.split_once(':').unwrap();
        let (key, value) = taint.split_once('=').unwrap_or((taint, ""));
        Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned() }
    };
    Node {
        name: "n1".to_owned(),
        labels: labels.iter().map(pair).collect(),
        taints: taints.iter().map(taint).collect(),
    }
}

#[test]
fn a_node_selector_wants_every_label() {
    let table = [
        ("{}", &[][..], None),
        (r#"{"nodeSelector":null}"#, &[], None),
        (r#"{"nodeSelector":{}}"#, &[], None),
        (r#"{"nodeSelector":{"a":"1"}}"#, &["a=1", "b=2"], None),
        (r#"{"nodeSelector":{"a":"1"}}"#, &["a=2"], Some(Unfit::Selector)),
        (r#"{"nodeSelector":{"a":""}}"#, &[], Some(Unfit::Selector)),
        (r#"{"nodeSelector":{"a":"1","b":"2"}}"#, &["a=1"], Some(Unfit::Selector)),
        (r#"{"nodeName":"n1"}"#, &[], None),
        (r#"{"nodeName":"n2"}"#, &[], Some(Unfit::Name)),
    ];
    for (json, labels, unfit) in table {
        assert_eq!(placement(json).unfit(&node(labels, &[])), unfit, "{json} {labels:?}");
    }
}

#[test]
fn of_the_terms_one_must_hold_and_in_it_every_expression() {
    let required = |terms: &str| {
        placement(&format!(
            r#"{{"affinity":{{"podAntiAffinity":{{}},"nodeAffinity":{{
                "preferredDuringSchedulingIgnoredDuringExecution":[{{"weight":1}}],
                "requiredDuringSchedulingIgnoredDuringExecution":{{"nodeSelectorTerms":{terms}}}}}}}}}"#
        ))
    };
    let table = [
        ("[]", false),
        ("[{}]", false),
        (r#"[{"matchExpressions":[]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"a","operator":"In","values":["0","1"]}]}]"#, true),
        (r#"[{"matchExpressions":[{"key":"a","operator":"In","values":["0"]}]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"x","operator":"In","values":[""]}]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"a","operator":"NotIn","values":["1"]}]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"x","operator":"NotIn","values":["1"]}]}]"#, true),
        (r#"[{"matchExpressions":[{"key":"a","operator":"Exists"}]}]"#, true),
        (r#"[{"matchExpressions":[{"key":"x","operator":"Exists"}]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"x","operator":"DoesNotExist"}]}]"#, true),
        (r#"[{"matchExpressions":[{"key":"a","operator":"DoesNotExist"}]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"cpus","operator":"Gt","values":["7"]}]}]"#, true),
        (r#"[{"matchExpressions":[{"key":"cpus","operator":"Gt","values":["8"]}]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"cpus","operator":"Lt","values":["10"]}]}]"#, true),
        (r#"[{"matchExpressions":[{"key":"cpus","operator":"Lt","values":["8"]}]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"x","operator":"Lt","values":["8"]}]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"kind","operator":"Gt","values":["8"]}]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"cpus","operator":"Gt","values":["1","2"]}]}]"#, false),
        (r#"[{"matchExpressions":[{"key":"a","operator":"OfTheFuture"}]}]"#, true),
        (r#"[{"matchFields":[{"key":"metadata.name","operator":"In","values":["n1"]}]}]"#, true),
        (r#"[{"matchFields":[{"key":"metadata.name","operator":"NotIn","values":["n1"]}]}]"#, false),
        (
            r#"[{"matchExpressions":[{"key":"a","operator":"Exists"}],
                 "matchFields":[{"key":"metadata.name","operator":"In","values":["n2"]}]}]"#,
            false,
        ),
        (
            r#"[{"matchExpressions":[{"key":"x","operator":"Exists"}]},
             {"matchExpressions":[{"key":"a","operator":"Exists"}]}]"#,
            true,
        ),
        (
            r#"[{"matchExpressions":[{"key":"a","operator":"Exists"},{"key":"x","operator":"Exists"}]}]"#,
            false,
        ),
    ];
    let node = node(&["a=1", "cpus=8", "kind=gpu"], &[]);
    for (terms, fits) in table {
        assert_eq!(required(terms).unfit(&node).is_none(), fits, "{terms}");
    }
    assert_eq!(required("[]").unfit(&node), Some(Unfit::Affinity));
}

#[test]
fn only_a_taint_that_evicts_and_is_not_tolerated_takes_a_pod_away() {
    let table = [
        ("[]", "k=v:NoSchedule", true),
        ("[]", "k=v:PreferNoSchedule", true),
        ("[]", "k=v:NoExecute", false),
        ("[]", "node.kubernetes.io/not-ready:NoExecute", true),
        ("[]", "node.kubernetes.io/unreachable:NoExecute", true),
        ("[]", "node.kubernetes.io/out-of-service:NoExecute", false),
        (r#"[{"operator":"Exists"}]"#, "k=v:NoExecute", true),
        (r#"[{"operator":"Exists","effect":"NoSchedule"}]"#, "k=v:NoExecute", false),
        (r#"[{"key":"k","operator":"Exists"}]"#, "k=v:NoExecute", true),
        (r#"[{"key":"x","operator":"Exists"}]"#, "k=v:NoExecute", false),
        (r#"[{"key":"k","value":"v"}]"#, "k=v:NoExecute", true),
        (r#"[{"key":"k","operator":"Equal","value":"v","effect":"NoExecute"}]"#, "k=v:NoExecute", true),
        (r#"[{"key":"k","operator":"Equal","value":"w"}]"#, "k=v:NoExecute", false),
        (r#"[{"key":"k","operator":"Equal"}]"#, "k:NoExecute", true),
        (r#"[{"key":"k","operator":"Gt","value":"1"}]"#, "k=2:NoExecute", true),
        (r#"[{"key":"k","operator":"Exists","tolerationSeconds":30}]"#, "k=v:NoExecute", true),
    ];
    for (tolerations, taint, stays) in table {
        let placement = placement(&format!(r#"{{"tolerations":{tolerations}}}"#));
        let unfit = (!stays).then_some(Unfit::Taint);
        assert_eq!(placement.unfit(&node(&[], &[taint])), unfit, "{tolerations} {taint}");
    }
}
