//! Texts are those of cel-go.

use super::*;
use serde_json::json;

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "min": {"type": "integer"}, "max": {"type": "integer"}, "s": {"type": "string"},
            "ratio": {"type": "number"}, "on": {"type": "boolean"}, "when": {"type": "string", "format": "date-time"},
            "port": {"x-kubernetes-int-or-string": true},
            "namespace": {"type": "string"}, "a-b": {"type": "string"},
            "list": {"type": "array", "items": {"type": "object", "properties": {"v": {"type": "integer"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
        }},
        "hidden": {"type": "array"}
    }})
}

fn output(source: &str) -> Result<String, String> {
    check(&schema(), true, false, source).map(|checked| checked.output.to_string())
}

#[test]
fn sound_expressions_have_a_type() {
    for (source, ty) in [
        ("self.spec.min <= self.spec.max", "bool"),
        ("self.spec.min < self.spec.ratio", "bool"),
        ("self.metadata.name.startsWith('f') && self.kind == 'Foo'", "bool"),
        ("!has(self.spec.s) || self.spec.s != \"secret\"", "bool"),
        ("'min %d exceeds max %d'.format([self.spec.min, self.spec.max])", "string"),
        ("self.spec.list.all(x, x.v % 2 == 0)", "bool"),
        ("self.spec.list.map(x, x.v)", "list(int)"),
        ("self.spec.list.filter(x, x.v > 1).size() + 1", "int"),
        ("self.spec.map.all(k, self.spec.map[k] == k)", "bool"),
        ("self.spec.map.exists(k, v, k == v)", "bool"),
        ("self.spec.list.transformList(i, v, i + v.v)", "list(int)"),
        ("self.spec.__namespace__ == self.spec.a__dash__b", "bool"),
        ("self.spec.?s.orValue('none')", "string"),
        ("self.spec.list[?0].hasValue()", "bool"),
        ("type(self.spec.port) == int ? self.spec.port < 5 : self.spec.port == '5%'", "bool"),
        ("sets.contains([1, 2], [self.spec.min])", "bool"),
        ("quantity('1Gi').add(1).isGreaterThan(quantity('2Gi'))", "bool"),
        ("self.spec.when > timestamp('2020-01-01T00:00:00Z')", "bool"),
        ("[].size() == 0 && {'a': 1}['a'] == 1", "bool"),
        ("self.spec.on ? 1 : 2", "int"),
        ("optional.of(self.spec.s).optMap(s, s.size())", "optional_type(int)"),
        ("url('https://a').getQuery()['q']", "list(string)"),
        ("self.spec.min in [1, 2, 3]", "bool"),
    ] {
        assert_eq!(output(source), Ok(ty.to_owned()), "{source}");
    }
}

#[test]
fn faults_are_told_as_cel_go_tells_them() {
    for (source, text) in [
        ("self.nope == 1", "ERROR: <input>:1:5: undefined field 'nope'\n | self.nope == 1\n | ....^"),
        (
            "self.hidden.size() == 0",
            "ERROR: <input>:1:5: undefined field 'hidden'\n | self.hidden.size() == 0\n | ....^",
        ),
        (
            "foo(self)",
            "ERROR: <input>:1:4: undeclared reference to 'foo' (in container '')\n | foo(self)\n | ...^",
        ),
        (
            "self.spec.s > 1",
            "ERROR: <input>:1:13: found no matching overload for '_>_' applied to '(string, int)'\n | self.spec.s > 1\n | ............^",
        ),
        (
            "self.spec.s.startsWith(1)",
            "ERROR: <input>:1:23: found no matching overload for 'startsWith' applied to 'string.(int)'\n | self.spec.s.startsWith(1)\n | ......................^",
        ),
        (
            "other == 1",
            "ERROR: <input>:1:1: undeclared reference to 'other' (in container '')\n | other == 1\n | ^",
        ),
        (
            "self.spec.min.all(x, true)",
            "ERROR: <input>:1:10: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | self.spec.min.all(x, true)\n | .........^",
        ),
    ] {
        assert_eq!(output(source), Err(text.to_owned()), "{source}");
    }
    let two = output("self.a == 1 && self.b == 2").expect_err("two faults");
    assert_eq!(two.matches("ERROR:").count(), 2, "{two}");
    assert!(output("self.spec.min >").expect_err("syntax").contains("Syntax error"));
    assert!(
        output("1 +\nself.nope").expect_err("second line").starts_with("ERROR: <input>:2:5: undefined field")
    );
}

#[test]
fn the_old_value_is_noticed_and_may_be_optional() {
    let schema = schema();
    let checked = check(&schema, true, false, "self.spec.min >= oldSelf.spec.min").expect("sound");
    assert!(checked.uses_old_self);
    assert!(!check(&schema, true, false, "self.spec.min > 0").expect("sound").uses_old_self);
    let optional = "!oldSelf.hasValue() || oldSelf.value().spec.min < self.spec.min";
    assert!(check(&schema, true, true, optional).is_ok());
    assert!(check(&schema, true, false, optional).is_err());
}

#[test]
fn fields_are_spelled_as_identifiers() {
    for (name, spelled) in [
        ("a", Some("a")),
        ("in", Some("__in__")),
        ("a-b", Some("a__dash__b")),
        ("a.b/c", Some("a__dot__b__slash__c")),
        ("a__b", Some("a__underscores__b")),
        ("a b", None),
        ("1a", None),
        ("", None),
    ] {
        assert_eq!(types::escape(name).as_deref(), spelled, "{name}");
    }
}

proptest::proptest! {
    /// Whatever is written as a rule is answered, not fallen over.
    #[test]
    fn any_text_is_answered(source in "[ -~\n]{0,60}") {
        let schema = schema();
        let _ = check(&schema, true, false, &source);
    }
}
