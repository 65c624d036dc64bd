use super::*;
use proptest::prelude::*;
use serde_json::json;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn matching() {
    let have = labels(&[("app", "web"), ("tier", "front"), ("n", "5"), ("empty", "")]);
    for (text, want) in [
        ("", true),
        ("app=web", true),
        ("app==web,tier=front", true),
        ("app!=web", false),
        ("other!=x", true),
        ("app in (web,db)", true),
        ("app in(db)", false),
        ("app notin (db)", true),
        ("other notin (db)", true),
        ("app", true),
        ("!app", false),
        ("!other", true),
        ("n>4", true),
        ("n<4", false),
        ("app>4", false),
        ("empty=", true),
        ("empty in ()", true),
        ("app in (web,)", true),
        ("in=notin", false),
        (" app = web , tier = front ", true),
    ] {
        let s = Selector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(s.matches(&have), want, "{text}");
    }
}

#[test]
fn messages() {
    for (text, want) in [
        ("a===b", "unable to parse requirement: found '=', expected: identifier"),
        ("a=b,", "found '', expected: identifier after ','"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        ("(a)", "found '(', expected: !, identifier, or 'end of string'"),
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        (
            "a>b",
            "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be an integer",
        ),
    ] {
        assert_eq!(Selector::parse(text).unwrap_err().to_string(), want, "{text}");
    }
    assert!(
        Selector::parse("a/b/c=d").unwrap_err().to_string().starts_with(
            "unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a valid label key must"
        )
    );
}

#[test]
fn api_selectors() {
    assert!(Selector::from_label_selector_value(None).unwrap().is_nothing());
    assert!(Selector::from_label_selector_value(Some(&json!({}))).unwrap().is_everything());
    let s = Selector::from_label_selector_value(Some(&json!({
        "matchLabels": {"a": "b"},
        "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["x", "d"]}]
    })))
    .unwrap();
    assert_eq!(s.to_string(), "a=b,c notin (d,x)");
    assert!(s.matches(&json!({"a": "b", "c": "e"})));
    assert!(!s.matches(&json!({"a": "b", "c": "d"})));
    let bad = json!({"matchExpressions": [{"key": "c", "operator": "Is"}]});
    assert_eq!(
        Selector::from_label_selector_value(Some(&bad)).unwrap_err().to_string(),
        "\"Is\" is not a valid label selector operator"
    );
}

#[test]
fn field_selectors() {
    let s = FieldSelector::parse("metadata.name=a,spec.x!=b\\,c").unwrap();
    assert_eq!(s.required("metadata.name"), Some("a"));
    assert_eq!(s.required("spec.x"), None);
    assert!(s.matches(|f| if f == "metadata.name" { "a" } else { "" }));
    assert!(!s.matches(|f| if f == "metadata.name" { "a" } else { "b,c" }));
    assert_eq!(FieldSelector::parse(&s.to_string()).unwrap(), s);
    assert_eq!(
        FieldSelector::parse("abc").unwrap_err().to_string(),
        "invalid selector: 'abc'; can't understand 'abc'"
    );
    assert!(FieldSelector::parse("").unwrap().is_everything());
    assert!(FieldSelector::parse("a=b=c").is_err() && FieldSelector::parse("a=\\").is_err());
}

proptest! {
    #[test]
    fn never_panics(s in "\\PC{0,40}") {
        let _ = (Selector::parse(&s), FieldSelector::parse(&s));
    }

    #[test]
    fn grammar_never_panics(s in "[a-c!=<>(), \\\\\\n\\x00]{0,30}( in| notin)?[a-c(),]{0,8}") {
        let _ = (Selector::parse(&s), FieldSelector::parse(&s));
    }

    #[test]
    fn text_round_trips(s in "[a-c]{1,2}(=|!=| in | notin |>)?(\\([ab,]{0,4}\\)|[0-9]{1,2})?(,!?[ab])?") {
        if let Ok(selector) = Selector::parse(&s) {
            prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
        }
    }
}
